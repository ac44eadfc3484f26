"""Every layer in LiteRT's interpreter: at known sizes, at free ones, and where there is nothing."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from layer_contract_test import CASES, Case, arguments_of, built, larger_shapes, map_shapes
from tf_deform import compiled, litert_export

IMAGES = ((None, None, None, 4),)

# What the contract's cases leave out of LiteRT's troubles.
MORE = {
    "strided and dilated": Case(
        "DeformableConv2D",
        lambda: {
            "filters": 3,
            "kernel_size": 3,
            "strides": 2,
            "dilation_rate": 2,
            "padding": "same",
        },
        ((2, 9, 7, 4),),
        IMAGES,
    ),
    "splines of a free size": Case(
        "SpatialTransformer",
        lambda: {
            "localization": keras.layers.GlobalAveragePooling2D(),
            "transformation": "thin_plate_spline",
        },
        ((2, 9, 7, 4),),
        IMAGES,
    ),
}


def converted(layer, shapes):
    """Returns a LiteRT file of the layer called on inputs of the shapes, of built-in operators."""
    inputs = map_shapes(lambda shape: keras.Input(batch_shape=shape), shapes)
    signature = [tf.TensorSpec(each.shape, each.dtype) for each in tf.nest.flatten(inputs)]

    @tf.function(autograph=False, input_signature=signature)
    def call(*flat):
        return layer(*tf.nest.pack_sequence_as(inputs, flat))

    with compiled.traced_with("portable"):
        concrete = call.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


def run(content, arguments, *, empty=False):
    """Returns what the interpreter makes of the arguments, which it is resized to.

    LiteRT's delegate XNNPACK refuses empty inputs of a grouped convolution and of a 1-D one, of
    Keras's own too: the interpreter's own kernels take them.
    """
    own = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    usual = tf.lite.experimental.OpResolverType.AUTO
    with warnings.catch_warnings():  # TensorFlow's own interpreter is going to move
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            model_content=content, experimental_op_resolver_type=own if empty else usual
        )
    arrays = tf.nest.flatten(arguments)
    details = interpreter.get_input_details()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def of_batch(arguments, batch):
    return tf.nest.map_structure(lambda each: np.resize(each, (batch, *each.shape[1:])), arguments)


def assert_runs_empty(content, layer, arguments):
    """Asserts the shape of what comes out: Keras's pooling has no maximum of nothing to compare."""
    shapes = map_shapes(lambda each: each, tf.nest.map_structure(lambda a: a.shape, arguments))
    expected = layer.compute_output_shape(*shapes)
    assert run(content, arguments, empty=True).shape == tuple(expected)


@pytest.mark.parametrize("case", {**CASES, **MORE}.values(), ids={**CASES, **MORE}.keys())
def test_litert_agrees_with_keras_at_known_and_free_sizes_and_where_there_is_nothing(case):
    layer = built(case)
    arguments = arguments_of(case)
    actual = run(converted(layer, case.shapes), arguments)
    assert relative_error(actual, layer(*arguments)) < TOLERANCE["float32"]
    content = converted(layer, case.free)
    larger = arguments_of(case, shapes=larger_shapes(case))
    for samples in (of_batch(arguments, 1), of_batch(larger, 3)):
        expected = layer(*samples)
        assert relative_error(run(content, samples), expected) < TOLERANCE["float32"]
    assert_runs_empty(content, layer, of_batch(arguments, 0))
    if "bounding_box_format" in case.options():
        features, *coordinates = arguments
        assert_runs_empty(content, layer, [features, *(each[:, :0] for each in coordinates)])


# tfd.export_litert


def two_inputs():
    images = keras.Input((None, None, 3), name="images")
    features = tfd.layers.DeformableConv2D(4, 3, name="features")(images)
    boxes = keras.Input((None, 4), name="boxes")
    pooled = tfd.layers.RoIAlign(2, name="regions")(features, boxes)
    return keras.Model({"images": images, "boxes": boxes}, [features, pooled])


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic"])
def test_the_exported_file_has_names_and_free_sizes(tmp_path, quantize):
    path = str(tmp_path / "model.tflite")
    tfd.export_litert(two_inputs(), path, quantize=quantize)
    assert [each.name for each in tmp_path.iterdir()] == ["model.tflite"]
    runner = tf.lite.Interpreter(path).get_signature_runner()
    outputs = runner(images=np.ones((2, 9, 7, 3), "float32"), boxes=np.ones((2, 5, 4), "float32"))
    shapes = {name: each.shape for name, each in outputs.items()}
    assert shapes == {"features": (2, 7, 5, 4), "regions": (2, 5, 2, 2, 4)}


def test_an_unknown_quantization_is_refused(tmp_path):
    with pytest.raises(ValueError, match="quantize must be None, 'float16' or 'dynamic', received"):
        tfd.export_litert(two_inputs(), tmp_path / "model.tflite", quantize="int4")
    assert not list(tmp_path.iterdir())


def test_a_file_that_returns_something_else_is_refused(tmp_path, monkeypatch):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="row")(inputs))
    original = litert_export._converted

    def of_other_weights(model, *options):
        content = original(model, *options)
        model.set_weights([each + 1 for each in model.get_weights()])
        return content

    monkeypatch.setattr(litert_export, "_converted", of_other_weights)
    with pytest.raises(ValueError, match=r"LiteRT must .* other values of 'row'"):
        tfd.export_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_ops_that_litert_lacks_are_named(tmp_path):
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, keras.layers.Lambda(tf.linalg.det)(inputs))
    with pytest.raises(ValueError, match=r"received tf\.MatrixDeterminant"):
        tfd.export_litert(model, tmp_path / "model.tflite")


def test_a_model_that_takes_none_of_the_sizes_tried_is_not_compared_in_silence(tmp_path):
    first, second = keras.Input((4,)), keras.Input((None, 4))
    model = keras.Model([first, second], keras.layers.Reshape((7, 4))(second) + first[:, None])
    with pytest.warns(UserWarning, match="has not been compared with the model"):
        tfd.export_litert(model, tmp_path / "model.tflite")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = [np.ones([2, 4], "float32"), np.ones([2, 7, 4], "float32")]
        tfd.export_litert(model, tmp_path / "model.tflite", sample=sample)
        tfd.export_litert(model, tmp_path / "model.tflite", check=False)
