"""Pictures of where the layers sample, drawn with matplotlib: `pip install "tf_deform[plot]"`.

Every function draws on the given axes, or on new ones, and returns them. The colours are those of
Okabe and Ito, which colour-blind people can distinguish. Rims make the marks visible on bright and
dark images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tf_deform import drawing
from tf_deform.annotations import Tensor
from tf_deform.layers.dcn import DCN
from tf_deform.layers.deformable_attention import MultiScaleDeformableAttention
from tf_deform.layers.deformable_conv import DeformableConv
from tf_deform.layers.deformable_roi_pooling import DeformablePSRoIPooling, DeformableRoIPooling
from tf_deform.layers.regions import RegionPooling
from tf_deform.layers.roi_pooling import RoIAlignRotated
from tf_deform.layers.spatial_transformer import SpatialTransformer
from tf_deform.ops.regions import angles_of

if TYPE_CHECKING:  # an extra, which importing this module must not need
    from matplotlib.axes import Axes

__all__ = ["plot_attention", "plot_bins", "plot_flow", "plot_grid", "plot_taps"]

MARKERS = "os^DvP*X"  # of the levels of a pyramid
PICTURE_SIZE = 400  # of what `png_of` returns
_KINDS = {1: "signals", 2: "images", 3: "volumes"}
LINES, ARROWS = 8, 12  # of a grid and of a flow, along the longer axis


def __dir__() -> list[str]:
    return __all__


def plot_taps(
    image: Tensor,
    layer: DeformableConv | DCN | Tensor,
    inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    pixel: int | Sequence[int] | Sequence[Sequence[int]],
    slice_index: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws where a convolution samples for chosen output pixels, and returns the axes.

    A cross marks the output pixel, and small circles mark the taps at rest. Arrows lead from there
    to the moved taps. A tap with a larger modulation is larger and more opaque. Each pixel and
    group of channels has its own colour. A signal is drawn as a curve, with the taps at rest below.

    Args:
        image: `[height, width]` or `[height, width, 1 or 3]`, floating-point from 0 to 1, or uint8;
            for a DeformableConv1D a signal `[steps]`.
        layer: a built deformable convolution, DCNv3 or DCNv4; or its sampling positions,
            `[batch, *output, groups, taps, 2]` in pixels of the image. Positions are drawn without
            the taps at rest.
        inputs: the arguments of the layer's call: the features, or a tuple (features, offset,
            modulation, guide). The first example of the batch is drawn. If the features are smaller
            than the image, their positions are scaled to it. None: the image itself.
        pixel: (row, column) of the layer's output, or a list of them. For signals a step, for
            volumes (slice, row, column).
        slice_index: for a DeformableConv3D, the number of the slice that the image shows. Only taps
            that sample nearest to this slice are drawn.
        ax: matplotlib axes to draw on. None: new ones.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        ImportError: matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).uniform(size=[12, 9, 3])
        >>> layer = tfd.layers.DeformableConv2D(4, 3, offset_kernel_initializer="glorot_uniform")
        >>> _ = layer(tf.zeros([1, 12, 9, 3]))
        >>> ax = plot_taps(image, layer, pixel=[(2, 2), (8, 5)])
    """
    shown = drawing.shown_signal if np.ndim(image) == 1 else drawing.shown
    ax, image = shown(image, ax, "plot_taps")
    rest, weights = None, None
    if isinstance(layer, DeformableConv | DCN):
        positions, rest, weights = _taps(layer, _arguments(inputs, image), image, slice_index)
    else:
        positions = _array("positions", layer, 6, 2)
    *space, groups, _, rank = positions.shape[1:]
    if weights is not None:
        weights = weights.reshape(positions.shape[:-1]) / (np.max(weights) or 1)
    for number, index in enumerate(np.reshape(pixel, [-1, rank])):
        where = _index("pixel", index, space)
        for group in range(groups):
            colour = drawing.COLOURS[(number * groups + group) % len(drawing.COLOURS)]
            moved = positions[0][where][group]
            seen = np.rint(moved[:, 0]) == slice_index if rank == 3 else slice(None)
            still = None if rest is None else _beneath(rest[0][where][group][seen], image)
            share = np.ones(len(moved)) if weights is None else weights[0][where][group]
            drawing.draw_taps(ax, _on(moved[seen], image), still, share[seen], colour)
        if rest is not None:
            y, x = np.mean(_beneath(rest[0][where][0], image), axis=0)
            drawing.draw_cross(ax, x, y)
    if rank > 1:
        drawing.crop(ax, image)
    return ax


def plot_bins(
    image: Tensor,
    layer: RegionPooling | Tensor,
    inputs: Sequence[Tensor] | None = None,
    *,
    roi: int = 0,
    class_index: int = 0,
    colour: str | None = None,
    numbered: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws the bins that a layer pools for a box, and returns the axes.

    The moved bins are numbered row by row, unless the axes are too small for that. The bins at rest
    have thin outlines, and arrows lead from their centres to those of the moved bins.

    Args:
        image: `[height, width]` or `[height, width, 1 or 3]`, floating-point from 0 to 1, or uint8:
            the image whose pixels the boxes are in.
        layer: an RoI layer, for upright or turned boxes; or the upright bins from its
            `sampling_boxes`, `[batch, rois, *output_size, 4]` or with a class axis before the 4.
            These are drawn without the bins at rest.
        inputs: the arguments of the layer's call: a tuple (features, boxes) or (features, boxes,
            offset). The first example of the batch is drawn. Not needed if bins are given.
        roi: the number of the box.
        class_index: the number of the class whose bins are drawn, if each class has its own bins.
        colour: matplotlib colour of the bins. None: orange.
        numbered: whether to number the bins.
        ax: matplotlib axes to draw on. None: new ones.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        ImportError: matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).uniform(size=[32, 24])
        >>> boxes = tf.constant([[[4.0, 6.0, 20.0, 26.0]]])
        >>> layer = tfd.layers.RoIAlign(3, spatial_scale=1 / 4)
        >>> ax = plot_bins(image, layer, (tf.zeros([1, 8, 6, 5]), boxes))
    """
    ax, image = drawing.shown(image, ax, "plot_bins")
    rest = None
    if isinstance(layer, RegionPooling):
        if not isinstance(inputs, list | tuple) or len(inputs) not in (2, 3):
            raise ValueError("inputs must be (features, boxes) or (features, boxes, offset)")
        moved = layer.sampling_boxes(*inputs)
        if isinstance(layer, DeformableRoIPooling):
            at_rest = [*inputs[:2], tf.zeros([*moved.shape[:-1], 2], moved.dtype)]
            rest = layer.sampling_boxes(*at_rest)
        elif isinstance(layer, DeformablePSRoIPooling):
            rest = layer.sampling_boxes(*inputs[:2])
    else:
        moved = layer
    if isinstance(layer, RoIAlignRotated):
        moved = _turned_corners(_bins_of(moved, roi, 0, 5), layer)
    else:
        moved = _corners(_bins_of(moved, roi, class_index))
    if rest is not None:
        rest = _corners(_bins_of(rest, roi, 0))
        drawing.draw_boxes(ax, rest, drawing.REST, 0.8)
        drawing.draw_arrows(ax, drawing.middles(rest), drawing.middles(moved), drawing.COLOURS[1])
    drawing.draw_boxes(ax, moved, colour or drawing.COLOURS[0], 1.6)
    numbered = numbered and drawing.scale(ax) > 0.7
    for number, (y, x) in enumerate(drawing.middles(moved)):
        if numbered and math.isfinite(x + y):
            drawing.draw_text(ax, x, y, str(number))
    return ax


def plot_grid(
    image: Tensor,
    layer: SpatialTransformer | Tensor,
    inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    align_corners: bool = False,
    lines: int = LINES,
    ax: Axes | None = None,
) -> Axes:
    """Draws the outline and some lines of a sampling grid over the input, and returns the axes.

    The thick side of the outline becomes the upper edge of the output.

    Args:
        image: `[height, width]` or `[height, width, 1 or 3]`, floating-point from 0 to 1, or uint8.
        layer: a SpatialTransformer; or a normalised grid `[batch, height, width, 2]` as (x, y), of
            which the first is drawn.
        inputs: the arguments of the layer's call: images or a tuple (images, parameters). None: the
            image itself.
        align_corners: for a grid, whether -1 and 1 are the centres of the edge pixels. False: their
            outer edges. A layer has its own setting.
        lines: the lines divide each axis of the grid into so many parts. On small axes there are
            fewer.
        ax: matplotlib axes to draw on. None: new ones.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        ImportError: matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).uniform(size=[12, 9])
        >>> theta = tf.constant([[[0.5, 0.2, 0.1], [-0.2, 0.5, 0.0]]])
        >>> ax = plot_grid(image, tfd.ops.affine_grid(theta, (8, 8)))
    """
    ax, image = drawing.shown(image, ax, "plot_grid")
    if isinstance(layer, SpatialTransformer):
        align_corners = layer.align_corners
        layer = layer.sampling_grid(*_arguments(inputs, image))
    grid = _array("grid", layer, 4, 2)[0]
    size = np.array(image.shape[1::-1])  # (width, height)
    points = (grid + 1) / 2 * (size - 1) if align_corners else ((grid + 1) * size - 1) / 2
    rows, columns = (_spread(count, round(lines * drawing.scale(ax))) for count in points.shape[:2])
    for line in (*points[rows[1:-1]], *np.swapaxes(points, 0, 1)[columns[1:-1]]):
        drawing.draw_line(ax, line, drawing.COLOURS[1], 0.8)
    outline = [points[0], points[:, -1], points[-1, ::-1], points[::-1, 0]]
    drawing.draw_line(ax, np.concatenate(outline), drawing.COLOURS[0], 1.8)
    drawing.draw_line(ax, points[0], drawing.COLOURS[0], 4.0)
    return ax


def plot_attention(
    image: Tensor,
    layer: MultiScaleDeformableAttention | Tensor,
    inputs: Sequence[Tensor | Sequence[Tensor]] | None = None,
    *,
    query: int = 0,
    weights: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws where a query of deformable attention samples, and returns the axes.

    Each head has a colour, and each level a marker: a circle for the first, then a square, a
    triangle, ... A larger marker has a larger weight. A cross marks the reference point.

    Args:
        image: `[height, width]` or `[height, width, 1 or 3]`, floating-point from 0 to 1, or uint8:
            the image from which the maps were computed.
        layer: a built MultiScaleDeformableAttention; or its sampling locations,
            `[batch, queries, heads, levels, points, 2]` as normalised (x, y).
        inputs: the arguments of the layer's call: a tuple (query, reference_points, values) or
            (query, reference_points, values, padding_masks). The first example of the batch is
            drawn. Not needed if locations are given.
        query: the number of the query.
        weights: of given locations, `[batch, queries, heads, levels, points]`. None: all equal. A
            layer has its own weights.
        ax: matplotlib axes to draw on. None: new ones.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        ImportError: matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).uniform(size=[12, 9])
        >>> locations = np.random.default_rng(0).uniform(size=[1, 1, 8, 2, 4, 2])
        >>> ax = plot_attention(image, locations)
    """
    ax, image = drawing.shown(image, ax, "plot_attention")
    reference, counts = None, None
    if isinstance(layer, MultiScaleDeformableAttention):
        if not isinstance(inputs, list | tuple) or len(inputs) not in (3, 4):
            raise ValueError("inputs must be (query, reference_points, values)")
        reference = np.asarray(inputs[1], np.float64)[0]
        weights = layer.sampling_weights(inputs[0])
        if isinstance(layer.num_points, tuple):
            counts = layer.num_points
        layer = layer.sampling_locations(*inputs)
    locations = _array("locations", layer, 5 if counts else 6, 2)
    (query,) = _index("query", (query,), locations.shape[1:2])
    size = np.array(image.shape[1::-1])  # (width, height)
    points = locations[0, query] * size - 0.5
    share = np.ones(points.shape[:-1])
    if weights is not None:
        share = np.asarray(weights, np.float64)[0, query]
        share = share / (np.max(share) or 1)
    _draw_levels(ax, points, share, counts or points.shape[1] * points.shape[2:3])
    if reference is not None:
        x, y = np.reshape(reference[query], [-1, reference.shape[-1]])[0, :2] * size - 0.5
        drawing.draw_cross(ax, x, y)
    drawing.crop(ax, image)
    return ax


def _draw_levels(ax, points, share, counts):
    """Draws points `[heads, ..., 2]`, which lie level by level, `counts` of them each."""
    heads = len(points)
    ends = np.cumsum(counts)[:-1]
    places = np.split(points.reshape([heads, -1, 2]), ends, axis=1)
    shares = np.split(np.maximum(share, 0).reshape([heads, -1]), ends, axis=1)
    for head, level in np.ndindex(heads, len(counts)):
        drawing.draw_points(
            ax,
            places[level][head],
            drawing.COLOURS[head % len(drawing.COLOURS)],
            shares[level][head],
            marker=MARKERS[level % len(MARKERS)],
        )


def plot_flow(image: Tensor, flow: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draws arrows from output pixels to the places that a flow samples, and returns the axes.

    Args:
        image: `[height, width]` or `[height, width, 1 or 3]`, floating-point from 0 to 1, or uint8.
        flow: `[batch, height, width, 2]` of the image's size, displacements (y, x) in pixels, as
            for `tfd.ops.warp`. The first is drawn.
        ax: matplotlib axes to draw on. None: new ones.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        ImportError: matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).uniform(size=[12, 9])
        >>> ax = plot_flow(image, 2.5 * tf.ones([1, 12, 9, 2]))
    """
    ax, image = drawing.shown(image, ax, "plot_flow")
    flow = _array("flow", flow, 4, 2)[0]
    if flow.shape[:2] != image.shape[:2]:
        raise ValueError(
            f"flow must have the image's size {image.shape[:2]}, received {flow.shape[:2]}"
        )
    step = math.ceil(max(flow.shape[:2]) / ARROWS)
    rows, columns = (np.arange((size - 1) % step // 2, size, step) for size in flow.shape[:2])
    start = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    drawing.draw_arrows(ax, start, start + flow[tuple(start.T)], drawing.COLOURS[0])
    return ax


def png_of(draw):
    """Returns a PNG file, PICTURE_SIZE pixels wide and high, of what `draw` draws on axes."""
    figure = drawing.matplotlib(".figure").Figure(
        figsize=(4, 4), dpi=PICTURE_SIZE / 4, layout="tight"
    )
    draw(figure.add_subplot())
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


# What the layers say


def _arguments(inputs, image):
    """Returns the arguments of a layer's call: those given, or a batch of the image alone."""
    if inputs is None:
        image = image[..., None] if image.ndim == 1 else image
        return [tf.constant(image[None], tf.float32)]
    return inputs if isinstance(inputs, list | tuple) else [inputs]


def _taps(layer, arguments, image, slice_index):
    """Returns positions and rest `[batch, *output, groups, taps, rank]` in the image, and weights.

    Positions along the first axis of volumes remain slices of the inputs.
    """
    features, *given = arguments
    first = getattr(layer, "data_format", "") == "channels_first"
    space = features.shape[2:] if first else features.shape[1:-1]
    expected = 1 if image.ndim == 1 else 2 if slice_index is None else 3
    if len(space) != expected:
        raise ValueError(
            f"layer must be of {_KINDS[expected]}, received inputs of {len(space)} axes"
        )
    offset, *modulation = given[:2] or [None]
    if offset is None:
        offset, *modulation = layer.predict_offset(features, *given[2:])
    weights = modulation[0] if modulation else None
    if isinstance(layer, DCN):
        modulation = []
    both = (
        np.asarray(layer.sampling_positions(features, each, *modulation), np.float64)
        for each in (offset, tf.zeros_like(offset))
    )
    size = [*space[:-2], *image.shape[:2]] if expected > 1 else image.shape
    enlarged = np.divide(size, space)
    moved, rest = ((each + 0.5) * enlarged - 0.5 for each in both)
    if weights is not None:
        weights = np.abs(np.asarray(weights, np.float64))
        weights = np.moveaxis(weights, 1, -1) if first else weights
    return moved, rest, weights


def _on(points, image):
    """Returns points `[n, rank]` as (y, x) in the picture; those of a signal lie on its curve."""
    if image.ndim > 1:
        return points[:, -2:]
    return np.stack([np.interp(points[:, 0], np.arange(len(image)), image), points[:, 0]], axis=-1)


def _beneath(points, image):
    """Returns the same, but those of a signal lie beneath its curve."""
    if image.ndim > 1:
        return points[:, -2:]
    low, high = np.nanmin(image), np.nanmax(image)
    return np.stack([np.full(len(points), low - (high - low) / 4), points[:, 0]], axis=-1)


def _bins_of(boxes, roi, class_index, entries=4):
    """Returns `[bins, entries]`, those of a region of the batch's first."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim not in (5, 6) or boxes.shape[-1] != entries:
        raise ValueError(
            "boxes must have shape [batch, rois, height, width, 4], or classes before the 4, "
            f"received {boxes.shape}"
        )
    (roi,) = _index("roi", (roi,), boxes.shape[1:2])
    bins = boxes[0, roi]
    if boxes.ndim == 6:
        bins = bins[:, :, _index("class_index", (class_index,), boxes.shape[4:5])[0]]
    return bins.reshape(-1, entries)


def _corners(boxes):
    """Returns `[boxes, 4, 2]`, the corners (x, y) of boxes in axes with pixel centres at integers.

    boxes: `[boxes, 4]` as (x_min, y_min, x_max, y_max) in continuous coordinates.
    """
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - 0.5


def _turned_corners(boxes, layer):
    """Returns the same of the turned boxes `[boxes, 5]` of a layer."""
    angle = angles_of(boxes, layer.angle_unit, layer.clockwise)[:, None]
    dx, dy = (boxes[:, 2:4, None] / 2 * [[-1, 1, 1, -1], [-1, -1, 1, 1]]).swapaxes(0, 1)
    x = boxes[:, :1] + dx * np.cos(angle) + dy * np.sin(angle)
    y = boxes[:, 1:2] - dx * np.sin(angle) + dy * np.cos(angle)
    return np.stack([x, y], axis=-1) - 0.5


def _array(name, value, rank, last):
    array = np.asarray(value, np.float64)
    if array.ndim != rank or array.shape[-1] != last:
        raise ValueError(
            f"{name} must have {rank} axes, the last of {last}, received shape {array.shape}"
        )
    return array


def _index(name, index, sizes):
    """Returns an index as a tuple of ints. Raises ValueError unless it lies inside."""
    index = tuple(map(int, index))
    if not all(0 <= each < size for each, size in zip(index, sizes, strict=True)):
        raise ValueError(f"{name} must lie inside {tuple(sizes)}, received {index}")
    return index


def _spread(count, steps):
    """Returns up to `steps + 1` of `count` indices, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, steps + 1)).round().astype(int))
