"""tfd.accelerate on the models of KerasHub and zeromodels: `make test-accelerate`."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import relative_error
from foreign_models import MODELS, inputs_of, keras_hub_d_fine, with_noise

ALL = pytest.mark.parametrize("name", MODELS)
ATTENTIONS = {**dict.fromkeys(MODELS, 2), "Grounding DINO": 4}
EAGER = ("Grounding DINO",)  # whose own code reads numbers off its inputs: it cannot be traced
built: dict = {}


def model_of(name):
    """Returns the model of a name, with noise on its weights, and what it is called on.

    It is made once: each test gives it back as it was.
    """
    if name not in built:
        model = MODELS[name]()
        inputs = inputs_of(model)
        model(inputs)  # builds what the first call builds
        built[name] = with_noise(model), inputs
    return built[name]


def accelerated(model, inputs):
    """Returns what was replaced, without a warning: the code is known."""
    free = any(None in each.shape[1:] for each in model.inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not know this version")
        return tfd.accelerate(model, sample=inputs if free else None)


def outputs_of(name, model, inputs):
    return model(inputs) if name in EAGER else model.predict(inputs, verbose=0)


def largest_error(actual, expected):
    pairs = zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True)
    return max(relative_error(one, other) for one, other in pairs)


def stepped(model, inputs):
    """Returns the loss and the gradients of a training step."""
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(inputs, training=True))
        loss = tf.add_n([tf.reduce_mean(tf.cast(each, "float32") ** 2) for each in outputs])
    weights = [each.value for each in model.trainable_weights]
    gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
    return loss, [tf.convert_to_tensor(each) for each in gradients]


@ALL
def test_outputs_and_undo(name):
    model, inputs = model_of(name)
    expected = outputs_of(name, model, inputs)
    replaced = accelerated(model, inputs)
    try:
        assert len(replaced) == ATTENTIONS[name]
        assert model.predict_function is None
        assert largest_error(outputs_of(name, model, inputs), expected) < 1e-4
    finally:
        assert tfd.accelerate(model, undo=True) == replaced
    assert largest_error(outputs_of(name, model, inputs), expected) < 1e-6


@ALL
def test_loss_and_gradients_of_a_step(name):
    model, inputs = model_of(name)
    state = model.get_weights()
    keras.utils.set_random_seed(0)
    loss, gradients = stepped(model, inputs)
    model.set_weights(state)
    accelerated(model, inputs)
    try:
        keras.utils.set_random_seed(0)
        other_loss, other_gradients = stepped(model, inputs)
    finally:
        tfd.accelerate(model, undo=True)
        model.set_weights(state)
    assert relative_error(other_loss, loss) < 1e-4
    size = max(float(tf.reduce_max(tf.abs(each))) for each in gradients)
    apart = [tf.reduce_max(tf.abs(a - b)) for a, b in zip(gradients, other_gradients, strict=True)]
    assert max(map(float, apart)) < 1e-4 * size


@ALL
def test_another_model_of_the_class_stays(name):
    model, inputs = model_of(name)
    other = MODELS[name]()
    other(inputs)
    accelerated(model, inputs)
    try:
        with pytest.raises(ValueError, match="it is not accelerated"):
            tfd.accelerate(other, undo=True)
        assert len(accelerated(other, inputs)) == ATTENTIONS[name]
    finally:
        tfd.accelerate(model, undo=True)


@pytest.mark.parametrize("name", [each for each in MODELS if each not in EAGER])
def test_the_export_is_portable(name, tmp_path):
    model, inputs = model_of(name)
    # Keras exports no outputs in a list in a dictionary, such as D-FINE's.
    flat = keras.Model(model.input, keras.tree.flatten(model.output))
    accelerated(model, inputs)
    try:
        expected = outputs_of(name, model, inputs)
        flat.export(str(tmp_path / "model"), verbose=False)
    finally:
        tfd.accelerate(model, undo=True)
    assert b"TfDeform>" not in (tmp_path / "model" / "saved_model.pb").read_bytes()
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert largest_error(loaded.serve(inputs), expected) < 1e-4


@ALL
def test_what_is_saved_is_accelerated_again(name, tmp_path):
    model, inputs = model_of(name)
    accelerated(model, inputs)
    try:
        expected = outputs_of(name, model, inputs)
        model.save(tmp_path / "model.keras")
    finally:
        tfd.accelerate(model, undo=True)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert largest_error(outputs_of(name, loaded, inputs), expected) < 1e-4
    assert len(accelerated(loaded, inputs)) == ATTENTIONS[name]
    assert largest_error(outputs_of(name, loaded, inputs), expected) < 1e-4


def test_fit_takes_the_same_step():
    losses = []
    for fast in (False, True):
        keras.utils.set_random_seed(0)
        model = with_noise(MODELS["RF-DETR"]())
        inputs = inputs_of(model)
        targets = keras.tree.map_structure(np.zeros_like, model.predict(inputs, verbose=0))
        model.compile("sgd", loss=keras.tree.map_structure(lambda _: "mse", targets))
        if fast:
            accelerated(model, inputs)
        history = model.fit(inputs, targets, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert relative_error(*losses) < 1e-4


@pytest.mark.parametrize("points", [(3, 6), (4, 4)])
def test_discrete_attention_of_keras_hub(points):
    model = with_noise(keras_hub_d_fine(method="discrete", points=points))
    inputs = inputs_of(model)
    expected = model.predict(inputs, verbose=0)
    assert len(accelerated(model, inputs)) == 2
    assert largest_error(model.predict(inputs, verbose=0), expected) < 1e-4


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_our_operator_is_keras_hubs_function(rng, method):
    from keras_hub.src.models.d_fine import d_fine_utils

    shapes, points, heads = [(6, 5), (3, 2), (1, 4)], [3, 6, 1], 2
    value = rng.normal(size=(2, 40, heads, 4)).astype("float32")
    locations = rng.uniform(-0.2, 1.2, (2, 7, heads, 10, 2)).astype("float32")
    weights = rng.normal(size=locations.shape[:-1]).astype("float32")
    sizes = [height * width for height, width in shapes]
    expected = d_fine_utils.multi_scale_deformable_attention_v2(
        *(tf.constant(value), shapes, tf.constant(locations), tf.constant(weights)),
        *(points, sizes, shapes, 3, 7, method),
    )
    maps = [
        part.reshape(2, height, width, heads * 4)
        for part, (height, width) in zip(
            np.split(value, np.cumsum(sizes)[:-1], axis=1), shapes, strict=True
        )
    ]
    found = tfd.ops.multi_scale_deformable_attention(
        maps, locations, weights, num_points=points, method=method
    )
    assert relative_error(found, expected) < 1e-5
