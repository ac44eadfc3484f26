"""Times whole models of KerasHub and zeromodels before and after `tfd.accelerate`.

    python benchmarks/accelerate.py [--quick] [--rounds 10] [--models "RT-DETR" "D-FINE"]

The models have random weights and are smaller than those that are published; nothing is downloaded.
Each is made once, and timed with its own attention, with ours compiled and with ours portable, in
turns in one process: the forward pass, and a training step without an optimizer (the forward pass
and the gradients to all weights), both as a tf.function of one image. Grounding DINO,
which cannot be traced, is left out.

Printed are medians and their ratios. Without --quick, the results are written to
benchmarks/results/accelerate.json and, as a table, into docs/accelerate.md; models that are not
measured keep their rows.

It needs the extra `accelerate`: `make bench-accelerate` installs it.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import keras
import portable as common
import tensorflow as tf

import tf_deform as tfd
from foreign_models import MODELS, inputs_of, with_noise

RESULTS = Path(__file__).parent / "results" / "accelerate.json"
PAGE = Path(__file__).parents[1] / "docs" / "accelerate.md"
BEGIN, END = "<!-- benchmarks/accelerate.py: begin -->", "<!-- benchmarks/accelerate.py: end -->"
SIZE = 256
TIMED = [name for name in MODELS if name != "Grounding DINO"]
OPTIONS = {"size": SIZE, "width": 128, "queries": 100, "layers": 3}
FORMS = ("before", "compiled", "portable")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing is written")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=TIMED, default=TIMED)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(common.THREADS)
    rounds = 3 if options.quick else options.rounds
    milliseconds = {}
    for name in options.models:
        milliseconds[name] = timed(name, rounds)
        print(row(name, milliseconds[name]), flush=True)
    versions = {each: importlib.metadata.version(each) for each in ("keras-hub", "zeromodels")}
    of_run = {"commit": common.commit()[:7], "rounds": rounds}
    old = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    new = {name: {**of_run, **each} for name, each in milliseconds.items()}
    results = {
        "hardware": {**common.hardware(), **versions},
        "models": {name: {**old, **new}[name] for name in MODELS if name in {**old, **new}},
    }
    if not options.quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        before, rest = PAGE.read_text().split(BEGIN)
        _, after = rest.split(END)
        PAGE.write_text("\n".join([before + BEGIN, "", *table(results), "", END + after]))
        print(f"\nwritten to {RESULTS} and {PAGE}")


def timed(name, rounds):
    """Returns the median milliseconds of each way and form."""
    model = MODELS[name](**OPTIONS)
    inputs = keras.tree.map_structure(tf.constant, inputs_of(model, SIZE, batch=1))
    model(inputs)
    with_noise(model)
    weights = [each.value for each in model.trainable_weights]

    def forward(inputs):
        return keras.tree.flatten(model(inputs))

    def training(inputs):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(inputs, training=True))
            loss = tf.add_n([tf.reduce_mean(tf.cast(each, tf.float32) ** 2) for each in outputs])
        found = tape.gradient(loss, weights)
        return [tf.convert_to_tensor(each) for each in found if each is not None]

    functions = {}
    for form in FORMS:
        if form == "compiled":
            tfd.accelerate(model, sample=inputs)
        with tfd.use_implementation("portable" if form == "portable" else "auto"):
            for way in (forward, training):
                function = tf.function(way, autograph=False).get_concrete_function(inputs)
                functions[way.__name__, form] = function
    times = {key: [] for key in functions}
    for turn in range(rounds + 1):
        for key, function in functions.items():
            start = time.perf_counter()
            for each in function(inputs):
                each.numpy()
            if turn:  # the first one plans
                times[key].append(1e3 * (time.perf_counter() - start))
    return {
        way: {form: statistics.median(times[way, form]) for form in FORMS}
        for way in ("forward", "training")
    }


def row(name, milliseconds):
    cells = [name]
    for way in ("forward", "training"):
        before = milliseconds[way]["before"]
        cells.append(f"{before:.0f} ms")
        cells += [f"{before / milliseconds[way][form]:.1f}" for form in FORMS[1:]]
    return f"| {' | '.join(cells)} |"


def table(results):
    """Returns the lines of the page's table."""
    rounds = {str(each["rounds"]) for each in results["models"].values()}
    hardware = ", ".join(f"{name} {value}" for name, value in results["hardware"].items())
    return [
        "| | forward before | ours compiled | ours portable | training before | ours compiled "
        "| ours portable |",
        "|---|---|---|---|---|---|---|",
        *(row(name, each) for name, each in results["models"].items()),
        "",
        f"{hardware}; medians of {', '.join(sorted(rounds))} rounds, in turns.",
    ]


if __name__ == "__main__":
    main()
