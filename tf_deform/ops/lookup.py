"""The correlation of two feature maps around a flow: on demand, or from a pyramid of all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import Tensor
from tf_deform.ops import validation
from tf_deform.ops.correlation import channel_count, pair, stacked, summed
from tf_deform.ops.displacement import float32_or_wider
from tf_deform.ops.sampling import sample_axes
from tf_deform.ops.symbolic import operator


@operator
def correlation_lookup(
    first: Tensor, second: Tensor, flow: Tensor, *, radius: int, num_levels: int = 1
) -> Tensor:
    """Returns `[batch, height, width, num_levels * (2 radius + 1)^2]`: products around a flow.

    With `n = 2 radius + 1`, channel `(l n + dy + radius) n + dx + radius` of pixel p is the product
    of `first[p]` and of level l of `second` at `(p + flow[p]) / 2^l + (dy, dx)`: the sum over the
    channels, divided by the root of their number. Level 0 is `second`, and each further one is the
    one before it, averaged over two by two pixels, without an odd last row or column. Samples are
    bilinear, and outside of the map 0 with a linear ramp over the last pixel; a level that has no
    pixels left is 0.

    Samples of `second` are taken for this flow alone. `correlation_pyramid` and `pyramid_lookup`
    give the same numbers: take them for many flows between the same maps, if they are small, and
    for what is exported with a large radius, where this one is written out for each displacement.

    Args:
        first: `[batch, height, width, channels]`, any floating dtype.
        second: like `first`, in which its pixels are looked for.
        flow: `[batch, height, width, 2]`, (y, x) in pixels, added to each pixel's own place as in
            `warp`. Use float32 or float64.
        radius: how far around the flow, in pixels of each level, at least 0.
        num_levels: how many levels, at least 1.

    Returns:
        Products in float32, or float64 if the maps are float64. Gradients go to both maps and to
        the flow. A NaN or infinite flow gives 0. In memory are the samples
        `[batch, height, width, channels]` of one displacement at a time, and the output.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Teed and Deng, "RAFT" (arXiv:2003.12039, equations 1 to 3 and section 3.2). Published
    weights have dx, not dy, as the slower of the two.

    Example:
        >>> first = tf.reshape([0.0, 0.0, 1.0, 0.0, 0.0], [1, 1, 5, 1])
        >>> second = tf.roll(first, shift=2, axis=2)  # all has moved to the right
        >>> flow = tf.ones([1, 1, 5, 2]) * [0.0, 1.5]
        >>> products = correlation_lookup(first, second, flow, radius=1)
        >>> products[0, 0, 2].numpy().reshape(3, 3).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    """
    validation.at_least(0, radius=radius)
    first, levels = _levels(first, second, num_levels)
    batch, height, width, channels = validation.sizes(first)
    axes = [tf.reshape(axis, [batch, height * width]) for axis in _places(flow, first)]
    features = tf.reshape(first, [batch, height * width, channels])
    costs = [
        _costs(features, level, [axis / 2**exponent for axis in axes], radius)
        for exponent, level in enumerate(levels)
    ]
    return tf.reshape(
        tf.concat(costs, axis=-1), [batch, height, width, num_levels * (2 * radius + 1) ** 2]
    )


@operator
def correlation_pyramid(first: Tensor, second: Tensor, *, num_levels: int = 1) -> list[Tensor]:
    """Returns a list of `[batch, height, width, height / 2^l, width / 2^l]`: all products.

    Entry l holds the product of each pixel of `first` and each of level l of `second`, both as in
    `correlation_lookup`. `pyramid_lookup` looks flows up in it, any number of them.

    Args:
        first: `[batch, height, width, channels]`, any floating dtype.
        second: like `first`.
        num_levels: how many levels, at least 1.

    Returns:
        Products in float32, or float64 if the maps are float64, with sizes rounded down. They are
        `(height * width)^2` numbers an image, and with further levels up to a third more.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Teed and Deng, "RAFT" (arXiv:2003.12039, equation 1 and section 3.2). There the products
    are averaged; averaging `second` gives the same.

    Example:
        >>> maps = tf.ones([2, 8, 6, 4])
        >>> [each.shape.as_list() for each in correlation_pyramid(maps, maps, num_levels=2)]
        [[2, 8, 6, 8, 6], [2, 8, 6, 4, 3]]
    """
    first, levels = _levels(first, second, num_levels)
    batch, height, width, channels = validation.sizes(first)
    rows = tf.reshape(first, [batch, height * width, channels])
    pyramid = []
    for level in levels:
        space = validation.sizes(level)[1:3]
        level = tf.reshape(level, [batch, math.prod(space), channels])
        products = tf.matmul(rows, level, transpose_b=True)
        pyramid.append(tf.reshape(products, [batch, height, width, *space]))
    return pyramid


@operator
def pyramid_lookup(pyramid: Sequence[Tensor], flow: Tensor, *, radius: int) -> Tensor:
    """Returns `[batch, height, width, levels * (2 radius + 1)^2]`: products around a flow.

    They are what `correlation_lookup` returns for the maps that `correlation_pyramid` was given.

    Args:
        pyramid: what `correlation_pyramid` returned.
        flow: `[batch, height, width, 2]`, (y, x) in pixels, added to each pixel's own place as in
            `warp`. Use float32 or float64.
        radius: how far around the flow, in pixels of each level, at least 0.

    Returns:
        Products in the dtype of the pyramid. Gradients go to the pyramid and to the flow. A NaN or
        infinite flow gives 0. In memory is the output, a copy of a level at a time in the portable
        form, and in the gradient one of the pyramid for each lookup.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: Teed and Deng, "RAFT" (arXiv:2003.12039, section 3.2).

    Example:
        >>> maps, flow = tf.ones([2, 8, 6, 4]), tf.zeros([2, 8, 6, 2])
        >>> pyramid = correlation_pyramid(maps, maps, num_levels=2)
        >>> pyramid_lookup(pyramid, flow, radius=3).shape.as_list()
        [2, 8, 6, 98]
    """
    validation.at_least(0, radius=radius)
    pyramid = _volumes(pyramid)
    batch, height, width, *_ = validation.sizes(pyramid[0])
    count = (2 * radius + 1) ** 2
    moves = tf.meshgrid(*[tf.range(-radius, radius + 1)] * 2, indexing="ij")
    axes = list(zip(_places(flow, pyramid[0]), moves, strict=True))
    costs = []
    for exponent, volume in enumerate(pyramid):
        points = [
            tf.reshape(place / 2**exponent, [-1, 1])
            + tf.cast(tf.reshape(move, [1, count]), place.dtype)
            for place, move in axes
        ]  # [batch * height * width, displacements] each
        space = validation.sizes(volume)[3:]
        images = tf.reshape(volume, [batch * height * width, *space, 1])
        found = sample_axes(images, points, "bilinear", "zeros")
        costs.append(tf.reshape(found, [batch, height, width, count]))
    return tf.concat(costs, axis=-1)


def _costs(first, second, places, radius):
    """Returns `[batch, queries, displacements]`: products with samples around places [y, x].

    first: `[batch, queries, channels]`. The gradient samples again, or all would be kept for it.
    """
    moves = list(range(-radius, radius + 1))

    def cost(tensors, dy, dx):
        first, second, y, x = tensors
        moved = [y + tf.cast(dy, y.dtype), x + tf.cast(dx, x.dtype)]
        return tf.reduce_sum(first * sample_axes(second, moved, "bilinear", "zeros"), axis=-1)

    def forward(*tensors):
        sizes = validation.sizes(first)[:2]
        return stacked(moves, lambda dy, dx: cost(tensors, dy, dx), sizes, first.dtype)

    @tf.custom_gradient
    def costs(*tensors):
        def derive(upstream):
            upstream = tf.transpose(upstream, [2, 0, 1])  # displacements first

            def step(index, dy, dx, *sums):
                with tf.GradientTape() as tape:
                    tape.watch(tensors)
                    found = cost(tensors, dy, dx)
                shares = tape.gradient(found, tensors, upstream[index])
                return [total + share for total, share in zip(sums, shares, strict=True)]

            return summed(moves, step, *map(tf.zeros_like, tensors))

        return forward(*tensors), derive

    # A SavedModel cannot hold gradients of custom gradients, of which the samples have some.
    return (forward if compiled.traced_for_export() else costs)(first, second, *places)


# Arguments


def _levels(first, second, num_levels):
    """Returns the first map over the root of its channels, and the levels of the second, checked.

    Both are in float32, or in float64 if they are given so.
    """
    validation.at_least(1, num_levels=num_levels)
    first, second = map(float32_or_wider, pair(first, second))
    levels = [second]
    for _ in range(num_levels - 1):
        levels.append(_halved(levels[-1]))
    return first / tf.sqrt(channel_count(first)), levels


def _halved(maps):
    """Returns the maps averaged over two by two pixels; `avg_pool2d` refuses those without any."""
    _, height, width, _ = validation.sizes(maps)
    maps = maps[:, : height // 2 * 2, : width // 2 * 2]
    maps = (maps[:, ::2] + maps[:, 1::2]) / 2
    return (maps[:, :, ::2] + maps[:, :, 1::2]) / 2


def _volumes(pyramid):
    """Returns volumes `[batch, height, width, any, any]`, equal in their first sizes, checked."""
    validation.listed("pyramid", pyramid, "volumes")
    checked: list[Tensor] = []
    for index, volume in enumerate(pyramid):
        name, same = f"pyramid[{index}]", [None] * 3
        volume = validation.floating(name, volume)
        if checked:
            same = validation.sizes(checked[0])[:3]
            if volume.dtype != checked[0].dtype:
                raise TypeError(
                    f"{name} must have the dtype of pyramid[0], {checked[0].dtype.name}, received "
                    f"{volume.dtype.name}"
                )
        meaning = "[batch, height, width, height / 2^level, width / 2^level]"
        checked.append(validation.shaped(name, volume, [*same, None, None], meaning))
    return checked


def _places(flow, maps):
    """Returns the places y and x `[batch, height, width]` that a flow leads to, checked."""
    batch, height, width, *_ = validation.sizes(maps)
    flow = validation.floating("flow", flow)
    flow = validation.shaped(
        "flow", flow, [batch, height, width, 2], "[batch, height, width, 2] of the maps"
    )
    flow = float32_or_wider(flow)
    rows, columns = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    return [
        tf.cast(index, flow.dtype) + flow[..., axis] for axis, index in enumerate((rows, columns))
    ]
