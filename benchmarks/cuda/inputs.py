"""Random tensors to call the kernels with."""

import math

import torch

HOSTILE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 9.3e18, -1.0, 0.0, -0.0)
GEOMETRY = {"strides": (1, 1), "dilations": (1, 1), "before": (1, 1)}  # of conv_inputs


def draw(low, high):
    return int(torch.randint(low, high + 1, ()))


def coordinates(shape, space, dtype, device, hostile):
    """Returns coordinates about images of the sizes, fractional or at times hostile."""
    limit = torch.tensor(space, dtype=dtype, device=device)
    found = torch.rand(*shape, len(space), dtype=dtype, device=device) * (limit + 3) - 1.5
    if hostile:
        bad = torch.tensor(HOSTILE, dtype=dtype, device=device)
        chosen = bad[torch.randint(len(HOSTILE), found.shape, device=device)]
        found = torch.where(torch.rand(found.shape, device=device) < 0.2, chosen, found)
    return found


def normal(shape, dtype, device):
    return torch.randn(*shape, device=device).to(dtype)


def wide_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def conv_inputs(shape, dtype, device):
    """Returns inputs, kernel, offset and mask of a modulated 3x3 convolution."""
    batch, height, width, channels, filters = shape
    inputs = normal((batch, height, width, channels), dtype, device)
    kernel = normal((3, 3, channels, filters), dtype, device) / math.sqrt(9 * channels)
    offset = normal((batch, height, width, 18), torch.float32, device)
    mask = torch.rand(batch, height, width, 9, device=device)
    return inputs, kernel, offset, mask
