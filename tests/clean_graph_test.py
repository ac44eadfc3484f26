"""Graphs hold no NaN of their own: engines that models are exported to compare them otherwise."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import tf_deform as tfd
from layer_contract_test import ALL, arguments_of, built


@pytest.fixture(autouse=True)
def _portable():
    with tfd.use_implementation("portable"):
        yield


def every_value(function, *arrays):
    """Returns {name: value} of all floating tensors in the function's graph, constants too."""
    signature = [tf.TensorSpec(each.shape, each.dtype) for each in arrays]
    concrete = tf.function(function, autograph=False).get_concrete_function(*signature)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph = frozen.graph
    tensors = [each for op in graph.get_operations() for each in op.outputs]
    tensors = [each for each in tensors if each.dtype.is_floating]
    values = frozen.prune(frozen.inputs, tensors)(*map(tf.constant, arrays))
    return dict(zip([each.name for each in tensors], values, strict=True))


def with_degenerate_boxes(case, arguments):
    """Returns the arguments, their boxes an empty one, one at the first edge and one far away."""
    if "bounding_box_format" not in case.options():
        return arguments
    features, boxes, *others = arguments
    boxes = boxes.copy()
    boxes[0] = [[0, 0, 0, 0], [-0.5, -0.5, -0.5, -0.5], [900, 900, 1, 1]]
    return [features, boxes, *others]


@ALL
def test_no_op_of_a_layer_makes_a_nan_of_clean_inputs(case):
    layer = built(case)
    arguments = with_degenerate_boxes(case, arguments_of(case))

    def call(*flat):
        return layer(*tf.nest.pack_sequence_as(arguments, flat))

    values = every_value(call, *tf.nest.flatten(arguments))
    assert [name for name, value in values.items() if np.isnan(value).any()] == []


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_a_position_at_infinity_makes_no_nan_either_and_samples_zero(padding_mode):
    images = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype("float32")
    at_infinity = np.array([[[1, 0, 0], [0, 1, 0], [1, 0, 0]]], "float32")  # where x = 0
    layer = tfd.layers.SpatialTransformer(
        None, "projective", (2, 3), padding_mode=padding_mode, interpolation="bilinear"
    )
    values = every_value(lambda *each: layer(*each), images, at_infinity)
    assert [name for name, value in values.items() if np.isnan(value).any()] == []
    sampled = layer(images, at_infinity).numpy()
    assert not sampled[:, :, 1].any()
    assert sampled[:, :, 0].any()
