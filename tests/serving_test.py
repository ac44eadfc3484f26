"""Exported models in TensorFlow's C++ runtime: outputs, bad requests, load."""

import fcntl
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error
from export_test import FAMILIES, SIZES, arguments_of, call
from tf_deform.compiled import location

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ROOT / "custom_ops" / "serving"
OP_LIBRARY = f"--op_library={location.library_path()}"
REQUESTS = 2000  # `make soak` sends 160,000


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Returns a function that runs the C++ program, which is built once for all test processes."""
    missing = [each for each in ("make", "g++") if not shutil.which(each)]
    if missing:
        pytest.skip(f"the C++ program cannot be built without {' and '.join(missing)}")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    command = ["make", "-C", SOURCES, f"PYTHON={sys.executable}", f"OUTPUT={folder}"]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True)

    def run(*arguments):
        # With oneDNN, TensorFlow's own Conv2D returns an empty batch of the wrong shape.
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
        command = [folder / "serve", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Returns the folder of a model of images `[batch, 8, 10, 3]`, and the model."""
    folder = tmp_path_factory.mktemp("small")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 10, 3), name="images")
    features = tfd.layers.SpatialTransformer(keras.layers.GlobalAveragePooling2D())(inputs)
    features = tfd.layers.DeformableConv2D(
        4, 3, modulated=True, offset_kernel_initializer="glorot_uniform"
    )(features)
    outputs = keras.layers.Dense(5, name="scores")(keras.layers.Flatten()(features))
    model = keras.Model(inputs, outputs)
    for weight in model.weights:
        weight.assign(weight + 0.1 * np.random.default_rng(1).normal(size=weight.shape))
    images = np.random.default_rng(2).random((37, 8, 10, 3), "float32")
    tfd.export_saved_model(
        model, folder / "1", image_size=(8, 10), image_scale=1 / 255, warmup=images[:2]
    )
    np.save(folder / "images.npy", images)
    return folder, model


@pytest.fixture(scope="module")
def custom(small, tmp_path_factory):
    """Returns the folder of the small model with custom ops."""
    folder, model = small
    path = tmp_path_factory.mktemp("custom")
    tfd.export_saved_model(model, path / "1", implementation="compiled")
    shutil.copy(folder / "images.npy", path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Returns the folder of the digits model, its weights random."""
    folder = tmp_path_factory.mktemp("digits")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        model = importlib.import_module("digits_models").build_model("Deformable CNN")
    finally:
        sys.path.pop(0)
    rng = np.random.default_rng(5)
    for weight in model.weights:
        weight.assign(weight + 0.1 * rng.random(weight.shape))
    tfd.export_saved_model(model, folder / "1")
    np.save(folder / "images.npy", rng.random((64, 32, 32, 1), "float32"))
    return folder


def failure(result):
    """Returns the one line of a run that failed."""
    assert result.returncode == 1, (result.returncode, result.stderr)
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("serve: ")
    return result.stderr


def figures(result):
    return {
        name: float(value)
        for name, value in re.findall(r"^([\w ]+): ([-\d.]+)", result.stdout, flags=re.M)
    }


# Outputs


@pytest.mark.parametrize("wanted", ["portable", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_keras(family, wanted, serve, tmp_path):
    model = FAMILIES[family]((None, None))
    tfd.export_saved_model(model, tmp_path / "1", implementation=wanted)
    library = [OP_LIBRARY] if wanted == "compiled" else []
    several = len(model.inputs) > 1
    names = [f"inputs_{index}" if several else "inputs" for index in range(len(model.inputs))]
    for size in SIZES:
        arguments = arguments_of(family, SIZES[size], batch=len(size) - 3)
        for name, array in zip(names, arguments, strict=True):
            np.save(tmp_path / f"{name}.npy", array)
        inputs = [f"--input={name}={tmp_path}/{name}.npy" for name in names]
        result = serve(*library, *inputs, f"--output={tmp_path}/{size}", tmp_path / "1")
        assert result.returncode == 0, result.stderr
        actual = np.load(tmp_path / size / f"{model.output_names[0]}.npy")
        with tfd.use_implementation("portable"):
            expected = call(model, arguments)
        assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_the_signatures_are_listed(serve, small):
    folder, _ = small
    signature = "  input  images: float [?,8,10,3]\n  output scores: float [?,5]\n"
    assert serve(folder / "1").stdout == (
        f"serve\n{signature}serve_image_bytes\n  input  image_bytes: string [?]\n"
        f"  output scores: float [?,5]\nserving_default\n{signature}"
    )


def test_an_empty_batch_gives_an_empty_batch(serve, small, tmp_path):
    folder, _ = small
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 10, 3), "float32"))
    result = serve(f"--input=images={tmp_path}/none.npy", folder / "1")
    assert result.stdout.startswith("scores: float [0,5]\n")


def test_encoded_images_give_what_keras_reads_from_them(serve, small, tmp_path):
    folder, model = small
    rng = np.random.default_rng(3)
    for index, size in enumerate([(8, 10), (13, 7), (5, 21)]):
        image = tf.constant(rng.integers(0, 256, (*size, 3)), tf.uint8)
        encoded = tf.io.encode_jpeg(image) if index == 1 else tf.io.encode_png(image)
        (tmp_path / "images").mkdir(exist_ok=True)
        tf.io.write_file(f"{tmp_path}/images/{index}.{'jpg' if index == 1 else 'png'}", encoded)
    (images,) = keras.utils.image_dataset_from_directory(
        tmp_path / "images", labels=None, image_size=(8, 10), shuffle=False, verbose=False
    )
    files = sorted((tmp_path / "images").iterdir())
    inputs = [f"--input=image_bytes={file}" for file in files]
    result = serve("--signature=serve_image_bytes", *inputs, f"--output={tmp_path}", folder / "1")
    assert result.returncode == 0, result.stderr
    actual = np.load(tmp_path / "scores.npy")
    assert relative_error(actual, model(images / 255)) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "bool"])
def test_arrays_are_read_and_written_bit_by_bit(dtype, serve, tmp_path):
    array = np.random.default_rng(4).integers(0, 100, (3, 5, 2)).astype(dtype)
    module = tf.Module()
    module.same = tf.function(
        lambda values: {"same": values}, [tf.TensorSpec([None, 5, 2], array.dtype, "values")]
    )
    tf.saved_model.save(module, tmp_path / "1", signatures=module.same)
    np.save(tmp_path / "values.npy", array)
    result = serve(
        f"--input=values={tmp_path}/values.npy", f"--output={tmp_path}/out", tmp_path / "1"
    )
    assert result.returncode == 0, result.stderr
    actual = np.load(tmp_path / "out" / "same.npy")
    assert actual.dtype == array.dtype
    np.testing.assert_array_equal(actual, array)


# Errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--input=images={good}", "{folder}"], "is not a SavedModel"),
        (["--input=images={good}", "/nowhere"], "is not a SavedModel"),
        (["--signature=train", "--input=images={good}", "{model}"], "no signature 'train'"),
        (["--input=pictures={good}", "{model}"], "no input 'pictures', but images"),
        (["--input=images={double}", "{model}"], "must be float [?,8,10,3], received double"),
        (["--input=images={wide}", "{model}"], "received float [2,8,11,3]"),
        (["--input=images={flat}", "{model}"], "received float [7]"),
        (["--input=images={text}", "{model}"], "received string [1]"),
        (["--input=images={broken}", "{model}"], "is truncated"),
        (["--input=images={huge}", "{model}"], "is truncated"),
        (["--input=images={columns}", "{model}"], "must be in C order"),
        (["--input=images=/nowhere.npy", "{model}"], "cannot be read"),
        (["--input={good}", "{model}"], "--input must be NAME=FILE"),
        (["--load", "{model}"], "load needs --input"),
        (["--input=images={good}", "--load", "--signature=train", "{model}"], "no signature"),
        (["--op_library=/nowhere.so", "{model}"], "nowhere.so"),
        (
            ["--signature=serve_image_bytes", "--input=image_bytes={text}", "{model}"],
            "Unknown image file format",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, expected, serve, small, tmp_path):
    folder, _ = small
    arrays = {
        "double": np.zeros((2, 8, 10, 3)),
        "wide": np.zeros((2, 8, 11, 3), "float32"),
        "flat": np.zeros(7, "float32"),
        "columns": np.asfortranarray(np.zeros((2, 8, 10, 3), "float32")),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    whole = (folder / "images.npy").read_bytes()
    (tmp_path / "broken.npy").write_bytes(whole[:-1])
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(37,", b"(9999999999999,", 1))
    (tmp_path / "text").write_text("no image")
    names = {
        **{name: f"{tmp_path}/{name}.npy" for name in [*arrays, "broken", "huge"]},
        **{"text": f"{tmp_path}/text", "good": f"{folder}/images.npy"},
        **{"folder": str(tmp_path), "model": f"{folder}/1"},
    }
    assert expected in failure(serve(*(each.format(**names) for each in arguments)))


@pytest.mark.parametrize(
    "file",
    ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"],
)
@pytest.mark.parametrize("kept", [0, 0.3, 0.9])
def test_truncated_models_are_refused_in_one_line(file, kept, serve, small, tmp_path):
    folder, _ = small
    shutil.copytree(folder / "1", tmp_path / "1")
    whole = (tmp_path / "1" / file).read_bytes()
    (tmp_path / "1" / file).write_bytes(whole[: int(kept * len(whole))])
    error = failure(serve(f"--input=images={folder}/images.npy", tmp_path / "1"))
    assert f"{tmp_path}/1 cannot be loaded: " in error


@pytest.mark.parametrize("arguments", [[], ["--colour", "1"], ["1", "2"], ["--threads=0", "1"]])
def test_wrong_arguments_print_the_usage(arguments, serve):
    result = serve(*arguments)
    assert result.returncode == 2 and "[FLAGS] MODEL" in result.stderr


@pytest.mark.parametrize("mode", [[], ["--load", "--requests=99"]])
def test_without_their_library_custom_ops_are_named(mode, serve, custom):
    result = serve(f"--input=images={custom}/images.npy", *mode, custom / "1")
    assert result.returncode == 1
    assert "Op type not registered 'TfDeform>" in (result.stdout if mode else failure(result))


# Load


@pytest.mark.parametrize(("name", "requests"), [("digits", REQUESTS), ("custom", REQUESTS // 5)])
def test_many_clients_at_a_time_get_the_bits_that_one_gets(name, requests, serve, request):
    folder = request.getfixturevalue(name)
    library = [OP_LIBRARY] if name == "custom" else []
    result = serve(
        *(*library, f"--input=images={folder}/images.npy", "--load", "--threads=8"),
        *(f"--requests={requests}", "--malformed=10", folder / "1"),
    )
    assert result.returncode == 0, result.stderr + result.stdout
    seen = figures(result)
    assert seen["errors"] == seen["different responses"] == 0
    assert seen["malformed requests refused"] == requests / 10
    assert 0 < seen["latency p50"] <= seen["latency p99"]
    assert seen["requests per second"] > 0 and seen["memory at the end"] > 0


def test_responses_that_differ_are_counted(serve, tmp_path):
    module = tf.Module()
    module.noise = tf.function(
        lambda values: {"noise": values + tf.random.uniform([5])},
        [tf.TensorSpec([None, 5], tf.float32, "values")],
    )
    tf.saved_model.save(module, tmp_path / "1", signatures=module.noise)
    np.save(tmp_path / "values.npy", np.zeros((3, 5), "float32"))
    result = serve(
        f"--input=values={tmp_path}/values.npy", "--load", "--requests=99", tmp_path / "1"
    )
    assert result.returncode == 1
    assert figures(result)["different responses"] > 80  # all but those without rows


def test_failing_requests_are_counted_to_the_end(serve, small, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 8, 11, 3), "float32"))
    result = serve(f"--input=images={tmp_path}/wide.npy", "--load", "--requests=99", small[0] / "1")
    assert failure(result) == "serve: the load did not pass\n"
    assert figures(result)["errors"] == 99
    assert "first error: input 'images' must be float [?,8,10,3]" in result.stdout


def test_requests_that_fail_inside_the_model_are_counted_to_the_end(serve, small, tmp_path):
    (tmp_path / "text").write_text("no image")
    tf.io.write_file(f"{tmp_path}/image", tf.io.encode_png(tf.zeros([8, 10, 3], tf.uint8)))
    inputs = [f"--input=image_bytes={tmp_path}/{name}" for name in ("text", "image")]
    signature = ["--signature=serve_image_bytes", "--max_batch=2"]
    result = serve(*signature, *inputs, "--load", "--requests=99", small[0] / "1")
    assert failure(result) == "serve: the load did not pass\n"
    seen = figures(result)
    assert 0 < seen["errors"] < 99 and seen["latency p50"] > 0
    assert "first error: Unknown image file format" in result.stdout
