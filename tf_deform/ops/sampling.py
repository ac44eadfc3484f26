"""Sampling images at fractional positions: the interpolator that every operator is built on."""

from __future__ import annotations

import functools
import itertools
import math
from typing import get_args

import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import Interpolation, PaddingMode, Tensor
from tf_deform.ops import validation
from tf_deform.ops.gathering import gather_sum, gather_terms
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table
from tf_deform.ops.turns import sum_slices

INTERPOLATIONS = get_args(Interpolation)
PADDING_MODES = get_args(PaddingMode)
AT_ONCE = 2**24  # bytes of samples; above this their points are taken in turns
_TOGETHER = 4  # points: one by one, each turn would read and write the sums again
_RAMP = ("bilinear", "zeros")  # the one combination whose support includes the edge -1


@operator
def weighted_sample(
    values: Tensor,
    points: Tensor,
    weights: Tensor | None = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Returns `[rows, queries, channels]`: weighted sums of linear samples, zero outside.

    A row is a set of queries that read the same image: the pixels of one image, or the bins of one
    box, for example. For each row, query and group of channels, the values are sampled linearly at
    `points_per_query` points, and the weighted samples are summed. Outside the image the values are
    0, with a linear ramp over the last pixel: a point counts where -1 < p < size. A point with a
    NaN or infinite coordinate samples 0 and gets no gradient.

    Args:
        values: `[images, *space, channels]` with 1 to 3 spatial axes, any floating dtype.
        points: `[rows, queries, groups, points_per_query, rank]` as (y, x) or (z, y, x) in pixels,
            float32 or float64. The number of groups must divide the channels; channel c is in group
            `c // (channels / groups)`.
        weights: `[rows, queries, groups, points_per_query]`, any floating dtype, or None for 1
            everywhere.
        image_index: `[rows]` integers, the image that each row reads. With None, row r reads image
            r.

    Returns:
        `[rows, queries, channels]` in float32, or float64 if the values are float64. Sums of
        half-precision values are not rounded back.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time; an image index
            outside the images (not under XLA, which has no run-time errors).

    Source: the sampling of "Deformable Convolutional Networks" (arXiv:1703.06211, equations 3 and
    4), generalised to many points for each query. At a position of exactly -1 the value is 0, and
    the gradient follows the corner that lies inside, so that offsets that start at zero learn.

    Example:
        >>> values = tf.constant([[[0.0], [10.0], [20.0]]])  # one 1-D image of 3 pixels
        >>> points = tf.constant([[[[[0.5], [1.0]]]]])  # one query of two points
        >>> weighted_sample(values, points).numpy().tolist()
        [[[15.0]]]
    """
    values = validation.floating("values", values)
    points = validation.floating("points", points)
    rank = points.shape[-1] if points.shape.rank == 5 else None
    if rank not in (1, 2, 3) or not points.shape[-2]:
        raise ValueError(
            "points must have shape [rows, queries, groups, points_per_query, rank] with rank 1 to "
            f"3 and a known number of points a query, received {points.shape}"
        )
    validation.shaped("values", values, [None] * (rank + 2), f"[images, {rank} axes, channels]")
    rows, queries, groups, per_query, _ = validation.sizes(points)
    images = validation.sizes(values)[0]
    if weights is not None:
        weights = validation.shaped(
            "weights",
            validation.floating("weights", weights),
            [rows, queries, groups, per_query],
            "[rows, queries, groups, points_per_query]",
        )
    if image_index is None:
        points = validation.shaped(
            "points", points, [images, None, None, None, rank], "[images, ...]"
        )
    else:
        image_index = checked_image_index("image_index", image_index, rows, images)
    return sample_table(Table.of(values, groups), points, weights, image_index)


@operator
def sample(
    values: Tensor,
    points: Tensor,
    *,
    interpolation: Interpolation = "bilinear",
    padding_mode: PaddingMode = "zeros",
) -> Tensor:
    """Returns `[batch, ..., channels]`: the values at fractional pixel positions.

    Args:
        values: `[batch, *space, channels]` with 1 to 3 spatial axes, any floating dtype.
        points: `[batch, ..., rank]` as (y, x) or (z, y, x) in pixels; integers are pixel centres.
            Use float32 or float64.
        interpolation: "bilinear" (linear in 1-D, trilinear in 3-D), "nearest" (halves are rounded
            to even; the points get no gradient) or "bicubic" (cubic convolution with A = -0.75).
        padding_mode: "zeros" reads 0 outside the image; "border" repeats the edge pixel;
            "reflection" reflects about the centres of the edge pixels. A point with a NaN or
            infinite coordinate samples 0 in every mode.

    Returns:
        Samples in the dtype of `values`.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, equation 5). The
    cubic kernel is Keys 1981, equation 4, with a = -0.75 as in other image libraries.

    Example:
        >>> image = tf.reshape(tf.range(6.0), [1, 2, 3, 1])
        >>> sample(image, [[[0.5, 1.0], [0.0, 2.5]]]).numpy().tolist()
        [[[2.5], [1.0]]]
    """
    values = validation.floating("values", values)
    points = validation.floating("points", points)
    rank = points.shape[-1] if (points.shape.rank or 0) >= 2 else None
    if rank not in (1, 2, 3):
        raise ValueError(f"points must have shape [batch, ..., 1 to 3], received {points.shape}")
    batch, *inner, _ = validation.sizes(points)
    values = validation.shaped(
        "values", values, [batch, *[None] * (rank + 1)], f"[batch, {rank} axes, channels]"
    )
    points = tf.reshape(points, [batch, math.prod(inner), rank])
    axes = [points[..., axis] for axis in range(rank)]
    out = sample_axes(values, axes, interpolation, padding_mode)
    return tf.reshape(out, [batch, *inner, validation.sizes(values)[-1]])


def sample_axes(values, axes, interpolation, padding_mode, *, half_pixel=False):
    """Returns `[batch, queries, channels]` of `sample`, its points a list of `[batch, queries]`.

    With `half_pixel`, reflection is about the outer edges of the edge pixels (-0.5, size - 0.5).
    """
    validation.choice("interpolation", interpolation, INTERPOLATIONS)
    validation.choice("padding_mode", padding_mode, PADDING_MODES)
    table = Table.of(values, 1)
    batch, queries = validation.sizes(axes[0])
    axes = [_positions(tf.reshape(axis, [1, batch, queries, 1]), table) for axis in axes]
    placed = functools.partial(place, rule=padding_mode, half_pixel=half_pixel)
    if interpolation == "bilinear" and compiled.chosen():
        points = tf.stack([placed(*each) for each in zip(axes, table.space, strict=True)], axis=-1)
        points = tf.reshape(points, [batch, queries, 1, 1, len(axes)])
        out = compiled.weighted_sample(values, points)
        return tf.cast(tf.reshape(out, [batch, queries, table.channels]), values.dtype)
    taps = [
        _TAPS[interpolation](axis, size, placed)
        for axis, size in zip(axes, table.space, strict=True)
    ]
    at_edge = _at_lower_edge(axes) if (interpolation, padding_mode) == _RAMP else None
    out = _sum_taps(table, table.rows(), taps, table.first_rows(None), None, at_edge)
    return tf.cast(tf.reshape(out, [batch, queries, table.channels]), values.dtype)


def in_pixels(p, size, units):
    """Returns normalised coordinates in pixels.

    units: -1 and 1 are the outer "edges" of the edge pixels, or their "centers".
    """
    size = tf.cast(size, p.dtype)
    return (p + 1) * ((size - 1) / 2) if units == "centers" else ((p + 1) * size - 1) / 2


def place(p, size, rule, half_pixel=False):
    """Returns positions under a border rule, for linear sampling that is zero outside.

    Rules: "zeros" changes nothing; "border" clamps to the pixel centres; "reflection" reflects and
    clamps; "roi" clamps what is in [-1, size] and "psroi" what is in [-0.5, size - 0.5], and both
    drop the rest. A dropped or non-finite position becomes size + 1, which samples 0: some engines
    that models are exported to take NaN >= 0 for true. The gradient is 0 wherever a position was
    clamped or lies on the clamping bound.
    """
    if rule == "zeros":
        return p
    limit = tf.cast(size, p.dtype)
    valid = is_kept(p, size, rule)
    if rule == "reflection":
        p = _reflect(tf.where(valid, p, 0), limit, half_pixel)
    clamped = tf.stop_gradient(tf.clip_by_value(p, 0, limit - 1))
    p = tf.where((p > 0) & (p < limit - 1), p, clamped)
    return tf.where(valid, p, limit + 1)


def is_kept(p, size, rule):
    """Returns where `place` does not drop positions under a rule other than "zeros"."""
    limit = tf.cast(size, p.dtype)
    if rule == "roi":
        return (p >= -1) & (p <= limit)
    if rule == "psroi":
        return (p >= -0.5) & (p <= limit - 0.5)
    return tf.math.is_finite(p)


def checked_image_index(name, index, rows, images):
    """Returns `[rows]` image indices as int32 or int64; at run time each must be in [0, images)."""
    if index is None:
        raise TypeError(f"{name} must be an integer tensor, received None")
    index = tf.convert_to_tensor(index)
    if not index.dtype.is_integer:
        raise TypeError(f"{name} must be an integer tensor, received {index.dtype.name}")
    index = validation.shaped(name, index, [rows], "[rows]")
    inside = tf.reduce_all((index >= 0) & (index < tf.cast(images, index.dtype)))
    return validation.satisfying(
        index,
        inside,
        f"{name} must be at least 0 and below the batch size",
        images,
        ", received",
        index,
    )


def sample_table(table, points, weights=None, image_index=None, rule="zeros", taps="bilinear"):
    """Returns `weighted_sample` of a table, under a border rule; takes its arguments unchecked."""
    rows, queries, *_ = validation.sizes(points)
    if taps == "bilinear" and compiled.chosen():
        out = _sample_compiled(table, _positions(points, table), weights, image_index, rule)
        return tf.reshape(out, [rows, queries, table.channels])
    return _sample_portable(table, points, weights, image_index, rule, taps)


def _sample_compiled(table, points, weights, image_index, rule):
    if table.readers == "points":
        counts = [table.map_index.count(nth) for nth in range(len(table.maps))]
        split = [tf.split(each, counts, axis=3) for each in (points, weights)]
        return tf.add_n(
            [
                _sample_compiled(Table.of(each, table.groups), seen, counted, image_index, rule)
                for each, seen, counted in zip(table.maps, *split, strict=True)
            ]
        )
    several = table.map_index is not None
    if rule != "zeros":
        space = [tf.expand_dims(size, -1) if several else size for size in table.space]
        axes = zip(tf.unstack(points, axis=-1), space, strict=True)
        points = tf.stack([place(axis, size, rule) for axis, size in axes], axis=-1)
    if not several:
        return compiled.weighted_sample(table.maps[0], points, weights, image_index)
    sums = []
    for nth, each in enumerate(table.maps):  # who does not read this map is outside of it
        reads = tf.reshape(table.map_index == nth, [-1, 1, 1, 1])
        seen = tf.where(tf.expand_dims(reads, -1), points, tf.constant(float("nan"), points.dtype))
        counted = None if weights is None else tf.where(reads, weights, 0)
        sums.append(compiled.weighted_sample(each, seen, counted, image_index))
    return tf.add_n(sums)


def _sample_portable(table, points, weights, image_index, rule, taps="bilinear"):
    rows, queries, groups, per_query, _ = validation.sizes(points)
    channels = table.channels // table.groups

    def form(turns, padded, points, weights=None, *, onto=None):
        axes = unstacked(tf.transpose(points, [4, 3, 0, 1, 2]))
        if weights is not None:
            weights = tf.transpose(weights, [3, 0, 1, 2])
        seen = table.of_points(turns)
        return sum_samples(seen, padded, axes, weights, image_index, rule, taps, onto=onto)

    padded = table.rows()
    sums = sum_slices(
        form,
        [None, 3] if weights is None else [None, 3, 3],
        [padded, _positions(points, table), *([] if weights is None else [weights])],
        zeros=lambda: tf.zeros([rows * queries * groups, channels], sum_dtype(padded)),
        samples=[rows, queries, table.channels, per_query],
        limit=AT_ONCE,
        together=_TOGETHER,
    )
    return tf.reshape(sums, [rows, queries, table.channels])


def sum_samples(
    table,
    padded,
    axes,
    weights=None,
    image_index=None,
    rule="zeros",
    taps="bilinear",
    apart=False,
    onto=None,
):
    """Returns `[rows * queries * groups, channels / groups]`: sums of the weighted samples.

    padded: table.rows(). axes: each `[points, rows, queries, groups]`; weights alike or None. With
    `apart` the points are not added up, and come before the rows. The gradient of `padded` is added
    to `onto`, if given.
    """
    at_edge = _at_lower_edge(axes) if (taps, rule) == _RAMP else None
    taps = [
        _TAPS[taps](axis, size, functools.partial(place, rule=rule))
        for axis, size in zip(axes, table.space, strict=True)
    ]
    first = table.first_rows(image_index)
    return _sum_taps(table, padded, taps, first, weights, at_edge, apart, onto)


@compiled.portable("WeightedSample")
def _sample_of_op(values, points, weights, image_index, units):
    table = Table.of(values, points.shape[2])
    if units != "pixels":
        axes = zip(reversed(tf.unstack(points, axis=-1)), table.space, strict=True)
        points = tf.stack([in_pixels(axis, size, units) for axis, size in axes], axis=-1)
    return _sample_portable(table, points, weights, image_index, "zeros")


def unstacked(tensors):
    """Returns a list of the tensors that are stacked in one.

    LiteRT cannot unstack free sizes, and the gradient of an index is a tensor of zeros each.
    """
    parts = tf.split(tensors, tensors.shape[0], axis=0)
    return [tf.squeeze(part, axis=0) for part in parts]


def sum_dtype(values):
    """Returns the dtype that sums of values are added up in."""
    return tf.float64 if values.dtype == tf.float64 else tf.float32


# Each axis contributes taps: pairs of a cell, which is the pixel's index in the padded axis, and
# its weight. A sample is the sum over all products of the axes' taps.


def _linear_taps(p, size, place):
    """Returns the taps at the even and the odd of floor(p) and floor(p) + 1.

    Positions outside [-1, size] see zeros. XLA may compute a position for its cell and again for
    its weight, rounded otherwise, so that one lies below a whole number and one does not. With an
    even and an odd tap that is harmless: where a tap's cell changes, its weight is 0.
    """
    p = place(p, size)
    limit = tf.cast(size, p.dtype)
    p = tf.where(p >= -1, tf.minimum(p, limit), limit)
    lower = tf.floor(p)
    odd = lower - 2 * tf.floor(lower / 2)  # 1 where floor(p) is, else 0
    fraction = p - lower
    return [
        (tf.cast(lower + odd, tf.int32) + 1, tf.where(odd > 0, fraction, 1 - fraction)),
        (tf.cast(lower - odd, tf.int32) + 2, tf.where(odd > 0, 1 - fraction, fraction)),
    ]


def _nearest_taps(p, size, place):
    cell = _cell(tf.round(place(p, size)), size)
    return [(cell, tf.cast(cell >= 0, p.dtype))]  # 1: LiteRT ends at an empty tf.ones_like


def _cubic_taps(p, size, place):
    """Returns the four taps of cubic convolution, the border rule acting on each tap's index.

    Each has one of the four remainders of a division by 4: where its cell changes, its weight is 0.
    """
    lower = tf.floor(p)
    finite = tf.where(tf.math.is_finite(p), lower, 0)
    fraction = tf.where(tf.math.is_finite(p), p, 0) - finite
    phase = finite - 4 * tf.floor(finite / 4)
    taps = []
    for remainder in range(4):
        ahead = remainder + 1 - phase
        step = ahead - 4 * tf.floor(ahead / 4) - 1  # -1, 0, 1 or 2
        distance = tf.where(step > 0, step - fraction, fraction - step)
        near = (step >= 0) & (step <= 1)
        weight = tf.where(near, _cubic_near(distance), _cubic_far(distance))
        taps.append((_cell(place(lower + step, size), size), weight))
    return taps


_TAPS = {"bilinear": _linear_taps, "nearest": _nearest_taps, "bicubic": _cubic_taps}


def _cubic_near(x, a=-0.75):
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _cubic_far(x, a=-0.75):
    return a * (((x - 5) * x + 8) * x - 4)


def _cell(index, size):
    """Returns the padded axis's index of a whole-numbered float index, the zeros if outside."""
    inside = tf.where(index >= -1, tf.minimum(index, tf.cast(size, index.dtype)), -1)
    return tf.cast(inside, tf.int32) + 1


def _reflect(p, limit, half_pixel):
    low = -0.5 if half_pixel else 0.0
    span = tf.maximum(limit if half_pixel else limit - 1, 1)
    along = tf.math.floormod(p - low, 2 * span)
    return low + tf.where(along > span, 2 * span - along, along)


def _positions(p, table):
    """Returns positions in float32, or in float64 if they or the values are float64."""
    return tf.cast(p, tf.float64 if tf.float64 in (p.dtype, table.maps[0].dtype) else tf.float32)


def _at_lower_edge(axes):
    """Returns where any position is -1, whose value is 0 while its gradient sees pixel 0."""
    return functools.reduce(tf.logical_or, [axis == -1 for axis in axes])


def _sum_taps(table, padded, taps, first_row, weights, at_edge, apart=False, onto=None):
    """Returns `[rows * queries * groups, channels / groups]`: sums over points and tap products.

    padded: table.rows(). taps: for each axis a list of (cell, weight), each `[points, rows,
    queries, groups]`. first_row: table.first_rows(...). weights, at_edge: like the taps, or None.
    With `apart` the points are not added up, and come before the rows.
    """
    terms = [(first_row, None)]
    for axis, stride in zip(taps, table.strides[1:], strict=True):
        axis = [(tf.cast(cell, stride.dtype) * stride, weight) for cell, weight in axis]
        terms = [
            (row + cell, weight if product is None else product * weight)
            for (row, product), (cell, weight) in itertools.product(terms, axis)
        ]
    wide = sum_dtype(padded)
    rows = [row for row, _ in terms]  # each [points, rows, queries, groups]
    points = rows[0].shape[0]
    if points == 1 and not apart:
        products = [tf.cast(product, wide) for _, product in terms]
        if weights is not None:
            products = [product * tf.cast(weights, wide) for product in products]
        seen = rows
        if at_edge is not None:
            seen = [tf.where(at_edge, tf.zeros([], row.dtype), row) for row in rows]
        return gather_terms(padded, seen, products, rows, onto)
    product = tf.cast(tf.stack([product for _, product in terms]), wide)
    if weights is not None:
        product *= tf.cast(weights, wide)
    all_rows = tf.stack(rows)
    seen = all_rows if at_edge is None else tf.where(at_edge, tf.zeros([], rows[0].dtype), all_rows)
    count = len(terms) if apart else len(terms) * points
    seen, product, all_rows = (tf.reshape(each, [count, -1]) for each in (seen, product, all_rows))
    return gather_sum(padded, seen, product, all_rows, onto)
