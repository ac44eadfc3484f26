"""Every function of tfd.ops and tfd.addons as a node of a Functional model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd

# What each function is called with: arrays, which stand for tensors, and options; free sizes are
# those of the shapes with None.
RNG = np.random.default_rng(0)


def image(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def symbol(array, free_axes):
    """Returns a KerasTensor for an array, of which the first axes are free."""
    shape = [None] * free_axes + list(array.shape[free_axes:])
    return keras.Input(batch_shape=shape, dtype=array.dtype.name)


FEATURES = image(2, 9, 7, 4)
BOXES = np.array([[0, 1, 5, 6], [1, 0.5, 6, 8], [2, 2, 3, 4]], np.float32)
INDEX = np.array([1, 0, 1], np.int32)
CALLS = {
    "affine_grid": ([image(2, 2, 3), (3, 5)], {"align_corners": True}),
    "projective_grid": ([image(2, 3, 3), (3, 5)], {}),
    "thin_plate_spline_grid": ([image(2, 9, 2), (3, 5)], {"control_points": (3, 3)}),
    "grid_sample": ([FEATURES, image(2, 3, 5, 2)], {"padding_mode": "border"}),
    "sample": ([FEATURES, image(2, 6, 2)], {"interpolation": "bicubic"}),
    "weighted_sample": (
        [FEATURES, image(3, 5, 2, 6, 2), image(3, 5, 2, 6), INDEX],
        {},
    ),
    "deformable_conv": (
        [FEATURES, image(3, 2, 4, 6), image(2, 9, 7, 12), image(2, 9, 7, 6)],
        {"padding": "same"},
    ),
    "dcnv3": ([FEATURES, image(2, 9, 7, 12), image(2, 9, 7, 6), (3, 1)], {"padding": "same"}),
    "dcnv4": ([FEATURES, image(2, 9, 7, 24), (3, 1)], {"groups": 2, "padding": "same"}),
    "roi_align": ([FEATURES, BOXES, INDEX, (2, 3)], {"spatial_scale": 0.5}),
    "roi_align_rotated": (
        [FEATURES, image(3, 5), INDEX, (2, 3)],
        {"angle_unit": "degrees", "reduction": "max"},
    ),
    "multi_scale_roi_align": (
        [[image(2, 8, 6, 4), image(2, 4, 3, 4)], BOXES, INDEX, 2],
        {"scales": (0.5, 0.25)},
    ),
    "ps_roi_align": ([FEATURES, BOXES, INDEX, 2], {"sampling_ratio": 3}),
    "deformable_roi_pool": (
        [FEATURES, BOXES, INDEX, image(3, 2, 2, 2), 2],
        {"mask": image(3, 2, 2)},
    ),
    "deformable_ps_roi_pool": (
        [FEATURES, BOXES, INDEX, image(3, 2, 2, 2), 3],
        {"output_channels": 1, "group_size": 2, "part_size": 2},
    ),
    "multi_scale_deformable_attention": (
        [
            [image(2, 5, 7, 6), image(2, 3, 4, 6)],
            RNG.random((2, 4, 3, 5, 2)).astype(np.float32),
            image(2, 4, 3, 5),
        ],
        {"num_points": [3, 2], "method": "discrete"},
    ),
    "warp": ([FEATURES, image(2, 9, 7, 2)], {}),
    "integrate_velocity": ([image(2, 9, 7, 2)], {"steps": 3}),
    "compose_flows": ([image(2, 9, 7, 2), image(2, 9, 7, 2)], {}),
    "invert_flow": ([image(2, 9, 7, 2)], {"steps": 3}),
    "resize_flow": ([image(2, 9, 7, 2), (4, 5)], {}),
    "jacobian_determinant": ([image(2, 9, 7, 2)], {}),
    "warp_points": ([5 * image(2, 6, 3, 2), image(2, 9, 7, 2)], {}),
    "correlation_lookup": (
        [FEATURES, image(2, 9, 7, 4), image(2, 9, 7, 2)],
        {"radius": 1, "num_levels": 2},
    ),
    "correlation_pyramid": ([FEATURES, image(2, 9, 7, 4)], {"num_levels": 2}),
    "pyramid_lookup": (
        [[image(2, 3, 4, 5, 6), image(2, 3, 4, 2, 3)], image(2, 3, 4, 2)],
        {"radius": 1},
    ),
    "correlation": ([FEATURES, image(2, 9, 7, 4)], {"max_displacement": 2, "padding": 1}),
    "resampler": ([FEATURES, 5 * image(2, 6, 2)], {}),
    "interpolate_bilinear": ([FEATURES, 5 * image(2, 6, 2)], {}),
    "dense_image_warp": ([FEATURES, image(2, 9, 7, 2)], {}),
    "sparse_image_warp": ([FEATURES, 5 * image(2, 6, 2), 5 * image(2, 6, 2)], {}),
    "interpolate_spline": ([image(2, 6, 2), image(2, 6, 3), image(2, 5, 2), 2], {}),
    "transform": ([FEATURES, np.array([1, 0.1, 2, 0, 1, 1, 0, 0], np.float32)], {}),
    "translate": ([FEATURES, image(2, 2)], {}),
    "rotate": ([FEATURES, image(2)], {"interpolation": "bilinear"}),
    "shear_x": ([image(9, 7, 4), 0.3, image(4)], {}),
    "shear_y": ([image(9, 7, 4), 0.3, 2], {}),
    "translate_xy": ([image(9, 7, 4), image(2), 2], {}),
    "compose_transforms": ([[image(3, 8), image(3, 8)]], {}),
    "angles_to_projective_transforms": ([image(3), 4, 5], {}),
    "translations_to_projective_transforms": ([image(3, 2)], {}),
}
# How many axes of their arrays may be free, where that is not all but the last.
FREE = {
    "affine_grid": [1],
    "projective_grid": [1],
    "translate_xy": [2, 0],
    "weighted_sample": [3, 2, 3, 1],
    "deformable_conv": [3, 0, 3, 3],
    "multi_scale_deformable_attention": [3, 3, 2, 2],
}


def function_of(name):
    return getattr(tfd.ops, name, None) or getattr(tfd.addons, name)


def is_array(each):
    return isinstance(each, np.ndarray)


def model_of(name, free=False):
    """Returns a model of a function, and the arrays that it takes."""
    arguments, options = CALLS[name]
    arrays = [each for each in keras.tree.flatten((arguments, options)) if is_array(each)]
    axes = FREE.get(name, [max(each.ndim - 1, 1) for each in arrays])
    symbols = [
        symbol(*each) for each in zip(arrays, axes if free else [0] * len(axes), strict=True)
    ]
    remaining = iter(symbols)
    arguments, options = keras.tree.map_structure(
        lambda each: next(remaining) if is_array(each) else each, (arguments, options)
    )
    return keras.Model(symbols, function_of(name)(*arguments, **options)), arrays


def expected_of(name):
    arguments, options = CALLS[name]
    return function_of(name)(*arguments, **options)


def shapes_of(outputs):
    return [tuple(each.shape) for each in keras.tree.flatten(outputs)]


def assert_equal(actual, expected):
    for one, other in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_every_function_is_tested():
    assert {*CALLS, "CorrelationCost"} == {*tfd.ops.__all__, *tfd.addons.__all__}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_of_keras_tensors_is_a_node_with_the_known_shape(name):
    model, arrays = model_of(name)
    assert shapes_of(model.outputs) == shapes_of(expected_of(name))
    assert_equal(model(arrays), expected_of(name))


@pytest.mark.parametrize("name", CALLS)
def test_with_free_sizes_the_model_is_saved_loaded_and_cloned(name, tmp_path):
    model, arrays = model_of(name, free=True)
    expected = expected_of(name)
    for free, known in zip(shapes_of(model.outputs), shapes_of(expected), strict=True):
        assert [size or other for size, other in zip(free, known, strict=True)] == list(known)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded, keras.models.clone_model(model)):
        assert_equal(each(arrays), expected)
    operation = loaded.operations[-1]
    assert keras.saving.get_registered_name(type(operation)) == f"tf_deform>ops.{name}"
    assert operation.name.startswith(name.rstrip("34"))


def regions(options=()):
    """Returns a model that pools regions of images by a function and classifies them."""
    images, boxes = keras.Input((None, None, 3), name="images"), keras.Input((None, 4))
    features = tfd.layers.DeformableConv2D(4, 3, padding="same")(images)
    flat, index = keras.ops.reshape(boxes, (-1, 4)), keras.ops.zeros_like(boxes[..., 0], "int32")
    pooled = tfd.ops.roi_align(features, flat, keras.ops.reshape(index, (-1,)), 2, **dict(options))
    scores = keras.layers.Dense(2)(keras.layers.Flatten()(pooled))
    return keras.Model([images, boxes], scores)


IMAGES, REGIONS = image(1, 9, 8, 3), BOXES[None]


def test_a_model_trains_and_is_exported_with_functions_in_it(tmp_path):
    model = regions()
    before = np.array(model([IMAGES, REGIONS]))
    served = tmp_path / "1"
    tfd.export_saved_model(model, served)
    loaded = tf.saved_model.load(served)
    (outputs,) = loaded.serve([IMAGES, REGIONS]).values()
    np.testing.assert_allclose(outputs, before, rtol=1e-5, atol=1e-5)
    model.compile("sgd", "mse")
    model.train_on_batch([IMAGES, REGIONS], np.ones((3, 2), np.float32))
    assert np.abs(np.array(model([IMAGES, REGIONS])) - before).max() > 1e-4


def test_options_given_at_the_call_are_saved_with_the_model(tmp_path):
    options = {"spatial_scale": np.float32(0.5), "sampling_ratio": np.int64(3), "aligned": False}
    model = regions(options)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded([IMAGES, REGIONS]), model([IMAGES, REGIONS]))
    other = regions()
    other.set_weights(model.get_weights())
    assert np.abs(other([IMAGES, REGIONS]) - model([IMAGES, REGIONS])).max() > 1e-4


def test_tensors_and_none_may_be_mixed_with_keras_tensors():
    offset = keras.Input((9, 7, 36))
    kernel = tf.ones([3, 3, 4, 2])
    model = keras.Model(
        offset, tfd.ops.deformable_conv(FEATURES, kernel, offset, mask=None, padding="same")
    )
    given = image(2, 9, 7, 36)
    expected = tfd.ops.deformable_conv(FEATURES, kernel, given, padding="same")
    assert_equal(model(given), expected)


def test_positions_stay_float32_under_half_precision():
    stripes = np.resize([0.0, 1.0], (1, 3, 2100, 1)).astype(np.float16)
    far = np.array([[2000.3, 0, 2000.7, 2]], np.float32)  # no numbers of float16
    keras.config.set_dtype_policy("mixed_float16")
    try:
        images, boxes = keras.Input((3, None, 1), dtype="float16"), keras.Input((4,))
        pooled = tfd.ops.roi_align(images, boxes, [0], 1)
        found = keras.Model([images, boxes], pooled)([stripes, far])
    finally:
        keras.config.set_dtype_policy("float32")
    assert pooled.dtype == "float16"
    assert_equal(found, tfd.ops.roi_align(stripes, far, [0], 1))
    rounded = tfd.ops.roi_align(stripes, far.astype(np.float16), [0], 1)
    assert np.abs(np.array(found - rounded)).max() > 0.1


def test_a_wrong_argument_is_named_in_its_own_words():
    boxes = keras.Input((5,))
    with pytest.raises(ValueError, match=r"boxes must have shape \[rois, 4\] = .*, received"):
        tfd.ops.roi_align(keras.Input((9, 7, 3)), boxes, keras.Input((), dtype="int32"), 2)
