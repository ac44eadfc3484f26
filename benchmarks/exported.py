"""Times exported models in the engines that run them, beside the SavedModel.

    python benchmarks/exported.py [--quick] [--rounds 30]

Three models of one layer, of fixed sizes and batch 1, are exported by tf_deform: a modulated 3x3
DeformableConv2D, a GridSample and a RoIAlign. Each file is run in its engine with two threads:

- the SavedModel, portable and compiled, in the C++ program of `make serving`, by one client;
  compiled where the compiled library is there;
- the ONNX file in onnxruntime, whose threads do not spin while others run;
- the portable SavedModel, read by OpenVINO in float32;
- the LiteRT file in TensorFlow's interpreter.

The engines take turns, one at a time with a pause before it; the C++ program runs before, between
and after them. What an engine returns is compared with the model first. Printed are ratios of
medians over the portable SavedModel's. The results are written to
benchmarks/results/exported.json and, as a table, into docs/exports.md.

It needs the extra `engines` and the C++ program: `make bench-exported` makes both.
"""

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnxruntime
import openvino
import portable as common
import tensorflow as tf

import tf_deform as tfd
from tf_deform.compiled import location

RESULTS = Path(__file__).parent / "results" / "exported.json"
PAGE = Path(__file__).parents[1] / "docs" / "exports.md"
BEGIN, END = "<!-- benchmarks/exported.py: begin -->", "<!-- benchmarks/exported.py: end -->"
SERVE = Path(__file__).parents[1] / "build" / "serving" / "serve"
PARTS = 3  # of the rounds; the C++ program runs around each
BASE = "SavedModel, portable"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing is written")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    if not SERVE.exists():
        parser.exit(2, "the C++ program is missing: make serving\n")
    tf.config.threading.set_intra_op_parallelism_threads(common.THREADS)
    milliseconds = {name: timed(*make(), rounds) for name, make in MODELS.items()}
    modules = (onnxruntime, openvino)
    versions = {each.__name__: each.__version__.partition("-")[0] for each in modules}
    results = {
        "hardware": {**common.hardware(), **versions},
        "commit": common.commit(),
        "rounds": rounds,
        "milliseconds": milliseconds,
    }
    lines = table(results)
    print("\n".join(lines))
    if not options.quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        before, rest = PAGE.read_text().split(BEGIN)
        _, after = rest.split(END)
        PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))
        print(f"\nwritten to {RESULTS} and {PAGE}")


# Models and their inputs


def deformable_conv():
    images = keras.Input((56, 56, 64), name="images")
    offsets = keras.initializers.RandomNormal(0, 0.05, seed=1)
    options = {"modulated": True, "offset_kernel_initializer": offsets, "padding": "same"}
    layer = tfd.layers.DeformableConv2D(64, 3, **options)
    return keras.Model(images, layer(images)), {"images": noise(1, 56, 56, 64)}


def grid_sample():
    images, grid = (
        keras.Input((128, 128, 32), name="images"),
        keras.Input((128, 128, 2), name="grid"),
    )
    model = keras.Model([images, grid], tfd.layers.GridSample()(images, grid))
    points = tfd.ops.affine_grid([[[0.9, 0.1, 0.05], [-0.1, 0.9, -0.05]]], (128, 128))
    return model, {"images": noise(1, 128, 128, 32), "grid": points.numpy()}


def roi_align():
    images, boxes = keras.Input((50, 84, 256), name="images"), keras.Input((100, 4), name="boxes")
    model = keras.Model([images, boxes], tfd.layers.RoIAlign(7)(images, boxes))
    near = np.random.default_rng(1).uniform(0, 40, (1, 100, 2)).astype("float32")
    return model, {"images": noise(1, 50, 84, 256), "boxes": np.concatenate([near, near + 9], -1)}


MODELS = {"DeformableConv2D": deformable_conv, "GridSample": grid_sample, "RoIAlign": roi_align}


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# Engines: from a model and a folder to a function from {name: array} to the output


class Program:
    """The C++ program and a SavedModel, which it serves to one client."""

    def __init__(self, model, folder, implementation="portable"):
        self.path, self.folder = f"{folder}/{implementation}", folder
        tfd.export_saved_model(model, self.path, implementation=implementation)
        self.options = []
        if implementation == "compiled":
            self.options.append(f"--op_library={location.library_path()}")
        (self.output,) = model.output_names

    def __call__(self, feeds):
        self._run(feeds, f"--output={self.folder}")
        return np.load(f"{self.folder}/{self.output}.npy")

    def seconds(self, feeds):
        """Returns the median of 300 requests of one image."""
        load = ("--load", "--threads=1", "--requests=300", "--min_batch=1", "--max_batch=1")
        return float(re.search(r"latency p50: ([\d.]+) ms", self._run(feeds, *load))[1]) / 1000

    def _run(self, feeds, *options):
        for name, each in feeds.items():
            np.save(f"{self.folder}/{name}.npy", each)
        inputs = [f"--input={name}={self.folder}/{name}.npy" for name in feeds]
        command = [SERVE, *self.options, *inputs, *options, self.path]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def compiled_program(model, folder):
    return Program(model, folder, "compiled")


def onnx_file(model, folder):
    path = f"{folder}/model.onnx"
    tfd.export_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = common.THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino_model(model, folder):
    path = f"{folder}/openvino"
    tfd.export_saved_model(model, path)
    options = {"INFERENCE_NUM_THREADS": common.THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(path, "CPU", options)

    def run(feeds):
        fed = [
            next(feeds[name] for name in feeds if name in str(each.names))
            for each in compiled.inputs
        ]
        return compiled(fed)[0]

    return run


def litert_file(model, folder):
    path = f"{folder}/model.tflite"
    tfd.export_litert(model, path)
    runner = tf.lite.Interpreter(path, num_threads=common.THREADS).get_signature_runner()
    return lambda feeds: next(iter(runner(**feeds).values()))


ENGINES = {
    BASE: Program,
    "SavedModel, compiled": compiled_program,
    "onnxruntime": onnx_file,
    "OpenVINO": openvino_model,
    "LiteRT": litert_file,
}


# Timing


def timed(model, feeds, rounds):
    """Returns {engine: median milliseconds} of one model."""
    wanted = model(list(feeds.values()) if len(feeds) > 1 else next(iter(feeds.values()))).numpy()
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in ENGINES.items():
            if engine is compiled_program and not tfd.compiled_status().available:
                continue
            runs[name] = engine(model, folder)
            error = np.max(np.abs(runs[name](feeds) - wanted)) / np.max(np.abs(wanted))
            if not error < 1e-3:
                raise RuntimeError(f"{name} must return what the model does, is {error:.2g} off")
        programs = {name: run for name, run in runs.items() if isinstance(run, Program)}
        calls = {
            name: functools.partial(run, feeds)
            for name, run in runs.items()
            if name not in programs
        }
        parts = []
        for part in range(PARTS + 1):
            seconds = {name: program.seconds(feeds) for name, program in programs.items()}
            if part < PARTS:
                seconds |= common.in_turns(calls, rounds // PARTS)
            parts.append(seconds)
    return {
        name: 1000 * statistics.median(each[name] for each in parts if name in each)
        for name in runs
    }


def table(results):
    """Returns the lines of a Markdown table of ratios."""
    found, hardware = results["milliseconds"], results["hardware"]
    names = [name for name in ENGINES if any(name in each for each in found.values())]
    lines = [
        f"Time over that of the portable SavedModel, {hardware['threads']} threads, "
        f"{hardware['cpu']}, TensorFlow {hardware['tensorflow']}, onnxruntime "
        f"{hardware['onnxruntime']}, OpenVINO {hardware['openvino']}:",
        "",
        "| model | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for model, times in found.items():
        cells = [f"{times[name] / times[BASE]:.2f}" for name in names]
        cells[0] = f"{times[BASE]:.1f} ms"
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
