"""What every layer here has in common."""

import inspect

import keras
import tensorflow as tf

from tf_deform import compiled


class Layer(keras.layers.Layer):
    """A layer that takes coordinates, and so casts its inputs itself.

    Keras's autocast would halve boxes and grids under a policy of half precision. XLA compiles the
    layer wherever it can compile the implementation that is chosen as the layer is made.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = compiled.supports_jit()

    def __call__(self, *args, **kwargs):
        # Keras asks for shapes before `call` can say what is wrong with them.
        if any(map(_of_unknown_rank, tf.nest.flatten([args, kwargs]))):
            named = dict(zip(inspect.signature(self.call).parameters, args, strict=False), **kwargs)
            flat = ((name, tf.nest.flatten(argument)) for name, argument in named.items())
            wrong = next(name for name, each in flat if any(map(_of_unknown_rank, each)))
            raise ValueError(
                f"{wrong} must have a known rank, received a tensor of unknown rank; give it one "
                "by tf.ensure_shape"
            )
        return super().__call__(*args, **kwargs)

    def _check_built(self):
        """Raises ValueError unless the layer has the weights that it predicts with."""
        if not self.built:
            raise ValueError(
                f"Layer {self.name!r} must be built before it can say where it samples: call it "
                "first"
            )


def _of_unknown_rank(value):
    return tf.is_tensor(value) and value.shape.rank is None
