"""
A spatial transformer on your images
====================================

A network that first turns, moves and enlarges its input, and then classifies it:
`tfd.layers.SpatialTransformer` in front of a small classifier.
"""

# %%
# In real images the object is often small, turned, or not in the middle. A convolutional network
# needs many examples to cope with that. A spatial transformer corrects it: it predicts a
# transformation for each image, and resamples the image with it.
#
# The transformer needs no labels for the position. It learns where to look from the gradients of
# the classifier.
#
# We need Keras, scikit-learn for the data, and `tf_deform`.

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# The images
# ----------
#
# We put handwritten digits of 8 x 8 pixels at random places in images of 40 x 40. They have
# different sizes and are turned by up to 60 degrees. To use your own images, replace ``train`` and
# ``test`` by arrays ``[images, height, width, channels]``, with values from 0 to 1.
#
# We place the digits with the same layer. Without a localisation network it takes the parameters
# as an input. A *similarity* has four: a scale, an angle, and a shift (x, y).

digits, labels = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8, 1).astype("float32") / 16
train_digits, test_digits, train_labels, test_labels = train_test_split(
    digits, labels, test_size=1 / 3, stratify=labels, random_state=0
)

place = tfd.layers.SpatialTransformer(transformation="similarity", output_size=40)


def scatter(digits, random):
    """Returns images `[digits, 40, 40, 1]` with a digit each, somewhere, and a little noise."""
    count = len(digits)
    scale = random.uniform(2, 3.2, [count, 1])
    angle = random.uniform(-np.pi / 3, np.pi / 3, [count, 1])
    shift = random.uniform(-1, 1, [count, 2]) * (scale - 1.3)
    parameters = np.concatenate([scale, angle, shift], axis=1).astype("float32")
    images = np.asarray(place(digits, parameters))
    return np.clip(images + random.normal(0, 0.05, images.shape), 0, 1).astype("float32")


random = np.random.default_rng(0)
draws = 1 if QUICK else 8
train = np.concatenate([scatter(train_digits, random) for _ in range(draws)])
train_labels = np.tile(train_labels, draws)
test = np.concatenate([scatter(test_digits, random) for _ in range(2)])
test_labels = np.tile(test_labels, 2)
print("To train on:", train.shape, "to test on:", test.shape)

# %%
# Scales above 1 make the digit smaller, because the transformation goes from *output* positions to
# *input* positions. All spatial transformers have this direction. :doc:`/semantics` has the
# conventions.
#
# The model
# ---------
#
# The classifier is an ordinary small network.


def convolution(filters):
    return keras.Sequential(
        [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    )


def classifier():
    return keras.Sequential(
        [
            convolution(16),
            keras.layers.MaxPooling2D(),
            convolution(32),
            keras.layers.MaxPooling2D(),
            convolution(64),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ],
        name="classifier",
    )


# %%
# The *localisation network* looks at the whole image and returns some features. The layer itself
# adds the last step, a dense layer from these features to the six numbers of an affine
# transformation. At the beginning the transformation is the identity.
#
# The localisation network must know *where* things are. So we flatten its last maps, and do not
# pool them globally. The batch normalisation near the end makes it learn much faster.


def localization():
    return keras.Sequential(
        [
            keras.layers.AveragePooling2D(2),
            convolution(16),
            keras.layers.MaxPooling2D(),
            convolution(32),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ],
        name="localization",
    )


# %%
# With ``output_size=20`` the output of the transformer has a quarter of the pixels.

plain = keras.Sequential([keras.Input((40, 40, 1)), classifier()], name="plain")
transformed = keras.Sequential(
    [
        keras.Input((40, 40, 1)),
        tfd.layers.SpatialTransformer(localization(), "affine", output_size=20, name="transformer"),
        classifier(),
    ],
    name="transformed",
)

# %%
# Train both
# ----------
#
# The training is the usual one.

epochs = 1 if QUICK else 15
for model in (plain, transformed):
    steps = epochs * -(-len(train) // 64)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, train_labels, batch_size=64, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(test, test_labels, batch_size=256, verbose=0)
    print(f"{model.name:12} {model.count_params():7,} weights, reads {accuracy:.1%} of new images")

# %%
# One seed and one data set prove little. For your own images, always train the plain network too.
#
# Where does it look?
# -------------------
#
# ``sampling_grid`` returns where the layer samples, and `tfd.visualization.plot_grid` draws it. The
# thick side becomes the upper edge of the output.

layer = transformed.get_layer("transformer")
chosen = [int(np.flatnonzero(test_labels == digit)[1]) for digit in range(6)]
images = test[chosen]
seen = np.asarray(layer(images))

fig, axes = plt.subplots(2, len(chosen), figsize=(8, 2.9), layout="constrained")
for index, (above, below) in enumerate(axes.T):
    tfd.visualization.plot_grid(images[index, ..., 0], layer, images[index : index + 1], ax=above)
    below.imshow(seen[index, ..., 0], cmap="gray", vmin=0, vmax=1)
    for ax in (above, below):
        ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("the image")
axes[1, 0].set_ylabel("what is read")
plt.show()

# %%
# What to try next
# ----------------
#
# - Try other transformations. ``"attention"`` only moves and scales; ``"similarity"`` also turns.
#   Fewer parameters learn faster. ``"projective"`` suits photographs of flat objects, and
#   ``"thin_plate_spline"`` suits bent ones.
# - If training is unstable, let the localisation network learn more slowly than the rest.
# - The layer also takes volumes, ``[batch, depth, height, width, channels]``.
# - If you have a grid, use `tfd.layers.GridSample`. If you have a flow, use
#   `tfd.layers.DenseImageWarp`.
