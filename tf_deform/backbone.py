"""Making the convolutions of a model deformable."""

import collections.abc
import inspect

import keras

from tf_deform.layers import DeformableConv1D, DeformableConv2D, DeformableConv3D
from tf_deform.layers.deformable_conv import DeformableConv

_DEFORMABLE = {
    keras.layers.Conv1D: DeformableConv1D,
    keras.layers.Conv2D: DeformableConv2D,
    keras.layers.Conv3D: DeformableConv3D,
}
# Of a class without an `__init__` of its own, Python 3.10 gives the arguments of Keras's `__new__`.
_ARGUMENTS = inspect.signature(DeformableConv).parameters
_OPTIONS = [name for name, each in _ARGUMENTS.items() if each.kind is each.KEYWORD_ONLY]


def deformable(model, layers=None, **options):
    """Returns a copy of the model in which convolutions are deformable, with the same weights.

    The copy returns what the model returns, up to rounding, until it is trained (unless an option
    such as `mask_scale` says otherwise). Names, order, weights and what is trainable stay; the
    convolutions gain the weights that predict their offsets. Layers that are shared stay shared,
    and models in the model are copied as well. The copy is compiled if the model is, with an
    optimizer that starts anew.

    Args:
        model: Functional or Sequential Keras model, built.
        layers: which convolutions: a name or a list of names, or a function that is given each
            Conv1D, Conv2D and Conv3D layer and returns whether it is one of them. None: the last
            three with a kernel larger than 1, as the paper does in ResNet.
        **options: of the deformable layers: `deformable_groups`, `modulated`, `mask_scale`,
            `max_offset`, `offset_kernel_initializer` and `offset_gradient_scale`.

    Returns:
        A Keras model of its own: it shares no weights with the model given.

    Raises:
        ValueError: a model of another kind or not built, a name that no layer has, a layer that is
            no convolution, no layer at all, an option that is unknown or does not fit.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 3).

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((9, 7, 3)), keras.layers.Conv2D(4, 3, name="stem")]
        ... )
        >>> tfd.deformable(model, "stem", modulated=True).get_layer("stem").modulated
        True
    """
    if not _has_graph(model):
        raise ValueError(
            f"model must be a Functional or Sequential Keras model, received {model!r}"
        )
    if not model.built:
        raise ValueError(f"model must be built, received {model.name!r}, which is not")
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ValueError(f"options must be among {_listed(_OPTIONS)}, received {_listed(unknown)}")
    DeformableConv2D(1, 1, **options)  # raises on an option that does not fit
    chosen = _chosen(list(_layers_of(model)), layers)
    copies = []

    def copy(layer):
        if layer in chosen:
            config = {
                name: value
                for name, value in layer.get_config().items()
                if name in _ARGUMENTS or name in ("name", "trainable", "dtype")
            }
            copied = _DEFORMABLE[type(layer)].from_config({**config, **options})
        else:
            copied = type(layer).from_config(layer.get_config())
        copies.append((layer, copied))
        return copied

    result = keras.models.clone_model(model, clone_function=copy, recursive=True)
    if model.compiled and not result.compiled:  # as Keras 3.7 leaves a Sequential
        result.compile_from_config(model.get_compile_config())
    for layer, copied in copies:
        if layer in chosen:
            copied.kernel.assign(layer.kernel)
            if layer.use_bias:
                copied.bias.assign(layer.bias)
        elif isinstance(layer, keras.layers.Layer):
            copied.set_weights(layer.get_weights())
            if isinstance(layer, keras.layers.Normalization):
                copied.finalize_state()
    return result


def _has_graph(model):
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def _layers_of(model):
    """Yields the layers that are in the model or in models in it, in order, each once."""
    seen = set()
    for layer in model.layers:
        for each in _layers_of(layer) if _has_graph(layer) else [layer]:
            if each not in seen:
                seen.add(each)
                yield each


def _chosen(candidates, layers):
    """Returns the set of those candidates that `layers` chooses."""
    convolutions = [layer for layer in candidates if type(layer) in _DEFORMABLE]
    if layers is None:
        chosen = [layer for layer in convolutions if max(layer.kernel_size) > 1][-3:]
    elif callable(layers):
        chosen = [layer for layer in convolutions if layers(layer)]
    else:
        if not isinstance(layers, collections.abc.Iterable):
            raise ValueError(f"layers must be names, a function or None, received {layers!r}")
        names = [layers] if isinstance(layers, str) else list(layers)
        chosen = [layer for layer in candidates if layer.name in names]
        unknown = [name for name in names if name not in [layer.name for layer in chosen]]
        if unknown:
            known = _listed(layer.name for layer in convolutions) or "none"
            raise ValueError(
                f"layers must name layers of the model, received {_listed(unknown)}; its "
                f"convolutions are {known}"
            )
        for layer in chosen:
            if type(layer) not in _DEFORMABLE:
                raise ValueError(
                    "layers must name Conv1D, Conv2D or Conv3D layers, received "
                    f"{layer.name!r}, which is a {type(layer).__name__}"
                )
    if not chosen:
        raise ValueError(
            f"layers must choose convolutions of the model, received {layers!r}, which chooses "
            f"none of {len(convolutions)}"
        )
    return set(chosen)


def _listed(names):
    return ", ".join(repr(name) for name in names)
