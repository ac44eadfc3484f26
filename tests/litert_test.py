"""Every layer in LiteRT's interpreter: at known sizes, at free ones, and where there is nothing."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from export_cases import EXPORTED, sizes_of
from layer_contract_test import arguments_of, built, map_shapes
from tf_deform import compiled, litert_export


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
    """Returns what the interpreter makes of the arguments, of what is empty its shape.

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
    (output,) = interpreter.get_output_details()
    if empty:  # the interpreter of TensorFlow 2.16 hands out nothing that is empty
        return output["shape"]
    return interpreter.get_tensor(output["index"])


def assert_runs_empty(content, layer, arguments):
    """Asserts the shape of what comes out: Keras's pooling has no maximum of nothing to compare."""
    shapes = map_shapes(lambda each: each, tf.nest.map_structure(lambda a: a.shape, arguments))
    expected = layer.compute_output_shape(*shapes)
    assert tuple(run(content, arguments, empty=True)) == tuple(expected)


@pytest.mark.parametrize("case", EXPORTED.values(), ids=EXPORTED.keys())
def test_litert_agrees_with_keras_at_known_and_free_sizes_and_where_there_is_nothing(case):
    layer, sizes = built(case), sizes_of(case)
    (arguments,) = [arguments_of(case, shapes=shapes) for shapes in sizes["fixed"]]
    actual = run(converted(layer, case.shapes), arguments)
    assert relative_error(actual, layer(*arguments)) < TOLERANCE["float32"]
    content = converted(layer, case.free)
    for shapes in sizes["free"]:
        arguments = arguments_of(case, shapes=shapes)
        expected = layer(*arguments)
        assert relative_error(run(content, arguments), expected) < TOLERANCE["float32"], shapes
    for shapes in sizes["empty"]:
        assert_runs_empty(content, layer, arguments_of(case, shapes=shapes))


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
    with pytest.raises(
        ValueError, match="quantize must be None or one of 'float16', 'dynamic', 'int8', "
    ):
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
