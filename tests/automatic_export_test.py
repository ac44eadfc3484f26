"""Under "auto" whatever is exported is portable, with the compiled library in use otherwise."""

import importlib.util
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf2onnx

import tf_deform as tfd
from conftest import KERAS, LITERT_OF_KERAS, TOLERANCE, relative_error
from tf_deform import compiled


@pytest.fixture(autouse=True)
def _automatic():
    with tfd.use_implementation("auto"):
        yield


def model_of_both():
    """Returns a model of a deformable convolution and of RoIAlign, called by the library's ops."""
    images, boxes = keras.Input((9, 7, 3), name="images"), keras.Input((4, 4), name="boxes")
    features = tfd.layers.DeformableConv2D(4, 3, padding="same")(images)
    model = keras.Model([images, boxes], tfd.layers.RoIAlign(2)(features, boxes))
    model.predict(arguments(), verbose=0)
    return model


def arguments():
    rng = np.random.default_rng(0)
    boxes = rng.uniform([0, 0, 4, 4], [3, 3, 7, 9], (2, 4, 4))
    return [rng.normal(size=(2, 9, 7, 3)).astype("float32"), boxes.astype("float32")]


def test_the_library_runs_in_calls_in_tf_data_and_in_concrete_functions():
    seen = []

    def note(x):
        seen.append(compiled.chosen())
        return x

    tf.function(note)(tf.ones([1]))
    tf.data.Dataset.range(3).map(note)
    tf.function(note).get_concrete_function(tf.TensorSpec([1]))
    assert seen == [True, True, True]


def run_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, arguments(), strict=True)))[0]


def run_openvino(path):
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(path, "CPU", options)
    return model(arguments())[model.output(0)]


def run_litert(path):
    runner = tf.lite.Interpreter(path).get_signature_runner()
    images, boxes = arguments()
    by_shape = {
        name: images if len(detail["shape"]) == 4 else boxes
        for name, detail in runner.get_input_details().items()
    }
    (result,) = runner(**by_shape).values()
    return result


def run_saved_model(path):
    served = tf.saved_model.load(path)  # which holds the variables
    return served.serve(arguments())


FORMATS = {
    "onnx": ("model.onnx", run_onnx),
    "openvino": ("model.xml", run_openvino),
    "litert": ("model.tflite", run_litert),
    "tf_saved_model": ("model", run_saved_model),
}


# OpenVINO is no part of what the tests install, and older Keras knows SavedModels alone.
HERE = [
    name
    for name in FORMATS
    if (name != "openvino" or importlib.util.find_spec("openvino"))
    and (name == "tf_saved_model" or KERAS >= (3, 13))
]


@pytest.mark.parametrize("file_format", HERE)
def test_what_keras_exports_runs_without_the_library(file_format, tmp_path):
    name, run = FORMATS[file_format]
    model = model_of_both()
    path = str(tmp_path / name)
    model.export(path, format=file_format, verbose=False)
    assert relative_error(run(path), model(arguments())) < TOLERANCE["float32"]


def test_the_converters_of_tensorflow_and_tf2onnx_need_no_switch():
    model = model_of_both()
    if LITERT_OF_KERAS:
        assert tf.lite.TFLiteConverter.from_keras_model(model).convert()
    signature = [*map(tf.TensorSpec, [(2, 9, 7, 3), (2, 4, 4)])]
    traced = tf.function(lambda *each: model(list(each)))
    converted, _ = tf2onnx.convert.from_function(traced, signature, opset=18)
    assert not [node for node in converted.graph.node if "TfDeform" in node.op_type]


LOADED = """
import sys
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
inputs = [tf.constant(each) for each in np.load(sys.argv[2]).values()]
with tf.GradientTape() as outer:
    outer.watch(inputs)
    with tf.GradientTape() as inner:
        inner.watch(inputs)
        total = tf.reduce_sum(tf.square(served.serve(inputs)))
    slope = tf.reduce_sum(tf.square(inner.gradient(total, inputs[0])))
print(float(tf.norm(outer.gradient(slope, inputs[0]))))
"""


def test_a_loaded_model_warns_of_no_gradients_and_has_second_derivatives(tmp_path):
    model = model_of_both()
    model.export(tmp_path / "model", verbose=False)
    np.savez(tmp_path / "inputs.npz", *arguments())
    command = [sys.executable, "-c", LOADED, str(tmp_path / "model"), str(tmp_path / "inputs.npz")]
    loaded = subprocess.run(command, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    assert "custom gradients" not in loaded.stderr
    inputs = [tf.constant(each) for each in arguments()]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            total = tf.reduce_sum(tf.square(model(inputs)))
        slope = tf.reduce_sum(tf.square(inner.gradient(total, inputs[0])))
    expected = float(tf.norm(outer.gradient(slope, inputs[0])))
    assert float(loaded.stdout) == pytest.approx(expected, rel=1e-4)
