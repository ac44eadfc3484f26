"""Runs files in one engine, in a process of its own: python engines.py ENGINE JOBS

An engine may end the process, and must not find tf_deform. JOBS is a JSON file with a list of
{"file", "inputs", "outputs", "empty"}: what to run, an .npz of its inputs by name, and the .npz to
write, of outputs by name. Where the engine raises, the text is written beside it, as .txt.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SERVE = os.environ.get("SERVE", "build/serving/serve")
NODE_SCRIPT = pathlib.Path(__file__).with_name("tensorflowjs.cjs")


def by_name(names, feeds):
    """Returns the feeds under an engine's names of the inputs: ours, or such as begin with them."""
    found = {name: [each for each in feeds if each in name] for name in names}
    if sorted(each for one in found.values() for each in one) != sorted(feeds):
        raise ValueError(f"inputs must be named {sorted(feeds)}, received {sorted(names)}")
    return {name: feeds[each] for name, (each,) in found.items()}


@functools.lru_cache(maxsize=1)
def saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return loaded, loaded.signatures["serving_default"]  # the first holds the variables


def run_tensorflow(path, feeds, empty):
    import tensorflow as tf

    _, serve = saved_model(path)
    fed = by_name(list(serve.structured_input_signature[1]), feeds)
    tensors = {name: tf.constant(array) for name, array in fed.items()}
    return {name: each.numpy() for name, each in serve(**tensors).items()}


def run_serve(path, feeds, empty):
    """Runs the C++ program of custom_ops/serving; an input or output's name is its file's."""
    with tempfile.TemporaryDirectory() as folder:
        for name, array in feeds.items():
            np.save(f"{folder}/{name}.npy", array)
        inputs = [f"--input={name}={folder}/{name}.npy" for name in feeds]
        command = [SERVE, *inputs, f"--output={folder}/outputs", path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        files = pathlib.Path(folder, "outputs").glob("*.npy")
        return {file.stem: np.load(file) for file in files}


def run_interpreter(path, feeds, empty, module):
    """Runs LiteRT; without its delegate XNNPACK, which refuses some, where inputs are empty."""
    types = module.OpResolverType if hasattr(module, "OpResolverType") else None
    if types is None:
        types = module.experimental.OpResolverType
    resolver = types.BUILTIN_WITHOUT_DEFAULT_DELEGATES if empty else types.AUTO
    interpreter = module.Interpreter(path, experimental_op_resolver_type=resolver)
    (signature,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(signature)
    return runner(**by_name(runner.get_input_details(), feeds))


def run_litert(path, feeds, empty):
    import tensorflow as tf

    return run_interpreter(path, feeds, empty, tf.lite)


def run_ai_edge(path, feeds, empty):
    from ai_edge_litert import interpreter

    return run_interpreter(path, feeds, empty, interpreter)


def run_onnxruntime(path, feeds, empty):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised
    session = onnxruntime.InferenceSession(path, options)
    outputs = [each.name for each in session.get_outputs()]
    fed = by_name([each.name for each in session.get_inputs()], feeds)
    return dict(zip(outputs, session.run(None, fed), strict=True))


@functools.lru_cache(maxsize=1)
def openvino_model(path):
    import openvino

    return openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run_openvino(path, feeds, empty):
    model = openvino_model(path)
    fed = by_name([each.any_name for each in model.inputs], feeds)
    # Keras's files have outputs of functions within too, after the model's.
    return {"output": model(fed)[model.output(0)]}


def run_converter(path, feeds, empty):
    """Writes a SavedModel for TensorFlow.js, in a folder beside it."""
    from tensorflowjs.converters import convert_tf_saved_model

    convert_tf_saved_model(path, f"{path}-web", strip_debug_ops=True)
    return {}


def run_node(path, feeds, empty):
    """Runs TensorFlow.js in node, on its backend of pure JavaScript."""
    tensors = {
        name: {"shape": array.shape, "values": array.ravel().tolist()}
        for name, array in feeds.items()
    }
    done = subprocess.run(
        ["node", NODE_SCRIPT, f"{path}-web"],
        input=json.dumps(tensors),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(next(line for line in done.stderr.splitlines() if "Error" in line))
    outputs = json.loads(done.stdout)
    return {
        name: np.reshape(np.asarray(each["values"], "float32"), each["shape"])
        for name, each in outputs.items()
    }


ENGINES = {
    "tensorflow": run_tensorflow,
    "serve": run_serve,
    "litert": run_litert,
    "ai_edge": run_ai_edge,
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "converter": run_converter,
    "node": run_node,
}


def main(engine, jobs):
    sys.modules["tf_deform"] = None  # an import fails, wherever it is installed
    for job in json.loads(pathlib.Path(jobs).read_text()):
        output = pathlib.Path(job["outputs"])
        try:
            with contextlib.redirect_stdout(sys.stderr):
                feeds = dict(np.load(job["inputs"]))
                outputs = ENGINES[engine](job["file"], feeds, job["empty"])
            np.savez(output, **outputs)
        except Exception as error:
            output.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
