"""Pooling of regions of interest whose bins are moved, or have their own channels.

The boxes get no gradient.
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
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in pixels of the input image, float32 or
            float64. A box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        output_size: int, or (height, width): the number of bins.
        spatial_scale: size of the features divided by the size of the input image, above 0; a
            number or a scalar tensor.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up.

    Returns:
        Means in the dtype of `features`. The centre of pixel p of the input image is at p + 0.5.
        Boxes may have any size. A sample more than one pixel outside the features counts as 0.
        Eager calls warn if all finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, for example channels that
            are not a multiple of the number of bins.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
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
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in pixels of the input image, float32 or
            float64. A box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        offset: `[rois, *output_size, 2]` as (y, x), any floating dtype. Each bin moves by
            `gamma * box size * offset`. None leaves the bins in place.
        output_size: int, or (height, width): the number of bins.
        mask: `[rois, *output_size]`, any floating dtype: a weight for each bin. None for no
            weights.
        spatial_scale: size of the features divided by the size of the input image, above 0; a
            number or a scalar tensor.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up.
        gamma: an offset of 1 moves a bin by this share of the box's size; a number or a scalar
            tensor.

    Returns:
        Means in the dtype of `features`. The centre of pixel p of the input image is at p + 0.5. A
        sample more than one pixel outside the features counts as 0. Eager calls warn if all finite
        boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
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

    The box is divided into `group_size` by `group_size` groups, each with its own input channels,
    and into `part_size` by `part_size` parts, each with its own offset. A bin in row p of P rows
    reads the input channels of group row `floor(p * group_size / P)` and the offset of part row
    `floor(p * part_size / P)`. The same holds for columns. Input channel
    `(c * group_size + group row) * group_size + group column` belongs to output channel c.

    Args:
        features: `[batch, height, width, output_channels * group_size**2]`, any floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in pixels of the input image, float32 or
            float64. They are rounded to whole pixels (halves away from zero), both ends included. A
            box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        offset: `[rois, part_size, part_size, 2 * classes]` as (y, x) for each class, any floating
            dtype. A bin moves by `trans_std * box size * offset`. Output channel c is of class
            `c // (output_channels / classes)`. None leaves the bins in place.
        output_size: int, or (height, width): the number of bins.
        output_channels: number of channels of the result.
        group_size: number of groups along each axis.
        part_size: number of parts along each axis.
        sample_per_part: samples in each bin along each axis. The first one is at the bin's start.
        trans_std: an offset of 1 moves a bin by this share of the box's size; a number or a scalar
            tensor.
        spatial_scale: size of the features divided by the size of the input image, above 0; a
            number or a scalar tensor.

    Returns:
        Means in the dtype of `features`, over the samples that are inside the features or at most
        half a pixel outside; 0 where there are none. Eager calls warn if all finite boxes lie
        outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, for example channels that
            are not `output_channels * group_size**2`, or classes that do not divide the output
            channels.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.2). The
    rounding and the places of the samples are those of the authors' implementation, where offsets
    are (x, y).

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
