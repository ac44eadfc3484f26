"""Building the compiled library, and a wheel that brings it along.

Who may delete what in the cache: each library has a lock, and only who holds it may build there, or
remove a `building-` folder of that library. A build removes all of those that nobody is at work on,
which are what builds that were killed have left.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import tensorflow as tf

from tf_deform.compiled import location
from tf_deform.files import replaced_file


def build(cuda=False, force=False):
    """Builds the library with CMake, and the CUDA kernels if asked to.

    What is there and whole is not built again, unless forced.
    """
    nvcc = _nvcc() if cuda else None
    path = location.library_path()
    kernels = path.with_name("tf_deform_kernels_cuda.so")
    wanted = [path, kernels] if cuda else [path]
    if not force and not any(map(_fault, wanted)):
        print(f"{wanted[-1]} is there already.")
        return
    path.parents[1].mkdir(parents=True, exist_ok=True)
    with _lock_of(path.parent):
        _remove_leftovers(path.parent)
        fault = _fault(path)  # anew: another process may have built it
        if fault and path.exists():
            print(f"{fault}.")
        if fault or force:
            _build_library(path)
        if nvcc is not None and (force or _fault(kernels)):
            _build_cuda(kernels, nvcc)


def _fault(path):
    return location.fault_of(path) if path.exists() else "it is not there"


@contextlib.contextmanager
def _lock_of(library, wait=True):
    """Yields whether this process alone may build a library, given by its folder, meanwhile."""
    import fcntl  # not on Windows, where nothing is built

    with open(library.with_name(f"building-{library.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait:
                print("Waiting for another process that builds ...", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield wait
        else:
            yield True


def _folder_for(library):
    """Returns a context manager: a folder to build in, on the library's file system."""
    return tempfile.TemporaryDirectory(prefix=f"building-{library.name}.", dir=library.parent)


def _remove_leftovers(own):
    """Removes what killed builds have left: of this library, and of others that nobody builds."""
    for lock in own.parent.glob("building-*.lock"):
        library = own.with_name(lock.name.removeprefix("building-").removesuffix(".lock"))
        other = contextlib.nullcontext(True) if library == own else _lock_of(library, wait=False)
        with other as mine:
            for left in own.parent.glob(f"building-{library.name}.*/") if mine else ():
                shutil.rmtree(left, ignore_errors=True)


def _build_library(path):
    if not location.SOURCES.is_dir():
        raise FileNotFoundError(
            f"there is no {location.SOURCES}: build from a checkout, `pip install --editable .`"
        )
    with _folder_for(path.parent) as folder:
        print(f"Building for TensorFlow {tf.__version__} (one to three minutes) ...", flush=True)
        flags = dict(
            each[2:].split("=") for each in tf.sysconfig.get_compile_flags() if "=" in each
        )
        _compile(
            pathlib.Path(folder),
            TF_INCLUDE=tf.sysconfig.get_include(),
            TF_LIBRARY=tf.sysconfig.get_lib(),
            TF_ABI=flags.get("_GLIBCXX_USE_CXX11_ABI", "1"),
            TF_MINOR=location.minor(),
        )
        made = pathlib.Path(folder, "made")
        made.mkdir()
        for library in pathlib.Path(folder).glob("*.so"):
            shutil.move(library, made)
        _publish(made, path.parent)
    print(f"Built {path}")


def _build_cuda(path, nvcc):
    library = path.parent
    with _folder_for(library) as folder:
        print(f"Building CUDA kernels with {nvcc} (three to ten minutes) ...", flush=True)
        _compile(pathlib.Path(folder), NVCC=nvcc)
        made = pathlib.Path(shutil.copytree(library, pathlib.Path(folder, "made")))
        shutil.move(pathlib.Path(folder, path.name), made / path.name)
        _publish(made, library)
    print(f"Built {path}")


def _publish(made, library):
    """Puts the folder, complete and with its record, in the place of the library's."""
    location.write_record(made)
    if library.exists():
        library.rename(made.with_name("before"))
    made.rename(library)


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


def make_wheel(folder):
    """Makes a wheel of the package with the library for this TensorFlow inside, in the folder."""
    build()
    checkout, wheels = location.SOURCES.parent, [sys.executable, "-m", "wheel"]
    shutil.rmtree(checkout / "build" / "lib", ignore_errors=True)  # else it holds deleted files
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", made]
        subprocess.run([*pip, checkout], check=True)
        (plain,) = pathlib.Path(made).glob("*.whl")
        subprocess.run([*wheels, "unpack", "--dest", made, plain], check=True)
        plain.unlink()
        (unpacked,) = pathlib.Path(made).glob("tf_deform-*")
        shutil.copytree(
            location.library_path().parent, unpacked / "tf_deform" / location.PACKAGED.name
        )
        subprocess.run([*wheels, "pack", "--dest-dir", made, unpacked], check=True)
        (packed,) = pathlib.Path(made).glob("*.whl")
        tag = sysconfig.get_platform().replace("-", "_")
        subprocess.run([*wheels, "tags", "--remove", "--platform-tag", tag, packed], check=True)
        (tagged,) = pathlib.Path(made).glob("*.whl")
        target = pathlib.Path(folder, tagged.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(target) as partial:
            shutil.copy(tagged, partial)
        print(f"Made {target}")


def _compile(folder, **definitions):
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None:
        raise FileNotFoundError("CMake is missing: pip install cmake ninja")
    configure = [cmake, "-S", str(location.SOURCES), "-B", str(folder)]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    subprocess.run([cmake, "--build", str(folder), "--parallel", jobs], check=True)


def _tool(name):
    """Returns the path of a program, on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))
