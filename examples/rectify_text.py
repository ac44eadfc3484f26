"""Trains two readers of curved text, with a spatial transformer that straightens it and without.

The words are random letters, drawn in the DejaVu fonts that matplotlib ships and bent into arcs.
A small convolutional network reads them from left to right (CTC). Before the same network the
other reader has a `SpatialTransformer` with a thin plate spline, whose control points are two rows
along the upper and the lower edge of its output; nobody tells it where the text is. Both are of
about equal size, and read the same words, none of which they were trained on.

    python examples/rectify_text.py            # some five minutes on two idle cores
    python examples/rectify_text.py --quick    # less than one, trained too short to be good

It prints how many words are read without a mistake, by how far they are bent, and draws what the
transformer made of some.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
import text_data
import text_figure
from text_models import READERS, build_model

import tf_deform as tfd

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
LARGEST_GRADIENT = 5.0
ALMOST_STRAIGHT = np.radians(20)
BENDS = (0, 50, 100, 150)
"""Degrees: where the columns of the table begin and end."""


def main(arguments=None):
    options = parse(arguments)
    start = time.perf_counter()
    print(f"Drawing {options.words} words to train on and {options.tests} to test on", flush=True)
    words = text_data.make_words("train", options.words)
    tests = text_data.make_words("test", options.tests)
    images, bends = text_data.photograph(*text_data.draw_words(tests), seed=(2, 0))
    models, right = {}, {}
    for name in READERS:
        keras.utils.set_random_seed(options.seed)
        models[name] = build_model(name)
        print(f"\nThe {name} reader, {models[name].count_params():,} weights", flush=True)
        fit(models[name], words, options)
        right[name] = np.array(read(models[name], images)) == tests
        print(f"It reads {100 * np.mean(right[name]):.1f} % of the words that are new to it")
    print_accuracies(right, np.degrees(np.abs(bends)), models)

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "rectify_text.png"
    text_figure.draw(models, images, tests, bends, read, path)
    print(f"\nThe figure is in {path}")
    print(f"Done in {time.perf_counter() - start:.0f} s")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few words, 60 steps")
    parser.add_argument("--words", type=int, default=8000, help="words to train on (default: 8000)")
    parser.add_argument("--tests", type=int, default=1000, help="words to test on (default: 1000)")
    parser.add_argument(
        "--steps", type=int, default=1500, help=f"batches of {BATCH_SIZE} (default: 1500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder of the figure (default: outputs)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.words, options.tests, options.steps = 2000, 200, 60
    if min(options.words, options.tests, options.steps) < 1:
        parser.error("at least one word to train on, one to test on and one step are needed")
    return options


# ---------------------------------------------------------------- training


def fit(model, words, options):
    """Trains on words that are almost straight, then on words that are bent more and more.

    For the first third of the steps the transformer is held: until a reader reads, its gradients
    say nothing of where the text is. After that it wants words such as it knows, straight ones.
    """
    first = options.steps // 3
    parts = [(first, ALMOST_STRAIGHT), (options.steps - first, text_data.LARGEST_BEND)]
    for part, (steps, bend) in enumerate(parts):
        for layer in model.layers:
            if isinstance(layer, tfd.layers.SpatialTransformer):
                layer.trainable = part > 0
        if steps:
            fit_part(model, batches(words, part, steps, bend), steps)


def fit_part(model, data, steps):
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10,
        decay_steps=steps - steps // 10,
        warmup_target=LEARNING_RATE,
        warmup_steps=steps // 10,
    )
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=LARGEST_GRADIENT),
        keras.losses.CTC(),
        jit_compile=False,  # CTC does not run under XLA
    )
    epochs = min(5, steps)
    model.fit(
        data,
        epochs=epochs,
        steps_per_epoch=steps // epochs,
        shuffle=False,  # every batch is drawn at random
        verbose=1 if sys.stdout.isatty() else 2,  # a bar, or in a log a line an epoch
    )


def batches(words, part, steps, bend):
    """Returns an endless data set of batches (images, codes): every word anew in another arc.

    The largest bend grows to `bend` over the first half of the steps.
    """
    strips, widths = text_data.draw_words(words)
    codes = text_data.encode(words)

    def make(index):
        seed = (part, index)
        chosen = tf.random.stateless_uniform([BATCH_SIZE], seed, 0, len(words), tf.int64)
        drawn = (tf.gather(each, chosen) for each in (strips, widths))
        grown = tf.minimum(1.0, 2.0 * tf.cast(index + 1, tf.float32) / steps)
        images, _ = text_data.photograph(*drawn, seed, tf.maximum(grown * bend, ALMOST_STRAIGHT))
        return images, tf.gather(codes, chosen)

    return tf.data.Dataset.counter().map(make, num_parallel_calls=1).prefetch(2)


# ---------------------------------------------------------------- reading


def read(model, images):
    """Returns the words that the model reads: of columns in a row with one letter, one letter."""
    best = model.predict(images, batch_size=200, verbose=0).argmax(axis=2)
    new = np.diff(best, axis=1, prepend=0) != 0
    return text_data.decode(np.where(new, best, 0))


def print_accuracies(right, bends, models):
    """Prints the share of words read right, for all words and by the absolute bend in degrees."""
    spans = list(itertools.pairwise(BENDS))
    print(f"\nWords read without a mistake in percent, of {len(bends)} by how far they are bent")
    _print_row("", [f"{low}-{high}°" for low, high in spans], "all", "weights")
    for name, of_words in right.items():
        cells = [_percent(of_words[(bends >= low) & (bends < high)]) for low, high in spans]
        _print_row(name, cells, _percent(of_words), f"{models[name].count_params():,}")


def _percent(right):
    return f"{100 * np.mean(right):.1f}" if len(right) else "-"


def _print_row(name, cells, *last):
    print(f"  {name:<12}" + "".join(f"{cell:>12}" for cell in [*cells, *last]))


if __name__ == "__main__":
    main()
