"""Sums made in turns: they equal those made at once, and take little memory."""

import functools
import math
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, fractional, gradients, relative_error
from deformable_conv_test import CASES, build
from tf_deform import ops

MODULES = [sys.modules[f"tf_deform.ops.{name}"] for name in ("deformable_conv", "sampling")]


@pytest.fixture(autouse=True)
def _portable():
    with tfd.use_implementation("portable"):
        yield


@pytest.fixture
def in_turns(monkeypatch):
    """Returns a function that has all sums made in turns from then on, however small they are."""

    def turn():
        for module in MODULES:
            monkeypatch.setattr(module, "AT_ONCE", -1)

    return turn


def convolution(case, rng):
    arrays, options = build(rng, case)
    return functools.partial(ops.deformable_conv, **options), arrays


def sample(channels, points, weighted, indexed, rng):
    index = tf.constant([1, 0, 1]) if indexed else None
    call = lambda *each: ops.weighted_sample(*each, image_index=index)  # noqa: E731
    values = rng.normal(size=[2 if indexed else 3, 4, 5, 2 * channels])
    shape = [3, 6, 2, points]
    arrays = [values, fractional(rng, [*shape, 2], -2, 6), rng.uniform(size=shape)]
    return call, arrays[: 3 if weighted else 2]


def pool(rng):
    boxes = tf.constant(rng.uniform([0, 0, 3, 3], [3, 3, 6, 6], [4, 4]))
    index = tf.constant([0, 1, 1, 0])
    call = lambda features: ops.roi_align(features, boxes, index, 3, sampling_ratio=2)  # noqa: E731
    return call, [rng.normal(size=[2, 6, 7, 4])]


def attention(rng):
    maps = [rng.normal(size=[2, *size, 6]) for size in ([5, 7], [3, 2])]
    arrays = [fractional(rng, [2, 4, 3, 6, 2], -2, 9) / 8, rng.uniform(size=[2, 4, 3, 6]), *maps]
    attend = functools.partial(ops.multi_scale_deformable_attention, num_points=(2, 4))
    return lambda locations, weights, *maps: attend(maps, locations, weights), arrays


MAKERS = {
    **{
        f"convolution {n}": functools.partial(convolution, case)
        for n, case in enumerate(CASES)
        if math.prod(case[3]) > 1  # taps, for one of which there is nothing to do in turns
    },
    "narrow": functools.partial(sample, 3, 5, True, False),
    "narrow, of images, unweighted": functools.partial(sample, 8, 6, False, True),
    "wide": functools.partial(sample, 64, 6, True, True),
    "regions": pool,
    "attention": attention,
}


def all_of(call):
    """Returns a function of what `call` returns, and of the gradients of the sum of its squares."""
    return lambda *each: (call(*each), *gradients(lambda *each: call(*each) ** 2, *each))


# XLA takes as long for each: one of a rank and of each kind.
COMPILED = ["convolution 2", "convolution 4", "convolution 9", *list(MAKERS)[-5:]]


@pytest.mark.parametrize(
    ("name", "jit"), [*((name, False) for name in MAKERS), *((name, True) for name in COMPILED)]
)
def test_turns_change_neither_values_nor_gradients(name, jit, rng, in_turns):
    call, arrays = MAKERS[name](rng)
    tensors = [tf.constant(each) for each in arrays]
    expected = all_of(call)(*tensors)
    in_turns()
    traced = tf.function(all_of(call), jit_compile=jit, autograph=False)
    assert "While" in str(traced.get_concrete_function(*tensors).graph.as_graph_def())
    for actual, wanted in zip(traced(*tensors), expected, strict=True):
        assert relative_error(actual, wanted) < TOLERANCE["float64"]


@pytest.mark.parametrize("name", ["convolution 4", "convolution 9", "narrow", "wide", "attention"])
def test_derivatives(name, rng, in_turns):
    call, arrays = MAKERS[name](rng)
    in_turns()
    check_derivatives(call, *arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_turns_keep_the_dtypes(dtype, rng, in_turns):
    call, (inputs, kernel, offset, mask) = MAKERS["convolution 4"](rng)
    arguments = [
        tf.cast(inputs, dtype),
        tf.cast(kernel, dtype),
        tf.cast(offset, "float32"),
        tf.cast(mask, dtype),
    ]
    expected = all_of(call)(*arguments)
    in_turns()
    for actual, wanted in zip(all_of(call)(*arguments), expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert relative_error(actual, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("name", ["convolution 4", "narrow"])
def test_free_sizes_and_nothing(name, batch, rng, in_turns):
    call, arrays = MAKERS[name](rng)
    free = {
        "convolution 4": [(0, 1, 2), (), (0, 1, 2), (0, 1, 2)],
        "narrow": [(0, 1, 2), (0, 1), (0, 1)],
    }
    specs = [
        tf.TensorSpec(
            [None if n in axes else size for n, size in enumerate(each.shape)], tf.float64
        )
        for each, axes in zip(arrays, free[name], strict=True)
    ]
    tensors = [
        tf.constant(np.repeat(each[:1], batch, axis=0) if axes else each)
        for each, axes in zip(arrays, free[name], strict=True)
    ]
    expected = all_of(call)(*tensors)
    in_turns()
    traced = tf.function(all_of(call), input_signature=specs, autograph=False)
    for actual, wanted in zip(traced(*tensors), expected, strict=True):
        assert actual.shape == wanted.shape
        assert relative_error(actual, wanted) < TOLERANCE["float64"]


def peak(call):
    """Returns the bytes that a call takes beyond what it returns."""
    call()
    tf.config.experimental.reset_memory_stats("CPU:0")
    results = call()
    memory = tf.config.experimental.get_memory_info("CPU:0")
    del results
    return memory["peak"] - memory["current"]


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_a_large_convolution_trains_in_less_than_two_column_buffers(jit, rng):
    shape = (1, 160, 200, 64)
    arguments = [
        tf.constant(rng.normal(size=size), tf.float32)
        for size in (shape, [3, 3, 64, 8], [*shape[:3], 18], [*shape[:3], 9])
    ]
    call = functools.partial(ops.deformable_conv, padding="same")
    columns = 4 * 9 * math.prod(shape)
    assert columns > MODULES[0].AT_ONCE
    forward = tf.function(call, jit_compile=jit, autograph=False)
    training = tf.function(all_of(call), jit_compile=jit, autograph=False)
    assert peak(lambda: forward(*arguments)) < columns
    assert peak(lambda: training(*arguments)) < 2 * columns


def test_training_pools_of_many_regions_takes_a_few_times_their_size(rng):
    features = tf.constant(rng.normal(size=[1, 60, 80, 128]), tf.float32)
    corners = rng.uniform(0, 40, [600, 2])
    boxes = tf.constant(np.concatenate([corners, corners + 20], axis=1), tf.float32)
    index = tf.zeros([600], tf.int32)
    pooled = lambda features: ops.roi_align(features, boxes, index, 7, sampling_ratio=2)  # noqa: E731
    training = tf.function(all_of(pooled), jit_compile=True, autograph=False)
    assert peak(lambda: training(features)) < 10 * 4 * 600 * 49 * 128  # at once it is 18


def test_training_attention_holds_one_sum_for_all_maps(rng):
    maps = [
        tf.constant(rng.normal(size=[1, *size, 128]), tf.float32)
        for size in ([80, 100], [40, 50], [20, 25])
    ]
    locations = tf.constant(rng.uniform(size=[1, 8000, 4, 3, 4, 2]), tf.float32)
    weights = tf.constant(rng.uniform(size=[1, 8000, 4, 3, 4]), tf.float32)
    attend = lambda *each: ops.multi_scale_deformable_attention(each[2:], *each[:2])  # noqa: E731
    training = tf.function(all_of(attend), jit_compile=True, autograph=False)
    taken = peak(lambda: training(locations, weights, *maps))
    assert taken < 16 * 4 * 8000 * 128  # map after map it is 33


def test_training_a_transformer_of_a_large_image_holds_one_corner_at_a_time(rng):
    image, upstream = (tf.constant(rng.normal(size=[1, 512, 512, 64]), tf.float32) for _ in "iu")
    theta = tf.constant([[[0.9, 0.1, 0.05], [-0.1, 0.9, -0.05]]])

    @tf.function(jit_compile=True, autograph=False)
    def training(image, theta):
        with tf.GradientTape() as tape:
            tape.watch([image, theta])
            out = ops.grid_sample(image, ops.affine_grid(theta, (512, 512)))
        with tf.control_dependencies([out]):
            given = tf.identity(upstream)
        return out, tape.gradient(out, [image, theta], given)

    assert peak(lambda: training(image, theta)) < 6 * 4 * math.prod(image.shape)  # at once it is 8


def test_training_adaptive_pools_keeps_none_of_their_samples(rng):
    features = tf.constant(rng.normal(size=[1, 60, 80, 32]), tf.float32)
    corners = rng.uniform(0, 40, [300, 2])
    boxes = tf.constant(np.concatenate([corners, corners + 20], axis=1), tf.float32)
    index = tf.zeros([300], tf.int32)
    pooled = lambda features: ops.roi_align(features, boxes, index, 4, sampling_ratio=0)  # noqa: E731
    training = tf.function(all_of(pooled), autograph=False)
    assert peak(lambda: training(features)) < 20 * 4 * 300 * 16 * 32  # kept they are 46
