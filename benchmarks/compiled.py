"""Times the compiled operators beside their peers, and measures their memory.

    python benchmarks/compiled.py [--quick] [--rounds 15] [--only PART [--keep]]

As in portable.py everything is timed in one process, in turns, and what is printed are ratios of
medians, over

- plain tf.nn.conv2d of the same shape, for the modulated 3x3 deformable convolution;
- tf.nn.depthwise_conv2d, for the same with as many groups as channels;
- itself in float32, for the same as layers compute it under mixed_bfloat16: the inputs are in
  bfloat16, the kernel is cast, offset and mask are float32;
- the kernels of onnxruntime and OpenVINO for it, forward, if they are there (make engines); see
  engine_peers.py;
- torch's affine_grid and grid_sample in the faster of its two memory formats, for the spatial
  transformer (affine grid, bilinear);
- torchvision's deform_conv2d and roi_align, if torchvision is there: its wheel is linked to CUDA,
  but imports beside a PyTorch without it, as tests/goldens/make_torchvision_goldens.py does it
  (pip install --no-deps torchvision==0.28.0; gcc and nm);
- TensorFlow Addons' resampler, if `make goldens-addons` has made its environment: addons_peer.py
  runs it in a process of its own, and a call through the pipe takes some 0.05 ms more.

Offsets of convolutions are normal with a deviation of 2 pixels. Training is the forward pass and
the gradients of everything; of a convolution it is the gradients of the sum of its outputs, for
which TensorFlow leaves the forward pass out: its ratio is lower. Memory is how much one call raises
the peak of the process's resident memory, beyond its outputs and gradients: the kernels' buffers
are not TensorFlow's. Scaling is the time a pixel at 1 to 16 times the batch and the area, over that
at once. The results are written to benchmarks/results/compiled.json, with --keep those of one part,
beside what is there; those beside other engines to engines.json, from which
engines_page.py writes the table of docs/engines.md; those in bfloat16 to bfloat16.json.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import addons_peer
import machine
import numpy as np
import portable as common
import tensorflow as tf

import tf_deform as tfd
from tf_deform.compiled import loading

TARGETS = {
    "convolution forward": 1.1,
    "convolution training": 1.25,
    "depthwise forward": 0.8,
    "depthwise training": 1.5,
    "bfloat16 forward": 0.6,
    "bfloat16 training": 0.6,
    "engines": 0.8,
    "transformer": 0.35,
    "resampler": 0.5,
    "roi_align": 0.25,
}
DEVIATION = 2  # of a convolution's offsets, in pixels
HEADS, DIM, POINTS = 8, 32, 4  # of attention
ATTENTION = {  # queries and maps
    "encoder": (5625, [(60, 75), (30, 38), (15, 19)]),
    "decoder": (300, [(80, 80), (40, 40), (20, 20)]),
}
PEER_ROUNDS = 3  # of torchvision's convolution, which takes seconds
TIMES = (1, 2, 4, 8, 16)
BFLOAT16 = [
    (8, 28, 28, 128, 128),
    (1, 50, 84, 256, 256),
    (1, 14, 14, 256, 256),
    (32, 7, 7, 256, 256),
]
PARTS = (
    "conv",
    "depthwise",
    "bfloat16",
    "engines",
    "transformer",
    "resampler",
    "torchvision",
    "roi_align",
    "attention",
    "scaling",
    "memory",
)
RESULTS = Path(__file__).parent / "results" / "compiled.json"
ENGINES = RESULTS.with_name("engines.json")
IN_BFLOAT16 = RESULTS.with_name("bfloat16.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, first shapes only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--keep", action="store_true", help="write that part, and keep the others")
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
    if options.keep:
        results = {"commits": {}, **json.loads(RESULTS.read_text())}
    parts = {
        "conv": lambda: time_convolutions("convolution", rounds, kept),
        "depthwise": lambda: time_convolutions("depthwise", rounds, kept),
        "bfloat16": lambda: time_bfloat16(rounds, kept, options.quick),
        "engines": lambda: time_engines(rounds, kept, options.quick),
        "transformer": lambda: time_transformers(rounds, kept),
        "resampler": lambda: time_resamplers(rounds, kept),
        "torchvision": lambda: time_torchvision(min(rounds, PEER_ROUNDS), kept),
        "roi_align": lambda: time_roi_align(rounds),
        "attention": lambda: time_attention(rounds),
        "scaling": lambda: time_scaling(rounds),
        "memory": lambda: measure_memory(kept),
    }
    for name in PARTS:
        part = parts[name]
        if options.only in (None, name):
            results.setdefault(name, None)
            if (measured := part()) is not None:  # its peer is there
                results[name] = measured
                results.setdefault("commits", {})[name] = common.commit()
    for name in ("engines", "bfloat16"):  # in files of their own
        results.pop(name, None)
    if not options.quick and (options.only is None or options.keep):
        known = results.get("peaks", {})
        results["peaks"] = {
            name: max(each, known.get(name, 0)) for name, each in machine.peaks().items()
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nwritten to {RESULTS}")


def contestants_of(kind, shape):
    """Returns (function, arguments) of the deformable and of the plain convolution."""
    inputs = convolution_inputs(shape)
    if kind == "depthwise":
        inputs["kernel"] = inputs["kernel"][:, :, :1, :1] + tf.zeros([3, 3, 1, shape[3]])
    plain = depthwise if kind == "depthwise" else common.plain
    arguments = list(inputs.values())
    return {"compiled": (common.deformable, arguments), "plain": (plain, arguments[:2])}


def convolution_inputs(shape):
    inputs = common.convolution_inputs(shape)
    return {**inputs, "offset": DEVIATION * inputs["offset"]}


def gradients_of_sum(function, arguments):
    """Returns a call for the gradients of the sum of a function's outputs, under tf.function."""

    @tf.function(autograph=False)
    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            total = tf.reduce_sum(function(*arguments))
        return tape.gradient(total, arguments)

    return lambda: gradients(*arguments)


def depthwise(inputs, kernel):
    kernel = tf.transpose(kernel, [0, 1, 3, 2])  # [3, 3, channels, 1]
    return tf.nn.depthwise_conv2d(inputs, kernel, [1, 1, 1, 1], "SAME")


def time_convolutions(kind, rounds, kept):
    print(f"Modulated 3x3 deformable convolution ({kind}), time over the plain one's")
    shapes = common.CONVOLUTIONS[kept]
    ratios = []
    for shape in shapes:
        calls = {}
        for name, (function, arguments) in contestants_of(kind, shape).items():
            calls[name, "forward"] = common.compiled_calls(function, arguments, False)["forward"]
            calls[name, "training"] = gradients_of_sum(function, arguments)
        seconds = common.in_turns(calls, rounds)
        ratios.append(
            {
                each: {
                    "compiled": seconds["compiled", each] / seconds["plain", each],
                    "milliseconds": 1e3 * seconds["compiled", each],
                }
                for each in ("forward", "training")
            }
        )
    common.report(shapes, ratios, ["compiled"])
    for each in ("forward", "training"):
        verdict(f"{kind} {each}", [ratio[each]["compiled"] for ratio in ratios])
    return dict(zip(map(str, shapes), ratios, strict=True))


def time_bfloat16(rounds, kept, quick):
    kernels = loading.instruction_set()
    print(f"\nModulated 3x3 deformable convolution, bfloat16: time over float32's ({kernels})")

    def mixed(inputs, kernel, offset, mask):
        return common.deformable(inputs, tf.cast(kernel, tf.bfloat16), offset, mask)

    ratios = []
    for shape in BFLOAT16[kept]:
        arguments = list(common.convolution_inputs(shape).values())
        narrow = [tf.cast(arguments[0], tf.bfloat16), *arguments[1:]]
        wide = common.compiled_calls(common.deformable, arguments, False)
        ratios.append(ratios_of(common.compiled_calls(mixed, narrow, False), wide, rounds))
    common.report(BFLOAT16[kept], ratios, ["compiled"])
    for each in ("forward", "training"):
        verdict(f"bfloat16 {each}", [ratio[each]["compiled"] for ratio in ratios])
    results = dict(zip(map(str, BFLOAT16), ratios, strict=False))
    if not quick:
        about = {"hardware": common.hardware(), "commit": common.commit(), "kernels": kernels}
        IN_BFLOAT16.write_text(
            json.dumps({**about, "rounds": rounds, "ratios": results}, indent=2) + "\n"
        )
        print(f"  written to {IN_BFLOAT16}")
    return results


def time_engines(rounds, kept, quick):
    if not all(map(importlib.util.find_spec, ("onnxruntime", "openvino"))):
        print("\nonnxruntime and OpenVINO are not there: left out")
        return
    import engine_peers
    import engines_page

    print("\nModulated 3x3 deformable convolution, forward: time over other engines'")
    results, milliseconds, work = {}, {}, {}
    for case in engine_peers.CASES[kept]:
        seconds = engine_peers.in_blocks(engine_peers.contestants(case, common.THREADS), rounds)
        milliseconds[str(case)] = {name: 1e3 * each for name, each in seconds.items()}
        work[str(case)] = dict(zip(("FLOP", "bytes"), engine_peers.work_of(case), strict=True))
        mine, _ = seconds.pop("ours"), seconds.pop("op")
        ratios = {name: mine / each for name, each in seconds.items()}
        cells = "".join(f"{name:>14} {ratio:5.2f}" for name, ratio in ratios.items())
        print(f"  {case!s:36}{cells}", flush=True)
        results[str(case)] = ratios
    verdict("engines", [max(ratios.values()) for ratios in results.values()])
    if not quick:
        versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "openvino")}
        about = {"hardware": {**common.hardware(), **versions}, "commit": common.commit()}
        found = {"rounds": rounds, "ratios": results, "milliseconds": milliseconds}
        found |= {"work": work, "peaks": machine.peaks()}
        ENGINES.write_text(json.dumps({**about, **found}, indent=2) + "\n")
        engines_page.write()
        print(f"  written to {ENGINES} and {engines_page.PAGE}")


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


def time_resamplers(rounds, kept):
    if not addons_peer.is_there():
        return None
    print("\nResampler at random positions, time over TensorFlow Addons'")
    shapes = common.TRANSFORMERS[kept]
    ratios = []
    with addons_peer.serving(common.THREADS, "resampler", shapes) as ask:
        for index, (batch, height, width, channels) in enumerate(shapes):
            data = tf.random.stateless_normal([batch, height, width, channels], [1, 1])
            warp = tf.random.stateless_uniform([batch, height * width, 2], [1, 2])
            warp *= tf.constant([width, height], tf.float32)
            ours = common.compiled_calls(tfd.addons.resampler, [data, warp], False)
            theirs = {each: functools.partial(ask, index, each) for each in ours}
            ratios.append(ratios_of(ours, theirs, rounds))
    common.report(shapes, ratios, ["compiled"])
    verdict("resampler", [each["compiled"] for ratio in ratios for each in ratio.values()])
    return dict(zip(map(str, shapes), ratios, strict=True))


def torchvision():
    """Returns torchvision, or None where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        print("\ntorchvision is not there: left out")
        return None
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "goldens"))
    return importlib.import_module("make_torchvision_goldens").torchvision


def torch_calls(function, arguments, given=()):
    """Returns the calls {"forward", "training"} of a PyTorch function of arrays [N, ..., C].

    given: what follows the arguments, and gets no gradient.
    """
    import torch

    torch.set_num_threads(common.THREADS)
    tensors = [torch.tensor(x).permute(0, 3, 1, 2).contiguous().requires_grad_() for x in arguments]
    upstream = torch.randn(function(*tensors, *given).shape)

    def forward():
        with torch.no_grad():
            return function(*tensors, *given)

    def training():
        for tensor in tensors:
            tensor.grad = None
        function(*tensors, *given).backward(upstream)

    return {"forward": forward, "training": training}


def time_torchvision(rounds, kept):
    peer = torchvision()
    if peer is None:
        return None
    print("\nModulated 3x3 deformable convolution, time over torchvision's")
    ratios = []
    shapes = common.CONVOLUTIONS[kept]
    for shape in shapes:
        inputs = convolution_inputs(shape)
        ours = common.compiled_calls(common.deformable, list(inputs.values()), False)
        arrays = {name: x.numpy() for name, x in inputs.items()}
        arrays["kernel"] = arrays["kernel"].transpose(3, 0, 1, 2)  # [filters, 3, 3, channels]
        theirs = torch_calls(
            lambda x, kernel, offset, mask: peer.ops.deform_conv2d(
                x, offset, kernel, padding=1, mask=mask
            ),
            list(arrays.values()),
        )
        ratios.append(ratios_of(ours, theirs, rounds))
    common.report(shapes, ratios, ["compiled"])
    return dict(zip(map(str, shapes), ratios, strict=True))


def time_roi_align(rounds):
    peer = torchvision()
    if peer is None:
        return None
    import torch

    print("\nRoIAlign, 300 boxes, 7x7 bins of 2x2 samples, time over torchvision's")
    shape = (1, 50, 84, 256)
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape).astype("float32")
    start = rng.uniform(size=(300, 2)) * [60, 30]
    boxes = np.concatenate([start, start + 3 + rng.uniform(size=(300, 2)) * 20], axis=1)
    boxes = boxes.astype("float32")
    indices = np.zeros(300, "int32")

    def pool(features):
        return tfd.ops.roi_align(features, boxes, indices, 7, sampling_ratio=2)

    ours = common.compiled_calls(pool, [tf.constant(features)], False)
    theirs = torch_calls(
        lambda x, boxes: peer.ops.roi_align(x, boxes, 7, sampling_ratio=2, aligned=True),
        [features],
        [torch.tensor(np.concatenate([np.zeros((300, 1), "float32"), boxes], axis=1))],
    )
    ratio = ratios_of(ours, theirs, rounds)
    common.report([shape], [ratio], ["compiled"])
    verdict("roi_align", [each["compiled"] for each in ratio.values()])
    return {str(shape): ratio}


def ratios_of(ours, theirs, rounds):
    """Returns {"forward": {"compiled": ratio}, "training": ...} of calls taken in turns."""
    calls = {("ours", each): call for each, call in ours.items()}
    calls |= {("theirs", each): call for each, call in theirs.items()}
    seconds = common.in_turns(calls, rounds)
    return {
        each: {"compiled": seconds["ours", each] / seconds["theirs", each]}
        for each in ("forward", "training")
    }


def time_attention(rounds):
    """Times attention on each map alone and on all, beside the bytes of its corners, and at least.

    At least every array is read or written once.
    """
    print("\nDeformable attention at random places, forward: milliseconds, GB/s of corners read")
    rng = np.random.default_rng(0)
    calls, corners, least = {}, {}, {}
    for name, (queries, maps) in ATTENTION.items():
        for used in (*([each] for each in maps), maps):
            values = [rng.normal(size=(1, *each, HEADS * DIM)) for each in used]
            shape = [1, queries, HEADS, len(used), POINTS]
            arrays = [*values, rng.uniform(size=(*shape, 2)), rng.uniform(size=shape)]
            key = f"{name} {' '.join('x'.join(map(str, each)) for each in used)}", "forward"
            arguments = [tf.constant(each, tf.float32) for each in arrays]
            calls[key] = common.compiled_calls(attention, arguments, False)["forward"]
            outputs = queries * HEADS * DIM
            corners[key] = 4 * DIM * 4 * math.prod(shape)  # bytes, were all inside
            least[key] = 4 * (sum(each.size for each in arrays) + outputs)
    seconds = common.in_turns(calls, rounds)
    results = {}
    for key, each in seconds.items():
        results[key[0]] = {"milliseconds": 1e3 * each, "GB/s": corners[key] / each / 1e9}
        results[key[0]] |= {"corners": corners[key], "least": least[key]}
        print(f"  {key[0]:32}{1e3 * each:8.2f}{results[key[0]]['GB/s']:8.1f}")
    return results


def attention(*arguments):
    *values, locations, weights = arguments
    return tfd.ops.multi_scale_deformable_attention(values, locations, weights)


def time_scaling(rounds):
    print("\nTime a pixel of the deformable convolution, over that of a single 1x56x56x64x64")
    results = {}
    for what in ("batch", "area"):
        calls = {}
        for times in TIMES:
            shape = (times, 56, 56, 64, 64) if what == "batch" else (1, 56 * times, 56, 64, 64)
            inputs = list(convolution_inputs(shape).values())
            found = common.compiled_calls(common.deformable, inputs, False)
            calls |= {(times, each): call for each, call in found.items()}
        seconds = common.in_turns(calls, rounds)
        results[what] = {
            each: {times: seconds[times, each] / times / seconds[1, each] for times in TIMES}
            for each in ("forward", "training")
        }
        for each, ratios in results[what].items():
            cells = "".join(f"{ratio:8.2f}" for ratio in ratios.values())
            print(f"  {what + ' ' + each:20} x1 to x16: {cells}")
    return results


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
