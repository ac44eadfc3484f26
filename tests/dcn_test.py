import math

import numpy as np
import pytest
import tensorflow as tf

import oracles
from conftest import (
    MODES,
    TOLERANCE,
    check_derivatives,
    gradients,
    relative_error,
    run_litert,
)
from tf_deform import ops

pytestmark = pytest.mark.usefixtures("implementation")

VERSIONS = pytest.mark.parametrize("version", ["dcnv3", "dcnv4"])
CHANNELS, GROUPS = 6, 3

# batch, space, kernel size, size of the output, options
CASES = [
    (2, (5, 7), (3, 3), (5, 7), {"padding": 1}),
    (3, (6, 4), (3, 3), (6, 4), {"padding": "same", "remove_center": True, "offset_scale": 0.7}),
    (2, (6, 5), (3, 2), (3, 5), {"padding": "same", "strides": (2, 1)}),
    (1, (7, 9), (2, 3), (4, 4), {"strides": (1, 2), "dilation_rate": (3, 1), "offset_scale": 1.5}),
    (2, (4, 6), (1, 5), (6, 3), {"padding": [(0, 2), (1, 0)], "remove_center": True}),
    (2, (6, 5), (4, 2), (3, 4), {"offset_scale": 2.0}),
    (1, (3, 4), (1, 1), (3, 4), {}),
]
SAME = CASES[1]


def build(rng, version, case, dtype=np.float64):
    """Returns the arrays and the other arguments of a convolution."""
    batch, space, kernel_size, output, options = case
    taps = math.prod(kernel_size) - options.get("remove_center", False)
    inputs = rng.normal(size=[batch, *space, CHANNELS])
    channels = [GROUPS * taps * 2, GROUPS * taps]
    if version == "dcnv4":
        channels = [math.ceil(GROUPS * taps * 3 / 8) * 8]
        options = {**options, "groups": GROUPS}
    predicted = [rng.normal(size=[batch, *output, each]) for each in channels]
    options = {"kernel_size": kernel_size, **options}
    return [each.astype(dtype) for each in (inputs, *predicted)], options


@VERSIONS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions_equal_the_oracle(rng, version, case):
    arrays, options = build(rng, version, case)
    actual, expected = (getattr(each, version)(*arrays, **options) for each in (ops, oracles))
    assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_taps_run_down_the_columns_and_offsets_are_x_then_y():
    inputs = np.arange(20.0).reshape(1, 4, 5, 1)
    offset = np.zeros([1, 1, 1, 12])
    offset[..., 2:4] = 0.5, 1  # of tap 1: row 1, column 0
    for tap, value in enumerate([0, 10.5, 10, 1, 6, 11]):
        mask = np.eye(6)[tap].reshape(1, 1, 1, 6)
        found = ops.dcnv3(inputs, offset, mask, (3, 2), strides=(2, 4))
        assert found.numpy().item() == value
        mixed = np.concatenate([offset, mask, np.full([1, 1, 1, 6], np.nan)], axis=-1)
        found = ops.dcnv4(inputs, mixed, (3, 2), groups=1, strides=(2, 4))
        assert found.numpy().item() == value


def test_the_scale_acts_about_the_centre_of_the_kernel():
    inputs = np.arange(25.0).reshape(1, 1, 25, 1)
    mask = np.array([100.0, 10.0, 1.0]).reshape(1, 1, 1, 3)
    offset = np.array([0.5, 0] * 3).reshape(1, 1, 1, 6)
    options = {"dilation_rate": (1, 4), "strides": 25, "offset_scale": 0.5}
    found = ops.dcnv3(inputs, offset, mask, (1, 3), **options).numpy().item()
    assert found == 100 * 2.25 + 10 * 4.25 + 6.25
    without = ops.dcnv3(
        inputs, offset[..., :4], mask[..., 1:], (1, 3), remove_center=True, **options
    )
    assert without.numpy().item() == 10 * 2.25 + 6.25


@VERSIONS
def test_convolutions_of_sizes_unknown_while_tracing_equal_the_oracle(rng, version, mode):
    arrays, options = build(rng, version, CASES[2], np.float32)
    specs = [tf.TensorSpec([None, None, None, each.shape[-1]], tf.float32) for each in arrays]
    traced = mode(
        tf.function(
            lambda *each: getattr(ops, version)(*each, **options),
            input_signature=specs,
            autograph=False,
        )
    )
    larger = (1, (9, 4), *CASES[2][2:3], (5, 4), CASES[2][4])
    for case in (CASES[2], larger):
        arrays, options = build(rng, version, case, np.float32)
        expected = getattr(oracles, version)(*arrays, **options)
        assert relative_error(traced(*arrays), expected) < TOLERANCE["float32"]


@VERSIONS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_float32_at_float32_offsets(rng, version, dtype):
    """At 1001.3 neighbouring halves are 0.5 apart."""
    case = (2, (2, 1010), (3, 2), (2, 1010), {"padding": "same"})
    (inputs, *predicted), options = build(rng, version, case, np.float32)
    inputs = tf.cast(inputs, dtype)
    actual = getattr(ops, version)(inputs, *predicted, **options)
    assert actual.dtype == dtype
    inputs, actual = (tf.cast(each, tf.float64) for each in (inputs, actual))
    last = slice(-9, None)  # what the oracle is slow for is made small
    inputs, predicted = inputs[:, :, -20:], [each[:, :, -20:] for each in predicted]
    expected = getattr(oracles, version)(inputs, *predicted, **options)
    assert relative_error(actual[:, :, last], expected[:, :, last]) < TOLERANCE[dtype]


@pytest.mark.parametrize(("version", "case"), [("dcnv3", CASES[4]), ("dcnv4", CASES[3])])
def test_derivatives_of_convolutions(rng, version, case):
    arrays, options = build(rng, version, case)
    check_derivatives(lambda *each: getattr(ops, version)(*each, **options), *arrays)


def test_offsets_at_whole_pixels_have_a_gradient_and_learn(rng):
    (inputs, offset, mask), options = build(rng, "dcnv3", CASES[0])
    _, of_offset, _ = gradients(
        lambda *each: ops.dcnv3(*each, **options), inputs, np.zeros_like(offset), mask
    )
    assert np.all(np.any(of_offset, axis=(0, 1, 2)))


@VERSIONS
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_tap_that_is_nowhere_counts_zero_without_a_gradient(rng, version, special):
    arrays, options = build(rng, version, CASES[0])
    arrays[1][1, 2, 3, 0] = special
    arrays[1][0, 1, 1, 1] = special
    with np.errstate(invalid="ignore"):
        expected = getattr(oracles, version)(*arrays, **options)
    actual = getattr(ops, version)(*arrays, **options)
    assert relative_error(actual, expected) < TOLERANCE["float64"]
    found = gradients(lambda *each: getattr(ops, version)(*each, **options), *arrays)
    assert all(np.all(np.isfinite(each)) for each in found)
    assert not np.any(found[1][1, 2, 3, :2])


def test_pixels_outside_the_samples_cannot_leak(rng):
    (inputs, offset, mask), options = build(rng, "dcnv3", CASES[0])
    offset = np.zeros_like(offset) + 0.3
    expected = ops.dcnv3(inputs, offset, mask, **options)
    inputs[:, 4, 6] = np.nan
    actual = ops.dcnv3(inputs, offset, mask, **options)
    np.testing.assert_array_equal(actual[:, :2], expected[:, :2])
    np.testing.assert_array_equal(actual[:, :, :4], expected[:, :, :4])
    assert np.all(np.isnan(actual[:, 4, 6]))


EMPTY = [
    (0, (5, 7), (3, 5), "valid"),
    (0, (2, 7), (0, 5), "valid"),
    (2, (0, 7), (0, 7), "same"),
    (2, (0, 0), (0, 0), "same"),
]
EMPTY_IN_MODES = [
    *(("eager", "dcnv3", *empty) for empty in EMPTY),
    *(("eager", "dcnv4", *empty) for empty in EMPTY),
    *(("jit", "dcnv3", *empty) for empty in EMPTY),
]


@pytest.mark.parametrize(("mode", "version", "batch", "space", "output", "padding"), EMPTY_IN_MODES)
def test_nothing_gives_an_empty_result_and_zero_gradients(
    rng, mode, version, batch, space, output, padding
):
    arrays, options = build(rng, version, (batch, space, (3, 3), output, {"padding": padding}))

    def convolve(*each):
        return getattr(ops, version)(*each, **options)

    out, *found = MODES[mode](lambda *each: (convolve(*each), *gradients(convolve, *each)))(*arrays)
    assert out.shape == (batch, *output, CHANNELS)
    assert [each.shape for each in found] == [each.shape for each in arrays]
    assert not any(map(np.any, found))


@VERSIONS
def test_convolutions_convert_to_litert_with_builtin_operators(rng, version):
    arrays, options = build(rng, version, SAME, np.float32)
    actual = run_litert(
        lambda *each: getattr(ops, version)(*each, **options), *arrays, free_sizes=True
    )
    expected = getattr(oracles, version)(*arrays, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]
