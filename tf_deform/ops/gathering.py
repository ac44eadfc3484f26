"""Weighted gathers: the one computation under every portable operator.

All three functions are partial derivatives of one trilinear form,

    f(table, weights, values) = sum over n, j, c of
        weights[j, n] * values[n, c] * table[index[j, n], c],

so the gradient of each is the other two, at any order.
"""

import tensorflow as tf


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
            weighted = rows * weights[term][:, None]
        total = weighted if total is None else total + weighted

    def gradient(upstream):
        weight_gradient = gather_dot(table, gradient_index, upstream)
        with tf.control_dependencies([weight_gradient]):  # so that the table is freed before
            upstream = tf.identity(upstream)
        table_gradient = scatter_sum(weights, gradient_index, upstream, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, weight_gradient, None

    return total, gradient


@tf.custom_gradient
def gather_dot(table, index, values):
    """Returns `[terms, n]`: the inner products of table[index[j, n]] and values[n]."""
    dots: list[tf.Tensor] = []
    for pair in _pairs(index):
        with tf.control_dependencies(dots[-1:]):
            rows = tf.cast(tf.gather(table, index[pair]), values.dtype)  # [2, n, channels]
        dots.append(tf.reduce_sum(rows * values, axis=-1))
    dots = tf.concat(dots, axis=0)

    def gradient(upstream):
        table_gradient = scatter_sum(upstream, index, values, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, gather_sum(table, index, upstream, index)

    return dots, gradient


@tf.custom_gradient
def scatter_sum(weights, index, values, rows):
    """Returns a table `[rows, channels]`: weights[j, n] * values[n] added up at row index[j, n]."""
    total = None
    for pair in _pairs(index):
        with tf.control_dependencies([] if total is None else [total]):
            terms = weights[pair][..., None] * values  # [2, n, channels]
        added = tf.math.unsorted_segment_sum(terms, index[pair], rows)
        total = added if total is None else total + added

    def gradient(upstream):
        return (
            gather_dot(upstream, index, values),
            None,
            gather_sum(upstream, index, weights, index),
            None,
        )

    return total, gradient


def _pairs(index):
    """Returns slices of two terms each: of linear sampling, neighbours along the last axis.

    The gradients take two terms at a time: one at a time is slower under XLA, and all at once need
    several times the memory of the samples.
    """
    return [slice(first, first + 2) for first in range(0, index.shape[0], 2)]
