"""The example that detects digits in photographs."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example():
    """The script's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("detect_digits")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def boxes_module(example):
    return sys.modules["detect_boxes"]


def test_boxes_enclose_the_pasted_digits_tightly(example):
    # On photographs of one grey every pixel that is not grey belongs to a digit.
    data = example.detect_data
    grey = [np.full([427, 320, 3], 90, np.uint8)]
    digits, labels = data.split_digits(0)["train"]
    random = np.random.default_rng(7)
    for _ in range(10):
        image, boxes, found = data.make_scene(grey, digits, labels, random)
        assert image.shape == (96, 128, 3) and 2 <= len(boxes) == len(found) <= 5
        ink = np.abs(image - 90 / 255).max(axis=2) > 0.02
        for x, y, right, bottom in boxes.astype(int):
            assert 14 <= max(right - x, bottom - y) <= 40
            rows, columns = np.nonzero(ink[y:bottom, x:right])
            assert rows.min() <= 1 and columns.min() <= 1
            assert rows.max() >= bottom - y - 2 and columns.max() >= right - x - 2
            ink[y:bottom, x:right] = False
        assert not ink.any()


def test_scenes_are_told_by_the_seed_and_the_part_alone(example):
    make = example.detect_data.make_scenes
    once, again = make("train", 3, 5), make("train", 3, 5)
    for one, two in zip(once, again, strict=True):
        for mine, same in zip(one, two, strict=True):
            np.testing.assert_array_equal(mine, same)
    for different in (make("train", 3, 6), make("test", 3, 5)):
        assert np.abs(once.images - different.images).max(axis=(1, 2, 3)).min() > 0.1


def test_no_digit_and_no_part_of_a_photograph_is_both_trained_and_tested_on(example):
    parts = example.detect_data.split_digits(3)
    (train, train_labels), (test, test_labels) = parts["train"], parts["test"]
    assert (len(train), len(test)) == (len(train_labels), len(test_labels)) == (1198, 599)
    seen = {digit.tobytes() for digit in train}
    assert not any(digit.tobytes() in seen for digit in test)

    left, right = (example.detect_data.photographs(part) for part in ("train", "test"))
    photographs = example.detect_data.load_sample_images().images
    for *halves, whole in zip(left, right, photographs, strict=True):
        np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_scenes_show_the_digits_of_their_part(example, monkeypatch):
    digits = np.full([4, 8, 8], 200, np.uint8)
    split = {"train": (digits, np.full(4, 3)), "test": (digits, np.full(4, 7))}
    monkeypatch.setattr(example.detect_data, "split_digits", lambda seed: split)
    for part, label in (("train", 3), ("test", 7)):
        scenes = example.detect_data.make_scenes(part, 4, 0)
        assert set(np.concatenate(scenes.labels)) == {label}


def test_proposals_near_a_digit_are_of_its_class_and_deltas_lead_to_its_box(example, boxes_module):
    data = example.detect_data
    scenes = data.make_scenes("train", 6, 0)
    labels, deltas = data.targets(scenes)
    refined = boxes_module.decode(deltas, scenes.proposals)
    assert 0.1 < np.mean(labels != 10) < 0.6
    for scene, (boxes, classes) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        for proposal, label in enumerate(labels[scene]):
            overlap = boxes_module.iou(scenes.proposals[scene, proposal][None], boxes)[0]
            assert (label == 10) == (overlap.max() < 0.5)
            if label != 10:
                assert label == classes[overlap.argmax()]
                box = boxes[overlap.argmax()]
                np.testing.assert_allclose(refined[scene, proposal], box, atol=1e-3)


def test_the_overlap_of_boxes_is_that_computed_by_hand(boxes_module):
    box = np.array([[1.0, 2.0, 5.0, 4.0]])  # 4 x 2
    others = np.array([[3.0, 3.0, 6.0, 7.0], [5.0, 2.0, 6.0, 4.0], [1.0, 2.0, 5.0, 4.0]])
    np.testing.assert_allclose(boxes_module.iou(box, others), [[2 / (8 + 12 - 2), 0, 1]])


def test_decoding_inverts_encoding(boxes_module, rng):
    boxes, proposals = (
        np.concatenate([low, low + rng.uniform(1, 40, [7, 2])], axis=1)
        for low in rng.uniform(-5, 90, [2, 7, 2])
    )
    deltas = boxes_module.encode(boxes, proposals)
    np.testing.assert_allclose(boxes_module.decode(deltas, proposals), boxes)
    # A tenth of 20 pixels to the right, and exp(0.2) as high
    moved = boxes_module.decode(np.array([1.0, 0, 0, 1]), np.array([10.0, 10, 30, 20]))
    high = 5 * np.exp(0.2)
    np.testing.assert_allclose(moved, [12, 15 - high, 32, 15 + high])


FIRST, SECOND = np.array([0.0, 0, 10, 10]), np.array([20.0, 20, 30, 30])
MISSED, FAR = np.array([40.0, 40, 50, 50]), np.array([70.0, 70, 80, 80])


def test_average_precision_is_that_computed_by_hand(boxes_module):
    # In the order of scores: a hit, the same digit again, a false one, two hits; one is not found.
    truths = [np.stack([FIRST, SECOND]), np.stack([FIRST, MISSED])]
    detections = [
        (np.stack([SECOND, FIRST, FIRST + 1]), np.array([0.6, 0.9, 0.8])),
        (np.stack([FAR, FIRST]), np.array([0.7, 0.5])),
    ]
    # Precision at the hits is 1, 2/4 and 3/5; interpolated 1, 3/5 and 3/5.
    expected = (1 + 3 / 5 + 3 / 5) / 4
    assert boxes_module.average_precision(detections, truths, 0.5) == pytest.approx(expected)


def test_a_digit_counts_as_found_from_the_threshold_on(boxes_module):
    shifted = FIRST + np.array([2, 0, 2, 0])  # IoU 80 / 120
    for threshold, expected in ((0.5, 1), (0.66, 1), (0.67, 0)):
        detections = [(shifted[None], np.array([0.9]))]
        assert boxes_module.average_precision(detections, [FIRST[None]], threshold) == expected


def test_the_mean_is_over_the_classes_that_occur(boxes_module):
    truths = [(np.stack([FIRST, SECOND]), np.array([3, 7]))]
    # A 3 as it should be, the 7 taken for a 3 too, and a 5 where there is none
    detections = [(np.stack([FIRST, SECOND, FAR]), np.array([0.9, 0.8, 0.7]), np.array([3, 3, 5]))]
    assert boxes_module.mean_average_precision(detections, truths, 0.5) == pytest.approx(0.5)


def test_the_script_trains_compares_exports_and_draws(example, tmp_path, capsys):
    arguments = ["--seeds", "1", "--scenes", "16", "--epochs", "1", "--output", str(tmp_path)]
    example.main(arguments)
    printed = capsys.readouterr().out
    table = printed[printed.index("Mean average precision in percent, 1 seed(s)") :]
    for name in ("RoIAlign", "DeformableRoIPooling", "DeformablePSRoIPooling"):
        row = next(line.split() for line in table.splitlines() if line.strip().startswith(name))
        assert len(row) == 4 and all(0 <= float(cell) <= 100 for cell in row[1:3])
    assert (tmp_path / "detect_digits.png").read_bytes().startswith(b"\x89PNG")

    served = tf.saved_model.load(tmp_path / "detect_digits").signatures["serving_default"]
    scenes = example.detect_data.make_scenes("test", 2, 0)
    inputs = {name: tf.constant(value) for name, value in example.inputs_of(scenes).items()}
    outputs = served(**inputs)
    assert outputs["deltas"].shape == (2, 32, 4)
    np.testing.assert_allclose(outputs["scores"].numpy().sum(axis=2), np.ones([2, 32]), atol=1e-5)


def test_the_bins_drawn_are_those_pooled(example):
    # Of features that are their own position a bin pools where its middle lies.
    models = sys.modules["detect_models"]
    model = models.build_model("DeformableRoIPooling")
    layer = model.get_layer("pooling")
    # Alone it decides on the offsets: their network's last kernel starts at zero.
    bias = np.random.default_rng(3).normal(0, 1, layer.predictor.bias.shape)
    layer.predictor.bias.assign(bias)
    images = np.zeros([2, 96, 128, 3], np.float32)
    proposals = np.float32([[[40, 30, 80, 60]], [[50, 20, 90, 60]]])
    bins = models.bins_of(model, {"images": images, "proposals": proposals})

    y, x = np.meshgrid(np.arange(24) * 4 + 2, np.arange(32) * 4 + 2, indexing="ij")
    positions = np.zeros([2, 24, 32, 64], np.float32)
    positions[..., :2] = np.stack([x, y], axis=-1)
    pooled = layer(positions, proposals).numpy()[..., :2]
    middle = (bins[..., :2] + bins[..., 2:]) / 2
    np.testing.assert_allclose(pooled, middle, atol=1e-3)
