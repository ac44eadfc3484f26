"""Weighted gathers: the one computation under every portable operator.

All three functions are partial derivatives of one trilinear form,

    f(table, weights, values) = sum over n, j, c of
        weights[j, n] * values[n, c] * table[index[j, n], c],

so the gradient of each is the other two, at any order. A SavedModel cannot hold gradients of custom
gradients: while one is written, the first gradient is plain sums, which TensorFlow differentiates.
"""

import tensorflow as tf

from tf_deform import compiled

_LANES = 8  # what a vector of 256 bits holds in float32


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
        with _after(total):
            rows = tf.cast(tf.gather(table, index[term]), weights.dtype)  # [n, channels]
            weighted = rows * tf.expand_dims(weights[term], 1)
        total = weighted if total is None else total + weighted

    def gradient(upstream):
        saved = compiled.in_save_context()
        dot, scatter = (_dots, _scattered) if saved else (gather_dot, scatter_sum)
        weight_gradient = dot(table, gradient_index, upstream)
        with _after(weight_gradient):  # the table is freed by then
            upstream = tf.identity(upstream)
        table_gradient = scatter(weights, gradient_index, upstream, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, weight_gradient, None

    return total, gradient


@tf.custom_gradient
def gather_dot(table, index, values):
    """Returns `[terms, n]`: the inner products of table[index[j, n]] and values[n]."""

    def gradient(upstream):
        table_gradient = scatter_sum(upstream, index, values, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, gather_sum(table, index, upstream, index)

    return _dots(table, index, values), gradient


def _dots(table, index, values):
    dots: list[tf.Tensor] = []
    for term in range(index.shape[0]):
        with _after(*dots[-1:]):
            rows = tf.cast(tf.gather(table, index[term]), values.dtype)  # [n, channels]
        dots.append(_sum_channels(rows * values))
    return tf.stack(dots)


@tf.custom_gradient
def scatter_sum(weights, index, values, rows):
    """Returns a table `[rows, channels]`: weights[j, n] * values[n] added up at row index[j, n]."""

    def gradient(upstream):
        return (
            gather_dot(upstream, index, values),
            None,
            gather_sum(upstream, index, weights, index),
            None,
        )

    return _scattered(weights, index, values, rows), gradient


def _scattered(weights, index, values, rows):
    total = None
    for term in range(index.shape[0]):
        with _after(total):
            terms = tf.expand_dims(weights[term], 1) * values  # [n, channels]
        added = tf.math.unsorted_segment_sum(terms, index[term], rows)
        total = added if total is None else total + added
    return total


def _after(*tensors):
    """Lets a term begin when these tensors are there: side by side, terms hold a buffer each."""
    return tf.control_dependencies([tensor for tensor in tensors if tensor is not None])


def _sum_channels(products):
    """Returns `[n]`: the sums over the channels of products `[n, channels]`.

    Every eighth channel first: XLA adds in the given order, which only side by side makes vectors.
    """
    channels = products.shape[-1]
    if not channels or channels % _LANES:
        return tf.reduce_sum(products, axis=-1)
    lanes = tf.reshape(products, [-1, channels // _LANES, _LANES])
    return tf.reduce_sum(tf.reduce_sum(lanes, axis=1), axis=-1)
