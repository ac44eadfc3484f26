import numpy as np
import pytest
import tensorflow as tf

import oracles
from conftest import (
    MODES,
    TOLERANCE,
    check_derivatives,
    gradients,
    relative_error,
    run_litert,
)
from tf_deform import ops

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, QUERIES, HEADS, POINTS, DIM = 2, 5, 3, 2, 4
SPACES = [(6, 7), (3, 5), (1, 2)]


def build(rng, dtype=np.float64, *, spaces=SPACES, batch=BATCH, queries=QUERIES):
    """Returns values, locations (some outside) and weights."""
    values = [rng.normal(size=[batch, *space, HEADS * DIM]).astype(dtype) for space in spaces]
    shape = [batch, queries, HEADS, len(spaces), POINTS]
    locations = rng.uniform(-0.3, 1.3, [*shape, 2])
    return values, locations.astype(dtype), rng.normal(size=shape).astype(dtype)


def attend(locations, weights, *values):
    return ops.multi_scale_deformable_attention(values, locations, weights)


@pytest.mark.parametrize("spaces", [SPACES, SPACES[:1], [(4, 4), (5, 3)]], ids=str)
def test_attention_equals_the_oracle(rng, spaces):
    arguments = build(rng, spaces=spaces)
    actual = ops.multi_scale_deformable_attention(*arguments)
    expected = oracles.multi_scale_deformable_attention(*arguments)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_locations_are_x_then_y_with_the_edges_at_zero_and_one():
    value = np.arange(6.0).reshape(1, 2, 3, 1)
    corners = np.array([[0.5 / 3, 0.25], [2.5 / 3, 0.25], [0.5 / 3, 0.75], [0.5, 0.5], [0, 0.25]])
    locations = corners.reshape(1, 5, 1, 1, 1, 2)
    found = ops.multi_scale_deformable_attention([value], locations, np.ones([1, 5, 1, 1, 1]))
    np.testing.assert_allclose(found[0, :, 0], [0, 2, 3, 2.5, 0], atol=1e-12)


def test_attention_of_sizes_unknown_while_tracing_equals_the_oracle(rng, mode):
    def signature(array, free):
        return tf.TensorSpec([*[None] * free, *array.shape[free:]], tf.float32)

    values, locations, weights = build(rng, np.float32)
    specs = [signature(locations, 2), signature(weights, 2), *(signature(v, 3) for v in values)]
    traced = mode(tf.function(attend, input_signature=specs, autograph=False))
    for spaces, batch, queries in ((SPACES, BATCH, QUERIES), ([(4, 3), (7, 2), (5, 5)], 1, 6)):
        values, locations, weights = build(
            rng, np.float32, spaces=spaces, batch=batch, queries=queries
        )
        expected = oracles.multi_scale_deformable_attention(values, locations, weights)
        assert relative_error(traced(locations, weights, *values), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_values_are_accumulated_in_float32_at_float32_locations(rng, dtype):
    """At pixel 1001.3 neighbouring halves are 0.5 apart."""
    values, locations, weights = build(rng, np.float32, spaces=[(2, 1010)])
    values = [tf.cast(values[0], dtype)]
    actual = ops.multi_scale_deformable_attention(values, locations, weights)
    assert actual.dtype == dtype
    exact = [tf.cast(values[0], tf.float64).numpy()]
    expected = oracles.multi_scale_deformable_attention(exact, locations, weights)
    assert relative_error(tf.cast(actual, tf.float64), expected) < TOLERANCE[dtype]


def test_derivatives_of_attention(rng):
    values, locations, weights = build(rng, spaces=SPACES[:2], batch=1, queries=2)
    check_derivatives(attend, locations, weights, *values)


@pytest.mark.parametrize("special", [np.nan, np.inf, 1e30])
def test_a_location_that_is_nowhere_samples_zero_without_a_gradient(rng, special):
    values, locations, weights = build(rng)
    locations[1, 2, 1, 0, 1, 0] = special
    with np.errstate(invalid="ignore"):
        expected = oracles.multi_scale_deformable_attention(values, locations, weights)
    assert relative_error(attend(locations, weights, *values), expected) < TOLERANCE["float64"]
    of_locations, of_weights, *of_values = gradients(attend, locations, weights, *values)
    assert not np.any(of_locations[1, 2, 1, 0, 1])
    assert of_weights[1, 2, 1, 0, 1] == 0
    assert all(np.all(np.isfinite(each)) for each in (of_locations, *of_values))


def test_pixels_outside_the_samples_cannot_leak(rng):
    values, locations, weights = build(rng, spaces=[(8, 9)])
    locations = 0.5 + 0.1 * locations
    spoiled = np.full_like(values[0], np.nan)
    spoiled[:, 2:7, 2:8] = values[0][:, 2:7, 2:8]
    expected = attend(locations, weights, values[0])
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(attend(locations, weights, spoiled), expected)


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_no_images_or_queries_give_an_empty_result_and_zero_gradients(rng, mode, batch, queries):
    values, locations, weights = build(rng, batch=batch, queries=queries)
    derived = MODES[mode](lambda *each: (attend(*each), *gradients(attend, *each)))
    out, *found = derived(locations, weights, *values)
    assert out.shape == (batch, queries, HEADS * DIM)
    assert [each.shape for each in found] == [each.shape for each in (locations, weights, *values)]
    assert not any(map(np.any, found))


def test_a_map_without_pixels_adds_nothing(rng):
    arguments = build(rng, spaces=[(4, 3), (0, 2)])
    actual = ops.multi_scale_deformable_attention(*arguments)
    expected = oracles.multi_scale_deformable_attention(*arguments)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_attention_converts_to_litert_with_builtin_operators(rng):
    values, locations, weights = build(rng, np.float32)
    actual = run_litert(attend, locations, weights, *values)
    expected = oracles.multi_scale_deformable_attention(values, locations, weights)
    assert relative_error(actual, expected) < TOLERANCE["float32"]
