"""What it takes to compile and link against a TensorFlow that is not installed."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# Of TensorFlow's wheels for Linux, the tags that some version has.
PLATFORMS = ("manylinux_2_17", "manylinux_2_27")
PARTS = ("tensorflow/include/", "tensorflow/libtensorflow_")


def fetch(version, machine, cache):
    """Returns a folder with the `include` and `libtensorflow_*` of TensorFlow's wheel.

    pip downloads the wheel of half a gigabyte, of which those parts, 1 GB, are kept in the cache.

    Args:
        version: TensorFlow's, such as "2.21.0".
        machine: what it runs on, such as "x86_64".
        cache: the folder to keep them in.
    """
    kept = pathlib.Path(cache, f"tensorflow-{version}-{machine}")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        print(f"==> Downloading TensorFlow {version} for {machine} (half a gigabyte)", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(version, machine, folder)
            (wheel,) = pathlib.Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as packed:
                parts = [name for name in packed.namelist() if name.startswith(PARTS)]
                packed.extractall(pathlib.Path(folder, "parts"), parts)
            shutil.move(pathlib.Path(folder, "parts"), kept)
    return kept / "tensorflow"


def _download(version, machine, folder):
    platforms = [f"--platform={each}_{machine}" for each in PLATFORMS]
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, "--dest", folder, f"tensorflow=={version}"], check=True)
