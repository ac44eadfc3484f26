"""The CUDA kernels, as far as a machine without a GPU can tell: run on the CPU, and built."""

import ctypes
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from tf_deform import __main__ as commands
from tf_deform import building, compiled, ops
from tf_deform.compiled import choice, loading, location, proof
from xla_test import attention, convolution, with_gradients


def test_the_kernels_equal_those_of_the_cpu_where_a_gpu_is_emulated(tmp_path):
    program = tmp_path / "cuda_test"
    options = ["-std=c++17", "-w", "-fsanitize=address", f"-I{location.SOURCES.parent}"]
    source = location.SOURCES / "cuda" / "emulation" / "cuda_test.cc"
    subprocess.run(["c++", *options, source, "-o", program, "-ldl"], check=True)
    kernels = location.library_path().with_name("tf_deform_kernels_baseline.so")
    run = subprocess.run([program, kernels, "3"], capture_output=True, text=True)
    assert run.stdout.endswith("3 rounds, 0 failures\n"), run.stdout + run.stderr


def test_building_for_cuda_without_its_compiler_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(building.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"nvcc is missing: set CUDA_HOME, .*tf-deform\[cuda\]"):
        commands.main(["build", "--cuda"])


@pytest.mark.parametrize(
    ("cuda", "xla", "note"),
    [
        ("", "", ""),
        ("", "a platform it does not know", "XLA does not take its kernels: a platform it does"),
        ("there is no NVIDIA driver", "", "XLA finds none of its kernels for a GPU"),
    ],
)
def test_beside_a_gpu_the_library_is_used_and_compiled_by_xla_only_with_kernels_for_it(
    monkeypatch, cuda, xla, note
):
    texts = {"TfDeformCudaError": cuda, "TfDeformXlaError": "", "TfDeformXlaGpuError": xla}
    assert compiled.compiled_status().available  # loaded before its texts are replaced
    monkeypatch.setattr(loading, "said_by", texts.get)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"a {kind}"])
    monkeypatch.setattr(proof, "why_unproven", lambda: "")
    status = compiled.compiled_status()
    assert choice.auto_is_compiled.__wrapped__() == (not cuda)
    assert status.devices == (("CPU",) if cuda else ("CPU", "GPU"))
    assert cuda in status.reason
    assert ('"auto" is portable' in status.reason) == bool(cuda)
    assert note in status.reason
    assert bool(status.reason) == bool(note)
    with tfd.use_implementation("compiled"):
        assert tfd.layers.GridSample().supports_jit == (not note)


@pytest.mark.xla_kernels
def test_what_xla_compiles_for_a_gpu_is_right_where_a_gpu_is_emulated(tmp_path):
    library = location.library_path().parent
    folder = shutil.copytree(library, tmp_path / "tf_deform" / library.name)
    include, libraries = tf.sysconfig.get_include(), tf.sysconfig.get_lib()
    source = location.SOURCES / "tensorflow" / "cuda_xla_test.cc"
    made = folder / "tf_deform_kernels_cuda.so"
    options = ["-std=c++17", "-w", "-fPIC", "-shared", f"-I{location.SOURCES.parent}"]
    options += ["-isystem", include]
    linked = [f"-L{libraries}", "-l:libtensorflow_framework.so.2"]
    subprocess.run(["c++", *options, source, "-o", made, *linked], check=True)
    run = subprocess.run(
        [sys.executable, "-c", "import cuda_test; cuda_test.check_on_an_emulated_gpu()"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.stdout.endswith("right\n"), run.stdout + run.stderr


def check_on_an_emulated_gpu():
    """Prints "right" if XLA's programs for a GPU are, on the CPU: what the test above starts."""
    tfd.set_implementation("compiled")
    assert compiled.compiled_status() == (True, ("CPU", "GPU"), "")
    operators = ctypes.CDLL(str(location.library_path()))
    emulation = ctypes.CDLL(str(location.library_path().with_name("tf_deform_kernels_cuda.so")))
    operators.TfDeformXlaGpuHandler.restype = ctypes.c_void_p
    assert emulation.Emulate(ctypes.c_void_p(operators.TfDeformXlaGpuHandler()))
    rng = np.random.default_rng(0)
    for make, dtype in itertools.product((convolution, attention), ("float32", "float64")):
        call, arguments = make(rng, dtype)
        derive, before = with_gradients(call), emulation.Calls()
        found = on_a_gpu(derive, *arguments)
        assert emulation.Calls() >= before + 2  # forward and backward
        for actual, expected in zip(found, derive(*arguments), strict=True):
            assert relative_error(actual, expected) < TOLERANCE[dtype]

    values, points = tf.constant([[[1.0], [3.0]]]), tf.fill([3, 1, 1, 1, 1], 0.5)
    pick = lambda index: ops.weighted_sample(values, points, image_index=index)  # noqa: E731
    np.testing.assert_array_equal(np.ravel(on_a_gpu(pick, tf.constant([-1, 0, 1]))), [0, 2, 0])

    tf.random.set_seed(0)
    tf.config.experimental.enable_op_determinism()
    on_a_gpu(call, *arguments)
    with pytest.raises(tf.errors.InternalError, match="no fixed order"):
        on_a_gpu(derive, *arguments)
    print("right")


def on_a_gpu(call, *arguments):
    """Returns what XLA's program for a GPU makes of the arguments where the GPU is emulated."""
    function = tf.function(call, jit_compile=True, autograph=False)
    program = function.experimental_get_compiler_ir(*arguments)("stablehlo", platform_name="GPU")
    traced = function.get_concrete_function(*arguments)

    def run():
        return gen_xla_ops.xla_call_module(
            args=[*arguments, *traced.captured_inputs],
            version=9,
            module=program.replace("@tf_deform(", "@emulated("),
            Sout=[each.shape for each in traced.outputs],
            Tout=[each.dtype for each in traced.outputs],
            platforms=["CPU"],
            dim_args_spec=[],
        )

    return tf.function(run, jit_compile=True)()
