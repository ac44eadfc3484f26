"""Makes pages of the guides: their text, their code, and what it printed and drew when it ran."""

import pathlib

import guides
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.parsers import RSTParser
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)


def thumbnail(path: pathlib.Path) -> str | None:
    """Returns the file of a guide's last figure, or None if it has not run."""
    outputs = guides.kept(path)
    figures = [name for names in (outputs or {"figures": {}})["figures"].values() for name in names]
    return figures[-1] if figures else None


class GuideParser(RSTParser):
    """Parses a guide as the page that it makes."""

    supported = ("guide",)

    def parse(self, inputstring, document):
        path = pathlib.Path(document["source"])
        environment = document.settings.env
        environment.note_dependency(str(guides.OUTPUTS / f"{path.stem}.json"))
        outputs = guides.kept(path)
        if outputs is None:
            LOGGER.warning(
                "its code is not the one that ran: make guides ARGS=%s",
                path.stem,
                location=str(path),
            )
        super().parse("\n".join(page(path, outputs)), document)


def page(path: pathlib.Path, outputs: dict | None) -> list[str]:
    """Returns a guide's page as lines of reStructuredText."""
    outputs = outputs or {"printed": {}, "figures": {}}
    header, *blocks = guides.blocks_of(path)
    lines = [*header.content.splitlines(), ""]
    number = 0
    for block in blocks:
        if block.kind == "text":
            lines += [*block.content.splitlines(), ""]
            continue
        lines += _literal("python", block.content)
        if printed := outputs["printed"].get(str(number)):
            lines += _literal("text", printed, "output")
        for figure in outputs["figures"].get(str(number), []):
            lines += [f".. image:: outputs/{figure}", "   :class: guide-figure", ""]
        number += 1
    if "seconds" in outputs:
        minutes, seconds = divmod(outputs["seconds"], 60)
        lines += [
            f":download:`{path.name} <{path.name}>` ran in {minutes} min {seconds} s with "
            f"{outputs['versions']}; ``python docs/guides/{path.name}`` runs it again."
        ]
    return lines


def _literal(language, text, css=None):
    options = [f"   :class: {css}"] if css else []
    return [
        f".. code-block:: {language}",
        *options,
        "",
        *(f"   {line}" for line in text.splitlines()),
        "",
    ]


class GuideCards(SphinxDirective):
    """Shows a card for each guide, and puts the guides into the table of contents."""

    def run(self) -> list[nodes.Node]:
        """Returns what the directive stands for."""
        if not guides.paths():
            return []
        prefix = "" if self.env.docname.startswith("guides/") else "guides/"
        self.env.note_dependency(str(guides.OUTPUTS))
        lines = ["::::{grid} 1 2 2 3", ":gutter: 3", ""]
        for path in guides.paths():
            title, _, *text = guides.blocks_of(path)[0].content.splitlines()
            intro = " ".join("\n".join(text).strip().split("\n\n")[0].split())
            lines += [f":::{{grid-item-card}} {title}", f":link: {prefix}{path.stem}"]
            lines += [":link-type: doc"]
            if figure := thumbnail(path):
                lines += [f":img-top: {prefix}outputs/{figure}", ":class-img-top: guide-thumbnail"]
            lines += ["", intro.replace("``", "`"), ":::", ""]
        lines += ["::::", ""]
        if not prefix:
            names = [path.stem for path in guides.paths()]
            lines += ["```{toctree}", ":hidden:", "", *names, "```"]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict:
    """Lets Sphinx read guides."""
    app.add_source_suffix(".py", "guide")
    app.add_source_parser(GuideParser)
    app.add_directive("guide-cards", GuideCards)
    return {"parallel_read_safe": True}
