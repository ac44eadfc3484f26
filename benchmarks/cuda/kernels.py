"""The CUDA kernels without TensorFlow: built with nvcc, and called on PyTorch's tensors."""

import ctypes
import math
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "custom_ops"
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
int64 = ctypes.c_int64


class SampleSizes(ctypes.Structure):
    """`SampleSizes` of kernels.h."""

    _fields_ = (
        ("rank", ctypes.c_int),
        ("units", int64),
        ("images", int64),
        ("space", int64 * 3),
        *((name, int64) for name in ("channels", "rows", "queries", "groups", "points")),
    )


class ConvSizes(ctypes.Structure):
    """`ConvSizes` of kernels.h."""

    _fields_ = (
        ("rank", ctypes.c_int),
        ("batch", int64),
        ("space", int64 * 3),
        ("channels", int64),
        ("output", int64 * 3),
        ("filters", int64),
        *((name, int64 * 3) for name in ("kernel", "strides", "dilations", "before")),
        ("groups", int64),
        ("deformable_groups", int64),
    )


class Call(ctypes.Structure):
    """`CudaCall` of kernels_cuda.h."""

    _fields_ = (
        ("stream", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("tensor_float", ctypes.c_int),
        ("deterministic", ctypes.c_int),
    )


def function(sizes, pointers):
    """Returns the type of a kernel's function, which takes so many pointers."""
    given = [ctypes.POINTER(Call), ctypes.POINTER(sizes), *[ctypes.c_void_p] * pointers]
    return ctypes.CFUNCTYPE(ctypes.c_char_p, *given)


class Table(ctypes.Structure):
    """`CudaKernels` of kernels_cuda.h."""

    _fields_ = (
        ("unavailable", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("sample", function(SampleSizes, 5)),
        ("sample_grad_values", function(SampleSizes, 5)),
        ("sample_grad_points", function(SampleSizes, 7)),
        ("conv", function(ConvSizes, 5)),
        ("conv_grad", function(ConvSizes, 9)),
    )


def build(architecture):
    """Returns the path of the library for one architecture ("90"), built if sources are newer."""
    folder = ROOT / "build" / f"cuda-{architecture}"
    library = folder / "tf_deform_kernels_cuda.so"
    sources = [*SOURCES.glob("*.h"), *SOURCES.glob("cuda/*.h"), *SOURCES.glob("cuda/*.cu")]
    newest = max(path.stat().st_mtime for path in sources)
    if library.exists() and library.stat().st_mtime > newest:
        return library
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        raise FileNotFoundError("nvcc is missing: put it on the PATH, or set CUDA_HOME")
    folder.mkdir(parents=True, exist_ok=True)
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", f"-I{ROOT}", "-lineinfo"]
    options += ["-Xcompiler=-fPIC,-fvisibility=hidden", target]

    def compile_one(source):
        made = folder / f"{source.stem}.o"
        subprocess.run([nvcc, *options, "-Xptxas=-v", "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(int(os.environ.get("JOBS", "4"))) as pool:
        objects = list(pool.map(compile_one, sorted(SOURCES.glob("cuda/*.cu"))))
    subprocess.run([nvcc, "-shared", "-cudart=static", *objects, "-o", library], check=True)
    return library


def build_emulated():
    """Returns the path of a library that runs the kernels on the CPU, built with g++."""
    library = ROOT / "build" / "cuda-emulated" / "tf_deform_kernels_cuda.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    options = ["-shared", "-fPIC", "-std=c++17", "-O1", f"-I{ROOT}", "-x", "c++"]
    source = SOURCES / "cuda" / "emulation" / "kernels.h"
    subprocess.run(["g++", *options, source, "-o", library], check=True)
    return library


def load(path):
    """Returns the table of the library's kernels, whether or not this machine can run them."""
    library = ctypes.CDLL(str(path))
    library.TfDeformCudaKernels.restype = ctypes.POINTER(Table)
    return library.TfDeformCudaKernels().contents


class Kernels:
    """The kernels on PyTorch's tensors, which must be contiguous and lie on the current device.

    Emulated kernels take tensors on the CPU.
    """

    def __init__(self, path, *, tensor_float=True):
        self.table = load(path)
        self.tensor_float = tensor_float
        if reason := self.table.unavailable():
            raise RuntimeError(reason.decode())

    def _run(self, name, dtype, sizes, *tensors):
        import torch

        stream = torch.cuda.current_stream().cuda_stream if tensors[0].is_cuda else None
        call = Call(stream, TYPES[dtype], int(self.tensor_float), 0)
        pointers = [None if each is None else each.data_ptr() for each in tensors]
        assert all(each is None or each.is_contiguous() for each in tensors)
        if error := getattr(self.table, name)(ctypes.byref(call), ctypes.byref(sizes), *pointers):
            raise RuntimeError(f"{name}: {error.decode()}")

    def sample(self, values, points, weights=None, index=None):
        """Returns the samples [rows, queries, channels] of values [images, *space, channels].

        points: [rows, queries, groups, points, rank], and weights as they are without the last
        axis, float32 or float64. index: [rows], int64.
        """
        sizes, dtype = sample_sizes(values, points), dtype_of(values)
        out = points.new_empty(sizes.rows, sizes.queries, sizes.channels)
        self._run("sample", dtype, sizes, values, points, weights, index, out)
        return out

    def sample_gradients(self, values, points, weights, index, gradient):
        """Returns the gradients to values, points and weights, None without weights."""
        sizes, dtype = sample_sizes(values, points), dtype_of(values)
        to_values = points.new_empty(values.shape)
        to_points = points.new_empty(points.shape)
        to_weights = None if weights is None else points.new_empty(weights.shape)
        given = (points, weights, index, gradient)
        self._run("sample_grad_values", dtype, sizes, *given, to_values)
        self._run("sample_grad_points", dtype, sizes, values, *given, to_points, to_weights)
        return to_values, to_points, to_weights

    def conv(self, inputs, kernel, offset, mask=None, **options):
        """Returns the convolution [batch, *output, filters]; the arguments are as in kernels.h."""
        sizes = conv_sizes(inputs, kernel, offset, **options)
        out = inputs.new_empty(*offset.shape[:-1], kernel.shape[-1])
        self._run("conv", dtype_of(inputs), sizes, inputs, kernel, offset, mask, out)
        return out

    def conv_gradients(self, inputs, kernel, offset, mask, gradient, **options):
        """Returns the gradients to inputs, kernel, offset and mask, None without a mask."""
        sizes = conv_sizes(inputs, kernel, offset, **options)
        given = (inputs, kernel, offset, mask)
        found = [None if each is None else offset.new_empty(each.shape) for each in given]
        self._run("conv_grad", dtype_of(inputs), sizes, *given, gradient, *found)
        return found


def dtype_of(tensor):
    """Returns the name of the tensor's type: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def three(sizes):
    """Returns the sizes as a C array of three."""
    return (int64 * 3)(*sizes)


def sample_sizes(values, points):
    """Returns the sizes of a call of `Kernels.sample`."""
    images, *space, channels = values.shape
    rows, queries, groups, count, rank = points.shape
    pixels = 0
    return SampleSizes(rank, pixels, images, three(space), channels, rows, queries, groups, count)


def conv_sizes(inputs, kernel, offset, *, strides, dilations, before):
    """Returns the sizes of a call of `Kernels.conv`; the options are a tuple each."""
    batch, *space, channels = inputs.shape
    *taps, group_channels, filters = kernel.shape
    rank = len(space)
    return ConvSizes(
        *(rank, batch, three(space), channels, three(offset.shape[1:-1]), filters, three(taps)),
        *(three(strides), three(dilations), three(before), channels // group_channels),
        offset.shape[-1] // (math.prod(taps) * rank),
    )
