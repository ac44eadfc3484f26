"""What a layer's variables are made of, entries in PyTorch's layout, and how they are set."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_deform.checkpoints import array_of

_SHOWN = 3  # names that a message shows of those that may have been meant


class Part(NamedTuple):
    """A variable, the entries that it is made of with their shapes, and how."""

    variable: Any
    shapes: dict[str, tuple[int, ...]]
    make: Callable


def kernel_parts(kernel, bias, outputs, pooled_size=None):
    """Returns the parts of a kernel and a bias that PyTorch may have in several pieces.

    outputs: {prefix of a piece: number of its output channels}. The channels are, from first to
    last axis, output, input, space in PyTorch, and the reverse in Keras, even where transposed.
    """
    *size, inputs, _ = kernel.shape

    def make_kernel(*pieces):
        whole = np.concatenate(pieces)
        if pooled_size is not None:
            whole = whole.reshape(len(whole), -1, *pooled_size)  # [outputs, channels, *pooled]
        whole = np.transpose(whole, [*range(2, whole.ndim), 1, 0])
        return whole.reshape(kernel.shape)

    if pooled_size is not None and inputs % math.prod(pooled_size):
        raise ValueError(
            f"pooled_size must divide the {inputs} inputs of the layer, received {pooled_size!r}"
        )
    shapes = {f"{prefix}weight": (each, inputs, *size) for prefix, each in outputs.items()}
    parts = [Part(kernel, shapes, make_kernel)]
    if bias is not None:
        if len(outputs) == 1:  # those of a transposed convolution are not the kernel's last axis
            outputs = dict.fromkeys(outputs, bias.shape[0])
        shapes = {f"{prefix}bias": (each,) for prefix, each in outputs.items()}
        parts.append(Part(bias, shapes, lambda *pieces: np.concatenate(pieces)))
    return parts


def linear_parts(layer, prefix, names):
    """Returns the parts of linear layers in a layer, which have the same names here and there."""
    parts = []
    for name in names:
        dense = getattr(layer, name)
        parts += kernel_parts(dense.kernel, dense.bias, {f"{prefix}{name}.": dense.units})
    return parts


def depthwise_parts(conv, prefix):
    """Returns the parts of a depthwise convolution."""
    *size, channels, _ = conv.kernel.shape

    def make_kernel(weight):
        return np.transpose(weight, [2, 3, 0, 1])  # [*size, channels, 1]

    return [
        Part(conv.kernel, {f"{prefix}weight": (channels, 1, *size)}, make_kernel),
        Part(conv.bias, {f"{prefix}bias": (channels,)}, np.asarray),
    ]


def predictor_parts(layer, offset_prefix, mask_prefix=None):
    """Returns the parts of the convolution that predicts the offsets and then the mask.

    Offsets run over deformable groups, taps and (y, x) in torchvision and mmcv as here. mmcv splits
    its channels in three and joins the first two again: these are the offsets, the third the mask.
    """
    multiplier = layer.offset_lr_multiplier
    outputs = {offset_prefix: layer.offset_kernel.shape[-1]}
    if mask_prefix is not None:
        masks = layer.deformable_groups * math.prod(layer.kernel_size)
        outputs = {offset_prefix: layer.offset_kernel.shape[-1] - masks, mask_prefix: masks}
    parts = kernel_parts(layer.offset_kernel, layer.offset_bias, outputs)
    # The variables hold the weights divided by the multiplier.
    return [
        part._replace(make=lambda *pieces, make=part.make: make(*pieces) / multiplier)
        for part in parts
    ]


def set_parts(layer, arrays, prefixes, parts):
    """Sets all the variables, or none and raises ValueError that names every entry at fault."""
    for part in parts:
        if not isinstance(part.variable, keras.Variable) or "float" not in part.variable.dtype:
            raise ValueError(
                f"layer must be neither quantized nor have LoRA enabled, received {layer.name!r}"
            )
    pieces, faults = {}, []
    for part in parts:
        for name, shape in part.shapes.items():
            try:
                pieces[name] = _piece(arrays, name, shape, part.variable.dtype)
            except ValueError as fault:
                faults.append(f"{name!r} {fault}")
    wanted = {name: shape for part in parts for name, shape in part.shapes.items()}
    prefixes = [prefix for prefix in prefixes if prefix is not None]
    wrong = [prefix for prefix in prefixes if _is_wrong(prefix, wanted, arrays)]
    known = tuple(prefix for prefix in prefixes if prefix not in wrong)
    left = [name for name in arrays if name not in wanted and str(name).startswith(known)]
    faults += [f"{name!r} is left over" for name in left]
    faults += [_remedy(prefix, wanted, arrays) for prefix in wrong]
    if faults:
        raise ValueError(f"weights must fit layer {layer.name!r}, received: {'; '.join(faults)}")
    values = [part.make(*(pieces[name] for name in part.shapes)) for part in parts]
    _assign([part.variable for part in parts], values)


def _piece(arrays, name, shape, dtype):
    """Returns the entry in the dtype, or raises ValueError with what is to follow its name."""
    if name not in arrays:
        raise ValueError("is missing")
    try:
        array = array_of(arrays[name])
    except Exception as error:  # whatever a tensor of another library, or a ragged list, raises
        raise ValueError(f"must be an array: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"must hold real numbers, not dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"must have shape {list(shape)}, not {list(array.shape)}")
    with np.errstate(over="ignore", invalid="ignore"):  # the one is told below, NaN stays NaN
        piece = array.astype(tf.as_dtype(dtype).as_numpy_dtype)
    if np.any(np.isfinite(array) & ~np.isfinite(piece)):
        raise ValueError(f"must hold finite numbers in the range of {dtype}")
    return piece


def _is_wrong(prefix, wanted, arrays):
    """Returns whether all entries that are wanted under a prefix are missing."""
    of_prefix = [name for name in wanted if name.startswith(prefix)]
    return bool(of_prefix) and not any(name in arrays for name in of_prefix)


def _remedy(prefix, wanted, arrays):
    """Returns which prefixes may have been meant in the place of a wrong one."""
    names = [name for name in arrays if isinstance(name, str)]
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in wanted.items()
        if name.startswith(prefix)
    }
    found = {
        name.removesuffix(tail): None  # the keys are a set that keeps the order
        for name in names
        for tail in shapes
        if name.endswith(tail)
    }
    near = [repr(each) for each in found if _may_be_meant(each, prefix, shapes, arrays)]
    if near:
        return f"did you mean {' or '.join(near[:_SHOWN])} in the place of {prefix!r}?"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"there are {', '.join(map(repr, names[:_SHOWN])) or 'no names'}{more}"


def _may_be_meant(other, prefix, shapes, arrays):
    """Returns whether another prefix ends as the given one does, or that one as the other.

    All prefixes end as an empty one does: under these all entries must be there in their shapes.
    """
    if not prefix:
        return all(
            tuple(getattr(arrays.get(f"{other}{tail}"), "shape", None) or ()) == shape
            for tail, shape in shapes.items()
        )
    words, others = ([word for word in each.split(".") if word] for each in (prefix, other))
    shared = min(len(words), len(others))
    return words[len(words) - shared :] == others[len(others) - shared :]


def _assign(variables, values):
    """Assigns the values to the variables, which are as they were if one of them fails."""
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    except BaseException:  # an interrupt too
        for variable, old in zip(variables, before, strict=True):
            variable.assign(old)
        raise
