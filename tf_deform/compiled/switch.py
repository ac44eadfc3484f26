"""What implementation is asked for: by the process, and by a thread for itself alone.

Who owns this state:

- The process's wishes are a list, of which the last counts. `set_lasting` puts one at its end in
  place of the lasting one; `lent` puts one there and takes that very one away again. However the
  blocks of several threads overlap, nobody restores a value, and so nobody restores a stale one.
- A thread's own wish goes before the process's. What traces for somebody else (an export, the
  portable form inside a second derivative) uses it, and neither sees other threads nor disturbs
  them.
"""

import contextlib
import os
import threading
from typing import get_args

from tf_deform.annotations import Implementation

NAMES = get_args(Implementation)
_ENVIRONMENT = "TF_DEFORM_IMPLEMENTATION"


class _Wish:
    """An implementation that the process is asked for; equal to itself alone."""

    def __init__(self, name):
        self.name = name


def check_name(name):
    """Raises ValueError unless there is an implementation of that name."""
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"implementation must be one of {known}, received {name!r}")


def asked():
    """Returns the implementation that the process is asked for."""
    return _wishes[-1].name


def set_lasting(name):
    """Asks for an implementation from now on; the last word counts."""
    global _lasting
    wish = _Wish(name)
    with _lock:
        _wishes.append(wish)
        _wishes.remove(_lasting)
        _lasting = wish


@contextlib.contextmanager
def lent(name):
    """Returns a context manager that asks the process for an implementation until it is left."""
    wish = _Wish(name)
    with _lock:
        _wishes.append(wish)
    try:
        yield
    finally:
        with _lock:
            _wishes.remove(wish)


def asked_by_this_thread():
    """Returns "portable" or "compiled" if this thread asks for one of its own, else None."""
    return getattr(_this_thread, "name", None)


@contextlib.contextmanager
def in_this_thread(name):
    """Returns a context manager in which this thread traces with "portable" or "compiled"."""
    previous = asked_by_this_thread()
    _this_thread.name = name
    try:
        yield
    finally:
        _this_thread.name = previous


def _from_environment():
    name = os.environ.get(_ENVIRONMENT, "auto")
    try:
        check_name(name)
    except ValueError as error:
        raise ValueError(f"From the environment variable {_ENVIRONMENT}: {error}") from None
    return _Wish(name)


_lock = threading.Lock()
_this_thread = threading.local()
_lasting = _from_environment()
_wishes = [_lasting]
