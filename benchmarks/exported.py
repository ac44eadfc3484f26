"""Times exported models in the engines that run them, beside the SavedModel.

    python benchmarks/exported.py [--quick] [--rounds 30]

Three models of one layer, of fixed sizes and batch 1, are exported by tf_deform: a modulated 3x3
DeformableConv2D, a GridSample and a RoIAlign. Each file is run in its engine with two threads:

- the SavedModel, portable and compiled, in Python's tf.saved_model (not in the C++ program, whose
  clients share threads); compiled where the compiled library is there;
- the ONNX file in onnxruntime;
- the portable SavedModel, read by OpenVINO in float32;
- the LiteRT file in TensorFlow's interpreter.

They take turns in one process, one engine at a time with a pause before it. What an engine returns
is compared with the model first. Printed are ratios of medians over the portable SavedModel's. The
results are written to benchmarks/results/exported.json and, as a table, into docs/serving.md.

It needs the extra `engines`: `make bench-exported` installs it.
"""

import argparse
import json
import os
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

RESULTS = Path(__file__).parent / "results" / "exported.json"
PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- benchmarks/exported.py: begin -->", "<!-- benchmarks/exported.py: end -->"
BASE = "SavedModel, portable"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing is written")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
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


# Engines: functions from a model and a folder to a function from {name: array} to its output


def saved_model(model, folder, implementation="portable"):
    path = f"{folder}/{implementation}"
    tfd.export_saved_model(model, path, implementation=implementation)
    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]

    def run(feeds, loaded=loaded):  # which holds the variables
        (output,) = serve(**{name: tf.constant(each) for name, each in feeds.items()}).values()
        return output.numpy()

    return run


def compiled_saved_model(model, folder):
    return saved_model(model, folder, "compiled")


def onnx_file(model, folder):
    path = f"{folder}/model.onnx"
    tfd.export_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = common.THREADS
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
    BASE: saved_model,
    "SavedModel, compiled": compiled_saved_model,
    "onnxruntime": onnx_file,
    "OpenVINO": openvino_model,
    "LiteRT": litert_file,
}


# Timing


def timed(model, feeds, rounds):
    """Returns {engine: median milliseconds} of one model."""
    wanted = model(list(feeds.values()) if len(feeds) > 1 else next(iter(feeds.values()))).numpy()
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in ENGINES.items():
            if engine is compiled_saved_model and not tfd.compiled_status().available:
                continue
            run = engine(model, folder)
            error = np.max(np.abs(run(feeds) - wanted)) / np.max(np.abs(wanted))
            if not error < 1e-3:
                raise RuntimeError(f"{name} must return what the model does, is {error:.2g} off")
            calls[name] = lambda run=run: run(feeds)
        seconds = common.in_turns(calls, rounds)
    return {name: 1000 * each for name, each in seconds.items()}


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
