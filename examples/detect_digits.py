"""Trains detectors of handwritten digits on photographs, one for each way of pooling a region.

The scenes are real digits, turned and scaled at random, over real photographs, both of which
scikit-learn brings along; nothing is downloaded. A small backbone reads them; for each proposal a
head on `RoIAlign`, `DeformableRoIPooling` or `DeformablePSRoIPooling` then tells the class and
refines the box. The proposals are given, half of them near digits: the detectors can be compared
with one another, not with ones that must propose themselves.

    python examples/detect_digits.py            # three seeds
    python examples/detect_digits.py --quick    # one, trained for a short time

It prints the mean average precision at IoU 0.5 and 0.7, draws what was found and where the bins
moved to, and exports the best detector as a SavedModel.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import detect_data
import detect_figure
import keras
import numpy as np
import tensorflow as tf
from detect_boxes import decode, mean_average_precision
from detect_models import build_model

import tf_deform as tfd

POOLINGS = ("RoIAlign", "DeformableRoIPooling", "DeformablePSRoIPooling")
THRESHOLDS = (0.5, 0.7)
BATCH_SIZE = 8
LEARNING_RATE = 3e-3
LEAST_SCORE = 0.05
SUPPRESSING_IOU = 0.3


def main(arguments=None):
    options = parse(arguments)
    start = time.perf_counter()
    precisions, models, test = train_all(options)
    print_precisions(precisions, models, options)

    best = max(POOLINGS, key=lambda name: np.mean(precisions[name][THRESHOLDS[0]]))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "detect_digits"
    shutil.rmtree(path, ignore_errors=True)
    tfd.export_saved_model(models[best], path)
    print(f"\n{best}, which is best at IoU {THRESHOLDS[0]}, is exported to {path}")
    path = options.output / "detect_digits.png"
    detect_figure.draw(models, best, test, detect(models[best], test), path)
    print(f"The figure is in {path}")
    print(f"Done in {time.perf_counter() - start:.0f} s")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed, few scenes, trained for a short time"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument(
        "--scenes", type=int, default=480, help="scenes to train on, of each seed (default: 480)"
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="times to train on each scene (default: 10)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the figure and the SavedModel (default: outputs)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.scenes, options.epochs = 1, 160, 6
    if options.seeds < 1 or options.epochs < 1 or options.scenes < BATCH_SIZE:
        parser.error(f"at least one seed and epoch and {BATCH_SIZE} scenes are needed")
    return options


# ---------------------------------------------------------------- training


def train_all(options):
    """Returns {pooling: {IoU: [mAP a seed]}}, the last seed's models and its scenes to test on."""
    precisions = {name: {threshold: [] for threshold in THRESHOLDS} for name in POOLINGS}
    models = {}
    for seed in range(options.seeds):
        print(f"\nPasting the digits of seed {seed} over the photographs", flush=True)
        train = detect_data.make_scenes("train", options.scenes, seed)
        test = detect_data.make_scenes("test", max(1, options.scenes // 3), seed)
        truths = list(zip(test.boxes, test.labels, strict=True))
        for name in POOLINGS:
            print(f"\n{name}, seed {seed}")
            keras.utils.set_random_seed(seed)
            models[name] = build_model(name)
            fit(models[name], train, options.epochs)
            detections = detect(models[name], test)
            for threshold, of_seed in precisions[name].items():
                of_seed.append(100 * mean_average_precision(detections, truths, threshold))
                print(f"mAP at IoU {threshold}: {of_seed[-1]:.1f} %")
    return precisions, models, test


def fit(model, scenes, epochs):
    steps = len(scenes.images) // BATCH_SIZE * epochs
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10,
        decay_steps=steps - steps // 10,
        warmup_target=LEARNING_RATE,
        warmup_steps=steps // 10,
    )
    # XLA compiles each model for longer than it trains, and its convolutions are slower on CPUs.
    model.compile(
        keras.optimizers.Adam(rate),
        {"scores": "sparse_categorical_crossentropy", "deltas": "huber"},
        weighted_metrics={"scores": ["accuracy"]},
        jit_compile=False,
    )
    labels, deltas = detect_data.targets(scenes)
    digit = (labels != detect_data.BACKGROUND).astype(np.float32)
    model.fit(
        inputs_of(scenes),
        {"scores": labels, "deltas": deltas},
        # Boxes of background have nothing to be refined to.
        sample_weight={"scores": np.ones_like(digit), "deltas": digit},
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=1 if sys.stdout.isatty() else 2,  # a bar, or in a log a line an epoch
    )


def inputs_of(scenes):
    return {"images": scenes.images, "proposals": scenes.proposals}


def detect(model, scenes):
    """Returns for each scene (boxes `[found, 4]`, scores `[found]`, labels `[found]`)."""
    predicted = model.predict(inputs_of(scenes), batch_size=BATCH_SIZE, verbose=0)
    boxes = decode(predicted["deltas"], scenes.proposals)
    return [_without_duplicates(*each) for each in zip(boxes, predicted["scores"], strict=True)]


def _without_duplicates(boxes, probabilities):
    """Returns (boxes, scores, labels) that are probable enough, of each digit only the best."""
    found = []
    for label in range(detect_data.BACKGROUND):
        scores = probabilities[:, label]
        kept = tf.image.non_max_suppression(
            boxes, scores, len(boxes), SUPPRESSING_IOU, score_threshold=LEAST_SCORE
        ).numpy()
        found.append((boxes[kept], scores[kept], np.full(len(kept), label)))
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


# ---------------------------------------------------------------- results


def print_precisions(precisions, models, options):
    print(f"\nMean average precision in percent, {options.seeds} seed(s)")
    _print_row("", [f"IoU {threshold}" for threshold in THRESHOLDS], "parameters")
    for name, of_threshold in precisions.items():
        cells = [_mean_and_error(values) for values in of_threshold.values()]
        _print_row(name, cells, f"{models[name].count_params():,}")
    if options.seeds > 1:
        print("Gain over RoIAlign, paired by seed")
        for name in POOLINGS[1:]:
            gains = [
                np.subtract(precisions[name][threshold], precisions["RoIAlign"][threshold])
                for threshold in THRESHOLDS
            ]
            _print_row(name, map(_mean_and_error, gains), "")


def _print_row(name, cells, last):
    print(f"  {name:<24}" + "".join(f"{cell:>14}" for cell in cells) + f"{last:>14}")


def _mean_and_error(values):
    """Returns the mean ± its standard error as text."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"


if __name__ == "__main__":
    main()
