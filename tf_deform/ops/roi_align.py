"""RoIAlign of upright boxes, of turned boxes, and of boxes on the levels of a pyramid.

The boxes get no gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import tensorflow as tf

from tf_deform import onnx_ops
from tf_deform.annotations import AngleUnit, PerAxis, PoolReduction, Tensor
from tf_deform.ops import validation
from tf_deform.ops.bins import pool_in_bins
from tf_deform.ops.regions import TURNED, bins_at_rest, checked_arguments, levels_of, turned_bins
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table

ANGLE_UNITS = get_args(AngleUnit)


@operator
def roi_align(
    features: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    output_size: PerAxis,
    *,
    spatial_scale: float | Tensor = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    reduction: PoolReduction = "mean",
) -> Tensor:
    """Returns `[rois, *output_size, channels]`: the mean or maximum of samples in each bin.

    A bin is one cell of the grid that is laid over a box. The boxes get no gradient.

    Args:
        features: `[batch, height, width, channels]`, any floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in pixels of the input image, float32 or
            float64. A box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        output_size: int, or (height, width): the number of bins.
        spatial_scale: size of the features divided by the size of the input image, above 0; a
            number or a scalar tensor.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up. XLA cannot compile the gradient of such a maximum, and inside a tf.function
            it has no second derivative.
        aligned: True puts the centre of pixel p of the input image at p + 0.5, as in continuous
            coordinates. False is the older convention without this half pixel, which also makes
            boxes at least one pixel wide.
        reduction: "mean" or "max" of the samples in each bin. This "max" differs from the mode
            "max" of ONNX's RoiAlign.

    Returns:
        Means or maxima in the dtype of `features`. Half precision is summed in float32.
        A sample more than one pixel outside the features counts as 0. Eager calls warn if all
        finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: He et al., "Mask R-CNN" (arXiv:1703.06870, section 3).

    Example:
        >>> features = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
        >>> roi_align(features, [[0.0, 0.0, 4.0, 4.0]], [0], 1).numpy().item()
        7.5
    """
    features, boxes, box_indices, spatial_scale = checked_arguments(
        features, boxes, box_indices, spatial_scale
    )
    size = validation.per_axis("output_size", output_size, 2, minimum=0)
    aligned = validation.boolean("aligned", aligned)
    if onnx_ops.wanted() and reduction == "mean":
        return onnx_ops.roi_align(
            features, boxes, box_indices, size, spatial_scale, sampling_ratio, aligned
        )
    bins = bins_at_rest(boxes, size, spatial_scale, aligned)
    shape = [validation.sizes(boxes)[0], *size]
    table = Table.of(features, 1)
    pooled = pool_in_bins(table, box_indices, bins, shape, sampling_ratio, reduction)
    return tf.cast(pooled, features.dtype)


@operator
def roi_align_rotated(
    features: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    output_size: PerAxis,
    *,
    spatial_scale: float | Tensor = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    angle_unit: AngleUnit = "radians",
    clockwise: bool = False,
    reduction: PoolReduction = "mean",
) -> Tensor:
    """Returns `[rois, *output_size, channels]`: `roi_align` of rotated boxes.

    The boxes get no gradient.

    Args:
        features: `[batch, height, width, channels]`, any floating dtype.
        boxes: `[rois, 5]` as (x_center, y_center, width, height, angle), in pixels of the input
            image, float32 or float64. A box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        output_size: int, or (height, width): the number of bins, along the sides of the box before
            it is rotated.
        spatial_scale: size of the features divided by the size of the input image, above 0; a
            number or a scalar tensor.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up. XLA cannot compile the gradient of such a maximum, and inside a tf.function
            it has no second derivative.
        aligned: True puts the centre of pixel p of the input image at p + 0.5, as in continuous
            coordinates. False is the older convention without this half pixel, which also makes
            boxes at least one pixel wide.
        angle_unit: "radians", as in mmcv, or "degrees", as in detectron2.
        clockwise: whether a positive angle rotates a box clockwise, as you see it in the image.
            False: counter-clockwise.
        reduction: "mean" or "max" of the samples in each bin.

    Returns:
        Means or maxima in the dtype of `features`. Half precision is summed in float32.
        A sample more than one pixel outside the features counts as 0. Eager calls warn if all
        finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals"
    (arXiv:1703.01086, section III-D), with the sampling of RoIAlign.

    Example:
        >>> features = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
        >>> turned = [[2.0, 2.0, 4.0, 2.0, 90.0]]  # the left half of the box becomes the lower one
        >>> pooled = roi_align_rotated(features, turned, [0], (1, 2), angle_unit="degrees")
        >>> pooled[0, 0, :, 0].numpy().round(4).tolist()
        [11.5, 3.5]
    """
    features, boxes, box_indices, spatial_scale = checked_arguments(
        features, boxes, box_indices, spatial_scale, TURNED
    )
    size = validation.per_axis("output_size", output_size, 2, minimum=0)
    aligned = validation.boolean("aligned", aligned)
    clockwise = validation.boolean("clockwise", clockwise)
    validation.choice("angle_unit", angle_unit, ANGLE_UNITS)
    bins = turned_bins(boxes, size, spatial_scale, aligned, angle_unit, clockwise)
    shape = [validation.sizes(boxes)[0], *size]
    table = Table.of(features, 1)
    pooled = pool_in_bins(table, box_indices, bins, shape, sampling_ratio, reduction)
    return tf.cast(pooled, features.dtype)


@operator
def multi_scale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    box_indices: Tensor,
    output_size: PerAxis,
    *,
    scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224,
    canonical_level: float = 4,
    reduction: PoolReduction = "mean",
) -> Tensor:
    """Returns `[rois, *output_size, channels]`: RoIAlign of each box on the level for its size.

    The boxes get no gradient.

    Args:
        features: list of `[batch, height, width, channels]`, finest first, with equal batch,
            channels and floating dtype.
        boxes: `[rois, 4]` as (x_min, y_min, x_max, y_max) in pixels of the input image, float32 or
            float64. A box of NaN gives 0.
        box_indices: `[rois]` integers, the index of each box's image in the batch.
        output_size: int, or (height, width): the number of bins.
        scales: for each level, the size of the features divided by the size of the input image;
            numbers above 0, each half of the one before.
        sampling_ratio: samples in each bin along each axis. 0 takes as many as a bin has pixels,
            rounded up. XLA cannot compile the gradient of such a maximum, and inside a tf.function
            it has no second derivative.
        aligned: True puts the centre of pixel p of the input image at p + 0.5, as in continuous
            coordinates. False is the older convention without this half pixel, which also makes
            boxes at least one pixel wide.
        canonical_size: size of the boxes that use `canonical_level`: the square root of their area,
            in pixels of the input image.
        canonical_level: level of boxes of `canonical_size`. Level k has the scale 2**-k.
        reduction: "mean" or "max" of the samples in each bin.

    Returns:
        Means or maxima in the dtype of the features. Half precision is summed in float32.
        A sample more than one pixel outside the features counts as 0. Eager calls warn if all
        finite boxes lie outside.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time; a box index
            outside the batch (not under XLA, which has no run-time errors).

    Source: Lin et al., "Feature Pyramid Networks" (arXiv:1612.03144, equation 1).

    Example:
        >>> pyramid = [tf.zeros([1, 8, 8, 1]), tf.ones([1, 4, 4, 1])]
        >>> boxes = [[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 32.0, 32.0]]
        >>> pooled = multi_scale_roi_align(
        ...     pyramid, boxes, [0, 0], 1,
        ...     scales=(1 / 4, 1 / 8), canonical_size=32, canonical_level=3,
        ... )
        >>> pooled[:, 0, 0, 0].numpy().tolist()
        [0.0, 1.0]
    """
    scales = checked_scales(scales)
    levels = validation.feature_maps("features", features)
    if len(levels) != len(scales):
        raise ValueError(
            f"scales must have one entry a feature map, received {len(scales)} for {len(levels)}"
        )
    first, boxes, box_indices, _ = checked_arguments(levels[0], boxes, box_indices, scales[0])
    canonical_size = validation.number("canonical_size", canonical_size, above=0)
    canonical_level = validation.number("canonical_level", canonical_level)
    level, scale = levels_of(boxes, scales, canonical_size, canonical_level)
    size = validation.per_axis("output_size", output_size, 2, minimum=0)
    aligned = validation.boolean("aligned", aligned)
    bins = bins_at_rest(boxes, size, scale, aligned)
    shape = [validation.sizes(boxes)[0], *size]
    table = Table.of_levels(levels, level)
    pooled = pool_in_bins(table, box_indices, bins, shape, sampling_ratio, reduction)
    return tf.cast(pooled, first.dtype)


def checked_scales(scales):
    """Returns the levels' scales as floats: each must be half of the one before, to rounding."""
    known = isinstance(scales, list | tuple | np.ndarray) and np.ndim(scales) == 1
    try:
        numbers = [validation.number("scales", each, above=0) for each in (scales if known else ())]
        halved = all(math.isclose(a, 2 * b, rel_tol=1e-5) for a, b in itertools.pairwise(numbers))
    except ValueError:
        numbers = []
    if not numbers or not halved:
        raise ValueError(
            "scales must be finite numbers above 0, each half of the one before, as in (1/4, 1/8), "
            f"received {scales!r}"
        )
    return tuple(numbers)
