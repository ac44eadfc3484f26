import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import MODES, TOLERANCE, check_derivatives, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, QUERIES, WIDTH, CHANNELS = 2, 5, 6, 4
HEADS, DIM, POINTS = 3, 2, 2
SPACES = [(6, 7), (3, 5)]
REFERENCES = pytest.mark.parametrize(
    "shape", [(2,), (4,), (len(SPACES), 2), (len(SPACES), 4)], ids=str
)


def build(rng, shape=(2,), dtype="float64", **options):
    """Returns a layer with random weights and query, reference points and values."""
    options = {"num_points": POINTS, "dtype": dtype, **options}
    layer = tfd.layers.MultiScaleDeformableAttention(HEADS, DIM, **options)
    query = rng.normal(size=[BATCH, QUERIES, WIDTH])
    points = rng.uniform(0.1, 0.9, [BATCH, QUERIES, *shape])
    values = [rng.normal(size=[BATCH, *space, CHANNELS]) for space in SPACES]
    arguments = [each.astype(dtype) for each in (query, points, *values)]
    arguments = [*arguments[:2], arguments[2:]]
    layer(*arguments)
    for weight in layer.weights:
        weight.assign(weight + rng.normal(0, 0.4, weight.shape))
    return layer, arguments


def masks_of(rng):
    return [rng.uniform(size=[BATCH, *space]) < 0.7 for space in SPACES]


def expected(layer, query, points, values, masks=None):
    """Returns what the paper's formulas give with the layer's weights."""

    def project(x, dense):
        return x @ dense.kernel.numpy() + dense.bias.numpy()

    maps = [project(value, layer.value_proj) for value in values]
    for value, mask in zip(maps, masks or [], strict=False):
        value[~mask] = 0
    offsets = project(query, layer.sampling_offsets)
    counts = layer.num_points
    counts = [counts] * len(maps) if isinstance(counts, int) else counts
    level_of = [level for level, count in enumerate(counts) for _ in range(count)]
    offsets = offsets.reshape(BATCH, QUERIES, HEADS, sum(counts), 2)
    logits = np.exp(project(query, layer.attention_weights)).reshape(BATCH, QUERIES, HEADS, -1)
    weights = (logits / logits.sum(axis=-1, keepdims=True)).reshape(offsets.shape[:-1])
    locations = np.zeros(offsets.shape)
    for b, q, head, p in np.ndindex(*offsets.shape[:-1]):
        level = level_of[p]
        reference = points[b, q] if points.ndim == 3 else points[b, q, level]
        height, width = maps[level].shape[1:3]
        unit = [1 / width, 1 / height]
        if len(reference) == 4:
            unit = reference[2:] / 2 / counts[level]
        locations[b, q, head, p] = reference[:2] + offsets[b, q, head, p] * unit
    sums = oracles.multi_scale_deformable_attention(
        maps, locations, weights, num_points=counts, method=layer.method
    )
    return project(sums, layer.output_proj)


@REFERENCES
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_oracle(rng, shape, masked):
    layer, arguments = build(rng, shape)
    masks = masks_of(rng) if masked else None
    actual = layer(*arguments, padding_masks=masks)
    assert relative_error(actual, expected(layer, *arguments, masks)) < TOLERANCE["float64"]


@REFERENCES
@pytest.mark.parametrize("method", ["default", "discrete"])
def test_attention_with_points_of_each_map_equals_the_oracle(rng, shape, method):
    layer, arguments = build(rng, shape, num_points=[3, 1], method=method)
    assert relative_error(layer(*arguments), expected(layer, *arguments)) < TOLERANCE["float64"]
    assert layer.sampling_locations(*arguments).shape == (BATCH, QUERIES, HEADS, 4, 2)
    weights = layer.sampling_weights(arguments[0])
    assert weights.shape == (BATCH, QUERIES, HEADS, 4)
    np.testing.assert_allclose(tf.reduce_sum(weights, axis=-1), 1)


def test_as_many_points_of_each_map_are_the_same_as_their_number(rng):
    one, arguments = build(rng)
    many, _ = build(rng, num_points=[POINTS, POINTS])
    many.set_weights(one.get_weights())
    np.testing.assert_array_equal(many(*arguments), one(*arguments))


def test_points_of_each_map_start_in_steps_of_their_own():
    layer = tfd.layers.MultiScaleDeformableAttention(4, 2, num_points=[3, 1])
    layer.build((None, None, 4), (None, None, 2), [(None, None, None, 5)] * 2)
    offsets = layer.sampling_offsets.bias.numpy().reshape(4, 4, 2)
    np.testing.assert_allclose(offsets[0], [[1, 0], [2, 0], [3, 0], [1, 0]], atol=1e-6)


def test_discrete_attention_trains_all_but_its_places(rng):
    layer, arguments = build(rng, method="discrete")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(*arguments) ** 2)
    found = dict(
        zip((w.path for w in layer.weights), tape.gradient(loss, layer.weights), strict=True)
    )
    for path, gradient in found.items():
        learns = gradient is not None and np.any(gradient)
        assert learns == ("sampling_offsets" not in path), path


def test_heads_start_by_looking_all_around_with_equal_weights():
    layer = tfd.layers.MultiScaleDeformableAttention(8, 2, num_points=3)
    layer.build((None, None, 4), (None, None, 2), [(None, None, None, 5)] * 2)
    offsets = layer.sampling_offsets.bias.numpy().reshape(8, 2, 3, 2)
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, level, point in np.ndindex(8, 2, 3):
        wanted = np.array(around[head]) * (point + 1)
        np.testing.assert_allclose(offsets[head, level, point], wanted, atol=1e-6)
    predictors = layer.sampling_offsets.kernel, *layer.attention_weights.weights
    assert not any(np.any(weight) for weight in predictors)


def test_weights_have_the_published_shapes_transposed_and_start_differently():
    layer = tfd.layers.MultiScaleDeformableAttention(8, 32)
    layer.build((None, None, 256), (None, None, 4, 2), [(None, None, None, 256)] * 4)
    shapes = {weight.path.split("/", 1)[1]: tuple(weight.shape) for weight in layer.weights}
    assert shapes == {
        "sampling_offsets/kernel": (256, 256),
        "sampling_offsets/bias": (256,),
        "attention_weights/kernel": (256, 128),
        "attention_weights/bias": (128,),
        "value_proj/kernel": (256, 256),
        "value_proj/bias": (256,),
        "output_proj/kernel": (256, 256),
        "output_proj/bias": (256,),
    }
    assert np.any(layer.value_proj.kernel != layer.output_proj.kernel)


@pytest.mark.parametrize(
    ("mode", "content"), [("eager", np.nan), ("eager", np.inf), ("eager", 1e30), ("jit", np.nan)]
)
def test_masked_pixels_reach_neither_the_result_nor_any_gradient(rng, mode, content):
    layer, (query, points, values) = build(rng)
    masks = masks_of(rng)
    spoiled = [
        np.where(mask[..., None], value, content) for value, mask in zip(values, masks, strict=True)
    ]

    def attend(*values):
        return layer(query, points, list(values), masks)

    def with_gradients(*values):
        with tf.GradientTape() as tape:
            out = attend(*values)
        return out, tape.gradient(out, layer.trainable_weights), gradients(attend, *values)

    out, of_weights, of_values = MODES[mode](with_gradients)(*spoiled)
    assert relative_error(out, attend(*values)) < TOLERANCE["float64"]
    assert all(np.all(np.isfinite(each)) for each in (*of_weights, *of_values))
    for gradient, mask in zip(of_values, masks, strict=True):
        assert not np.any(gradient.numpy()[~mask])
        assert np.any(gradient.numpy()[mask])


def test_locations_stay_float32_under_mixed_precision(rng):
    """At pixel 1001.3 neighbouring halves are 0.5 apart."""
    mixed = tfd.layers.MultiScaleDeformableAttention(1, 1, num_points=1, dtype="mixed_float16")
    query = np.zeros([1, 1, 2], "float32")
    ramp = np.abs(np.arange(1024.0, dtype="float32") - 1001).reshape(1, 1, 1024, 1)
    point = np.array([[[701.5 / 1024, 0.5]]], "float32")
    mixed(query, point, [ramp])
    mixed.value_proj.kernel.assign([[1.0]])
    mixed.output_proj.kernel.assign([[1.0, 1.0]])
    mixed.sampling_offsets.bias.assign([300.3, 0.0])
    out = mixed(query, point, [ramp])
    assert out.dtype == "float16"
    np.testing.assert_allclose(out[0, 0], [0.3, 0.3], atol=1e-3)


def test_derivatives_of_the_layer(rng):
    layer, (query, points, values) = build(rng, (len(SPACES), 4))
    check_derivatives(
        lambda query, points, *values: layer(query, points, list(values)), query, points, *values
    )


def test_a_model_with_masks_takes_every_size_and_is_saved_and_loaded(rng, tmp_path):
    inputs = [
        keras.Input((None, WIDTH)),
        keras.Input((None, 4)),
        *(keras.Input((None, None, CHANNELS)) for _ in SPACES),
        *(keras.Input((None, None), dtype="bool") for _ in SPACES),
    ]
    layer = tfd.layers.MultiScaleDeformableAttention(HEADS, DIM, num_points=POINTS)
    model = keras.Model(inputs, layer(*inputs[:2], inputs[2:4], padding_masks=inputs[4:]))
    source, (query, points, values) = build(rng, (4,), "float32")
    layer.set_weights(source.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for few in (slice(None), slice(0, 3)):
        values = [value[:, few] for value in values]
        masks = [mask[:, few] for mask in masks_of(rng)]
        arrays = [query, points, *values, *masks]
        found = loaded.predict(arrays, verbose=0)
        wanted = expected(source, query, points, values, masks)
        assert relative_error(found, wanted) < TOLERANCE["float32"]


def test_an_empty_batch_gives_an_empty_result(rng):
    layer, (query, points, values) = build(rng)
    out = layer(query[:0], points[:0], [value[:0] for value in values])
    assert out.shape == (0, QUERIES, WIDTH)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda query, points, values: [query[..., 1:], points, values]),
        ("reference_points", lambda query, points, values: [query, points[..., :1], values]),
        ("reference_points", lambda query, points, values: [query, points[:, 1:], values]),
        ("reference_points", lambda query, points, values: [query, points[:, :, None], values]),
        ("values", lambda query, points, values: [query, points, values[:1]]),
        ("values", lambda query, points, values: [query, points, values[0]]),
        ("padding_masks", lambda *each: [*each, [np.ones([BATCH, 6, 7], bool)]]),
        (r"padding_masks\[1\]", lambda *each: [*each, [np.ones([BATCH, 6, 7], bool)] * 2]),
    ],
)
def test_a_bad_argument_is_named(rng, name, change):
    layer, arguments = build(rng)
    with pytest.raises(ValueError, match=rf"(?s){name} must .+, received .+"):
        layer(*change(*arguments))


@pytest.mark.parametrize("option", ["num_heads", "key_dim", "num_points"])
def test_a_bad_option_is_named(option):
    options = {"num_heads": 2, "key_dim": 3, option: 0}
    with pytest.raises(ValueError, match=rf"^{option} must .+, received 0"):
        tfd.layers.MultiScaleDeformableAttention(**options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_points", [3, 0]), ("num_points", [2.5]), ("num_points", None), ("method", "nearest")],
)
def test_bad_points_of_each_map_and_methods_are_named(option, value):
    with pytest.raises(ValueError, match=rf"^{option} must .+, received "):
        tfd.layers.MultiScaleDeformableAttention(2, 3, **{option: value})


def test_other_maps_than_there_are_numbers_of_points_are_named():
    layer = tfd.layers.MultiScaleDeformableAttention(2, 3, num_points=[3, 6, 3])
    with pytest.raises(
        ValueError, match=r"^values must have a map for each of the 3 .+ received 2"
    ):
        layer.build((1, 2, 4), (1, 2, 2), [(1, 3, 3, 4)] * 2)


@pytest.mark.parametrize("make", [np.zeros, keras.KerasTensor], ids=["eager", "symbolic"])
def test_a_map_that_is_in_no_list_is_named_as_the_layer_is_built(make):
    layer = tfd.layers.MultiScaleDeformableAttention(2, 3)
    with pytest.raises(ValueError, match=r"values must be a list of feature maps, received one"):
        layer(make((1, 2, 4)), make((1, 2, 2)), make((1, 3, 3, 4)))


def test_a_map_of_other_channels_is_named():
    layer = tfd.layers.MultiScaleDeformableAttention(2, 3)
    with pytest.raises(ValueError, match=r"values must .+, received .+"):
        layer(tf.zeros([1, 2, 4]), tf.zeros([1, 2, 2]), [tf.zeros([1, 3, 3, c]) for c in (4, 5)])


class EncoderLayer(keras.layers.Layer):
    """Self-attention among the pixels of a pyramid, normalisation and a feed-forward network."""

    def __init__(self, spaces, channels):
        super().__init__()
        self.spaces = spaces
        self.attention = tfd.layers.MultiScaleDeformableAttention(4, channels // 4, num_points=2)
        self.norms = [keras.layers.LayerNormalization() for _ in range(2)]
        self.feed_forward = keras.Sequential(
            [keras.layers.Dense(2 * channels, activation="relu"), keras.layers.Dense(channels)]
        )
        centres = [(np.indices(s).reshape(2, -1).T + 0.5) / s for s in spaces]
        self.centres = np.concatenate(centres)[None, :, ::-1].astype("float32")

    def call(self, pixels):
        batch, _, channels = keras.ops.shape(pixels)
        maps, start = [], 0
        for height, width in self.spaces:
            flat = pixels[:, start : start + height * width]
            maps.append(keras.ops.reshape(flat, [batch, height, width, channels]))
            start += height * width
        points = keras.ops.broadcast_to(self.centres, [batch, *self.centres.shape[1:]])
        pixels = self.norms[0](pixels + self.attention(pixels, points, maps))
        return self.norms[1](pixels + self.feed_forward(pixels))


def test_a_small_encoder_trains_with_fit(rng):
    """Whether two bright spots lie on one row can be told only by looking from one to the other."""
    count, size, channels = 96, 8, 16
    images = np.zeros([count, size, size, 1], "float32")
    labels = rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        row, *columns = rng.integers(0, size), *rng.choice(size, 2, replace=False)
        image[row, columns[0]] = image[row if label else (row + 3) % size, columns[1]] = 3
    inputs = keras.Input((size, size, 1))
    fine = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(inputs)
    coarse = keras.layers.Conv2D(channels, 3, 2, padding="same", activation="relu")(fine)
    pixels = [keras.layers.Reshape((-1, channels))(each) for each in (fine, coarse)]
    pixels = keras.layers.Concatenate(axis=1)(pixels)
    pixels = EncoderLayer([(size, size), (size // 2, size // 2)], channels)(pixels)
    outputs = keras.layers.Dense(1)(keras.layers.GlobalMaxPooling1D()(pixels))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    history = model.fit(images, labels, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]
