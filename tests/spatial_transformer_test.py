"""The spatial transformer layers; what every layer must do is in layer_contract_test."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, gradients, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, CHANNELS = 2, 3
SPACE = {2: (9, 6), 3: (5, 6, 7)}
OUTPUT = {2: (4, 7), 3: (4, 3, 5)}

# What the parameters of each transformation mean: theta, by the rank of the image.
THETA = {
    ("translation", 2): lambda x, y: [[1, 0, x], [0, 1, y]],
    ("attention", 2): lambda s, x, y: [[s, 0, x], [0, s, y]],
    ("similarity", 2): lambda s, angle, x, y: [
        [s * np.cos(angle), -s * np.sin(angle), x],
        [s * np.sin(angle), s * np.cos(angle), y],
    ],
    ("affine", 2): lambda *theta: np.reshape(theta, (2, 3)),
    ("projective", 2): lambda *theta: np.reshape([*theta, 1], (3, 3)),
    ("translation", 3): lambda x, y, z: [[1, 0, 0, x], [0, 1, 0, y], [0, 0, 1, z]],
    ("attention", 3): lambda s, x, y, z: [[s, 0, 0, x], [0, s, 0, y], [0, 0, s, z]],
    ("affine", 3): lambda *theta: np.reshape(theta, (3, 4)),
}
IDENTITY = {
    ("translation", 2): [0, 0],
    ("attention", 2): [1, 0, 0],
    ("similarity", 2): [1, 0, 0, 0],
    ("affine", 2): [1, 0, 0, 0, 1, 0],
    ("projective", 2): [1, 0, 0, 0, 1, 0, 0, 0],
    ("thin_plate_spline", 2): [0] * 32,
    ("translation", 3): [0, 0, 0],
    ("attention", 3): [1, 0, 0, 0],
    ("affine", 3): [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
}
TRANSFORMATIONS = pytest.mark.parametrize(("transformation", "rank"), IDENTITY)
CORNERS = pytest.mark.parametrize("align_corners", (False, True))


def images_of(rng, rank=2, dtype="float32"):
    return rng.normal(size=(BATCH, *SPACE[rank], CHANNELS)).astype(dtype)


def parameters_of(rng, transformation, rank=2, dtype="float64"):
    """Returns parameters near, but not at, the identity, other ones for each image."""
    identity = np.array(IDENTITY[transformation, rank])
    return (identity + rng.uniform(-0.3, 0.3, (BATCH, len(identity)))).astype(dtype)


def expected_grid(transformation, parameters, output_size, align_corners):
    options = {"align_corners": align_corners}
    if transformation == "thin_plate_spline":
        displacements = np.reshape(parameters, (len(parameters), -1, 2))
        return oracles.thin_plate_spline_grid(displacements, output_size, **options)
    oracle = oracles.projective_grid if transformation == "projective" else oracles.affine_grid
    theta = [THETA[transformation, len(output_size)](*each) for each in parameters]
    return oracle(np.array(theta), output_size, **options)


def localization(**options):
    return keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(4, activation="tanh", **options)]
    )


def pooled_localization():
    """A localisation net for inputs of free height and width."""
    return keras.Sequential(
        [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, activation="tanh")]
    )


def perturb(rng, layer):
    """Moves the layer off the identity."""
    for weight in layer.predictor.weights:
        weight.assign(weight + rng.normal(0, 0.15, weight.shape))


# Values


@CORNERS
@TRANSFORMATIONS
def test_untrained_layer_is_the_identity_at_odd_and_even_sizes(
    transformation, rank, align_corners, rng
):
    for padding_mode in ("zeros", "border", "reflection"):
        layer = tfd.layers.SpatialTransformer(
            localization(), transformation, align_corners=align_corners, padding_mode=padding_mode
        )
        images = images_of(rng, rank)
        assert relative_error(layer(images), images) < TOLERANCE["float32"]


@CORNERS
@TRANSFORMATIONS
def test_parameters_mean_what_the_documentation_says(transformation, rank, align_corners, rng):
    images = images_of(rng, rank, "float64")
    parameters = parameters_of(rng, transformation, rank)
    layer = tfd.layers.SpatialTransformer(
        None, transformation, OUTPUT[rank], align_corners=align_corners, dtype="float64"
    )
    grid = expected_grid(transformation, parameters, OUTPUT[rank], align_corners)
    expected = oracles.grid_sample(images, grid, align_corners=align_corners)
    assert relative_error(layer(images, parameters), expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("output_size", (None, (3, 11)))
@CORNERS
def test_output_size_is_the_inputs_unless_given(output_size, align_corners, rng):
    images, parameters = images_of(rng), parameters_of(rng, "affine")
    layer = tfd.layers.SpatialTransformer(
        None, output_size=output_size, align_corners=align_corners
    )
    grid = expected_grid("affine", parameters, output_size or SPACE[2], align_corners)
    expected = oracles.grid_sample(images, grid, align_corners=align_corners)
    assert layer.compute_output_shape(images.shape) == expected.shape
    assert relative_error(layer(images, parameters), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("padding_mode", ("zeros", "border", "reflection"))
@pytest.mark.parametrize("interpolation", ("bilinear", "nearest", "bicubic"))
def test_both_layers_take_every_interpolation_and_padding(interpolation, padding_mode, rng):
    images = images_of(rng, dtype="float64")
    parameters = parameters_of(rng, "affine") * 1.5  # well beyond the borders
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    grid = expected_grid("affine", parameters, OUTPUT[2], False)
    expected = oracles.grid_sample(images, grid, **options)
    options["dtype"] = "float64"
    transformer = tfd.layers.SpatialTransformer(None, "affine", OUTPUT[2], **options)
    assert relative_error(transformer(images, parameters), expected) < TOLERANCE["float64"]
    sampler = tfd.layers.GridSample(**options)
    assert relative_error(sampler(images, grid), expected) < TOLERANCE["float64"]


@CORNERS
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_grid_sample_takes_one_to_three_dimensions(rank, align_corners, rng):
    images = rng.normal(size=(BATCH, *(5, 6, 7)[:rank], CHANNELS))
    grid = rng.uniform(-1.3, 1.3, (BATCH, *(4, 3, 2)[:rank], rank))
    layer = tfd.layers.GridSample(align_corners=align_corners, dtype="float64")
    expected = oracles.grid_sample(images, grid, align_corners=align_corners)
    assert relative_error(layer(images, grid), expected) < TOLERANCE["float64"]


def test_control_points_may_differ_in_rows_and_columns(rng):
    images, displacements = images_of(rng, dtype="float64"), rng.uniform(-0.2, 0.2, (BATCH, 6, 2))
    layer = tfd.layers.SpatialTransformer(
        None, "thin_plate_spline", OUTPUT[2], control_points=(2, 3), dtype="float64"
    )
    grid = oracles.thin_plate_spline_grid(displacements, OUTPUT[2], control_points=(2, 3))
    expected = oracles.grid_sample(images, grid)
    actual = layer(images, displacements.reshape(BATCH, 12))
    assert relative_error(actual, expected) < TOLERANCE["float64"]


# The localisation net


@TRANSFORMATIONS
def test_the_layer_applies_the_parameters_it_predicts(transformation, rank, rng):
    images = images_of(rng, rank)
    layer = tfd.layers.SpatialTransformer(localization(), transformation, OUTPUT[rank])
    layer.build(images.shape)
    perturb(rng, layer)
    features = np.array(layer.localization(images), np.float64)
    parameters = features @ layer.predictor.kernel.numpy() + layer.predictor.bias.numpy()
    assert relative_error(layer.predict_parameters(images), parameters) < TOLERANCE["float32"]
    grid = expected_grid(transformation, parameters, OUTPUT[rank], False)
    expected = oracles.grid_sample(images, grid)
    assert relative_error(layer(images), expected) < TOLERANCE["float32"]


@TRANSFORMATIONS
def test_gradients_reach_the_predictor_at_once_and_then_the_localisation(transformation, rank, rng):
    images = images_of(rng, rank)
    layer = tfd.layers.SpatialTransformer(localization(), transformation)
    layer.build(images.shape)

    def weight_gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((layer(images) - images[::-1]) ** 2)
        return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

    assert len(layer.trainable_weights) == 4
    of_predictor = tape_of(weight_gradients(), layer, layer.predictor)
    assert all(np.all(np.abs(each) > 1e-6) for each in of_predictor)
    perturb(rng, layer)
    assert all(np.any(np.abs(each) > 1e-6) for each in weight_gradients())


def tape_of(values, layer, part):
    """Returns those of the values, one a trainable weight of the layer, that belong to the part."""
    names = [weight.path for weight in part.trainable_weights]
    pairs = zip(values, layer.trainable_weights, strict=True)
    return [value for value, weight in pairs if weight.path in names]


def test_free_height_and_width_need_a_localisation_that_pools(rng):
    inputs = keras.Input((None, None, CHANNELS))
    layer = tfd.layers.SpatialTransformer(pooled_localization(), "similarity")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, CHANNELS)
    perturb(rng, layer)
    for size in ((9, 6), (5, 8)):
        images = rng.normal(size=(BATCH, *size, CHANNELS)).astype("float32")
        parameters = np.array(layer.predict_parameters(images))
        grid = expected_grid("similarity", parameters, size, False)
        expected = oracles.grid_sample(images, grid)
        assert relative_error(model.predict(images, verbose=0), expected) < TOLERANCE["float32"]
    with pytest.raises(ValueError, match=r"localization must return features of known size"):
        tfd.layers.SpatialTransformer(keras.layers.Flatten())(inputs)


def test_the_localisation_may_be_convolutional_and_its_features_are_flattened(rng):
    images = images_of(rng)
    layer = tfd.layers.SpatialTransformer(keras.layers.Conv2D(2, 3, strides=2), "attention")
    layer(images)
    assert layer.predictor.kernel.shape == (4 * 2 * 2, 3)


def test_the_localisation_knows_whether_the_model_trains(rng):
    images = images_of(rng)
    layer = tfd.layers.SpatialTransformer(
        keras.Sequential([localization(), keras.layers.Dropout(0.5)])
    )
    model = keras.Sequential([layer])
    model.build(images.shape)
    perturb(rng, layer)
    np.testing.assert_array_equal(model(images), model(images, training=False))
    assert np.max(np.abs(model(images, training=True) - model(images))) > 1e-3


def test_parameters_given_are_used_in_place_of_predicted_ones(rng):
    images, parameters = images_of(rng), parameters_of(rng, "affine", dtype="float32")
    layer = tfd.layers.SpatialTransformer(localization())
    given = tfd.layers.SpatialTransformer(None)
    layer(images)
    np.testing.assert_array_equal(layer(images, parameters), given(images, parameters))
    assert given.weights == []


def test_without_a_localisation_parameters_are_required(rng):
    images, parameters = images_of(rng), parameters_of(rng, "affine", dtype="float32")
    layer = tfd.layers.SpatialTransformer(None)
    message = r"parameters must be given, because localization is None"
    with pytest.raises(ValueError, match=message):
        layer(images)
    layer(images, parameters)
    with pytest.raises(ValueError, match=message):
        layer(images)


def test_two_transformers_in_one_model_train_and_save_apart(rng, tmp_path):
    images = images_of(rng)
    first = tfd.layers.SpatialTransformer(localization(), "attention", (7, 8))
    second = tfd.layers.SpatialTransformer(localization(), "thin_plate_spline", OUTPUT[2])
    model = keras.Sequential([keras.Input(images.shape[1:]), first, second])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    before = [first.predictor.bias.numpy(), second.predictor.bias.numpy()]
    model.fit(images, np.ones((BATCH, *OUTPUT[2], CHANNELS)), epochs=2, verbose=0)
    for layer, bias in zip((first, second), before, strict=True):
        assert np.any(layer.predictor.bias != bias)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


# Precision


@pytest.mark.parametrize("policy", ("mixed_float16", "mixed_bfloat16"))
def test_the_predictor_is_float32_under_mixed_precision(policy, rng):
    images = images_of(rng)
    layer = tfd.layers.SpatialTransformer(localization(dtype=policy), dtype=policy)
    assert layer(images).dtype == policy.removeprefix("mixed_")
    assert layer.predictor.compute_dtype == "float32"
    assert layer.localization.layers[1].compute_dtype == policy.removeprefix("mixed_")
    assert layer.predict_parameters(images).dtype == "float32"


@pytest.mark.parametrize("policy", ("mixed_float16", "mixed_bfloat16"))
def test_grids_and_parameters_are_not_rounded_under_mixed_precision(policy):
    row = np.tile([0.0, 1.0], 1000)[None, None, :, None].astype("float32")
    pixel = 1501.3  # x in float16 would be pixel 1501.0 or 1502
    x = (2 * pixel + 1) / 2000 - 1
    grid = np.array([[[[x, 0.0]]]], "float32")
    sampled = tfd.layers.GridSample(dtype=policy)(row, grid)
    layer = tfd.layers.SpatialTransformer(None, "translation", (1, 1), dtype=policy)
    moved = layer(row, np.array([[x, 0.0]], "float32"))
    predicting = tfd.layers.SpatialTransformer(localization(), "translation", (1, 1), dtype=policy)
    predicting.build(row.shape)
    predicting.predictor.bias.assign([x, 0.0])
    for result in (sampled, moved, predicting(row)):
        np.testing.assert_allclose(tf.cast(result, "float32").numpy().item(), 0.7, atol=3e-3)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@TRANSFORMATIONS
def test_parameters_that_are_not_finite_sample_zero_with_zero_gradient(
    transformation, rank, value, rng
):
    images, parameters = images_of(rng, rank), parameters_of(rng, transformation, rank)
    parameters[1] = value
    layer = tfd.layers.SpatialTransformer(None, transformation)
    outputs = np.array(layer(images, parameters.astype("float32")))
    assert np.all(np.isfinite(outputs))
    assert not np.any(outputs[1])
    of_images, _ = gradients(layer, images, parameters.astype("float32"))
    assert not np.any(of_images[1])
    assert np.any(of_images[0])


# Bad input


def test_an_empty_batch_gives_an_empty_result(rng):
    images = images_of(rng)[:0]
    layer = tfd.layers.SpatialTransformer(localization(), output_size=OUTPUT[2])
    assert layer(images).shape == (0, *OUTPUT[2], CHANNELS)
    grid = np.zeros((0, *OUTPUT[2], 2), "float32")
    assert tfd.layers.GridSample()(images, grid).shape == (0, *OUTPUT[2], CHANNELS)


BAD_OPTIONS = {
    r"transformation must be one of 'translation', 'attention', 'similarity', 'affine', "
    r"'projective', 'thin_plate_spline', received 'afine'": {"transformation": "afine"},
    r"interpolation must be one of 'bilinear', 'nearest', 'bicubic', received 'cubic'": {
        "interpolation": "cubic"
    },
    r"padding_mode must be one of 'zeros', 'border', 'reflection', received 'edge'": {
        "padding_mode": "edge"
    },
    r"control_points must be an int or 2 ints of at least 2, received \(1, 4\)": {
        "control_points": (1, 4)
    },
    r"output_size must .*received 0": {"output_size": 0},
    r"align_corners must be True or False, received 'yes'": {"align_corners": "yes"},
    r"transformation must be one of 'translation', .*, received \['affine'\]": {
        "transformation": ["affine"]
    },
    r"output_size must .*received \(0, 5\)": {"output_size": (0, 5)},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_a_bad_option_is_named_with_what_was_expected_and_received(message):
    with pytest.raises(ValueError, match=message):
        tfd.layers.SpatialTransformer(**{"localization": None, **BAD_OPTIONS[message]})


def two_heads():
    inputs = keras.Input(IMAGES[1:])
    pooled = keras.layers.GlobalMaxPooling2D()(inputs)
    return keras.Model(inputs, [pooled, keras.layers.Dense(2)(pooled)])


@pytest.mark.parametrize(
    "wrong", ("cnn", keras.layers.Flatten, keras.layers.Flatten().call, [keras.layers.Flatten()])
)
def test_a_localisation_that_is_no_layer_is_refused(wrong):
    message = r"localization must be a Keras layer or model, or None, received .*Lambda"
    with pytest.raises(ValueError, match=message):
        tfd.layers.SpatialTransformer(wrong)


@pytest.mark.parametrize("make", (np.zeros, keras.KerasTensor), ids=("eager", "symbolic"))
def test_a_localisation_of_two_outputs_is_refused(make):
    with pytest.raises(ValueError, match=r"localization must return one tensor, received .*3.*2"):
        tfd.layers.SpatialTransformer(two_heads())(make(IMAGES))


@pytest.mark.parametrize("option", ("interpolation", "padding_mode"))
def test_grid_sample_lists_the_known_options(option):
    with pytest.raises(ValueError, match=rf"{option} must be one of '.*', received 'best'"):
        tfd.layers.GridSample(**{option: "best"})


IMAGES, VOLUMES = (BATCH, *SPACE[2], CHANNELS), (BATCH, *SPACE[3], CHANNELS)
BAD_SHAPES = {
    r"inputs must be 2-D or 3-D images .*'affine', received \(2, 9, 3\)": (
        {},
        (BATCH, 9, CHANNELS),
        (BATCH, 6),
    ),
    r"inputs must be 2-D images .*'similarity', received \(2, 5, 6, 7, 3\)": (
        {"transformation": "similarity"},
        VOLUMES,
        (BATCH, 4),
    ),
    r"interpolation 'bicubic' needs 2-D inputs, received 3-D": (
        {"interpolation": "bicubic"},
        VOLUMES,
        (BATCH, 12),
    ),
    r"output_size must have 2 entries for inputs \(2, 9, 6, 3\), received \(4, 5, 6\)": (
        {"output_size": (4, 5, 6)},
        IMAGES,
        (BATCH, 6),
    ),
    r"parameters must have shape .* affine = \[2, 6\], received \[2, 5\]": (
        {},
        IMAGES,
        (BATCH, 5),
    ),
    r"parameters must have shape .* = \[2, 12\], received \[3, 12\]": ({}, VOLUMES, (3, 12)),
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_a_bad_shape_is_named_with_what_was_expected_and_received(message):
    options, inputs, parameters = BAD_SHAPES[message]
    layer = tfd.layers.SpatialTransformer(None, **options)
    with pytest.raises(ValueError, match=message):
        layer(np.zeros(inputs, "float32"), np.zeros(parameters, "float32"))


@pytest.mark.parametrize(
    ("shape", "message"),
    (
        ((BATCH, 4, 5, 3), r"grid must have shape \[batch, \*output_size, rank\].*2, 4, 5, 3"),
        ((3, 4, 5, 2), r"inputs must have shape \[batch, .*received \[2, 9, 6, 3\]"),
        ((BATCH, 4, 5, 2, 3), r"inputs must have shape \[batch, 3 axes, .*\[2, 9, 6, 3\]"),
    ),
)
def test_a_bad_grid_is_named_with_what_was_expected_and_received(shape, message):
    with pytest.raises(ValueError, match=message):
        tfd.layers.GridSample()(np.zeros(IMAGES, "float32"), np.zeros(shape, "float32"))


def test_integers_are_refused(rng):
    images = images_of(rng)
    transformer, sampler = tfd.layers.SpatialTransformer(None), tfd.layers.GridSample()
    for layer, second, name in (
        (transformer, np.zeros((BATCH, 6)), "parameters"),
        (sampler, np.zeros((BATCH, 4, 5, 2)), "grid"),
    ):
        with pytest.raises(TypeError, match=rf"{name} must be floating-point, received int32"):
            layer(images, second.astype("int32"))
        with pytest.raises(TypeError, match=r"inputs must be floating-point, received uint8"):
            layer(images.astype("uint8"), second.astype("float32"))


def test_parameters_that_do_not_fit_are_an_error_at_run_time_where_sizes_are_free(rng):
    layer = tfd.layers.SpatialTransformer(None)
    shapes = [[None, None, None, CHANNELS], [None, 6]]
    call = tf.function(layer.__call__, input_signature=[tf.TensorSpec(shape) for shape in shapes])
    images, parameters = images_of(rng), parameters_of(rng, "affine", dtype="float32")
    assert call(images, parameters).shape == images.shape
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"parameters must have shape"):
        call(images, parameters[:1])
