"""Building the compiled library.

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

CUDA_KERNELS = "tf_deform_kernels_cuda.so"


def build(cuda=False, force=False):
    """Builds the library with CMake, and the CUDA kernels if asked to.

    What is there and whole is not built again, unless forced. What is built goes to the user's
    cache, CUDA kernels together with a copy of the library that the package came with.
    """
    nvcc = _nvcc() if cuda else None
    used, path = location.library_path(), location.cached_path()
    wanted = [used, used.with_name(CUDA_KERNELS)] if cuda else [used]
    if not force and not any(map(_fault, wanted)):
        print(f"{wanted[-1]} is there already.")
        return
    path.parents[1].mkdir(parents=True, exist_ok=True)
    with _lock_of(path.parent):
        _remove_leftovers(path.parent)
        if path.exists():  # by now: another process may have built it
            used = path
        fault = _fault(used)
        if fault and used.exists():
            print(f"{fault}.")
        if fault or force:
            _build_library(path)
            used = path
        if nvcc is not None and (force or _fault(path.with_name(CUDA_KERNELS))):
            _build_cuda(used, path, nvcc)


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
        raise FileNotFoundError(f"there is no {location.SOURCES}: install tf_deform anew")
    with _folder_for(path.parent) as folder:
        print(f"Building for TensorFlow {tf.__version__} (one to three minutes) ...", flush=True)
        flags = dict(
            each[2:].split("=") for each in tf.sysconfig.get_compile_flags() if "=" in each
        )
        run_cmake(
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


def _build_cuda(used, path, nvcc):
    with _folder_for(path.parent) as folder:
        print(f"Building CUDA kernels with {nvcc} (three to ten minutes) ...", flush=True)
        run_cmake(pathlib.Path(folder), NVCC=nvcc)
        made = pathlib.Path(folder, "made")
        made.mkdir()
        for library in (used, *used.parent.glob("tf_deform_kernels_*.so")):
            shutil.copy(library, made)
        shutil.move(pathlib.Path(folder, CUDA_KERNELS), made / CUDA_KERNELS)
        _publish(made, path.parent)
    print(f"Built {path.with_name(CUDA_KERNELS)}")


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


def run_cmake(folder, *targets, **definitions):
    """Configures the sources in the folder by the definitions, and builds the targets, or all.

    Raises:
        FileNotFoundError: there is no CMake.
        subprocess.CalledProcessError: it fails.
    """
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None:
        raise FileNotFoundError("CMake is missing: pip install cmake ninja")
    configure = [cmake, "-S", str(location.SOURCES), "-B", str(folder)]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    build = [cmake, "--build", str(folder), "--parallel", jobs]
    subprocess.run([*build, "--target", *targets] if targets else build, check=True)


def _tool(name):
    """Returns the path of a program, on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))
