"""The correlation of two maps against a loop, its derivatives, and its memory."""

import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, relative_error

BATCH, HEIGHT, WIDTH, CHANNELS = 2, 7, 9, 3
OPTIONS = {
    "one pixel": {"max_displacement": 2},
    "padded": {"max_displacement": 2, "padding": 3},
    "displacements apart": {"max_displacement": 3, "displacement_stride": 2, "padding": 3},
    "patches": {"max_displacement": 2, "kernel_size": 3, "padding": 3},
    "strides": {"max_displacement": 1, "kernel_size": 3, "stride": 2, "padding": 2},
    "wide strides": {"max_displacement": 2, "stride": 3, "padding": 1},
    "in place": {"max_displacement": 0, "kernel_size": 5},
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def maps_of(rng, dtype="float64"):
    shape = BATCH, HEIGHT, WIDTH, CHANNELS
    return [rng.normal(size=shape).astype(dtype) for _ in range(2)]


@EVERY
@pytest.mark.parametrize("dtype", ("float64", "float32", "bfloat16"))
def test_it_is_the_mean_of_products_over_patches(options, dtype, rng):
    maps = [tf.cast(each, dtype) for each in maps_of(rng)]
    costs = tfd.ops.correlation(*maps, **options)
    expected = oracles.correlation(*[tf.cast(each, "float64") for each in maps], **options)
    assert costs.dtype == dtype
    assert relative_error(tf.cast(costs, "float64"), expected) < TOLERANCE[dtype]


def test_half_precision_is_summed_in_float32():
    first = tf.constant([[[[1.0078125, -1.015625]]]], tf.bfloat16)
    second = tf.constant([[[[1.0234375, 1.015625]]]], tf.bfloat16)
    costs = tfd.ops.correlation(first, second, max_displacement=0)
    expected = (1.0078125 * 1.0234375 - 1.015625**2) / 2  # 0 if products are rounded
    assert relative_error(tf.cast(costs, "float32"), [[[[expected]]]]) < TOLERANCE["bfloat16"]


@EVERY
def test_it_has_derivatives_to_both_maps(options, rng):
    check_derivatives(lambda *maps: tfd.ops.correlation(*maps, **options), *maps_of(rng))


@EVERY
def test_values_and_gradients_are_the_same_under_xla_and_with_free_sizes(options, rng):
    def derived(*maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            costs = tfd.ops.correlation(*maps, **options)
        return costs, *tape.gradient(costs, maps, output_gradients=costs)

    maps = [tf.constant(each) for each in maps_of(rng)]
    expected = derived(*maps)
    free = [tf.TensorSpec([None] * 4, "float64")] * 2
    traced = tf.function(derived, input_signature=free)
    for actual in (traced(*maps), tf.function(derived, jit_compile=True)(*maps)):
        for one, other in zip(actual, expected, strict=True):
            assert relative_error(one, other) < TOLERANCE["float64"]
    for one, other in zip(traced(*[each[:0] for each in maps]), expected, strict=True):
        assert one.shape == (0, *other.shape[1:])
    costs, *_ = traced(*[each[..., :0] for each in maps])
    assert costs.shape == expected[0].shape
    assert not np.any(costs)  # sums of nothing


def test_no_window_is_kept_for_the_gradient():
    """TensorFlow pushes what a loop's gradient needs onto lists: here there are none."""
    spec = tf.TensorSpec([1, 16, 16, 64])

    @tf.function(input_signature=[spec, spec])
    def derived(*maps):
        costs = tfd.ops.correlation(*maps, max_displacement=4, padding=4)
        return tf.gradients(costs, maps)

    library = derived.get_concrete_function().graph.as_graph_def().library
    used = {node.op for function in library.function for node in function.node_def}
    assert "TensorListSetItem" in used  # as the costs are
    assert "TensorListPushBack" not in used


def test_bad_input_is_named_with_what_was_expected_and_received(rng):
    first, second = maps_of(rng)
    correlation = tfd.ops.correlation
    with pytest.raises(ValueError, match=r"^kernel_size must be an odd int, received 2"):
        correlation(first, second, max_displacement=1, kernel_size=2)
    with pytest.raises(ValueError, match=r"^max_displacement must be an int of .* 0, received -1"):
        correlation(first, second, max_displacement=-1)
    with pytest.raises(ValueError, match=r"^second must have shape that of first = .*\[2, 7, 8, 3"):
        correlation(first, second[:, :, 1:], max_displacement=1)
    with pytest.raises(TypeError, match=r"^second must have the dtype of first, float64, received"):
        correlation(first, second.astype("float32"), max_displacement=1)
    with pytest.raises(ValueError, match=r"^first must be at least 9 pixels .*\[2, 7, 9, 3\]"):
        correlation(first, second, max_displacement=4)
    free = tf.function(
        lambda *maps: correlation(*maps, max_displacement=4),
        input_signature=[tf.TensorSpec([None] * 4, "float64")] * 2,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="first must be at least 9 pixels"):
        free(first, second)
    layer = tfd.addons.CorrelationCost(1, 1, 1, 1, 1, "channels_last")
    with pytest.raises(ValueError, match="inputs must be a list of two tensors, received 3"):
        layer([first] * 3)
    with pytest.raises(ValueError, match="inputs must be a list of two tensors, received one"):
        layer(first)
    layer = tfd.addons.CorrelationCost(3, 3, 1, 1, 0, "channels_last")
    with pytest.raises(
        ValueError, match=r"inputs\[0\] must be at least 9 pixels .*\[2, 7, \?, 3\]"
    ):
        layer.compute_output_shape([(2, 7, None, 3)] * 2)
