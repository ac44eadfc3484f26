"""Deformable convolution layers in one to three dimensions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import (
    Activation,
    Constraint,
    DataFormat,
    Initializer,
    Padding,
    PerAxis,
    Regularizer,
    Shape,
    Tensor,
)
from tf_deform.layers.convolution import Convolution
from tf_deform.layers.offset_training import OffsetTraining
from tf_deform.ops import validation
from tf_deform.ops.deformable_conv import sampling_positions


class DeformableConv(Convolution, OffsetTraining):
    """A convolution whose taps are moved by offsets.

    A tap is one place of the kernel: a 3 by 3 kernel has nine. A second convolution, the predictor,
    has the same kernel size, strides, padding and dilation. From the inputs it predicts for each
    output pixel and tap how far the tap moves, in pixels. With `modulated` it also predicts a
    weight for each tap. The predictor starts at zero. So, with the default initialisers, the
    untrained layer is a plain convolution.

    The layer takes all arguments of the Keras convolution of the same rank, in the same order, and
    can replace it. Offsets and sampling positions are float32 or wider under every dtype policy.

    Args:
        deformable_groups: int, number of groups of input channels, each with its own offsets.
        modulated: whether to weight the samples (version 2 of the paper).
        mask_scale: the weights of the samples are `mask_scale * sigmoid(logits)`. With 2 the
            untrained layer equals a plain convolution; other libraries use 1.
        max_offset: largest predicted offset in pixels, or None for no bound. The bound is smooth:
            `max_offset * tanh(offset / max_offset)`.
        offset_kernel_initializer: initializer of the predictor's kernel. Its bias starts at zero.
        offset_lr_multiplier: learning rate of the predictor, relative to that of the other weights.
            The predictor's first step is this many times as large, with SGD and with optimizers
            that normalise gradients, such as Adam. To do this, the variables hold the weights
            divided by this number; files hold the weights themselves. It has no effect with
            Adafactor, Lamb and Muon, whose steps follow the size of the weights.
        offset_gradient_scale: factor on the gradient of the predictor's weights. With SGD it is
            another way to set the predictor's learning rate. With Adam it does nothing.

    Call arguments:
        inputs: `[batch, *space, channels]` ("channels_last").
        offset: `[batch, *output, deformable_groups * taps * rank]` in pixels, used instead of
            predicted offsets. The last axis runs over deformable groups, then taps, then
            coordinates (y, x). A layer that is first called with an offset makes no predictor.
        modulation: `[batch, *output, deformable_groups * taps]`, weights of the samples. Needed
            together with an offset if the layer is modulated.
        guide: `[batch, *space, any channels]`, of the same size as the inputs. The offsets are
            predicted from it instead of from the inputs. Example: the features of two frames, to
            align one frame to the other. A layer that is first called with a guide needs a guide
            with the same number of channels in every call.

    Returns:
        `[batch, *output, filters]` in the compute dtype.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit, or images that, with
            their padding, are smaller than the kernel. (An empty batch may have any size.)

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.1); Zhu et
    al., "Deformable ConvNets v2" (arXiv:1811.11168, section 3.2).
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
        *,
        deformable_groups: int = 1,
        modulated: bool = False,
        mask_scale: float = 2.0,
        max_offset: float | None = None,
        offset_kernel_initializer: Initializer = "zeros",
        offset_lr_multiplier: float = 1.0,
        offset_gradient_scale: float = 1.0,
        train_offsets_only: bool = False,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            train_offsets_only=train_offsets_only,
            **kwargs,
        )
        validation.at_least(1, deformable_groups=deformable_groups)
        self.deformable_groups = deformable_groups
        self.modulated = validation.boolean("modulated", modulated)
        self.mask_scale = validation.number("mask_scale", mask_scale, above=0)
        self.max_offset = validation.number("max_offset", max_offset, above=0, optional=True)
        self.offset_kernel_initializer = keras.initializers.get(offset_kernel_initializer)
        self.offset_lr_multiplier = validation.number(
            "offset_lr_multiplier", offset_lr_multiplier, above=0
        )
        self.offset_gradient_scale = validation.number(
            "offset_gradient_scale", offset_gradient_scale, minimum=0
        )

    def build(
        self,
        inputs_shape: Shape,
        offset_shape: Shape | None = None,
        modulation_shape: Shape | None = None,
        guide_shape: Shape | None = None,
    ) -> None:
        channels = self._build_convolution(
            inputs_shape, groups=self.groups, deformable_groups=self.deformable_groups
        )
        self.offset_kernel = None
        if offset_shape is None:
            predicted = self._offsets + (self._masks if self.modulated else 0)
            self._guided = guide_shape is not None
            if self._guided:
                channels = self._guide_channels(inputs_shape, guide_shape)
            shape = (*self.kernel_size, channels, predicted)
            self.offset_kernel = self._add_offset_weight(
                "offset_kernel", shape, self.offset_kernel_initializer
            )
            self.offset_bias = self._add_offset_weight(
                "offset_bias", (predicted,), keras.initializers.Zeros()
            )
        self.built = True
        if self.lora_rank is not None:
            self.enable_lora(self.lora_rank, self.lora_alpha)
        self._freeze_features()

    def _add_offset_weight(self, name, shape, initializer):
        """Returns a variable that holds the weight divided by `offset_lr_multiplier`."""
        multiplier = self.offset_lr_multiplier

        def divided(shape, dtype=None):
            return initializer(shape, dtype=dtype) / multiplier

        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer if multiplier == 1 else divided,
            autocast=False,
        )

    def save_own_variables(self, store: Any) -> None:
        if self.built:
            weights = [self.kernel, *([] if self.bias is None else [self.bias])]
            for variable in self._offset_weights:
                scaled = self.offset_lr_multiplier != 1
                weights.append(variable * self.offset_lr_multiplier if scaled else variable)
            for index, weight in enumerate(weights):
                store[str(index)] = weight

    def load_own_variables(self, store: Any) -> None:
        names = ["kernel", *([] if self.bias is None else ["bias"])] if self.built else []
        offsets = self._offset_weights if self.built else []
        names += ["offset_kernel", "offset_bias"][: len(offsets)]
        if len(store.keys()) != len(names):
            raise ValueError(
                f"Layer {self.name!r} must be given {len(names)} weights {names}, received "
                f"{len(store.keys())}; load the weights of a model with plain convolutions into "
                "that model, and make it deformable by tfd.deformable(model)"
            )
        kernel, *rest = (store[str(index)] for index in range(len(names)))
        self._assign_kernel(kernel)
        if self.bias is not None:
            self.bias.assign(rest.pop(0))
        for variable, weight in zip(offsets, rest, strict=True):
            variable.assign(np.asarray(weight) / self.offset_lr_multiplier)

    @property
    def _offset_weights(self):
        return [] if self.offset_kernel is None else [self.offset_kernel, self.offset_bias]

    def predict_offset(
        self, inputs: Tensor, guide: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what the layer predicts from inputs, or from a guide: (offset, modulation).

        The offset is `[batch, *output, deformable_groups * taps * rank]` in pixels, in float32 or
        wider. The modulation is `[batch, *output, deformable_groups * taps]`, or None if the layer
        is not modulated. Both have the layer's `data_format`.
        """
        if not self.built:
            raise ValueError(f"Layer {self.name!r} must be built before it can predict offsets")
        offset, modulation = self._predict(self._inputs(inputs), guide)
        if modulation is not None:
            modulation = self._from_channels_last(modulation)
        return self._from_channels_last(offset), modulation

    def call(
        self,
        inputs: Tensor,
        offset: Tensor | None = None,
        modulation: Tensor | None = None,
        guide: Tensor | None = None,
    ) -> Tensor:
        for observer in _observers:
            observer(self, inputs, offset, modulation, guide)
        inputs = self._inputs(inputs)
        offset, modulation = self._deformation(inputs, offset, modulation, guide)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = ops.deformable_conv(inputs, kernel, offset, modulation, **self._geometry)
        if self.bias is not None:
            outputs += tf.cast(self.bias, outputs.dtype)
        return self.activation(self._from_channels_last(outputs))

    def sampling_positions(
        self,
        inputs: Tensor,
        offset: Tensor | None = None,
        modulation: Tensor | None = None,
        guide: Tensor | None = None,
    ) -> Tensor:
        """Returns where the layer samples: `[batch, *output, deformable_groups, taps, rank]`.

        The positions are (y, x) in pixels of the inputs, with pixel centres at integers, in float32
        or wider. The taps run row by row. The arguments are the same as in a call and have the
        layer's `data_format`. The positions have the same shape in both formats.
        """
        self._check_built()
        inputs = self._inputs(inputs)
        offset, _ = self._deformation(inputs, offset, modulation, guide)
        kernel = tf.convert_to_tensor(self.kernel)
        return sampling_positions(inputs, kernel, offset, **self._geometry)

    def compute_output_shape(
        self,
        inputs_shape: Shape,
        offset_shape: Shape | None = None,
        modulation_shape: Shape | None = None,
        guide_shape: Shape | None = None,
    ) -> tuple[int | None, ...]:
        shape = self._convolved_shape(inputs_shape)
        if guide_shape is not None:
            self._guide_channels(inputs_shape, guide_shape)
        if offset_shape is not None:
            validation.check_shape("offset", offset_shape, *self._moved(self._offsets))
        if modulation_shape is not None:
            validation.check_shape("modulation", modulation_shape, *self._moved(self._masks))
        return shape

    @property
    def _masks(self):
        return self.deformable_groups * math.prod(self.kernel_size)

    @property
    def _offsets(self):
        return self._masks * self.rank

    def _deformation(self, inputs, offset, modulation, guide):
        """Returns offset and modulation, or None, channels-last: those given or else predicted.

        inputs: channels-last. What is given follows `data_format`.
        """
        if offset is None:
            if modulation is not None:
                raise ValueError("modulation must come with an offset, received offset=None")
            return self._predict(inputs, guide)
        if guide is not None:
            raise ValueError("guide is what offsets are predicted from: give it, or an offset")
        if self.modulated and modulation is None:
            raise ValueError("modulation must be given beside the offset of a modulated layer")
        offset = self._given("offset", offset, self._offsets)
        if modulation is not None:
            modulation = self._given("modulation", modulation, self._masks)
        return offset, modulation

    def _given(self, name, tensor, channels):
        """Returns an offset or modulation channels-last; its other sizes are checked later."""
        tensor = validation.floating(name, tensor)
        return self._to_channels_last(validation.shaped(name, tensor, *self._moved(channels)))

    def _moved(self, channels):
        """Returns the shape of what is given for each output pixel, and the shape in words."""
        free = [None] * self.rank
        if self.data_format == "channels_last":
            return [None, *free, channels], f"[batch, *output, {channels}]"
        return [None, channels, *free], f"[batch, {channels}, *output]"

    def _guide_channels(self, inputs_shape, guide_shape):
        """Returns the channels of a guide. Raises unless it has the inputs' size."""
        space = slice(1, -1) if self.data_format == "channels_last" else slice(2, None)
        axis = -1 if self.data_format == "channels_last" else 1
        expected = [inputs_shape[0], *inputs_shape[space]]
        expected.insert(axis if axis == 1 else len(expected), None)
        validation.check_shape("guide", guide_shape, expected, self._guide_in_words)
        if guide_shape[axis] is None:
            raise ValueError(f"guide must have a known number of channels, received {guide_shape}")
        return guide_shape[axis]

    @property
    def _guide_in_words(self):
        last = self.data_format == "channels_last"
        shape = "[batch, *space, channels]" if last else "[batch, channels, *space]"
        return f"{shape} of the inputs' size"

    def _predict(self, inputs, guide):
        """Returns offset and modulation, or None, for channels-last inputs.

        guide: what they are predicted from, following `data_format`; None: the inputs.
        """
        if self.offset_kernel is None:
            raise ValueError(
                f"Layer {self.name!r} was built with an offset and has no predictor: call it with "
                "an offset"
            )
        if (guide is not None) != self._guided:
            how = "with" if self._guided else "without"
            raise ValueError(
                f"Layer {self.name!r} was built {how} a guide: call it {how} one, or with an offset"
            )
        if guide is not None:
            guide = self._to_channels_last(validation.floating("guide", guide))
            expected = [*validation.sizes(inputs)[:-1], self.offset_kernel.shape[-2]]
            inputs = validation.shaped("guide", guide, expected, self._guide_in_words)
        wide = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        kernel, bias = (
            _scaled(
                tf.convert_to_tensor(weight), self.offset_lr_multiplier, self.offset_gradient_scale
            )
            for weight in self._offset_weights
        )
        predicted = self._convolve(tf.cast(inputs, wide), tf.cast(kernel, wide))
        predicted += tf.cast(bias, wide)
        offset, logits = predicted[..., : self._offsets], predicted[..., self._offsets :]
        if self.max_offset is not None:
            offset = self.max_offset * tf.tanh(offset / self.max_offset)
        return offset, self.mask_scale * tf.sigmoid(logits) if self.modulated else None


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv1D(DeformableConv):
    """A convolution over `[batch, steps, channels]` whose taps are moved by offsets.

    Example:
        >>> DeformableConv1D(4, 3, padding="causal")(tf.zeros([2, 9, 5])).shape
        TensorShape([2, 9, 4])
    """

    rank = 1


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv2D(DeformableConv):
    """A convolution over `[batch, height, width, channels]` whose taps are moved by offsets.

    Example:
        >>> layer = DeformableConv2D(4, 3, padding="same", modulated=True)
        >>> layer(tf.zeros([2, 9, 7, 5])).shape
        TensorShape([2, 9, 7, 4])
    """

    rank = 2


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv3D(DeformableConv):
    """A convolution over `[batch, depth, height, width, channels]` whose taps move by offsets.

    Example:
        >>> DeformableConv3D(4, 3)(tf.zeros([2, 5, 6, 7, 3])).shape
        TensorShape([2, 3, 4, 5, 4])
    """

    rank = 3


@contextlib.contextmanager
def observed(observer: Callable[..., Any]) -> Iterator[None]:
    """Returns a context manager in which each call of a layer calls `observer` as well.

    The observer is given the layer, and its inputs, offset, modulation and guide as the call is.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


_observers: list = []


def _scaled(tensor, scale, gradient_scale):
    """Returns `scale * tensor`; what comes back is `gradient_scale` times what arrives."""
    if scale == gradient_scale == 1:
        return tensor

    @tf.custom_gradient
    def scaled(tensor):
        return scale * tensor, lambda upstream: gradient_scale * upstream

    return scaled(tensor)
