"""The kernels' results in plain tensor operations, which PyTorch differentiates."""

import itertools
import math

import torch


def sample_reference(values, points, weights, index):
    """Returns `Kernels.sample` in tensor operations; its derivatives are those of the kernels."""
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
