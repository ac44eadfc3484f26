"""Projective transforms as vectors of 8, made of translations and angles, and composed."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_deform.addons.arguments import positions, same_dtype
from tf_deform.annotations import Tensor
from tf_deform.ops import validation
from tf_deform.ops.symbolic import operator


@operator
def translations_to_projective_transforms(translations: Tensor, name: str | None = None) -> Tensor:
    """Returns `[n, 8]`: the transforms that move images by (dx, dy), for `transform`.

    Args:
        translations: `[2]` or `[n, 2]`, (dx, dy) in pixels, to the right and down.
        name: of the operations' name scope; None: the function's own.

    Returns:
        Transforms in float32, or float64 if `translations` is a float64 tensor.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Source: `tfa.image.translations_to_projective_transforms`, after Jaderberg et al.
    (arXiv:1506.02025, section 3.2).

    Example:
        >>> translations_to_projective_transforms([3.0, -1.0]).numpy().tolist()
        [[1.0, 0.0, -3.0, 0.0, 1.0, 1.0, 0.0, 0.0]]
    """
    with tf.name_scope(name or "translations_to_projective_transforms"):
        shifts = positions("translations", translations)
        shifts = shifts[None] if shifts.shape.rank == 1 else shifts
        shifts = validation.shaped("translations", shifts, [None, 2], "[2] or [n, 2]")
        dx, dy = shifts[:, 0], shifts[:, 1]
        zero, one = tf.zeros_like(dx), tf.ones_like(dx)
        return tf.stack([one, zero, -dx, zero, one, -dy, zero, zero], axis=1)


@operator
def angles_to_projective_transforms(
    angles: Tensor,
    image_height: int | Tensor,
    image_width: int | Tensor,
    name: str | None = None,
) -> Tensor:
    """Returns `[n, 8]`: the transforms that turn images about their middles, for `transform`.

    Args:
        angles: `[]` or `[n]`, in radians, counter-clockwise as seen.
        image_height: of the images in pixels: a number, or a tensor `[]` or `[1 or n]`.
        image_width: of the images in pixels: a number, or a tensor `[]` or `[1 or n]`.
        name: of the operations' name scope; None: the function's own.

    Returns:
        Transforms in float32, or float64 if `angles` is a float64 tensor.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Source: `tfa.image.angles_to_projective_transforms`, after Jaderberg et al. (arXiv:1506.02025,
    section 3.2).

    Example:
        >>> turn = angles_to_projective_transforms(tf.constant(0.5, tf.float64), 3, 3)
        >>> turn.numpy().round(2).tolist()
        [[0.88, -0.48, 0.6, 0.48, 0.88, -0.36, 0.0, 0.0]]
    """
    with tf.name_scope(name or "angles_to_projective_transforms"):
        angles = positions("angles", angles)
        if angles.shape.rank not in (0, 1):
            shown = validation.shown(angles.shape)
            raise ValueError(f"angles must have shape [] or [n], received {shown}")
        angles = tf.reshape(angles, [-1])
        cos, sin = tf.cos(angles), tf.sin(angles)
        bottom = _size("image_height", image_height, angles.dtype) - 1
        right = _size("image_width", image_width, angles.dtype) - 1
        # The middle stays: what the turn would move it by is half of what it moves the corner.
        x = (right - (cos * right - sin * bottom)) / 2
        y = (bottom - (sin * right + cos * bottom)) / 2
        zero = tf.zeros_like(angles)
        return tf.stack([cos, -sin, x, sin, cos, y, zero, zero], axis=1)


@operator
def compose_transforms(transforms: Sequence[Tensor], name: str | None = None) -> Tensor:
    """Returns `[n, 8]`: one transform that does what several do one after another.

    `transform(images, compose_transforms([first, second]))` is, up to interpolation and borders,
    `transform(transform(images, first), second)`.

    Args:
        transforms: a list of `[8]` or `[n or 1, 8]`, the first to be applied first.
        name: of the operations' name scope; None: the function's own.

    Returns:
        Transforms in float32, or float64 if any of `transforms` is a float64 tensor.

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.
        InvalidArgumentError: numbers of transforms that do not fit, where n is known only at run
            time.

    Source: `tfa.image.compose_transforms`, after Jaderberg et al. (arXiv:1506.02025, section 3.2).

    Example:
        >>> left, down = translations_to_projective_transforms([[-2.0, 0.0], [0.0, 3.0]])
        >>> compose_transforms([left, down]).numpy().tolist()
        [[1.0, 0.0, 2.0, 0.0, 1.0, -3.0, 0.0, 0.0]]
    """
    if not isinstance(transforms, list | tuple) or not transforms:
        raise ValueError(
            f"transforms must be a list of at least one transform, received {transforms!r}"
        )
    with tf.name_scope(name or "compose_transforms"):
        each_of = [positions(f"transforms[{i}]", each) for i, each in enumerate(transforms)]
        composed, *others = map(_matrices, range(len(each_of)), same_dtype(*each_of)[0])
        for other in others:
            composed = tf.matmul(composed, other)
        flat = tf.reshape(composed, [-1, 9])  # [n, 3, 3] -> [n, 9]
        return flat[:, :8] / flat[:, 8:]


def _matrices(index, transforms):
    """Returns `[n, 3, 3]` of `[8]` or `[n, 8]`, the last entry of each 1."""
    name = f"transforms[{index}]"
    transforms = transforms[None] if transforms.shape.rank == 1 else transforms
    transforms = validation.shaped(name, transforms, [None, 8], "[8] or [n, 8]")
    whole = tf.concat([transforms, tf.ones_like(transforms[:, :1])], axis=1)
    return tf.reshape(whole, [-1, 3, 3])


def _size(name, size, dtype):
    """Returns a number of pixels `[]` or `[1 or n]`."""
    size = tf.cast(tf.convert_to_tensor(size), dtype)
    if size.shape.rank not in (0, 1):
        shown = validation.shown(size.shape)
        raise ValueError(f"{name} must have shape [] or [1 or n], received {shown}")
    return size
