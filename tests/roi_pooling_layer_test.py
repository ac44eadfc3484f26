"""The RoI layers; what every layer must do is in layer_contract_test."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, ROIS, HEIGHT, WIDTH, CHANNELS = 2, 3, 9, 7, 5
OUTPUT = (2, 3)
SCALE = 0.5  # the images are 18 x 14

# The layers that pool features of CHANNELS * 6 channels, with the options they need and the oracle.
POOLING = {
    "RoIAlign": ({}, oracles.roi_align),
    "PSRoIAlign": ({"output_channels": CHANNELS}, oracles.ps_roi_align),
    "DeformableRoIPooling": ({"gamma": 0.25}, oracles.deformable_roi_pool),
    "DeformablePSRoIPooling": (
        {"output_channels": 2 * CHANNELS, "group_size": 2, "part_size": 4, "trans_std": 0.25},
        oracles.deformable_ps_roi_pool,
    ),
}
MULTI_SCALE = {"scales": (1 / 4, 1 / 8, 1 / 16), "canonical_size": 32, "canonical_level": 3}


def boxes_of(rng, rois=ROIS):
    """Returns float32 boxes `[BATCH, rois, 4]`, no two alike and some partly outside."""
    corner = rng.uniform(-3, 9, (BATCH, rois, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 9, corner.shape)], -1).astype("float32")


def features_of(rng, channels=CHANNELS, dtype="float32"):
    return rng.normal(size=(BATCH, HEIGHT, WIDTH, channels)).astype(dtype)


def per_image(oracle, features, boxes, *extra, **options):
    """Returns `[batch, rois, ...]` of an oracle that takes flat boxes and one index a box."""
    flat = [np.reshape(each, (-1, *np.shape(each)[2:])) for each in (boxes, *extra)]
    index = np.repeat(np.arange(len(boxes)), np.shape(boxes)[1])
    pooled = oracle(features, flat[0], index, *flat[1:], OUTPUT, **options)
    return pooled.reshape(*np.shape(boxes)[:2], *pooled.shape[1:])


def alternating(width, dtype="float32"):
    """Returns an image `[1, 4, width, 1]` whose columns are 0 and 1 in turn."""
    return np.tile([0.0, 1.0], (4, width // 2))[None, :, :, None].astype(dtype)


# Values


@pytest.mark.parametrize("sampling_ratio", (0, 1, 3))
@pytest.mark.parametrize("aligned", (False, True))
def test_roi_align_pools_each_image_at_its_own_boxes(aligned, sampling_ratio, rng):
    options = {"spatial_scale": SCALE, "sampling_ratio": sampling_ratio, "aligned": aligned}
    features, boxes = features_of(rng), boxes_of(rng)
    actual = tfd.layers.RoIAlign(OUTPUT, **options)(features, boxes)
    expected = per_image(oracles.roi_align, features, boxes, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("sampling_ratio", (0, 3))
def test_ps_roi_align_pools_each_image_at_its_own_boxes(sampling_ratio, rng):
    options = {"spatial_scale": SCALE, "sampling_ratio": sampling_ratio}
    features, boxes = features_of(rng, CHANNELS * 6), boxes_of(rng)
    actual = tfd.layers.PSRoIAlign(OUTPUT, CHANNELS, **options)(features, boxes)
    expected = per_image(oracles.ps_roi_align, features, boxes, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("deformed", (False, True))
def test_deformable_ps_roi_pooling_pools_each_image_at_its_own_boxes(deformed, rng):
    options = {"group_size": 2, "part_size": 4, "sample_per_part": 3, "trans_std": 0.3}
    options |= {"output_channels": 6, "spatial_scale": SCALE}
    features, boxes = features_of(rng, 6 * 2**2), boxes_of(rng)
    offset = rng.normal(size=(BATCH, ROIS, 4, 4, 2 * 3)).astype("float32") if deformed else None
    actual = tfd.layers.DeformablePSRoIPooling(OUTPUT, **options)(features, boxes, offset)
    given = np.zeros((BATCH, ROIS, 4, 4, 2)) if offset is None else offset
    expected = per_image(oracles.deformable_ps_roi_pool, features, boxes, given, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


# Levels


@pytest.mark.parametrize("sampling_ratio", (0, 2))
def test_multi_scale_roi_align_pools_each_box_on_its_level(sampling_ratio, rng):
    sides = {7: 0, 15.9: 0, 16: 0, 31.9: 0, 32.1: 1, 63.9: 1, 64.1: 2, 80: 2, 0: 0}
    levels = list(sides.values())
    corner = rng.uniform(0, 9, (BATCH, len(sides), 2))
    stretch = np.array([2.0, 0.5])  # the area decides, not the longer side
    boxes = np.concatenate([corner, corner + np.array([*sides])[:, None] * stretch], axis=-1)
    boxes = boxes.astype("float32")
    sizes = ((24, 28), (12, 14), (6, 7))
    features = [rng.normal(size=(BATCH, *size, CHANNELS)).astype("float32") for size in sizes]
    layer = tfd.layers.MultiScaleRoIAlign(OUTPUT, sampling_ratio=sampling_ratio, **MULTI_SCALE)
    actual = layer(features, boxes)
    pooled = [
        per_image(
            oracles.roi_align, level, boxes, spatial_scale=scale, sampling_ratio=sampling_ratio
        )
        for level, scale in zip(features, MULTI_SCALE["scales"], strict=True)
    ]
    expected = np.stack([pooled[level][:, roi] for roi, level in enumerate(levels)], axis=1)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_a_box_of_224_pixels_is_pooled_at_scale_1_16_by_default():
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    features = [np.full((1, 5, 4, 1), level, "float32") for level in range(4)]
    sides = {55: 0, 111: 0, 113: 1, 223: 1, 224: 2, 447: 2, 449: 3, 900: 3}
    boxes = np.array([[(0, 0, side, side) for side in sides]], "float32")
    levels = tfd.layers.MultiScaleRoIAlign(1, scales=scales, sampling_ratio=1)(
        features, 0.1 * boxes
    )
    assert not np.any(levels)  # small boxes are on the finest level
    index = np.zeros(len(sides), "int32")
    expected = [
        oracles.roi_align(
            features[level], boxes[0, [roi]], index[[roi]], 1, spatial_scale=scales[level]
        )
        for roi, level in enumerate(sides.values())
    ]
    actual = tfd.layers.MultiScaleRoIAlign(1, scales=scales)(features, boxes)
    assert relative_error(actual[0], np.concatenate(expected)) < TOLERANCE["float32"]


# Box formats


def in_format(boxes, name):
    """Returns xyxy boxes of an image of 18 x 14 in another format."""
    left, top, right, bottom = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
    if name.startswith("rel_"):
        left, top, right, bottom = left / 14, top / 18, right / 14, bottom / 18
    width, height = right - left, bottom - top
    center_x, center_y = (left + right) / 2, (top + bottom) / 2
    converted = {
        "xyxy": (left, top, right, bottom),
        "yxyx": (top, left, bottom, right),
        "xywh": (left, top, width, height),
        "center_xywh": (center_x, center_y, width, height),
        "center_yxhw": (center_y, center_x, height, width),
    }[name.removeprefix("rel_")]
    return np.stack(converted, axis=-1).astype("float32")


@pytest.mark.parametrize(
    "name",
    (
        *("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw"),
        *("rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh"),
    ),
)
def test_every_layer_takes_boxes_in_every_format(name, rng):
    boxes = boxes_of(rng)
    for layer, (options, _) in POOLING.items():
        features = features_of(rng, 40 if layer == "DeformablePSRoIPooling" else CHANNELS * 6)
        options = {"output_size": OUTPUT, "spatial_scale": SCALE, **options}
        make = getattr(tfd.layers, layer)
        expected = make(**options)(features, boxes)
        actual = make(bounding_box_format=name, **options)(features, in_format(boxes, name))
        assert relative_error(actual, expected) < TOLERANCE["float32"], layer
    pyramid = [features_of(rng), features_of(rng)[:, :5, :4]]
    options = {"output_size": OUTPUT, "scales": (SCALE, SCALE / 2)}
    expected = tfd.layers.MultiScaleRoIAlign(**options)(pyramid, boxes)
    layer = tfd.layers.MultiScaleRoIAlign(bounding_box_format=name, **options)
    actual = layer(pyramid, in_format(boxes, name))
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_relative_boxes_follow_the_features_size_where_it_is_free(rng):
    layer = tfd.layers.RoIAlign(OUTPUT, spatial_scale=SCALE, bounding_box_format="rel_yxyx")
    inputs = [keras.Input((None, None, CHANNELS)), keras.Input((None, 4))]
    model = keras.Model(inputs, layer(*inputs))
    features, boxes = features_of(rng), boxes_of(rng)
    relative = in_format(boxes, "rel_yxyx")
    expected = per_image(oracles.roi_align, features, boxes, spatial_scale=SCALE)
    assert relative_error(model([features, relative]), expected) < TOLERANCE["float32"]
    smaller = features[:, :6]  # the image is then 12 x 14
    boxes = boxes * np.array([1, 12 / 18, 1, 12 / 18], "float32")
    expected = per_image(oracles.roi_align, smaller, boxes, spatial_scale=SCALE)
    assert relative_error(model([smaller, relative]), expected) < TOLERANCE["float32"]


# Precision


@pytest.mark.parametrize("bounding_box_format", ("xyxy", "center_yxhw"))
@pytest.mark.parametrize("policy", ("mixed_float16", "mixed_bfloat16"))
def test_boxes_of_1001_3_stay_1001_3_under_mixed_precision(policy, bounding_box_format):
    box = [1001.3, 0.8, 1002.3, 2.8]  # in float16 1001.5 and 1002.5
    if bounding_box_format == "center_yxhw":
        box = [1.8, 1001.8, 2.0, 1.0]
    options = {"bounding_box_format": bounding_box_format, "dtype": policy}
    layers = [
        tfd.layers.RoIAlign(1, sampling_ratio=1, **options),
        tfd.layers.PSRoIAlign(1, 1, sampling_ratio=1, **options),
        tfd.layers.DeformableRoIPooling(1, sampling_ratio=1, offset_units=(4,), **options),
    ]
    inputs = [keras.Input((None, None, 1)), keras.Input((None, 4))]
    model = keras.Model(inputs, [layer(*inputs) for layer in layers])
    boxes = np.array([[box]], "float32")
    for pooled in model.predict([alternating(1100), boxes], verbose=0):
        np.testing.assert_allclose(pooled.astype("float32").item(), 0.7, atol=3e-3)
    multi_scale = tfd.layers.MultiScaleRoIAlign(1, scales=(1.0,), sampling_ratio=1, **options)
    pooled = multi_scale([alternating(1100)], boxes)
    np.testing.assert_allclose(tf.cast(pooled, "float32").numpy().item(), 0.7, atol=3e-3)


@pytest.mark.parametrize("policy", ("mixed_float16", "mixed_bfloat16"))
def test_large_boxes_of_deformable_ps_roi_pooling_are_not_rounded(policy):
    options = {"group_size": 1, "part_size": 1, "sample_per_part": 1, "trans_std": 1.0}
    layer = tfd.layers.DeformablePSRoIPooling(1, 1, dtype=policy, **options)
    offset = np.array([0.5, 0.3], "float32").reshape(1, 1, 1, 1, 2)  # of a box of one pixel
    boxes = np.array([[[2051.0, 1.0, 2051.0, 1.0]]], "float32")  # in float16 2052, 2051.3 too
    pooled = layer(alternating(2200), boxes, offset)  # at 2051 - 0.5 + 0.3
    np.testing.assert_allclose(tf.cast(pooled, "float32").numpy().item(), 0.8, atol=3e-3)


def test_boxes_have_no_gradient_and_features_do(rng):
    layer = tfd.layers.RoIAlign(OUTPUT, bounding_box_format="rel_xywh")
    of_features, of_boxes = gradients(layer, features_of(rng), boxes_of(rng) / 20)
    assert np.any(of_features)
    assert of_boxes is None or not np.any(of_boxes)


# Deformable RoI pooling


@pytest.mark.parametrize("modulated", (False, True))
def test_untrained_deformable_roi_pooling_is_roi_align_halved_if_modulated(modulated, rng):
    options = {"spatial_scale": SCALE, "sampling_ratio": 3}
    features, boxes = features_of(rng), boxes_of(rng)
    layer = tfd.layers.DeformableRoIPooling(
        OUTPUT, modulated=modulated, offset_units=(4,), gamma=0.7, **options
    )
    expected = (0.5 if modulated else 1.0) * tfd.layers.RoIAlign(OUTPUT, **options)(features, boxes)
    assert relative_error(layer(features, boxes), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("modulated", (False, True))
@pytest.mark.parametrize("units", ((), (4,), (6, 4)))
def test_deformable_roi_pooling_predicts_offsets_from_the_undeformed_bins(units, modulated, rng):
    options = {"spatial_scale": SCALE, "gamma": 0.2}
    features, boxes = features_of(rng, dtype="float64"), boxes_of(rng).astype("float64")
    layer = tfd.layers.DeformableRoIPooling(
        OUTPUT, offset_units=units, modulated=modulated, dtype="float64", **options
    )
    layer.build(features.shape, boxes.shape)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    hidden = per_image(oracles.roi_align, features, boxes, spatial_scale=SCALE)
    hidden = hidden.reshape(BATCH, ROIS, -1)
    weights = layer.get_weights()
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = np.maximum(hidden @ kernel + bias, 0)
    predicted = (hidden @ weights[-2] + weights[-1]).reshape(BATCH, ROIS, *OUTPUT, -1)
    expected = per_image(
        oracles.deformable_roi_pool, features, boxes, predicted[..., :2], **options
    )
    if modulated:
        expected /= 1 + np.exp(-predicted[..., 2:])
    assert predicted.shape[-1] == (3 if modulated else 2)
    assert relative_error(layer(features, boxes), expected) < TOLERANCE["float64"]


def test_the_offset_network_ends_in_float32_under_mixed_precision(rng):
    layer = tfd.layers.DeformableRoIPooling(OUTPUT, offset_units=(4,), dtype="mixed_float16")
    layer(features_of(rng), boxes_of(rng))
    assert layer.predictor.compute_dtype == "float32"
    assert layer.hidden[0].compute_dtype == "float16"


def test_the_offset_network_learns_from_its_zero_initialisation(rng):
    layer = tfd.layers.DeformableRoIPooling(
        OUTPUT, spatial_scale=SCALE, modulated=True, offset_units=(4,)
    )
    features, boxes = features_of(rng), boxes_of(rng)
    layer.build(features.shape, boxes.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(features, boxes) ** 2)
    bias = tape.gradient(loss, layer.predictor.bias.value)
    assert np.all(np.abs(bias) > 1e-5)


@pytest.mark.parametrize("modulated", (False, True))
def test_an_offset_given_moves_the_bins_and_leaves_them_unweighted(modulated, rng):
    options = {"spatial_scale": SCALE, "gamma": 0.3, "sampling_ratio": 0}
    features, boxes = features_of(rng), boxes_of(rng)
    offset = rng.normal(size=(BATCH, ROIS, *OUTPUT, 2)).astype("float32")
    layer = tfd.layers.DeformableRoIPooling(OUTPUT, modulated=modulated, **options)
    actual = layer(features, boxes, offset)
    expected = per_image(oracles.deformable_roi_pool, features, boxes, offset, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]
    assert layer.weights == []
    with pytest.raises(ValueError, match=r"built with an offset and has no predictor"):
        layer(features, boxes)


# Adaptive sampling and XLA


def adaptive_layers(sampling_ratio):
    options = {"output_size": OUTPUT, "sampling_ratio": sampling_ratio}
    return [
        tfd.layers.RoIAlign(**options),
        tfd.layers.MultiScaleRoIAlign(**options, **MULTI_SCALE),
        tfd.layers.PSRoIAlign(output_channels=CHANNELS, **options),
        tfd.layers.DeformableRoIPooling(**options),
    ]


@pytest.mark.parametrize("sampling_ratio", [0, 1])
def test_layers_support_jit_unless_they_take_adaptive_maxima(sampling_ratio):
    assert all(layer.supports_jit for layer in adaptive_layers(sampling_ratio))
    options = {"output_size": OUTPUT, "sampling_ratio": sampling_ratio, "reduction": "max"}
    for layer in (
        tfd.layers.RoIAlign(**options),
        tfd.layers.RoIAlignRotated(**options),
        tfd.layers.MultiScaleRoIAlign(**options, **MULTI_SCALE),
    ):
        assert layer.supports_jit == (sampling_ratio > 0)


@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`")
@pytest.mark.parametrize("sampling_ratio, reduction", [(0, "max"), (0, "mean"), (2, "max")])
def test_a_model_is_compiled_by_xla_unless_it_takes_adaptive_maxima(sampling_ratio, reduction, rng):
    inputs = [keras.Input((None, None, CHANNELS)), keras.Input((None, 4))]
    pooling = tfd.layers.RoIAlign(OUTPUT, sampling_ratio=sampling_ratio, reduction=reduction)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooling(*inputs)))
    model.compile("sgd", "mse", jit_compile=True)
    assert model.jit_compile == ((sampling_ratio, reduction) != (0, "max"))
    targets = np.zeros((BATCH, ROIS, *OUTPUT, 1))
    for jit_compile in (model.jit_compile, "auto"):
        model.compile("sgd", "mse", jit_compile=jit_compile)
        losses = model.fit([features_of(rng), boxes_of(rng)], targets, epochs=2, verbose=0)
        assert losses.history["loss"][1] < losses.history["loss"][0]


def test_adaptive_sampling_takes_a_sample_a_pixel_of_boxes_larger_than_the_image(rng):
    features = features_of(rng)
    boxes = np.array([[[-31.5, -8, 40, 25]], [[-3, -70, 15, 100]]], "float32")
    actual = tfd.layers.RoIAlign(OUTPUT, sampling_ratio=0)(features, boxes)
    expected = per_image(oracles.roi_align, features, boxes, sampling_ratio=0)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


# Edge cases


@pytest.mark.parametrize("batch_and_rois", ((BATCH, 0), (0, ROIS)))
@pytest.mark.parametrize("sampling_ratio", (0, 2))
def test_no_rois_and_no_images_give_empty_results(sampling_ratio, batch_and_rois):
    batch, rois = batch_and_rois
    features = np.zeros((batch, HEIGHT, WIDTH, CHANNELS * 6), "float32")
    boxes = np.zeros((batch, rois, 4), "float32")
    expected = {"PSRoIAlign": CHANNELS}
    for layer in adaptive_layers(sampling_ratio):
        inputs = [features] * 3 if isinstance(layer, tfd.layers.MultiScaleRoIAlign) else features
        channels = expected.get(type(layer).__name__, CHANNELS * 6)
        assert layer(inputs, boxes).shape == (batch, rois, *OUTPUT, channels)
    options = {"output_channels": 7, "group_size": 2, "part_size": 2}
    layer = tfd.layers.DeformablePSRoIPooling(OUTPUT, **options)
    assert layer(features[..., :28], boxes).shape == (batch, rois, *OUTPUT, 7)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1e30))
def test_absurd_boxes_give_finite_results(value, rng):
    features, boxes = features_of(rng, CHANNELS * 6), boxes_of(rng)
    boxes[0, 1] = value
    boxes[1, 2, 2] = value
    for layer in adaptive_layers(0) + adaptive_layers(2):
        inputs = [features] * 3 if isinstance(layer, tfd.layers.MultiScaleRoIAlign) else features
        pooled = np.array(layer(inputs, boxes))
        assert np.all(np.isfinite(pooled)), layer.name
        assert not np.any(pooled[0, 1]), layer.name
        assert np.any(pooled[0, 0]), layer.name


# Bad input

BAD_OPTIONS = {
    r"output_size must be an int or 2 ints of at least 1, received \(2, 3, 4\)": (
        "RoIAlign",
        {"output_size": (2, 3, 4)},
    ),
    r"sampling_ratio must be .* at least 0, received -1": ("RoIAlign", {"sampling_ratio": -1}),
    r"bounding_box_format must be one of 'xyxy', .*'rel_center_xywh', received 'xyXY'": (
        "DeformableRoIPooling",
        {"bounding_box_format": "xyXY"},
    ),
    r"output_channels must be an int of at least 1, received 0": (
        "PSRoIAlign",
        {"output_channels": 0},
    ),
    r"part_size must be an int of at least 1, received 0": (
        "DeformablePSRoIPooling",
        {"output_channels": 1, "group_size": 1, "part_size": 0},
    ),
    r"scales .*received \(\)": ("MultiScaleRoIAlign", {"scales": ()}),
    r"scales must .* each half of the one before, as in \(1/4, 1/8\), received \(4, 8\)": (
        "MultiScaleRoIAlign",
        {"scales": (4, 8)},
    ),
    r"spatial_scale must be a finite number above 0, received 0": (
        "RoIAlign",
        {"spatial_scale": 0},
    ),
    r"spatial_scale must be a finite number above 0, received nan": (
        "DeformableRoIPooling",
        {"spatial_scale": np.nan},
    ),
    r"offset_units must be a list of ints of at least 1, received 1024": (
        "DeformableRoIPooling",
        {"offset_units": 1024},
    ),
    r"canonical_size must be a finite number above 0, received 0": (
        "MultiScaleRoIAlign",
        {"scales": (1.0,), "canonical_size": 0},
    ),
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_a_bad_option_is_named_with_what_was_expected_and_received(message):
    layer, options = BAD_OPTIONS[message]
    with pytest.raises(ValueError, match=message):
        getattr(tfd.layers, layer)(**{"output_size": 2, **options})


FEATURES, BOXES = (BATCH, HEIGHT, WIDTH, CHANNELS), (BATCH, ROIS, 4)
BAD_SHAPES = {
    r"features must have shape \[batch, height, width, channels\], received \[9, 7, 5\]": (
        tfd.layers.RoIAlign(2),
        [FEATURES[1:], BOXES],
    ),
    r"boxes must have shape \[batch, rois, 4\].*received \[3, 4\]": (
        tfd.layers.RoIAlign(2),
        [FEATURES, BOXES[1:]],
    ),
    r"boxes must have shape \[batch, rois, 4\].*received \[2, 3, 5\]": (
        tfd.layers.DeformableRoIPooling(2),
        [FEATURES, (BATCH, ROIS, 5)],
    ),
    r"boxes must have shape \[batch, rois, 4\] = \[2, \?, 4\], received \[1, 3, 4\]": (
        tfd.layers.RoIAlign(2),
        [FEATURES, (1, ROIS, 4)],
    ),
    r"features must have output_channels \* bins = 12 channels, received \(2, 9, 7, 5\)": (
        tfd.layers.PSRoIAlign(2, 3),
        [FEATURES, BOXES],
    ),
    r"features must have .*group_size\*\*2 = 12 channels, received \(2, 9, 7, 5\)": (
        tfd.layers.DeformablePSRoIPooling(2, 3, group_size=2, part_size=2),
        [FEATURES, BOXES],
    ),
    r"offset must have shape .*\[2, 3, 2, 2, 2\], received \[2, 3, 2, 3, 2\]": (
        tfd.layers.DeformableRoIPooling(2),
        [FEATURES, BOXES, (BATCH, ROIS, 2, 3, 2)],
    ),
    r"offset must have 2 \* classes channels .* 5 output channels, received .*4\)": (
        tfd.layers.DeformablePSRoIPooling(2, CHANNELS, group_size=1, part_size=2),
        [FEATURES, BOXES, (BATCH, ROIS, 2, 2, 4)],
    ),
    r"scales must have one entry a feature map, received 2 for 1": (
        tfd.layers.MultiScaleRoIAlign(2, scales=(1.0, 0.5)),
        [[FEATURES], BOXES],
    ),
    r"features must be a list of feature maps, received": (
        tfd.layers.MultiScaleRoIAlign(2, scales=(1.0, 0.5)),
        [FEATURES, BOXES],
    ),
    r"features\[1\] must have shape .*= \[2, \?, \?, 5\], received \[2, 9, 7, 4\]": (
        tfd.layers.MultiScaleRoIAlign(2, scales=(1.0, 0.5)),
        [[FEATURES, (*FEATURES[:3], 4)], BOXES],
    ),
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_a_bad_shape_is_named_with_what_was_expected_and_received(message):
    layer, shapes = BAD_SHAPES[message]
    arguments = [
        [np.zeros(each, "float32") for each in shape]
        if isinstance(shape, list)
        else np.zeros(shape, "float32")
        for shape in shapes
    ]
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


DICTIONARY = r"boxes must be .*, received a dict of 'boxes', 'labels'; pass boxes\['boxes'\]"


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("make", (np.zeros, keras.KerasTensor), ids=("eager", "symbolic"))
def test_boxes_in_the_dictionary_of_keras_are_told_how_to_be_passed(name, make):
    options = {"group_size": 1} if name == "DeformablePSRoIPooling" else {}
    layer = getattr(tfd.layers, name)(1, **{**POOLING[name][0], **options})
    channels = getattr(layer, "output_channels", CHANNELS)
    boxes = {"boxes": make(BOXES), "labels": make(BOXES[:2])}
    with pytest.raises(TypeError, match=DICTIONARY):
        layer(make((*FEATURES[:3], channels)), boxes)


@pytest.mark.parametrize(
    ("features", "boxes", "message"),
    (
        ((None, 9, 7), (None, 3, 4), r"features must .*, received \[\?, 9, 7\]"),
        ((None, 9, 7, 5), (None, 4), r"boxes must have shape .*, received \[\?, 4\]"),
        ((None, 9, 7, 5), (None, 3, 5), r"boxes must have shape .*, received \[\?, 3, 5\]"),
        ((2, 9, 7, 5), (3, 3, 4), r"boxes must have shape .*, received \[3, 3, 4\]"),
    ),
)
def test_symbolic_tensors_that_do_not_fit_are_named_at_once(features, boxes, message):
    symbolic = keras.KerasTensor(features), keras.KerasTensor(boxes)
    with pytest.raises(ValueError, match=message):
        tfd.layers.RoIAlign(2)(*symbolic)
    with pytest.raises(ValueError, match=message):
        tfd.layers.MultiScaleRoIAlign(2, scales=(1.0,))([symbolic[0]], symbolic[1])


def test_a_symbolic_map_that_is_in_no_list_is_named():
    with pytest.raises(ValueError, match=r"features must be a list of feature maps, received"):
        tfd.layers.MultiScaleRoIAlign(2, scales=(1.0,))(
            keras.KerasTensor(FEATURES), keras.KerasTensor(BOXES)
        )


def test_unknown_channels_are_named_where_weights_depend_on_them():
    with pytest.raises(ValueError, match=r"features must have known channels, received .*None\)"):
        tfd.layers.DeformableRoIPooling(2)(
            keras.KerasTensor((None, 9, 7, None)), keras.KerasTensor(BOXES)
        )


@pytest.mark.parametrize("format_", ("xyxy", "rel_xyxy"))
def test_boxes_far_outside_are_warned_of_where_the_layer_is_called(format_):
    features, boxes = np.zeros(FEATURES, "float32"), np.full(BOXES, 90.0, "float32")
    with pytest.warns(UserWarning, match=r"spatial_scale may be missing") as warned:
        tfd.layers.RoIAlign(2, bounding_box_format=format_)(features, boxes)
    assert [each.filename for each in warned] == [__file__]


def test_integers_are_refused(rng):
    layer = tfd.layers.RoIAlign(2)
    with pytest.raises(TypeError, match=r"features must be floating-point, received uint8"):
        layer(features_of(rng).astype("uint8"), boxes_of(rng))
    with pytest.raises(TypeError, match=r"boxes must be floating-point, received int32"):
        layer(features_of(rng), boxes_of(rng).astype("int32"))


def test_boxes_that_do_not_fit_are_an_error_at_run_time_where_sizes_are_free(rng):
    shapes = [[None, None, None, CHANNELS], [None, None, 4]]
    call = tf.function(
        tfd.layers.RoIAlign(OUTPUT).__call__,
        input_signature=[tf.TensorSpec(shape) for shape in shapes],
    )
    assert call(features_of(rng), boxes_of(rng)).shape == (BATCH, ROIS, *OUTPUT, CHANNELS)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"boxes must have shape"):
        call(features_of(rng), boxes_of(rng)[:1])
