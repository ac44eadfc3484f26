"""Exporting models to LiteRT (TensorFlow Lite), with its built-in operators alone."""

from __future__ import annotations

import re
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_deform.annotations import LiteRTQuantization, Path, Structure
from tf_deform.export import export_saved_model, input_specs, server_of
from tf_deform.files import replaced_file

# How far the file may be from the model, relative to the largest magnitude of an output.
_TOLERANCES = {None: 1e-4, "float16": 2e-2, "dynamic": 1e-1}
_SIZES = [(1, (32, 64, 32)), (3, (64, 32, 32))]  # batch and free sizes; each halves five times


def export_litert(
    model: keras.Model,
    path: Path,
    *,
    quantize: LiteRTQuantization | None = None,
    input_signature: Structure[keras.InputSpec | tf.TensorSpec] | None = None,
) -> None:
    """Writes the model as a LiteRT file, after checking it, and returns nothing.

    The file has one signature, `serving_default`, with the names that `export_saved_model` gives
    inputs and outputs, and needs LiteRT's built-in operators alone. The number of images is free,
    and so is each size that is None in the model. It is run in TensorFlow's interpreter for one and
    three images, at two choices of the free sizes, and compared with the model.

    Args:
        model: Keras model, built.
        path: file to write; one that is there is replaced when the new one is complete.
        quantize: None keeps float32; "float16" stores the weights in half precision; "dynamic"
            stores them in 8 bits, and computes products with those where LiteRT has the kernels.
        input_signature: the model's inputs as `keras.InputSpec` or `tf.TensorSpec`, in the
            structure that the model takes. Needed for subclassed models only.

    Raises:
        ValueError: an unknown `quantize`, a model that has no known inputs and no
            `input_signature`, that holds ops that LiteRT lacks, or whose file returns something
            else than the model, by more than rounding; an empty path.
        FileExistsError: there is something else than a file at `path`.
        FileNotFoundError: there is no folder to put the file in.

    After an error nothing is written, and a file that was there is as it was.

    Example:
        >>> import os, tempfile
        >>> images = keras.Input((None, None, 3), name="images")
        >>> features = tfd.layers.DeformableConv2D(4, 3, name="features")(images)
        >>> path = os.path.join(tempfile.mkdtemp(), "model.tflite")
        >>> tfd.export_litert(keras.Model(images, features), path)
        >>> served = tf.lite.Interpreter(path).get_signature_runner()
        >>> served(images=np.ones([2, 9, 7, 3], "float32"))["features"].shape
        (2, 7, 5, 4)
    """
    if quantize not in _TOLERANCES:
        raise ValueError(f"quantize must be None, 'float16' or 'dynamic', received {quantize!r}")
    inputs = input_specs(model, input_signature)
    with replaced_file(path) as partial:
        content = _converted(model, input_signature, quantize)
        check(content, model, inputs, _TOLERANCES[quantize])
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(content)


def _converted(model, input_signature, quantize):
    with tempfile.TemporaryDirectory() as folder:
        saved = f"{folder}/model"  # as concrete functions, weights would not be stored
        export_saved_model(model, saved, input_signature=input_signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, ["serving_default"])
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # the converter's own, which has no public name
            lacking = sorted(set(re.findall(r"'(tf\.\w+)' op is neither", str(error))))
            if not lacking:
                raise
            raise ValueError(
                "The model must hold ops that LiteRT has built-in operators for, received "
                + ", ".join(lacking)
            ) from error


def check(content, model, inputs, tolerance):
    """Raises ValueError unless the LiteRT file returns what the model returns for samples."""
    with warnings.catch_warnings():  # TensorFlow's own interpreter is going to move
        warnings.simplefilter("ignore", UserWarning)
        runner = tf.lite.Interpreter(model_content=content).get_signature_runner("serving_default")
    serve, specs = server_of(model), tf.nest.flatten(inputs)
    compared = False
    for arrays in samples(specs):
        shapes = ", ".join(str(list(each.shape)) for each in arrays)
        try:
            expected = serve(tf.nest.pack_sequence_as(inputs, [tf.constant(a) for a in arrays]))
        except (ValueError, tf.errors.InvalidArgumentError):
            continue  # inputs whose free sizes hang together in another way
        names = [each.name for each in specs]
        try:
            actual = runner(**dict(zip(names, arrays, strict=True)))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"The LiteRT file must take inputs of shapes {shapes} as the model does: {error}"
            ) from error
        for name, wanted in expected.items():
            _compare(name, actual[name], np.asarray(wanted), tolerance, shapes)
        compared = True
    if not compared:
        warnings.warn(
            "The LiteRT file has not been compared with the model, which takes none of the sizes "
            "tried",
            stacklevel=3,
        )


def samples(specs):
    """Yields lists of arrays for the inputs, of several batches and free sizes.

    An axis is of one size in all inputs. No batch is empty: kernels of LiteRT's that broadcast an
    empty tensor of five axes end the process.
    """
    rng = np.random.default_rng(0)
    for batch, free in _SIZES:
        arrays = []
        for spec in specs:
            sizes = [batch, *(free[min(axis, 2)] for axis in range(len(spec.shape) - 1))]
            known = spec.shape[1:].as_list()
            shape = [batch, *(n or size for n, size in zip(known, sizes[1:], strict=True))]
            values = rng.uniform(0, 1, shape)
            if len(shape) == 3 and shape[-1] == 4:  # perhaps boxes
                values = np.sort(values * 16, axis=-1)
            arrays.append(values.astype(spec.dtype.as_numpy_dtype))
        yield arrays


def _compare(name, actual, expected, tolerance, shapes):
    """Raises ValueError that names the output unless it is as expected, to rounding."""
    text = f"The LiteRT file must return what the model does for inputs of shapes {shapes}"
    if actual.shape != expected.shape:
        raise ValueError(
            f"{text}: expected {name!r} of shape {expected.shape}, received {actual.shape}"
        )
    largest = np.max(np.abs(expected), initial=0.0) or 1.0
    error = np.max(np.abs(actual.astype("float64") - expected), initial=0.0) / largest
    if not error <= tolerance:
        raise ValueError(
            f"{text}: expected {name!r} to {tolerance:g} of its largest magnitude, received a "
            f"difference of {error:.2g}"
        )
