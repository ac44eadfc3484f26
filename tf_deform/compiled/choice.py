"""Which implementation runs: what was asked for, and whether the compiled library can be used."""

from __future__ import annotations

import contextlib
import warnings
from typing import NamedTuple

import tensorflow as tf

from tf_deform.annotations import Implementation
from tf_deform.compiled import loading, location, proof, switch
from tf_deform.compiled.tracing import in_save_context, traced_for_export


class CompiledStatus(NamedTuple):
    """Whether the compiled library can be used, on which kinds of device, and what to know of it.

    `reason` says why it cannot be used, or what it cannot do, and is "" otherwise.
    """

    available: bool
    devices: tuple[str, ...]
    reason: str


def compiled_status() -> CompiledStatus:
    """Returns the state of the compiled library: (available, devices, reason).

    `available` is whether it can be used, `devices` the kinds of device that it has kernels for,
    such as ("CPU", "GPU"), and `reason` why it cannot be used, or what it cannot do; "" if there is
    nothing to say.

    Example:
        >>> compiled_status().devices in ((), ("CPU",), ("CPU", "GPU"))
        True
    """
    library, reason, _ = loading.load()
    reason = reason if library is None else _why_unproven()
    if reason:
        return CompiledStatus(available=False, devices=(), reason=reason)
    reasons = [loading.why_not_xla(), _gpu_is_idle()]
    devices = ("CPU",) if loading.said_by("TfDeformCudaError") else ("CPU", "GPU")
    return CompiledStatus(available=True, devices=devices, reason="; ".join(filter(None, reasons)))


def set_implementation(name: Implementation) -> None:
    """Chooses the implementation for the whole process, for functions traced from then on.

    The last word counts: inside a block of `use_implementation` as well, and it lasts when the
    block is left. A `tf.function` or Keras model traced earlier keeps the implementation it was
    traced with. The environment variable TF_DEFORM_IMPLEMENTATION sets it at import.

    Args:
        name: "auto" (compiled wherever it can run, which is where the library is built and either
            TensorFlow lists no GPU or the library has CUDA kernels that `python -m tf_deform check`
            proved on its cards; otherwise portable), "portable" (TensorFlow ops only) or "compiled"
            (the compiled library, or an error). What is saved
            as a SavedModel is portable, unless `export_saved_model` is asked for "compiled". Under
            "auto" so is what Keras exports to any format, and what TensorFlow's LiteRT converter,
            tf2onnx, OpenVINO and TensorFlow.js trace.

    The gradients of the CUDA kernels add in no fixed order: they fail where TensorFlow is told to
    be deterministic, by `tf.config.experimental.enable_op_determinism`. The CPU's never do.

    Raises:
        ValueError: the name is none of these.
        RuntimeError: "compiled", and the library cannot be used; the message says why.

    Example:
        >>> set_implementation("portable")
        >>> set_implementation("auto")
    """
    check(name)
    switch.set_lasting(name)


def use_implementation(name: Implementation) -> contextlib.AbstractContextManager[None]:
    """Returns a context manager that chooses the implementation until it is left.

    It is process-wide as `set_implementation` is, so that threads of tf.distribute see it. Where
    blocks of several threads overlap, the one entered last counts, and when all are left the
    process is where it was.

    Args:
        name: "auto" (compiled wherever it can run, which is where the library is built and either
            TensorFlow lists no GPU or the library has CUDA kernels that `python -m tf_deform check`
            proved on its cards; otherwise portable), "portable" (TensorFlow ops only) or "compiled"
            (the compiled library, or an error).

    Raises:
        ValueError: the name is none of these.
        RuntimeError: "compiled", and the library cannot be used; the message says why.

    Example:
        >>> with use_implementation("portable"):
        ...     pooled = tf.zeros([])  # whatever is traced here holds TensorFlow ops only
    """
    check(name)
    return switch.lent(name)


@contextlib.contextmanager
def traced_with(name):
    """Returns a context manager in which this thread traces and saves "portable" or "compiled".

    Whatever the process is asked for, and other threads do meanwhile: exports use it.

    Raises:
        ValueError, RuntimeError: as `set_implementation`.
    """
    check(name)
    with switch.in_this_thread(name):
        yield


def check(name):
    """Raises what `set_implementation` does."""
    switch.check_name(name)
    if name == "compiled":
        library, reason, _ = loading.load()
        reason = reason if library is None else _why_unproven()
        if reason:
            raise RuntimeError(f"The compiled implementation cannot be used: {reason}.")


def chosen():
    """Returns whether what is traced now is to call the compiled functions.

    Not while a model is being saved, when TensorFlow traces anew, but in `traced_with`: saved
    models are portable. Nor under "auto" in what is traced for an exporter or converter, nor in a
    second derivative.

    Raises:
        RuntimeError: the environment asks for "compiled", and the library cannot be used.
    """
    own = switch.asked_by_this_thread()
    if own is not None:
        return own == "compiled"
    if in_save_context() or not _is_used():
        return False
    return switch.asked() == "compiled" or not traced_for_export()


def stays_on_cpu():
    """Returns whether what is traced now is compiled and stays on a CPU: what is saved may not."""
    saved = in_save_context() or switch.asked_by_this_thread() is not None
    return chosen() and not saved and not tf.config.list_physical_devices("GPU")


def supports_jit():
    """Returns whether XLA can compile what `chosen` chooses."""
    return not (_is_used() and loading.why_not_xla())


def _is_used():
    name = switch.asked()
    if name == "compiled":
        check(name)
    return name == "compiled" or (name == "auto" and auto_is_compiled())


@location.once
def auto_is_compiled():
    """Returns whether "auto" means "compiled"; warns of a library that should work and does not."""
    library, reason, broken = loading.load()
    if library is not None:
        reason = _why_unproven()
        broken = bool(reason)
    if broken:
        warnings.warn(f"tf_deform runs its portable implementation: {reason}.", stacklevel=2)
    return library is not None and not broken and not _gpu_is_idle()


def _why_unproven():
    """Returns why nobody may use the library beside a GPU for which it has kernels, or ""."""
    if tf.config.list_physical_devices("GPU") and not loading.said_by("TfDeformCudaError"):
        return proof.why_unproven()
    return ""


def _gpu_is_idle():
    """Returns why "auto" must not use the library, whose kernels would leave a GPU idle, or ""."""
    error = loading.said_by("TfDeformCudaError")
    if error and tf.config.list_physical_devices("GPU"):
        return f'a GPU is listed, for which {error}, so "auto" is portable'
    return ""
