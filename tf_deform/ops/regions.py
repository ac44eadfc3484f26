"""The bins that each operator cuts its boxes into.

Boxes are `[rois, 4]` as (x_min, y_min, x_max, y_max) in input-image pixels. Bins are in the
features' pixels, as `bins_of` returns them.
"""

import math

import tensorflow as tf

from tf_deform.ops import validation
from tf_deform.ops.bins import bins_of, points_in, shift_of


def bins_at_rest(boxes, output_size, spatial_scale, aligned=True):
    """Returns the bins of `roi_align`; the scale is a number, or `[rois, 1]`."""
    start, size = _regions(boxes, spatial_scale, 0.5 if aligned else 0.0)
    if not aligned:
        size = _at_least(size, 1.0)
    return bins_of(start, size, output_size)


def moved_bins(boxes, offset, output_size, spatial_scale, gamma):
    """Returns the bins of `deformable_roi_pool`."""
    start, size = _regions(boxes, spatial_scale, 0.5)
    shift = None
    if offset is not None:
        offset = validation.shaped(
            "offset",
            validation.floating("offset", offset),
            [validation.sizes(boxes)[0], *output_size, 2],
            "[rois, *output_size, 2]",
        )
        shift = shift_of(gamma, tf.expand_dims(offset, 3), size)
    return bins_of(start, size, output_size, shift)


def moved_bins_of_classes(
    boxes, offset, output_size, *, output_channels, part_size, trans_std, spatial_scale
):
    """Returns the bins of `deformable_ps_roi_pool`, and the number of classes."""
    start, size = _rounded_regions(boxes, spatial_scale)
    if offset is None:
        return bins_of(start, size, output_size), 1
    rois = validation.sizes(boxes)[0]
    offset = validation.floating("offset", offset)
    classes = _classes(offset, output_channels)
    offset = validation.shaped(
        "offset",
        offset,
        [rois, part_size, part_size, 2 * classes],
        "[rois, part_size, part_size, 2 * classes]",
    )
    for axis, bins in enumerate(output_size):
        offset = tf.gather(offset, cells_of(bins, part_size), axis=axis + 1)
    shift = shift_of(trans_std, tf.reshape(offset, [rois, *output_size, classes, 2]), size)
    return bins_of(start, size, output_size, shift), classes


def levels_of(boxes, scales, canonical_size, canonical_level):
    """Returns `[rois]`, the index of the level that each box is pooled from, and its scale."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    octaves = tf.math.log(tf.sqrt(tf.maximum(area, 0)) / canonical_size + 1e-6) / math.log(2)
    finest = -math.log2(scales[0])
    level = tf.floor(canonical_level + octaves - finest)
    level = tf.where(tf.math.is_finite(level), level, 0)
    level = tf.cast(tf.clip_by_value(level, 0, len(scales) - 1), tf.int32)
    return level, tf.expand_dims(tf.gather(tf.constant(scales, boxes.dtype), level), 1)


def cells_of(bins, cells):
    """Returns for each bin the cell that its start lies in."""
    return [bin_ * cells // bins for bin_ in range(bins)]


def boxes_of(bins, spatial_scale):
    """Returns the bins as boxes in the image, `[rois, height, width, groups, 4]`.

    The pixel p of the features, of which integers are the centres, lies at `(p + 0.5) /
    spatial_scale`.
    """
    ends = tf.constant([0, 1], bins[0][0].dtype)
    y, x = points_in(bins, [ends, ends])  # each [rois, height, width, groups, (start, end)]
    corners = tf.stack([x, y], axis=-1)
    boxes = tf.reshape(corners, [*validation.sizes(corners)[:4], 4])
    scale = tf.reshape(tf.cast(spatial_scale, boxes.dtype), [-1, 1, 1, 1, 1])
    return (boxes + 0.5) / scale


def _regions(boxes, spatial_scale, shift):
    """Returns the boxes' starts and sizes in the features' pixels, each `[rois, 2]` as (y, x)."""
    scaled = boxes * spatial_scale - shift
    start = tf.gather(scaled, [1, 0], axis=1)
    return start, tf.gather(scaled, [3, 2], axis=1) - start


def _rounded_regions(boxes, spatial_scale):
    """Returns the same of boxes rounded to pixels, both ends included, at least 0.1 wide."""
    rounded = tf.sign(boxes) * tf.floor(tf.abs(boxes) + 0.5) + tf.constant(
        [0, 0, 1, 1], boxes.dtype
    )
    start, size = _regions(rounded, spatial_scale, 0.5)
    return start, _at_least(size, 0.1)


def _at_least(size, minimum):
    """Returns the larger of the two, NaN where the size is NaN."""
    return tf.where(size < minimum, tf.constant(minimum, size.dtype), size)


def _classes(offset, output_channels):
    channels = offset.shape[-1] if offset.shape.rank else None
    if not channels or channels % 2 or output_channels % (channels // 2):
        raise ValueError(
            "offset must have 2 * classes channels with classes dividing the "
            f"{output_channels} output channels, received {offset.shape}"
        )
    return channels // 2
