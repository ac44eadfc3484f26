"""Functions of tensors that take KerasTensors as well, as those of keras.ops do."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import keras
import tensorflow as tf

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def operator(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Returns the function, which given a KerasTensor becomes a node of a Functional model.

    Behind it stands a `keras.Operation` of its own, saved with the model as "tf_deform>ops." and
    its name. Everything else that the call is given belongs to the node, not to the
    operation, and is saved with it. Like any Operation it casts nothing: boxes stay float32.
    """

    class FunctionOperation(keras.Operation):
        """The function in a graph of KerasTensors."""

        def call(self, *args, **kwargs):
            return function(*args, **kwargs)

        def compute_output_spec(self, *args, **kwargs):
            return _inferred(function, args, kwargs)

    words = function.__name__.split("_")
    FunctionOperation.__name__ = "".join(word[:1].upper() + word[1:] for word in words)
    name = f"ops.{function.__name__}"
    saved = keras.saving.register_keras_serializable("tf_deform", name)(FunctionOperation)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if any(map(keras.backend.is_keras_tensor, keras.tree.flatten((args, kwargs)))):
            return saved()(*args, **kwargs)
        return function(*args, **kwargs)

    # AutoGraph has nothing to convert in it, and would make tracing it take almost twice as long.
    return tf.autograph.experimental.do_not_convert(call)


def _inferred(function, args, kwargs):
    """Returns KerasTensors of the shapes and dtypes that the function has in a graph.

    Keras's own inference does the same, but buries what is wrong with an argument in a longer text.
    """
    flat = keras.tree.flatten((args, kwargs))
    symbolic = [each for each in flat if keras.backend.is_keras_tensor(each)]

    def run(*tensors):
        given = iter(tensors)
        filled = [next(given) if keras.backend.is_keras_tensor(each) else each for each in flat]
        inner_args, inner_kwargs = keras.tree.pack_sequence_as((args, kwargs), filled)
        return function(*inner_args, **inner_kwargs)

    specs = [tf.TensorSpec(each.shape, each.dtype) for each in symbolic]
    graph = tf.function(run, autograph=False).get_concrete_function(*specs)
    return keras.tree.map_structure(
        lambda out: keras.KerasTensor(out.shape, out.dtype.name), graph.structured_outputs
    )
