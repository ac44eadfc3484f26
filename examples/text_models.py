"""Two readers of words of about equal size: a plain one, and one that first rectifies the image."""

import keras
import numpy as np
from text_data import HEIGHT, LETTERS, WIDTH

import tf_deform as tfd

READERS = {"plain": 25, "rectified": 20}
"""Filters of the first convolution; the plain reader spends on them what it saves."""
COLUMNS = 5
PACE = 0.1
"""How fast control points learn, beside the other weights."""

EDGES = np.array([(x, y) for y in (-0.9, 0.9) for x in np.linspace(-0.9, 0.9, COLUMNS)])
"""Control points (x, y) of the rectified image: a row along the upper edge, one along the lower.

Source: Shi et al., "ASTER" (2019, section 3.1.2).
"""


def build_model(name):
    """Returns the untrained reader `name`, from images `[batch, 32, 64, 1]` to `[batch, 16, 27]`.

    Each of 16 columns from left to right has a logit for every letter, after one for none.
    "rectified" has a spatial transformer before the same network, which "plain" has wider.
    """
    images = features = keras.Input([HEIGHT, WIDTH, 1], name="images")
    if name == "rectified":
        features = tfd.layers.SpatialTransformer(
            _localization(),
            "thin_plate_spline",
            padding_mode="border",
            control_points=EDGES,
            name="rectifier",
        )(features)
    filters = READERS[name]
    features = keras.layers.MaxPooling2D(2)(_convolution(filters, features))
    features = keras.layers.MaxPooling2D(2)(_convolution(2 * filters, features))
    features = _convolution(3 * filters, features)
    features = keras.layers.MaxPooling2D((2, 1))(_convolution(3 * filters, features))
    features = _convolution(4 * filters, features)  # [batch, 4, 16, channels]
    columns = keras.ops.mean(features, axis=1)
    columns = keras.layers.Conv1D(4 * filters, 3, padding="same", activation="relu")(columns)
    logits = keras.layers.Dense(len(LETTERS) + 1, name="logits")(columns)
    return keras.Model(images, logits, name=name)


def _localization():
    """Returns the network that sees where the text is, at half the size."""
    images = keras.Input([HEIGHT, WIDTH, 1])
    features = keras.layers.AveragePooling2D(2)(images)
    for filters in (12, 24):
        features = keras.layers.MaxPooling2D(2)(_convolution(filters, features))
    features = keras.layers.Flatten()(_convolution(30, features))
    features = _batch_norm()(keras.layers.Dense(64, use_bias=False)(features))
    # Adam moves all weights at one pace, whatever their gradients. While the reader still guesses,
    # theirs say nothing, and control points that move as fast soon lie far outside of the image.
    features = keras.layers.Rescaling(PACE)(keras.layers.ReLU()(features))
    return keras.Model(images, features, name="localization")


def _convolution(filters, features):
    features = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(features)
    return keras.layers.ReLU()(_batch_norm()(features))


def _batch_norm():
    # Keras's own momentum of 0.99 lags behind a training of a few hundred steps.
    return keras.layers.BatchNormalization(momentum=0.9)


def rectify(model, images):
    """Returns (rectified images, where the control points lie in the images `[batch, 10, 2]`).

    The points are (x, y) in pixels, integers being pixel centres.
    """
    layer = model.get_layer("rectifier")
    moves = np.reshape(layer.predict_parameters(images), [-1, *EDGES.shape])
    return np.asarray(layer(images)), ((EDGES + moves + 1) * [WIDTH, HEIGHT] - 1) / 2
