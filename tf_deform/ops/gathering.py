"""Weighted gathers: the one computation under every portable operator.

Three functions are partial derivatives of one trilinear form,

    f(table, weights, values) = sum over n, j, c of
        weights[j, n] * values[n, c] * table[index[j, n], c],

so the gradient of each is the other two, at any order. A SavedModel cannot hold gradients of custom
gradients: while one is written, their first gradients are plain sums.
"""

import tensorflow as tf

from tf_deform import compiled
from tf_deform.ops import validation
from tf_deform.ops.turns import loop

_CORNERS = 8  # terms of a sample, at most
_BLOCK = 2**22  # bytes: what is scattered is cut into blocks about so large
_LANES = 8  # what a vector of 256 bits holds in float32


def gather_sum(table, index, weights, gradient_index, onto=None):
    """Returns the weighted sums of table rows: sum over j of weights[j, n] * table[index[j, n]].

    Args:
        table: `[rows, channels]`, any floating dtype.
        index: `[terms, n]` int32 or int64 rows of the table.
        weights: `[terms, n]` in float32 or float64, the dtype of the sum.
        gradient_index: like `index`: the rows that gradients see, where those differ.
        onto: like the table, or None: what the table's gradient is added to.

    Returns:
        `[n, channels]` in the dtype of `weights`.
    """

    @tf.custom_gradient
    def summed(table, weights):
        total = None
        for term in range(index.shape[0]):
            with _after(total):
                rows = tf.cast(tf.gather(table, index[term]), weights.dtype)  # [n, channels]
                weighted = rows * tf.expand_dims(weights[term], 1)
            total = weighted if total is None else total + weighted

        def gradient(upstream):
            return _sum_gradients(table, weights, gradient_index, upstream, onto)

        return total, gradient

    return summed(table, weights)


def gather_terms(table, index, weights, gradient_index, onto=None):
    """Returns what `gather_sum` does, of lists of terms: XLA computes each where it is read.

    The terms are tensors of any shape, all the same, with n elements.
    """

    @tf.custom_gradient
    def summed(table, *weights):
        total = None
        for rows, weight in zip(index, weights, strict=True):
            with _after(total):
                read = tf.cast(tf.gather(table, tf.reshape(rows, [-1])), weight.dtype)
                weighted = read * tf.reshape(weight, [-1, 1])
            total = weighted if total is None else total + weighted

        def gradient(upstream):
            rows, given = (
                tf.reshape(tf.stack(each), [len(weights), -1]) for each in (gradient_index, weights)
            )
            table_gradient, found = _sum_gradients(table, given, rows, upstream, onto)
            parts = tf.split(found, len(weights), axis=0)
            return table_gradient, *(tf.reshape(part, tf.shape(weights[0])) for part in parts)

        return total, gradient

    return summed(table, *weights)


def _sum_gradients(table, weights, index, upstream, onto):
    """Returns the gradients of a sum to its table and to its weights, `[terms, n]`."""
    saved = compiled.in_save_context()
    dot = _dots if saved else gather_dot
    weight_gradient = dot(table, index, upstream)
    with _after(weight_gradient):  # the table is freed by then
        upstream = tf.identity(upstream)
    scatter = _scattered if saved else scatter_sum
    table_gradient = scatter(weights, index, upstream, tf.shape(table)[0], onto)
    return tf.cast(table_gradient, table.dtype), weight_gradient


@tf.custom_gradient
def gather_dot(table, index, values):
    """Returns `[terms, n]`: the inner products of table[index[j, n]] and values[n]."""

    def gradient(upstream):
        table_gradient = scatter_sum(upstream, index, values, tf.shape(table)[0])
        return tf.cast(table_gradient, table.dtype), None, gather_sum(table, index, upstream, index)

    return _dots(table, index, values), gradient


def _dots(table, index, values):
    """Adds up the channels of a lane, then the lanes of all terms together.

    XLA adds in the given order, which only side by side makes vectors; it would turn two sums of
    one term into one. Side by side, it holds a buffer for each of many terms: those are in turns.
    """
    terms = index.shape[0]

    def sums(rows):
        return _sum_lanes(tf.cast(tf.gather(table, rows), values.dtype) * values)

    if terms > _CORNERS:
        shape = [values.shape[0], _lanes(values.shape[1])]
        found = tf.TensorArray(values.dtype, terms, element_shape=shape)

        def add(term, found):
            return [found.write(term, sums(tf.gather(index, term)))]

        parts = loop(terms, add, [found])[0].stack()
    else:
        each: list[tf.Tensor] = []
        for term in range(terms):
            with _after(*each[-1:]):
                each.append(sums(index[term]))
        parts = tf.stack(each)
    return tf.reduce_sum(parts, axis=-1)


def scatter_sum(weights, index, values, rows, onto=None):
    """Returns a table `[rows, channels]`: weights[j, n] * values[n] added up at row index[j, n].

    They are added to `onto`, a table that gets no gradient, if given.
    """

    @tf.custom_gradient
    def summed(weights, values):
        def gradient(upstream):
            return (
                gather_dot(upstream, index, values),
                gather_sum(upstream, index, weights, index),
            )

        return _scattered(weights, index, values, rows, onto), gradient

    return summed(weights, values)


def _scattered(weights, index, values, rows, onto=None):
    """Adds block after block of n, all terms of a block at once.

    XLA adds in place. Term after term would be slower: the terms of a sample lie side by side.
    """
    terms = index.shape[0]
    n, channels = validation.sizes(values)
    total = (
        tf.zeros([rows, channels], values.dtype) if onto is None else tf.cast(onto, values.dtype)
    )
    if validation.is_static(n) and n == 0:  # Grappler divides by n as it optimises the product
        return total
    blocks = _blocks(terms, n, channels, total.shape[0])
    size = -(-n // blocks)
    index, weights = tf.transpose(index), tf.transpose(weights)

    def add(block, total):
        start = tf.minimum(block * size, n - size)  # the last one begins in the one before
        seen = tf.expand_dims(start + tf.range(size) < block * size, 1)
        at = tf.slice(index, [start, 0], [size, terms])
        at = tf.where(seen, tf.constant(-1, at.dtype), at)  # which is dropped
        weight = tf.expand_dims(tf.slice(weights, [start, 0], [size, terms]), 2)
        value = tf.expand_dims(tf.slice(values, [start, 0], [size, channels]), 1)
        added = tf.math.unsorted_segment_sum(weight * value, at, rows)
        added.set_shape(total.shape)  # of no rows it is not inferred in a loop
        return [total + added]

    return add(0, total)[0] if blocks == 1 else loop(blocks, add, [total])[0]


def _blocks(terms, n, channels, rows):
    """Returns into how many blocks n is cut: a block of all terms is no smaller than one term.

    Nor than the table if its rows are known: it is read and written for each.
    """
    if not validation.is_static(n, channels):
        return terms
    block = max(_BLOCK, 4 * (rows or 0) * channels)
    return max(1, min(terms, 4 * terms * n * channels // block))


def _after(*tensors):
    """Lets a term begin when these tensors are there: side by side, terms hold a buffer each."""
    return tf.control_dependencies([tensor for tensor in tensors if tensor is not None])


def _sum_lanes(products):
    """Returns `[n, lanes]`: the sum of the channels that are dealt out to each lane."""
    channels = products.shape[1]
    if not channels:  # none, or unknown
        return products
    lanes = _lanes(channels)
    return tf.reduce_sum(tf.reshape(products, [-1, channels // lanes, lanes]), axis=1)


def _lanes(channels):
    """Returns the most lanes that the channels can be dealt out to evenly."""
    fitting = (lanes for lanes in range(1, _LANES + 1) if channels and channels % lanes == 0)
    return max(fitting, default=channels)
