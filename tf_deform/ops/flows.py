"""Algebra of dense displacement fields: composed, inverted, resized, measured, applied to points.

A flow has the convention of `warp`: a displacement in pixels for each output pixel, in array order,
which is added. Between pixels it is linear. Outside the image, that of the edge pixel holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tf_deform.annotations import Tensor
from tf_deform.ops import validation
from tf_deform.ops.displacement import field, float32_or_wider, warped
from tf_deform.ops.sampling import sample, sample_axes
from tf_deform.ops.symbolic import operator


@operator
def compose_flows(first: Tensor, second: Tensor) -> Tensor:
    """Returns the flow `[batch, *space, rank]` of warping by `first`, then by `second`.

    The result is `second(p) + first(p + second(p))`. Warping by it is
    `warp(warp(x, first), second)`, with one interpolation instead of two. Points go the other way:
    `warp_points` with the result moves them by `second`, then by `first`.

    Args:
        first: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: the flow that warps
            the image first, in pixels, array order (y, x) or (z, y, x).
        second: `[batch, *space, rank]`, the flow that warps the result.

    Returns:
        Displacements in pixels, in float32, or float64 if either flow is float64.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: the composition of transformations in Vercauteren et al., "Diffeomorphic Demons" (2009);
    in networks Dalca et al. (arXiv:1805.04605).

    Example:
        >>> down, right = (tf.ones([1, 4, 5, 2]) * way for way in ([1.0, 0.0], [0.0, 0.5]))
        >>> compose_flows(down, right)[0, 2, 3].numpy().tolist()
        [1.0, 0.5]
    """
    first = field("first", first)
    second = validation.shaped(
        "second",
        validation.floating("second", second),
        validation.sizes(first),
        "[batch, *space, rank] of first",
    )
    first, second = _alike(first, second)
    return second + warped(first, second, "bilinear", "border")


@operator
def invert_flow(flow: Tensor, *, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Returns the inverse `[batch, *space, rank]` of a flow, and its error `[batch, *space]`.

    The inverse u undoes the flow: `u(p) + flow(p + u(p))` is 0, so `compose_flows(flow, u)` is 0.
    The method starts with u = 0 and sets u to `-flow(p + u)`, `steps` times. It converges where the
    flow of neighbouring pixels differs by less than a pixel, and faster where it differs less. If
    it differs by half a pixel, each step halves the error. Gradients flow through the steps.

    Args:
        flow: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: displacements in
            pixels, array order (y, x) or (z, y, x).
        steps: how many times the inverse is improved, at least 0. With 0 it is zero.

    Returns:
        The inverse, and its residual: the length in pixels of `u(p) + flow(p + u(p))`. So far from
        its place is a pixel that moves by the inverse and then back by the flow. The residual stays
        large where the flow folds. Both are in float32, or in float64 if the flow is float64.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.

    Source: Chen et al., "A simple fixed-point approach to invert a deformation field" (2008,
    equation 5). Networks often integrate the opposite velocity instead, as in Dalca et al.
    (arXiv:1805.04605); `integrate_velocity` does that.

    Example:
        >>> inverse, residual = invert_flow(tf.ones([1, 4, 5, 2]) * [1.5, -0.5])
        >>> inverse[0, 2, 3].numpy().tolist(), float(tf.reduce_max(residual))
        ([-1.5, 0.5], 0.0)
    """
    flow = field("flow", flow)
    validation.at_least(0, steps=steps)
    inverse = tf.zeros_like(flow)
    for _ in range(steps):
        inverse = -warped(flow, inverse, "bilinear", "border")
    missed = inverse + warped(flow, inverse, "bilinear", "border")
    squared = tf.reduce_sum(missed**2, axis=-1)
    some = squared != 0  # the root of 0 has no slope
    residual = tf.where(some, tf.sqrt(tf.where(some, squared, 1)), 0)
    return inverse, residual


@operator
def resize_flow(flow: Tensor, size: Sequence[int | Tensor]) -> Tensor:
    """Returns the flow `[batch, *size, rank]` of the same image at another size.

    The image's outer edges stay in place, as in `tf.image.resize`: output pixel i lies at
    `(i + 0.5) * old / new - 0.5`. The vectors are in pixels, so they are multiplied by `new / old`.
    Interpolation is linear, without antialiasing, which smooth flows do not need.

    Args:
        flow: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: displacements in
            pixels, array order (y, x) or (z, y, x).
        size: of the output, one number per axis; ints or scalar tensors.

    Returns:
        Displacements in pixels of the new size, in float32, or float64 if the flow is float64.

    Raises:
        ValueError, TypeError: a shape, dtype or size that does not fit.

    Source: the upsampling of flows in VoxelMorph (arXiv:1809.05231). There the centres of the
    corner pixels stay in place, not their edges, so vectors and positions disagree.

    Example:
        >>> half = tf.ones([1, 4, 5, 2]) * [1.0, -2.0]
        >>> resize_flow(half, (8, 10))[0, 3, 4].numpy().tolist()
        [2.0, -4.0]
    """
    flow = field("flow", flow)
    batch, *space, rank = validation.sizes(flow)
    validation.output_size(size, (rank,), name="size")
    axes, ratios = [], []
    for axis, (old, new) in enumerate(zip(space, size, strict=True)):
        old, length = (tf.cast(each, flow.dtype) for each in (old, new))
        ratios.append(length / tf.maximum(old, 1))
        position = (tf.range(length) + 0.5) * (old / tf.maximum(length, 1)) - 0.5
        position = tf.reshape(position, [-1, *[1] * (rank - 1 - axis)])
        position = tf.broadcast_to(position, [batch, *size])
        axes.append(tf.reshape(position, [batch, math.prod(size)]))
    out = sample_axes(flow, axes, "bilinear", "border")
    return tf.reshape(out, [batch, *size, rank]) * tf.stack(ratios)


@operator
def jacobian_determinant(flow: Tensor) -> Tensor:
    """Returns `[batch, *space]`: by how much `p + flow(p)` enlarges the space around each pixel.

    It is 1 where the flow only moves, 2 where the output pixel samples from twice its own volume,
    and 0 or less where the flow folds. Derivatives are central differences, and one-sided at the
    first and last pixel of an axis. Along an axis of one pixel the derivative is 0.

    Args:
        flow: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: displacements in
            pixels, array order (y, x) or (z, y, x).

    Returns:
        Determinants in float32, or float64 if the flow is float64.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Source: the folding voxels of Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231, section
    V-A); the differences are those of `numpy.gradient`.

    Example:
        >>> rows = tf.tile(tf.range(4.0)[None, :, None, None], [1, 1, 5, 2])
        >>> flow = rows * [-2.0, 0.0]  # turns the image upside down
        >>> jacobian_determinant(flow)[0, 1, 2].numpy().item()
        -1.0
    """
    flow = field("flow", flow)
    rank = flow.shape[-1]
    slopes = [_slope(flow, axis + 1) for axis in range(rank)]
    matrix = [
        [slope[..., row] + (1 if row == column else 0) for column, slope in enumerate(slopes)]
        for row in range(rank)
    ]
    return _determinant(matrix)


@operator
def warp_points(points: Tensor, flow: Tensor) -> Tensor:
    """Returns `[batch, ..., rank]`: where points of the output lie in the input, `p + flow(p)`.

    A warped image shows at p what the input shows at the returned point. So this moves landmarks
    of the fixed image to the moving image. For the other direction use the inverse of the flow. The
    flow is linear between pixels. Outside the image, that of the nearest edge pixel holds.

    Args:
        points: `[batch, ..., rank]` in pixels of the output, array order (y, x) or (z, y, x);
            integers are pixel centres. Use float32 or float64.
        flow: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: displacements in
            pixels, in the same order.

    Returns:
        Points in pixels of the input, in float32, or float64 if points or flow are float64. A
        point that is NaN or infinite stays as it is.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231, section III), whose phi is
    `p + flow(p)`.

    Example:
        >>> flow = tf.ones([1, 4, 5, 2]) * [1.0, -0.5]
        >>> warp_points([[[2.0, 3.0]]], flow).numpy().tolist()
        [[[3.0, 2.5]]]
    """
    flow = field("flow", flow)
    points = validation.floating("points", points)
    batch, *_, rank = validation.sizes(flow)
    inner = max((points.shape.rank or 0) - 2, 0)
    expected = [batch, *[None] * inner, rank]
    points = validation.shaped("points", points, expected, "[batch, ..., rank] of flow")
    points, flow = _alike(float32_or_wider(points), flow)
    return points + sample(flow, points, padding_mode="border")


def _alike(*tensors):
    """Returns tensors of float32 or float64 in the wider of their dtypes."""
    dtypes = [each.dtype for each in tensors]
    dtype = tf.float64 if tf.float64 in dtypes else tf.float32
    return [tf.cast(each, dtype) for each in tensors]


def _slope(flow, axis):
    """Returns the derivative of a flow along an axis, like the flow, by differences of pixels."""

    def cut(start, stop):
        return flow[tuple([slice(None)] * axis + [slice(start, stop)])]

    above = tf.concat([cut(1, None), cut(-1, None)], axis)
    below = tf.concat([cut(None, 1), cut(None, -1)], axis)
    size = validation.sizes(flow)[axis]
    index = tf.range(size)
    apart = tf.minimum(index + 1, size - 1) - tf.maximum(index - 1, 0)
    apart = tf.reshape(tf.maximum(apart, 1), [-1, *[1] * (len(flow.shape) - 1 - axis)])
    return (above - below) / tf.cast(apart, flow.dtype)


def _determinant(matrix):
    """Returns the determinant of a matrix, a list of rows of tensors, by its first row."""
    if not matrix:
        return 1.0
    first, *rest = matrix
    terms = []
    for column, entry in enumerate(first):
        minor = _determinant([row[:column] + row[column + 1 :] for row in rest])
        terms.append((-1) ** column * entry * minor)
    return tf.add_n(terms)
