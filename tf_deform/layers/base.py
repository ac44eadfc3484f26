"""What every layer here has in common."""

import inspect
import re
from typing import Any

import keras
import tensorflow as tf

from tf_deform import compiled
from tf_deform.layers import documentation

# What serialises an argument, by the last word of its name.
_SERIALIZERS = {
    "activation": keras.activations.serialize,
    "initializer": keras.initializers.serialize,
    "regularizer": keras.regularizers.serialize,
    "constraint": keras.constraints.serialize,
}


class Layer(keras.layers.Layer):
    """A layer that takes coordinates, and so casts its inputs itself.

    Keras's autocast would halve boxes and grids under a policy of half precision. XLA compiles the
    layer wherever it can compile the implementation that is chosen as the layer is made.

    Args:
        kwargs: `name`, `dtype` and `trainable`, as in every Keras layer.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Python 3.10 would show the arguments of Keras's `__new__`.
        signature = inspect.signature(cls.__init__)
        own = list(signature.parameters.values())[1:]
        cls.__signature__ = signature.replace(parameters=own)
        if cls.__module__.startswith("tf_deform.") and cls.__doc__:
            cls.__doc__ = documentation.completed(cls)

    def __init__(self, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, name=name or _default_name(type(self)), **kwargs)
        self.supports_jit = compiled.supports_jit()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Keras asks for shapes before `call` can say what is wrong with them.
        parameters = inspect.signature(self.call).parameters
        named = dict(zip(parameters, args, strict=False), **kwargs)
        for name, argument in named.items():
            if any(map(_of_unknown_rank, tf.nest.flatten(argument))):
                raise ValueError(
                    f"{name} must have a known rank, received a tensor of unknown rank; give it "
                    "one by tf.ensure_shape"
                )
            if argument is None and name in parameters and parameters[name].default is not None:
                raise TypeError(f"{name} must be given, received None")
        return super().__call__(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments; each is an attribute, too."""
        config = super().get_config()
        for cls in reversed(type(self).__mro__):
            if cls.__module__.startswith("tf_deform."):
                for name, each in inspect.signature(cls).parameters.items():
                    if each.kind is not each.VAR_KEYWORD and name != "name":
                        config[name] = _serialized(name, getattr(self, name))
        return config

    def _check_built(self):
        """Raises ValueError unless the layer has the weights that it predicts with."""
        if not self.built:
            raise ValueError(
                f"Layer {self.name!r} must be built before it can say where it samples: call it "
                "first"
            )


class Dense(keras.layers.Dense):
    """Keras's, but `quantize` leaves it as it is: what predicts positions stays float.

    It has Keras's name too, so that files of weights have the same entries.
    """

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        pass


def _default_name(cls):
    """Returns a name as Keras makes them, but "roi_align" where Keras has "ro_i_align"."""
    name = cls.__name__.replace("RoI", "Roi")
    prefix = re.sub("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", "_", name).lower()
    count = keras.backend.get_uid(prefix)
    return prefix if count == 1 else f"{prefix}_{count - 1}"


def _serialized(name, value):
    serialize = _SERIALIZERS.get(name.rpartition("_")[2])
    return value if serialize is None else serialize(value)


def _of_unknown_rank(value):
    return tf.is_tensor(value) and value.shape.rank is None
