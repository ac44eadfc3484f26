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


# As many points of each level as there are spaces.
UNEQUAL = (3, 1, 2)


def build_unequal(rng, dtype=np.float64, **options):
    """Returns values, locations and weights of the levels' points one after the other."""
    values, *each = build(rng, dtype, **options)
    chosen = [0, 1, 0, 2, 4, 5]  # of two points in each of three levels
    locations, weights = (
        np.reshape(part, [*part.shape[:3], 6, *part.shape[5:]])[:, :, :, chosen] for part in each
    )
    locations[:, :, :, 2] += 0.07
    return values, locations, weights


def attend_unequal(locations, weights, *values):
    return ops.multi_scale_deformable_attention(values, locations, weights, num_points=UNEQUAL)


def attend_discretely(locations, weights, *values):
    return ops.multi_scale_deformable_attention(values, locations, weights, method="discrete")


@pytest.mark.parametrize("spaces", [SPACES, SPACES[:1], [(4, 4), (5, 3)]], ids=str)
def test_attention_equals_the_oracle(rng, spaces):
    arguments = build(rng, spaces=spaces)
    actual = ops.multi_scale_deformable_attention(*arguments)
    expected = oracles.multi_scale_deformable_attention(*arguments)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_attention_with_points_of_each_level_equals_the_oracle(rng, method):
    arguments, options = build_unequal(rng), {"num_points": UNEQUAL, "method": method}
    actual = ops.multi_scale_deformable_attention(*arguments, **options)
    expected = oracles.multi_scale_deformable_attention(*arguments, **options)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_equal_points_may_lie_one_after_the_other_too(rng):
    values, locations, weights = build(rng)
    flat = [np.reshape(e, [*e.shape[:3], -1, *e.shape[5:]]) for e in (locations, weights)]
    actual = ops.multi_scale_deformable_attention(values, *flat, num_points=[POINTS] * len(SPACES))
    np.testing.assert_array_equal(actual, attend(locations, weights, *values))


@pytest.mark.parametrize("spaces", [SPACES, SPACES[:1], [(4, 3), (0, 2)]], ids=str)
def test_discrete_attention_equals_the_oracle(rng, spaces):
    arguments = build(rng, spaces=spaces)
    actual = ops.multi_scale_deformable_attention(*arguments, method="discrete")
    expected = oracles.multi_scale_deformable_attention(*arguments, method="discrete")
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_a_discrete_location_reads_the_pixel_after_the_nearest_edge_clamped_into_the_map():
    value = np.arange(6.0).reshape(1, 2, 3, 1)
    pixels = np.array([[0, 0], [0.4, 0], [0.5, 0], [1.6, 0.5], [9, 9], [-9, 0.4]])
    locations = (pixels / [3, 2]).reshape(1, 6, 1, 1, 1, 2)
    found = attend_discretely(locations, np.ones([1, 6, 1, 1, 1]), value)
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 5, 5, 0])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_a_discrete_location_that_is_nowhere_reads_zero(rng, special):
    values, locations, weights = build(rng)
    locations[1, 2, 1, 0, 1, 0] = special
    expected = oracles.multi_scale_deformable_attention(
        values, locations, weights, method="discrete"
    )
    found = attend_discretely(locations, weights, *values)
    assert relative_error(found, expected) < TOLERANCE["float64"]
    _, of_weights, *_ = gradients(attend_discretely, locations, weights, *values)
    assert of_weights[1, 2, 1, 0, 1] == 0


def test_discrete_attention_reads_no_neighbours(rng):
    values, locations, weights = build(rng, spaces=[(4, 5)])
    seen = np.zeros([BATCH, 4, 5, HEADS * DIM], bool)
    for b, q, head, _, p in np.ndindex(*weights.shape):
        place = np.floor(locations[b, q, head, 0, p, ::-1] * [4, 5] + 0.5)
        y, x = np.clip(place, 0, [3, 4]).astype(int)
        seen[b, y, x, head * DIM : (head + 1) * DIM] = True
    assert not np.all(seen)
    found = attend_discretely(locations, weights, np.where(seen, values[0], np.nan))
    np.testing.assert_array_equal(found, attend_discretely(locations, weights, values[0]))


def test_discrete_attention_has_no_gradient_to_locations_and_those_of_the_sum_to_the_rest(rng):
    values, locations, weights = build(rng, spaces=SPACES[:2], batch=1, queries=2)
    of_locations, *_ = gradients(attend_discretely, locations, weights, *values)
    assert of_locations is None or not np.any(of_locations)
    check_derivatives(
        lambda weights, *values: attend_discretely(locations, weights, *values), weights, *values
    )


def test_discrete_attention_has_second_derivatives_at_sizes_unknown_while_tracing(rng):
    """Where sizes are unknown, points are taken in turns, with gradients of their own."""
    values, locations, weights = build(rng, spaces=SPACES[:1])
    free = tf.TensorSpec([None, None, None, HEADS * DIM], tf.float64)

    @tf.function(input_signature=[free], autograph=False)
    def twice(value):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(value)
            squares = attend_discretely(locations, weights, value) ** 2
            first = outer.gradient(tf.reduce_sum(squares), value)
        return first, outer.gradient(first, value)

    first, second = twice(values[0])
    # Of a square form: H v = g, and H v along ones is what a gradient of ones is.
    ones, _ = twice(np.ones_like(values[0]))
    assert np.any(first)
    assert relative_error(second, ones) < TOLERANCE["float64"]


def test_locations_are_x_then_y_with_the_edges_at_zero_and_one():
    value = np.arange(6.0).reshape(1, 2, 3, 1)
    corners = np.array([[0.5 / 3, 0.25], [2.5 / 3, 0.25], [0.5 / 3, 0.75], [0.5, 0.5], [0, 0.25]])
    locations = corners.reshape(1, 5, 1, 1, 1, 2)
    found = ops.multi_scale_deformable_attention([value], locations, np.ones([1, 5, 1, 1, 1]))
    np.testing.assert_allclose(found[0, :, 0], [0, 2, 3, 2.5, 0], atol=1e-12)


FORMS = {
    "default": (build, attend, {}),
    "points of each level": (build_unequal, attend_unequal, {"num_points": UNEQUAL}),
    "discrete": (build, attend_discretely, {"method": "discrete"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_of_sizes_unknown_while_tracing_equals_the_oracle(rng, mode, form):
    def signature(array, free):
        return tf.TensorSpec([*[None] * free, *array.shape[free:]], tf.float32)

    make, function, options = FORMS[form]
    values, locations, weights = make(rng, np.float32)
    specs = [signature(locations, 2), signature(weights, 2), *(signature(v, 3) for v in values)]
    traced = mode(tf.function(function, input_signature=specs, autograph=False))
    for spaces, batch, queries in ((SPACES, BATCH, QUERIES), ([(4, 3), (7, 2), (5, 5)], 1, 6)):
        values, locations, weights = make(
            rng, np.float32, spaces=spaces, batch=batch, queries=queries
        )
        expected = oracles.multi_scale_deformable_attention(values, locations, weights, **options)
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


def test_derivatives_of_attention_with_points_of_each_level(rng):
    values, locations, weights = build_unequal(rng, batch=1, queries=2)
    check_derivatives(attend_unequal, locations, weights, *values, orders=1)


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
@pytest.mark.parametrize(
    ("mode", "form"),
    [("eager", "default"), ("jit", "default"), ("eager", "points of each level")],
)
def test_no_images_or_queries_give_an_empty_result_and_zero_gradients(
    rng, mode, form, batch, queries
):
    make, function, _ = FORMS[form]
    values, locations, weights = make(rng, batch=batch, queries=queries)
    derived = MODES[mode](lambda *each: (function(*each), *gradients(function, *each)))
    out, *found = derived(locations, weights, *values)
    assert out.shape == (batch, queries, HEADS * DIM)
    assert [each.shape for each in found] == [each.shape for each in (locations, weights, *values)]
    assert not any(map(np.any, found))


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_discrete_attention_of_nothing_is_empty(rng, batch, queries):
    values, locations, weights = build(rng, batch=batch, queries=queries)
    found = attend_discretely(locations, weights, *values)
    assert found.shape == (batch, queries, HEADS * DIM)
    _, *found = gradients(attend_discretely, locations, weights, *values)
    assert [each.shape for each in found] == [each.shape for each in (weights, *values)]
    assert not any(map(np.any, found))


def test_a_map_without_pixels_adds_nothing(rng):
    arguments = build(rng, spaces=[(4, 3), (0, 2)])
    actual = ops.multi_scale_deformable_attention(*arguments)
    expected = oracles.multi_scale_deformable_attention(*arguments)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("form", FORMS)
def test_attention_converts_to_litert_with_builtin_operators(rng, form):
    make, function, options = FORMS[form]
    values, locations, weights = make(rng, np.float32)
    actual = run_litert(function, locations, weights, *values)
    expected = oracles.multi_scale_deformable_attention(values, locations, weights, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]
