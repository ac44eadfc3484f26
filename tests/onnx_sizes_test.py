"""Exported files compute what every layer computes, at all free sizes and of nothing at all."""

import itertools

import keras
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from export_cases import EXPORTED, inputs_of, separable, sizes_of
from layer_contract_test import arguments_of, make, randomize

onnxruntime = pytest.importorskip("onnxruntime", "1.25")  # before, none runs DeformConv


@pytest.mark.parametrize("case", EXPORTED.values(), ids=EXPORTED.keys())
def test_one_file_takes_all_free_sizes_and_nothing_at_all(case, tmp_path):
    inputs = inputs_of(case.free)
    model = keras.Model(tf.nest.flatten(inputs), make(case)(*inputs))
    randomize(model)
    tfd.export_onnx(model, tmp_path / "model.onnx", check=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    for shapes in itertools.chain(*sizes_of(case).values()):
        arrays = tf.nest.flatten(arguments_of(case, shapes=shapes))
        try:
            expected = model(arrays)
        except tf.errors.InvalidArgumentError:  # Keras's own layers do not take all empty batches
            assert case.layer in ("SpatialTransformer", separable) and not arrays[0].size
            continue
        (actual,) = session.run(None, dict(zip(names, arrays, strict=True)))
        assert relative_error(actual, expected) < TOLERANCE["float32"], shapes
