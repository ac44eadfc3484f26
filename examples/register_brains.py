"""Trains a network to register brains in 3-D, and compares it with SyN.

A small U-Net predicts a velocity for two brains of unlike pose, shape and contrast. Integrated it
is a smooth flow, by which the moving brain is warped to the fixed one. Nobody tells the network
the true flow: it is trained to make the two look alike, and the flow smooth. On pairs that it has
not seen it is compared with SyN of dipy, which searches a flow anew for every pair.

    python examples/register_brains.py            # some seven minutes on two idle cores
    python examples/register_brains.py --quick    # less than one, trained too short to be good

The brains are those of brains_data.py, from nilearn; nothing is downloaded. It prints how well
grey and white matter overlap before and after, how far the flows are from the true ones, and how
much of them folds; it draws a figure, and runs the exported model without tf_deform.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import brains_data
import brains_figure
import fresh_python
import keras
import numpy as np
import tensorflow as tf
from brains_model import build_model

import tf_deform as tfd

LEARNING_RATE = 2e-3
WINDOW = 7
SMOOTHNESS = 0.05
TISSUES = slice(1, 3)
COLUMNS = ("Dice, grey", "Dice, white", "error in mm", "folded in %", "seconds")


def main(arguments=None):
    options = parse(arguments)
    start = time.perf_counter()
    try:
        syn = make_syn()
        brain = brains_data.load_brain()
    except ImportError as error:
        sys.exit(f'register_brains.py: {error}; pip install "tf_deform[register]" brings it')
    keras.utils.set_random_seed(0)
    model = build_model(brain.shape[1:-1])
    print(f"\nTraining {model.count_params():,} weights on {options.steps} pairs", flush=True)
    fit(model, brain, options)

    pairs = [brains_data.make_pair(brain, "test", index) for index in range(options.pairs)]
    methods = {"network": make_network(model), "SyN of dipy": syn}
    flows, results = register(methods, pairs)
    print_results(results)

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "register_brains"
    print(f"\nThe model is exported to {path}")
    serve(model, pairs[0], path)
    path = options.output / "register_brains.png"
    brains_figure.draw(pairs[0], flows["network"][0], path)
    print(f"\nThe figure is in {path}")
    print(f"Done in {time.perf_counter() - start:.0f} s")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60 pairs to train on, 1 to test on")
    parser.add_argument(
        "--steps", type=int, default=1200, help="pairs to train on, each once (default: 1200)"
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs to test on (default: 8)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the figure and the SavedModel (default: outputs)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.pairs = 60, 1
    if options.steps < 1 or options.pairs < 1:
        parser.error("at least one pair to train on and one to test on are needed")
    return options


# ---------------------------------------------------------------- training


def fit(model, brain, options):
    """Trains the model to make volumes look alike by smooth velocities, without true flows."""
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10,
        decay_steps=options.steps - options.steps // 10,
        warmup_target=LEARNING_RATE,
        warmup_steps=options.steps // 10,
    )
    model.compile(
        keras.optimizers.Adam(rate),
        loss={
            "moved": tfd.losses.NormalizedCrossCorrelation(window=WINDOW),
            "velocity": tfd.losses.FlowSmoothness("l2"),
            "flow": None,
        },
        loss_weights={"moved": 1.0, "velocity": SMOOTHNESS, "flow": 0.0},
        jit_compile=False,  # XLA compiles for longer than it saves
    )
    epochs = min(10, options.steps)
    model.fit(
        training_pairs(brain, options.steps),
        epochs=epochs,
        steps_per_epoch=options.steps // epochs,
        shuffle=False,  # every pair is drawn at random
        verbose=progress(),
    )


def training_pairs(brain, count):
    """Returns a data set of batches (inputs, targets) of one pair, each pair once."""

    def make(index):
        pair = brains_data.make_pair(brain, "train", index)
        inputs = volumes(pair)
        # What the smoothness of a velocity is compared with is looked at by nobody.
        return inputs, {"moved": inputs["fixed"], "velocity": tf.zeros([1, 1])}

    return tf.data.Dataset.range(count).map(make, num_parallel_calls=1).prefetch(2)


def volumes(pair):
    """Returns what of a pair the model sees: T1, `[1, *size, 1]`."""
    return {"moving": pair.moving[..., :1], "fixed": pair.fixed[..., :1]}


def progress():
    return 1 if sys.stdout.isatty() else 2  # a bar, or in a log a line


# ---------------------------------------------------------------- registering


def make_network(model):
    """Returns the function from volumes `[1, *size, 1]` to the model's flow `[1, *size, 3]`."""
    predict = tf.function(lambda moving, fixed: model({"moving": moving, "fixed": fixed})["flow"])
    blank = tf.zeros([1, *model.output["flow"].shape[1:-1], 1])
    predict(blank, blank)  # traces it, which counts for no pair
    return predict


def make_syn():
    """Returns the function from volumes `[1, *size, 1]` to SyN's flow, with dipy's defaults."""
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    def syn(moving, fixed):
        registration = SymmetricDiffeomorphicRegistration(CCMetric(3))
        registration.verbosity = 0
        static, moving = (np.asarray(each, np.float64)[0, ..., 0] for each in (fixed, moving))
        return tf.constant(registration.optimize(static, moving).get_forward_field()[None])

    return syn


def register(methods, pairs):
    """Returns {method: its flow for each pair} and {method: means of COLUMNS}.

    The methods take turns, pair by pair. Beside them are the flow 0 and the true one.
    """
    print(f"\nRegistering {len(pairs)} pairs that are not trained on", flush=True)
    flows = {name: [] for name in methods}
    rows = {name: [] for name in ("before", *methods, "true flow")}
    bar = keras.utils.Progbar(len(pairs), verbose=progress(), unit_name="pair")
    for pair in pairs:
        rows["before"].append([*measure(pair, tf.zeros_like(pair.flow)), np.nan])
        rows["true flow"].append([*measure(pair, pair.flow), np.nan])
        for name, method in methods.items():
            start = time.perf_counter()
            flow = method(**volumes(pair))
            seconds = time.perf_counter() - start
            flows[name].append(flow)
            rows[name].append([*measure(pair, flow), seconds])
        bar.add(1)
    return flows, {name: np.mean(of_pairs, axis=0) for name, of_pairs in rows.items()}


def measure(pair, flow):
    """Returns the first four of COLUMNS: two Dice, the error inside of the brain, the folded."""
    moved = tfd.ops.warp(pair.moving, flow)
    brain = tf.reduce_sum(pair.fixed[..., TISSUES], axis=-1) > 0.5
    error = tf.norm(flow - pair.flow, axis=-1)[brain]
    folded = tfd.ops.jacobian_determinant(flow) <= 0
    return [
        *dice(moved[..., TISSUES], pair.fixed[..., TISSUES]),
        brains_data.VOXEL * np.mean(error),
        100 * np.mean(folded),
    ]


def dice(first, second):
    """Returns for each channel twice the voxels above 0.5 in both over those in either, added."""
    first, second = (np.asarray(each).reshape(-1, each.shape[-1]) > 0.5 for each in (first, second))
    return 2 * np.sum(first & second, axis=0) / (first.sum(axis=0) + second.sum(axis=0))


def print_results(results):
    _print_row("", COLUMNS)
    for name, (grey, white, error, folded, seconds) in results.items():
        cells = [f"{grey:.3f}", f"{white:.3f}", f"{error:.2f}", f"{folded:.3f}"]
        _print_row(name, [*cells, "" if np.isnan(seconds) else f"{seconds:.2f}"])


def _print_row(name, cells):
    print(f"  {name:<14}" + "".join(f"{cell:>13}" for cell in cells))


# ---------------------------------------------------------------- serving


def serve(model, pair, path):
    """Exports the model and checks the flow that a Python without tf_deform makes of a pair."""
    shutil.rmtree(path, ignore_errors=True)
    tfd.export_saved_model(model, path)
    inputs = {name: volume.numpy() for name, volume in volumes(pair).items()}
    served = fresh_python.run(path, inputs)["flow"]
    fresh_python.check_equal(served, model.predict(inputs, verbose=0)["flow"], tolerance=1e-4)


if __name__ == "__main__":
    main()
