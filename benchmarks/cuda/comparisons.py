"""Compares the kernels with the references, and with torchvision."""

import math
import sys

import kernels as ours
import torch
from inputs import GEOMETRY, conv_inputs, coordinates, draw, normal, wide_of
from peers import deform_conv, torchvision_ops
from references import conv_reference, sample_reference

SUMS = {"float32": 2e-5, "float64": 1e-11, "float16": 2e-5, "bfloat16": 2e-5}
LONG = 3  # times as much for sums of up to thousands of terms
PRODUCTS = {**SUMS, "float16": 4e-3, "bfloat16": 3e-2}  # of what is rounded to the type
TENSOR_FLOAT = 2e-3  # of float32 products in TF32
TORCHVISION = {"float32": 2e-3, "float16": 2e-2}  # whose positions are as narrow as its type


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
    given = [each for each in leaves if each is not None]
    found = iter(torch.autograd.grad(out, given, upstream.double(), materialize_grads=True))
    return [None if each is None else next(found) for each in leaves]


def check_sample(kernels, comparisons, dtype, device, hostile):
    rank, wide = draw(1, 3), wide_of(dtype)
    groups, images = draw(1, 3), draw(1, 3)
    channels = groups * (8 * draw(1, 20) if draw(0, 1) else draw(1, 40))
    space = [draw(1, 9) for _ in range(rank)]
    indexed, rows = draw(0, 1), draw(1, 5)
    rows = rows if indexed else images
    shape = (rows, draw(1, 40), groups, draw(1, 4) if draw(0, 3) else draw(20, 300))
    values = normal((images, *space, channels), dtype, device)
    points = coordinates(shape, space, wide, device, hostile)
    weights = normal(shape, wide, device) if draw(0, 1) else None
    index = torch.randint(images, (rows,), device=device) if indexed else None
    upstream = normal((rows, shape[1], channels), wide, device)
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


def check_conv(kernels, comparisons, dtype, device, hostile, tensor_float):
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
    inputs = normal((batch, *space, channels), dtype, device)
    kernel = normal((*taps, channels // groups, filters), dtype, device)
    kernel = kernel / math.sqrt(count * channels)
    shape = (batch, *output, moved * count)
    offset = coordinates(shape, [2] * rank, wide, device, hostile).flatten(-2)
    mask = normal(shape, wide, device) if draw(0, 1) else None
    upstream = normal((batch, *output, filters), dtype, device)
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


def check_torchvision(kernels, comparisons, device):
    """Compares the modulated convolution with torchvision's CUDA kernel."""
    ops = torchvision_ops()
    if isinstance(ops, str):
        print(f"not compared with torchvision: {ops}")
        return
    for dtype in (torch.float32, torch.float16):
        inputs, kernel, offset, mask = conv_inputs((2, 13, 11, 64, 48), dtype, device)
        wide = offset.to(dtype).float(), mask.to(dtype).float()  # torchvision's are narrow too
        found = kernels.conv(inputs, kernel, *wide, **GEOMETRY)
        peer, given = deform_conv(inputs, kernel, offset, mask)
        wanted = peer(*given).permute(0, 2, 3, 1)
        name = ours.dtype_of(inputs)
        comparisons.add(f"conv, torchvision, {name}", found, wanted, TORCHVISION[name])


def check(library, rounds, device):
    """Returns the largest error of each kernel and type, and what failed."""
    comparisons = Comparisons()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for tensor_float in (True, False):
        kernels = ours.Kernels(library, tensor_float=tensor_float)
        for step in range(rounds):
            for dtype in dtypes:
                check_sample(kernels, comparisons, dtype, device, step % 2 == 1)
                check_conv(kernels, comparisons, dtype, device, step % 2 == 1, tensor_float)
            print(f"\rchecked {step + 1} of {rounds}, TF32 {tensor_float}", end="", file=sys.stderr)
        print(file=sys.stderr)
    check_torchvision(ours.Kernels(library), comparisons, device)
    return comparisons.worst, comparisons.failures
