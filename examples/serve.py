"""Exports the digits model and serves it with TensorFlow's C++ runtime, under load.

The deformable network of distorted_digits.py is trained for a short time and exported by
`tfd.export_saved_model`. The C++ program of custom_ops/serving, TensorFlow Serving's code path
without its network, then reads the test digits, and answers many clients at a time.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import distorted_digits
import keras
import numpy as np
from digits_models import build_model

import tf_deform as tfd

SOURCES = Path(__file__).parent.parent / "custom_ops" / "serving"


def main(arguments=None):
    options = parse(arguments)
    model, images, labels = train()
    path = options.output / "1"
    shutil.rmtree(path, ignore_errors=True)
    options.output.mkdir(parents=True, exist_ok=True)
    tfd.export_saved_model(
        model, path, image_size=images.shape[1:3], image_scale=1 / 255, warmup=images[:32]
    )
    np.save(options.output / "images.npy", images)
    command = ["make", "-C", SOURCES, f"PYTHON={sys.executable}", "--no-print-directory"]
    subprocess.run(command, check=True)

    print(f"\nThe signatures of {path}", flush=True)
    run(path)
    run(f"--input=images={options.output}/images.npy", f"--output={options.output}", path)
    check(
        np.load(options.output / f"{model.output_names[0]}.npy"),
        model.predict(images, verbose=0),
        labels,
    )
    print(
        f"\n{options.requests} requests of 0 to 32 images from {options.threads} clients",
        flush=True,
    )
    load = [f"--{name}={getattr(options, name)}" for name in ("threads", "requests", "max_growth")]
    run(f"--input=images={options.output}/images.npy", "--load", *load, path)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=8, help="clients at a time (default: 8)")
    parser.add_argument(
        "--requests", type=int, default=2000, help="of all clients together (default: 2000)"
    )
    parser.add_argument(
        "--max_growth",
        type=float,
        default=-1,
        help="percent by which memory may grow after 2000 requests (default: any)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/serve"),
        help="folder for the SavedModel and arrays (default: outputs/serve)",
    )
    return parser.parse_args(arguments)


def train():
    """Returns the model, trained for a short time, and distorted digits with their labels."""
    options = distorted_digits.parse(["--quick"])
    keras.utils.set_random_seed(0)
    training, (images, labels) = distorted_digits.datasets(options, "RTS", 0)
    model = build_model("Deformable CNN")
    print("Training the deformable network on distorted digits", flush=True)
    distorted_digits.fit(model, *training, options.epochs)
    return model, images[:512], labels[:512]


def run(*arguments):
    """Runs the C++ program, or stops with its error."""
    # With oneDNN, TensorFlow's own Conv2D returns an empty batch of the wrong shape.
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    program = SOURCES.parent.parent / "build" / "serving" / "serve"
    result = subprocess.run([program, *arguments], env=environment)
    if result.returncode:
        sys.exit(result.returncode)


def check(served, expected, labels):
    """Stops unless what was served is what Keras returns."""
    difference = np.abs(served - expected).max()
    if not difference <= 1e-5:
        sys.exit(f"The probabilities differ by {difference:.1e}, more than 1e-5")
    accuracy = 100 * np.mean(served.argmax(axis=1) == labels)
    print(f"\nIt reads {accuracy:.2f} % of {len(labels)} digits; Keras differs by {difference:.0e}")


if __name__ == "__main__":
    main()
