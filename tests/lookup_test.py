"""Correlation looked up around a flow, on demand and from a pyramid of all pairs."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import (
    TOLERANCE,
    XLA_KERNELS,
    check_derivatives,
    fractional,
    gradients,
    relative_error,
)

BOTH = pytest.mark.usefixtures("implementation")
BATCH, HEIGHT, WIDTH, CHANNELS = 2, 5, 7, 3
OPTIONS = {
    "one level": {"radius": 2},
    "no neighbours": {"radius": 0, "num_levels": 2},
    "levels without pixels": {"radius": 1, "num_levels": 5},
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def from_pyramid(first, second, flow, *, radius, num_levels=1):
    pyramid = tfd.ops.correlation_pyramid(first, second, num_levels=num_levels)
    return tfd.ops.pyramid_lookup(pyramid, flow, radius=radius)


FORMS = {"on demand": tfd.ops.correlation_lookup, "pyramid": from_pyramid}
EACH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def arguments_of(rng, dtype="float64"):
    """Returns two maps, and a flow between pixels of which much leads outside."""
    maps = [rng.normal(size=(BATCH, HEIGHT, WIDTH, CHANNELS)) for _ in range(2)]
    return [each.astype(dtype) for each in (*maps, fractional(rng, (*maps[0].shape[:3], 2), -4, 4))]


# What they compute


@BOTH
@EACH
@EVERY
def test_it_is_the_product_with_samples_around_the_flow(form, options, rng):
    arguments = arguments_of(rng)
    expected = oracles.correlation_lookup(*arguments, **options)
    assert np.mean(expected != 0) > 0.2
    assert relative_error(form(*arguments, **options), expected) < TOLERANCE["float64"]


def test_a_pyramid_holds_all_products(rng):
    first, second, _ = arguments_of(rng)
    found = tfd.ops.correlation_pyramid(first, second, num_levels=3)
    expected = oracles.correlation_pyramid(first, second, num_levels=3)
    assert [each.shape[3:] for each in found] == [(5, 7), (2, 3), (1, 1)]
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE["float64"]


@EACH
def test_the_samples_are_those_of_warp_and_of_correlation(form, rng):
    first, second, flow = arguments_of(rng)
    warped = tfd.ops.warp(second, flow, padding_mode="zeros")
    expected = np.sum(first * warped, axis=-1, keepdims=True) / np.sqrt(CHANNELS)
    assert relative_error(form(first, second, flow, radius=0), expected) < TOLERANCE["float64"]
    still = form(first, second, np.zeros_like(flow), radius=2)
    costs = tfd.ops.correlation(first, second, max_displacement=2, padding=2)
    assert relative_error(still, costs * np.sqrt(CHANNELS)) < TOLERANCE["float64"]


@EACH
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32"))
def test_the_products_of_half_precision_are_float32(form, dtype, rng):
    arguments = [tf.cast(each, dtype) for each in arguments_of(rng)]
    found = form(*arguments, radius=1, num_levels=2)
    arguments = [tf.cast(each, "float64") for each in arguments]
    expected = oracles.correlation_lookup(*arguments, radius=1, num_levels=2)
    assert found.dtype == "float32"
    assert relative_error(found, expected) < TOLERANCE["float32"]


# Derivatives


@BOTH
@EACH
def test_derivatives_to_both_maps_and_to_the_flow(form, rng):
    check_derivatives(lambda *each: form(*each, radius=1, num_levels=2), *arguments_of(rng))


@EACH
def test_a_flow_of_zero_has_a_gradient_everywhere(form, rng):
    first, second, flow = arguments_of(rng)
    found = gradients(lambda flow: form(first, second, flow, radius=0), np.zeros_like(flow))[0]
    assert np.all(found != 0)


@BOTH
@EACH
@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_flow_that_is_not_finite_gives_0_and_has_no_gradient(form, value, rng):
    first, second, flow = arguments_of(rng)
    flow[1, 2, 3, 0] = value
    found = form(first, second, flow, radius=1, num_levels=2)
    expected = oracles.correlation_lookup(first, second, flow, radius=1, num_levels=2)
    assert not np.any(found[1, 2, 3])
    assert relative_error(found, expected) < TOLERANCE["float64"]

    def function(*arguments):
        return form(*arguments, radius=1, num_levels=2)

    for each in gradients(function, first, second, flow):
        assert np.all(np.isfinite(each))
        assert np.any(each)


def test_no_samples_are_kept_for_the_gradient():
    """TensorFlow pushes what a loop's gradient needs onto lists: here there are none."""
    maps = tf.TensorSpec([1, 16, 16, 64])

    @tf.function(input_signature=[maps, maps, tf.TensorSpec([1, 16, 16, 2])])
    def derived(*arguments):
        return tf.gradients(tfd.ops.correlation_lookup(*arguments, radius=4), arguments)

    library = derived.get_concrete_function().graph.as_graph_def().library
    used = {node.op for function in library.function for node in function.node_def}
    assert "TensorListSetItem" in used  # as the products are
    assert "TensorListPushBack" not in used


# Graphs, sizes, exports


@EACH
def test_values_and_gradients_are_the_same_under_xla_and_with_free_sizes(form, rng):
    def derived(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            costs = form(*arguments, radius=1, num_levels=2)
        return costs, *tape.gradient(costs, arguments, output_gradients=costs)

    arguments = [tf.constant(each) for each in arguments_of(rng)]
    expected = derived(*arguments)
    free = [tf.TensorSpec([None] * 4, "float64")] * 3
    traced = tf.function(derived, input_signature=free)
    with contextlib.nullcontext() if XLA_KERNELS else tfd.use_implementation("portable"):
        jitted = tf.function(derived, jit_compile=True)(*arguments)
    for actual in (traced(*arguments), jitted):
        for one, other in zip(actual, expected, strict=True):
            assert relative_error(one, other) < TOLERANCE["float64"]
    *maps, flow = arguments
    for empty in (
        [each[:0] for each in arguments],
        [each[:, :0] for each in arguments],
        [*[each[..., :0] for each in maps], flow],
    ):
        found = traced(*empty)
        assert [each.shape for each in found] == [(*empty[0].shape[:3], 18), *map(np.shape, empty)]
        assert not np.any(found[0])


@EACH
def test_levels_without_pixels_or_channels_are_traced_with_known_sizes(form, rng):
    """TensorFlow's own pooling refuses to pool no pixels, and to differentiate no channels."""
    *maps, flow = map(tf.constant, arguments_of(rng))

    @tf.function
    def derived(*arguments):
        costs = form(*arguments, radius=1, num_levels=5)
        return costs, *tf.gradients(costs, arguments)

    costs, *found = derived(*maps, flow)
    assert not np.any(costs[..., -18:])
    assert all(np.any(each) for each in found)
    costs, *_ = derived(*[each[..., :0] for each in maps], flow)
    assert not np.any(costs)


def model_of(form):
    maps = [keras.Input((None, None, CHANNELS), name=name) for name in ("first", "second")]
    flow = keras.Input((None, None, 2), name="flow")
    return keras.Model([*maps, flow], form(*maps, flow, radius=1))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@EACH
def test_a_model_is_exported_with_free_sizes(form, rng, tmp_path):
    arguments = arguments_of(rng, "float32")
    expected = oracles.correlation_lookup(*arguments, radius=1)
    model, module = model_of(form), tf.Module()
    free = [tf.TensorSpec(each.shape) for each in model.inputs]
    module.serve = tf.function(lambda *each: model(list(each)), input_signature=free)
    tf.saved_model.save(module, tmp_path / "saved")  # Keras's export traces the model five times
    served = tf.saved_model.load(tmp_path / "saved").serve(*arguments)
    assert relative_error(served, expected) < TOLERANCE["float32"]
    # Compared at other sizes than here; at those tried without a sample a pyramid takes a minute.
    sample = [tf.random.normal([1, 9, 11, size]) for size in (CHANNELS, CHANNELS, 2)]
    tfd.export_litert(model, tmp_path / "model.tflite", sample=sample)
    run = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (found,) = run(**dict(zip(("first", "second", "flow"), arguments, strict=True))).values()
    assert relative_error(found, expected) < TOLERANCE["float32"]


# Learning


@EACH
def test_a_flow_is_learned_from_lookups_about_it(form, rng):
    """Maps of equal vectors have the largest product, and the products lead the flow there."""
    first = tf.image.resize(rng.normal(size=(2, 4, 4, 32)), (20, 22), "bicubic")
    first = tf.math.l2_normalize(first, axis=-1)
    truth = np.array([[1, -1], [-2, 2]], "float32")
    second = tfd.ops.warp(first, -truth[:, None, None] * np.ones_like(first[..., :2]))
    shift = tf.Variable(tf.zeros([2, 1, 1, 2]))
    optimizer = keras.optimizers.Adam(0.1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            flow = shift * tf.ones([2, 20, 22, 2])  # what is at p in first is at p + flow
            products = form(first, second, flow, radius=0)
            loss = -tf.reduce_mean(products[:, 4:-4, 4:-4])
        optimizer.apply_gradients([(tape.gradient(loss, shift), shift)])

    for _ in range(80):
        step()
    np.testing.assert_allclose(shift[:, 0, 0], truth, atol=0.2)


# Bad input

MAPS, FLOW = np.zeros((2, 5, 7, 3), "float32"), np.zeros((2, 5, 7, 2), "float32")
VOLUME = np.zeros((2, 5, 7, 5, 7), "float32")
BAD = {
    r"radius must be an int of at least 0, received -1": (
        lambda: tfd.ops.correlation_lookup(MAPS, MAPS, FLOW, radius=-1)
    ),
    r"num_levels must be an int of at least 1, received 0": (
        lambda: tfd.ops.correlation_pyramid(MAPS, MAPS, num_levels=0)
    ),
    r"second must have shape that of first = \[2, 5, 7, 3\], received \[2, 5, 6, 3\]": (
        lambda: tfd.ops.correlation_lookup(MAPS, MAPS[:, :, 1:], FLOW, radius=1)
    ),
    r"flow must have shape .* of the maps = \[2, 5, 7, 2\], received \[2, 5, 7, 3\]": (
        lambda: tfd.ops.correlation_lookup(MAPS, MAPS, MAPS, radius=1)
    ),
    r"flow must have shape .* of the maps = \[2, 5, 7, 2\], received \[2, 4, 7, 2\]": (
        lambda: tfd.ops.pyramid_lookup([VOLUME], FLOW[:, 1:], radius=1)
    ),
    r"pyramid must be a list of volumes, received a ndarray": (
        lambda: tfd.ops.pyramid_lookup(VOLUME, FLOW, radius=1)
    ),
    r"pyramid\[0\] must have shape \[batch, height, width, .*\], received \[2, 5, 7, 3\]": (
        lambda: tfd.ops.pyramid_lookup([MAPS], FLOW, radius=1)
    ),
    r"pyramid\[1\] must have shape .* = \[2, 5, 7, \?, \?\], received \[2, 4, 7, 5, 7\]": (
        lambda: tfd.ops.pyramid_lookup([VOLUME, VOLUME[:, 1:]], FLOW, radius=1)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_dtypes_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match=r"second must have the dtype of first, float32, received"):
        tfd.ops.correlation_pyramid(MAPS, MAPS.astype("float64"))
    with pytest.raises(TypeError, match=r"flow must be floating-point, received int32"):
        tfd.ops.correlation_lookup(MAPS, MAPS, FLOW.astype("int32"), radius=1)
    with pytest.raises(TypeError, match=r"pyramid\[1\] must have the dtype of pyramid\[0\]"):
        tfd.ops.pyramid_lookup([VOLUME, VOLUME.astype("float64")], FLOW, radius=1)


@EACH
def test_sizes_that_do_not_fit_are_an_error_at_run_time_where_they_are_free(form):
    traced = tf.function(
        lambda *each: form(*each, radius=1), input_signature=[tf.TensorSpec([None] * 4)] * 3
    )
    assert traced(MAPS, MAPS, FLOW).shape == (2, 5, 7, 9)
    with pytest.raises(tf.errors.InvalidArgumentError, match="flow must have shape"):
        traced(MAPS, MAPS, FLOW[:, 1:])
