"""One op of the library at a time, compared with the portable form in float64, and timed.

`python -m tf_deform.check_cases` is the process in which `python -m tf_deform check` has cases run:
it takes them as JSON and prints a line of JSON for each.

The features are multiples of 1/64 and so the same numbers in every dtype: one reference serves all.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_deform import ops
from tf_deform.compiled import on_trial, use_implementation

CALLS = 5  # of each implementation, after one that traces; their median counts
TENSOR_FLOAT = "TF32"  # float32 in the tensor cores of a GPU, which round what they multiply

# Each op of the library: the function that calls it, and the arguments whose gradients it computes.
OPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weighted_sample": ("weighted_sample", ()),
    "weighted_sample_grad_values": ("weighted_sample", ("values",)),
    "weighted_sample_grad_points": ("weighted_sample", ("points", "weights")),
    "deformable_conv": ("deformable_conv", ()),
    "deformable_conv_grad": ("deformable_conv", ("inputs", "kernel", "offset", "mask")),
}
FEATURES = ("values", "inputs", "kernel")  # which have the dtype that is checked
# Results of products of samples: a GPU rounds them to the dtype, as CPUs with AVX512-BF16 do.
ROUNDED = ("deformable_conv", "kernel")

# Largest error relative to the array's largest magnitude: of sums on a CPU and on a GPU, whose
# order is another one each time; of one rounding; of products of what is rounded on a GPU.
SUMS = {"CPU": {"float64": 1e-12, "float32": 1e-5}, "GPU": {"float64": 3e-11, "float32": 6e-5}}
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
PRODUCTS = {"float16": 4e-3, "bfloat16": 3e-2, TENSOR_FLOAT: 2e-3}


class Case(NamedTuple):
    """What is compared at once: an op on a device, in a dtype, under XLA or not."""

    device: str  # "CPU:0"
    implementation: str
    op: str
    dtype: str
    xla: bool

    def __str__(self):
        return f"{self.op}, {self.dtype}, {self.device}{', XLA' if self.xla else ''}"


class Scene(NamedTuple):
    """Arguments of a function by name, in float64, and the function."""

    call: Callable
    arguments: dict[str, Any]


def run(case):
    """Returns what came of a case: its results' errors and, if they were timed, seconds.

    {"errors": {result: [error, largest good one]}, "seconds": [its own, portable] or None}, of the
    scene that is worst. A result that cannot be compared, as its shape is another one or numbers
    are NaN, has an infinite error.
    """
    _check_gpus(case)
    tf.config.experimental.enable_tensor_float_32_execution(case.dtype == TENSOR_FLOAT)
    worst = {name: [-1.0, 1.0] for name in results_of(case.op)}
    with tf.device(f"/{case.device}"), on_trial(), use_implementation(case.implementation):
        scenes = scenes_of(OPS[case.op][0])
        if case.implementation == "portable":  # each takes up to a second to be optimised
            scenes = scenes[: 1 if case.xla else 3]
        found = _found(case, scenes)
    for results, expected in zip(found, reference(case.op)[: len(scenes)], strict=True):
        for name, result in results.items():
            compared = [error_of(result, expected[name]), largest_error(case, name, result.dtype)]
            worst[name] = max(worst[name], compared, key=lambda each: each[0] / each[1])
    timed = case.implementation == "compiled" and (not case.xla or case.dtype == "float32")
    return {"errors": worst, "seconds": seconds(case) if timed else None}


def results_of(op):
    """Returns the names of what an op computes."""
    return OPS[op][1] or (op,)


def largest_error(case, result, dtype):
    """Returns the largest error of a result, which has a dtype, that is good."""
    kind = case.device.split(":")[0]
    multiplied = result in ROUNDED or case.dtype == TENSOR_FLOAT
    if kind == "GPU" and multiplied and case.dtype in PRODUCTS:
        return PRODUCTS[case.dtype]
    sums = SUMS[kind].get(dtype.name, SUMS[kind]["float32"])
    roundings = 2 if dtype == tf.bfloat16 and multiplied else 1
    return sums + roundings * ROUNDING.get(dtype.name, 0)


def error_of(found, expected):
    """Returns the largest error relative to the largest magnitude expected, infinite if none."""
    found = tf.cast(found, tf.float64).numpy()
    if found.shape != expected.shape:
        return math.inf
    if not found.size:
        return 0.0
    error = np.max(np.abs(found - expected)) / (np.max(np.abs(expected)) or 1.0)
    return float(error) if np.isfinite(error) else math.inf


def _found(case, scenes):
    """Returns what the op computes of each scene: results by name."""
    arguments = [_cast(scene.arguments, case.dtype) for scene in scenes]

    def compute(given):
        return [_derived(case.op, scene, each) for scene, each in zip(scenes, given, strict=True)]

    if not case.xla:
        _check_place(case, _derived(case.op, scenes[0], arguments[0]))
    function = tf.function(compute, jit_compile=case.xla, autograph=False)
    return function.get_concrete_function(arguments)(arguments)


def _check_gpus(case):
    """Raises RuntimeError where TensorFlow leaves out a GPU, and so numbers them otherwise."""
    listed = len(tf.config.list_physical_devices("GPU"))
    used = len(tf.config.list_logical_devices("GPU"))
    if case.device.startswith("GPU") and not 0 < used == listed:
        raise RuntimeError(
            f"TensorFlow uses {used} of {listed} GPUs listed: name those in CUDA_VISIBLE_DEVICES"
        )


def _check_place(case, found):
    """Raises RuntimeError if what was computed eagerly, without casts, was so on another device."""
    for name, result in found.items():
        if case.dtype in ("float32", "float64") and not result.device.endswith(case.device):
            raise RuntimeError(f"{name} was computed on {result.device}")


def _cast(arguments, dtype):
    dtype = "float32" if dtype == TENSOR_FLOAT else dtype
    wide = "float64" if dtype == "float64" else "float32"
    return {
        name: tf.cast(each, dtype if name in FEATURES else each.dtype if name == "index" else wide)
        for name, each in arguments.items()
    }


def _derived(op, scene, given):
    """Returns what an op computes, by name; of a convolution without a mask that is one less."""
    targets = [name for name in OPS[op][1] if name in given]
    if not targets:
        return {op: scene.call(**given)}
    with tf.GradientTape() as tape:
        tape.watch([given[name] for name in targets])
        out = scene.call(**given)
    upstream = _numbers(tf.shape(out), out.dtype)
    found = tape.gradient(out, [given[name] for name in targets], upstream)
    return dict(zip(targets, found, strict=True))


def _numbers(shape, dtype):
    """Returns what comes from above: small numbers without a pattern, the same in every dtype."""
    count = tf.reduce_prod(shape)
    places = tf.cast(tf.range(count) * 37 % 127 - 63, tf.float32)
    return tf.cast(tf.reshape(places / 64, shape), dtype)


@functools.cache
def reference(op):
    """Returns what the portable form makes of an op's scenes on the CPU, in float64."""
    scenes = scenes_of(OPS[op][0])
    with tf.device("/CPU:0"), use_implementation("portable"):
        found = [_derived(op, each, _cast(each.arguments, "float64")) for each in scenes]
    return [{name: each.numpy() for name, each in results.items()} for results in found]


# Times


def seconds(case):
    """Returns the median seconds of the op's own time and that of the portable form."""
    scene = speed_scene(OPS[case.op][0], case.device.startswith("GPU"))
    with tf.device(f"/{case.device}"):
        given = _cast(scene.arguments, case.dtype)
    calls = []
    for implementation in ("compiled", "portable"):
        with tf.device(f"/{case.device}"), on_trial(), use_implementation(implementation):
            function = tf.function(
                lambda given: _derived(case.op, scene, given),
                jit_compile=case.xla,
                autograph=False,
            )
            calls.append(function.get_concrete_function(given))
    took: list[list[float]] = [[], []]
    for _ in range(1 + CALLS):
        for call, times in zip(calls, took, strict=True):
            start = time.perf_counter()
            with tf.device(f"/{case.device}"):
                call(given)
                tf.test.experimental.sync_devices()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in took]


@functools.cache
def speed_scene(function, large):
    """Returns what a function is timed with: a large scene is for a GPU."""
    rng = np.random.default_rng(1)
    batch, size, channels = (8, 56, 64) if large else (1, 28, 32)
    if function == "weighted_sample":
        shape = (batch, size * size, 4, 4)
        points = rng.uniform(-1, size, (*shape, 2))
        values = _features(rng, (batch, size, size, channels))
        arguments = {"values": values, "points": points, "weights": rng.normal(size=shape)}
        return Scene(_sampled, arguments)
    return _convolution(rng, (batch, size, size, channels), (3, 3, channels, channels))


# Scenes


@functools.cache
def scenes_of(function):
    """Returns the scenes that a function's ops are compared at, of fixed seeds.

    The first ones are hostile, plain and empty: the portable form is checked at these alone.
    """
    rng = np.random.default_rng(0)
    return _sample_scenes(rng) if function == "weighted_sample" else _conv_scenes(rng)


def _sample_scenes(rng):
    index = np.array([1, 0, 1])
    return [
        _sample(rng, (2, 5, 4, 16), (2, 50, 2, 2), placed=hostile),
        _sample(rng, (2, 9, 7, 6), (2, 11, 2, 3)),
        _sample(rng, (0, 5, 4, 3), (0, 3, 1, 2)),
        _sample(rng, (2, 9, 7, 38), (3, 21, 2, 2), index=index),  # no whole number of vectors
        _sample(rng, (2, 9, 7, 64), (2, 70, 1, 1), weighted=False),
        _sample(rng, (2, 13, 5), (2, 9, 1, 4)),
        _sample(rng, (1, 4, 5, 3, 16), (1, 9, 2, 20)),
        _sample(rng, (1, 5, 4, 6, 3), (1, 50, 1, 2), placed=hostile),
        _sample(rng, (2, 5, 4, 3), (0, 3, 1, 2), index=index[:0]),
        *(_grid(rng, centers, rank) for centers in (False, True) for rank in (2, 3)),
    ]


def _sample(rng, shape, counts, placed=None, weighted=True, index=None):
    points = (placed or fractional)(rng, (*counts, len(shape) - 2), shape[1:-1])
    arguments = {"values": _features(rng, shape), "points": points}
    if weighted:
        arguments["weights"] = rng.normal(size=counts)
    if index is not None:
        arguments["index"] = index
    return Scene(_sampled, arguments)


def _sampled(values, points, weights=None, index=None):
    return ops.weighted_sample(values, points, weights, index)


def _grid(rng, centers, rank):
    """Returns a scene of points that go to the op as they are, normalised."""
    space = (9, 7, 5)[:rank]
    pixels = fractional(rng, (2, *(6, 5, 4)[:rank], rank), space)
    sizes = np.array(space)
    grid = 2 * pixels / (sizes - 1) - 1 if centers else (2 * pixels + 1) / sizes - 1
    grid = grid[..., ::-1].copy()
    grid[0].flat[:4] = np.nan, np.inf, -np.inf, 1e30
    call = functools.partial(_grid_sampled, align_corners=centers)
    return Scene(call, {"values": _features(rng, (2, *space, 5)), "points": grid})


def _grid_sampled(values, points, align_corners):
    return ops.grid_sample(values, points, align_corners=align_corners)


def _conv_scenes(rng):
    strided = {"padding": "same", "strides": 2}
    return [
        _convolution(rng, (2, 6, 5, 16), (3, 3, 16, 10), groups=2, placed=hostile),
        _convolution(rng, (2, 7, 6, 12), (3, 2, 12, 8)),
        _convolution(rng, (0, 6, 5, 4), (3, 3, 4, 6)),
        _convolution(rng, (1, 12, 11, 48), (3, 3, 48, 80), groups=2),
        _convolution(rng, (1, 9, 8, 32), (1, 3, 32, 264), masked=False),  # filters for wide tiles
        _convolution(rng, (2, 8, 6, 12), (3, 3, 4, 9), groups=3, **strided),
        _convolution(rng, (2, 9, 8, 12), (3, 3, 1, 12), groups=2, dilation_rate=2),  # depthwise
        _convolution(rng, (2, 13, 6), (3, 6, 5), padding="causal"),
        _convolution(rng, (1, 4, 5, 3, 8), (2, 3, 2, 8, 6)),
        _convolution(rng, (1, 6, 5, 8), (3, 3, 1, 8), placed=hostile),
    ]


def _convolution(rng, shape, kernel, groups=1, placed=None, masked=True, **options):
    options = {"padding": "same", **options}
    space, taps = shape[1:-1], math.prod(kernel[:-2])
    output = [math.ceil(size / options.get("strides", 1)) for size in space]
    counts = (shape[0], *output, groups * taps)
    if placed:
        offset = placed(rng, (*counts, len(space)), space)
    else:
        offset = rng.integers(-2, 2, (*counts, len(space))) + _part(rng, (*counts, len(space)))
    arguments = {
        "inputs": _features(rng, shape),
        "kernel": _features(rng, kernel) / 2 ** round(math.log2(taps * kernel[-2]) / 2),
        "offset": np.reshape(offset, (*counts[:-1], groups * taps * len(space))),
    }
    if masked:
        arguments["mask"] = rng.uniform(0.1, 1.9, counts)
    return Scene(functools.partial(_convolved, **options), arguments)


def _convolved(inputs, kernel, offset, mask=None, **options):
    return ops.deformable_conv(inputs, kernel, offset, mask, **options)


def _features(rng, shape):
    """Returns normal numbers that every dtype holds exactly."""
    return np.clip(np.round(rng.normal(size=shape) * 64), -127, 127) / 64


def _part(rng, shape):
    """Returns parts of a pixel, away from its ends, that float32 holds exactly with the rest."""
    return rng.integers(100, 925, shape) / 1024


def fractional(rng, shape, space):
    """Returns points about images of a size, none of them near an integer."""
    return rng.integers(-2, np.array(space) + 1, shape) + _part(rng, shape)


def hostile(rng, shape, space):
    """Returns points of which a third are nowhere, far away, at a border or just beside it."""
    sizes = np.array(space)
    near = 2.0**-12
    places = [np.nan, np.inf, -np.inf, 1e30, -1e30, 9.3e18, 12345.5, -12345.5, -1.0, -0.0]
    bad = np.broadcast_to(rng.choice(places, shape), shape)
    edges = rng.choice([-1, 0, sizes.max() - 1, sizes.max()], shape)
    edges = np.where(edges > 0, edges - sizes.max() + sizes, edges)
    edges = edges + rng.choice([0, near, -near], shape)
    chosen = rng.uniform(size=shape)
    points = fractional(rng, shape, space)
    return np.where(chosen < 0.15, bad, np.where(chosen < 0.3, edges, points))


def main():
    """Runs the cases named on the command line; prints what comes of each as a line of JSON.

    Ends after an error on a GPU, which later calls of the process might meet again.
    """
    for each in json.loads(sys.argv[1]):
        case = Case(*each)
        outcome = outcome_of(case)
        print(json.dumps({"case": case, **outcome}), flush=True)
        if "error" in outcome and case.device.startswith("GPU"):
            return


def outcome_of(case):
    """Returns what `run` does, or {"error": the text of what it raises}."""
    try:
        return run(case)
    except Exception as error:  # whatever an op raises is what is looked for
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


if __name__ == "__main__":
    main()
