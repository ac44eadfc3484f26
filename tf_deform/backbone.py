"""Making the convolutions of a model deformable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from tf_deform.convolutions import chosen, has_graph, layers_of
from tf_deform.layers import DeformableConv1D, DeformableConv2D, DeformableConv3D
from tf_deform.layers.deformable_conv import DeformableConv
from tf_deform.ops import validation

_DEFORMABLE = {1: DeformableConv1D, 2: DeformableConv2D, 3: DeformableConv3D}
# Of a class without an `__init__` of its own, Python 3.10 gives the arguments of Keras's `__new__`.
_ARGUMENTS = inspect.signature(DeformableConv).parameters
_OF_TRAINING = ("train_offsets_only", "lora_rank", "lora_alpha")
_OPTIONS = [
    name
    for name, each in _ARGUMENTS.items()
    if each.kind is each.KEYWORD_ONLY and name not in _OF_TRAINING
]
_KEPT = (*_ARGUMENTS, "name", "trainable", "dtype")
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
# What a separable convolution does after its second kernel, and where.
_OF_POINTWISE = (
    *("filters", "data_format", "activation", "activity_regularizer"),
    *("use_bias", "bias_initializer", "bias_regularizer", "bias_constraint"),
    *("trainable", "dtype"),
)


def deformable(
    model: keras.Model,
    layers: str
    | keras.layers.Layer
    | Iterable[str | keras.layers.Layer]
    | Callable[[keras.layers.Layer], bool]
    | None = None,
    *,
    train_offsets: bool = True,
    verbose: bool = True,
    **options: Any,
) -> keras.Model:
    """Returns a copy of the model in which convolutions are deformable, with the same weights.

    Until it is trained, the copy returns what the model returns, up to rounding (unless an option
    such as `mask_scale` changes that). Names, order and weights stay the same; each converted
    convolution gains the weights that predict its offsets. Shared layers stay shared. Models inside
    the model are copied too, as Functional and Sequential models. If the model is compiled, the
    copy is compiled with a new optimizer of the same configuration.

    A depthwise convolution becomes a deformable one with as many groups as channels. A separable
    convolution becomes a Sequential model of the same name with two layers: `<name>_depthwise`,
    which is deformable, and `<name>_pointwise`.

    Args:
        model: a built Functional or Sequential Keras model.
        layers: which convolutions to convert: a layer, a name, a path such as "backbone/conv5" to a
            layer of a model inside the model, or a list of these; or a function that gets each
            Conv1D, Conv2D, Conv3D, DepthwiseConv and SeparableConv layer and returns whether to
            convert it. None: the last three with a kernel larger than 1, as the paper does in
            ResNet, without stems. No other layer with a kernel comes before a stem. Layers that are
            already deformable count among the three.
        train_offsets: whether a frozen convolution becomes a layer whose offsets are trained while
            its kernel and bias stay frozen (`train_offsets_only`). The models around it become
            trainable; all other layers stay frozen, and batch normalization stays in inference
            mode. False: the whole layer stays frozen.
        verbose: whether to print each converted layer, with its parameters before and after.
        **options: of the deformable layers: `deformable_groups`, `modulated`, `mask_scale`,
            `max_offset`, `offset_kernel_initializer`, `offset_lr_multiplier` and
            `offset_gradient_scale`.

    Returns:
        A new Keras model. It shares no weights with the given model.

    Raises:
        ValueError: the model is of another kind or not built; a name belongs to no layer or to
            several; a layer is of another class; there is no layer to convert; an option is unknown
            or invalid.

    Warns:
        UserWarning: with layers=None, there are fewer than three layers, or all are already
            deformable.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 3).

    Example:
        >>> images = keras.Input((9, 7, 3))
        >>> stem = keras.layers.Conv2D(4, 3, name="stem")
        >>> conv = keras.layers.Conv2D(4, 3, name="conv")
        >>> model = keras.Sequential([images, stem, conv], name="small")
        >>> tfd.deformable(model, "conv", modulated=True).get_layer("conv").modulated
        conv (Conv2D): 148 -> 1,147 parameters
        small, 1 layer converted: 260 -> 1,259 parameters (+384.2%)
        True
    """
    _check(model, options)
    train_offsets = validation.boolean("train_offsets", train_offsets)
    verbose = validation.boolean("verbose", verbose)
    places = chosen(model, layers)
    copies: dict = {}

    def copy(layer):
        if layer in places:
            copies[layer] = _converted(layer, train_offsets, options)
        else:
            copies[layer] = type(layer).from_config(layer.get_config())
        return copies[layer]

    result = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, copied in copies.items():
        if layer in places:
            _copy_convolution(layer, copied)
        elif isinstance(layer, keras.layers.Layer):
            copied.set_weights(layer.get_weights())
            if isinstance(layer, keras.layers.Normalization):
                copied.finalize_state()
    if train_offsets:
        _open_models(result)
    if model.compiled:  # once more: the optimizer holds what is trainable, and Keras 3.7 none
        result.compile_from_config(model.get_compile_config())
    if verbose:
        _report(model, result, {path: (layer, copies[layer]) for layer, path in places.items()})
    return result


def _check(model, options):
    """Raises ValueError for a model that cannot be copied and for options that do not fit."""
    if not has_graph(model):
        raise ValueError(
            f"model must be a Functional or Sequential Keras model, received {model!r}"
        )
    if not model.built:
        raise ValueError(f"model must be built, received {model.name!r}, which is not")
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        known, received = (", ".join(map(repr, names)) for names in (_OPTIONS, unknown))
        raise ValueError(f"options must be among {known}, received {received}")
    DeformableConv2D(1, 1, **options)  # raises on an option that does not fit


def _converted(layer, train_offsets, options):
    """Returns what stands in a convolution's place, without its weights."""
    given = layer.get_config()
    config = {name: given[name] for name in _KEPT if name in given}
    if "depth_multiplier" in given:
        channels = _kernels(layer)[0].shape[-2]
        config |= {"filters": channels * given["depth_multiplier"], "groups": channels}
        config |= _of_kernel("depthwise", given)
    config |= options
    if train_offsets and not layer.trainable:
        config |= {"trainable": True, "train_offsets_only": True}
    rank = len(layer.kernel_size)
    if not isinstance(layer, _SEPARABLE):
        return _DEFORMABLE[rank].from_config(config)
    config |= {"activation": None, "use_bias": False, "activity_regularizer": None}
    depthwise = _DEFORMABLE[rank].from_config({**config, "name": f"{layer.name}_depthwise"})
    pointwise = {name: given[name] for name in _OF_POINTWISE} | _of_kernel("pointwise", given)
    pointwise |= {"kernel_size": 1, "name": f"{layer.name}_pointwise"}
    space = (None,) * rank
    shape = (*space, channels) if layer.data_format == "channels_last" else (channels, *space)
    images = keras.Input(shape, dtype=layer.compute_dtype)
    convolution = (keras.layers.Conv1D if rank == 1 else keras.layers.Conv2D).from_config(pointwise)
    return keras.Sequential([images, depthwise, convolution], name=layer.name)


def _of_kernel(kind, config):
    """Returns what a config says of the "depthwise" or "pointwise" kernel, as of `kernel`."""
    roles = ("initializer", "regularizer", "constraint")
    return {f"kernel_{role}": config[f"{kind}_{role}"] for role in roles}


def _kernels(layer):
    if isinstance(layer, _SEPARABLE):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel]


def _copy_convolution(layer, copied):
    """Gives what was converted the convolution's weights, which are in the same order."""
    weights = [*_kernels(layer), *([layer.bias] if layer.use_bias else [])]
    kept = [weight for weight in copied.weights if not weight.name.startswith("offset_")]
    for weight, old in zip(kept, weights, strict=True):
        # A depthwise kernel [*size, channels, multiplier] is a grouped one [*size, 1, filters].
        weight.assign(keras.ops.reshape(old, weight.shape))


def _open_models(model):
    """Makes the model and those in it trainable; the layers in them stay as they are."""
    layers = layers_of(model)
    models = [model, *filter(has_graph, layers)]
    if all(each.trainable for each in models):
        return
    states = [
        (layer, layer.trainable, getattr(layer, "train_offsets_only", False))
        for layer in layers
        if not has_graph(layer)
    ]
    for each in models:
        each.trainable = True  # and with it every layer
    for layer, trainable, offsets_only in states:
        layer.trainable = trainable
        if offsets_only:
            layer.train_offsets_only = True


def _report(model, result, converted):
    """Prints what was converted, a line each, and how many parameters the model has gained."""
    for path, (layer, copied) in converted.items():
        parameters = f"{layer.count_params():,} -> {copied.count_params():,}"
        frozen = ", frozen but for its offsets" if copied.trainable and not layer.trainable else ""
        print(f"{path} ({type(layer).__name__}{frozen}): {parameters} parameters")
    before, after = model.count_params(), result.count_params()
    count = f"{len(converted)} layer{'' if len(converted) == 1 else 's'} converted"
    growth = f"+{after / before - 1:.1%}"
    print(f"{model.name}, {count}: {before:,} -> {after:,} parameters ({growth})")
