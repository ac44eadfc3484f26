"""Weighted gathers: the one computation under every portable operator.

All three functions are partial derivatives of one trilinear form,

    f(table, weights, values) = sum over n, j, c of
        weights[j, n] * values[n, c] * table[index[j, n], c],

so the gradient of each is the other two, at any order.
"""

import math

import tensorflow as tf

from tf_deform.ops.validation import is_static, sizes

# The gradients gather all corners at once, which is faster than one by one, but in up to this many
# parts, so that a part of a 2-D sampling (4 corners) is no larger than the samples themselves.
_PARTS = 4
_PART_ELEMENTS = 2**21


@tf.custom_gradient
def gather_sum(table, index, weights, gradient_index):
    """Returns the weighted sums of table rows: sum over j of weights[j, n] * table[index[j, n]].

    Args:
        table: `[rows, channels]`, any floating dtype.
        index: `[terms, n]` int32 or int64 rows of the table.
        weights: `[terms, n]` in float32 or float64, the dtype of the sum.
        gradient_index: like `index`: the rows that gradients see, where those differ.

    Returns:
        `[n, channels]` in the dtype of `weights`.
    """
    total = None
    for term in range(index.shape[0]):
        # One term after the other: running side by side they would hold a buffer each.
        with tf.control_dependencies([] if total is None else [total]):
            rows = tf.cast(tf.gather(table, index[term]), weights.dtype)  # [n, channels]
            term = rows * weights[term][:, None]
        total = term if total is None else total + term

    def gradient(upstream):
        table_gradient = scatter_sum(weights, gradient_index, upstream, tf.shape(table)[0])
        weight_gradient = gather_dot(table, gradient_index, upstream)
        return tf.cast(table_gradient, table.dtype), None, weight_gradient, None

    return total, gradient


@tf.custom_gradient
def gather_dot(table, index, values):
    """Returns `[terms, n]`: the inner products of table[index[j, n]] and values[n]."""

    def part(index, values):
        return tf.reduce_sum(tf.cast(tf.gather(table, index), values.dtype) * values, axis=-1)

    dots = tf.concat([part(*each) for each in _parts(index, values)], axis=1)  # [terms, n]

    def gradient(upstream):
        table_gradient = scatter_sum(upstream, index, values, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, gather_sum(table, index, upstream, index)

    return dots, gradient


@tf.custom_gradient
def scatter_sum(weights, index, values, rows):
    """Returns a table `[rows, channels]`: weights[j, n] * values[n] added up at row index[j, n]."""
    total = None
    for part_weights, part_index, part_values in _parts(weights, index, values):
        with tf.control_dependencies([] if total is None else [total]):
            terms = part_weights[..., None] * part_values  # [terms, n, channels]
        added = tf.math.unsorted_segment_sum(terms, part_index, rows)
        total = added if total is None else total + added

    def gradient(upstream):
        return (
            gather_dot(upstream, index, values),
            None,
            gather_sum(upstream, index, weights, index),
            None,
        )

    return total, gradient


def _parts(*tensors):
    """Yields the tensors cut along n; the last one is `[n, channels]`, the others `[terms, n]`."""
    elements = sizes(tensors[0]) + sizes(tensors[-1])[1:]
    parts = _PARTS
    if is_static(*elements):
        parts = max(1, min(parts, -(-math.prod(elements) // _PART_ELEMENTS)))
    length = elements[1]
    bounds = [length * part // parts for part in range(parts + 1)]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        yield (*(each[:, start:stop] for each in tensors[:-1]), tensors[-1][start:stop])
