"""The CUDA kernels, as far as a machine without a GPU can tell: run on the CPU, and built."""

import subprocess

import pytest

from tf_deform import __main__ as commands
from tf_deform import compiled


def test_the_kernels_equal_those_of_the_cpu_where_a_gpu_is_emulated(tmp_path):
    program = tmp_path / "cuda_test"
    options = ["-std=c++17", "-w", "-fsanitize=address"]
    source = compiled.SOURCES / "cuda_test.cc"
    subprocess.run(["c++", *options, source, "-o", program, "-ldl"], check=True)
    kernels = compiled.library_path().with_name("tf_deform_kernels_baseline.so")
    run = subprocess.run([program, kernels, "3"], capture_output=True, text=True)
    assert run.stdout.endswith("3 rounds, 0 failures\n"), run.stdout + run.stderr


def test_building_for_cuda_without_its_compiler_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(commands.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"nvcc is missing: set CUDA_HOME, .*tf-deform\[cuda\]"):
        commands.main(["build", "--cuda"])


@pytest.mark.parametrize("error", ["", "there is no NVIDIA driver"])
def test_auto_uses_the_library_beside_a_gpu_only_with_kernels_for_it(monkeypatch, error):
    texts = {"TfDeformCudaError": error, "TfDeformXlaError": ""}
    assert compiled.compiled_status().available  # loaded before its texts are replaced
    monkeypatch.setattr(compiled, "_text", texts.get)
    monkeypatch.setattr(compiled.tf.config, "list_physical_devices", lambda kind: [f"a {kind}"])
    status = compiled.compiled_status()
    assert compiled._auto_is_compiled.__wrapped__() == (not error)
    assert status.devices == (("CPU",) if error else ("CPU", "GPU"))
    assert error in status.reason
    assert ('"auto" is portable' in status.reason) == bool(error)
    assert "no XLA kernels for a GPU" in status.reason
