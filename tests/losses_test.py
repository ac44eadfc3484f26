"""Losses of registration: their values beside loops, and what Keras asks of every loss."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, relative_error

BATCH, CHANNELS = 2, 3
SPACE = {1: (9,), 2: (6, 7), 3: (4, 6, 5)}
RANKS = pytest.mark.parametrize("rank", SPACE)
PENALTIES = pytest.mark.parametrize("penalty", ("l1", "l2"))
CORRELATION, SMOOTHNESS = tfd.losses.NormalizedCrossCorrelation, tfd.losses.FlowSmoothness
# Each with options that are none of the defaults.
LOSSES = {
    "correlation": lambda **options: CORRELATION((3, 5), epsilon=1e-3, **options),
    "smoothness": lambda **options: SMOOTHNESS("l1", **options),
}
EACH = pytest.mark.parametrize("name", LOSSES)


def images_of(rng, rank=2, dtype="float64"):
    """Returns two images that are alike in part."""
    one, other = rng.random((2, BATCH, *SPACE[rank], CHANNELS))
    return one.astype(dtype), (0.6 * one + other).astype(dtype)


def flow_of(rng, rank=2, dtype="float64"):
    return rng.normal(size=(BATCH, *SPACE[rank], rank)).astype(dtype)


def arguments_of(name, rng, dtype="float64"):
    if name == "correlation":
        return images_of(rng, dtype=dtype)
    return np.zeros([BATCH, 1], dtype), flow_of(rng, dtype=dtype)


def oracle_of(name, y_true, y_pred):
    if name == "correlation":
        return oracles.normalized_cross_correlation(y_true, y_pred, window=(3, 5), epsilon=1e-3)
    return oracles.flow_smoothness(y_pred, penalty="l1")


# Values


@RANKS
@pytest.mark.parametrize("window", (1, 3, 9))
def test_correlation_is_that_in_windows_cut_at_the_border(window, rank, rng):
    one, other = images_of(rng, rank)
    loss = CORRELATION(window, reduction="none", dtype="float64")
    expected = oracles.normalized_cross_correlation(one, other, window=window)
    assert relative_error(loss(one, other), expected) < TOLERANCE["float64"]


def test_windows_may_differ_by_axis(rng):
    one, other = images_of(rng, 3)
    loss = CORRELATION((1, 5, 3), epsilon=0.01, reduction="none", dtype="float64")
    expected = oracles.normalized_cross_correlation(one, other, window=(1, 5, 3), epsilon=0.01)
    assert relative_error(loss(one, other), expected) < TOLERANCE["float64"]


def test_correlation_is_blind_to_brightness_contrast_and_sign(rng):
    one, other = images_of(rng, 2, "float32")
    loss = CORRELATION(5, epsilon=1e-7)
    assert loss(one, 3 - 2 * one) < 1e-4
    np.testing.assert_allclose(loss(7 - 2 * one, other), loss(one, other), atol=1e-4)
    assert loss(one, other) > 0.1


def test_a_bright_image_costs_no_precision(rng):
    one, other = images_of(rng, 2, "float32")
    expected = oracles.normalized_cross_correlation(one, other, window=5)
    found = CORRELATION(5, reduction="none")(one + 100, other + 100)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@RANKS
@PENALTIES
def test_smoothness_is_the_mean_of_forward_differences(penalty, rank, rng):
    flow = flow_of(rng, rank)
    loss = SMOOTHNESS(penalty, reduction="none", dtype="float64")
    expected = oracles.flow_smoothness(flow, penalty=penalty)
    assert relative_error(loss(np.zeros([BATCH, 1]), flow), expected) < TOLERANCE["float64"]


@PENALTIES
def test_an_axis_of_one_pixel_counts_zero(penalty, rng):
    flow = rng.normal(size=(BATCH, 1, 7, 2))
    found = SMOOTHNESS(penalty, reduction="none", dtype="float64")(flow, flow)
    expected = oracles.flow_smoothness(flow, penalty=penalty)
    assert relative_error(found, expected) < TOLERANCE["float64"]


@EACH
def test_derivatives(name, rng):
    loss = LOSSES[name](reduction="none", dtype="float64")
    check_derivatives(loss, *arguments_of(name, rng))


def test_an_even_image_has_a_finite_gradient():
    image = tf.ones([1, 6, 7, 1])
    with tf.GradientTape() as tape:
        tape.watch(image)
        loss = CORRELATION()(image, 2 * image)
    assert loss == 1
    assert np.all(np.isfinite(tape.gradient(loss, image)))


# What Keras asks


@EACH
def test_modes_and_free_sizes_give_the_same(name, rng, mode):
    arguments = arguments_of(name, rng, "float32")
    loss, expected = LOSSES[name](reduction="none"), oracle_of(name, *arguments)
    assert relative_error(mode(loss)(*arguments), expected) < 10 * TOLERANCE["float32"]
    free = [tf.TensorSpec([*[None] * (each.ndim - 1), each.shape[-1]]) for each in arguments]
    traced = tf.function(loss, input_signature=free)
    assert relative_error(traced(*arguments), expected) < 10 * TOLERANCE["float32"]
    assert traced(*(each[:0] for each in arguments)).shape == (0,)


@EACH
def test_weights_and_reductions_are_those_of_keras(name, rng):
    arguments = arguments_of(name, rng, "float32")
    each, weights = oracle_of(name, *arguments), np.array([0.5, 2.0], "float32")
    for reduction, expected in {
        "none": each * weights,
        "sum": np.sum(each * weights),
        "sum_over_batch_size": np.mean(each * weights),
    }.items():
        found = LOSSES[name](reduction=reduction)(*arguments, sample_weight=weights)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@EACH
def test_half_precision_is_computed_in_float32(name, dtype, rng):
    arguments = [tf.cast(each, dtype) for each in arguments_of(name, rng)]
    found = LOSSES[name](reduction="none")(*arguments)
    assert found.dtype == "float32"
    wide = [tf.cast(each, "float64").numpy() for each in arguments]
    assert relative_error(found, oracle_of(name, *wide)) < 10 * TOLERANCE["float32"]
    halved = LOSSES[name](reduction="none", dtype=dtype)(*arguments)
    assert halved.dtype == dtype
    error = relative_error(tf.cast(halved, "float64"), oracle_of(name, *wide))
    assert error < 2 * TOLERANCE[dtype]


@EACH
def test_config_round_trip_through_json_gives_the_same_loss(name, rng):
    loss = LOSSES[name](reduction="sum", name="a_name", dtype="float64")
    serialized = json.loads(json.dumps(keras.losses.serialize(loss)))
    assert serialized["registered_name"] == f"tf_deform>{type(loss).__name__}"
    loaded = keras.losses.deserialize(serialized)
    assert type(loaded) is type(loss)
    assert loaded.get_config() == loss.get_config()
    assert loaded.get_config().items() >= {"name": "a_name", "reduction": "sum"}.items()
    arguments = arguments_of(name, rng)
    assert loaded(*arguments).dtype == "float64"
    np.testing.assert_array_equal(loaded(*arguments), loss(*arguments))


def registration_model():
    """Returns a model that predicts a velocity for a pair of images, and warps one by it."""
    images = keras.Input((6, 7, 2), name="images")
    flow = keras.layers.Conv2D(2, 3, padding="same", name="flow", dtype="float32")(images)
    moved = tfd.layers.DenseImageWarp(name="moved")(images[..., :1], flow)
    return keras.Model(images, {"moved": moved, "flow": flow})


@pytest.mark.parametrize(("policy", "jit_compile"), [("float32", False), ("mixed_float16", True)])
def test_a_compiled_model_trains_and_is_saved_with_its_losses(policy, jit_compile, rng, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = registration_model()
    finally:
        keras.config.set_dtype_policy("float32")
    losses = {"moved": CORRELATION(5), "flow": SMOOTHNESS("l1")}
    model.compile("sgd", losses, loss_weights={"moved": 1, "flow": 0.1}, jit_compile=jit_compile)
    count = 4 if jit_compile else 5  # XLA would compile everything again for the last batch of one
    images = rng.random((count, 6, 7, 2)).astype("float32")
    targets = {"moved": images[..., 1:], "flow": np.zeros([count, 1])}
    with tfd.use_implementation("portable"):
        history = model.fit(images, targets, batch_size=2, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss["moved"].get_config() == losses["moved"].get_config()
    assert loaded.loss["flow"].get_config() == losses["flow"].get_config()
    found, expected = (
        each.evaluate(images, targets, batch_size=2, verbose=0) for each in (loaded, model)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_memory_does_not_grow_with_the_window():
    """No tensor of the graph, gradients included, is larger than the five maps of an image."""
    space = (8, 9, 10)

    @tf.function
    def step(one, other):
        with tf.GradientTape() as tape:
            tape.watch(other)
            loss = CORRELATION(7)(one, other)
        return tape.gradient(loss, other)

    spec = tf.TensorSpec([1, *space, 1])
    graph = step.get_concrete_function(spec, spec).graph
    sizes = [each.shape.num_elements() for op in graph.get_operations() for each in op.outputs]
    assert max(size or 0 for size in sizes) == 5 * np.prod(space)


def test_a_registration_trains_as_documented(rng):
    """Runs the code of docs/registration.md on blobs that are moved and stretched."""
    text = (pathlib.Path(tfd.__file__).parents[1] / "docs" / "registration.md").read_text()
    index = np.stack(np.mgrid[:32, :32], -1)[None]
    centres = rng.uniform(12, 20, (2, 24, 1, 1, 2))
    blobs = np.exp(-((index - centres) ** 2).sum(-1) / rng.uniform(20, 60, (2, 24, 1, 1)))
    names = {"keras": keras, "np": np, "tfd": tfd, "pairs": np.moveaxis(blobs, 0, -1)}
    names["points"] = centres[1, :, 0].astype("float32")
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(code, names)
    losses = names["history"].history["moved_loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert names["folded"] == 0
    assert names["landmarks"].shape == (24, 1, 2)
    assert names["back"].shape == (24, 32, 32, 1)
    assert names["large"].shape == (24, 64, 64, 2)


# Bad input

IMAGE, FLOW = np.zeros((2, 5, 7, 3), "float32"), np.zeros((2, 5, 7, 2), "float32")
BAD = {
    r"window must be an int or 1 ints of at least 1, received 0": lambda: CORRELATION(0),
    r"window must have odd sides, received 4": lambda: CORRELATION(4),
    r"window must be an int .*, received '9'": lambda: CORRELATION("9"),
    r"window must be an int or 2 ints .*, received \(3, 5, 7\)": (
        lambda: CORRELATION((3, 5, 7))(IMAGE, IMAGE)
    ),
    r"epsilon must be a finite number above 0, received 0": lambda: CORRELATION(epsilon=0),
    r"y_true must have shape \[batch, 1 to 3 axes, channels\], received \(5, 7\)": (
        lambda: CORRELATION()(IMAGE[0, ..., 0], IMAGE)
    ),
    r"y_pred must have shape that of y_true = \[2, 5, 7, 3\], received \[2, 5, 7, 2\]": (
        lambda: CORRELATION()(IMAGE, FLOW)
    ),
    r"penalty must be one of 'l1', 'l2', received 'l3'": lambda: SMOOTHNESS("l3"),
    r"y_pred must have shape \[batch, \*space, rank\] .*, received \(2, 5, 7, 3\)": (
        lambda: SMOOTHNESS()(FLOW, IMAGE)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
