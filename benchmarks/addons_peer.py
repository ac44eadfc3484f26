"""Runs TensorFlow Addons for compiled.py and correlation.py, in its own process: see `serving`.

That process runs in the environment of `make goldens-addons`, where TensorFlow is older:

    .venv-addons/bin/python benchmarks/addons_peer.py THREADS resampler '[[32, 64, 64, 3], ...]'

Each line of stdin, an index of a case and "forward" or "training", is one call; a line of stdout
says that it is done.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import tensorflow as tf

PYTHON = Path(__file__).parents[1] / ".venv-addons" / "bin" / "python"


def is_there():
    """Returns whether the environment of TensorFlow Addons is made, and says so if not."""
    if not PYTHON.exists():
        print("\nTensorFlow Addons is not there: left out")
    return PYTHON.exists()


@contextlib.contextmanager
def serving(threads, operator, cases):
    """Gives a function of a case's index and "forward" or "training", which waits for that call."""
    command = [PYTHON, __file__, str(threads), operator, json.dumps(cases)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, text=True, bufsize=1, env=environment, **pipes) as peer:

        def ask(index, each):
            peer.stdin.write(f"{index} {each}\n")
            if not peer.stdout.readline():
                raise RuntimeError(f"{__file__} ended: run it by hand to see why")

        yield ask
        peer.stdin.close()


# In that process


def resampler(shape):
    """Returns (function, arguments) for images of that shape."""
    from tensorflow_addons.image import resampler

    batch, height, width, _ = shape
    data = tf.random.stateless_normal(shape, [1, 1])
    size = tf.constant([width, height], tf.float32)
    warp = tf.random.stateless_uniform([batch, height * width, 2], [1, 2]) * size
    return resampler, [data, warp]


def correlation(case):
    """Returns (function, arguments) for a case of correlation.py."""
    from tensorflow_addons.layers import CorrelationCost

    *shape, reach, stride = case
    layer = CorrelationCost(1, reach, 1, stride, reach, "channels_last")
    maps = [tf.random.stateless_normal(shape, [1, seed]) for seed in (1, 2)]
    return lambda first, second: layer([first, second]), maps


def calls_of(function, arguments):
    """Returns the calls {"forward", "training"}."""
    upstream = tf.random.stateless_normal(function(*arguments).shape, [1, 3])

    @tf.function
    def forward():
        return function(*arguments)

    @tf.function
    def training():
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            out = function(*arguments)
        return out, tape.gradient(out, arguments, upstream)

    return {"forward": forward, "training": training}


def main():
    threads, operator, cases = sys.argv[1:]
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    contestants = {"resampler": resampler, "correlation": correlation}
    calls = [calls_of(*contestants[operator](case)) for case in json.loads(cases)]
    for line in sys.stdin:
        index, each = line.split()
        calls[int(index)][each]()
        print("done", flush=True)


if __name__ == "__main__":
    main()
