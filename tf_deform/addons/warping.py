"""Sampling, warping and splines: images at positions, under flows and between control points."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import tensorflow as tf

from tf_deform.addons.arguments import (
    of_rank,
    one_or_every,
    same_dtype,
    to_rank,
    to_rank_4,
    traceable,
)
from tf_deform.annotations import Indexing, Tensor
from tf_deform.ops import validation
from tf_deform.ops.displacement import warped
from tf_deform.ops.sampling import sample
from tf_deform.ops.splines import polyharmonic_spline
from tf_deform.ops.symbolic import operator


@traceable
@operator
def resampler(data: Tensor, warp: Tensor, name: str | None = None) -> Tensor:
    """Returns `[batch, ..., channels]`: bilinear samples of the data at (x, y) positions.

    Args:
        data: `[batch, height, width, channels]`, any floating dtype.
        warp: `[batch, ..., 2]`, (x, y) in pixels. Outside the image the data are 0, with a linear
            ramp over the last pixel. Use float32 or float64.
        name: of the operations' name scope; None: the function's own.

    Returns:
        Samples in the dtype of `data`. A NaN or infinite position samples 0.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.resampler`, after Jaderberg et al. (arXiv:1506.02025, equation 5).

    Example:
        >>> data = tf.reshape(tf.range(6.0), [1, 2, 3, 1])
        >>> resampler(data, [[[1.0, 0.5], [2.5, 0.0]]]).numpy().tolist()
        [[[2.5], [1.0]]]
    """
    with tf.name_scope(name or "resampler"):
        data = _images("data", data)
        warp = validation.floating("warp", warp)
        inner = [None] * max((warp.shape.rank or 0) - 2, 0)
        warp = validation.shaped(
            "warp", warp, [validation.sizes(data)[0], *inner, 2], "[batch, ..., 2]"
        )
        warp = tf.ensure_shape(warp, [*[None] * (warp.shape.rank - 1), 2])
        return sample(data, tf.reverse(warp, axis=[-1]))


@traceable
@operator
def interpolate_bilinear(
    grid: Tensor, query_points: Tensor, indexing: Indexing = "ij", name: str | None = None
) -> Tensor:
    """Returns `[batch, n, channels]`: bilinear samples of a grid, its edge pixels repeated.

    Args:
        grid: `[batch, height, width, channels]`, floating-point, at least 2 pixels high and wide.
        query_points: `[batch or 1, n, 2]` in pixels, one set for all grids or one for each. Use
            float32 or float64.
        indexing: "ij" if the points are (y, x), "xy" if they are (x, y).
        name: of the operations' name scope; None: the function's own.

    Returns:
        Samples in the dtype of `grid`. A NaN or infinite position samples 0.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.interpolate_bilinear`, after Jaderberg et al. (arXiv:1506.02025, equation 5).
    There the gradient to whole positions is 0; here it is the slope to the next pixel.

    Example:
        >>> grid = tf.reshape(tf.range(6.0), [1, 2, 3, 1])
        >>> interpolate_bilinear(grid, [[[0.5, 1.0], [0.0, 9.0]]]).numpy().tolist()
        [[[2.5], [2.0]]]
    """
    validation.choice("indexing", indexing, get_args(Indexing))
    with tf.name_scope(name or "interpolate_bilinear"):
        grid = _images("grid", grid, least=2)
        points = validation.shaped(
            "query_points",
            of_rank("query_points", query_points, 3, "[batch or 1, n, 2]"),
            [None, None, 2],
            "[batch or 1, n, 2]",
        )
        points = tf.ensure_shape(points, [None, None, 2])
        batch = validation.sizes(grid)[0]
        points = one_or_every("query_points", points, batch)
        points = tf.broadcast_to(points, [batch, validation.sizes(points)[1], 2])
        points = tf.reverse(points, axis=[-1]) if indexing == "xy" else points
        return sample(grid, points, padding_mode="border")


@traceable
@operator
def dense_image_warp(image: Tensor, flow: Tensor, name: str | None = None) -> Tensor:
    """Returns `[batch, height, width, channels]`: at every pixel p the image at `p - flow[p]`.

    The flow is subtracted: where it is (0, 1), a pixel takes the value of its left neighbour.
    `tfd.ops.warp` and `tfd.layers.DenseImageWarp` add it.

    Args:
        image: `[batch, height, width, channels]`, floating-point, at least 2 pixels high and wide;
            its edge pixels are repeated.
        flow: `[batch, height, width, 2]`, (y, x) in pixels. Use float32 or float64.
        name: of the operations' name scope; None: the function's own.

    Returns:
        The warped image in its own dtype. A NaN or infinite flow samples 0.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.dense_image_warp`, after Jaderberg et al. (arXiv:1506.02025, equation 5).
    There a flow of 0 has no gradient; here it has, and learns.

    Example:
        >>> image = tf.reshape(tf.range(6.0), [1, 2, 3, 1])
        >>> flow = tf.ones([1, 2, 3, 2]) * [0.0, 1.0]
        >>> dense_image_warp(image, flow)[0, :, :, 0].numpy().tolist()
        [[0.0, 0.0, 1.0], [3.0, 3.0, 4.0]]
    """
    with tf.name_scope(name or "dense_image_warp"):
        image = _images("image", image, least=2)
        flow = validation.shaped(
            "flow",
            of_rank("flow", flow, 4, "[batch, height, width, 2]"),
            [*validation.sizes(image)[:3], 2],
            "[batch, height, width, 2]",
        )
        return warped(image, -flow, "bilinear", "border")


@operator
def sparse_image_warp(
    image: Tensor,
    source_control_point_locations: Tensor,
    dest_control_point_locations: Tensor,
    interpolation_order: int = 2,
    regularization_weight: float | Tensor = 0.0,
    num_boundary_points: int = 0,
    name: str | None = "sparse_image_warp",
) -> tuple[Tensor, Tensor]:
    """Returns the image warped so that control points move, and the flow that does it.

    The points' displacements are interpolated by `interpolate_spline`, and the image is warped by
    `dense_image_warp`.

    Args:
        image: `[height, width]`, `[height, width, channels]` or `[batch, height, width,
            channels]`, floating-point, at least 2 pixels high and wide.
        source_control_point_locations: `[batch, n, 2]`, (y, x) in pixels of the image; batch is 1
            for a single image. Use float32 or float64.
        dest_control_point_locations: `[batch, n, 2]`, where those are to be in the result.
        interpolation_order: the spline's order, at least 1; 2 is the thin plate spline.
        regularization_weight: a number, or a scalar tensor: 0 meets the points, more only about.
        num_boundary_points: points with zero flow that are added along each edge of the image,
            without its last corner: 1 for the four corners, 2 for them and the edges' middles.
        name: of the operations' name scope; None: the function's own.

    Returns:
        The warped image, like `image`, and the flow `[batch, height, width, 2]`, (y, x) in pixels,
        in float32, or float64 if the points are float64.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time, and control points
            that do not determine the spline (all on one line, or twice the same).

    Source: `tfa.image.sparse_image_warp`; Bookstein, "Principal Warps" (1989).

    Example:
        >>> image = tf.reshape(tf.range(20.0), [4, 5])
        >>> source = tf.constant([[[0.0, 0.0], [0.0, 3.0], [2.0, 1.0]]])
        >>> moved, flow = sparse_image_warp(image, source, source + [0.0, 1.0])
        >>> moved[0].numpy().round(3).tolist()
        [0.0, 0.0, 1.0, 2.0, 3.0]
    """
    with tf.name_scope(name or "sparse_image_warp"):
        images, rank = to_rank_4("image", validation.floating("image", image))
        batch, height, width, _ = validation.sizes(images)
        validation.at_least(1, interpolation_order=interpolation_order)
        validation.at_least(0, num_boundary_points=num_boundary_points)
        (source, dest), dtype = _control_points(
            source_control_point_locations, dest_control_point_locations, batch
        )
        fixed = _boundary(num_boundary_points) * tf.cast([height - 1, width - 1], dtype)
        fixed = tf.tile(fixed[None], [batch, 1, 1])
        every = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
        every = tf.reshape(tf.cast(tf.stack(every, axis=-1), dtype), [1, height * width, 2])
        flow = interpolate_spline(
            tf.concat([dest, fixed], axis=1),
            tf.concat([dest - source, tf.zeros_like(fixed)], axis=1),
            tf.tile(every, [batch, 1, 1]),
            interpolation_order,
            regularization_weight,
        )
        flow = tf.reshape(flow, [batch, height, width, 2])
        return to_rank(rank, dense_image_warp(images, flow)), flow


@operator
def interpolate_spline(
    train_points: Tensor,
    train_values: Tensor,
    query_points: Tensor,
    order: int,
    regularization_weight: float | Tensor = 0.0,
    name: str | None = "interpolate_spline",
) -> Tensor:
    """Returns `[batch, m, k]`: the polyharmonic spline through values at points, at other points.

    Its kernel is r^order for odd orders and r^order log r for even ones, plus an affine map.

    Args:
        train_points: `[batch, n, d]`, floating-point, d and k known while tracing.
        train_values: `[batch, n, k]`, floating-point.
        query_points: `[batch, m, d]`, floating-point.
        order: of the kernel, at least 1; 2 is the thin plate spline.
        regularization_weight: a number, or a scalar tensor: 0 fits the values, more smooths.
        name: of the operations' name scope; None: the function's own.

    Returns:
        Values in float32, or float64 if any argument is float64.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time, and points that do
            not determine the spline.

    Source: `tfa.image.interpolate_spline`; Bookstein, "Principal Warps" (1989, equations 2 to 5).
    Squared distances are sums of squares, which do not cancel, and are at least 1e-10 in logarithms
    and roots.

    Example:
        >>> points = tf.constant([[[0.0], [1.0], [3.0]]])
        >>> spline = interpolate_spline(points, 2.0 * points, [[[0.5], [2.0]]], order=2)
        >>> spline.numpy().round(3).tolist()
        [[[1.0], [4.0]]]
    """
    with tf.name_scope(name or "interpolate_spline"):
        names = "train_points", "train_values", "query_points"
        tensors = [
            validation.floating(each, tensor)
            for each, tensor in zip(names, (train_points, train_values, query_points), strict=True)
        ]
        for each, tensor, last in zip(names, tensors, "dkd", strict=True):
            if tensor.shape.rank != 3 or tensor.shape[-1] is None:
                raise ValueError(
                    f"{each} must have shape [batch, n, {last}] with {last} known while tracing, "
                    f"received {tensor.shape}"
                )
        validation.at_least(1, order=order)
        (points, values, queries), dtype = same_dtype(*tensors)
        batch, count, dimensions = validation.sizes(points)
        values = validation.shaped(names[1], values, [batch, count, None], "[batch, n, k]")
        queries = validation.shaped(names[2], queries, [batch, None, dimensions], "[batch, m, d]")
        if tf.is_tensor(regularization_weight):
            weight = tf.cast(regularization_weight, dtype)
        else:  # tf.cast would make it float32 first
            number = validation.number("regularization_weight", regularization_weight)
            weight = tf.constant(number, dtype)
        return polyharmonic_spline(points, values, queries, order, tf.maximum(weight, 0))


# Arguments


def _images(name, images, least=0):
    """Returns images `[batch, height, width, channels]`, checked."""
    meaning = "[batch, height, width, channels]"
    images = validation.shaped(name, of_rank(name, images, 4, meaning), [None] * 4, meaning)
    text = f"{name} must be at least {least} pixels high and wide, received"
    for size in validation.sizes(images)[1:3]:
        if not validation.is_static(size):
            images = validation.satisfying(images, size >= least, text, size)
        elif size < least:
            raise ValueError(f"{text} {images.shape}")
    return images


def _control_points(source, dest, batch):
    """Returns both `[batch, n, 2]` in one dtype, checked, and the dtype."""
    meaning = "[batch, n, 2]"
    name = "source_control_point_locations"
    source = of_rank(name, source, 3, meaning)
    source = validation.shaped(name, source, [batch, None, 2], meaning)
    name = "dest_control_point_locations"
    dest = of_rank(name, dest, 3, meaning)
    dest = validation.shaped(name, dest, [batch, validation.sizes(source)[1], 2], meaning)
    return same_dtype(source, dest)


def _boundary(count):
    """Returns `[4 count, 2]`: count points along each edge of the unit square, but its last."""
    cells = itertools.product(range(count + 1), repeat=2)
    on_edge = [cell for cell in cells if count and not {0, count}.isdisjoint(cell)]
    return np.reshape(on_edge, [-1, 2]) / max(count, 1)
