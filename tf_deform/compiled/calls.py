"""The operators of the compiled library as functions of tensors."""

import tensorflow as tf

from tf_deform.compiled.loading import load


def weighted_sample(values, points, weights=None, image_index=None, units="pixels"):
    """Returns the compiled `ops.weighted_sample`; takes its arguments unchecked.

    units: what the points are in: "pixels" in array order, or normalised coordinates (x, y[, z]) of
    which -1 and 1 are the "edges" of the images or the "centers" of their edge pixels.
    """
    library = load().library
    wide = tf.float64 if tf.float64 in (values.dtype, points.dtype) else tf.float32
    out = library.tf_deform_weighted_sample(
        values=tf.cast(values, wide) if wide == tf.float64 else values,
        points=tf.cast(points, wide),
        weights=[] if weights is None else [tf.cast(weights, wide)],
        image_index=[] if image_index is None else [tf.cast(image_index, tf.int64)],
        units=units,
    )
    return tf.cast(out, tf.float64 if values.dtype == tf.float64 else tf.float32)


def deformable_conv(inputs, kernel, offset, mask, *, before, strides, dilations):
    """Returns the compiled `ops.deformable_conv`; takes its arguments unchecked.

    before: the padding before each axis, ints or scalar tensors. strides, dilations: ints an axis.
    """
    library = load().library
    wide = tf.float64 if tf.float64 in (inputs.dtype, offset.dtype) else tf.float32
    stored = inputs.dtype if inputs.dtype == kernel.dtype and wide != tf.float64 else wide
    out = library.tf_deform_deformable_conv(
        inputs=tf.cast(inputs, stored),
        kernel=tf.cast(kernel, stored),
        offset=tf.cast(offset, wide),
        mask=[] if mask is None else [tf.cast(mask, wide)],
        before=tf.convert_to_tensor(before, tf.int32),  # of ints constant, in a loop's gradient too
        strides=strides,
        dilations=dilations,
    )
    return tf.cast(out, inputs.dtype)
