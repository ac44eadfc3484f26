"""Which implementation of the operators runs: the portable one, or a compiled library.

The portable implementation consists of TensorFlow ops alone. No compiled library comes with this
version, so "auto" means "portable".
"""

import contextlib
import os
from typing import NamedTuple

_IMPLEMENTATIONS = ("auto", "portable", "compiled")
_ENVIRONMENT = "TF_DEFORM_IMPLEMENTATION"


class CompiledStatus(NamedTuple):
    """Whether the compiled library can be used, on which kinds of device, and if not, why."""

    available: bool
    devices: tuple[str, ...]
    reason: str


def compiled_status():
    """Returns the state of the compiled library: (available, devices, reason).

    Example:
        >>> compiled_status().available
        False
    """
    return CompiledStatus(
        available=False,
        devices=(),
        reason="this version of tf_deform comes without a compiled library",
    )


def set_implementation(name):
    """Chooses the implementation for the whole process, for functions traced from then on.

    A `tf.function` or Keras model traced earlier keeps the implementation it was traced with. The
    environment variable TF_DEFORM_IMPLEMENTATION sets it at import.

    Args:
        name: "auto" (the compiled library where it can run), "portable" (TensorFlow ops only) or
            "compiled" (the compiled library, or an error).

    Raises:
        ValueError: the name is none of these.
        RuntimeError: "compiled", and the library cannot be used; the message says why.

    Example:
        >>> set_implementation("portable")
        >>> set_implementation("auto")
    """
    global _implementation
    if name not in _IMPLEMENTATIONS:
        known = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {known}, received {name!r}")
    status = compiled_status()
    if name == "compiled" and not status.available:
        raise RuntimeError(f"The compiled implementation cannot be used: {status.reason}.")
    _implementation = name


@contextlib.contextmanager
def use_implementation(name):
    """Returns a context manager that does what `set_implementation` does, until it is left.

    It is process-wide like that one, so that threads of tf.distribute see it.

    Args:
        name: as in `set_implementation`.

    Raises:
        ValueError, RuntimeError: as `set_implementation`.

    Example:
        >>> with use_implementation("portable"):
        ...     pooled = tf.zeros([])  # whatever is traced here holds TensorFlow ops only
    """
    previous = _implementation
    set_implementation(name)
    try:
        yield
    finally:
        set_implementation(previous)


_implementation = "auto"
try:
    set_implementation(os.environ.get(_ENVIRONMENT, "auto"))
except (ValueError, RuntimeError) as error:
    raise type(error)(f"From the environment variable {_ENVIRONMENT}: {error}") from None
