"""Draws the pictures of docs/coordinates.md: what a coordinate means.

    python examples/coordinates_pictures.py    # writes docs/images/coordinates/*.png, in seconds

The curves of the border rules are what the operators return.
"""

import argparse
import io
import os
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import patches
from matplotlib import pyplot as plt
from PIL import Image

import tf_deform as tfd

INK, GREY, PALE = "#1b2733", "#8793a0", "#eef2f6"
BLUE, ORANGE, GREEN = "#1565c0", "#d9480f", "#2b8a3e"
WIDTH = 800  # in pixels; texts are readable at half of it
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 16,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "images",
        help="folder of the folder coordinates (default: docs/images)",
    )
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds")
    folder = parser.parse_args(arguments).output / "coordinates"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (pixels, normalised, boxes, offsets, flow, angle, borders):
        with plt.rc_context(STYLE):
            figure = draw()
            _save(figure, folder / f"{draw.__name__}.png")
            plt.close(figure)


def _save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=WIDTH / figure.get_figwidth())
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(64).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def pixels():
    """A sample between four pixel centres, and how much each counts."""
    figure, ax = _figure(3.8)
    height, width, y, x = 3, 5, 0.75, 2.25
    _cells(ax, height, width)
    corners = [(row, column) for row in (0, 1) for column in (2, 3)]
    for row, column in corners:
        share = (1 - abs(y - row)) * (1 - abs(x - column))
        ax.add_patch(patches.Rectangle((column - 0.5, row - 0.5), 1, 1, color=BLUE, alpha=share))
        ax.plot([x, column], [y, row], color=INK, linewidth=1.5, zorder=3)
        side = -0.3 if row == 0 else 0.3
        ax.text(column, row + side, f"{100 * share:.0f} %", ha="center", va="center", size=15)
    _centres(ax, height, width)
    ax.plot(x, y, "o", color=ORANGE, markersize=14, markeredgecolor="white", zorder=5)
    ax.text(4.75, y, f"(y, x) = ({y}, {x})", color=ORANGE, va="center", weight="bold")
    ax.annotate(
        "", (x + 0.2, y), (4.7, y), arrowprops={"arrowstyle": "-", "color": ORANGE, "ls": ":"}
    )
    _axes_of_pixels(ax, height, width, right=7.6)
    return figure


def normalised():
    """One row of five pixels under four rulers."""
    figure, ax = _figure(4.9)
    size = 5
    for column in range(size):
        corner = (column - 0.5, -0.45)
        ax.add_patch(patches.Rectangle(corner, 1, 0.9, facecolor=PALE, edgecolor=GREY))
    ax.plot(range(size), [0] * size, "o", color=INK, markersize=7)
    middle = (size - 1) / 2
    rulers = (
        ("pixels", INK, [(i, str(i)) for i in range(size)]),
        (
            "align_corners=False",
            BLUE,
            [(-0.5, "−1"), (middle, "0"), (size - 0.5, "1")],
        ),
        ("align_corners=True", ORANGE, [(0, "−1"), (middle, "0"), (size - 1, "1")]),
        ("attention", GREEN, [(-0.5, "0"), (middle, "0.5"), (size - 0.5, "1")]),
    )
    for index, (name, color, marks) in enumerate(rulers):
        line = 1.05 + 0.95 * index
        ends = [marks[0][0], marks[-1][0]]
        ax.plot(ends, [line, line], color=color, linewidth=3, solid_capstyle="round")
        for place, text in marks:
            ax.plot([place, place], [line - 0.13, line + 0.13], color=color, linewidth=3)
            ax.text(place, line + 0.18, text, color=color, ha="center", va="top", size=15)
        for end in (ends[0], ends[-1]):
            ax.plot([end, end], [0.45 if end % 1 else 0, line], color=color, alpha=0.35, ls=":")
        ax.text(-0.85, line, name, color=color, ha="right", va="center", size=14.5)
    ax.text(-0.85, 0, "5 pixels", ha="right", va="center", size=14.5)
    ax.set(xlim=(-3.55, size - 0.25), ylim=(4.5, -0.65))
    ax.axis("off")
    return figure


def boxes():
    """A box on features of a quarter of the image's size, aligned and not."""
    figure, ax = _figure(4.4)
    height, width, scale = 4, 6, 1 / 4
    _cells(ax, height, width)
    _centres(ax, height, width)
    box = np.array([4.0, 4.0, 20.0, 12.0])  # of the image
    for aligned, color in ((False, ORANGE), (True, BLUE)):
        x_min, y_min, x_max, y_max = box * scale - (0.5 if aligned else 0)
        ax.add_patch(
            patches.Rectangle(
                (x_min, y_min),
                x_max - x_min,
                y_max - y_min,
                facecolor="none",
                edgecolor=color,
                linewidth=4,
                linestyle="-" if aligned else (0, (3, 2)),
                zorder=4,
            )
        )
        if aligned:
            middle = (x_min + x_max) / 2
            ax.plot([middle, middle], [y_min, y_max], color=color, linewidth=2, zorder=4)
            steps = (np.arange(4) + 0.5) / 4
            xs, ys = x_min + steps * (x_max - x_min), y_min + np.array([0.5, 1.5])
            ax.plot(*np.meshgrid(xs, ys), "x", color=color, markersize=14, mew=3, zorder=5)
    right = width - 0.2
    ax.text(right, 0.4, "aligned=True", color=BLUE, weight="bold", va="center")
    ax.text(right, 0.85, "2 bins, 4 samples each", color=BLUE, va="center", size=14)
    ax.text(right, 1.7, "aligned=False", color=ORANGE, weight="bold", va="center")
    ax.text(right, 2.15, "half a pixel lower right", color=ORANGE, va="center", size=14)
    ax.text(right, 2.9, "box (4, 4, 20, 12),", va="center", size=14)
    ax.text(right, 3.3, "spatial_scale=1/4", va="center", size=14)
    _axes_of_pixels(ax, height, width, right=9.2)
    return figure


def offsets():
    """The taps of a 3 × 3 kernel, one of them moved, and the channels of the offsets."""
    figure, ax = _figure(5.6)
    moved, (dy, dx) = 5, (-0.6, 0.9)
    for tap in range(9):
        y, x = divmod(tap, 3)
        color = ORANGE if tap == moved else BLUE
        ax.add_patch(patches.Circle((x, y), 0.24, facecolor="white", edgecolor=color, linewidth=3))
        ax.text(x, y, str(tap), ha="center", va="center", color=color, weight="bold")
    y, x = divmod(moved, 3)
    _arrow(ax, (x + 0.2, y - 0.13), (x + dx, y + dy), ORANGE)
    ax.plot(x + dx, y + dy, "o", color=ORANGE, markersize=13, zorder=5)
    line = {"color": ORANGE, "linewidth": 2, "linestyle": ":"}
    ax.plot([x + 0.26, x + dx, x + dx], [y, y, y + dy], **line)
    ax.text(x + dx / 2 + 0.22, y + 0.22, f"x₅ = {dx}", color=ORANGE, ha="center", va="center")
    text = f"y₅ = −{-dy}"
    ax.text(x + dx + 0.12, y + dy / 2, text, color=ORANGE, va="center")
    subscripts = "₀₁₂₃₄₅₆₇₈"
    left, wide, top = -0.42, 0.317, 2.75
    for channel in range(18):
        tap, axis = divmod(channel, 2)
        color = ORANGE if tap == moved else INK
        face = "#fdebe2" if tap == moved else (PALE if tap % 2 else "white")
        corner = (left + channel * wide, top)
        ax.add_patch(patches.Rectangle(corner, wide, 0.4, facecolor=face, edgecolor=GREY))
        name = f"{'yx'[axis]}{subscripts[tap]}"
        middle = left + (channel + 0.5) * wide
        ax.text(middle, top + 0.2, name, ha="center", va="center", color=color, size=14)
        if channel in (0, 10, 17):
            ax.text(middle, top + 0.58, str(channel), ha="center", va="center", size=13)
    ax.text(left + 3 * wide, top + 0.58, "channel", ha="center", va="center", size=13)
    ax.set(xlim=(-0.5, 5.4), ylim=(3.5, -0.42), aspect="equal")
    _directions(ax, 4.35, 0.0)
    ax.axis("off")
    return figure


def flow():
    """What a flow of two pixels to the right makes of a picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    figure.subplots_adjust(left=0.02, right=0.98, top=0.88, bottom=0.02, wspace=0.08)
    image = np.zeros([1, 5, 8, 1], "float32")
    image[0, 1:4, 5], image[0, 2, 4:7] = 1, 1  # a cross
    field = np.full([1, 5, 8, 2], (0.0, 2.0), "float32")
    warped = tfd.ops.warp(image, field).numpy()
    for ax, each, title in ((left, image, "input"), (right, warped, "output = warp(input, flow)")):
        _cells(ax, 5, 8)
        for row, column in np.argwhere(each[0, ..., 0] > 0.5):
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(patches.Rectangle(corner, 1, 1, facecolor=BLUE, edgecolor="white"))
        ax.set(xlim=(-0.55, 7.55), ylim=(4.55, -0.55), aspect="equal")
        ax.set_title(title, size=16)
        ax.axis("off")
    left.plot(3, 2, "o", color=ORANGE, markersize=13, markeredgecolor="white", zorder=5)
    _arrow(left, (3.2, 2), (5, 2), ORANGE)
    left.text(3, 1.3, "p", color=ORANGE, ha="center", va="center", weight="bold")
    text = "p reads p + flow(p), flow = (0, 2)"
    left.text(3.5, 4, text, color=ORANGE, ha="center", va="center", size=14)
    right.plot(3, 2, "o", color=ORANGE, markersize=13, markeredgecolor="white", zorder=5)
    right.text(3, 4, "p", color=ORANGE, ha="center", va="center", weight="bold")
    return figure


def angle():
    """A box turned by 30°, counter-clockwise and clockwise."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.2))
    figure.subplots_adjust(left=0.02, right=0.98, top=0.87, bottom=0.02, wspace=0.06)
    for ax, sign, title in ((left, 1, "30°"), (right, -1, "30°, clockwise=True")):
        color = BLUE if sign == 1 else ORANGE
        turn = np.deg2rad(30 * sign)
        across = 1.9 * np.array([np.cos(turn), -np.sin(turn)])  # from the middle, half the width
        down = 0.75 * np.array([np.sin(turn), np.cos(turn)])
        corners = [-across - down, across - down, across + down, -across + down]
        ax.add_patch(patches.Polygon(corners, facecolor=PALE, edgecolor=color, linewidth=3))
        ax.plot(*zip(*corners[:2], strict=True), color=color, linewidth=7, solid_capstyle="round")
        ax.plot([0, 2.3], [0, 0], color=GREY, linestyle="--", linewidth=2)
        ax.plot([0, 1.15 * across[0]], [0, 1.15 * across[1]], color=color, linewidth=2)
        ends = (-30, 0) if sign == 1 else (0, 30)
        arc = patches.Arc((0, 0), 2.4, 2.4, theta1=ends[0], theta2=ends[1], color=color, lw=3)
        ax.add_patch(arc)
        way = 1.2 * np.array([np.cos(turn), -np.sin(turn)])
        before = 1.2 * np.array([np.cos(0.7 * turn), -np.sin(0.7 * turn)])
        ax.annotate("", way, before, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 3})
        ax.plot(0, 0, "o", color=INK, markersize=9)
        # The first bin is at the start of the thick side.
        first = -0.7 * across - 0.4 * down
        style = {"ha": "center", "va": "center", "color": color, "rotation": 30 * sign}
        ax.text(*first, "1st bin", size=14, **style)
        ax.set(xlim=(-2.6, 2.6), ylim=(2.1, -2.1), aspect="equal")
        ax.set_title(title, size=16)
        ax.axis("off")
    _directions(left, -2.35, -1.85, length=0.65)
    return figure


def borders():
    """What the rules return beside the pixels of a row, as the operators return it."""
    figure, axes = plt.subplots(3, 2, figsize=(8, 8.2), sharex=True, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.95, bottom=0.09, hspace=0.34, wspace=0.1)
    values = np.array([3.0, 1.0, 2.0, 4.0], "float32")
    places = np.round(np.arange(-2.5, 5.5001, 0.01), 2).astype("float32")
    curves = {
        "zeros": _sampled(values, places, "zeros"),
        "border": _sampled(values, places, "border"),
        "reflection, outer edges": _reflected(values, places, False),
        "reflection, centres": _reflected(values, places, True),
        "roi": _pooled(values, places),
        "psroi": _pooled_by_parts(values, places),
    }
    for ax, (name, curve) in zip(axes.flat, curves.items(), strict=True):
        ax.axvspan(-0.5, len(values) - 0.5, color=PALE, zorder=0)
        ax.axhline(0, color=GREY, linewidth=1)
        jumps = np.abs(np.diff(curve)) > 0.5
        ax.plot(places, np.where(np.append(jumps, False), np.nan, curve), color=BLUE, linewidth=3)
        ax.plot(range(len(values)), values, "o", color=INK, markersize=9, zorder=4)
        ax.set_title(name, size=15)
        ax.set(xlim=(-2.5, 5.5), ylim=(-0.4, 4.6), xticks=range(-2, 6), yticks=[0, 2, 4])
        ax.tick_params(labelsize=14, length=0)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("position in pixels", size=14)
    return figure


def _sampled(values, places, rule):
    points = places[None, :, None]
    return tfd.ops.sample(values[None, :, None], points, padding_mode=rule).numpy()[0, :, 0]


def _reflected(values, places, align_corners):
    size = len(values)
    grid = 2 * places / (size - 1) - 1 if align_corners else (2 * places + 1) / size - 1
    options = {"padding_mode": "reflection", "align_corners": align_corners}
    sampled = tfd.ops.grid_sample(values[None, :, None], grid[None, :, None], **options)
    return sampled.numpy()[0, :, 0]


def _pooled(values, places):
    """One sample of each of many small boxes around the places."""
    half = 0.01
    low, high = places + 0.5 - half, places + 0.5 + half
    ones = np.ones_like(low)
    given = np.stack([low, (0.5 - half) * ones, high, (0.5 + half) * ones], axis=1)
    layer = tfd.layers.RoIAlign(1, sampling_ratio=1)
    return layer(values[None, None, :, None], given[None]).numpy().ravel()


def _pooled_by_parts(values, places):
    """The same of the position-sensitive pooling, whose first sample is at the box's start."""
    pixels_per_feature = 100
    start = np.round((places + 0.5) * pixels_per_feature)
    middle = np.full_like(start, pixels_per_feature / 2)
    given = np.stack([start, middle, start, middle], axis=1)
    layer = tfd.layers.DeformablePSRoIPooling(
        1, 1, group_size=1, part_size=1, sample_per_part=1, spatial_scale=1 / pixels_per_feature
    )
    return layer(values[None, None, :, None], given[None]).numpy().ravel()


def _figure(height):
    figure = plt.figure(figsize=(8, height))
    return figure, figure.add_axes((0.01, 0.01, 0.98, 0.98))


def _cells(ax, height, width):
    for row in range(height):
        for column in range(width):
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(patches.Rectangle(corner, 1, 1, facecolor=PALE, edgecolor="white", lw=2))


def _centres(ax, height, width):
    columns, rows = np.meshgrid(range(width), range(height))
    ax.plot(columns, rows, "o", color=INK, markersize=6, zorder=4)


def _axes_of_pixels(ax, height, width, right):
    """Numbers the rows and columns, and names the axes."""
    for column in range(width):
        ax.text(column, -0.78, str(column), ha="center", va="center", size=15)
    for row in range(height):
        ax.text(-0.8, row, str(row), ha="center", va="center", size=15)
    _arrow(ax, (-0.5, -1.15), (0.7, -1.15), GREY)
    ax.text(0.85, -1.15, "x", color=GREY, va="center", weight="bold")
    _arrow(ax, (-1.2, -0.5), (-1.2, 0.7), GREY)
    ax.text(-1.2, 0.98, "y", color=GREY, ha="center", va="center", weight="bold")
    ax.set(xlim=(-1.45, right), ylim=(height - 0.35, -1.45), aspect="equal")
    ax.axis("off")


def _directions(ax, x, y, length=0.55):
    _arrow(ax, (x, y), (x + length, y), GREY)
    _arrow(ax, (x, y), (x, y + length), GREY)
    ax.text(x + 1.25 * length, y, "x", color=GREY, ha="center", va="center", weight="bold")
    ax.text(x, y + 1.35 * length, "y", color=GREY, ha="center", va="center", weight="bold")


def _arrow(ax, start, end, color):
    style = {"arrowstyle": "-|>,head_width=0.4,head_length=0.7", "color": color, "lw": 3}
    ax.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=4)


if __name__ == "__main__":
    main()
