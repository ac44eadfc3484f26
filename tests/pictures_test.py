"""The example that draws a picture of each layer."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import tensorflow as tf

import tf_deform as tfd

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "images" / "layers"


@pytest.fixture(scope="module")
def example():
    """The script's module, imported as the script imports its own."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("pictures")
    finally:
        sys.path.remove(str(ROOT / "examples"))


def test_the_script_draws_every_layer(example, tmp_path):
    example.main(["--quick", "--output", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(tfd.layers.__all__)
    for path in tmp_path.iterdir():
        assert tf.io.decode_png(path.read_bytes()).shape == (480, 640, 3)


def test_every_layer_has_a_small_picture():
    pictures = list(PICTURES.iterdir())
    assert sorted(path.name for path in pictures) == sorted(
        f"{name}.png" for name in tfd.layers.__all__
    )
    assert max(path.stat().st_size for path in pictures) < 120_000
    assert sum(path.stat().st_size for path in pictures) < 1_200_000


def test_the_page_shows_every_layer():
    page = (ROOT / "docs" / "visualization.md").read_text()
    shown = re.findall(r"!\[[^]]+\]\(images/layers/(\w+)\.png\)", page)
    assert sorted(shown) == sorted(tfd.layers.__all__)
