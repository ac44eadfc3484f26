"""Times the portable operators beside their peers, and measures their memory.

    python benchmarks/portable.py [--quick] [--rounds 15] [--only conv|transformer|memory]
    python benchmarks/portable.py --against FOLDER [--only PART]  # of another checkout

Everything is timed in one process and one run, in turns: each turn calls every contestant once
untimed and once timed, while all cores are there (see machine.py). What is printed are ratios of
medians, over

- plain tf.nn.conv2d of the same shape, for the modulated 3x3 deformable convolution; "gathers" is
  a straightforward version of it, four gathers under plain autodiff;
- torch's affine_grid and grid_sample in the faster of its two memory formats, for the spatial
  transformer (affine grid, bilinear).

Training is the forward pass and the gradients of everything: inputs, kernel, offset and mask, or
inputs and theta. Memory is the peak of TensorFlow's CPU allocator during one call beyond inputs,
outputs and gradients, in MiB and in multiples of the data: of a convolution its column buffer,
which are the samples of all taps, and of the other operators their outputs. The results are written
to benchmarks/results/portable.json.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without, the CPU allocator tells no peaks. TensorFlow itself sets it where it finds AVX-512.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import checkouts
import machine
import numpy as np
import tensorflow as tf

import tf_deform as tfd

THREADS = 2
LARGE = [(1, 100, 168, 256, 256), (4, 100, 168, 64, 64), (1, 2048, 2048, 8, 8)]  # over 64 MiB
CONVOLUTIONS = [  # batch, height, width, channels, filters
    (1, 56, 56, 64, 64),
    (8, 28, 28, 128, 128),
    (1, 50, 84, 256, 256),
    (2, 100, 100, 32, 64),
]
TRANSFORMERS = [(32, 64, 64, 3), (8, 128, 128, 32), (1, 512, 512, 64)]
TARGETS = {
    "convolution forward": 4.0,
    "convolution training": 6.0,
    "transformer with XLA": 0.5,
    "transformer without XLA": 1.2,
}
PARTS = ("conv", "large", "transformer", "memory", "others")
RESULTS = Path(__file__).parent / "results" / "portable.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, first shapes only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--against", metavar="FOLDER", help="time another checkout's in turns")
    options = parser.parse_args()
    if options.against:
        checkouts.main(options.against, options.rounds, options.only or "all")
        return
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tfd.set_implementation("portable")
    rounds = 3 if options.quick else options.rounds
    kept = slice(1) if options.quick else slice(None)
    results = {"hardware": hardware(), "commit": commit(), "rounds": rounds}
    if options.only in (None, "conv"):
        results["convolution"] = time_convolutions(CONVOLUTIONS[kept], rounds)
    if options.only in (None, "transformer"):
        results["transformer"] = time_transformers(TRANSFORMERS[kept], rounds)
    if options.only in (None, "memory"):
        results["memory"] = measure_memory(options.quick)
    if not options.quick and options.only is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(
            f"\nwritten to {RESULTS.relative_to(Path.cwd())}"
            if RESULTS.is_relative_to(Path.cwd())
            else f"\nwritten to {RESULTS}"
        )


# Contestants: functions of no arguments, by name.


def convolution_inputs(shape):
    batch, height, width, channels, filters = shape
    rng = np.random.default_rng(0)
    return {
        "inputs": tf.constant(rng.normal(size=(batch, height, width, channels)), tf.float32),
        "kernel": tf.constant(rng.normal(size=(3, 3, channels, filters)) / 50, tf.float32),
        "offset": tf.constant(rng.normal(size=(batch, height, width, 18)), tf.float32),
        "mask": tf.constant(rng.uniform(size=(batch, height, width, 9)), tf.float32),
    }


def deformable(inputs, kernel, offset, mask):
    return tfd.ops.deformable_conv(inputs, kernel, offset, mask, padding="same")


def plain(inputs, kernel):
    return tf.nn.conv2d(inputs, kernel, 1, "SAME")


def gathers(inputs, kernel, offset, mask):
    """The version that one would write first: four gathers, each with a weight, and autodiff."""
    batch, height, width, channels = inputs.shape
    taps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1).reshape(9, 2)
    pixels = np.stack(np.meshgrid(range(height), range(width), indexing="ij"), axis=-1)
    points = tf.constant(pixels[:, :, None] + taps, tf.float32)
    points = points + tf.reshape(offset, [batch, height, width, 9, 2])
    low = tf.floor(points)
    columns = 0.0
    for corner in ([0, 0], [0, 1], [1, 0], [1, 1]):
        index = low + tf.constant(corner, tf.float32)
        weight = tf.reduce_prod(1 - tf.abs(points - index), axis=-1)
        limit = tf.constant([height - 1, width - 1], tf.float32)
        inside = tf.reduce_all((index >= 0) & (index <= limit), axis=-1)
        index = tf.cast(tf.clip_by_value(index, 0, limit), tf.int32)
        samples = tf.gather_nd(inputs, index, batch_dims=1)
        columns += samples * tf.where(inside, weight, 0.0)[..., None]
    columns *= mask[..., None]
    columns = tf.reshape(columns, [-1, 9 * channels])
    out = tf.matmul(columns, tf.reshape(kernel, [9 * channels, -1]))
    return tf.reshape(out, [batch, height, width, -1])


def compiled_calls(function, arguments, jit):
    """Returns the calls {"forward", "training"} of a function under tf.function."""
    out = function(*arguments)
    upstream = tf.cast(tf.random.stateless_normal(out.shape, [1, 2]), out.dtype)

    def training(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            out = function(*arguments)
        with tf.control_dependencies([out]):  # else the backward pass could begin before the end
            given = tf.identity(upstream)
        return out, tape.gradient(out, arguments, given)

    forward = tf.function(function, jit_compile=jit, autograph=False)
    training = tf.function(training, jit_compile=jit, autograph=False)
    return {"forward": lambda: forward(*arguments), "training": lambda: training(*arguments)}


def transformer(inputs, theta):
    grid = tfd.ops.affine_grid(theta, inputs.shape[1:3])
    return tfd.ops.grid_sample(inputs, grid)


def transformer_inputs(shape):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=shape).astype("float32")
    theta = (
        np.array([[0.9, 0.1, 0.05], [-0.1, 0.9, -0.05]]) + rng.normal(size=(shape[0], 2, 3)) / 50
    )
    return {"inputs": tf.constant(inputs), "theta": tf.constant(theta, tf.float32)}


def operators(part):
    """Returns (function, arguments) by name of the operators of a part, or of all."""
    found = {}
    for name, shapes in (("conv", CONVOLUTIONS), ("large", LARGE)):
        if part in (name, "all"):
            for shape in shapes:
                found[f"convolution {shape}"] = deformable, [*convolution_inputs(shape).values()]
    if part in ("transformer", "all"):
        for shape in TRANSFORMERS:
            found[f"transformer {shape}"] = transformer, [*transformer_inputs(shape).values()]
    if part in ("others", "all"):
        found.update(other_operators())
    return found


def other_operators():
    rng = np.random.default_rng(0)
    levels = [(60, 75), (30, 38), (15, 19)]

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    def boxes_of(count, height, width):
        start = rng.uniform(0, 0.7, [count, 2]) * [width, height]
        size = rng.uniform(0.05, 0.3, [count, 2]) * [width, height]
        return tf.constant(np.concatenate([start, start + size], axis=1), tf.float32)

    def pool(name, count, **options):
        index = tf.zeros([count], tf.int32)
        call = getattr(tfd.ops, name)
        return lambda features, boxes, *offset: call(
            features, boxes, index, *offset, output_size=7, **options
        )

    def attention(locations, weights, *values):
        weights = tf.reshape(tf.nn.softmax(weights), locations.shape[:-1])
        return tfd.ops.multi_scale_deformable_attention(values, locations, weights)

    def dcn(inputs, offset, mask):
        return tfd.ops.dcnv3(inputs, offset, mask, 3, padding="same")

    locations = tf.constant(rng.uniform(size=[1, 5625, 8, 3, 4, 2]), tf.float32)
    maps = [normal(1, *space, 256) for space in levels]
    features, boxes = normal(1, 100, 167, 256), boxes_of(1000, 100, 167)
    small, few = normal(1, 50, 84, 98), boxes_of(128, 50, 84)
    return {
        "roi_align 1000x7x7x256": (
            pool("roi_align", 1000, sampling_ratio=2),
            [features, boxes],
        ),
        "deformable_roi_pool 128x7x7x98": (
            pool("deformable_roi_pool", 128, sampling_ratio=2),
            [small, few, normal(128, 7, 7, 2)],
        ),
        "ps_roi_align 128x7x7x2": (pool("ps_roi_align", 128, sampling_ratio=2), [small, few]),
        "attention, encoder": (attention, [locations, normal(1, 5625, 8, 12), *maps]),
        "dcnv3 8x28x28x128": (
            dcn,
            [normal(8, 28, 28, 128), normal(8, 28, 28, 144), normal(8, 28, 28, 72)],
        ),
    }


def torch_calls(inputs, theta, memory_format):
    import torch

    torch.set_num_threads(THREADS)
    channels_first = torch.tensor(inputs.numpy()).permute(0, 3, 1, 2)
    x = channels_first.contiguous(memory_format=memory_format).requires_grad_()
    theta = torch.tensor(theta.numpy(), requires_grad=True)
    upstream = torch.randn(x.shape).contiguous(memory_format=memory_format)

    def sample():
        grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)

    def forward():
        with torch.no_grad():
            return sample()

    def training():
        x.grad = theta.grad = None
        sample().backward(upstream)

    return {"forward": forward, "training": training}


# Timing


def in_turns(contestants, rounds):
    """Returns the median seconds of each call, taken in turns. Names are (contestant, pass)."""
    for call in contestants.values():
        call()
    times = {name: [] for name in contestants}
    for turn in range(rounds):
        show(f"round {turn + 1} of {rounds}")
        for name, call in contestants.items():
            times[name].append(machine.timed(call))
    show("")
    return {name: statistics.median(each) for name, each in times.items()}


def time_convolutions(shapes, rounds):
    print("Modulated 3x3 deformable convolution, time over plain tf.nn.conv2d's")
    names = ["portable", "portable XLA", "gathers", "gathers XLA"]
    ratios = []
    for shape in shapes:
        inputs = list(convolution_inputs(shape).values())
        contestants = {}
        for name, function, arguments, jit in (
            ("plain", plain, inputs[:2], False),
            ("portable", deformable, inputs, False),
            ("portable XLA", deformable, inputs, True),
            ("gathers", gathers, inputs, False),
            ("gathers XLA", gathers, inputs, True),
        ):
            for each, call in compiled_calls(function, arguments, jit).items():
                contestants[name, each] = call
        seconds = in_turns(contestants, rounds)
        ratios.append(
            {
                each: {name: seconds[name, each] / seconds["plain", each] for name in names}
                for each in ("forward", "training")
            }
        )
    report(shapes, ratios, names)
    for each in ("forward", "training"):
        best = mean([min(r[each]["portable"], r[each]["portable XLA"]) for r in ratios])
        verdict(f"convolution {each}", best, "the better of with and without XLA")
        for suffix in ("", " XLA"):
            gain = mean(
                [r[each]["gathers" + suffix] / r[each]["portable" + suffix] for r in ratios]
            )
            print(f"  {each}{suffix or ' without XLA'}: {gain:.2f} times as fast as the gathers")
    return dict(zip(map(str, shapes), ratios, strict=True))


def time_transformers(shapes, rounds):
    import torch

    print("\nSpatial transformer, time over torch's in its faster memory format")
    names = ["portable", "portable XLA"]
    ratios = []
    for shape in shapes:
        inputs = transformer_inputs(shape)
        contestants = {}
        for name, jit in (("portable", False), ("portable XLA", True)):
            for each, call in compiled_calls(transformer, list(inputs.values()), jit).items():
                contestants[name, each] = call
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for each, call in torch_calls(**inputs, memory_format=memory_format).items():
                contestants[memory_format, each] = call
        seconds = in_turns(contestants, rounds)
        ratio = {}
        for each in ("forward", "training"):
            peer = min(
                seconds[memory_format, each]
                for memory_format in (torch.contiguous_format, torch.channels_last)
            )
            ratio[each] = {name: seconds[name, each] / peer for name in names}
        ratios.append(ratio)
    report(shapes, ratios, names)
    for name, target in (("portable XLA", "with XLA"), ("portable", "without XLA")):
        both = mean([r[each][name] for r in ratios for each in ("forward", "training")])
        verdict(f"transformer {target}", both, "forward and training")
    return dict(zip(map(str, shapes), ratios, strict=True))


def report(shapes, ratios, names):
    width = max(map(len, names)) + 2
    print(f"{'':22}" + "".join(f"{'':4}{each:{2 * width}}" for each in ("forward", "training")))
    for shape, ratio in zip(shapes, ratios, strict=True):
        for name in names:
            cells = "".join(f"{ratio[each][name]:>{width}.2f}" for each in ("forward", "training"))
            print(f"  {'x'.join(map(str, shape)):20}{name:14}{cells}")


def verdict(what, value, detail):
    target = TARGETS[what]
    word = "reached" if value <= target else "MISSED"
    print(f"  {what}, geometric mean ({detail}): {value:.2f}, target {target}: {word}")


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


# Memory


def measure_memory(quick):
    print("\nPeak memory beyond inputs, outputs and gradients: MiB (multiples of the data)")
    results = {}
    for name, (function, arguments) in operators("conv" if quick else "all").items():
        found = {}
        for jit in (False, True):
            calls = compiled_calls(function, arguments, jit)
            output = 4 * int(tf.size(calls["forward"]()))
            data = 4 * 9 * int(tf.size(arguments[0])) if "convolution" in name else output
            for each, call in calls.items():
                # In training the upstream gradient, scaled, is given and no part of the operator.
                peak = peak_memory(call) - (output if each == "training" else 0)
                found[each + (" XLA" if jit else "")] = peak / 2**20, peak / data
        results[name] = found
        cells = (f"{each} {peak:.0f} ({multiple:.1f})" for each, (peak, multiple) in found.items())
        print(f"  {name:36}{'  '.join(cells)}", flush=True)
    return results


def peak_memory(call):
    """Returns the bytes of TensorFlow's CPU allocator that a call needs beyond what it returns."""
    call()
    tf.config.experimental.reset_memory_stats("CPU:0")
    results = call()
    memory = tf.config.experimental.get_memory_info("CPU:0")
    del results
    return memory["peak"] - memory["current"]


# Where it ran


def hardware():
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    return {"cpu": model, "cores": os.cpu_count(), "tensorflow": tf.__version__, "threads": THREADS}


def commit():
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return out or "unknown"


def show(text):
    if sys.stderr.isatty():
        print(f"\r{text:30}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
