"""Multi-scale deformable attention of other packages: where a layer has it, and ours in its form.

Nothing of these packages is imported: a core is known by its name, and by where the layer has it.
"""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.ops import validation


class Core(NamedTuple):
    """A layer's deformable attention that another package has written."""

    layer: keras.layers.Layer
    attribute: str  # of the layer, which holds ours while it is replaced
    original: Callable  # what the attribute is without us
    ours: Callable  # takes what the original takes
    function: str  # the foreign function, with its module
    is_known: bool  # whether it is the code that this module was written for

    @property
    def path(self) -> str:
        """The layer's place in its model."""
        return self.layer.path or self.layer.name


def core_of(layer: Any) -> Core | None:
    """Returns the deformable attention of a layer, or None if it has none, or ours."""
    original = vars(layer).get(_ATTRIBUTE)
    if callable(original) and not hasattr(original, "replaced"):
        known = _digest(original) in _KNOWN
        return Core(layer, _ATTRIBUTE, original, _keras_hub, _dotted(original), known)
    call = inspect.unwrap(getattr(type(layer), "call", None) or _nothing)
    if "call" in vars(layer) or not isinstance(call, types.FunctionType):
        return None
    for name, ours in _GLOBALS.items():
        function = call.__globals__.get(name)
        if name in call.__code__.co_names and callable(function):
            known = {_digest(function), _digest(call)} <= _KNOWN
            changed = types.MethodType(_with_global(call, name, ours), layer)
            return Core(layer, "call", layer.call, changed, _dotted(function), known)
    return None


def _nothing():
    """Stands for the call of what has none."""


def _dotted(function):
    return f"{function.__module__}.{function.__qualname__}"


def _with_global(function, name, value):
    """Returns the function with another value of a global name, which stays as it is elsewhere."""
    changed = types.FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


def _digest(function):
    """Returns a few characters that change with a function's source, None if there is no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return None
    return hashlib.sha256("".join(source.split()).encode()).hexdigest()[:12]


# Ours, in the forms of the others


def _attend(value, shapes, locations, weights, num_points=None, method="default"):
    """Returns `[batch, queries, heads * dim]`.

    value: `[batch, pixels of all maps, heads, dim]`. shapes: (height, width) of each map. The rest
    is as our operator takes it.
    """
    batch, _, heads, dim = validation.sizes(value)
    sizes = [int(height) * int(width) for height, width in shapes]
    value = tf.reshape(value, [batch, sum(sizes), heads * dim])
    maps = [
        tf.reshape(part, [batch, int(height), int(width), heads * dim])
        for part, (height, width) in zip(tf.split(value, sizes, axis=1), shapes, strict=True)
    ]
    return ops.multi_scale_deformable_attention(
        maps, locations, weights, num_points=num_points, method=method
    )


def _keras_hub(
    value,
    dynamic_spatial_shapes,
    sampling_locations,
    attention_weights,
    num_points,
    slice_sizes,
    spatial_shapes,
    num_levels,
    num_queries,
    method="default",
):
    """D-FINE of KerasHub; any other method than "discrete" means "default" there."""
    method = "discrete" if method == "discrete" else "default"
    num_points = [int(each) for each in num_points]
    shapes = list(spatial_shapes)
    return _attend(value, shapes, sampling_locations, attention_weights, num_points, method)


def _channels_before_pixels(value, value_spatial_shapes, sampling_locations, attention_weights):
    """RT-DETR, RT-DETRv2, RF-DETR and Grounding DINO: value `[batch, heads, dim, pixels]`."""
    *sizes, _ = validation.sizes(sampling_locations)  # batch, queries, heads, levels, points
    value = tf.transpose(value, [0, 3, 1, 2])
    weights = tf.reshape(attention_weights, sizes)
    return _attend(value, value_spatial_shapes, sampling_locations, weights)


def _points_of_each_level(
    value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list
):
    """D-FINE of zeromodels."""
    num_points = [int(each) for each in num_points_list]
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights, num_points)


class _Samples:
    """Samples that are taken once they are multiplied with their weights, and added up with them.

    Mask2Former's and OneFormer's: `sum(bilinear_sample(...) * weights, axis=(levels, points))`.
    """

    def __init__(self, value, sampling_locations, spatial_shapes):
        self.arguments = value, spatial_shapes, sampling_locations

    def __mul__(self, weights):
        sums = _attend(*self.arguments, tf.squeeze(weights, -1))
        batch, queries, heads = validation.sizes(weights)[:3]
        return tf.reshape(sums, [batch, queries, heads, 1, 1, sums.shape[-1] // heads])


# Of the instance in KerasHub; global names that a `call` reads in zeromodels.
_ATTRIBUTE = "ms_deformable_attn_core"
_GLOBALS: dict[str, Callable] = {
    "ms_deform_attn_core": _channels_before_pixels,
    "ms_deform_attn_core_variable": _points_of_each_level,
    "bilinear_sample": _Samples,
}
# Digests of the functions, and of the calls that read them, in keras-hub 0.32 and zeromodels 1.3.6.
_KNOWN = {
    "d233644b74ec",  # KerasHub
    *("e543c4a0a48a", "90449cf41fb3", "0cebc5683400"),  # RT-DETR and RT-DETRv2
    *("215539858939", "8d53dcf25ba8"),  # RF-DETR
    *("13a2ea965fff", "9b23fb8dd5bc"),  # D-FINE
    *("8bb4ca090ca6", "2102fff46a83"),  # Mask2Former and OneFormer
    *("e247a994a1a9", "01a0965a94b8"),  # Grounding DINO
}
