"""The bins that regions of interest are cut into, and means and maxima of samples in them."""

import math
from typing import NamedTuple, get_args

import tensorflow as tf

from tf_deform import compiled
from tf_deform.annotations import PoolReduction
from tf_deform.ops import validation
from tf_deform.ops.sampling import is_kept, sample_table

REDUCTIONS = get_args(PoolReduction)
_OUTSIDE = -2.0  # of every image: such a sample is dropped


class Turn(NamedTuple):
    """How regions are turned about their centres, each `[rois]`.

    What lies at (dy, dx) from the centre in the region lies at `(dy * cos - dx * sin, dx * cos + dy
    * sin)` from it in the features.
    """

    center: tuple  # (y, x)
    sin: tf.Tensor
    cos: tf.Tensor


class Bins(NamedTuple):
    """For each axis where bins begin and their size, which broadcast to `[rois, h, w, groups, 1]`.

    They are in the features' pixels; those of regions that are turned, from the regions' centres.
    """

    y: tuple
    x: tuple
    turn: Turn | None = None


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


def bins_of(start, size, output_size, shift=None, turn=None):
    """Returns the bins of regions, whose starts and sizes are `[rois, 2]` as (y, x)."""
    bins = []
    for axis, count in enumerate(output_size):
        shape = [1, 1, 1, 1, 1]
        shape[1 + axis] = count
        step = _per_roi(size[:, axis] / count)
        origin = _per_roi(start[:, axis])
        origin += tf.reshape(tf.range(count, dtype=step.dtype), shape) * step
        bins.append((origin if shift is None else origin + shift[axis], step))
    return Bins(bins[0], bins[1], turn)


def places_of(steps, dtype):
    """Returns for each axis the places of a square of samples, one step apart from the next."""
    places = [(y, x) for y in steps for x in steps]
    return [tf.constant([place[axis] for place in places], dtype) for axis in range(2)]


def points_in(bins, places):
    """Returns the axes of points in the bins, each `[rois, height, width, groups, places]`.

    places: for each axis how far they are from the bin's start, in bins.
    """
    axes = zip((bins.y, bins.x), places, strict=True)
    y, x = (origin + place * step for (origin, step), place in axes)
    if bins.turn is not None:
        sin, cos = _per_roi(bins.turn.sin), _per_roi(bins.turn.cos)
        center_y, center_x = map(_per_roi, bins.turn.center)
        y, x = center_y + (y * cos - x * sin), center_x + (x * cos + y * sin)
    # LiteRT has no broadcasting to a shape that is known at run time alone.
    return [y + tf.zeros_like(x), x + tf.zeros_like(y)]


def pool_in_bins(table, index, bins, shape, sampling_ratio, reduction="mean"):
    """Returns `[rois, *output_size, channels]`: the mean or maximum of samples in each bin.

    index: `[rois]`, the image that each region reads; for a mean, also `[rois, bins]`, that each
    bin reads. shape: `[rois, *output_size]`.
    """
    validation.at_least(0, sampling_ratio=sampling_ratio)
    validation.choice("reduction", reduction, REDUCTIONS)
    if not sampling_ratio:
        pool = _adaptive_mean if reduction == "mean" else _adaptive_max
        return tf.reshape(pool(table, bins, index), [*shape, table.channels])
    steps = [(step + 0.5) / sampling_ratio for step in range(sampling_ratio)]
    points = [*map(_by_bin, points_in(bins, places_of(steps, bins.y[0].dtype)))]
    if reduction == "mean":
        pooled = _sum_in_bins(table, points, index, rule="roi") / sampling_ratio**2
    else:
        pooled = _max_in_bins(table, points, index)
    return tf.reshape(pooled, [*shape, table.channels])


def _adaptive_mean(table, bins, index):
    """Returns the mean of ceil(bin size) samples along each axis, 0 if there are none.

    The gradient takes each sample again: a loop's own would keep all of them.
    """
    visits = _visits_of(table, bins)

    def sample_at(places, kept, y, x, *maps):
        moved = bins._replace(y=(y, bins.y[1]), x=(x, bins.x[1]))
        return _sample_at(table._replace(maps=list(maps)), moved, index, places, kept)

    def summed(*arguments):
        start = sample_at(*_nowhere(bins), *arguments) + 0.0
        return _visited(visits, start, lambda sums, *visit: sums + sample_at(*visit, *arguments))

    @tf.custom_gradient
    def summed_again(*arguments):
        def gradient(upstream):
            def add(found, *visit):
                copies = [tf.identity(each) for each in arguments]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    samples = sample_at(*visit, *copies)
                new = tape.gradient(samples, copies, upstream, unconnected_gradients="zero")
                return [old + each for old, each in zip(found, new, strict=True)]

            return _visited(visits, [tf.zeros_like(each) for each in arguments], add)

        return summed(*arguments), gradient

    call = summed if compiled.traced_for_export() else summed_again
    sums = call(bins.y[0], bins.x[0], *table.maps)
    count = tf.reshape(visits.y.count * visits.x.count, [-1, 1, 1])  # [rois, 1, 1]
    return sums / tf.cast(tf.maximum(count, 1), sums.dtype)


def _adaptive_max(table, bins, index):
    """Returns the maximum of ceil(bin size) samples along each axis, 0 if there are none."""
    lowest = -float("inf")
    visits = _visits_of(table, bins)

    def join(largest, places, kept):
        samples = _sample_at(table, bins, index, places, kept)
        # By numbers: LiteRT has no logical operator of five axes.
        kept = _by_bin(math.prod(tf.cast(keep, samples.dtype) for keep in kept))
        return tf.maximum(largest, tf.where(kept[..., 0] > 0, samples, lowest))

    # It depends on all inputs, whose gradients exist even if no sample is visited.
    start = _sample_at(table, bins, index, *_nowhere(bins)) + lowest
    largest = _visited(visits, start, join)
    seen = tf.expand_dims(visits.y.seen, 2) * tf.expand_dims(visits.x.seen, 1)
    seen = tf.reshape(seen, [*validation.sizes(largest)[:2], 1])  # [rois, bins, 1]
    count = tf.reshape(visits.y.count * visits.x.count, [-1, 1, 1])  # [rois, 1, 1]
    # Those that were not visited lie outside, and are 0.
    largest = tf.where(seen < count, tf.maximum(largest, 0), largest)
    return tf.where(count > 0, largest, 0)


def _sample_at(table, bins, index, places, kept):
    """Returns `[rois, bins, channels]`: a sample of each bin, 0 unless both axes are kept."""
    axes = zip(kept, points_in(bins, places), strict=True)
    # The point is moved, not the place: a step of 0 would leave it inside.
    points = [_by_bin(tf.where(keep, axis, _OUTSIDE)) for keep, axis in axes]
    return _sum_in_bins(table, points, index, rule="roi")


def _nowhere(bins):
    """Returns places that are not kept."""
    return [tf.zeros([], bins.y[0].dtype)] * 2, [False, False]


def _visited(visits, start, join):
    """Returns what join(joined, places, kept) has made of `start` after all visits.

    Only the samples that can lie in the features are visited, however large a box is, one of each
    bin at a time. Boxes have different numbers of them: for each axis `kept` is where the places
    are a box's own.
    """
    columns = visits.x.most

    def join_next(number, joined):
        places, kept = [], []
        turns = (number // columns, number % columns)
        for visit, turn in zip(visits, turns, strict=True):
            nth = visit.first + tf.cast(turn, visit.first.dtype)
            places.append((nth + 0.5) / tf.maximum(visit.count, 1))
            kept.append(nth <= visit.last)
        return number + 1, join(joined, places, kept)

    return tf.while_loop(
        lambda number, _: number < visits.y.most * columns,
        join_next,
        (0, start),
        parallel_iterations=1,
    )[1]


def _visits_of(table, bins):
    reach = _reach(bins, table)
    return _VisitsOfAxes(
        *(_visits(*axis, *ends) for axis, ends in zip(bins[:2], reach, strict=True))
    )


def _reach(bins, table):
    """Returns for each axis of the bins from where to where the features reach, `[rois]` each."""
    height, width = (tf.cast(tf.reshape(size, [-1]), bins.y[0].dtype) for size in table.space)
    if bins.turn is None:
        low = tf.constant(-1, height.dtype)
        return (low, height), (low, width)
    sin, cos = bins.turn.sin, bins.turn.cos
    y, x = (height - 1) / 2 - bins.turn.center[0], (width - 1) / 2 - bins.turn.center[1]
    y, x = y * cos + x * sin, x * cos - y * sin  # the features' middle, in the region
    # Half of what they span, and some rounding.
    tall = ((height + 1) * tf.abs(cos) + (width + 1) * tf.abs(sin)) / 2 + 0.5
    wide = ((width + 1) * tf.abs(cos) + (height + 1) * tf.abs(sin)) / 2 + 0.5
    return (y - tall, y + tall), (x - wide, x + wide)


class _Visits(NamedTuple):
    """Along an axis the samples' first and last number, and their count.

    These broadcast to `[rois, height, width, groups, places]`. `seen`, `[rois, bins of the axis]`,
    is how many are visited, and `most` the most of all.
    """

    first: tf.Tensor
    last: tf.Tensor
    count: tf.Tensor
    seen: tf.Tensor
    most: tf.Tensor


class _VisitsOfAxes(NamedTuple):
    y: _Visits
    x: _Visits


def _visits(origin, step, low, high):
    """Returns what is to be visited along an axis of which only `low` to `high` can be seen."""
    origin = tf.stop_gradient(origin)
    size = tf.reshape(step, [-1])  # [rois]
    count = tf.where(tf.math.is_finite(size), tf.maximum(tf.math.ceil(size), 0), 0)
    spacing = _per_roi(tf.where(count > 0, size, 1) / tf.maximum(count, 1))
    count = _per_roi(count)
    first = tf.maximum(tf.floor((_per_roi(low) - origin) / spacing - 0.5), 0)
    last = tf.minimum(tf.math.ceil((_per_roi(high) - origin) / spacing - 0.5), count - 1)
    length = last - first + 1
    # LiteRT compares five axes by a kernel that ends the process if there are no regions.
    length = tf.reshape(length, [validation.sizes(length)[0], math.prod(length.shape[1:])])
    seen = tf.maximum(tf.where(tf.math.is_finite(length), length, 0), 0)
    most = tf.reduce_max(tf.concat([tf.zeros([1], step.dtype), tf.reshape(seen, [-1])], axis=0))
    return _Visits(first, last, count, seen, tf.cast(most, tf.int32))


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


def _max_in_bins(table, points, index):
    """Returns `[rois, bins, channels]`: the maximum of the samples of each bin."""
    rois, bins, groups, places = validation.sizes(points[0])
    apart = [tf.reshape(axis, [rois, bins * places, groups, 1]) for axis in points]
    samples = _sum_in_bins(table, apart, index, rule="roi")
    samples = tf.reshape(samples, [rois, bins, places, table.channels])
    return tf.reduce_max(samples, axis=2)


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
