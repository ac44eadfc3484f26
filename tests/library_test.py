"""The compiled library's files: where they are kept, damaged ones, building and its leftovers."""

import fcntl
import json
import os
import pathlib
import pwd
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import tf_deform as tfd
from tf_deform import __main__ as command
from tf_deform import building
from tf_deform.compiled import choice, loading, location

ROOT = pathlib.Path(tfd.__file__).parents[1]
OPS = location.library_path().name


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Returns an empty cache, which what is asked anew will use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(location, "library_path", location.library_path.__wrapped__)
    monkeypatch.setattr(loading, "load", loading.load.__wrapped__)
    choice.auto_is_compiled.cache_clear()
    yield tmp_path / "tf_deform"
    choice.auto_is_compiled.cache_clear()


@pytest.fixture
def library(cache):
    """Returns the path of a whole library in a cache of the test's own."""
    path = location.library_path()
    path.parent.mkdir(parents=True)
    for name in (OPS, "tf_deform_kernels_baseline.so"):
        path.with_name(name).write_bytes(b"\x7fELF" + name.encode() * 1000)
    location.write_record(path.parent)
    return path


def test_a_whole_library_has_no_fault(library):
    assert location.fault_of(library) == ""


def truncate(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def test_damage_of_a_library_for_another_tensorflow_is_no_fault(library):
    other = library.with_name("tf_deform_ops_2.1.so")
    other.write_bytes(b"whole")
    location.write_record(library.parent)
    truncate(other, 2)
    assert location.fault_of(library) == ""
    assert "not the file" in location.fault_of(other)


# What may happen to a library, and what is said of it.
KERNELS = "tf_deform_kernels_baseline.so"
DAMAGES = {
    "truncated": (lambda path: truncate(path, 4096), rf"{OPS} is not the file that was built"),
    "empty": (lambda path: truncate(path, 0), r"expected \d+ bytes, .* found 0 bytes"),
    "kernels truncated": (lambda path: truncate(path.with_name(KERNELS), 99), rf"{KERNELS} is not"),
    "kernels missing": (lambda path: path.with_name(KERNELS).unlink(), rf"{KERNELS} is missing"),
    "foreign": (lambda path: path.write_text("#!/bin/sh"), rf"{OPS} is not the file"),
    "one bit": (
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
        rf"{OPS} is not the file",
    ),
    "no record": (lambda path: path.with_name("record.json").unlink(), "record.json is missing"),
    "half a record": (
        lambda path: truncate(path.with_name("record.json"), 30),
        "record.json is damaged",
    ),
    "another record": (
        lambda path: path.with_name("record.json").write_text(json.dumps({"x.so": "1 byte"})),
        "does not name it",
    ),
    "no record at all": (
        lambda path: path.with_name("record.json").write_text("[]"),
        "does not name it",
    ),
    "no text": (lambda path: path.with_name("record.json").write_bytes(b"\xff\xfe"), "damaged"),
    "a folder": (
        lambda path: (path.unlink(), path.mkdir()),
        f"the compiled library cannot be read: .*{OPS}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_not_loaded_and_one_warning_says_why(damage, library):
    spoil, reason = DAMAGES[damage]
    spoil(library)
    status = tfd.compiled_status()
    assert (status.available, status.devices) == (False, ())
    assert re.search(reason, status.reason)
    with pytest.warns(UserWarning, match="tf_deform runs its portable implementation") as warned:
        for _ in range(2):
            assert tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])[0, 0, 0] == 1.5
    assert len(warned) == 1
    assert re.search(reason, str(warned[0].message))
    with pytest.raises(RuntimeError, match="cannot be used"):
        tfd.set_implementation("compiled")


def test_a_library_that_was_never_built_is_no_reason_to_warn(cache, recwarn):
    assert "run python -m tf_deform build" in tfd.compiled_status().reason
    assert tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])[0, 0, 0] == 1.5
    assert not recwarn


def test_without_a_home_folder_the_portable_form_runs(cache, monkeypatch):
    def nobody(_):
        raise KeyError("no such user")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.warns(UserWarning, match="there is no home folder .*: set XDG_CACHE_HOME"):
        assert tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])[0, 0, 0] == 1.5
    with pytest.raises(SystemExit, match="no home folder"):
        command.main(["build"])


def test_a_relative_cache_is_ignored(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/me")
    assert location.library_path().parents[1] == pathlib.Path("/home/me/.cache/tf_deform")


UNREADABLE = """
import os, sys, warnings
import tensorflow as tf
import tf_deform as tfd
with tfd.use_implementation("portable"):
    tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])
folder = os.environ["XDG_CACHE_HOME"]
os.chmod(folder, 0)
if os.getuid() == 0:
    os.setuid(12345)  # which has no name
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    print(tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]]).numpy().item())
print(*[each.message for each in warned if "tf_deform" in str(each.message)])
"""


def test_a_user_without_a_name_and_with_an_unreadable_cache_runs_the_portable_form(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", UNREADABLE],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    folder.chmod(0o700)
    sampled, warning = run.stdout.splitlines() or [run.stderr, ""]
    assert sampled == "1.5"
    assert "the compiled library cannot be read: " in warning
    assert "Permission denied" in warning


def test_sources_that_are_edited_count_in_the_next_process(monkeypatch, tmp_path):
    before = location.library_path()
    monkeypatch.setattr(location, "SOURCES", tmp_path)
    assert location.library_path() == before


# What a wheel brings


@pytest.fixture
def packaged(cache, monkeypatch, tmp_path):
    """Returns the path of a whole library that came with the package, beside an empty cache."""
    path = tmp_path / "package" / OPS
    path.parent.mkdir()
    for name in (OPS, KERNELS):
        path.with_name(name).write_text(f"packaged {name}")
    monkeypatch.setattr(location, "PACKAGED", path.parent)
    location.write_record(path.parent)
    return path


def test_what_the_package_came_with_is_used_until_the_user_builds(packaged):
    assert location.library_path() == packaged
    location.cached_path().parent.mkdir(parents=True)
    location.cached_path().touch()
    assert location.library_path() == location.cached_path()


@pytest.mark.parametrize("built", [False, True])
def test_a_packaged_library_of_other_sources_is_passed_over(packaged, built):
    record = packaged.with_name("record.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "sources": "older"}))
    if built:
        location.cached_path().parent.mkdir(parents=True)
        location.cached_path().touch()
    assert location.library_path() == location.cached_path()
    assert not location.comes_with_libraries()


def test_without_a_home_folder_the_packaged_library_is_used(packaged, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert location.library_path() == packaged


# Building


@pytest.fixture
def compiled(cache, monkeypatch):
    """Has a compiler that takes no time; returns the list of what it compiled."""
    calls = []

    def compile_nothing(folder, **definitions):
        calls.append(definitions)
        time.sleep(0.2)
        made = building.CUDA_KERNELS if "NVCC" in definitions else OPS
        (folder / made).write_text(f"built {len(calls)} times")

    monkeypatch.setattr(building, "run_cmake", compile_nothing)
    return calls


def test_what_is_whole_is_not_built_again_unless_forced(compiled, capsys):
    command.main(["build"])
    command.main(["build"])
    assert len(compiled) == 1
    assert capsys.readouterr().out.endswith(f"{OPS} is there already.\n")
    command.main(["build", "--force"])
    assert len(compiled) == 2
    assert location.library_path().read_text() == "built 2 times"
    assert location.fault_of(location.library_path()) == ""


def test_what_the_package_came_with_is_not_built(packaged, compiled, capsys):
    command.main(["build"])
    assert not compiled
    assert capsys.readouterr().out == f"{packaged} is there already.\n"


def test_cuda_kernels_are_added_to_what_the_package_came_with_and_used(
    packaged, compiled, monkeypatch
):
    monkeypatch.setattr(building, "_nvcc", lambda: "nvcc")
    command.main(["build", "--cuda"])
    assert compiled == [{"NVCC": "nvcc"}]
    path = location.library_path()
    assert path == location.cached_path()
    assert location.fault_of(path) == ""
    found = {each.name: each.read_text() for each in path.parent.glob("*.so")}
    assert found == {
        OPS: f"packaged {OPS}",
        KERNELS: f"packaged {KERNELS}",
        building.CUDA_KERNELS: "built 1 times",
    }
    command.main(["build", "--cuda"])
    assert len(compiled) == 1


def test_a_damaged_packaged_library_is_built_in_the_cache(packaged, compiled):
    truncate(packaged, 3)
    command.main(["build"])
    assert location.library_path() == location.cached_path()
    assert location.fault_of(location.library_path()) == ""


def test_what_is_damaged_is_built_again_and_said(compiled, capsys):
    command.main(["build"])
    truncate(location.library_path(), 3)
    command.main(["build"])
    assert f"{OPS} is not the file that was built" in capsys.readouterr().out
    assert location.fault_of(location.library_path()) == ""


def test_the_next_build_removes_what_a_killed_one_left(compiled, cache):
    own = location.library_path().parent.name
    for name in (own, "killed", "at-work"):
        (cache / f"building-{name}.x1" / "CMakeFiles").mkdir(parents=True)
        (cache / f"building-{name}.lock").touch()
    (cache / "mine").mkdir()
    with open(cache / "building-at-work.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command.main(["build"])
    locks = {f"building-{name}.lock" for name in (own, "killed", "at-work")}
    assert {each.name for each in cache.iterdir()} == {own, "mine", "building-at-work.x1", *locks}


def test_of_builds_at_once_one_compiles(compiled):
    threads = [threading.Thread(target=building.build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert location.fault_of(location.library_path()) == ""


def test_a_build_that_fails_keeps_what_was_there(compiled, monkeypatch):
    command.main(["build"])

    def fail(folder, **_):
        raise subprocess.CalledProcessError(1, "cmake")

    monkeypatch.setattr(building, "run_cmake", fail)
    with pytest.raises(SystemExit, match=r"The library was not built: .*cmake"):
        command.main(["build", "--force"])
    assert location.library_path().read_text() == "built 1 times"
    assert not list(location.library_path().parents[1].glob("building-*/"))


def run_command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tf_deform", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_build_that_is_ended_leaves_nothing(tmp_path):
    (tmp_path / "bin").mkdir()
    cmake = tmp_path / "bin" / "cmake"
    cmake.write_text("#!/bin/sh\nexec sleep 60\n")
    cmake.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    builds = {
        number: run_command("build", PATH=path, XDG_CACHE_HOME=str(tmp_path / number.name))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    for number, build in builds.items():
        assert build.stdout.readline().startswith("Building for TensorFlow")
        time.sleep(0.5)
        os.killpg(build.pid, number)
        _, said = build.communicate(timeout=60)
        assert build.returncode == 1
        assert len(said.splitlines()) == 1, said
        cache = tmp_path / number.name / "tf_deform"
        (lock,) = cache.iterdir()
        assert lock.suffix == ".lock"


def test_commands_print_their_own_lines_alone(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    for run in [run_command("info"), run_command("--help")]:
        out, said = run.communicate(timeout=120)
        assert run.returncode == 0
        assert out
        assert not said
