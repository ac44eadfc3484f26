"""Arrays from files of weights. What is wrong with a file is a ValueError that names it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import zipfile

import numpy as np
import tensorflow as tf

from tf_deform.annotations import Path
from tf_deform.checkpoints import array_of, imported_torch, tensors_of

_SAFETENSORS_DTYPES = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(tf.bfloat16.as_numpy_dtype),
    "BOOL": np.dtype(bool),
    "C64": np.dtype("<c8"),
}
_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors package
# Version 3 is for structures whose fields have names outside Latin-1.
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .safetensors, .npz, .pt or .pth file: {name: array}, as in the file.

    The arrays are in memory, so you may delete the file afterwards. bfloat16 becomes float32; NaN
    and infinite numbers stay as they are. No code from the file runs, so you can read files that
    you do not trust. .safetensors and .npz files are not unpickled. .pt and .pth files are pickles,
    and are read by `torch.load(path, weights_only=True)`, which accepts only tensors, numbers,
    strings and containers of them.

    If a checkpoint has one mapping under "state_dict", "model" or "model_state_dict", the tensors
    of that mapping are returned. All that is not a tensor is left out.

    A .safetensors file needs the package safetensors (`pip install "tf_deform[weights]"`). A .pt or
    .pth file needs PyTorch 2.6 or newer.

    Args:
        path: of the file, a string or path-like. Its suffix, in lower or upper case, determines the
            format.

    Raises:
        ValueError: the suffix is unknown; the file is damaged, or holds no arrays, the same name
            twice, Python objects, or more than fits in memory; an entry has a dtype that NumPy does
            not have, such as float8; a .pt or .pth file holds more than one state_dict, or
            something that only running code could load, such as a whole module. The message names
            the file and the entry, and says how to save a state_dict.
        TypeError: `path` is no path.
        OSError: there is no such file (FileNotFoundError), it is a folder (IsADirectoryError), or
            it may not be read.
        ImportError: the package that the file needs is not installed or too old.

    Source: the formats of safetensors and PyTorch as their packages read them; NumPy's .npy format
    in a zip file.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
        >>> np.savez(path, weight=np.ones([2, 3]))
        >>> read(path)["weight"].shape
        (2, 3)
    """
    kinds = "a mapping, or a .safetensors, .npz, .pt or .pth file"
    if not isinstance(path, (str, bytes, os.PathLike)):
        remedy = "; pass module.state_dict()" if hasattr(path, "state_dict") else ""
        raise TypeError(f"weights must be {kinds}, received a {type(path).__name__}{remedy}")
    path = os.fsdecode(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".safetensors", ".npz", ".pt", ".pth"):
        raise ValueError(f"weights must be {kinds}, received {path!r}")
    read_file = _reader(suffix)
    what = f"weights must be a sound {suffix} file, received {path!r}"
    with open(path, "rb") as file, _faults_of(what):
        arrays = read_file(file)
        if not arrays:
            raise ValueError("there are no arrays in it")
        return arrays


def _reader(suffix):
    """Returns the function that reads an open file, once the package that it needs is imported."""
    if suffix == ".npz":
        return _read_npz
    if suffix == ".safetensors":
        return functools.partial(_read_safetensors, package=_safetensors())
    return functools.partial(_read_torch, torch=imported_torch())


@contextlib.contextmanager
def _faults_of(what):
    """Turns whatever is raised inside into a ValueError of one line."""
    try:
        yield
    # Damaged bytes raise nearly everything: zlib.error, EOFError, MemoryError, RecursionError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}: {reason[:400]}") from error


def _distinct(pairs):
    """Returns the pairs of names and values as a dictionary, if the names are distinct."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} is there twice")
        found[name] = value
    return found


def _checked(array):
    if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
        raise ValueError("its bytes must be 0 or 1, because its dtype is bool")
    return array


def _safetensors():
    try:
        return importlib.import_module("safetensors")
    except ImportError as error:
        raise ImportError(
            ".safetensors files need the package safetensors: "
            f'pip install "tf_deform[weights]" ({error})'
        ) from error


def _read_safetensors(file, package):
    """Returns the arrays of an open .safetensors file, which the package judges.

    It lets pass that a name is there twice, and forgets the order.
    """
    size = os.fstat(file.fileno()).st_size
    header_size = int.from_bytes(file.read(8), "little")
    if header_size > min(_LONGEST_HEADER, max(size - 8, 0)):
        raise ValueError(
            f"its header must end in the file, which has {size} bytes, and have {_LONGEST_HEADER} "
            f"bytes or fewer, not {header_size}"
        )
    file.seek(0)
    content = file.read()
    entries = dict(package.deserialize(content))
    names = json.loads(content[8 : 8 + header_size], object_pairs_hook=_distinct)
    names.pop("__metadata__", None)
    arrays = {}
    for name in names:
        with _faults_of(f"entry {name!r}"):
            arrays[name] = _decoded(**entries.pop(name))
    return arrays


def _decoded(dtype, shape, data):
    """Returns the array of an entry of a .safetensors file, which `data` becomes."""
    if dtype not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise ValueError(f"its dtype must be one of {known}, not {dtype}")
    array = np.frombuffer(data, _SAFETENSORS_DTYPES[dtype]).reshape(shape)
    return _checked(array.astype(np.float32) if dtype == "BF16" else array)


def _read_npz(file):
    """Returns the arrays of an open .npz file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        named = _distinct([(member.filename.removesuffix(".npy"), member) for member in members])
        # All the memory at once, so that it lacks before anything is unpacked, not midway.
        np.empty(sum(member.file_size for member in members), np.uint8)
        arrays = {}
        for name, member in named.items():
            with _faults_of(f"entry {name!r}"):
                arrays[name] = _read_npy(archive, member)
    return arrays


def _read_npy(archive, member):
    """Returns the array of a member, once its header has promised the bytes that are there."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"its .npy version must be 1.0 or 2.0, not {version}")
        shape, _, dtype = _NPY_HEADERS[version](file)
        stored = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError("it must hold numbers, not Python objects, which would be unpickled")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != stored:
        raise ValueError(f"shape {list(shape)} of dtype {dtype} does not fit its {stored} bytes")
    with archive.open(member) as file:
        return _checked(np.lib.format.read_array(file, allow_pickle=False))


def _read_torch(file, torch):
    """Returns the arrays of an open .pt or .pth file, none of which shares memory with another."""
    arrays = {}
    for name, tensor in tensors_of(file, torch).items():
        with _faults_of(f"entry {name!r}"):
            arrays[name] = np.array(array_of(tensor))
    return arrays
