"""Places where long names in tables and headings may break, so as not to break inside a word."""

import re

from sphinx.application import Sphinx

_SIGNED = r'<span class="sig-name descname"><span class="pre">\w{20,}'
_PART = re.compile(rf"<td\b.*?</td>|{_SIGNED}", re.S)
_NAME = re.compile(r'(?<=<span class="pre">)[^<]+')
_TITLE = re.compile(r"(?<=<h1>)\w+")
# After a dot, slash or underscore in a name, and before a word in CamelCase ("RoI" is one).
_PLACE = re.compile(
    r"(?<=[A-Za-z)][./])(?=[A-Za-z])|(?<=[^\W_]_)(?=[^\W_])"
    r"|(?<=[a-z])(?<!Ro)(?=[A-Z]{2}|[A-Z][a-z]{2})|(?<=[A-Z])(?=[A-Z][a-z]{2})"
)


def broken(html: str) -> str:
    """Returns a page's HTML with `<wbr>` in its names, and numbers kept together with their ±."""

    def part(match: re.Match) -> str:
        return _NAME.sub(name, match[0]).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")

    def name(match: re.Match) -> str:
        return _PLACE.sub("<wbr>", match[0])

    return _TITLE.sub(name, _PART.sub(part, html))


def _break(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = broken(context["body"])


def setup(app: Sphinx) -> dict:
    """Changes what Sphinx writes."""
    app.connect("html-page-context", _break)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
