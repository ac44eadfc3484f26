"""Displacement fields: warping by them, integrating velocities, and registration with both."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, fractional, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, CHANNELS = 2, 3
SPACE = {1: (9,), 2: (6, 7), 3: (4, 6, 5)}
RANKS = pytest.mark.parametrize("rank", SPACE)


def inputs_of(rng, rank, dtype="float64"):
    return rng.normal(size=(BATCH, *SPACE[rank], CHANNELS)).astype(dtype)


def flow_of(rng, rank, reach=3):
    """Returns fractional displacements, many of which lead outside."""
    return fractional(rng, (BATCH, *SPACE[rank], rank), -reach, reach)


def linear_velocity(matrix, space):
    """Returns the velocity `[1, *space, rank]` that is the matrix times the way from the centre."""
    index = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), axis=-1)
    way = index - (np.array(space) - 1) / 2
    return (way @ matrix.T)[None], way


# Both rotate and contract, so that no path leaves the image.
MATRICES = {
    1: [[-0.7]],
    2: [[-0.6, 0.4], [-0.3, -0.5]],
    3: [[-0.7, 0.2, 0.1], [-0.3, -0.6, 0.2], [0.2, -0.1, -0.8]],
}


# Warping


@RANKS
@pytest.mark.parametrize("padding_mode", ("zeros", "border", "reflection"))
@pytest.mark.parametrize("interpolation", ("bilinear", "nearest", "bicubic"))
def test_warp_samples_the_inputs_at_each_pixel_plus_the_flow(
    interpolation, padding_mode, rank, rng
):
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    inputs, flow = inputs_of(rng, rank), flow_of(rng, rank)
    expected = oracles.warp(inputs, flow, **options)
    assert relative_error(tfd.ops.warp(inputs, flow, **options), expected) < TOLERANCE["float64"]
    layer = tfd.layers.DenseImageWarp(**options, dtype="float64")
    assert relative_error(layer(inputs, flow), expected) < TOLERANCE["float64"]


def test_the_layer_adds_the_flow_and_tensorflow_addons_subtracts_it():
    columns = np.tile(np.arange(5.0, dtype="float32")[:, None], (1, 2, 1, 1))
    to_the_right = np.tile(np.array([0, 2], "float32"), (1, 2, 5, 1))
    added = tfd.layers.DenseImageWarp()(columns, to_the_right)
    np.testing.assert_array_equal(added[0, 1, :, 0], [2, 3, 4, 4, 4])
    subtracted = tfd.addons.dense_image_warp(columns, to_the_right)
    np.testing.assert_array_equal(subtracted[0, 1, :, 0], [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(tfd.addons.dense_image_warp(columns, -to_the_right), added)


@RANKS
def test_no_flow_is_the_identity_whose_gradient_is_the_slope_to_the_next_pixel(rank, rng):
    inputs, still = inputs_of(rng, rank), np.zeros((BATCH, *SPACE[rank], rank))
    np.testing.assert_array_equal(tfd.ops.warp(inputs, still), inputs)
    _, of_flow = gradients(tfd.ops.warp, inputs, still)
    inner = (slice(None), *[slice(1, -1)] * rank)
    for axis in range(rank):
        slopes = np.diff(inputs, axis=axis + 1, append=0).sum(axis=-1)
        np.testing.assert_allclose(of_flow[(*inner, axis)], slopes[inner], rtol=1e-12)


@RANKS
def test_derivatives_of_warp(rank, rng):
    inputs, flow = inputs_of(rng, rank), flow_of(rng, rank, reach=2)
    check_derivatives(tfd.ops.warp, inputs, flow)


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_positions_are_not_rounded_where_inputs_or_flow_are_half_precision(dtype):
    row = np.tile([0.0, 1.0], 1000).reshape(1, 2000, 1)
    flow = np.full((1, 2000, 1), 0.3, "float32")
    layer = tfd.layers.DenseImageWarp(dtype=f"mixed_{dtype}")
    for each in (flow, tf.cast(flow, dtype)):
        warped = layer(row, each)
        assert warped.dtype == dtype
        actual = tf.cast(warped, "float32")[0, 1500:1502, 0]
        np.testing.assert_allclose(actual, [0.3, 0.7], atol=3e-3)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_a_flow_that_is_not_finite_samples_zero_with_zero_gradient(value, rng):
    inputs, flow = inputs_of(rng, 2), flow_of(rng, 2)
    flow[1, 2, 3, 0] = value
    outputs = tfd.ops.warp(inputs, flow).numpy()
    assert not np.any(outputs[1, 2, 3])
    of_inputs, of_flow = gradients(tfd.ops.warp, inputs, flow)
    assert np.all(np.isfinite(of_inputs))
    assert not np.any(of_flow[1, 2, 3])
    assert np.any(of_flow[1, 2, 4])


# Integration


@RANKS
@pytest.mark.parametrize("steps", (0, 1, 5))
def test_integration_is_scaling_and_squaring(steps, rank, rng):
    velocity = flow_of(rng, rank)
    expected = oracles.integrate_velocity(velocity, steps=steps)
    actual = tfd.ops.integrate_velocity(velocity, steps=steps)
    assert relative_error(actual, expected) < TOLERANCE["float64"]
    layer = tfd.layers.VelocityIntegration(steps, dtype="float64")
    assert relative_error(layer(velocity), expected) < TOLERANCE["float64"]


@RANKS
def test_a_constant_velocity_is_its_own_displacement(rank):
    velocity = np.broadcast_to(np.array([1.7, -2.3, 0.4])[:rank], (BATCH, *SPACE[rank], rank))
    displacement = tfd.ops.integrate_velocity(velocity)
    assert relative_error(displacement, velocity) < TOLERANCE["float64"]


@RANKS
def test_a_linear_velocity_gives_the_exponential_of_its_matrix(rank):
    matrix = np.array(MATRICES[rank])
    velocity, way = linear_velocity(matrix, SPACE[rank])
    term = exponential = np.eye(rank)
    for power in range(1, 30):
        term = term @ matrix / power
        exponential = exponential + term
    expected = (way @ exponential.T - way)[None]
    errors = []
    for steps in (6, 7, 8):
        displacement = tfd.ops.integrate_velocity(velocity, steps=steps)
        composed = np.linalg.matrix_power(np.eye(rank) + matrix / 2**steps, 2**steps)
        exact = (way @ composed.T - way)[None]
        assert relative_error(displacement, exact) < TOLERANCE["float64"]
        errors.append(relative_error(displacement, expected))
    assert errors[0] < 0.01
    np.testing.assert_allclose(errors[1:], np.array(errors[:-1]) / 2, rtol=0.03)  # first order


def test_the_opposite_velocity_gives_the_inverse(rng):
    coarse = rng.normal(size=(1, 3, 3, 2)) * 1.5
    velocity = tf.image.resize(coarse, (24, 21), "bicubic")  # smooth
    there, back = (tfd.ops.integrate_velocity(sign * velocity) for sign in (1, -1))
    and_back = (there + tfd.ops.warp(back, there)).numpy()[:, 5:-5, 5:-5]
    assert np.max(np.abs(there)) > 1.5
    assert np.max(np.abs(and_back)) < 0.1


def test_derivatives_of_integration(rng):
    velocity = rng.uniform(0.2, 0.4, (1, 4, 5, 2))
    check_derivatives(lambda v: tfd.ops.integrate_velocity(v, steps=1), velocity)


@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_displacements_are_float32_or_wider(dtype, rng):
    velocity = flow_of(rng, 2).astype(dtype)
    displacement = tfd.ops.integrate_velocity(velocity)
    assert displacement.dtype == "float32"
    expected = oracles.integrate_velocity(velocity.astype("float64"))
    assert relative_error(displacement, expected) < 10 * TOLERANCE["float32"]


def register(inputs, velocity):
    return tfd.ops.warp(inputs, tfd.ops.integrate_velocity(velocity, steps=2))


def registered_by_the_oracle(inputs, velocity):
    return oracles.warp(inputs, oracles.integrate_velocity(velocity, steps=2))


@RANKS
def test_graphs_and_xla_agree_with_eager_execution(rank, rng, mode):
    inputs, velocity = inputs_of(rng, rank, "float32"), flow_of(rng, rank).astype("float32")
    expected = registered_by_the_oracle(inputs, velocity)
    assert relative_error(mode(register)(inputs, velocity), expected) < TOLERANCE["float32"]


@RANKS
def test_one_trace_takes_every_size(rank, rng):
    inputs, velocity = inputs_of(rng, rank, "float32"), flow_of(rng, rank).astype("float32")
    free = [tf.TensorSpec([*[None] * (rank + 1), each.shape[-1]]) for each in (inputs, velocity)]
    traced = tf.function(register, input_signature=free)
    expected = registered_by_the_oracle(inputs, velocity)
    assert relative_error(traced(inputs, velocity), expected) < TOLERANCE["float32"]
    assert traced(inputs[:0], velocity[:0]).shape == (0, *inputs.shape[1:])


# Registration


def ball(space, centre):
    index = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), axis=-1)
    squared = ((index - centre) ** 2).sum(axis=-1)
    return np.exp(-squared / 8)[None, ..., None].astype("float32")


@pytest.mark.parametrize("diffeomorphic", (False, True))
def test_gradient_descent_registers_two_shifted_volumes(diffeomorphic):
    space, centre, shift = (10, 12, 11), np.array([4.0, 6.0, 4.5]), np.array([1.5, -2.0, 1.0])
    fixed, moving = ball(space, centre), ball(space, centre + shift)
    coarse = tf.Variable(tf.zeros([1, 3, 3, 3, 3]))
    layer, optimizer = tfd.layers.DenseImageWarp(), keras.optimizers.Adam(0.1)

    def smooth(field):  # the coarse field between its points, as trilinear upsampling
        index = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), axis=-1)
        points = 2.0 * index / (np.array(space) - 1)
        return tfd.ops.sample(field, points[None].astype("float32"))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            flow = smooth(coarse)
            flow = tfd.ops.integrate_velocity(flow, steps=4) if diffeomorphic else flow
            loss = tf.reduce_mean((layer(moving, flow) - fixed) ** 2)
        gradient = tape.gradient(loss, coarse)
        return loss, flow, gradient

    first = step()[0]
    optimizer.build([coarse])
    for _ in range(40):
        optimizer.apply([step()[2]], [coarse])
    loss, flow, _ = step()
    assert loss < 0.05 * first
    np.testing.assert_allclose(flow[0, 4, 6, 4], shift, atol=0.25)


# Bad input


WARP, INTEGRATE, LAYER = tfd.ops.warp, tfd.ops.integrate_velocity, tfd.layers.DenseImageWarp
ZEROS = np.zeros((2, 5, 7, 3), "float32"), np.zeros((2, 5, 7, 2), "float32")
BAD = {
    r"inputs must have shape \[batch, 1 to 3 axes, channels\], received \(5, 7\)": (
        lambda: WARP(ZEROS[0][0, ..., 0], ZEROS[1])
    ),
    r"flow must have shape \[batch, \*space, rank\] = \[2, 5, 7, 2\], received \[2, 5, 7, 3\]": (
        lambda: WARP(ZEROS[0], ZEROS[0])
    ),
    r"flow must have shape .* = \[2, 5, 7, 2\], received \[2, 4, 7, 2\]": (
        lambda: LAYER()(ZEROS[0], ZEROS[1][:, :4])
    ),
    r"interpolation must be one of 'bilinear', .*, received 'cubic'": (
        lambda: WARP(*ZEROS, interpolation="cubic")
    ),
    r"padding_mode must be one of 'zeros', .*, received 'edge'": lambda: LAYER(padding_mode="edge"),
    r"interpolation must be one of .*, received 'linear'": lambda: LAYER(interpolation="linear"),
    r"velocity must have shape \[batch, \*space, rank\] .*, received \(2, 5, 7, 3\)": (
        lambda: INTEGRATE(ZEROS[0])
    ),
    r"velocity must have shape .*, received \(2, 2\)": lambda: INTEGRATE(ZEROS[1][:, 0, 0]),
    r"steps must be an int of at least 0, received -1": lambda: INTEGRATE(ZEROS[1], steps=-1),
    r"steps must be an int of at least 0, received 2.0": lambda: INTEGRATE(ZEROS[1], steps=2.0),
}
INTEGERS = ZEROS[1].astype("int32")
BAD_DTYPES = {
    r"flow must be floating-point, received int32": lambda: LAYER()(ZEROS[0], INTEGERS),
    r"inputs must be floating-point, received int32": lambda: LAYER()(INTEGERS, ZEROS[1]),
    r"velocity must be floating-point, received int32": lambda: INTEGRATE(INTEGERS),
}


@pytest.mark.parametrize("message", [*BAD, *BAD_DTYPES])
def test_bad_input_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError if message in BAD else TypeError, match=message):
        {**BAD, **BAD_DTYPES}[message]()


def test_a_flow_that_does_not_fit_is_an_error_at_run_time_where_sizes_are_free():
    traced = tf.function(
        WARP, input_signature=[tf.TensorSpec([None, None, None, size]) for size in (3, 2)]
    )
    assert traced(*ZEROS).shape == ZEROS[0].shape
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"flow must have shape"):
        traced(ZEROS[0], ZEROS[1][:, :4])
