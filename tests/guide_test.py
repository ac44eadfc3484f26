"""Deformable convolutions whose offsets are predicted from other features than the inputs."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import MODES, TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

OPTIONS = {"filters": 6, "kernel_size": 3, "padding": "same", "modulated": True}
RANDOM = keras.initializers.RandomNormal(stddev=0.3, seed=1)


def guided(rng, **options):
    """Returns a built layer, its inputs and their guide."""
    inputs, guide = (rng.normal(size=(2, 8, 7, n)).astype("float32") for n in (4, 3))
    layer = tfd.layers.DeformableConv2D(**OPTIONS, offset_kernel_initializer=RANDOM, **options)
    layer(inputs, guide=guide)
    return layer, inputs, guide


@pytest.mark.parametrize("traced", MODES)
def test_offsets_and_modulation_are_predicted_from_the_guide(rng, traced):
    layer, inputs, guide = guided(rng)
    assert layer.offset_kernel.shape == (3, 3, 3, 27)
    actual = MODES[traced](lambda x, g: layer(x, guide=g))(inputs, guide)
    predicted = tf.nn.conv2d(guide, layer.offset_kernel, 1, "SAME").numpy()
    mask = 2 / (1 + np.exp(-predicted[..., 18:]))
    expected = oracles.deformable_conv(
        inputs, layer.kernel.numpy(), predicted[..., :18], mask, padding="same"
    )
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_a_guide_of_channels_first(rng):
    layer, inputs, guide = guided(rng)
    first = tfd.layers.DeformableConv2D(**OPTIONS, data_format="channels_first")
    inputs_first, guide_first = (np.moveaxis(each, -1, 1) for each in (inputs, guide))
    first.build(inputs_first.shape, guide_shape=guide_first.shape)
    first.set_weights(layer.get_weights())
    assert first.compute_output_shape((2, 4, 8, 7), guide_shape=(2, 3, 8, 7)) == (2, 6, 8, 7)
    actual = np.moveaxis(first(inputs_first, guide=guide_first), 1, -1)
    assert relative_error(actual, layer(inputs, guide=guide)) < TOLERANCE["float32"]


def test_what_is_predicted_and_where_it_samples_follow_the_guide(rng):
    layer, inputs, guide = guided(rng, max_offset=2.0)
    offset, modulation = layer.predict_offset(inputs, guide)
    assert np.any(offset) and not np.any(np.abs(offset) > 2)
    np.testing.assert_allclose(layer(inputs, offset, modulation), layer(inputs, guide=guide))
    positions = layer.sampling_positions(inputs, guide=guide)
    np.testing.assert_array_equal(positions, layer.sampling_positions(inputs, offset, modulation))


def test_a_guide_is_not_rounded_to_half_precision(rng):
    layer, inputs, guide = guided(rng)
    mixed = tfd.layers.DeformableConv2D(**OPTIONS, dtype="mixed_bfloat16")
    mixed.build(inputs.shape, guide_shape=guide.shape)
    mixed.set_weights(layer.get_weights())
    offset, _ = mixed.predict_offset(inputs, guide)
    np.testing.assert_array_equal(offset, layer.predict_offset(inputs, guide)[0])
    assert mixed(inputs, guide=guide).dtype == "bfloat16"


def test_a_functional_model_with_a_guide_of_free_size_is_saved_and_loaded(rng, tmp_path):
    images, other = keras.Input((None, None, 4)), keras.Input((None, None, 3))
    layer = tfd.layers.DeformableConv2D(**OPTIONS, offset_kernel_initializer=RANDOM)
    model = keras.Model([images, other], layer(images, guide=other))
    assert model.output_shape == (None, None, None, 6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for space in ((8, 7), (5, 9)):
        given = [rng.normal(size=(2, *space, n)).astype("float32") for n in (4, 3)]
        np.testing.assert_array_equal(loaded(given), model(given))


def test_the_monitor_of_offsets_sees_those_that_the_guide_makes(rng):
    images, other = keras.Input((8, 7, 4)), keras.Input((8, 7, 3))
    layer = tfd.layers.DeformableConv2D(**OPTIONS, offset_kernel_initializer=RANDOM)
    model = keras.Model([images, other], layer(images, guide=other))
    model.compile("sgd", "mse", jit_compile=False)
    given = [rng.normal(size=(2, 8, 7, n)).astype("float32") for n in (4, 3)]
    monitor = tfd.callbacks.OffsetMonitor(given, log_dir=None)
    model.fit(given, np.zeros([2, 8, 7, 6]), epochs=1, verbose=0, callbacks=[monitor])
    offset = layer.predict_offset(*given)[0].numpy().reshape(-1, 2)
    expected = np.mean(np.linalg.norm(offset, axis=-1))
    assert monitor.statistics[layer.name].offset_magnitude == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (np.zeros([2, 8, 6, 3], "float32"), r"guide must have shape \[batch, \*space, channels\]"),
        (np.zeros([2, 8, 7, 5], "float32"), r"guide must have shape .+ received \[2, 8, 7, 5\]"),
        (np.zeros([2, 8, 7], "float32"), r"guide must have shape"),
        (None, r"was built with a guide: call it with one, or with an offset"),
    ],
)
def test_a_guide_that_does_not_fit_is_named(rng, guide, message):
    layer, inputs, _ = guided(rng)
    with pytest.raises(ValueError, match=message):
        layer(inputs, guide=guide)


def test_a_guide_of_another_size_is_an_error_at_run_time_where_sizes_are_free(rng):
    layer, inputs, guide = guided(rng)
    free = tf.TensorSpec([None, None, None, 3])
    traced = tf.function(
        lambda inputs, guide: layer(inputs, guide=guide),
        input_signature=[tf.TensorSpec([None, None, None, 4]), free],
    )
    traced(inputs, guide)
    with pytest.raises(tf.errors.InvalidArgumentError, match="guide must have shape"):
        traced(inputs, guide[:, 1:])


def test_a_guide_and_an_offset_are_not_both_taken(rng):
    layer, inputs, guide = guided(rng)
    offset, modulation = layer.predict_offset(inputs, guide)
    with pytest.raises(ValueError, match="guide is what offsets are predicted from: give it, or"):
        layer(inputs, offset, modulation, guide=guide)


def test_a_layer_built_without_a_guide_refuses_one(rng):
    layer = tfd.layers.DeformableConv2D(**OPTIONS)
    inputs = rng.normal(size=(2, 8, 7, 4)).astype("float32")
    layer(inputs)
    with pytest.raises(ValueError, match="was built without a guide: call it without one"):
        layer(inputs, guide=inputs)


def test_a_wrong_guide_is_named_before_the_layer_is_built():
    layer = tfd.layers.DeformableConv2D(**OPTIONS)
    images = keras.Input((8, 7, 4))
    with pytest.raises(ValueError, match=r"guide must have shape .+ of the inputs' size"):
        layer(images, guide=keras.Input((8, 6, 3)))
    with pytest.raises(ValueError, match="guide must have a known number of channels"):
        layer(images, guide=keras.Input((8, 7, None)))


def shifted_pairs(rng, count):
    """Returns smooth frames, the frames moved sideways by a pixel, and by which: -1 or 1."""
    frames = rng.normal(size=(count, 10, 10, 1)).astype("float32")
    frames = 2 * tf.nn.avg_pool2d(frames, 2, 1, "SAME").numpy()
    shifts = rng.choice([-1, 1], count)
    pairs = zip(frames, shifts, strict=True)
    return frames, np.stack([np.roll(frame, shift, axis=1) for frame, shift in pairs]), shifts


def test_the_shift_between_two_frames_is_learned_from_both(rng):
    frame, both = keras.Input((10, 10, 1)), keras.Input((10, 10, 2))
    features = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(both)
    mean = keras.ops.mean(features, axis=(1, 2), keepdims=True)
    guide = mean + 0 * features  # of the frames' size
    align = tfd.layers.DeformableConv2D(
        *(1, 1),
        kernel_initializer="ones",
        use_bias=False,
        train_offsets_only=True,
        offset_kernel_initializer=RANDOM,
    )
    model = keras.Model([frame, both], align(frame, guide=guide))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    frames, moved, _ = shifted_pairs(rng, 256)
    inputs = [moved, np.concatenate([moved, frames], axis=-1)]
    model.fit(inputs, frames, batch_size=64, epochs=40, verbose=0)

    frames, moved, shifts = shifted_pairs(rng, 64)
    inputs = [moved, np.concatenate([moved, frames], axis=-1)]
    offset, _ = align.predict_offset(moved, keras.Model(model.inputs, guide)(inputs))
    found = np.mean(offset, axis=(1, 2))  # [pairs, (y, x)]
    assert np.mean(np.abs(found - np.stack([0 * shifts, shifts], axis=1))) < 0.2


def test_the_documented_alignment_of_two_pyramids_trains(rng):
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    (source,) = re.findall(r"```python\n(def align.*?)```", text, re.DOTALL)
    names = {"keras": keras, "tfd": tfd}
    exec(source, names)
    shapes = [(16, 12, 5), (8, 6, 7)]
    inputs = [keras.Input(shape) for shape in 2 * shapes]
    model = keras.Model(inputs, names["align"](inputs[:2], inputs[2:]))
    assert model.output_shape == [(None, 16, 12, 32), (None, 8, 6, 32)]
    model.compile("adam", "mse", jit_compile=False)
    arrays = [rng.normal(size=(2, *each.shape[1:])).astype("float32") for each in inputs]
    before = model.get_weights()
    targets = [np.ones([2, *shape[1:]], "float32") for shape in model.output_shape]
    model.fit(arrays, targets, epochs=2, verbose=0)
    assert all(np.any(new != old) for new, old in zip(model.get_weights(), before, strict=True))
