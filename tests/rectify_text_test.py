"""The example that rectifies curved text."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example():
    """The script's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("rectify_text")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def data(example):
    return example.text_data


@pytest.fixture(scope="module")
def text_models(example):
    return sys.modules["text_models"]


def test_no_word_is_both_trained_and_tested_on(data):
    train, test = data.make_words("train", 2000), data.make_words("test", 500)
    assert (len(train), len(test)) == (2000, 500) and not set(train) & set(test)
    assert {len(word) for word in train} == {len(word) for word in test} == {4, 5}
    assert data.make_words("train", 2000) == train


def test_codes_are_those_of_the_letters(data):
    codes = data.encode(["ABCZ", "ZZYXA"])
    np.testing.assert_array_equal(codes, [[1, 2, 3, 26, 0], [26, 26, 25, 24, 1]])
    assert data.decode(codes) == ["ABCZ", "ZZYXA"]


def test_a_word_is_drawn_in_the_middle_and_as_wide_as_told(data):
    words = data.make_words("train", 40)
    strips, widths = data.draw_words(words)
    assert strips.shape == (40, 16, 60, 1) and strips.min() == 0 and strips.max() == 1
    for strip, width in zip(strips[..., 0], widths, strict=True):
        rows, columns = np.nonzero(strip > 0.1)
        assert width - 2 <= np.ptp(columns) + 1 <= width
        assert abs(columns.min() + columns.max() - 59) <= 3
        assert abs(rows.min() + rows.max() - 15) <= 2


@pytest.mark.parametrize("degrees", [-150, -40, 0, 75, 150])
def test_a_letter_is_seen_where_an_arc_puts_it(data, degrees):
    width, bend = 45.0, np.radians(degrees)
    pose = {"turn": 0.15, "scale": 1.1, "x": 1.5, "y": -2.0}
    turn, scale, *shift = pose.values()
    one = np.ones([1, 1, 1], np.float32)
    given = {name: number * one for name, number in pose.items()}
    grid = data.arc_grid(width * one, np.float32(bend) * one, **given)[0].numpy()
    for along, across in ((-20, 0), (-7.5, 3), (0, -4), (12, 0), (22, 2)):
        # From the middle of the arc, that of its height too, to the right and down
        place = np.array([along, across], float)
        if degrees:
            radius = width / bend
            angle = along / radius
            fall = radius * (1 - np.cos(bend / 2)) / 2
            place = (radius - across) * np.array([np.sin(angle), -np.cos(angle)])
            place += [0, radius - fall]
        turned = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]] @ place
        right, down = scale * turned + shift + [31.5, 15.5]
        found = [map_coordinates(grid[..., axis], [[down], [right]], order=1)[0] for axis in (0, 1)]
        np.testing.assert_allclose(found * np.array([30, 8]), [along, across], atol=0.1)


def test_images_are_told_by_the_seed_alone(data):
    drawn = data.draw_words(data.make_words("train", 9))
    (once, bends), (again, _), (other, other_bends) = (
        data.photograph(*drawn, seed) for seed in ((2, 3), (2, 3), (2, 4))
    )
    assert once.shape == (9, 32, 64, 1) and np.abs(bends).max() < np.radians(150)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max(axis=(1, 2, 3)).min() > 0.2
    assert np.abs(bends - other_bends).min() > 0


def test_the_readers_are_of_about_equal_size(example):
    sizes = [example.build_model(name).count_params() for name in example.READERS]
    assert max(sizes) < 1.02 * min(sizes)


def test_the_rectifier_starts_as_the_identity_and_samples_at_its_control_points(
    text_models, data, rng
):
    model = text_models.build_model("rectified")
    down, right = np.indices([32, 64], np.float32)
    images = np.stack([right, down])[..., None]  # of which a sample says where it was taken
    rectified, points = text_models.rectify(model, images)
    np.testing.assert_allclose(rectified, images, atol=1e-3)
    expected = (text_models.EDGES + 1) * [32, 16] - 0.5
    np.testing.assert_allclose(points, [expected, expected], atol=1e-4)

    moves = rng.uniform(-0.15, 0.05, [10, 2]) * np.sign(text_models.EDGES)
    model.get_layer("rectifier").predictor.bias.assign(moves.ravel())
    rectified, points = text_models.rectify(model, images)
    right, down = expected.T
    for axis, image in enumerate(rectified[..., 0]):
        found = map_coordinates(image, [down, right], order=1)
        np.testing.assert_allclose(found, points[axis, :, axis], atol=0.1)
    assert np.abs(points[0] - expected).max() > 1


def test_columns_in_a_row_with_one_letter_are_read_as_one(example):
    class Model:
        def predict(self, images, **options):
            return np.eye(27)[[[3, 3, 0, 3, 1, 1, 0, 0], [0, 0, 2, 26, 26, 2, 2, 0]]]

    assert example.read(Model(), None) == ["CCA", "BZB"]


def test_accuracies_are_printed_by_bend(example, capsys):
    right = {"plain": np.array([True, False, False, True]), "rectified": np.ones(4, bool)}
    models = {name: example.build_model(name) for name in right}
    example.print_accuracies(right, np.array([10.0, 49, 50, 120]), models)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows[0][:5] == ["plain", "50.0", "0.0", "100.0", "50.0"]
    assert rows[1][:5] == ["rectified", "100.0", "100.0", "100.0", "100.0"]


def test_the_script_trains_compares_and_draws(example, tmp_path, capsys):
    example.main(["--words", "80", "--tests", "12", "--steps", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    table = printed[printed.index("Words read without a mistake in percent, of 12") :]
    for name in example.READERS:
        assert any(line.strip().startswith(name) for line in table.splitlines())
    assert (tmp_path / "rectify_text.png").read_bytes().startswith(b"\x89PNG")
