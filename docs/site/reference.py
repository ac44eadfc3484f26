"""Writes the pages of the API reference, in Markdown, from the docstrings."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import guides

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PICTURES = pathlib.Path(__file__).resolve().parents[1] / "images" / "layers"


class Group(NamedTuple):
    """Entries of one module that stand together; layers have a page each."""

    title: str
    page: str
    module: str
    names: str
    text: str = ""

    @property
    def entries(self) -> list[str]:
        """Returns the full names."""
        return [f"{self.module}.{name}" for name in self.names.split()]

    @property
    def apart(self) -> bool:
        """Returns whether each entry has a page of its own."""
        return self.module == "tf_deform.layers"


GROUPS = [
    Group(
        "Convolution layers",
        "layers",
        "tf_deform.layers",
        "DeformableConv1D DeformableConv2D DeformableConv3D DCNv3 DCNv4",
    ),
    Group(
        "Layers for boxes",
        "layers",
        "tf_deform.layers",
        "RoIAlign RoIAlignRotated MultiScaleRoIAlign PSRoIAlign DeformableRoIPooling "
        "DeformablePSRoIPooling",
    ),
    Group("Attention layers", "layers", "tf_deform.layers", "MultiScaleDeformableAttention"),
    Group(
        "Layers that warp",
        "layers",
        "tf_deform.layers",
        "SpatialTransformer GridSample DenseImageWarp VelocityIntegration",
    ),
    Group("Sampling", "sampling", "tf_deform.ops", "sample weighted_sample"),
    Group(
        "Grids",
        "grids",
        "tf_deform.ops",
        "grid_sample affine_grid projective_grid thin_plate_spline_grid",
    ),
    Group("Convolutions", "convolutions", "tf_deform.ops", "deformable_conv dcnv3 dcnv4"),
    Group(
        "Boxes",
        "boxes",
        "tf_deform.ops",
        "roi_align roi_align_rotated multi_scale_roi_align ps_roi_align deformable_roi_pool "
        "deformable_ps_roi_pool",
    ),
    Group("Attention", "attention", "tf_deform.ops", "multi_scale_deformable_attention"),
    Group(
        "Flows",
        "flows",
        "tf_deform.ops",
        "warp integrate_velocity compose_flows invert_flow resize_flow jacobian_determinant "
        "warp_points",
    ),
    Group(
        "Correlation",
        "correlation",
        "tf_deform.ops",
        "correlation correlation_lookup correlation_pyramid pyramid_lookup",
    ),
    Group("Models", "models", "tf_deform", "deformable accelerate"),
    Group("Exports", "exports", "tf_deform", "export_saved_model export_onnx export_litert"),
    Group(
        "Weights of other libraries",
        "convert",
        "tf_deform.convert",
        "load_torchvision load_mmcv load_dcn read",
    ),
    Group("Lists of boxes", "pad", "tf_deform.boxes", "pad"),
    Group("Losses", "losses", "tf_deform.losses", "NormalizedCrossCorrelation FlowSmoothness"),
    Group("Callbacks", "callbacks", "tf_deform.callbacks", "OffsetMonitor"),
    Group(
        "Pictures",
        "visualization",
        "tf_deform.visualization",
        "plot_taps plot_bins plot_grid plot_attention plot_flow",
    ),
    Group(
        "Portable or compiled",
        "implementation",
        "tf_deform",
        "set_implementation use_implementation compiled_status",
    ),
    Group(
        "TensorFlow Addons' names",
        "addons",
        "tf_deform.addons",
        "dense_image_warp interpolate_bilinear interpolate_spline resampler rotate "
        "sparse_image_warp transform translate translate_xy shear_x shear_y compose_transforms "
        "angles_to_projective_transforms translations_to_projective_transforms CorrelationCost",
    ),
]
SECTIONS = {  # of the index
    "Layers": ("tf_deform.layers",),
    "Functions of tensors": ("tf_deform.ops",),
    "Around a model": (),
}
ENTRIES = [entry for group in GROUPS for entry in group.entries]


def member(name: str) -> Any:
    """Returns what a full name names."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def signature(function: Callable) -> str:
    """Returns the parameters with their defaults, without types and `self`."""
    found = inspect.signature(function)
    parameters = [
        each.replace(annotation=each.empty)
        for each in found.parameters.values()
        if each.name != "self"
    ]
    return str(inspect.Signature(parameters))


def methods(cls: type) -> list[str]:
    """Returns the public methods of a class that it, or a base of ours, documents, `call` first."""
    found = [
        name
        for base in cls.__mro__
        if base.__module__.startswith("tf_deform")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__doc__
    ]
    return list(dict.fromkeys(found))


# Which names in running text are links


def _short_names():
    parameters = {
        parameter for entry in ENTRIES for parameter in inspect.signature(member(entry)).parameters
    }
    names: dict[str, str] = {}
    for entry in ENTRIES:
        last = entry.rpartition(".")[2]
        if (last[0].isupper() or "_" in last) and last not in parameters:
            names.setdefault(last, entry)
    return names


SHORT = _short_names()


def named(text: str) -> str | None:
    """Returns the full name of the entry that code in running text names, or None.

    Full names count, those after `tfd.` and `ops.`, and bare ones that nothing else bears.
    """
    match = re.match(r"(?:tf_deform\.|tfd\.)?([\w.]+)(\(.*\))?$", text, re.S)
    if match is None:
        return None
    name = match[1]
    full = f"tf_deform.{name}"
    if full in ENTRIES and ("." in name or text.startswith(("tfd.", "tf_deform."))):
        return full
    return SHORT.get(name) if name == text.partition("(")[0] else None


# Docstrings

_HEADING = re.compile(
    r"^(Args|Attributes|Call arguments|Returns|Raises|Warns|Source|Sources|Example|Examples):(.*)$"
)
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w[\w, *]*?): +(.*)$")
_TITLES = {"Args": "Arguments", "Call arguments": "Arguments of the call"}


def markdown(docstring: str) -> str:
    """Returns a docstring as Markdown."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in inspect.cleandoc(docstring).splitlines():
        heading = _HEADING.match(line)
        if heading:
            parts.append((heading[1], [f"    {heading[2].strip()}"] if heading[2] else []))
        elif parts[-1][0] and line and not line.startswith(" ") and parts[-1][0] != "Source":
            parts.append(("", [line]))
        else:
            parts[-1][1].append(line)
    return "\n\n".join(filter(None, (_part(title, lines) for title, lines in parts)))


def _part(title, lines):
    text = "\n".join(lines).rstrip()
    if not text:
        return ""
    if not title:
        return _prose(text)
    if title.startswith("Example"):
        return f"**Example**\n\n```pycon\n{textwrap.dedent(text).strip()}\n```"
    entries = [f"`{name}`\n: {body}" for name, body in _entries(lines)]
    if title in ("Args", "Attributes", "Call arguments", "Raises", "Warns") and entries:
        return f"**{_TITLES.get(title, title)}**\n\n" + "\n\n".join(entries)
    prose = _prose("\n".join(line.strip() for line in lines).strip())
    return f"**{title}:** {prose}" if title.startswith("Source") else f"**{title}**\n\n{prose}"


def _entries(lines):
    """Returns the names and the texts, indented by 2 below their first line, of a section."""
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        start = _ENTRY.match(line)
        if start:
            entries.append((start[1].replace(", ", "`, `"), [start[2]]))
        elif entries:
            entries[-1][1].append(line[8:] if line.strip() else "")
    for name, body in entries:
        text = _prose("\n".join(body).rstrip())
        yield name, textwrap.indent(text, "  ").lstrip()


def _prose(text):
    """Returns text with links to papers and to pages, and nothing that Markdown misreads."""
    pieces = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(pieces), 2):
        piece = re.sub(r"(?<!\w)([*<\[])", r"\\\1", pieces[index])
        piece = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", piece)
        pieces[index] = re.sub(r"docs/(\w+)\.md", r"[docs/\1.md](/\1.md)", piece)
    return "".join(pieces)


# Pages


def entry(name: str) -> str:
    """Returns the entry of a public name."""
    thing = member(name)
    if not inspect.isclass(thing):
        return _directive("function", f"{name}{signature(thing)}", markdown(thing.__doc__), 3)
    module, _, last = name.rpartition(".")
    body = [markdown(thing.__doc__)]
    if hasattr(thing, "call") and thing.__module__.startswith("tf_deform"):
        body.append(_directive("method", f"call{signature(thing.call)}", "", 3))
    for method in methods(thing):
        function = getattr(thing, method)
        if method != "call":
            text = markdown(inspect.getdoc(function))
            body.append(_directive("method", f"{method}{signature(function)}", text, 3))
    text = f":module: {module}\n\n" + "\n\n".join(body)
    return _directive("class", f"{last}{signature(thing)}", text, 4)


def _directive(kind, head, text, ticks):
    fence = "`" * (ticks + 1)
    return f"{fence}{{py:{kind}}} {head}\n{text}\n{fence}"


def layer_page(name: str) -> str:
    """Returns the page of a layer."""
    last = name.rpartition(".")[2]
    text = [f"# {last}"]
    if (PICTURES / f"{last}.png").exists():
        text.append(f"![What {last} does](../../images/layers/{last}.png)")
    text += [entry(name), *_guides(name, "../../guides/")]
    return "\n\n".join(text) + "\n"


def group_page(group: Group) -> str:
    """Returns the page of a group."""
    text = [f"# {group.title}"]
    for name in group.entries:
        title = name.removeprefix("tf_deform.").removeprefix("ops.")
        text += [f"## {title}", entry(name), *_guides(name, "../guides/")]
    return "\n\n".join(text) + "\n"


def _guides(name, folder):
    found = guides.using(name.replace("tf_deform", "tfd"))
    links = ", ".join(f"[{guides.title_of(path)}]({folder}{path.name})" for path in found)
    return [f"Guides that use it: {links}."] if found else []


def summary(name: str) -> str:
    """Returns the first sentence of a docstring."""
    paragraph = inspect.cleandoc(member(name).__doc__).partition("\n\n")[0]
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()))[0]
    sentence = re.sub(r"^Returns `\[[^`]*\]`: ", "", sentence)
    return sentence[0].upper() + sentence[1:]


def _index() -> str:
    text = [
        "# API reference",
        "Every public name. The layers and functions are reached as `tfd.layers.RoIAlign` after "
        "`import tf_deform as tfd`.",
    ]
    modules = {module for modules in SECTIONS.values() for module in modules}
    for title, chosen in SECTIONS.items():
        groups = [
            group
            for group in GROUPS
            if group.module in chosen or (not chosen and group.module not in modules)
        ]
        text.append(f"## {title}")
        for group in groups:
            rows = [
                f"| `{name.replace('tf_deform', 'tfd')}` | {_prose(summary(name))} |"
                for name in group.entries
            ]
            text.append(
                "\n".join([f"### {group.title}", "", "| name | what it is |", "|---|---|", *rows])
            )
        pages = [page for group in groups for page in _pages(group)]
        listed = "\n".join(dict.fromkeys(pages))
        text.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```")
    return "\n\n".join(text) + "\n"


def _pages(group):
    if group.apart:
        return [f"layers/{name.rpartition('.')[2]}" for name in group.entries]
    return [group.page]


def pages() -> dict[str, str]:
    """Returns the reference's pages by their names."""
    made = {"index": _index()}
    for group in GROUPS:
        if group.apart:
            for name in group.entries:
                made[f"layers/{name.rpartition('.')[2]}"] = layer_page(name)
        else:
            made[group.page] = group_page(group)
    return made


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file, unless it holds that already."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _write_pages(app: Sphinx) -> None:
    folder = pathlib.Path(app.srcdir, "reference")
    made = {folder / f"{name}.md": text for name, text in pages().items()}
    for old in set(folder.rglob("*.md")) - set(made):
        old.unlink()
    for path, text in made.items():
        write(path, text)


def setup(app: Sphinx) -> dict:
    """Writes the pages before Sphinx looks for pages."""
    app.connect("builder-inited", _write_pages)
    return {"parallel_read_safe": True}
