"""Low-rank adaptation of deformable convolutions, beside that of Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import KERAS, relative_error

SHAPE = (2, 9, 7, 4)
OPTIONS = {"filters": 6, "kernel_size": (3, 2), "groups": 2, "kernel_regularizer": "l2"}


def adapted(layer, rng, rank=3, **options):
    """Returns the layer, built, with LoRA and matrices that change it."""
    if not layer.built:
        layer.build(SHAPE)
    layer.enable_lora(rank, **options)
    layer.lora_kernel_b.assign(rng.normal(0, 0.3, layer.lora_kernel_b.shape))
    return layer


def deforming(**options):
    offsets = keras.initializers.RandomNormal(0, 0.2, seed=1)
    layer = tfd.layers.DeformableConv2D(**OPTIONS, offset_kernel_initializer=offsets, **options)
    layer.build(SHAPE)
    return layer


@pytest.mark.parametrize("alpha", [None, *([6.0] if KERAS >= (3, 12) else [])])
def test_it_changes_an_undeformed_layer_as_keras_changes_its_convolution(rng, alpha):
    plain = keras.layers.Conv2D(**OPTIONS)
    ours = tfd.layers.DeformableConv2D(**OPTIONS)
    options = {} if alpha is None else {"lora_alpha": alpha}
    for layer in (plain, ours):
        layer.build(SHAPE)
        adapted(layer, rng, **options)
    weights = plain.get_weights()
    ours._kernel.assign(plain._kernel)
    for name in ("bias", "lora_kernel_a", "lora_kernel_b"):
        getattr(ours, name).assign(getattr(plain, name))
    inputs = rng.normal(size=SHAPE).astype("float32")
    assert relative_error(ours(inputs), plain(inputs)) < 1e-5
    assert relative_error(tf.add_n(ours.losses), tf.add_n(plain.losses)) < 1e-5
    assert len(weights) == 4
    offsets = {"offset_kernel", "offset_bias"}
    trainable = {weight.name for weight in ours.trainable_weights}
    assert trainable == {weight.name for weight in plain.trainable_weights} | offsets
    assert ours.get_config()["lora_rank"] == plain.get_config()["lora_rank"] == 3
    assert ours.get_config()["lora_alpha"] == (alpha or 3)


def test_training_moves_the_change_and_the_offsets_and_leaves_the_kernel(rng):
    model = keras.Sequential([keras.Input(SHAPE[1:]), adapted(deforming(), rng)])
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.compile("adam", "mse")
    inputs = rng.normal(size=SHAPE).astype("float32")
    model.fit(inputs, np.ones(model.output_shape[1:]) + np.zeros([2, 1, 1, 1]), verbose=0)
    for weight in model.weights:
        moved = np.any(weight.numpy() != before[weight.path])
        assert moved == (weight.name != "kernel"), weight.path


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_saving_merges_the_change_and_what_is_loaded_can_learn_another(rng, tmp_path, file):
    layer = adapted(deforming(), rng, lora_alpha=2)
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    inputs = rng.normal(size=SHAPE).astype("float32")
    expected = model(inputs)
    if file == "model.keras":
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
    else:
        model.save_weights(tmp_path / file)
        loaded = model  # whose change is in the kernel that it loads, and must not count twice
        loaded.load_weights(tmp_path / file)
    assert relative_error(loaded(inputs), expected) < 1e-5
    (again,) = loaded.layers
    assert again.lora_enabled
    assert again.lora_alpha == 2
    assert np.any(again.lora_kernel_a != 0)  # else no gradient would reach the other matrix
    assert not np.any(again.lora_kernel_b)
    plain = deforming()
    plain.load_own_variables({str(i): w for i, w in enumerate([layer.kernel, *layer.weights[1:4]])})
    assert relative_error(plain(inputs), expected) < 1e-5


def test_the_constructor_enables_it(rng):
    layer = deforming(lora_rank=2, lora_alpha=8)
    assert layer.lora_enabled
    assert [tuple(w.shape) for w in (layer.lora_kernel_a, layer.lora_kernel_b)] == [
        (3, 2, 2, 2),
        (2, 6),
    ]
    inputs = rng.normal(size=SHAPE).astype("float32")
    before = layer(inputs)
    layer.lora_kernel_b.assign(rng.normal(size=(2, 6)))
    change = tf.tensordot(layer.lora_kernel_a.value, layer.lora_kernel_b.value, 1)
    layer.lora_kernel_b.assign(np.zeros([2, 6]))
    layer._kernel.assign(layer._kernel + 4 * change)  # lora_alpha / lora_rank
    moved = layer(inputs)
    assert relative_error(moved, before) > 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_its_matrices_are_float32_under_mixed_precision(rng, policy):
    layer = adapted(deforming(dtype=policy), rng)
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    assert layer(rng.normal(size=SHAPE).astype("float32")).dtype == policy.removeprefix("mixed_")


def test_what_cannot_be_adapted_is_refused(rng):
    with pytest.raises(ValueError, match="must be built before it can enable LoRA"):
        tfd.layers.DeformableConv2D(6, 3).enable_lora(2)
    with pytest.raises(ValueError, match="must have kernel_constraint=None for LoRA, received"):
        deforming(kernel_constraint="max_norm").enable_lora(2)
    layer = adapted(deforming(), rng)
    with pytest.raises(ValueError, match="must not have LoRA enabled already"):
        layer.enable_lora(2)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="rank must be an int of at least 1"):
            deforming().enable_lora(wrong)
