import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from conftest import (
    MODES,
    TOLERANCE,
    check_derivatives,
    gradients,
    relative_error,
    run_litert,
)
from tf_deform import layers, ops

pytestmark = pytest.mark.usefixtures("implementation")

INTERPOLATIONS = ["bilinear", "nearest", "bicubic"]
PADDING_MODES = ["zeros", "border", "reflection"]
CONVENTIONS = [False, True]
OPTIONS = list(itertools.product(INTERPOLATIONS, PADDING_MODES, CONVENTIONS))

IDENTITY = {
    "affine": (ops.affine_grid, np.eye(2, 3)[None]),
    "projective": (ops.projective_grid, np.eye(3)[None]),
    "thin plate spline": (ops.thin_plate_spline_grid, np.zeros([1, 16, 2])),
}


def draw_theta(rng, name, batch):
    """Returns random parameters of a transformation that is not far from the identity."""
    _, identity = IDENTITY[name]
    theta = identity + 0.15 * rng.normal(size=[batch, *identity.shape[1:]])
    if name == "projective":
        theta[:, 2] = [0.1, -0.2, 1.3]  # the horizon is outside
    return theta


def options_of(interpolation, padding_mode, align_corners):
    return {
        "interpolation": interpolation,
        "padding_mode": padding_mode,
        "align_corners": align_corners,
    }


# Grids


@given(
    st.sampled_from(list(IDENTITY)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_grids_equal_the_oracle(name, output_size, batch, align_corners, seed):
    theta = draw_theta(np.random.default_rng(seed), name, batch)
    grid_of = IDENTITY[name][0]
    actual = grid_of(theta, output_size, align_corners=align_corners)
    oracle = getattr(oracles, grid_of.__name__)
    expected = oracle(theta, output_size, align_corners=align_corners)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("align_corners", CONVENTIONS)
@pytest.mark.parametrize("output_size", [(3, 4, 2), (1, 2, 5)])
def test_affine_grids_in_three_dimensions_equal_the_oracle(rng, output_size, align_corners):
    theta = rng.normal(size=[2, 3, 4])
    actual = ops.affine_grid(theta, output_size, align_corners=align_corners)
    expected = oracles.affine_grid(theta, output_size, align_corners=align_corners)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


FLAT = {"2-D": ((3, 5), 6), "3-D": ((3, 4, 2), 12)}  # output sizes, entries of theta


def draw_flat(rng, output_size):
    """Returns thetas `[2, entries]`, row by row, and the grids that the oracle makes of them."""
    rank = len(output_size)
    theta = rng.normal(size=[2, rank, rank + 1])
    return theta.reshape(2, -1), oracles.affine_grid(theta, output_size)


@pytest.mark.parametrize(("output_size", "entries"), FLAT.values(), ids=FLAT)
def test_affine_grids_of_flat_thetas_equal_the_oracle(rng, output_size, entries, mode):
    theta, expected = draw_flat(rng, output_size)
    assert theta.shape == (2, entries)
    actual = mode(lambda theta: ops.affine_grid(theta, output_size))(theta)
    assert relative_error(actual, expected) < TOLERANCE["float64"]
    half = ops.affine_grid(tf.cast(theta, tf.float16), output_size)
    assert half.dtype == tf.float32


@pytest.mark.parametrize("free", [[None, None], [None, "entries"], [2, None]], ids=str)
@pytest.mark.parametrize(("output_size", "entries"), FLAT.values(), ids=FLAT)
def test_flat_thetas_may_have_sizes_unknown_while_tracing(rng, output_size, entries, free):
    theta, expected = draw_flat(rng, output_size)
    shape = [entries if size == "entries" else size for size in free]
    dynamic = tf.function(
        lambda theta: ops.affine_grid(theta, output_size),
        input_signature=[tf.TensorSpec(shape, tf.float64)],
    )
    actual = dynamic(theta)
    assert relative_error(actual, expected) < TOLERANCE["float64"]
    known = dynamic.get_concrete_function().structured_outputs.shape
    assert known.as_list() == [shape[0], *output_size, len(output_size)]
    if shape[1] is None:
        words = rf"theta must have shape .* or \[batch, {entries}\]"
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            dynamic(theta[:, 1:])


@pytest.mark.parametrize("shape", [(None,), (6,), (2, 3), (None, None)], ids=str)
def test_thetas_may_be_keras_tensors_of_either_shape(rng, shape):
    theta, expected = draw_flat(rng, (3, 5))
    symbol = keras.Input(shape, dtype="float64")
    grid = ops.affine_grid(symbol, (3, 5))
    assert grid.shape == (None, 3, 5, 2)
    given = theta if len(shape) == 1 else theta.reshape(2, 2, 3)
    assert relative_error(keras.Model(symbol, grid)(given), expected) < TOLERANCE["float64"]


@pytest.mark.parametrize(("output_size", "entries"), FLAT.values(), ids=FLAT)
def test_flat_thetas_are_the_parameters_of_a_spatial_transformer(rng, output_size, entries):
    parameters = rng.normal(size=[2, entries]).astype(np.float32)
    images = np.zeros([2, *output_size, 1], np.float32)
    layer = layers.SpatialTransformer(None, "affine")
    layer.build(images.shape, parameters.shape)
    expected = layer.sampling_grid(images, parameters)
    actual = ops.affine_grid(parameters, output_size)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 3), (2, 12), (6,), (2, 1, 2, 3)], ids=str)
def test_a_theta_that_does_not_fit_is_told_both_shapes(shape):
    with pytest.raises(ValueError, match="theta must have shape ") as raised:
        ops.affine_grid(np.zeros(shape), (3, 5))
    assert "[batch, 2, 3]" in str(raised.value)
    assert "[batch, 6]" in str(raised.value)


@pytest.mark.parametrize("control_points", [(2, 2), (2, 5), (3, 2)])
def test_splines_of_any_number_of_control_points_equal_the_oracle(rng, control_points):
    displacements = 0.2 * rng.normal(size=[2, np.prod(control_points), 2])
    actual = ops.thin_plate_spline_grid(displacements, (3, 4), control_points=control_points)
    expected = oracles.thin_plate_spline_grid(displacements, (3, 4), control_points=control_points)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


EDGES = np.array([[x, y] for y in (-1, 1) for x in np.linspace(-1, 1, 5)])


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize(
    "points", (EDGES, [[0, 0], [1, 0.5], [-0.3, 0.9]], "scattered"), ids=("edges", "three", "more")
)
def test_splines_of_control_points_anywhere_equal_the_oracle(points, align_corners, rng):
    points = rng.uniform(-1.2, 1.2, (7, 2)) if isinstance(points, str) else points
    displacements = 0.3 * rng.normal(size=(2, len(points), 2))
    options = {"control_points": points, "align_corners": align_corners}
    actual = ops.thin_plate_spline_grid(displacements, (3, 4), **options)
    expected = oracles.thin_plate_spline_grid(displacements, (3, 4), **options)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_control_points_on_the_regular_grid_are_those_of_its_size(rng):
    displacements = 0.3 * rng.normal(size=(2, 6, 2))
    places = [[x, y] for y in (-1, 1) for x in (-1, 0, 1)]
    np.testing.assert_array_equal(
        ops.thin_plate_spline_grid(displacements, (5, 4), control_points=places),
        ops.thin_plate_spline_grid(displacements, (5, 4), control_points=(2, 3)),
    )


def test_two_rows_of_places_unroll_what_lies_between_them():
    """Points of the upper and lower edge that lie on two arcs: the edges are sampled from them."""
    bent = EDGES.copy()
    bent[:, 1] += 0.3 * EDGES[:, 0] ** 2
    grid = ops.thin_plate_spline_grid(
        (bent - EDGES)[None], (3, 5), control_points=EDGES, align_corners=True
    )
    np.testing.assert_allclose(grid[0, ::2].numpy().reshape(-1, 2), bent, atol=1e-12)


@pytest.mark.parametrize(
    ("points", "message"),
    (
        ([[0, 0], [1, 0], [0, 1], [1, 0]], r"distinct .*, received .* 1e\+10 is solved: \[\[0"),
        ([[0, 0], [1, 0], [0, 1], [1, 1e-7]], r"distinct and not all on one line, received"),
        ([[0, 0], [0.5, 0.5], [1, 1], [-1, -1]], r"distinct and not all on one line, received"),
        ([[0, 0], [1, 1]], r"an int, 2 ints or at least 3 finite points \[n, 2\], received"),
        ([[0, 0], [1, np.nan], [1, 1]], r"an int, 2 ints or at least 3 finite points"),
        ([[0, 0], [1], [1, 1]], r"an int, 2 ints or at least 3 finite points"),
        (np.zeros((4, 3)), r"an int, 2 ints or at least 3 finite points"),
        ([(0, 1), 2], r"an int, 2 ints or at least 3 finite points"),
    ),
)
def test_control_points_that_determine_no_spline_are_refused(points, message):
    with pytest.raises(ValueError, match=f"control_points must be {message}"):
        ops.thin_plate_spline_grid(np.zeros((1, 4, 2)), (3, 4), control_points=points)


@pytest.mark.parametrize("align_corners", CONVENTIONS)
def test_a_spline_moves_each_control_point_by_its_displacement(rng, align_corners):
    """With centres at -1 and 1, a grid of the control points' size lies on them."""
    displacements = 0.2 * rng.normal(size=[2, 12, 2])
    grid = ops.thin_plate_spline_grid(
        displacements, (3, 4), control_points=(3, 4), align_corners=align_corners
    )
    y, x = np.meshgrid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 4), indexing="ij")
    moved = np.stack([x, y], axis=-1) + displacements.reshape(2, 3, 4, 2)
    assert (relative_error(grid, moved) < TOLERANCE["float64"]) == align_corners


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_grids_are_at_least_float32(rng, name, dtype):
    theta = tf.cast(draw_theta(rng, name, 2), dtype)
    grid_of, _ = IDENTITY[name]
    grid = grid_of(theta, (3, 5))
    assert grid.dtype == tf.float32
    expected = getattr(oracles, grid_of.__name__)(tf.cast(theta, tf.float64), (3, 5))
    assert relative_error(grid, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("traced", ["graph", "jit"])
@pytest.mark.parametrize("name", IDENTITY)
def test_grids_of_a_batch_unknown_while_tracing_equal_the_oracle(rng, name, traced):
    grid_of, identity = IDENTITY[name]
    signature = [tf.TensorSpec([None, *identity.shape[1:]], tf.float64)]
    dynamic = MODES[traced](lambda theta: grid_of(theta, (4, 3)), input_signature=signature)
    for batch in (2, 3):
        theta = draw_theta(rng, name, batch)
        expected = getattr(oracles, grid_of.__name__)(theta, (4, 3))
        assert relative_error(dynamic(theta), expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("name", IDENTITY)
def test_output_sizes_may_be_tensors(rng, name):
    theta, (grid_of, _) = draw_theta(rng, name, 2), IDENTITY[name]

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def dynamic(size):
        return grid_of(theta, (size[0], size[1]))

    for size in ((3, 5), (1, 2)):
        expected = grid_of(theta, size)
        assert relative_error(dynamic(np.int32(size)), expected) < TOLERANCE["float64"]


def test_the_horizon_of_a_projective_transformation_samples_zero_without_a_gradient(rng):
    """x = 0 is at infinity: the middle column of three."""
    theta = np.array([[[1.0, 0.2, 0.1], [0.1, 1.0, 0.2], [1.0, 0.0, 0.0]]])
    inputs = rng.normal(size=[1, 4, 5, 2])

    def transformed(inputs, theta):
        grid = ops.projective_grid(theta, (2, 3), align_corners=True)
        return ops.grid_sample(inputs, grid, padding_mode="border")[:, :, 1]

    assert not np.any(transformed(inputs, theta))
    for gradient in gradients(transformed, inputs, theta):
        assert gradient is not None
        assert not np.any(gradient)


# Sampling at grids


@pytest.mark.parametrize(("interpolation", "padding_mode", "align_corners"), OPTIONS)
@settings(max_examples=5)
@given(
    rank=st.integers(1, 3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_grid_sample_equals_the_oracle(
    interpolation, padding_mode, align_corners, rank, batch, channels, seed
):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=[batch, *rng.integers(1, 6, rank), channels])
    grid = rng.uniform(-1.8, 1.8, [batch, *rng.integers(0, 4, rank), rank])
    options = options_of(interpolation, padding_mode, align_corners)
    actual = ops.grid_sample(inputs, grid, **options)
    expected = oracles.grid_sample(inputs, grid, **options)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("traced", ["graph", "jit"])
@pytest.mark.parametrize("options", OPTIONS[::5] + OPTIONS[4:5], ids=str)
def test_grid_sample_of_sizes_unknown_while_tracing_equals_the_oracle(rng, options, traced):
    options = options_of(*options)
    dynamic = MODES[traced](
        lambda inputs, grid: ops.grid_sample(inputs, grid, **options),
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.float32),
            tf.TensorSpec([None, None, None, 2], tf.float32),
        ],
    )
    for batch, height, width in ((2, 5, 7), (1, 4, 1)):
        inputs = rng.normal(size=[batch, height, width, 3]).astype(np.float32)
        grid = rng.uniform(-1.5, 1.5, [batch, 2, height, 2]).astype(np.float32)
        expected = oracles.grid_sample(inputs, grid, **options)
        assert relative_error(dynamic(inputs, grid), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_image_is_sampled_at_float32_positions(rng, dtype):
    inputs = tf.cast(rng.normal(size=[1, 3, 400, 2]), dtype)
    grid = rng.uniform(-1, 1, [1, 2, 5, 2]).astype(np.float32)
    actual = ops.grid_sample(inputs, grid)
    assert actual.dtype == dtype
    expected = oracles.grid_sample(tf.cast(inputs, tf.float64), grid)
    assert relative_error(tf.cast(actual, tf.float64), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("align_corners", CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (5, 2), (1, 6), (301, 257), (256, 300)], ids=str)
@pytest.mark.parametrize("name", IDENTITY)
def test_the_identity_returns_the_image_to_float_rounding(rng, name, size, align_corners):
    """A position's rounding error is its size in units of rounding, and so is the sample's."""
    inputs = rng.uniform(-1, 1, [1, *size, 2]).astype(np.float32)
    grid_of, theta = IDENTITY[name]
    grid = grid_of(theta.astype(np.float32), size, align_corners=align_corners)
    for padding_mode in PADDING_MODES:
        same = ops.grid_sample(inputs, grid, padding_mode=padding_mode, align_corners=align_corners)
        assert np.max(np.abs(same - inputs)) <= 2 * np.spacing(np.float32(max(size)))
    nearest = ops.grid_sample(inputs, grid, interpolation="nearest", align_corners=align_corners)
    assert np.array_equal(nearest, inputs)


@pytest.mark.parametrize("align_corners", CONVENTIONS)
@pytest.mark.parametrize("size", [(3, 4, 5), (2, 1, 6)], ids=str)
def test_the_identity_in_three_dimensions_returns_the_image(rng, size, align_corners):
    inputs = rng.normal(size=[1, *size, 2])
    grid = ops.affine_grid(np.eye(3, 4)[None], size, align_corners=align_corners)
    same = ops.grid_sample(inputs, grid, align_corners=align_corners)
    assert relative_error(same, inputs) < TOLERANCE["float64"]


# A line of the pixels 1, 2, 4, 8. At x = -1 and 1 the positions are -0.5 and 3.5, or 0 and 3.
@pytest.mark.parametrize(
    ("padding_mode", "align_corners", "x", "value", "slope"),
    [
        ("zeros", False, -1, 0.5, 2 * 1),  # a unit of x is 2 pixels
        ("zeros", False, 1, 4, 2 * -8),
        ("zeros", False, 0.25, 4, 2 * 4),
        ("zeros", True, -1, 1, 1.5 * 1),
        ("zeros", True, 1, 8, 1.5 * -8),
        ("border", False, -1, 1, 0),
        ("border", False, 0.75, 8, 0),  # pixel 3
        ("border", True, -1, 1, 0),
        ("border", True, 1, 8, 0),
        ("reflection", False, -1, 1, 0),
        ("reflection", False, -1.25, 1, 0),  # -1 about -0.5 is 0, where it is clamped
        ("reflection", False, -1.5, 1.5, 2 * -1),  # -1.5 is 0.5
        ("reflection", False, 1.375, 7, 2 * -4),  # 4.25 about 3.5 is 2.75
        ("reflection", True, -1.5, 1.75, 1.5 * -1),  # -0.75 about 0 is 0.75
        ("reflection", True, 1.5, 5, 1.5 * -4),  # 3.75 about 3 is 2.25
    ],
)
def test_values_and_slopes_at_the_edges_of_both_conventions(
    padding_mode, align_corners, x, value, slope
):
    line = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1)
    grid = np.array([[[float(x)]]])

    def sampled(line, grid):
        return ops.grid_sample(line, grid, padding_mode=padding_mode, align_corners=align_corners)

    _, of_grid = gradients(sampled, line, grid)
    assert (sampled(line, grid).numpy().item(), of_grid.numpy().item()) == (value, slope)


def test_under_border_clamping_the_last_row_of_the_identity_has_no_gradient(rng):
    grid = ops.affine_grid(np.eye(2, 3)[None], (3, 4), align_corners=True)
    inputs = rng.normal(size=[1, 3, 4, 1])
    options = {"padding_mode": "border", "align_corners": True}
    _, slopes = gradients(lambda *each: ops.grid_sample(*each, **options), inputs, grid)
    x, y = np.moveaxis(slopes.numpy()[0], -1, 0)
    assert not np.any(x[:, [0, -1]])
    assert not np.any(y[[0, -1]])
    image = inputs[0, ..., 0]
    assert relative_error(x[:, 1:3], 1.5 * (image[:, 2:] - image[:, 1:3])) < TOLERANCE["float64"]
    assert relative_error(y[1], image[2] - image[1]) < TOLERANCE["float64"]


# Gradients


@pytest.mark.parametrize(
    "options",
    [
        ("bilinear", "zeros", False),
        ("bilinear", "border", True),
        ("bilinear", "reflection", False),
        ("bicubic", "reflection", False),
    ],
    ids=str,
)
def test_derivatives_of_grid_sample(rng, options):
    inputs, grid = rng.normal(size=[2, 4, 3, 2]), rng.uniform(-1.6, 1.6, [2, 3, 2, 2])
    check_derivatives(lambda *each: ops.grid_sample(*each, **options_of(*options)), inputs, grid)


@pytest.mark.parametrize("align_corners", CONVENTIONS)
@pytest.mark.parametrize("name", IDENTITY)
def test_derivatives_of_the_transformation(rng, name, align_corners):
    grid_of, _ = IDENTITY[name]

    def transformed(inputs, theta):
        grid = grid_of(theta, (2, 3), align_corners=align_corners)
        return ops.grid_sample(inputs, grid, align_corners=align_corners)

    check_derivatives(transformed, rng.normal(size=[2, 5, 4, 2]), draw_theta(rng, name, 2))


def test_derivatives_of_the_affine_transformation_in_three_dimensions(rng):
    def transformed(inputs, theta):
        return ops.grid_sample(inputs, ops.affine_grid(theta, (2, 1, 3)))

    theta = np.eye(3, 4) + 0.15 * rng.normal(size=[1, 3, 4])
    check_derivatives(transformed, rng.normal(size=[1, 3, 4, 5, 2]), theta)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty_batches_and_grids_give_empty_samples_and_zero_gradients(rng, shape, mode):
    batch, *output_size = shape
    inputs, theta = rng.normal(size=[batch, 4, 5, 2]), rng.normal(size=[batch, 2, 3])

    def transformed(inputs, theta):
        return ops.grid_sample(inputs, ops.affine_grid(theta, output_size))

    found = mode(lambda *each: (transformed(*each), *gradients(transformed, *each)))(inputs, theta)
    assert [each.shape for each in found] == [(*shape, 2), inputs.shape, theta.shape]
    assert not any(map(np.any, found))


@pytest.mark.parametrize("name", IDENTITY)
def test_the_transformation_converts_to_litert_with_builtin_operators(rng, name):
    grid_of, _ = IDENTITY[name]
    inputs = rng.normal(size=[2, 5, 4, 3]).astype(np.float32)
    theta = draw_theta(rng, name, 2).astype(np.float32)

    def transformed(inputs, theta):
        return ops.grid_sample(inputs, grid_of(theta, (3, 2)))

    grid = getattr(oracles, grid_of.__name__)(theta, (3, 2))
    expected = oracles.grid_sample(inputs, grid)
    assert relative_error(run_litert(transformed, inputs, theta), expected) < TOLERANCE["float32"]


def test_positions_that_xla_rounds_otherwise_read_the_same_pixels(rng):
    """Of so many positions some lie below a whole number for their cell, not for their weight."""
    images = tf.constant(rng.normal(size=[1, 512, 512, 64]), "float32")
    theta = np.array([[[1, 0, 0], [0, 1, 0]]]) + rng.normal(size=[1, 2, 3]) * 0.2

    def function(images, theta):
        with tf.GradientTape() as tape:
            tape.watch(images)
            out = ops.grid_sample(images, ops.affine_grid(theta, [512, 512]))
        return out, tape.gradient(out, images, out)

    arguments = images, tf.constant(theta, "float32")
    found, expected = (tf.function(function, jit_compile=jit)(*arguments) for jit in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-3
