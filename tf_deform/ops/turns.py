"""Sums over the slices of large tensors, made in turns: memory holds what one slice needs.

What runs on GPUs and TPUs is compiled by XLA, which keeps no order that would save memory, so the
turns are those of a loop. Whether XLA will compile what is traced is not known: the sizes decide.
"""

from __future__ import annotations

import functools
import math

import tensorflow as tf

from tf_deform import compiled
from tf_deform.ops import validation

_IMAGES = 8  # what a batch of unknown size is taken for


def sum_slices(form, axes, arguments, *, zeros, samples, limit, together=1):
    """Returns form(all, *arguments), the sum of form([k], *slices) over all slices k.

    Only the first gradient is made in turns: a gradient of it is made of all slices at once. So is
    what is exported, and all that is small.

    Args:
        form: function of the slices' numbers, `[slices]` int32, and of the arguments. The gradient
            of the argument that is not sliced is added to what it is given as `onto`.
        axes: for each argument the axis that is sliced; None for one, of which each slice needs
            all.
        arguments: tensors.
        zeros: function that returns a sum of nothing.
        samples: the sizes of all samples together, the batch first: ints or scalar tensors.
        limit: the bytes of all samples in float32 above which they are made in turns.
        together: the most slices that a turn of the sum takes. A turn of the gradient takes one.
    """
    pairs = zip(axes, arguments, strict=True)
    count = next(each.shape[axis] for axis, each in pairs if axis is not None)
    everything = functools.partial(form, tf.range(count))
    if count == 1 or compiled.traced_for_export() or not exceed(limit, samples):
        return everything(*arguments)

    together = max(number for number in range(1, together + 1) if count % number == 0)

    def slices(turns, arguments):
        return [
            each if axis is None else tf.gather(each, turns, axis=axis)
            for axis, each in zip(axes, arguments, strict=True)
        ]

    @tf.custom_gradient
    def total(*arguments):
        def add(turn, total):
            turns = turn * together + tf.range(together)
            return [total + form(turns, *slices(turns, arguments))]

        return loop(count // together, add, [zeros()])[0], lambda up: gradients(up, *arguments)

    @tf.custom_gradient
    def gradients(upstream, *arguments):
        def add(turn, *found):
            parts = slices([turn], arguments)
            with tf.GradientTape() as tape:
                tape.watch(parts)
                out = form([turn], *parts, onto=found[axes.index(None)])
            new = tape.gradient(
                out, parts, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return [
                part if axis is None else old.write(turn, tf.squeeze(part, axis))
                for axis, old, part in zip(axes, found, new, strict=True)
            ]

        empty = [_empty(each, axis) for axis, each in zip(axes, arguments, strict=True)]
        found = loop(count, add, empty)
        found = [
            each if axis is None else _stacked(each, axis)
            for axis, each in zip(axes, found, strict=True)
        ]

        def second(*upstreams):
            return compiled.second_gradients(everything, arguments, upstream, upstreams)

        return found, second

    return total(*arguments)


def exceed(limit, samples):
    """Returns whether so many samples take more bytes; unknown sizes other than the batch do."""
    batch, *rest = samples
    if not validation.is_static(*rest):
        return True
    batch = batch if validation.is_static(batch) else _IMAGES
    return 4 * batch * math.prod(rest) > limit


def loop(count, body, state):
    """Returns the state, a list, that body(turn, *state) has replaced in each of `count` turns."""
    return tf.while_loop(
        lambda turn, *_: turn < count,
        lambda turn, *state: (turn + 1, *body(turn, *state)),
        (0, *state),
        parallel_iterations=1,
        maximum_iterations=count,
    )[1:]


def _empty(tensor, axis):
    """Returns where the gradient of a tensor is added up, or of its slices collected."""
    if axis is None:
        return tf.zeros_like(tensor)
    shape = tensor.shape[:axis] + tensor.shape[axis + 1 :]
    return tf.TensorArray(tensor.dtype, tensor.shape[axis], element_shape=shape)


def _stacked(slices, axis):
    """Returns the tensor whose slices along an axis were collected."""
    stacked = slices.stack()
    order = [*range(1, axis + 1), 0, *range(axis + 1, stacked.shape.rank)]
    return tf.transpose(stacked, order)
