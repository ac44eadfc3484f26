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

    The flow is ADDED, as in VoxelMorph's SpatialTransformer and other registration layers. Where
    the flow is (0, 1), a pixel takes the value of its right neighbour, so the picture moves to the
    left. With the optical flow from one image to another, the layer warps the other image back to
    the first. TensorFlow Addons subtracts the flow: `tfa.image.dense_image_warp(image, flow)`, here
    `tfd.addons.dense_image_warp`, is `DenseImageWarp()(image, -flow)`.

    Args:
        interpolation: "bilinear" (trilinear in 3-D), "nearest" for label maps (no gradient to the
            flow) or "bicubic".
        padding_mode: "border" repeats the edge pixel, as VoxelMorph does; "zeros" returns 0 outside
            the image; "reflection" reflects about the centres of the edge pixels.

    Call arguments:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes.
        flow: `[batch, *space, rank]`, a displacement in pixels for every pixel of the inputs, in
            array order (y, x) or (z, y, x). Use float32: half precision loses fractions of a pixel.
            `tfd.ops.integrate_velocity` makes a smooth, invertible flow.

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
