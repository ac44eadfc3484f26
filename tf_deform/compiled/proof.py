"""Whether the CUDA kernels were seen to be right on the cards of this machine.

`python -m tf_deform check` finds it out and records it. A record is of one kind of card, a driver,
a version of TensorFlow and a library, and its name is a digest of them: what was found of others is
not found, and who records never touches another's. It lies beside the library, which serves all its
users, or in the user's cache if nothing can be written there.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import re
import secrets
from typing import NamedTuple

import tensorflow as tf

from tf_deform.compiled import location

REMEDY = "run python -m tf_deform check"
_VERSION = pathlib.Path("/proc/driver/nvidia/version")


class Subject(NamedTuple):
    """What a proof is of."""

    card: str
    compute_capability: str
    driver: str
    tensorflow: str
    library: str  # SHA-256 of its record

    def __str__(self):
        return f"{self.card} ({self.compute_capability})"


def subjects():
    """Returns what has to be proved: a subject for each kind of card that TensorFlow lists.

    Raises:
        OSError: the library's record cannot be read.
    """
    gpus = tf.config.list_physical_devices("GPU")
    return list(dict.fromkeys(subject_of(gpu) for gpu in gpus))


def subject_of(gpu):
    """Returns what a proof on a GPU is of, given as `tf.config.list_physical_devices` does."""
    details = tf.config.experimental.get_device_details(gpu)
    capability = ".".join(map(str, details.get("compute_capability", ()))) or "unknown"
    card = details.get("device_name", "unknown")
    return Subject(card, capability, driver(), tf.__version__, _digest_of_library())


@location.once
def driver():
    """Returns the driver's version and the newest CUDA that it runs, "unknown" if nothing tells."""
    found = []
    with contextlib.suppress(OSError):
        found += re.findall(r"^NVRM version:.*?(\d+\.\d+(?:\.\d+)?)", _VERSION.read_text())
    with contextlib.suppress(OSError, AttributeError):
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            found.append(f"CUDA {version.value // 1000}.{version.value % 1000 // 10}")
    return ", ".join(found) or "unknown"


@location.once
def _digest_of_library():
    record = location.library_path().with_name(location.RECORD)
    return hashlib.sha256(record.read_bytes()).hexdigest()


def why_unproven():
    """Returns why the CUDA kernels must not be used on the cards listed, "" if they may."""
    if _on_trial:
        return ""
    try:
        wanted = [each for each in subjects() if each not in _proved]
    except OSError as error:
        return f"nobody knows whether the CUDA kernels are right here: {error}"
    for subject in wanted:
        if reason := _why_not(subject):
            return f"{reason}: {REMEDY}"
        _proved.add(subject)
    return ""


def _why_not(subject):
    found = []
    for folder in _folders():
        path = folder / _name(subject)
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    if not found:
        return f"the CUDA kernels are not yet proved on {subject}, driver {subject.driver}"
    _, path = max(found)
    try:
        record = json.loads(path.read_text())
        if record["of"] != subject._asdict():
            return f"{path} is of another card or library"
        faults = list(record["faults"])
    except OSError as error:
        return f"what was found of the CUDA kernels cannot be read: {error}"
    except (ValueError, TypeError, KeyError):
        return f"{path}, which tells whether the CUDA kernels are right, is damaged"
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        return f"the CUDA kernels are wrong on {subject}: {faults[0]}{more}"
    return ""


def record(subject, faults):
    """Keeps what was found of a subject, a list of lines, none if it is right; returns the path.

    Raises:
        OSError: it can be kept nowhere.
    """
    text = json.dumps({"of": subject._asdict(), "faults": faults}, indent=1)
    *others, last = _folders()
    for folder in others:
        with contextlib.suppress(OSError):
            return _written(folder / _name(subject), text)
    return _written(last / _name(subject), text)


def _written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _folders():
    folders = [location.library_path().parent]
    with contextlib.suppress(OSError):  # without a home folder
        folders.append(location.proofs())
    return folders


def _name(subject):
    digest = hashlib.sha256(json.dumps(subject).encode()).hexdigest()
    return f"proof-{digest[:16]}.json"


@contextlib.contextmanager
def on_trial():
    """Returns a context manager in which this process may run the kernels, proved or not."""
    global _on_trial
    before, _on_trial = _on_trial, True
    try:
        yield
    finally:
        _on_trial = before


_on_trial = False
_proved: set[Subject] = set()  # which this process need not read again
