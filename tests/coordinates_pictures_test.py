"""The example that draws the pictures of docs/coordinates.md."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parent.parent
ROW = np.array([3.0, 1.0, 2.0, 4.0], "float32")


@pytest.fixture(scope="module")
def example():
    """The script's module, imported as the script imports its own."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("coordinates_pictures")
    finally:
        sys.path.remove(str(ROOT / "examples"))


def test_the_script_draws_what_the_page_shows(example, tmp_path):
    example.main(["--output", str(tmp_path)])
    text = (ROOT / "docs" / "coordinates.md").read_text()
    shown = re.findall(r"\(images/coordinates/(.*\.png)\)", text)
    drawn = list((tmp_path / "coordinates").iterdir())
    assert sorted(path.name for path in drawn) == sorted(shown)
    for path in drawn:
        _, width, channels = tf.io.decode_png(path.read_bytes()).shape
        assert (width, channels) == (800, 3)  # opaque
        assert path.stat().st_size < 60_000


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (lambda each, row, at: each._sampled(row, at, "zeros"), [0, 1.5, 1.5, 2, 0]),
        (lambda each, row, at: each._sampled(row, at, "border"), [3, 3, 1.5, 4, 4]),
        (lambda each, row, at: each._reflected(row, at, False), [2, 3, 1.5, 4, 2.5]),
        (lambda each, row, at: each._reflected(row, at, True), [1.5, 2, 1.5, 3, 1.25]),
        (lambda each, row, at: each._pooled(row, at), [0, 3, 1.5, 4, 0]),
        (lambda each, row, at: each._pooled_by_parts(row, at), [0, 3, 1.5, 4, 0]),
    ],
)
def test_the_curves_follow_the_rules_of_the_border(example, curve, expected):
    places = np.array([-1.5, -0.5, 1.5, 3.5, 4.75], "float32")
    np.testing.assert_allclose(curve(example, ROW, places), expected, atol=0.02)
