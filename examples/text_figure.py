"""The figure of rectified text: what is given, what becomes of it, where the control points lie."""

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from text_models import COLUMNS, rectify

matplotlib.use("Agg")

WORDS = 6
POINTS = "#E69F00"
LINES = "#56B4E9"
RIGHT, WRONG = "black", "#D55E00"


def draw(models, images, words, bends, read, path):
    """Draws to `path` words of evenly spread bends, as they are and rectified.

    Args:
        models: {reader: Keras model}.
        images: `[words, 32, 64, 1]`.
        words: what they show.
        bends: `[words]`, angles.
        read: the function from a model and images to the words read.
        path: of the PNG file.
    """
    chosen = np.argsort(bends)[np.linspace(0, len(words) - 1, WORDS).astype(int)]
    images = np.asarray(images)[chosen]
    rectified, points = rectify(models["rectified"], images)
    read_words = {name: read(model, images) for name, model in models.items()}
    figure, axes = plt.subplots(2, len(chosen), figsize=(13.2, 3.6), layout="constrained")
    for column, (above, below) in enumerate(axes.T):
        word = words[chosen[column]]
        above.imshow(images[column, ..., 0], cmap="gray", vmin=0, vmax=1)
        _draw_points(above, points[column])
        below.imshow(rectified[column, ..., 0], cmap="gray", vmin=0, vmax=1)
        for axis, name in ((above, "plain"), (below, "rectified")):
            answer = read_words[name][column]
            axis.set_xlabel(
                answer or "nothing", color="black" if answer == word else WRONG, fontsize=13
            )
    for axis, text in zip(axes[:, 0], ("Given", "Rectified"), strict=True):
        axis.set_ylabel(text, fontsize=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(
        "New words, and what is read: above by the plain reader, below by the one that rectifies. "
        "Orange: its control points",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_points(axis, points):
    """Draws control points `[10, 2]`, and lines along both edges of the text."""
    limits = axis.get_xlim(), axis.get_ylim()
    for edge in np.split(points, [COLUMNS]):
        axis.plot(*edge.T, color=LINES, linewidth=1)
        axis.scatter(*edge.T, color=POINTS, s=14, zorder=2)
    axis.set(xlim=limits[0], ylim=limits[1])
