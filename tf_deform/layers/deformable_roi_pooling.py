"""Pooling layers for regions of interest, whose bins are moved by offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import BoundingBoxFormat, PerAxis, Shape, Tensor
from tf_deform.layers.base import Dense
from tf_deform.layers.regions import RoIPooling
from tf_deform.ops import validation
from tf_deform.ops.regions import moved_bins, moved_bins_of_classes

_OFFSET = "[batch, rois, *output_size, 2]"
_PART_OFFSET = "[batch, rois, part_size, part_size, 2 * classes]"


@keras.saving.register_keras_serializable("tf_deform")
class DeformableRoIPooling(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: RoIAlign with bins moved by offsets.

    The layer first pools each box as RoIAlign does. From the result a small dense network predicts
    how far each bin moves, and with `modulated` also a weight for each bin. Then the layer pools
    the moved bins. The last dense layer starts at zero, so that the untrained layer is RoIAlign
    (times one half if modulated). A bin is one cell of the grid over a box. The boxes get no
    gradient.

    Args:
        gamma: an offset of 1 moves a bin by this share of the box's size.
        modulated: whether to weight the bins, by a sigmoid.
        offset_units: units of the hidden layers of the network, which have a ReLU.

    Call arguments:
        offset: `[batch, rois, *output_size, 2]` as (y, x), used instead of predicted offsets. The
            bins are then not weighted. A layer that is first called with an offset has no network.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2); Zhu et
    al., "Deformable ConvNets v2" (arXiv:1811.11168, section 3.2).

    Example:
        >>> layer = DeformableRoIPooling(7, spatial_scale=1 / 16, offset_units=(32,))
        >>> layer(tf.zeros([2, 9, 8, 5]), tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(
        self,
        output_size: PerAxis,
        *,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 2,
        gamma: float = 0.1,
        modulated: bool = False,
        offset_units: Sequence[int] = (1024,),
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, bounding_box_format=bounding_box_format, **kwargs)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        self._set_sampling_ratio(sampling_ratio)
        self.gamma = validation.number("gamma", gamma)
        self.modulated = validation.boolean("modulated", modulated)
        self.offset_units = validation.integers("offset_units", offset_units, minimum=1)
        self.hidden = [
            Dense(units, activation="relu", dtype=self.dtype_policy, name=f"offset_{index}")
            for index, units in enumerate(self.offset_units)
        ]
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        bins = math.prod(self.output_size)
        self.predictor = Dense(
            bins * (3 if self.modulated else 2),
            kernel_initializer="zeros",
            dtype=wide,
            name="offset",
        )

    def build(
        self, features_shape: Shape, boxes_shape: Shape, offset_shape: Shape | None = None
    ) -> None:
        self.predicts = offset_shape is None
        if self.predicts:
            if features_shape[-1] is None:
                raise ValueError(f"features must have known channels, received {features_shape}")
            shape = (None, math.prod(self.output_size) * features_shape[-1])
            for dense in (*self.hidden, self.predictor):
                dense.build(shape)
                shape = dense.compute_output_shape(shape)

    def call(self, features: Tensor, boxes: Tensor, offset: Tensor | None = None) -> Tensor:
        features, boxes, image, shape = self._arguments(features, boxes)
        offset, mask = self._deformation(features, boxes, image, shape, offset)
        pooled = ops.deformable_roi_pool(
            features,
            boxes,
            image,
            offset,
            self.output_size,
            mask=mask,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            gamma=self.gamma,
        )
        return self._unflat(pooled, shape)

    def sampling_boxes(
        self, features: Tensor, boxes: Tensor, offset: Tensor | None = None
    ) -> Tensor:
        """Returns the moved bins in which the layer samples: `[batch, rois, *output_size, 4]`.

        They have the format of `RoIAlign.sampling_boxes`. The arguments are the same as in a call.
        An offset of zeros leaves the bins in place.
        """
        self._check_built()
        features, boxes, image, shape = self._arguments(features, boxes)
        offset, _ = self._deformation(features, boxes, image, shape, offset)
        bins = moved_bins(boxes, offset, self.output_size, self.spatial_scale, self.gamma)
        return self._sampled(bins, self.spatial_scale, shape)[..., 0, :]

    def _deformation(self, features, boxes, image, shape, offset):
        """Returns offset `[rois, *output_size, 2]` and mask, or None: given or else predicted."""
        if offset is not None:
            offset = validation.shaped(
                "offset",
                validation.floating("offset", offset),
                [*shape, *self.output_size, 2],
                _OFFSET,
            )
            return tf.reshape(offset, [math.prod(shape), *self.output_size, 2]), None
        if not self.predicts:
            raise ValueError(
                f"Layer {self.name!r} was built with an offset and has no predictor: call it "
                "with an offset"
            )
        pooled = ops.roi_align(
            features,
            boxes,
            image,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )
        return self._predict(pooled)

    def _predict(self, pooled):
        rois, height, width, channels = validation.sizes(pooled)
        hidden = tf.reshape(pooled, [rois, height * width * channels])
        for dense in self.hidden:
            hidden = dense(hidden)
        predicted = tf.reshape(self.predictor(hidden), [rois, height, width, -1])
        mask = tf.sigmoid(predicted[..., 2]) if self.modulated else None
        return predicted[..., :2], mask

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape, offset_shape: Shape | None = None
    ) -> tuple[int | None, ...]:
        shape = self._pooled_shape(features_shape, boxes_shape, features_shape[-1])
        if offset_shape is not None:
            validation.check_shape("offset", offset_shape, [*shape[:4], 2], _OFFSET)
        return shape


@keras.saving.register_keras_serializable("tf_deform")
class DeformablePSRoIPooling(RoIPooling):
    """Returns `[batch, rois, *output_size, output_channels]`: moved bins with their own channels.

    The box is divided into `group_size` by `group_size` cells, and the features have separate
    channels for each of them. A bin, which is one cell of the grid that is pooled, reads the
    channels of the cell that it starts in, and the offset of the part that it starts in. The layer
    has no weights: predict the offsets yourself. The boxes get no gradient.

    Args:
        output_channels: int. The features must have `output_channels * group_size**2` channels.
        group_size: number of cells along each axis.
        part_size: number of parts along each axis. An offset is given for each part of the box.
        sample_per_part: samples in each bin along each axis.
        trans_std: an offset of 1 moves a bin by this share of the box's size.

    Call arguments:
        features: `[batch, height, width, output_channels * group_size**2]`.
        boxes: `[batch, rois, 4]` in pixels of the input image, or relative to it. The layer uses
            them rounded to whole pixels. A box of NaN gives 0.
        offset: `[batch, rois, part_size, part_size, 2 * classes]` as (y, x) for each class. None
            leaves the bins in place.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2).

    Example:
        >>> layer = DeformablePSRoIPooling(7, 5, group_size=3, part_size=7)
        >>> layer(tf.zeros([2, 9, 8, 45]), tf.zeros([2, 4, 4])).shape
        TensorShape([2, 4, 7, 7, 5])
    """

    def __init__(
        self,
        output_size: PerAxis,
        output_channels: int,
        *,
        group_size: int,
        part_size: int,
        sample_per_part: int = 4,
        trans_std: float = 0.1,
        spatial_scale: float = 1.0,
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, bounding_box_format=bounding_box_format, **kwargs)
        validation.at_least(
            1,
            output_channels=output_channels,
            group_size=group_size,
            part_size=part_size,
            sample_per_part=sample_per_part,
        )
        self.output_channels = output_channels
        self.group_size = group_size
        self.part_size = part_size
        self.sample_per_part = sample_per_part
        self.trans_std = validation.number("trans_std", trans_std)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)

    def build(
        self, features_shape: Shape, boxes_shape: Shape, offset_shape: Shape | None = None
    ) -> None:
        pass

    def call(self, features: Tensor, boxes: Tensor, offset: Tensor | None = None) -> Tensor:
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.deformable_ps_roi_pool(
            features,
            boxes,
            image,
            self._flat_offset(offset, shape),
            self.output_size,
            output_channels=self.output_channels,
            group_size=self.group_size,
            part_size=self.part_size,
            sample_per_part=self.sample_per_part,
            trans_std=self.trans_std,
            spatial_scale=self.spatial_scale,
        )
        return self._unflat(pooled, shape)

    def sampling_boxes(
        self, features: Tensor, boxes: Tensor, offset: Tensor | None = None
    ) -> Tensor:
        """Returns the bins in which the layer samples: `[batch, rois, *output_size, classes, 4]`.

        They have the format of `RoIAlign.sampling_boxes`; the boxes are rounded to whole pixels
        first. The arguments are the same as in a call. Without an offset there is one class, whose
        bins stay in place.
        """
        _, boxes, _, shape = self._arguments(features, boxes)
        bins, _ = moved_bins_of_classes(
            boxes,
            self._flat_offset(offset, shape),
            self.output_size,
            output_channels=self.output_channels,
            part_size=self.part_size,
            trans_std=self.trans_std,
            spatial_scale=self.spatial_scale,
        )
        return self._sampled(bins, self.spatial_scale, shape)

    def _flat_offset(self, offset, shape):
        if offset is None:
            return None
        offset = validation.shaped(
            "offset",
            validation.floating("offset", offset),
            [*shape, self.part_size, self.part_size, None],
            _PART_OFFSET,
        )
        return tf.reshape(offset, [math.prod(shape), *validation.sizes(offset)[2:]])

    def compute_output_shape(
        self, features_shape: Shape, boxes_shape: Shape, offset_shape: Shape | None = None
    ) -> tuple[int | None, ...]:
        shape = self._pooled_shape(features_shape, boxes_shape, self.output_channels)
        if offset_shape is not None:
            expected = [*shape[:2], self.part_size, self.part_size, None]
            validation.check_shape("offset", offset_shape, expected, _PART_OFFSET)
        return shape
