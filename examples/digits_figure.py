"""The figure of the distorted digits: what the layers look at."""

import keras
import matplotlib
import numpy as np
from digits_data import DISTORTIONS, IMAGE_SIZE, distort
from matplotlib import pyplot as plt

from tf_deform import visualization

matplotlib.use("Agg")

COLUMNS = 8
CLASSES = (4, 2, 7, 5)
BEYOND = "#606060"
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
        "they weigh more. Thick: what becomes the upper edge.",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_transformer(axes, model, images):
    layer = model.get_layer("spatial_transformer")
    outputs = np.asarray(layer(images))
    for column, image in enumerate(images):
        visualization.plot_grid(image, layer, images[column : column + 1], ax=axes[0, column])
        axes[1, column].imshow(outputs[column, ..., 0], cmap="gray", vmin=0, vmax=1)


def _draw_taps(axes, model, images):
    layer = model.get_layer("deformable_convolution")
    features = keras.Model(model.input, layer.input)(images)
    offset, modulation = layer.predict_offset(features)
    for column, image in enumerate(images):
        one = slice(column, column + 1)
        unit = _central_unit(image, features.shape[1])
        plain = np.zeros_like(offset[one]), np.ones_like(modulation[one])
        deformed = offset[one], modulation[one]
        for axis, given in zip(axes[:, column], (plain, deformed), strict=True):
            visualization.plot_taps(image, layer, (features[one], *given), pixel=unit, ax=axis)


def _central_unit(image, size):
    """Returns (row, column) of the unit of a `size` x `size` map that lies nearest to the digit."""
    pixels = np.arange(IMAGE_SIZE)
    rows, columns = image[..., 0].sum(axis=1), image[..., 0].sum(axis=0)
    centre = [np.average(pixels, weights=weights) for weights in (rows, columns)]
    return np.clip((np.array(centre) * size / IMAGE_SIZE).astype(int), 0, size - 1)
