"""What the kernels are compared with: cuDNN's and torchvision's operators, channels first."""

from functools import partial

import torch
from torch.nn.functional import conv2d


def torchvision_ops():
    """Returns torchvision.ops, or the reason why not."""
    try:
        from torchvision import ops
    except (ImportError, RuntimeError) as error:  # the latter where it is for another PyTorch
        return f"none: {(str(error) or type(error).__name__).splitlines()[0]}"
    return ops


def channels_first(tensor):
    return tensor.permute(0, 3, 1, 2).contiguous()


def plain_conv(inputs, kernel, *_):
    """Returns the plain convolution and its arguments, in the layout that cuDNN prefers."""
    given = channels_first(inputs), kernel.permute(3, 2, 0, 1)
    given = [each.to(memory_format=torch.channels_last) for each in given]
    return partial(conv2d, padding=1), given


def deform_conv(inputs, kernel, offset, mask):
    """Returns torchvision's modulated convolution and its arguments, all of the inputs' type."""
    ops = torchvision_ops()

    def convolve(inputs, weight, offset, mask):
        return ops.deform_conv2d(inputs, offset, weight, padding=1, mask=mask)

    moved = [channels_first(each).to(inputs.dtype) for each in (offset, mask)]
    return convolve, [channels_first(inputs), kernel.permute(3, 2, 0, 1).contiguous(), *moved]
