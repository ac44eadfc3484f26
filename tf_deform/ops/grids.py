"""Sampling grids of spatial transformers, and sampling at them.

Grids are in normalised coordinates and in the order (x, y[, z]), as in other libraries: -1 and 1
are the outer edges of the edge pixels, or their centres with `align_corners`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_deform import compiled, onnx_ops
from tf_deform.annotations import ControlPoints, Interpolation, PaddingMode, Tensor
from tf_deform.ops import sampling, validation
from tf_deform.ops.symbolic import operator

# Of a thin plate spline's system: what is solved in float64 is then right to 1e-6.
_LARGEST_CONDITION = 1e10


@operator
def affine_grid(
    theta: Tensor, output_size: Sequence[int | Tensor], *, align_corners: bool = False
) -> Tensor:
    """Returns the sampling grid `[batch, *output_size, rank]` of affine transformations.

    Args:
        theta: `[batch, 2, 3]` or `[batch, 3, 4]`, floating-point: maps a normalised output position
            (x, y[, z], 1) to the normalised input position sampled there. `[batch, 6]` or
            `[batch, 12]` are the same row by row.
        output_size: (height, width) or (depth, height, width); ints or scalar tensors.
        align_corners: whether -1 and 1 are the centres of the edge pixels. False: their outer
            edges.

    Returns:
        Normalised (x, y[, z]) positions in float32, or float64 if theta is float64.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, equation 1).

    Example:
        >>> theta = tf.constant([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])  # the identity
        >>> affine_grid(theta, (1, 2)).numpy().tolist()
        [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    return stacked(affine(theta, output_size, align_corners))


@operator
def projective_grid(
    theta: Tensor, output_size: Sequence[int | Tensor], *, align_corners: bool = False
) -> Tensor:
    """Returns the sampling grid `[batch, height, width, 2]` of projective transformations.

    Args:
        theta: `[batch, 3, 3]`, floating-point: maps a normalised output position (x, y, 1) to the
            homogeneous input position sampled there. A position at infinity is infinite, which
            samples 0.
        output_size: (height, width); ints or scalar tensors.
        align_corners: whether -1 and 1 are the centres of the edge pixels. False: their outer
            edges.

    Returns:
        Normalised (x, y) positions in float32, or float64 if theta is float64.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, section 3.2).

    Example:
        >>> projective_grid(2.0 * tf.eye(3)[None], (1, 2)).numpy().tolist()  # scale cancels
        [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    return stacked(projective(theta, output_size, align_corners))


@operator
def thin_plate_spline_grid(
    displacements: Tensor,
    output_size: Sequence[int | Tensor],
    *,
    control_points: ControlPoints = (4, 4),
    align_corners: bool = False,
) -> Tensor:
    """Returns the sampling grid `[batch, height, width, 2]` of thin plate splines.

    The control points have fixed places in the output: on a regular grid from -1 to 1, row by row,
    or at places that you choose, such as along the upper and the lower edge of a line of text. The
    input is sampled at each control point's place plus its displacement, and in between by the
    smoothest map. Zero displacements give the identity.

    Args:
        displacements: `[batch, control points, 2]`, floating-point, normalised (x, y).
        output_size: (height, width); ints or scalar tensors.
        control_points: int, or (rows, columns), each at least 2; or normalised places (x, y) in the
            output, `[n, 2]` numbers that are known while tracing. At least 3 places, not all on one
            line, and no two the same or so close that the condition number of the spline's system
            of equations exceeds 1e10.
        align_corners: whether -1 and 1 are the centres of the edge pixels. False: their outer
            edges.

    Returns:
        Normalised (x, y) positions in float32, or float64 if the displacements are float64.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit, or control points that
            determine no spline.

    Source: Bookstein, "Principal Warps" (1989, equations 2 to 5), kernel r^2 log r, as used in
    "Spatial Transformer Networks" (arXiv:1506.02025, section 3.2); two rows of points are those of
    Shi et al., "ASTER" (2018), which predicts places in the input where this takes displacements.

    Example:
        >>> thin_plate_spline_grid(tf.zeros([1, 16, 2]), (1, 2)).numpy().tolist()
        [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    return stacked(thin_plate_spline(displacements, output_size, control_points, align_corners))


@operator
def grid_sample(
    inputs: Tensor,
    grid: Tensor,
    *,
    interpolation: Interpolation = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Returns `[batch, *output_size, channels]`: the inputs sampled at a normalised grid.

    Args:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes, any floating dtype.
        grid: `[batch, *output_size, rank]`, normalised, the last axis (x, y[, z]). Use float32 or
            float64: half precision loses fractions of a pixel.
        interpolation: "bilinear" (linear in 1-D, trilinear in 3-D), "nearest" (rounds halves to
            even; no gradient to the grid) or "bicubic" (cubic convolution with A = -0.75).
        padding_mode: "zeros" returns 0 outside the image; "border" repeats the edge pixel;
            "reflection" reflects about the outer edges of the edge pixels, or with `align_corners`
            about their centres.
        align_corners: whether -1 and 1 are the centres of the edge pixels. False: their outer
            edges.

    Returns:
        Samples in the dtype of `inputs`. A sample at a NaN or infinite position is 0.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, equations 3 to 7).

    Example:
        >>> image = tf.reshape(tf.range(4.0), [1, 2, 2, 1])
        >>> grid_sample(image, tf.zeros([1, 1, 1, 2])).numpy().item()  # the centre
        1.5
    """
    inputs = validation.floating("inputs", inputs)
    grid = validation.floating("grid", grid)
    align_corners = validation.boolean("align_corners", align_corners)
    rank = grid.shape[-1] if grid.shape.rank else None
    if rank not in (1, 2, 3) or grid.shape.rank != rank + 2:
        raise ValueError(
            "grid must have shape [batch, *output_size, rank] with rank 1 to 3 and as many output "
            f"axes, received {grid.shape}"
        )
    return sample_at(inputs, grid, interpolation, padding_mode, align_corners)


# A grid is a tensor [batch, *output_size, rank], or a list of its axes x, y[, z], each
# [batch, *output_size], whichever takes less time: TensorFlow interleaves axes slowly.


def stacked(grid):
    """Returns a grid as a tensor."""
    return grid if tf.is_tensor(grid) else tf.stack(grid, axis=-1)


def _axes_of(grid):
    if not tf.is_tensor(grid):
        return grid
    parts = tf.split(grid, grid.shape[-1], axis=-1)  # LiteRT cannot unstack free sizes
    return [tf.squeeze(part, axis=-1) for part in parts]


def sample_at(inputs, grid, interpolation, padding_mode, align_corners):
    """Returns `grid_sample` at a grid, a tensor or the list of its axes; takes it unchecked."""
    if tf.is_tensor(grid):
        batch, *output_size, rank = validation.sizes(grid)
    else:
        batch, *output_size = validation.sizes(grid[0])
        rank = len(grid)
    inputs = validation.shaped(
        "inputs", inputs, [batch, *[None] * (rank + 1)], f"[batch, {rank} axes, channels]"
    )
    if onnx_ops.wanted() and (rank == 2 or (rank == 3 and interpolation != "bicubic")):
        grid = stacked(grid)
        return onnx_ops.grid_sample(inputs, grid, interpolation, padding_mode, align_corners)
    _, *space, channels = validation.sizes(inputs)
    units = "centers" if align_corners else "edges"
    if (interpolation, padding_mode) == ("bilinear", "zeros") and compiled.chosen():
        points = tf.reshape(stacked(grid), [batch, math.prod(output_size), 1, 1, rank])
        out = compiled.weighted_sample(inputs, points, units=units)
        return tf.cast(tf.reshape(out, [batch, *output_size, channels]), inputs.dtype)
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    pixels = []
    for axis, size in zip(reversed(_axes_of(grid)), space, strict=True):
        axis = tf.cast(axis, tf.float64 if axis.dtype == tf.float64 else dtype)
        axis = tf.reshape(axis, [batch, math.prod(output_size)])
        pixels.append(sampling.in_pixels(axis, size, units))
    out = sampling.sample_axes(
        inputs, pixels, interpolation, padding_mode, half_pixel=not align_corners
    )
    return tf.reshape(out, [batch, *output_size, channels])


def affine(theta, output_size, align_corners):
    """Returns `affine_grid`, as a tensor or the list of its axes."""
    validation.output_size(output_size, (2, 3))
    align_corners = validation.boolean("align_corners", align_corners)
    rank = len(output_size)
    theta = _matrices(theta, rank)
    axes = _normalized(output_size, align_corners, theta.dtype)
    if compiled.stays_on_cpu():  # on a GPU tf.matmul would round to TF32
        return _affine_product(theta, axes, output_size)
    return _affine_rows(theta, axes)


def projective(theta, output_size, align_corners):
    """Returns `projective_grid` as the list of its axes."""
    validation.output_size(output_size, (2,))
    align_corners = validation.boolean("align_corners", align_corners)
    theta = _parameters("theta", theta, [None, 3, 3], "[batch, 3, 3]")
    x, y, w = _affine_rows(theta, _normalized(output_size, align_corners, theta.dtype))
    finite = w != 0
    w = tf.where(finite, w, 1)
    return [tf.where(finite, each / w, float("inf")) for each in (x, y)]


def thin_plate_spline(displacements, output_size, control_points, align_corners):
    """Returns `thin_plate_spline_grid` as the list of its axes."""
    validation.output_size(output_size, (2,))
    align_corners = validation.boolean("align_corners", align_corners)
    control_points = checked_control_points(control_points)
    count = control_count(control_points)
    displacements = _parameters(
        "displacements", displacements, [None, count, 2], "[batch, control points, 2]"
    )
    dtype = displacements.dtype
    control, solver = _spline_system(control_points)
    # The spline's coefficients per displacement: [batch, control points + 3, 2]
    coefficients = tf.reduce_sum(
        tf.constant(solver[None, :, :, None], dtype) * tf.expand_dims(displacements, 1), axis=2
    )
    x, y = (
        tf.expand_dims(tf.broadcast_to(axis, output_size), -1)
        for axis in _normalized(output_size, align_corners, dtype)
    )
    control = tf.constant(control, dtype)
    squared = (x - control[:, 0]) ** 2 + (y - control[:, 1]) ** 2
    kernel = _spline_kernel(squared)  # [height, width, control points]
    basis = tf.concat([kernel, tf.ones_like(x), x, y], axis=-1)
    coefficients = tf.expand_dims(tf.expand_dims(coefficients, 1), 1)
    return [
        axis[..., 0] + tf.reduce_sum(basis * coefficients[..., index], axis=-1)
        for index, axis in enumerate((x, y))
    ]


def _normalized(output_size, align_corners, dtype):
    """Returns the axes x, y[, z] of the output pixels, each broadcastable to `output_size`."""
    axes = []
    for position, size in enumerate(output_size):
        steps = tf.range(size, dtype=tf.int32)
        length = tf.cast(size, dtype)
        if align_corners:  # a single pixel is at 0
            axis = tf.cast(2 * steps - (size - 1), dtype) / tf.maximum(length - 1, 1)
        else:
            axis = tf.cast(2 * steps - (size - 1), dtype) / length
        axes.append(tf.reshape(axis, [-1, *[1] * (len(output_size) - 1 - position)]))
    return axes[::-1]


def _affine_rows(theta, axes):
    """Returns for each row of theta its product with (x, y[, z], 1): `[batch, *output_size]`."""
    rank = len(axes)
    rows = []
    for row in range(theta.shape[1]):
        total = tf.reshape(theta[:, row, rank], [-1, *[1] * rank])
        for column, axis in enumerate(axes):  # x first: the sums stay small until the last one
            total = total + tf.reshape(theta[:, row, column], [-1, *[1] * rank]) * axis
        rows.append(total)
    return rows


def _affine_product(theta, axes, output_size):
    """Returns the products of theta with (x, y[, z], 1) `[batch, *output_size, rank]`.

    A row of the grid is that at y = z = 0 plus multiples of two further rows: one matrix product
    writes them interleaved.
    """
    batch, rank, _ = validation.sizes(theta)
    x, *others = axes
    *outer, width = output_size
    columns = tf.expand_dims(tf.transpose(theta, [0, 2, 1]), 2)  # [batch, rank + 1, 1, rank]
    first = (
        columns[:, :1] * tf.expand_dims(x, -1) + columns[:, rank:]
    )  # [batch, 1, ..., width, rank]
    first = tf.reshape(first, [batch, 1, width, rank])
    rows = tf.concat([first, tf.tile(columns[:, 1:rank], [1, 1, width, 1])], axis=1)
    factors = [tf.broadcast_to(axis[..., 0], outer) for axis in (tf.ones_like(others[0]), *others)]
    factors = tf.reshape(tf.stack(factors, axis=-1), [math.prod(outer), rank])
    grid = tf.matmul(factors, tf.reshape(rows, [batch, rank, width * rank]))
    return tf.reshape(grid, [batch, *output_size, rank])


def _matrices(theta, rank):
    """Returns `[batch, rank, rank + 1]`, in float32 or wider, of a theta that may be flat."""
    theta = validation.floating("theta", theta)
    entries = rank * (rank + 1)
    expected, meaning = [None, rank, rank + 1], f"[batch, {rank}, {rank + 1}]"
    if theta.shape.rank == 2:
        expected, meaning = [None, entries], f"{meaning} or [batch, {entries}]"
    else:
        meaning = f"[batch, {entries}] or {meaning}"
    theta = _parameters("theta", theta, expected, meaning)
    # Were the whole shape constant, TensorFlow would reshape before it checks.
    matrices = tf.reshape(theta, [-1, rank, rank + 1])
    matrices.set_shape([theta.shape[0], rank, rank + 1])
    return matrices


def _parameters(name, tensor, expected, meaning):
    tensor = validation.shaped(name, validation.floating(name, tensor), expected, meaning)
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def _spline_kernel(squared):
    positive = squared > 0
    return tf.where(positive, 0.5 * squared * tf.math.log(tf.where(positive, squared, 1)), 0)


def checked_control_points(control_points):
    """Returns (rows, columns) of a regular grid, or places ((x, y), ...). Raises unless either."""
    if isinstance(control_points, np.ndarray):
        places = control_points.ndim > 1
    else:
        places = isinstance(control_points, list | tuple) and any(
            isinstance(each, list | tuple | np.ndarray) for each in control_points
        )
    if not places:
        return validation.per_axis("control_points", control_points, 2, minimum=2)
    try:
        known = np.array(control_points, np.float64)
    except (TypeError, ValueError):  # rows of different lengths, or no numbers
        known = np.zeros(0)
    if known.ndim != 2 or known.shape[1] != 2 or len(known) < 3 or not np.all(np.isfinite(known)):
        raise ValueError(
            "control_points must be an int, 2 ints or at least 3 finite points [n, 2], received "
            f"{control_points!r}"
        )
    checked = tuple(map(tuple, known.tolist()))
    _spline_system(checked)
    return checked


def control_count(control_points):
    """Returns the number of control points that were checked."""
    grid = validation.is_integers(control_points)
    return math.prod(control_points) if grid else len(control_points)


@functools.lru_cache
def _spline_system(control_points):
    """Returns the control points `[n, 2]` and the matrix `[n + 3, n]` that solves for the spline.

    The points are fixed, so the system is inverted once, in float64 and outside the graph.
    """
    control = np.array(control_points)
    if validation.is_integers(control_points):
        rows, columns = (np.linspace(-1, 1, count) for count in control_points)
        control = np.array([(x, y) for y, x in itertools.product(rows, columns)])
    squared = ((control[:, None] - control[None]) ** 2).sum(axis=-1)
    kernel = 0.5 * squared * np.log(np.where(squared > 0, squared, 1))
    affine = np.concatenate([np.ones([len(control), 1]), control], axis=1)
    system = np.block([[kernel, affine], [affine.T, np.zeros([3, 3])]])
    condition = np.linalg.cond(system)
    if not validation.is_integers(control_points) and not condition < _LARGEST_CONDITION:
        raise ValueError(
            "control_points must be distinct and not all on one line, received points whose system "
            f"has the condition number {condition:.1e}, at most {_LARGEST_CONDITION:.0e} is "
            f"solved: {control.tolist()}"
        )
    return control, np.linalg.inv(system)[:, : len(control)]
