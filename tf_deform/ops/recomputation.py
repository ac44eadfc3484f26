"""Trading time for memory: a backward pass that computes its intermediates again, in chunks."""

import tensorflow as tf

from tf_deform.ops.validation import is_static, sizes

_MOST_CHUNKS = 16


def recomputed(function, shared, rows, fills, chunks):
    """Returns `function(0, shared, rows)`, whose gradient recomputes it one chunk of rows a time.

    The chunks bound the memory of the backward pass, and their intermediates stay in cache. There
    are few of them, because each adds its gradient of the shared tensors up in full. Gradients of
    second and higher order go through the function as a whole.

    Args:
        function: function(first, shared, rows) returns `[n, ...]`: row i of the result follows
            from the shared tensors and from row i of each of the rows. `first` is the number of
            the first row, which the function may be given beyond the last one; see `fills`.
        shared: list of tensors.
        rows: list of tensors `[n, ...]`.
        fills: for each of the rows the value of rows beyond the last: must make their result, and
            what they contribute to any gradient, 0 whatever is in the shared tensors.
        chunks: how many chunks are wanted, an int or a scalar tensor; at most 16 are made.
    """
    count = len(shared)

    def whole(*tensors):
        return function(0, tensors[:count], tensors[count:])

    @tf.custom_gradient
    def with_gradient(*tensors):
        return whole(*tensors), lambda upstream: gradients(*tensors, upstream)

    @tf.custom_gradient
    def gradients(*tensors):
        def second_order(*upstream):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                first_order = _gradients(whole, tensors[:-1], tensors[-1])
            return tape.gradient(
                first_order, tensors, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

        return _chunked_gradients(function, count, tensors, [*fills, 0.0], chunks), second_order

    return with_gradient(*shared, *rows)


def _gradients(function, arguments, upstream):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        out = function(*arguments)
    return tape.gradient(
        out, arguments, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def _chunked_gradients(function, count, tensors, fills, chunks):
    """Returns the gradients of all tensors but the last, which is the gradient of the result."""
    shared, rows = tensors[:count], tensors[count:]
    total = sizes(rows[0])[0]
    chunks = _between(1, chunks, _MOST_CHUNKS)
    length = -(-total // chunks)
    stacked = []
    for row, fill in zip(rows, fills, strict=True):
        rest = sizes(row)[1:]
        surplus = [[0, chunks * length - total], *[[0, 0]] * len(rest)]
        row = tf.pad(row, surplus, constant_values=tf.cast(fill, row.dtype))
        stacked.append(tf.reshape(row, [chunks, length, *rest]))

    def add_chunk(index, sums, arrays):
        *arguments, upstream = [row[index] for row in stacked]
        first, second = len(shared), len(shared) + len(arguments)
        gradients = _gradients(
            lambda *each: function(index * length, each[:first], each[first:second]),
            [*shared, *arguments],
            upstream,
        )
        sums = [total + gradient for total, gradient in zip(sums, gradients[:first], strict=True)]
        arrays = [
            array.write(index, gradient)
            for array, gradient in zip(arrays, gradients[first:], strict=True)
        ]
        return index + 1, sums, arrays

    _, sums, arrays = tf.while_loop(
        lambda index, *_: index < chunks,
        add_chunk,
        (
            0,
            [tf.zeros_like(each) for each in shared],
            [
                tf.TensorArray(each.dtype, chunks, element_shape=each.shape[1:])
                for each in stacked[:-1]
            ],
        ),
        parallel_iterations=1,
        maximum_iterations=chunks,
    )
    unstacked = [
        tf.reshape(array.stack(), [chunks * length, *sizes(row)[1:]])[:total]
        for array, row in zip(arrays, rows, strict=False)
    ]
    return [*sums, *unstacked]


def _between(low, value, high):
    if is_static(value):
        return min(max(low, value), high)
    return tf.clip_by_value(value, low, high)
