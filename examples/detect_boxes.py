"""Boxes `[boxes, 4]` as (x_min, y_min, x_max, y_max): overlap, coding, average precision."""

import numpy as np

DELTA_SCALE = np.array([0.1, 0.1, 0.2, 0.2])
"""What a delta of 1 means: a share of the box's size, twice, and of its logarithm, twice."""


def iou(boxes, others):
    """Returns `[boxes, others]`: the intersection of each two boxes over their union."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=2)
    union = _area(boxes)[:, None] + _area(others)[None] - intersection
    return intersection / union


def _area(boxes):
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def encode(boxes, proposals):
    """Returns `[boxes, 4]`, the deltas (x, y, width, height) that make boxes of proposals.

    Source: Girshick et al., "Rich feature hierarchies" (arXiv:1311.2524, appendix C).
    """
    centre, size = _centre_and_size(boxes)
    from_centre, from_size = _centre_and_size(proposals)
    shift = (centre - from_centre) / from_size
    return np.concatenate([shift, np.log(size / from_size)], axis=-1) / DELTA_SCALE


def decode(deltas, proposals):
    """Returns the boxes `[boxes, 4]` that `encode` turned into these deltas."""
    deltas = deltas * DELTA_SCALE
    centre, size = _centre_and_size(proposals)
    centre = centre + deltas[..., :2] * size
    size = size * np.exp(deltas[..., 2:])
    return np.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def _centre_and_size(boxes):
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def mean_average_precision(detections, truths, threshold):
    """Returns the mean of the average precisions of the classes that occur.

    Args:
        detections: for each scene (boxes `[found, 4]`, scores `[found]`, labels `[found]`).
        truths: for each scene (boxes `[digits, 4]`, labels `[digits]`).
        threshold: the IoU from which on a box counts as found.
    """
    classes = np.unique(np.concatenate([labels for _, labels in truths]))
    return np.mean(
        [
            average_precision(
                [(boxes[of == label], scores[of == label]) for boxes, scores, of in detections],
                [boxes[of == label] for boxes, of in truths],
                threshold,
            )
            for label in classes
        ]
    )


def average_precision(detections, truths, threshold):
    """Returns the area under one class's curve of precision over recall, all points interpolated.

    In the order of their scores detections take the box not yet taken that they overlap most; those
    that overlap none by the threshold are false. The precision at a recall is the greatest at that
    recall or any above.

    Args:
        detections: for each scene (boxes `[found, 4]`, scores `[found]`).
        truths: for each scene boxes `[digits, 4]`.
        threshold: IoU.
    """
    ranked = [
        (score, scene, box)
        for scene, (boxes, scores) in enumerate(detections)
        for box, score in zip(boxes, scores, strict=True)
    ]
    ranked.sort(key=lambda detection: -detection[0])
    free = [np.ones(len(boxes), bool) for boxes in truths]
    hits = np.zeros(len(ranked))
    for rank, (_, scene, box) in enumerate(ranked):
        if free[scene].any():
            overlap = np.where(free[scene], iou(box[None], truths[scene])[0], -1)
            best = overlap.argmax()
            if overlap[best] >= threshold:
                hits[rank] = 1
                free[scene][best] = False
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    return np.sum(hits * interpolated) / sum(map(len, truths))
