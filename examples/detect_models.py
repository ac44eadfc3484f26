"""Two-stage detectors that differ in how they pool the features of a proposal."""

import keras
from detect_data import BACKGROUND, HEIGHT, WIDTH

import tf_deform as tfd

BINS = 4
STRIDE = 4
CLASSES = BACKGROUND + 1


def build_model(pooling):
    """Returns the untrained detector whose layer "pooling" is a `tfd.layers.<pooling>`.

    From "images" `[batch, 96, 128, 3]` and "proposals" `[batch, proposals, 4]` it predicts "scores"
    `[batch, proposals, 11]`, probabilities of the ten digits and of background, and "deltas"
    `[batch, proposals, 4]` to refine the boxes by.
    """
    images = keras.Input([HEIGHT, WIDTH, 3], name="images")
    proposals = keras.Input([None, 4], name="proposals")
    head = _position_sensitive_head if pooling == "DeformablePSRoIPooling" else _dense_head
    scores, deltas = head(_backbone(images), proposals, pooling)
    # Keras 3.7 looks an output's metrics up by the name of its layer.
    scores = keras.layers.Softmax(dtype="float32", name="scores")(scores)
    deltas = keras.layers.Identity(name="deltas")(deltas)
    return keras.Model(
        {"images": images, "proposals": proposals},
        {"scores": scores, "deltas": deltas},
        name=pooling,
    )


def _backbone(images):
    """Returns features `[batch, 24, 32, 64]`."""
    features = images
    for filters, strides in ((24, 2), (32, 1), (48, 2), (64, 1), (64, 1)):
        features = keras.layers.Conv2D(
            filters,
            3,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )(features)
        # Keras's own momentum of 0.99 lags behind a training of a few hundred steps.
        features = keras.layers.BatchNormalization(momentum=0.9)(features)
        features = keras.layers.ReLU()(features)
    return features


def _dense_head(features, proposals, pooling):
    """Pools all features of each bin and reads all bins at once, as Fast R-CNN does."""
    options = {"spatial_scale": 1 / STRIDE, "name": "pooling"}
    if pooling == "DeformableRoIPooling":
        layer = tfd.layers.DeformableRoIPooling(BINS, offset_units=(64,), **options)
    else:
        layer = tfd.layers.RoIAlign(BINS, **options)
    pooled = layer(features, proposals)  # [batch, proposals, bins, bins, channels]
    flat = keras.layers.Reshape([-1, BINS * BINS * features.shape[-1]])(pooled)
    hidden = keras.layers.Dense(128, activation="relu")(flat)
    return keras.layers.Dense(CLASSES)(hidden), keras.layers.Dense(4)(hidden)


def _position_sensitive_head(features, proposals, pooling):
    """Pools from maps that each bin has of its own, and lets the bins vote, as R-FCN does."""

    def maps_of(values, **options):
        return keras.layers.Conv2D(values * BINS * BINS, 1, **options)(features)

    def pool(values, maps, *offset, **options):
        layer = getattr(tfd.layers, pooling)(
            BINS,
            values,
            group_size=BINS,
            part_size=BINS,
            spatial_scale=1 / STRIDE,
            **options,
        )
        return layer(maps, proposals, *offset)  # [batch, proposals, bins, bins, values]

    # The offsets are pooled too, from bins that stay in place, and start as zeros.
    offset = pool(2, maps_of(2, kernel_initializer="zeros", name="offset_maps"), name="offset")
    scores = pool(CLASSES, maps_of(CLASSES), offset, name="pooling")
    deltas = pool(4, maps_of(4), offset, name="pooling_of_deltas")
    return keras.ops.mean(scores, axis=(2, 3)), keras.ops.mean(deltas, axis=(2, 3))


def bins_of(model, inputs):
    """Returns `[batch, proposals, bins, bins, 4]`: where in the image the model's bins lie."""
    layer = model.get_layer("pooling")
    bins = layer.sampling_boxes(*keras.Model(model.inputs, layer.input)(inputs))
    return bins[..., 0, :] if isinstance(layer, tfd.layers.DeformablePSRoIPooling) else bins
