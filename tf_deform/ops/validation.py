"""Checks of arguments, with one text whether the error comes at trace time or at run time."""

import inspect
import math
import numbers
import warnings

import numpy as np
import tensorflow as tf

_SHOWN = 8  # values that a message shows of a tensor


def sizes(tensor):
    """Returns the tensor's shape as a list: ints where known, scalar int32 tensors where not."""
    static = tensor.shape.as_list()
    if None not in static:
        return static
    dynamic = tf.shape(tensor)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


def is_static(*values):
    """Returns whether all values are Python ints."""
    return all(isinstance(value, int) for value in values)


def floating(name, tensor):
    """Returns `tensor` as a tensor. Raises TypeError unless it is floating-point."""
    if tensor is None or isinstance(tensor, dict | str):
        received, remedy = repr(tensor), ""
        if isinstance(tensor, dict):
            received = f"a dict of {', '.join(map(repr, tensor))}"
            remedy = f"; pass {name}[{name!r}]" if name in tensor else ""
        raise TypeError(f"{name} must be a floating-point tensor, received {received}{remedy}")
    if isinstance(tensor, tf.RaggedTensor):
        raise TypeError(
            f"{name} must be a dense tensor, received a RaggedTensor; pad it, boxes by "
            "tfd.boxes.pad(boxes)"
        )
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        remedy = "; cast it" if tensor.dtype.is_integer or tensor.dtype.is_bool else ""
        if tensor.dtype == tf.uint8:
            remedy = "; cast it, or put keras.layers.Rescaling before it"
        raise TypeError(f"{name} must be floating-point, received {tensor.dtype.name}{remedy}")
    return tensor


def boolean(name, value):
    """Returns a bool of Python or NumPy as Python's. Raises ValueError unless it is one."""
    known = _plain(value)
    if not isinstance(known, bool):
        raise ValueError(f"{name} must be True or False, received {value!r}")
    return known


def number(name, value, *, above=-math.inf, minimum=-math.inf, optional=False):
    """Returns a real number of Python or NumPy as a float; None and tensors as they are.

    Raises ValueError unless the number is finite, above `above` and at least `minimum`; None is
    good only if it is `optional`, and a tensor if it is a floating-point scalar.
    """
    if optional and value is None:
        return None
    if tf.is_tensor(value):  # its value is known at run time alone
        return shaped(name, floating(name, value), [], "[], that of a number")
    known = _plain(value)
    if not is_real(value) or not (math.isfinite(known) and above < known and minimum <= known):
        bound = f" above {above}" if math.isfinite(above) else ""
        bound = f" of at least {minimum}" if math.isfinite(minimum) else bound
        kind = f"{'None or ' if optional else ''}a finite number{bound}"
        raise ValueError(f"{name} must be {kind}, received {value!r}")
    return float(known)


def is_real(value):
    """Returns whether a value is a real number, of Python or NumPy, and no bool."""
    known = _plain(value)
    return isinstance(known, numbers.Real) and not isinstance(known, bool)


def choice(name, value, known):
    """Raises ValueError that lists the known strings unless `value` is one of them."""
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(repr(each) for each in known)
        raise ValueError(f"{name} must be one of {listed}, received {value!r}")


def per_axis(name, value, rank, minimum=1):
    """Returns an int or `rank` ints as a tuple of `rank` ints, each at least `minimum`."""
    values = (value,) * rank if is_integer(value) else value
    if not is_integers(values) or len(values) != rank or any(each < minimum for each in values):
        raise ValueError(
            f"{name} must be an int or {rank} ints of at least {minimum}, received {value!r}"
        )
    return tuple(map(int, values))


def is_integer(value):
    """Returns whether a value is a whole number, of Python or NumPy, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_integers(values):
    """Returns whether values are a list or tuple of whole numbers."""
    return isinstance(values, list | tuple) and all(map(is_integer, values))


def integers(name, values, minimum):
    """Returns a list or tuple of ints, each at least `minimum`, as a tuple."""
    if not is_integers(values) or any(each < minimum for each in values):
        raise ValueError(
            f"{name} must be a list of ints of at least {minimum}, received {values!r}"
        )
    return tuple(map(int, values))


def at_least(minimum, **values):
    """Raises ValueError unless all values are ints of at least `minimum`."""
    for name, value in values.items():
        if not is_integer(value) or value < minimum:
            raise ValueError(f"{name} must be an int of at least {minimum}, received {value!r}")


def output_size(size, ranks, minimum=0, name="output_size"):
    """Raises ValueError unless `size` is a sequence of sizes: ints, or scalar integer tensors."""
    sizes = list(size) if isinstance(size, list | tuple | tf.TensorShape) else []
    good = [
        each.dtype.is_integer if tf.is_tensor(each) else is_integer(each) and each >= minimum
        for each in sizes
    ]
    if not all(good) or len(sizes) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ValueError(
            f"{name} must have {wanted} sizes of at least {minimum}, received {size!r}"
        )


def shaped(name, tensor, expected, meaning):
    """Returns `tensor`, checked against `expected` sizes: ints, scalar tensors, or None for any.

    Sizes known while tracing raise ValueError; the others raise InvalidArgumentError when run.
    `meaning` is what the message shows as the expected shape, e.g. "[rois, 4]".
    """
    unknown = check_shape(name, tensor.shape, expected, meaning)
    if not unknown:
        return tensor
    received = tf.shape(tensor)
    wanted = tf.stack([expected[axis] for axis in unknown])
    fits = tf.reduce_all(tf.gather(received, unknown) == wanted)
    return satisfying(tensor, fits, f"{name} must have shape {meaning}, received", received)


def check_shape(name, shape, expected, meaning):
    """Does what `shaped` does while tracing; returns the axes that are left for run time."""
    shape = tf.TensorShape(shape)
    text = f"{name} must have shape {meaning}"
    if shape.rank != len(expected):
        raise ValueError(f"{text}, received {shown(shape)}")
    unknown = []
    for axis, (size, wanted) in enumerate(zip(shape, expected, strict=True)):
        if wanted is None:
            continue
        if is_static(size, wanted):
            if size != wanted:
                known = [each if is_static(each) else None for each in expected]
                raise ValueError(f"{text} = {shown(known)}, received {shown(shape)}")
        else:
            unknown.append(axis)
    return unknown


def listed(name, maps, kind="feature maps"):
    """Returns `maps`. Raises ValueError unless they are a list or tuple, and not an empty one."""
    if not isinstance(maps, list | tuple) or not maps:
        received = "none" if isinstance(maps, list | tuple) else f"a {type(maps).__name__}"
        raise ValueError(f"{name} must be a list of {kind}, received {received}")
    return maps


def feature_maps(name, maps):
    """Returns a list of `[batch, height, width, channels]`, equal in batch, channels and dtype."""
    listed(name, maps)
    checked: list[tf.Tensor] = []
    for index, each in enumerate(maps):
        each = floating(f"{name}[{index}]", each)
        expected, meaning = [None] * 4, "[batch, height, width, channels]"
        if checked:
            batch, _, _, channels = sizes(checked[0])
            expected, meaning = [batch, None, None, channels], f"{meaning} as in {name}[0]"
            if each.dtype != checked[0].dtype:
                raise TypeError(
                    f"{name}[{index}] must have the dtype of {name}[0], {checked[0].dtype.name}, "
                    f"received {each.dtype.name}"
                )
        checked.append(shaped(f"{name}[{index}]", each, expected, meaning))
    return checked


def satisfying(tensor, condition, *data):
    """Returns `tensor`, whose use raises InvalidArgumentError with `data` unless `condition`.

    The data are parts of one line: strings, numbers and tensors. XLA has no run-time errors: there
    the check does nothing.
    """
    if tf.executing_eagerly():
        if not condition:
            raise tf.errors.InvalidArgumentError(None, None, *_joined(data))
        return tensor
    # TensorFlow shows each part in brackets. XLA, which drops the check, cannot format strings, so
    # that what is known at run time alone stays a part of its own.
    parts = [each.strip(" ,;") if isinstance(each, str) else each for each in _joined(data)]
    with tf.control_dependencies([tf.debugging.Assert(condition, parts, summarize=_SHOWN)]):
        return tf.identity(tensor)


def _joined(data):
    """Returns the data, as few strings as possible in the place of all that is known."""
    parts: list = []
    for each in data:
        if not isinstance(each, str):
            value = tf.get_static_value(each) if tf.is_tensor(each) else each
            if value is not None:
                each = np.array2string(np.asarray(value), threshold=_SHOWN, max_line_width=2**31)
        if isinstance(each, str) and parts and isinstance(parts[-1], str):
            each = f"{parts.pop()}{'' if each[0] in ',;' else ' '}{each}"
        parts.append(each)
    return parts


def warn(message):
    """Warns, with the line outside of this package, Keras and TensorFlow that it comes from."""
    inner = (__name__.split(".")[0], "keras", "tensorflow")
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in inner:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _plain(value):
    """Returns a scalar of NumPy as Python's."""
    scalar = isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0
    return value.item() if scalar else value


def shown(shape):
    """Returns a shape in words, unknown sizes as question marks."""
    if isinstance(shape, tf.TensorShape) and shape.rank is None:
        return "a tensor of unknown rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
