"""Images under projective transforms of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import tensorflow as tf

from tf_deform.addons.arguments import one_or_every, positions, to_rank, to_rank_4, traceable
from tf_deform.addons.matrices import (
    angles_to_projective_transforms,
    translations_to_projective_transforms,
)
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
        images, rank = to_rank_4("images", _numbers("images", images))
        batch, *space, _ = validation.sizes(images)
        transforms = positions("transforms", transforms)
        transforms = transforms[None] if transforms.shape.rank == 1 else transforms
        transforms = validation.shaped(
            "transforms", transforms, [None, 8], "[8] or [batch or 1, 8]"
        )
        transforms = one_or_every("transforms", transforms, batch)
        size = space if output_shape is None else _output_size(output_shape)
        if not (tf.is_tensor(fill_value) or validation.is_real(fill_value)):
            raise ValueError(f"fill_value must be a number, received {fill_value!r}")
        out = project(images, transforms, size, method, outside, fill_value)
        return to_rank(rank, out)


@traceable
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
        images, rank = to_rank_4("images", _numbers("images", images))
        transforms = translations_to_projective_transforms(translations)
        transforms = one_or_every("translations", transforms, validation.sizes(images)[0])
        moved = transform(images, transforms, interpolation, fill_mode, fill_value=fill_value)
        return to_rank(rank, moved)


@operator
def rotate(
    images: Tensor,
    angles: Tensor,
    interpolation: PixelInterpolation = "nearest",
    fill_mode: FillMode = "constant",
    name: str | None = None,
    fill_value: float | Tensor = 0.0,
) -> Tensor:
    """Returns images turned counter-clockwise, as seen, about their middles.

    Args:
        images: `[height, width]`, `[height, width, channels]` or `[batch, height, width,
            channels]`, floating-point or integer.
        angles: `[]` or `[batch or 1]`, in radians. Positions are in float32, or float64 if this is
            a float64 tensor.
        interpolation: "nearest" (halves away from 0; no gradient to the angles) or "bilinear".
        fill_mode: what is outside: "constant", "nearest" (the edge pixel), "reflect" (about the
            outer edges of the edge pixels) or "wrap". See docs/addons.md about "wrap".
        name: of the operations' name scope; None: the function's own.
        fill_value: a number or a scalar tensor, what is outside under "constant".

    Returns:
        Images of the rank and dtype given.

    Raises:
        ValueError, TypeError: a shape, dtype or option that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.rotate`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(9.0), [3, 3])
        >>> rotate(image, np.pi / 2).numpy().tolist()
        [[2.0, 5.0, 8.0], [1.0, 4.0, 7.0], [0.0, 3.0, 6.0]]
    """
    with tf.name_scope(name or "rotate"):
        images, rank = to_rank_4("images", _numbers("images", images))
        batch, height, width, _ = validation.sizes(images)
        transforms = angles_to_projective_transforms(angles, height, width)
        transforms = one_or_every("angles", transforms, batch)
        turned = transform(images, transforms, interpolation, fill_mode, fill_value=fill_value)
        return to_rank(rank, turned)


@operator
def shear_x(image: Tensor, level: float | Tensor, replace: Tensor) -> Tensor:
    """Returns the image sheared along x: the output pixel (x, y) takes the one at (x + level y, y).

    Args:
        image: `[height, width, channels]`, floating-point or integer.
        level: a number or a scalar tensor, pixels along x a pixel along y.
        replace: a number, or `[1 or channels]`: the values of pixels from outside the image.

    Returns:
        The sheared image in its own shape and dtype. Positions are rounded to the nearest pixel.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.shear_x`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(6), [2, 3, 1])
        >>> shear_x(image, 1.0, 9)[:, :, 0].numpy().tolist()
        [[0, 1, 2], [4, 5, 9]]
    """
    with tf.name_scope("shear_x"):
        level = validation.shaped("level", positions("level", level), [], "[]")
        return _moved(image, tf.stack([1.0, level, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), replace)


@operator
def shear_y(image: Tensor, level: float | Tensor, replace: Tensor) -> Tensor:
    """Returns the image sheared along y: the output pixel (x, y) takes the one at (x, y + level x).

    Args:
        image: `[height, width, channels]`, floating-point or integer.
        level: a number or a scalar tensor, pixels along y a pixel along x.
        replace: a number, or `[1 or channels]`: the values of pixels from outside the image.

    Returns:
        The sheared image in its own shape and dtype. Positions are rounded to the nearest pixel.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.shear_y`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(6), [2, 3, 1])
        >>> shear_y(image, 1.0, 9)[:, :, 0].numpy().tolist()
        [[0, 4, 9], [3, 9, 9]]
    """
    with tf.name_scope("shear_y"):
        level = validation.shaped("level", positions("level", level), [], "[]")
        return _moved(image, tf.stack([1.0, 0.0, 0.0, level, 1.0, 0.0, 0.0, 0.0]), replace)


@operator
def translate_xy(image: Tensor, translate_to: Tensor, replace: Tensor) -> Tensor:
    """Returns the image moved by (dx, dy): the output pixel (x, y) takes the one at (x-dx, y-dy).

    Args:
        image: `[height, width, channels]`, floating-point or integer.
        translate_to: `[2]`, (dx, dy) in pixels, to the right and down; any dtype of numbers.
        replace: a number, or `[1 or channels]`: the values of pixels from outside the image.

    Returns:
        The moved image in its own shape and dtype. Positions are rounded to the nearest pixel.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: the same where shapes are known only at run time.

    Source: `tfa.image.translate_xy`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> image = tf.reshape(tf.range(6), [2, 3, 1])
        >>> translate_xy(image, [1, 0], 9)[:, :, 0].numpy().tolist()
        [[9, 0, 1], [9, 3, 4]]
    """
    with tf.name_scope("translate_xy"):
        shift = tf.cast(tf.convert_to_tensor(translate_to), tf.float32)
        shift = validation.shaped("translate_to", shift, [2], "[2]")
        return _moved(image, translations_to_projective_transforms(shift)[0], replace)


# Arguments


def _numbers(name, images):
    """Returns images as a tensor. Raises TypeError unless they are of numbers."""
    images = tf.convert_to_tensor(images)
    if not (images.dtype.is_floating or images.dtype.is_integer):
        raise TypeError(f"{name} must be floating-point or integer, received {images.dtype.name}")
    return images


def _moved(image, theta, replace):
    """Returns an image `[height, width, channels]` under a transform, `replace` from outside."""
    image = _numbers("image", image)
    if image.shape.rank is None:
        image = tf.ensure_shape(image, [None] * 3)
    image = validation.shaped("image", image, [None] * 3, "[height, width, channels]")
    replace = _replacement(replace, image)
    # A channel more, which is 1 where the position is inside.
    marked = tf.concat([image, tf.ones_like(image[..., :1])], axis=-1)
    moved = transform(marked, theta)
    return tf.where(moved[..., -1:] == 1, moved[..., :-1], replace)


def _replacement(replace, image):
    """Returns `[]`, `[1]` or `[channels]` in the image's dtype, checked."""
    replace = tf.cast(tf.convert_to_tensor(replace), image.dtype)
    channels = validation.sizes(image)[-1]
    text = "replace must be a number, or have shape [1] or [channels]"
    if replace.shape.rank not in (0, 1):
        raise ValueError(f"{text}, received {validation.shown(replace.shape)}")
    if replace.shape.rank == 0:
        return replace
    received = validation.sizes(replace)[0]
    if not validation.is_static(received, channels):
        fits = (received == 1) | (received == channels)
        return validation.satisfying(replace, fits, f"{text}, channels being", channels, "received")
    if received not in (1, channels):
        raise ValueError(f"{text} = [{channels}], received [{received}]")
    return replace


def _output_size(output_shape):
    """Returns (height, width): ints where known, scalar tensors where not."""
    size = tf.convert_to_tensor(output_shape, tf.int32)
    known = tf.get_static_value(size)
    if not size.shape.is_compatible_with([2]) or (known is not None and min(known) < 0):
        raise ValueError(
            f"output_shape must be (height, width), each at least 0, received {output_shape}"
        )
    return [size[0], size[1]] if known is None else known.tolist()
