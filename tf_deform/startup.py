"""Importing TensorFlow without its messages, where the package is run as a command."""

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet():
    """Returns a context manager to import TensorFlow in, which then says nothing.

    Only for `python -m tf_deform`, which prints its own lines. TensorFlow writes as its libraries
    are loaded, before any level of its log counts, so nothing reaches standard error meanwhile.
    """
    if sys.argv[:1] != ["-m"]:  # so it is until Python has found what to run
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
