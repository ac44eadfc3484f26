"""
Depth from two photographs, without labels
==========================================

Two cameras side by side see near objects at different places. A disparity map says how far apart
these places are. This guide learns it from the two photographs, with `tfd.layers.DenseImageWarp`.
"""

# %%
# Unsupervised stereo has one idea. If we know the disparity, we can rebuild the left photograph
# from the right one. So we look for the disparity that rebuilds it best. We need no measured depth.
#
# This guide
#
# 1. loads a pair of photographs,
# 2. rebuilds the left one by a warp,
# 3. tries many disparities for every pixel, and learns which one is right,
# 4. refines the result from coarse to fine,
# 5. compares it with the true disparity and with OpenCV's stereo matcher.

import sys

import cv2
import keras
import matplotlib.pyplot as plt
import numpy as np
import skimage
import tensorflow as tf

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# The photographs
# ---------------
#
# scikit-image contains the Motorcycle pair of the Middlebury benchmark, with the true disparity. We
# use the true disparity only to measure errors. Where it is not finite it is unknown, and we leave
# these pixels out.

left_image, right_image, truth = skimage.data.stereo_motorcycle()
known = np.isfinite(truth)
left, right = (tf.constant(each[None] / 255, tf.float32) for each in (left_image, right_image))
height, width = truth.shape

print(f"{height} x {width} pixels, the truth is known for {known.mean():.1%} of them")
print(f"Disparities from {truth[known].min():.1f} to {truth[known].max():.1f} pixels")

# %%
# Rebuild the left photograph
# ---------------------------
#
# The cameras stand side by side, so objects move along rows only. What is at column ``x`` in the
# left photograph is at ``x - d`` in the right one. The disparity of the pixel is ``d``.
#
# `tfd.layers.DenseImageWarp` takes, for each pixel, the image's value at ``pixel + flow``. The flow
# is in pixels, as (y, x). So our flow is ``(0, -d)``.

warp = tfd.layers.DenseImageWarp()


def rebuild(image, disparity):
    """Returns the left image, built out of the right one: `[batch, height, width, 3]`."""
    return warp(image, tf.concat([tf.zeros_like(disparity), -disparity], axis=-1))


# %%
# With the true disparity this works, except for places that only one camera sees.

true_disparity = tf.constant(np.where(known, truth, 0)[None, :, :, None])
error = np.abs(rebuild(right, true_disparity)[0] - left[0]).mean(axis=-1)[known].mean()
print(f"Mean difference of the photographs: {np.abs(right - left).mean():.3f}")
print(f"Rebuilt by the true disparity:      {error:.3f}")

# %%
# Two losses
# ----------
#
# **The photometric loss** says how different two images are. Plain differences of colours depend
# on the exposure of the cameras. So we compare each pixel with its neighbours, and use a smooth
# version of the sign of each difference. This is the *census transform*.


def census(image, reach):
    """Returns `[batch, height, width, neighbours]`, from -1 to 1: how neighbours compare."""
    grey = tf.reduce_mean(image, axis=-1, keepdims=True)
    edge = [[0, 0], [reach, reach], [reach, reach], [0, 0]]
    padded = tf.pad(grey, edge, "SYMMETRIC")
    rows, columns = grey.shape[1:3]
    side = range(2 * reach + 1)
    shifted = [padded[:, y : y + rows, x : x + columns] for y in side for x in side]
    difference = 255 * (tf.concat(shifted, axis=-1) - grey)
    return difference / tf.sqrt(difference**2 + 0.8)


def photometric(first, second, reach):
    """Returns `[batch, height, width, 1]`, from 0 to 1: how unlike two images are."""
    squares = (census(first, reach) - census(second, reach)) ** 2
    return tf.reduce_mean(squares / (squares + 0.1), axis=-1, keepdims=True)


# %%
# **The smoothness loss** says how much neighbouring pixels differ. Objects have smooth surfaces,
# and depth jumps where an object ends. There the colour mostly changes too. So a jump costs less
# where the image has an edge.


def steps(maps):
    """Returns the differences between neighbours, along columns and along rows."""
    return maps[:, 1:] - maps[:, :-1], maps[:, :, 1:] - maps[:, :, :-1]


def edge_weights(image):
    """Returns what a jump costs, along columns and along rows: 1 in flat regions, 0 at edges."""
    return [tf.exp(-10 * tf.reduce_mean(abs(each), -1, keepdims=True)) for each in steps(image)]


def smoothness(maps, weights):
    """Returns the mean weighted difference between neighbours."""
    jumps = zip(weights, steps(maps), strict=True)
    return sum(tf.reduce_mean(weight * abs(step)) for weight, step in jumps)


# %%
# First coarse: try them all
# --------------------------
#
# Gradient descent on the disparity gets stuck if it starts far away. The gradient of a warp depends
# on the nearest pixels only, and the right place may be fifty pixels away.
#
# So we start at a quarter of the size, where fifty pixels become thirteen, and try many
# disparities. Each is a constant flow. The batch axis holds all of them, so we call the layer once.

coarse = (height // 4, width // 4)
small_left, small_right = (tf.image.resize(each, coarse, "area") for each in (left, right))
candidates = tf.range(0, 16.1, 1.0 if QUICK else 0.5)

planes = tf.ones([len(candidates), *coarse, 1]) * candidates[:, None, None, None]
rebuilt = rebuild(tf.repeat(small_right, len(candidates), axis=0), planes)
costs = photometric(small_left, rebuilt, reach=2)
costs = tf.nn.avg_pool2d(costs, 3, 1, "SAME")
costs = tf.transpose(costs, [3, 1, 2, 0])
print("Costs:", costs.shape, "as [batch, height, width, candidates]")

# %%
# Now every pixel gets a probability for each candidate: a softmax of logits that we learn. The
# loss is the expected cost, plus the smoothness of the probabilities.
#
# One detail is important: the smoothness uses the cumulative sums of the probabilities. If the
# candidates of two neighbours are far apart, many of these sums differ. So the cost grows with the
# distance between the candidates.


@tf.function(jit_compile=True)
def choose():
    with tf.GradientTape() as tape:
        probabilities = tf.nn.softmax(logits)
        expected = tf.reduce_mean(tf.reduce_sum(probabilities * costs, axis=-1))
        jumps = smoothness(tf.cumsum(probabilities, axis=-1), coarse_weights)
        loss = expected + 0.05 * len(candidates) * jumps
    optimizer.apply([tape.gradient(loss, logits)], [logits])


logits = tf.Variable(-10 * costs)
coarse_weights = edge_weights(small_left)
optimizer = keras.optimizers.Adam(0.1)
optimizer.build([logits])
for _ in range(20 if QUICK else 200):
    choose()

# %%
# The mean of the candidates, weighted by their probabilities, is our first disparity map. Its
# error is measured in pixels of the full size: the *end-point error*.


def full_size(disparity):
    """Returns a disparity map in pixels of the photographs, as an array."""
    enlarged = tf.image.resize(disparity, (height, width))
    return enlarged.numpy()[0, :, :, 0] * width / disparity.shape[2]


def report(name, disparity, where=known):
    errors = np.abs(disparity - truth)[where]
    print(
        f"{name:34} mean error {errors.mean():5.2f}, median {np.median(errors):5.2f}, "
        f"beyond 3 pixels {np.mean(errors > 3):5.1%}"
    )


best = tf.gather(candidates, tf.argmin(costs, axis=-1))[..., None]
disparity = tf.reduce_sum(tf.nn.softmax(logits) * candidates, axis=-1, keepdims=True)
report("The cheapest candidate", full_size(best))
report("Learned, a quarter of the size", full_size(disparity))

# %%
# Then fine: learn the disparity itself
# -------------------------------------
#
# Now the disparity is nearly right, and gradients can do the rest. The disparity map becomes the
# variable. We learn it through the warp, first at a quarter of the size, then at half the size,
# then at the whole size. Each stage starts from the result of the stage before.
#
# Near the left edge some pixels lie outside the right photograph. For them only the smoothness
# loss counts.


def refine(disparity, size, count):
    """Returns the disparity `[1, height, width, 1]` at a size, learned from where it starts."""
    first, second = (tf.image.resize(each, size, "area") for each in (left, right))
    start = tf.image.resize(disparity, size) * (size[1] / disparity.shape[2])
    disparity = tf.Variable(start)
    weights = edge_weights(first)
    optimizer = keras.optimizers.Adam(0.02)
    optimizer.build([disparity])
    column = tf.range(size[1], dtype=tf.float32)[None, None, :, None]

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            cost = photometric(first, rebuild(second, disparity), reach=1)
            visible = tf.cast(column >= disparity, tf.float32)
            loss = tf.reduce_mean(cost * visible) + 0.15 * smoothness(disparity, weights)
        optimizer.apply([tape.gradient(loss, disparity)], [disparity])

    for _ in range(count):
        step()
    return disparity


for name, divisor in {"a quarter of the size": 4, "half the size": 2, "the whole size": 1}.items():
    disparity = refine(disparity, (height // divisor, width // divisor), 2 if QUICK else 80)
    report(f"Refined, {name}", full_size(disparity))
learned = full_size(disparity)

# %%
# Compare with OpenCV
# -------------------
#
# ``StereoSGBM`` is the classic method: it compares blocks, and searches along paths through the
# image. It returns no disparity where it is not sure. So we compare twice: first only where it
# returns one, then everywhere. For that we fill its holes with the disparity to their left.

matcher = cv2.StereoSGBM_create(
    numDisparities=64,
    blockSize=5,
    P1=8 * 3 * 5**2,
    P2=32 * 3 * 5**2,
    disp12MaxDiff=1,
    uniquenessRatio=10,
    speckleWindowSize=100,
    speckleRange=2,
    mode=cv2.STEREO_SGBM_MODE_HH,
)
matched = matcher.compute(left_image, right_image) / 16
answered = matched > 0
filled = np.where(answered, matched, 0)
for column in range(1, width):
    empty = ~answered[:, column] & (filled[:, column] == 0)
    filled[empty, column] = filled[empty, column - 1]
for column in range(width - 2, -1, -1):  # what is left at the left edge
    empty = filled[:, column] == 0
    filled[empty, column] = filled[empty, column + 1]

print(f"OpenCV answers for {answered[known].mean():.1%} of the known pixels.")
report("OpenCV, where it answers", matched, known & answered)
report("Learned, where OpenCV answers", learned, known & answered)
report("OpenCV, filled, everywhere", filled)
report("Learned, everywhere", learned)

# %%
# OpenCV is more exact in both comparisons. Our method needs only two short losses, returns a
# disparity for every pixel, and is differentiable. So you can replace the variable by a network,
# and train it with the same losses on any pairs of photographs, without labels.
#
# Note that we chose the weights of our losses by the errors on this pair, among a few values. On
# another pair expect somewhat larger errors.
#
# Most errors lie beside the motorcycle. Only one camera sees these places, so no disparity can
# rebuild them.

fig, axes = plt.subplots(2, 2, figsize=(6, 4.4), layout="constrained")
shown = {
    "left photograph": left_image,
    "true disparity": np.where(known, truth, np.nan),
    "learned disparity": learned,
    "disparity of OpenCV": np.where(answered, matched, np.nan),
}
for ax, (title, picture) in zip(axes.flat, shown.items(), strict=True):
    drawn = ax.imshow(picture, cmap="turbo", vmin=0, vmax=65)
    ax.set_title(title)
    ax.axis("off")
fig.colorbar(drawn, ax=axes, shrink=0.6, label="disparity in pixels")
plt.show()
