"""The figure of the distorted digits: what the layers look at."""

import itertools

import keras
import matplotlib
import numpy as np
from digits_data import DISTORTIONS, IMAGE_SIZE, distort
from matplotlib import pyplot as plt

matplotlib.use("Agg")

COLUMNS = 8
CLASSES = (4, 2, 7, 5)
REGION, TAPS = "#56B4E9", "#E69F00"  # a blue and an orange that all eyes tell apart
UNIT, BEYOND = "#FFFFFF", "#606060"
ROWS = (
    "Input, and the part\nthe transformer reads",
    "What the transformer\nmakes of it",
    "Where plain\nconvolutions sample",
    "Where deformable\nconvolutions sample",
)


def draw(trained, digits, labels, seed, path):
    """Draws the figure to `path`: two poses of a test digit for each distortion trained on.

    Args:
        trained: {(model, distortion): Keras model}, those of the transformer and deformable ones.
        digits: `[digits, height, width, 1]`, the test digits, undistorted.
        labels: `[digits]`.
        seed: of the distortions.
        path: of the PNG file.
    """
    kinds = list(dict.fromkeys(kind for _, kind in trained))
    pairs = [kinds[pair % len(kinds)] for pair in range(COLUMNS // 2)]
    figure, axes = plt.subplots(4, COLUMNS, figsize=(13.2, 7.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for pair, kind in enumerate(pairs):
        digit = digits[labels == CLASSES[pair]][:1]
        images = distort(np.tile(digit, [2, 1, 1, 1]), kind, 100 * seed + pair)
        columns = axes[:, 2 * pair : 2 * pair + 2]
        _draw_transformer(columns[:2], trained["ST-CNN", kind], images)
        _draw_taps(columns[2:], trained["Deformable CNN", kind], images)
        if kind not in pairs[:pair]:
            columns[0, 0].set_title(DISTORTIONS[kind].capitalize(), loc="left", fontsize=12)
    for axis in axes.flat:
        # The transformer may read beyond the image, where all is zero.
        low, high = (-8.5, IMAGE_SIZE + 7.5) if axis in axes[0] else (-0.5, IMAGE_SIZE - 0.5)
        axis.set(xticks=[], yticks=[], xlim=(low, high), ylim=(high, low), facecolor=BEYOND)
        axis.spines[:].set_visible(False)
    for axis, text in zip(axes[:, 0], ROWS, strict=True):
        axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=12, labelpad=8)
    figure.suptitle(
        "Deforming layers learn where to look: each test digit in two poses, of which only the "
        "class was ever told",
        fontsize=14,
    )
    figure.supxlabel(
        "Cross: a unit of the last convolution. Orange: where its 3 × 3 taps sample, larger where "
        "they weigh more.",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_transformer(axes, model, images):
    layer = model.get_layer("spatial_transformer")
    theta = np.reshape(layer.predict_parameters(images), [-1, 2, 3])
    outputs = np.asarray(layer(images))
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
    region = ((corners @ theta.transpose(0, 2, 1) + 1) * IMAGE_SIZE - 1) / 2  # [images, 5, (x, y)]
    for column, image in enumerate(images):
        _show(axes[0, column], image)
        axes[0, column].plot(*region[column].T, color=REGION, linewidth=2)
        # The edge that becomes the upper one
        axes[0, column].plot(*region[column, :2].T, color=REGION, linewidth=5)
        _show(axes[1, column], outputs[column])


def _draw_taps(axes, model, images):
    layer = model.get_layer("deformable_convolution")
    features = keras.Model(model.input, layer.input)(images)
    offset, modulation = (np.asarray(each) for each in layer.predict_offset(features))
    size = features.shape[1]
    taps = np.array(list(itertools.product([-1, 0, 1], repeat=2)))
    for column, image in enumerate(images):
        unit = _central_unit(image, size)
        plain = unit + taps  # [taps, (y, x)], in pixels of the features
        moved = plain + offset[column][tuple(unit)].reshape(-1, 2)
        for axis, points, weights in (
            (axes[0, column], plain, np.ones(9)),
            (axes[1, column], moved, modulation[column][tuple(unit)]),
        ):
            _show(axis, image)
            y, x = _to_image(points, size).T
            axis.scatter(x, y, s=45 * weights, color=TAPS, edgecolor="black", lw=0.5)
            y, x = _to_image(unit, size)
            axis.plot(x, y, "+", color=UNIT, markersize=11, markeredgewidth=2)


def _central_unit(image, size):
    """Returns (row, column) of the unit of a `size` x `size` map that lies nearest to the digit."""
    pixels = np.arange(IMAGE_SIZE)
    rows, columns = image[..., 0].sum(axis=1), image[..., 0].sum(axis=0)
    centre = [np.average(pixels, weights=weights) for weights in (rows, columns)]
    return np.clip((np.array(centre) * size / IMAGE_SIZE).astype(int), 0, size - 1)


def _to_image(points, size):
    """Returns positions in a `size` x `size` map as pixels of the image."""
    return (points + 0.5) * (IMAGE_SIZE / size) - 0.5


def _show(axis, image):
    axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
