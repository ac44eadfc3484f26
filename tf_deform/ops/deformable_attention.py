"""Deformable attention over feature maps of several scales."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_deform.annotations import Tensor
from tf_deform.ops import validation
from tf_deform.ops.sampling import Table, sample_table
from tf_deform.ops.symbolic import operator


@operator
def multi_scale_deformable_attention(
    values: Sequence[Tensor], locations: Tensor, weights: Tensor
) -> Tensor:
    """Returns `[batch, queries, heads * dim]`: for each query and head a weighted sum of samples.

    Each head samples its channels of every feature map linearly at a few places of its own, 0
    outside, and adds the samples of all maps up with their weights.

    Args:
        values: list of feature maps `[batch, height, width, heads * dim]`, of equal batch, channels
            and floating dtype; channel c belongs to head `c // dim`.
        locations: `[batch, queries, heads, levels, points, 2]` as normalised (x, y), float32 or
            float64; 0 and 1 are the outer edges of the edge pixels. The heads, levels and points
            must be known while tracing.
        weights: `[batch, queries, heads, levels, points]`, any floating dtype; used as they are.

    Returns:
        The sums in the dtype of `values`; half precision is accumulated in float32.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Zhu et al., "Deformable DETR" (arXiv:2010.04159, equation 3, without its projections).

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
    meaning = "[batch, queries, heads, levels, points, 2]"
    batch, _, _, channels = validation.sizes(values[0])
    locations = validation.shaped(
        "locations", locations, [batch, None, None, len(values), None, 2], meaning
    )
    batch, queries, heads, levels, points, _ = validation.sizes(locations)
    if not (validation.is_static(heads, levels, points) and heads and points):
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
        [batch, queries, heads, levels, points],
        "[batch, queries, heads, levels, points]",
    )
    wide = tf.float64 if tf.float64 in (values[0].dtype, locations.dtype) else tf.float32
    # LiteRT slices tensors of five axes at most.
    locations = tf.reshape(tf.cast(locations, wide), [batch, queries * heads, levels, points * 2])
    sums = []
    for level, value in enumerate(values):
        at = tf.reshape(locations[:, :, level], [batch, queries, heads, points, 2])
        pixels = [
            at[..., place] * tf.cast(size, wide) - 0.5
            for place, size in zip((1, 0), validation.sizes(value)[1:3], strict=True)
        ]
        table = Table.of(value, heads)
        sums.append(sample_table(table, tf.stack(pixels, axis=-1), weights[:, :, :, level]))
    return tf.cast(tf.add_n(sums), values[0].dtype)
