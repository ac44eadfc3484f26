"""Full int8: products in 8 bits, where samples lie and what they weigh in floats, small errors."""

import collections
import re
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from tf_deform.litert_quantize import Graph, Op, products, quantized

BOXES = np.array([[1, 2, 9, 11], [4.5, 0.25, 15, 13.5]], "float32")


def pictures(seed, count=4, height=20, width=18):
    """Returns smooth noise: neighbouring pixels are alike, as in photographs."""
    noise = np.random.default_rng(seed).normal(size=(count, height // 4, width // 4, 3))
    return tf.image.resize(noise, (height, width), "bicubic").numpy().astype("float32")


def inputs_of(seed, count=4):
    return {"images": pictures(seed, count), "boxes": np.repeat(BOXES[None], count, axis=0)}


def spread(deviation):
    return keras.initializers.RandomNormal(0, deviation, seed=2)


def attended(features):
    """Returns deformable attention of the features' pixels to the features."""
    queries = keras.layers.Reshape((-1, 6))(features)
    places = keras.layers.Dense(2, activation="sigmoid", name="places")(queries)
    attention = tfd.layers.MultiScaleDeformableAttention(2, 3, name="attended")
    return attention(queries, keras.layers.Reshape((-1, 1, 2))(places), [features])


def networks():
    """Returns a model with a layer of each kind after a plain convolution."""
    keras.utils.set_random_seed(1)
    images = keras.Input((20, 18, 3), name="images")
    boxes = keras.Input((None, 4), name="boxes")
    features = keras.layers.Conv2D(6, 3, activation="relu", name="first")(images)
    options = {"offset_kernel_initializer": spread(0.2)}
    deformed = tfd.layers.DeformableConv2D(7, 3, modulated=True, name="deformed", **options)
    grouped = tfd.layers.DeformableConv2D(8, 3, groups=2, name="grouped", **options)
    locate = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(6, name="located")])
    regions = keras.layers.Reshape((-1, 24))(tfd.layers.RoIAlign(2)(features, boxes))
    outputs = {
        "deformed": keras.layers.Conv2D(5, 3, name="last")(deformed(features)),
        "grouped": grouped(features),
        "dcn": tfd.layers.DCNv3(groups=2, name="dcn")(features),
        "attended": attended(features),
        "transformed": tfd.layers.SpatialTransformer(locate, name="moved")(features),
        "scores": keras.layers.Dense(3, name="scores")(regions),
    }
    model = keras.Model({"images": images, "boxes": boxes}, outputs)
    rng = np.random.default_rng(3)
    for weight in model.weights:  # no prediction is zero or the same everywhere
        if "bias" not in weight.path and "kernel" not in weight.path:
            weight.assign(weight + rng.normal(0, 0.2, weight.shape))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a model and its file in 8 bits."""
    model, path = networks(), tmp_path_factory.mktemp("int8") / "model.tflite"
    representative = (inputs_of(seed) for seed in range(8))
    tfd.export_litert(model, path, quantize="int8", representative=representative)
    return model, str(path)


def share(actual, expected):
    """Returns the RMS of the difference over the RMS of what is expected."""
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(np.square(expected))))


@pytest.mark.parametrize(
    "name", ["deformed", "grouped", "dcn", "attended", "transformed", "scores"]
)
def test_the_error_is_small_on_other_images_than_the_representative(name, exported):
    model, path = exported
    others = inputs_of(99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tf.lite.Interpreter(path).get_signature_runner()(**others)[name]
    error = share(found, model(others)[name].numpy())
    assert 1e-4 < error < 0.05  # 8 bits leave a trace


def ops_of(path):
    """Returns [(operator, dtypes of its tensors, name of its output)] of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(
            path,
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
        )
    tensors = {each["index"]: each for each in interpreter.get_tensor_details()}
    return [
        (
            op["op_name"],
            [tensors[each]["dtype"] for each in [*op["inputs"], *op["outputs"]] if each in tensors],
            tensors[op["outputs"][0]]["name"],
        )
        for op in interpreter._get_ops_details()
    ]


PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
IN_8_BITS = {"CONV_2D": 2, "FULLY_CONNECTED": 6, "BATCH_MATMUL": 1}
IN_FLOATS = {  # of each layer
    "deformed": ["CONV_2D"],
    "grouped": ["CONV_2D"],
    "dcn": ["DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"],
    "attended": ["FULLY_CONNECTED"] * 2,
    "moved": ["FULLY_CONNECTED"] * 2,  # with the one that returns theta
    "places": ["FULLY_CONNECTED"],
}


def test_products_are_in_8_bits_but_for_those_that_place_or_weigh_samples(exported):
    bits, floats = collections.Counter(), collections.defaultdict(list)
    for operator, dtypes, output in ops_of(exported[1]):
        if operator not in PRODUCTS:
            continue
        if np.int8 in dtypes:
            assert set(dtypes) <= {np.int8, np.int32}
            bits[operator] += 1
        else:
            assert set(dtypes) == {np.float32}
            floats[next(each for each in IN_FLOATS if f"/{each}_1/" in output)].append(operator)
    assert bits == IN_8_BITS
    assert {name: sorted(each) for name, each in floats.items()} == IN_FLOATS


def test_nothing_but_products_is_in_8_bits(exported):
    others = {name for name, dtypes, _ in ops_of(exported[1]) if np.int8 in dtypes}
    assert others - set(PRODUCTS) == {"QUANTIZE", "DEQUANTIZE"}


# Which products may be in 8 bits: ops as (name, inputs, outputs)


def chosen(*ops, bodies=()):
    graphs = [
        Graph([Op(*each, None) if len(each) == 3 else Op(*each) for each in graph], [], inputs)
        for graph, inputs in [(ops, [0]), *bodies]
    ]
    return [op.outputs[0] for op in products(graphs)]


def test_what_rows_and_weights_are_computed_of_is_left_out():
    assert chosen(
        ("CONV_2D", [0], [1]),
        ("CONV_2D", [1], [2]),  # rows
        ("CAST", [2], [3]),
        ("GATHER", [1, 3], [4]),
        ("FULLY_CONNECTED", [1], [5]),  # weights
        ("SOFTMAX", [5], [6]),
        ("RESHAPE", [4], [7]),
        ("MUL", [6, 7], [8]),
        ("CONV_2D", [8], [9]),
    ) == [1, 9]


def test_what_places_one_sample_and_is_sampled_by_another_is_left_out():
    assert chosen(
        ("CONV_2D", [0], [1]),
        ("CONV_2D", [0], [2]),
        ("GATHER_ND", [1, 2], [3]),
        ("GATHER_ND", [3, 0], [4]),  # samples of samples
        ("MUL", [4, 4], [5]),
    ) == [1]


def test_what_places_samples_in_a_loop_is_left_out():
    loop = ("WHILE", [1, 2], [3, 4], 1)
    body = [("GATHER", [10, 11], [12]), ("CONV_2D", [12], [13])], [10, 11]
    ops = ("CONV_2D", [0], [1]), ("CONV_2D", [0], [2]), loop, ("CONV_2D", [3], [5])
    assert chosen(*ops, bodies=[body]) == [1, 5]


def test_a_model_without_such_products_is_told(tmp_path):
    images, grid = keras.Input((5, 4, 3)), keras.Input((6, 2, 2))
    model = keras.Model([images, grid], tfd.layers.GridSample()(images, grid))
    tfd.export_litert(model, tmp_path / "model.tflite", check=False)
    content = (tmp_path / "model.tflite").read_bytes()
    with pytest.warns(UserWarning, match="Nothing is in 8 bits"):
        assert quantized(content, []) == content


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "needs representative, an iterable of inputs .* received None"),
        ({"representative": 3}, TypeError, "representative must be an iterable .* received 3"),
        ({"representative": []}, ValueError, "at least one batch of inputs, received none"),
        (
            {"representative": pictures(0)},
            ValueError,
            r"batch 0 of representative .* 'images' of shape \(None, .* received \(20, 18, 3\)",
        ),
        (
            {"representative": [[pictures(0)] * 2]},
            ValueError,
            "batch 0 of representative must have 1 inputs, received 2",
        ),
        (
            {"representative": [pictures(0)], "quantize": "dynamic"},
            ValueError,
            re.escape(
                "representative is for quantize=\"int8\", received one for quantize='dynamic'"
            ),
        ),
        (
            {"representative": [pictures(0) + np.nan]},
            ValueError,
            "finite values, received nan to nan in 'serving_default_images:0'",
        ),
        (
            {"representative": [pictures(0)[:0]]},
            ValueError,
            "finite values, received inf to -inf in 'serving_default_images:0'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message, tmp_path):
    images = keras.Input((None, None, 3), name="images")
    model = keras.Model(images, keras.layers.Conv2D(2, 3)(images))
    with pytest.raises(error, match=message):
        tfd.export_litert(model, tmp_path / "model.tflite", **{"quantize": "int8", **options})
    assert not list(tmp_path.iterdir())


def test_without_the_quantiser_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer.qtyping", None)
    images = keras.Input((None, None, 3), name="images")
    model = keras.Model(images, keras.layers.Conv2D(2, 3)(images))
    with pytest.raises(ImportError, match=r'ai-edge-quantizer: pip install "tf_deform\[litert\]"'):
        tfd.export_litert(model, tmp_path / "model", quantize="int8", representative=[pictures(0)])
