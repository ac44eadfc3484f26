"""Keras callbacks for training deformable layers."""

import math
import os
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_deform.layers.deformable_conv import observed
from tf_deform.ops.deformable_conv import explicit_padding


class OffsetStatistics(NamedTuple):
    """What `OffsetMonitor` logs of a layer."""

    offset_magnitude: float
    out_of_bounds: float
    dead_offsets: float


class OffsetMonitor(keras.callbacks.Callback):
    """Logs to TensorBoard after each epoch what each deformable convolution's offsets do.

    They are measured on the same inputs each time, in every `DeformableConv1D`, `2D` and `3D` of
    the model, however deep in it; for a layer that is called several times, over all its calls:

    - offset_magnitude: mean length of the offsets in pixels;
    - out_of_bounds: share of the samples that lie outside the layer's inputs, beyond the outer
      edges of their pixels. Those that padding puts there count: compare with the start;
    - dead_offsets: share of the offset's channels that are the same at every pixel of all inputs,
      zero or not. They are 1 before training.

    The first layer whose offsets are NaN or infinite is named in a RuntimeWarning, once.

    Args:
        inputs: a batch of what the model takes: an array, or a list or dict of arrays.
        log_dir: as of keras.callbacks.TensorBoard; the values are written to `offsets` in it, as
            scalars "layer/offset_magnitude" and so on.

    Attributes:
        statistics: {name of the layer: (offset_magnitude, out_of_bounds, dead_offsets)}, of the
            start of the training or the last epoch. Where names repeat, a number is appended.

    Raises:
        ValueError: the model calls no deformable convolution.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([tfd.layers.DeformableConv2D(4, 3, padding="same")])
        >>> model.compile("sgd", "mse")
        >>> images = tf.random.uniform([8, 9, 7, 3])
        >>> monitor = OffsetMonitor(images, log_dir=tempfile.mkdtemp())
        >>> _ = model.fit(images, tf.ones([8, 9, 7, 4]), callbacks=[monitor], verbose=0)
        >>> [statistics.dead_offsets for statistics in monitor.statistics.values()]
        [0.0]
    """

    def __init__(self, inputs, *, log_dir="logs"):
        super().__init__()
        self.inputs = inputs
        self.log_dir = log_dir
        self.statistics = {}
        self._writer: Any = None
        self._warned = False

    def on_train_begin(self, logs=None):
        self._measure("before training")  # so that inputs which do not fit are found now
        self._writer = tf.summary.create_file_writer(os.path.join(self.log_dir, "offsets"))

    def on_epoch_end(self, epoch, logs=None):
        self._measure(f"after epoch {epoch + 1}")
        # tf.summary.scalar needs TensorBoard, which TensorFlow no longer brings along.
        scalar = tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
        )
        with self._writer.as_default():
            for name, statistics in self.statistics.items():
                for tag, value in statistics._asdict().items():
                    value = tf.constant(value, tf.float32)
                    tf.summary.write(f"{name}/{tag}", value, step=epoch, metadata=scalar)
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()

    def _measure(self, when):
        calls: dict = {}

        def observer(layer, inputs, offset):
            calls.setdefault(layer, []).append(_observe(layer, inputs, offset))

        with observed(observer):
            self.model(self.inputs, training=False)
        if not calls:
            raise ValueError(
                f"model must have a deformable convolution for OffsetMonitor, received "
                f"{self.model.name!r}, which calls none"
            )
        self.statistics = {}
        for layer, observations in calls.items():
            name, number = layer.name, 0
            while name in self.statistics:
                number += 1
                name = f"{layer.name}_{number}"
            offset = np.concatenate([each.offset for each in observations])
            if not (self._warned or np.all(np.isfinite(offset))):
                self._warned = True
                finite = all(each.finite for each in observations)
                warnings.warn(
                    f"Layer {name!r} has NaN or infinite offsets {when}; its inputs are "
                    f"{'finite' if finite else 'not finite either'}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.statistics[name] = _statistics(offset, observations)


class _Observation(NamedTuple):
    offset: np.ndarray  # [pixels, deformable groups * taps, rank]
    outside: np.ndarray  # of all samples
    finite: bool  # whether the inputs are


def _observe(layer, inputs, offset):
    """Returns the observation of one call of a layer, with channels last."""
    offset = np.asarray(offset)
    flat = offset.reshape(-1, offset.shape[-1] // layer.rank, layer.rank)
    finite = bool(np.all(np.isfinite(np.asarray(inputs, np.float32))))
    return _Observation(flat, _outside(layer, inputs.shape[1:-1], offset), finite)


def _outside(layer, space, offset):
    """Returns `[batch, *output, deformable groups, *kernel_size]`: which samples lie outside."""
    batch, *output, _ = offset.shape
    extents = [
        (size - 1) * dilation + 1
        for size, dilation in zip(layer.kernel_size, layer.dilation_rate, strict=True)
    ]
    pads = explicit_padding(layer.padding, list(space), extents, layer.strides)
    shape = (batch, *output, layer.deformable_groups, *layer.kernel_size)
    offset = offset.reshape(*shape, layer.rank)
    outside = np.zeros(shape, bool)
    for axis, size in enumerate(space):
        pixels = np.arange(output[axis]) * layer.strides[axis] - pads[axis][0]
        taps = np.arange(layer.kernel_size[axis]) * layer.dilation_rate[axis]
        pixels = pixels.reshape(-1, *[1] * (2 * layer.rank - axis))
        taps = taps.reshape(-1, *[1] * (layer.rank - axis - 1))
        position = pixels + taps + offset[..., axis]
        outside |= ~((position >= -0.5) & (position <= size - 0.5))  # as a NaN does
    return outside


def _statistics(offset, observations):
    samples = sum(each.outside.size for each in observations)
    if not samples:
        return OffsetStatistics(math.nan, math.nan, math.nan)
    return OffsetStatistics(
        offset_magnitude=float(np.mean(np.linalg.norm(offset, axis=-1))),
        out_of_bounds=sum(int(np.sum(each.outside)) for each in observations) / samples,
        dead_offsets=float(np.mean(np.min(offset, axis=0) == np.max(offset, axis=0))),
    )
