"""The bins that regions of interest are cut into, and means of samples in them."""

import tensorflow as tf

from tf_deform.ops import validation
from tf_deform.ops.sampling import is_kept, sample_table

_OUTSIDE = -2.0  # of every image: such a sample is dropped


def shift_of(scale, offset, size):
    """Returns how far bins move along each axis: two of `[rois, height, width, groups, 1]`.

    offset: `[rois, height, width, groups, 2]`. A region whose size is no number is nowhere, and
    must not spoil the gradient of its offset.
    """
    size = tf.where(tf.math.is_finite(size), size, 0)
    return [
        scale * tf.cast(tf.expand_dims(offset[..., axis], -1), size.dtype) * _per_roi(size[:, axis])
        for axis in range(2)
    ]


def _per_roi(values):
    """Returns `[rois]` values or a scalar, broadcastable to `[rois, h, w, groups, places]`."""
    return tf.reshape(values, [-1, 1, 1, 1, 1])


def bins_of(start, size, output_size, shift=None):
    """Returns for each axis where the bins begin, and their size.

    Both broadcast to `[rois, height, width, groups, places]`.
    """
    bins = []
    for axis, count in enumerate(output_size):
        shape = [1, 1, 1, 1, 1]
        shape[1 + axis] = count
        step = _per_roi(size[:, axis] / count)
        origin = _per_roi(start[:, axis])
        origin += tf.reshape(tf.range(count, dtype=step.dtype), shape) * step
        bins.append((origin if shift is None else origin + shift[axis], step))
    return bins


def places_of(steps, dtype):
    """Returns for each axis the places of a square of samples, one step apart from the next."""
    places = [(y, x) for y in steps for x in steps]
    return [tf.constant([place[axis] for place in places], dtype) for axis in range(2)]


def points_in(bins, places):
    """Returns the axes of points in the bins, each `[rois, height, width, groups, places]`.

    places: for each axis how far they are from the bin's start, in bins.
    """
    y, x = (origin + place * step for (origin, step), place in zip(bins, places, strict=True))
    # LiteRT has no broadcasting to a shape that is known at run time alone.
    return [y + tf.zeros_like(x), x + tf.zeros_like(y)]


def mean_in_bins(table, index, bins, shape, sampling_ratio):
    """Returns `[rois, *output_size, channels]`: the mean of samples in each bin.

    index: `[rois]`, the image that each region reads, or `[rois, bins]`, that each bin reads.
    bins: as from `bins_of`. shape: `[rois, *output_size]`.
    """
    validation.at_least(0, sampling_ratio=sampling_ratio)
    if sampling_ratio:
        steps = [(step + 0.5) / sampling_ratio for step in range(sampling_ratio)]
        points = map(_by_bin, points_in(bins, places_of(steps, bins[0][0].dtype)))
        pooled = _sum_in_bins(table, [*points], index, rule="roi")
        pooled /= sampling_ratio**2
    else:
        pooled = _adaptive_mean(table, bins, index)
    return tf.reshape(pooled, [*shape, table.channels])


def _adaptive_mean(table, bins, index):
    """Returns the mean of ceil(bin size) samples along each axis, added up one at a time.

    Only the samples that can lie in the features are visited, however large a box is.
    """
    visits = [
        _visits(origin, step, limit)
        for (origin, step), limit in zip(bins, table.space, strict=True)
    ]
    columns = visits[1][3]

    def sum_at(places, kept):
        axes = zip(kept, points_in(bins, places), strict=True)
        # The point is moved, not the place: a step of 0 would leave it inside.
        points = [_by_bin(tf.where(keep, axis, _OUTSIDE)) for keep, axis in axes]
        return _sum_in_bins(table, points, index, rule="roi")

    def add_sample(visit, sums):
        places, kept = [], []
        turns = (visit // columns, visit % columns)
        for (first, last, count, _), turn in zip(visits, turns, strict=True):
            number = first + tf.cast(turn, first.dtype)
            places.append((number + 0.5) / tf.maximum(count, 1))
            kept.append(number <= last)
        return visit + 1, sums + sum_at(places, kept)

    # Zeros that depend on all inputs, whose gradients exist even if no sample is visited.
    nowhere = sum_at([tf.zeros([], origin.dtype) for origin, _ in bins], [False, False])
    _, sums = tf.while_loop(
        lambda visit, _: visit < visits[0][3] * columns,
        add_sample,
        (0, nowhere),
        parallel_iterations=1,
    )
    samples = tf.reshape(visits[0][2] * visits[1][2], [-1, 1, 1])  # [rois, 1, 1]
    return sums / tf.cast(tf.maximum(samples, 1), sums.dtype)


def _visits(origin, step, limit):
    """Returns along an axis the samples' first and last number, their count, and the most of all.

    The first three broadcast to `[rois, height, width, groups, places]`.
    """
    origin = tf.stop_gradient(origin)
    size = tf.reshape(step, [-1])  # [rois]
    count = tf.where(tf.math.is_finite(size), tf.maximum(tf.math.ceil(size), 0), 0)
    spacing = _per_roi(tf.where(count > 0, size, 1) / tf.maximum(count, 1))
    count = _per_roi(count)
    limit = _per_roi(tf.cast(limit, step.dtype))
    first = tf.maximum(tf.floor((-1 - origin) / spacing - 0.5), 0)
    last = tf.minimum(tf.math.ceil((limit - origin) / spacing - 0.5), count - 1)
    length = tf.reshape(last - first + 1, [-1])
    length = tf.where(tf.math.is_finite(length), length, 0)
    longest = tf.reduce_max(tf.concat([tf.zeros([1], step.dtype), length], axis=0))
    return first, last, count, tf.cast(longest, tf.int32)


def mean_of_valid(table, points, index):
    """Returns `[rois, bins, channels]`: the mean of the samples that the psroi rule keeps."""
    points = [*map(_by_bin, points)]
    y, x = (is_kept(axis, size, "psroi") for axis, size in zip(points, table.space, strict=True))
    valid = tf.cast(y & x, points[0].dtype)  # [rois, bins, groups, places]
    weights = valid / tf.maximum(tf.reduce_sum(valid, axis=-1, keepdims=True), 1)
    return _sum_in_bins(table, points, index, weights, rule="psroi")


def _by_bin(axis):
    """Returns `[rois, height, width, groups, places]` as `[rois, bins, groups, places]`.

    LiteRT compares five axes by a kernel that ends the process if there are no regions.
    """
    rois, height, width, groups, places = validation.sizes(axis)
    return tf.reshape(axis, [rois, height * width, groups, places])


def _sum_in_bins(table, points, index, weights=None, *, rule):
    """Returns `[rois, bins, channels]`: the (weighted) sums of the samples of each bin.

    points: the axes of the points, each `[rois, bins, groups, places]`; weights alike.
    """
    rois, bins, groups, places = validation.sizes(points[0])
    if index.shape.rank == 1:  # one image a region, whose bins are queries
        shape = [rois, bins, groups, places]
    else:  # one image a bin
        shape = [rois * bins, 1, groups, places]
        index = tf.reshape(index, [rois * bins])
    points = tf.stack([tf.reshape(axis, shape) for axis in points], axis=-1)
    weights = None if weights is None else tf.reshape(weights, shape)
    sums = sample_table(table, points, weights, index, rule)
    return tf.reshape(sums, [rois, bins, table.channels])
