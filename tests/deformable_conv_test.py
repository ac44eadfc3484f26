import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

import oracles
from conftest import (
    CHANNELS,
    KINDS,
    MODES,
    PRODUCT_TOLERANCE,
    TOLERANCE,
    assert_same,
    check_derivatives,
    fractional,
    gradients,
    hostile_weights,
    pairs,
    relative_error,
    run_litert,
)
from tf_deform import ops

pytestmark = pytest.mark.usefixtures("implementation")

# batch, space, channels, kernel size, filters, groups, deformable groups, masked, options
CASES = [
    (2, (7,), 3, (3,), 4, 1, 1, False, {"padding": "same"}),
    (3, (6,), 4, (2,), 6, 2, 4, True, {"padding": "causal", "dilation_rate": 2}),
    (1, (9,), 6, (4,), 2, 1, 3, True, {"strides": 3, "padding": [(2, 1)]}),
    (2, (5, 7), 3, (3, 3), 4, 1, 1, True, {"padding": "same"}),
    (2, (6, 5), 4, (3, 2), 6, 2, 2, True, {"strides": (2, 1), "padding": "same"}),
    (1, (7, 4), 6, (1, 3), 3, 3, 2, False, {"strides": 2, "dilation_rate": (1, 2), "padding": 2}),
    (3, (4, 6), 2, (2, 3), 5, 1, 2, True, {"padding": [(0, 2), (1, 0)]}),
    (2, (5, 6), 4, (3, 3), 2, 1, 1, False, {"dilation_rate": 2, "padding": 1}),
    (1, (1, 8), 3, (1, 1), 2, 1, 3, True, {"strides": (1, 3)}),
    (2, (3, 4, 2), 2, (2, 2, 2), 3, 1, 1, True, {"padding": "same"}),
    (1, (4, 3, 5), 4, (2, 1, 3), 6, 2, 2, False, {"strides": (2, 1, 2), "padding": "same"}),
    (2, (2, 3, 4), 6, (1, 3, 2), 4, 2, 3, True, {"dilation_rate": (1, 1, 2), "padding": 1}),
]
SMALL = (2, (3, 4), 2, (2, 2), 4, 2, 2, True, {"padding": "same"})


def output_size(space, kernel_size, *, strides=1, padding="valid", dilation_rate=1):
    rank = len(space)
    extent = (np.array(kernel_size) - 1) * dilation_rate + 1
    if padding == "same":
        return -(-np.array(space) // strides)
    padded = {"valid": 0, "causal": extent - 1}.get(padding) if isinstance(padding, str) else None
    if padded is None:
        padded = np.broadcast_to(padding, [rank, 2]).sum(axis=1)
    return np.maximum((np.array(space) + padded - extent) // strides + 1, 0)


def build(rng, case, dtype=np.float64):
    """Returns the tensors (inputs, kernel, offset[, mask]) of a case, and its options."""
    batch, space, channels, kernel_size, filters, groups, deformable_groups, masked, options = case
    moved = [batch, *output_size(space, kernel_size, **options)]
    taps = deformable_groups * int(np.prod(kernel_size))
    arrays = [
        rng.normal(size=[batch, *space, channels]),
        rng.normal(size=[*kernel_size, channels // groups, filters]),
        fractional(rng, [*moved, taps * len(space)], -2, 2),
        rng.uniform(0.2, 1.8, [*moved, taps]),
    ]
    return [each.astype(dtype) for each in arrays[: 4 if masked else 3]], options


@st.composite
def convolutions(draw):
    """Draws the arguments of deformable_conv."""
    rank = draw(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups, deformable_groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    options = {
        "strides": per_axis(1, 3),
        "dilation_rate": per_axis(1, 2),
        "padding": draw(
            st.sampled_from(["valid", "same", *(["causal"] if rank == 1 else [])])
            | st.integers(0, 2)
            | st.just([(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank)])
        ),
    }
    case = (
        draw(st.integers(1, 2)),
        per_axis(1, [8, 5, 3][rank - 1]),
        groups * deformable_groups * draw(st.integers(1, 2)),
        per_axis(1, [4, 3, 2][rank - 1]),
        groups * draw(st.integers(1, 3)),
        groups,
        deformable_groups,
        draw(st.booleans()),
        options,
    )
    assume(all(output_size(case[1], case[3], **options)))  # else the kernel does not fit
    return build(np.random.default_rng(draw(st.integers(0, 2**32))), case)


@given(convolutions())
def test_deformable_conv_equals_the_oracle(convolution):
    arguments, options = convolution
    actual = ops.deformable_conv(*arguments, **options)
    assert (
        relative_error(actual, oracles.deformable_conv(*arguments, **options))
        < TOLERANCE["float64"]
    )


@pytest.mark.parametrize("traced", ["graph", "jit"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_deformable_conv_in_a_graph_equals_the_oracle(rng, case, traced):
    arguments, options = build(rng, case, np.float32)
    actual = MODES[traced](lambda *each: ops.deformable_conv(*each, **options))(*arguments)
    expected = oracles.deformable_conv(*arguments, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES[3:7], ids=str)
def test_half_precision_is_accumulated_in_float32_at_float32_positions(rng, case, dtype):
    (inputs, kernel, offset, *mask), options = build(rng, case, np.float32)
    inputs, kernel, *mask = (tf.cast(each, dtype) for each in (inputs, kernel, *mask))
    actual = ops.deformable_conv(inputs, kernel, offset, *mask, **options)
    assert actual.dtype == dtype
    wide = [tf.cast(each, tf.float64) for each in (inputs, kernel, offset, *mask)]
    expected = oracles.deformable_conv(*wide, **options)
    assert relative_error(tf.cast(actual, tf.float64), expected) < PRODUCT_TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("strides", "dilation_rate", "groups"),
    [(1, 1, 1), (1, 1, 2), (2, 1, 2), (3, 1, 1), (1, 2, 2), (1, 3, 1)],
)
@pytest.mark.parametrize(
    ("rank", "padding"),
    [(1, "causal"), *((rank, padding) for rank in (1, 2, 3) for padding in ("valid", "same"))],
)
def test_zero_offsets_equal_the_plain_convolution(
    rng, rank, padding, strides, dilation_rate, groups
):
    space = {"same": (8, 6, 4), "causal": (9, 5, 7), "valid": (9, 7, 8)}[padding][:rank]
    inputs = rng.normal(size=[2, *space, 4])
    plain = getattr(keras.layers, f"Conv{rank}D")(
        6,
        (3, 2, 3)[:rank],
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        groups=groups,
        use_bias=False,
        dtype="float64",
    )
    expected = plain(inputs)
    offset = np.zeros([*expected.shape[:-1], 2 * int(np.prod(plain.kernel_size)) * rank])
    actual = ops.deformable_conv(
        inputs, plain.kernel, offset, strides=strides, padding=padding, dilation_rate=dilation_rate
    )
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("padding", [1, [(2, 0), (0, 1)]], ids=str)
def test_explicit_padding_equals_padding_with_zeros(rng, padding):
    (inputs, kernel, *moved), _ = build(rng, (*CASES[3][:-1], {"padding": padding}))
    pairs = np.broadcast_to(padding, [2, 2])
    padded = np.pad(inputs, [(0, 0), *pairs, (0, 0)])
    actual = ops.deformable_conv(inputs, kernel, *moved, padding=padding)
    expected = ops.deformable_conv(padded, kernel, *moved, padding="valid")
    inside = ops.deformable_conv(tf.ones_like(inputs), kernel, *moved, padding=padding)
    assert np.any(inside)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize(
    ("padding", "traced"), [("valid", "graph"), ("same", "graph"), (1, "graph"), ("same", "jit")]
)
def test_sizes_unknown_while_tracing_give_the_same_results_and_gradients(rng, padding, traced):
    """Indices are 64-bit then, and 32-bit where the sizes are known.

    Under XLA with the padding that depends on the sizes.
    """
    options = {"padding": padding, "strides": (2, 1)}

    def derived(*arguments):
        def convolved(*each):
            return ops.deformable_conv(*each, **options)

        return convolved(*arguments), *gradients(lambda *each: convolved(*each) ** 2, *arguments)

    unknown = [None, None, None]
    shapes = [[*unknown, 4], [3, 2, 2, 6], [*unknown, 24], [*unknown, 12]]
    signature = [tf.TensorSpec(shape, tf.float64) for shape in shapes]
    dynamic = MODES[traced](derived, input_signature=signature)
    for batch, space in ((2, (6, 5)), (3, (4, 7))):
        arguments, _ = build(rng, (batch, space, 4, (3, 2), 6, 2, 2, True, options))
        for actual, expected in zip(dynamic(*arguments), derived(*arguments), strict=True):
            assert relative_error(actual, expected) < TOLERANCE["float64"]


# Gradients


@pytest.mark.parametrize("case", [CASES[1], SMALL, CASES[5], CASES[9]], ids=str)
def test_derivatives_of_deformable_conv(rng, case):
    arguments, options = build(rng, case)
    check_derivatives(lambda *each: ops.deformable_conv(*each, **options), *arguments)


def test_zero_offsets_have_gradients_at_every_pixel_and_at_the_padding_too():
    """Taps lie at pixels -1 to 3 of three; -1 sees pixel 0, and 3 none."""
    inputs = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1)
    kernel = np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    _, _, slopes = gradients(
        lambda *each: ops.deformable_conv(*each, padding=1), inputs, kernel, np.zeros([1, 3, 3])
    )
    assert slopes.numpy()[0].tolist() == [[1, 10, 200], [1, 20, -400], [2, -40, 0]]


def test_a_tap_at_minus_one_reads_nothing():
    inputs = np.array([np.nan, 2.0, 4.0]).reshape(1, 3, 1)
    out = ops.deformable_conv(inputs, np.ones([1, 1, 1]), np.zeros([1, 5, 1]), padding=1)
    assert out.numpy().ravel()[[0, 2, 3, 4]].tolist() == [0, 2, 4, 0]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("rank", "channels", "kind"), pairs([1, 2, 3], CHANNELS, KINDS))
def test_a_mask_that_is_no_number_makes_a_dropped_sample_nan(rng, rank, channels, kind):
    groups = {"dense": 1, "grouped": 2, "depthwise": 2 * channels}[kind]
    case = (2, (5, 3, 4)[:rank], 2 * channels, (3, 2, 1)[:rank], 2 * channels, groups, 2, True, {})
    (inputs, kernel, offset, mask), _ = build(rng, case)
    mask = np.where(rng.random([*mask.shape[:-1], 1]) < 0.5, hostile_weights(rng, mask.shape), mask)
    offset = np.where(rng.random(offset.shape) < 0.05, np.nan, offset)
    expected = oracles.deformable_conv(inputs, kernel, offset, mask)
    assert np.any(np.isnan(expected)) and np.any(np.isfinite(expected))
    for dtype in ("float32", "float64"):
        arguments = [tf.cast(each, dtype) for each in (inputs, kernel, offset, mask)]
        assert_same(ops.deformable_conv(*arguments), expected, TOLERANCE[dtype])
    offset, mask = tf.cast(offset, tf.float32), tf.cast(mask, tf.float32)
    for dtype in ("float16", "bfloat16"):
        narrow = [tf.cast(each, dtype) for each in (inputs, kernel)]
        expected = oracles.deformable_conv(*narrow, offset, mask)
        actual = ops.deformable_conv(*narrow, offset, mask)
        assert_same(tf.cast(actual, tf.float64), expected, PRODUCT_TOLERANCE[dtype])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_a_tap_that_is_nowhere_counts_zero_and_has_no_gradients(rng, special):
    """That is what a mask of 0 does, to all but the mask."""
    arguments, options = build(rng, SMALL)
    nowhere = rng.random(arguments[3].shape) < 0.5
    masked = [*arguments[:3], np.where(nowhere, 0, arguments[3])]
    moved = [*arguments[:2], np.where(np.repeat(nowhere, 2, -1), special, arguments[2]), masked[3]]

    def convolved(*each):
        return ops.deformable_conv(*each, **options)

    assert relative_error(convolved(*moved), convolved(*masked)) < TOLERANCE["float64"]
    found = gradients(convolved, *moved)
    for actual, expected in zip(found[:3], gradients(convolved, *masked), strict=False):
        assert relative_error(actual, expected) < TOLERANCE["float64"]
    assert not np.any(found[3].numpy()[nowhere])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_in_half_precision_are_accumulated_in_float32(rng, dtype):
    arguments, options = build(rng, CASES[7])
    inputs, kernel = (tf.cast(each, dtype) for each in arguments[:2])
    offset = tf.cast(arguments[2], tf.float32)

    def derived(*each):
        return gradients(lambda *each: ops.deformable_conv(*each, **options), *each)

    found = derived(inputs, kernel, offset)
    assert [each.dtype for each in found] == [dtype, dtype, tf.float32]
    exact = derived(*(tf.cast(each, tf.float64) for each in (inputs, kernel, offset)))
    tolerances = TOLERANCE, PRODUCT_TOLERANCE, TOLERANCE
    for actual, expected, tolerance in zip(found, exact, tolerances, strict=True):
        error = relative_error(tf.cast(actual, tf.float64), expected)
        assert error < tolerance[actual.dtype.name]


# Sizes of zero, and export


@pytest.mark.parametrize(
    ("batch", "space", "padding"),
    [(0, (4, 5), "valid"), (2, (0, 5), "same"), (0, (1, 1), "valid"), (2, (0, 0), "same")],
)
def test_no_images_or_pixels_give_empty_results_and_zero_gradients(
    rng, batch, space, padding, mode
):
    case = (batch, space, 2, (2, 3), 4, 2, 2, True, {"padding": padding})
    arguments, options = build(rng, case)

    def convolve(*each):
        return ops.deformable_conv(*each, **options)

    found = mode(lambda *each: (convolve(*each), *gradients(convolve, *each)))(*arguments)
    out = batch, *output_size(space, (2, 3), **options), 4
    assert [each.shape for each in found] == [out, *(each.shape for each in arguments)]
    assert not any(map(np.any, found))


@pytest.mark.parametrize("free_sizes", [False, True])
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[4]], ids=str)
def test_deformable_conv_converts_to_litert_with_builtin_operators(rng, case, free_sizes):
    (inputs, kernel, *moved), options = build(rng, case, np.float32)
    actual = run_litert(
        lambda inputs, *moved: ops.deformable_conv(inputs, kernel, *moved, **options),
        *(inputs, *moved),
        free_sizes=free_sizes,
    )
    expected = oracles.deformable_conv(inputs, kernel, *moved, **options)
    assert relative_error(actual, expected) < TOLERANCE["float32"]
