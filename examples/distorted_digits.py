"""Trains three networks on distorted handwritten digits and compares them.

A plain convolutional network, the same with a spatial transformer before it, and the same with
deformable convolutions in it, all of about equal size, learn to read digits that are rotated (R),
rotated, translated and scaled (RTS), projectively (P) or elastically (E) distorted. The best is
exported and served from a Python without tf_deform, and a figure shows what the layers learnt.

Everything runs from real digits that scikit-learn brings along; nothing is downloaded.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import digits_data
import digits_figure
import fresh_python
import keras
import numpy as np
import tensorflow as tf
from digits_models import WIDTHS, build_model

import tf_deform as tfd

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
TESTS_PER_DIGIT = 10

# Test errors in percent on MNIST: Jaderberg et al., "Spatial Transformer Networks"
# (arXiv:1506.02025), Table 1. Its ST-CNN here is the one with affine transformations.
PAPER = {
    "CNN": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 1.4},
    "ST-CNN": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.2},
}


def main(arguments=None):
    options = parse(arguments)
    start = time.perf_counter()
    try:
        digits_data.load(options.data, options.seed)
    except OSError as error:
        sys.exit(f"distorted_digits.py: {error}")
    kinds = ["RTS"] if options.quick or options.seeds > 1 else list(digits_data.DISTORTIONS)
    seeds = range(options.seed, options.seed + options.seeds)
    errors, trained = train_all(kinds, seeds, options)

    print_errors(errors, options)
    if options.seeds > 1:
        print_gains(errors)
    best = min(WIDTHS, key=lambda name: np.mean(errors[name]["RTS"]))
    options.output.mkdir(parents=True, exist_ok=True)
    (_, _), (digits, labels) = digits_data.load(options.data, seeds[-1])
    images = digits_data.distort(digits, "RTS", test_seed(seeds[-1]))
    print(f"\nServing {best}, which has the lowest error on RTS")
    serve(trained[best, "RTS"], images, labels, options.output / "distorted_digits")
    path = options.output / "distorted_digits.png"
    digits_figure.draw(trained, digits, labels, seeds[-1], path)
    print(f"\nThe figure is in {path}")
    print(f"Done in {time.perf_counter() - start:.0f} s")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        choices=["digits", "mnist"],
        default="digits",
        help="scikit-learn's digits, or MNIST, which Keras downloads and which takes longer "
        "(default: digits)",
    )
    parser.add_argument("--quick", action="store_true", help="RTS alone, trained for a short time")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of seeds; with more than one: RTS alone, with standard errors (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the figure and the SavedModel (default: outputs)",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.seed < 0:
        parser.error("--seeds must be at least 1 and --seed at least 0")
    # Every epoch distorts every digit `draws` times afresh.
    options.epochs, options.draws = (4, 2) if options.quick else (8, 3)
    if options.data == "mnist":
        options.draws = 1
    return options


# ---------------------------------------------------------------- training


def train_all(kinds, seeds, options):
    """Returns the test errors {model: {kind: [percent a seed]}} and the last seed's models."""
    errors = {name: {kind: [] for kind in kinds} for name in WIDTHS}
    trained = {}
    for seed in seeds:
        for kind in kinds:
            print(f"\nDistorting the digits: {digits_data.DISTORTIONS[kind]}", flush=True)
            train, test = datasets(options, kind, seed)
            for name in WIDTHS:
                print(f"\n{name} on {kind}, seed {seed}")
                keras.utils.set_random_seed(seed)
                model = trained[name, kind] = build_model(name)
                fit(model, *train, options.epochs)
                predicted = model.predict(test[0], batch_size=500, verbose=0).argmax(axis=1)
                accuracy = 100 * np.mean(predicted == test[1])
                errors[name][kind].append(100 - accuracy)
                print(f"Test accuracy {accuracy:.2f} %, error {100 - accuracy:.2f} %")
    return errors, trained


def datasets(options, kind, seed):
    """Returns (images, labels) to train on, in the order of training, and to test on."""
    (digits, labels), (test_digits, test_labels) = digits_data.load(options.data, seed)
    draws = options.epochs * options.draws
    images = digits_data.distort(np.tile(digits, [draws, 1, 1, 1]), kind, train_seed(seed))
    order = np.random.default_rng(seed).permuted(
        np.arange(len(images)).reshape(options.epochs, -1), axis=1
    )
    train = images[order.ravel()], np.tile(labels, draws)[order.ravel()]
    tests = np.tile(test_digits, [TESTS_PER_DIGIT, 1, 1, 1])
    test = digits_data.distort(tests, kind, test_seed(seed)), np.tile(test_labels, TESTS_PER_DIGIT)
    return train, test


def train_seed(seed):
    return 2 * seed


def test_seed(seed):
    return 2 * seed + 1


def fit(model, images, labels, epochs, callbacks=()):
    """Trains the model once through the images, in `epochs` parts."""
    steps = len(images) // epochs // BATCH_SIZE
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10,
        decay_steps=steps * epochs - steps // 2,
        warmup_target=LEARNING_RATE,
        warmup_steps=steps // 2,
    )
    # XLA compiles each model for longer than it trains, and its convolutions are slower on CPUs.
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    batches = batches.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)
    model.fit(
        batches.repeat(),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # already is
        callbacks=list(callbacks),
        verbose=1 if sys.stdout.isatty() else 2,  # a bar, or in a log a line an epoch
    )


# ---------------------------------------------------------------- results


def print_errors(errors, options):
    kinds = list(next(iter(errors.values())))
    print("\nTest error in percent, each test digit distorted ten times")
    _print_row(f"{options.data}, {options.seeds} seed(s)", kinds, "parameters")
    for name, of_kind in errors.items():
        cells = [_mean_and_error(of_kind[kind]) for kind in kinds]
        _print_row(name, cells, f"{build_model(name).count_params():,}")
    _print_row("paper's Table 1 (MNIST)", [""] * len(kinds), "")
    for name, of_kind in PAPER.items():
        _print_row(name, [f"{of_kind[kind]:.1f}" for kind in kinds], "")


def _print_row(name, cells, last):
    print(f"  {name:<26}" + "".join(f"{cell:>14}" for cell in cells) + f"{last:>14}")


def print_gains(errors):
    """Prints by how much the deforming models beat the plain one, seed by seed."""
    print("\nGain over the CNN on RTS, in points of test error, paired by seed")
    for name in list(WIDTHS)[1:]:
        gains = np.subtract(errors["CNN"]["RTS"], errors[name]["RTS"])
        mean, error = gains.mean(), standard_error(gains)
        verdict = "more" if mean > 2 * error else "NOT more"
        each = ", ".join(f"{gain:.2f}" for gain in gains)
        print(f"  {name:<26}{_mean_and_error(gains):>14}  ({each})")
        print(f"  {'':<26}{mean / error:>14.1f}  standard errors: {verdict} than two")


def standard_error(values):
    """Returns the standard error of the mean of independent values."""
    return np.std(values, ddof=1) / np.sqrt(len(values))


def _mean_and_error(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {standard_error(values):.2f}"


# ---------------------------------------------------------------- serving


def serve(model, images, labels, path):
    """Exports the model and checks what a Python without tf_deform reads from the images."""
    shutil.rmtree(path, ignore_errors=True)
    tfd.export_saved_model(model, path)
    (served,) = fresh_python.run(path, {"images": images}).values()
    accuracy = 100 * np.mean(served.argmax(axis=1) == labels)
    print(f"  It loaded {path} and read {len(images)} digits, {accuracy:.2f} % of them correctly")
    fresh_python.check_equal(served, model.predict(images, verbose=0), tolerance=1e-5)


if __name__ == "__main__":
    main()
