"""Where the compiled library is, and whether it is the one that was built, whole.

Beside the library lies a record of the size and SHA-256 of each of its files, and of the sources.
Nothing is loaded that does not fit it: a truncated library would end the process at its first op.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import threading

import tensorflow as tf

PACKAGE = pathlib.Path(__file__).parents[1]
SOURCES = PACKAGE / "custom_ops"  # where pip puts them
if not SOURCES.is_dir():
    SOURCES = PACKAGE.parent / "custom_ops"  # in a checkout
ROOMS = ("*", "cpu/*", "cuda/*", "tensorflow/*")  # of the sources that make the library
PACKAGED = PACKAGE / "library"  # in a wheel that holds the library
RECORD = "record.json"
OF_SOURCES = "sources"  # what they are called in the record


def once(function):
    """Returns the function without arguments, called once, by whichever thread is first."""
    lock = threading.RLock()
    kept = functools.cache(function)

    @functools.wraps(function)
    def call():
        with lock:
            return kept()

    call.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return call


@once
def library_path():
    """Returns where the library for this TensorFlow and these sources is, or would be built.

    What the user built is preferred to what the package came with: it may have CUDA kernels. What
    the package's folder holds of other sources is passed over. Sources that are edited later count
    in the next process.

    Raises:
        OSError: there is no home folder to keep a cache in, or the sources cannot be read.
    """
    packaged = PACKAGED / _name()
    if not (packaged.exists() and comes_with_libraries()):
        return cached_path()
    with contextlib.suppress(OSError):  # without a cache that can be read, what is packaged does
        if cached_path().exists():
            return cached_path()
    return packaged


def cached_path():
    """Returns where a library that the user builds is kept: in the user's cache.

    The package's folder may be read-only, and environments with different versions of TensorFlow
    may share it through a checkout.

    Raises:
        OSError: as `library_path`.
    """
    return _cache() / f"tensorflow-{tf.__version__}-{_digest_of_sources()}" / _name()


def comes_with_libraries():
    """Returns whether the package holds libraries, for whatever TensorFlow, of its own sources."""
    try:
        record = json.loads((PACKAGED / RECORD).read_text())
        return record[OF_SOURCES] == _digest_of_sources()
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError):
        return SOURCES.parent == PACKAGE  # damaged, which `fault_of` will say


def _name():
    return f"tf_deform_ops_{minor()}.so"


def built_for():
    """Returns the versions of TensorFlow that there are libraries for, in the cache or package."""
    others = {each.name.split("-")[1] for each in _cache().glob("tensorflow-*")}
    return sorted(others | {each.stem.split("_")[-1] for each in PACKAGED.glob("*_ops_*.so")})


def proofs():
    """Returns the folder of the user's cache for proofs that cannot lie beside a library.

    Raises:
        OSError: there is no home folder to keep a cache in.
    """
    return _cache() / "proofs"


def minor():
    """Returns the minor version of TensorFlow, such as "2.21"."""
    return ".".join(tf.__version__.split(".")[:2])


def write_record(folder):
    """Writes the record of the libraries in a folder, which nothing may change from then on."""
    record = {path.name: _fingerprint(path) for path in sorted(folder.glob("*.so"))}
    record[OF_SOURCES] = _digest_of_sources()
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def fault_of(path):
    """Returns in what way the library at `path` is not the one that was built, or "".

    Raises:
        OSError: it cannot be read.
    """
    try:
        record = json.loads((path.parent / RECORD).read_text())
        if path.name not in record:
            return f"the record beside {path} does not name it"
        for name, expected in record.items():
            for_another_tensorflow = name.startswith("tf_deform_ops_") and name != path.name
            if name == OF_SOURCES or for_another_tensorflow:
                continue
            found = _fingerprint(path.with_name(name))
            if found != expected:
                return (
                    f"{path.with_name(name)} is not the file that was built: expected {expected}, "
                    f"found {found}"
                )
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, TypeError, AttributeError):
        return f"{path.parent / RECORD} is damaged"
    return ""


def _fingerprint(path):
    data = path.read_bytes()
    return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"


def _cache():
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = pathlib.Path(os.path.expanduser("~"))  # "~" where there is none
    if given.is_absolute():  # one that is not is to be ignored, says the XDG specification
        return given / "tf_deform"
    if home.is_absolute():
        return home / ".cache" / "tf_deform"
    raise FileNotFoundError("there is no home folder to keep a cache in: set XDG_CACHE_HOME")


def _digest_of_sources():
    paths = [path for room in ROOMS for path in SOURCES.glob(room)]
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix in (".cc", ".cmake", ".cu", ".h", ".txt") and "_test" not in path.stem:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
