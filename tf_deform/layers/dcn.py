"""Layers of depthwise deformable convolution with weights for every pixel: DCNv3 and DCNv4."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import (
    Activation,
    Constraint,
    Initializer,
    PerAxis,
    Regularizer,
    Shape,
    Tensor,
)
from tf_deform.layers.projections import Projected
from tf_deform.ops import validation
from tf_deform.ops.dcn import kernel_taps, offset_mask_channels, sampling_positions, split


class DCN(Projected):
    """What DCNv3 and DCNv4 share: a convolution that is padded to have its inputs' size.

    Args:
        kernel_size: int, or (height, width).
        strides: int, or (height, width), in input pixels.
        dilation_rate: int, or (height, width): pixels from one tap of the kernel to the next.
        groups: int, number of groups of channels, each with its own offsets and weights.
        offset_scale: factor on the offsets and on the distances of the taps from the centre.
        remove_center: whether to leave out the tap at the centre. Needs an odd kernel size.

    Call arguments:
        inputs: `[batch, height, width, channels]`.
    """

    def __init__(
        self,
        kernel_size: PerAxis = 3,
        *,
        strides: PerAxis = 1,
        dilation_rate: PerAxis = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        depthwise_kernel_size: PerAxis | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = validation.per_axis("kernel_size", kernel_size, 2)
        self.strides = validation.per_axis("strides", strides, 2)
        self.dilation_rate = validation.per_axis("dilation_rate", dilation_rate, 2)
        validation.at_least(1, groups=groups)
        self.groups = groups
        self.offset_scale = validation.number("offset_scale", offset_scale, above=0)
        if depthwise_kernel_size is not None:
            depthwise_kernel_size = validation.per_axis(
                "depthwise_kernel_size", depthwise_kernel_size, 2
            )
        self.depthwise_kernel_size = depthwise_kernel_size
        self.center_feature_scale = validation.boolean("center_feature_scale", center_feature_scale)
        self.remove_center = validation.boolean("remove_center", remove_center)
        self._taps = len(kernel_taps(self.kernel_size, self.remove_center))

    def build(self, inputs_shape: Shape) -> None:
        channels = inputs_shape[-1]
        if len(inputs_shape) != 4 or channels is None or channels % self.groups:
            raise ValueError(
                "inputs must have shape [batch, height, width, channels] with known channels "
                f"divisible by groups={self.groups}, received {inputs_shape}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        if self.center_feature_scale:
            self.center_feature_scale_proj = self._predictor(
                self.groups, channels, "center_feature_scale_proj"
            )

    def compute_output_shape(self, inputs_shape: Shape) -> tuple[int | None, ...]:
        batch, *space, channels = inputs_shape
        space = [
            None if size is None else -(-size // stride)
            for size, stride in zip(space, self.strides, strict=True)
        ]
        return (batch, *space, channels)

    def predict_offset(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the layer predicts for inputs: (offset, mask).

        The offset is `[batch, *output, groups * taps * 2]` as (x, y) in pixels, not yet multiplied
        by `offset_scale`, as `tfd.ops.dcnv3` takes it. The mask holds the weights of the taps,
        `[batch, *output, groups * taps]`. Both are float32 or wider.
        """
        self._check_built()
        return self._offset_and_mask(self._inputs(inputs))

    def sampling_positions(self, inputs: Tensor, offset: Tensor | None = None) -> Tensor:
        """Returns where the layer samples: `[batch, *output, groups, taps, 2]`.

        The positions are (y, x) in pixels of the inputs, with pixel centres at integers, in float32
        or wider. The taps run column by column, as in the authors' implementation. If you give an
        offset, as `predict_offset` returns it, it is used instead of the predicted one. An offset
        of zeros gives the taps before they move.
        """
        self._check_built()
        inputs = self._inputs(inputs)
        if offset is None:
            offset, _ = self._offset_and_mask(inputs)
        return sampling_positions(inputs, offset, groups=self.groups, **self._geometry)

    def _inputs(self, inputs):
        return tf.cast(validation.floating("inputs", inputs), self.compute_dtype)

    def _depthwise(self, kernel_size, channels, name):
        """Returns a depthwise convolution, built, with the initial weights of the original."""
        bound = (kernel_size[0] * kernel_size[1]) ** -0.5
        conv = keras.layers.DepthwiseConv2D(
            kernel_size,
            padding="same",
            depthwise_initializer=keras.initializers.RandomUniform(-bound, bound),
            bias_initializer=keras.initializers.RandomUniform(-bound, bound),
            dtype=self._wide,
            name=name,
        )
        conv.build((None, None, None, channels))
        return conv

    def _at_outputs(self, features):
        """Returns what of the features lies under the middle of an output's taps."""
        if self.strides == (1, 1):
            return features
        return features[:, :: self.strides[0], :: self.strides[1]]

    @property
    def _geometry(self):
        """The options of the operator, padded so that outputs lie on every stride-th input."""
        reach = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
        return {
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": [(each // 2, each - each // 2) for each in reach],
            "dilation_rate": self.dilation_rate,
            "offset_scale": self.offset_scale,
            "remove_center": self.remove_center,
        }

    def _with_center(self, outputs, projected, features):
        """Returns the outputs, if wanted blended with the features projected, group by group."""
        if not self.center_feature_scale:
            return outputs
        shape = validation.sizes(outputs)
        by_group = [*shape[:3], self.groups, shape[3] // self.groups]
        scale = tf.cast(tf.sigmoid(self.center_feature_scale_proj(features)), outputs.dtype)
        scale = tf.expand_dims(scale, -1)  # [batch, height, width, groups, 1]
        outputs = tf.reshape(outputs, by_group) * (1 - scale)
        outputs += tf.reshape(self._at_outputs(projected), by_group) * scale
        return tf.reshape(outputs, shape)


class _LayerNormalization(keras.layers.LayerNormalization):
    """Keras's, with second derivatives: tf.nn.moments stops the gradient of the mean."""

    def call(self, inputs):
        centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self.epsilon) * self.gamma + self.beta


@keras.saving.register_keras_serializable("tf_deform")
class DCNv3(DCN):
    """Returns `[batch, height, width, channels]`: weighted sums of inputs, sampled at moved taps.

    A tap is one place of the kernel: a 3 by 3 kernel has nine. For each pixel and group of channels
    the layer predicts how far each tap moves, and its weight. It predicts them with a depthwise
    convolution, layer normalisation, an activation and linear layers. The weights are a softmax
    over the taps. The layer samples a linear projection of the inputs at the moved taps, sums the
    weighted samples, and projects the sums. An untrained layer averages over the kernel.

    Args:
        depthwise_kernel_size: kernel size of the depthwise convolution, int or (height, width);
            None for the same as `kernel_size`.
        center_feature_scale: whether to blend the sums with the projected inputs before the last
            projection. The share of each is predicted for each pixel and group.
        activation: the activation before the linear layers that predict.

    Source: Wang et al., "InternImage" (arXiv:2211.05778, section 3.1). `dw_conv`, `dw_norm`,
    `offset`, `mask`, `input_proj`, `output_proj` and `center_feature_scale_proj` have the weights
    of the authors' implementation, transposed. Strides do not work in that implementation.

    Example:
        >>> DCNv3(groups=4)(tf.zeros([2, 9, 7, 16])).shape
        TensorShape([2, 9, 7, 16])
    """

    def __init__(
        self,
        kernel_size: PerAxis = 3,
        *,
        strides: PerAxis = 1,
        dilation_rate: PerAxis = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        depthwise_kernel_size: PerAxis | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        activation: Activation = "gelu",
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            groups=groups,
            offset_scale=offset_scale,
            depthwise_kernel_size=depthwise_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.activation = keras.activations.get(activation)

    def build(self, inputs_shape: Shape) -> None:
        super().build(inputs_shape)
        channels = inputs_shape[-1]
        self.dw_conv = self._depthwise(
            self.depthwise_kernel_size or self.kernel_size, channels, "dw_conv"
        )
        self.dw_norm = _LayerNormalization(epsilon=1e-6, dtype=self._wide, name="dw_norm")
        self.dw_norm.build((None, None, None, channels))
        self.offset = self._predictor(self.groups * self._taps * 2, channels, "offset")
        self.mask = self._predictor(self.groups * self._taps, channels, "mask")
        self.input_proj = self._projection(channels, channels, "input_proj")
        self.output_proj = self._projection(channels, channels, "output_proj")

    def call(self, inputs: Tensor) -> Tensor:
        inputs = self._inputs(inputs)
        features = self._predicting(inputs)
        projected = self.input_proj(inputs)
        outputs = ops.dcnv3(projected, *self._predicted(features), **self._geometry)
        return self.output_proj(self._with_center(outputs, projected, features))

    def _offset_and_mask(self, inputs):
        return self._predicted(self._predicting(inputs))

    def _predicting(self, inputs):
        """Returns the features at the outputs that the layer predicts from."""
        return self._at_outputs(self.activation(self.dw_norm(self.dw_conv(inputs))))

    def _predicted(self, features):
        logits = self.mask(features)
        by_group = [*validation.sizes(logits)[:3], self.groups, self._taps]
        mask = tf.reshape(tf.nn.softmax(tf.reshape(logits, by_group)), validation.sizes(logits))
        return self.offset(features), mask


@keras.saving.register_keras_serializable("tf_deform")
class DCNv4(DCN):
    """Returns `[batch, height, width, channels]`: weighted sums of inputs, sampled at moved taps.

    This layer differs from `DCNv3` in two points. One linear layer predicts offsets and weights,
    directly from the inputs or from a depthwise convolution of them. And the weights are not
    bounded by a softmax. An untrained layer returns the bias of its last projection.

    Args:
        depthwise_kernel_size: kernel size of the depthwise convolution before the prediction, int
            or (height, width); None for no such convolution.
        center_feature_scale: whether to blend the sums with the projected inputs before the last
            projection. The share of each is predicted from the sums, for each pixel and group.
        pointwise: whether to project the inputs before sampling, and the sums afterwards.
        output_bias: whether the last projection has a bias.

    Source: Xiong et al., "Efficient Deformable ConvNets" (arXiv:2401.06197, section 3.1).
    `offset_mask_dw`, `offset_mask`, `value_proj`, `output_proj` and `center_feature_scale_proj`
    have the weights of the authors' implementation, transposed. Strides do not work in that
    implementation.

    Example:
        >>> DCNv4(groups=4)(tf.zeros([2, 9, 7, 16])).shape
        TensorShape([2, 9, 7, 16])
    """

    def __init__(
        self,
        kernel_size: PerAxis = 3,
        *,
        strides: PerAxis = 1,
        dilation_rate: PerAxis = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        depthwise_kernel_size: PerAxis | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        pointwise: bool = True,
        output_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            groups=groups,
            offset_scale=offset_scale,
            depthwise_kernel_size=depthwise_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.pointwise = validation.boolean("pointwise", pointwise)
        self.output_bias = validation.boolean("output_bias", output_bias)

    def build(self, inputs_shape: Shape) -> None:
        super().build(inputs_shape)
        channels = inputs_shape[-1]
        if self.depthwise_kernel_size is not None:
            self.offset_mask_dw = self._depthwise(
                self.depthwise_kernel_size, channels, "offset_mask_dw"
            )
        predicted = offset_mask_channels(self.groups, self._taps)
        self.offset_mask = self._predictor(predicted, channels, "offset_mask")
        if self.pointwise:
            self.value_proj = self._projection(channels, channels, "value_proj")
            self.output_proj = self._projection(
                channels, channels, "output_proj", use_bias=self.output_bias
            )

    def call(self, inputs: Tensor) -> Tensor:
        inputs = self._inputs(inputs)
        offset_mask = self._predicted(inputs)
        projected = self.value_proj(inputs) if self.pointwise else inputs
        outputs = ops.dcnv4(projected, offset_mask, groups=self.groups, **self._geometry)
        outputs = self._with_center(outputs, projected, outputs)
        return self.output_proj(outputs) if self.pointwise else outputs

    def _offset_and_mask(self, inputs):
        offset_mask = self._predicted(inputs)
        *axes, _ = validation.sizes(offset_mask)
        both = split(offset_mask, self.groups, self._taps)
        return tuple(tf.reshape(each, [*axes, math.prod(each.shape[-2:])]) for each in both)

    def _predicted(self, inputs):
        if self.depthwise_kernel_size is not None:
            inputs = self.offset_mask_dw(inputs)
        return self.offset_mask(self._at_outputs(inputs))
