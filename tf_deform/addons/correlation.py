"""The correlation of two feature maps, as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import DataFormat, Shape, Tensor
from tf_deform.layers.base import Layer
from tf_deform.ops import validation
from tf_deform.ops.correlation import check_options

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_MEANINGS = {
    "channels_last": "[batch, height, width, channels]",
    "channels_first": "[batch, channels, height, width]",
}


@keras.saving.register_keras_serializable("tf_deform")
class CorrelationCost(Layer):
    """Returns `[batch, out_height, out_width, (2r + 1)^2]`: how alike patches of two maps are.

    With r displacements of `stride_2` pixels to every side, r being `max_displacement // stride_2`.
    `tfd.ops.correlation` states the formula. Addons' CPU kernel has other values where `stride_1`
    is above 1 and `pad` above 0, see docs/addons.md: here they are those of its GPU kernel.

    Args:
        kernel_size: of the patches, in pixels, odd.
        max_displacement: in pixels, at least 0.
        stride_1: pixels from an output to the next one.
        stride_2: pixels from a displacement to the next one.
        pad: zeros around both maps, in pixels.
        data_format: "channels_last" or "channels_first", of the inputs and of the output.

    Call arguments:
        inputs: list of two maps `[batch, height, width, channels]`, or `[batch, channels, height,
            width]`.

    Source: `tfa.layers.CorrelationCost`; Fischer et al., "FlowNet" (arXiv:1504.06852, equation 1).

    Example:
        >>> layer = CorrelationCost(1, 4, 1, 2, pad=4, data_format="channels_last")
        >>> layer([tf.zeros([2, 9, 7, 3]), tf.zeros([2, 9, 7, 3])]).shape
        TensorShape([2, 9, 7, 25])
    """

    def __init__(
        self,
        kernel_size: int,
        max_displacement: int,
        stride_1: int,
        stride_2: int,
        pad: int,
        data_format: DataFormat,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        validation.at_least(1, stride_1=stride_1, stride_2=stride_2)
        validation.at_least(0, pad=pad)
        check_options(max_displacement, kernel_size, stride_1, stride_2, pad)
        validation.choice("data_format", data_format, get_args(DataFormat))
        self.kernel_size = int(kernel_size)
        self.max_displacement = int(max_displacement)
        self.stride_1 = int(stride_1)
        self.stride_2 = int(stride_2)
        self.pad = int(pad)
        self.data_format = data_format

    def build(self, inputs_shape: Sequence[Shape]) -> None:
        pass

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        first, second = (
            tf.cast(validation.floating(f"inputs[{index}]", each), self.compute_dtype)
            for index, each in enumerate(_two(inputs))
        )
        if self.data_format == "channels_first":
            first, second = tf.transpose(first, _TO_LAST), tf.transpose(second, _TO_LAST)
        costs = ops.correlation(
            first,
            second,
            max_displacement=self.max_displacement,
            kernel_size=self.kernel_size,
            stride=self.stride_1,
            displacement_stride=self.stride_2,
            padding=self.pad,
        )
        return costs if self.data_format == "channels_last" else tf.transpose(costs, _TO_FIRST)

    def compute_output_shape(self, inputs_shape: Sequence[Shape]) -> tuple[int | None, ...]:
        first, second = _two(inputs_shape)
        meaning = _MEANINGS[self.data_format]
        validation.check_shape("inputs[0]", first, [None] * 4, meaning)
        validation.check_shape("inputs[1]", second, first, f"{meaning} as inputs[0]")
        last = self.data_format == "channels_last"
        edge = self.pad - self.max_displacement - self.kernel_size // 2
        space = first[1:3] if last else first[2:]
        if any(size is not None and size + 2 * edge < 1 for size in space):
            raise ValueError(
                f"inputs[0] must be at least {1 - 2 * edge} pixels high and wide, padding counted, "
                f"received {validation.shown(first)}"
            )
        space = [
            None if size is None else (size + 2 * edge - 1) // self.stride_1 + 1 for size in space
        ]
        channels = (2 * (self.max_displacement // self.stride_2) + 1) ** 2
        return (first[0], *space, channels) if last else (first[0], channels, *space)


def _two(inputs):
    """Returns the inputs. Raises ValueError unless they are two in a list or tuple."""
    if not isinstance(inputs, list | tuple) or len(inputs) != 2:
        received = f"{len(inputs)}" if isinstance(inputs, list | tuple) else "one tensor"
        raise ValueError(f"inputs must be a list of two tensors, received {received}")
    return inputs
