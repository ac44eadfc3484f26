"""Renders docs/support.md from docs/support.json: python benchmarks/support/page.py"""

import json
import pathlib
import re

import causes

DOCS = pathlib.Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "support.json", DOCS / "support.md"
SIZES = ("fixed", "free", "empty")
GOOD, WRONG, FAILED, NONE, UNKNOWN = "✓", "≠", "✗", "–", "·"

HEAD = """# Support

What each layer does in each engine, as it was measured by `make support` and `make engines`. No
cell is written by hand.

**{good}** agrees, **{wrong}** returns something else, **{failed}** raises, **{none}** the layer
takes no such input, **{unknown}** was not run. One sign is of all sizes; three signs are of fixed
sizes, of free ones (batch, height, width, boxes and queries are None) and of empty inputs (no
images, no boxes, no queries). A number leads to the cause. {count} of the {all} cells that
were run agree wherever the layer takes the inputs.

## In short

How many outcomes agree, over all of a layer's rows in the table below and the three kinds of sizes;
**{good}** all of them.
"""
# The columns of the summary, by how the titles of the cells' columns begin.
FAMILIES = {
    "TensorFlow,<br>Keras": ("eager", "jit", "mixed", "∂²", ".keras"),
    "SavedModel": ("SavedModel",),
    "LiteRT": ("LiteRT", "ai-edge-litert"),
    "ONNX": ("ONNX",),
    "OpenVINO": ("OpenVINO",),
    "TensorFlow.js": ("TensorFlow.js",),
    "other<br>exporters": ("Keras", "TFLite"),
}


def load():
    """Returns the data: {"columns": {key: ...}, "rows": {name: {key: {size: outcome}}}}.

    An outcome is an error, None where the layer takes no such input, or what was raised.
    """
    if not DATA.exists():
        return {"columns": {}, "rows": {}}
    return json.loads(DATA.read_text())


def write(data):
    """Writes the data and the page."""
    DATA.write_text(dump(data))
    PAGE.write_text(render(data))


def dump(data):
    """Returns the data as JSON, a line a cell."""
    columns = [f"  {_entry(*each)}" for each in data["columns"].items()]
    rows = []
    for name, cells in data["rows"].items():
        lines = ",\n".join(f"   {_entry(*each)}" for each in cells.items())
        rows.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    parts = [",\n".join(each) for each in (columns, rows)]
    return '{{\n "columns": {{\n{}\n }},\n "rows": {{\n{}\n }}\n}}\n'.format(*parts)


def _entry(key, value):
    return f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"


def sign(outcome, tolerance):
    """Returns the sign of an outcome."""
    if outcome is None:
        return NONE
    if isinstance(outcome, str):
        return FAILED
    return GOOD if outcome <= tolerance else WRONG


def is_good(outcome, tolerance):
    return sign(outcome, tolerance) in (GOOD, NONE)


def render(data):
    """Returns the page."""
    columns, rows = data["columns"], data["rows"]
    notes: dict = {}
    table = [
        "| | " + " | ".join(each["title"].replace(" ", "<br>") for each in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    run, agree = 0, 0
    for name, cells in rows.items():
        texts = [cell_text(key, cells.get(key), columns[key], notes) for key in columns]
        run += len(cells)
        agree += sum(not set(text) - {GOOD, NONE} for text in texts)
        table.append(f"| {_code(name)} | {' | '.join(texts)} |")
    signs = {"good": GOOD, "wrong": WRONG, "failed": FAILED, "none": NONE, "unknown": UNKNOWN}
    head = HEAD.format(**signs, count=agree, all=run)
    parts = [head, summary(columns, rows), "\n## Every cell\n", "\n".join(table)]
    parts += ["\n## Causes\n", *_causes(notes)]
    parts += ["\n## Columns\n", _columns(columns), "\n## Errors\n", _errors(columns, rows)]
    return "\n".join(parts) + "\n"


def summary(columns, rows):
    """Returns a table with a row for each layer and a column for each family of engines."""
    lines = ["| | " + " | ".join(FAMILIES) + " |", "|---" * (len(FAMILIES) + 1) + "|"]
    for layer in dict.fromkeys(name.partition(",")[0] for name in rows):
        texts = []
        for titles in FAMILIES.values():
            keys = [key for key in columns if columns[key]["title"].startswith(titles)]
            good = [
                is_good(outcome, columns[key]["tolerance"])
                for name, row in rows.items()
                for key in keys
                if name.partition(",")[0] == layer and key in row
                for outcome in row[key].values()
            ]
            full = GOOD if good else UNKNOWN
            texts.append(full if all(good) else f"{sum(good)} of {len(good)}")
        lines.append(f"| {_code(layer)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _code(name):
    layer, *rest = name.split(", ")
    return ", ".join([f"`{layer}`", *rest])


def cell_text(key, cell, column, notes):
    """Returns a cell of the table; notes, {cause: number}, gain its causes."""
    if cell is None:
        return UNKNOWN
    signs = [sign(cell[size], column["tolerance"]) for size in SIZES]
    text = signs[0] if len(set(signs)) == 1 else "".join(signs)
    numbers = []
    for size, each in zip(SIZES, signs, strict=True):
        if each in (WRONG, FAILED):
            number = notes.setdefault(_cause(key, cell[size]), len(notes) + 1)
            numbers.append(f"[{number}](#causes)")
    return " ".join([text, *dict.fromkeys(numbers)])


def _cause(key, outcome):
    """Returns in words why a cell is not good."""
    text = outcome if isinstance(outcome, str) else "other values"
    for columns, pattern, words in causes.KNOWN:
        if re.search(columns, key) and re.search(pattern, text):
            return words
    return text if text is not outcome else f"`{text}`"


def _causes(notes):
    return [f"{number}. {cause}" for cause, number in notes.items()]


def _columns(columns):
    lines = ["| column | what is run | largest error | with | last run |", "|---|---|---|---|---|"]
    for each in columns.values():
        lines.append(
            f"| {each['title']} | {each['what']} | {each['tolerance']:.0e} | {each['versions']} | "
            f"{each['date']}, {each['commit']} |"
        )
    return "\n".join(lines)


def _errors(columns, rows):
    """Returns a folded table for each layer."""
    parts = ["The largest difference, over the largest value of the result.\n"]
    for name, cells in rows.items():
        lines = [f"<details><summary>{name}</summary>\n", "| | fixed | free | empty |"]
        lines.append("|---|---|---|---|")
        for key, cell in cells.items():
            texts = " | ".join(_error(cell[size]) for size in SIZES)
            lines.append(f"| {columns[key]['title']} | {texts} |")
        parts.append("\n".join(lines) + "\n\n</details>\n")
    return "\n".join(parts).rstrip()


def _error(outcome):
    if outcome is None:
        return NONE
    if isinstance(outcome, str):
        return f"{FAILED} `{outcome}`".replace("|", "\\|")
    return f"{outcome:.0e}" if outcome else "0"


if __name__ == "__main__":
    write(load())
