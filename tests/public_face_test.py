"""What an editor shows of the public names: types, an entry for every argument, no other names."""

import ast
import inspect
import pathlib
import re
import types
import typing

import matplotlib.axes
import pytest

import tf_deform as tfd

MODULES = {
    "tfd": tfd,
    **{
        f"tfd.{name}": getattr(tfd, name)
        for name in tfd.__all__
        if isinstance(getattr(tfd, name), types.ModuleType)
    },
}
NAMES = {
    f"{module}.{name}": getattr(MODULES[module], name)
    for module in MODULES
    for name in MODULES[module].__all__
    if not isinstance(getattr(MODULES[module], name), types.ModuleType)
}

USES = ast.parse(pathlib.Path(__file__).with_name("typed_uses.py").read_text())


def function_of(each):
    """Returns a function, or what makes an object of a class."""
    return each.__init__ if inspect.isclass(each) else each


def parameters_of(each):
    """Returns the parameters of a function or class, without self."""
    parameters = inspect.signature(function_of(each)).parameters.values()
    return [parameter for parameter in parameters if parameter.name != "self"]


def arguments_in(docstring):
    """Returns {argument: its text} of the section Args of a docstring."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", f"{docstring}\n", flags=re.M)
    entries = re.findall(
        r"^    \**(\w+): (.+(?:\n {8}.+)*)", section.group(1) if section else "", re.M
    )
    return dict(entries)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_what_is_returned_has_a_type(name):
    signature = inspect.signature(function_of(NAMES[name]))
    for parameter in parameters_of(NAMES[name]):
        assert parameter.annotation is not parameter.empty, parameter.name
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", NAMES)
def test_types_are_read_by_their_names(name):
    """And the names are those of something: `Axes` is not there when the package runs."""
    function = function_of(NAMES[name])
    named = [each for each in parameters_of(NAMES[name]) if each.kind is not each.VAR_KEYWORD]
    written = [each.annotation for each in named]
    assert all(isinstance(each, str) for each in written)
    assert not re.search(r"\bAny\b|Literal", " ".join(written))
    typing.get_type_hints(function, localns={"Axes": matplotlib.axes.Axes})


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_an_entry_for_every_argument(name):
    described = arguments_in(inspect.getdoc(NAMES[name]))
    assert list(described) == [each.name for each in parameters_of(NAMES[name])]


@pytest.mark.parametrize("name", NAMES)
def test_no_entry_sends_the_reader_elsewhere(name):
    for argument, text in arguments_in(inspect.getdoc(NAMES[name])).items():
        assert not re.search(r"\b[Aa]s (in|of) `(?!keras)", text), argument
    assert not re.search(r"Error: as `", inspect.getdoc(NAMES[name]))


def test_an_entry_is_all_of_its_lines():
    text = (
        "First.\n\nArgs:\n    one: a\n        b: c.\n    two: d.\n\nRaises:\n    ValueError: e.\n"
    )
    assert arguments_in(text) == {"one": "a\n        b: c.", "two": "d."}


@pytest.mark.parametrize("module", MODULES)
def test_the_names_that_are_listed_are_the_public_ones(module):
    assert dir(MODULES[module]) == sorted(MODULES[module].__all__)


def test_the_version_is_there_though_not_listed():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfd.__version__)


def test_mypy_checks_a_use_of_every_public_name():
    used = {ast.unparse(node) for node in ast.walk(USES) if isinstance(node, ast.Attribute)}
    assert set(NAMES) <= used
