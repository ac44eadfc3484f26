"""docs/speed.md and README's figures are what benchmarks/results hold."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import speed

ROOT = speed.ROOT


@pytest.mark.parametrize("page", speed.PAGES)
def test_the_page_is_what_the_results_render_to(page):
    text = (ROOT / page).read_text()
    assert len(speed.BLOCK.findall(text)) >= 1
    assert text == speed.render(text)


def test_every_table_of_results_has_its_block():
    blocks = {name for _, name, _ in speed.BLOCK.findall((ROOT / "docs/speed.md").read_text())}
    assert blocks == {
        *("summary", "convolution", "depthwise", "transformer", "regions", "attention"),
        *("portable_convolution", "portable_transformer"),
    }
