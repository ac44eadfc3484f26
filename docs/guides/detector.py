"""
A two-stage detector
====================

The first stage proposes boxes. `tfd.layers.MultiScaleRoIAlign` pools each box from the level of the
pyramid that suits its size. The second stage classifies and refines it.
"""

# %%
# A two-stage detector looks twice. The first stage looks at the whole image and proposes boxes that
# may contain an object. The second stage looks at each box again, and says what it contains and
# where exactly the object is.
#
# Between the two stages, a layer turns boxes of all sizes into features of one size. This is the
# job of `tfd.layers.RoIAlign`, or of `tfd.layers.MultiScaleRoIAlign` if the features are a
# pyramid.
#
# We build the whole detector in plain Keras. It is small, so it trains in some minutes.

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import skimage
import tensorflow as tf
from sklearn.datasets import load_digits

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)
SIZE, STRIDE, BOXES, BACKGROUND = 96, 8, 24, 10

# %%
# Scenes
# ------
#
# The scenes are handwritten digits of many sizes, on photographs of grass, gravel and bricks. The
# test scenes have other digits, and use the other half of each photograph.
#
# Boxes are ``(x_min, y_min, x_max, y_max)`` in pixels: ``"xyxy"``. The layers also take the other
# formats of Keras, see :doc:`/boxes`.

digits, classes = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8) / 16
textures = [getattr(skimage.data, name)() / 255 for name in ("grass", "gravel", "brick")]


def make_scene(random, test):
    """Returns an image `[96, 96, 1]`, and boxes `[digits, 4]` with their labels."""
    texture = textures[random.integers(3)]
    y, x = random.integers(512 - SIZE), random.integers(256 - SIZE) + 256 * test
    image = 0.7 * texture[y : y + SIZE, x : x + SIZE]
    boxes, labels = [], []
    while len(boxes) < 3:
        side = int(random.uniform(12, 40))
        left, top = random.integers(SIZE - side, size=2)
        box = np.array([left, top, left + side, top + side], "float32")
        if any(np.all((box[:2] < other[2:]) & (other[:2] < box[2:])) for other in boxes):
            continue
        index = random.integers(1200, len(digits)) if test else random.integers(1200)
        ink = skimage.transform.resize(digits[index], (side, side))
        patch = image[top : top + side, left : left + side]
        patch += ink * (1 - patch)
        boxes.append(box)
        labels.append(classes[index])
    return image[..., None], np.stack(boxes), np.array(labels)


def make_scenes(count, seed, test=False):
    random = np.random.default_rng(seed)
    scenes = [make_scene(random, test) for _ in range(count)]
    images, boxes, labels = (np.stack(each) for each in zip(*scenes, strict=True))
    return images.astype("float32"), boxes, labels


images, truths, labels = make_scenes(32 if QUICK else 2000, seed=0)
test_images, test_truths, test_labels = make_scenes(100, seed=1, test=True)

# %%
# Backbone and pyramid
# --------------------
#
# The backbone halves the size four times. The pyramid goes back up: each level adds its own detail
# to the features of the coarser level. The levels have strides of 4, 8 and 16 pixels.


def block(features, filters, strides=1):
    features = keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(features)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(features))


def build_pyramid(image):
    features, levels = block(image, 16, strides=2), []
    for filters in (32, 48, 64):
        features = block(block(features, filters, strides=2), filters)
        levels.append(keras.layers.Conv2D(48, 1)(features))
    fine, middle, coarse = levels
    middle = middle + keras.layers.UpSampling2D()(coarse)
    fine = fine + keras.layers.UpSampling2D()(middle)
    return [block(level, 48) for level in (fine, middle, coarse)]


# %%
# The first stage
# ---------------
#
# The first stage uses the middle level. For each pixel it predicts how likely the pixel lies on an
# object, and how far away the object's four sides are, in strides.

image = keras.Input((SIZE, SIZE, 1), name="image")
boxes = keras.Input((BOXES, 4), name="boxes")

pyramid = build_pyramid(image)
hidden = block(pyramid[1], 48)
objectness = keras.layers.Conv2D(1, 1, name="objectness")(hidden)
distances = keras.layers.Conv2D(4, 1, activation="softplus", name="distances")(hidden)

# %%
# The second stage
# ----------------
#
# `tfd.layers.MultiScaleRoIAlign` pools each box to 5 x 5 bins. It pools large boxes from the coarse
# level and small boxes from the fine level. A box with a side of ``canonical_size=24`` pixels
# belongs to level 3, whose stride is ``2 ** 3``.

pooling = tfd.layers.MultiScaleRoIAlign(
    5, scales=(1 / 4, 1 / 8, 1 / 16), canonical_size=24, canonical_level=3, name="pooling"
)
pooled = pooling(pyramid, boxes)  # [batch, boxes, 5, 5, channels]
hidden = keras.layers.Reshape((BOXES, -1))(pooled)
hidden = keras.layers.Dense(128, activation="relu")(hidden)
scores = keras.layers.Dense(11, name="scores")(hidden)  # ten digits, and background
shifts = keras.layers.Dense(4, name="shifts")(hidden)

outputs = {
    "objectness": objectness,
    "distances": distances,
    "scores": scores,
    "shifts": shifts,
}
detector = keras.Model({"image": image, "boxes": boxes}, outputs)
print(f"{detector.count_params():,} weights")

# %%
# What each stage should predict
# ------------------------------
#
# For the first stage, the pixels in the inner part of an object are positive.

centres = (np.arange(SIZE // STRIDE) + 0.5) * STRIDE
points = np.stack(np.meshgrid(centres, centres), axis=-1)[None]  # (x, y)


def first_targets(truths):
    """Returns whether pixels lie on an object `[..., 1]`, and how far its sides are `[..., 4]`."""
    on = np.zeros([len(truths), *points.shape[1:3], 1], "float32")
    away = np.zeros([len(truths), *points.shape[1:3], 4], "float32")
    for box in np.moveaxis(truths, 1, 0)[:, :, None, None]:
        sides = np.concatenate([points - box[..., :2], box[..., 2:] - points], axis=-1)
        inner = sides.min(axis=-1, keepdims=True) > 0.25 * (box[..., 2:3] - box[..., :1])
        on, away = np.where(inner, 1, on), np.where(inner, sides / STRIDE, away)
    return on.astype("float32"), away.astype("float32")


def overlap(boxes, others):
    """Returns the intersection over union of boxes `[..., n, 4]` with others `[..., m, 4]`."""
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    low, high = (
        np.maximum(boxes[..., :2], others[..., :2]),
        np.minimum(boxes[..., 2:], others[..., 2:]),
    )
    both = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (boxes, others)]
    return both / (areas[0] + areas[1] - both)


# %%
# For the second stage we need boxes to train on. We use two kinds: true boxes, moved and scaled a
# little, and random boxes. A box belongs to the digit that it overlaps most. If the overlap is less
# than half, the box is background.


def jittered(truths, random):
    """Returns `[scenes, 24, 4]`: boxes around the digits, and some anywhere."""
    near = np.repeat(truths, BOXES // 6, axis=1)
    size = near[..., 2:] - near[..., :2]
    near = near + random.normal(0, 0.12, near.shape) * np.concatenate([size, size], axis=-1)
    corner = random.uniform(0, SIZE - 20, [len(truths), BOXES - near.shape[1], 2])
    far = np.concatenate([corner, corner + random.uniform(10, 40, [*corner.shape[:2], 1])], axis=-1)
    return np.concatenate([near, far], axis=1).astype("float32")


def second_targets(boxes, truths, labels):
    """Returns the class of each box, and by how much of its size its sides should move."""
    shared = overlap(boxes, truths)
    nearest = shared.argmax(axis=-1)
    true = np.take_along_axis(truths, nearest[..., None], axis=1)
    found = shared.max(axis=-1) >= 0.5
    size = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    classes = np.where(found, np.take_along_axis(labels, nearest, axis=1), BACKGROUND)
    return classes, ((true - boxes) / size).astype("float32"), found.astype("float32")


# %%
# Train both together
# -------------------
#
# One ``fit`` trains four losses. The sample weights switch off the positions without an object.

rois = jittered(truths, np.random.default_rng(2))
on, away = first_targets(truths)
box_classes, moves, found = second_targets(rois, truths, labels)

epochs = 1 if QUICK else 15
schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-len(images) // 16))
detector.compile(
    keras.optimizers.Adam(schedule),
    loss={
        "objectness": keras.losses.BinaryCrossentropy(from_logits=True),
        "distances": "mae",
        "scores": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "shifts": "mae",
    },
    loss_weights={"objectness": 2.0, "distances": 2.0, "scores": 1.0, "shifts": 5.0},
)
detector.fit(
    {"image": images, "boxes": rois},
    {"objectness": on, "distances": away, "scores": box_classes, "shifts": moves},
    sample_weight={
        "objectness": np.ones(on.shape[:3]),
        "distances": on[..., 0],
        "scores": np.ones(found.shape),
        "shifts": found,
    },
    batch_size=16,
    epochs=epochs,
    verbose=0,
)

# %%
# Detect
# ------
#
# Now the first stage proposes boxes. If boxes overlap much, non-maximum suppression keeps the best
# one. An image may have fewer proposals than the second stage has rows. ``tfd.boxes.pad`` adds
# rows of NaN, for which every RoI layer returns zeros.

first_stage = keras.Model(image, [objectness, distances])


def propose(images):
    """Returns `[images, 24, 4]`: boxes of the first stage, the best first, then rows of NaN."""
    likely, sides = first_stage.predict(images, verbose=0)
    sides = sides * STRIDE
    found = np.concatenate([points - sides[..., :2], points + sides[..., 2:]], axis=-1)
    found = np.clip(found, 0, SIZE).reshape(len(images), -1, 4)
    chosen = []
    for each, score in zip(found, likely.reshape(len(images), -1), strict=True):
        kept = tf.image.non_max_suppression(each, score, BOXES, iou_threshold=0.6)
        chosen.append(each[kept.numpy()])
    return tfd.boxes.pad(chosen, BOXES).numpy()


def detect(images):
    """Returns for each image boxes, labels and probabilities of what was found."""
    proposals = propose(images)
    outputs = detector.predict({"image": images, "boxes": proposals}, verbose=0)
    probabilities = tf.nn.softmax(outputs["scores"]).numpy()
    size = np.tile(proposals[..., 2:] - proposals[..., :2], 2)
    refined = proposals + outputs["shifts"] * size
    results = []
    for rows, scores in zip(refined, probabilities, strict=True):
        label, score = scores[:, :10].argmax(axis=-1), scores[:, :10].max(axis=-1)
        good = np.isfinite(rows[:, 0]) & (score > 0.5)
        kept = tf.image.non_max_suppression(rows[good], score[good], 10, iou_threshold=0.3)
        results.append([each[good][kept.numpy()] for each in (rows, label, score)])
    return proposals, results


proposals, detections = detect(test_images)
best = np.nan_to_num(overlap(proposals, test_truths)).max(axis=1)
print(f"The first stage proposes {np.mean(best > 0.5):.1%} of the digits")

right = sum(
    np.sum(np.any((overlap(truth, rows) > 0.5) & (true[:, None] == label), axis=1))
    for (rows, label, _), truth, true in zip(detections, test_truths, test_labels, strict=True)
)
returned = sum(len(rows) for rows, _, _ in detections)
print(f"The detector finds and reads {right / test_labels.size:.1%} of {test_labels.size} digits")
print(f"Of what it returns {right / max(returned, 1):.1%} is right")

# %%
# The figure shows the best proposals (dotted), and the final boxes of the second stage (solid).

fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for ax, picture, found, boxes_here in zip(axes, test_images, detections, proposals, strict=False):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    drawn = [(row, "#56b4e9", ":") for row in boxes_here[:4]]
    drawn += [(row, "#e69f00", "-") for row in found[0]]
    for (left, top, right_side, bottom), colour, style in drawn:
        size = (right_side - left, bottom - top)
        ax.add_patch(plt.Rectangle((left, top), *size, fill=False, ec=colour, ls=style, lw=1.8))
    for (left, top, *_), label in zip(*found[:2], strict=True):
        ax.text(left + 1, top - 2, str(label), color="#e69f00", weight="bold")
    ax.axis("off")
plt.show()

# %%
# Other ways to pool
# ------------------
#
# You can use another RoI layer in its place. `tfd.layers.DeformableRoIPooling` moves its bins to
# where the object is. In `tfd.layers.PSRoIAlign` and `tfd.layers.DeformablePSRoIPooling` each bin
# reads its own channels. `tfd.layers.RoIAlignRotated` takes boxes that are turned.
# ``make detect`` compares some of them on photographs.
