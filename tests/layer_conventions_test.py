"""What people who know Keras expect of a layer, and find. The cases are the contract's."""

import importlib
import inspect
import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import KERAS
from layer_contract_test import (
    ALL,
    CASES,
    LAYERS,
    WIDE,
    arguments_of,
    is_shape,
    make,
    model_of,
    randomize,
)

OF_LAYERS = pytest.mark.parametrize("name", LAYERS)
NEWER = pytest.mark.newer_keras if KERAS < (3, 13) else lambda function: function
# Keras's own test takes no lists of shapes.
LISTS = [key for key, case in CASES.items() if not all(map(is_shape, case.shapes))]
TENSORS = [key for key in CASES if key not in LISTS]


# Keras's own test of layers


@pytest.mark.parametrize("key", TENSORS)
def test_keras_own_test_of_layers_passes(key):
    testing = importlib.import_module("keras.src.testing")  # it has no public name
    case = CASES[key]
    layer = LAYERS[case.layer]
    names = list(inspect.signature(layer.call).parameters)[1:]
    single = len(case.shapes) == 1
    shapes = {f"{name}_shape": shape for name, shape in zip(names, case.shapes, strict=False)}
    testing.TestCase().run_layer_test(
        layer,
        init_kwargs=case.options(),
        input_shape=case.shapes[0] if single else shapes,
        expected_output_shape=tuple(make(case)(*arguments_of(case)).shape),
        # With several inputs it hands a dictionary to one argument.
        run_training_check=single,
        run_mixed_precision_check=case.layer not in WIDE,
    )


@pytest.mark.parametrize("key", LISTS)
def test_layers_of_lists_build_of_shapes_and_of_what_is_saved(key):
    case = CASES[key]
    called, shaped, loaded = make(case), make(case), make(case)
    called(*arguments_of(case))
    shaped.build(*case.shapes)
    loaded.build_from_config(json.loads(json.dumps(called.get_build_config())))
    expected = [(weight.name, tuple(weight.shape)) for weight in called.weights]
    for layer in (shaped, loaded):
        assert [(weight.name, tuple(weight.shape)) for weight in layer.weights] == expected
        layer.set_weights(called.get_weights())
        actual, result = (each(*arguments_of(case)) for each in (layer, called))
        np.testing.assert_array_equal(actual, result)


@ALL
def test_build_and_compute_output_shape_name_the_arguments_of_the_call(case):
    layer = LAYERS[case.layer]
    called = list(inspect.signature(layer.call).parameters)[1:]
    for method in (layer.build, layer.compute_output_shape):
        assert list(inspect.signature(method).parameters)[1:] == [f"{n}_shape" for n in called]


# Help in the editor


@OF_LAYERS
def test_help_shows_every_argument_annotated_and_described(name):
    layer = LAYERS[name]
    arguments = inspect.signature(layer).parameters.values()
    assert [each.name for each in arguments if each.kind is each.VAR_KEYWORD] == ["kwargs"]
    sections = re.split(r"^(Args|Call arguments|\w+):", layer.__doc__, flags=re.M)
    for function, section in ((layer, "Args"), (layer.call, "Call arguments")):
        text = sections[sections.index(section) + 1]
        described = re.findall(r"^    (\w+): ", text, re.M)
        expected = [each for each in inspect.signature(function).parameters if each != "self"]
        assert described == expected
    assert not re.search(r"as in `(?!keras)", sections[sections.index("Args") + 1])


def test_what_a_layer_says_itself_of_an_argument_counts():
    assert "output_channels * bins` channels" in tfd.layers.PSRoIAlign.__doc__
    assert "rounded to whole" in tfd.layers.DeformablePSRoIPooling.__doc__


@OF_LAYERS
def test_constructor_and_public_methods_are_annotated(name):
    own = [
        *("__init__", "build", "call", "compute_output_shape", "enable_lora", "predict_offset"),
        *("predict_parameters", "sampling_positions", "sampling_boxes", "sampling_grid"),
        *("sampling_locations", "sampling_weights"),
    ]
    for function in (getattr(LAYERS[name], each, None) for each in own):
        if function is not None:
            signature = inspect.signature(function)
            parameters = list(signature.parameters.values())[1:]
            assert all(each.annotation is not each.empty for each in parameters), function
            assert signature.return_annotation is not signature.empty, function


def test_a_subclass_of_a_users_keeps_its_docstring_and_shows_its_own_arguments():
    class Mine(tfd.layers.RoIAlign):
        """Mine."""

        def __init__(self, factor, **kwargs):
            super().__init__(7, **kwargs)
            self.factor = factor

    assert Mine.__doc__ == "Mine."
    assert list(inspect.signature(Mine).parameters) == ["factor", "kwargs"]
    keras.backend.clear_session()
    layer = Mine(2, spatial_scale=0.5)
    assert layer.name == "mine"
    assert layer.get_config()["spatial_scale"] == 0.5


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("RoIAlign", {"output_size": 2}, "roi_align"),
        ("PSRoIAlign", {"output_size": 2, "output_channels": 1}, "ps_roi_align"),
        ("DeformableRoIPooling", {"output_size": 2}, "deformable_roi_pooling"),
        ("DCNv4", {}, "dcnv4"),
        ("DeformableConv2D", {"filters": 1, "kernel_size": 1}, "deformable_conv2d"),
        ("GridSample", {}, "grid_sample"),
    ],
)
def test_default_names_read_as_keras_ones(name, arguments, expected):
    keras.backend.clear_session()
    names = [LAYERS[name](**arguments).name for _ in range(3)]
    assert names == [expected, f"{expected}_1", f"{expected}_2"]
    config = LAYERS[name](**arguments, name="ro_i_align").get_config()
    assert LAYERS[name].from_config(config).name == "ro_i_align"


# Quantisation


def quantized(model, *args, **kwargs):
    with warnings.catch_warnings():  # Keras warns of every layer that has nothing to quantise
        warnings.simplefilter("ignore")
        model.quantize(*args, **kwargs)
    return model


@ALL
def test_a_quantised_model_loads_with_the_same_outputs_and_float_predictors(case, tmp_path):
    layer = make(case)
    model = model_of(case, layer)
    randomize(model)
    arguments = tf.nest.flatten(arguments_of(case))
    before = model(arguments)
    quantized(model, "int8")
    projections = [each for each in ("input_proj", "value_proj") if hasattr(layer, each)]
    for name in ("offset", "mask", "offset_mask", "sampling_offsets", "predictor"):
        dense = getattr(layer, name, None)
        assert dense is None or dense.kernel.dtype == "float32"
    assert all(getattr(layer, each)._kernel.dtype == "int8" for each in projections)
    result = model(arguments)
    if projections:
        assert 0 < np.max(np.abs(result - before)) < 0.05 * np.max(np.abs(before))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(arguments), result)
    assert {weight.dtype for weight in loaded.weights} == {weight.dtype for weight in model.weights}


@NEWER
def test_how_a_projection_was_quantised_is_saved():
    case = CASES["DCNv3"]
    layer = make(case)
    model = model_of(case, layer)
    randomize(model)
    config = keras.quantizers.Int8QuantizationConfig(
        weight_quantizer=keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-7, 7)),
        activation_quantizer=None,
    )
    quantized(model, config=config)
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    loaded = keras.saving.deserialize_keras_object(serialized)
    loaded(*arguments_of(case))
    loaded.set_weights(layer.get_weights())
    np.testing.assert_array_equal(loaded(*arguments_of(case)), layer(*arguments_of(case)))


# Small conventions


@pytest.mark.parametrize("rank", [2, 3])
def test_a_transformer_takes_one_output_size_for_all_axes_and_no_localisation(rng, rank):
    shape = (2, 9, 7, 3) if rank == 2 else (2, 5, 6, 7, 3)
    inputs = rng.normal(size=shape).astype("float32")
    theta = rng.normal(size=(2, rank, rank + 1)).astype("float32")
    layer = tfd.layers.SpatialTransformer(output_size=4)
    grid = tfd.ops.affine_grid(theta, [4] * rank)
    expected = tfd.ops.grid_sample(inputs, grid)
    for parameters in (theta, theta.reshape(2, -1)):
        np.testing.assert_allclose(layer(inputs, parameters), expected, atol=1e-5)
        symbolic = layer(keras.KerasTensor((None, *shape[1:])), keras.KerasTensor(parameters.shape))
        assert symbolic.shape == (2, *[4] * rank, 3) or symbolic.shape[1:] == (*[4] * rank, 3)
    assert layer.get_config()["output_size"] == 4
    assert type(layer).from_config(layer.get_config()).output_size == 4


def test_a_projective_transformer_takes_matrices(rng):
    inputs = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    theta = np.eye(3, dtype="float32") + rng.normal(0, 0.1, (2, 3, 3)).astype("float32")
    theta /= theta[:, 2:, 2:]
    layer = tfd.layers.SpatialTransformer(transformation="projective")
    expected = layer(inputs, theta.reshape(2, 9)[:, :8])
    np.testing.assert_allclose(layer(inputs, theta), expected, atol=1e-5)


def test_a_matrix_of_another_shape_names_both_shapes(rng):
    inputs = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    layer = tfd.layers.SpatialTransformer()
    message = r"parameters must have shape \[batch, 6\] or \[batch, 2, 3\] for .* affine.* received"
    for wrong in ((2, 7), (2, 3, 2), (2, 6, 1, 1)):
        with pytest.raises(ValueError, match=message):
            layer(inputs, np.zeros(wrong, "float32"))
    with pytest.raises(ValueError, match=r"\[batch, 2\] for the transformation translation"):
        tfd.layers.SpatialTransformer(transformation="translation")(inputs, np.zeros([2, 2, 3]))


def test_a_pyramid_in_a_dictionary_is_taken_finest_first(rng):
    sizes = {"P10": (2, 3, 3, 4), "P8": (2, 10, 9, 4), "P9": (2, 5, 5, 4)}
    maps = {name: rng.normal(size=shape).astype("float32") for name, shape in sizes.items()}
    boxes = np.array([[[0, 0, 1, 2], [1, 0, 9, 8], [0, 0, 3, 3]]] * 2, "float32")
    layer = tfd.layers.MultiScaleRoIAlign(
        2, scales=(1.0, 0.5, 0.25), canonical_size=2, canonical_level=0
    )
    expected = layer([maps["P8"], maps["P9"], maps["P10"]], boxes)
    np.testing.assert_array_equal(layer(maps, boxes), expected)
    inputs = {name: keras.Input(shape[1:], name=name) for name, shape in sizes.items()}
    rois = keras.Input((None, 4), name="boxes")
    model = keras.Model([inputs, rois], layer(inputs, rois))
    np.testing.assert_array_equal(model([maps, boxes]), expected)
    loaded = keras.models.Model.from_config(model.get_config())
    np.testing.assert_array_equal(loaded([maps, boxes]), expected)


@ALL
def test_none_in_the_place_of_what_must_be_given_is_named(case):
    layer = LAYERS[case.layer]
    arguments = arguments_of(case)
    for position, each in enumerate(list(inspect.signature(layer.call).parameters.values())[1:]):
        if each.default is not None:
            wrong = [*arguments[:position], None, *arguments[position + 1 :]]
            with pytest.raises(TypeError, match=rf"^{each.name} must be given, received None"):
                make(case)(*wrong)


def test_box_indices_that_are_none_are_named():
    with pytest.raises(TypeError, match="box_indices must be an integer tensor, received None"):
        tfd.ops.roi_align(tf.zeros([1, 5, 4, 2]), tf.zeros([1, 4]), None, 2)
