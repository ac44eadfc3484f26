"""What pictures are made of: axes with an image, and points, lines, boxes and arrows on them.

Points are (y, x), but those of lines and of `draw_points`, which are (x, y).
"""

import importlib

import numpy as np

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2", "#FFFFFF")
REST, RIM, CURVE = "#D0D0D0", "#202020", "#808080"
FULL_SIZE = 3.2  # inches of axes from which on nothing is drawn smaller


def shown(image, ax, function):
    """Returns the axes, new ones if there are none, with the image on them, and the image."""
    matplotlib("", function)
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "image must have shape [height, width] or [height, width, 1 or 3], received "
            f"{image.shape}"
        )
    if image.dtype == np.uint8:
        image = image / 255
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image must be floating-point or uint8, received {image.dtype}")
    if ax is None:
        _, ax = matplotlib(".pyplot", function).subplots(layout="constrained")
    low, high = min(0, np.nanmin(image)), max(1, np.nanmax(image))
    pixels = (image - low) / (high - low)
    ax.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    return ax, image


def shown_signal(signal, ax, function):
    """Returns the axes, new ones if there are none, with the signal as a curve, and the signal."""
    matplotlib("", function)
    signal = np.asarray(signal, np.float64)
    if ax is None:
        _, ax = matplotlib(".pyplot", function).subplots(layout="constrained")
    ax.plot(signal, color=CURVE, linewidth=1.6 * scale(ax), zorder=1)
    return ax, signal


def matplotlib(module, function="drawing"):
    """Returns a module of matplotlib; the function is what the error names if there is none."""
    try:
        return importlib.import_module(f"matplotlib{module}")
    except ImportError as error:
        raise ImportError(
            f'{function} needs the package matplotlib: pip install "tf_deform[plot]" ({error})'
        ) from error


def scale(ax):
    """Returns the factor on the size of what is drawn: under 1 on small axes."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())  # in inches
    return min(max(min(box.width, box.height) / FULL_SIZE, 0.5), 1)


def rimmed(ax, width):
    """Returns what gives lines and letters of a width a dark rim."""
    effects = matplotlib(".patheffects")
    rim = width + 1.4 * scale(ax)
    return [effects.Stroke(linewidth=rim, foreground=RIM), effects.Normal()]


def draw_taps(ax, moved, rest, share, colour):
    """Draws taps, larger and more opaque the more they count, and where they are at rest."""
    if rest is not None:
        y, x = rest.T
        size = 20 * scale(ax) ** 2
        ax.scatter(x, y, s=size, color=REST, edgecolor=RIM, linewidth=0.7, alpha=0.8, zorder=3)
        draw_arrows(ax, rest, moved, colour)
    draw_points(ax, moved[:, ::-1], colour, share)


def draw_points(ax, points, colour, share, marker="o"):
    """Draws (x, y) points, larger and more opaque the more they count: shares from 0 to 1."""
    red, green, blue, _ = matplotlib(".colors").to_rgba(colour)
    ax.scatter(
        *points.T,
        s=(8 + 47 * share) * scale(ax) ** 2,
        facecolor=[(red, green, blue, 0.3 + 0.7 * each) for each in share],
        edgecolor="white",
        linewidth=0.6,
        path_effects=rimmed(ax, 0.6),
        marker=marker,
        zorder=4,
    )


def draw_cross(ax, x, y):
    """Draws a cross."""
    size, width = 11 * scale(ax), 2 * scale(ax)
    rim = rimmed(ax, width)
    ax.plot(x, y, "+", color="white", ms=size, mew=width, path_effects=rim, zorder=5)


def draw_arrows(ax, start, end, colour):
    """Draws arrows between (y, x) points, but those that lead nowhere."""
    long = np.isfinite(end).all(axis=-1) & (np.abs(end - start).max(axis=-1) > 1e-6)
    start, end = start[long], end[long]
    if not len(start):
        return
    (y, x), (dy, dx) = start.T, (end - start).T
    ax.quiver(
        *(x, y, dx, dy),
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=0.022 * scale(ax),
        headwidth=4,
        headlength=4,
        headaxislength=3.5,
        minlength=0.1,
        color=colour,
        edgecolor=RIM,
        linewidth=0.4 * scale(ax) ** 2,
        zorder=3,
    )
    ax.update_datalim(end[:, ::-1])
    ax.autoscale_view()


def crop(ax, image):
    """Takes points out of sight that are further from the image than a quarter of its size."""
    for axis, size in ((ax.xaxis, image.shape[1]), (ax.yaxis, image.shape[0])):
        low, high = axis.get_view_interval()
        bounds = -0.5 - size / 4, 1.25 * size - 0.5
        axis.set_view_interval(*np.clip([low, high], *bounds), ignore=True)


def draw_boxes(ax, boxes, colour, width):
    """Draws the outlines of boxes, given by their four corners (x, y)."""
    for corners in boxes:
        draw_line(ax, np.concatenate([corners, corners[:1]]), colour, width)


def draw_line(ax, points, colour, width):
    """Draws a line through (x, y) points."""
    width *= scale(ax)
    ax.plot(*points.T, color=colour, linewidth=width, path_effects=rimmed(ax, width), zorder=2)


def middles(boxes):
    """Returns the middles of boxes, given by their corners, as (y, x)."""
    return np.mean(boxes, axis=1)[:, ::-1]


def draw_text(ax, x, y, text):
    """Draws white letters with a dark rim."""
    ax.text(
        *(x, y, text),
        color="white",
        fontsize=7,
        ha="center",
        va="center",
        path_effects=rimmed(ax, 0.6),
        zorder=5,
        clip_on=True,
    )
