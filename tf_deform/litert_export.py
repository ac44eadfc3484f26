"""Exporting models to LiteRT (TensorFlow Lite), with its built-in operators alone."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable
from typing import get_args

import keras
import tensorflow as tf

from tf_deform import litert_quantize
from tf_deform.annotations import LiteRTQuantization, Path, Structure, Tensor
from tf_deform.export import export_saved_model, input_specs, named_values
from tf_deform.export_check import check_export
from tf_deform.files import replaced_file

# How far the file may be from the model, relative to the largest magnitude of an output.
_TOLERANCES = {None: 0, "float16": 0.02, "dynamic": 0.1, "int8": 0.25}


def export_litert(
    model: keras.Model,
    path: Path,
    *,
    quantize: LiteRTQuantization | None = None,
    representative: Iterable[Structure[Tensor]] | None = None,
    input_signature: Structure[keras.InputSpec | tf.TensorSpec] | None = None,
    check: bool = True,
    sample: Structure[Tensor] | None = None,
) -> None:
    """Writes the model as a LiteRT file, and compares the file with the model.

    The file has one signature, `serving_default`, with the names that `export_saved_model` gives
    inputs and outputs. It uses only LiteRT's built-in operators. The batch size is free, and so is
    each size that is None in the model.

    Before the file appears under its name, it is run in TensorFlow's interpreter with one and three
    images, and with several values of each free size, and compared with the model, as in
    `export_onnx`. It may differ by 0.001 of an output's largest magnitude, with "float16" by 0.02,
    with "dynamic" by 0.1, with "int8" by 0.25. With "int8" the inputs are the first batch of
    `representative`. Empty inputs and images of a few pixels are not tried, because they can end
    LiteRT's process.

    With "int8", one- and two-dimensional convolutions, matrix products and dense layers take and
    return 8 bits. All else stays in float32: inputs, outputs, three-dimensional convolutions,
    loops, and everything that decides where and how much to sample, such as predictors of offsets
    and masks, attention weights, and the localization network of a spatial transformer. "int8"
    needs the package ai-edge-quantizer: `pip install "tf_deform[litert]"`.

    Args:
        model: a built Keras model.
        path: file to write. An existing file is replaced when the new one is complete.
        quantize: None keeps float32. "float16" stores the weights in half precision. "dynamic"
            stores them in 8 bits, and computes products in 8 bits where LiteRT has the kernels.
            "int8" computes all products in 8 bits, in ranges found beforehand.
        representative: required for "int8": an iterable of example inputs of the model, about a
            hundred images or more in batches of any size. The 8 bits cover the ranges found there.
        input_signature: the model's inputs as `keras.InputSpec` or `tf.TensorSpec`, in the
            structure that the model takes. Needed for subclassed models only.
        check: whether to run the file and to compare it with the model.
        sample: example inputs for the comparison, instead of random ones. It uses all of them, and
            the first image only.

    Raises:
        ImportError: with "int8", ai-edge-quantizer is not installed.
        TypeError: `representative` is not iterable.
        ValueError: `quantize` is unknown; the model has no known inputs and there is no
            `input_signature`; it holds ops that LiteRT lacks; the file computes something else than
            the model, or LiteRT cannot run it; `sample` or `representative` does not fit the
            inputs; with "int8", `representative` is missing or empty, or the model returns NaN or
            infinite values for it; `representative` is given without "int8"; the path is empty.
        FileExistsError: at `path` there is something that is not a file.
        FileNotFoundError: the folder for the file does not exist.

    After an error nothing is written, and an existing file does not change.

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
    inputs = input_specs(model, input_signature)
    batches = _checked_batches(quantize, representative, inputs)
    with replaced_file(path) as partial:
        content = _converted(model, input_signature, quantize)
        if batches:
            content = litert_quantize.quantized(content, batches)
            if sample is None:
                sample = tf.nest.pack_sequence_as(inputs, list(batches[0].values()))
        if check:
            check_export(
                model,
                inputs,
                _runner(content),
                "LiteRT",
                sample,
                tolerance=_TOLERANCES[quantize],
                survives=False,
            )
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(content)


def _checked_batches(quantize, representative, inputs):
    """Returns what `representative` yields as a list of {name: array}, an empty one without it."""
    if quantize not in _TOLERANCES:
        known = ", ".join(map(repr, get_args(LiteRTQuantization)))
        raise ValueError(f"quantize must be None or one of {known}, received {quantize!r}")
    if quantize != "int8":
        if representative is not None:
            raise ValueError(
                f'representative is for quantize="int8", received one for quantize={quantize!r}'
            )
        return []
    wanted = "an iterable of inputs such as the model takes, whose ranges the 8 bits cover"
    if representative is None:
        raise ValueError(f'quantize="int8" needs representative, {wanted}: received None')
    if not isinstance(representative, Iterable):
        raise TypeError(f"representative must be {wanted}, received {representative!r}")
    litert_quantize.packages()
    batches = []
    for number, batch in enumerate(representative):
        named = named_values(f"batch {number} of representative", batch, inputs)
        batches.append({name: each.numpy() for name, each in named.items()})
    if not batches:
        raise ValueError("representative must have at least one batch of inputs, received none")
    return batches


def _converted(model, input_signature, quantize):
    with tempfile.TemporaryDirectory() as folder:
        saved = f"{folder}/model"  # as concrete functions, weights would not be stored
        export_saved_model(model, saved, input_signature=input_signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, ["serving_default"])
        if quantize in ("float16", "dynamic"):
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


def _runner(content):
    """Returns the function from {name: array} to {name: array} that runs the file."""
    with warnings.catch_warnings():  # TensorFlow's own interpreter is going to move
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(model_content=content)
    run = interpreter.get_signature_runner("serving_default")
    return lambda feeds: run(**feeds)
