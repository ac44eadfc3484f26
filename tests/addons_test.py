"""The names of TensorFlow Addons: its values and gradients, and where ours are better."""

import inspect
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, fractional, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

addons = tfd.addons

# What TensorFlow Addons 0.23 returned: see goldens/make_addons_goldens.py.
GOLDENS = dict(np.load(pathlib.Path(__file__).with_name("goldens") / "addons.npz"))
CASES = json.loads(str(GOLDENS["cases"]))
SIGNATURES = json.loads(str(GOLDENS["signatures"]))
TRACED = json.loads(str(GOLDENS["traced"]))

BATCH, HEIGHT, WIDTH, CHANNELS = 2, 5, 7, 3
FILL_MODES = ("constant", "nearest", "reflect", "wrap")


def recorded(case, field):
    """Returns the arrays of a field, by number."""
    keys = [f"{case}/{field}{number}" for number in range(3)]
    return {number: GOLDENS[key] for number, key in enumerate(keys) if key in GOLDENS}


def weights_of(shape):
    """Returns the weights of the results in the sum whose gradients were recorded."""
    return (np.arange(np.prod(shape)) * 7 % 11 - 5).reshape(shape)


def tolerance_of(function, dtype):
    if function in ("transform", "translate", "rotate") and dtype == "float64":
        return TOLERANCE["float32"]  # positions are in float32
    if function.endswith(("spline", "sparse_image_warp")):
        return 1e-10  # a system is solved
    # Addons rounds half-precision values after every step.
    return 3 * TOLERANCE[dtype] if dtype == "float16" else TOLERANCE.get(dtype, 0)


def images_of(rng, dtype="float64", batch=BATCH):
    return rng.normal(size=(batch, HEIGHT, WIDTH, CHANNELS)).astype(dtype)


def transforms_of(rng):
    """Returns transforms, slightly projective, with positions inside and outside."""
    theta = np.array([1.0, 0, 0, 0, 1, 0, 0, 0]) + rng.uniform(-0.4, 0.4, (BATCH, 8))
    theta[:, 6:] *= 0.1
    return theta


# As in Addons


def test_names_arguments_and_defaults_are_those_of_addons():
    assert set(addons.__all__) == set(SIGNATURES)
    for name, arguments in SIGNATURES.items():
        parameters = inspect.signature(getattr(addons, name)).parameters.values()
        ours = [
            [each.name, [each.default][each.default is each.empty :]]
            for each in parameters
            if each.kind is not each.VAR_KEYWORD
        ]
        assert ours == arguments, name


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_addons(case):
    function, options = CASES[case]
    arguments = [tf.constant(each) for each in recorded(case, "argument").values()]
    expected, expected_gradients = recorded(case, "result"), recorded(case, "gradient")
    with tf.GradientTape() as tape:
        tape.watch([each for each in arguments if each.dtype.is_floating])
        if function == "CorrelationCost":
            results = addons.CorrelationCost(**options)(arguments)
        else:
            results = getattr(addons, function)(*arguments, **options)
        results = results if isinstance(results, tuple) else (results,)
        weighted = [each * tf.cast(weights_of(each.shape), each.dtype) for each in results]
    assert len(results) == len(expected)
    for number, array in expected.items():
        assert results[number].dtype == array.dtype
        error = relative_error(results[number], array)
        assert error <= tolerance_of(function, array.dtype.name)
    if expected_gradients:
        actual = tape.gradient(weighted, arguments)
        for number, array in expected_gradients.items():
            assert relative_error(actual[number], array) < tolerance_of(function, array.dtype.name)


# Better than in Addons


def test_the_gradient_at_whole_positions_is_the_slope_to_the_next_pixel(rng):
    images = images_of(rng)
    y, x = np.meshgrid(np.arange(1.0, HEIGHT - 1), np.arange(1.0, WIDTH - 1), indexing="ij")
    inner = images[:, 1:-1, 1:-1].sum(axis=-1)
    along_y = images[:, 2:, 1:-1].sum(axis=-1) - inner
    along_x = images[:, 1:-1, 2:].sum(axis=-1) - inner
    xy, yx = (np.stack([np.stack(each, axis=-1)] * BATCH) for each in ((x, y), (y, x)))
    _, of_warp = gradients(addons.resampler, images, xy)
    assert relative_error(of_warp, np.stack([along_x, along_y], axis=-1)) < TOLERANCE["float64"]
    _, of_points = gradients(addons.interpolate_bilinear, images, yx.reshape(BATCH, -1, 2))
    expected = np.stack([along_y, along_x], axis=-1)
    assert relative_error(tf.reshape(of_points, expected.shape), expected) < TOLERANCE["float64"]
    _, of_flow = gradients(addons.dense_image_warp, images, np.zeros((BATCH, HEIGHT, WIDTH, 2)))
    assert relative_error(of_flow[:, 1:-1, 1:-1], -expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_transform_has_derivatives_to_images_and_transforms(fill_mode, rng):
    def transformed(images, transforms):
        return addons.transform(
            images, transforms, "bilinear", fill_mode, output_shape=(4, 6), fill_value=2.0
        )

    check_derivatives(transformed, images_of(rng), transforms_of(rng))


def test_translate_has_derivatives_to_images_and_translations(rng):
    def translated(images, translations):
        return addons.translate(images, translations, "bilinear")

    check_derivatives(translated, images_of(rng), fractional(rng, (BATCH, 2), -3, 3))


def test_rotate_has_derivatives_to_images_and_angles(rng):
    def turned(images, angles):
        return addons.rotate(images, angles, "bilinear", "reflect")

    check_derivatives(turned, images_of(rng), np.array([0.7, -2.1]))


@pytest.mark.parametrize("order", (1, 2, 3, 4))
def test_spline_has_derivatives_to_every_argument(order, rng):
    def interpolated(points, values, queries, weight):
        return addons.interpolate_spline(points, values, queries, order, weight)

    points, values = rng.uniform(-1, 1, (1, 6, 2)), rng.normal(size=(1, 6, 2))
    check_derivatives(interpolated, points, values, rng.uniform(-1, 1, (1, 4, 2)), 0.1)


@pytest.mark.parametrize("order", (1, 2, 3))
def test_a_spline_far_from_the_origin_is_as_exact_as_near_it(order, rng):
    points, values = rng.uniform(0, 8, (1, 6, 2)), rng.normal(size=(1, 6, 2))
    far = np.float32(points) + 1000  # whose squares differ by less than float32 resolves
    queries = np.float32(points + 0.5) + 1000
    arguments = (far - 1000.0).astype("float64"), values, (queries - 1000.0).astype("float64")
    expected = addons.interpolate_spline(*arguments, order)
    actual = addons.interpolate_spline(far, values.astype("float32"), queries, order)
    assert relative_error(actual, expected) < 0.02


@pytest.mark.parametrize(("dtype", "value"), (("uint8", 5), ("uint16", 60001), ("int32", 2**30)))
def test_integers_of_one_value_keep_it_between_pixels(dtype, value, rng):
    images = np.full((50, HEIGHT, WIDTH, 1), value, dtype)
    shifts = rng.uniform(-1, 1, (50, 2)).astype("float32")
    for fill_mode in FILL_MODES[1:]:
        assert np.all(addons.translate(images, shifts, "bilinear", fill_mode) == value)


@pytest.mark.parametrize("dtype", ("int8", "uint16", "int64", "bfloat16"))
def test_transform_takes_every_dtype_of_numbers(dtype):
    images = tf.cast(tf.reshape(tf.range(12), [3, 4]), dtype)
    moved = addons.translate(images, [1, 0], fill_value=7)
    assert moved.dtype == dtype
    expected = [[7, 0, 1, 2], [7, 4, 5, 6], [7, 8, 9, 10]]
    np.testing.assert_array_equal(tf.cast(moved, "float32"), expected)


def test_positions_are_not_rounded_where_images_are_half_precision():
    row = np.tile([0.0, 1.0], 1000).reshape(1, 1, 2000, 1)
    images = np.repeat(row, 2, axis=1).astype("float16")
    warp = np.array([[[1501.3, 0.0]]], "float32")
    flow = np.full((1, 2, 2000, 2), -0.3, "float32")
    for sample in (
        addons.resampler(images, warp)[0, 0, 0],
        addons.interpolate_bilinear(images, warp, "xy")[0, 0, 0],
        addons.dense_image_warp(images, flow)[0, 0, 1501, 0],
        addons.translate(images, [-0.3, 0.0], "bilinear")[0, 0, 1501, 0],
    ):
        np.testing.assert_allclose(sample, 0.7, atol=1e-3)


def test_composed_transforms_do_one_after_another(rng):
    image = rng.normal(size=(BATCH, 9, 9, 2))
    first = addons.translations_to_projective_transforms([[1.0, 2.0], [-2.0, 0.0]])
    second = addons.angles_to_projective_transforms(np.pi / 2, 9, 9)
    at_once = addons.transform(image, addons.compose_transforms([first, second]), fill_mode="wrap")
    in_turn = addons.transform(addons.transform(image, first, fill_mode="wrap"), second)
    inner = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_array_equal(at_once[inner], in_turn[inner])
    assert np.any(at_once != addons.transform(image, second))


def test_float64_angles_and_shifts_give_float64_transforms(rng):
    angles = tf.constant(rng.uniform(-3, 3, 4))
    exact = addons.angles_to_projective_transforms(angles, 6, tf.constant(7))
    np.testing.assert_allclose(exact[:, 0], np.cos(angles), rtol=1e-15)
    shifts = addons.translations_to_projective_transforms(tf.constant([0.1, 0.2], tf.float64))
    assert exact.dtype == shifts.dtype == "float64"
    assert addons.compose_transforms([exact, [1.0, 0, 0, 0, 1, 0, 0, 0]]).dtype == "float64"


@pytest.mark.parametrize("replace", (9, [9], [9] * 5), ids=str)
def test_shears_take_any_number_of_channels_and_one_value_or_one_each(replace):
    image = tf.tile(tf.reshape(tf.range(6), [2, 3, 1]), [1, 1, 5])
    for dtype in ("int32", "float16"):
        moved = addons.shear_x(tf.cast(image, dtype), 1.0, replace)
        expected = [[[each] * 5 for each in row] for row in ([0, 1, 2], [4, 5, 9])]
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("jit_compile", (False, True))
@pytest.mark.parametrize("name", ("shear_x", "shear_y", "translate_xy"))
def test_shears_of_free_sizes_and_under_xla_agree_with_eager_execution(name, jit_compile, rng):
    function = getattr(addons, name)
    arguments = (
        rng.normal(size=(HEIGHT, WIDTH, CHANNELS)).astype("float32"),
        np.array([1.0, -2.0] if name == "translate_xy" else 0.6, "float32"),
        np.array([1.0, 2.0, 3.0], "float32"),
    )
    signature = [tf.TensorSpec([None] * each.ndim) for each in arguments]
    traced = tf.function(function, input_signature=signature, jit_compile=jit_compile)
    np.testing.assert_array_equal(traced(*arguments), function(*arguments))
    assert traced(arguments[0][:0], *arguments[1:]).shape == (0, WIDTH, CHANNELS)


@pytest.mark.parametrize("name", ("transform", "translate", "rotate", "sparse_image_warp"))
def test_one_trace_takes_images_of_every_rank(name, rng):
    points = rng.uniform(0, 4, (1, 4, 2)).astype("float32")
    function, *others = {
        "transform": (addons.transform, transforms_of(rng)[0]),
        "translate": (addons.translate, [1.3, -0.8]),
        "rotate": (addons.rotate, 0.7),
        "sparse_image_warp": (
            lambda *each: addons.sparse_image_warp(*each, num_boundary_points=1)[0],
            points,
            points + np.float32(0.3),
        ),
    }[name]
    unknown = [tf.TensorSpec(None)]
    traced = tf.function(lambda each: function(each, *others), input_signature=unknown)
    for shape in ((HEIGHT, WIDTH), (HEIGHT, WIDTH, CHANNELS), (1, HEIGHT, WIDTH, CHANNELS)):
        image = rng.normal(size=shape).astype("float32")
        assert relative_error(traced(image), function(image, *others)) < TOLERANCE["float32"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images? must have shape"):
        traced(np.zeros([1] * 5, "float32"))


@pytest.mark.parametrize("name", ("dense_image_warp", "interpolate_bilinear", "sparse_image_warp"))
def test_one_trace_takes_what_has_its_rank_at_run_time_alone(name, rng):
    image = rng.normal(size=(1, HEIGHT, WIDTH, CHANNELS)).astype("float32")
    flow, points = (rng.normal(size=(1, *n, 2)).astype("float32") for n in ([HEIGHT, WIDTH], [5]))
    function, *arguments = {
        "dense_image_warp": (addons.dense_image_warp, image, flow),
        "interpolate_bilinear": (addons.interpolate_bilinear, image, points),
        "sparse_image_warp": (
            lambda *each: addons.sparse_image_warp(*each)[0],
            image,
            points,
            points + np.float32(0.3),
        ),
    }[name]
    traced = tf.function(function, input_signature=[tf.TensorSpec(None)] * len(arguments))
    assert relative_error(traced(*arguments), function(*arguments)) < TOLERANCE["float32"]
    first, *others, last = arguments
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have shape"):
        traced(first, *others, last[0])


def test_sparse_warp_moves_control_points_and_keeps_the_boundary(rng):
    image = rng.normal(size=(HEIGHT, WIDTH))
    source = np.array([[[1.0, 2.0], [3.0, 3.0], [2.0, 5.0]]])
    dest = np.array([[[2.0, 2.0], [3.0, 4.0], [1.0, 5.0]]])
    moved, flow = addons.sparse_image_warp(image, source, dest, num_boundary_points=2)
    for (y, x), (to_y, to_x) in zip(source[0].astype(int), dest[0].astype(int), strict=True):
        np.testing.assert_allclose(moved[to_y, to_x], image[y, x], atol=1e-6)
    for y, x in np.ndindex(3, 3):
        if (y, x) != (1, 1):  # the corners and the edges' middles
            still = flow[0, y * (HEIGHT - 1) // 2, x * (WIDTH - 1) // 2]
            np.testing.assert_allclose(still, 0, atol=1e-6)


# Any sizes, XLA, values that are not finite


def calls(rng):
    """Returns each function on tensors alone, and tensors for it."""
    images, points = images_of(rng, "float32"), rng.uniform(0, 4, (BATCH, 5, 2)).astype("float32")
    transforms = transforms_of(rng).astype("float32")
    flow = fractional(rng, (BATCH, HEIGHT, WIDTH, 2), -2, 2).astype("float32")
    integers = rng.integers(0, 256, images.shape, dtype="uint8")
    return {
        "resampler": (addons.resampler, images, flow),
        "interpolate_bilinear": (addons.interpolate_bilinear, images, points),
        "dense_image_warp": (addons.dense_image_warp, images, flow),
        "interpolate_spline": (
            lambda *each: addons.interpolate_spline(*each, order=3),
            points,
            points[:, ::-1],
            0.5 * points,
        ),
        "sparse_image_warp": (
            lambda *each: addons.sparse_image_warp(*each, num_boundary_points=1)[0],
            images,
            points,
            points + np.float32(0.1),
        ),
        "transform": (
            lambda *each: addons.transform(*each, "bilinear", "reflect"),
            images,
            transforms,
        ),
        "transform of integers": (
            lambda *each: addons.transform(*each, fill_mode="wrap", output_shape=[4, 9]),
            integers,
            transforms,
        ),
        "translate": (addons.translate, images, transforms[:, :2]),
        "rotate": (lambda *each: addons.rotate(*each, "bilinear"), images, transforms[:, 1]),
    }


CALLS = pytest.mark.parametrize("name", calls(np.random.default_rng(0)))


@CALLS
def test_free_sizes_and_xla_agree_with_eager_execution(name, rng):
    function, *arguments = calls(rng)[name]
    expected = function(*arguments)
    compiled = tf.function(function, jit_compile=True)
    tolerance = 1e-4 if "sp" in name else TOLERANCE["float32"]  # splines are solved by XLA's own
    assert relative_error(compiled(*arguments), expected) < tolerance
    free = [
        tf.TensorSpec([None] * max(each.ndim - 1, 1) + [*each.shape[1:]][-1:], each.dtype)
        for each in arguments
    ]
    traced = tf.function(function, input_signature=free)
    assert relative_error(traced(*arguments), expected) < TOLERANCE["float32"]
    one = traced(*[each[:1] for each in arguments])
    assert relative_error(one, expected[:1]) < TOLERANCE["float32"]


@CALLS
def test_an_empty_batch_gives_an_empty_result(name, rng):
    function, *arguments = calls(rng)[name]
    shape = function(*arguments).shape
    assert function(*[each[:0] for each in arguments]).shape == (0, *shape[1:])


@pytest.mark.parametrize("name", TRACED)
def test_functions_that_addons_traces_have_a_graph_for_a_signature(name, rng):
    function, *arguments = calls(rng)[name]
    free = [tf.TensorSpec([None] * each.ndim, each.dtype) for each in arguments]
    concrete = getattr(addons, name).get_concrete_function(*free)
    tensors = [tf.constant(each) for each in arguments]
    assert relative_error(concrete(*tensors), function(*arguments)) < TOLERANCE["float32"]


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_positions_that_are_not_finite_give_zero_or_the_fill_value_without_gradients(value, rng):
    images = images_of(rng)
    warp = rng.uniform(0, 4, (BATCH, 3, 2))
    warp[1, 2, 0] = value
    transforms = transforms_of(rng)
    transforms[1, 2] = value
    for function, bad, expected in (
        (addons.resampler, warp, 0),
        (addons.interpolate_bilinear, warp, 0),
        (lambda *each: addons.transform(*each, "bilinear", "wrap", fill_value=3), transforms, 3),
    ):
        outputs = function(images, tf.constant(bad)).numpy()
        outside = outputs[1, 2] if outputs.ndim == 3 else outputs[1]
        np.testing.assert_array_equal(outside, expected)
        of_images, of_bad = gradients(function, images, bad)
        assert np.all(np.isfinite(of_images))
        assert np.all(np.isfinite(of_bad))
        assert np.any(of_bad)


# Bad input


def z(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


IMAGES, THREE = z(2, 5, 7, 3), z(2, 4, 3)
IDENTITY = [1.0, 0, 0, 0, 1, 0, 0, 0]
SPLINE = addons.interpolate_spline
BAD = {
    r"fill_value must be a number, received 'edge'": (
        lambda: addons.transform(IMAGES, IDENTITY, fill_value="edge"),
    ),
    r"regularization_weight must be a finite number, received '0.1'": (
        lambda: addons.interpolate_spline(THREE, THREE, THREE, 2, "0.1"),
    ),
    r"regularization_weight must be a finite number, received nan": (
        lambda: addons.sparse_image_warp(IMAGES, z(2, 4, 2), z(2, 4, 2), 2, np.nan),
    ),
    r"data must have shape \[batch, h.*, received \[5, 7, 3\]": (
        addons.resampler,
        IMAGES[0],
        THREE,
    ),
    r"warp must have shape \[batch, \.\.\., 2\].*, received \[2, 4, 3\]": (
        addons.resampler,
        IMAGES,
        THREE,
    ),
    r"warp must have shape .* = \[2, \?, 2\], received \[1, 4, 2\]": (
        addons.resampler,
        IMAGES,
        z(1, 4, 2),
    ),
    r"warp must have shape .*, received \[2\]": (addons.resampler, IMAGES, z(2)),
    r"indexing must be one of 'ij', 'xy', received 'yx'": (
        addons.interpolate_bilinear,
        IMAGES,
        z(2, 4, 2),
        "yx",
    ),
    r"grid must be at least 2 pixels high and wide, received \(2, 1, 7, 3\)": (
        addons.interpolate_bilinear,
        IMAGES[:, :1],
        z(2, 4, 2),
    ),
    r"query_points must have shape \[batch or 1, n, 2\], received \[2, 2\]": (
        addons.interpolate_bilinear,
        IMAGES,
        z(2, 2),
    ),
    r"query_points must be one, or one for every image, that is 2, received 3": (
        addons.interpolate_bilinear,
        IMAGES,
        z(3, 4, 2),
    ),
    r"image must be at least 2 pixels high and wide, received \(2, 5, 1, 3\)": (
        addons.dense_image_warp,
        IMAGES[:, :, :1],
        z(2, 5, 1, 2),
    ),
    r"flow must have shape .* = \[2, 5, 7, 2\], received \[2, 5, 6, 2\]": (
        addons.dense_image_warp,
        IMAGES,
        z(2, 5, 6, 2),
    ),
    r"image must have shape \[height, width\], .*, received \(5,\)": (
        addons.sparse_image_warp,
        z(5),
        z(1, 4, 2),
        z(1, 4, 2),
    ),
    r"source_control_point_locations must have shape .* = \[1, \?, 2\], received \[2, 4, 2\]": (
        addons.sparse_image_warp,
        IMAGES[0],
        z(2, 4, 2),
        z(2, 4, 2),
    ),
    r"dest_control_point_locations must have shape .* = \[2, 4, 2\], received \[2, 5, 2\]": (
        addons.sparse_image_warp,
        IMAGES,
        z(2, 4, 2),
        z(2, 5, 2),
    ),
    r"interpolation_order must be an int of at least 1, received 0": (
        addons.sparse_image_warp,
        *(IMAGES, z(2, 4, 2), z(2, 4, 2)),
        0,
    ),
    r"num_boundary_points must be an int of at least 0, received -1": (
        addons.sparse_image_warp,
        *(IMAGES, z(2, 4, 2), z(2, 4, 2)),
        *(2, 0.0, -1),
    ),
    r"train_points must have shape \[batch, n, d\] .*, received \(2, 4\)": (
        SPLINE,
        *(z(2, 4), THREE, THREE),
        1,
    ),
    r"train_values must have shape \[batch, n, k\] = \[2, 4, \?\], received \[2, 5, 3\]": (
        SPLINE,
        *(THREE, z(2, 5, 3), THREE),
        1,
    ),
    r"query_points must have shape \[batch, m, d\] = \[2, \?, 3\], received \[2, 4, 2\]": (
        SPLINE,
        *(THREE, THREE, z(2, 4, 2)),
        1,
    ),
    r"order must be an int of at least 1, received 1.5": (SPLINE, *(THREE, THREE, THREE), 1.5),
    r"images must have shape \[height, width\], .*, received \(7,\)": (
        addons.transform,
        z(7),
        IDENTITY,
    ),
    r"transforms must have shape \[8\] or \[batch or 1, 8\].*, received \[1, 9\]": (
        addons.transform,
        IMAGES,
        z(9),
    ),
    r"transforms must be one, or one for every image, that is 2, received 3": (
        addons.transform,
        IMAGES,
        z(3, 8),
    ),
    r"interpolation must be one of 'nearest', 'bilinear', received 'bicubic'": (
        addons.transform,
        *(IMAGES, IDENTITY),
        "BICUBIC",
    ),
    r"fill_mode must be one of 'constant', .*, received 'mirror'": (
        addons.transform,
        *(IMAGES, IDENTITY),
        *("nearest", "mirror"),
    ),
    r"output_shape must be \(height, width\), each at least 0, received \[4, 5, 3\]": (
        addons.transform,
        *(IMAGES, IDENTITY),
        *("nearest", "wrap", [4, 5, 3]),
    ),
    r"output_shape must be \(height, width\), each at least 0, received \(4, -1\)": (
        addons.transform,
        *(IMAGES, IDENTITY),
        *("nearest", "wrap", (4, -1)),
    ),
    r"translations must have shape \[2\] or \[n, 2\].*, received \[2, 3\]": (
        addons.translate,
        IMAGES,
        z(2, 3),
    ),
    r"translations must be one, or one for every image, that is 1, received 2": (
        addons.translate,
        IMAGES[0],
        z(2, 2),
    ),
    r"angles must be one, or one for every image, that is 2, received 3": (
        addons.rotate,
        IMAGES,
        z(3),
    ),
    r"angles must have shape \[\] or \[n\], received \[2, 1\]": (addons.rotate, IMAGES, z(2, 1)),
    r"image_width must have shape \[\] or \[1 or n\], received \[1, 1\]": (
        addons.angles_to_projective_transforms,
        *(z(3), 5, z(1, 1)),
    ),
    r"transforms must be a list of at least one transform, received \[\]": (
        addons.compose_transforms,
        [],
    ),
    r"transforms\[1\] must have shape \[8\] or \[n, 8\] .*, received \[2, 9\]": (
        addons.compose_transforms,
        [IDENTITY, z(2, 9)],
    ),
    r"image must have shape \[height, width, channels\], received \[2, 5, 7, 3\]": (
        addons.shear_x,
        *(IMAGES, 0.5, 0),
    ),
    r"level must have shape \[\], received \[2\]": (addons.shear_y, *(IMAGES[0], [0.5, 1.0], 0)),
    r"replace must be a number, or have shape .* = \[3\], received \[2\]": (
        addons.shear_x,
        *(IMAGES[0], 0.5, [1, 2]),
    ),
    r"replace must be a number, or have shape .*, received \[1, 3\]": (
        addons.translate_xy,
        *(IMAGES[0], [1, 2], [[1, 2, 3]]),
    ),
    r"translate_to must have shape \[2\] = \[2\], received \[3\]": (
        addons.translate_xy,
        *(IMAGES[0], [1, 2, 3], 0),
    ),
}
INTEGERS = IMAGES.astype("int32")
BAD_DTYPES = {
    r"data must be floating-point, received int32": (addons.resampler, INTEGERS, z(2, 2)),
    r"warp must be floating-point, received int32": (addons.resampler, IMAGES, INTEGERS),
    r"grid must be floating-point, received int32": (addons.interpolate_bilinear, INTEGERS, THREE),
    r"flow must be floating-point, received int32": (addons.dense_image_warp, IMAGES, INTEGERS),
    r"image must be floating-point, received int32": (
        addons.sparse_image_warp,
        *(INTEGERS, z(2, 4, 2), z(2, 4, 2)),
    ),
    r"train_values must be floating-point, received int32": (SPLINE, THREE, INTEGERS, THREE, 1),
    r"images must be floating-point or integer, received bool": (
        addons.transform,
        IMAGES.astype(bool),
        IDENTITY,
    ),
    r"angles must be floating-point, received int32": (
        addons.rotate,
        IMAGES,
        tf.constant(1),
    ),
    r"image must be floating-point or integer, received bool": (
        addons.shear_x,
        *(IMAGES[0].astype(bool), 0.5, 0),
    ),
    r"transforms must be floating-point, received int32": (
        addons.transform,
        IMAGES,
        tf.zeros([8], tf.int32),
    ),
}


@pytest.mark.parametrize("message", [*BAD, *BAD_DTYPES])
def test_bad_input_is_named_with_what_was_expected_and_received(message):
    function, *arguments = {**BAD, **BAD_DTYPES}[message]
    with pytest.raises(ValueError if message in BAD else TypeError, match=f"^{message}"):
        function(*arguments)


AT_RUN_TIME = {
    r"grid must be at least 2 pixels high and wide": (
        addons.interpolate_bilinear,
        (IMAGES, z(2, 4, 2)),
        (IMAGES[:, :1], z(2, 4, 2)),
    ),
    r"query_points must be one, or one for every image, that is\] \[2\] \[received\] \[3\]": (
        addons.interpolate_bilinear,
        (IMAGES, z(1, 4, 2)),
        (IMAGES, z(3, 4, 2)),
    ),
    r"flow must have shape": (
        addons.dense_image_warp,
        (IMAGES, z(2, 5, 7, 2)),
        (IMAGES, z(2, 7, 5, 2)),
    ),
    r"transforms must be one, or one for every image, that is\] \[2\] \[received\] \[3\]": (
        addons.transform,
        (IMAGES, z(2, 8)),
        (IMAGES, z(3, 8)),
    ),
}


@pytest.mark.parametrize("message", AT_RUN_TIME)
def test_sizes_that_do_not_fit_are_an_error_at_run_time_where_they_are_free(message):
    function, good, bad = AT_RUN_TIME[message]
    free = [tf.TensorSpec([*[None] * (each.ndim - 1), each.shape[-1]]) for each in good]
    traced = tf.function(function, input_signature=free)
    traced(*good)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        traced(*bad)
