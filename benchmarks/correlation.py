"""Times `ops.correlation` beside TensorFlow Addons' CorrelationCost, in turns.

    python benchmarks/correlation.py [--quick] [--rounds 7]

Addons runs in a process of its own, on TensorFlow 2.15.1, which waits while another contestant is
timed. Each turn calls every contestant once untimed and once timed. What is printed are ratios of
medians, over Addons' CPU kernel with channels last, where it is the faster one, and their geometric
means over the cases. Training is the forward pass and the gradients of both maps. The results are
written to benchmarks/results/correlation.json.
"""

import argparse
import functools
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import addons_peer
import portable as common
import tensorflow as tf

import tf_deform as tfd

CASES = {  # batch, height, width, channels, max_displacement, displacement_stride
    "FlowNetC": (1, 48, 64, 256, 20, 2),  # of images of 384 x 512 pixels
    "PWC-Net, level 2": (1, 96, 128, 32, 4, 1),
    "PWC-Net, level 4": (1, 24, 32, 96, 4, 1),
    "PWC-Net, level 5": (4, 12, 16, 128, 4, 1),
}
PASSES = ("forward", "training")
NAMES = ["portable", "portable XLA"]
RESULTS = Path(__file__).parent / "results" / "correlation.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, PWC-Net's maps only")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if not addons_peer.is_there():
        return
    tf.config.threading.set_intra_op_parallelism_threads(common.THREADS)
    rounds = 3 if options.quick else options.rounds
    cases = dict(list(CASES.items())[options.quick :])
    print("Correlation, time over TensorFlow Addons' CorrelationCost", flush=True)
    ratios = time_all(cases, rounds)
    for name in NAMES:
        means = {each: common.mean([r[each][name] for r in ratios.values()]) for each in PASSES}
        cells = ", ".join(f"{each} {value:.2f}" for each, value in means.items())
        print(f"  {name}, geometric mean: {cells}")
    if not options.quick:
        results = {"hardware": common.hardware(), "commit": common.commit(), "rounds": rounds}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**results, "correlation": ratios}, indent=2) + "\n")
        print(f"\nwritten to {RESULTS}")


def time_all(cases, rounds):
    """Returns by case and pass the ratios {"portable", "portable XLA"}, and prints them."""
    ratios = {}
    with addons_peer.serving(common.THREADS, "correlation", list(cases.values())) as ask:
        for number, (name, case) in enumerate(cases.items()):
            calls = calls_of(*case)
            calls |= {("Addons", each): functools.partial(ask, number, each) for each in PASSES}
            seconds = common.in_turns(calls, rounds)
            ratios[name] = {
                each: {one: seconds[one, each] / seconds["Addons", each] for one in NAMES}
                for each in PASSES
            }
            for one in NAMES:
                cells = "".join(f"{each:>10}{ratios[name][each][one]:6.2f}" for each in PASSES)
                print(f"  {name:18}{one:14}{cells}", flush=True)
    return ratios


def calls_of(*case):
    """Returns our calls, by name and pass."""
    *shape, reach, stride = case
    maps = [tf.random.stateless_normal(shape, [1, seed]) for seed in (1, 2)]

    def correlation(first, second):
        return tfd.ops.correlation(
            first, second, max_displacement=reach, displacement_stride=stride, padding=reach
        )

    return {
        (name, each): call
        for name, jit in zip(NAMES, (False, True), strict=True)
        for each, call in common.compiled_calls(correlation, maps, jit).items()
    }


if __name__ == "__main__":
    main()
