"""Polyharmonic splines through scattered points."""

import math

import tensorflow as tf

from tf_deform.ops import validation

EPSILON = 1e-10  # the least squared distance in a logarithm or root


def polyharmonic_spline(points, values, queries, order, weight):
    """Returns `[batch, m, k]`: at the queries the spline through the values at the points.

    Takes tensors of one dtype, float32 or float64, unchecked: points `[batch, n, d]`, values
    `[batch, n, k]`, queries `[batch, m, d]`; d and k known while tracing. The spline is the sum
    over the points of a coefficient times r^order (odd orders) or r^order log r (even ones), plus
    an affine map; the weight, at least 0, is added to the system's diagonal.
    """
    coefficients = tf.expand_dims(_coefficients(points, values, order, weight), 1)
    basis = tf.concat([_kernel(queries, points, order), _with_ones(queries)], axis=2)
    columns = [
        tf.reduce_sum(basis * coefficients[..., column], axis=-1)
        for column in range(values.shape[-1])
    ]  # not tf.matmul, which on a GPU rounds to TF32
    return tf.stack(columns, axis=-1)


def _coefficients(points, values, order, weight):
    """Returns `[batch, n + d + 1, k]`: of the points' kernels, of the coordinates and of 1."""
    _, count, dimensions = validation.sizes(points)
    kernel = _kernel(points, points, order) + weight * tf.eye(count, dtype=points.dtype)
    affine = _with_ones(points)
    transposed = tf.pad(tf.transpose(affine, [0, 2, 1]), [[0, 0], [0, 0], [0, dimensions + 1]])
    system = tf.concat([tf.concat([kernel, affine], axis=2), transposed], axis=1)
    return tf.linalg.solve(system, tf.pad(values, [[0, 0], [0, dimensions + 1], [0, 0]]))


def _kernel(points, others, order):
    """Returns `[batch, n, m]`: r^order or r^order log r of the distances r between points."""
    # Sums of squares: |x|^2 - 2 xy + |y|^2 would leave rounding errors where points coincide.
    squared = tf.add_n(
        [
            tf.math.squared_difference(
                tf.expand_dims(points[..., axis], 2), tf.expand_dims(others[..., axis], 1)
            )
            for axis in range(points.shape[-1])
        ]
    )
    positive = tf.maximum(squared, EPSILON)
    radial = tf.sqrt(positive) if order % 2 else 0.5 * tf.math.log(positive)
    return radial * math.prod([squared] * (order // 2))


def _with_ones(points):
    return tf.concat([points, tf.ones_like(points[..., :1])], axis=2)
