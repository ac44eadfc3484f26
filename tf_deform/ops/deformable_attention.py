"""Deformable attention over feature maps of several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import tensorflow as tf

from tf_deform.annotations import AttentionMethod, Tensor
from tf_deform.ops import validation
from tf_deform.ops.sampling import sample_table
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table

METHODS = get_args(AttentionMethod)


@operator
def multi_scale_deformable_attention(
    values: Sequence[Tensor],
    locations: Tensor,
    weights: Tensor,
    *,
    num_points: Sequence[int] | None = None,
    method: AttentionMethod = "default",
) -> Tensor:
    """Returns `[batch, queries, heads * dim]`: for each query and head, a weighted sum of samples.

    Each head samples its channels of every feature map at a few points of its own, and sums the
    weighted samples of all maps. Each feature map is called a level.

    Args:
        values: list of feature maps `[batch, height, width, heads * dim]`, with equal batch,
            channels and floating dtype. Channel c belongs to head `c // dim`.
        locations: `[batch, queries, heads, levels, points, 2]` as normalised (x, y), float32 or
            float64. 0 and 1 are the outer edges of the edge pixels. The number of heads, levels and
            points must be known while tracing.
        weights: `[batch, queries, heads, levels, points]`, any floating dtype. They are used as
            they are, without a softmax.
        num_points: None if each level has the same number of points; otherwise a list of ints, one
            for each level. `locations` is then `[batch, queries, heads, sum(num_points), 2]`, and
            `weights` is `[batch, queries, heads, sum(num_points)]`. The points of the first level
            come first.
        method: "default" samples linearly, with 0 outside the map. "discrete" reads a single pixel,
            floor(location * size + 0.5), clamped into the map. As published, this is half a pixel
            off the nearest one. Locations then get no gradient, and one that is NaN or infinite
            reads 0.

    Returns:
        The sums in the dtype of `values`. Half precision is summed in float32.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same faults, if shapes are known only at run time.

    Source: Zhu et al., "Deformable DETR" (arXiv:2010.04159, equation 3, without its projections);
    for different numbers of points and for "discrete": Lv et al., "RT-DETRv2" (arXiv:2407.17140).

    Example:
        >>> values = [tf.reshape(tf.range(4.0), [1, 2, 2, 1]), tf.ones([1, 1, 1, 1])]
        >>> locations = 0.5 * tf.ones([1, 1, 1, 2, 1, 2])  # the middle of both maps
        >>> weights = tf.ones([1, 1, 1, 2, 1])
        >>> multi_scale_deformable_attention(values, locations, weights).numpy().item()
        2.5
    """
    values = validation.feature_maps("values", values)
    locations = validation.floating("locations", locations)
    weights = validation.floating("weights", weights)
    validation.choice("method", method, METHODS)
    levels = "levels, points"
    counts: list[int | None] = [len(values), None]
    if num_points is not None:
        num_points = _points_of_levels(num_points, len(values))
        levels, counts = "sum(num_points)", [sum(num_points)]
    meaning = f"[batch, queries, heads, {levels}, 2]"
    batch, _, _, channels = validation.sizes(values[0])
    locations = validation.shaped("locations", locations, [batch, None, None, *counts, 2], meaning)
    batch, queries, heads, *sizes, _ = validation.sizes(locations)
    if not (validation.is_static(heads, *sizes) and heads and all(sizes)):
        raise ValueError(
            f"locations must have shape {meaning} with known heads, levels and points of at least "
            f"1, received {locations.shape}"
        )
    if validation.is_static(channels) and channels % heads:
        raise ValueError(
            f"values must have channels divisible by the heads, received {channels} channels and "
            f"{heads} heads"
        )
    weights = validation.shaped(
        "weights",
        weights,
        [batch, queries, heads, *sizes],
        f"[batch, queries, heads, {levels}]",
    )
    return _sums(values, locations, weights, num_points or [sizes[1]] * len(values), method)


def _points_of_levels(num_points, levels):
    """Returns the points of each level as a tuple of as many ints."""
    num_points = validation.integers("num_points", num_points, minimum=1)
    if len(num_points) != levels:
        raise ValueError(
            f"num_points must have one number for each of the {levels} values, received "
            f"{list(num_points)}"
        )
    return num_points


def _sums(values, locations, weights, num_points, method):
    """Returns the weighted sums; the levels' points lie one after the other."""
    batch, queries, heads = validation.sizes(locations)[:3]
    wide = tf.float64 if tf.float64 in (values[0].dtype, locations.dtype) else tf.float32
    level = [nth for nth, count in enumerate(num_points) for _ in range(count)]  # of each point
    shape = [batch, queries, heads, len(level)]
    locations = tf.reshape(tf.cast(locations, wide), [*shape, 2])
    sizes = zip(*(validation.sizes(value)[1:3] for value in values), strict=True)
    axes = [
        locations[..., place] * tf.cast(tf.stack([size[nth] for nth in level]), wide)
        for place, size in zip((1, 0), sizes, strict=True)
    ]
    points = tf.stack(axes, axis=-1)
    weights = tf.reshape(weights, shape)
    table = Table.of_levels(values, level, heads, readers="points")
    if method == "default":
        sums = sample_table(table, points - 0.5, weights)
    else:
        points = tf.stop_gradient(tf.floor(points + 0.5))
        sums = sample_table(table, points, weights, rule="border", taps="nearest")
    return tf.cast(sums, values[0].dtype)
