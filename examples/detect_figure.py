"""The figure of the detected digits: what was found, and where the bins of a box moved to."""

import matplotlib
import numpy as np
from detect_data import BACKGROUND, HEIGHT, WIDTH, targets
from detect_models import bins_of
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from tf_deform import visualization

matplotlib.use("Agg")

SCENES, DIGITS = 4, 8
SHOWN_SCORE = 0.3
BOX = "#F0E442"
BEYOND = "#606060"


def draw(models, best, scenes, detections, path):
    """Draws to `path` scenes with what the best model found, and digits with the models' bins.

    Args:
        models: {pooling: Keras model}.
        best: pooling of the model that detected.
        scenes: Scenes.
        detections: for each scene (boxes, scores, labels).
        path: of the PNG file.
    """
    figure = plt.figure(figsize=(13.2, 8.0), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[2.7, 5.1])
    for axis, scene in zip(above.subplots(1, SCENES), range(len(scenes.images)), strict=False):
        _draw_detections(axis, scenes.images[scene], *detections[scene])
    above.suptitle(f"Test scenes and what {best} found in them", fontsize=14)
    axes = below.subplots(len(models), DIGITS)
    for row, (name, model) in zip(axes, models.items(), strict=True):
        _draw_bins(row, model, scenes)
        row[0].set_ylabel(
            name.replace("RoI", "\nRoI").strip(), rotation=0, ha="right", va="center", fontsize=12
        )
    below.suptitle("A proposal (yellow) and where its bins look (orange)", fontsize=14)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[], facecolor=BEYOND)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_detections(axis, image, boxes, scores, labels):
    axis.imshow(image, extent=(0, WIDTH, HEIGHT, 0))
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if score >= SHOWN_SCORE:
            _draw_box(axis, box, edgecolor=BOX, linewidth=2)
            axis.text(
                *box[:2],
                f"{label}: {score:.2f}",
                fontsize=8,
                va="bottom",
                bbox={"facecolor": BOX, "edgecolor": "none", "pad": 1},
            )


def _draw_bins(axes, model, scenes):
    inputs = {"images": scenes.images, "proposals": scenes.proposals}
    bins = bins_of(model, inputs)
    for axis, (scene, proposal) in zip(axes, largest_digits(scenes), strict=False):
        box = scenes.proposals[scene, proposal]
        image = scenes.images[scene]
        visualization.plot_bins(image, bins[scene : scene + 1], roi=proposal, ax=axis)
        box = box - 0.5  # there pixel centres are at integers
        _draw_box(axis, box, edgecolor=BOX, linewidth=2)
        (x, y), half = (box[:2] + box[2:]) / 2, 0.75 * np.max(box[2:] - box[:2])
        axis.set(xlim=(x - half, x + half), ylim=(y + half, y - half))


def largest_digits(scenes):
    """Returns pairs (scene, proposal): proposals of large digits, each in a scene of its own."""
    labels, _ = targets(scenes)
    low, high = scenes.proposals[..., :2], scenes.proposals[..., 2:]
    inside = np.all((low >= 0) & (high <= [WIDTH, HEIGHT]), axis=-1)
    size = np.where((labels != BACKGROUND) & inside, np.max(high - low, axis=-1), 0)
    largest = np.argsort(-size.max(axis=1), kind="stable")
    return [(scene, size[scene].argmax()) for scene in largest[:DIGITS]]


def _draw_box(axis, box, **options):
    size = box[2:] - box[:2]
    axis.add_patch(Rectangle(box[:2], *size, fill=False, **options))
