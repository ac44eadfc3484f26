"""Writes and prints the results, and what they were found with."""

import json
import subprocess
from pathlib import Path

import kernels as ours
import torch

RESULTS = Path(__file__).parents[1] / "results" / "cuda.json"


def write(results):
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def hardware():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return {"card and driver": card, "torch": torch.__version__}


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, cwd=ours.ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def report(results):
    print(f"{len(results['errors'])} comparisons, {len(results['failures'])} failures")
    for name, said in results["failures"].items():
        print(f"    {name}: {said}")
    for tool, said in results["sanitizers"].items():
        print(f"{tool}: {said}")
    print(f"copy: {results['copy']:.0f} GB/s\n")
    for name, times in results["times"].items():
        print(name)
        for what, value in times.items():
            print(f"    {what:24} {value if isinstance(value, str) else f'{value:8.3f}'}")
