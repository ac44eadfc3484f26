"""Calls the compiled library's raw ops with random and hostile arguments, and tells what breaks.

Every call is made twice, and in the modes other than eager also eagerly. A fault is a process that
dies or hangs, an error of the wrong kind, bits that differ between two calls or two modes, a shape
other than the one promised, and values off the portable form. Calls are made in child processes of
limited memory; a case is known by its seed and mode, and each fault comes with the command that
repeats it. Exits with 1 if there is any.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import cases

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
MODES = ("eager", "graph", "unknown", "jit")
BATCH = 1000  # cases a child, at most
STARTING = 300  # seconds that a child may take before its first case
TOLD = re.compile(
    r"AddressSanitizer:|runtime error|terminate called|what\(\)|Check failed|^\S*Error:"
)
# What AddressSanitizer says instead of throwing std::bad_alloc.
NO_ROOM = re.compile(r"AddressSanitizer: (allocator is out of memory|requested allocation size)")
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "-1",
    # oneDNN's allocator has tensors in one piece, whose edges no sanitizer knows, and waits for
    # ten seconds where there is no memory.
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
SANITIZERS = {
    # Python and TensorFlow leak and mix allocators; memory is limited here, not by the system.
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_container_overflow=0:"
    "allocator_may_return_null=1:max_allocation_size_mb=1536",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TF_DEFORM_INSTRUCTION_SET": "avx2",
}


def main(arguments=None):
    """Runs the cases that the arguments ask for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first case (default: 1)")
    parser.add_argument("--mode", choices=MODES, help="how to call (default: all in turns)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="children at a time")
    parser.add_argument("--timeout", type=float, default=30, help="seconds a case (default: 30)")
    parser.add_argument("--sanitized", help="the folder of a library built with -DSANITIZE=ON")
    options = parser.parse_args(arguments)
    print(f"{options.cases} cases from seed {options.seed} on", flush=True)
    hunt = Hunt(options)
    hunt.run()
    print(hunt.summary())
    return 1 if hunt.faults else 0


class Hunt:
    """The cases asked for, the children that run them now, and what came of them."""

    def __init__(self, options, script=HERE / "child.py"):
        self.options = options
        self.script = script
        self.modes = [options.mode] if options.mode else list(MODES)
        self.children = {}  # by process: since when it has been busy with what it does
        self.counts = collections.Counter()  # by op, mode and outcome
        self.reasons = collections.Counter()
        self.faults = []
        self.lock = threading.Lock()

    def run(self):
        """Runs all cases, shows how far they are, and kills children that hang."""
        first, end, began = self.options.seed, self.options.seed + self.options.cases, time.time()
        size = min(BATCH, math.ceil(self.options.cases / self.options.workers))
        shown = began
        with concurrent.futures.ThreadPoolExecutor(self.options.workers) as threads:
            batches = [
                threads.submit(self._batch, start, min(start + size, end))
                for start in range(first, end, size)
            ]
            while concurrent.futures.wait(batches, timeout=0.2).not_done:
                self._kill_who_hangs()
                if time.time() > shown + 5:
                    shown = time.time()
                    done = self.counts.total()
                    print(
                        f"{done} cases, {done / (shown - began):.0f}/s, {len(self.faults)} faults",
                        flush=True,
                    )
        for batch in batches:
            batch.result()  # or what it raised

    def summary(self):
        """Returns what came of the cases by op and mode, and how to repeat what went wrong."""
        lines = [f"{'':24}" + "".join(f"{mode:>22}" for mode in self.modes)]
        for op in cases.OPS:
            cells = []
            for mode in self.modes:
                good, bad, fatal = (
                    self.counts[op, mode, each] for each in ("succeeded", "refused", "fatal")
                )
                cells.append(f"{good} + {bad}" + f" + {fatal} fatal" * bool(fatal))
            lines.append(f"{cases.OPS[op]:24}" + "".join(f"{cell:>22}" for cell in cells))
        lines.append("(calls that succeeded + calls that were refused)")
        lines += [f"{count:7} {reason}" for reason, count in self.reasons.most_common(8)]
        lines += [f"{len(self.faults)} faults in {self.counts.total()} cases", *self.faults]
        return "\n".join(lines)

    def _batch(self, first, end):
        """Runs the cases of some seeds; goes on behind each that is fatal."""
        while first < end:
            first = self._child(first, end)

    def _child(self, first, end):
        """Runs cases in a child until all are done or it is dead; returns the next seed."""
        command = [sys.executable, self.script, ",".join(self.modes), str(first), str(end)]
        command += [self.options.sanitized or ""]
        running = None
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment()
            )
            self.children[child] = time.time() + STARTING
            for line in child.stdout:
                self.children[child] = time.time()
                if line.startswith('["begin"'):
                    running = json.loads(line)[1]
                elif line.startswith('["end"'):
                    _, seed, op, refusal, faults = json.loads(line)
                    self._record(seed, op, refusal, faults)
                    running, first = None, seed + 1
            child.wait()
            hung = self.children.pop(child) is None
            log.seek(0)
            said = log.read()
        if running is None:
            if first < end:
                raise RuntimeError(f"a child ended without a case: {said[-2000:]}")
            return end
        op = cases.make(running, self._mode(running)).op
        if NO_ROOM.search(said):
            self._record(running, op, "no memory", [])
        else:
            seconds = f"hangs for {self.options.timeout:g} s"
            self._record(running, op, None, [seconds if hung else _death(child.returncode, said)])
        return running + 1

    def _mode(self, seed):
        return self.modes[seed % len(self.modes)]

    def _environment(self):
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        if self.options.sanitized:
            names = ("libasan.so", "libubsan.so")
            found = [
                subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
                for name in names
            ]
            environment |= {"LD_PRELOAD": " ".join(found), **SANITIZERS}
        return environment

    def _kill_who_hangs(self):
        for child, since in list(self.children.items()):
            if since is not None and time.time() > since + self.options.timeout:
                self.children[child] = None
                child.kill()

    def _record(self, seed, op, refusal, faults):
        """Counts a case that has ended. refusal: "" if the call succeeded, None if it was fatal."""
        mode = self._mode(seed)
        outcome = {None: "fatal", "": "succeeded"}.get(refusal, "refused")
        with self.lock:
            self.counts[op, mode, outcome] += 1
            if refusal:
                self.reasons[_reason(refusal)] += 1
            for fault in faults:
                target = "fuzz-sanitized" if self.options.sanitized else "fuzz"
                again = f'make {target} ARGS="--mode {mode} --seed {seed} --cases 1"'
                self.faults.append(f"{again}  # {fault[:100]}")
                print(f"{cases.make(seed, mode)}\n    {fault}\n    {again}", flush=True)


def _reason(refusal):
    """Returns a refusal without what is only about this case."""
    return re.sub(r"{{.*?}} *|\[Op:.*", "", re.sub(r"-?[\d\[][\d,\[\]]*", "#", refusal))[:100]


def _death(status, said):
    """Returns how a child died, and the lines of its last words that matter."""
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    told = [line.strip() for line in said.splitlines() if TOLD.search(line)]
    return "; ".join([f"dies of {how}", *told[:3]])


if __name__ == "__main__":
    sys.exit(main())
