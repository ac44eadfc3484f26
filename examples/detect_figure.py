"""The figure of the detected digits: what was found, and where the bins of a box moved to."""

import io

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from detect_boxes import iou
from detect_data import BACKGROUND, HEIGHT, WIDTH, targets
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from pictures_canvas import save_small

from tf_deform import drawing, visualization

matplotlib.use("Agg")

SCENES = 3
MARGIN = 0.18
SHOWN_SCORE = 0.4
SUPPRESSING_IOU = 0.3
TRUTH, RIGHT, WRONG = "white", drawing.COLOURS[3], drawing.COLOURS[4]
BEYOND = "#606060"


def draw(models, best, scenes, detections, path):
    """Draws to `path` scenes with what the best model found, and a digit with the models' bins.

    Args:
        models: {pooling: Keras model}.
        best: pooling of the model that detected.
        scenes: Scenes.
        detections: for each scene (boxes, scores, labels).
        path: of the PNG file.
    """
    figure = plt.figure(figsize=(8, 5.9), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[2.75, 3.15])
    for axis, scene in zip(above.subplots(1, SCENES), fullest(scenes), strict=False):
        _draw_detections(axis, scenes, scene, *likeliest(*detections[scene]))
    above.suptitle(f"What {best} finds in test scenes, with scores", fontsize=13)
    kinds = {
        "a digit": (TRUTH, "--"),
        "found and named": (RIGHT, "-"),
        "wrong name or place": (WRONG, "-"),
    }
    lines = [
        Line2D([], [], color=colour, linestyle=dash, linewidth=2, path_effects=_rim())
        for colour, dash in kinds.values()
    ]
    above.legend(lines, kinds, loc="outside lower center", ncols=3, frameon=False, fontsize=10.5)
    axes = below.subplots(1, len(models))
    for axis, name in zip(axes, models, strict=True):
        axis.set_title(name, fontsize=11)
    below.suptitle("Where the bins of one box look: at rest, and moved", fontsize=13)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[], facecolor=BEYOND)
        axis.spines[:].set_visible(False)
    figure.draw_without_rendering()  # bins are numbered where the axes are large enough
    _draw_bins(axes, models, scenes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    save_small(file, path, shades=240)
    plt.close(figure)


def fullest(scenes):
    """Returns the scenes with the most digits, the first ones first."""
    return sorted(range(len(scenes.boxes)), key=lambda scene: -len(scenes.boxes[scene]))


def likeliest(boxes, scores, labels):
    """Returns of the detections those that are likely, and of those that overlap only the best.

    Average precision is of each class for itself; a picture shows one name for a place.
    """
    kept = tf.image.non_max_suppression(
        boxes, scores, len(boxes), SUPPRESSING_IOU, score_threshold=SHOWN_SCORE
    ).numpy()
    return boxes[kept], scores[kept], labels[kept]


def _draw_detections(axis, scenes, scene, boxes, scores, labels):
    axis.imshow(scenes.images[scene], extent=(0, WIDTH, HEIGHT, 0), interpolation="bilinear")
    for box in scenes.boxes[scene]:
        _draw_box(axis, box, edgecolor=TRUTH, linewidth=1.2, linestyle="--", path_effects=_rim())
    overlap = iou(boxes, scenes.boxes[scene])
    for box, score, label, each in zip(boxes, scores, labels, overlap, strict=True):
        right = each.max() >= 0.5 and scenes.labels[scene][each.argmax()] == label
        colour = RIGHT if right else WRONG
        _draw_box(axis, box, edgecolor=colour, linewidth=2)
        above = box[1] > 14
        axis.text(
            np.clip(box[0], 1, WIDTH - 34),
            box[1] if above else max(box[1], 1.5),
            f"{label}  {100 * score:.0f}%",
            fontsize=8,
            va="bottom" if above else "top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )


def _rim():
    return [patheffects.withStroke(linewidth=2.6, foreground=drawing.RIM)]


def _draw_bins(axes, models, scenes):
    scene, proposal = largest_digits(scenes)[0]
    box = scenes.proposals[scene, proposal]
    (x, y), half = (box[:2] + box[2:]) / 2 - 0.5, (0.5 + MARGIN) * np.max(box[2:] - box[:2])
    for axis, model in zip(axes, models.values(), strict=True):
        layer, inputs = layer_and_inputs(model, scenes, scene)
        visualization.plot_bins(scenes.images[scene], layer, inputs, roi=proposal, ax=axis)
        axis.images[0].set_interpolation("bilinear")
        axis.set(xlim=(x - half, x + half), ylim=(y + half, y - half))


def layer_and_inputs(model, scenes, scene):
    """Returns the layer that pools, and what it is called with for one scene."""
    layer = model.get_layer("pooling")
    one = {
        "images": scenes.images[scene : scene + 1],
        "proposals": scenes.proposals[scene : scene + 1],
    }
    return layer, keras.Model(model.inputs, layer.input)(one)


def largest_digits(scenes):
    """Returns pairs (scene, proposal): proposals of large digits, each in a scene of its own.

    What is shown around them, MARGIN of their larger side more on all sides, is inside the scene.
    """
    labels, _ = targets(scenes)
    low, high = scenes.proposals[..., :2], scenes.proposals[..., 2:]
    middle, side = (low + high) / 2, np.max(high - low, axis=-1)
    room = np.minimum(middle, [WIDTH, HEIGHT] - middle).min(axis=-1)
    fits = (labels != BACKGROUND) & (room >= (0.5 + MARGIN) * side)
    size = np.where(fits, side, 0)
    largest = np.argsort(-size.max(axis=1), kind="stable")
    return [(scene, size[scene].argmax()) for scene in largest]


def _draw_box(axis, box, **options):
    size = box[2:] - box[:2]
    axis.add_patch(Rectangle(box[:2], *size, fill=False, **options))
