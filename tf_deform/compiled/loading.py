"""Loading the compiled library, once a process, and asking it what it can do."""

import ctypes
from typing import Any, NamedTuple

import tensorflow as tf

from tf_deform.compiled import gradients, location


class Loaded(NamedTuple):
    """The module of the library's ops, or None and why there is none.

    `broken` tells one that is there but cannot be used, or that the package should have, from one
    that was never built.
    """

    library: Any = None
    reason: str = ""
    broken: bool = False


@location.once
def load():
    """Returns the library, loaded by the first thread that asks while others wait."""
    try:
        path = location.library_path()
        if not path.exists():
            others = ", ".join(location.built_for())
            built = f" (there are some for TensorFlow {others})" if others else ""
            return Loaded(
                reason=f"no library for TensorFlow {tf.__version__} and these sources is "
                f"built{built}: run python -m tf_deform build",
                broken=location.comes_with_libraries(),  # whose users expect one to run
            )
        if fault := location.fault_of(path):
            return Loaded(reason=f"{fault}: {_remedy(path)}", broken=True)
        library = tf.load_op_library(str(path))
        if not instruction_set():
            return Loaded(reason=f"{path} finds no kernels for this processor", broken=True)
        gradients.register(library)
    except OSError as error:
        return Loaded(reason=f"the compiled library cannot be read: {error}", broken=True)
    except (tf.errors.OpError, AttributeError) as error:
        return Loaded(reason=f"{path} does not load: {error}", broken=True)
    return Loaded(library)


def _remedy(path):
    if path.parent == location.PACKAGED:
        return "install tf_deform anew"
    return "run python -m tf_deform build"


def instruction_set():
    """Returns the instruction set of the loaded kernels, such as "avx512" or "avx512bf16"."""
    return said_by("TfDeformInstructionSet")


def said_by(name):
    """Returns what a function of the library returns, None if the library has no such function."""
    function = getattr(ctypes.CDLL(str(location.library_path())), name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()


def why_not_xla():
    """Returns why XLA cannot compile the library's ops for all devices listed, "" if it can."""
    gpus = tf.config.list_physical_devices("GPU")
    return why_not_xla_on("CPU") or (why_not_xla_on("GPU") if gpus else "")


def why_not_xla_on(kind):
    """Returns why XLA cannot compile the library's ops for a "CPU" or a "GPU", "" if it can."""
    error = said_by("TfDeformXlaError")
    if error is None:
        return "it has no XLA kernels, which take TensorFlow 2.20, so layers say supports_jit=False"
    if not error and kind == "GPU":
        if said_by("TfDeformCudaError"):
            return "XLA finds none of its kernels for a GPU, so layers say supports_jit=False"
        error = said_by("TfDeformXlaGpuError")
    return f"XLA does not take its kernels: {error}" if error else ""
