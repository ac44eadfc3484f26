"""Losses for image registration: how similar two images are, and how smooth a flow is."""

from __future__ import annotations

import math
from typing import Any, get_args

import keras
import tensorflow as tf

from tf_deform.annotations import Penalty, PerAxis, Reduction, Tensor
from tf_deform.ops import validation
from tf_deform.ops.displacement import field, float32_or_wider

__all__ = ["FlowSmoothness", "NormalizedCrossCorrelation"]


def __dir__() -> list[str]:
    return __all__


class _Loss(keras.losses.Loss):
    """A loss of one number per image, in float32 or wider whatever the dtype policy."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


@keras.saving.register_keras_serializable("tf_deform")
class NormalizedCrossCorrelation(_Loss):
    """One minus the mean squared correlation of two images in windows around each pixel: 0 to 1.

    The loss is 0 if, in every window, one image is the other times a factor plus a constant. The
    factor may be negative. So you can compare images with different brightness and contrast. In
    each channel, the squared correlation in a window is
    `covariance(a, b)^2 / ((variance(a) + epsilon) (variance(b) + epsilon))`. Windows are cut at the
    border. The loss of an image is 1 minus the mean over all pixels and channels. `reduction` and
    sample weights `[batch]` apply to the losses of the images.

    Memory does not grow with the window: its means are computed along one axis after the
    other, on five maps of the image's size (both images, their squares and their product).

    Args:
        window: side lengths of a window in pixels: an odd int, or one per axis.
        epsilon: added to both variances, in squared intensities, above 0. If an image varies in a
            window by less than the square root of epsilon, 0.003 by default, the correlation there
            goes to 0. The default is for images with values from about 0 to 1.
        reduction: as in `keras.losses.Loss`; "none" returns `[batch]`.
        name: of the loss.
        dtype: of the loss. None: float32. "float64" computes in float64, half precision in float32.

    Raises:
        ValueError: a window, epsilon or shape that does not fit. Both images have the same shape
            `[batch, *space, channels]`, with 1 to 3 spatial axes.

    Source: Avants et al., "Symmetric diffeomorphic image registration with cross-correlation"
    (2008); in networks Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231, equation 6), which pads
    windows with zeros at the border.

    Example:
        >>> image = np.random.default_rng(0).random([1, 16, 16, 1])
        >>> loss = NormalizedCrossCorrelation()
        >>> round(float(loss(image, 1 - 0.5 * image)), 2), round(float(loss(image, 0 * image)), 2)
        (0.0, 1.0)
    """

    def __init__(
        self,
        window: PerAxis = 9,
        *,
        epsilon: float = 1e-5,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "normalized_cross_correlation",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        rank = len(window) if isinstance(window, list | tuple) else 1
        sides = validation.per_axis("window", window, rank)
        if not all(side % 2 for side in sides):
            raise ValueError(f"window must have odd sides, received {window!r}")
        self.window = sides if isinstance(window, list | tuple) else sides[0]
        self.epsilon = validation.number("epsilon", epsilon, above=0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        shape = validation.sizes(y_true)
        rank = len(shape) - 2
        if rank not in (1, 2, 3):
            raise ValueError(
                f"y_true must have shape [batch, 1 to 3 axes, channels], received {y_true.shape}"
            )
        y_pred = validation.shaped("y_pred", y_pred, shape, "that of y_true")
        window = validation.per_axis("window", self.window, rank)
        # Correlations do not change with the images' means, but rounding errors do.
        a, b = (_centred(float32_or_wider(each)) for each in (y_true, y_pred))
        means = _window_means(tf.concat([a, b, a * a, b * b, a * b], axis=-1), window)
        a, b, aa, bb, ab = tf.split(means, 5, axis=-1)
        powers = (tf.nn.relu(aa - a * a) + self.epsilon) * (tf.nn.relu(bb - b * b) + self.epsilon)
        squares = (ab - a * b) ** 2 / powers
        return 1 - tf.reduce_mean(squares, axis=list(range(1, rank + 2)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "window": self.window, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("tf_deform")
class FlowSmoothness(_Loss):
    """The mean difference of a flow, or velocity, between neighbouring pixels: 0 if it is constant.

    The differences are between each pixel and the next one along an axis. Their absolute values or
    squares are averaged for each axis, over pixels and vector components. The loss of an image is
    the mean over the axes; an axis of one pixel counts as 0. `reduction` and sample weights
    `[batch]` apply to the losses of the images.

    The loss uses only `y_pred`, `[batch, *space, rank]`. Keras requires a `y_true` for every output
    with a loss: pass any array with one row per image, such as `np.zeros([images, 1])`.

    Args:
        penalty: "l2", the squares of the differences, or "l1", their absolute values.
        reduction: as in `keras.losses.Loss`; "none" returns `[batch]`.
        name: of the loss.
        dtype: of the loss. None: float32. "float64" computes in float64, half precision in float32.

    Raises:
        ValueError: a penalty or shape that does not fit.

    Source: Balakrishnan et al., "VoxelMorph" (arXiv:1809.05231, equation 7), whose code has both
    penalties.

    Example:
        >>> flow = np.zeros([1, 4, 5, 2])
        >>> flow[:, 2:] = 3.0  # one of three steps along y, none along x
        >>> float(FlowSmoothness("l1")(np.zeros([1, 1]), flow))
        0.5
    """

    def __init__(
        self,
        penalty: Penalty = "l2",
        *,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "flow_smoothness",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        validation.choice("penalty", penalty, get_args(Penalty))
        self.penalty = penalty

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        flow = field("y_pred", y_pred)
        size_of = tf.abs if self.penalty == "l1" else tf.square
        rank = flow.shape[-1]
        means = []
        for axis in range(1, rank + 1):
            here, next_ = (
                tuple([slice(None)] * axis + [cut]) for cut in (slice(-1), slice(1, None))
            )
            terms = size_of(flow[next_] - flow[here])
            count = tf.maximum(math.prod(validation.sizes(terms)[1:]), 1)
            total = tf.reduce_sum(terms, axis=list(range(1, rank + 2)))
            means.append(total / tf.cast(count, total.dtype))
        return tf.add_n(means) / rank

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "penalty": self.penalty}


def _centred(images):
    """Returns images less their means, one for each image and channel."""
    space = list(range(1, len(images.shape) - 1))
    return images - tf.stop_gradient(tf.reduce_mean(images, axis=space, keepdims=True))


def _window_means(maps, window):
    """Returns maps `[batch, *space, channels]` of means in windows, cut to what exists."""
    shape = validation.sizes(maps)
    for axis, side in enumerate(window, start=1):
        rows = tf.reshape(
            maps, [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])]
        )
        maps = tf.reshape(tf.nn.avg_pool1d(rows, side, 1, "SAME"), shape)
    return maps
