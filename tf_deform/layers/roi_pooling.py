"""Pooling layers for regions of interest, whose bins stay in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_deform import ops
from tf_deform.annotations import (
    AngleUnit,
    BoundingBoxFormat,
    PerAxis,
    PoolReduction,
    Shape,
    Tensor,
)
from tf_deform.layers.regions import RegionPooling, RoIPooling
from tf_deform.ops import validation
from tf_deform.ops.bins import REDUCTIONS
from tf_deform.ops.regions import bins_at_rest, levels_of, turned_bins, turned_boxes_of
from tf_deform.ops.roi_align import ANGLE_UNITS, checked_scales


@keras.saving.register_keras_serializable("tf_deform")
class RoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: the mean of samples in each bin of each box.

    Args:
        reduction: "mean" or "max" of the samples in each bin. This "max" differs from the mode
            "max" of ONNX's RoiAlign.

    Source: He et al., "Mask R-CNN" (arXiv:1703.06870, section 3).

    Example:
        >>> layer = RoIAlign(7, spatial_scale=1 / 16)
        >>> layer(tf.zeros([2, 9, 8, 5]), tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(
        self,
        output_size: PerAxis,
        *,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 2,
        aligned: bool = True,
        reduction: PoolReduction = "mean",
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, bounding_box_format=bounding_box_format, **kwargs)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        self._set_sampling_ratio(sampling_ratio, reduction)
        self.aligned = validation.boolean("aligned", aligned)
        validation.choice("reduction", reduction, REDUCTIONS)
        self.reduction: PoolReduction = reduction

    def call(self, features: Tensor, boxes: Tensor) -> Tensor:
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.roi_align(
            features,
            boxes,
            image,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            reduction=self.reduction,
        )
        return self._unflat(pooled, shape)

    def _bins(self, boxes):
        bins = bins_at_rest(boxes, self.output_size, self.spatial_scale, self.aligned)
        return bins, self.spatial_scale

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape
    ) -> tuple[int | None, ...]:
        return self._pooled_shape(features_shape, boxes_shape, features_shape[-1])


@keras.saving.register_keras_serializable("tf_deform")
class RoIAlignRotated(RegionPooling):
    """Returns `[batch, rois, *output_size, channels]`: RoIAlign of rotated boxes.

    A bin is one cell of the grid that the layer lays over a box. The boxes get no gradient.

    Args:
        output_size: int, or (height, width): the number of bins, along the sides of the box before
            it is rotated.
        spatial_scale: size of the features divided by the size of the input image, for example
            1 / 16. An eager call warns if all finite boxes lie outside the features.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up; Keras then does not compile the model with XLA.
        aligned: False for the older convention, which has no half-pixel shift and makes boxes at
            least one pixel wide.
        angle_unit: "radians", as in mmcv, or "degrees", as in detectron2.
        clockwise: whether a positive angle rotates a box clockwise, as you see it in the image.
            False: counter-clockwise.
        reduction: "mean" or "max" of the samples in each bin.

    Call arguments:
        features: `[batch, height, width, channels]`.
        boxes: `[batch, rois, 5]` as (x_center, y_center, width, height, angle), in pixels of the
            input image. Use float32: half precision is too coarse. A box of NaN gives 0.

    Source: Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals"
    (arXiv:1703.01086, section III-D), with the sampling of RoIAlign.

    Example:
        >>> layer = RoIAlignRotated(7, spatial_scale=1 / 16, angle_unit="degrees")
        >>> layer(tf.zeros([2, 9, 8, 5]), tf.zeros([2, 3, 5])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    entries = 5

    def __init__(
        self,
        output_size: PerAxis,
        *,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 2,
        aligned: bool = True,
        angle_unit: AngleUnit = "radians",
        clockwise: bool = False,
        reduction: PoolReduction = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, **kwargs)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        self._set_sampling_ratio(sampling_ratio, reduction)
        self.aligned = validation.boolean("aligned", aligned)
        validation.choice("angle_unit", angle_unit, ANGLE_UNITS)
        self.angle_unit: AngleUnit = angle_unit
        self.clockwise = validation.boolean("clockwise", clockwise)
        validation.choice("reduction", reduction, REDUCTIONS)
        self.reduction: PoolReduction = reduction

    def call(self, features: Tensor, boxes: Tensor) -> Tensor:
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.roi_align_rotated(
            features,
            boxes,
            image,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            angle_unit=self.angle_unit,
            clockwise=self.clockwise,
            reduction=self.reduction,
        )
        return self._unflat(pooled, shape)

    def sampling_boxes(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Returns the bins in which the layer samples: boxes `[batch, rois, *output_size, 5]`.

        They are (x_center, y_center, width, height, angle), like the boxes, in pixels of the input
        image and in float32 or wider. Pixel p of the features lies at `(p + 0.5) / spatial_scale`
        in the image. With `aligned=False` the bins are therefore shifted against the boxes by half
        a pixel of the features. The arguments are the same as in a call.
        """
        _, boxes, _, shape = self._arguments(features, boxes)
        bins = turned_bins(
            boxes,
            self.output_size,
            self.spatial_scale,
            self.aligned,
            self.angle_unit,
            self.clockwise,
        )
        return self._unflat(turned_boxes_of(bins, self.spatial_scale, boxes), shape)

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape
    ) -> tuple[int | None, ...]:
        return self._pooled_shape(features_shape, boxes_shape, features_shape[-1])


@keras.saving.register_keras_serializable("tf_deform")
class MultiScaleRoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: RoIAlign on the pyramid level of each box.

    Args:
        scales: for each level, the size of the features divided by the size of the input image.
            The finest level is first, and each scale is half of the one before.
        canonical_size: size of the boxes that use `canonical_level`: the square root of their area,
            in pixels.
        canonical_level: level of boxes of `canonical_size`. Level k has the scale 2**-k.
        reduction: "mean" or "max" of the samples in each bin.

    Call arguments:
        features: list of `[batch, height, width, channels]`, one for each scale, or the dictionary
            that a pyramid of KerasHub returns, {"P3": finest, "P4": ...}.

    Source: Lin et al., "Feature Pyramid Networks" (arXiv:1612.03144, equation 1).

    Example:
        >>> layer = MultiScaleRoIAlign(7, scales=(1 / 4, 1 / 8))
        >>> pyramid = [tf.zeros([2, 16, 12, 5]), tf.zeros([2, 8, 6, 5])]
        >>> layer(pyramid, tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(
        self,
        output_size: PerAxis,
        *,
        scales: Sequence[float],
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224,
        canonical_level: float = 4,
        reduction: PoolReduction = "mean",
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, bounding_box_format=bounding_box_format, **kwargs)
        self.scales = checked_scales(scales)
        self._set_sampling_ratio(sampling_ratio, reduction)
        self.aligned = validation.boolean("aligned", aligned)
        self.canonical_size = validation.number("canonical_size", canonical_size, above=0)
        self.canonical_level = validation.number("canonical_level", canonical_level)
        validation.choice("reduction", reduction, REDUCTIONS)
        self.reduction: PoolReduction = reduction

    def call(self, features: Sequence[Tensor] | Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        maps, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.multi_scale_roi_align(
            maps,
            boxes,
            image,
            self.output_size,
            scales=self.scales,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            reduction=self.reduction,
        )
        return self._unflat(pooled, shape)

    def _arguments(self, features, boxes):
        features = [
            self._features(level, f"features[{index}]")
            for index, level in enumerate(validation.listed("features", _levels(features)))
        ]
        return features, *self._flat_boxes(features[0], boxes, self.scales[0])

    def _bins(self, boxes):
        _, scale = levels_of(boxes, self.scales, self.canonical_size, self.canonical_level)
        return bins_at_rest(boxes, self.output_size, scale, self.aligned), scale

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape
    ) -> tuple[int | None, ...]:
        shapes = _levels(features_shape)
        if not all(isinstance(each, list | tuple) for each in shapes):
            raise ValueError(f"features must be a list of feature maps, received {shapes}")
        return self._pooled_shape(shapes[0], boxes_shape, shapes[0][-1])


@keras.saving.register_keras_serializable("tf_deform")
class PSRoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, output_channels]`: each bin pools its own channels.

    Args:
        output_channels: int. The features must have `output_channels * bins` channels. Bin (h, w)
            of output channel c pools input channel `(c * height + h) * width + w`, where height
            and width are those of `output_size`.

    Call arguments:
        features: `[batch, height, width, output_channels * bins]`.

    Source: Dai et al., "R-FCN" (arXiv:1605.06409, equation 1), with the sampling of RoIAlign.

    Example:
        >>> PSRoIAlign(3, 5)(tf.zeros([2, 9, 8, 45]), tf.zeros([2, 4, 4])).shape
        TensorShape([2, 4, 3, 3, 5])
    """

    def __init__(
        self,
        output_size: PerAxis,
        output_channels: int,
        *,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 2,
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, bounding_box_format=bounding_box_format, **kwargs)
        validation.at_least(1, output_channels=output_channels)
        self.output_channels = output_channels
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        self._set_sampling_ratio(sampling_ratio)

    def build(self, features_shape: Shape, boxes_shape: Shape) -> None:
        expected = self.output_channels * math.prod(self.output_size)
        if features_shape[-1] != expected:
            raise ValueError(
                f"features must have output_channels * bins = {expected} channels, received "
                f"{features_shape}"
            )

    def call(self, features: Tensor, boxes: Tensor) -> Tensor:
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.ps_roi_align(
            features,
            boxes,
            image,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )
        return self._unflat(pooled, shape)

    def _bins(self, boxes):
        return bins_at_rest(boxes, self.output_size, self.spatial_scale), self.spatial_scale

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape
    ) -> tuple[int | None, ...]:
        return self._pooled_shape(features_shape, boxes_shape, self.output_channels)


def _levels(pyramid):
    """Returns a list as it is, and the values of a dictionary in the order of "P3", "P4", ..."""
    if not isinstance(pyramid, Mapping):
        return pyramid
    return [pyramid[name] for name in sorted(pyramid, key=lambda name: (len(name), name))]
