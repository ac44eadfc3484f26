"""What layers of deformable attention and of its kin share: their linear projections."""

from __future__ import annotations

from typing import Any

import keras

from tf_deform.annotations import Constraint, Initializer, Regularizer
from tf_deform.layers.base import Dense, Layer


class Projected(Layer):
    """A layer that samples between linear projections, at positions that linear layers predict.

    Features are cast to the compute dtype. Predictions and given coordinates are float32 or wider
    under every dtype policy.

    Args:
        kernel_initializer: initializer of the projections' kernels. The layers that predict start
            as in the paper.
        bias_initializer: initializer of the projections' biases.
        kernel_regularizer: regularizer of the projections' kernels, or None.
        bias_regularizer: regularizer of the projections' biases, or None.
        activity_regularizer: regularizer of the layer's outputs, or None.
        kernel_constraint: constraint on the projections' kernels, or None.
        bias_constraint: constraint on the projections' biases, or None.
    """

    def __init__(
        self,
        *,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast, coordinates given in float32 stay so; features are cast in `call`.
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self._projections: dict[str, keras.layers.Dense] = {}
        self.quantized_projections: dict[
            str, Any
        ] = {}  # how Keras quantised the projections that were saved

    def get_config(self) -> dict[str, Any]:
        quantized = {
            name: {
                "dtype": keras.dtype_policies.serialize(dense.dtype_policy),
                "quantization_config": keras.saving.serialize_keras_object(
                    getattr(dense, "quantization_config", None)  # older Keras has none
                ),
            }
            for name, dense in self._projections.items()
            if dense.dtype_policy.quantization_mode is not None
        }
        return {
            **super().get_config(),
            **({"quantized_projections": quantized} if quantized else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Projected:
        config = dict(config)
        quantized = config.pop("quantized_projections", {})
        layer = super().from_config(config)
        layer.quantized_projections = quantized
        return layer

    @property
    def _wide(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _projection(self, units, channels, name, use_bias=True):
        """Returns a linear layer on `channels` channels, built, with the options given."""
        options = {"dtype": self.dtype_policy}
        if name in self.quantized_projections:
            saved = self.quantized_projections[name]
            options["dtype"] = keras.dtype_policies.deserialize(saved["dtype"])
            if saved["quantization_config"] is not None:
                options["quantization_config"] = keras.saving.deserialize_keras_object(
                    saved["quantization_config"]
                )
        dense = keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=_another(self.kernel_initializer),
            bias_initializer=_another(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            name=name,
            **options,
        )
        dense.build((None, channels))
        self._projections[name] = dense
        return dense

    def _predictor(self, units, channels, name, bias_initializer="zeros"):
        """Returns a linear layer on `channels` channels, built, whose kernel starts at zero."""
        dense = Dense(
            units,
            kernel_initializer="zeros",
            bias_initializer=bias_initializer,
            dtype=self._wide,
            name=name,
        )
        dense.build((None, channels))
        return dense


def _another(initializer):
    """Returns the initializer anew: one instance gives every weight the same random numbers."""
    if isinstance(initializer, keras.initializers.Initializer):
        return type(initializer).from_config(initializer.get_config())
    return initializer
