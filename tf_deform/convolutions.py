"""The convolutions of a model: where they are, and which of them are meant."""

import collections.abc
import warnings

import keras

from tf_deform.layers.deformable_conv import DeformableConv

KINDS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
BY_DEFAULT = 3  # as the paper does in ResNet


def has_graph(model):
    """Returns whether a layer is a model whose layers can be walked."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def layers_of(model):
    """Returns the layers in the model and in models in it, those models too, in order.

    A dictionary from the layer to its paths, the names that lead to it joined by "/": one path a
    model that has it.
    """
    found: dict = {}

    def visit(model, prefix):
        for layer in model.layers:
            found.setdefault(layer, []).append(prefix + layer.name)
            if has_graph(layer):
                visit(layer, f"{prefix}{layer.name}/")

    visit(model, "")
    return found


def chosen(model, layers):
    """Returns the convolutions of the model that `layers` chooses, each with its path, in order."""
    paths = layers_of(model)
    convolutions = [layer for layer in paths if type(layer) in KINDS]
    if layers is None:
        found = _last(model, paths)
    elif callable(layers) and not isinstance(layers, keras.layers.Layer):
        found = [layer for layer in convolutions if layers(layer)]
    else:
        found = _named(layers, paths, convolutions)
    if not found and layers is not None:
        raise ValueError(
            f"layers must choose convolutions of the model, received {layers!r}, which chooses "
            f"none of {len(convolutions)}"
        )
    return {layer: paths[layer][0] for layer in paths if layer in found}


def _last(model, paths):
    """Returns the last convolutions that see more than a pixel and are no stem."""
    with_stems = [
        layer
        for layer in paths
        if (type(layer) in KINDS or isinstance(layer, DeformableConv))
        and max(layer.kernel_size) > 1
    ]
    stems = _stems(model)
    last = [layer for layer in with_stems if layer not in stems][-BY_DEFAULT:]
    if not last:
        raise ValueError(
            f"layers must choose convolutions of the model, received None, which chooses none of "
            f"{len(with_stems)} with a kernel larger than 1; name a stem to convert it; "
            "convolutions inside a layer that is not a model cannot be converted"
        )
    if len(last) < BY_DEFAULT:
        warnings.warn(
            f"the model has fewer than {BY_DEFAULT} convolutions with a kernel larger than 1, "
            f"apart from its stem: {_listed(paths[layer][0] for layer in last)}",
            stacklevel=4,
        )
    converted = [layer for layer in last if not isinstance(layer, DeformableConv)]
    if not converted:
        warnings.warn(
            "nothing is left to convert, the last convolutions are deformable already: "
            f"{_listed(paths[layer][0] for layer in last)}; name others to convert more",
            stacklevel=4,
        )
    return converted


def _named(layers, paths, convolutions):
    """Returns the convolutions that are given, by name, by path or themselves."""
    if isinstance(layers, (str, keras.layers.Layer)):
        layers = [layers]
    if not isinstance(layers, collections.abc.Iterable):
        raise ValueError(f"layers must be names, layers, a function or None, received {layers!r}")
    matches = [(each, _matching(each, paths)) for each in layers]
    unknown = [each for each, found in matches if not found]
    if unknown:
        known = _listed(paths[layer][0] for layer in convolutions) or "none"
        raise ValueError(
            f"layers must name layers of the model, received {_listed(unknown)}; its convolutions "
            f"are {known}"
        )
    for name, found in matches:
        if len(found) > 1:
            raise ValueError(
                f"layers must name one layer each, received {name!r}, which is the name of "
                f"several; give the path, one of {_listed(paths[layer][0] for layer in found)}"
            )
        _check_kind(found[0])
    return [found[0] for _, found in matches]


def _matching(given, paths):
    """Returns the layers that are meant by a layer, a path or a name."""
    if not isinstance(given, str):
        return [layer for layer in paths if layer is given]
    at_path = [layer for layer, each in paths.items() if given in each]
    return at_path or [layer for layer in paths if layer.name == given]


def _check_kind(layer):
    """Raises ValueError unless the layer is one that can be converted."""
    if type(layer) in KINDS:
        return
    *kinds, last = (kind.__name__ for kind in KINDS)
    reason = ""
    if isinstance(layer, DeformableConv):
        reason = " and deformable already"
    elif isinstance(layer, KINDS):
        reason = ", a class of its own that may compute something else"
    elif has_graph(layer):
        reason = ": name layers in it"
    raise ValueError(
        f"layers must name {', '.join(kinds)} or {last} layers, received {layer.name!r}, which is "
        f"a {type(layer).__name__}{reason}"
    )


def _stems(model):
    """Returns the layers that no layer with a kernel precedes, as they are first called.

    A kernel is a weight with two axes or more, so that what normalises the images does not count.
    """
    stems = set()

    def visit(model, preceded):
        """Returns whether a kernel precedes what the model returns."""
        after: dict = {}
        for operation, sources in _first_calls(model):
            before = any(after[name] for name in sources) if sources else preceded
            if has_graph(operation):
                before = visit(operation, before)
            elif isinstance(operation, keras.layers.Layer):
                if not before:
                    stems.add(operation)
                before = before or any(len(weight.shape) > 1 for weight in operation.weights)
            after[operation.name] = before
        return any(after.values())

    visit(model, False)
    return stems


def _first_calls(model):
    """Yields what the model computes, in order, with the names of what each reads first."""
    if isinstance(model, keras.Sequential):
        previous: list = []
        for layer in model.layers:
            yield layer, previous
            previous = [layer.name]
        return
    # Keras shows a graph in configs alone; a subclass may have a config without one.
    config = keras.Model(model.inputs, model.outputs, name=model.name).get_config()
    operations = {operation.name: operation for operation in model.operations}
    for each in config["layers"]:
        yield operations[each["name"]], _sources(each["inbound_nodes"][:1])


def _sources(config):
    """Returns the names of the operations whose outputs are in the config of a call."""
    if isinstance(config, dict):
        if config.get("class_name") == "__keras_tensor__":
            return [config["config"]["keras_history"][0]]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return [name for each in config for name in _sources(each)]
    return []


def _listed(names):
    return ", ".join(repr(name) for name in names)
