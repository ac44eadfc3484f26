"""OffsetMonitor: what it measures, what it writes, when it warns."""

import itertools
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE

pytestmark = pytest.mark.usefixtures("implementation")

LAYERS = {
    1: tfd.layers.DeformableConv1D,
    2: tfd.layers.DeformableConv2D,
    3: tfd.layers.DeformableConv3D,
}


def measured(model, inputs, tmp_path, epochs=1):
    """Returns a monitor that has watched the model being trained."""
    inputs = tf.nest.map_structure(np.float32, inputs)
    monitor = tfd.callbacks.OffsetMonitor(inputs, log_dir=tmp_path)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    targets = np.zeros(model(inputs).shape, "float32")
    model.fit(inputs, targets, epochs=epochs, callbacks=[monitor], verbose=0)
    return monitor


def randomize(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))


def expected_statistics(offset, space, kernel_size, strides, dilation, before):
    """Returns (magnitude, out of bounds, dead) of offsets `[batch, *output, channels]` by loops."""
    rank = len(space)
    lengths, outside, values = [], [], {}
    taps = list(itertools.product(*map(range, kernel_size)))
    for where in np.ndindex(*offset.shape[:-1]):
        moves = offset[where].reshape(-1, len(taps), rank)
        for group, (number, tap) in itertools.product(moves, enumerate(taps)):
            at = [
                where[1 + axis] * strides[axis]
                - before[axis]
                + tap[axis] * dilation[axis]
                + group[number][axis]
                for axis in range(rank)
            ]
            lengths.append(math.hypot(*group[number]))
            outside.append(
                any(p < -0.5 or p > size - 0.5 for p, size in zip(at, space, strict=True))
            )
        for channel, value in enumerate(offset[where]):
            values.setdefault(channel, set()).add(float(value))
    dead = [len(each) == 1 for each in values.values()]
    return np.mean(lengths), np.mean(outside), np.mean(dead)


@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_statistics_equal_loops_over_the_samples(rank, data_format, rng, tmp_path):
    space = (7, 6, 5)[:rank]
    geometry = {
        "kernel_size": (3, 2, 1)[:rank],
        "strides": (2, 1, 1)[:rank],
        "dilation_rate": (1, 2, 1)[:rank],
    }
    before = (2, 1, 0)[:rank]
    layer = LAYERS[rank](
        6,
        **geometry,
        padding=[(each, 1) for each in before],
        deformable_groups=2,
        modulated=True,
        data_format=data_format,
    )
    shape = (*space, 4) if data_format == "channels_last" else (4, *space)
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(model)
    layer.offset_kernel.assign(layer.offset_kernel * (np.arange(layer.offset_bias.shape[0]) % 3))
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    (name, actual), *others = measured(model, inputs, tmp_path).statistics.items()
    assert (name, others) == (layer.name, [])
    offset = np.array(layer.predict_offset(inputs)[0])
    offset = offset if data_format == "channels_last" else np.moveaxis(offset, 1, -1)
    expected = expected_statistics(offset, space, **renamed(geometry), before=before)
    assert 0.1 < expected[1] < 0.9
    assert actual.offset_magnitude == pytest.approx(expected[0], rel=TOLERANCE["float32"])
    assert actual[1:] == pytest.approx(expected[1:], rel=TOLERANCE["float64"])


def renamed(geometry):
    geometry = dict(geometry)
    return {"dilation": geometry.pop("dilation_rate"), **geometry}


def test_an_untrained_layer_is_dead_and_only_padding_is_out_of_bounds(tmp_path):
    layer = LAYERS[2](4, 3, padding="same")
    model = keras.Sequential([keras.Input((9, 7, 3)), layer])
    statistics = measured(model, np.ones((2, 9, 7, 3)), tmp_path).statistics[layer.name]
    assert statistics == (0.0, pytest.approx(1 - 25 / 27 * 19 / 21), 1.0)


def test_channels_that_are_constant_are_dead_and_those_that_vary_are_not(rng, tmp_path):
    layer = LAYERS[1](2, 3)
    model = keras.Sequential([keras.Input((9, 3)), layer])
    kernel = np.zeros(layer.offset_kernel.shape)
    kernel[..., 1] = 0.1
    layer.offset_kernel.assign(kernel)
    layer.offset_bias.assign([1.5, 0.5, 0.0])
    monitor = measured(model, rng.normal(size=(2, 9, 3)), tmp_path)
    assert monitor.statistics[layer.name].dead_offsets == pytest.approx(2 / 3)


def test_every_layer_is_found_and_all_calls_of_a_shared_one_count(rng, tmp_path):
    inputs = keras.Input((9, 3))
    shared = LAYERS[1](3, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input((9, 3)), LAYERS[1](3, 3, padding="same", name="twin")])
    given = LAYERS[1](3, 3, padding="same", name="given")
    features = LAYERS[1](3, 3, padding="same", name="twin")(shared(shared(inputs)))
    offset = 2 * keras.ops.ones_like(inputs)
    model = keras.Model(inputs, given(inner(features), offset))
    randomize(model)
    values = rng.normal(size=(2, 9, 3)).astype("float32")
    statistics = measured(model, values, tmp_path).statistics
    assert list(statistics) == ["shared", "twin", "twin_1", "given"]
    first = shared.predict_offset(values)[0]
    second = shared.predict_offset(shared(values))[0]
    assert statistics["shared"].offset_magnitude == pytest.approx(
        np.mean(np.abs([first, second])), rel=TOLERANCE["float32"]
    )
    assert statistics["given"].offset_magnitude == 2
    assert statistics["given"].dead_offsets == 1


def events_in(folder):
    """Returns {tag: [(step, value, plugin)]} of the only file of events in a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    events = {}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            number = tf.make_ndarray(value.tensor).item()
            plugin = value.metadata.plugin_data.plugin_name
            events.setdefault(value.tag, []).append((event.step, number, plugin))
    return events


def test_each_epoch_writes_scalars_of_tensorboard(rng, tmp_path):
    layer = LAYERS[1](2, 3, padding="same", name="conv")
    model = keras.Sequential([keras.Input((9, 3)), layer])
    randomize(model)
    monitor = measured(model, rng.normal(size=(2, 9, 3)), tmp_path, epochs=2)
    statistics = monitor.statistics["conv"]
    events = events_in(tmp_path / "offsets")
    assert set(events) == {f"conv/{name}" for name in statistics._fields}
    for name, value in statistics._asdict().items():
        (first, second) = events[f"conv/{name}"]
        assert first == (0, np.float32(value), "scalars")
        assert second == (1, np.float32(value), "scalars")


def test_the_numbers_are_in_the_logs_for_all_that_read_them(rng, tmp_path):
    model = keras.Sequential([keras.Input((9, 3)), LAYERS[1](2, 3, name="conv")])
    inputs, targets = rng.normal(size=(2, 2, 9, 3)).astype("float32")
    monitor = tfd.callbacks.OffsetMonitor(inputs, log_dir=None)
    table = keras.callbacks.CSVLogger(str(tmp_path / "table.csv"))
    stop = keras.callbacks.EarlyStopping("conv/dead_offsets", patience=2, mode="min")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    callbacks = [monitor, table, stop]
    history = model.fit(inputs, targets[:, :7, :2], epochs=9, callbacks=callbacks, verbose=0)
    assert len(history.epoch) == 3  # they were all alive after the first
    for name, value in monitor.statistics["conv"]._asdict().items():
        assert len(history.history[f"conv/{name}"]) == 3
        assert history.history[f"conv/{name}"][-1] == value
    assert history.history["conv/offset_magnitude"][0] < history.history["conv/offset_magnitude"][2]
    header = (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    assert {"conv/offset_magnitude", "conv/out_of_bounds", "conv/dead_offsets"} <= set(header)


def test_without_a_folder_nothing_is_written(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((9, 3)), LAYERS[1](2, 3, name="conv")])
    measured(model, rng.normal(size=(2, 9, 3)), None)
    assert not list(tmp_path.iterdir())


def pictures_in(folder):
    """Returns {tag: [(step, strings, plugin)]} of what is no scalar in the only file of events."""
    (path,) = folder.glob("events.out.tfevents.*")
    found = {}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            if plugin != "scalars":
                strings = tf.make_ndarray(value.tensor).tolist()
                found.setdefault(value.tag, []).append((event.step, strings, plugin))
    return found


@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
def test_pictures_of_the_taps_are_written_for_tensorboard(data_format, rng, tmp_path, monkeypatch):
    shape = (12, 10, 3)
    inputs = keras.Input(shape)
    features = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    layer = LAYERS[2](3, 3, strides=2, modulated=True, data_format=data_format, name="conv")
    if data_format == "channels_first":
        features = keras.layers.Permute((3, 1, 2))(features)
    model = keras.Model(inputs, layer(features))
    randomize(model)
    images = rng.uniform(size=(3, *shape)).astype("float32")
    monitor = tfd.callbacks.OffsetMonitor(images, log_dir=tmp_path, pictures=2)
    drawn = []
    plot = tfd.visualization.plot_taps

    def recorded(image, layer, given, *, pixel, ax):
        drawn.append((image, layer, [np.array(each) for each in given], pixel))
        return plot(image, layer, given, pixel=pixel, ax=ax)

    monkeypatch.setattr(tfd.visualization, "plot_taps", recorded)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(images, np.zeros(model(images).shape), callbacks=[monitor], verbose=0)
    ((tag, written),) = pictures_in(tmp_path / "offsets").items()
    ((step, (width, height, *files), plugin),) = written
    assert (tag, step, plugin) == ("conv/taps", 0, "images")
    assert [tf.io.decode_png(each).shape[:2] for each in files] == 2 * [(int(height), int(width))]
    assert files[0] != files[1]
    features = keras.Model(inputs, layer.input)(images)
    offset, modulation = layer.predict_offset(features)
    assert len(drawn) == 2
    for index, (image, drawn_layer, given, pixel) in enumerate(drawn):
        assert drawn_layer is layer
        np.testing.assert_array_equal(image, images[index])
        for actual, expected in zip(given, (features, offset, modulation), strict=True):
            np.testing.assert_allclose(actual, expected[index : index + 1], atol=1e-5)
        assert pixel == [(1, 1), (1, 3), (3, 1), (3, 3)]


def test_pictures_are_of_two_dimensional_layers_alone(rng, tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 5, 1)), keras.layers.Reshape((30, 1)), LAYERS[1](2, 3)]
    )
    images = rng.uniform(size=(2, 6, 5, 1)).astype("float32")
    monitor = tfd.callbacks.OffsetMonitor(images, log_dir=tmp_path, pictures=1)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(images, np.zeros(model(images).shape), callbacks=[monitor], verbose=0)
    assert not pictures_in(tmp_path / "offsets")


def test_pictures_need_a_folder_and_images(tmp_path):
    with pytest.raises(ValueError, match=r"log_dir must be given for pictures=1, received None"):
        tfd.callbacks.OffsetMonitor(np.ones([2, 6, 5, 1]), log_dir=None, pictures=1)
    with pytest.raises(ValueError, match=r"inputs must hold images \[batch"):
        tfd.callbacks.OffsetMonitor({"a": np.ones([2, 6, 5, 4])}, pictures=1)
    with pytest.raises(ValueError, match=r"pictures must be an int of at least 0"):
        tfd.callbacks.OffsetMonitor(np.ones([2, 6, 5, 1]), pictures=-1)


def test_statistics_follow_the_training(rng, tmp_path):
    model = keras.Sequential([keras.Input((9, 3)), LAYERS[1](2, 3, name="conv")])
    inputs, targets = rng.normal(size=(2, 2, 9, 3)).astype("float32")
    monitor = tfd.callbacks.OffsetMonitor(inputs, log_dir=tmp_path)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(inputs, targets[:, :7, :2], callbacks=[monitor], verbose=0)
    assert monitor.statistics["conv"].offset_magnitude > 1e-4
    assert monitor.statistics["conv"].dead_offsets == 0


@pytest.mark.parametrize("source", ("weights", "inputs"))
def test_nan_offsets_warn_once_naming_the_first_layer(source, rng, tmp_path):
    layers = [LAYERS[1](3, 3, padding="same", name=name) for name in ("healthy", "sick", "later")]
    model = keras.Sequential([keras.Input((9, 3)), *layers])
    randomize(model)
    inputs = rng.normal(size=(2, 9, 3)).astype("float32")
    if source == "weights":
        layers[1].offset_bias.assign([np.nan, 0, 0])
        message = "Layer 'sick' has NaN or infinite offsets before training; its inputs are finite"
    else:
        inputs[1, 2] = np.inf
        message = (
            "Layer 'healthy' has NaN or infinite offsets before training; its inputs are not "
            "finite either"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured(model, inputs, tmp_path, epochs=2)
    assert [str(each.message) for each in caught if each.category is RuntimeWarning] == [message]


def test_a_model_without_a_deformable_convolution_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"model must have a deformable.*'plain'.*calls none"):
        measured(model, np.ones((2, 3)), tmp_path)
