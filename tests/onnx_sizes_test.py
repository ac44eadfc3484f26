"""Exported files compute what every layer computes at all free sizes, and of nothing at all."""

import functools

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from layer_contract_test import ALL, BOXES, CASES, FLOW, arguments_of, larger_shapes, map_shapes
from layer_contract_test import make, model_of, randomize

onnxruntime = pytest.importorskip("onnxruntime", "1.25")  # none of Python 3.10 runs DeformConv

OFFSETS = (2, 7, 6, 12)  # as large as the convolution's output


def model_with_random_weights(case, shapes):
    inputs = map_shapes(lambda shape: keras.Input(batch_shape=shape), shapes)
    model = keras.Model(tf.nest.flatten(inputs), make(case)(*inputs))
    randomize(model)
    return model


def session_of(model, folder):
    path = folder / "model.onnx"
    tfd.export_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options)


def with_batch(shapes, batch):
    return map_shapes(lambda shape: (batch, *shape[1:]), shapes)


def with_count(case, count):
    """Returns the case's shapes with another number of boxes or queries."""
    pairs = zip(case.shapes, case.free, strict=True)
    counts = [
        shape
        if not isinstance(shape, tuple) or sum(size is None for size in free) != 2
        else (shape[0], count, *shape[2:])
        for shape, free in pairs
    ]
    return counts


def sizes_of(case):
    """Yields shapes of the layer's inputs: as in the table, larger, and with nothing in them."""
    yield case.shapes
    yield with_batch(larger_shapes(case), 3)
    yield with_batch(case.shapes, 1)
    yield with_batch(case.shapes, 0)
    if with_count(case, 0) != list(case.shapes) and "1D" not in case.layer:
        yield with_count(case, 0)
        yield with_count(case, 1)
        yield with_batch(with_count(case, 0), 0)


@ALL
def test_every_free_size_and_empties(case, tmp_path):
    model = model_with_random_weights(case, case.free)
    session = session_of(model, tmp_path)
    names = [each.name for each in session.get_inputs()]
    wrong = []
    for shapes in sizes_of(case):
        arrays = tf.nest.flatten(arguments_of(case, shapes=tuple(shapes)))
        try:
            expected = model(arrays if len(arrays) > 1 else arrays[0])
        except tf.errors.OpError as e:
            print("REFUSED", shapes, str(e)[:80])
            continue
        try:
            (actual,) = session.run(None, dict(zip(names, arrays, strict=True)))
            if actual.shape != tuple(expected.shape):
                wrong.append((shapes, actual.shape, expected.shape))
            elif relative_error(actual, expected) >= TOLERANCE["float32"]:
                wrong.append((shapes, relative_error(actual, expected)))
        except Exception as error:
            wrong.append((shapes, str(error)[:300]))
    for each in wrong:
        print("WRONG", *each)
    assert not wrong
