"""Pooling layers for regions of interest."""

import math

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.layers.regions import RoIPooling
from tf_deform.ops import validation
from tf_deform.ops.regions import bins_at_rest, levels_of, moved_bins, moved_bins_of_classes
from tf_deform.ops.roi_pooling import checked_scales

_OFFSET = "[batch, rois, *output_size, 2]"
_PART_OFFSET = "[batch, rois, part_size, part_size, 2 * classes]"


@keras.saving.register_keras_serializable("tf_deform")
class RoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: the mean of samples in each bin of each box.

    Args:
        output_size: int, or (height, width) in bins.
        spatial_scale: features' size over the input image's size. An eager call warns if with it
            all finite boxes lie outside of the features.
        sampling_ratio: samples a bin along each axis. 0: as many as a bin has pixels, rounded up;
            such a layer cannot be compiled by XLA.
        aligned: False for the older convention without the half-pixel shift, in which boxes are
            also at least one pixel wide.
        bounding_box_format: as in keras.utils.bounding_boxes.

    Call arguments:
        features: `[batch, height, width, channels]`.
        boxes: `[batch, rois, 4]` in input-image pixels, or relative to the image. Float32: half
            precision loses pixels. A NaN box gives 0: `tfd.boxes.pad` fills up with them.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: He et al., "Mask R-CNN" (arXiv:1703.06870, section 3).

    Example:
        >>> layer = RoIAlign(7, spatial_scale=1 / 16)
        >>> layer(tf.zeros([2, 9, 8, 5]), tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(self, output_size, *, spatial_scale=1.0, sampling_ratio=2, aligned=True, **kwargs):
        super().__init__(output_size, **kwargs)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        validation.at_least(0, sampling_ratio=sampling_ratio)
        self.sampling_ratio = sampling_ratio
        self.aligned = validation.boolean("aligned", aligned)
        self.supports_jit = self.supports_jit and sampling_ratio > 0

    @property
    def _options(self):
        return [*super()._options, "spatial_scale", "sampling_ratio", "aligned"]

    def call(self, features, boxes):
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.roi_align(
            features,
            boxes,
            image,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )
        return self._unflat(pooled, shape)

    def _bins(self, boxes):
        bins = bins_at_rest(boxes, self.output_size, self.spatial_scale, self.aligned)
        return bins, self.spatial_scale

    def compute_output_shape(self, features_shape, boxes_shape):
        return self._pooled_shape(features_shape, boxes_shape, features_shape[-1])


@keras.saving.register_keras_serializable("tf_deform")
class MultiScaleRoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: RoIAlign on the pyramid level of each box.

    Args:
        output_size: int, or (height, width) in bins.
        scales: for each level the features' size over the input image's size, finest first, each
            half of the one before.
        sampling_ratio, aligned, bounding_box_format: as in `RoIAlign`.
        canonical_size: the square root of a box's area, in pixels, for which
        canonical_level: is the level, counted so that level k has the scale 2**-k.

    Call arguments:
        features: list of `[batch, height, width, channels]`, one a scale.
        boxes: `[batch, rois, 4]`, as in `RoIAlign`.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: Lin et al., "Feature Pyramid Networks" (arXiv:1612.03144, equation 1).

    Example:
        >>> layer = MultiScaleRoIAlign(7, scales=(1 / 4, 1 / 8))
        >>> pyramid = [tf.zeros([2, 16, 12, 5]), tf.zeros([2, 8, 6, 5])]
        >>> layer(pyramid, tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(
        self,
        output_size,
        *,
        scales,
        sampling_ratio=2,
        aligned=True,
        canonical_size=224,
        canonical_level=4,
        **kwargs,
    ):
        super().__init__(output_size, **kwargs)
        self.scales = checked_scales(scales)
        validation.at_least(0, sampling_ratio=sampling_ratio)
        self.sampling_ratio = sampling_ratio
        self.aligned = validation.boolean("aligned", aligned)
        self.canonical_size = validation.number("canonical_size", canonical_size, above=0)
        self.canonical_level = validation.number("canonical_level", canonical_level)
        self.supports_jit = self.supports_jit and sampling_ratio > 0

    @property
    def _options(self):
        own = ["scales", "sampling_ratio", "aligned", "canonical_size", "canonical_level"]
        return [*super()._options, *own]

    def call(self, features, boxes):
        features, boxes, image, shape = self._arguments(features, boxes)
        pooled = ops.multi_scale_roi_align(
            features,
            boxes,
            image,
            self.output_size,
            scales=self.scales,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )
        return self._unflat(pooled, shape)

    def _arguments(self, features, boxes):
        features = [
            self._features(level, f"features[{index}]")
            for index, level in enumerate(validation.listed("features", features))
        ]
        return features, *self._flat_boxes(features[0], boxes, self.scales[0])

    def _bins(self, boxes):
        _, scale = levels_of(boxes, self.scales, self.canonical_size, self.canonical_level)
        return bins_at_rest(boxes, self.output_size, scale, self.aligned), scale

    def compute_output_shape(self, features_shape, boxes_shape):
        if not all(isinstance(each, list | tuple) for each in features_shape):
            raise ValueError(f"features must be a list of feature maps, received {features_shape}")
        return self._pooled_shape(features_shape[0], boxes_shape, features_shape[0][-1])


@keras.saving.register_keras_serializable("tf_deform")
class PSRoIAlign(RoIPooling):
    """Returns `[batch, rois, *output_size, output_channels]`: each bin pools its own channels.

    Args:
        output_size: int, or (height, width) in bins.
        output_channels: int; the features have `output_channels * bins` channels, bin (h, w) of
            output channel c pooling `(c * height + h) * width + w`.
        spatial_scale, sampling_ratio, bounding_box_format: as in `RoIAlign`.

    Call arguments:
        features: `[batch, height, width, output_channels * bins]`.
        boxes: `[batch, rois, 4]`, as in `RoIAlign`.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: Dai et al., "R-FCN" (arXiv:1605.06409, equation 1), with the sampling of RoIAlign.

    Example:
        >>> PSRoIAlign(3, 5)(tf.zeros([2, 9, 8, 45]), tf.zeros([2, 4, 4])).shape
        TensorShape([2, 4, 3, 3, 5])
    """

    def __init__(
        self, output_size, output_channels, *, spatial_scale=1.0, sampling_ratio=2, **kwargs
    ):
        super().__init__(output_size, **kwargs)
        validation.at_least(1, output_channels=output_channels)
        self.output_channels = output_channels
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        validation.at_least(0, sampling_ratio=sampling_ratio)
        self.sampling_ratio = sampling_ratio
        self.supports_jit = self.supports_jit and sampling_ratio > 0

    @property
    def _options(self):
        return [*super()._options, "output_channels", "spatial_scale", "sampling_ratio"]

    def build(self, features_shape, boxes_shape):
        expected = self.output_channels * math.prod(self.output_size)
        if features_shape[-1] != expected:
            raise ValueError(
                f"features must have output_channels * bins = {expected} channels, received "
                f"{features_shape}"
            )

    def call(self, features, boxes):
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

    def compute_output_shape(self, features_shape, boxes_shape):
        return self._pooled_shape(features_shape, boxes_shape, self.output_channels)


@keras.saving.register_keras_serializable("tf_deform")
class DeformableRoIPooling(RoIPooling):
    """Returns `[batch, rois, *output_size, channels]`: RoIAlign with bins moved by offsets.

    The layer pools the boxes undeformed and predicts from that, by a small fully connected network,
    how far each bin is moved and with `modulated` how much it counts. The last layer starts at
    zero, so that the untrained layer is RoIAlign (times a half if modulated).

    Args:
        output_size: int, or (height, width) in bins.
        spatial_scale, sampling_ratio, bounding_box_format: as in `RoIAlign`.
        gamma: share of the box's size that an offset of 1 moves a bin by.
        modulated: whether to weight the bins by a sigmoid.
        offset_units: units of the network's hidden layers, with ReLU.

    Call arguments:
        features: `[batch, height, width, channels]`.
        boxes: `[batch, rois, 4]`, as in `RoIAlign`.
        offset: `[batch, rois, *output_size, 2]` as (y, x), used instead of predicted ones; bins are
            then not weighted. A layer first called with an offset has no network.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2); Zhu et
    al., "Deformable ConvNets v2" (arXiv:1811.11168, section 3.2).

    Example:
        >>> layer = DeformableRoIPooling(7, spatial_scale=1 / 16, offset_units=(32,))
        >>> layer(tf.zeros([2, 9, 8, 5]), tf.zeros([2, 3, 4])).shape
        TensorShape([2, 3, 7, 7, 5])
    """

    def __init__(
        self,
        output_size,
        *,
        spatial_scale=1.0,
        sampling_ratio=2,
        gamma=0.1,
        modulated=False,
        offset_units=(1024,),
        **kwargs,
    ):
        super().__init__(output_size, **kwargs)
        self.spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
        validation.at_least(0, sampling_ratio=sampling_ratio)
        self.sampling_ratio = sampling_ratio
        self.gamma = validation.number("gamma", gamma)
        self.modulated = validation.boolean("modulated", modulated)
        self.offset_units = validation.integers("offset_units", offset_units, minimum=1)
        self.supports_jit = self.supports_jit and sampling_ratio > 0
        self.hidden = [
            keras.layers.Dense(
                units, activation="relu", dtype=self.dtype_policy, name=f"offset_{index}"
            )
            for index, units in enumerate(self.offset_units)
        ]
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        bins = math.prod(self.output_size)
        self.predictor = keras.layers.Dense(
            bins * (3 if self.modulated else 2),
            kernel_initializer="zeros",
            dtype=wide,
            name="offset",
        )

    @property
    def _options(self):
        own = ["spatial_scale", "sampling_ratio", "gamma", "modulated", "offset_units"]
        return [*super()._options, *own]

    def build(self, features_shape, boxes_shape, offset_shape=None):
        self.predicts = offset_shape is None
        if self.predicts:
            if features_shape[-1] is None:
                raise ValueError(f"features must have known channels, received {features_shape}")
            shape = (None, math.prod(self.output_size) * features_shape[-1])
            for dense in (*self.hidden, self.predictor):
                dense.build(shape)
                shape = dense.compute_output_shape(shape)

    def call(self, features, boxes, offset=None):
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

    def sampling_boxes(self, features, boxes, offset=None):
        """Returns the bins in which the layer samples, moved: `[batch, rois, *output_size, 4]`.

        As in `RoIAlign.sampling_boxes`. The arguments are those of the call: an offset of zeros
        leaves the bins in place.
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

    def compute_output_shape(self, features_shape, boxes_shape, offset_shape=None):
        shape = self._pooled_shape(features_shape, boxes_shape, features_shape[-1])
        if offset_shape is not None:
            validation.check_shape("offset", offset_shape, [*shape[:4], 2], _OFFSET)
        return shape


@keras.saving.register_keras_serializable("tf_deform")
class DeformablePSRoIPooling(RoIPooling):
    """Returns `[batch, rois, *output_size, output_channels]`: position-sensitive, moved bins.

    Args:
        output_size: int, or (height, width) in bins.
        output_channels: int; the features have `output_channels * group_size**2` channels.
        group_size: cells along each axis in which the features have channels of their own.
        part_size: cells along each axis in which the offsets are given.
        sample_per_part: samples a bin along each axis.
        trans_std: share of the box's size that an offset of 1 moves a bin by.
        spatial_scale, bounding_box_format: as in `RoIAlign`.

    Call arguments:
        features: `[batch, height, width, output_channels * group_size**2]`.
        boxes: `[batch, rois, 4]`, as in `RoIAlign`; rounded to whole pixels.
        offset: `[batch, rois, part_size, part_size, 2 * classes]` as (y, x) for each class; None:
            the bins stay in place.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2).

    Example:
        >>> layer = DeformablePSRoIPooling(7, 5, group_size=3, part_size=7)
        >>> layer(tf.zeros([2, 9, 8, 45]), tf.zeros([2, 4, 4])).shape
        TensorShape([2, 4, 7, 7, 5])
    """

    def __init__(
        self,
        output_size,
        output_channels,
        *,
        group_size,
        part_size,
        sample_per_part=4,
        trans_std=0.1,
        spatial_scale=1.0,
        **kwargs,
    ):
        super().__init__(output_size, **kwargs)
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

    @property
    def _options(self):
        own = ["output_channels", "group_size", "part_size", "sample_per_part", "trans_std"]
        return [*super()._options, *own, "spatial_scale"]

    def call(self, features, boxes, offset=None):
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

    def sampling_boxes(self, features, boxes, offset=None):
        """Returns the bins in which the layer samples: `[batch, rois, *output_size, classes, 4]`.

        As in `RoIAlign.sampling_boxes`, of boxes that are rounded to whole pixels. The arguments
        are those of the call; without an offset there is one class, whose bins are in place.
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

    def compute_output_shape(self, features_shape, boxes_shape, offset_shape=None):
        shape = self._pooled_shape(features_shape, boxes_shape, self.output_channels)
        if offset_shape is not None:
            expected = [*shape[:2], self.part_size, self.part_size, None]
            validation.check_shape("offset", offset_shape, expected, _PART_OFFSET)
        return shape
