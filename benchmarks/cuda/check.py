"""Builds the CUDA kernels, checks them, and times them beside their peers.

    python benchmarks/cuda/check.py [--build-only] [--checks-only] [--rounds 60] [--seed 0]

It takes an NVIDIA GPU, nvcc, PyTorch and, for half of the comparisons, torchvision; no TensorFlow.
With --emulated it takes PyTorch and g++ alone, and makes the comparisons on the CPU, with
plain products in place of the tensor cores': what it tells is whether this script works.

- The kernels are compared with float64 references, in plain tensor operations and their automatic
  derivatives, over random shapes and hostile coordinates; and with torchvision's CUDA kernel.
- The same runs under compute-sanitizer, as memcheck and racecheck.
- Times are medians between CUDA events, over input sets that together exceed the L2 cache, of calls
  queued while the card was busy, so that Python's own time is not in them: torchvision's
  deform_conv2d, cuDNN's plain convolution, torch's grid_sample, torchvision's roi_align, and the
  card's copy bandwidth.

The table comes last; all figures are written to benchmarks/results/cuda.json. A comparison that
fails does not stop the others: it is in the table, as is what a sanitizer finds, and the script
ends with 1.
"""

import argparse
import json
import sys

import kernels as ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build-only", action="store_true", help="needs no GPU and no PyTorch")
    parser.add_argument("--checks-only", action="store_true", help="no sanitizer and no times")
    parser.add_argument("--emulated", action="store_true", help="checks only, without a GPU")
    parser.add_argument("--architecture", help='to build for, "90": the card\'s, or 90 without one')
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.build_only:
        table = ours.load(ours.build(options.architecture or "90"))
        print(f"built and loaded; on this machine: {table.unavailable() or b'can run'}")
        return
    sys.exit(1 if run(options) else 0)


def run(options):
    """Checks and times the kernels; returns what failed."""
    import torch  # here, as all that takes it: --build-only does without
    from comparisons import check
    from report import commit, hardware, report, write
    from sanitizers import HARMLESS, sanitize
    from timing import copy_bandwidth, time_all

    if options.emulated:
        device, library = "cpu", ours.build_emulated()
    else:
        major, minor = torch.cuda.get_device_capability()
        options.architecture = options.architecture or f"{major}{minor}"
        device, library = "cuda", ours.build(options.architecture)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    worst, failures = check(library, options.rounds, device)
    if options.checks_only or options.emulated:
        print(json.dumps({"errors": worst, "failures": failures}, indent=2))
        return failures
    results = {"hardware": hardware(), "commit": commit(), "errors": worst, "failures": failures}
    write(results)
    again = [sys.executable, __file__, "--checks-only", "--rounds", "4"]
    again += ["--architecture", options.architecture, "--seed", str(options.seed)]
    results["sanitizers"] = {tool: sanitize(tool, again) for tool in ("memcheck", "racecheck")}
    for tool, said in results["sanitizers"].items():
        if said not in HARMLESS:
            failures[tool] = "not clean"
    write(results)
    results["copy"] = copy_bandwidth()
    results["times"] = time_all(library, results["copy"])
    write(results)
    report(results)
    return failures


if __name__ == "__main__":
    main()
