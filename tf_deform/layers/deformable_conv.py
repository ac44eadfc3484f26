"""Deformable convolution layers in one to three dimensions."""

import contextlib
import math

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.layers.offset_training import OffsetTraining
from tf_deform.ops import validation
from tf_deform.ops.deformable_conv import (
    check_holds,
    explicit_padding,
    holding,
    least_pixels,
    output_sizes,
    sampling_positions,
)


class DeformableConv(OffsetTraining):
    """A convolution whose taps are moved by offsets that it predicts from its inputs.

    It takes every argument of the Keras convolution of the same rank, in the same order, and can
    stand in its place: with the default initialisers it starts as that convolution. A second
    convolution of the same geometry, initialised to zero, predicts for each output pixel and tap
    how far the tap is moved, in pixels, and with `modulated` also how much it counts. The offsets
    and the sampling positions are float32 or wider under every dtype policy.

    Args:
        filters: int, output channels.
        kernel_size: int or one int an axis.
        strides: int or one int an axis.
        padding: "valid", "same", "causal" (1-D), or, for checkpoints from elsewhere, an int or one
            (before, after) pair an axis.
        data_format: "channels_last" or "channels_first"; None for Keras's setting. Offsets and
            modulation follow it.
        dilation_rate: int or one int an axis.
        groups: int, groups of channels that are convolved apart.
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, activity_regularizer, kernel_constraint, bias_constraint: as in
            keras.layers.Conv2D.
        deformable_groups: int, groups of input channels with offsets of their own.
        modulated: whether to weight the samples (version 2 of the paper).
        mask_scale: the modulation is `mask_scale * sigmoid(logits)`; 2 makes the untrained layer
            equal the convolution, 1 is what other libraries use.
        max_offset: bound of the predicted offsets in pixels, by `max_offset * tanh(offset /
            max_offset)`; None: unbounded.
        offset_kernel_initializer: of the predicting convolution, whose bias starts at zero.
        offset_gradient_scale: factor on the gradient of the predicting convolution's weights: a
            learning rate of its own, but for optimizers that normalise gradients, as Adam does.
        train_offsets_only: whether all weights but the predicting convolution's are frozen, until
            `trainable` or `train_offsets_only` is set.

    Call arguments:
        inputs: `[batch, *space, channels]` ("channels_last").
        offset: `[batch, *output, deformable_groups * taps * rank]` in pixels, used instead of
            predicted ones. Its last axis runs over deformable groups, taps and coordinates (y, x),
            the coordinates fastest. A layer first called with an offset has no predictor.
        modulation: `[batch, *output, deformable_groups * taps]`, multiplies the samples; needed
            beside an offset if the layer is modulated.

    Returns:
        `[batch, *output, filters]` in the compute dtype.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit, and images, if there are
            any, smaller with their padding than the kernel.

    Source: Dai et al., "Deformable Convolutional Networks" (arXiv:1703.06211, section 2.1); Zhu et
    al., "Deformable ConvNets v2" (arXiv:1811.11168, section 3.2).
    """

    rank: int

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        data_format=None,
        dilation_rate=1,
        groups=1,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        *,
        deformable_groups=1,
        modulated=False,
        mask_scale=2.0,
        max_offset=None,
        offset_kernel_initializer="zeros",
        offset_gradient_scale=1.0,
        **kwargs,
    ):
        # Without autocast, offsets given in float32 stay so; the features are cast in `call`.
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        validation.at_least(1, filters=filters, groups=groups, deformable_groups=deformable_groups)
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
        self.deformable_groups = deformable_groups
        self.modulated = validation.boolean("modulated", modulated)
        self.mask_scale = validation.number("mask_scale", mask_scale, above=0)
        self.max_offset = validation.number("max_offset", max_offset, above=0, optional=True)
        self.offset_kernel_initializer = keras.initializers.get(offset_kernel_initializer)
        self.offset_gradient_scale = validation.number(
            "offset_gradient_scale", offset_gradient_scale, minimum=0
        )
        self._explicit_padding([1] * self.rank)  # raises on a padding that is none

    def build(self, inputs_shape, offset_shape=None, modulation_shape=None):
        channels = inputs_shape[-1 if self.data_format == "channels_last" else 1]
        if len(inputs_shape) != self.rank + 2 or channels is None:
            raise ValueError(
                f"inputs must have rank {self.rank + 2} and a known number of channels, received "
                f"{inputs_shape}"
            )
        for name in ("groups", "deformable_groups"):
            if channels % getattr(self, name):
                raise ValueError(
                    f"inputs must have channels divisible by {name}={getattr(self, name)}, "
                    f"received {inputs_shape}"
                )
        axis = -1 if self.data_format == "channels_last" else 1
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2, axes={axis: channels})
        self.kernel = self.add_weight(
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
        self.offset_kernel = None
        if offset_shape is None:
            predicted = self._offsets + (self._masks if self.modulated else 0)
            self.offset_kernel = self.add_weight(
                name="offset_kernel",
                shape=(*self.kernel_size, channels, predicted),
                initializer=self.offset_kernel_initializer,
                autocast=False,
            )
            self.offset_bias = self.add_weight(
                name="offset_bias", shape=(predicted,), initializer="zeros", autocast=False
            )
        self._freeze_features()

    def predict_offset(self, inputs):
        """Returns what the layer predicts for inputs: (offset, modulation).

        The offsets are in pixels, `[batch, *output, deformable_groups * taps * rank]` in float32
        or wider; the modulation is `[batch, *output, deformable_groups * taps]`, None if the layer
        is not modulated. Both follow `data_format`.
        """
        if not self.built:
            raise ValueError(f"Layer {self.name!r} must be built before it can predict offsets")
        offset, modulation = self._predict(self._inputs(inputs))
        if modulation is not None:
            modulation = self._from_channels_last(modulation)
        return self._from_channels_last(offset), modulation

    def call(self, inputs, offset=None, modulation=None):
        for observer in _observers:
            observer(self, inputs, offset, modulation)
        inputs = self._inputs(inputs)
        offset, modulation = self._deformation(inputs, offset, modulation)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = ops.deformable_conv(inputs, kernel, offset, modulation, **self._geometry)
        if self.bias is not None:
            outputs += tf.cast(self.bias, outputs.dtype)
        return self.activation(self._from_channels_last(outputs))

    def sampling_positions(self, inputs, offset=None, modulation=None):
        """Returns where the layer samples: `[batch, *output, deformable_groups, taps, rank]`.

        They are pixels of the inputs, pixel centres at integers, in array order (y, x), in float32
        or wider. The taps run row by row. The arguments are those of the call and follow
        `data_format`; the positions do not.
        """
        self._check_built()
        inputs = self._inputs(inputs)
        offset, _ = self._deformation(inputs, offset, modulation)
        kernel = tf.convert_to_tensor(self.kernel)
        return sampling_positions(inputs, kernel, offset, **self._geometry)

    def compute_output_shape(self, inputs_shape, offset_shape=None, modulation_shape=None):
        batch, *rest = inputs_shape
        space = rest[:-1] if self.data_format == "channels_last" else rest[1:]
        check_holds(batch, space, least_pixels(self.padding, self._extents))
        if offset_shape is not None:
            validation.check_shape("offset", offset_shape, *self._moved(self._offsets))
        if modulation_shape is not None:
            validation.check_shape("modulation", modulation_shape, *self._moved(self._masks))
        known = [1 if size is None else size for size in space]
        output = output_sizes(known, self._explicit_padding(known), self._extents, self.strides)
        output = [None if size is None else out for size, out in zip(space, output, strict=True)]
        if self.data_format == "channels_last":
            return (batch, *output, self.filters)
        return (batch, self.filters, *output)

    def get_config(self):
        config = {
            name: getattr(self, name)
            for name in (
                "filters",
                "kernel_size",
                "strides",
                "padding",
                "data_format",
                "dilation_rate",
                "groups",
                "use_bias",
                "deformable_groups",
                "modulated",
                "mask_scale",
                "max_offset",
                "offset_gradient_scale",
            )
        }
        for kind, names in (
            (keras.activations, ["activation"]),
            (
                keras.initializers,
                ["kernel_initializer", "bias_initializer", "offset_kernel_initializer"],
            ),
            (
                keras.regularizers,
                ["kernel_regularizer", "bias_regularizer", "activity_regularizer"],
            ),
            (keras.constraints, ["kernel_constraint", "bias_constraint"]),
        ):
            config.update({name: kind.serialize(getattr(self, name)) for name in names})
        return {**super().get_config(), **config}

    @property
    def _masks(self):
        return self.deformable_groups * math.prod(self.kernel_size)

    @property
    def _offsets(self):
        return self._masks * self.rank

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

    def _deformation(self, inputs, offset, modulation):
        """Returns offset and modulation, or None, channels-last: those given or else predicted.

        inputs: channels-last. What is given follows `data_format`.
        """
        if offset is None:
            if modulation is not None:
                raise ValueError("modulation must come with an offset, received offset=None")
            return self._predict(inputs)
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

    def _predict(self, inputs):
        """Returns offset and modulation, or None, for channels-last inputs."""
        if self.offset_kernel is None:
            raise ValueError(
                f"Layer {self.name!r} was built with an offset and has no predictor: call it with "
                "an offset"
            )
        wide = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        kernel, bias = (
            _scale_gradient(tf.convert_to_tensor(weight), self.offset_gradient_scale)
            for weight in (self.offset_kernel, self.offset_bias)
        )
        predicted = self._convolve(tf.cast(inputs, wide), tf.cast(kernel, wide))
        predicted += tf.cast(bias, wide)
        offset, logits = predicted[..., : self._offsets], predicted[..., self._offsets :]
        if self.max_offset is not None:
            offset = self.max_offset * tf.tanh(offset / self.max_offset)
        return offset, self.mask_scale * tf.sigmoid(logits) if self.modulated else None

    def _convolve(self, inputs, kernel):
        batch, *space, _ = validation.sizes(inputs)
        pads = self._explicit_padding(space)
        output = [batch, *output_sizes(space, pads, self._extents, self.strides)]
        if any(validation.is_static(size) and size == 0 for size in output):
            # TensorFlow's convolutions get that wrong.
            return tf.zeros([*output, kernel.shape[-1]], inputs.dtype)
        strides, padding = self.strides, self.padding
        # TensorFlow has no convolution that is both strided and dilated.
        apart = max(self.strides) > 1 and max(self.dilation_rate) > 1
        if apart or padding not in ("valid", "same"):
            inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
            inputs = tf.ensure_shape(inputs, [*[None] * (self.rank + 1), kernel.shape[-2]])
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


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv1D(DeformableConv):
    """Deformable convolution over `[batch, steps, channels]`; arguments as `DeformableConv`.

    Example:
        >>> DeformableConv1D(4, 3, padding="causal")(tf.zeros([2, 9, 5])).shape
        TensorShape([2, 9, 4])
    """

    rank = 1


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv2D(DeformableConv):
    """Deformable convolution over `[batch, height, width, channels]`; as `DeformableConv`.

    Example:
        >>> layer = DeformableConv2D(4, 3, padding="same", modulated=True)
        >>> layer(tf.zeros([2, 9, 7, 5])).shape
        TensorShape([2, 9, 7, 4])
    """

    rank = 2


@keras.saving.register_keras_serializable("tf_deform")
class DeformableConv3D(DeformableConv):
    """Deformable convolution over `[batch, depth, height, width, channels]`; as `DeformableConv`.

    Example:
        >>> DeformableConv3D(4, 3)(tf.zeros([2, 5, 6, 7, 3])).shape
        TensorShape([2, 3, 4, 5, 4])
    """

    rank = 3


@contextlib.contextmanager
def observed(observer):
    """Returns a context manager in which each call of a layer calls `observer` as well.

    The observer is given the layer, and its inputs, offset and modulation as the call is.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


_observers: list = []


def _scale_gradient(tensor, scale):
    if scale == 1.0:
        return tensor

    @tf.custom_gradient
    def identity(tensor):
        return tf.identity(tensor), lambda upstream: scale * upstream

    return identity(tensor)
