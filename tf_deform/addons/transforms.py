"""Images under projective transforms of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import tensorflow as tf

from tf_deform.addons.arguments import same_dtype, to_rank, to_rank_4
from tf_deform.annotations import FillMode, PixelInterpolation, Tensor
from tf_deform.ops import validation
from tf_deform.ops.projection import project
from tf_deform.ops.symbolic import operator


@operator
def transform(
    images: Tensor,
    transforms: Tensor,
    interpolation: PixelInterpolation = "nearest",
    fill_mode: FillMode = "constant",
    output_shape: Sequence[int] | Tensor | None = None,
    name: str | None = None,
    fill_value: float | Tensor = 0.0,
) -> Tensor:
    """Returns images resampled under projective transforms from output to input pixels.

    The output pixel (x, y) takes the image at `((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k)`
    with `k = c0 x + c1 y + 1`.

    Args:
        images: `[height, width]`, `[height, width, channels]` or `[batch, height, width,
            channels]`, floating-point or integer.
        transforms: `[8]` or `[batch or 1, 8]`, each (a0, a1, a2, b0, b1, b2, c0, c1). Positions are
            in float32, or float64 if this is a float64 tensor.
        interpolation: "nearest" (halves away from 0; no gradient to the transforms) or "bilinear".
        fill_mode: what is outside: "constant", "nearest" (the edge pixel), "reflect" (about the
            outer edges of the edge pixels) or "wrap". See docs/addons.md about "wrap".
        output_shape: (height, width) of the result, ints or an int32 tensor; None: the images'.
        name: of the operations' name scope; None: the function's own.
        fill_value: a number or a scalar tensor, what is outside under "constant", and where k is 0
            under all modes.

    Returns:
        Images of the rank and dtype given. Integer images are computed in float64, and fractions
        dropped.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.transform`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(6.0), [2, 3])
        >>> transform(image, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]).numpy().tolist()
        [[1.0, 2.0, 0.0], [4.0, 5.0, 0.0]]
    """
    method, outside = str(interpolation).lower(), str(fill_mode).lower()
    validation.choice("interpolation", method, get_args(PixelInterpolation))
    validation.choice("fill_mode", outside, get_args(FillMode))
    with tf.name_scope(name or "transform"):
        images = tf.convert_to_tensor(images)
        if not (images.dtype.is_floating or images.dtype.is_integer):
            received = images.dtype.name
            raise TypeError(f"images must be floating-point or integer, received {received}")
        images, rank = to_rank_4("images", images)
        batch, *space, _ = validation.sizes(images)
        transforms = _per_image("transforms", transforms, 8, batch)
        size = space if output_shape is None else _output_size(output_shape)
        if not (tf.is_tensor(fill_value) or validation.is_real(fill_value)):
            raise ValueError(f"fill_value must be a number, received {fill_value!r}")
        out = project(images, transforms, size, method, outside, fill_value)
        return to_rank(rank, out)


@operator
def translate(
    images: Tensor,
    translations: Tensor,
    interpolation: PixelInterpolation = "nearest",
    fill_mode: FillMode = "constant",
    name: str | None = None,
    fill_value: float | Tensor = 0.0,
) -> Tensor:
    """Returns images moved by (dx, dy): the output pixel (x, y) takes the image at (x-dx, y-dy).

    Args:
        images: `[height, width]`, `[height, width, channels]` or `[batch, height, width,
            channels]`, floating-point or integer.
        translations: `[2]` or `[batch or 1, 2]`, (dx, dy) in pixels, to the right and down.
            Positions are in float32, or float64 if this is a float64 tensor.
        interpolation: "nearest" (halves away from 0; no gradient to the translations) or
            "bilinear".
        fill_mode: what is outside: "constant", "nearest" (the edge pixel), "reflect" (about the
            outer edges of the edge pixels) or "wrap". See docs/addons.md about "wrap".
        name: of the operations' name scope; None: the function's own.
        fill_value: a number or a scalar tensor, what is outside under "constant".

    Returns:
        Images of the rank and dtype given.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.translate`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(6.0), [2, 3])
        >>> translate(image, [1.0, 0.0]).numpy().tolist()
        [[0.0, 0.0, 1.0], [0.0, 3.0, 4.0]]
    """
    with tf.name_scope(name or "translate"):
        images = tf.convert_to_tensor(images)
        batch = validation.sizes(images)[0] if images.shape.rank == 4 else 1
        shifts = _per_image("translations", translations, 2, batch)
        dx, dy = shifts[:, 0], shifts[:, 1]
        zero, one = tf.zeros_like(dx), tf.ones_like(dx)
        transforms = tf.stack([one, zero, -dx, zero, one, -dy, zero, zero], axis=1)
        return transform(images, transforms, interpolation, fill_mode, fill_value=fill_value)


# Arguments


def _per_image(name, values, count, batch):
    """Returns `[1 or batch, count]` in float32, or float64 if it is a float64 tensor."""
    if not tf.is_tensor(values):
        values = tf.convert_to_tensor(values, tf.float32)
    values = validation.floating(name, values)
    values = values[None] if values.shape.rank == 1 else values
    values = validation.shaped(name, values, [None, count], f"[{count}] or [batch or 1, {count}]")
    (values,), _ = same_dtype(values)
    received, text = validation.sizes(values)[0], f"{name} must be one, or one for every image"
    if not validation.is_static(received, batch):
        fits = (received == 1) | (received == batch)
        text += ", that is"
        return validation.satisfying(values, fits, text, batch, ", received", received)
    if received not in (1, batch):
        raise ValueError(f"{text}, that is {batch}, received {received}")
    return values


def _output_size(output_shape):
    """Returns (height, width): ints where known, scalar tensors where not."""
    size = tf.convert_to_tensor(output_shape, tf.int32)
    known = tf.get_static_value(size)
    if not size.shape.is_compatible_with([2]) or (known is not None and min(known) < 0):
        raise ValueError(
            f"output_shape must be (height, width), each at least 0, received {output_shape}"
        )
    return [size[0], size[1]] if known is None else known.tolist()
