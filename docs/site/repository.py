"""Links between pages and files that hold in the repository as well as on the site."""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import TYPE_CHECKING

import reference

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Pages of the site that stand elsewhere in the repository.
PROJECT = {
    "CONTRIBUTING.md": "project/contributing",
    "CHANGELOG.md": "project/changelog",
    "custom_ops/README.md": "project/custom_ops",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)


def rewritten(text: str, folder: str, docname: str) -> str:
    """Returns Markdown of a folder of the repository with links that hold on a page of the site.

    A link to a file that is no page of the site becomes plain text.
    """
    here = posixpath.dirname(f"docs/{docname}")

    def link(match: re.Match) -> str:
        picture, label, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in PROJECT:
            path = f"docs/{PROJECT[path]}.md"
        elif not path.startswith("docs/") and (ROOT / path).exists():
            return label
        return f"{picture}[{label}]({posixpath.relpath(path, here)}{hash_}{anchor})"

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(link, text[end:])])


def _write_project(app: Sphinx) -> None:
    for path, docname in PROJECT.items():
        text = rewritten((ROOT / path).read_text(), posixpath.dirname(path), docname)
        reference.write(pathlib.Path(app.srcdir, f"{docname}.md"), text)


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    if app.env.doc2path(docname).suffix == ".md" and not docname.startswith("project/"):
        source[0] = rewritten(source[0], posixpath.dirname(f"docs/{docname}"), docname)


def setup(app: Sphinx) -> dict:
    """Changes what Sphinx reads."""
    app.connect("builder-inited", _write_project)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
