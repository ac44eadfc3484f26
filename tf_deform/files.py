"""Writing a file or a folder whole or not at all.

Who may delete what: a writer works under a name of its own beside the target, `<target>.partial-`
and a random number, and removes nothing else. The target appears, or is replaced, by one rename of
what is complete. After an error or an interrupt nothing of the writer's is left.
"""

import contextlib
import os
import pathlib
import secrets
import shutil

import tensorflow as tf


@contextlib.contextmanager
def new_folder(path):
    """Yields a path to write a folder at, which becomes `path` when the block ends without error.

    Of several writers of one path the first to end wins. Folders above it are made if needed.

    Args:
        path: of a folder not there yet or empty; of a file system of TensorFlow's as well ("gs://"),
            whose renames are no single step.

    Raises:
        ValueError: an empty path.
        FileExistsError: there is something at `path`, before the block or at its end.
    """
    path = _named(path)
    if _is_remote(path):
        with _removed(f"{path}.partial-{secrets.token_hex(4)}") as partial:
            _check_remote(path)
            yield partial
            _check_remote(path)
            tf.io.gfile.rename(partial, path, overwrite=True)
        return
    path = os.path.abspath(path)
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
        raise _exists(path)
    if os.path.isdir(path) and os.listdir(path):
        raise _exists(path)
    missing = [each for each in pathlib.Path(path).parents if not each.exists()]
    try:
        with _removed(f"{path}.partial-{secrets.token_hex(4)}") as partial:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            yield partial
            with contextlib.suppress(OSError):
                os.rmdir(path)  # if it is an empty folder
            try:
                os.rename(partial, path)  # onto nothing, or it fails
            except OSError as error:
                raise (_exists(path) if os.path.lexists(path) else error) from None
    finally:
        with contextlib.suppress(OSError):  # one that is not empty stays, and those above it
            for folder in missing:
                folder.rmdir()


@contextlib.contextmanager
def replaced_file(path):
    """Yields a path to write a file at, which takes the place of `path` when the block ends.

    Of several writers of one path the last to end wins. A link stays; what it leads to is replaced.

    Raises:
        ValueError: an empty path.
        FileExistsError: there is something else than a file at `path`.
        FileNotFoundError: there is no folder to put it in.
    """
    path = _named(path)
    if not _is_remote(path):
        path = os.path.realpath(path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise FileExistsError(f"path must name a file, received {path!r}, which is none")
        if not os.path.isdir(os.path.dirname(path)):
            raise FileNotFoundError(f"path must name a file in a folder that exists: {path!r}")
    with _removed(f"{path}.partial-{secrets.token_hex(4)}") as partial:
        yield partial
        tf.io.gfile.rename(partial, path, overwrite=True)  # one step in a local file system


@contextlib.contextmanager
def _removed(partial):
    """Yields the path, and removes what is there in the end."""
    try:
        yield partial
    finally:
        if not _is_remote(partial):
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.remove(partial)
        elif tf.io.gfile.exists(partial):
            tf.io.gfile.rmtree(partial)


def _named(path):
    path = os.fspath(path)
    if not path.rstrip("/"):
        raise ValueError(f"path must name a file or folder, received {path!r}")
    return path.rstrip("/")


def _is_remote(path):
    return "://" in path


def _check_remote(path):
    if tf.io.gfile.exists(path) and not (tf.io.gfile.isdir(path) and not tf.io.gfile.listdir(path)):
        raise _exists(path)


def _exists(path):
    return FileExistsError(f"path must be a folder not there yet or empty, received {path!r}")
