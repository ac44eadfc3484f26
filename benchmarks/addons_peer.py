"""Runs TensorFlow Addons' resampler for compiled.py, in the environment of `make goldens-addons`.

    .venv-addons/bin/python benchmarks/addons_peer.py THREADS '[[32, 64, 64, 3], ...]'

Each line of stdin, an index of a shape and "forward" or "training", is one call; a line of stdout
says that it is done.
"""

import json
import sys

import tensorflow as tf
from tensorflow_addons.image import resampler


def calls_of(shape):
    """Returns the calls {"forward", "training"} for images of that shape."""
    batch, height, width, _ = shape
    data = tf.random.stateless_normal(shape, [1, 1])
    size = tf.constant([width, height], tf.float32)
    warp = tf.random.stateless_uniform([batch, height * width, 2], [1, 2]) * size
    upstream = tf.random.stateless_normal([batch, height * width, shape[-1]], [1, 3])

    @tf.function
    def forward():
        return resampler(data, warp)

    @tf.function
    def training():
        with tf.GradientTape() as tape:
            tape.watch([data, warp])
            out = resampler(data, warp)
        return out, tape.gradient(out, [data, warp], upstream)

    return {"forward": forward, "training": training}


def main():
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
    calls = [calls_of(shape) for shape in json.loads(sys.argv[2])]
    for line in sys.stdin:
        index, each = line.split()
        calls[int(index)][each]()
        print("done", flush=True)


if __name__ == "__main__":
    main()
