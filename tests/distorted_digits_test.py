"""The example that trains on distorted digits."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

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
def rotation(example):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("digits_rotation")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def digits(example):
    (images, labels), _ = example.digits_data.load("digits", seed=0)
    return images[:21], labels[:21]


@pytest.mark.parametrize(
    ("data", "sizes", "spread"),
    [("mnist-5k", (4000, 1000), (0, 0)), ("digits", (1198, 599), (6, 3))],
)
def test_the_split_keeps_each_digit_once_and_every_class_in_proportion(
    example, data, sizes, spread
):
    (train, train_labels), (test, test_labels) = example.digits_data.load(data, seed=3)
    assert (len(train), len(test)) == (len(train_labels), len(test_labels)) == sizes
    assert np.ptp(np.bincount(train_labels)) <= spread[0]
    assert np.ptp(np.bincount(test_labels)) <= spread[1]
    assert (train.min(), train.max(), test.min(), test.max()) == (0, 1, 0, 1)
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
    options = example.parse(["--data", "digits"])
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
    assert max(sizes) < 1.03 * min(sizes)


def test_the_script_trains_compares_serves_and_draws(example, tmp_path, monkeypatch, capsys):
    load = example.digits_data.load

    def load_few(name, seed):
        (train, train_labels), (test, test_labels) = load(name, seed)
        return (train[:96], train_labels[:96]), (test[:60], test_labels[:60])

    monkeypatch.setattr(example.digits_data, "load", load_few)
    example.main(["--quick", "--spline", "--animation", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Test error in percent" in printed and "Table 1" in printed
    assert "tf_deform cannot be imported here" in printed and "agree" in printed
    assert (tmp_path / "distorted_digits" / "saved_model.pb").is_file()
    assert (tmp_path / "distorted_digits.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "offsets_learning.gif") as animation:
        assert animation.n_frames > 2


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
    # Two test digits, which are misread in so many percent of their poses; three seeds.
    example.print_gains(
        {
            "CNN": {"RTS": [[1.0, 3.0], [4.0, 4.0], [0.0, 6.0]]},
            "ST-CNN": {"RTS": [[0.0, 2.0], [2.9, 2.9], [2.0, 2.0]]},  # gains 1.0, 1.1, 1.0
            "Deformable CNN": {"RTS": [[2.0, 3.0], [3.0, 3.0], [3.0, 3.0]]},  # -0.5, 1.0, 0.0
        }
    )
    transformer, deformable = capsys.readouterr().out.split("Deformable CNN")
    assert "1.03 ± 0.03" in transformer and "31.0" in transformer
    assert "0.17 ± 0.44" in deformable and "0.4" in deformable.splitlines()[1]


def test_gains_of_one_seed_are_paired_by_test_digit(example, capsys):
    errors = {"CNN": [[10.0, 20.0, 0.0]], "ST-CNN": [[0.0, 20.0, 10.0]]}  # gains 10, 0, -10
    example.print_gains({name: {"R": each} for name, each in errors.items()})
    assert "0.00 ± 5.77" in capsys.readouterr().out


def test_the_study_of_rotation_sees_whether_a_transformer_turns_back(rotation, digits):
    class Layer:
        transformation = "similarity"

        def predict_parameters(self, images):
            angles = np.random.default_rng(0).uniform(-np.pi / 2, np.pi / 2, len(images))
            return np.stack([0 * angles, self.factor * angles], axis=1)

    layer, upright = Layer(), np.zeros([1000, 42, 42, 1], "float32")
    labels = np.arange(1000) % 10
    layer.factor = -1
    assert rotation.spread(layer, upright, labels) < 0.1
    layer.factor = 0  # of a uniform distribution: sin(90°) / (pi / 2) is the mean length
    expected = np.degrees(np.sqrt(-2 * np.log(2 / np.pi)))
    assert abs(rotation.spread(layer, upright, labels) - expected) < 3


def test_the_study_of_rotation_prints_a_line_for_each_variant(rotation, monkeypatch, capsys):
    def load_few(name, seed):
        (train, train_labels), (test, test_labels) = load(name, seed)
        return (train[:40], train_labels[:40]), (test[:40], test_labels[:40])

    load = rotation.digits_data.load
    monkeypatch.setattr(rotation.digits_data, "load", load_few)
    names = ["the same, upright digits", "similarity instead of affine"]
    rotation.main(["--only", *names, "--seeds", "2"])
    lines = capsys.readouterr().out.splitlines()
    upright, similarity = (line for line in lines if line.startswith(tuple(names)))
    assert upright.startswith(names[0]) and upright.count("±") == 2
    assert similarity.startswith(names[1]) and similarity.count("±") == 3
