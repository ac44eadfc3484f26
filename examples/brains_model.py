"""A small U-Net that predicts the velocity by which one volume becomes another."""

import itertools

import keras
import tensorflow as tf

import tf_deform as tfd

FILTERS = 16
STEPS = 5
"""Of integration: a velocity is followed in 32 parts."""


def build_model(size):
    """Returns the untrained model from "moving" and "fixed", `[batch, *size, 1]` from 0 to 1.

    It predicts "velocity" `[batch, *size / 2, 3]`, makes of it the "flow" `[batch, *size, 3]`, and
    warps the moving volume by that to "moved" `[batch, *size, 1]`. The velocity starts at 0.

    Args:
        size: of the volumes, each side a multiple of 8.
    """
    moving, fixed = (keras.Input((*size, 1), name=name) for name in ("moving", "fixed"))
    velocity = _velocity(moving, fixed)
    flow = tfd.layers.VelocityIntegration(steps=STEPS)(velocity)
    flow = tfd.ops.resize_flow(flow, size)
    outputs = {
        "moved": tfd.layers.DenseImageWarp(name="moved")(moving, flow),
        "velocity": velocity,
        "flow": flow,
    }
    return keras.Model({"moving": moving, "fixed": fixed}, outputs, name="registration")


def _velocity(moving, fixed):
    """Returns `[batch, *size / 2, 3]`: down to an eighth of the size, and up again."""
    features = _features(fixed.shape[1:])
    (moving_half, moving_quarter), (fixed_half, fixed_quarter) = features(moving), features(fixed)
    half = keras.layers.Concatenate()([_matches(fixed_half, moving_half), fixed_half])
    quarter = keras.layers.Concatenate()(
        [_matches(fixed_quarter, moving_quarter), fixed_quarter, moving_quarter]
    )
    quarter = _convolution(2 * FILTERS)(quarter)
    eighth = _convolution(2 * FILTERS, strides=2)(quarter)
    eighth = _convolution(2 * FILTERS)(eighth)
    quarter = _convolution(2 * FILTERS)(_up(eighth, quarter))
    half = _convolution(2 * FILTERS)(_up(quarter, half))
    half = _convolution(FILTERS)(half)
    return keras.layers.Conv3D(
        3, 3, padding="same", kernel_initializer="zeros", name="velocity", dtype="float32"
    )(half)


def _features(shape):
    """Returns the network that looks at either volume, to features at half and quarter size."""
    volume = keras.Input(shape)
    half = _convolution(FILTERS, strides=2)(volume)
    half = _convolution(FILTERS)(half)
    quarter = _convolution(2 * FILTERS, strides=2)(half)
    quarter = _convolution(2 * FILTERS)(quarter)
    return keras.Model(volume, [half, quarter], name="features")


def _matches(fixed, moving):
    """Returns how alike each voxel's features are to those of the 27 voxels about it, `[..., 27]`.

    To a network that says more about where to go than both maps side by side.
    """
    normalize = keras.layers.LayerNormalization(center=False, scale=False)
    return Matches()(normalize(fixed), normalize(moving))


class Matches(keras.layers.Layer):
    """Returns `[batch, *size, 27]`: products of features `[batch, *size, channels]`, their mean.

    Each voxel of the first is multiplied with the voxel there of the second, and its neighbours.
    """

    def call(self, first, second):
        padded = tf.pad(second, [[0, 0], [1, 1], [1, 1], [1, 1], [0, 0]])
        products = []
        for start in itertools.product(range(3), repeat=3):
            ends = zip(start, first.shape[1:4], strict=True)
            cut = [slice(low, low + side) for low, side in ends]
            products.append(tf.reduce_mean(first * padded[(slice(None), *cut)], axis=-1))
        return tf.stack(products, axis=-1)

    def compute_output_shape(self, first_shape, second_shape):
        return (*first_shape[:-1], 27)


def _up(features, beside):
    return keras.layers.Concatenate()([keras.layers.UpSampling3D()(features), beside])


def _convolution(filters, strides=1):
    return keras.layers.Conv3D(
        filters,
        3,
        strides,
        padding="same",
        activation="leaky_relu",
        kernel_initializer="he_normal",
    )
