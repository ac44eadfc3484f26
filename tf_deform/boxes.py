"""Boxes of images that have different numbers of boxes, as the RoI layers take them.

A NaN box pools zeros and gets no gradient. So rows of NaN are added after the boxes of an image,
until all images of a batch have the same number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_deform.annotations import Tensor
from tf_deform.ops import validation

__all__ = ["pad"]

_BOXES = "[batch, (rois), 4]"


def __dir__() -> list[str]:
    return __all__


def pad(boxes: Tensor | Sequence[Tensor], size: int | None = None) -> tf.Tensor:
    """Returns `[batch, rois, 4]`: the boxes of each image, and after them rows of NaN.

    All RoI operators and layers return 0 for a row of NaN. `tf.math.is_nan(padded[..., 0])` marks
    the rows to leave out of a loss.

    It runs eagerly, in a tf.function, and in the `map` of a tf.data.Dataset after `ragged_batch`.
    Use it there, because XLA has no ragged tensors.

    Args:
        boxes: tf.RaggedTensor `[batch, (rois), 4]`; or a list with `[rois, 4]` for each image,
            where `[]` is an image without boxes; or a tensor `[batch, rois, 4]`. Any floating
            dtype, in any box format.
        size: int, the number of rows. None: as many as the image with the most boxes has. This
            changes from batch to batch, so a tf.function may be traced again.

    Returns:
        The boxes in their dtype. If there are none: float32.

    Raises:
        ValueError, TypeError: a shape, dtype or size does not fit.
        InvalidArgumentError: an image has more boxes than `size`; no box is dropped.

    Example:
        >>> boxes = [[[0.0, 0.0, 4.0, 4.0]], []]
        >>> pad(boxes, size=2).numpy()[0].tolist()
        [[0.0, 0.0, 4.0, 4.0], [nan, nan, nan, nan]]
        >>> pooled = tfd.layers.RoIAlign(1)(tf.ones([2, 5, 5, 1]), pad(boxes))
        >>> pooled[:, 0, 0, 0, 0].numpy().tolist()
        [1.0, 0.0]
    """
    if size is not None:
        validation.at_least(0, size=size)
    boxes = _ragged(boxes)
    if size is not None:
        most = tf.reduce_max(boxes.row_lengths())  # of no images the lowest number
        message = f"boxes must be at most size={size} an image, received an image with"
        values = validation.satisfying(boxes.values, most <= size, message, most)
        boxes = boxes.with_values(values)
    missing = tf.constant(float("nan"), boxes.dtype)
    return boxes.to_tensor(missing, shape=[None, size, 4])


def _ragged(boxes):
    """Returns boxes as a RaggedTensor of ragged rank 1, whose values are `[all rois, 4]`."""
    if isinstance(boxes, list | tuple):
        return _joined(boxes)
    if not isinstance(boxes, tf.RaggedTensor):
        boxes = validation.floating("boxes", boxes)
        boxes = validation.shaped("boxes", boxes, [None, None, 4], _BOXES)
        return tf.RaggedTensor.from_tensor(boxes)
    validation.check_shape("boxes", boxes.shape, [None, None, None], _BOXES)
    values = boxes.values
    if boxes.ragged_rank == 2:  # as tf.ragged.constant makes it of lists
        sizes = values.row_lengths()
        message = f"boxes must have shape {_BOXES}, received rows of sizes"
        numbers = validation.satisfying(values.values, tf.reduce_all(sizes == 4), message, sizes)
        values = tf.reshape(numbers, [-1, 4])
    validation.floating("boxes", values)
    validation.check_shape("boxes", [*boxes.shape[:2], *values.shape[1:]], [None, None, 4], _BOXES)
    return boxes.with_values(values)


def _joined(boxes):
    """Returns the boxes of each image, a list, as a RaggedTensor."""
    arrays: list[tf.Tensor] = []
    lengths = []
    for index, each in enumerate(boxes):
        if isinstance(each, list | tuple) and not each:
            lengths.append(0)
            continue
        each = validation.floating(f"boxes[{index}]", each)
        each = validation.shaped(f"boxes[{index}]", each, [None, 4], "[rois, 4]")
        if arrays and each.dtype != arrays[0].dtype:
            raise TypeError(
                f"boxes[{index}] must have the dtype of those before, {arrays[0].dtype.name}, "
                f"received {each.dtype.name}"
            )
        arrays.append(each)
        lengths.append(validation.sizes(each)[0])
    values = tf.concat(arrays, axis=0) if arrays else tf.zeros([0, 4])
    return tf.RaggedTensor.from_row_lengths(values, tf.cast(tf.stack(lengths), tf.int64))
