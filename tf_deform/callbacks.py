"""Keras callbacks for training deformable layers."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_deform import visualization
from tf_deform.annotations import Path, Structure, Tensor
from tf_deform.layers.deformable_conv import observed
from tf_deform.ops import validation

__all__ = ["OffsetMonitor"]


def __dir__() -> list[str]:
    return __all__


class OffsetStatistics(NamedTuple):
    """What `OffsetMonitor` logs of a layer."""

    offset_magnitude: float
    out_of_bounds: float
    dead_offsets: float


class OffsetMonitor(keras.callbacks.Callback):
    """Logs statistics of each deformable convolution's offsets after each epoch.

    After each epoch it runs the model on the same inputs, and measures every `DeformableConv1D`,
    `2D` and `3D` of the model, however deep inside. If a layer is called several times, all its
    calls count together:

    - offset_magnitude: mean length of the offsets in pixels;
    - out_of_bounds: share of the samples outside the layer's inputs, beyond the outer edges of the
      edge pixels. Samples in the padding count too, so compare with the value before training;
    - dead_offsets: share of the offset channels that have the same value at every pixel of all
      inputs, zero or not. It is 1 before training.

    The callback adds them to the `logs` of the epoch, under names such as "layer/offset_magnitude".
    There the history and the later callbacks in the list, such as CSVLogger and EarlyStopping, find
    them.

    A RuntimeWarning names the first layer whose offsets are NaN or infinite, once.

    Args:
        inputs: a batch of the model's inputs: an array, or a list or dict of arrays.
        log_dir: TensorBoard's folder. The values are written to `offsets` in it, as scalars of the
            same names. None: nothing is written.
        pictures: how many of the inputs are drawn for TensorBoard after each epoch, for each
            two-dimensional layer, as by `tfd.visualization.plot_taps`. They are drawn on the first
            of the inputs that is images of one or three channels. Needs matplotlib.

    Attributes:
        statistics: {name of the layer: (offset_magnitude, out_of_bounds, dead_offsets)} of the last
            epoch, or of the start of the training. If names repeat, a number is appended.

    Raises:
        ValueError: the model calls no deformable convolution; or pictures are requested, but there
            is no log_dir or no image.
        ImportError: pictures are requested, and matplotlib is missing.

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

    def __init__(
        self,
        inputs: Structure[Tensor],
        *,
        log_dir: Path | None = "logs",
        pictures: int = 0,
    ) -> None:
        super().__init__()
        validation.at_least(0, pictures=pictures)
        if pictures and log_dir is None:
            raise ValueError(f"log_dir must be given for pictures={pictures}, received None")
        self.inputs = inputs
        self.log_dir = log_dir
        self.pictures = pictures
        self.statistics: dict[str, OffsetStatistics] = {}
        self._images = _images_among(inputs) if pictures else []
        self._drawn: dict = {}  # {name of a layer: the observation of its first call}
        self._writer: Any = None
        self._warned = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._measure("before training")  # so that inputs which do not fit are found now
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(os.path.join(self.log_dir, "offsets"))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._measure(f"after epoch {epoch + 1}")
        scalars = {
            f"{name}/{tag}": value
            for name, statistics in self.statistics.items()
            for tag, value in statistics._asdict().items()
        }
        if logs is not None:
            logs.update(scalars)
        if self._writer is None:
            return
        with self._writer.as_default():
            for tag, value in scalars.items():
                _write(tag, tf.constant(value, tf.float32), epoch, "scalars", "DATA_CLASS_SCALAR")
            for name, observation in self._drawn.items():
                strings = _pictures(observation, self._images[: self.pictures])
                _write(f"{name}/taps", strings, epoch, "images", "DATA_CLASS_BLOB_SEQUENCE")
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measure(self, when):
        calls: dict = {}

        def observer(layer, *arguments):
            calls.setdefault(layer, []).append(_observe(layer, *arguments))

        with observed(observer):
            self.model(self.inputs, training=False)
        if not calls:
            raise ValueError(
                f"model must have a deformable convolution for OffsetMonitor, received "
                f"{self.model.name!r}, which calls none"
            )
        self.statistics, self._drawn = {}, {}
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
            first = observations[0]
            drawable = layer.rank == 2 and len(first.outside) == len(self._images)
            if drawable and first.outside.size:
                self._drawn[name] = first


class _Observation(NamedTuple):
    layer: Any
    arguments: tuple  # of the call: inputs, offset and modulation, or None
    offset: np.ndarray  # [pixels, deformable groups * taps, rank]
    outside: np.ndarray  # of all samples
    finite: bool  # whether the inputs are


def _observe(layer, inputs, offset, modulation, guide):
    """Returns the observation of one call of a layer, which is given what the call is."""
    if offset is None:
        offset, modulation = layer.predict_offset(inputs, guide)
    positions = np.asarray(layer.sampling_positions(inputs, offset, modulation))
    flat, space = np.asarray(offset), inputs.shape[1:-1]
    if layer.data_format == "channels_first":
        flat, space = np.moveaxis(flat, 1, -1), inputs.shape[2:]
    flat = flat.reshape(-1, flat.shape[-1] // layer.rank, layer.rank)
    # Beyond the outer edges of the edge pixels, as a NaN is
    outside = ~np.all((positions >= -0.5) & (positions <= np.array(space) - 0.5), axis=-1)
    finite = bool(np.all(np.isfinite(np.asarray(inputs, np.float32))))
    return _Observation(layer, (inputs, offset, modulation), flat, outside, finite)


def _statistics(offset, observations):
    samples = sum(each.outside.size for each in observations)
    if not samples:
        return OffsetStatistics(math.nan, math.nan, math.nan)
    return OffsetStatistics(
        offset_magnitude=float(np.mean(np.linalg.norm(offset, axis=-1))),
        out_of_bounds=sum(int(np.sum(each.outside)) for each in observations) / samples,
        dead_offsets=float(np.mean(np.min(offset, axis=0) == np.max(offset, axis=0))),
    )


def _images_among(inputs):
    """Returns the first of the inputs that are images of one or three channels."""
    for each in tf.nest.flatten(inputs):
        array = np.asarray(each)
        if array.ndim == 4 and array.shape[-1] in (1, 3):
            return array
    raise ValueError(
        "inputs must hold images [batch, height, width, 1 or 3] to draw pictures on, received none"
    )


def _pictures(observation, images):
    """Returns the strings that TensorBoard takes for pictures: width, height and PNG files."""
    height, width = observation.outside.shape[1:3]
    pixels = sorted({(height * y // 4, width * x // 4) for y in (1, 3) for x in (1, 3)})
    files = []
    for index, image in enumerate(images):
        one = tuple(
            None if each is None else each[index : index + 1] for each in observation.arguments
        )
        given = one if one[2] is not None else one[:2]
        files.append(
            visualization.png_of(
                lambda ax, image=image, given=given: visualization.plot_taps(
                    image, observation.layer, given, pixel=pixels, ax=ax
                )
            )
        )
    size = str(visualization.PICTURE_SIZE)
    return tf.constant([size, size, *files])


def _write(tag, tensor, step, plugin, data_class):
    # tf.summary.scalar and image need TensorBoard, which TensorFlow no longer brings along.
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": plugin}, data_class=data_class
    )
    tf.summary.write(tag, tensor, step=step, metadata=metadata)
