"""The example that trains on distorted digits."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example():
    """The script's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("distorted_digits")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def digits(example):
    (images, labels), _ = example.digits_data.load("digits", seed=0)
    return images[:21], labels[:21]


def test_the_split_keeps_each_digit_once_and_every_class_in_proportion(example):
    (train, train_labels), (test, test_labels) = example.digits_data.load("digits", seed=3)
    assert (len(train), len(test)) == (len(train_labels), len(test_labels)) == (1198, 599)
    assert np.ptp(np.bincount(train_labels)) <= 6 and np.ptp(np.bincount(test_labels)) <= 3
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


@pytest.mark.parametrize("kind", ["R", "RTS", "P", "E"])
def test_distortions_are_told_by_the_seed_alone(example, digits, kind):
    distort = example.digits_data.distort
    once, again, other = (distort(digits[0], kind, seed) for seed in (5, 5, 6))
    assert once.shape == (21, 32, 32, 1) and once.dtype == np.float32
    assert once.min() >= 0 and once.max() <= 1
    np.testing.assert_array_equal(once, again)
    assert np.mean(np.abs(once - other).max(axis=(1, 2, 3)) > 0.1) > 0.9


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("R", 0.97, 1.03), ("RTS", 0.45, 1.5), ("E", 0.4, 1.2)]
)
def test_distortions_scale_the_ink_as_the_paper_says(example, digits, kind, low, high):
    # An area scales with the square of 0.7 to 1.2, or of 0.75 to 1; what leaves the image is lost.
    distorted = example.digits_data.distort(digits[0], kind, 5)
    ink = distorted.sum(axis=(1, 2, 3)) / digits[0].sum(axis=(1, 2, 3))
    assert low < ink.min() and ink.max() < high


def test_homographies_move_the_corners_where_they_were_drawn(example, rng):
    corners = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])
    moved = corners + rng.normal(0, 0.2, [5, 4, 2])
    theta = example.digits_data._homographies(moved, corners)
    x, y, w = np.einsum("nij,npj->inp", theta, np.concatenate([moved, np.ones([5, 4, 1])], axis=2))
    np.testing.assert_allclose(
        np.stack([x / w, y / w], axis=-1), np.stack([corners] * 5), atol=1e-9
    )


def test_each_distorted_digit_keeps_its_label(example):
    options = example.parse([])
    options.epochs, options.draws = 2, 1
    (images, labels), (test_images, test_labels) = example.datasets(options, "R", 0)
    (digits, digit_labels), (_, undistorted_labels) = example.digits_data.load("digits", 0)
    assert (len(images), len(test_images)) == (2 * 1198, 5990)
    np.testing.assert_array_equal(test_labels, np.tile(undistorted_labels, 10))
    # A rotation keeps the ink, by which most digits can be told apart from those of other classes.
    for half in (slice(0, 1198), slice(1198, None)):
        ink, classes = images[half].sum(axis=(1, 2, 3)), labels[half]
        for label in range(10):
            expected = np.sort(digits[digit_labels == label].sum(axis=(1, 2, 3)))
            np.testing.assert_allclose(np.sort(ink[classes == label]), expected, rtol=0.02)


def test_the_models_are_of_about_equal_size(example):
    sizes = [example.build_model(name).count_params() for name in example.WIDTHS]
    assert max(sizes) < 1.01 * min(sizes)


def test_the_script_trains_compares_serves_and_draws(example, tmp_path, monkeypatch, capsys):
    load = example.digits_data.load

    def load_few(name, seed):
        (train, train_labels), (test, test_labels) = load(name, seed)
        return (train[:64], train_labels[:64]), (test[:60], test_labels[:60])

    monkeypatch.setattr(example.digits_data, "load", load_few)
    example.main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Test error in percent" in printed and "Table 1" in printed
    assert "tf_deform cannot be imported here" in printed and "agree" in printed
    assert (tmp_path / "distorted_digits" / "saved_model.pb").is_file()
    assert (tmp_path / "distorted_digits.png").read_bytes().startswith(b"\x89PNG")


def test_without_mnist_the_script_says_so_in_one_line(example, tmp_path, monkeypatch):
    def fail():
        raise Exception("URL fetch failure on mnist.npz: None -- unreachable")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(SystemExit) as stopped:
        example.main(["--data", "mnist", "--output", str(tmp_path)])
    message = stopped.value.code  # a text: printed to stderr, exit status 1
    assert "MNIST cannot be downloaded" in message and "\n" not in message
    assert not list(tmp_path.iterdir())


def test_gains_are_paired_by_seed(example, capsys):
    example.print_gains(
        {
            "CNN": {"RTS": [2.0, 4.0, 3.0]},
            "ST-CNN": {"RTS": [1.0, 2.9, 2.0]},  # gains 1.0, 1.1, 1.0
            "Deformable CNN": {"RTS": [2.5, 3.0, 3.0]},  # gains -0.5, 1.0, 0.0
        }
    )
    transformer, deformable = capsys.readouterr().out.split("Deformable CNN")
    assert "1.03 ± 0.03" in transformer and "NOT" not in transformer
    assert "0.17 ± 0.44" in deformable and "NOT more" in deformable
