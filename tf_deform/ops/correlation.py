"""The correlation of two feature maps over displacements: a cost volume."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import Tensor
from tf_deform.ops import validation
from tf_deform.ops.symbolic import operator
from tf_deform.ops.turns import loop


@operator
def correlation(
    first: Tensor,
    second: Tensor,
    *,
    max_displacement: int,
    kernel_size: int = 1,
    stride: int = 1,
    displacement_stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Returns `[batch, out_height, out_width, (2r + 1)^2]`: how alike patches of two maps are.

    Channel `(dy + r) (2r + 1) + dx + r` of output (i, j) is the mean over the patch's
    `kernel_size^2` pixels and over all channels of `first[y, x] * second[y + s dy, x + s dx]`,
    where s is `displacement_stride` and `r = max_displacement // s`. The patch of output (0, 0) is
    the first one that stays, with all displacements, inside the padded maps: its middle is at
    `max_displacement + kernel_size // 2 - padding`, down and to the right. The next one is
    `stride` pixels further. Outside, the maps are 0.

    Args:
        first: `[batch, height, width, channels]`, any floating dtype.
        second: like `first`, in which its patches are looked for.
        max_displacement: in pixels, at least 0.
        kernel_size: of the patches, in pixels, odd.
        stride: pixels from an output to the next one.
        displacement_stride: pixels from a displacement to the next one.
        padding: zeros around both maps, in pixels. With `max_displacement + kernel_size // 2` and
            stride 1 the output is as large as the maps.

    Returns:
        Means in the dtype of the inputs, half precision summed in float32. Gradients go to both
        maps. In memory are the products of one displacement at a time, and the means over channels
        of every pixel: the output, and at other strides `stride^2` times as much.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Fischer et al., "FlowNet" (arXiv:1504.06852, equation 1), where it is a sum.

    Example:
        >>> first = tf.reshape([0.0, 0.0, 1.0, 0.0, 0.0], [1, 1, 5, 1])
        >>> second = tf.roll(first, shift=1, axis=2)  # all has moved to the right
        >>> costs = correlation(first, second, max_displacement=1, padding=1)
        >>> costs[0, 0, 2].numpy().reshape(3, 3).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    check_options(max_displacement, kernel_size, stride, displacement_stride, padding)
    first, second = pair(first, second)
    least = 2 * (max_displacement + kernel_size // 2 - padding) + 1
    first = _at_least(least, first)
    wide = tf.float64 if first.dtype == tf.float64 else tf.float32
    maps = [_frame(tf.cast(each, wide), padding) for each in (first, second)]
    reach = max_displacement // displacement_stride * displacement_stride
    steps = range(max_displacement - reach, max_displacement + reach + 1, displacement_stride)
    costs = _Windows(max_displacement, list(steps)).costs(*maps)
    if kernel_size > 1 or stride > 1:
        costs = tf.nn.avg_pool2d(costs, kernel_size, stride, "VALID")
    return tf.cast(costs, first.dtype)


def check_options(max_displacement, kernel_size, stride, displacement_stride, padding):
    """Raises ValueError unless the options, named as in `correlation`, are ints that fit."""
    validation.at_least(0, max_displacement=max_displacement, padding=padding)
    validation.at_least(
        1, kernel_size=kernel_size, stride=stride, displacement_stride=displacement_stride
    )
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd int, received {kernel_size}")


def pair(first, second):
    """Returns two maps `[batch, height, width, channels]`, checked to be alike."""
    first = validation.floating("first", first)
    first = validation.shaped("first", first, [None] * 4, "[batch, height, width, channels]")
    second = validation.floating("second", second)
    second = validation.shaped("second", second, validation.sizes(first), "that of first")
    if second.dtype != first.dtype:
        raise TypeError(
            f"second must have the dtype of first, {first.dtype.name}, received {second.dtype.name}"
        )
    return first, second


def _at_least(least, first):
    """Returns the maps, checked to be large enough for one output."""
    text = f"first must be at least {least} pixels high and wide, padding counted, received"
    for size in validation.sizes(first)[1:3]:
        if not validation.is_static(size):
            first = validation.satisfying(first, size >= least, text, size)
        elif size < least:
            raise ValueError(f"{text} {validation.shown(first.shape)}")
    return first


class _Windows(NamedTuple):
    """The windows of a padded map, one a displacement; `margin` is the largest displacement."""

    margin: int
    offsets: list[int]  # of the windows' corners, along each axis

    def costs(self, first, second):
        """Returns `[batch, rows, columns, displacements]`: means over the channels of padded maps.

        The gradient cuts the windows out again, or all of them would be kept for it.
        """

        @tf.custom_gradient
        def costs(first, second):
            def derive(upstream):
                return self._gradients(first, second, upstream)

            return self._costs(first, second), derive

        return costs(first, second)

    def _costs(self, first, second):
        first = self._inner(first)
        sizes = validation.sizes(first)
        count = channel_count(first)

        def cost(y, x):
            products = first * tf.slice(second, [0, y, x, 0], sizes)
            return tf.reduce_sum(products, axis=-1) / count

        return stacked(self.offsets, cost, sizes[:3], first.dtype)

    def _gradients(self, first, second, upstream):
        inner, outer = self._inner(first), validation.sizes(second)
        sizes = validation.sizes(inner)
        upstream = upstream / channel_count(first)
        upstream = tf.transpose(upstream, [3, 0, 1, 2])  # displacements first
        far = 2 * self.margin
        around = _frame(inner, far)

        def step(index, y, x, of_first, of_second):
            share = tf.expand_dims(upstream[index], -1)  # [batch, rows, columns, 1]
            of_first += share * tf.slice(second, [0, y, x, 0], sizes)
            back = [0, far - y, far - x, 0]  # where all that moved by (y, x) is at its place
            moved = tf.slice(_frame(share, far), back, [*outer[:3], 1])
            return of_first, of_second + moved * tf.slice(around, back, outer)

        of_first, of_second = summed(
            self.offsets, step, tf.zeros_like(inner), tf.zeros_like(second)
        )
        return _frame(of_first, self.margin), of_second

    def _inner(self, first):
        """Returns the map without the margin, where the patches are."""
        _, height, width, _ = validation.sizes(first)
        return first[:, self.margin : height - self.margin, self.margin : width - self.margin]


def channel_count(maps):
    """Returns the number of channels as a divisor: 1 where there are none, whose sum is 0."""
    return tf.cast(tf.maximum(validation.sizes(maps)[-1], 1), maps.dtype)


def stacked(moves, cost, sizes, dtype):
    """Returns `[*sizes, displacements]`: the costs `[*sizes]` by a move in y and one in x.

    They are computed one after the other, so that what each needs is in memory alone.
    """
    if compiled.traced_for_export():  # LiteRT has no arrays of tensors of free sizes
        costs = [tf.expand_dims(cost(y, x), -1) for y in moves for x in moves]
        return tf.concat(costs, axis=-1)

    def step(index, y, x, found):
        return [found.write(index, cost(y, x))]

    (found,) = summed(moves, step, tf.TensorArray(dtype, len(moves) ** 2))
    found = tf.reshape(found.stack(), [len(moves) ** 2, *sizes])
    return tf.transpose(found, [*range(1, len(sizes) + 1), 0])


def summed(moves, step, *sums):
    """Returns the sums after a step for each move in y and one in x, one at a time."""
    places, count = tf.constant(moves), len(moves)

    def body(index, *sums):
        return step(index, places[index // count], places[index % count], *sums)

    return loop(count**2, body, sums)


def _frame(maps, width):
    """Returns the maps with zeros around them."""
    return tf.pad(maps, [[0, 0], [width, width], [width, width], [0, 0]])
