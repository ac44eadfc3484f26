"""Links from page to page that hold in the repository and on the site, and from code to the API."""

import pathlib
import posixpath
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import reference

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Pages of the site that stand elsewhere in the repository.
PROJECT = {
    "README.md": "project/readme",
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
        if path.startswith("docs/images/layers/") and not (ROOT / path).exists():
            return ""  # a layer that has no picture yet
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


class CodeLinks(SphinxTransform):
    """Makes a public name in running text that is set as code a link to its entry."""

    default_priority = 400

    def apply(self, **kwargs):
        """Changes the document."""
        for literal in list(self.document.findall(nodes.literal)):
            name = reference.named(literal.astext())
            if name is None or _is_linked(literal) or _own_entry(literal) == name:
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refwarn=True
            )
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def _is_linked(node):
    while node is not None:
        if isinstance(node, (nodes.reference, nodes.title, addnodes.pending_xref)):
            return True
        node = node.parent
    return False


def _own_entry(node):
    while node is not None:
        if isinstance(node, addnodes.desc):
            for signature in node.findall(addnodes.desc_signature):
                return f"{signature['module'] or ''}.{signature['fullname']}".strip(".")
        node = node.parent
    return None


def setup(app: Sphinx) -> dict:
    """Changes what Sphinx reads."""
    app.connect("builder-inited", _write_project)
    app.connect("source-read", _read)
    app.add_transform(CodeLinks)
    return {"parallel_read_safe": True}
