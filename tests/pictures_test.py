"""The example that draws the pictures of docs/visualization.md."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def example():
    """The script's module, imported as the script imports its own."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("pictures")
    finally:
        sys.path.remove(str(ROOT / "examples"))


def test_the_script_draws_what_the_page_shows(example, tmp_path):
    example.main(["--quick", "--output", str(tmp_path)])
    shown = re.findall(r"\(images/(.*\.png)\)", (ROOT / "docs" / "visualization.md").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)
    for path in tmp_path.iterdir():
        assert tf.io.decode_png(path.read_bytes()).shape == (400, 400, 3)


def test_the_pictures_of_the_page_are_small():
    pictures = list((ROOT / "docs" / "images").glob("plot_*.png"))
    assert len(pictures) == 6
    assert max(path.stat().st_size for path in pictures) < 60_000
