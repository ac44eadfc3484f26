"""Times the compiled operators beside their peers, and measures their memory.

    python benchmarks/compiled.py [--quick] [--rounds 15] [--only conv|depthwise|transformer|memory]

As in portable.py everything is timed in one process, in turns, and what is printed are ratios of
medians, over

- plain tf.nn.conv2d of the same shape, for the modulated 3x3 deformable convolution;
- tf.nn.depthwise_conv2d, for the same with as many groups as channels;
- torch's affine_grid and grid_sample in the faster of its two memory formats, for the spatial
  transformer (affine grid, bilinear).

Training is the forward pass and the gradients of everything. Memory is how much one call raises
the peak of the process's resident memory, beyond its outputs and gradients: the kernels' buffers
are not TensorFlow's. The results are written to benchmarks/results/compiled.json.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import portable as common
import tensorflow as tf

import tf_deform as tfd

TARGETS = {
    "convolution forward": 1.1,
    "convolution training": 1.5,
    "depthwise forward": 0.8,
    "depthwise training": 1.5,
    "transformer": 0.35,
}
RESULTS = Path(__file__).parent / "results" / "compiled.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, first shapes only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("conv", "depthwise", "transformer", "memory"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(common.THREADS)
    tfd.set_implementation("compiled")
    if options.peak:
        print(json.dumps(peak_of_one(*json.loads(options.peak))))
        return
    rounds = 3 if options.quick else options.rounds
    kept = slice(1) if options.quick else slice(None)
    results = {"hardware": common.hardware(), "commit": common.commit(), "rounds": rounds}
    parts = {
        "conv": lambda: time_convolutions("convolution", rounds, kept),
        "depthwise": lambda: time_convolutions("depthwise", rounds, kept),
        "transformer": lambda: time_transformers(rounds, kept),
        "memory": lambda: measure_memory(kept),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            results[name] = part()
    if not options.quick and options.only is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nwritten to {RESULTS}")


def contestants_of(kind, shape):
    """Returns (function, arguments) of the deformable and of the plain convolution."""
    inputs = common.convolution_inputs(shape)
    if kind == "depthwise":
        inputs["kernel"] = inputs["kernel"][:, :, :1, :1] + tf.zeros([3, 3, 1, shape[3]])
    plain = depthwise if kind == "depthwise" else common.plain
    arguments = list(inputs.values())
    return {"compiled": (common.deformable, arguments), "plain": (plain, arguments[:2])}


def depthwise(inputs, kernel):
    kernel = tf.transpose(kernel, [0, 1, 3, 2])  # [3, 3, channels, 1]
    return tf.nn.depthwise_conv2d(inputs, kernel, [1, 1, 1, 1], "SAME")


def time_convolutions(kind, rounds, kept):
    print(f"Modulated 3x3 deformable convolution ({kind}), time over the plain one's")
    shapes = common.CONVOLUTIONS[kept]
    ratios = []
    for shape in shapes:
        calls = {
            (name, each): call
            for name, (function, arguments) in contestants_of(kind, shape).items()
            for each, call in common.compiled_calls(function, arguments, False).items()
        }
        seconds = common.in_turns(calls, rounds)
        ratios.append(
            {
                each: {"compiled": seconds["compiled", each] / seconds["plain", each]}
                for each in ("forward", "training")
            }
        )
    common.report(shapes, ratios, ["compiled"])
    for each in ("forward", "training"):
        verdict(f"{kind} {each}", [ratio[each]["compiled"] for ratio in ratios])
    return dict(zip(map(str, shapes), ratios, strict=True))


def time_transformers(rounds, kept):
    import torch

    print("\nSpatial transformer, time over torch's in its faster memory format")
    formats = (torch.contiguous_format, torch.channels_last)
    shapes = common.TRANSFORMERS[kept]
    ratios = []
    for shape in shapes:
        inputs = common.transformer_inputs(shape)
        arguments = list(inputs.values())
        found = common.compiled_calls(common.transformer, arguments, False)
        calls = {("compiled", each): call for each, call in found.items()}
        for memory_format in formats:
            for each, call in common.torch_calls(**inputs, memory_format=memory_format).items():
                calls[memory_format, each] = call
        seconds = common.in_turns(calls, rounds)
        ratios.append(
            {
                each: {
                    "compiled": seconds["compiled", each]
                    / min(seconds[memory_format, each] for memory_format in formats)
                }
                for each in ("forward", "training")
            }
        )
    common.report(shapes, ratios, ["compiled"])
    verdict("transformer", [each["compiled"] for ratio in ratios for each in ratio.values()])
    return dict(zip(map(str, shapes), ratios, strict=True))


def verdict(what, values):
    value, target = common.mean(values), TARGETS[what]
    word = "reached" if value <= target else "MISSED"
    print(f"  {what}, geometric mean: {value:.2f}, target {target}: {word}")


def measure_memory(kept):
    """Each measurement has a process of its own: a peak never goes down again."""
    print("\nPeak memory beyond inputs, outputs and gradients, MiB (limit 8 a thread)")
    results = {}
    for kind in ("convolution", "depthwise"):
        for shape in common.CONVOLUTIONS[kept]:
            found = {}
            for each in ("forward", "training"):
                command = [sys.executable, __file__, "--peak", json.dumps([kind, shape, each])]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                found[each] = json.loads(run.stdout.splitlines()[-1]) / 2**20
            results[f"{kind} {shape}"] = found
            cells = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"  {kind:12} {'x'.join(map(str, shape)):20} {cells}", flush=True)
    return results


def peak_of_one(kind, shape, each):
    """Returns by how many bytes a call raises the peak, after a call on one image of one pixel."""
    function, arguments = contestants_of(kind, shape)["compiled"]

    def training(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            out = function(*arguments)
        return tape.gradient(out, arguments)

    call = training if each == "training" else function
    small = [x if i == 1 else x[:1, :1, :1] for i, x in enumerate(arguments)]
    call(*small)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the call may use what others have freed
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = resident("VmRSS")
    results = call(*arguments)
    after = resident("VmHWM")
    returned = sum(4 * tf.size(x).numpy() for x in tf.nest.flatten(results))
    if each == "training":  # the forward pass's output, and the gradient that it is given
        returned += 2 * 4 * tf.size(function(*arguments)).numpy()
    return int(1024 * (after - before) - returned)


def resident(kind):
    """Returns the KiB that /proc/self/status names: VmRSS now, VmHWM at the peak (Linux alone)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0])


if __name__ == "__main__":
    main()
