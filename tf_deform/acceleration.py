"""Putting our deformable attention into models of other packages."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import Structure, Tensor
from tf_deform.foreign import Core, core_of
from tf_deform.ops import validation

_TOLERANCE = 1e-4
_DRAWS = 3
_BATCH = 2
_NOISE = 0.05  # what offsets and queries that start at zero would hide


def accelerate(
    model: keras.Model, *, undo: bool = False, sample: Structure[Tensor] | None = None
) -> list[tuple[str, str]]:
    """Replaces the deformable attention of another package's model by ours, in this model only.

    It supports KerasHub's D-FINE, and RT-DETR, RT-DETRv2, RF-DETR, D-FINE, Mask2Former, OneFormer
    and Grounding DINO of zeromodels. Weights, outputs and gradients stay the same. Other models do
    not change, unless they share the layers. Keras traces the model again, but not a model around
    it: compile that one again. Saving writes the original layers: call this again after loading.

    Before it returns, it compares each replaced layer with the original, with noise added to its
    weights, and then the model's outputs before and after. Inputs are random, and differences are
    relative to the largest magnitude. In half precision it compares the layers only.

    Args:
        model: a built Keras model.
        undo: whether to restore what `accelerate` has replaced.
        sample: inputs for the comparison, with a batch axis. None: random numbers, which a
            Functional model allows in which only the batch size is free.

    Returns:
        A list of (path of the layer, name of the original function) of what was replaced or
        restored. It is empty if the model is already accelerated.

    Raises:
        ValueError: nothing was found to replace or restore; outputs differ by more than 1e-4, or
            our attention does not accept the layer's arguments, and the model is restored; the
            model has free sizes, and no sample is given.

    Warns:
        UserWarning: this version of the foreign code is unknown, so only the comparison has checked
            it.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="mlp")
        >>> tfd.accelerate(model)  # no detector
        Traceback (most recent call last):
        ValueError: nothing found to accelerate in model 'mlp': it has no known deformable attention
    """
    undo = validation.boolean("undo", undo)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"model must be a Keras model that is built, received {model!r}")
    layers = _layers_in(model)
    replaced = [each for layer in layers if (each := _replaced_in(layer))]
    if undo:
        if not replaced:
            raise ValueError(
                f"nothing found to give back in model {model.name!r}: it is not accelerated"
            )
        _give_back(replaced)
        _drop_traces(layers)
        return _named(replaced)
    cores = [core for layer in layers if (core := core_of(layer))]
    if not cores and not replaced:
        raise ValueError(
            f"nothing found to accelerate in model {model.name!r}: it has no known deformable "
            "attention"
        )
    if cores:
        _warn_of_unknown(cores)
        _replace_compared(model, cores, sample)
        _drop_traces(layers)
    return _named(cores)


def _layers_in(model):
    """Returns the model and all layers in it, however deep, in order."""
    found: dict[int, keras.layers.Layer] = {}

    def visit(value):
        if isinstance(value, keras.layers.Layer):
            if id(value) not in found:
                found[id(value)] = value
                visit(list(vars(value).values()))
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each)

    visit(model)
    return list(found.values())


def _named(cores):
    return [(core.path, core.function) for core in cores]


def _warn_of_unknown(cores):
    unknown = sorted({core.function for core in cores if not core.is_known})
    if unknown:
        validation.warn(
            f"tf_deform does not know this version of {', '.join(unknown)}: only the comparison of "
            "outputs vouches for what replaces it"
        )


# Replacing


def _replace(core: Core) -> None:
    """Puts ours in the place of a core, and keeps what was there."""

    @functools.wraps(core.original)
    def attention(*args, **kwargs):
        return core.ours(*args, **kwargs)

    attention.replaced = core, core.layer.supports_jit  # type: ignore[attr-defined]
    setattr(core.layer, core.attribute, attention)
    # Keras's jit_compile="auto" asks the layers.
    core.layer.supports_jit = core.layer.supports_jit and compiled.supports_jit()


def _replaced_in(layer):
    """Returns the core of a layer that ours stands in for, or None."""
    for value in vars(layer).values():
        if hasattr(value, "replaced"):
            return value.replaced[0]
    return None


def _give_back(cores):
    for core in cores:
        if _replaced_in(core.layer):
            _, core.layer.supports_jit = vars(core.layer)[core.attribute].replaced
            _restore(core)


def _restore(core):
    """Makes the attribute what it was: of the instance, or again that of the class."""
    if core.attribute == "call":
        delattr(core.layer, "call")
    else:
        setattr(core.layer, core.attribute, core.original)


def _drop_traces(layers):
    """Makes Keras trace anew what the models among the layers compute."""
    for layer in layers:
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None


# Comparing


def _replace_compared(model, cores, sample):
    """Replaces the cores; where the outputs differ, gives everything back and raises ValueError."""
    draw = functools.partial(_drawn, model, sample, np.random.default_rng(0))
    inputs = draw()
    expected = _outputs(model, inputs)  # builds what the first call builds
    _compare_layers(model, cores, inputs)
    halves = any(tf.as_dtype(core.layer.compute_dtype).size < 4 for core in cores)
    for _ in range(_DRAWS):  # a model that goes on with its best queries may round to others
        for core in cores:
            _replace(core)
        try:
            error = _difference(_outputs(model, inputs), expected)
        except BaseException:
            _give_back(cores)
            raise
        if halves or error <= _TOLERANCE:
            return
        _give_back(cores)
        inputs = draw()
        expected = _outputs(model, inputs)
    raise ValueError(
        f"the outputs of model {model.name!r} differ by {error:.1e} of their largest magnitude "
        f"with tf_deform's attention, more than {_TOLERANCE:.0e}; the model is as it was"
    )


def _compare_layers(model, cores, inputs):
    """Raises ValueError where ours returns something else than a core, with noise on its weights.

    Each core is called as the model calls it, and ours beside it.
    """
    rng = np.random.default_rng(1)
    noisy = [
        (weight, weight + rng.normal(0, _NOISE, weight.shape).astype(weight.dtype))
        for core in cores
        for weight in core.layer.weights
        if keras.backend.is_float_dtype(weight.dtype)
    ]
    seen: dict = {}
    try:
        for core in cores:
            setattr(core.layer, core.attribute, _compared(core, seen))
        with keras.StatelessScope(state_mapping=noisy):
            _outputs(model, inputs)
    finally:
        for core in cores:
            _restore(core)
    for core in cores:
        if core.path not in seen:
            raise ValueError(
                f"layer {core.path!r} cannot be compared: the model does not call it on its inputs"
            )
        _check_layer(core, seen[core.path])


def _check_layer(core, outcome):
    """Raises ValueError for what came of comparing a core: an error, or a number too large."""
    text = f"tf_deform's attention cannot replace {core.function} in layer {core.path!r}"
    if isinstance(outcome, Exception):
        raise ValueError(f"{text}: {outcome}; the model is as it was") from outcome
    tolerance = {"float16": 1e-2, "bfloat16": 5e-2}.get(core.layer.compute_dtype, _TOLERANCE)
    if not outcome <= tolerance:
        raise ValueError(
            f"{text}: the outputs differ by {outcome:.1e} of their largest magnitude, more than "
            f"{tolerance:.0e}; the model is as it was"
        )


def _compared(core, seen):
    """Returns the original core, which notes in `seen` how far ours is from it, or our error."""

    @functools.wraps(core.original)
    def attention(*args, **kwargs):
        expected = core.original(*args, **kwargs)
        try:
            outcome = _difference(
                keras.tree.flatten(core.ours(*args, **kwargs)), keras.tree.flatten(expected)
            )
        except Exception as error:
            outcome = error
        seen[core.path] = _worse(outcome, seen.get(core.path, 0.0))
        return expected

    return attention


def _worse(outcome, before):
    if isinstance(outcome, Exception) or isinstance(before, Exception):
        return outcome if isinstance(outcome, Exception) else before
    return max(outcome, before)


def _outputs(model, inputs):
    return keras.tree.flatten(model(inputs, training=False))


def _difference(found, expected):
    """Returns the largest difference relative to each output's largest magnitude, inf for NaN."""
    error = 0.0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(tf.cast(each, tf.float64)) for each in (one, other))
        if one.shape != other.shape or np.any(np.isfinite(one) != np.isfinite(other)):
            return np.inf
        apart = np.abs(np.where(np.isfinite(one), one - other, 0))
        size = np.max(np.abs(np.where(np.isfinite(other), other, 0)), initial=0.0)
        error = max(error, np.max(apart, initial=0.0) / (size or 1.0))
    return float(error)


def _drawn(model, sample, rng):
    """Returns random inputs of the model, or the sample."""
    if sample is not None:
        return keras.tree.map_structure(tf.convert_to_tensor, sample)
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ValueError(
            f"sample must be given: model {model.name!r} does not say what its inputs are"
        )
    if any(None in each.shape[1:] for each in inputs):
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise ValueError(f"sample must be given: the model's inputs have free sizes, {shapes}")
    struct = inputs[0] if isinstance(model, keras.Sequential) else model.input

    def draw(each):
        shape = [_BATCH if each.shape[0] is None else each.shape[0], *each.shape[1:]]
        if keras.backend.is_float_dtype(each.dtype):
            return tf.constant(rng.uniform(size=shape), each.dtype)
        return tf.cast(rng.integers(0, 2, shape), each.dtype)

    return keras.tree.map_structure(draw, struct)
