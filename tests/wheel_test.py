"""The wheel that brings the compiled library along."""

import os
import subprocess
import sys
import zipfile

import pytest

import tf_deform as tfd

STATE = """
import tf_deform as tfd
from tf_deform.compiled import location
print(tfd.__file__, location.library_path(), *tfd.compiled_status(), sep="\\n")
print(float(tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])[0, 0, 0]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Returns a folder into which the wheel is unpacked, as pip would install it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "tf_deform", "wheel", "--folder", folder]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    assert "linux" in path.name
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


def state_of(site):
    """Returns what the installed package says of its library, in a process with an empty cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "XDG_CACHE_HOME": str(site / "cache"),
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-c", STATE]
    run = subprocess.run(
        command, env=environment, cwd=site, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def test_the_library_in_the_wheel_is_used(site):
    package, path, available, devices, reason, sampled = state_of(site)
    assert package.startswith(str(site))
    assert path.startswith(str(site))
    assert (available, devices, reason) == ("True", "('CPU',)", tfd.compiled_status().reason)
    assert float(sampled) == 1.5


def test_another_tensorflow_is_told_so_and_runs_the_portable_form(site):
    (path,) = (site / "tf_deform" / "library").glob("tf_deform_ops_*.so")
    other = path.rename(path.with_name("tf_deform_ops_2.99.so"))
    try:
        _, _, available, _, reason, sampled = state_of(site)
    finally:
        other.rename(path)
    assert available == "False"
    assert "there are some for TensorFlow 2.99" in reason
    assert float(sampled) == 1.5
