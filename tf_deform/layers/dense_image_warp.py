"""Warping by a dense displacement field, as in image registration."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import Interpolation, PaddingMode, Shape, Tensor
from tf_deform.layers.base import Layer
from tf_deform.ops import validation
from tf_deform.ops.sampling import INTERPOLATIONS, PADDING_MODES


@keras.saving.register_keras_serializable("tf_deform")
class DenseImageWarp(Layer):
    """Returns `[batch, *space, channels]`: at every pixel p the inputs at `p + flow[p]`.

    The flow is ADDED, as VoxelMorph's SpatialTransformer and other registration layers do, and as
    an optical flow from this image to the inputs warps them back to it: where the flow is (0, 1), a
    pixel takes the value of its right neighbour, and what is shown moves to the left. TensorFlow
    Addons subtracts: `tfa.image.dense_image_warp(image, flow)`, here
    `tfd.addons.dense_image_warp`, is `DenseImageWarp()(image, -flow)`.

    Args:
        interpolation: "bilinear" (in 3-D trilinear), "nearest" for label maps (no gradient to the
            flow) or "bicubic".
        padding_mode: "border" repeats the edge pixel, as VoxelMorph does; "zeros" or "reflection"
            (about the centres of the edge pixels).

    Call arguments:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes.
        flow: `[batch, *space, rank]`, displacements in pixels, array order (y, x) or (z, y, x):
            one for every pixel of the inputs. Float32: half precision loses sub-pixels. For a
            smooth, invertible one see `tfd.ops.integrate_velocity`.

    Source: the spatial transformation of Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231).

    Example:
        >>> image = tf.reshape(tf.range(6.0), [1, 2, 3, 1])
        >>> flow = tf.ones([1, 2, 3, 2]) * [0.0, 1.0]  # read one pixel to the right
        >>> DenseImageWarp()(image, flow)[0, :, :, 0].numpy().tolist()
        [[1.0, 2.0, 2.0], [4.0, 5.0, 5.0]]
    """

    def __init__(
        self,
        *,
        interpolation: Interpolation = "bilinear",
        padding_mode: PaddingMode = "border",
        **kwargs: Any,
    ) -> None:
        # Without autocast the flow stays float32; the inputs are cast in `call`.
        super().__init__(**kwargs)
        validation.choice("interpolation", interpolation, INTERPOLATIONS)
        validation.choice("padding_mode", padding_mode, PADDING_MODES)
        self.interpolation = interpolation
        self.padding_mode = padding_mode

    def build(self, inputs_shape: Shape, flow_shape: Shape) -> None:
        pass

    def call(self, inputs: Tensor, flow: Tensor) -> Tensor:
        return ops.warp(
            tf.cast(validation.floating("inputs", inputs), self.compute_dtype),
            flow,
            interpolation=self.interpolation,
            padding_mode=self.padding_mode,
        )

    def compute_output_shape(
        self, inputs_shape: Shape, flow_shape: Shape
    ) -> tuple[int | None, ...]:
        expected = [*inputs_shape[:-1], len(inputs_shape) - 2]
        validation.check_shape("flow", flow_shape, expected, "[batch, *space, rank]")
        return tuple(inputs_shape)
