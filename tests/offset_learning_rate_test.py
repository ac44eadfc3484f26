"""The learning rate of what predicts offsets, by the steps that optimizers really make."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import relative_error

SHAPE = (2, 9, 7, 4)
OPTIMIZERS = {
    "SGD": lambda rate: keras.optimizers.SGD(rate),
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "Adam": lambda rate: keras.optimizers.Adam(rate, epsilon=1e-30),
    "AdamW": lambda rate: keras.optimizers.AdamW(rate, epsilon=1e-30, weight_decay=0.0),
    "RMSprop": lambda rate: keras.optimizers.RMSprop(rate, epsilon=1e-30),
    "Lion": lambda rate: keras.optimizers.Lion(rate),
}


def model_of(**options):
    """Returns a model of a layer that predicts offsets of about half a pixel."""
    layer = tfd.layers.DeformableConv2D(
        5,
        3,
        modulated=True,
        offset_kernel_initializer=keras.initializers.RandomNormal(0, 0.1, seed=1),
        kernel_initializer=keras.initializers.RandomNormal(0, 0.1, seed=2),
        **options,
    )
    return keras.Sequential([keras.Input(SHAPE[1:]), layer])


def predictor(layer):
    """Returns the weights that the layer predicts with, whatever its variables hold."""
    weights = (layer.offset_kernel, layer.offset_bias)
    return [weight.numpy() * layer.offset_lr_multiplier for weight in weights]


def steps_of(model, optimizer, rng, count=1):
    """Returns how far training moves the predictor's weights and the kernel."""
    (layer,) = model.layers
    before = [*predictor(layer), layer.kernel.numpy()]
    model.compile(optimizer, "mse", jit_compile=False)
    inputs = rng.normal(size=SHAPE).astype("float32")
    targets = rng.normal(size=(2, *model.output_shape[1:])).astype("float32")
    model.fit(inputs, targets, epochs=count, verbose=0)
    after = [*predictor(layer), layer.kernel.numpy()]
    return [late - early for early, late in zip(before, after, strict=True)]


@functools.cache
def first_steps(name, **options):
    return steps_of(model_of(**options), OPTIMIZERS[name](1e-3), np.random.default_rng(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("multiplier", [0.1, 3.0])
def test_the_first_step_of_the_offsets_is_multiplied_and_that_of_the_kernel_is_not(
    name, multiplier
):
    plain, multiplied = first_steps(name), first_steps(name, offset_lr_multiplier=multiplier)
    for actual, expected in zip(multiplied[:2], plain[:2], strict=True):
        assert np.max(np.abs(expected)) > 1e-6
        assert relative_error(actual, multiplier * expected) < 1e-2
    assert relative_error(multiplied[2], plain[2]) < 1e-3


def test_under_sgd_a_whole_training_is_that_with_the_multiplied_rate():
    def trained(**options):
        model = model_of(**options)
        (layer,) = model.layers
        steps = steps_of(model, keras.optimizers.SGD(0.05), np.random.default_rng(3), count=5)
        return steps, layer

    # offset_gradient_scale is what SGD's steps of the offsets are known to be multiplied by.
    (expected, _), (actual, _) = (
        trained(offset_gradient_scale=0.3),
        trained(offset_lr_multiplier=0.3),
    )
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < 1e-3


def test_the_old_argument_does_nothing_under_adam_and_the_new_one_does():
    def step(**options):
        model = model_of(**options)
        return steps_of(model, OPTIMIZERS["Adam"](1e-3), np.random.default_rng(3))[0]

    assert relative_error(step(offset_gradient_scale=0.1), step()) < 1e-3
    assert relative_error(step(offset_lr_multiplier=0.1), 0.1 * step()) < 1e-2


def test_outputs_and_files_are_those_of_the_layer_without_it(rng, tmp_path):
    plain, multiplied = model_of(), model_of(offset_lr_multiplier=0.1)
    inputs = rng.normal(size=SHAPE).astype("float32")
    assert relative_error(multiplied(inputs), plain(inputs)) < 1e-5
    for weight in plain.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    for source, target in ((plain, multiplied), (multiplied, plain)):
        source.save_weights(tmp_path / "model.weights.h5")
        expected = source(inputs)
        for weight in target.weights:
            weight.assign(weight * 0)
        target.load_weights(tmp_path / "model.weights.h5")
        assert relative_error(target(inputs), expected) < 1e-5
    multiplied.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].offset_lr_multiplier == 0.1
    assert relative_error(loaded(inputs), multiplied(inputs)) < 1e-5


def test_without_it_the_variables_are_the_weights_bit_for_bit(rng):
    (layer,) = model_of().layers
    kept = [weight.numpy() for weight in layer.weights]
    store = {}
    layer.save_own_variables(store)
    assert [id(each) for each in store.values()] == [id(weight) for weight in layer.weights]
    layer.load_own_variables(store)
    for weight, before in zip(layer.weights, kept, strict=True):
        np.testing.assert_array_equal(weight, before)


def test_gradients_can_be_differentiated_again(rng):
    (layer,) = model_of(offset_lr_multiplier=0.5).layers
    inputs = tf.constant(rng.normal(size=SHAPE), tf.float32)
    weight = layer.offset_kernel
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(layer(inputs) ** 2)
        gradient = inner.gradient(loss, weight.value)
    assert np.any(outer.gradient(gradient, weight.value) != 0)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), "0.1", None])
def test_a_multiplier_must_be_above_zero(wrong):
    with pytest.raises(ValueError, match="offset_lr_multiplier must be a finite number above 0"):
        tfd.layers.DeformableConv2D(4, 3, offset_lr_multiplier=wrong)


@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_of_a_plain_convolution_are_refused_with_the_remedy(tmp_path, use_bias):
    plain = keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.Conv2D(5, 3, use_bias=use_bias)])
    ours = keras.Sequential(
        [keras.Input(SHAPE[1:]), tfd.layers.DeformableConv2D(5, 3, use_bias=use_bias)]
    )
    plain.save_weights(tmp_path / "plain.weights.h5")
    with pytest.raises(ValueError, match=r"make it deformable by tfd\.deformable\(model\)"):
        ours.load_weights(tmp_path / "plain.weights.h5")
    with pytest.raises(ValueError, match=r"\['kernel',.*'offset_bias'\], received [12];"):
        store = {}
        plain.layers[0].save_own_variables(store)
        ours.layers[0].load_own_variables(store)
