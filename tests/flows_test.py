"""Algebra of displacement fields: composed, inverted, resized, measured, applied to points."""

import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, fractional, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

BATCH = 2
SPACE = {1: (9,), 2: (6, 7), 3: (4, 6, 5)}
SIZE = {1: (13,), 2: (4, 15), 3: (7, 3, 6)}
RANKS = pytest.mark.parametrize("rank", SPACE)


def flow_of(rng, rank, reach=3):
    """Returns fractional displacements, many of which lead outside."""
    return fractional(rng, (BATCH, *SPACE[rank], rank), -reach, reach)


def points_of(rng, rank):
    """Returns points inside and outside."""
    return fractional(rng, (BATCH, 3, 4, rank), -3, 9)


def invert(flow):
    return tfd.ops.invert_flow(flow, steps=2)


# Each op by its name: of a rank and flows, the op on arrays, and the oracle on the same.
OPS = {
    "compose": (
        lambda rank: lambda one, other, points: tfd.ops.compose_flows(one, other),
        lambda rank: lambda one, other, points: oracles.compose_flows(one, other),
    ),
    "inverse": (
        lambda rank: lambda one, other, points: invert(one)[0],
        lambda rank: lambda one, other, points: oracles.invert_flow(one, steps=2)[0],
    ),
    "residual": (
        lambda rank: lambda one, other, points: invert(one)[1],
        lambda rank: lambda one, other, points: oracles.invert_flow(one, steps=2)[1],
    ),
    "resize": (
        lambda rank: lambda one, other, points: tfd.ops.resize_flow(one, SIZE[rank]),
        lambda rank: lambda one, other, points: oracles.resize_flow(one, SIZE[rank]),
    ),
    "jacobian": (
        lambda rank: lambda one, other, points: tfd.ops.jacobian_determinant(one),
        lambda rank: lambda one, other, points: oracles.jacobian_determinant(one),
    ),
    "points": (
        lambda rank: lambda one, other, points: tfd.ops.warp_points(points, one),
        lambda rank: lambda one, other, points: oracles.warp_points(points, one),
    ),
}
EACH = pytest.mark.parametrize("name", OPS)


def arguments_of(rng, rank, dtype="float64"):
    arrays = flow_of(rng, rank), flow_of(rng, rank), points_of(rng, rank)
    return [each.astype(dtype) for each in arrays]


def functions_of(name, rank):
    return [make(rank) for make in OPS[name]]


# What they compute


@RANKS
@EACH
def test_the_result_is_that_of_the_definition(name, rank, rng):
    function, oracle = functions_of(name, rank)
    arguments = arguments_of(rng, rank)
    assert relative_error(function(*arguments), oracle(*arguments)) < TOLERANCE["float64"]


def smooth(rng, scale, space=(24, 21)):
    return tf.image.resize(rng.normal(size=(1, 3, 3, 2)) * scale, space, "bicubic").numpy()


def test_warping_twice_is_warping_by_the_composition_of_first_and_second(rng):
    row, column = np.mgrid[:24, :21].astype("float32")
    linear = np.stack([row, column, 2 * row - column], -1)[None]  # interpolation loses nothing
    first, second = smooth(rng, 1.2), smooth(rng, 1.2)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    twice = tfd.ops.warp(tfd.ops.warp(linear, first), second)[inner]
    once = tfd.ops.warp(linear, tfd.ops.compose_flows(first, second))[inner]
    other = tfd.ops.warp(linear, tfd.ops.compose_flows(second, first))[inner]
    assert np.max(np.abs(once - twice)) < 1e-4
    assert np.max(np.abs(other - twice)) > 0.1


def test_points_go_by_the_second_flow_and_then_by_the_first(rng):
    first, second = smooth(rng, 1.2), smooth(rng, 1.2)
    pixels = np.stack(np.mgrid[6:18, 6:15], -1)[None].astype("float32")
    composed = tfd.ops.warp_points(pixels, tfd.ops.compose_flows(first, second))
    stepwise = tfd.ops.warp_points(tfd.ops.warp_points(pixels, second), first)
    np.testing.assert_allclose(composed, stepwise, atol=1e-5)


@RANKS
def test_a_linear_flow_has_the_inverse_of_its_matrix(rank):
    matrix = np.array([[0.2, 0.1, -0.05], [-0.1, 0.15, 0.1], [0.05, -0.1, 0.25]])[:rank, :rank]
    space = SPACE[rank]
    way = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), -1) - (
        (np.array(space) - 1) / 2
    )
    inverse, residual = tfd.ops.invert_flow((way @ matrix.T)[None], steps=40)
    expected = way @ (np.linalg.inv(np.eye(rank) + matrix) - np.eye(rank)).T
    moved = way + expected + (np.array(space) - 1) / 2
    inside = np.all((moved >= 0) & (moved <= np.array(space) - 1), axis=-1)
    assert np.mean(inside) > 0.3
    np.testing.assert_allclose(inverse[0][inside], expected[inside], atol=1e-12)
    assert np.max(residual) < 1e-10


def test_the_inverse_of_an_integrated_velocity_is_the_integral_of_the_opposite(rng):
    velocity = smooth(rng, 1.5)
    there, back = (tfd.ops.integrate_velocity(sign * velocity) for sign in (1, -1))
    inverse, residual = tfd.ops.invert_flow(there)
    inner = (slice(None), slice(5, -5), slice(5, -5))
    assert np.max(np.abs(there)) > 1.5
    assert np.max(residual) < 1e-4
    assert np.max(np.abs(inverse - back)[inner]) < 0.1
    assert np.max(np.abs(tfd.ops.compose_flows(there, inverse))) < 1e-4


def test_the_residual_is_large_where_a_flow_folds():
    flow = np.zeros((1, 12, 1), "float32")
    flow[0, 4:8, 0] = [3, 1, -1, -3]  # turns four pixels about
    _, residual = tfd.ops.invert_flow(flow)
    assert np.max(residual[0, 3:9]) > 0.5
    assert not np.any(residual[0, :2])
    assert np.min(tfd.ops.jacobian_determinant(flow)) < 0


@RANKS
def test_resizing_an_affine_map_keeps_it_in_the_middle_of_the_image(rank, rng):
    """A half-pixel-centred coordinate u in [0, size] of the map times new/old is the same map."""
    matrix, shift = rng.normal(size=(rank, rank)) * 0.2, rng.normal(size=rank)

    def affine(space, old):
        centres = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), -1) + 0.5
        ratio = np.array(space) / old
        return ((centres / ratio) @ matrix.T + shift) * ratio

    old = np.array(SPACE[rank])
    size = tuple(2 * old)
    resized = tfd.ops.resize_flow(affine(SPACE[rank], old)[None], size)[0]
    inner = (slice(1, -1),) * rank
    np.testing.assert_allclose(resized[inner], affine(size, old)[inner], atol=1e-12)


def test_resizing_to_its_own_size_changes_nothing(rng):
    flow = flow_of(rng, 3)
    np.testing.assert_allclose(tfd.ops.resize_flow(flow, SPACE[3]), flow, atol=1e-14)


@RANKS
def test_the_jacobian_of_a_linear_map_is_its_determinant_at_the_border_too(rank, rng):
    matrix = rng.normal(size=(rank, rank))
    way = np.stack(np.meshgrid(*map(np.arange, SPACE[rank]), indexing="ij"), -1)
    found = tfd.ops.jacobian_determinant((way @ matrix.T)[None])
    np.testing.assert_allclose(
        found, np.full((1, *SPACE[rank]), np.linalg.det(np.eye(rank) + matrix))
    )


@pytest.mark.parametrize("space", ((1, 7), (2, 1), (1, 1)))
def test_along_an_axis_of_one_pixel_nothing_changes(space, rng):
    flow = rng.normal(size=(BATCH, *space, 2))
    found = tfd.ops.jacobian_determinant(flow)
    assert relative_error(found, oracles.jacobian_determinant(flow)) < TOLERANCE["float64"]


# Derivatives, dtypes, modes and sizes


@EACH
def test_derivatives(name, rng):
    function, _ = functions_of(name, 2)
    check_derivatives(function, *(each / 3 for each in arguments_of(rng, 2)))


def test_a_residual_of_zero_has_no_gradient_and_no_nan():
    flow = tf.zeros([1, 4, 5, 2])
    with tf.GradientTape() as tape:
        tape.watch(flow)
        _, residual = tfd.ops.invert_flow(flow, steps=3)
    assert not np.any(tape.gradient(residual, flow))


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32"))
@EACH
def test_displacements_are_float32_or_wider(name, dtype, rng):
    function, oracle = functions_of(name, 2)
    arguments = [tf.cast(each, dtype) for each in arguments_of(rng, 2)]
    found = function(*arguments)
    assert found.dtype == "float32"
    expected = oracle(*(tf.cast(each, "float64").numpy() for each in arguments))
    assert relative_error(found, expected) < 10 * TOLERANCE["float32"]


def test_of_two_dtypes_the_wider_counts(rng):
    one, other, points = arguments_of(rng, 2)
    narrow = one.astype("float32")
    for function, pair in (
        (tfd.ops.compose_flows, (narrow, other)),
        (tfd.ops.compose_flows, (other, narrow)),
        (tfd.ops.warp_points, (points, narrow)),
        (tfd.ops.warp_points, (points.astype("float32"), one)),
    ):
        assert function(*pair).dtype == "float64"


@RANKS
@EACH
def test_graphs_and_xla_agree_with_eager_execution(name, rank, rng, mode):
    function, oracle = functions_of(name, rank)
    arguments = arguments_of(rng, rank, "float32")
    found = mode(function)(*arguments)
    assert relative_error(found, oracle(*arguments)) < 10 * TOLERANCE["float32"]


@RANKS
@EACH
def test_one_trace_takes_every_size_and_none(name, rank, rng):
    function, oracle = functions_of(name, rank)
    arguments = arguments_of(rng, rank, "float32")
    free = [tf.TensorSpec([*[None] * (each.ndim - 1), rank]) for each in arguments]
    traced = tf.function(function, input_signature=free)
    expected = oracle(*arguments)
    assert relative_error(traced(*arguments), expected) < 10 * TOLERANCE["float32"]
    assert traced(*(each[:0] for each in arguments)).shape == (0, *expected.shape[1:])


@RANKS
@EACH
def test_of_no_images_there_are_no_flows(name, rank, rng):
    function, oracle = functions_of(name, rank)
    arguments = arguments_of(rng, rank)
    assert function(*(each[:0] for each in arguments)).shape == (0, *oracle(*arguments).shape[1:])


def test_no_points_no_pixels_and_no_size_are_empty_results(rng):
    flow = flow_of(rng, 2)
    assert tfd.ops.warp_points(np.zeros((BATCH, 0, 2)), flow).shape == (BATCH, 0, 2)
    assert tfd.ops.warp_points(np.zeros((BATCH, 2)), flow).shape == (BATCH, 2)
    assert tfd.ops.resize_flow(flow, (0, 3)).shape == (BATCH, 0, 3, 2)
    nothing = np.zeros((BATCH, 0, 7, 2))
    assert tfd.ops.jacobian_determinant(nothing).shape == (BATCH, 0, 7)
    assert tfd.ops.compose_flows(nothing, nothing).shape == nothing.shape
    assert tfd.ops.invert_flow(nothing)[1].shape == (BATCH, 0, 7)
    assert not np.any(tfd.ops.resize_flow(nothing, (3, 4)))


def test_a_size_may_be_known_at_run_time_alone(rng):
    flow = flow_of(rng, 2)
    traced = tf.function(lambda size: tfd.ops.resize_flow(flow, [size[0], 5]))
    expected = oracles.resize_flow(flow, (8, 5))
    assert relative_error(traced(tf.constant([8])), expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_point_that_is_not_finite_stays_so(value, rng):
    flow, points = flow_of(rng, 2), points_of(rng, 2)
    points[1, 2, 0] = value
    found = tfd.ops.warp_points(points, flow).numpy()
    np.testing.assert_array_equal(found[1, 2, 0], points[1, 2, 0])
    assert np.all(np.isfinite(np.delete(found.reshape(-1, 2), 20, axis=0)))


@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("steps", (3, 4))
def test_the_residual_of_a_flow_that_is_not_finite_is_not_finite_there(value, steps, rng):
    flow = flow_of(rng, 2, reach=1) / 4
    flow[1, 2, 3, 0] = value
    _, residual = tfd.ops.invert_flow(flow, steps=steps)
    assert not np.isfinite(residual[1, 2, 3])
    assert np.all(np.isfinite(residual[0]))


# Bad input

FLOW = np.zeros((2, 5, 7, 2), "float32")
BAD = {
    r"first must have shape \[batch, \*space, rank\] .*, received \(2, 5, 7, 3\)": (
        lambda: tfd.ops.compose_flows(np.zeros((2, 5, 7, 3)), FLOW)
    ),
    r"second must have shape .* of first = \[2, 5, 7, 2\], received \[2, 4, 7, 2\]": (
        lambda: tfd.ops.compose_flows(FLOW, FLOW[:, :4])
    ),
    r"flow must have shape \[batch, \*space, rank\] .*, received \(2, 5, 2\)": (
        lambda: tfd.ops.jacobian_determinant(FLOW[:, :, 0])
    ),
    r"flow must have shape .*, received \(5, 7, 2\)": lambda: tfd.ops.invert_flow(FLOW[0]),
    r"steps must be an int of at least 0, received -1": (
        lambda: tfd.ops.invert_flow(FLOW, steps=-1)
    ),
    r"size must have 2 sizes of at least 0, received \(3,\)": (
        lambda: tfd.ops.resize_flow(FLOW, (3,))
    ),
    r"size must have 2 sizes of at least 0, received 3": lambda: tfd.ops.resize_flow(FLOW, 3),
    r"points must have shape \[batch, ..., rank\] of flow = \[2, \?, 2\], received \[2, 4, 3\]": (
        lambda: tfd.ops.warp_points(np.zeros((2, 4, 3)), FLOW)
    ),
    r"points must have shape .*, received \[1, 4, 2\]": (
        lambda: tfd.ops.warp_points(np.zeros((1, 4, 2)), FLOW)
    ),
    r"points must have shape .*, received \[2\]": (lambda: tfd.ops.warp_points(np.zeros(2), FLOW)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize("name", ("compose_flows", "invert_flow", "jacobian_determinant"))
def test_integers_are_refused(name):
    arguments = [FLOW.astype("int32")] * (2 if name == "compose_flows" else 1)
    with pytest.raises(TypeError, match=r"must be floating-point, received int32"):
        getattr(tfd.ops, name)(*arguments)


def test_flows_that_do_not_fit_are_an_error_at_run_time_where_sizes_are_free():
    traced = tf.function(
        tfd.ops.compose_flows, input_signature=[tf.TensorSpec([None, None, None, 2])] * 2
    )
    assert traced(FLOW, FLOW).shape == FLOW.shape
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"second must have shape"):
        traced(FLOW, FLOW[:, :4])
