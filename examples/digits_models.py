"""A plain convolutional network, and the two that deform its sampling, of about equal size."""

import keras
from digits_data import IMAGE_SIZE

import tf_deform as tfd

WIDTHS = {
    "CNN": (18, 34, 34),
    "ST-CNN": (14, 28, 28),
    "Deformable CNN": (14, 30, 30),
    "ST-CNN, TPS": (14, 27, 27),
}
"""Output channels of the convolutions; the deforming models pay for what they add."""


def build_model(
    name, image_size=IMAGE_SIZE, *, pooled=False, localization=None, **transformer_options
):
    """Returns the untrained model `name`, from images `[batch, size, size, 1]` to 10 probabilities.

    All are the same three convolutions with max pooling behind each, and a dense layer that sees
    where the features lie, as in the paper. "ST-CNN" has an affine spatial transformer before them
    and "ST-CNN, TPS" one of thin plate splines; in "Deformable CNN" the last convolution is a
    modulated deformable one.

    Args:
        name: a key of WIDTHS.
        image_size: pixels of an edge of the images.
        pooled: whether the features are averaged over their places before the dense layer.
        localization: of the spatial transformer; None: one of about a quarter of all parameters.
        **transformer_options: of the SpatialTransformer, instead of the name's.
    """
    images = features = keras.Input([image_size, image_size, 1], name="images")
    if name.startswith("ST-CNN"):
        transformation = "thin_plate_spline" if "TPS" in name else "affine"
        features = tfd.layers.SpatialTransformer(
            localization or localization_network(image_size),
            **{"transformation": transformation, **transformer_options},
            name="spatial_transformer",
        )(features)
    last_convolution = _deformable_convolution if name == "Deformable CNN" else _convolution
    first, second, third = WIDTHS[name]
    for convolution, filters, size in (
        (_convolution, first, 5),
        (_convolution, second, 5),
        (last_convolution, third, 3),
    ):
        features = keras.layers.MaxPooling2D()(convolution(filters, size)(features))
        features = keras.layers.ReLU()(_batch_norm()(features))
    pool = keras.layers.GlobalAveragePooling2D if pooled else keras.layers.Flatten
    features = keras.layers.Dropout(0.2)(pool()(features))
    probabilities = keras.layers.Dense(10, activation="softmax")(features)
    name = name.lower().replace(",", "").replace(" ", "_")
    return keras.Model(images, probabilities, name=name)


def localization_network(image_size, widths=(12, 16), units=None):
    """Returns what a spatial transformer finds the pose by; `units` None: some 8,000 weights."""
    features = widths[1] * (image_size // 8) ** 2
    return keras.Sequential(
        [
            keras.layers.AveragePooling2D(2),
            _convolution(widths[0], 5),
            keras.layers.MaxPooling2D(),
            _batch_norm(),
            keras.layers.ReLU(),
            _convolution(widths[1], 3),
            keras.layers.MaxPooling2D(),
            _batch_norm(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(units or 8192 // features, use_bias=False),
            # Without it the transformer learns the pose much later, with some seeds hardly at all.
            _batch_norm(),
            keras.layers.ReLU(),
        ],
        name="localization",
    )


def _batch_norm():
    # Keras's own momentum of 0.99 lags behind a training of a few hundred steps.
    return keras.layers.BatchNormalization(momentum=0.9)


_OPTIONS = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}


def _convolution(filters, size):
    return keras.layers.Conv2D(filters, size, **_OPTIONS)


def _deformable_convolution(filters, size):
    return tfd.layers.DeformableConv2D(
        filters, size, modulated=True, name="deformable_convolution", **_OPTIONS
    )
