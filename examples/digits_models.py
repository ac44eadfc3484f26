"""A plain convolutional network, and the two that deform its sampling, of about equal size."""

import keras
from digits_data import IMAGE_SIZE

import tf_deform as tfd

WIDTHS = {
    "CNN": (12, 24, 48, 48),
    "ST-CNN": (10, 20, 40, 40),
    "Deformable CNN": (10, 20, 40, 42),
}
"""Output channels of the four convolutions; the deforming models pay for what they add."""


def build_model(name):
    """Returns the untrained model `name`, from images `[batch, 32, 32, 1]` to 10 probabilities.

    All are the same four convolutions, with max pooling behind the first and the second and global
    average pooling behind the last. "ST-CNN" has a spatial transformer before them; in "Deformable
    CNN" the last one is a modulated deformable convolution.
    """
    images = features = keras.Input([IMAGE_SIZE, IMAGE_SIZE, 1], name="images")
    if name == "ST-CNN":
        features = _spatial_transformer()(features)
    last_convolution = _deformable_convolution if name == "Deformable CNN" else _convolution
    first, second, third, fourth = WIDTHS[name]
    features = _normalized_relu(_convolution(first, 5)(features))
    features = keras.layers.MaxPooling2D()(features)
    features = _normalized_relu(_convolution(second, 3)(features))
    features = keras.layers.MaxPooling2D()(features)
    features = _normalized_relu(_convolution(third, 3)(features))
    # Not pooled a third time: at 4 x 4 pixels there is nowhere for a tap to move to.
    features = _normalized_relu(last_convolution(fourth, 3)(features))
    features = keras.layers.GlobalAveragePooling2D()(features)
    probabilities = keras.layers.Dense(10, activation="softmax")(features)
    return keras.Model(images, probabilities, name=name.lower().replace(" ", "_"))


def _spatial_transformer():
    localization = keras.Sequential(
        [
            keras.layers.AveragePooling2D(2),
            _convolution(12, 5),
            _batch_norm(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            _convolution(16, 3),
            _batch_norm(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, use_bias=False),
            # Without it the transformer learns the pose much later, with some seeds hardly at all.
            _batch_norm(),
            keras.layers.ReLU(),
        ],
        name="localization",
    )
    return tfd.layers.SpatialTransformer(localization, "affine", name="spatial_transformer")


def _batch_norm():
    # Keras's own momentum of 0.99 lags behind a training of a few hundred steps.
    return keras.layers.BatchNormalization(momentum=0.9)


def _normalized_relu(features):
    return keras.layers.ReLU()(_batch_norm()(features))


_OPTIONS = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}


def _convolution(filters, size):
    return keras.layers.Conv2D(filters, size, **_OPTIONS)


def _deformable_convolution(filters, size):
    return tfd.layers.DeformableConv2D(
        filters, size, modulated=True, name="deformable_convolution", **_OPTIONS
    )
