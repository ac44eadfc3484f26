"""Choosing the implementation, and importing the package where it cannot run."""

import os
import pathlib
import runpy
import subprocess
import sys

import keras
import pytest

import tf_deform as tfd
from conftest import XLA_KERNELS
from tf_deform.compiled import loading, switch

ROOT = pathlib.Path(tfd.__file__).parents[1]


def chosen():
    return switch.asked()


@pytest.fixture(autouse=True)
def _restored():
    yield
    tfd.set_implementation("auto")


def import_in_a_new_process(**environment):
    """Returns the last line that `import tf_deform` writes to stderr, "" if it works."""
    command = "import tf_deform; tf_deform.ops.sample([[[1.0]]], [[[0.0]]])"
    result = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    return result.stderr.strip().splitlines()[-1] if result.returncode else ""


def test_the_default_is_auto():
    assert runpy.run_path(switch.__file__)["asked"]() == "auto"


@pytest.mark.parametrize("name", ("portable", "auto"))
def test_set_implementation_lasts(name):
    tfd.set_implementation("portable" if name == "auto" else "auto")
    tfd.set_implementation(name)
    assert chosen() == name


@pytest.mark.parametrize("choose", (tfd.set_implementation, tfd.use_implementation))
def test_an_unknown_implementation_lists_the_known_ones_and_changes_nothing(choose):
    tfd.set_implementation("portable")
    message = r"implementation must be one of 'auto', 'portable', 'compiled', received 'cuda'"
    with pytest.raises(ValueError, match=message), choose("cuda"):
        pass
    assert chosen() == "portable"


def test_use_implementation_refuses_a_wrong_name_before_its_block_is_entered():
    with pytest.raises(ValueError, match="implementation must be one of"):
        tfd.use_implementation("cuda")


def test_use_implementation_restores_what_was_chosen_before():
    tfd.set_implementation("portable")
    with tfd.use_implementation("auto"):
        assert chosen() == "auto"
        with tfd.use_implementation("portable"):
            assert chosen() == "portable"
        assert chosen() == "auto"
    assert chosen() == "portable"


def test_use_implementation_restores_after_an_error_too():
    with pytest.raises(KeyError), tfd.use_implementation("portable"):
        raise KeyError
    assert chosen() == "auto"


def test_compiled_status_says_why_the_library_cannot_be_used():
    status = tfd.compiled_status()
    assert status._fields == ("available", "devices", "reason")
    assert status.available == (len(status.devices) > 0)
    # Without kernels for XLA the library is used all the same, and the reason says so.
    assert bool(status.reason) != (status.available and XLA_KERNELS)


def test_the_compiled_implementation_is_refused_where_the_library_cannot_be_used(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda: loading.Loaded(reason="no such file"))
    for choose in (tfd.set_implementation, tfd.use_implementation):
        with pytest.raises(RuntimeError, match=r"compiled .* cannot be used: no such file"):
            choose("compiled").__enter__()
    assert chosen() == "auto"


def test_the_compiled_implementation_is_chosen_where_the_library_can_be_used(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda: loading.Loaded("a library"))
    with tfd.use_implementation("compiled"):
        assert chosen() == "compiled"


def test_the_environment_chooses_at_import(monkeypatch):
    monkeypatch.setenv("TF_DEFORM_IMPLEMENTATION", "portable")
    assert runpy.run_path(switch.__file__)["asked"]() == "portable"


def test_an_unknown_implementation_in_the_environment_is_an_error_that_names_the_variable():
    line = import_in_a_new_process(TF_DEFORM_IMPLEMENTATION="fast")
    assert line.startswith("ValueError: ")
    assert "TF_DEFORM_IMPLEMENTATION" in line
    assert "'auto', 'portable', 'compiled', received 'fast'" in line


def test_a_backend_that_is_not_installed_is_one_clear_line():
    line = import_in_a_new_process(KERAS_BACKEND="jax")
    assert line.startswith("ImportError: tf_deform needs ")
    assert "jax" in line
    assert "KERAS_BACKEND=tensorflow" in line


def test_another_backend_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ImportError, match=r"TensorFlow.*'torch'.*KERAS_BACKEND=tensorflow$"):
        runpy.run_path(tfd.__file__)
