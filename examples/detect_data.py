"""Scenes of real handwritten digits pasted over real photographs, and proposals of boxes in them.

Both come with scikit-learn: its 1,797 digits of 8 x 8 pixels, and the photographs of a temple in
China and of a flower. Nothing is downloaded.
"""

import functools
from typing import NamedTuple

import numpy as np
from detect_boxes import decode, encode, iou
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

import tf_deform as tfd

HEIGHT, WIDTH = 96, 128
DIGITS = (2, 5)
SIZES = (14, 40)
"""Pixels of the longer side of a digit's box."""
BACKGROUND = 10
"""The class beside the ten digits."""
PROPOSALS = 32
JITTER = 1.2
"""Standard deviation of the deltas from a digit's box to the proposals around it."""
FOREGROUND_IOU = 0.5

PARTS = ("train", "test")


class Scenes(NamedTuple):
    """Images `[scenes, 96, 128, 3]` from 0 to 1, what is in them, and where to look for it."""

    images: np.ndarray
    boxes: list  # for each scene [digits, 4], in pixels
    labels: list  # for each scene [digits]
    proposals: np.ndarray  # [scenes, PROPOSALS, 4]


def make_scenes(part, count, seed):
    """Returns `count` Scenes of "train" or of "test", which share no digit and no photograph."""
    random = np.random.default_rng([seed, PARTS.index(part)])
    photos, (digits, classes) = photographs(part), split_digits(seed)[part]
    images, boxes, labels = zip(
        *(make_scene(photos, digits, classes, random) for _ in range(count)), strict=True
    )
    # Here all scenes have as many. Where they do not, the rows that are missing become NaN.
    proposals = tfd.boxes.pad([propose(each, random) for each in boxes], PROPOSALS).numpy()
    return Scenes(np.stack(images), list(boxes), list(labels), proposals.astype(np.float32))


def photographs(part):
    """Returns both photographs' left halves, to train on, or right halves, to test on."""
    halves = [np.split(photo, 2, axis=1) for photo in load_sample_images().images]
    return [pair[PARTS.index(part)] for pair in halves]


@functools.lru_cache(maxsize=1)
def split_digits(seed):
    """Returns {part: (digits `[digits, 8, 8]` from 0 to 255, labels)}: two thirds and one."""
    digits, labels = load_digits(return_X_y=True)
    digits = (digits.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        digits, labels, test_size=1 / 3, stratify=labels, random_state=seed
    )
    return {"train": (train, train_labels), "test": (test, test_labels)}


def make_scene(photos, digits, classes, random):
    """Returns an image `[96, 128, 3]`, boxes `[digits, 4]` and labels: 2 to 5 digits on a photo."""
    image = _crop(photos[random.integers(len(photos))], random)
    boxes, labels = np.zeros([0, 4]), []
    for _ in range(random.integers(DIGITS[0], DIGITS[1] + 1)):
        index = random.integers(len(digits))
        ink = _turned_and_scaled(digits[index], random)
        box = _free_place(*ink.shape, boxes, random)
        if box is not None:
            _paste(image, ink, box, random)
            boxes = np.concatenate([boxes, [box]])
            labels.append(classes[index])
    return (image / 255).astype(np.float32), boxes, np.array(labels)


def _crop(photo, random):
    """Returns a random part of the photograph, made up to twice smaller, as float `[96, 128, 3]`"""
    shrink = random.uniform(1, 2)
    height, width = shrink * HEIGHT, shrink * WIDTH
    y, x = random.uniform(0, photo.shape[0] - height), random.uniform(0, photo.shape[1] - width)
    crop = Image.fromarray(photo).resize(
        (WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
    )
    return np.asarray(crop, dtype=float)


def _turned_and_scaled(digit, random):
    """Returns `[height, width]` from 0 to 1: the ink, turned by up to 45 degrees, without margin"""
    cubic = Image.Resampling.BICUBIC
    large = Image.fromarray(np.pad(digit, 1)).resize((80, 80), cubic)
    turned = large.rotate(random.uniform(-45, 45), cubic, expand=True)
    turned = turned.crop(turned.point(lambda value: 255 * (value > 64)).getbbox())
    scale = random.uniform(*SIZES) / max(turned.size)
    size = [max(1, round(scale * side)) for side in turned.size]
    return np.asarray(turned.resize(size, Image.Resampling.BOX), dtype=float) / 255


def _free_place(height, width, boxes, random):
    """Returns a box of that size that overlaps none of the others, or None if it finds none."""
    for _ in range(200):
        x, y = random.integers(WIDTH - width + 1), random.integers(HEIGHT - height + 1)
        box = np.array([x, y, x + width, y + height], dtype=float)
        if not iou(box[None], boxes).any():
            return box
    return None


def _paste(image, ink, box, random):
    """Writes the ink into the image: bright where that is dark, dark where it is bright."""
    x, y, right, bottom = box.astype(int)
    patch = image[y:bottom, x:right]
    low, high = (150, 255) if patch.mean() < 128 else (0, 100)
    colour = random.uniform(low, high, 3)
    patch += ink[..., None] * (colour - patch)


def propose(boxes, random):
    """Returns `[PROPOSALS, 4]`: half of them boxes of digits, jittered, the others anywhere."""
    near = PROPOSALS // 2
    deltas = random.normal(0, JITTER, [near, 4])
    jittered = decode(deltas, boxes[np.arange(near) % len(boxes)])
    centre = random.uniform(0, [WIDTH, HEIGHT], [PROPOSALS - near, 2])
    size = random.uniform(*SIZES, [PROPOSALS - near, 2])
    anywhere = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return np.concatenate([jittered, anywhere])


def targets(scenes):
    """Returns what to predict of each proposal: labels `[scenes, proposals]`, deltas `[..., 4]`.

    A proposal is of the digit that it overlaps most, and background where that is too little.
    """
    labels = np.full(scenes.proposals.shape[:2], BACKGROUND)
    deltas = np.zeros(scenes.proposals.shape, np.float32)
    for scene, proposals in enumerate(scenes.proposals):
        overlap = iou(proposals, scenes.boxes[scene])
        digit, near = overlap.argmax(axis=1), overlap.max(axis=1) >= FOREGROUND_IOU
        labels[scene, near] = scenes.labels[scene][digit[near]]
        deltas[scene, near] = encode(scenes.boxes[scene][digit[near]], proposals[near])
    return labels, deltas
