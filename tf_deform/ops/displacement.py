"""Dense displacement fields, in pixels: warping by one, and integrating a velocity to one."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_deform.annotations import Interpolation, PaddingMode, Tensor
from tf_deform.ops import validation
from tf_deform.ops.sampling import sample_axes
from tf_deform.ops.symbolic import operator


@operator
def warp(
    inputs: Tensor,
    flow: Tensor,
    *,
    interpolation: Interpolation = "bilinear",
    padding_mode: PaddingMode = "border",
) -> Tensor:
    """Returns `[batch, *space, channels]`: at every pixel p the inputs at `p + flow[p]`.

    The flow is added, as in image registration. Where it is (0, 1), a pixel takes the value of its
    right neighbour. `tfd.addons.dense_image_warp` subtracts the flow, as TensorFlow Addons does.

    Args:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes, any floating dtype.
        flow: `[batch, *space, rank]`, displacements in pixels, array order (y, x) or (z, y, x).
            Use float32 or float64.
        interpolation: "bilinear" (linear in 1-D, trilinear in 3-D), "nearest" (rounds halves to
            even; no gradient to the flow) or "bicubic" (cubic convolution with A = -0.75).
        padding_mode: "border" repeats the edge pixel; "zeros" returns 0 outside the image;
            "reflection" reflects about the centres of the edge pixels.

    Returns:
        Samples in the dtype of `inputs`. Where the flow is NaN or infinite, the sample is 0.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: the spatial transformation of Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231),
    which also repeats the edge pixel.

    Example:
        >>> row = tf.reshape(tf.range(4.0), [1, 4, 1])
        >>> warp(row, tf.ones_like(row))[0, :, 0].numpy().tolist()  # every pixel from its right
        [1.0, 2.0, 3.0, 3.0]
    """
    inputs = validation.floating("inputs", inputs)
    rank = (inputs.shape.rank or 0) - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"inputs must have shape [batch, 1 to 3 axes, channels], received {inputs.shape}"
        )
    batch, *space, _ = validation.sizes(inputs)
    flow = validation.shaped(
        "flow", validation.floating("flow", flow), [batch, *space, rank], "[batch, *space, rank]"
    )
    return warped(inputs, flow, interpolation, padding_mode)


@operator
def integrate_velocity(velocity: Tensor, *, steps: int = 7) -> Tensor:
    """Returns the displacement `[batch, *space, rank]` of following a velocity for unit time.

    The method is scaling and squaring. After a short time `2 ** -steps`, the displacement is about
    the velocity times that time. Composing a displacement with itself doubles its time. For a
    smooth velocity the result has a smooth inverse: the integral of `-velocity`.

    Args:
        velocity: `[batch, *space, rank]` with 1 to 3 spatial axes, floating-point: pixels per unit
            time, array order (y, x) or (z, y, x). Outside the image, that of the edge pixel holds.
        steps: how many times the displacement is composed with itself, at least 0.

    Returns:
        Displacements in pixels for `warp`, in float32, or float64 if the velocity is float64.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.

    Source: Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms" (2006); in
    networks, with 7 steps, Dalca et al. (arXiv:1805.04605).

    Example:
        >>> velocity = tf.ones([1, 5, 6, 2]) * [0.5, -2.0]
        >>> integrate_velocity(velocity)[0, 2, 3].numpy().tolist()  # a constant one just moves
        [0.5, -2.0]
    """
    displacement = field("velocity", velocity)
    validation.at_least(0, steps=steps)
    displacement *= 2.0**-steps
    for _ in range(steps):
        displacement += warped(displacement, displacement, "bilinear", "border")
    return displacement


def field(name, vectors):
    """Returns vectors `[batch, *space, rank]` in float32 or wider. Raises unless they are such."""
    vectors = validation.floating(name, vectors)
    rank = (vectors.shape.rank or 0) - 2
    if rank not in (1, 2, 3) or vectors.shape[-1] != rank:
        raise ValueError(
            f"{name} must have shape [batch, *space, rank] with rank 1 to 3 and as many spatial "
            f"axes, received {vectors.shape}"
        )
    return float32_or_wider(vectors)


def warped(inputs, flow, interpolation, padding_mode):
    """Returns `warp`, its tensors unchecked."""
    batch, *space, channels = validation.sizes(inputs)
    flow = float32_or_wider(flow)
    axes = []
    for axis, size in enumerate(space):
        index = tf.reshape(tf.range(size), [-1, *[1] * (len(space) - 1 - axis)])
        position = tf.cast(index, flow.dtype) + flow[..., axis]
        axes.append(tf.reshape(position, [batch, math.prod(space)]))
    out = sample_axes(inputs, axes, interpolation, padding_mode)
    return tf.reshape(out, [batch, *space, channels])


def float32_or_wider(tensor):
    """Returns the tensor in float64 if it is, else in float32."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
