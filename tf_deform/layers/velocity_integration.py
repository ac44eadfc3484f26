"""Displacements of velocities, for registration by smooth and invertible flows."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import Shape, Tensor
from tf_deform.layers.base import Layer
from tf_deform.ops import validation


@keras.saving.register_keras_serializable("tf_deform")
class VelocityIntegration(Layer):
    """Returns the flow `[batch, *space, rank]` of following a velocity for unit time.

    This is `tfd.ops.integrate_velocity` as a layer. `DenseImageWarp` takes the flow. For a smooth
    velocity the flow has a smooth inverse: the flow of `-velocity`. The flow stays float32 under
    half-precision policies.

    Args:
        steps: how many times the displacement after `2 ** -steps` is composed with itself, at
            least 0.

    Call arguments:
        velocity: `[batch, *space, rank]` with 1 to 3 spatial axes: pixels per unit time, array
            order (y, x) or (z, y, x). Set `dtype="float32"` in the layer that predicts it.

    Source: Dalca et al. (arXiv:1805.04605, section 2.1), with the scaling and squaring of Arsigny
    et al. (2006).

    Example:
        >>> velocity = tf.ones([1, 5, 6, 2]) * [0.5, -2.0]
        >>> VelocityIntegration()(velocity)[0, 2, 3].numpy().tolist()  # a constant one just moves
        [0.5, -2.0]
    """

    def __init__(self, steps: int = 7, **kwargs: Any) -> None:
        # Without autocast the velocity stays float32.
        super().__init__(**kwargs)
        validation.at_least(0, steps=steps)
        self.steps = int(steps)

    def build(self, velocity_shape: Shape) -> None:
        pass

    def call(self, velocity: Tensor) -> Tensor:
        velocity = validation.floating("velocity", velocity)
        return ops.integrate_velocity(tf.cast(velocity, self._wide_dtype), steps=self.steps)

    def compute_output_shape(self, velocity_shape: Shape) -> tuple[int | None, ...]:
        expected = [*velocity_shape[:-1], len(velocity_shape) - 2]
        validation.check_shape("velocity", velocity_shape, expected, "[batch, *space, rank]")
        return tuple(velocity_shape)

    def compute_output_spec(self, velocity: Tensor) -> keras.KerasTensor:
        shape = self.compute_output_shape(velocity.shape)
        return keras.KerasTensor(shape, self._wide_dtype)

    @property
    def _wide_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"
