"""The columns of the table of support: what writes a file, what runs it, and how near is near."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import keras
import measures
import numpy as np
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

ROOT = pathlib.Path(__file__).parents[2]
SERVE = ROOT / "build" / "serving" / "serve"


class Column(NamedTuple):
    """What one column holds: a measure of the layer itself, or a format and an engine to run it."""

    title: str  # at the head of the table
    what: str  # a sentence
    tolerance: float
    measure: Callable | None = None
    format: str = ""
    engine: str = ""
    error: Callable = relative_error
    steps: tuple = ()  # engines that run before, over the same files


def rms_error(actual, expected):
    """Returns the RMS of the difference over that of what is expected."""
    difference = np.asarray(actual, np.float64) - expected
    scale = np.sqrt(np.mean(np.square(np.asarray(expected, np.float64)))) or 1.0
    return np.sqrt(np.mean(np.square(difference))) / scale if difference.size else 0.0


def export_litert(quantize, **options):
    """Returns the writer of a LiteRT file."""

    def write(model, path, samples):
        if quantize == "int8":
            options["representative"] = samples
        tfd.export_litert(model, path, quantize=quantize, **options)

    return write


def export_keras(format_of_keras):
    """Returns the writer that is Keras's own, which takes models that have been called alone."""

    def write(model, path, samples):
        model(samples[0])
        model.export(path, format=format_of_keras, verbose=False)

    return write


def write_archive(model, path, _):
    archive = keras.export.ExportArchive()
    archive.track(model)
    specs = [tf.TensorSpec(each.shape, each.dtype, each.name) for each in model.inputs]
    archive.add_endpoint("serve", lambda *inputs: model(list(inputs)), specs)
    archive.write_out(path, verbose=False)


def write_by_converter(model, path, _):
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    pathlib.Path(path).write_bytes(content)


# What writes a model, given samples of its inputs, and the name of the file or folder.
FORMATS = {
    "saved_model": ("model", lambda model, path, _: tfd.export_saved_model(model, path)),
    "litert": ("model.tflite", export_litert(None)),
    "litert_float16": ("model.tflite", export_litert("float16")),
    "litert_dynamic": ("model.tflite", export_litert("dynamic")),
    "litert_int8": ("model.tflite", export_litert("int8")),
    "onnx": ("model.onnx", lambda model, path, _: tfd.export_onnx(model, path, check=False)),
    "keras_saved_model": ("model", export_keras("tf_saved_model")),
    "keras_onnx": ("model.onnx", export_keras("onnx")),
    "keras_openvino": ("model.xml", export_keras("openvino")),
    "keras_litert": ("model.tflite", export_keras("litert")),
    "converter": ("model.tflite", write_by_converter),
    "archive": ("model", write_archive),
}

NEAR = 10 * TOLERANCE["float32"]  # of results that an engine computes in another order


def litert_columns(engine, prefix, interpreter):
    """Returns the columns of LiteRT's files in one of the interpreters."""
    kinds = {
        "": ("", "weights in float32", NEAR, relative_error),
        "_float16": ("float16", "weights in float16", 2e-2, relative_error),
        "_dynamic": ("dynamic", "large weights in 8 bits", 1e-1, relative_error),
        "_int8": ("int8", "products in 8 bits; the error is an RMS over an RMS", 5e-2, rms_error),
    }
    return {
        f"{engine}{kind}": Column(
            f"{prefix} {title}".strip(),
            f"`tfd.export_litert`, {text}, in {interpreter}",
            tolerance,
            format=f"litert{kind}",
            engine=engine,
            error=error,
        )
        for kind, (title, text, tolerance, error) in kinds.items()
    }


def of_file(title, what, written, engine, steps=()):
    return Column(title, what, NEAR, format=written, engine=engine, steps=steps)


COLUMNS = {
    "eager": Column(
        "eager",
        "called eagerly in float32, beside the same layer in float64",
        NEAR,
        measures.in_float64,
    ),
    "jit": Column("jit", "`tf.function(jit_compile=True)`", NEAR, measures.under_xla),
    "mixed_float16": Column(
        "mixed float16",
        "`mixed_float16`, beside float32 of the same rounded features",
        3 * TOLERANCE["float16"],
        measures.under_policy("float16"),
    ),
    "mixed_bfloat16": Column(
        "mixed bfloat16",
        "`mixed_bfloat16`, likewise",
        3 * TOLERANCE["bfloat16"],
        measures.under_policy("bfloat16"),
    ),
    "second": Column(
        "∂²",
        "second derivatives along random directions, in a `tf.function` in float64, beside central "
        "differences of the first",
        TOLERANCE["numeric"],
        measures.second_derivative,
    ),
    "keras": Column(
        ".keras", "`model.save` and `keras.models.load_model`", NEAR, measures.saved_and_loaded
    ),
    "saved_model": of_file(
        "SavedModel Python",
        "`tfd.export_saved_model`, in a process that cannot import `tf_deform`",
        "saved_model",
        "tensorflow",
    ),
    "serve": of_file(
        "SavedModel C++", "the same, in the program of `make serving`", "saved_model", "serve"
    ),
    **litert_columns("litert", "LiteRT", "TensorFlow's interpreter"),
    **litert_columns("ai_edge", "ai-edge-litert", "`ai-edge-litert`'s interpreter"),
    "onnx": of_file("ONNX", "`tfd.export_onnx`, in onnxruntime", "onnx", "onnxruntime"),
    "openvino": of_file(
        "OpenVINO SavedModel",
        "`tfd.export_saved_model`, read by OpenVINO",
        "saved_model",
        "openvino",
    ),
    "openvino_onnx": of_file(
        "OpenVINO ONNX", "`tfd.export_onnx`, read by OpenVINO", "onnx", "openvino"
    ),
    "tensorflowjs": of_file(
        "TensorFlow.js",
        "`tfd.export_saved_model`, converted with `strip_debug_ops=True`, in node on the backend "
        "of pure JavaScript",
        "saved_model",
        "node",
        ("converter",),
    ),
    "keras_saved_model": of_file(
        "Keras tf_saved_model",
        '`model.export(format="tf_saved_model")`, in TensorFlow',
        "keras_saved_model",
        "tensorflow",
    ),
    "archive": of_file(
        "Keras Archive", "`keras.export.ExportArchive`, in TensorFlow", "archive", "tensorflow"
    ),
    "keras_litert": of_file(
        "Keras litert",
        '`model.export(format="litert")`, in TensorFlow\'s interpreter',
        "keras_litert",
        "litert",
    ),
    "converter": of_file(
        "TFLite Converter",
        "`tf.lite.TFLiteConverter.from_keras_model`, in TensorFlow's interpreter",
        "converter",
        "litert",
    ),
    "keras_onnx": of_file(
        "Keras onnx", '`model.export(format="onnx")`, in onnxruntime', "keras_onnx", "onnxruntime"
    ),
    "keras_openvino": of_file(
        "Keras openvino",
        '`model.export(format="openvino")`, in OpenVINO, the first output',
        "keras_openvino",
        "openvino",
    ),
}


def python_of_converter():
    found = shutil.which("tensorflowjs_converter")
    return str(pathlib.Path(found).with_name("python")) if found else None


def package_of_tensorflowjs():
    folders = os.environ.get("NODE_PATH", "").split(os.pathsep)
    files = [pathlib.Path(each, "@tensorflow", "tfjs", "package.json") for each in folders]
    return next((each for each in files if each.exists()), None)


# The engines that `make support` does without, and what is missing where they are not there.
MISSING = {
    "serve": lambda: not SERVE.exists() and "the C++ program: make serving",
    "ai_edge": lambda: (
        not importlib.util.find_spec("ai_edge_litert") and "ai-edge-litert: the extra engines"
    ),
    "openvino": lambda: not importlib.util.find_spec("openvino") and "OpenVINO: the extra engines",
    "converter": lambda: not python_of_converter() and "tensorflowjs_converter on PATH",
    "node": lambda: not package_of_tensorflowjs() and "@tensorflow/tfjs in NODE_PATH",
}


def missing(column):
    """Returns what the column needs and is not there."""
    engines = [column.engine, *column.steps]
    return [text for each in engines if each in MISSING and (text := MISSING[each]())]


def needs_engines(column):
    return column.engine in MISSING


def python_for(engine):
    """Returns the Python that an engine runs in."""
    return python_of_converter() if engine == "converter" else sys.executable


def versions_of(column):
    """Returns what the column was measured with, as text."""
    packages = ["TensorFlow", "Keras"]
    packages += ["tf2onnx"] if "onnx" in column.format else []
    packages += {"onnxruntime": ["onnxruntime"], "openvino": ["openvino"]}.get(column.engine, [])
    packages += ["ai-edge-litert"] if column.engine == "ai_edge" else []
    texts = [f"{each} {importlib.metadata.version(each)}" for each in packages]
    if column.engine == "node":
        found = json.loads(package_of_tensorflowjs().read_text())["version"]
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        texts += [f"@tensorflow/tfjs {found}", f"node {node.stdout.strip().removeprefix('v')}"]
    return ", ".join([*texts, f"Python {platform.python_version()}"])
