"""Times the kernels beside their peers."""

import math
import time
from functools import partial

import kernels as ours
import torch
from inputs import GEOMETRY, conv_inputs, normal
from peers import channels_first, deform_conv, plain_conv, torchvision_ops
from torch.nn.functional import affine_grid, grid_sample

WARM_UP_SECONDS = 0.1
SLEEP_CYCLES = 2_000_000  # of the card: about a millisecond
SHAPES = {  # batch, height, width, channels, filters
    "8x56x56 64->64": (8, 56, 56, 64, 64),
    "8x28x28 256->256": (8, 28, 28, 256, 256),
    "2x100x168 256->256": (2, 100, 168, 256, 256),
}
DEVICE = "cuda"


def median_time(calls, repeats=40):
    """Returns the median milliseconds of one of the calls, which are made in turns.

    The card first sleeps: what follows is queued by then, and runs without waiting for Python.
    """
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
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [make() for _ in range(min(32, 1 + 2 * cache // bytes_of_one))]


def trained(function, *leaves):
    """Returns a call of the function and of its gradients."""
    leaves = [each.detach().requires_grad_() for each in leaves]
    upstream = torch.randn_like(function(*leaves))

    def call():
        torch.autograd.grad(function(*leaves), leaves, upstream)

    return call


def our_conv(kernels, shape, dtype, training):
    """Returns a call of our convolution, in training of its gradients too."""
    given = conv_inputs(shape, dtype, DEVICE)
    upstream = normal((*shape[:3], shape[4]), dtype, DEVICE)

    def call():
        kernels.conv(*given, **GEOMETRY)
        if training:
            kernels.conv_gradients(*given, upstream, **GEOMETRY)

    return call


def peer_conv(peer, shape, dtype, training):
    """Returns a call of `plain_conv` or `deform_conv`, in training of its gradients too."""
    function, given = peer(*conv_inputs(shape, dtype, DEVICE))
    return trained(function, *given) if training else lambda: function(*given)


def time_conv(kernels, shape, dtype):
    """Returns times of our convolution, of cuDNN's plain one and of torchvision's."""
    bytes_of_one = math.prod(shape[:4]) * dtype.itemsize
    torch.backends.cudnn.benchmark = True
    makers = {"ours": partial(our_conv, kernels), "cuDNN": partial(peer_conv, plain_conv)}
    if not isinstance(torchvision_ops(), str) and dtype != torch.bfloat16:  # which it has not
        makers["torchvision"] = partial(peer_conv, deform_conv)
    found = {}
    for training in (False, True):
        for who, make in makers.items():
            calls = rotated(partial(make, shape, dtype, training), bytes_of_one)
            found[f"{'training' if training else 'forward'}, {who}"] = median_time(calls)
    return found


def time_transformer(kernels, copy):
    """Returns times of a spatial transformer's sampling, and its share of the copy bandwidth."""
    batch, size, channels = 32, 256, 64
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]]], device=DEVICE).repeat(batch, 1, 1)
    grid = affine_grid(theta, (batch, channels, size, size), align_corners=False)
    points = (((grid + 1) * size - 1) / 2).flip(-1).reshape(batch, -1, 1, 1, 2).contiguous()
    values = normal((batch, size, size, channels), torch.float32, DEVICE)
    first = channels_first(values)
    moved = 2 * values.numel() * 4 + points.numel() * 4
    times = {
        "ours": median_time([lambda: kernels.sample(values, points)]),
        "torch": median_time([lambda: grid_sample(first, grid, align_corners=False)]),
    }
    return {**times, "share of copy": moved / times["ours"] / 1e6 / copy}


def time_roi_align(kernels, copy):
    """Returns times of RoIAlign, 7x7 bins of 2x2 samples, and its share of the copy bandwidth."""
    batch, height, width, channels, rois = 2, 200, 336, 256, 2000
    values = normal((batch, height, width, channels), torch.float32, DEVICE)
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
    source = torch.randn(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_time([lambda: target.copy_(source)]) / 1e6


def time_all(library, copy):
    kernels = ours.Kernels(library)
    times = {
        f"conv {name}, {ours.dtype_of(torch.empty(0, dtype=dtype))}": time_conv(
            kernels, shape, dtype
        )
        for name, shape in SHAPES.items()
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    times["spatial transformer"] = time_transformer(kernels, copy)
    times["RoIAlign"] = time_roi_align(kernels, copy)
    return times
