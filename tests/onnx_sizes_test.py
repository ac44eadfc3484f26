"""Exported files compute what every layer computes, at all free sizes and of nothing at all."""

import keras
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from layer_contract_test import ALL, arguments_of, larger_shapes, make, map_shapes, randomize

onnxruntime = pytest.importorskip("onnxruntime", "1.25")  # before, none runs DeformConv

COUNTED = ("RoI", "Attention")  # layers of as many boxes or queries as they are given


def with_batch(shapes, batch):
    return map_shapes(lambda shape: (batch, *shape[1:]), shapes)


def with_count(case, count):
    """Returns the case's shapes with as many boxes or queries."""
    return [
        (shape[0], count, *shape[2:])
        if isinstance(shape, tuple) and free.count(None) == 2
        else shape
        for shape, free in zip(case.shapes, case.free, strict=True)
    ]


def sizes_of(case):
    """Yields shapes of the layer's inputs: as in the table, larger, and with nothing in them."""
    yield case.shapes
    yield with_batch(larger_shapes(case), 3)
    for batch in (1, 0):
        yield with_batch(case.shapes, batch)
    if any(each in case.layer for each in COUNTED):
        for count in (1, 0):
            yield with_count(case, count)
        yield with_batch(with_count(case, 0), 0)


@ALL
def test_one_file_takes_all_free_sizes_and_nothing_at_all(case, tmp_path):
    inputs = map_shapes(lambda shape: keras.Input(batch_shape=shape), case.free)
    model = keras.Model(tf.nest.flatten(inputs), make(case)(*inputs))
    randomize(model)
    tfd.export_onnx(model, tmp_path / "model.onnx", check=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    for shapes in sizes_of(case):
        arrays = tf.nest.flatten(arguments_of(case, shapes=shapes))
        try:
            expected = model(arrays if len(arrays) > 1 else arrays[0])
        except tf.errors.InvalidArgumentError:  # Keras's pooling takes no images but some
            assert case.layer == "SpatialTransformer" and not arrays[0].size
            continue
        (actual,) = session.run(None, dict(zip(names, arrays, strict=True)))
        assert relative_error(actual, expected) < TOLERANCE["float32"], shapes
