"""What the layers that pool regions of interest share: their boxes."""

from __future__ import annotations

import typing
from typing import Any

import keras
import tensorflow as tf

from tf_deform.annotations import BoundingBoxFormat, PerAxis, PoolReduction, Shape, Tensor
from tf_deform.layers.base import Layer
from tf_deform.ops import validation
from tf_deform.ops.regions import boxes_of

_FEATURES = "[batch, height, width, channels]"


class RegionPooling(Layer):
    """What all layers of regions share: boxes of `entries` numbers, in float32 or wider."""

    entries: int
    spatial_scale: float

    def __init__(self, output_size: PerAxis, **kwargs: Any) -> None:
        # Without autocast boxes stay float32; the features are cast in `call`.
        super().__init__(**kwargs)
        self.output_size = validation.per_axis("output_size", output_size, 2)

    def build(self, features_shape: Shape, boxes_shape: Shape) -> None:
        pass

    def _set_sampling_ratio(self, sampling_ratio: int, reduction: PoolReduction = "mean") -> None:
        """Takes an argument; XLA cannot compile the gradient of maxima that are adaptive."""
        validation.at_least(0, sampling_ratio=sampling_ratio)
        self.sampling_ratio = sampling_ratio
        self.supports_jit = self.supports_jit and (sampling_ratio > 0 or reduction == "mean")

    def _flat_boxes(self, features, boxes, spatial_scale):
        """Returns boxes `[batch * rois, entries]`, their image, and (batch, rois)."""
        boxes = validation.floating("boxes", boxes)
        batch = validation.sizes(features)[0]
        boxes = validation.shaped("boxes", boxes, [batch, None, self.entries], self._boxes_in_words)
        wide = tf.float64 in (features.dtype, boxes.dtype)
        boxes = tf.stop_gradient(tf.cast(boxes, tf.float64 if wide else tf.float32))
        rois = validation.sizes(boxes)[1]
        image = tf.repeat(tf.range(batch), rois)
        return tf.reshape(boxes, [batch * rois, self.entries]), image, (batch, rois)

    @property
    def _boxes_in_words(self):
        return f"[batch, rois, {self.entries}]"

    def _arguments(self, features, boxes):
        """Returns the features in the compute dtype, and what `_flat_boxes` does."""
        features = self._features(features)
        return features, *self._flat_boxes(features, boxes, self.spatial_scale)

    def _unflat(self, pooled, batch_and_rois):
        return tf.reshape(pooled, [*batch_and_rois, *validation.sizes(pooled)[1:]])

    def _features(self, features, name="features"):
        features = validation.floating(name, features)
        features = validation.shaped(name, features, [None] * 4, _FEATURES)
        return tf.cast(features, self.compute_dtype)

    def _pooled_shape(self, features_shape, boxes_shape, channels):
        """Returns the result's shape. Raises as `call`, which symbolic tensors do not reach."""
        if isinstance(boxes_shape, dict):
            validation.floating("boxes", boxes_shape)
        validation.check_shape("features", features_shape, [None] * 4, _FEATURES)
        expected = [features_shape[0], None, self.entries]
        validation.check_shape("boxes", boxes_shape, expected, self._boxes_in_words)
        return (*boxes_shape[:2], *self.output_size, channels)


class RoIPooling(RegionPooling):
    """What the layers of upright boxes share: boxes `[batch, rois, 4]` in any format.

    A bin is one cell of the grid that the layer lays over a box. Relative box formats are relative
    to the input image, whose size is that of the features divided by `spatial_scale`. The boxes get
    no gradient.

    Args:
        output_size: int, or (height, width): the number of bins.
        output_channels: int, number of channels of the result.
        spatial_scale: size of the features divided by the size of the input image, for example
            1 / 16. An eager call warns if all finite boxes lie outside the features.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up; Keras then does not compile the model with XLA.
        aligned: False for the older convention, which has no half-pixel shift and makes boxes at
            least one pixel wide.
        bounding_box_format: a format of `keras.utils.bounding_boxes`.

    Call arguments:
        features: `[batch, height, width, channels]`.
        boxes: `[batch, rois, 4]` in pixels of the input image, or relative to it. Use float32: half
            precision is too coarse. A box of NaN gives 0; `tfd.boxes.pad` fills shorter lists with
            such boxes.
    """

    entries = 4

    def __init__(
        self,
        output_size: PerAxis,
        *,
        bounding_box_format: BoundingBoxFormat = "xyxy",
        **kwargs: Any,
    ) -> None:
        super().__init__(output_size, **kwargs)
        known = typing.get_args(BoundingBoxFormat)
        validation.choice("bounding_box_format", bounding_box_format, known)
        self.bounding_box_format: str = bounding_box_format

    def _flat_boxes(self, features, boxes, spatial_scale):
        boxes, image, shape = super()._flat_boxes(features, boxes, spatial_scale)
        name = self.bounding_box_format
        if name.startswith("rel_"):  # done here: Keras 3.7 gets rel_center_xywh wrong
            name = name.removeprefix("rel_")
            _, height, width, _ = validation.sizes(features)
            size = (height, width) if name == "yxyx" else (width, height)
            boxes *= tf.cast(tf.stack([*size, *size]), boxes.dtype) / spatial_scale
        if name != "xyxy":
            boxes = keras.utils.bounding_boxes.convert_format(
                boxes, source=name, target="xyxy", dtype=boxes.dtype.name
            )
        return boxes, image, shape

    def sampling_boxes(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Returns the bins in which the layer samples: boxes `[batch, rois, *output_size, 4]`.

        They are (x_min, y_min, x_max, y_max) in pixels of the input image, in float32 or wider, for
        every `bounding_box_format`. Pixel p of the features lies at `(p + 0.5) / spatial_scale` in
        the image. With `aligned=False` the bins are therefore shifted against the boxes by half a
        pixel of the features. The arguments are the same as in a call.
        """
        _, boxes, _, shape = self._arguments(features, boxes)
        bins, scale = self._bins(boxes)
        return self._sampled(bins, scale, shape)[..., 0, :]

    def _bins(self, boxes):
        """Returns the bins of flat boxes, and the scale of the features that they are in."""
        raise NotImplementedError

    def _sampled(self, bins, spatial_scale, batch_and_rois):
        """Returns bins as boxes in the image, `[batch, rois, *output_size, groups, 4]`."""
        return self._unflat(boxes_of(bins, spatial_scale), batch_and_rois)
