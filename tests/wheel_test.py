"""The wheels, with the compiled library and without, installed by pip; and the sources' archive."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tarfile

import pytest

import tf_deform as tfd
from tf_deform.compiled import location

ROOT = pathlib.Path(tfd.__file__).parents[1]
WHEELS = ROOT / "custom_ops" / "wheels"
MINOR = location.minor()

STATE = """
import tf_deform as tfd
from tf_deform.compiled import location
print(tfd.__file__, location.library_path(), location.cached_path().parent.name, sep="\\n")
print(*tfd.compiled_status(), sep="\\n")
print(float(tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]])[0, 0, 0]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a folder with the wheels and the archive, made for the TensorFlow installed."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, WHEELS / "build.py", "--installed", "--folder", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def installed(folder, tag):
    """Returns a folder into which pip has installed the wheel with a tag, and nothing else."""
    (wheel,) = folder.glob(f"*-py3-none-{tag}.whl")
    site = folder / f"site-{tag.strip('*')}"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    return site


def test_the_programs_beside_python_are_found_with_no_path(monkeypatch):
    monkeypatch.syspath_prepend(WHEELS)  # for its `headers`
    specification = importlib.util.spec_from_file_location("build_wheels", WHEELS / "build.py")
    build = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build)
    monkeypatch.delenv("PATH")
    build._run_quietly(["pytest", "--version"])


@pytest.fixture(scope="module")
def site(made):
    """Returns where the wheel with the library is installed."""
    return installed(made, "linux*")


@pytest.fixture(scope="module")
def pure(made):
    """Returns where the wheel without the library is installed."""
    return installed(made, "any")


def run_installed(site, *arguments):
    """Returns what Python does with the installed package, no compiler and an empty cache."""
    environment = {
        "HOME": str(site),
        "PATH": "",
        "PYTHONPATH": os.pathsep.join([str(site), *filter(os.path.isdir, sys.path[1:])]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", *arguments]
    return subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True)


def state_of(site):
    """Returns what the installed package says of its library, and what it says in warnings."""
    run = run_installed(site, "-c", STATE)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), [
        line for line in run.stderr.splitlines() if "portable implementation" in line
    ]


def test_the_library_in_the_wheel_is_used(site):
    (package, path, _, available, devices, reason, sampled), warned = state_of(site)
    assert package.startswith(str(site))
    assert path.startswith(str(site))
    assert (available, devices, reason) == ("True", "('CPU',)", tfd.compiled_status().reason)
    assert float(sampled) == 1.5
    assert not warned
    info = run_installed(site, "-m", "tf_deform", "info")
    assert f"library: {path}\n" in info.stdout, info.stderr


CHECK = """
import sys
from tf_deform import checking
sys.exit(checking.check(dtypes=("float32",)))
"""


def test_the_library_in_the_wheel_passes_the_check(site):
    """In one dtype: checking_test.py checks a library of these sources in all."""
    run = run_installed(site, "-c", CHECK)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "CPU:0 with" in run.stdout  # the library, not the portable form
    assert " checks, 0 faults" in run.stdout


def test_another_tensorflow_is_told_so_in_one_line_and_runs_the_portable_form(site):
    path = site / "tf_deform" / "library" / f"tf_deform_ops_{MINOR}.so"
    other = path.rename(path.with_name("tf_deform_ops_2.99.so"))
    try:
        (_, _, _, available, _, reason, sampled), warned = state_of(site)
    finally:
        other.rename(path)
    assert (available, float(sampled)) == ("False", 1.5)
    assert re.fullmatch(
        r"no library for TensorFlow \S+ and these sources is built "
        r"\(there are some for TensorFlow 2\.99\): run python -m tf_deform build",
        reason,
    )
    assert len(warned) == 1
    assert reason in warned[0]


@pytest.mark.parametrize("name", [f"tf_deform_ops_{MINOR}.so", "tf_deform_kernels_avx2.so"])
def test_a_damaged_library_in_the_wheel_is_not_loaded(site, name):
    path = site / "tf_deform" / "library" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    try:
        (_, _, _, available, _, reason, sampled), warned = state_of(site)
    finally:
        path.write_bytes(whole)
    assert (available, float(sampled)) == ("False", 1.5)
    assert f"{name} is not the file that was built" in reason
    assert reason.endswith(": install tf_deform anew")
    assert len(warned) == 1


def test_the_wheel_without_a_library_runs_the_portable_form_and_says_how_to_build_one(pure):
    (package, _, cached, available, _, reason, sampled), warned = state_of(pure)
    assert package.startswith(str(pure))
    assert cached == location.cached_path().parent.name  # which names a digest of the sources
    assert (available, float(sampled)) == ("False", 1.5)
    assert reason.endswith("and these sources is built: run python -m tf_deform build")
    assert not warned


def test_both_wheels_bring_the_same_sources_as_the_checkout(site, pure):
    for installed_at in (site, pure):
        sources = installed_at / "tf_deform" / "custom_ops"
        for path in (path for room in location.ROOMS for path in location.SOURCES.glob(room)):
            if path.suffix in (".cc", ".cmake", ".cu", ".h", ".txt"):
                copy = sources / path.relative_to(location.SOURCES)
                assert copy.read_bytes() == path.read_bytes()


def test_cmake_finds_all_it_needs_in_the_wheel(pure, tmp_path):
    definitions = [f"-DTF_MINOR={MINOR}", "-DTF_ABI=1", "-DTF_INCLUDE=x", "-DTF_LIBRARY=x"]
    sources = pure / "tf_deform" / "custom_ops"
    for each in (definitions, ["-DNVCC=/nvcc"]):
        command = ["cmake", "-S", sources, "-B", tmp_path / each[0], *each]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_the_archive_has_what_its_own_wheel_and_build_take(made):
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    kept = [path for path in WHEELS.iterdir() if path.is_file()]
    kept += [path for room in location.ROOMS for path in location.SOURCES.glob(room)]
    kept += [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]
    kept += (ROOT / "tf_deform").rglob("*.py")
    missing = {path.relative_to(ROOT).as_posix() for path in kept if path.is_file()} - names
    assert not missing


def undefined_in(path):
    """Returns the names that a library takes from others, with their versions."""
    command = ["nm", "--dynamic", "--undefined-only", "--format=just-symbols", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_library_takes_nothing_that_some_tensorflow_of_its_version_lacks():
    names = undefined_in(location.library_path())
    assert "XLA_FFI_GetApi" not in names  # not in tensorflow-cpu, nor for aarch64
    if tfd.compiled.loading.said_by("TfDeformXlaError") is not None:
        assert "_ZN3xla3ffi12GetXlaFfiApiEv" in names


NEWER = """
#include <dlfcn.h>
#include <condition_variable>
#include <memory>
void* Use(std::condition_variable& done, std::unique_lock<std::mutex>& lock, long size) {
  done.wait(lock);
  auto count = std::make_shared<int>(1), other = count;
  return dlopen(dlerror(), 0) ? dlsym(nullptr, "") : new int[size][4];
}
int Find(void* it) { Dl_info own; return dladdr(it, &own); }
"""


def test_a_library_for_wheels_runs_on_older_systems_than_the_one_that_made_it(tmp_path):
    source, library = tmp_path / "newer.cc", tmp_path / "newer.so"
    source.write_text(NEWER)
    options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-include", WHEELS / "old_symbols.h"]
    linked = [WHEELS / "old_symbols.cc", "-Wl,--no-as-needed", "-l:libdl.so.2"]
    subprocess.run(["c++", *options, source, *linked, "-o", library], check=True)
    versions = re.findall(r"@+(GLIBC|GLIBCXX)_([\d.]+)", " ".join(undefined_in(library)))
    numbers = {(kind, tuple(map(int, version.split(".")))) for kind, version in versions}
    assert max(number for kind, number in numbers if kind == "GLIBC") <= (2, 28)
    assert max(number for kind, number in numbers if kind == "GLIBCXX") <= (3, 4, 24)
