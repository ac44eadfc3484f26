"""Tries the wheels of `make wheels` in fresh environments, one for each TensorFlow.

    make wheels-test                      all rows: 20 GB to download, one to four minutes each
    make wheels-test ARGS="--only 2.20"   those whose TensorFlow or name has "2.20" in it

Each row makes an environment, installs the wheel there, and with no compiler and no cache runs
`python -m tf_deform info` and `check` and the tests of the compiled ops; then the environment is
removed. The wheel without a library runs the portable form; then a library is built there, with
the compiler on the PATH, and checked. Pythons are pyenv's, or those on the PATH. The exit status is
1 if a row fails.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ("compiled_test.py", "conftest.py", "oracles.py", "progress.py")
FIRST_WITH_XLA = (2, 20)
SAMPLE = (
    "import tf_deform as tfd; print(tfd.ops.sample([[[1.0], [3.0]]], [[[0.25]]]).numpy().item())"
)


class Row(NamedTuple):
    """An environment: a package of TensorFlow, which version pip is asked for, and the Python."""

    package: str
    version: str
    python: str
    pure: bool = False

    @property
    def name(self):
        pure = ", pure wheel" if self.pure else ""
        return f"{self.package}=={self.version}, Python {self.python}{pure}"


# The oldest and the newest patch of each minor version.
ROWS = (
    Row("tensorflow", "2.16.1", "3.10"),
    Row("tensorflow", "2.16.*", "3.12"),
    Row("tensorflow", "2.17.0", "3.11"),
    Row("tensorflow", "2.17.*", "3.10"),
    Row("tensorflow", "2.18.0", "3.12"),
    Row("tensorflow", "2.18.*", "3.11"),
    Row("tensorflow", "2.19.0", "3.10"),
    Row("tensorflow", "2.19.*", "3.12"),
    Row("tensorflow", "2.20.0", "3.13"),
    Row("tensorflow", "2.20.*", "3.11"),
    Row("tensorflow", "2.21.0", "3.12"),
    Row("tensorflow", "2.21.*", "3.13"),
    Row("tensorflow-cpu", "2.20.0", "3.12"),
    Row("tensorflow-cpu", "2.21.0", "3.10"),
    Row("tensorflow", "2.21.0", "3.11", pure=True),
    Row("tensorflow-cpu", "2.20.0", "3.11", pure=True),
    Row("tensorflow-cpu", "2.21.0", "3.11", pure=True),
)


class Environment:
    """A fresh environment in a folder, whose programs see no others."""

    def __init__(self, row, folder):
        self.row, self.folder = row, folder
        base = _python(row.python)
        subprocess.run([base, "-m", "venv", folder / "venv"], check=True)
        self.variables = {
            "HOME": str(folder),
            "PATH": str(folder / "venv" / "bin"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    def install(self, *packages):
        """Installs packages with pip, which may read its own settings and cache."""
        command = [self.folder / "venv/bin/python", "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--no-compile"]
        subprocess.run([*command, *options, *packages], check=True)

    def run(self, *arguments):
        """Returns what a program prints; raises RuntimeError if it fails."""
        run = subprocess.run(
            [self.folder / "venv/bin/python", *arguments],
            env=self.variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if run.returncode:
            print(run.stdout, file=sys.stderr)
            raise RuntimeError(f"{' '.join(map(str, arguments))} failed ({run.returncode})")
        return run.stdout


def main():
    """Runs the rows asked for, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="words of the rows to run")
    parser.add_argument("--folder", default="dist", help="where the wheels are (default: dist)")
    options = parser.parse_args()
    found = {
        kind: sorted(pathlib.Path(options.folder).glob(f"tf_deform-*-{kind}*.whl"))
        for kind in ("py3-none-manylinux", "py3-none-any")
    }
    if not all(len(paths) == 1 for paths in found.values()):
        sys.exit(f"{options.folder} should hold one wheel of each kind: run make wheels")
    wheel, pure = (paths[0].resolve() for paths in found.values())
    rows = [row for row in ROWS if any(word in row.name for word in options.only)]
    lines, failed = [], False
    for number, row in enumerate(rows, 1):
        print(f"==> {number} of {len(rows)}: {row.name}", flush=True)
        start = time.monotonic()
        try:
            said = try_row(row, pure if row.pure else wheel)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            said, failed = f"FAILED: {error}", True
        lines.append(f"| {row.name} | {said} | {time.monotonic() - start:.0f} s |")
        print(lines[-1], flush=True)
    print("\n| environment | result | time |\n|---|---|---|", *lines, sep="\n")
    sys.exit(failed)


def try_row(row, wheel):
    """Returns what was found in the row's environment; raises RuntimeError if it is wrong."""
    with tempfile.TemporaryDirectory(prefix="wheels-test-") as folder:
        environment = Environment(row, pathlib.Path(folder))
        if row.package == "tensorflow":
            environment.install(f"tensorflow=={row.version}", wheel)
        else:  # tf_deform asks for tensorflow, which would replace it
            environment.install(f"{row.package}=={row.version}", "keras>=3.7")
            environment.install("--no-deps", wheel)
        info = environment.run("-m", "tf_deform", "info")
        version = re.search(r"TensorFlow (\S+), Keras (\S+)", info)
        if row.pure:
            _expect("library: none" in info and "run python -m tf_deform build" in info, info)
            _expect(environment.run("-c", SAMPLE).endswith("1.5\n"), "a wrong sample")
            environment.install("cmake", "ninja")
            environment.variables["PATH"] += os.pathsep + os.environ["PATH"]
            environment.run("-m", "tf_deform", "build")
            environment.run("-m", "tf_deform", "check")
            return f"TensorFlow {version[1]}, Keras {version[2]}: portable, and built there"
        _expect(f"library: {folder}" in info, info)
        minor = tuple(map(int, version[1].split(".")[:2]))
        _expect(f"XLA: {'yes' if minor >= FIRST_WITH_XLA else 'no'}" in info, info)
        environment.run("-m", "tf_deform", "check")
        environment.install("pytest", "pytest-xdist", "hypothesis")
        for name in TESTS:
            shutil.copy(ROOT / "tests" / name, folder)
        tests = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS[0])
        passed = re.search(r"(\d+ passed.*?)(, \d+ warnings?)? in ", tests)
        return f"TensorFlow {version[1]}, Keras {version[2]}: compiled, {passed[1]}"


def _expect(holds, text):
    if not holds:
        raise RuntimeError(f"not as expected: {text}")


def _python(version):
    """Returns the path of a Python, such as "3.12"."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = sorted(pathlib.Path(root, "versions").glob(f"{version}.*/bin/python"))
    path = found[-1] if found else shutil.which(f"python{version}")
    if path is None:
        raise RuntimeError(f"there is no Python {version}, in pyenv or on the PATH")
    return path


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))  # cleaning up first
    main()
