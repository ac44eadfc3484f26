"""Depthwise deformable convolution with weights for every pixel: DCNv3 and DCNv4."""

from __future__ import annotations

import tensorflow as tf

from tf_deform.annotations import Padding, PerAxis, Tensor
from tf_deform.ops import validation
from tf_deform.ops.deformable_conv import (
    explicit_padding,
    holding,
    least_pixels,
    output_sizes,
)
from tf_deform.ops.sampling import sample_table
from tf_deform.ops.symbolic import operator
from tf_deform.ops.tables import Table


@operator
def dcnv3(
    inputs: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: PerAxis,
    *,
    strides: PerAxis = 1,
    padding: Padding = "valid",
    dilation_rate: PerAxis = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Returns `[batch, *output, channels]`: for each pixel, the weighted sum of its moved taps.

    A tap is one place of the kernel: a 3 by 3 kernel has nine. Instead of a kernel there are
    weights for each pixel, group of channels and tap. Tap k of the output pixel at q samples the
    inputs linearly at
    `q * strides - padding + centre + (k * dilation_rate - centre + offset) * offset_scale`, where
    the centre is `dilation_rate * (kernel_size - 1) // 2`. Outside, the inputs are 0.

    Args:
        inputs: `[batch, height, width, channels]`, any floating dtype.
        offset: `[batch, *output, groups * taps * 2]` in pixels, float32 or float64. The last axis
            runs over groups, then taps (column by column), then coordinates (x, y). Channel c is in
            group `c // (channels / groups)`.
        mask: `[batch, *output, groups * taps]`, any floating dtype: the weights, used as they are.
            The number of groups follows from this shape. In DCNv3 the weights are a softmax over
            the taps of each group.
        kernel_size: int, or (height, width), in taps.
        strides: int, or (height, width), in input pixels.
        padding: "valid", "same" (as in Keras: an odd pixel is added at the end), an int of pixels
            for all sides, or a (before, after) pair for height and one for width.
        dilation_rate: int, or (height, width): pixels from one tap of the kernel to the next.
        offset_scale: factor on the offsets and on the distances of the taps from the centre, above
            0.
        remove_center: whether to leave out the tap at the centre. Needs an odd kernel size.

    Returns:
        The sums in the dtype of `inputs`. Half precision is summed in float32.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, or images that, with
            their padding, are smaller than the kernel. (An empty batch may have any size.)
        InvalidArgumentError: the same faults, if shapes are known only at run time.

    Source: Wang et al., "InternImage" (arXiv:2211.05778, equation 2, without its projections). The
    order of the channels, the scale and `remove_center` are those of the authors' implementation.

    Example:
        >>> inputs = tf.reshape(tf.range(9.0), [1, 3, 3, 1])
        >>> offset = tf.constant([0.5, 0.0] * 9, shape=[1, 1, 1, 18])  # half a pixel to the right
        >>> mask = tf.constant([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], shape=[1, 1, 1, 9])
        >>> dcnv3(inputs, offset, mask, 3).numpy().item()  # the pixels at 4.5 and 7.5
        12.0
    """
    mask = validation.floating("mask", mask)
    geometry = _Geometry(inputs, kernel_size, strides, padding, dilation_rate, remove_center)
    taps = len(geometry.taps)
    channels = mask.shape[-1] if mask.shape.rank else None
    if not channels or channels % taps:
        raise ValueError(
            f"mask must have groups * {taps} taps = a multiple of {taps} channels, received "
            f"{mask.shape}"
        )
    groups = geometry.checked_groups(channels // taps, "mask")
    mask = geometry.checked("mask", mask, channels, "groups * taps")
    offset = geometry.checked("offset", offset, channels * 2, "groups * taps * 2")
    shape = [*geometry.rows_and_queries, groups, taps]
    offset, mask = tf.reshape(offset, [*shape, 2]), tf.reshape(mask, shape)
    return geometry.weighted_taps(offset, mask, offset_scale)


def sampling_positions(
    inputs,
    offset,
    kernel_size,
    *,
    groups,
    strides=1,
    padding="valid",
    dilation_rate=1,
    offset_scale=1.0,
    remove_center=False,
):
    """Returns `[batch, *output, groups, taps, 2]`: where `dcnv3` samples, which takes the same.

    The positions are in input pixels as (y, x), in float32 or wider.
    """
    geometry = _Geometry(inputs, kernel_size, strides, padding, dilation_rate, remove_center)
    taps = len(geometry.taps)
    geometry.checked_groups(groups, "groups")
    offset = geometry.checked("offset", offset, groups * taps * 2, "groups * taps * 2")
    offset = tf.reshape(offset, [*geometry.rows_and_queries, groups, taps, 2])
    points = geometry.points(offset, offset_scale)
    return tf.reshape(points, [geometry.batch, *geometry.output, groups, taps, 2])


@operator
def dcnv4(
    inputs: Tensor,
    offset_mask: Tensor,
    kernel_size: PerAxis,
    *,
    groups: int,
    strides: PerAxis = 1,
    padding: Padding = "valid",
    dilation_rate: PerAxis = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Returns `[batch, *output, channels]`: for each pixel, the weighted sum of its moved taps.

    This is `dcnv3` with offsets and weights in one tensor. Tap k of the output pixel at q samples
    the inputs linearly at
    `q * strides - padding + centre + (k * dilation_rate - centre + offset) * offset_scale`, where
    the centre is `dilation_rate * (kernel_size - 1) // 2`. Outside, the inputs are 0.

    Args:
        inputs: `[batch, height, width, channels]`, any floating dtype.
        offset_mask: `[batch, *output, groups * taps * 3, rounded up to a multiple of 8]`, float32
            or float64. For each group it holds first the offsets of the taps in pixels, (x, y) for
            each tap, and then the weights of the taps. The taps run column by column. Channels that
            are left over at the end are not read. The weights are used as they are: DCNv4 has no
            softmax.
        kernel_size: int, or (height, width), in taps.
        groups: number of groups of channels, each with its own offsets. Channel c is in group
            `c // (channels / groups)`.
        strides: int, or (height, width), in input pixels.
        padding: "valid", "same" (as in Keras: an odd pixel is added at the end), an int of pixels
            for all sides, or a (before, after) pair for height and one for width.
        dilation_rate: int, or (height, width): pixels from one tap of the kernel to the next.
        offset_scale: factor on the offsets and on the distances of the taps from the centre, above
            0.
        remove_center: whether to leave out the tap at the centre. Needs an odd kernel size.

    Returns:
        The sums in the dtype of `inputs`. Half precision is summed in float32.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit, or images that, with
            their padding, are smaller than the kernel. (An empty batch may have any size.)
        InvalidArgumentError: the same faults, if shapes are known only at run time.

    Source: Xiong et al., "Efficient Deformable ConvNets" (arXiv:2401.06197, section 3.1, without
    its projections). The order of the channels is that of the authors' implementation.

    Example:
        >>> inputs = tf.reshape(tf.range(9.0), [1, 3, 3, 1])
        >>> offset_mask = tf.concat([tf.zeros([1, 1, 1, 18]), tf.ones([1, 1, 1, 14])], axis=-1)
        >>> dcnv4(inputs, offset_mask, 3, groups=1).numpy().item()
        36.0
    """
    validation.at_least(1, groups=groups)
    geometry = _Geometry(inputs, kernel_size, strides, padding, dilation_rate, remove_center)
    geometry.checked_groups(groups, "groups")
    taps = len(geometry.taps)
    channels = offset_mask_channels(groups, taps)
    offset_mask = geometry.checked(
        "offset_mask", offset_mask, channels, "groups * taps * 3 rounded up to a multiple of 8"
    )
    shape = [*geometry.rows_and_queries, groups, taps]
    offset, mask = split(offset_mask, groups, taps)
    offset, mask = tf.reshape(offset, [*shape, 2]), tf.reshape(mask, shape)
    return geometry.weighted_taps(offset, mask, offset_scale)


def split(offset_mask, groups, taps):
    """Returns offsets `[*axes, groups, taps * 2]` and weights `[*axes, groups, taps]` of DCNv4.

    offset_mask: `[*axes, channels]`; see `dcnv4`.
    """
    *axes, _ = validation.sizes(offset_mask)
    used = tf.reshape(offset_mask[..., : groups * taps * 3], [*axes, groups, taps * 3])
    return used[..., : taps * 2], used[..., taps * 2 :]


def kernel_taps(kernel_size, remove_center):
    """Returns the taps as (row, column), in the published order: columns outermost."""
    height, width = kernel_size
    taps = [(row, column) for column in range(width) for row in range(height)]
    if remove_center:
        if height % 2 == 0 or width % 2 == 0 or len(taps) == 1:
            raise ValueError(
                "kernel_size must be odd and more than 1 where the centre is removed, received "
                f"{tuple(kernel_size)}"
            )
        taps.remove((height // 2, width // 2))
    return taps


def offset_mask_channels(groups, taps):
    """Returns how many channels DCNv4 predicts: three a tap and group, in eights."""
    return -(-groups * taps * 3 // 8) * 8


class _Geometry:
    """What the inputs, kernel size, strides, padding and dilation imply, and the inputs."""

    def __init__(self, inputs, kernel_size, strides, padding, dilation_rate, remove_center):
        inputs = validation.floating("inputs", inputs)
        self.inputs = validation.shaped(
            "inputs", inputs, [None] * 4, "[batch, height, width, channels]"
        )
        kernel_size = validation.per_axis("kernel_size", kernel_size, 2)
        self.strides = validation.per_axis("strides", strides, 2)
        self.dilation = validation.per_axis("dilation_rate", dilation_rate, 2)
        self.taps = kernel_taps(kernel_size, validation.boolean("remove_center", remove_center))
        reach = [(k - 1) * d for k, d in zip(kernel_size, self.dilation, strict=True)]
        self.centre = [each // 2 for each in reach]
        extents = [each + 1 for each in reach]
        self.batch, *space, self.channels = validation.sizes(self.inputs)
        pads = explicit_padding(padding, space, extents, self.strides)
        self.inputs = holding(self.inputs, least_pixels(padding, extents))
        self.before = [before for before, _ in pads]
        self.output = output_sizes(space, pads, extents, self.strides)

    @property
    def rows_and_queries(self):
        height, width = self.output
        return [self.batch, height * width]

    def checked(self, name, tensor, channels, meaning):
        return validation.shaped(
            name,
            validation.floating(name, tensor),
            [self.batch, *self.output, channels],
            f"[batch, *output, {meaning}]",
        )

    def checked_groups(self, groups, name):
        if validation.is_static(self.channels) and self.channels % groups:
            raise ValueError(
                f"{name} must have groups that divide the {self.channels} channels of the inputs, "
                f"received {groups} groups"
            )
        return groups

    def weighted_taps(self, offset, mask, scale):
        """Returns `[batch, *output, channels]`, the weighted sums of the moved taps.

        offset: `[batch, pixels, groups, taps, 2]` as (x, y). mask: `[batch, pixels, groups, taps]`.
        """
        points = self.points(offset, scale)
        sums = sample_table(Table.of(self.inputs, mask.shape[2]), points, mask)
        sums = tf.reshape(sums, [self.batch, *self.output, self.channels])
        return tf.cast(sums, self.inputs.dtype)

    def points(self, offset, scale):
        """Returns `[batch, pixels, groups, taps, 2]` as (y, x): where the moved taps lie.

        offset: `[batch, pixels, groups, taps, 2]` as (x, y).
        """
        scale = validation.number("offset_scale", scale, above=0)
        wide = tf.float64 if tf.float64 in (self.inputs.dtype, offset.dtype) else tf.float32
        offset = tf.cast(offset, wide) * scale
        y, x = (self._at_rest(axis, scale, wide) for axis in (0, 1))
        return tf.stack([y + offset[..., 1], x + offset[..., 0]], axis=-1)

    def _at_rest(self, axis, scale, dtype):
        """Returns `[pixels, 1, taps]`: where the taps lie along an axis before they are moved."""
        centre = self.centre[axis]
        pixel = tf.range(self.output[axis]) * self.strides[axis] - self.before[axis] + centre
        steps = [(tap[axis] * self.dilation[axis] - centre) * scale for tap in self.taps]
        pixel = tf.expand_dims(tf.cast(pixel, dtype), 1)
        places = pixel + tf.constant(steps, dtype)  # [output size, taps]
        height, width = self.output
        places = tf.expand_dims(places, 1 - axis)
        places = tf.broadcast_to(places, [height, width, len(steps)])
        return tf.reshape(places, [height * width, 1, len(steps)])
