"""The deformable convolution layers; what every layer must do is in layer_contract_test."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import MODES, TOLERANCE, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

LAYERS = {
    1: tfd.layers.DeformableConv1D,
    2: tfd.layers.DeformableConv2D,
    3: tfd.layers.DeformableConv3D,
}
CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
SPACE = {1: (9,), 2: (8, 7), 3: (6, 5, 7)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}
RANKS = (1, 2, 3)
CHANNELS, FILTERS = 4, 6

GEOMETRIES = {
    "valid": {},
    "same, stride 2": {"padding": "same", "strides": 2},
    "dilation 2": {"dilation_rate": 2},
    "same, dilation 2": {"padding": "same", "dilation_rate": 2},
    "groups": {"groups": 2},
    "deformable groups": {"deformable_groups": 2, "groups": 2, "padding": "same"},
    "modulated": {"modulated": True, "padding": "same"},
}


def features(rng, rank, dtype="float32"):
    return rng.normal(size=(2, *SPACE[rank], CHANNELS)).astype(dtype)


def deforming(rank, **options):
    """Returns a built layer that predicts offsets of about half a pixel."""
    options = {"offset_kernel_initializer": keras.initializers.RandomNormal(0, 0.2), **options}
    layer = LAYERS[rank](FILTERS, KERNEL[rank], **options)
    first = layer.data_format == "channels_first"
    layer.build((2, CHANNELS, *SPACE[rank]) if first else (2, *SPACE[rank], CHANNELS))
    layer.offset_bias.assign(np.linspace(-0.6, 0.7, layer.offset_bias.shape[0]))
    return layer


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def given_offset(rng, layer, shape):
    """Returns fractional offsets that fit the layer's output `[batch, *output, filters]`."""
    taps = layer.deformable_groups * np.prod(layer.kernel_size)
    return rng.uniform(-1.6, 1.6, (*shape[:-1], taps * layer.rank)).astype("float32")


# The signature


@pytest.mark.parametrize("rank", RANKS)
def test_takes_every_argument_of_the_keras_convolution_in_its_order(rank):
    def positional(layer):
        parameters = inspect.signature(layer).parameters.values()
        return [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    def defaults(layer):
        config = layer(FILTERS, 3).get_config()
        return {name: config[name] for name in positional(layer)}

    assert positional(LAYERS[rank]) == positional(CONVOLUTIONS[rank])
    assert defaults(LAYERS[rank]) == defaults(CONVOLUTIONS[rank])


def test_own_options_are_keyword_only_with_the_documented_defaults():
    parameters = inspect.signature(tfd.layers.DeformableConv2D).parameters.values()
    assert {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} == {
        "deformable_groups": 1,
        "modulated": False,
        "mask_scale": 2.0,
        "max_offset": None,
        "offset_kernel_initializer": "zeros",
        "offset_lr_multiplier": 1.0,
        "offset_gradient_scale": 1.0,
        "train_offsets_only": False,
        "lora_rank": None,
        "lora_alpha": None,
    }


# Values


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_untrained_layer_equals_the_keras_convolution(rank, geometry, rng):
    options = GEOMETRIES[geometry]
    inputs = features(rng, rank)
    layer = LAYERS[rank](FILTERS, KERNEL[rank], bias_initializer="normal", **options)
    actual = layer(inputs)
    plain = {
        name: options[name] for name in options if name in ("padding", "strides", "dilation_rate")
    }
    expected = []
    groups = options.get("groups", 1)
    for group in range(groups):  # TensorFlow has no grouped 3-D convolution on CPUs
        read = slice(group * CHANNELS // groups, (group + 1) * CHANNELS // groups)
        made = slice(group * FILTERS // groups, (group + 1) * FILTERS // groups)
        convolution = CONVOLUTIONS[rank](FILTERS // groups, KERNEL[rank], **plain)
        convolution.build(inputs[..., read].shape)
        convolution.set_weights([np.array(layer.kernel)[..., made], np.array(layer.bias)[made]])
        expected.append(convolution(inputs[..., read]))
    assert relative_error(actual, np.concatenate(expected, axis=-1)) < TOLERANCE["float32"]


@pytest.mark.parametrize("stride", (1, 2))
def test_causal_layer_equals_the_causal_convolution(stride, rng):
    inputs = features(rng, 1)
    layer = LAYERS[1](FILTERS, 3, strides=stride, padding="causal")
    actual = layer(inputs)
    convolution = CONVOLUTIONS[1](FILTERS, 3, strides=stride, padding="causal")
    convolution.build(inputs.shape)
    convolution.set_weights(layer.get_weights()[:2])
    assert relative_error(actual, convolution(inputs)) < TOLERANCE["float32"]


@pytest.mark.parametrize("padding", ("valid", "same", 1, "pairs"))
@pytest.mark.parametrize("rank", RANKS)
def test_deformed_layer_equals_the_oracle_at_its_own_offsets(rank, padding, rng):
    geometry = {
        "strides": (2, 1, 2)[:rank],
        "dilation_rate": (1, 2, 2)[:rank],  # both above 1 along the last axis in 3-D
        "padding": ((1, 2), (0, 3), (2, 0))[:rank] if padding == "pairs" else padding,
    }
    options = {"groups": 2, "deformable_groups": 2, "modulated": True, "dtype": "float64"}
    layer = deforming(rank, bias_initializer="normal", **geometry, **options)
    inputs = features(rng, rank, "float64")
    actual = layer(inputs)
    offset, modulation = layer.predict_offset(inputs)
    assert np.std(offset) > 0.3
    kernel = np.array(layer.kernel)
    expected = oracles.deformable_conv(inputs, kernel, offset, modulation, **geometry)
    assert relative_error(actual, expected + np.array(layer.bias)) < TOLERANCE["float64"]


@pytest.mark.parametrize("rank", RANKS)
def test_strides_and_dilation_may_both_exceed_1(rank, rng):
    geometry = {"strides": 2, "dilation_rate": 2, "padding": "same"}
    layer = deforming(rank, use_bias=False, dtype="float64", **geometry)
    inputs = features(rng, rank, "float64")
    offset, _ = layer.predict_offset(inputs)
    zeros = np.zeros_like(offset)
    predicted = oracles.deformable_conv(inputs, np.array(layer.offset_kernel), zeros, **geometry)
    assert relative_error(offset, predicted + np.array(layer.offset_bias)) < TOLERANCE["float64"]
    expected = oracles.deformable_conv(inputs, np.array(layer.kernel), offset, **geometry)
    assert relative_error(layer(inputs), expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("modulated", (False, True))
@pytest.mark.parametrize("rank", RANKS)
def test_channels_first_moves_the_channels_of_inputs_offsets_and_outputs(rank, modulated, rng):
    inputs = features(rng, rank)
    options = {"strides": 2, "padding": "same", "deformable_groups": 2, "modulated": modulated}
    last = deforming(rank, data_format="channels_last", **options)
    first = deforming(rank, data_format="channels_first", **options)
    first.set_weights(last.get_weights())
    for given in (False, True):
        arguments = last.predict_offset(inputs) if given else ()
        moved = [each if each is None else channels_first(each) for each in arguments]
        outputs = first(channels_first(inputs), *moved)
        assert outputs.shape == first.compute_output_shape(channels_first(inputs).shape)
        np.testing.assert_array_equal(channels_last(outputs), last(inputs, *arguments))
    predicted = first.predict_offset(channels_first(inputs))
    for moved, expected in zip(predicted, last.predict_offset(inputs), strict=True):
        assert (moved is None) == (expected is None)
        if moved is not None:
            np.testing.assert_array_equal(channels_last(moved), expected)


# The predictor


@pytest.mark.parametrize("rank", RANKS)
def test_predictor_is_a_convolution_whose_first_channels_are_the_offsets(rank, rng):
    layer = deforming(rank, modulated=True, deformable_groups=2, mask_scale=1.5, padding="same")
    inputs = features(rng, rank)
    convolution = CONVOLUTIONS[rank](layer.offset_bias.shape[0], KERNEL[rank], padding="same")
    convolution.build(inputs.shape)
    convolution.set_weights([layer.offset_kernel, layer.offset_bias])
    predicted = np.array(convolution(inputs), np.float64)
    taps = 2 * np.prod(KERNEL[rank])
    offset, modulation = layer.predict_offset(inputs)
    assert modulation.shape == (2, *SPACE[rank], taps)
    assert relative_error(offset, predicted[..., : taps * rank]) < TOLERANCE["float32"]
    expected = 1.5 / (1 + np.exp(-predicted[..., taps * rank :]))
    assert relative_error(modulation, expected) < TOLERANCE["float32"]


def test_an_unmodulated_layer_predicts_no_modulation(rng):
    layer = deforming(2)
    offset, modulation = layer.predict_offset(features(rng, 2))
    assert modulation is None
    assert offset.shape == (2, 6, 6, 2 * 6)


@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
def test_predicted_offsets_given_back_change_nothing(data_format, rng):
    layer = deforming(2, modulated=True, data_format=data_format)
    inputs = features(rng, 2)
    inputs = inputs if data_format == "channels_last" else channels_first(inputs)
    np.testing.assert_array_equal(layer(inputs), layer(inputs, *layer.predict_offset(inputs)))


@pytest.mark.parametrize("dtype", ("mixed_float16", "mixed_bfloat16", "float64"))
def test_predict_offset_returns_what_the_call_uses_under_every_policy(dtype, rng):
    layer = deforming(2, modulated=True, dtype=dtype)
    inputs = features(rng, 2)  # float32, as images come
    offset, modulation = layer.predict_offset(inputs)
    assert offset.dtype == modulation.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_array_equal(layer(inputs), layer(inputs, offset, modulation))


def test_a_mask_scale_of_1_halves_the_untrained_layer(rng):
    inputs = features(rng, 2)
    layer = LAYERS[2](FILTERS, 3, modulated=True, mask_scale=1.0)
    halved = layer(inputs)
    plain = LAYERS[2](FILTERS, 3)
    plain.build(inputs.shape)
    plain.set_weights([*layer.get_weights()[:2], *plain.get_weights()[2:]])
    np.testing.assert_array_equal(halved, 0.5 * np.array(plain(inputs)))


@pytest.mark.parametrize("rank", RANKS)
def test_max_offset_bounds_the_predicted_offsets_smoothly(rank, rng):
    inputs = 3 * features(rng, rank)
    free, bounded = deforming(rank), deforming(rank, max_offset=0.75)
    bounded.set_weights(free.get_weights())
    raw, offset = np.array(free.predict_offset(inputs)[0]), bounded.predict_offset(inputs)[0]
    assert np.max(np.abs(raw)) > 2
    assert relative_error(offset, 0.75 * np.tanh(raw / 0.75)) < TOLERANCE["float32"]
    np.testing.assert_array_equal(bounded(inputs), bounded(inputs, offset))


def test_max_offset_leaves_given_offsets_alone(rng):
    inputs = features(rng, 2)
    free, bounded = deforming(2), deforming(2, max_offset=0.1)
    bounded.set_weights(free.get_weights())
    offset = given_offset(rng, free, free(inputs).shape)
    np.testing.assert_array_equal(bounded(inputs, offset), free(inputs, offset))


# Offsets given


@pytest.mark.parametrize("modulated", (False, True))
def test_a_layer_first_called_with_an_offset_has_no_predictor(modulated, rng):
    inputs = features(rng, 2)
    layer = LAYERS[2](FILTERS, KERNEL[2], deformable_groups=2, modulated=modulated, padding="same")
    offset = given_offset(rng, layer, inputs.shape)
    mask = rng.uniform(0.2, 1.7, (*offset.shape[:-1], 12)) if modulated else None
    actual = layer(inputs, offset, mask)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
    expected = oracles.deformable_conv(inputs, layer.kernel.numpy(), offset, mask, padding="same")
    assert relative_error(actual, expected) < TOLERANCE["float32"]
    for call in (layer, layer.predict_offset):
        with pytest.raises(ValueError, match=r"built with an offset and has no predictor"):
            call(inputs)


def test_a_layer_with_a_predictor_also_takes_an_offset(rng):
    inputs = features(rng, 2)
    layer = deforming(2)
    offset = given_offset(rng, layer, layer(inputs).shape)
    expected = oracles.deformable_conv(inputs, layer.kernel.numpy(), offset)
    assert relative_error(layer(inputs, offset), expected) < TOLERANCE["float32"]


def test_modulation_is_given_beside_an_offset_and_never_alone(rng):
    inputs = features(rng, 2)
    layer = deforming(2, modulated=True)
    offset, modulation = layer.predict_offset(inputs)
    with pytest.raises(ValueError, match=r"modulation must be given beside the offset"):
        layer(inputs, offset)
    with pytest.raises(ValueError, match=r"modulation must come with an offset"):
        layer(inputs, modulation=modulation)


def test_given_offsets_are_not_rounded_to_half_precision():
    row = np.tile([0.0, 1.0], 600)[None, :, None].astype("float32")
    layer = LAYERS[1](1, 1, kernel_initializer="ones", dtype="mixed_float16")
    offset = np.zeros((1, 1200, 1), "float32")
    offset[0, 0] = 1001.3  # in half precision 1001.5
    assert layer(row, offset).dtype == "float16"
    np.testing.assert_allclose(layer(row, offset)[0, 0, 0], 0.7, atol=1e-3)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 3e9, -1e30))
def test_samples_at_absurd_offsets_are_zero_with_zero_gradient(value, rng):
    inputs = features(rng, 2)
    layer = LAYERS[2](FILTERS, KERNEL[2], padding="same", bias_initializer="ones")
    offset = np.full((*inputs.shape[:-1], 12), value, "float32")
    np.testing.assert_array_equal(layer(inputs, offset), np.ones((2, *SPACE[2], FILTERS)))
    for gradient in gradients(layer, inputs, offset):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


# Training


@pytest.mark.parametrize("modulated", (False, True))
@pytest.mark.parametrize("rank", RANKS)
def test_offsets_learn_from_their_zero_initialisation(rank, modulated, rng):
    layer = LAYERS[rank](FILTERS, 3, padding="same", modulated=modulated)
    inputs = features(rng, rank)
    layer.build(inputs.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) ** 2)
    for gradient in tape.gradient(loss, [layer.offset_kernel.value, layer.offset_bias.value]):
        assert np.mean(np.abs(gradient) > 1e-6) > 0.9


def test_offset_gradient_scale_scales_the_gradient_of_the_predictor_alone(rng):
    inputs = tf.constant(features(rng, 2))

    def weight_gradients(scale):
        layer = deforming(2, modulated=True, offset_gradient_scale=scale)
        weights = np.random.default_rng(2)
        layer.set_weights([weights.normal(0, 0.2, each.shape) for each in layer.weights])
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(outputs**2)
        assert [weight.name for weight in layer.weights[2:]] == ["offset_kernel", "offset_bias"]
        return outputs, *tape.gradient(loss, [inputs, *(each.value for each in layer.weights)])

    *same, kernel, bias = weight_gradients(1.0)
    *unscaled, scaled_kernel, scaled_bias = weight_gradients(0.25)
    for actual, expected in zip(unscaled, same, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert np.max(np.abs(kernel)) > 1e-3
    np.testing.assert_array_equal(scaled_kernel, 0.25 * kernel)
    np.testing.assert_array_equal(scaled_bias, 0.25 * bias)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_the_predictor_is_that_of_tanh_times_the_scale(mode, rng):
    inputs = tf.constant(features(rng, 2, "float64"))
    layer = deforming(2, max_offset=0.9, offset_gradient_scale=0.25, dtype="float64")
    start = layer.offset_bias.numpy()
    direction = rng.normal(size=start.shape)

    def loss(bias):
        layer.offset_bias.assign(bias)
        return tf.reduce_sum(layer(inputs) ** 2).numpy()

    step = 1e-6
    slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    layer.offset_bias.assign(start)

    @MODES[mode]
    def gradient():
        with tf.GradientTape() as tape:
            outputs = tf.reduce_sum(layer(inputs) ** 2)
        return tape.gradient(outputs, layer.offset_bias.value)

    assert abs(slope) > 1
    assert np.sum(gradient() * direction) == pytest.approx(0.25 * slope, rel=1e-6)


def test_an_offset_gradient_scale_of_0_freezes_the_predictor(rng):
    inputs = features(rng, 2)
    layer = deforming(2, offset_gradient_scale=0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) ** 2)
    for gradient in tape.gradient(loss, [layer.offset_kernel.value, layer.offset_bias.value]):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_regularizers_activation_and_constraints_act_as_in_keras(rng):
    options = {
        "activation": "relu",
        "kernel_regularizer": keras.regularizers.L2(0.5),
        "bias_regularizer": keras.regularizers.L1(0.25),
        "activity_regularizer": keras.regularizers.L1(0.125),
        "bias_initializer": "ones",
    }
    inputs = features(rng, 2)
    layer = LAYERS[2](FILTERS, 3, **options)
    convolution = CONVOLUTIONS[2](FILTERS, 3, **options)
    layer(inputs)
    convolution.build(inputs.shape)
    convolution.set_weights(layer.get_weights()[:2])
    assert relative_error(layer(inputs), convolution(inputs)) < TOLERANCE["float32"]
    assert relative_error(sorted(layer.losses), sorted(convolution.losses)) < TOLERANCE["float32"]

    constrained = LAYERS[2](FILTERS, 3, kernel_constraint="non_neg", bias_constraint="unit_norm")
    constrained.build(inputs.shape)
    constraints = [type(each.constraint).__name__ for each in constrained.weights]
    assert constraints == ["NonNeg", "UnitNorm", "NoneType", "NoneType"]


# Sizes of zero


@pytest.mark.parametrize("predicted", (False, True))
@pytest.mark.parametrize("rank", RANKS)
def test_an_empty_batch_gives_an_empty_result(rank, predicted, rng):
    inputs = features(rng, rank)[:0]
    layer = LAYERS[rank](FILTERS, KERNEL[rank], padding="same")
    offset = [] if predicted else [given_offset(rng, layer, inputs.shape)]
    assert layer(inputs, *offset).shape == (0, *SPACE[rank], FILTERS)


@pytest.mark.parametrize("data_format", ("channels_first", "channels_last"))
@pytest.mark.parametrize("predicted", (False, True))
def test_inputs_smaller_than_the_kernel_are_refused_as_by_keras(predicted, data_format):
    layer = LAYERS[2](FILTERS, 5, data_format=data_format)

    def given(batch, *size, channels=(CHANNELS, 50)):
        shapes = [(batch, *size, channels[0]), (batch, 0, 3, channels[1])][: 1 if predicted else 2]
        first = data_format == "channels_first"
        return [(shape[0], shape[3], *shape[1:3]) if first else shape for shape in shapes]

    message = (
        r"inputs must be at least \[5, 5\] pixels.*, received \[3, 7\]; same padding takes any"
    )
    with pytest.raises(ValueError, match=message):
        layer(*(np.zeros(shape, "float32") for shape in given(2, 3, 7)))
    with pytest.raises(ValueError, match=message):
        layer(*(keras.KerasTensor(shape) for shape in given(None, 3, 7)))
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape(*given(2, 3, 7))
    empty = layer(*(np.zeros(shape, "float32") for shape in given(0, 3, 7)))
    assert sorted(empty.shape) == sorted((0, 0, 3, FILTERS))
    traced = tf.function(lambda *each: layer(*each))
    free = [[None if size in (0, 2, 3, 7) else size for size in shape] for shape in given(2, 3, 7)]
    traced = traced.get_concrete_function(*(tf.TensorSpec(shape) for shape in free))
    at_run_time = (
        r"inputs must be at least \[5, 5\] pixels.* received\] \[3 7\] \[same padding takes"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=at_run_time):
        traced(*(tf.zeros(shape) for shape in given(2, 3, 7)))


# Bad input

BAD_OPTIONS = {
    r"filters must be an int of at least 1, received 0": {"filters": 0},
    r"kernel_size must be an int or 2 ints of at least 1, received \(3, 3, 3\)": {
        "kernel_size": (3, 3, 3)
    },
    r"strides must be an int or 2 ints of at least 1, received 0": {"strides": 0},
    r"dilation_rate must be an int or 2 ints of at least 1, received \(1, 0\)": {
        "dilation_rate": (1, 0)
    },
    r"padding must be one of 'valid', 'same', received 'full'": {"padding": "full"},
    r"padding must be a string, an int or 2 .* pairs of at least 0, received .*-1": {"padding": -1},
    r"padding must be .* 2 \(before, after\) pairs .*, received \(\(1, 2\),\)": {
        "padding": ((1, 2),)
    },
    r"data_format must be one of 'channels_last', 'channels_first', received 'NCHW'": {
        "data_format": "NCHW"
    },
    r"filters must be divisible by groups, received 6 and 4": {"groups": 4},
    r"deformable_groups must be an int of at least 1, received 0": {"deformable_groups": 0},
    r"max_offset must be None or a finite number above 0, received -1.0": {"max_offset": -1.0},
    r"max_offset must be None or a finite number above 0, received inf": {"max_offset": np.inf},
    r"offset_gradient_scale must be a finite number of at least 0, received -0.5": {
        "offset_gradient_scale": -0.5
    },
    r"offset_gradient_scale must be a finite number of at least 0, received nan": {
        "offset_gradient_scale": np.nan
    },
    r"offset_gradient_scale must be .*, received '0.1'": {"offset_gradient_scale": "0.1"},
    r"mask_scale must be a finite number above 0, received 0": {"mask_scale": 0},
    r"modulated must be True or False, received 'yes'": {"modulated": "yes"},
    r"use_bias must be True or False, received 1": {"use_bias": 1},
    r"data_format must be one of .*, received ''": {"data_format": ""},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_a_bad_option_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError, match=message):
        LAYERS[2](**{"filters": FILTERS, "kernel_size": 3, **BAD_OPTIONS[message]})


BAD_SHAPES = {
    r"inputs must have rank 4 .*received \(8, 7, 4\)": ((8, 7, 4), None),
    r"inputs must have channels divisible by groups=2, received \(2, 8, 7, 5\)": (
        (2, 8, 7, 5),
        None,
    ),
    r"offset must have .*18.*received .*2, 6, 5, 17": (
        (2, 8, 7, 4),
        (2, 6, 5, 17),
    ),
    r"offset must have shape .*\[2, 6, 5, .*\], received \[2, 6, 4, 18\]": (
        (2, 8, 7, 4),
        (2, 6, 4, 18),
    ),
    r"offset must have .*18.*received .*2, 6, 5, 36": ((2, 8, 7, 4), (2, 6, 5, 36)),
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_a_bad_shape_is_named_with_what_was_expected_and_received(message):
    inputs, offset = BAD_SHAPES[message]
    arguments = [np.zeros(inputs, "float32")]
    if offset is not None:
        arguments.append(np.zeros(offset, "float32"))
    with pytest.raises(ValueError, match=message):
        LAYERS[2](FILTERS, 3, groups=2)(*arguments)


def test_a_modulation_of_the_wrong_shape_is_called_by_its_own_name(rng):
    layer = deforming(2, modulated=True)
    offset, modulation = layer.predict_offset(features(rng, 2))
    with pytest.raises(ValueError, match=r"modulation must .*6.*received .*2, 6, 6, 5"):
        layer(features(rng, 2), offset, modulation[..., :5])


@pytest.mark.parametrize("channels", (2, 8))
def test_a_built_layer_refuses_another_number_of_channels(channels, rng):
    layer = deforming(2)
    with pytest.raises(ValueError, match=rf"4.*{channels}"):
        layer(rng.normal(size=(2, *SPACE[2], channels)).astype("float32"))


def test_integers_are_refused(rng):
    inputs = features(rng, 2)
    layer = deforming(2)
    with pytest.raises(TypeError, match=r"inputs must be floating-point, received uint8"):
        layer(inputs.astype("uint8"))
    with pytest.raises(TypeError, match=r"offset must be floating-point, received int32"):
        layer(inputs, np.zeros((2, 6, 6, 12), "int32"))


def test_predicting_before_the_layer_is_built_says_so(rng):
    with pytest.raises(ValueError, match=r"built"):
        LAYERS[2](FILTERS, 3).predict_offset(features(rng, 2))


def test_an_offset_that_does_not_fit_is_an_error_at_run_time_where_sizes_are_free(rng):
    layer = deforming(2)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, size]) for size in (CHANNELS, 12)]
    )
    def call(inputs, offset):
        return layer(inputs, offset)

    inputs = features(rng, 2)
    assert call(inputs, np.zeros((2, 6, 6, 12), "float32")).shape == (2, 6, 6, FILTERS)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"offset must have shape"):
        call(inputs, np.zeros((2, 6, 5, 12), "float32"))
