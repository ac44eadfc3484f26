"""Pooling of regions of interest whose bins are moved, or have channels of their own.

No operator here has a gradient to the boxes.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tf_deform.annotations import PerAxis, Tensor
from tf_deform.ops import validation
from tf_deform.ops.bins import mean_of_valid, places_of, points_in, pool_in_bins
from tf_deform.ops.regions import (
    bins_at_rest,
    cells_of,
    checked_arguments,
    moved_bins,
    moved_bins_of_classes,
)
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table


@operator
def ps_roi_align(
    features: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    output_size: PerAxis,
    *,
    spatial_scale: float | Tensor = 1.0,
    sampling_ratio: int = 2,
) -> Tensor:
    """Returns `[rois, *output_size, output_channels]`: RoIAlign whose bins have their own channels.

    Bin (h, w) of output channel c pools input channel `(c * height + h) * width + w`.

    Args:
        features: `[batch, height, width, output_channels * bins]`, any floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in input-image pixels, float32 or
            float64. A NaN box gives 0.
        box_indices: `[rois]` integers, the image that each box lies in.
        output_size: int, or (height, width) in bins.
        spatial_scale: features' size over the input image's size, above 0; a number or a scalar
            tensor.
        sampling_ratio: samples a bin along each axis. 0: as many as a bin has pixels, rounded up;
            that cannot be compiled by XLA, nor differentiated twice inside a tf.function.

    Returns:
        Means in the dtype of `features`; pixel centres are at integers plus a half in the input
        image, and boxes of any size. A sample more than a pixel outside counts as 0; eager calls
        warn if all finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, and channels that are no
            multiple of the bins.
        InvalidArgumentError: the same where shapes are known only at run time, and a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Dai et al., "R-FCN" (arXiv:1605.06409, equation 1), with the sampling of RoIAlign.

    Example:
        >>> features = tf.reshape(tf.range(4.0), [1, 1, 1, 4])
        >>> ps_roi_align(features, [[0.0, 0.0, 1.0, 1.0]], [0], 2)[0, :, :, 0].numpy().tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    features, boxes, box_indices, spatial_scale = checked_arguments(
        features, boxes, box_indices, spatial_scale
    )
    size = validation.per_axis("output_size", output_size, 2)
    count = math.prod(size)
    if features.shape[-1] is None or features.shape[-1] % count:
        raise ValueError(
            f"features must have channels divisible by the {count} bins, received {features.shape}"
        )
    bins = bins_at_rest(boxes, size, spatial_scale)
    shape = [validation.sizes(boxes)[0], *size]
    maps = _channel_maps(features, count)
    first = tf.expand_dims(box_indices, 1) * count
    index = first + tf.range(count, dtype=first.dtype)  # [rois, bins]
    pooled = pool_in_bins(Table.of(maps, 1), index, bins, shape, sampling_ratio)
    return tf.cast(pooled, features.dtype)


@operator
def deformable_roi_pool(
    features: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    offset: Tensor | None,
    output_size: PerAxis,
    *,
    mask: Tensor | None = None,
    spatial_scale: float | Tensor = 1.0,
    sampling_ratio: int = 2,
    gamma: float | Tensor = 0.1,
) -> Tensor:
    """Returns `[rois, *output_size, channels]`: RoIAlign whose bins are moved by offsets.

    Args:
        features: `[batch, height, width, channels]`, any floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in input-image pixels, float32 or
            float64. A NaN box gives 0.
        box_indices: `[rois]` integers, the image that each box lies in.
        offset: `[rois, *output_size, 2]` as (y, x), any floating dtype: bins move by
            `gamma * box size * offset`. None leaves them in place.
        output_size: int, or (height, width) in bins.
        mask: `[rois, *output_size]`, any floating dtype, which multiplies the bins; None: nothing
            does.
        spatial_scale: features' size over the input image's size, above 0; a number or a scalar
            tensor.
        sampling_ratio: samples a bin along each axis. 0: as many as a bin has pixels, rounded up;
            that cannot be compiled by XLA, nor differentiated twice inside a tf.function.
        gamma: share of the box's size that an offset of 1 moves a bin by; a number or a scalar
            tensor.

    Returns:
        Means in the dtype of `features`; pixel centres are at integers plus a half in the input
        image. A sample more than a pixel outside counts as 0; eager calls warn if all finite boxes
        lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time, and a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, equation 5), with
    the sampling of RoIAlign; the mask: "Deformable ConvNets v2" (arXiv:1811.11168, section 3.2).

    Example:
        >>> features = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
        >>> offset = [[[[0.0, 2.5]]]]  # a quarter of the box to the right
        >>> boxes = [[1.0, 1.0, 3.0, 3.0]]
        >>> deformable_roi_pool(features, boxes, [0], offset, 1).numpy().item()
        8.0
    """
    features, boxes, box_indices, spatial_scale = checked_arguments(
        features, boxes, box_indices, spatial_scale
    )
    size = validation.per_axis("output_size", output_size, 2, minimum=0)
    gamma = validation.number("gamma", gamma)
    bins = moved_bins(boxes, offset, size, spatial_scale, gamma)
    shape = [validation.sizes(boxes)[0], *size]
    pooled = pool_in_bins(Table.of(features, 1), box_indices, bins, shape, sampling_ratio)
    if mask is not None:
        mask = validation.shaped(
            "mask", validation.floating("mask", mask), shape, "[rois, *output_size]"
        )
        pooled *= tf.expand_dims(tf.cast(mask, pooled.dtype), -1)
    return tf.cast(pooled, features.dtype)


@operator
def deformable_ps_roi_pool(
    features: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    offset: Tensor | None,
    output_size: PerAxis,
    *,
    output_channels: int,
    group_size: int,
    part_size: int,
    sample_per_part: int = 4,
    trans_std: float | Tensor = 0.1,
    spatial_scale: float | Tensor = 1.0,
) -> Tensor:
    """Returns `[rois, *output_size, output_channels]`: position-sensitive pooling of moved bins.

    A bin at row p of P reads the input channels of group row `floor(p * group_size / P)` and the
    offsets of part row `floor(p * part_size / P)`; likewise for columns. Input channel
    `(c * group_size + group row) * group_size + group column` belongs to output channel c.

    Args:
        features: `[batch, height, width, output_channels * group_size**2]`, any floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in input-image pixels, float32 or
            float64, rounded to whole pixels (halves away from zero), both ends included. A NaN box
            gives 0.
        box_indices: `[rois]` integers, the image that each box lies in.
        offset: `[rois, part_size, part_size, 2 * classes]` as (y, x) for each class, any floating
            dtype: bins move by `trans_std * box size * offset`. Output channel c is of class
            `c // (output_channels / classes)`. None leaves the bins in place.
        output_size: int, or (height, width) in bins.
        output_channels: how many channels the result has.
        group_size: cells along each axis in which the features have channels of their own.
        part_size: cells along each axis in which the offsets are given.
        sample_per_part: samples a bin along each axis, from the bin's start on.
        trans_std: share of the box's size that an offset of 1 moves a bin by; a number or a scalar
            tensor.
        spatial_scale: features' size over the input image's size, above 0; a number or a scalar
            tensor.

    Returns:
        Means over the samples no further than half a pixel outside, 0 where there are none, in the
        dtype of `features`. Eager calls warn if all finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, channels that are not
            `output_channels * group_size**2`, and classes that do not divide the output channels.
        InvalidArgumentError: the same where shapes are known only at run time, and a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2, and the
    authors' implementation for the rounding and the samples' places; offsets (x, y) there).

    Example:
        >>> features = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
        >>> pooled = deformable_ps_roi_pool(
        ...     features, [[0.0, 0.0, 3.0, 3.0]], [0], None, 1,
        ...     output_channels=1, group_size=1, part_size=1, sample_per_part=2,
        ... )
        >>> pooled.numpy().item()  # samples at -0.5 and 1.5
        3.75
    """
    features, boxes, box_indices, spatial_scale = checked_arguments(
        features, boxes, box_indices, spatial_scale
    )
    size = validation.per_axis("output_size", output_size, 2)
    validation.at_least(
        1,
        output_channels=output_channels,
        group_size=group_size,
        part_size=part_size,
        sample_per_part=sample_per_part,
    )
    trans_std = validation.number("trans_std", trans_std)
    bins, classes = moved_bins_of_classes(
        boxes,
        offset,
        size,
        output_channels=output_channels,
        part_size=part_size,
        trans_std=trans_std,
        spatial_scale=spatial_scale,
    )
    if features.shape[-1] != output_channels * group_size**2:
        raise ValueError(
            "features must have output_channels * group_size**2 = "
            f"{output_channels * group_size**2} channels, received {features.shape}"
        )
    maps = _channel_maps(features, group_size**2)
    rows, columns = (cells_of(count, group_size) for count in size)
    cell = [row * group_size + column for row in rows for column in columns]
    index = tf.expand_dims(box_indices, 1) * group_size**2 + tf.constant(cell, box_indices.dtype)
    steps = [step / sample_per_part for step in range(sample_per_part)]
    points = points_in(bins, places_of(steps, boxes.dtype))
    pooled = mean_of_valid(Table.of(maps, classes), points, index)
    shape = [validation.sizes(boxes)[0], *size, output_channels]
    return tf.cast(tf.reshape(pooled, shape), features.dtype)


def _channel_maps(features, cells):
    """Returns `[batch * cells, height, width, channels]`: an image for each cell.

    The features' channels are numbered channel * cells + cell.
    """
    batch, height, width, channels = validation.sizes(features)
    maps = tf.reshape(features, [batch, height, width, channels // cells, cells])
    maps = tf.transpose(maps, [0, 4, 1, 2, 3])  # [batch, cells, height, width, channels]
    return tf.reshape(maps, [batch * cells, height, width, channels // cells])
