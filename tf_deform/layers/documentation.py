"""Docstrings of layers: an argument is described once, and stands in each layer that takes it."""

import inspect
import re

_SECTIONS = ("Args", "Call arguments", "Returns", "Raises", "Source", "Example")
_HEADING = re.compile(rf"^({'|'.join(_SECTIONS)}):(.*)$")
_ENTRY = re.compile(r"^ {4}\*{0,2}(\w+): ")


def completed(cls):
    """Returns the docstring of a class with what its bases say and it does not.

    From the nearest base that has them come the descriptions of arguments of the constructor
    ("Args") and of `call` ("Call arguments"), whole sections, and the paragraphs after the first.
    The arguments stand in the order of the signature.
    """
    own, *inherited = [_parsed(each.__doc__) for each in _documented(cls)]
    paragraphs, sections = own
    first, _, rest = paragraphs.partition("\n\n")
    for base_paragraphs, base_sections in inherited:
        rest = rest or base_paragraphs.partition("\n\n")[2]
        for name, text in base_sections.items():
            if name in ("Returns", "Raises", "Source"):
                sections.setdefault(name, text)
    for name, function in (("Args", cls.__init__), ("Call arguments", cls.call)):
        mine, *others = [_entries(each.get(name, "")) for _, each in [own, *inherited]]
        entries: dict[str, str] = {}
        for parameter in list(inspect.signature(function).parameters)[1:]:
            for each in (mine, *others):
                if parameter in each:
                    entries.setdefault(parameter, each[parameter])
        # A base also describes what it leaves to its subclasses to take.
        sections[name] = "".join(f"\n{entry}" for entry in {**entries, **mine}.values())
    text = [first, *([rest] if rest else [])]
    text += [f"{name}:{sections[name]}" for name in _SECTIONS if sections.get(name)]
    return "\n\n".join(text) + "\n"


def _documented(cls):
    """Returns the class and those of its bases whose docstrings describe a layer of ours."""
    return [each for each in cls.__mro__ if each.__module__.startswith("tf_deform.")]


def _parsed(docstring):
    """Returns the paragraphs before the first section, and the sections by name."""
    paragraphs: list[str] = []
    sections: dict[str, list[str]] = {}
    lines = paragraphs
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading = _HEADING.match(line)
        if heading:
            lines = sections[heading[1]] = [heading[2]]
        else:
            lines.append(line)
    texts = {name: "\n".join(lines).rstrip() for name, lines in sections.items()}
    return "\n".join(paragraphs).strip(), texts


def _entries(section):
    """Returns the descriptions in a section by the argument's name."""
    entries = {}
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1]
            entries[name] = line
        elif line:
            entries[name] += f"\n{line}"
    return entries
