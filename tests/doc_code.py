"""Runs the Python code of the pages in docs, and holds what they say it prints against it."""

import contextlib
import io
import pathlib
import re

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PYTORCH = "# needs PyTorch"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)


def blocks(page):
    """Returns the code blocks of a page, without those that are marked as needing PyTorch."""
    return [each for each in _BLOCK.findall((DOCS / page).read_text()) if PYTORCH not in each]


def run(code, names):
    """Runs a block with the names that it finds, and keeps in `names` those that it defines.

    A line `print(...)  # text` must print that text.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<block of a page>", "exec"), names)
    expected = _PRINTED.findall(code)
    if expected:
        assert printed.getvalue().splitlines() == expected
    return names
