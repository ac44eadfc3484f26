"""Images under projective transforms of pixels, with the fill modes of TensorFlow Addons."""

import math

import tensorflow as tf

from tf_deform.ops import validation
from tf_deform.ops.sampling import sample_axes


def project(images, transforms, size, interpolation, fill_mode, fill_value):
    """Returns `[batch, *size, channels]`: the images at the positions of the output's pixels.

    Takes its tensors unchecked: images `[batch, height, width, channels]` of any dtype of numbers,
    transforms `[1 or batch, 8]` in float32 or float64, which is the dtype of the positions. Integer
    images are computed in float64, and their fractions dropped.
    """
    batch, *space, channels = validation.sizes(images)
    dtype = images.dtype
    working = dtype if dtype.is_floating else tf.float64
    images = tf.cast(images, working)
    fill = tf.cast(tf.cast(tf.cast(fill_value, tf.float32), dtype), working)
    axes = _positions(transforms, size)
    finite = tf.expand_dims(tf.reduce_all(tf.math.is_finite(axes), axis=0), -1)
    if fill_mode in _FOLDS:
        fold = _FOLDS[fill_mode]
        axes = [fold(p, tf.cast(n, p.dtype)) for p, n in zip(axes, space, strict=True)]
    if interpolation == "nearest":
        axes = [_round(p) for p in axes]
    if fill_mode == "constant":  # a frame of it, which every position outside ends in
        images = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=fill)
        axes = [p + 1 for p in axes]
    axes = [tf.broadcast_to(p, [batch, math.prod(size)]) for p in axes]
    out = tf.where(finite, sample_axes(images, axes, interpolation, "border"), fill)
    out = out if dtype.is_floating else _truncated(out, dtype)
    return tf.reshape(out, [batch, *size, channels])


def _positions(transforms, size):
    """Returns the positions y and x, each `[transforms, pixels]`, NaN where there are none."""
    height, width = size
    x = tf.cast(tf.range(width), transforms.dtype)
    y = tf.expand_dims(tf.cast(tf.range(height), transforms.dtype), 1)
    # Axes first: TensorFlow's optimizer drops them from stacked[:, entry, None, None].
    entries = tf.expand_dims(tf.expand_dims(transforms, -1), -1)
    a0, a1, a2, b0, b1, b2, c0, c1 = (entries[:, entry] for entry in range(8))
    scale = c0 * x + c1 * y + 1
    shape = [validation.sizes(transforms)[0], height * width]
    axes = (b0 * x + b1 * y + b2, a0 * x + a1 * y + a2)
    return [tf.reshape(_finite_quotient(axis, scale), shape) for axis in axes]


def _finite_quotient(a, b):
    """Returns a / b, and NaN without a gradient where that is not finite."""
    finite = tf.math.is_finite(a / b)
    quotient = tf.where(finite, a, 0) / tf.where(finite, b, 1)
    return tf.where(finite, quotient, float("nan"))


def _reflect(p, size):
    """Returns positions reflected about -0.5 and size - 0.5, to be clamped."""
    p = tf.math.floormod(p, 2 * size)
    return tf.minimum(p, 2 * size - 1 - p)


def _wrap(p, size):
    """Returns positions in the period of `size`, to be clamped; as Addons, see docs/addons.md."""
    last = size - 1
    span = tf.maximum(last, 1)
    before = p + size * (tf.floor(-p / span) + 1)
    after = p - size * tf.floor(p / span)
    return tf.where(p < 0, before, tf.where(p > last, after, p))


_FOLDS = {"reflect": _reflect, "wrap": _wrap}


def _round(p):
    """Returns whole numbers, halves rounded away from 0."""
    nearest = tf.round(p)  # halves to even
    return tf.where(tf.abs(p - nearest) == 0.5, p + 0.5 * tf.sign(p), nearest)


def _truncated(values, dtype):
    """Returns integers, fractions dropped; what is whole but for rounding errors stays so."""
    nearest = tf.round(values)
    return tf.cast(tf.where(tf.abs(values - nearest) < 1e-6, nearest, values), dtype)
