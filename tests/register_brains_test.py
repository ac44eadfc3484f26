"""The example that registers brains, on small volumes of our own: nilearn and dipy stay away."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZE = (16, 24, 8)


@pytest.fixture(scope="module")
def example():
    """The script's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("register_brains")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def data(example):
    return example.brains_data


@pytest.fixture(scope="module")
def brain():
    """A ball of white matter in a shell of grey matter, `[1, 16, 24, 8, 3]`."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in SIZE), indexing="ij"))
    radius = np.linalg.norm(places, axis=0)
    white = np.clip(3 - 6 * radius, 0, 1)
    grey = np.clip(5 - 6 * radius, 0, 1) - white
    return np.stack([0.9 * white + 0.6 * grey, grey, white], axis=-1).astype(np.float32)[None]


def test_a_reduced_volume_is_of_means_of_cubes_about_the_middle_of_what_is_there(data, rng):
    maps = np.zeros([197, 233, 189, 2], np.float32)
    # Begins below the border of the cubes on one axis, and ends before that of the volume.
    maps[20:172, 27:207, 0:156] = rng.uniform(0.5, 1, [152, 180, 156, 2])
    reduced = data.reduce(maps)
    assert reduced.shape == (48, 56, 48, 2)
    # The middles are at 96, 117 and 78: cubes begin at 96 - 96, 117 - 112 and 78 - 96.
    for place in ((20, 30, 25), (40, 10, 5), (5, 6, 4)):
        start = 4 * np.array(place) + (0, 5, -18)
        low, high = np.maximum(start, 0), start + 4
        cube = maps[tuple(map(slice, low, high))]
        np.testing.assert_allclose(reduced[place], cube.sum(axis=(0, 1, 2)) / 64, rtol=1e-5)


def test_the_moving_brain_warped_by_the_flow_is_the_fixed_one(data, brain):
    pair = data.make_pair(brain, "test", 3)
    tissues = slice(1, 3)
    expected = pair.fixed[..., tissues]
    before, after = (
        float(tf.reduce_mean(tf.abs(each[..., tissues] - expected)))
        for each in (pair.moving, tfd.ops.warp(pair.moving, pair.flow))
    )
    assert after < before / 2  # a brain of few voxels, and one is interpolated twice


def test_pairs_are_told_by_their_part_and_number_alone(data, brain):
    once, again = (data.make_pair(brain, "train", 5) for _ in range(2))
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, two)
    for different in (data.make_pair(brain, "train", 6), data.make_pair(brain, "test", 5)):
        for one, two in zip(once, different, strict=True):
            assert np.mean(np.abs(one - two)) > 0.01


def test_true_flows_do_not_fold_and_reach_as_far_as_they_say(data):
    flows = tf.concat([data.smooth_flow(SIZE, (7, seed)) for seed in range(30)], axis=0)
    assert np.min(tfd.ops.jacobian_determinant(flows)) > 0
    reach = np.sqrt(np.mean(np.sum(np.square(flows), axis=-1)))
    assert reach == pytest.approx(data.REACH, rel=0.2)


def test_what_is_measured_is_that_computed_by_hand(example, data, brain):
    pair = data.make_pair(brain, "test", 0)
    grey, white, error, folded = example.measure(pair, pair.flow)
    assert min(grey, white) > 0.8 and error == 0 and folded == 0

    mirrored = np.zeros([1, *SIZE, 3], np.float32)
    mirrored[..., 1] = -2.0 * np.arange(24)[:, None]  # every voxel of the second axis folds
    grey, white, error, folded = example.measure(pair, mirrored)
    inside = pair.fixed.numpy()[0, ..., 1:].sum(axis=-1) > 0.5
    distances = np.sqrt(((mirrored - pair.flow.numpy())[0][inside] ** 2).sum(axis=-1))
    assert error == pytest.approx(4 * distances.mean(), rel=1e-5) and folded == 100


def test_dice_is_that_computed_by_hand(example):
    first = np.array([[0.9, 0.1], [0.9, 0.9], [0.2, 0.6], [0.8, 0.7]])
    second = np.array([[0.9, 0.9], [0.1, 0.9], [0.2, 0.1], [0.8, 0.8]])
    expected = [2 * 2 / (3 + 2), 2 * 2 / (3 + 3)]
    np.testing.assert_allclose(example.dice(first, second), expected)


def test_matches_are_the_products_with_all_neighbours(example, rng):
    first, second = rng.normal(size=[2, 2, 4, 3, 5, 6]).astype(np.float32)
    matches = sys.modules["brains_model"].Matches()(first, second).numpy()
    padded = np.pad(second, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
    for z, y, x in ((0, 0, 0), (2, 1, 3), (3, 2, 4)):
        around = padded[:, z : z + 3, y : y + 3, x : x + 3].reshape(2, 27, 6)
        expected = np.einsum("bnc,bc->bn", around, first[:, z, y, x]) / 6
        np.testing.assert_allclose(matches[:, z, y, x], expected, atol=1e-5)


def test_the_script_trains_registers_compares_serves_and_draws(
    example, data, brain, tmp_path, monkeypatch, capsys
):
    def make_still():
        return lambda moving, fixed: tf.zeros([*moving.shape[:-1], 3])

    monkeypatch.setattr(data, "load_brain", lambda: brain)
    monkeypatch.setattr(example, "make_syn", make_still)  # dipy's place
    example.main(["--steps", "3", "--pairs", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = {
        name: [float(cell) for cell in line.removeprefix(name).split()]
        for line in map(str.strip, printed.splitlines())
        for name in ("before", "network", "SyN of dipy", "true flow")
        if line.startswith(name)
    }
    assert rows["SyN of dipy"][:4] == rows["before"] and len(rows["network"]) == 5
    assert rows["true flow"][2:] == [0, 0] and rows["true flow"][0] > rows["before"][0]
    assert "tf_deform cannot be imported here" in printed and "agrees" in printed
    assert (tmp_path / "register_brains" / "saved_model.pb").is_file()
    assert (tmp_path / "register_brains.png").read_bytes().startswith(b"\x89PNG")


def test_the_untrained_model_leaves_the_moving_volume_where_it_is(example, brain):
    model = example.build_model(SIZE)
    moving, fixed = brain[..., :1], brain[:, ::-1, ..., :1]
    outputs = model({"moving": moving, "fixed": fixed})
    np.testing.assert_array_equal(outputs["flow"], np.zeros([1, *SIZE, 3]))
    np.testing.assert_allclose(outputs["moved"], moving, atol=1e-6)


def test_without_nilearn_or_dipy_the_script_says_so_in_one_line(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dipy", None)
    with pytest.raises(SystemExit) as stopped:
        example.main(["--output", str(tmp_path)])
    message = stopped.value.code  # a text: printed to stderr, exit status 1
    assert "dipy" in message and "tf_deform[register]" in message and "\n" not in message
    assert not list(tmp_path.iterdir())
