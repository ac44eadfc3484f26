"""Builds the compiled library, packs it, or says what is there.

python -m tf_deform build [--cuda] | wheel | info
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import keras
import tensorflow as tf

import tf_deform
from tf_deform import compiled


def main(arguments=None):
    """Runs the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tf_deform", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="compile the library for the installed TensorFlow")
    building.add_argument("--cuda", action="store_true", help="add kernels for NVIDIA GPUs")
    packing = commands.add_parser("wheel", help="make a wheel that brings the library along")
    packing.add_argument("--folder", default="dist", help="where to put it (default: dist)")
    commands.add_parser("info", help="say which versions and which library are there")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            build(options.cuda)
        elif options.command == "wheel":
            wheel(options.folder)
        else:
            info()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"The library was not built: {error}")


def info():
    """Prints the versions, and the state of the compiled library."""
    status = compiled.compiled_status()
    print(f"tf_deform {tf_deform.__version__}")
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}")
    print(f"library: {compiled.library_path() if status.available else 'none'}")
    if status.available:
        print(f"devices: {', '.join(status.devices)} ({compiled.instruction_set()})")
        print(f"XLA: {'no' if compiled.why_not_xla() else 'yes'}")
    if status.reason:
        print(f"note: {status.reason}")


def build(cuda=False):
    """Builds the library with CMake, and the CUDA kernels if asked to, unless they are there."""
    nvcc = _nvcc() if cuda else None
    _build_library(compiled.library_path())
    if nvcc is not None:
        _build_cuda(compiled.library_path().with_name("tf_deform_kernels_cuda.so"), nvcc)


def _build_library(path):
    if path.exists():
        print(f"{path} is there already.")
        return
    if not compiled.SOURCES.is_dir():
        raise FileNotFoundError(
            f"there is no {compiled.SOURCES}: build from a checkout, `pip install --editable .`"
        )
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        print(f"Building for TensorFlow {tf.__version__} (one to three minutes) ...", flush=True)
        flags = dict(
            each[2:].split("=") for each in tf.sysconfig.get_compile_flags() if "=" in each
        )
        _compile(
            pathlib.Path(folder),
            TF_INCLUDE=tf.sysconfig.get_include(),
            TF_LIBRARY=tf.sysconfig.get_lib(),
            TF_ABI=flags.get("_GLIBCXX_USE_CXX11_ABI", "1"),
            TF_MINOR=".".join(tf.__version__.split(".")[:2]),
        )
        made = pathlib.Path(folder, "made")
        made.mkdir()
        for library in pathlib.Path(folder).glob("*.so"):
            shutil.move(library, made)
        shutil.rmtree(path.parent, ignore_errors=True)
        made.rename(path.parent)  # whole or not at all
    print(f"Built {path}")


def _build_cuda(path, nvcc):
    if path.exists():
        print(f"{path} is there already.")
        return
    with tempfile.TemporaryDirectory(dir=path.parents[1]) as folder:
        print(f"Building CUDA kernels with {nvcc} (three to ten minutes) ...", flush=True)
        _compile(pathlib.Path(folder), NVCC=nvcc)
        os.replace(pathlib.Path(folder, path.name), path)
    print(f"Built {path}")


def _nvcc():
    """Returns the path of nvcc: from CUDA_HOME, the PATH or the packages of PyPI."""
    packaged = pathlib.Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    homes = [pathlib.Path(os.environ["CUDA_HOME"], "bin")] if "CUDA_HOME" in os.environ else []
    for folder in (*map(str, homes), None, str(packaged)):
        if found := shutil.which("nvcc", path=folder):
            return found
    raise FileNotFoundError(
        "nvcc is missing: set CUDA_HOME, put it on the PATH, or pip install 'tf-deform[cuda]'"
    )


def wheel(folder):
    """Makes a wheel of the package with the library for this TensorFlow inside, in the folder."""
    build()
    checkout, wheels = compiled.SOURCES.parent, [sys.executable, "-m", "wheel"]
    shutil.rmtree(checkout / "build" / "lib", ignore_errors=True)  # else it holds deleted files
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", made]
        subprocess.run([*pip, checkout], check=True)
        (plain,) = pathlib.Path(made).glob("*.whl")
        subprocess.run([*wheels, "unpack", "--dest", made, plain], check=True)
        plain.unlink()
        (unpacked,) = pathlib.Path(made).glob("tf_deform-*")
        shutil.copytree(
            compiled.library_path().parent, unpacked / "tf_deform" / compiled.PACKAGED.name
        )
        subprocess.run([*wheels, "pack", "--dest-dir", made, unpacked], check=True)
        (packed,) = pathlib.Path(made).glob("*.whl")
        tag = sysconfig.get_platform().replace("-", "_")
        subprocess.run([*wheels, "tags", "--remove", "--platform-tag", tag, packed], check=True)
        (tagged,) = pathlib.Path(made).glob("*.whl")
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        print(f"Made {shutil.copy(tagged, folder)}")


def _compile(folder, **definitions):
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None:
        raise FileNotFoundError("CMake is missing: pip install cmake ninja")
    configure = [cmake, "-S", str(compiled.SOURCES), "-B", str(folder)]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    subprocess.run([cmake, "--build", str(folder), "--parallel", jobs], check=True)


def _tool(name):
    """Returns the path of a program, on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))


if __name__ == "__main__":
    main()
