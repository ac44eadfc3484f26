"""The boxes that operators are given, and the bins that each of them cuts those into.

Boxes are `[rois, 4]` as (x_min, y_min, x_max, y_max) in input-image pixels, or turned ones
`[rois, 5]` as (x_center, y_center, width, height, angle).
"""

import math

import numpy as np
import tensorflow as tf

from tf_deform.ops import validation
from tf_deform.ops.bins import Turn, bins_of, points_in, shift_of
from tf_deform.ops.sampling import checked_image_index

UPRIGHT, TURNED = 4, 5  # entries of a box


def checked_arguments(features, boxes, box_indices, spatial_scale, entries=UPRIGHT):
    """Returns the operators' common arguments: coordinates as tensors in float32 or float64."""
    spatial_scale = validation.number("spatial_scale", spatial_scale, above=0)
    features = validation.floating("features", features)
    boxes = validation.floating("boxes", boxes)
    features = validation.shaped(
        "features", features, [None] * 4, "[batch, height, width, channels]"
    )
    boxes = validation.shaped("boxes", boxes, [None, entries], f"[rois, {entries}]")
    images = validation.sizes(features)[0]
    rois = validation.sizes(boxes)[0]
    box_indices = checked_image_index("box_indices", box_indices, rois, images)
    wide = tf.float64 in (features.dtype, boxes.dtype)
    boxes = tf.cast(boxes, tf.float64 if wide else tf.float32)
    if tf.executing_eagerly():
        upright = boxes.numpy() if entries == UPRIGHT else _around(boxes.numpy())
        _warn_if_outside(upright, features.shape[1:3], float(spatial_scale))
    return features, tf.stop_gradient(boxes), box_indices, spatial_scale


def _around(boxes):
    """Returns upright boxes that hold those turned by any angle, NaN where they are not finite."""
    reach = np.hypot(boxes[:, 2:3], boxes[:, 3:4]) / 2 + 0 * boxes[:, 4:]
    return np.concatenate([boxes[:, :2] - reach, boxes[:, :2] + reach], axis=1)


def _warn_if_outside(boxes, space, spatial_scale):
    """Warns if there are finite boxes, and all of them lie outside the features."""
    touches = True
    for axis, size in enumerate([space[1], space[0]]):  # x, y
        start, end = boxes[:, axis], boxes[:, axis + 2]
        touches &= (np.maximum(start, end) >= 0) & (np.minimum(start, end) <= size / spatial_scale)
    finite = boxes[:0] if np.any(touches) else boxes[np.isfinite(boxes).all(axis=1)]
    if len(finite):
        validation.warn(
            f"boxes all lie outside the features, {space[0]} x {space[1]} pixels under "
            f"spatial_scale={spatial_scale:g}, the first is {finite[0].tolist()} in the image: "
            "spatial_scale may be missing (it is the features' size / the image's size), or "
            "bounding_box_format another than that of the boxes"
        )


def bins_at_rest(boxes, output_size, spatial_scale, aligned=True):
    """Returns the bins of `roi_align`; the scale is a number, or `[rois, 1]`."""
    start, size = _regions(boxes, spatial_scale, 0.5 if aligned else 0.0)
    if not aligned:
        size = _at_least(size, 1.0)
    return bins_of(start, size, output_size)


def turned_bins(boxes, output_size, spatial_scale, aligned, angle_unit, clockwise):
    """Returns the bins of `roi_align_rotated`, whose boxes are `[rois, 5]`."""
    scaled = boxes[:, :4] * spatial_scale
    size = tf.gather(scaled, [3, 2], axis=1)
    if not aligned:
        size = _at_least(size, 1.0)
    shift = 0.5 if aligned else 0.0
    angle = angles_of(boxes, angle_unit, clockwise)
    turn = Turn((scaled[:, 1] - shift, scaled[:, 0] - shift), tf.sin(angle), tf.cos(angle))
    return bins_of(-size / 2, size, output_size, turn=turn)


def angles_of(boxes, angle_unit, clockwise):
    """Returns the last entry of boxes, counter-clockwise in radians."""
    angle = -boxes[..., 4] if clockwise else boxes[..., 4]
    return angle * (math.pi / 180) if angle_unit == "degrees" else angle


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


def turned_boxes_of(bins, spatial_scale, boxes):
    """Returns the bins of turned boxes as such boxes, `[rois, height, width, 5]`."""
    half = tf.constant([0.5], boxes.dtype)
    y, x = (axis[..., 0, 0] for axis in points_in(bins, [half, half]))  # [rois, height, width]
    sizes = [tf.reshape(step, [-1, 1, 1]) + tf.zeros_like(x) for _, step in (bins.x, bins.y)]
    angle = tf.reshape(boxes[:, 4], [-1, 1, 1]) + tf.zeros_like(x)
    scaled = (each / spatial_scale for each in (x + 0.5, y + 0.5, *sizes))
    return tf.stack([*scaled, angle], axis=-1)


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
