"""What a spatial transformer gains on digits that are only rotated, and what that depends on.

Each line changes one thing about the ST-CNN of distorted_digits.py, or gives the plain CNN another
task, and trains on rotations of up to 90 degrees either way. It prints the errors in reading test
digits and, while it trains, training digits, and how far the digits of a class are still turned
against each other behind the transformer.

    python examples/digits_rotation.py --seeds 3
"""

import argparse
import os
from functools import partial

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import digits_data
import distorted_digits
import keras
import numpy as np
import tensorflow as tf
from digits_models import build_model, localization_network

import tf_deform as tfd


def variants(size):
    """Returns {what is changed: (a function that builds the model, passes over the digits)}."""
    plain = partial(build_model, "CNN", size)
    transformer = partial(build_model, "ST-CNN", size)
    return {
        "CNN": (plain, 1),
        "the same, upright digits": (plain, 1),
        "ST-CNN": (transformer, 1),
        "larger localisation": (
            partial(transformer, localization=localization_network(size, (24, 32), 64)),
            1,
        ),
        "border repeated": (partial(transformer, padding_mode="border"), 1),
        "similarity instead of affine": (partial(transformer, transformation="similarity"), 1),
        "CNN, averaged over places": (partial(plain, pooled=True), 1),
        "ST-CNN, averaged over places": (partial(transformer, pooled=True), 1),
        "CNN, three times as long": (plain, 3),
        "ST-CNN, three times as long": (transformer, 3),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["mnist-5k", "digits"], default="mnist-5k")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--only", nargs="+", help="lines to train (default: all)")
    chosen = parser.parse_args(arguments)
    options = distorted_digits.parse(["--data", chosen.data])
    print(f"{'test error':>46}{'training error':>26}{'turned against each other':>28}")
    size = digits_data.IMAGE_SIZES[digits_data.load(chosen.data, chosen.seed)[0][0].shape[1]]
    for name, (build, passes) in variants(size).items():
        if chosen.only and name not in chosen.only:
            continue
        rows = [
            train(name, build, passes, options, seed)
            for seed in range(chosen.seed, chosen.seed + chosen.seeds)
        ]
        print(f"{name:<32}" + "".join(_cell(*each) for each in zip(*rows, strict=True)), flush=True)


def train(name, build, passes, options, seed):
    """Returns test error and training error in percent, and degrees."""
    (_, _), (digits, digit_labels) = digits_data.load(options.data, seed)
    draws = options.draws
    options.draws = draws * passes
    (images, labels), (test_images, test_labels) = distorted_digits.datasets(options, "R", seed)
    if "upright" in name:
        (train_digits, train_labels), _ = digits_data.load(options.data, seed)
        images, labels = _repeated(train_digits, train_labels, options.epochs * options.draws, seed)
        test_images, test_labels = _placed(digits), digit_labels
    options.draws = draws
    keras.utils.set_random_seed(seed)
    model = build()
    history = distorted_digits.fit(model, images, labels, options.epochs)
    predicted = model.predict(test_images, batch_size=500, verbose=0).argmax(axis=1)
    error = 100 * np.mean(predicted != test_labels)
    turned = np.nan
    if any(layer.name == "spatial_transformer" for layer in model.layers):
        turned = spread(model.get_layer("spatial_transformer"), _placed(digits), digit_labels)
    return error, 100 - 100 * history.history["accuracy"][-1], turned


def _placed(digits):
    """Returns the digits in the middle of their images, upright."""
    margin = (digits_data.IMAGE_SIZES[digits.shape[1]] - digits.shape[1]) // 2
    return np.pad(digits, [(0, 0), (margin, margin), (margin, margin), (0, 0)])


def _repeated(digits, labels, times, seed):
    order = np.random.default_rng(seed).permutation(len(digits) * times) % len(digits)
    return _placed(digits)[order], labels[order]


def spread(layer, upright, labels):
    """Returns the circular standard deviation in degrees of how digits of a class are turned.

    Each digit is turned by an angle of -90 to 90 degrees, and the transformer turns it back by what
    it finds; a class may have any upright pose of its own.
    """
    angles = np.random.default_rng(0).uniform(-np.pi / 2, np.pi / 2, len(upright))
    zero = np.zeros_like(angles)
    theta = np.array(
        [[np.cos(angles), -np.sin(angles), zero], [np.sin(angles), np.cos(angles), zero]]
    )
    grid = tfd.ops.affine_grid(
        tf.constant(theta.transpose(2, 0, 1), tf.float32), upright.shape[1:3]
    )
    found = np.asarray(layer.predict_parameters(tfd.ops.grid_sample(upright, grid)))
    if layer.transformation == "similarity":
        back = found[:, 1]
    else:
        back = np.arctan2(found[:, 3] - found[:, 1], found[:, 0] + found[:, 4])
    lengths = [np.abs(np.mean(np.exp(1j * (angles + back)[labels == each]))) for each in range(10)]
    return np.degrees(np.mean(np.sqrt(-2 * np.log(lengths))))


def _cell(*values):
    if np.isnan(values[0]):
        return f"{'':>26}"
    mean = f"{np.mean(values):.2f}"
    if len(values) > 1:
        mean += f" ± {distorted_digits.standard_error([[value] for value in values]):.2f}"
    return f"{mean:>20}      "


if __name__ == "__main__":
    main()
