"""Weights from torchvision, PyTorch, mmcv and InternImage into built layers; none is needed.

The weights are a mapping of names to arrays, such as `{name: tensor.numpy() for name, tensor in
model.state_dict().items()}`, or the path of a .safetensors or .npz file, which `read` reads. NaN
and infinite numbers are taken as they are. Either all weights of a layer are set or none.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_deform.layers import DCNv3, DCNv4, MultiScaleDeformableAttention
from tf_deform.layers.deformable_conv import DeformableConv
from tf_deform.weight_files import read

_KERNEL_LAYERS = (
    *(DeformableConv, keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D),
    *(keras.layers.Conv3D, keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    keras.layers.Conv3DTranspose,
)


def load_torchvision(
    layer, weights, prefix="", *, offset_prefix=None, mask_prefix=None, pooled_size=None
):
    """Sets the weights of a built layer from those of torchvision's or PyTorch's.

    From torchvision's DeformConv2d into a deformable convolution; from Linear, Conv and
    ConvTranspose, as torchvision's heads for regions have them, into the Keras layers of that kind.
    torchvision's DeformConv2d predicts no offsets. A model has a convolution of its own for that,
    of the same kernel size, strides, padding and dilation, and at times another one for the mask.

    PyTorch pads alike on both sides: give the layer its `padding` as an int, because "same" differs
    where strides are above 1. `mask_scale` is what the model multiplies the sigmoid by, often 1.

    Args:
        layer: a built DeformableConv1D, 2D or 3D, or a Dense, Conv or ConvTranspose layer of Keras.
        weights: mapping of names to arrays in PyTorch's layout, or a path.
        prefix: of the layer's names, as "backbone.conv1."; what follows is "weight" and "bias".
        offset_prefix: of the names of the convolution that predicts the offsets; it is given if
            the layer predicts its offsets, and only then.
        mask_prefix: of the names of the convolution that predicts the logits of the mask; None if
            that of the offsets predicts them too, after the offsets.
        pooled_size: (height, width) of the pooled regions if the layer is a Dense that takes them
            flattened, as the first of a head does: PyTorch flattens channels first.

    Raises:
        ValueError: an entry is missing, is left over under a prefix, has another shape, or holds
            no real numbers or finite ones beyond the range of the layer's dtype; all such entries
            are named, and the layer is as before. Also a layer of another kind, not built,
            quantized or with LoRA enabled, or prefixes that do not fit it.
        TypeError: `weights` is neither a mapping nor a path. What `read` raises, too.

    Source: torchvision.ops.DeformConv2d, torchvision.models.detection.roi_heads.

    Example:
        >>> layer = tfd.layers.DeformableConv2D(6, 3, padding=1)
        >>> layer.build((None, 9, 7, 4))
        >>> weights = {"conv.weight": np.ones([6, 4, 3, 3]), "conv.bias": np.ones([6])}
        >>> weights |= {"offset.weight": np.zeros([18, 4, 3, 3]), "offset.bias": np.zeros([18])}
        >>> load_torchvision(layer, weights, "conv.", offset_prefix="offset.")
    """
    _check_layer(layer, _KERNEL_LAYERS)
    predicts = isinstance(layer, DeformableConv) and layer.offset_kernel is not None
    if predicts != (offset_prefix is not None):
        raise ValueError(
            f"offset_prefix must be given if the layer predicts its offsets, and only then: layer "
            f"{layer.name!r} {'does' if predicts else 'does not'}, received {offset_prefix!r}"
        )
    if mask_prefix is not None and not (predicts and layer.modulated):
        raise ValueError(
            f"mask_prefix must be None unless the layer predicts a modulation, received "
            f"{mask_prefix!r} for layer {layer.name!r}"
        )
    if pooled_size is not None and not isinstance(layer, keras.layers.Dense):
        raise ValueError(
            f"pooled_size must be None unless the layer is a Dense, received {pooled_size!r} for "
            f"layer {layer.name!r}"
        )
    parts = _parts(layer.kernel, layer.bias, {prefix: layer.kernel.shape[-1]}, pooled_size)
    if predicts:
        parts += _predictor_parts(layer, offset_prefix, mask_prefix)
    _load(layer, weights, [prefix, offset_prefix, mask_prefix], parts)


def load_mmcv(layer, weights, prefix=""):
    """Sets the weights of a built layer from those of mmcv's.

    From DeformConv2dPack (registered as DCN) into a plain layer, from ModulatedDeformConv2dPack
    (DCNv2) into one with `modulated=True` and `mask_scale=1`: mmcv's mask is the sigmoid itself.
    From DeformConv2d and ModulatedDeformConv2d into a layer built with an offset given. mmcv has no
    bias in the unmodulated ones, so `use_bias=False` there, and pads alike on both sides: give the
    layer its `padding` as an int. MultiScaleDeformableAttention has the same names in mmcv and in
    the authors' Deformable DETR.

    Args:
        layer: a built DeformableConv2D without `max_offset`, or MultiScaleDeformableAttention.
        weights: mapping of names to arrays in PyTorch's layout, or a path.
        prefix: of the layer's names, as "backbone.layer4.0.conv2."; what follows is "weight",
            "bias", "conv_offset.weight" and "conv_offset.bias". Older files have the last two as
            "backbone.layer4.0.conv2_offset.weight" and "...bias", which is understood.

    Raises:
        ValueError: an entry is missing, is left over under the prefix, has another shape, or holds
            no real numbers or finite ones beyond the range of the layer's dtype; all such entries
            are named, and the layer is as before. Also a layer of another kind, not built,
            quantized or with LoRA enabled, or with an option that mmcv does not have.
        TypeError: `weights` is neither a mapping nor a path. What `read` raises, too.

    Source: mmcv.ops: deform_conv, modulated_deform_conv and multi_scale_deform_attn.

    Example:
        >>> layer = tfd.layers.DeformableConv2D(6, 3, padding=1, modulated=True, mask_scale=1)
        >>> layer.build((None, 9, 7, 4))
        >>> weights = {"weight": np.ones([6, 4, 3, 3]), "bias": np.ones([6])}
        >>> weights["conv_offset.weight"] = np.zeros([27, 4, 3, 3])
        >>> weights["conv_offset.bias"] = np.zeros([27])
        >>> load_mmcv(layer, weights)
    """
    _check_layer(layer, (DeformableConv, MultiScaleDeformableAttention))
    if isinstance(layer, MultiScaleDeformableAttention):
        names = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        _load(layer, weights, [prefix], _linear_parts(layer, prefix, names))
        return
    predicts = layer.offset_kernel is not None
    if predicts and layer.modulated and layer.mask_scale != 1:
        raise ValueError(
            "layer must have mask_scale=1, because mmcv's mask is the sigmoid itself, received "
            f"{layer.name!r} with mask_scale={layer.mask_scale}"
        )
    if predicts and layer.max_offset is not None:
        raise ValueError(
            "layer must have max_offset=None, because mmcv's offsets are unbounded, received "
            f"{layer.name!r} with max_offset={layer.max_offset}"
        )
    arrays = _arrays(weights)
    parts = _parts(layer.kernel, layer.bias, {prefix: layer.filters})
    older = f"{prefix[:-1]}_offset." if prefix else None
    if predicts:
        found = older if f"{older}weight" in arrays else f"{prefix}conv_offset."
        parts += _predictor_parts(layer, found)
    _load(layer, arrays, [prefix, older], parts)


def load_dcn(layer, weights, prefix=""):
    """Sets the weights of a built DCNv3 or DCNv4 from those of the authors' modules.

    Args:
        layer: a built DCNv3 or DCNv4 with the options of the module: `kernel_size`, `groups`,
            `depthwise_kernel_size`, `center_feature_scale`, `remove_center`, and DCNv4's
            `pointwise` and `output_bias`.
        weights: mapping of names to arrays in PyTorch's layout, or a path.
        prefix: of the layer's names, as "levels.0.blocks.1.dcn.".

    Raises:
        ValueError: an entry is missing, is left over under the prefix, has another shape, or holds
            no real numbers or finite ones beyond the range of the layer's dtype; all such entries
            are named, and the layer is as before. Also a layer of another kind, not built,
            quantized or with LoRA enabled.
        TypeError: `weights` is neither a mapping nor a path. What `read` raises, too.

    Source: the modules of InternImage (arXiv:2211.05778) and of DCNv4 (arXiv:2401.06197).

    Example:
        >>> layer = tfd.layers.DCNv4(groups=2)
        >>> layer.build((None, 9, 7, 16))
        >>> weights = {"offset_mask.weight": np.zeros([56, 16]), "offset_mask.bias": np.zeros([56])}
        >>> for name in ("value_proj", "output_proj"):
        ...     weights[f"{name}.weight"], weights[f"{name}.bias"] = np.eye(16), np.zeros([16])
        >>> load_dcn(layer, weights)
    """
    _check_layer(layer, (DCNv3, DCNv4))
    if isinstance(layer, DCNv3):
        parts = _depthwise_parts(layer.dw_conv, f"{prefix}dw_conv.0.")
        # The first in the authors' block around it changes the layout.
        for variable, name in ((layer.dw_norm.gamma, "weight"), (layer.dw_norm.beta, "bias")):
            shapes = {f"{prefix}dw_conv.1.1.{name}": tuple(variable.shape)}
            parts.append(_Part(variable, shapes, np.asarray))
        parts += _linear_parts(layer, prefix, ("offset", "mask", "input_proj", "output_proj"))
    else:
        parts = _linear_parts(layer, prefix, ("offset_mask",))
        if layer.depthwise_kernel_size is not None:
            parts += _depthwise_parts(layer.offset_mask_dw, f"{prefix}offset_mask_dw.")
        if layer.pointwise:
            parts += _linear_parts(layer, prefix, ("value_proj", "output_proj"))
    if layer.center_feature_scale:
        share = layer.center_feature_scale_proj
        # The authors' are parameters of their own: "center_feature_scale_proj_weight".
        outputs = {f"{prefix}center_feature_scale_proj_": layer.groups}
        parts += _parts(share.kernel, share.bias, outputs)
    _load(layer, weights, [prefix], parts)


def _check_layer(layer, kinds):
    if not isinstance(layer, kinds):
        known = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"layer must be one of {known}, received a {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"layer must be built, received {layer.name!r}, which is not")


class _Part(NamedTuple):
    """A variable, the entries that it is made of with their shapes, and how."""

    variable: Any
    shapes: dict[str, tuple[int, ...]]
    make: Callable


def _parts(kernel, bias, outputs, pooled_size=None):
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
    parts = [_Part(kernel, shapes, make_kernel)]
    if bias is not None:
        if len(outputs) == 1:  # those of a transposed convolution are not the kernel's last axis
            outputs = dict.fromkeys(outputs, bias.shape[0])
        shapes = {f"{prefix}bias": (each,) for prefix, each in outputs.items()}
        parts.append(_Part(bias, shapes, lambda *pieces: np.concatenate(pieces)))
    return parts


def _linear_parts(layer, prefix, names):
    """Returns the parts of linear layers in a layer, which have the same names here and there."""
    parts = []
    for name in names:
        dense = getattr(layer, name)
        parts += _parts(dense.kernel, dense.bias, {f"{prefix}{name}.": dense.units})
    return parts


def _depthwise_parts(conv, prefix):
    """Returns the parts of a depthwise convolution."""
    *size, channels, _ = conv.kernel.shape

    def make_kernel(weight):
        return np.transpose(weight, [2, 3, 0, 1])  # [*size, channels, 1]

    return [
        _Part(conv.kernel, {f"{prefix}weight": (channels, 1, *size)}, make_kernel),
        _Part(conv.bias, {f"{prefix}bias": (channels,)}, np.asarray),
    ]


def _predictor_parts(layer, offset_prefix, mask_prefix=None):
    """Returns the parts of the convolution that predicts the offsets and then the mask.

    Offsets run over deformable groups, taps and (y, x) in torchvision and mmcv as here. mmcv splits
    its channels in three and joins the first two again: these are the offsets, the third the mask.
    """
    outputs = {offset_prefix: layer.offset_kernel.shape[-1]}
    if mask_prefix is not None:
        masks = layer.deformable_groups * math.prod(layer.kernel_size)
        outputs = {offset_prefix: layer.offset_kernel.shape[-1] - masks, mask_prefix: masks}
    return _parts(layer.offset_kernel, layer.offset_bias, outputs)


def _arrays(weights):
    return weights if isinstance(weights, Mapping) else read(weights)


def _load(layer, weights, prefixes, parts):
    """Sets all the variables, or none and raises ValueError that names every entry at fault."""
    for part in parts:
        if not isinstance(part.variable, keras.Variable) or "float" not in part.variable.dtype:
            raise ValueError(
                f"layer must be neither quantized nor have LoRA enabled, received {layer.name!r}"
            )
    arrays = _arrays(weights)
    pieces, faults = {}, []
    for part in parts:
        for name, shape in part.shapes.items():
            try:
                pieces[name] = _piece(arrays, name, shape, part.variable.dtype)
            except ValueError as fault:
                faults.append(f"{name!r} {fault}")
    wanted = {name for part in parts for name in part.shapes}
    known = tuple(prefix for prefix in prefixes if prefix is not None)
    left = [name for name in arrays if name not in wanted and str(name).startswith(known)]
    faults += [f"{name!r} is left over" for name in left]
    if faults:
        raise ValueError(f"weights must fit layer {layer.name!r}, received: {'; '.join(faults)}")
    values = [part.make(*(pieces[name] for name in part.shapes)) for part in parts]
    _assign([part.variable for part in parts], values)


def _piece(arrays, name, shape, dtype):
    """Returns the entry in the dtype, or raises ValueError with what is to follow its name."""
    if name not in arrays:
        raise ValueError("is missing")
    try:
        array = np.asarray(arrays[name])
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
