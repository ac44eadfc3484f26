"""Weights of torchvision and mmcv in our layers: names, shapes, numbers, and what does not fit."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

load_torchvision, load_mmcv = tfd.convert.load_torchvision, tfd.convert.load_mmcv
load_dcn = tfd.convert.load_dcn


def golden(module):
    """Returns weights, input and output of a module of goldens/torchvision_modules.npz."""
    path = pathlib.Path(__file__).parent / "goldens" / "torchvision_modules.npz"
    with np.load(path) as stored:
        arrays = {
            name.removeprefix(f"{module}/"): stored[name]
            for name in stored.files
            if name.startswith(f"{module}/")
        }
    return arrays, *(channels_last(arrays.pop(name)) for name in ("input", "output"))


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def built(layer, *shape):
    layer.build((None, *shape))
    return layer


def double(layer, *arguments, **options):
    return layer(*arguments, dtype="float64", **options)


# Numbers


def test_deform_conv2d_with_its_predictors_returns_what_torchvision_does():
    weights, inputs, expected = golden("deform_conv")
    layer = double(
        tfd.layers.DeformableConv2D,
        6,
        (3, 2),
        strides=(2, 1),
        padding=[(1, 1), (2, 2)],
        groups=2,
        deformable_groups=2,
        modulated=True,
        mask_scale=1,
    )
    built(layer, 5, 6, 4)
    load_torchvision(layer, weights, "conv.", offset_prefix="offset.", mask_prefix="mask.")
    assert relative_error(layer(inputs), expected) < TOLERANCE["float64"]
    # The same from one convolution that predicts both.
    joined = {name: array for name, array in weights.items() if name.startswith("conv.")}
    for each in ("weight", "bias"):
        joined[f"p.{each}"] = np.concatenate([weights[f"offset.{each}"], weights[f"mask.{each}"]])
    other = built(type(layer).from_config(layer.get_config()), 5, 6, 4)
    load_torchvision(other, joined, "conv.", offset_prefix="p.")
    for actual, wanted in zip(other.weights, layer.weights, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("multiplier", (1.0, 0.1))
@pytest.mark.parametrize("module", ("DCN", "DCNv2"))
def test_packs_of_mmcv_return_what_their_steps_do_with_torchvisions_operator(module, multiplier):
    weights, inputs, expected = golden(module)
    modulated = module == "DCNv2"
    layer = double(
        tfd.layers.DeformableConv2D,
        6,
        3,
        padding=2,
        dilation_rate=(2, 1),
        groups=2,
        deformable_groups=2,
        use_bias=modulated,
        modulated=modulated,
        mask_scale=1,
        offset_lr_multiplier=multiplier,
    )
    load_mmcv(built(layer, 5, 6, 4), weights)
    assert relative_error(layer(inputs), expected) < TOLERANCE["float64"]


def test_the_box_head_returns_what_torchvision_does():
    weights, pooled, expected = golden("box")
    fc6, fc7, scores, boxes = (double(keras.layers.Dense, units) for units in (5, 5, 3, 12))
    for layer, inputs in ((fc6, 4 * 2 * 3), (fc7, 5), (scores, 5), (boxes, 5)):
        built(layer, inputs)
    load_torchvision(fc6, weights, "box_head.fc6.", pooled_size=(2, 3))
    load_torchvision(fc7, weights, "box_head.fc7.")
    load_torchvision(scores, weights, "box_predictor.cls_score.")
    load_torchvision(boxes, weights, "box_predictor.bbox_pred.")
    hidden = np.maximum(fc7(np.maximum(fc6(pooled.reshape(2, -1)), 0)), 0)
    actual = np.concatenate([scores(hidden), boxes(hidden)], axis=1)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_the_mask_head_returns_what_torchvision_does():
    weights, pooled, expected = golden("mask")
    relu = {"activation": "relu"}
    layers = {
        "mask_head.0.0.": double(keras.layers.Conv2D, 5, 3, padding="same", **relu),
        "mask_predictor.conv5_mask.": double(keras.layers.Conv2DTranspose, 6, 2, strides=2, **relu),
        "mask_predictor.mask_fcn_logits.": double(keras.layers.Conv2D, 3, 1),
    }
    actual = pooled
    for prefix, layer in layers.items():
        load_torchvision(built(layer, *actual.shape[1:]), weights, prefix)
        actual = layer(actual)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_kernels_of_every_rank_are_reversed_in_their_channels(rank, rng):
    size = (4, 3, 2)[:rank]
    weights = {"weight": rng.normal(size=(6, 5, *size)), "bias": rng.normal(size=6)}
    for layer in (
        getattr(tfd.layers, f"DeformableConv{rank}D")(6, size),
        getattr(keras.layers, f"Conv{rank}D")(6, size),
    ):
        offset = [(None, *[None] * (rank + 1))] if "Deformable" in type(layer).__name__ else []
        layer.build((None, *[8] * rank, 5), *offset)
        load_torchvision(layer, weights)
        for index in np.ndindex(*size):
            expected = weights["weight"][(slice(None), slice(None), *index)].T
            np.testing.assert_array_equal(layer.kernel.numpy()[index], np.float32(expected))
        np.testing.assert_array_equal(layer.bias, np.float32(weights["bias"]))


# Names and shapes, from the published code

# torchvision/models/detection/{faster_rcnn,mask_rcnn}.py: maskrcnn_resnet50_fpn, 91 classes, and
# the layer in Keras with the sizes that it is built on
MASK_RCNN = {
    "roi_heads.box_head.fc6.": ((1024, 256 * 7 * 7), keras.layers.Dense, (1024,)),
    "roi_heads.box_head.fc7.": ((1024, 1024), keras.layers.Dense, (1024,)),
    "roi_heads.box_predictor.cls_score.": ((91, 1024), keras.layers.Dense, (91,)),
    "roi_heads.box_predictor.bbox_pred.": ((364, 1024), keras.layers.Dense, (364,)),
    "roi_heads.mask_head.3.0.": ((256, 256, 3, 3), keras.layers.Conv2D, (256, 3)),
    "roi_heads.mask_predictor.conv5_mask.": (
        (256, 256, 2, 2),
        keras.layers.Conv2DTranspose,
        (256, 2),
    ),
    "roi_heads.mask_predictor.mask_fcn_logits.": ((91, 256, 1, 1), keras.layers.Conv2D, (91, 1)),
}


def test_the_heads_of_torchvisions_mask_rcnn_fit():
    weights = {}
    for prefix, (shape, _, arguments) in MASK_RCNN.items():
        weights[f"{prefix}weight"] = np.broadcast_to(np.float32(0.5), shape)
        weights[f"{prefix}bias"] = np.broadcast_to(np.float32(0.25), arguments[:1])
    for prefix, (shape, kind, arguments) in MASK_RCNN.items():
        space = (14, 14) if len(shape) > 2 else ()
        layer = built(kind(*arguments), *space, shape[1])
        pooled = (7, 7) if "fc6" in prefix else None
        load_torchvision(layer, weights, prefix, pooled_size=pooled)
        assert layer.count_params() == np.prod(shape) + arguments[0]
        assert np.all(layer.kernel == 0.5)
        assert np.all(layer.bias == 0.25)


# mmdetection's faster_rcnn_r50_fpn_{dconv,mdconv}_c3-c5: conv2 of a block in stage 4 of ResNet-50,
# names as mmcv/ops/{deform_conv,modulated_deform_conv}.py have them, and as its version 1 did
MMDET = {
    "DCN": {"weight": (512, 512, 3, 3), "conv_offset.weight": (18, 512, 3, 3)},
    "DCNv2": {"weight": (512, 512, 3, 3), "conv_offset.weight": (27, 512, 3, 3)},
}


@pytest.mark.parametrize("older", (False, True))
@pytest.mark.parametrize("module", MMDET)
def test_a_block_of_mmdetections_resnet_fits(module, older):
    prefix = "backbone.layer4.1.conv2."
    shapes = {**MMDET[module], "conv_offset.bias": (9 * (3 if module == "DCNv2" else 2),)}
    weights = {"backbone.layer4.1.conv1.weight": np.zeros((512, 2048, 1, 1))}
    for index, (name, shape) in enumerate(shapes.items()):
        name = f"{prefix}{name}"
        name = name.replace(".conv_offset", "_offset") if older else name
        weights[name] = np.broadcast_to(np.float32(index + 1), shape)
    layer = tfd.layers.DeformableConv2D(
        512, 3, padding=1, use_bias=False, modulated=module == "DCNv2", mask_scale=1
    )
    load_mmcv(built(layer, 20, 18, 512), weights, prefix)
    for index, weight in enumerate(layer.weights):
        assert np.all(weight == index + 1)


@pytest.mark.parametrize("modulated", (False, True))
def test_mmcvs_layers_without_a_predictor_fit_those_built_with_an_offset(modulated):
    layer = tfd.layers.DeformableConv2D(6, 3, modulated=modulated, use_bias=modulated)
    layer.build((None, 9, 7, 4), (None, 7, 5, 18))
    weights = {"weight": np.ones((6, 4, 3, 3)), **({"bias": np.ones(6)} if modulated else {})}
    load_mmcv(layer, weights)
    assert all(np.all(weight == 1) for weight in layer.weights)


# InternImage's dcnv3.py with the options of InternImage-H; DCNv4's dcnv4.py with and without its
# options; Deformable DETR's and mmcv's attention of four maps, eight heads and four points.
PUBLISHED = {
    "DCNv3": (
        load_dcn,
        lambda: built(
            tfd.layers.DCNv3(3, groups=4, depthwise_kernel_size=5, center_feature_scale=True),
            *(9, 8, 64),
        ),
        {
            "dw_conv.0.weight": (64, 1, 5, 5),
            "dw_conv.0.bias": (64,),
            "dw_conv.1.1.weight": (64,),
            "dw_conv.1.1.bias": (64,),
            "offset.weight": (72, 64),
            "offset.bias": (72,),
            "mask.weight": (36, 64),
            "mask.bias": (36,),
            "input_proj.weight": (64, 64),
            "input_proj.bias": (64,),
            "output_proj.weight": (64, 64),
            "output_proj.bias": (64,),
            "center_feature_scale_proj_weight": (4, 64),
            "center_feature_scale_proj_bias": (4,),
        },
    ),
    "DCNv4": (
        load_dcn,
        lambda: built(
            tfd.layers.DCNv4(
                3,
                groups=4,
                depthwise_kernel_size=3,
                center_feature_scale=True,
                remove_center=True,
                output_bias=False,
            ),
            *(9, 8, 64),
        ),
        {
            "offset_mask_dw.weight": (64, 1, 3, 3),
            "offset_mask_dw.bias": (64,),
            "offset_mask.weight": (96, 64),
            "offset_mask.bias": (96,),
            "value_proj.weight": (64, 64),
            "value_proj.bias": (64,),
            "output_proj.weight": (64, 64),
            "center_feature_scale_proj_weight": (4, 64),
            "center_feature_scale_proj_bias": (4,),
        },
    ),
    "DCNv4, plain": (
        load_dcn,
        lambda: built(tfd.layers.DCNv4(3, groups=4, pointwise=False), 9, 8, 64),
        {"offset_mask.weight": (112, 64), "offset_mask.bias": (112,)},
    ),
    "attention": (
        load_mmcv,
        lambda: attention(),
        {
            "sampling_offsets.weight": (256, 256),
            "sampling_offsets.bias": (256,),
            "attention_weights.weight": (128, 256),
            "attention_weights.bias": (128,),
            "value_proj.weight": (256, 256),
            "value_proj.bias": (256,),
            "output_proj.weight": (256, 256),
            "output_proj.bias": (256,),
        },
    ),
}


def attention():
    layer = tfd.layers.MultiScaleDeformableAttention(num_heads=8, key_dim=32, num_points=4)
    layer.build((None, 10, 256), (None, 10, 2), [(None, size, size, 256) for size in (8, 4, 2, 1)])
    return layer


@pytest.mark.parametrize("module", PUBLISHED)
def test_the_names_and_shapes_published_fit(module, rng):
    load, make, shapes = PUBLISHED[module]
    weights = {f"m.{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    layer = make()
    load(layer, weights, "m.")
    assert len(layer.weights) == len(shapes)
    for name, array in weights.items():
        part, _, kind = name.removeprefix("m.").replace("proj_", "proj.").rpartition(".")
        variable = "kernel" if kind == "weight" else "bias"
        if part == "dw_conv.1.1":
            variable = "gamma" if kind == "weight" else "beta"
        owner = {"dw_conv.0": "dw_conv", "dw_conv.1.1": "dw_norm"}.get(part, part)
        actual = getattr(getattr(layer, owner), variable).numpy()
        if array.ndim == 4:
            actual = np.moveaxis(actual, (2, 3), (0, 1))  # [channels, 1, height, width]
        elif array.ndim == 2:
            actual = actual.T
        np.testing.assert_array_equal(actual, np.float32(array))


# Files, see also weight_files_test


def write_safetensors(path, arrays):
    """Writes float32 arrays as the format's README says."""
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("kind", ("npz", "safetensors"))
def test_layers_load_from_files(kind, rng, tmp_path):
    weight, bias = rng.normal(size=(6, 4)).astype("float32"), np.arange(6, dtype="float32")
    path = tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **{"fc.weight": weight, "fc.bias": bias})
    else:
        write_safetensors(path, {"fc.weight": weight, "fc.bias": bias})
    layer = built(keras.layers.Dense(6), 4)
    load_torchvision(layer, path, "fc.")
    np.testing.assert_array_equal(layer.kernel, weight.T)
    np.testing.assert_array_equal(layer.bias, bias)


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"mapping, or a \.safetensors, .*, received 'model\.h5'$"):
        load_mmcv(predicting(mask_scale=1), "model.h5")


def test_weights_of_another_kind_are_refused():
    with pytest.raises(TypeError, match=r"mapping, or a \.safetensors, .*, received a list$"):
        load_mmcv(predicting(mask_scale=1), [np.ones((6, 4, 3, 3))])


# What does not fit


def predicting(**options):
    return built(tfd.layers.DeformableConv2D(6, 3, name="dcn", modulated=True, **options), 9, 7, 4)


def test_every_entry_that_does_not_fit_is_named_at_once_and_nothing_is_set():
    layer = predicting(mask_scale=1)
    before = layer.get_weights()
    weights = {
        "other.weight": np.ones(3),
        "c.weight": np.ones((6, 4, 3, 3)),
        "c.conv_offset.weight": np.ones((18, 4, 3, 3)),
        "c.conv_offset.bias": np.ones(27),
        "c.running_mean": np.ones(6),
    }
    message = (
        "weights must fit layer 'dcn', received: 'c.bias' is missing; 'c.conv_offset.weight' must "
        "have shape [27, 4, 3, 3], not [18, 4, 3, 3]; 'c.running_mean' is left over"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mmcv(layer, weights, "c.")
    for weight, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def sound(**others):
    """Returns weights that fit `predicting`, but for the others."""
    shapes = {"weight": (6, 4, 3, 3), "bias": (6,)}
    shapes |= {"conv_offset.weight": (27, 4, 3, 3), "conv_offset.bias": (27,)}
    return {**{name: np.ones(shape) for name, shape in shapes.items()}, **others}


class Failing:
    """An array that cannot be had, as a tensor of PyTorch that requires a gradient."""

    def __array__(self, *arguments, **options):
        raise RuntimeError("Can't call numpy()\non Tensor that requires grad.")


# What an entry of six numbers may not be, and what is told.
NO_NUMBERS = {
    "strings": (["a"] * 6, "must hold real numbers, not dtype <U1"),
    "bytes": ([b"1"] * 6, "must hold real numbers, not dtype |S1"),
    "numbers as strings": (["1"] * 6, "must hold real numbers, not dtype <U1"),
    "objects": ([None] * 6, "must hold real numbers, not dtype object"),
    "dates": (np.zeros(6, "M8[s]"), "must hold real numbers, not dtype datetime64[s]"),
    "times": (np.zeros(6, "m8[s]"), "must hold real numbers, not dtype timedelta64[s]"),
    "structures": (np.zeros(6, [("a", "f4")]), "must hold real numbers, not dtype [('a', '<f4')]"),
    "bytes without a meaning": (np.zeros(6, "V2"), "must hold real numbers, not dtype |V2"),
    "complex numbers": (np.zeros(6, complex), "must hold real numbers, not dtype complex128"),
    "too large": (np.full(6, 1e39), "must hold finite numbers in the range of float32"),
    "one too small": (np.array([0, 0, 0, 0, -3.5e38, 0]), "must hold finite numbers in the range"),
    "a ragged list": ([[1], [2, 3]], "must be an array: setting an array element with a sequence."),
    "no array": (Failing(), "must be an array: Can't call numpy() on Tensor that requires grad."),
    "nothing": (None, "must hold real numbers, not dtype object"),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_holds_no_numbers_is_named_and_nothing_is_set(name):
    value, reason = NO_NUMBERS[name]
    layer = predicting(mask_scale=1)
    before = layer.get_weights()
    message = f"weights must fit layer 'dcn', received: 'bias' {reason}"
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_mmcv(layer, sound(bias=value))
    assert len(str(raised.value).splitlines()) == 1
    for weight, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_all_that_holds_no_numbers_is_named_at_once():
    weights = sound(bias=["a"] * 6, **{"conv_offset.bias": np.full(27, 1e39)})
    del weights["weight"]
    message = (
        "'weight' is missing; 'bias' must hold real numbers, not dtype <U1; 'conv_offset.bias' "
        "must hold finite numbers in the range of float32"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mmcv(predicting(mask_scale=1), weights)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "float64"))
def test_numbers_beyond_the_range_of_the_layer_are_refused(dtype):
    largest = float(tf.as_dtype(dtype).max)
    layer = built(keras.layers.Dense(2, dtype=dtype), 3)
    weights = {"weight": np.full((2, 3), largest), "bias": np.array([-largest, 1e-300])}
    load_torchvision(layer, weights)
    np.testing.assert_array_equal(np.float64(layer.kernel), np.full((3, 2), largest))
    with np.errstate(over="ignore"):
        beyond = np.longdouble(largest) * 2
    if np.isfinite(beyond):
        with pytest.raises(ValueError, match=rf"'bias' must hold .* the range of {dtype}$"):
            load_torchvision(layer, {**weights, "bias": np.array([beyond, 0])})


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", ">f8", "int64", "uint8", "?"))
def test_real_numbers_of_every_dtype_are_taken(dtype):
    dtype = tf.bfloat16.as_numpy_dtype if dtype == "bfloat16" else dtype
    weights = {"weight": np.eye(2, 3, dtype=dtype), "bias": [0, 1]}
    layer = built(keras.layers.Dense(2), 3)
    load_torchvision(layer, weights)
    np.testing.assert_array_equal(layer.kernel, np.eye(3, 2))
    np.testing.assert_array_equal(layer.bias, [0, 1])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nan_and_infinity_are_taken_as_they_are():
    layer = built(keras.layers.Dense(2), 3)
    bias = np.array([0x7FF0000000000001, 0xFFF0000000000000], "uint64").view("float64")
    assert np.isnan(bias[0])  # a signaling one
    assert bias[1] == -np.inf
    load_torchvision(layer, {"weight": np.full((2, 3), np.inf, "float16"), "bias": bias})
    np.testing.assert_array_equal(layer.kernel, np.full((3, 2), np.inf))
    np.testing.assert_array_equal(layer.bias, bias)


@pytest.mark.parametrize("index", range(4))
def test_if_an_assignment_fails_the_layer_is_as_before(index, monkeypatch):
    layer = predicting(mask_scale=1)
    before = layer.get_weights()
    parts = (layer.kernel, layer.bias, layer.offset_kernel, layer.offset_bias)

    def fail(value):
        raise KeyboardInterrupt

    monkeypatch.setattr(parts[index], "assign", fail)
    with pytest.raises(KeyboardInterrupt):
        load_mmcv(layer, sound())
    for weight, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    monkeypatch.undo()
    load_mmcv(layer, sound())
    assert all(np.all(weight == 1) for weight in layer.get_weights())


def test_entries_of_others_are_not_looked_at():
    names = {"other.weight": Failing(), 3: None, ("a", "b"): "c"}
    load_mmcv(
        predicting(mask_scale=1), {f"c.{name}": x for name, x in sound().items()} | names, "c."
    )
    with pytest.raises(ValueError, match=r"'other\.weight' is left over; 3 is left over; \('a'"):
        load_mmcv(predicting(mask_scale=1), sound() | names)


# Prefixes that may have been meant

KERNEL, BIAS = np.ones((6, 4)), np.ones(6)
NEAR_MISSES = {
    "without its dot": ("conv1", ["conv1.", "conv10."], "did you mean 'conv1.' in the place of"),
    "in DataParallel": ("conv1.", ["module.conv1."], "did you mean 'module.conv1.' in the place"),
    "in a backbone, without its dot": (
        "conv1",
        ["a.conv1.", "b.conv1.", "conv2."],
        "did you mean 'a.conv1.' or 'b.conv1.' in the place of 'conv1'?",
    ),
    "too long": ("module.conv1.", ["conv1."], "did you mean 'conv1.' in the place of 'module."),
    "not needed": ("conv1.", [""], "did you mean '' in the place of 'conv1.'?"),
    "another": (
        "conv1.",
        ["conv2.", "xconv1."],
        "there are 'conv2.weight', 'conv2.bias', 'xconv1.weight', ...",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_prefix_that_may_have_been_meant_is_named(name):
    prefix, others, remedy = NEAR_MISSES[name]
    weights = {}
    for other in others:
        weights |= {f"{other}weight": KERNEL, f"{other}bias": BIAS}
    layer = built(keras.layers.Dense(6, name="fc"), 4)
    message = (
        f"weights must fit layer 'fc', received: '{prefix}weight' is missing; '{prefix}bias' is "
        f"missing; {remedy}"
    )
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_torchvision(layer, weights, prefix)
    assert "left over" not in str(raised.value)


def test_without_a_prefix_those_are_named_whose_entries_have_the_shapes_wanted():
    weights = {"conv.weight": np.ones((6, 4, 3, 3)), "conv.bias": BIAS, "norm.weight": BIAS}
    weights |= {"norm.bias": BIAS, "fc.weight": KERNEL, "fc.bias": BIAS}
    with pytest.raises(ValueError, match=r"missing; did you mean 'fc\.' in the place of ''\?$"):
        load_torchvision(built(keras.layers.Dense(6), 4), weights)


def test_each_prefix_that_is_wrong_has_a_remedy_of_its_own():
    weights = {
        name.replace("conv_offset", "a.offset") if "offset" in name else f"a.conv.{name}": array
        for name, array in sound().items()
    }
    load_torchvision(predicting(), weights, "a.conv.", offset_prefix="a.offset.")
    first = "did you mean 'a.conv.' in the place of 'conv.'?"
    second = "did you mean 'a.offset.' in the place of 'a.offset'?"
    for prefixes, remedies in (
        (("conv.", "a.offset."), first),
        (("a.conv.", "a.offset"), second),
        (("conv.", "a.offset"), f"{first}; {second}"),
    ):
        with pytest.raises(ValueError, match=rf"is missing; {re.escape(remedies)}$"):
            load_torchvision(predicting(), weights, prefixes[0], offset_prefix=prefixes[1])


# Padding


SAME = {
    "deformable": (
        lambda: built(
            tfd.layers.DeformableConv2D(6, 3, 2, "same", mask_scale=1, modulated=True, name="c"),
            *(9, 7, 4),
        ),
        "its padding=1 is padding=1 here",
    ),
    "of Keras": (
        lambda: built(keras.layers.Conv2D(6, 3, 2, "same", name="c"), 9, 7, 4),
        r"padding=1 is padding='valid' after keras\.layers\.ZeroPadding2D\(1\) here",
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_same_at_strides_is_told_to_differ(kind):
    make, remedy = SAME[kind]
    message = rf"^layer 'c' has padding='same' and strides=\(2, 2\), which pads many .*{remedy}$"
    load, weights = (load_mmcv, sound()) if kind == "deformable" else (load_torchvision, sound())
    if kind == "of Keras":
        weights = {name: weights[name] for name in ("weight", "bias")}
    with pytest.warns(UserWarning, match=message) as told:
        load(make(), weights)
    (ours,) = (each for each in told if "padding" in str(each.message))  # NumPy's is another
    assert ours.filename == __file__


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    (
        ("DeformableConv2D", {"padding": "same"}),
        ("DeformableConv2D", {"padding": 1, "strides": 2}),
        ("Conv2D", {"padding": "valid", "strides": 2}),
        ("Conv2D", {"padding": "same", "strides": 3}),
        ("Conv2DTranspose", {"padding": "same", "strides": 2}),
        ("Dense", {}),
    ),
)
def test_paddings_that_do_not_differ_are_not_told(kind, options):
    if kind == "Dense":
        load_torchvision(built(keras.layers.Dense(6), 4), {"weight": KERNEL, "bias": BIAS})
        return
    module = tfd.layers if kind.startswith("Def") else keras.layers
    layer = getattr(module, kind)(6, 3, **options)
    layer.build((None, 9, 7, 4), *([(None, 9, 7, 18)] if kind.startswith("Def") else []))
    shape = (4, 6, 3, 3) if "Transpose" in kind else (6, 4, 3, 3)
    load_torchvision(layer, {"weight": np.ones(shape), "bias": BIAS})


@pytest.mark.parametrize("change", ("quantize", "enable_lora"))
def test_a_layer_without_a_kernel_of_floats_is_refused(change):
    layer = built(keras.layers.Dense(2, name="head"), 3)
    layer.quantize("int8") if change == "quantize" else layer.enable_lora(1)
    with pytest.raises(ValueError, match=r"neither quantized nor have LoRA .*received 'head'$"):
        load_torchvision(layer, {"weight": np.ones((2, 3)), "bias": np.ones(2)})


def given():
    layer = tfd.layers.DeformableConv2D(6, 3, name="dcn")
    layer.build((None, 9, 7, 4), (None, 7, 5, 18))
    return layer


BAD_LAYERS = {
    r"layer must be one of DeformableConv, Dense, .*received a BatchNormalization": (
        load_torchvision,
        lambda: keras.layers.BatchNormalization(),
        {},
    ),
    r"layer must be one of DCNv3, DCNv4, received a Dense": (
        load_dcn,
        lambda: keras.layers.Dense(3),
        {},
    ),
    r"layer must be one of DeformableConv, MultiScale.*received a Conv2D": (
        load_mmcv,
        lambda: keras.layers.Conv2D(4, 3),
        {},
    ),
    r"layer must be built, received 'new', which is not": (
        load_mmcv,
        lambda: tfd.layers.DeformableConv2D(4, 3, name="new"),
        {},
    ),
    r"mask_scale=1, because mmcv's mask is the sigmoid itself, received 'dcn' with mask_scale=2": (
        load_mmcv,
        predicting,
        {},
    ),
    r"max_offset=None, because mmcv's offsets are unbounded, received 'dcn' with max_offset=3": (
        load_mmcv,
        lambda: predicting(mask_scale=1, max_offset=3),
        {},
    ),
    r"offset_prefix must be given .*layer 'dcn' does, received None": (
        load_torchvision,
        predicting,
        {},
    ),
    r"offset_prefix must be given .*layer 'dcn' does not, received 'offset\.'": (
        load_torchvision,
        given,
        {"offset_prefix": "offset."},
    ),
    r"mask_prefix must be None unless .*received 'mask\.' for layer 'dcn'": (
        load_torchvision,
        given,
        {"mask_prefix": "mask."},
    ),
    r"pooled_size must be None unless the layer is a Dense, received \(7, 7\) for layer 'dcn'": (
        load_torchvision,
        given,
        {"pooled_size": (7, 7)},
    ),
    r"pooled_size must divide the 10 inputs of the layer, received \(7, 7\)": (
        load_torchvision,
        lambda: built(keras.layers.Dense(3), 10),
        {"pooled_size": (7, 7)},
    ),
}


@pytest.mark.parametrize("message", BAD_LAYERS)
def test_a_layer_that_does_not_fit_is_named(message):
    load, make, options = BAD_LAYERS[message]
    with pytest.raises(ValueError, match=message):
        load(make(), {}, **options)
