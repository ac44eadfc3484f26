"""Shows what OffsetMonitor reports of trainings that go well, and of some that do not.

    python examples/watch_offsets.py    # a table, in ten minutes; --quick in one

The deformable network of `make demo` learns to read turned, moved and scaled digits, each time with
other options of its deformable convolution, whose inputs have 8 x 8 pixels. Offsets are measured on
200 test digits, before the training and after every epoch.
"""

import argparse
import os

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import digits_models
import distorted_digits
import keras
import numpy as np

import tf_deform as tfd

OPTIONS = {
    "default": {},
    "offset_lr_multiplier=0.1": {"offset_lr_multiplier": 0.1},
    "offset_lr_multiplier=30": {"offset_lr_multiplier": 30.0},
    "the same, max_offset=2": {"offset_lr_multiplier": 30.0, "max_offset": 2.0},
    "modulated=False": {"modulated": False},
    "mask_scale=1": {"mask_scale": 1.0},
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="trains for a moment only")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    options = parser.parse_args(arguments)
    trainings = distorted_digits.parse(["--data", "digits"])
    if options.quick:
        trainings.epochs, trainings.draws, options.seeds = 2, 1, 1
    print("| | offset_magnitude | out_of_bounds | dead_offsets | test error in % |")
    print("|---|---|---|---|---|")
    for name, changed in OPTIONS.items():
        runs = [_train(changed, seed, trainings) for seed in range(options.seeds)]
        measured = np.array([history for history, _ in runs])  # [seeds, epochs, 3]
        first, last = measured.mean(axis=0)[[0, -1]]
        cells = [f"{a:.2f} → {b:.2f}" for a, b in zip(first, last, strict=True)]
        error = f"{np.mean([each for _, each in runs]):.1f}"
        print(f"| {name} | {' | '.join(cells)} | {error} |", flush=True)


def _train(changed, seed, trainings):
    """Returns the monitor's three numbers after each epoch, and the test error in percent."""
    train, test = distorted_digits.datasets(trainings, "RTS", seed)
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(
        digits_models.build_model("Deformable CNN", 32),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | (changed if isinstance(layer, tfd.layers.DeformableConv2D) else {})
        ),
    )
    monitor = tfd.callbacks.OffsetMonitor(test[0][:200], log_dir=None)
    history = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: history.append(monitor.statistics["deformable_convolution"])
    )
    distorted_digits.fit(model, *train, trainings.epochs, callbacks=[monitor, record])
    accuracy = model.evaluate(*test, batch_size=256, verbose=0)[1]
    return history, 100 * (1 - accuracy)


if __name__ == "__main__":
    main()
