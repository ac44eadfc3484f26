"""What the functions here share: ranks known at run time alone, and the dtype of positions."""

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

import tensorflow as tf

from tf_deform.ops import validation

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result", covariant=True)


class Traceable(Protocol[Parameters, Result]):
    """A function that can be asked for its graph, as those that Addons traces can."""

    get_concrete_function: Callable[..., Any]

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result: ...


def traceable(function: Callable[Parameters, Result]) -> Traceable[Parameters, Result]:
    """Returns the function with the `get_concrete_function` that it has as a `tf.function`."""
    traced = tf.function(function, autograph=False)
    function.get_concrete_function = traced.get_concrete_function  # type: ignore[attr-defined]
    return function  # type: ignore[return-value]


def of_rank(name, tensor, rank, meaning):
    """Returns a floating-point tensor; where its rank is unknown it must be this one when run."""
    tensor = validation.floating(name, tensor)
    if tensor.shape.rank is None:
        text = f"{name} must have shape {meaning}, received"
        tensor = validation.satisfying(tensor, tf.rank(tensor) == rank, text, tf.shape(tensor))
        tensor = tf.reshape(tensor, tf.shape(tensor))  # ensure_shape waits for the check so
        tensor = tf.ensure_shape(tensor, [None] * rank)
    return tensor


def to_rank_4(name, images):
    """Returns images as `[batch, height, width, channels]`, and the rank they had.

    The rank is an int, or a scalar tensor where it is not known while tracing.
    """
    rank = images.shape.rank
    text = (
        f"{name} must have shape [height, width], [height, width, channels] or [batch, height, "
        "width, channels], received"
    )
    if rank is None:
        rank, shape = tf.rank(images), tf.shape(images)
        images = validation.satisfying(images, (rank >= 2) & (rank <= 4), text, shape)
        before, after = tf.cast(rank < 4, tf.int32), tf.cast(rank == 2, tf.int32)
        ones = tf.ones([1], tf.int32)
        shape = tf.concat([ones[:before], shape, ones[:after]], axis=0)
        return tf.ensure_shape(tf.reshape(images, shape), [None] * 4), rank
    if rank not in (2, 3, 4):
        raise ValueError(f"{text} {images.shape}")
    return {2: images[None, :, :, None], 3: images[None], 4: images}[rank], rank


def to_rank(rank, images):
    """Returns images `[batch, height, width, channels]` in the rank that they had."""
    if tf.is_tensor(rank):
        before, after = tf.cast(rank < 4, tf.int32), tf.cast(rank == 2, tf.int32)
        return tf.reshape(images, tf.shape(images)[before : 4 - after])
    return tf.squeeze(images, {2: [0, 3], 3: [0]}[rank]) if rank < 4 else images


def one_or_every(name, values, batch):
    """Returns values, checked to be one, or one for every image."""
    received, text = validation.sizes(values)[0], f"{name} must be one, or one for every image"
    if not validation.is_static(received, batch):
        fits = (received == 1) | (received == batch)
        text += ", that is"
        return validation.satisfying(values, fits, text, batch, ", received", received)
    if received not in (1, batch):
        raise ValueError(f"{text}, that is {batch}, received {received}")
    return values


def same_dtype(*tensors):
    """Returns the tensors in float32, or float64 if any of them is, and that dtype."""
    dtype = tf.float64 if tf.float64 in [each.dtype for each in tensors] else tf.float32
    return [tf.cast(each, dtype) for each in tensors], dtype


def positions(name, values):
    """Returns values as a tensor in float32, or float64 if they are a float64 tensor."""
    if not tf.is_tensor(values):
        values = tf.convert_to_tensor(values, tf.float32)
    return same_dtype(validation.floating(name, values))[0][0]
