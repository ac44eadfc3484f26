"""Weights from torchvision, PyTorch, mmcv and InternImage for built layers; none is needed.

The weights are a mapping of names to arrays or PyTorch tensors, such as `model.state_dict()`, or
the path of a .safetensors, .npz, .pt or .pth file, which `read` reads. Tensors may be of half
precision, require gradients and be on any device. If a checkpoint holds the mapping as
"state_dict", "model" or "model_state_dict", that mapping is used. NaN and infinite numbers are
loaded as they are. Either all weights of a layer are set or none.

PyTorch pads both sides equally, and its `padding=1` is `padding=1` here. "same" differs at strides
above 1: at stride 2 and a kernel of 3 it pads even sizes only at their end. Keras's own layers have
no such padding: put `keras.layers.ZeroPadding2D(1)` before a layer with "valid".
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from tf_deform.annotations import Weights
from tf_deform.checkpoints import state_dict_of
from tf_deform.layers import DCNv3, DCNv4, MultiScaleDeformableAttention
from tf_deform.layers.deformable_conv import DeformableConv
from tf_deform.ops import validation
from tf_deform.weight_files import read
from tf_deform.weight_parts import (
    Part,
    depthwise_parts,
    kernel_parts,
    linear_parts,
    predictor_parts,
    set_parts,
)

__all__ = ["load_dcn", "load_mmcv", "load_torchvision", "read"]


def __dir__() -> list[str]:
    return __all__


_KERNEL_LAYERS = (
    *(DeformableConv, keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D),
    *(keras.layers.Conv3D, keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    keras.layers.Conv3DTranspose,
)


def load_torchvision(
    layer: keras.Layer,
    weights: Weights,
    prefix: str = "",
    *,
    offset_prefix: str | None = None,
    mask_prefix: str | None = None,
    pooled_size: tuple[int, int] | None = None,
) -> None:
    """Sets the weights of a built layer from those of a torchvision or PyTorch layer.

    It loads torchvision's DeformConv2d into a deformable convolution, and Linear, Conv and
    ConvTranspose, as in torchvision's detection heads, into the Keras layer of the same kind.
    torchvision's DeformConv2d predicts no offsets. The model has a separate convolution for that,
    with the same kernel size, strides, padding and dilation, and sometimes another for the mask.

    PyTorch's `padding=1` is `padding=1` here, not "same", which differs at strides above 1: then a
    warning says so. Set `mask_scale` to the factor by which the model multiplies the sigmoid, often
    1.

    Args:
        layer: a built DeformableConv1D, 2D or 3D, or a Dense, Conv or ConvTranspose layer of Keras.
        weights: mapping of names to arrays or tensors in PyTorch's layout, or a path.
        prefix: of the layer's names, such as "backbone.conv1."; "weight" and "bias" follow it.
        offset_prefix: of the names of the convolution that predicts the offsets. Required if the
            layer predicts its offsets, and only then.
        mask_prefix: of the names of the convolution that predicts the logits of the mask. None if
            the convolution of the offsets predicts them too, after the offsets.
        pooled_size: (height, width) of the pooled regions, for a Dense layer that takes them
            flattened, such as the first of a head: PyTorch flattens channels first.

    Raises:
        ValueError: an entry is missing, is left over under a prefix, has another shape, holds no
            real numbers, or holds finite numbers beyond the range of the layer's dtype. The message
            names all such entries, and the layer does not change. If all entries under a prefix are
            missing, it suggests other prefixes. Also if the layer is of another kind, not built,
            quantized or with LoRA enabled, or if the prefixes do not fit it.
        TypeError: `weights` is neither a mapping nor a path, but for example a module. Errors of
            `read` are raised too.

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
    parts = kernel_parts(layer.kernel, layer.bias, {prefix: layer.kernel.shape[-1]}, pooled_size)
    if predicts:
        parts += predictor_parts(layer, offset_prefix, mask_prefix)
    set_parts(layer, _arrays(weights), [prefix, offset_prefix, mask_prefix], parts)
    _warn_of_same(layer)


def load_mmcv(layer: keras.Layer, weights: Weights, prefix: str = "") -> None:
    """Sets the weights of a built layer from those of an mmcv layer.

    Load DeformConv2dPack (registered as DCN) into a layer without modulation. Load
    ModulatedDeformConv2dPack (DCNv2) into one with `modulated=True` and `mask_scale=1`, because
    mmcv's mask is the sigmoid itself. Load DeformConv2d and ModulatedDeformConv2d into a layer that
    was first called with an offset. Unmodulated layers of mmcv have no bias: use `use_bias=False`.
    MultiScaleDeformableAttention has the same names in mmcv and in the authors' Deformable DETR.

    mmcv's `padding=1` is `padding=1` here, not "same", which differs at strides above 1: then a
    warning says so.

    Args:
        layer: a built DeformableConv2D without `max_offset`, or MultiScaleDeformableAttention.
        weights: mapping of names to arrays or tensors in PyTorch's layout, or a path.
        prefix: of the layer's names, such as "backbone.layer4.0.conv2."; "weight", "bias",
            "conv_offset.weight" and "conv_offset.bias" follow it. Older files call the last two
            "backbone.layer4.0.conv2_offset.weight" and "...bias"; this works too.

    Raises:
        ValueError: an entry is missing, is left over under the prefix, has another shape, holds no
            real numbers, or holds finite numbers beyond the range of the layer's dtype. The message
            names all such entries, and the layer does not change. If all entries under a prefix are
            missing, it suggests other prefixes. Also if the layer is of another kind, not built,
            quantized or with LoRA enabled, or has an option that mmcv does not have.
        TypeError: `weights` is neither a mapping nor a path, but for example a module. Errors of
            `read` are raised too.

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
        set_parts(layer, _arrays(weights), [prefix], linear_parts(layer, prefix, names))
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
    parts = kernel_parts(layer.kernel, layer.bias, {prefix: layer.filters})
    older = f"{prefix[:-1]}_offset." if prefix else None
    if predicts:
        found = older if f"{older}weight" in arrays else f"{prefix}conv_offset."
        parts += predictor_parts(layer, found)
    set_parts(layer, arrays, [prefix, older], parts)
    _warn_of_same(layer)


def load_dcn(layer: keras.Layer, weights: Weights, prefix: str = "") -> None:
    """Sets the weights of a built DCNv3 or DCNv4 from those of the authors' modules.

    Args:
        layer: a built DCNv3 or DCNv4 with the options of the module: `kernel_size`, `groups`,
            `depthwise_kernel_size`, `center_feature_scale`, `remove_center`, and DCNv4's
            `pointwise` and `output_bias`.
        weights: mapping of names to arrays or tensors in PyTorch's layout, or a path.
        prefix: of the layer's names, such as "levels.0.blocks.1.dcn.".

    Raises:
        ValueError: an entry is missing, is left over under the prefix, has another shape, holds no
            real numbers, or holds finite numbers beyond the range of the layer's dtype. The message
            names all such entries, and the layer does not change. If all entries under a prefix are
            missing, it suggests other prefixes. Also if the layer is of another kind, not built,
            quantized or with LoRA enabled.
        TypeError: `weights` is neither a mapping nor a path, but for example a module. Errors of
            `read` are raised too.

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
        parts = depthwise_parts(layer.dw_conv, f"{prefix}dw_conv.0.")
        # The first in the authors' block around it changes the layout.
        for variable, name in ((layer.dw_norm.gamma, "weight"), (layer.dw_norm.beta, "bias")):
            shapes = {f"{prefix}dw_conv.1.1.{name}": tuple(variable.shape)}
            parts.append(Part(variable, shapes, np.asarray))
        parts += linear_parts(layer, prefix, ("offset", "mask", "input_proj", "output_proj"))
    else:
        parts = linear_parts(layer, prefix, ("offset_mask",))
        if layer.depthwise_kernel_size is not None:
            parts += depthwise_parts(layer.offset_mask_dw, f"{prefix}offset_mask_dw.")
        if layer.pointwise:
            parts += linear_parts(layer, prefix, ("value_proj", "output_proj"))
    if layer.center_feature_scale:
        share = layer.center_feature_scale_proj
        # The authors' are parameters of their own: "center_feature_scale_proj_weight".
        outputs = {f"{prefix}center_feature_scale_proj_": layer.groups}
        parts += kernel_parts(share.kernel, share.bias, outputs)
    set_parts(layer, _arrays(weights), [prefix], parts)


def _check_layer(layer, kinds):
    if not isinstance(layer, kinds):
        known = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"layer must be one of {known}, received a {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"layer must be built, received {layer.name!r}, which is not")


def _arrays(weights):
    """Returns the mapping of names to arrays or tensors."""
    if not isinstance(weights, Mapping):
        return read(weights)
    try:
        return state_dict_of(weights)
    except ValueError as fault:
        raise ValueError(f"weights must be one state_dict: {fault}") from fault


def _warn_of_same(layer):
    """Warns if a convolution pads by "same" where PyTorch's padding, alike on both sides, differs.

    It does so at most sizes, which are not known here.
    """
    if getattr(layer, "padding", None) != "same" or "Transpose" in type(layer).__name__:
        return
    sizes_and_rates = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    reach = [(size - 1) * rate for size, rate in sizes_and_rates]  # from first to last tap
    if any(step > 1 and each >= step for step, each in zip(layer.strides, reach, strict=True)):
        pads = [(each // 2, each // 2) for each in reach]
        pads = pads[0][0] if len(set(pads)) == 1 else pads
        remedy = f"padding={pads}"
        if not isinstance(layer, DeformableConv):
            remedy = f"padding='valid' after keras.layers.ZeroPadding{len(reach)}D({pads})"
        validation.warn(
            f"layer {layer.name!r} has padding='same' and strides={tuple(layer.strides)}, which "
            "pads many sizes differently from PyTorch: "
            f"its padding={reach[0] // 2} is {remedy} here"
        )
