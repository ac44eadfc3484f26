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
    map_index: tf.Tensor | list[int] | None = None  # [readers], if there are several maps
    readers: str = "rows"  # of several maps: who reads one each, "rows" or "points"

    @classmethod
    def of(cls, values, groups):
        """Returns the table of values `[images, *space, channels]`."""
        return cls._of(values, groups, _index_dtype([values], groups))

    @classmethod
    def _of(cls, values, groups, dtype):
        images, *space, channels = validation.sizes(values)
        if validation.is_static(channels, groups) and (groups < 1 or channels % groups):
            raise ValueError(
                f"values must have channels divisible by the groups, received {channels} channels "
                f"and {groups} groups"
            )
        strides = [tf.cast(groups, dtype)]
        for size in reversed(space):
            strides.insert(0, strides[0] * tf.cast(size + 3, dtype))
        return cls([values], images, space, channels, groups, strides)

    @classmethod
    def of_levels(cls, levels, level_index, groups=1, readers="rows"):
        """Returns one table of several feature maps, of which each reader reads one.

        levels: list of `[images, *space, channels]`, of equal batch and channels. level_index: the
        map that each row of points reads, `[rows]`; or that each of a query's points reads, a list
        of ints that do not decrease. Sizes, strides and start are `[rows, 1, 1]` or `[points, 1, 1,
        1]`.
        """
        if len(levels) == 1:
            return cls.of(levels[0], groups)
        dtype = _index_dtype(levels, groups)
        tables = [cls._of(level, groups, dtype) for level in levels]
        starts = [tf.zeros([], dtype)]
        for table in tables[:-1]:
            starts.append(starts[-1] + tf.cast(table.images, dtype) * table.strides[0])
        shape = [-1, 1, 1] if readers == "rows" else [-1, 1, 1, 1]

        def per_reader(sizes):
            sizes = tf.stack([tf.cast(size, dtype) for size in sizes])
            return tf.reshape(tf.gather(sizes, level_index), shape)

        return tables[0]._replace(
            maps=levels,
            space=[per_reader(sizes) for sizes in zip(*(t.space for t in tables), strict=True)],
            strides=[per_reader(each) for each in zip(*(t.strides for t in tables), strict=True)],
            start=per_reader(starts),
            map_index=level_index,
            readers=readers,
        )

    def of_points(self, points):
        """Returns the table as it is for some of a query's points: `[points]` int32, which ones."""
        if self.readers == "rows":
            return self
        space, strides, (start,) = (
            [tf.gather(each, points) for each in sizes]
            for sizes in (self.space, self.strides, [self.start])
        )
        return self._replace(space=space, strides=strides, start=start)

    def rows(self):
        """Returns `[rows, channels / groups]`: the padded maps, one after the other."""
        padding = [[0, 0], *[[1, 2]] * len(self.space), [0, 0]]
        rows = [
            tf.reshape(tf.pad(each, padding), [-1, self.channels // self.groups])
            for each in self.maps
        ]
        return rows[0] if len(rows) == 1 else tf.concat(rows, axis=0)

    def first_rows(self, image_index):
        """Returns `[..., rows, 1, groups]`: where each image and group begins in the table."""
        if image_index is None:
            image_index = tf.range(self.images)
        stride = self.strides[0]
        image_index = tf.reshape(tf.cast(image_index, stride.dtype), [-1, 1, 1])
        return image_index * stride + self.start + tf.range(tf.cast(self.groups, stride.dtype))


def _index_dtype(maps, groups):
    """Returns int32 if all rows of the maps' tables are known to fit."""
    rows = 0
    for images, *space, _ in map(validation.sizes, maps):
        if not validation.is_static(images, *space, groups):
            return tf.int64
        rows += images * math.prod(size + 3 for size in space) * groups
    return tf.int32 if rows < 2**31 else tf.int64
