"""What a convolution layer has before its taps are moved: arguments, weights, geometry."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import (
    Activation,
    Constraint,
    DataFormat,
    Initializer,
    Padding,
    PerAxis,
    Regularizer,
)
from tf_deform.layers.lora import LowRankAdapted
from tf_deform.ops import validation
from tf_deform.ops.deformable_conv import (
    check_holds,
    explicit_padding,
    holding,
    least_pixels,
    output_sizes,
)


class Convolution(LowRankAdapted):
    """The arguments of Keras's convolutions, the weights made of them, and a plain convolution.

    Args:
        filters: int, number of output channels.
        kernel_size: int, or one int for each axis.
        strides: int, or one int for each axis.
        padding: "valid", "same" or "causal" (1-D). For weights of other libraries also an int, or
            one (before, after) pair for each axis.
        data_format: "channels_last" or "channels_first"; None for Keras's setting. Offsets and
            modulation have the same format.
        dilation_rate: int, or one int for each axis.
        groups: int, number of groups of channels, each convolved separately.
        activation: as in `keras.layers.Conv2D`; None for no activation.
        use_bias: whether to add a bias.
        kernel_initializer: initializer of the kernel.
        bias_initializer: initializer of the bias.
        kernel_regularizer: regularizer of the kernel, or None.
        bias_regularizer: regularizer of the bias, or None.
        activity_regularizer: regularizer of the layer's outputs, or None.
        kernel_constraint: constraint on the kernel, or None.
        bias_constraint: constraint on the bias, or None.
    """

    rank: int

    def __init__(
        self,
        filters: int,
        kernel_size: PerAxis,
        strides: PerAxis = 1,
        padding: Padding = "valid",
        data_format: DataFormat | None = None,
        dilation_rate: PerAxis = 1,
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast, offsets given in float32 stay so; the features are cast in `_inputs`.
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        validation.at_least(1, filters=filters, groups=groups)
        if filters % groups:
            raise ValueError(
                f"filters must be divisible by groups, received {filters} and {groups}"
            )
        self.filters = filters
        self.kernel_size = validation.per_axis("kernel_size", kernel_size, self.rank)
        self.strides = validation.per_axis("strides", strides, self.rank)
        self.padding = padding.lower() if isinstance(padding, str) else padding
        self.data_format = keras.config.image_data_format() if data_format is None else data_format
        validation.choice("data_format", self.data_format, ("channels_last", "channels_first"))
        self.dilation_rate = validation.per_axis("dilation_rate", dilation_rate, self.rank)
        self.groups = groups
        self.activation = keras.activations.get(activation)
        self.use_bias = validation.boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self._explicit_padding([1] * self.rank)  # raises on a padding that is none

    def _build_convolution(self, inputs_shape, **divisors):
        """Adds kernel and bias; returns the inputs' channels, which all divisors must divide."""
        channels = inputs_shape[-1 if self.data_format == "channels_last" else 1]
        if len(inputs_shape) != self.rank + 2 or channels is None:
            raise ValueError(
                f"inputs must have rank {self.rank + 2} and a known number of channels, received "
                f"{inputs_shape}"
            )
        for name, divisor in divisors.items():
            if channels % divisor:
                raise ValueError(
                    f"inputs must have channels divisible by {name}={divisor}, received "
                    f"{inputs_shape}"
                )
        axis = -1 if self.data_format == "channels_last" else 1
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2, axes={axis: channels})
        self._kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            autocast=False,  # as for the other weights: the operator works in float32
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                autocast=False,
            )
        return channels

    def _convolved_shape(self, inputs_shape):
        """Returns the shape of the outputs for that of inputs in `data_format`."""
        batch, *rest = inputs_shape
        space = rest[:-1] if self.data_format == "channels_last" else rest[1:]
        check_holds(batch, space, least_pixels(self.padding, self._extents))
        known = [1 if size is None else size for size in space]
        output = output_sizes(known, self._explicit_padding(known), self._extents, self.strides)
        output = [None if size is None else out for size, out in zip(space, output, strict=True)]
        if self.data_format == "channels_last":
            return (batch, *output, self.filters)
        return (batch, self.filters, *output)

    @property
    def _extents(self):
        sizes = zip(self.kernel_size, self.dilation_rate, strict=True)
        return [(size - 1) * dilation + 1 for size, dilation in sizes]

    @property
    def _geometry(self):
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
        }

    def _explicit_padding(self, space):
        return explicit_padding(self.padding, space, self._extents, self.strides)

    def _inputs(self, inputs):
        inputs = tf.cast(validation.floating("inputs", inputs), self.compute_dtype)
        least = least_pixels(self.padding, self._extents)
        return holding(self._to_channels_last(inputs), least)

    def _convolve(self, inputs, kernel):
        batch, *space, _ = validation.sizes(inputs)
        pads = self._explicit_padding(space)
        output = [batch, *output_sizes(space, pads, self._extents, self.strides)]
        if any(validation.is_static(size) and size == 0 for size in output):
            # TensorFlow's convolutions get that wrong.
            return tf.zeros([*output, kernel.shape[-1]], inputs.dtype)
        strides, padding = self.strides, self.padding
        if self.rank == 3 and max(self.dilation_rate) > 1 and compiled.traced_for_export():
            return _dilated_in_3d(_padded(inputs, pads), kernel, strides, self.dilation_rate)
        # TensorFlow has no convolution that is both strided and dilated.
        apart = max(self.strides) > 1 and max(self.dilation_rate) > 1
        if apart or padding not in ("valid", "same"):
            inputs = _padded(inputs, pads)
            padding = "valid"
        if apart:
            strides = 1
        outputs = tf.nn.convolution(
            inputs,
            kernel,
            strides,
            padding.upper(),
            data_format={1: "NWC", 2: "NHWC", 3: "NDHWC"}[self.rank],
            dilations=self.dilation_rate,
        )
        if apart:
            every = (slice(None), *(slice(None, None, each) for each in self.strides))
            outputs = outputs[every]
        return outputs

    def _to_channels_last(self, tensor):
        if self.data_format == "channels_last":
            return tensor
        return tf.transpose(tensor, [0, *range(2, self.rank + 2), 1])

    def _from_channels_last(self, tensor):
        if self.data_format == "channels_last":
            return tensor
        return tf.transpose(tensor, [0, self.rank + 1, *range(1, self.rank + 1)])


def _dilated_in_3d(inputs, kernel, strides, dilation_rate):
    """Returns the convolution of padded inputs: a sum over the taps along the dilated axes.

    TensorFlow writes it with SpaceToBatchND, which LiteRT has for images alone. It is for what is
    exported: it takes twice the time, and four times in training.
    """
    sizes = kernel.shape[:3]
    taps = [range(n) if d > 1 else [None] for n, d in zip(sizes, dilation_rate, strict=True)]
    total = None
    for tap in itertools.product(*taps):
        seen, weights = [slice(None)], []
        for at, size, step in zip(tap, sizes, dilation_rate, strict=True):
            last = None if at is None else (at + 1 - size) * step or None
            seen.append(slice(at and at * step, last))
            weights.append(slice(None) if at is None else slice(at, at + 1))
        part = tf.nn.conv3d(inputs[tuple(seen)], kernel[tuple(weights)], [1, *strides, 1], "VALID")
        total = part if total is None else total + part
    return total


def _padded(inputs, pads):
    """Returns inputs with zeros around, their channels known in what is converted to LiteRT too.

    There tf.pad by amounts that are tensors forgets them, set_shape is lost and tf.ensure_shape is
    unknown; a slice of all keeps them.
    """
    padded = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
    rank = inputs.shape.rank
    return tf.slice(padded, [0] * rank, [-1] * (rank - 1) + [inputs.shape[-1]])
