"""The code of the pages in docs runs, top to bottom, and prints what they say.

boxes_test.py runs docs/boxes.md. The messages that docs/troubleshooting.md quotes are provoked here.
"""

import re
import warnings

import numpy as np
import pytest

import doc_code


def names(rng):
    """What pages take for granted: a few images with labels, and the weights of a network."""
    shapes = {
        "stem": [16, 3, 3, 3],
        "offset": [27, 16, 3, 3],
        "conv": [32, 16, 3, 3],
        "head": [10, 32],
    }
    state = {f"norm.{each}": np.ones([16]) for each in ("weight", "bias", "running_mean")}
    state["norm.running_var"] = np.ones([16])
    for name, shape in shapes.items():
        state |= {f"{name}.weight": rng.normal(size=shape), f"{name}.bias": np.ones(shape[:1])}
    images = rng.random([64, 32, 32, 1]).astype("float32")
    return {"state": state, "images": images, "labels": np.arange(64) % 10}


@pytest.mark.parametrize("page", ("coordinates", "migration", "training"))
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doc_code.blocks(f"{page}.md")
    assert len(found) >= 2
    given = names(rng)
    for code in found:
        doc_code.run(code, given)


def test_what_is_not_printed_is_found():
    doc_code.run("print(1 + 1)  # 2\n", {})
    with pytest.raises(AssertionError):
        doc_code.run("print(1 + 1)  # 3\n", {})


def test_the_blocks_that_need_pytorch_are_two():
    text = (doc_code.DOCS / "migration.md").read_text()
    assert len(re.findall(doc_code.PYTORCH, text)) == 2
