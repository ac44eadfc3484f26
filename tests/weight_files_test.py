"""Files of weights: what is in them, every way in which they are damaged, and what comes after."""

import io
import json
import math
import pathlib
import pickle
import re
import struct
import sys
import zipfile

import numpy as np
import pytest

import tf_deform as tfd

read = tfd.convert.read


# What the files are made of


def safetensors(header, data=b"", header_size=None):
    """Returns a .safetensors file of a header, as it is if it is bytes, and data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    header_size = len(header) if header_size is None else header_size
    return header_size.to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(1,), data_offsets=(0, 4), **others):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **others}


def of_entry(data=bytes(4), **options):
    """Returns a .safetensors file of the one entry "x"."""
    return safetensors({"x": entry(**options)}, data)


def without(field):
    return {name: value for name, value in entry().items() if name != field}


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def of_header(header, data=bytes(4), version=1):
    """Returns a .npy file of a header, as it is if it is a string, and data."""
    header = header.encode() if isinstance(header, str) else repr(header).encode()
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def fields(descr="<f4", shape=(1,), fortran_order=False, **others):
    return {"descr": descr, "shape": shape, "fortran_order": fortran_order, **others}


def npz(*contents, names=("x.npy",), compression=zipfile.ZIP_STORED):
    """Returns a zip file of the contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in zip(names, contents, strict=True):
            archive.writestr(name, content)
    return file.getvalue()


def of_npy(*arguments, **options):
    return npz(of_header(*arguments, **options))


# Where a field is in a zip file's two headers of a member, and its bytes.
ZIP_FIELDS = {"flags": (6, 8, 2), "method": (8, 10, 2), "crc": (14, 16, 4), "size": (22, 24, 4)}


def patched(content, **values):
    """Returns a zip file with other values in the headers of all its members."""
    content = bytearray(content)
    for field, value in values.items():
        *offsets, size = ZIP_FIELDS[field]
        for signature, offset in zip((b"PK\3\4", b"PK\1\2"), offsets, strict=True):
            for found in re.finditer(signature, bytes(content)):
                start = found.start() + offset
                content[start : start + size] = value.to_bytes(size, "little")
    return bytes(content)


def replaced(content, old, new):
    assert content.count(old) >= 1
    return content.replace(old, new)


def of_petabyte():
    """Returns a zip file with a member of 2**50 bytes, which only an extra field can hold."""
    header = of_header(fields("|u1", (2**50 - 80,)), b"")
    assert len(header) == 80
    member = zipfile.ZipInfo("x.npy")
    member.extra = struct.pack("<HHQ", 1, 8, 2**50)
    return patched(npz(header, names=(member,)), size=2**32 - 1)


ARRAY = np.arange(30, dtype="float32").reshape(5, 6)
NPZ = npz(npy(ARRAY))
DEFLATED = npz(npy(ARRAY), compression=zipfile.ZIP_DEFLATED)
DEEP = b'{"x":' * 100_000


# Damaged files: their bytes, and the reason told.

SAFETENSORS = {
    "nothing": (b"", "header too small"),
    "five bytes": (b"\5\0\0\0\0", "header"),
    "no header": (safetensors(b""), "JSON"),
    "a header cut short": (safetensors({"x": entry()})[:-3], "header must end in the file"),
    "a header beyond the file": (safetensors({}, header_size=99), "which has 10 bytes, .* not 99"),
    "a header of 2**63 bytes": (safetensors({}, header_size=2**63), f"not {2**63}"),
    "only ones": (b"\xff" * 20, f"not {2**64 - 1}"),
    "no JSON": (safetensors(b"weights"), "JSON"),
    "JSON cut short": (safetensors(b'{"x": {'), "JSON"),
    "something after the JSON": (safetensors(b'{"x":' + json.dumps(entry()).encode()), "JSON"),
    "no UTF-8": (safetensors(b'{"\xff": 1}'), "UTF-8"),
    "half a character": (
        safetensors(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(4)),
        "JSON",
    ),
    "a list": (safetensors([entry()], bytes(4)), "sequence"),
    "a number": (safetensors(3), "3"),
    "null": (safetensors(None), "null"),
    "NaN": (safetensors(b'{"x": NaN}'), "expected value"),
    "lists in lists": (safetensors(b"[" * 100_000), "JSON"),
    "objects in objects": (safetensors(DEEP), "recursion limit"),
    "no arrays": (safetensors({}), "no arrays"),
    "metadata alone": (safetensors({"__metadata__": {"format": "pt"}}), "no arrays"),
    "a number in the metadata": (safetensors({"__metadata__": {"epoch": 3}}), "expected a string"),
    "a list for metadata": (safetensors({"__metadata__": ["pt"], "x": entry()}, bytes(4)), "JSON"),
    "a name twice": (
        safetensors(b'{"x": %s, "x": %s}' % (2 * (json.dumps(entry()).encode(),)), bytes(4)),
        "'x' is there twice",
    ),
    "a field twice": (
        replaced(of_entry(), b'"shape"', b'"dtype"'),
        "duplicate field|missing field|string",
    ),
    "a name of metadata twice": (
        safetensors(
            b'{"__metadata__": {"a": "1", "a": "2"}, "x": %s}' % json.dumps(entry()).encode(),
            bytes(4),
        ),
        "'a' is there twice",
    ),
    "an entry that is a list": (safetensors({"x": [1]}), "1"),
    "an entry that is null": (safetensors({"x": None}), "null"),
    "no dtype": (safetensors({"x": without("dtype")}, bytes(4)), "dtype"),
    "no shape": (safetensors({"x": without("shape")}, bytes(4)), "shape"),
    "no offsets": (safetensors({"x": without("data_offsets")}, bytes(4)), "data_offsets"),
    "an unknown dtype": (of_entry(dtype="F31"), "F31"),
    "a number for dtype": (of_entry(dtype=32), "32"),
    "float8, e4m3": (of_entry(dtype="F8_E4M3", shape=[4]), r"entry 'x': .*F16.*, not F8_E4M3$"),
    "float8, e5m2": (of_entry(dtype="F8_E5M2", shape=[4]), r"entry 'x': .*F16.*, not F8_E5M2$"),
    "negative offsets": (of_entry(data_offsets=[-4, 0]), "-4"),
    "offsets into the header": (of_entry(b"", data_offsets=[-12, -8]), "-12"),
    "offsets turned around": (of_entry(data_offsets=[4, 0]), "x"),
    "offsets beyond the file": (of_entry(data_offsets=[0, 8], shape=[2]), "not fully covered"),
    "offsets beyond 64 bits": (of_entry(data_offsets=[0, 2**64]), "."),
    "a hole before": (of_entry(bytes(8), data_offsets=[4, 8]), "x"),
    "a hole between": (
        safetensors({"x": entry(), "y": entry(data_offsets=[8, 12])}, bytes(12)),
        "y",
    ),
    "an overlap": (
        safetensors({"x": entry(shape=[2], data_offsets=[0, 8]), "y": entry()}, bytes(8)),
        "invalid offset",
    ),
    "bytes after the data": (of_entry(bytes(5)), "not fully covered"),
    "data cut short": (of_entry(bytes(3)), "not fully covered"),
    "one offset": (of_entry(data_offsets=[0]), "length 1"),
    "three offsets": (of_entry(data_offsets=[0, 4, 8]), "."),
    "fractional offsets": (of_entry(data_offsets=[0.0, 4.0]), r"0\.0"),
    "offsets that are strings": (of_entry(data_offsets=["0", "4"]), '"0"'),
    "offsets that are null": (of_entry(data_offsets=None), "null"),
    "a shape that does not fit": (of_entry(shape=[3]), "invalid shape"),
    "a negative shape": (of_entry(shape=[-1]), "-1"),
    "a fractional shape": (of_entry(shape=[1.0]), r"1\.0"),
    "a shape that is a number": (of_entry(shape=1), "1"),
    "a shape that is a string": (of_entry(shape="1"), '"1"'),
    "a shape of true": (of_entry(shape=[True]), "true"),
    "a shape beyond 64 bits": (of_entry(shape=[2**62, 4]), "overflow"),
    "a shape of 70 axes": (of_entry(shape=[1] * 70), r"entry 'x': .*(32|64|dimension)"),
    "an empty shape too large": (of_entry(b"", shape=[0, 2**64 - 1], data_offsets=[0, 0]), "'x'"),
    "true that is 2": (of_entry(b"\1\2", dtype="BOOL", shape=[2], data_offsets=[0, 2]), "0 or 1"),
}
NPZ_FILES = {
    "nothing": (b"", "zip"),
    "text": (b"weights", "zip"),
    "a .npy": (npy(ARRAY), "zip"),
    "a pickle": (pickle.dumps({"x": ARRAY}), "zip"),
    "no arrays": (npz(names=()), "no arrays"),
    "the first half": (NPZ[: len(NPZ) // 2], "zip"),
    "the second half": (NPZ[len(NPZ) // 2 :], "."),
    "the last byte missing": (NPZ[:-1], "zip"),
    "the end alone": (NPZ[NPZ.index(b"PK\5\6") :], "."),
    "the list of members damaged": (replaced(NPZ, b"PK\1\2", b"PK\0\0"), "magic number"),
    "a member's header damaged": (replaced(NPZ, b"PK\3\4", b"PK\0\0"), "entry 'x': .*magic"),
    "another checksum": (patched(NPZ, crc=1), "entry 'x': .*CRC"),
    "another byte": (replaced(NPZ, np.float32(7).tobytes(), b"abcd"), "entry 'x': .*CRC"),
    "compressed data damaged": (
        DEFLATED[:45] + b"\xff" * 20 + DEFLATED[65:],
        "entry 'x': .*(decompress|CRC|EOF)",
    ),
    "an unknown compression": (patched(NPZ, method=77), "entry 'x': .*compression"),
    "stored, said to be deflated": (
        patched(NPZ, method=8),
        "entry 'x': .*(decompress|magic|EOF|CRC)",
    ),
    "encrypted": (patched(NPZ, flags=1), "entry 'x': .*(password|encrypted)"),
    "a name twice": (
        replaced(npz(npy(ARRAY), npy(ARRAY), names=("x.npy", "y.npy")), b"y.npy", b"x.npy"),
        "'x' is there twice",
    ),
    "a name with a suffix and without": (
        npz(npy(ARRAY), npy(ARRAY), names=("x", "x.npy")),
        "'x' is there twice",
    ),
    "a text": (npz(b"weights of a model"), "entry 'x': .*magic"),
    "a folder": (npz(b"", names=("x/",)), "entry 'x/': .*magic"),
    "an empty member": (npz(b""), "entry 'x': .*magic"),
    "a pickle in it": (npz(pickle.dumps([1, 2, 3])), "entry 'x': .*magic"),
    "Python objects": (npz(npy(np.array([{}, 3, "a"]))), "entry 'x': .*Python objects"),
    "a structure with objects": (
        npz(npy(np.zeros(2, [("a", "f4"), ("b", "O")]))),
        "entry 'x': .*Python objects",
    ),
    "the magic alone": (npz(b"\x93NUMPY\1\0"), "entry 'x': .*header length"),
    "half the magic": (npz(b"\x93NUM"), "entry 'x': .*magic"),
    "a header cut": (npz(npy(ARRAY)[:50]), "entry 'x': .*header"),
    "version 3": (of_npy(fields(), version=3), r"entry 'x': .*\(3, 0\)"),
    "version 9": (of_npy(fields(), version=9), "entry 'x': .*version"),
    "a header of 20,000 bytes": (of_npy(repr(fields()) + " " * 20_000), "entry 'x': .*large"),
    "a header that is no literal": (of_npy("open('a')"), "entry 'x': .*"),
    "a header that is no Python": (of_npy("{'descr': "), "entry 'x': ."),
    "a header that does not end": (of_npy("'''"), "entry 'x': ."),
    "a header of brackets": (of_npy("(" * 9_000), "entry 'x': ."),
    "a header of signs": (of_npy("-" * 9_000 + "1"), "entry 'x': ."),
    "a header of nothing": (of_npy(""), "entry 'x': ."),
    "a header that is a list": (of_npy("[]"), "entry 'x': .*not a dictionary"),
    "a header with a list for a name": (of_npy("{[]: 1}"), "entry 'x': .*unhashable"),
    "a header without a shape": (of_npy("{'descr': '<f4'}"), "entry 'x': .*keys"),
    "a header with numbers for names": (of_npy(fields() | {1: 2}), "entry 'x': ."),
    "a shape that is a list": (of_npy(fields(shape=[1])), "entry 'x': .*shape"),
    "a shape of fractions": (of_npy(fields(shape=(1.0,))), "entry 'x': .*shape"),
    "a negative shape": (of_npy(fields(shape=(-1, -1))), r"entry 'x': shape \[-1, -1\]"),
    "a shape of 70 axes": (of_npy(fields(shape=(1,) * 70)), "entry 'x': .*(32|64|dimension)"),
    "an empty shape too large": (of_npy(fields(shape=(0, 2**70)), b""), "entry 'x': ."),
    "an order that is a number": (of_npy(fields(fortran_order=3)), "entry 'x': .*fortran_order"),
    "an unknown dtype": (of_npy(fields("<f3")), "entry 'x': .*descr"),
    "a dtype that is a number": (of_npy(fields(32)), "entry 'x': ."),
    "a dtype that is a list": (of_npy(fields([1, 2])), "entry 'x': ."),
    "data cut short": (of_npy(fields(shape=(3, 2))), r"shape \[3, 2\] .* float32 .* its 4 bytes"),
    "bytes after the data": (of_npy(fields(), bytes(5)), "does not fit its 5 bytes"),
    "2**60 numbers": (of_npy(fields(shape=(2**60,))), "does not fit its 4 bytes"),
    "2**65 numbers": (of_npy(fields(shape=(2**33, 2**32))), "does not fit its 4 bytes"),
    "one number of a gigabyte": (of_npy(fields(("<f4", (2**28,)))), "does not fit its 4 bytes"),
    "true that is 2": (of_npy(fields("|b1"), b"\2"), "entry 'x': .*0 or 1"),
    # The list of members says so, and the headers agree.
    "a petabyte": (of_petabyte(), "^Unable to allocate"),
    # Four gigabytes each.
    "256 gigabytes": (
        patched(
            npz(
                *64 * [of_header(f"{fields('|u1', (2**32 - 138,))!r:<118}")],
                names=[f"{index}.npy" for index in range(64)],
            ),
            size=2**32 - 10,
        ),
        "allocate|EOF",
    ),
}
DAMAGED = {
    **{f"{name}.safetensors": case for name, case in SAFETENSORS.items()},
    **{f"{name}.npz": case for name, case in NPZ_FILES.items()},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_the_reason(name, tmp_path):
    content, reason = DAMAGED[name]
    path = tmp_path / f"w{pathlib.Path(name).suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))) as raised:
        read(path)
    start = f"weights must be a sound {path.suffix} file, received {str(path)!r}: "
    told = str(raised.value)
    assert told.startswith(start)
    assert re.search(reason, told.removeprefix(start))
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("kind", ("safetensors", "npz"))
def test_whatever_happens_to_its_bytes_a_file_is_read_or_named(kind, rng, tmp_path):
    sound = DEFLATED
    if kind == "safetensors":
        sound = of_entry(ARRAY.tobytes(), shape=[5, 6], data_offsets=[0, 120])
    path = tmp_path / f"w.{kind}"
    refused = 0
    for _ in range(200):
        content = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            start, size = rng.integers(len(content)), rng.integers(0, 5)
            content[start : start + size] = rng.bytes(rng.integers(0, 5))
        path.write_bytes(content)
        try:
            arrays = read(path)
        except ValueError as error:
            assert repr(str(path)) in str(error)
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert refused > 0


def test_a_header_of_three_gigabytes_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as file:
        file.write((3 * 2**30).to_bytes(8, "little"))
        file.truncate(4 * 2**30)  # a hole, which takes no room
    monkeypatch.setitem(sys.modules, "safetensors", object())  # it is not asked
    with pytest.raises(ValueError, match=r"have 100000000 bytes or fewer, not 3221225472$"):
        read(path)


# Sound files

DTYPES = {
    **{"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"},
    **{"U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8"},
}


def of_entries(entries):
    """Returns a .safetensors file of {name: (dtype, shape, bytes)}."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = entry(dtype, shape, [len(data), len(data) + len(content)])
        data += content
    return safetensors(header, data)


def test_safetensors_of_every_dtype_are_read(tmp_path):
    entries = {}
    for name, dtype in DTYPES.items():
        entries[name] = (name, [3, 2], np.arange(6).astype(f"<{dtype}").tobytes())
    entries["BOOL"] = ("BOOL", [4], bytes([1, 0, 1, 1]))
    # sign, eight bits of exponent, seven of mantissa: 1, -2.5, infinity, 2**-130 (not normal), NaN
    halves = np.array([0x3F80, 0xC020, 0x7F80, 0x0008, 0x7FC0, 0x8000], "<u2")
    entries["BF16"] = ("BF16", [3, 2], halves.tobytes())
    entries["scalar"] = ("F32", [], np.float32(7).tobytes())
    entries["empty"] = ("F32", [0, 3], b"")
    (tmp_path / "w.safetensors").write_bytes(of_entries(entries))
    arrays = read(tmp_path / "w.safetensors")
    assert list(arrays) == list(entries)
    for name, dtype in DTYPES.items():
        assert arrays[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(arrays[name], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(arrays["BOOL"], [True, False, True, True])
    assert arrays["BF16"].dtype == "float32"
    expected = [[1, -2.5], [math.inf, 2.0**-130], [math.nan, -0.0]]
    np.testing.assert_array_equal(arrays["BF16"], expected)
    assert arrays["scalar"].shape == ()
    assert arrays["scalar"] == 7
    assert arrays["empty"].shape == (0, 3)


def test_what_numpy_saves_is_read(tmp_path):
    arrays = {
        "a.weight": ARRAY,
        "turned": np.asfortranarray(ARRAY),
        "big-endian": ARRAY.astype(">f8"),
        "scalar": np.float16(3),
        "empty": np.zeros((0, 3), "int8"),
        "truth": np.array([True, False]),
        "text": np.array("of a model"),
        "damaged by training": np.array([math.nan, -math.inf]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays)
        found = read(tmp_path / "w.npz")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(found[name], array)


def write(path):
    """Writes ARRAY as "x" in the format of the path."""
    content = of_entries({"x": ("F32", [5, 6], ARRAY.tobytes())})
    path.write_bytes(NPZ if path.suffix.lower() == ".npz" else content)


@pytest.mark.parametrize("change", ("cut", "grown", "overwritten", "removed"))
@pytest.mark.parametrize("kind", ("safetensors", "npz"))
def test_what_becomes_of_the_file_after_reading_does_not_matter(kind, change, tmp_path):
    path = tmp_path / f"w.{kind}"
    write(path)
    array = read(path)["x"]
    base = array
    while base is not None:  # reading a map of a file that shrank would end the process
        assert not isinstance(base, np.memmap)
        base = getattr(base, "base", None)
    if change == "cut":
        path.write_bytes(b"")
    elif change == "grown":
        path.write_bytes(path.read_bytes() + bytes(99))
    elif change == "overwritten":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
    np.testing.assert_array_equal(array, ARRAY)
    array += 1  # it is the caller's own


@pytest.mark.parametrize("name", ("w.npz", "W.NPZ", "w.safetensors", "w.SafeTensors"))
@pytest.mark.parametrize("kind", (str, pathlib.Path, lambda path: bytes(path)))
def test_paths_of_every_kind_are_read(kind, name, tmp_path):
    write(tmp_path / name)
    np.testing.assert_array_equal(read(kind(tmp_path / name))["x"], ARRAY)


@pytest.mark.parametrize("kind", ("safetensors", "npz"))
def test_what_cannot_be_opened_is_an_error_of_the_system(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing"):
        read(tmp_path / f"missing.{kind}")
    (tmp_path / f"folder.{kind}").mkdir()
    with pytest.raises(OSError, match=r"folder"):
        read(tmp_path / f"folder.{kind}")


@pytest.mark.parametrize("path", ("model.bin", "npz", ".npz", "a.npz/w", ""))
def test_a_file_of_another_kind_is_refused(path):
    message = r"must be a mapping, or a \.safetensors, \.npz, \.pt or \.pth file, received '"
    with pytest.raises(ValueError, match=message + re.escape(path)):
        read(path)


@pytest.mark.parametrize("path", (None, 3, ["w.npz"], ARRAY))
def test_what_is_no_path_is_refused(path):
    message = rf"mapping, or a \.safetensors, .* file, received a {type(path).__name__}$"
    with pytest.raises(TypeError, match=message):
        read(path)


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for name in ("w.safetensors", "w.npz"):
        write(tmp_path / name)
    with pytest.raises(ImportError, match=r'pip install "tf_deform\[weights\]"'):
        read(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read(tmp_path / "w.npz")["x"], ARRAY)
