"""Deformable convolution in one to three dimensions."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_deform import compiled, onnx_ops
from tf_deform.annotations import Padding, PerAxis, Tensor
from tf_deform.ops import validation
from tf_deform.ops.sampling import sum_dtype, sum_samples, unstacked
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table
from tf_deform.ops.turns import loop, sum_slices

AT_ONCE = 2**26  # bytes of samples; above this their taps are taken in turns


@operator
def deformable_conv(
    inputs: Tensor,
    kernel: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    *,
    strides: PerAxis = 1,
    padding: Padding = "valid",
    dilation_rate: PerAxis = 1,
) -> Tensor:
    """Returns `[batch, *output, filters]`: a convolution whose taps are moved by offsets.

    A tap is one place of the kernel: a 3 by 3 kernel has nine. Tap k of the output pixel at q
    samples the inputs linearly at `q * strides - padding + k * dilation_rate + offset`; outside,
    the inputs are 0. The samples are multiplied by the mask, if there is one, and by the kernel,
    and summed.

    Args:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes, any floating dtype.
        kernel: `[*kernel_size, channels / groups, filters]`, any floating dtype. Its shape must be
            known while tracing. The number of groups follows from the shapes.
        offset: `[batch, *output, deformable_groups * taps * rank]` in pixels, float32 or float64.
            The last axis runs over deformable groups, then taps (row by row), then coordinates
            (y, x). Channel c is in deformable group `c // (channels / deformable_groups)`.
        mask: `[batch, *output, deformable_groups * taps]`, any floating dtype: weights of the
            samples. None for no weights.
        strides: int, or one int for each axis, in input pixels.
        padding: "valid", "same" (as in Keras: an odd pixel is added at the end), "causal" (1-D), an
            int of pixels for all sides, or one (before, after) pair for each axis.
        dilation_rate: int, or one int for each axis: pixels from one tap of the kernel to the next.

    Returns:
        The convolution in the dtype of `inputs`. Half precision is summed in float32.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, or images that, with
            their padding, are smaller than the kernel. (An empty batch may have any size.)
        InvalidArgumentError: the same faults, if shapes are known only at run time.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, equation 2); with a
    mask: Zhu et al., "Deformable ConvNets v2" (arXiv:1811.11168, equation 1). At a position of
    exactly -1, the gradient of the offset follows the corner that lies inside.

    Example:
        >>> inputs = tf.reshape(tf.range(9.0), [1, 3, 3, 1])
        >>> kernel = tf.ones([1, 1, 1, 1])
        >>> deformable_conv(inputs, kernel, 0.5 * tf.ones([1, 3, 3, 2]))[0, 0, 0].numpy().item()
        2.0
    """
    geometry, inputs, kernel, offset = _checked(
        inputs, kernel, offset, strides, padding, dilation_rate
    )
    deformable_groups = _deformable_groups(offset, geometry)
    if mask is not None:
        mask = validation.shaped(
            "mask",
            validation.floating("mask", mask),
            [validation.sizes(inputs)[0], *geometry.output, deformable_groups * geometry.taps],
            "[batch, *output, deformable groups * taps]",
        )
    if onnx_ops.wanted() and geometry.rank == 2:
        return onnx_ops.deform_conv(inputs, kernel, offset, mask, geometry, deformable_groups)
    if compiled.chosen():
        return compiled.deformable_conv(
            inputs,
            kernel,
            offset,
            mask,
            before=geometry.before,
            strides=geometry.strides,
            dilations=geometry.dilation,
        )
    return _convolve(geometry, deformable_groups, inputs, kernel, offset, mask)


def sampling_positions(inputs, kernel, offset, *, strides=1, padding="valid", dilation_rate=1):
    """Returns `[batch, *output, deformable groups, taps, rank]`: where `deformable_conv` samples.

    It takes what that takes. The positions are in input pixels, in float32 or wider.
    """
    geometry, inputs, _, offset = _checked(inputs, kernel, offset, strides, padding, dilation_rate)
    groups = _deformable_groups(offset, geometry)
    positions = tf.transpose(geometry.positions(inputs, offset, groups), [0, 1, 3, 2, 4])
    batch = validation.sizes(inputs)[0]
    shape = [batch, *geometry.output, groups, geometry.taps, geometry.rank]
    return tf.reshape(positions, shape)


def _checked(inputs, kernel, offset, strides, padding, dilation_rate):
    """Returns the geometry, and inputs, kernel and offset as tensors that fit it."""
    inputs = validation.floating("inputs", inputs)
    kernel = validation.floating("kernel", kernel)
    offset = validation.floating("offset", offset)
    rank = (inputs.shape.rank or 0) - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"inputs must have shape [batch, 1 to 3 axes, channels], received {inputs.shape}"
        )
    geometry = Geometry(inputs, kernel, strides, padding, dilation_rate)
    inputs = holding(inputs, geometry.least)
    _deformable_groups(offset, geometry)  # raises if there are none
    offset = validation.shaped(
        "offset",
        offset,
        [validation.sizes(inputs)[0], *geometry.output, None],
        "[batch, *output, deformable groups * taps * rank]",
    )
    return geometry, inputs, kernel, offset


@compiled.portable("DeformableConv")
def _convolution_of_op(inputs, kernel, offset, mask, *, before, strides, dilations):
    geometry = Geometry(inputs, kernel, tuple(strides), "valid", tuple(dilations))
    geometry.before = [before[axis] for axis in range(geometry.rank)]
    geometry.output = validation.sizes(offset)[1:-1]
    groups = _deformable_groups(offset, geometry)
    return _convolve(geometry, groups, inputs, kernel, offset, mask)


def _convolve(geometry, groups, inputs, kernel, offset, mask):
    batch, pixels, taps = validation.sizes(inputs)[0], math.prod(geometry.output), geometry.taps
    table = Table.of(inputs, groups)
    dtype = sum_dtype(inputs)
    kernel = tf.reshape(tf.cast(kernel, dtype), [taps, -1, geometry.filters])
    offset = geometry.by_tap(inputs, offset, groups)
    masks = [] if mask is None else [tf.reshape(mask, [batch, pixels, groups, taps])]

    # XLA loops over the last axis: were the taps in it too, it would compute a position for each
    # channel. Elsewhere one product of all taps is the faster one, and LiteRT has it in 8 bits.
    taps_first = geometry.groups == 1 and not compiled.traced_for_export()

    def arranged(each):
        """Takes and returns `[points, rows, queries, groups]`; the points given are the taps."""
        if taps_first:
            return each
        beside = tf.transpose(each, [1, 2, 0, 3])
        return tf.reshape(beside, [1, batch, pixels * each.shape[0], groups])

    def form(which, padded, kernel, offset, mask=None, *, onto=None):
        axes = [arranged(axis) for axis in geometry.axes(which, offset)]
        if mask is not None:
            mask = arranged(tf.transpose(mask, [3, 0, 1, 2]))
        samples = sum_samples(table, padded, axes, mask, apart=taps_first, onto=onto)
        if taps_first:
            return _product(tf.reshape(samples, [kernel.shape[0], -1, geometry.channels]), kernel)
        return _contract(geometry, samples, kernel)

    out = sum_slices(
        form,
        [None, 0, 3, 3][: 3 + len(masks)],
        [table.rows(), kernel, offset, *masks],
        zeros=lambda: tf.zeros([batch * pixels, geometry.filters], dtype),
        samples=[batch, pixels, geometry.channels, taps],
        limit=AT_ONCE,
    )
    return tf.cast(tf.reshape(out, [batch, *geometry.output, geometry.filters]), inputs.dtype)


class Geometry:
    """The sizes of a convolution: what its inputs, kernel, strides, padding and dilation imply."""

    def __init__(self, inputs, kernel, strides, padding, dilation_rate):
        _, *space, channels = validation.sizes(inputs)
        rank = len(space)
        self.rank = rank
        self.channels = channels
        known = kernel.shape.rank == rank + 2 and kernel.shape.is_fully_defined()
        if not known or 0 in kernel.shape:
            raise ValueError(
                f"kernel must have a static shape [{rank} axes, channels / groups, filters] "
                f"without zeros, "
                f"received {kernel.shape}"
            )
        *self.kernel_size, group_channels, self.filters = kernel.shape.as_list()
        self.taps = math.prod(self.kernel_size)
        if not validation.is_static(channels):
            raise ValueError(f"inputs must have static channels, received {inputs.shape}")
        self.groups = channels // group_channels if group_channels else 0
        if not self.groups or channels % group_channels or self.filters % self.groups:
            raise ValueError(
                "kernel must have shape [*kernel_size, channels / groups, filters] with groups "
                f"dividing channels and filters, received {kernel.shape} for {channels} channels"
            )
        self.strides = validation.per_axis("strides", strides, rank)
        self.dilation = validation.per_axis("dilation_rate", dilation_rate, rank)
        extents = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        pads = explicit_padding(padding, space, extents, self.strides)
        self.before, self.after = map(list, zip(*pads, strict=True))
        self.output = output_sizes(space, pads, extents, self.strides)
        self.least = least_pixels(padding, extents)

    def by_tap(self, inputs, offset, groups):
        """Returns the offset as `[batch, output pixels, groups, taps, rank]`, float32 or wider."""
        wide = tf.float64 if tf.float64 in (inputs.dtype, offset.dtype) else tf.float32
        shape = [validation.sizes(inputs)[0], math.prod(self.output), groups, self.taps, self.rank]
        return tf.reshape(tf.cast(offset, wide), shape)

    def axes(self, which, offset):
        """Returns for each axis where taps are moved: `[taps, batch, output pixels, groups]`.

        which: `[taps]`, their numbers in the kernel. offset: as from `by_tap`, of these taps.
        """
        moves = unstacked(tf.transpose(offset, [4, 3, 0, 1, 2]))
        pixel, tap = tf.range(math.prod(self.output)), tf.convert_to_tensor(which)
        axes: list[tf.Tensor] = []
        for axis in reversed(range(self.rank)):
            start = pixel % self.output[axis] * self.strides[axis] - self.before[axis]
            step = tap % self.kernel_size[axis] * self.dilation[axis]
            at_rest = tf.reshape(step, [-1, 1, 1, 1]) + tf.reshape(start, [1, 1, -1, 1])
            axes.insert(0, tf.cast(at_rest, offset.dtype) + moves[axis])
            pixel, tap = pixel // self.output[axis], tap // self.kernel_size[axis]
        return axes

    def positions(self, inputs, offset, groups):
        """Returns `[batch, output pixels, taps, deformable groups, rank]`: where taps are moved."""
        axes = self.axes(tf.range(self.taps), self.by_tap(inputs, offset, groups))
        return tf.transpose(tf.stack(axes), [2, 3, 1, 4, 0])


def explicit_padding(padding, space, extents, strides):
    """Returns one (before, after) pair an axis; "same" is as in Keras.

    space: input sizes, ints or scalar tensors. extents: sizes of the dilated kernel.
    """
    rank = len(space)
    if isinstance(padding, str):
        known = ("valid", "same", "causal") if rank == 1 else ("valid", "same")
        validation.choice("padding", padding.lower(), known)
        if padding.lower() == "valid":
            return [(0, 0)] * rank
        if padding.lower() == "causal":
            return [(extents[0] - 1, 0)]
        pads = []
        for size, extent, stride in zip(space, extents, strides, strict=True):
            total = extent - 1  # whatever the size, if the stride is 1
            if stride > 1:
                outputs = (size + stride - 1) // stride  # of positive numbers: ONNX rounds to 0
                total = _at_least_zero((outputs - 1) * stride + extent - size)
            pads.append((total // 2, total - total // 2))
        return pads
    pads = [(padding, padding)] * rank if validation.is_integer(padding) else padding
    pairs = isinstance(pads, list | tuple) and len(pads) == rank
    if not pairs or not all(
        validation.is_integers(pair) and len(pair) == 2 and min(pair) >= 0 for pair in pads
    ):
        raise ValueError(
            f"padding must be a string, an int or {rank} (before, after) pairs of at least 0, "
            f"received {padding!r}"
        )
    return [tuple(pair) for pair in pads]


def least_pixels(padding, extents):
    """Returns the size along each axis that a kernel fits into with its padding."""
    if isinstance(padding, str) and padding.lower() != "valid":
        return [0] * len(extents)
    pads = explicit_padding(padding, extents, extents, [1] * len(extents))
    return [max(extent - sum(pad), 0) for extent, pad in zip(extents, pads, strict=True)]


def check_holds(batch, space, least):
    """Raises ValueError if images of sizes known while tracing are smaller than the kernel."""
    pairs = zip(space, least, strict=True)
    small = any(validation.is_static(size) and size < wanted for size, wanted in pairs)
    if small and not (validation.is_static(batch) and batch == 0):
        known = [size if validation.is_static(size) else None for size in space]
        text, received, remedy = _small(least, validation.shown(known))
        raise ValueError(f"{text} {received}{remedy}")


def holding(inputs, least):
    """Returns channels-last inputs, checked to be no smaller than the kernel if there are any."""
    batch, *space, _ = validation.sizes(inputs)
    check_holds(batch, space, least)
    if validation.is_static(*space) or not any(least):
        return inputs
    sizes = tf.stack(space)
    holds = tf.reduce_all(sizes >= least) | tf.equal(batch, 0)
    return validation.satisfying(inputs, holds, *_small(least, sizes))


def _small(least, received):
    """Returns the parts of the message about images smaller than the kernel."""
    text = f"inputs must be at least {least} pixels, what the kernel spans without the padding"
    return f"{text}, received", received, "; same padding takes any size"


def output_sizes(space, pads, extents, strides):
    """Returns the output's size along each axis, ints or scalar tensors as the inputs' sizes."""
    return [
        _at_least_zero((size + sum(pad) - extent) // stride + 1)
        for size, pad, extent, stride in zip(space, pads, extents, strides, strict=True)
    ]


def _at_least_zero(size):
    return max(size, 0) if validation.is_static(size) else tf.maximum(size, 0)


def _deformable_groups(offset, geometry):
    channels = offset.shape[-1] if offset.shape.rank else None
    per_group = geometry.taps * geometry.rank
    if not channels or channels % per_group:
        raise ValueError(
            f"offset must have deformable groups * {geometry.taps} taps * {geometry.rank} "
            f"coordinates = a multiple of {per_group} channels, received {offset.shape}"
        )
    groups = channels // per_group
    if geometry.channels % groups:
        raise ValueError(
            f"offset must have deformable groups that divide the {geometry.channels} channels of "
            f"the inputs, received {groups} deformable groups in shape {offset.shape}"
        )
    return groups


def _contract(geometry, samples, kernel):
    """Returns `[pixels, filters]`: samples times the kernel `[taps, channels / groups, filters]`.

    samples: the channels of all pixels and, inside of them, taps.
    """
    taps, group_channels, filters = kernel.shape
    groups, inner = geometry.groups, taps * group_channels
    if groups == 1:
        return tf.matmul(tf.reshape(samples, [-1, inner]), tf.reshape(kernel, [inner, filters]))
    samples = tf.reshape(samples, [-1, taps, groups, group_channels])
    samples = tf.reshape(tf.transpose(samples, [2, 0, 1, 3]), [groups, -1, inner])
    kernel = tf.transpose(tf.reshape(kernel, [inner, groups, -1]), [1, 0, 2])
    out = tf.transpose(tf.matmul(samples, kernel), [1, 0, 2])  # [pixels, groups, filters / groups]
    return tf.reshape(out, [-1, filters])


@tf.custom_gradient
def _product(samples, kernel):
    """Returns `[pixels, filters]`: samples `[taps, pixels, channels]` times the kernel.

    kernel: `[taps, channels, filters]`. Its gradient lets the samples go before it makes their own.
    """
    taps, channels, filters = kernel.shape

    def gradient(upstream):
        kernel_gradient = _products(samples, upstream)
        flat = tf.reshape(kernel, [taps * channels, filters])
        with tf.control_dependencies([kernel_gradient]):
            by_pixel = tf.matmul(upstream, flat, transpose_b=True)
        by_pixel = tf.reshape(by_pixel, [-1, taps, channels])
        return tf.transpose(by_pixel, [1, 0, 2]), kernel_gradient

    return tf.reduce_sum(tf.matmul(samples, kernel), axis=0), gradient


@tf.custom_gradient
def _products(samples, values):
    """Returns `[taps, channels, filters]`: the samples of each tap, transposed, times the values.

    One tap after the other: XLA would compute the samples again, transposed, for all at once.
    """
    taps, _, channels = samples.shape
    found = tf.TensorArray(samples.dtype, taps, element_shape=[channels, values.shape[1]])

    def add(tap, found):
        return [found.write(tap, tf.matmul(samples[tap], values, transpose_a=True))]

    (found,) = loop(taps, add, [found])

    def gradient(upstream):
        return tf.matmul(values, upstream, transpose_b=True), _product(samples, upstream)

    return found.stack(), gradient
