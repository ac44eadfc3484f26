"""The site's machinery: the reference has every public name, links hold, guides are kept."""

import pathlib
import re
import sys

import pytest

from architecture_test import CALLS, DOCUMENTED, PUBLIC

sys.path.append(str(pathlib.Path(__file__).parents[1] / "docs" / "site"))

import breaks
import guides
import offline
import repository

import reference

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = '''"""
Squares
=======

What squares are.
"""

numbers = [1, 2]
# %%
# They are printed
# ----------------
#
# With `tfd.ops.warp`.
print([each**2 for each in numbers])
# A comment in code.

# %%
# The end.
import matplotlib.pyplot as plt

print("10 %\\r20 %")
plt.plot(numbers)
'''


# The reference


def test_every_public_name_has_one_entry():
    names = [entry.rpartition(".")[2] for entry in reference.ENTRIES]
    assert sorted(names) == sorted({*PUBLIC, *DOCUMENTED, *CALLS})
    for entry, name in zip(reference.ENTRIES, names, strict=True):
        assert reference.member(entry) is PUBLIC[name]


def test_every_entry_stands_on_a_page_with_its_arguments_and_example():
    pages = reference.pages()
    text = "\n".join(pages.values())
    for entry in reference.ENTRIES:
        module, _, name = entry.rpartition(".")
        (head,) = re.findall(
            rf"^`+\{{py:(?:function\}} {re.escape(module)}\.|class\}} ){name}\(.*\)$", text, re.M
        )
        assert "<" not in head.replace("<lambda>", ""), head  # defaults that are objects
        assert f"`tfd.{entry.removeprefix('tf_deform.')}`" in pages["index"]
    assert text.count("**Example**") >= len(reference.ENTRIES)


def test_sections_of_a_docstring_become_lists_links_and_code():
    text = reference.markdown(
        """Returns a [x] of 2 * 3.

        Args:
            first, second: of `boxes`
                in pixels.
            **options: others.

        Returns:
            What
            is left.

        After that nothing is written, see docs/boxes.md.

        Source: He et al. (arXiv:1703.06870).

        Example:
            >>> 1 + 1
            2
        """
    )
    assert text == (
        "Returns a \\[x] of 2 \\* 3.\n\n"
        "**Arguments**\n\n`first`, `second`\n: of `boxes`\n  in pixels.\n\n"
        "`**options`\n: others.\n\n"
        "**Returns**\n\nWhat\nis left.\n\n"
        "After that nothing is written, see [docs/boxes.md](/boxes.md).\n\n"
        "**Source:** He et al. ([arXiv:1703.06870](https://arxiv.org/abs/1703.06870)).\n\n"
        "**Example**\n\n```pycon\n>>> 1 + 1\n2\n```"
    )


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("tfd.ops.warp", "tf_deform.ops.warp"),
        ("ops.warp", "tf_deform.ops.warp"),
        ("warp", None),
        ("RoIAlign", "tf_deform.layers.RoIAlign"),
        ("plot_taps", "tf_deform.visualization.plot_taps"),
        ("tfd.deformable(model, verbose=False)", "tf_deform.deformable"),
        ("deformable", None),
        ("tfd.layers.Missing", None),
        ("keras.layers.RoIAlign", None),
    ],
)
def test_names_in_running_text_are_found(code, name):
    assert reference.named(code) == name


# Links


def test_links_hold_on_the_site_as_in_the_repository():
    text = (
        "[a](boxes.md#x) [b](../CONTRIBUTING.md#releases) [c](../examples/serve.py) "
        "![d](images/a.png) [e](https://a.b) [f](#g) [h](../custom_ops/README.md)\n"
        "```\n[c](../examples/serve.py)\n```\n"
    )
    assert repository.rewritten(text, "docs", "serving") == (
        "[a](boxes.md#x) [b](project/contributing.md#releases) c "
        "![d](images/a.png) [e](https://a.b) [f](#g) [h](project/custom_ops.md)\n"
        "```\n[c](../examples/serve.py)\n```\n"
    )
    text = "![a](docs/images/a.png) [b](docs/boxes.md)"
    moved = repository.rewritten(text, "", "project/contributing")
    assert moved == "![a](../images/a.png) [b](../boxes.md)"


def test_what_a_page_loads_from_elsewhere_and_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top-1"></h1><a href="b.html#here">b</a><a href="https://a.b">c</a>'
        '<link rel="canonical" href="a.html"><img src="data:image/png;base64,"><script src="s.js">'
        "</script>"
    )
    (tmp_path / "b.html").write_text('<p id="here"><a href="a.html#top-1">a</a></p>')
    (tmp_path / "s.js").write_text("")
    (tmp_path / "s.css").write_text("a { background: url(s.png) } /* url(https://a.b) */")
    assert offline.faults(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">b</a><a href="c.html">c</a><script src="https://a.b/s.js"></script>'
        '<link rel="stylesheet" href="//a.b/s.css"><style>@import "https://a.b/t.css";</style>'
    )
    (tmp_path / "s.css").write_text("a { src: url('https://a.b/font.woff') }")
    assert sorted(offline.faults(tmp_path)) == [
        "a.html links to b.html#there, which has no such anchor",
        "a.html links to c.html, which is not there",
        "a.html loads //a.b/s.css",
        "a.html loads https://a.b/s.js",
        "a.html loads https://a.b/t.css",
        "b.html links to a.html#top-1, which has no such anchor",
        "s.css loads https://a.b/font.woff",
    ]


def test_names_in_tables_and_titles_break_between_their_words():
    names = "".join(f'<span class="pre">{name}</span>' for name in ("tf.nn.conv2d", "a_b", "1.5"))
    html = f"<h1>MultiScaleRoIAlign</h1><td>{names} 1 ± 2</td><p>{names}</p>"
    title, cell = "Multi|ScaleRoI|Align", names.replace("tf.nn.", "tf.|nn.|").replace("a_", "a_|")
    expected = f"<h1>{title}</h1><td>{cell} 1\xa0±\xa02</td><p>{names}</p>"
    assert breaks.broken(html) == expected.replace("|", "<wbr>")


def test_the_front_page_says_no_figure_that_readme_and_pages_do_not():
    sources = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(each.read_text() for each in sources if each.name != "index.md")
    figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", (ROOT / "docs" / "index.md").read_text())
    assert len(figures) >= 3
    assert [figure for figure in figures if figure not in text] == []


# Guides


@pytest.fixture
def guide(tmp_path, monkeypatch):
    monkeypatch.setattr(guides, "GUIDES", tmp_path)
    monkeypatch.setattr(guides, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", [])
    path = tmp_path / "squares.py"
    path.write_text(GUIDE)
    return path


def test_a_guide_is_text_and_code(guide):
    header, first, text, code, *_ = guides.blocks_of(guide)
    assert header.content.splitlines()[0] == "Squares" == guides.title_of(guide)
    assert first == guides.Block("code", "\nnumbers = [1, 2]", 7)
    assert text.content == "They are printed\n----------------\n\nWith `tfd.ops.warp`."
    assert code.content.endswith("# A comment in code.") and code.line == 14
    assert guides.using("numbers") == [guide] and guides.using("number") == []


def test_a_guide_is_kept_until_its_code_changes_and_a_quick_run_keeps_nothing(guide):
    guides.run(guide, quick=True)
    assert guides.kept(guide) is None
    guides.run(guide, quick=False)
    outputs = guides.kept(guide)
    assert outputs["printed"] == {"1": "[1, 4]", "2": "20 %"}
    assert outputs["figures"] == {"2": ["squares_1.png"]}
    assert (guides.OUTPUTS / "squares_1.png").stat().st_size > 1000
    guide.write_text(GUIDE.replace("The end.", "So it ends."))
    assert guides.kept(guide) == outputs
    guide.write_text(GUIDE.replace("[1, 2]", "[1, 3]"))
    assert guides.kept(guide) is None


def test_the_guides_committed_are_those_that_ran():
    assert [path.name for path in guides.paths() if guides.kept(path) is None] == []
