"""Times the portable operators of two checkouts in turns: `portable.py --against FOLDER` runs it.

Each checkout has a process of its own, which waits while the other one measures. Printed are this
checkout's times, and peaks of memory, over the other's.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(other, rounds, part):
    """Prints for each operator and pass this checkout's median time and peak over the other's."""
    workers = {name: _start(root, part) for name, root in (("other", other), ("own", HERE.parent))}
    names = {name: _answer(worker) for name, worker in workers.items()}
    print("This checkout's time and memory over the other's (memory in MiB: other -> own)")
    ratios: dict = {}
    for number, (operator, each) in enumerate(names["own"]):
        times: dict = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(_ask(worker, number))
        peaks = {name: _ask(worker, -1 - number) / 2**20 for name, worker in workers.items()}
        ratio = statistics.median(times["own"]) / statistics.median(times["other"])
        ratios.setdefault(each, []).append(ratio)
        memory = f"{peaks['other']:8.0f} -> {peaks['own']:.0f}"
        print(f"  {operator:36}{each:14}{ratio:6.2f}{memory}", flush=True)
    for each, found in ratios.items():
        print(f"  {each}, geometric mean: {statistics.geometric_mean(found):.2f}")
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return ratios


def _start(root, part):
    """Returns a process that holds the calls of a checkout: see `serve`."""
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, __file__, part],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def _ask(worker, number):
    print(number, file=worker.stdin, flush=True)
    return _answer(worker)


def _answer(worker):
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a checkout's process has ended: run checkouts.py by itself to see why")
    return json.loads(line)


def serve(part):
    """Prints the names of all calls; then for each number read the time of that call in seconds.

    For number -1 - n it prints the peak of memory of the call n, in bytes beyond its results.
    """
    import machine
    import portable as common
    import tensorflow as tf

    import tf_deform as tfd

    tf.config.threading.set_intra_op_parallelism_threads(common.THREADS)
    tfd.set_implementation("portable")
    calls = {}
    for operator, (function, arguments) in common.operators(part).items():
        for jit in (False, True):
            for each, call in common.compiled_calls(function, arguments, jit).items():
                calls[operator, each + (" XLA" if jit else "")] = call
    print(json.dumps(list(calls)), flush=True)
    calls = list(calls.values())
    for line in sys.stdin:
        number = int(line)
        if number < 0:
            found = common.peak_memory(calls[-1 - number])
        else:
            found = machine.timed(calls[number])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
