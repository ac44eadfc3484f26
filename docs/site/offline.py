"""Checks the built pages: links and anchors exist, and nothing is loaded from elsewhere."""

from __future__ import annotations

import pathlib
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# What a browser loads by itself, by tag and attribute.
LOADED = {
    ("audio", "src"),
    ("embed", "src"),
    ("iframe", "src"),
    ("image", "href"),
    ("img", "src"),
    ("img", "srcset"),
    ("link", "href"),
    ("object", "data"),
    ("script", "src"),
    ("source", "src"),
    ("source", "srcset"),
    ("video", "src"),
}
# `link`s that are only named.
NAMED = {"author", "canonical", "license", "next", "prev", "search", "index"}


class Page(HTMLParser):
    """What a page of HTML links to, loads and can be linked at."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {"", "top"}
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self._style = tag == "style"
        self.loaded += urls_of(given.get("style", ""))
        for name, value in given.items():
            if tag == "link" and given.get("rel") in NAMED:
                self.links += [value] if name == "href" else []
            elif (tag, name) in LOADED:
                self.loaded.append(value)
            elif name == "href":
                self.links.append(value)

    def handle_data(self, data):
        if self._style:
            self.loaded += urls_of(data)

    def handle_endtag(self, tag):
        self._style = False


def urls_of(css: str) -> list[str]:
    """Returns the addresses that a style sheet loads."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    found = re.findall(r"""url\(\s*(["']?)(.*?)\1\s*\)|@import\s+(["'])(.*?)\3""", css)
    return [url or imported for _, url, _, imported in found]


def faults(folder: pathlib.Path) -> list[str]:
    """Returns what is wrong in a folder with a site, a line each."""
    found = sorted(folder.rglob("*.html"))
    pages = {path: Page(path.read_text()) for path in found if "_static" not in path.parts}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        wrong += [f"{name} loads {url}" for url in page.loaded if _foreign(url)]
        for url in {*page.links, *page.loaded}:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or not url:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                wrong.append(f"{name} links to {url}, which is not there")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name} links to {url}, which has no such anchor")
    for path in sorted(folder.rglob("*.css")):
        urls = urls_of(path.read_text())
        wrong += [f"{path.relative_to(folder)} loads {url}" for url in urls if _foreign(url)]
    return wrong


def _foreign(url):
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https")


def _check(app: Sphinx, exception: Exception | None):
    from sphinx.util import logging

    if exception is None and app.builder.name == "html":
        for fault in faults(pathlib.Path(app.outdir).resolve()):
            logging.getLogger(__name__).warning(fault)


def setup(app: Sphinx) -> dict:
    """Checks each site once it is built."""
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
