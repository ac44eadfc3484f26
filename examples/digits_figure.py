"""The figure of the distorted digits: what the layers look at."""

import keras
import matplotlib
import numpy as np
from digits_data import distort
from matplotlib import pyplot as plt

from tf_deform import visualization

matplotlib.use("Agg")

PAIRS = 3
CANDIDATES = 300
STRIDE = 4
"""Pixels of the image that a pixel of the deformable layer's features stands for."""

NAMES = {"R": "rotated", "RTS": "moved, scaled", "P": "in perspective", "E": "bent"}
ROWS = ("input", "transformed", "taps")
BEYOND, REST, MOVED = "#4A4F57", "#FFFFFF", "#E69F00"


def draw(trained, digits, labels, seed, path):
    """Draws the figure to `path`: pairs of columns, two poses of a test digit in each.

    Of CANDIDATES test digits, the quarter whose two poses differ most are looked at, and of them
    those are shown whose poses the transformer makes most alike.

    Args:
        trained: {(model, distortion): Keras model}, those of the transformer and deformable ones.
        digits: `[digits, size, size, 1]`, the test digits, undistorted.
        labels: `[digits]`.
        seed: of the distortions.
        path: of the PNG file.
    """
    kinds = list(dict.fromkeys(kind for _, kind in trained))
    kinds = [kinds[pair % len(kinds)] for pair in range(PAIRS)]
    # A narrow column stands between the pairs.
    figure, grid = plt.subplots(
        len(ROWS),
        3 * PAIRS - 1,
        figsize=(7.2, 3.7),
        width_ratios=[1, 1, *[0.12, 1, 1] * (PAIRS - 1)],
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    used = []
    for pair, kind in enumerate(kinds):
        axes = grid[:, 3 * pair : 3 * pair + 2]
        poses = _alike(trained["ST-CNN", kind], digits, labels, kind, seed, used)
        _draw_transformer(axes[:2], trained["ST-CNN", kind], poses)
        _draw_taps(axes[2], trained["Deformable CNN", kind], poses)
        axes[0, 0].set_title(NAMES[kind], x=1.03, fontsize=13)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[], facecolor=BEYOND if axis.has_data() else "none")
        axis.spines[:].set_visible(False)
    for axis, text in zip(grid[:, 0], ROWS, strict=True):
        axis.set_ylabel(text, fontsize=13)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _alike(model, digits, labels, kind, seed, used):
    """Returns two poses `[2, size, size, 1]` of a digit of a class not used, and adds its class."""
    poses = distort(np.tile(digits[:CANDIDATES], [2, 1, 1, 1]), kind, 1000 + seed)
    made = np.asarray(model.get_layer("spatial_transformer")(poses))
    poses, made = (each.reshape(2, -1, *each.shape[1:]) for each in (poses, made))
    apart = _difference(poses)
    difference = _difference(made) + 100 * (apart < np.quantile(apart, 0.75))
    cut = (_ink_at_edges(poses) > 0.05) | (_ink_at_edges(made) > 0.05)
    small = made.sum(axis=(2, 3, 4)).min(axis=0) < 0.8 * poses.sum(axis=(2, 3, 4)).max(axis=0)
    difference[cut | small | np.isin(labels[: len(difference)], used)] += 100
    best = difference.argmin()
    used.append(labels[best])
    return poses[:, best]


def _difference(pairs):
    return np.mean((pairs[0] - pairs[1]) ** 2, axis=(1, 2, 3))


def _ink_at_edges(pairs):
    """Returns the largest value in the two outer rows and columns of either image, `[digits]`."""
    outer = pairs.copy()
    outer[:, :, 2:-2, 2:-2] = 0
    return outer.max(axis=(0, 2, 3, 4))


def _draw_transformer(axes, model, poses):
    layer = model.get_layer("spatial_transformer")
    outputs = np.asarray(layer(poses))
    size = poses.shape[1]
    for column, image in enumerate(poses):
        visualization.plot_grid(image, layer, poses[column : column + 1], ax=axes[0, column])
        # The transformer may read beyond the image, where all is zero.
        low, high = -0.5 - size / 8, size * 1.125 - 0.5
        axes[0, column].set(xlim=(low, high), ylim=(high, low))
        axes[1, column].imshow(outputs[column, ..., 0], cmap="gray", vmin=0, vmax=1)


def _draw_taps(axes, model, poses):
    layer = model.get_layer("deformable_convolution")
    features = keras.Model(model.input, layer.input)(poses)
    for column, image in enumerate(poses):
        draw_taps(axes[column], image, *taps(layer, features[column : column + 1], image))


def taps(layer, features, image):
    """Returns where the unit nearest to the digit samples, where at rest, and the modulation.

    Positions are `[3, 3, 2]` as (y, x) in pixels of the image, the modulation `[3, 3]` from 0 to 1.
    """
    _, modulation = layer.predict_offset(features)
    row, column = _central_unit(image, features.shape[1])
    positions = np.asarray(layer.sampling_positions(features))[0, row, column].reshape(3, 3, 2)
    steps = np.mgrid[-1:2, -1:2].transpose(1, 2, 0)
    rest = np.array([row, column]) + steps
    modulation = np.asarray(modulation)[0, row, column].reshape(3, 3) / layer.mask_scale
    return STRIDE * (positions + 0.5) - 0.5, STRIDE * (rest + 0.5) - 0.5, modulation


def draw_taps(axis, image, moved, rest, modulation):
    """Draws the image, a faint grid through the taps at rest, and the moved taps over it."""
    axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    scale = axis.get_window_extent().width / axis.figure.dpi
    for mesh, colour, alpha, width in ((rest, REST, 0.45, 0.6), (moved, MOVED, 0.9, 0.9)):
        for line in (*mesh, *mesh.swapaxes(0, 1)):
            y, x = line.T
            axis.plot(x, y, color=colour, alpha=alpha, linewidth=width * max(scale, 0.8))
    y, x = moved.reshape(-1, 2).T
    sizes = (4 + 22 * modulation.ravel()) * max(scale, 0.8) ** 2
    axis.scatter(x, y, s=sizes, color=MOVED, edgecolor="#202020", linewidth=0.5, zorder=3)
    size = image.shape[0]
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def _central_unit(image, size):
    """Returns (row, column) of the unit of a `size` x `size` map that lies nearest to the digit."""
    pixels = np.arange(len(image))
    rows, columns = image[..., 0].sum(axis=1), image[..., 0].sum(axis=0)
    centre = [np.average(pixels, weights=weights) for weights in (rows, columns)]
    return np.clip((np.array(centre) / STRIDE).astype(int), 0, size - 1)
