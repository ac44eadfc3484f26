"""The check after an export finds what differs, and leaves out what the model itself refuses."""

import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from tf_deform.export import input_specs, server_of
from tf_deform.export_check import check_export, difference, samples

FREE = keras.Input((None, None, 2), name="images")


def doubling():
    return keras.Model(FREE, keras.layers.Rescaling(2.0, name="doubled")(FREE))


def checked(model, change=lambda feeds, outputs: None, **options):
    """Checks an engine that returns what the model does, but for the change; returns its inputs."""
    inputs, received = input_specs(model, None), []

    def run(feeds):
        tensors = tf.nest.pack_sequence_as(inputs, list(feeds.values()))
        outputs = {name: np.array(each) for name, each in server_of(model)(tensors).items()}
        received.append(feeds)
        change(feeds, outputs)
        return outputs

    check_export(model, inputs, run, "the engine", **options)
    return received


def shapes_of(received):
    return [tuple(each.shape for each in feeds.values()) for feeds in received]


# What is found


def test_equal_outputs_pass_without_a_warning(recwarn):
    checked(doubling())
    assert not list(recwarn)


def test_other_values_are_named_with_the_inputs():
    def change(feeds, outputs):
        outputs["doubled"] *= 1.01

    with pytest.raises(ValueError, match=r"the engine must .* values of 'doubled': .*images \(3, "):
        checked(doubling(), change)


@pytest.mark.parametrize("size", ["images", "height", "width"])
def test_values_wrong_at_one_size_alone_are_found(size):
    wanted = {"images": (3, 96, 128), "height": (1, 101, 83), "width": (3, 128, 96)}[size]

    def change(feeds, outputs):
        if feeds["images"].shape[:3] == wanted:
            outputs["doubled"] = outputs["doubled"][::-1, ::-1, ::-1]

    with pytest.raises(ValueError, match="values of 'doubled'"):
        checked(doubling(), change)


def test_another_shape_is_named():
    def change(feeds, outputs):
        outputs["doubled"] = outputs["doubled"][:, 1:]

    with pytest.raises(
        ValueError, match=r"of shape \(3, 95, 128, 2\) instead of \(3, 96, 128, 2\)"
    ):
        checked(doubling(), change)


def test_nan_is_wrong_where_the_model_is_finite_and_right_where_it_is_not():
    wanted, found = np.float32([1, np.nan, np.inf, 2]), np.float32([1, 5, 6, 2])
    assert difference({"a": wanted}, {"a": found}, 1e-3) is None
    found[0] = np.nan
    assert "'a'" in difference({"a": wanted}, {"a": found}, 1e-3)


def test_one_element_in_a_thousand_may_be_another():
    wanted = np.ones(2000, np.float32)
    found = np.where(np.arange(2000) < 2, 9, wanted)
    assert difference({"a": wanted}, {"a": found}, 1e-3) is None
    assert "0%" in difference({"a": wanted}, {"a": np.where(np.arange(2000) < 3, 9, 1)}, 1e-3)


def test_integers_and_booleans_are_compared_and_strings_are_not():
    for wanted in (np.int32([7, 2]), np.array([True, False])):
        assert difference({"a": wanted}, {"a": wanted}, 1e-3) is None
        assert "'a'" in difference({"a": wanted}, {"a": wanted[::-1]}, 1e-3)
    assert difference({"a": np.array(["x"])}, {"a": np.array(["y"])}, 1e-3) is None


def test_outputs_drawn_anew_at_each_call_are_left_out():
    noise = keras.layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)), lambda shape: shape)
    checked(keras.Model(FREE, noise(FREE)))


def test_half_precision_is_compared_less_closely():
    def change(feeds, outputs):
        outputs["doubled"] *= 1.01

    layer = keras.layers.Rescaling(2.0, name="doubled", dtype="mixed_float16")
    checked(keras.Model(FREE, layer(FREE)), change)


def test_an_engine_may_be_given_a_tolerance():
    def change(feeds, outputs):
        outputs["doubled"] *= 1.01

    checked(doubling(), change, tolerance=0.02)
    with pytest.raises(ValueError, match="values of 'doubled'"):
        checked(doubling(), change, tolerance=0.005)


# What is left out, and what is told


def test_sizes_that_the_model_refuses_are_left_out(recwarn):
    halves = keras.layers.UpSampling2D()(keras.layers.AveragePooling2D(2)(FREE))
    model = keras.Model(FREE, keras.layers.Add()([FREE, halves]))
    assert shapes_of(checked(model)) == [((3, 96, 128, 2),), ((3, 128, 96, 2),), ((0, 96, 128, 2),)]
    assert not list(recwarn)


def test_an_engine_must_run_what_is_not_empty_and_may_refuse_the_rest():
    def refuse(feeds, outputs):
        if min(feeds["images"].shape[:3]) < least:
            raise RuntimeError("none of that")

    least = 1
    with pytest.warns(UserWarning, match=r"the engine refuses .*: images \(0, 96, 128, 2\)$"):
        checked(doubling(), refuse)
    least = 2
    with pytest.raises(ValueError, match=r"images \(1, 101, 83, 2\): none of that"):
        checked(doubling(), refuse)


def test_an_engine_that_would_not_survive_gets_nothing_empty_nor_tiny():
    (shapes,) = zip(*shapes_of(checked(doubling(), survives=False)), strict=True)
    assert shapes == ((3, 96, 128, 2), (1, 101, 83, 2), (3, 128, 96, 2))


def test_a_model_that_takes_none_of_the_sizes_is_told():
    images = keras.Input((None, None, 2))
    model = keras.Model([FREE, images], keras.layers.Add()([FREE, images[:, 1:]]))
    with pytest.warns(UserWarning, match=r"has not been compared .* as sample"):
        checked(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = [np.ones([2, 4, 6, 2], "float32"), np.ones([2, 5, 6, 2], "float32")]
        shapes = shapes_of(checked(model, sample=sample))
    assert [[size for size, *_ in each] for each in shapes] == [[2, 2], [1, 1], [0, 0]]


# Inputs


def inputs_for(*specs):
    specs = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(specs)]
    return [tuple(feeds.values()) for feeds, _ in samples(specs)]


def test_smooth_images_are_of_the_same_sizes_and_deviation_and_neighbours_are_alike():
    specs = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 7])]
    specs = [tf.TensorSpec(each.shape, each.dtype, f"input_{i}") for i, each in enumerate(specs)]
    noise, smooth = ([*samples(specs, smooth=wanted)] for wanted in (False, True))
    assert len(noise) == len(smooth)
    for (rough, _), (even, _) in zip(noise, smooth, strict=True):
        assert all(rough[name].shape == even[name].shape for name in rough)
        assert all(rough[name].dtype == even[name].dtype for name in rough)
        np.testing.assert_array_equal(rough["input_1"], even["input_1"])  # no images
        images = even["input_0"]
        if images.size > 10_000:
            assert 0.7 < np.std(images) < 1.3
            assert np.std(np.diff(images, axis=1)) < 0.5  # of noise 1.4
            assert np.std(np.diff(images, axis=2)) < 0.5


def test_free_sizes_are_0_and_1_and_3_among_others():
    feeds = inputs_for(([None, None, None, 3], tf.float32), ([None, None, 7], tf.float32))
    images, steps = zip(*feeds, strict=True)
    assert {len(each) for each in images} >= {0, 1, 3}
    assert {each.shape[1] for each in steps} >= {0, 1, 3}
    assert {each.shape[1:3] for each in images} >= {(1, 1), (3, 3)}
    assert all(len(a) == len(b) for a, b in feeds)


def test_fixed_sizes_are_compared_at_three_batches():
    feeds = inputs_for(([None, 9, 7, 3], tf.float32), ([None, 2], tf.float64))
    assert [[each.shape for each in pair] for pair in feeds] == [
        [(n, 9, 7, 3), (n, 2)] for n in (3, 1, 0)
    ]
    assert feeds[0][1].dtype == "float64"


def test_each_dtype_has_valid_values():
    boxes, indices, pixels, flags = inputs_for(
        ([None, None, 4], tf.float32),
        ([None, 50], tf.int64),
        ([None, 20, 20, 3], tf.uint8),
        ([None, 50], tf.bool),
    )[0]
    assert np.all(boxes[..., :2] < boxes[..., 2:]) and np.any(np.max(boxes, axis=-1) <= 1)
    assert set(np.unique(indices)) == {0, 1}
    assert pixels.dtype == np.uint8 and np.max(pixels) > 200
    assert set(np.unique(flags)) == {False, True}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([np.ones([2, 4, 6, 2])] * 2, "sample must have 1 inputs, received 2"),
        (np.ones([2, 4, 6, 3]), r"sample must have 'images' of shape .*, received \(2, 4, 6, 3\)"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        checked(doubling(), sample=sample)


# In export_onnx


def head(flatten):
    features, boxes = keras.Input((None, None, 4)), keras.Input((None, 4))
    regions = tfd.layers.RoIAlign((2, 3))(features, boxes)
    return keras.Model([features, boxes], keras.layers.Dense(5, name="scores")(flatten(regions)))


@pytest.fixture
def runtime():
    return pytest.importorskip("onnxruntime", "1.25")


def test_time_distributed_layers_over_free_steps_are_refused_with_a_remedy(tmp_path, runtime):
    path = tmp_path / "model.onnx"
    path.write_text("as it was")
    model = head(keras.layers.TimeDistributed(keras.layers.Flatten()))
    with pytest.raises(ValueError, match=r"'scores' .*TimeDistributed.*Reshape\(\(-1, n\)\)"):
        tfd.export_onnx(model, path)
    assert path.read_text() == "as it was"
    tfd.export_onnx(model, path, check=False)
    assert path.read_bytes() != b"as it was"


def test_the_remedy_passes(tmp_path, runtime, recwarn):
    tfd.export_onnx(head(keras.layers.Reshape((-1, 24))), tmp_path / "model.onnx")
    assert not [each for each in recwarn if "onnxruntime" in str(each.message)]


def test_a_sample_is_what_the_file_is_run_with(tmp_path, runtime):
    with pytest.raises(ValueError, match="sample must have 1 inputs"):
        tfd.export_onnx(doubling(), tmp_path / "model.onnx", sample=[np.ones([2, 4, 6, 2])] * 2)
    model = head(keras.layers.TimeDistributed(keras.layers.Flatten()))
    sample = [np.ones([2, 9, 7, 4]), np.ones([2, 2, 4])]  # as many boxes as images, or none
    with pytest.raises(ValueError, match=r"inputs_0 \(1, 9, 7, 4\), inputs_1 \(1, 2, 4\)"):
        tfd.export_onnx(model, tmp_path / "model.onnx", sample=sample)


def test_without_onnxruntime_a_warning_says_that_the_file_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match="not run .*: onnxruntime is not installed"):
        tfd.export_onnx(doubling(), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfd.export_onnx(doubling(), tmp_path / "model.onnx", check=False)
