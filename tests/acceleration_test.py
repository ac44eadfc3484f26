"""tfd.accelerate on layers in the forms of KerasHub and zeromodels; accelerate_packages_test has
those packages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import relative_error

UNKNOWN = pytest.warns(UserWarning, match="does not know this version of .*only the comparison")
SHAPES, POINTS, HEADS, DIM = [(6, 5), (3, 2)], [3, 1], 2, 4
PIXELS, WIDTH = sum(height * width for height, width in SHAPES), HEADS * DIM


def sampled(value, shape, places):
    """Returns `[B, Q, H, P, D]`: value `[B, pixels, H, D]` sampled at places `[B, Q, H, P, 2]`."""
    height, width = shape
    value = tf.transpose(value, [0, 2, 1, 3])
    x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5
    total = 0.0
    for row in (tf.floor(y), tf.floor(y) + 1):
        for column in (tf.floor(x), tf.floor(x) + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (1 - tf.abs(x - column)) * (1 - tf.abs(y - row)) * tf.cast(inside, x.dtype)
            row_in, column_in = (
                tf.clip_by_value(row, 0, height - 1),
                tf.clip_by_value(column, 0, width - 1),
            )
            index = tf.transpose(tf.cast(row_in * width + column_in, tf.int32), [0, 2, 1, 3])
            pixels = tf.gather(value, index, batch_dims=2)  # [B, H, Q, P, D]
            total += tf.transpose(pixels, [0, 2, 1, 3, 4]) * weight[..., None]
    return total


def core_of_another(
    value, _, locations, weights, num_points, sizes, shapes, num_levels, num_queries, method
):
    parts = zip(
        tf.split(value, sizes, axis=1),
        shapes,
        tf.split(locations, num_points, axis=3),
        tf.split(weights, num_points, axis=3),
        strict=True,
    )
    sums = [
        tf.reduce_sum(sampled(part, shape, places) * weight[..., None], axis=3)
        for part, shape, places, weight in parts
    ]
    out = tf.add_n(sums)
    return tf.reshape(out, [tf.shape(out)[0], num_queries, WIDTH])


def wrong_core(*arguments):
    return 1.001 * core_of_another(*arguments)


def ms_deform_attn_core(value, value_spatial_shapes, sampling_locations, attention_weights):
    return core_of_another(
        tf.transpose(value, [0, 3, 1, 2]),
        None,
        tf.reshape(sampling_locations, [tf.shape(value)[0], 7, HEADS, -1, 2]),
        attention_weights,
        [2, 2],
        [height * width for height, width in value_spatial_shapes],
        value_spatial_shapes,
        2,
        7,
        "default",
    )


@keras.saving.register_keras_serializable("tests")
class Attention(keras.layers.Layer):
    """Has a core as KerasHub's D-FINE does, as an attribute of the instance."""

    points = POINTS

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.ms_deformable_attn_core = core_of_another
        total = HEADS * sum(self.points)
        self.offsets = keras.layers.Dense(2 * total, kernel_initializer="zeros")
        self.scores = keras.layers.Dense(total, kernel_initializer="zeros")

    def build(self, query_shape, value_shape):
        self.offsets.build(query_shape)
        self.scores.build(query_shape)

    def places_and_weights(self, query):
        shape = [tf.shape(query)[0], query.shape[1], HEADS, sum(self.points)]
        places = tf.sigmoid(tf.reshape(self.offsets(query), [*shape, 2])) * 1.2 - 0.1
        return places, tf.nn.softmax(tf.reshape(self.scores(query), shape))

    def call(self, query, value):
        places, weights = self.places_and_weights(query)
        value = tf.reshape(value, [-1, PIXELS, HEADS, DIM])
        sizes = [height * width for height, width in SHAPES]
        return self.ms_deformable_attn_core(
            value, SHAPES, places, weights, POINTS, sizes, SHAPES, 2, query.shape[1], "default"
        )

    def compute_output_shape(self, query_shape, value_shape):
        return (*query_shape[:2], WIDTH)


@keras.saving.register_keras_serializable("tests")
class GlobalAttention(Attention):
    """Reads a global name, as the layers of zeromodels do."""

    points = (2, 2)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        del self.ms_deformable_attn_core

    def call(self, query, value):
        places, weights = self.places_and_weights(query)
        places = tf.reshape(places, [-1, query.shape[1], HEADS, 2, 2, 2])
        value = tf.transpose(tf.reshape(value, [-1, PIXELS, HEADS, DIM]), [0, 2, 3, 1])
        return ms_deform_attn_core(value, SHAPES, places, weights)


def build(layer=Attention, noise=0.5):
    """Returns a compiled model with such a layer in a model in it, with random weights."""
    keras.utils.set_random_seed(0)
    query, value = keras.Input((7, 6)), keras.Input((PIXELS, WIDTH))
    inner = keras.Model([query, value], layer(name="attention")(query, value), name="inner")
    outputs = keras.layers.Dense(3)(inner([query, value]))
    model = keras.Model([query, value], outputs, name="outer")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign_add(rng.normal(0, noise, weight.shape).astype("float32"))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def attention_in(model):
    return model.get_layer("inner").get_layer("attention")


@pytest.fixture
def arrays(rng):
    return [rng.normal(size=(3, *shape)).astype("float32") for shape in ((7, 6), (PIXELS, WIDTH))]


@pytest.fixture
def targets(rng):
    return rng.normal(size=(3, 7, 3)).astype("float32")


LAYERS = pytest.mark.parametrize("layer", [Attention, GlobalAttention])


def accelerated(model):
    with UNKNOWN:
        return tfd.accelerate(model)


@LAYERS
@pytest.mark.parametrize("implementation", ["portable", "compiled"])
def test_ours_computes_what_the_other_did_and_is_there(layer, implementation, arrays):
    model = build(layer)
    expected = model.predict(arrays, verbose=0)
    with tfd.use_implementation(implementation):
        function = "core_of_another" if layer is Attention else "ms_deform_attn_core"
        path = attention_in(model).path
        assert accelerated(model) == [(path, f"{__name__}.{function}")]
        assert relative_error(model.predict(arrays, verbose=0), expected) < 1e-5
        graph = tf.function(model).get_concrete_function([tf.constant(a) for a in arrays]).graph
    functions = [
        graph.as_graph_def().node,
        *(f.node_def for f in graph.as_graph_def().library.function),
    ]
    types = {node.op for nodes in functions for node in nodes}
    assert ("TfDeform>WeightedSample" in types) == (implementation == "compiled")


@LAYERS
def test_other_models_and_the_function_stay_as_they_are(layer, arrays):
    model, other = build(layer), build(layer)
    before = dict(vars(attention_in(other)))
    call, function = layer.call, ms_deform_attn_core
    accelerated(model)
    assert vars(attention_in(other)) == before
    assert layer.call is call and globals()["ms_deform_attn_core"] is function
    with pytest.raises(ValueError, match="it is not accelerated"):
        tfd.accelerate(other, undo=True)


@LAYERS
def test_undo_gives_back_all_there_was(layer, arrays):
    model = build(layer)
    before = dict(vars(attention_in(model)))
    expected = model.predict(arrays, verbose=0)
    replaced = accelerated(model)
    assert vars(attention_in(model)) != before
    assert tfd.accelerate(model) == []
    assert tfd.accelerate(model, undo=True) == replaced
    assert vars(attention_in(model)) == before
    np.testing.assert_array_equal(model.predict(arrays, verbose=0), expected)


def test_nothing_found_is_said():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"^nothing found to accelerate in model 'plain': "):
        tfd.accelerate(model)
    with pytest.raises(ValueError, match=r"^nothing found to give back in model 'plain': "):
        tfd.accelerate(model, undo=True)
    with pytest.raises(ValueError, match=r"^model must be a Keras model that is built, received"):
        tfd.accelerate(keras.layers.Dense(2))


def refuses(model, message, **options):
    attention = attention_in(model)
    before = dict(vars(attention))
    weights = model.get_weights()
    with pytest.raises(ValueError, match=message), UNKNOWN:
        tfd.accelerate(model, **options)
    assert vars(attention) == before
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_core_that_computes_something_else_stays():
    model = build()
    attention_in(model).ms_deformable_attn_core = wrong_core
    refuses(model, r"cannot replace .*wrong_core in layer .*differ by 1\.0e-03 of their")


def test_a_difference_that_weights_of_zero_hide_is_found():
    """Places that start in the middle of the maps do not tell x from y."""

    def turned(value, _, locations, *rest):
        return core_of_another(value, _, locations[..., ::-1], *rest)

    model = build(noise=0)
    attention_in(model).ms_deformable_attn_core = turned
    refuses(model, r"cannot replace .*turned in layer .*differ by")


def test_a_core_that_is_called_otherwise_stays():
    def other(*arguments):
        return core_of_another(*arguments[:10])

    model = build()
    attention_in(model).ms_deformable_attn_core = lambda *each: other(*each)
    before = attention_in(model).ms_deformable_attn_core
    original = Attention.call

    def call(self, query, value):
        core = self.ms_deformable_attn_core
        self.__dict__["ms_deformable_attn_core"] = lambda *each: core(*each, "extra")
        try:
            return original(self, query, value)
        finally:
            self.__dict__["ms_deformable_attn_core"] = core

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "call", call)
        refuses(model, r"cannot replace .* in layer .*positional arguments")
    assert attention_in(model).ms_deformable_attn_core is before


def test_outputs_of_the_model_that_differ_give_everything_back():
    """What the layer's comparison cannot see: the model does not do the same twice."""

    @keras.saving.register_keras_serializable("tests")
    class Counting(keras.layers.Layer):
        calls = 0

        def call(self, x):
            Counting.calls += 1
            return x + Counting.calls

    model = build()
    outputs = Counting()(model.outputs[0])
    counting = keras.Model(model.inputs, outputs, name="counting")
    before = dict(vars(attention_in(counting)))
    with pytest.raises(ValueError, match="outputs of model 'counting' differ by"), UNKNOWN:
        tfd.accelerate(counting)
    assert vars(attention_in(counting)) == before


def test_what_keras_has_traced_is_dropped(arrays, targets):
    model = build()
    model.fit(arrays, targets, verbose=0)
    model.evaluate(arrays, targets, verbose=0)
    model.predict(arrays, verbose=0)
    names = ("train_function", "test_function", "predict_function")
    traced = [getattr(model, name) for name in names]
    assert all(traced)
    accelerated(model)
    assert [getattr(model, name) for name in names] == [None] * 3


@LAYERS
def test_a_step_of_fit_is_the_same(layer, arrays, targets):
    losses, weights = [], []
    for fast in (False, True):
        model = build(layer)
        model.fit(arrays, targets, verbose=0)  # traced before
        if fast:
            accelerated(model)
        losses.append(model.fit(arrays, targets, verbose=0).history["loss"])
        weights.append(model.get_weights())
    assert relative_error(losses[1], losses[0]) < 1e-5
    for one, other in zip(*weights, strict=True):
        assert relative_error(one, other) < 1e-5


@LAYERS
def test_the_export_is_portable(layer, arrays, tmp_path):
    model = build(layer)
    accelerated(model)
    expected = model.predict(arrays, verbose=0)
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert relative_error(loaded.serve(arrays), expected) < 1e-5
    content = (tmp_path / "model" / "saved_model.pb").read_bytes()
    assert b"TfDeform>" not in content


@LAYERS
def test_saving_writes_the_original_layer_which_is_accelerated_again(layer, arrays, tmp_path):
    model = build(layer)
    accelerated(model)
    expected = model.predict(arrays, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert relative_error(loaded.predict(arrays, verbose=0), expected) < 1e-5
    with pytest.raises(ValueError, match="it is not accelerated"):
        tfd.accelerate(loaded, undo=True)
    assert len(accelerated(loaded)) == 1
    assert relative_error(loaded.predict(arrays, verbose=0), expected) < 1e-5


def test_a_model_in_half_precision_is_compared_by_layers():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert len(accelerated(build())) == 1
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.xla_kernels
def test_xla_compiles_ours_in_another_model(arrays):
    model = build()
    expected = model.predict(arrays, verbose=0)
    accelerated(model)
    model.compile("sgd", "mse", jit_compile=True)
    assert relative_error(model.predict(arrays, verbose=0), expected) < 1e-5


def test_free_sizes_need_a_sample(arrays):
    query, value = keras.Input((None, 6)), keras.Input((PIXELS, WIDTH))

    class Free(Attention):
        def call(self, query, value):
            return super().call(tf.ensure_shape(query, [None, 7, 6]), value)

    model = keras.Model([query, value], Free()(query, value))
    with pytest.raises(ValueError, match=r"^sample must be given: .* free sizes"), UNKNOWN:
        tfd.accelerate(model)
    with UNKNOWN:
        assert len(tfd.accelerate(model, sample=arrays)) == 1
