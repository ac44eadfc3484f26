"""The table of rows that images are sampled from."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from tf_deform.ops import validation


class Table(NamedTuple):
    """Images that are sampled, and how they lie in a table of rows to gather.

    A row is a pixel and group of channels. One pixel of zeros before and two after let the four
    corners of any position in [-1, size] exist: row 0 and the corners of position `size` are zero.
    """

    maps: list[tf.Tensor]  # [images, *space, channels]: one, or several with readers each
    images: int  # this and the following ints may be scalar tensors
    space: list[int]
    channels: int
    groups: int
    strides: list  # in rows, from one image to the next and along each axis
    start: int = 0  # row at which the images begin
    map_index: tf.Tensor | None = None  # [readers], if there are several maps

    @classmethod
    def of(cls, values, groups):
        """Returns the table of values `[images, *space, channels]`."""
        images, *space, channels = validation.sizes(values)
        if validation.is_static(channels, groups) and (groups < 1 or channels % groups):
            raise ValueError(
                f"values must have channels divisible by the groups, received {channels} channels "
                f"and {groups} groups"
            )
        known = validation.is_static(images, *space, groups)
        fits = known and images * math.prod(size + 3 for size in space) * groups < 2**31
        strides = [tf.cast(groups, tf.int32 if fits else tf.int64)]
        for size in reversed(space):
            strides.insert(0, strides[0] * tf.cast(size + 3, strides[0].dtype))
        return cls([values], images, space, channels, groups, strides)

    @classmethod
    def of_levels(cls, levels, level_index):
        """Returns one table of several feature maps, of which each reader reads one.

        levels: list of `[images, *space, channels]`, of equal batch and channels. level_index:
        `[rows]`, the map that each row of points reads: sizes and strides are tensors, one a row.
        """
        tables = [cls.of(level, 1) for level in levels]
        dtype = tf.int32 if all(t.strides[0].dtype == tf.int32 for t in tables) else tf.int64
        starts = [tf.zeros([], dtype)]
        for table in tables[:-1]:
            size = tf.cast(table.images, dtype) * tf.cast(table.strides[0], dtype)
            starts.append(starts[-1] + size)

        def per_row(sizes):
            return tf.gather(tf.stack([tf.cast(size, dtype) for size in sizes]), level_index)

        space = [_lone(per_row(sizes)) for sizes in zip(*(t.space for t in tables), strict=True)]
        image, *axes = (per_row(each) for each in zip(*(t.strides for t in tables), strict=True))
        return tables[0]._replace(
            maps=levels,
            space=space,
            strides=[image, *map(_lone, axes)],
            start=per_row(starts),
            map_index=level_index,
        )

    def rows(self):
        """Returns `[rows, channels / groups]`: the padded maps, one after the other."""
        padding = [[0, 0], *[[1, 2]] * len(self.space), [0, 0]]
        rows = [
            tf.reshape(tf.pad(each, padding), [-1, self.channels // self.groups])
            for each in self.maps
        ]
        return rows[0] if len(rows) == 1 else tf.concat(rows, axis=0)

    def first_rows(self, image_index):
        """Returns `[rows, 1, groups]`: where each image and group begins in the table."""
        if image_index is None:
            image_index = tf.range(self.images)
        stride = self.strides[0]
        first = tf.cast(image_index, stride.dtype) * stride + self.start
        return _lone(first) + tf.range(tf.cast(self.groups, stride.dtype))


def _lone(values):
    """Returns values `[rows]` as `[rows, 1, 1]`: LiteRT cannot index free sizes with None."""
    return tf.reshape(values, [-1, 1, 1])
