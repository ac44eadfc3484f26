"""The operators agree with torchvision's and PyTorch's, whose results lie in goldens/.

goldens/make_torchvision_goldens.py wrote them, gradients included, in PyTorch's layout.
"""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")


def load(name):
    """Returns the cases of a file: (options, arrays) by name."""
    with np.load(pathlib.Path(__file__).parent / "goldens" / f"{name}.npz") as stored:
        arrays = dict(stored)
    cases = {
        name: (options, {}) for name, options in json.loads(arrays.pop("options").item()).items()
    }
    for name, array in arrays.items():
        case, _, each = name.rpartition("/")
        cases[case][1][each] = array
    return cases


DEFORM_CONV = load("torchvision_deform_conv2d")
ROI_ALIGN = load("torchvision_roi_align")
PS_ROI_ALIGN = load("torchvision_ps_roi_align")
GRID_SAMPLE = load("torch_grid_sample")


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def check(function, arrays, expected):
    """Asserts that the output and the gradients to the arrays are as expected, in our layout."""
    tensors = [tf.constant(each) for each in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = function(*tensors)
    output_expected, upstream, *gradients = expected
    assert relative_error(output, output_expected) < TOLERANCE["float64"]
    actual = tape.gradient(output, tensors, upstream)
    for gradient, gradient_expected in zip(actual, gradients, strict=True):
        assert np.max(np.abs(gradient_expected)) > 0
        assert relative_error(gradient, gradient_expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("case", DEFORM_CONV)
def test_deformable_conv_agrees_with_torchvision(case):
    options, arrays = DEFORM_CONV[case]
    names = ["input", "weight", "offset", *(["mask"] if "mask" in arrays else []), "bias"]

    def ours(name):
        array = arrays[name]
        if name.startswith("bias"):
            return array
        return np.transpose(array, [2, 3, 1, 0] if name.startswith("weight") else [0, 2, 3, 1])

    def convolve(inputs, kernel, offset, *mask_and_bias):
        *mask, bias = mask_and_bias
        padding = np.broadcast_to(options.get("padding", 0), 2).tolist()
        convolved = tfd.ops.deformable_conv(
            inputs,
            kernel,
            offset,
            *mask,
            strides=options.get("stride", 1),
            padding=[(each, each) for each in padding],
            dilation_rate=options.get("dilation", 1),
        )
        return convolved + bias

    gradients = [ours(f"{name} gradient") for name in names]
    check(convolve, map(ours, names), [ours("output"), ours("upstream"), *gradients])


def check_roi(operator, case, **options):
    given, arrays = case
    boxes = arrays["boxes"]

    def pool(features):
        index = boxes[:, 0].astype("int32")
        return operator(features, boxes[:, 1:], index, **given, **options)

    names = ("output", "upstream", "input gradient")
    check(pool, [channels_last(arrays["input"])], [channels_last(arrays[name]) for name in names])


@pytest.mark.parametrize("case", ROI_ALIGN)
def test_roi_align_agrees_with_torchvision(case):
    check_roi(tfd.ops.roi_align, ROI_ALIGN[case])


@pytest.mark.parametrize("case", PS_ROI_ALIGN)
def test_ps_roi_align_agrees_with_torchvision(case):
    check_roi(tfd.ops.ps_roi_align, PS_ROI_ALIGN[case])


@pytest.mark.parametrize("case", GRID_SAMPLE)
def test_grid_sample_agrees_with_pytorch(case):
    options, arrays = GRID_SAMPLE[case]
    options = dict(options)
    interpolation = options.pop("mode")
    if interpolation == "nearest":  # no gradient to the grid; PyTorch returns zeros
        assert not np.any(arrays["grid gradient"])

    def sample(inputs, *grid):
        grid = grid[0] if grid else arrays["grid"]
        return tfd.ops.grid_sample(inputs, grid, interpolation=interpolation, **options)

    given = [channels_last(arrays["input"])]
    expected = [channels_last(arrays[name]) for name in ("output", "upstream", "input gradient")]
    if interpolation != "nearest":
        given.append(arrays["grid"])
        expected.append(arrays["grid gradient"])
    check(sample, given, expected)
