"""Runs the guides of docs/guides and keeps what they print and draw for the site.

    python docs/site/guides.py [NAME...] [--quick]

Without a name it runs those that have changed since they ran, with --quick all of them. How a guide
is written: CONTRIBUTING.md.
"""

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

GUIDES = pathlib.Path(__file__).resolve().parents[1] / "guides"
OUTPUTS = GUIDES / "outputs"
MAX_FIGURE = 400_000  # bytes
# The order in which guides are shown; others follow by name.
ORDER = ("spatial_transformer", "backbone", "detector", "registration", "stereo", "serving")


class Block(NamedTuple):
    """A piece of a guide: `kind` is "text" (without its comment signs) or "code"."""

    kind: str
    content: str
    line: int


def paths() -> list[pathlib.Path]:
    """Returns the guides' files in the order in which they are shown."""
    places = {name: place for place, name in enumerate(ORDER)}
    found = GUIDES.glob("*.py")
    return sorted(found, key=lambda path: (places.get(path.stem, len(ORDER)), path.stem))


def blocks_of(path: pathlib.Path) -> list[Block]:
    """Returns a guide's blocks, of which the first is its docstring."""
    source = path.read_text()
    docstring = ast.parse(source).body[0]
    header = ast.get_docstring(ast.parse(source))
    if header is None:
        raise ValueError(f"{path} does not begin with a docstring")
    blocks = [Block("text", header, 1)]
    lines = source.splitlines()
    kind, start = "code", docstring.end_lineno

    def close(end: int) -> None:
        content = lines[start:end]
        if kind == "text":
            content = [re.sub("^# ?", "", line) for line in content]
        if any(line.strip() for line in content):
            blocks.append(Block(kind, "\n".join(content).rstrip(), start + 1))

    for number, line in enumerate(lines[start:], start):
        if line.startswith("# %%"):
            close(number)
            kind, start = "text", number + 1
        elif kind == "text" and not line.startswith("#"):
            close(number)
            kind, start = "code", number
    close(len(lines))
    return blocks


def code_of(path: pathlib.Path) -> list[Block]:
    """Returns the blocks of code."""
    return [block for block in blocks_of(path) if block.kind == "code"]


def title_of(path: pathlib.Path) -> str:
    """Returns a guide's title."""
    return blocks_of(path)[0].content.splitlines()[0]


def using(name: str) -> list[pathlib.Path]:
    """Returns the guides whose code writes a name out, such as "tfd.ops.warp"."""
    pattern = re.compile(rf"\b{re.escape(name)}\b(?!\.)")
    return [
        path for path in paths() if any(pattern.search(block.content) for block in code_of(path))
    ]


def hash_of(path: pathlib.Path) -> str:
    """Returns a hash of a guide's code: its text may change without a run."""
    code = "\n".join(block.content.strip() for block in code_of(path))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def kept(path: pathlib.Path) -> dict | None:
    """Returns what is kept of a guide's last run, or None if there is none of this code."""
    record = OUTPUTS / f"{path.stem}.json"
    if not record.exists():
        return None
    outputs = json.loads(record.read_text())
    return outputs if outputs["code"] == hash_of(path) else None


class _Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        return super().write(text)


def _printed(text: str) -> str:
    """Returns what a terminal shows at the end."""
    text = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(lines).strip("\n")


def run(path: pathlib.Path, quick: bool) -> None:
    """Runs a guide block by block and keeps its outputs, unless it is a quick run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sys.argv = [str(path), *(["--quick"] if quick else [])]
    names = {"__name__": "__main__", "__file__": str(path)}
    outputs: dict = {"code": hash_of(path), "printed": {}, "figures": {}}
    figures: dict[str, bytes] = {}
    start = time.perf_counter()
    for index, block in enumerate(code_of(path)):
        program = compile("\n" * (block.line - 1) + block.content, str(path), "exec")
        with contextlib.redirect_stdout(_Tee()) as stream:
            exec(program, names)
        if text := _printed(stream.getvalue()):
            outputs["printed"][str(index)] = text
        for number in plt.get_fignums():
            name = f"{path.stem}_{len(figures) + 1}.png"
            picture = io.BytesIO()
            plt.figure(number).savefig(picture, dpi=120, bbox_inches="tight", facecolor="white")
            figures[name] = picture.getvalue()
            outputs["figures"].setdefault(str(index), []).append(name)
        plt.close("all")
    outputs["seconds"] = round(time.perf_counter() - start)
    if not figures:
        raise SystemExit(f"{path.name} draws no figure")
    for name, content in figures.items():
        if len(content) > MAX_FIGURE:
            raise SystemExit(f"{name} has {len(content):,} bytes, above {MAX_FIGURE:,}")
    if not quick:
        outputs["versions"] = _versions()
        _keep(path, outputs, figures)


def _versions() -> str:
    import importlib.metadata as metadata

    packages = {"tensorflow": "TensorFlow", "keras": "Keras"}
    versions = [f"{title} {metadata.version(name)}" for name, title in packages.items()]
    return f"{', '.join(versions)}, {os.cpu_count()} CPU cores"


def _keep(path, outputs, figures):
    OUTPUTS.mkdir(exist_ok=True)
    for old in OUTPUTS.glob(f"{path.stem}_*.png"):
        if re.fullmatch(rf"{path.stem}_\d+", old.stem):
            old.unlink()
    for name, content in figures.items():
        (OUTPUTS / name).write_bytes(content)
    record = OUTPUTS / f"{path.stem}.json"
    record.write_text(json.dumps(outputs, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Runs the guides named, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of docs/guides/NAME.py")
    parser.add_argument("--quick", action="store_true", help="run them shortened, keep nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {path.stem for path in paths()}:
        parser.error(f"there is no guide {', '.join(sorted(unknown))}")
    chosen = [path for path in paths() if path.stem in arguments.names]
    if len(chosen) == 1:
        return run(chosen[0], arguments.quick)
    if not arguments.names:
        chosen = [path for path in paths() if arguments.quick or not kept(path)]
    if not chosen:
        print("No guide has changed since it ran.")
    for path in chosen:
        print(f"==> {path.relative_to(GUIDES.parents[1])}", flush=True)
        options = ["--quick"] if arguments.quick else []
        subprocess.run([sys.executable, __file__, path.stem, *options], check=True)


if __name__ == "__main__":
    main()
