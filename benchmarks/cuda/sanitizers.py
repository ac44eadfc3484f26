"""Runs a command under compute-sanitizer."""

import os
import shutil
import subprocess

SANITIZER_SECONDS = 150
CLEAN = "clean"
ABSENT = "compute-sanitizer is not installed"
UNFINISHED = f"not finished after {SANITIZER_SECONDS} s"
HARMLESS = (CLEAN, ABSENT, UNFINISHED)


def sanitize(tool, command):
    """Returns what compute-sanitizer says of a command: CLEAN, or its first lines."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return ABSENT
    limit = ["timeout", "--kill-after=5", str(SANITIZER_SECONDS)]
    # Our kernels alone: PyTorch's own would take hours.
    watched = [program, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=tf_deform"]
    # PyTorch's cache of memory would hide what is read beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [*limit, *watched, *command]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode in (124, 137):
        return UNFINISHED
    lines = (run.stdout + run.stderr).splitlines()
    said = [line for line in lines if line.startswith("=========")] or lines[-20:]
    return CLEAN if run.returncode == 0 else "\n".join(said[:20])
