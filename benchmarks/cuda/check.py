"""Builds the CUDA kernels, checks them, and times them beside their peers.

    python benchmarks/cuda/check.py [--build-only] [--checks-only] [--rounds 60] [--seed 0]

It takes an NVIDIA GPU, nvcc, PyTorch and, for half of the comparisons, torchvision; no TensorFlow.
With --emulated it takes PyTorch and g++ alone, and makes the comparisons on the CPU, with
plain products in place of the tensor cores': what it tells is whether this script works.

- The kernels are compared with float64 references, in plain tensor operations and their automatic
  derivatives, over random shapes and hostile coordinates; and with torchvision's CUDA kernel.
- The same runs under compute-sanitizer, as memcheck and racecheck.
- Times are medians between CUDA events, over input sets that together exceed the L2 cache, of calls
  queued while the card was busy, so that Python's own time is not in them: torchvision's
  deform_conv2d, cuDNN's plain convolution, torch's grid_sample, torchvision's roi_align, and the
  card's copy bandwidth.

The table comes last; all figures are written to benchmarks/results/cuda.json. A comparison that
fails does not stop the others: it is in the table, as is what a sanitizer finds, and the script
ends with 1.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kernels as ours

RESULTS = Path(__file__).parents[1] / "results" / "cuda.json"
SUMS = {"float32": 2e-5, "float64": 1e-11, "float16": 2e-5, "bfloat16": 2e-5}
LONG = 3  # times as much for sums of up to thousands of terms
PRODUCTS = {**SUMS, "float16": 4e-3, "bfloat16": 3e-2}  # of what is rounded to the type
TENSOR_FLOAT = 2e-3  # of float32 products in TF32
TORCHVISION = {"float32": 2e-3, "float16": 2e-2}  # whose positions are as narrow as its type
SANITIZER_SECONDS = 150
CLEAN = "clean"
ABSENT = "compute-sanitizer is not installed"
UNFINISHED = f"not finished after {SANITIZER_SECONDS} s"
WARM_UP_SECONDS = 0.1
SLEEP_CYCLES = 2_000_000  # of the card: about a millisecond
HOSTILE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 9.3e18, -1.0, 0.0, -0.0)
SHAPES = {  # batch, height, width, channels, filters
    "8x56x56 64->64": (8, 56, 56, 64, 64),
    "8x28x28 256->256": (8, 28, 28, 256, 256),
    "2x100x168 256->256": (2, 100, 168, 256, 256),
}
DEVICE = "cuda"
GEOMETRY = {"strides": (1, 1), "dilations": (1, 1), "before": (1, 1)}


def main():
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build-only", action="store_true", help="needs no GPU and no PyTorch")
    parser.add_argument("--checks-only", action="store_true", help="no sanitizer and no times")
    parser.add_argument("--emulated", action="store_true", help="checks only, without a GPU")
    parser.add_argument("--architecture", help='to build for, "90": the card\'s, or 90 without one')
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.build_only:
        table = ours.load(ours.build(options.architecture or "90"))
        print(f"built and loaded; on this machine: {table.unavailable() or b'can run'}")
        return
    import torch

    if options.emulated:
        DEVICE = "cpu"
        library = ours.build_emulated()
    else:
        major, minor = torch.cuda.get_device_capability()
        options.architecture = options.architecture or f"{major}{minor}"
        library = ours.build(options.architecture)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    worst, failures = check(library, options.rounds)
    if options.checks_only or options.emulated:
        print(json.dumps({"errors": worst, "failures": failures}, indent=2))
        sys.exit(1 if failures else 0)
    results = {"hardware": hardware(), "commit": commit(), "errors": worst, "failures": failures}
    write(results)
    results["sanitizers"] = {tool: sanitize(tool, options) for tool in ("memcheck", "racecheck")}
    for tool, said in results["sanitizers"].items():
        if said not in (CLEAN, ABSENT, UNFINISHED):
            failures[tool] = "not clean"
    write(results)
    results["copy"] = copy_bandwidth()
    results["times"] = time_all(library, results["copy"])
    write(results)
    report(results)
    sys.exit(1 if failures else 0)


def write(results):
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


# References


def sample_reference(values, points, weights, index):
    """Returns `Kernels.sample` in tensor operations; its derivatives are those of the kernels."""
    import torch

    rows, queries, groups, _, rank = points.shape
    images, *space, channels = values.shape
    limit = torch.tensor(space, dtype=points.dtype, device=points.device)
    near = ((points >= -1) & (points < limit)).all(-1)
    points = torch.where(near[..., None], points, torch.zeros_like(points))
    lower = points.detach().floor()
    fraction = points - lower
    which = torch.arange(rows, device=points.device) if index is None else index
    grouped = values.reshape(images, -1, groups, channels // groups)
    total = 0
    for side in itertools.product((0, 1), repeat=rank):
        at = lower.long() + torch.tensor(side, device=points.device)
        exists = near & ((at >= 0) & (at < limit)).all(-1)
        weight = 1
        flat = torch.zeros_like(at[..., 0])
        for axis in range(rank):
            weight = weight * (fraction[..., axis] if side[axis] else 1 - fraction[..., axis])
            flat = flat * space[axis] + at[..., axis].clamp(0, max(space[axis] - 1, 0))
        group = torch.arange(groups, device=points.device)[:, None]
        value = grouped[which[:, None, None, None], flat, group]  # [..., group channels]
        total = total + torch.where(exists, weight, torch.zeros_like(weight))[..., None] * value
    if weights is not None:
        total = total * weights[..., None]
    return total.sum(3).reshape(rows, queries, channels)


def conv_reference(inputs, kernel, offset, mask, *, strides, dilations, before):
    """Returns `Kernels.conv` in tensor operations, positions rounded as the kernels round them."""
    import torch

    batch, *space, channels = inputs.shape
    *taps, group_channels, filters = kernel.shape
    rank, count = len(space), math.prod(taps)
    output = offset.shape[1:-1]
    moved = offset.shape[-1] // (count * rank)
    grids = [torch.arange(size, device=inputs.device) for size in (*output, *taps)]
    mesh = torch.stack(torch.meshgrid(*grids, indexing="ij"), -1).reshape(
        math.prod(output), 1, count, 2 * rank
    )
    scale = torch.tensor((*strides, *dilations), device=inputs.device)
    base = (mesh * scale).reshape(*mesh.shape[:-1], 2, rank).sum(-2)
    base = base - torch.tensor(before, device=inputs.device)
    shift = offset.reshape(batch, -1, moved, count, rank)
    rounded = (base.to(offset.dtype) + shift.detach()).double() - base - shift.detach().double()
    points = base + shift.double() + rounded
    weights = None if mask is None else mask.double().reshape(batch, -1, moved, count)
    columns = []
    for tap in range(count):
        each = None if weights is None else weights[..., tap, None]
        columns.append(sample_reference(inputs, points[..., tap, None, :], each, None))
    groups = channels // group_channels
    stacked = torch.stack(columns, 2).reshape(batch, -1, count, groups, group_channels)
    split = kernel.reshape(count, group_channels, groups, filters // groups)
    return torch.einsum("bptgc,tcgf->bpgf", stacked, split).reshape(batch, *output, filters)


# Checks


def draw(low, high):
    import torch

    return int(torch.randint(low, high + 1, ()))


def coordinates(shape, space, dtype, hostile):
    """Returns coordinates about images of the sizes, fractional or at times hostile."""
    import torch

    limit = torch.tensor(space, dtype=dtype, device=DEVICE)
    found = torch.rand(*shape, len(space), dtype=dtype, device=DEVICE) * (limit + 3) - 1.5
    if hostile:
        bad = torch.tensor(HOSTILE, dtype=dtype, device=DEVICE)
        chosen = bad[torch.randint(len(HOSTILE), found.shape, device=DEVICE)]
        found = torch.where(torch.rand(found.shape, device=DEVICE) < 0.2, chosen, found)
    return found


def normal(shape, dtype):
    import torch

    return torch.randn(*shape, device=DEVICE).to(dtype)


def wide_of(dtype):
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


class Comparisons:
    """The largest error of each comparison, relative to the largest magnitude, and what failed."""

    def __init__(self):
        self.worst, self.failures = {}, {}

    def add(self, name, found, expected, tolerance):
        if found is None or not found.numel():
            return
        found, expected = found.detach().double(), expected.detach().double()
        error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        worst = self.worst.get(name, 0.0)
        self.worst[name] = max(worst, error, key=lambda each: (math.isnan(each), each))
        if not error <= tolerance:
            self.failures[name] = f"error {self.worst[name]:.2g}, at most {tolerance:.2g} is good"


def double_leaves(*tensors):
    return [None if each is None else each.detach().double().requires_grad_() for each in tensors]


def derive(out, leaves, upstream):
    import torch

    given = [each for each in leaves if each is not None]
    found = iter(torch.autograd.grad(out, given, upstream.double(), materialize_grads=True))
    return [None if each is None else next(found) for each in leaves]


def check_sample(kernels, comparisons, dtype, hostile):
    import torch

    rank, wide = draw(1, 3), wide_of(dtype)
    groups, images = draw(1, 3), draw(1, 3)
    channels = groups * (8 * draw(1, 20) if draw(0, 1) else draw(1, 40))
    space = [draw(1, 9) for _ in range(rank)]
    indexed, rows = draw(0, 1), draw(1, 5)
    rows = rows if indexed else images
    shape = (rows, draw(1, 40), groups, draw(1, 4) if draw(0, 3) else draw(20, 300))
    values = normal((images, *space, channels), dtype)
    points = coordinates(shape, space, wide, hostile)
    weights = normal(shape, wide) if draw(0, 1) else None
    index = torch.randint(images, (rows,), device=DEVICE) if indexed else None
    upstream = normal((rows, shape[1], channels), wide)
    leaves = double_leaves(values, points, weights)
    expected = sample_reference(*leaves, index)
    name = ours.dtype_of(values)
    found = kernels.sample(values, points, weights, index)
    comparisons.add(f"sample, {name}", found, expected, SUMS[name])
    found = kernels.sample_gradients(values, points, weights, index, upstream)
    derived = derive(expected, leaves, upstream)
    for what, each, wanted in zip(("values", "points", "weights"), found, derived, strict=True):
        tolerance = SUMS[name] * (LONG if what == "values" else 1)
        comparisons.add(f"sample, gradient to {what}, {name}", each, wanted, tolerance)


def check_conv(kernels, comparisons, dtype, hostile, tensor_float):
    import torch

    rank, wide = draw(1, 3), wide_of(dtype)
    moved, groups = draw(1, 3), draw(1, 3) if draw(0, 1) else 1
    channels = moved * groups * (8 * draw(1, 12) if draw(0, 1) else draw(1, 40))
    filters = groups * (8 * draw(1, 40) if draw(0, 1) else draw(1, 90))
    space, output = [draw(1, 9) for _ in range(rank)], [draw(1, 7) for _ in range(rank)]
    taps = [draw(1, 3) for _ in range(rank)]
    options = {
        "strides": tuple(draw(1, 2) for _ in range(rank)),
        "dilations": tuple(draw(1, 2) for _ in range(rank)),
        "before": tuple(draw(0, 2) for _ in range(rank)),
    }
    batch, count = draw(1, 3), math.prod(taps)
    inputs = normal((batch, *space, channels), dtype)
    kernel = normal((*taps, channels // groups, filters), dtype) / math.sqrt(count * channels)
    offset = coordinates((batch, *output, moved * count), [2] * rank, wide, hostile).flatten(-2)
    mask = normal((batch, *output, moved * count), wide) if draw(0, 1) else None
    upstream = normal((batch, *output, filters), dtype)
    leaves = double_leaves(inputs, kernel, offset, mask)
    expected = conv_reference(*leaves[:2], offset_leaf(offset, leaves), leaves[3], **options)
    name = ours.dtype_of(inputs)
    rounded, summed = PRODUCTS[name], SUMS[name]
    if tensor_float and dtype == torch.float32:
        name, rounded, summed = "TF32", TENSOR_FLOAT, TENSOR_FLOAT
    found = kernels.conv(inputs, kernel, offset, mask, **options)
    comparisons.add(f"conv, {name}", found, expected, rounded)
    found = kernels.conv_gradients(inputs, kernel, offset, mask, upstream, **options)
    derived = derive(expected, leaves, upstream)
    whats = ("inputs", "kernel", "offset", "mask")
    for what, each, wanted in zip(whats, found, derived, strict=True):
        tolerance = rounded if what == "kernel" else summed  # it multiplies rounded samples
        comparisons.add(f"conv, gradient to {what}, {name}", each, wanted, tolerance)


def offset_leaf(offset, leaves):
    """Returns the offset in its own type, whose derivative goes to its leaf."""
    return offset + (leaves[2] - leaves[2].detach()).nan_to_num().to(offset.dtype)


def torchvision_ops():
    """Returns torchvision.ops, or the reason why not."""
    try:
        from torchvision import ops
    except (ImportError, RuntimeError) as error:  # the latter where it is for another PyTorch
        return f"none: {(str(error) or type(error).__name__).splitlines()[0]}"
    return ops


def check_torchvision(kernels, comparisons):
    """Compares the modulated convolution with torchvision's CUDA kernel."""
    import torch

    peer = torchvision_ops()
    if isinstance(peer, str):
        print(f"not compared with torchvision: {peer}")
        return
    for dtype in (torch.float32, torch.float16):
        inputs, kernel, offset, mask = conv_inputs((2, 13, 11, 64, 48), dtype)
        wide = offset.to(dtype).float(), mask.to(dtype).float()  # torchvision's are narrow too
        found = kernels.conv(inputs, kernel, *wide, **GEOMETRY)
        first = [channels_first(each) for each in (inputs, offset.to(dtype), mask.to(dtype))]
        weight = kernel.permute(3, 2, 0, 1).contiguous()
        expected = peer.deform_conv2d(first[0], first[1], weight, padding=1, mask=first[2])
        name = ours.dtype_of(inputs)
        wanted = expected.permute(0, 2, 3, 1)
        comparisons.add(f"conv, torchvision, {name}", found, wanted, TORCHVISION[name])


def check(library, rounds):
    """Returns the largest error of each kernel and type, and what failed."""
    import torch

    comparisons = Comparisons()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for tensor_float in (True, False):
        kernels = ours.Kernels(library, tensor_float=tensor_float)
        for step in range(rounds):
            for dtype in dtypes:
                check_sample(kernels, comparisons, dtype, step % 2 == 1)
                check_conv(kernels, comparisons, dtype, step % 2 == 1, tensor_float)
            print(f"\rchecked {step + 1} of {rounds}, TF32 {tensor_float}", end="", file=sys.stderr)
        print(file=sys.stderr)
    check_torchvision(ours.Kernels(library), comparisons)
    return comparisons.worst, comparisons.failures


def sanitize(tool, options):
    """Returns what compute-sanitizer says of the checks: CLEAN, or its first lines."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return ABSENT
    command = ["timeout", "--kill-after=5", str(SANITIZER_SECONDS)]
    # Our kernels alone: PyTorch's own would take hours.
    command += [program, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=tf_deform"]
    command += [sys.executable, __file__, "--checks-only", "--rounds", "4"]
    command += ["--architecture", options.architecture, "--seed", str(options.seed)]
    # PyTorch's cache of memory would hide what is read beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode in (124, 137):
        return UNFINISHED
    lines = (run.stdout + run.stderr).splitlines()
    said = [line for line in lines if line.startswith("=========")] or lines[-20:]
    return CLEAN if run.returncode == 0 else "\n".join(said[:20])


# Times


def conv_inputs(shape, dtype):
    import torch

    batch, height, width, channels, filters = shape
    inputs = normal((batch, height, width, channels), dtype)
    kernel = normal((3, 3, channels, filters), dtype) / math.sqrt(9 * channels)
    offset = normal((batch, height, width, 18), torch.float32)
    mask = torch.rand(batch, height, width, 9, device=DEVICE)
    return inputs, kernel, offset, mask


def channels_first(tensor):
    return tensor.permute(0, 3, 1, 2).contiguous()


def median_time(calls, repeats=40):
    """Returns the median milliseconds of one of the calls, which are made in turns.

    The card first sleeps: what follows is queued by then, and runs without waiting for Python.
    """
    import torch

    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        for call in calls:
            call()
        torch.cuda.synchronize()
    events, late = [], 0
    for step in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        calls[step % len(calls)]()
        end.record()
        late += begin.query()  # the card woke up before all was queued
        events.append((begin, end))
    torch.cuda.synchronize()
    if late > repeats // 4:
        print(f"{late} of {repeats} calls were queued too late: Python's time is in theirs")
    return sorted(begin.elapsed_time(end) for begin, end in events)[repeats // 2]


def rotated(make, bytes_of_one):
    """Returns so many calls with inputs of their own that these exceed the L2 cache twice."""
    import torch

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [make() for _ in range(min(32, 1 + 2 * cache // bytes_of_one))]


def trained(function, *leaves):
    """Returns a call of the function and of its gradients."""
    import torch

    leaves = [each.detach().requires_grad_() for each in leaves]
    upstream = torch.randn_like(function(*leaves))

    def call():
        torch.autograd.grad(function(*leaves), leaves, upstream)

    return call


def time_conv(kernels, name, dtype):
    import torch
    from torch.nn.functional import conv2d

    shape = SHAPES[name]
    bytes_of_one = math.prod(shape[:4]) * dtype.itemsize
    torch.backends.cudnn.benchmark = True

    def make_ours(training):
        inputs, kernel, offset, mask = conv_inputs(shape, dtype)
        upstream = normal((*shape[:3], shape[4]), dtype)

        def call():
            kernels.conv(inputs, kernel, offset, mask, **GEOMETRY)
            if training:
                kernels.conv_gradients(inputs, kernel, offset, mask, upstream, **GEOMETRY)

        return call

    def make_peer(function, training):
        call = lambda *each: function(*each)  # noqa: E731
        inputs, kernel, offset, mask = conv_inputs(shape, dtype)
        weight = kernel.permute(3, 2, 0, 1)
        if function is plain:
            last = torch.channels_last
            given = [channels_first(inputs).to(memory_format=last), weight.to(memory_format=last)]
        else:
            moved = [channels_first(each).to(dtype) for each in (offset, mask)]
            given = [channels_first(inputs), weight.contiguous(), *moved]
        return trained(call, *given) if training else (lambda: call(*given))

    def plain(inputs, weight):
        return conv2d(inputs, weight, padding=1)

    peers = {"ours": make_ours, "cuDNN": lambda training: make_peer(plain, training)}
    peer = torchvision_ops()
    if not isinstance(peer, str) and dtype != torch.bfloat16:  # which torchvision has not

        def theirs(inputs, weight, offset, mask):
            return peer.deform_conv2d(inputs, offset, weight, padding=1, mask=mask)

        peers["torchvision"] = lambda training: make_peer(theirs, training)
    found = {}
    for training in (False, True):
        for who, make in peers.items():
            calls = rotated(lambda: make(training), bytes_of_one)  # noqa: B023
            found[f"{'training' if training else 'forward'}, {who}"] = median_time(calls)
    return found


def time_transformer(kernels, copy):
    """Returns times of a spatial transformer's sampling, and its share of the copy bandwidth."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    batch, size, channels = 32, 256, 64
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]]], device=DEVICE).repeat(batch, 1, 1)
    grid = affine_grid(theta, (batch, channels, size, size), align_corners=False)
    points = (((grid + 1) * size - 1) / 2).flip(-1).reshape(batch, -1, 1, 1, 2).contiguous()
    values = normal((batch, size, size, channels), torch.float32)
    first = channels_first(values)
    moved = 2 * values.numel() * 4 + points.numel() * 4
    times = {
        "ours": median_time([lambda: kernels.sample(values, points)]),
        "torch": median_time([lambda: grid_sample(first, grid, align_corners=False)]),
    }
    return {**times, "share of copy": moved / times["ours"] / 1e6 / copy}


def time_roi_align(kernels, copy):
    """Returns times of RoIAlign, 7x7 bins of 2x2 samples, and its share of the copy bandwidth."""
    import torch

    batch, height, width, channels, rois = 2, 200, 336, 256, 2000
    values = normal((batch, height, width, channels), torch.float32)
    corner = torch.rand(rois, 2, device=DEVICE) * torch.tensor([150.0, 280.0], device=DEVICE)
    extent = 8 + torch.rand(rois, 2, device=DEVICE) * 40
    index = torch.randint(batch, (rois,), device=DEVICE)
    step = (torch.arange(14, device=DEVICE) + 0.5) / 14
    axes = corner[:, None] - 0.5 + step[:, None] * extent[:, None]  # [rois, 14, 2]
    y, x = axes[..., 0], axes[..., 1]
    mesh = torch.stack(torch.broadcast_tensors(y[:, :, None], x[:, None, :]), -1)
    points = mesh.reshape(rois, 7, 2, 7, 2, 2).transpose(2, 3).reshape(rois, 49, 1, 4, 2)
    points = points.contiguous()
    weights = torch.full(points.shape[:-1], 0.25, device=DEVICE)
    out = rois * 49 * channels * 4
    found = {"ours": median_time([lambda: kernels.sample(values, points, weights, index)])}
    found["share of copy"] = (out + values.numel() * 4) / found["ours"] / 1e6 / copy
    peer = torchvision_ops()
    if isinstance(peer, str):
        return {**found, "torchvision": peer}
    boxes = torch.cat((index[:, None], corner.flip(-1), (corner + extent).flip(-1)), -1).float()
    first = channels_first(values)
    options = {"output_size": 7, "sampling_ratio": 2, "aligned": True}
    found["torchvision"] = median_time([lambda: peer.roi_align(first, boxes, **options)])
    return found


def copy_bandwidth():
    """Returns GB/s of a copy on the card, bytes read and written."""
    import torch

    source = torch.randn(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_time([lambda: target.copy_(source)]) / 1e6


def time_all(library, copy):
    import torch

    kernels = ours.Kernels(library)
    times = {
        f"conv {name}, {ours.dtype_of(torch.empty(0, dtype=dtype))}": time_conv(
            kernels, name, dtype
        )
        for name in SHAPES
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    times["spatial transformer"] = time_transformer(kernels, copy)
    times["RoIAlign"] = time_roi_align(kernels, copy)
    return times


def hardware():
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return {"card and driver": card, "torch": torch.__version__}


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, cwd=ours.ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def report(results):
    print(f"{len(results['errors'])} comparisons, {len(results['failures'])} failures")
    for name, said in results["failures"].items():
        print(f"    {name}: {said}")
    for tool, said in results["sanitizers"].items():
        print(f"{tool}: {said}")
    print(f"copy: {results['copy']:.0f} GB/s\n")
    for name, times in results["times"].items():
        print(name)
        for what, value in times.items():
            print(f"    {what:24} {value if isinstance(value, str) else f'{value:8.3f}'}")


if __name__ == "__main__":
    main()
