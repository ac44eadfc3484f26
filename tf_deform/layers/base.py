"""What every layer here has in common."""

import keras

from tf_deform import compiled


class Layer(keras.layers.Layer):
    """A layer that takes coordinates, and so casts its inputs itself.

    Keras's autocast would halve boxes and grids under a policy of half precision. XLA compiles the
    layer wherever it can compile the implementation that is chosen as the layer is made.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = compiled.supports_jit()
