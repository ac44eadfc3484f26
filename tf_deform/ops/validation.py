"""Checks of arguments, with one text whether the error comes at trace time or at run time."""

import numbers

import tensorflow as tf


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
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        raise TypeError(f"{name} must be floating-point, received {tensor.dtype.name}")
    return tensor


def choice(name, value, known):
    """Raises ValueError that lists the known strings unless `value` is one of them."""
    if value not in known:
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


def at_least(minimum, **values):
    """Raises ValueError unless all values are ints of at least `minimum`."""
    for name, value in values.items():
        if not is_integer(value) or value < minimum:
            raise ValueError(f"{name} must be an int of at least {minimum}, received {value!r}")


def output_size(size, ranks, minimum=0):
    """Raises ValueError unless `size` is a sequence of sizes: ints, or scalar integer tensors."""
    sizes = list(size) if isinstance(size, list | tuple | tf.TensorShape) else []
    good = [
        each.dtype.is_integer if tf.is_tensor(each) else is_integer(each) and each >= minimum
        for each in sizes
    ]
    if not all(good) or len(sizes) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ValueError(
            f"output_size must have {wanted} sizes of at least {minimum}, received {size!r}"
        )


def shaped(name, tensor, expected, meaning):
    """Returns `tensor`, checked against `expected` sizes: ints, scalar tensors, or None for any.

    Sizes known while tracing raise ValueError; the others raise InvalidArgumentError when run.
    `meaning` is what the message shows as the expected shape, e.g. "[rois, 4]".
    """
    text = f"{name} must have shape {meaning}"
    if tensor.shape.rank != len(expected):
        raise ValueError(f"{text}, received {_text(tensor.shape)}")
    unknown = []
    for axis, (size, wanted) in enumerate(zip(tensor.shape, expected, strict=True)):
        if wanted is None:
            continue
        if is_static(size, wanted):
            if size != wanted:
                shown = [each if is_static(each) else None for each in expected]
                raise ValueError(f"{text} = {_text(shown)}, received {_text(tensor.shape)}")
        else:
            unknown.append(axis)
    if not unknown:
        return tensor
    received = tf.shape(tensor)
    wanted = tf.stack([expected[axis] for axis in unknown])
    return satisfying(
        tensor, tf.reduce_all(tf.gather(received, unknown) == wanted), f"{text}, received", received
    )


def feature_maps(name, maps):
    """Returns a list of `[batch, height, width, channels]`, equal in batch, channels and dtype."""
    if not isinstance(maps, list | tuple) or not maps:
        received = "none" if isinstance(maps, list | tuple) else f"a {type(maps).__name__}"
        raise ValueError(f"{name} must be a list of feature maps, received {received}")
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

    XLA has no run-time errors: there the check does nothing.
    """
    with tf.control_dependencies([tf.debugging.Assert(condition, data)]):
        return tf.identity(tensor)


def _text(shape):
    if isinstance(shape, tf.TensorShape) and shape.rank is None:
        return "a tensor of unknown rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
