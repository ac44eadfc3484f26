"""
Register images with a network
==============================

A network predicts the smooth flow that turns one image of a brain into another. It learns without
labels, with `tfd.layers.VelocityIntegration` and `tfd.layers.DenseImageWarp`.
"""

# %%
# Two brains never have exactly the same shape. To *register* two images means to find a flow. For
# each pixel of the *fixed* image it says where to look in the *moving* image.
#
# A classic program optimises a new flow for each pair. A network learns once how to predict the
# flow, and then needs a fraction of a second per pair. This is the idea of VoxelMorph. The guide is
# in 2-D, so that it takes only some minutes. The same code works in 3-D, see :doc:`/registration`.

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from nilearn import datasets

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# Pairs of images
# ---------------
#
# nilearn contains the MNI152 template, an average brain. We take slices of it. We bend each slice
# twice, at random, and the two results are a pair.
#
# The random flow must not fold. So we take a few random vectors, enlarge them to a smooth velocity
# field, and integrate it with ``tfd.ops.integrate_velocity``. The layer
# `tfd.layers.VelocityIntegration` does the same.

brain = datasets.load_mni152_template(resolution=2).get_fdata(dtype="float32")
slices = np.stack([brain[:, :, index] for index in range(24, 60)])[..., None]
slices = tf.image.resize_with_crop_or_pad(slices / slices.max(), 112, 96)
slices = tf.image.resize(slices, (56, 48), "area")
random = np.random.default_rng(0)


def bend(images):
    """Returns the images, each warped by a random smooth flow."""
    coarse = tf.random.normal([len(images), 5, 4, 2], stddev=2.2)
    velocity = tf.image.resize(coarse, images.shape[1:3], "bicubic")
    return tfd.ops.warp(images, tfd.ops.integrate_velocity(velocity))


def make_pairs(count):
    """Returns `[count, 56, 48, 2]`: moving images and fixed ones."""
    chosen = tf.gather(slices, random.integers(len(slices), size=count))
    return tf.concat([bend(chosen), bend(chosen)], axis=-1).numpy()


train, test = make_pairs(64 if QUICK else 1000), make_pairs(64)
print("Pairs to train on:", train.shape, "to test on:", test.shape)

# %%
# The network
# -----------
#
# A small U-Net takes both images and predicts a velocity. The velocity has half the size of the
# images: it is smooth, and this costs less. The kernel of the last layer starts at zero, so the
# first flow is zero.

pair = keras.Input((56, 48, 2), name="pair")


def convolution(features, filters, strides=1):
    return keras.layers.Conv2D(
        filters, 3, strides, padding="same", activation="leaky_relu", kernel_initializer="he_normal"
    )(features)


half = convolution(convolution(pair, 16, strides=2), 32)
quarter = convolution(convolution(half, 32, strides=2), 32)
eighth = convolution(convolution(quarter, 48, strides=2), 48)
up = keras.layers.UpSampling2D()(eighth)
up = convolution(keras.layers.Concatenate()([up, quarter]), 48)
up = keras.layers.UpSampling2D()(up)
up = convolution(keras.layers.Concatenate()([up, half]), 32)
velocity = keras.layers.Conv2D(
    2, 3, padding="same", kernel_initializer="zeros", dtype="float32", name="velocity"
)(up)

# %%
# Two layers do the rest. `tfd.layers.VelocityIntegration` turns the velocity into a smooth flow,
# which can be inverted. `tfd.layers.DenseImageWarp` warps the moving image by this flow.

flow = tfd.layers.VelocityIntegration(steps=5)(velocity)
flow = tfd.ops.resize_flow(flow, (56, 48))
moved = tfd.layers.DenseImageWarp(name="moved")(pair[..., :1], flow)

model = keras.Model(pair, {"moved": moved, "velocity": velocity})
find_flow = keras.Model(pair, flow)
print(f"{model.count_params():,} weights")

# %%
# Two losses, no labels
# ---------------------
#
# - `tfd.losses.NormalizedCrossCorrelation` makes the moved image look like the fixed image. It
#   compares small windows, and ignores their brightness and contrast.
# - `tfd.losses.FlowSmoothness` makes the velocity smooth. It uses the prediction only, but Keras
#   requires a target, so we pass zeros.

model.compile(
    keras.optimizers.Adam(2e-3),
    loss={
        "moved": tfd.losses.NormalizedCrossCorrelation(window=9),
        "velocity": tfd.losses.FlowSmoothness("l2"),
    },
    loss_weights={"moved": 1.0, "velocity": 0.05},
)
targets = {"moved": train[..., 1:], "velocity": np.zeros([len(train), 1])}
model.fit(train, targets, batch_size=32, epochs=1 if QUICK else 40, verbose=0)

# %%
# What has it learned?
# --------------------
#
# We look at pairs that the network has not seen. The flow must make the images similar, and it must
# not fold. ``tfd.ops.jacobian_determinant`` says how much the flow enlarges each place. It is 0 or
# less where the flow folds.

found = find_flow.predict(test, verbose=0)
warped = tfd.ops.warp(test[..., :1], found).numpy()
folded = np.mean(tfd.ops.jacobian_determinant(found) <= 0)
similarity = tfd.losses.NormalizedCrossCorrelation(window=9)
for name, images in {"before": test[..., :1], "after": warped}.items():
    difference = np.abs(images - test[..., 1:]).mean()
    unlike = float(similarity(test[..., 1:], images))
    print(f"{name:7} mean difference {difference:.4f}, loss of similarity {unlike:.3f}")
print(f"Folded: {folded:.3%} of the pixels. The longest displacement: {np.abs(found).max():.1f}")

# %%
# The flow can be inverted. ``tfd.ops.invert_flow`` returns the flow from the moving image to the
# fixed image, and the error that remains.

inverse, residual = tfd.ops.invert_flow(found)
print(f"Going there and back misses by {np.mean(residual):.4f} pixels on average")

# %%
# A grid shows the flow best. It is warped like the image. Where its lines are close together, the
# image was compressed.
#
# From left to right: the moving image, the fixed image, the warped moving image, its difference
# from the fixed image, and the grid.

grid = np.ones([1, 448, 384, 1], "float32")
grid[:, 16::32] = grid[:, 17::32] = grid[:, :, 16::32] = grid[:, :, 17::32] = 0
fine = tfd.ops.resize_flow(found, (448, 384))
fig, axes = plt.subplots(3, 5, figsize=(8, 4.6), layout="constrained")
titles = ("moving", "fixed", "moved", "difference", "grid")
for row, number in zip(axes, (0, 5, 11), strict=True):
    moving, fixed = test[number, ..., 0], test[number, ..., 1]
    pictures = [moving, fixed, warped[number, ..., 0], warped[number, ..., 0] - fixed]
    pictures.append(tfd.ops.warp(grid, fine[number : number + 1]).numpy()[0, ..., 0])
    for ax, picture, title in zip(row, pictures, titles, strict=True):
        signed = title == "difference"
        colours = {"cmap": "RdBu", "vmin": -0.5} if signed else {"cmap": "gray", "vmin": 0}
        ax.imshow(np.rot90(picture), vmax=0.5 if signed else 1, **colours)
        ax.set(xticks=[], yticks=[])
for ax, title in zip(axes[0], titles, strict=True):
    ax.set_title(title)
plt.show()

# %%
# From here to volumes
# --------------------
#
# For 3-D replace ``Conv2D`` by ``Conv3D`` and give the shapes one more axis. The layers of
# tf_deform and the losses stay the same. ``make register`` trains such a network on whole brains
# and compares it with a classic program; :doc:`/registration` shows the result. The guide
# :doc:`stereo` uses the same warp to find depth from two photographs.
#
# The template is Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
# Neurological Institute, McGill University.
