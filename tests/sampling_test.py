import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from conftest import (
    MODES,
    TOLERANCE,
    assert_same,
    check_derivatives,
    fractional,
    gradients,
    hostile_points,
    hostile_weights,
    relative_error,
    run_litert,
)
from tf_deform import ops
from tf_deform.ops import tables

pytestmark = pytest.mark.usefixtures("implementation")

INTERPOLATIONS = ["bilinear", "nearest", "bicubic"]
PADDING_MODES = ["zeros", "border", "reflection"]
OPTIONS = list(itertools.product(INTERPOLATIONS, PADDING_MODES))
SPECIAL = [np.nan, np.inf, -np.inf, 1e30, -1e30]

# rows, queries, groups, points per query, space, channels a group, images: no two sizes alike
SHAPES = [
    (2, 3, 1, 1, (5,), 4, None),
    (3, 1, 2, 4, (7,), 3, None),
    (1, 4, 3, 2, (6,), 5, 2),
    (2, 5, 1, 3, (4, 7), 6, None),
    (3, 4, 2, 1, (6, 5), 1, None),
    (4, 3, 2, 2, (1, 6), 3, 2),
    (5, 2, 1, 4, (3, 1), 4, 3),
    (1, 6, 4, 3, (5, 2), 3, None),
    (2, 3, 1, 1, (4, 3, 5), 6, None),
    (3, 1, 2, 2, (2, 5, 4), 3, None),
    (4, 2, 3, 1, (1, 3, 6), 5, 2),
    (2, 4, 1, 3, (5, 1, 2), 1, 1),
]


def case(rng, shape, dtype=np.float64):
    """Returns the arguments of weighted_sample: points around and in the image, some at pixels."""
    rows, queries, groups, count, space, channels, images = shape
    values = rng.normal(size=[images or rows, *space, groups * channels]).astype(dtype)
    points = rng.uniform(-2, np.array(space) + 1, [rows, queries, groups, count, len(space)])
    points = np.where(rng.random(points.shape) < 0.3, np.round(points), points)
    weights = rng.normal(size=points.shape[:-1])
    index = None if images is None else rng.integers(0, images, rows)
    wide = np.float64 if dtype == np.float64 else np.float32
    return values, points.astype(wide), weights.astype(wide), index


@st.composite
def samplings(draw):
    """Draws the arguments of weighted_sample."""
    rank = draw(st.integers(1, 3))
    space = tuple(draw(st.integers(1, 7 - rank)) for _ in range(rank))
    rows, queries, groups, channels = (draw(st.integers(1, 3)) for _ in range(4))
    images = draw(st.none() | st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = rows, queries, groups, draw(st.integers(1, 4)), space, channels, images
    values, points, weights, index = case(rng, shape)
    points = np.where(rng.random(points.shape) < 0.1, rng.choice(SPECIAL, points.shape), points)
    return values, points, draw(st.sampled_from([weights, None])), index


@given(samplings())
def test_weighted_sample_equals_the_oracle(arguments):
    actual = ops.weighted_sample(*arguments)
    assert relative_error(actual, oracles.weighted_sample(*arguments)) < TOLERANCE["float64"]


@pytest.mark.parametrize("traced", ["graph", "jit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weighted_sample_in_a_graph_equals_the_oracle(rng, shape, traced):
    values, points, weights, index = case(rng, shape)
    actual = MODES[traced](lambda *each: ops.weighted_sample(*each, index))(values, points, weights)
    expected = oracles.weighted_sample(values, points, weights, index)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS)
@settings(max_examples=8)
@given(arguments=samplings())
def test_sample_equals_the_oracle(interpolation, padding_mode, arguments):
    values, points, _, _ = arguments
    count = min(len(values), len(points))
    values, points = values[:count], points[:count]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    actual = ops.sample(values, points, **options)
    assert relative_error(actual, oracles.sample(values, points, **options)) < TOLERANCE["float64"]


@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS)
def test_sample_compiled_by_xla_equals_the_oracle(rng, interpolation, padding_mode):
    values, points, _, _ = case(rng, SHAPES[3], np.float32)
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    actual = MODES["jit"](lambda *each: ops.sample(*each, **options))(values, points)
    assert relative_error(actual, oracles.sample(values, points, **options)) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_sums_are_accumulated_in_float32(rng, shape, dtype):
    values, points, weights, index = case(rng, shape, np.float32)
    values = tf.cast(values, dtype)
    actual = ops.weighted_sample(values, points, weights, index)
    assert actual.dtype == tf.float32
    expected = oracles.weighted_sample(tf.cast(values, tf.float64), points, weights, index)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_samples_are_rounded_once_to_the_dtype_of_the_values(rng, interpolation, dtype):
    values = tf.cast(rng.normal(size=[2, 3, 301, 4]), dtype)
    points = np.stack([fractional(rng, [2, 5], 0, 2), fractional(rng, [2, 5], 0, 300)], axis=-1)
    points = points.astype(np.float32)  # a half would lose the fraction
    actual = ops.sample(values, points, interpolation=interpolation)
    assert actual.dtype == dtype
    expected = oracles.sample(tf.cast(values, tf.float64), points, interpolation=interpolation)
    assert relative_error(tf.cast(actual, tf.float64), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_points_may_have_any_number_of_axes(rng, rank):
    values = rng.normal(size=[2, *(5, 3, 4)[:rank], 3])
    for inner in ([], [4], [2, 3, 1]):
        points = fractional(rng, [2, *inner, rank], -1, 3)
        assert (
            relative_error(ops.sample(values, points), oracles.sample(values, points))
            < TOLERANCE["float64"]
        )


@pytest.mark.parametrize("traced", ["graph", "jit"])
@pytest.mark.parametrize("options", [None, *OPTIONS[::4]], ids=str)
def test_sizes_unknown_while_tracing_give_the_same_samples(rng, options, traced):
    """Indices are 64-bit then, and 32-bit where the sizes are known."""

    def sampled(values, points):
        if options is None:
            return ops.weighted_sample(values, points)
        return ops.sample(values, points, interpolation=options[0], padding_mode=options[1])

    dynamic = MODES[traced](
        sampled,
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.float64),
            tf.TensorSpec([None, None, 1, 2, 2], tf.float64),
        ],
    )
    for shape in ((2, 4, 1, 2, (5, 7), 3, None), (1, 3, 1, 2, (6, 2), 3, None)):
        values, points, _, _ = case(rng, shape)
        actual, expected = dynamic(values, points), sampled(values, points)
        assert relative_error(actual, expected) < TOLERANCE["float64"]


# Gradients


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5], SHAPES[9]], ids=str)
def test_derivatives_of_weighted_sample(rng, shape):
    values, points, weights, index = case(rng, shape)
    points = fractional(rng, points.shape, -1, np.array(values.shape[1:-1]))
    check_derivatives(
        lambda *each: ops.weighted_sample(*each, index), values, points, weights, traced=True
    )


@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS)
def test_derivatives_of_sample(rng, interpolation, padding_mode):
    values, points = rng.normal(size=[2, 4, 3, 2]), fractional(rng, [2, 5, 2], -2, 4)
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    check_derivatives(lambda *each: ops.sample(*each, **options), values, points)


@pytest.mark.parametrize("rank", [1, 3])
def test_derivatives_of_cubic_samples_in_one_and_three_dimensions(rng, rank):
    values, points = rng.normal(size=[1, *[3, 4, 2][:rank], 2]), fractional(rng, [1, 3, rank], 0, 2)
    check_derivatives(lambda *each: ops.sample(*each, interpolation="bicubic"), values, points)


def sample_line(pixels, p, **options):
    """Returns the sample of a line of pixels at p, and its gradients to the pixels and to p."""
    values = np.array(pixels, np.float64).reshape(1, -1, 1)
    points = np.array(p, np.float64).reshape(1, 1, 1)
    of_values, of_p = gradients(lambda *each: ops.sample(*each, **options), values, points)
    of_p = 0.0 if of_p is None else of_p.numpy().item()
    return ops.sample(values, points, **options).numpy().item(), of_values[0, :, 0].numpy(), of_p


# Pixels 1, 2, 4, 8 on a line; slopes 1, 2, 4 between them.
@pytest.mark.parametrize(
    ("padding_mode", "p", "value", "slope"),
    [
        # The gradient at a pixel's centre is that of floor(p) + 1, missing pixels being 0.
        ("zeros", -1.5, 0, 0),
        ("zeros", -1, 0, 1),  # the corner that exists
        ("zeros", -0.25, 0.75, 1),
        ("zeros", 0, 1, 1),
        ("zeros", 1, 2, 2),
        ("zeros", 2, 4, 4),
        ("zeros", 3, 8, -8),
        ("zeros", 3.25, 6, -8),
        ("zeros", 4, 0, 0),
        # No gradient from the first pixel outwards, and from the last: torch's rule.
        ("border", -0.5, 1, 0),
        ("border", 0, 1, 0),
        ("border", 0.5, 1.5, 1),
        ("border", 1, 2, 2),
        ("border", 2, 4, 4),
        ("border", 3, 8, 0),
        ("border", 7.5, 8, 0),
        ("reflection", -0.5, 1.5, -1),
        ("reflection", -1, 2, -2),
        ("reflection", 0, 1, 0),
        ("reflection", 1, 2, 2),
        ("reflection", 3, 8, 0),
        ("reflection", 3.5, 6, -4),
        ("reflection", 4, 4, -4),
        ("reflection", 6, 1, 0),
        ("reflection", 6.5, 1.5, 1),
        ("reflection", -8.5, 6, -4),
    ],
)
def test_values_and_slopes_at_pixels_and_edges(padding_mode, p, value, slope):
    sampled, _, of_p = sample_line([1, 2, 4, 8], p, padding_mode=padding_mode)
    assert (sampled, of_p) == (value, slope)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_gradient_at_a_pixels_centre_is_the_forward_difference(rng, rank):
    values = rng.normal(size=[1, *[3, 4, 5][:rank], 1])
    for pixel in np.ndindex(*[2, 3, 4][:rank]):
        point = np.array(pixel, np.float64).reshape(1, 1, 1, 1, rank)
        _, slopes = gradients(ops.weighted_sample, values, point)
        image = values[0, ..., 0]
        ahead = [image[tuple(np.add(pixel, step))] for step in np.eye(rank, dtype=int)]
        assert relative_error(slopes[0, 0, 0, 0], ahead - image[pixel]) < TOLERANCE["float64"]


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_channel_is_sampled_as_each_of_many(rng, rank, padding_mode):
    """The corners of a sample are read together where channels are few, and else one by one."""
    space = [3, 5, 4][:rank]
    places = np.concatenate([SPECIAL, np.arange(-4, 13) / 2])
    points = rng.choice(places, [2, 300, rank])
    values = rng.normal(size=[2, *space, 1])
    values[(0, *[1] * rank)] = np.nan

    def sample(values, points):
        return ops.sample(values, points, padding_mode=padding_mode)

    def sample_many(values, points):
        return sample(tf.repeat(values, 17, axis=-1), points)[..., 3:4]

    np.testing.assert_allclose(sample(values, points), sample_many(values, points), atol=1e-12)
    found, expected = (gradients(each, values, points) for each in (sample, sample_many))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_at_minus_one_the_gradient_follows_the_corner_that_exists():
    """So do the gradients to the other coordinate: along the edge -1 every sample is 0."""
    values = np.array([[1.0, 2.0], [4.0, 8.0]]).reshape(1, 2, 2, 1)

    def slopes(y, x):
        point = np.array([y, x], np.float64).reshape(1, 1, 2)
        assert ops.sample(values, point).numpy().item() == 0
        of_values, of_point = gradients(ops.sample, values, point)
        assert not np.any(of_values)
        return of_point.numpy().ravel().tolist()

    assert slopes(-1, 0.25) == [1.25, 0]
    assert slopes(0.25, -1) == [0, 1.75]
    assert slopes(-1, 1) == [2, 0]
    assert slopes(-1, -1) == [0, 0]
    assert slopes(-1, 2) == [0, 0]
    assert slopes(-1.5, 0.25) == [0, 0]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_at_minus_one_along_any_axis_nothing_is_read(rank):
    values = np.full([1, *[2, 3, 4][:rank], 1], np.nan)
    for axis in range(rank):
        point = np.full([1, 1, rank], 0.5)
        point[..., axis] = -1
        assert ops.sample(values, point).numpy().item() == 0


def test_nearest_has_no_gradient_to_the_points(rng):
    values, points = rng.normal(size=[1, 4, 5, 2]), rng.uniform(0, 3, [1, 6, 2])
    _, of_points = gradients(
        lambda *each: ops.sample(*each, interpolation="nearest"), values, points
    )
    assert of_points is None or not np.any(of_points)


def test_nearest_rounds_halves_to_even():
    nearest = [
        sample_line([1, 2, 4, 8], p, interpolation="nearest")[0] for p in (0.5, 1.5, 2.5, -0.5, 3.5)
    ]
    assert nearest == [1, 4, 4, 1, 0]


# NaN and infinity


@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_coordinate_that_is_no_number_samples_zero_and_a_huge_one_follows_its_border_rule(
    rng, interpolation, padding_mode, dtype
):
    values = rng.normal(size=[len(SPECIAL), 4, 6, 3]).astype(dtype)
    points = np.array([[[s, 1.25], [2.0, s], [s, s]] for s in SPECIAL], dtype)  # an image for each
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    expected = oracles.sample(values, points, **options)
    actual = ops.sample(values, points, **options).numpy()
    of_values, of_points = gradients(lambda *each: ops.sample(*each, **options), values, points)
    assert np.all(np.isfinite(of_values))
    assert of_points is None or np.all(np.isfinite(of_points))  # None of "nearest"
    for image, special in enumerate(SPECIAL):
        inside = np.isfinite(special) and padding_mode != "zeros"
        assert np.any(expected[image]) == np.any(of_values[image]) == inside
        error = relative_error(actual[image], expected[image])
        assert error < TOLERANCE[np.dtype(dtype).name]
        if of_points is not None and not inside:
            assert not np.any(of_points[image])
        elif of_points is not None and padding_mode == "border":
            assert np.max(np.abs(of_points[image, 0, 0])) < TOLERANCE[np.dtype(dtype).name]


@pytest.mark.parametrize("special", SPECIAL)
def test_such_a_point_leaves_the_others_of_its_sum_alone(rng, special):
    values, points = rng.normal(size=[1, 4, 6, 3]), fractional(rng, [1, 1, 1, 3, 2], 0, 3)
    weights = rng.normal(size=[1, 1, 1, 3])
    alone = gradients(ops.weighted_sample, values, points, weights)
    points = np.concatenate([points, [[[[[special, 1.5]]]]]], axis=3)
    weights = np.append(weights, [[[[2.5]]]], axis=3)
    together = gradients(ops.weighted_sample, values, points, weights)
    assert relative_error(together[0], alone[0]) < TOLERANCE["float64"]
    for actual, expected in zip(together[1:], alone[1:], strict=True):
        assert relative_error(actual[:, :, :, :3], expected) < TOLERANCE["float64"]
        assert not np.any(actual[:, :, :, 3])


@functools.cache
def hostile_sums(space, channels, count):
    """Returns arguments in float32, and what the oracle makes of them for both dtypes."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=[2, *space, 2 * channels])
    points = hostile_points(rng, [2, 9, 2, count, len(space)], space)
    weights = hostile_weights(rng, points.shape[:-1])
    if count > 1:  # a sum is often finite
        weights = np.where(rng.random([2, 9, 2, 1]) < 0.5, weights, 1.5)
    arguments = [each.astype(np.float32) for each in (values, points, weights)]
    return arguments, oracles.weighted_sample(*arguments)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("count", [1, 3, 70])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16, 19])
@pytest.mark.parametrize("space", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_a_weight_that_is_no_number_meets_pixels_that_are_not_read_as_zeros(space, channels, count):
    narrow, expected = hostile_sums(space, channels, count)
    assert np.any(np.isnan(expected)) and np.any(np.isfinite(expected))
    for dtype in (np.float32, np.float64):
        arguments = [each.astype(dtype) for each in narrow]
        tolerance = TOLERANCE[np.dtype(dtype).name]
        assert_same(ops.weighted_sample(*arguments), expected, tolerance)


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_such_a_weight_makes_a_dropped_sample_nan(mode, weight):
    values, weights = np.ones([1, 3, 2, 1]), np.full([1, 1, 1, 1], weight)
    for y in (-1.0, -7.5, 3.0, np.nan, np.inf):
        points = np.array([y, 0.5]).reshape(1, 1, 1, 1, 2)
        assert np.isnan(mode(ops.weighted_sample)(values, points, weights)).all()


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("p", "padding_mode", "support"),
    [
        (-1.5, "zeros", []),
        (-1, "zeros", []),  # the gradient to p follows pixel 0: tested with finite pixels
        (-0.5, "zeros", [0]),
        (1.5, "zeros", [1, 2]),
        (3, "zeros", [3]),
        (3.5, "zeros", [3]),
        (4, "zeros", []),
        (-1e30, "zeros", []),
        (np.nan, "zeros", []),
        (np.nan, "border", []),
        (np.inf, "reflection", []),
        (-2.5, "border", [0, 1]),  # pixel 1 has weight 0, but it is a corner
        (3, "border", [3]),
        (5, "border", [3]),
        (3, "reflection", [3]),
        (3.5, "reflection", [2, 3]),
    ],
)
def test_a_pixel_outside_the_support_cannot_leak(pixel, p, padding_mode, support):
    pixels = np.where(np.isin(range(4), support), [1, 2, 4, 8], pixel)
    finite = sample_line([1, 2, 4, 8], p, padding_mode=padding_mode)
    value, of_values, of_p = sample_line(pixels, p, padding_mode=padding_mode)
    assert value == finite[0]
    assert np.array_equal(of_values, finite[1])
    if p != -1:
        assert of_p == finite[2]


def test_a_corner_of_weight_zero_inside_the_image_counts():
    value, _, _ = sample_line([1, 2, np.nan, 8], 1)
    assert np.isnan(value)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("p", [np.nan, -7, 9.5])
def test_no_pixel_leaks_into_a_sample_that_is_dropped(interpolation, p):
    value, of_values, of_p = sample_line([np.nan] * 4, p, interpolation=interpolation)
    assert (value, np.any(of_values), of_p) == (0, False, 0)


def test_nan_stays_in_its_image_and_group(rng):
    values = rng.normal(size=[3, 4, 5, 4])
    points = fractional(rng, [3, 6, 2, 2, 2], -1, 4)
    weights = rng.normal(size=[3, 6, 2, 2])
    expected = ops.weighted_sample(values, points, weights).numpy()
    values[1] = np.nan
    values[2, ..., 2:] = np.nan
    actual = ops.weighted_sample(values, points, weights).numpy()
    assert np.array_equal(actual[0], expected[0])
    assert np.array_equal(actual[2, :, :2], expected[2, :, :2])


# Sizes of zero


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (0, 0, 1)], ids=str)
def test_no_rows_or_queries_give_empty_samples_and_zero_gradients(rng, shape, mode):
    rows, queries, groups = shape
    values = rng.normal(size=[rows, 4, 5, 4])
    points, weights = np.zeros([rows, queries, groups, 3, 2]), np.zeros([rows, queries, groups, 3])
    assert mode(ops.weighted_sample)(values, points, weights).shape == (rows, queries, 4)
    found = mode(lambda *each: gradients(ops.weighted_sample, *each))(values, points, weights)
    for gradient, argument in zip(found, (values, points, weights), strict=True):
        assert gradient.shape == argument.shape
        assert not np.any(gradient)


@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS)
def test_an_image_without_pixels_samples_zero(interpolation, padding_mode):
    points = np.array([[[0.0, 1.5], [0.25, 0.5]]])
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    actual = ops.sample(np.zeros([1, 0, 3, 2]), points, **options)
    assert relative_error(actual, np.zeros([1, 2, 2])) == 0


# Export


@pytest.mark.parametrize("free_sizes", [False, True])
@pytest.mark.parametrize(("interpolation", "padding_mode"), OPTIONS[:3] + OPTIONS[4::4])
def test_sample_converts_to_litert_with_builtin_operators(
    rng, interpolation, padding_mode, free_sizes
):
    values, points, _, _ = case(rng, SHAPES[3], np.float32)
    points = points[:, :, 0]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    actual = run_litert(
        lambda *each: ops.sample(*each, **options), values, points, free_sizes=free_sizes
    )
    assert relative_error(actual, oracles.sample(values, points, **options)) < TOLERANCE["float32"]


@pytest.mark.parametrize(("size", "dtype"), [(30_000, tf.int32), (40_000, tf.int64)])
def test_the_rows_of_all_maps_of_a_table_are_counted_for_their_index(size, dtype):
    """An index of 32 bits would do for each of the maps, but not for both larger ones."""
    found = []

    @tf.function
    def trace(*levels):
        found.append(tables.Table.of_levels(list(levels), [0, 1]).strides[0].dtype)

    trace.get_concrete_function(*[tf.TensorSpec([1, size, size, 1])] * 2)
    assert found == [dtype]


def test_a_number_of_channels_that_is_not_known_is_taken(rng):
    values, points = rng.normal(size=(2, 9, 7, 3)), rng.uniform(0, 6, (2, 5, 4, 2))
    signature = [tf.TensorSpec([2, 9, 7, None], tf.float64)]
    traced = tf.function(lambda each: ops.sample(each, points), signature, autograph=False)
    np.testing.assert_array_equal(traced(values), ops.sample(values, points))
