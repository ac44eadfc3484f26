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
from conftest import LOG_LEVELS, TOLERANCE, relative_error
from export_test import FAMILIES, SIZES, arguments_of, call, exported
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

    def run(*arguments, memory=None, timeout=None):
        """Runs it with at most so much memory, in GiB, for so many seconds."""
        # With oneDNN, TensorFlow's own Conv2D returns an empty batch of the wrong shape.
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
        command = [folder / "serve", *arguments]
        if memory is not None:
            command = ["sh", "-c", f'ulimit -v {memory << 20}; exec "$0" "$@"', *command]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout
        )

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
    np.save(folder / "images.npy", rng.random((64, *model.input_shape[1:]), "float32"))
    return folder


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Returns the folder of a model that returns its float input, `[batch, size]`."""
    folder = tmp_path_factory.mktemp("same")
    module = tf.Module()
    module.same = tf.function(
        lambda values: {"same": values}, [tf.TensorSpec([None, None], tf.float32, "values")]
    )
    tf.saved_model.save(module, folder / "1", signatures=module.same)
    np.save(folder / "values.npy", np.ones((3, 5), "float32"))
    return folder


def failure(result):
    """Returns the one line of a run that failed."""
    assert result.returncode == 1, (result.returncode, result.stderr)
    lines = result.stderr.splitlines(keepends=True)
    assert (len(lines) == 1 or not LOG_LEVELS) and lines[-1].startswith("serve: ")
    return lines[-1]


def figures(result):
    return {
        name: float(value)
        for name, value in re.findall(r"^([\w ]+): ([-\d.]+)", result.stdout, flags=re.M)
    }


# Outputs


@pytest.mark.parametrize("wanted", ["portable", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_keras(family, wanted, serve, tmp_path, tmp_path_factory):
    if wanted == "portable":
        model, path = exported(family, tmp_path_factory)
    else:
        model, path = FAMILIES[family]((None, None)), tmp_path / "1"
        tfd.export_saved_model(model, path, implementation=wanted)
    library = [OP_LIBRARY] if wanted == "compiled" else []
    several = len(model.inputs) > 1
    names = [f"inputs_{index}" if several else "inputs" for index in range(len(model.inputs))]
    for size in SIZES:
        arguments = arguments_of(family, SIZES[size], batch=len(size) - 3)
        for name, array in zip(names, arguments, strict=True):
            np.save(tmp_path / f"{name}.npy", array)
        inputs = [f"--input={name}={tmp_path}/{name}.npy" for name in names]
        result = serve(*library, *inputs, f"--output={tmp_path}/{size}", path)
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
        (["--input=images={good}", "--input=images={wide}", "{model}"], "different shapes"),
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


def npy(header, version=(1, 0), size=None, data=bytes(24)):
    """Returns an .npy file; by default its data are six numbers of 4 bytes."""
    header = header.encode() if isinstance(header, str) else header
    width = 2 if version[0] == 1 else 4
    length = (len(header) if size is None else size).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes(version) + length + header + data


def dictionary(descr="'<f4'", order="False", shape="(2, 3)", rest=""):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}{rest}\n"


MALFORMED = {
    "empty": (b"", "not an .npy file"),
    "magic": (b"\x93NUMPX" + npy(dictionary())[6:], "not an .npy file"),
    "version 0.0": (npy(dictionary(), (0, 0)), "has version 0.0 of the format"),
    "version 1.1": (npy(dictionary(), (1, 1)), "has version 1.1 of the format"),
    "version 4.0": (npy(dictionary(), (4, 0)), "has version 4.0 of the format"),
    "no length": (npy(dictionary())[:9], "is truncated"),
    "no header": (npy(dictionary())[:10], "is truncated"),
    "header of 30,000 bytes": (npy(dictionary(rest=" " * 30000)), "more than 10000"),
    "shape of 30,000 bytes": (npy(dictionary(shape=f"({'1, ' * 10000})")), "more than 10000"),
    "header of 4 GiB": (npy(dictionary(), (2, 0), 2**32 - 1), "of 4294967295 bytes, more than"),
    "header longer than the file": (npy(dictionary(), (3, 0), 9999), "is truncated"),
    "no data": (npy(dictionary(), data=b""), "is truncated"),
    "less data": (npy(dictionary(), data=bytes(23)), "is truncated"),
    "text": (npy("numbers\n"), "is no dictionary"),
    "NUL": (npy(dictionary(rest="\0")), "more behind '}'"),
    "two dictionaries": (npy(dictionary(rest=" {}")), "more behind '}'"),
    "open": (npy("{'shape': (6,)"), "without '}'"),
    "no comma": (npy(dictionary().replace("4',", "4'")), "without '}'"),
    "no key": (npy("{<f4}"), "without a key"),
    "no colon": (npy("{'descr' '<f4'}"), "without a key"),
    "open key": (npy("{'descr"), "without a key"),
    "no dtype": (npy("{'fortran_order': False, 'shape': (2, 3)}"), "without 'descr'"),
    "no order": (npy("{'descr': '<f4', 'shape': (2, 3)}"), "without 'fortran_order'"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}"), "without 'shape'"),
    "other key": (npy(dictionary().replace("}", "'x\x1b': 1}")), "the key 'x\\x1b'"),
    "shape twice": (npy(dictionary().replace("}", "'shape': (6,)}")), "'shape' twice"),
    "big-endian": (npy(dictionary("'>f4'")), "has dtype '>f4', and not one of <f2 <f4"),
    "object": (npy(dictionary("'|O'")), "has dtype '|O'"),
    "structured": (npy(dictionary("[('x', '<f4')]")), "structured dtype"),
    "dtype without quotes": (npy(dictionary("<f4")), "'descr' is no string"),
    "long dtype": (npy(dictionary(f"'{'x' * 9000}'")), "has dtype 'xxxxx"),
    "Fortran order": (npy(dictionary(order="True")), "must be in C order"),
    "no bool": (npy(dictionary(order="0")), "'fortran_order' is no bool"),
    "number for shape": (npy(dictionary(shape="(6)")), "'shape' is no tuple"),
    "list for shape": (npy(dictionary(shape="[2, 3]")), "'shape' is no tuple"),
    "negative": (npy(dictionary(shape="(-2, 3)")), "not whole numbers, at '-2"),
    "negative twice": (npy(dictionary(shape="(-2, -3)")), "not whole numbers, at '-2"),
    "fraction": (npy(dictionary(shape="(2.0, 3)")), "not whole numbers, at '.0"),
    "comma alone": (npy(dictionary(shape="(,)")), "not whole numbers, at ',"),
    "no comma in shape": (npy(dictionary(shape="(2, 3 4)")), "not whole numbers, at '4"),
    "open shape": (npy(dictionary(shape="(2, 3")), "not whole numbers, at"),
    "beyond 64 bits": (npy(dictionary(shape=f"({2**64},)")), "too many dimensions or values"),
    "product": (npy(dictionary(shape=f"({2**32}, {2**32})")), "too many dimensions or values"),
    "bytes": (npy(dictionary("'<f8'", shape=f"({2**61}, 2)")), "is truncated"),
    "dimensions": (npy(dictionary(shape=f"({'1, ' * 300})")), "too many dimensions or values"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_arrays_are_refused_with_file_and_reason(name, serve, same, tmp_path):
    content, reason = MALFORMED[name]
    (tmp_path / "x.npy").write_bytes(content)
    error = failure(serve(f"--input=values={tmp_path}/x.npy", same / "1", memory=4, timeout=60))
    assert error.startswith(f"serve: {tmp_path}/x.npy: ") and reason in error
    assert len(error) < len(f"{tmp_path}") + 150


@pytest.mark.parametrize(
    "content",
    [dictionary(rest=" " * 9000), '{"shape":(2,3),"descr":"<f4","fortran_order":False}'],
    ids=["padded", "other order and quotes"],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_every_version_are_read(version, content, serve, same, tmp_path):
    """They may have their keys in any order, as the format's description says."""
    data = np.arange(6, dtype="<f4").tobytes()
    (tmp_path / "x.npy").write_bytes(npy(content, (version, 0), data=data))
    assert np.array_equal(np.load(tmp_path / "x.npy"), [[0, 1, 2], [3, 4, 5]])
    result = serve(f"--input=values={tmp_path}/x.npy", f"--output={tmp_path}", same / "1")
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "same.npy"), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("suffix", ["", ".npy"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("device", "is not a regular file"),
        ("loop", "cannot be read"),
        ("sparse", f"has {2**31} bytes, more than"),
    ],
)
def test_what_is_no_file_to_read_is_refused_at_once(kind, reason, suffix, serve, same, tmp_path):
    path = tmp_path / f"x{suffix}"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "sparse": lambda: (path.touch(), os.truncate(path, 2**31)),
    }
    make[kind]()
    result = serve(f"--input=values={path}", same / "1", memory=4, timeout=60)
    assert f"serve: {path}: {reason}" in failure(result)


def test_an_empty_file_is_an_empty_string(serve, small, tmp_path):
    (tmp_path / "empty").touch()
    signature = ["--signature=serve_image_bytes", f"--input=image_bytes={tmp_path}/empty"]
    assert failure(serve(*signature, small[0] / "1")) == "serve: Input is empty.\n"


NUMBERS = {
    "--threads=0": "1 to 1024",
    "--threads=200000": "1 to 1024",
    "--threads=-8": "1 to 1024",
    "--requests=0": "1 to 1000000000",
    "--requests=2147483647": "1 to 1000000000",
    "--requests=99999999999999999999": "1 to 1000000000",
    "--max_batch=-1": "0 to 1024",
    "--max_batch=2147483647": "0 to 1024",
    "--min_batch=-1": "0 to 1024",
    "--malformed=-1": "0 to 1000000000",
    "--max_growth=nan": "-1 to 1000",
    "--max_growth=1e9": "-1 to 1000",
    "--threads=": "1 to 1024",
    "--threads=eight": "1 to 1024",
    "--threads=8.5": "1 to 1024",
}


@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers_beyond_their_limits_are_refused_in_one_line(flag, serve, same):
    inputs = [f"--input=values={same}/values.npy", "--load"]
    error = failure(serve(*inputs, flag, same / "1", memory=4, timeout=60))
    name, value = flag.split("=")
    limits = NUMBERS[flag]
    assert error == f"serve: {name} must be a number from {limits}, received '{value}'\n"
    assert re.search(rf"{name}=.*; {limits}$", serve().stderr, flags=re.M)  # the usage


@pytest.mark.parametrize("arguments", [[], ["--colour", "1"], ["1", "2"], ["--load=2", "1"]])
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


def test_the_load_takes_no_memory_for_its_number_of_requests(serve, same):
    """So many latencies would be 8 GB."""
    load = [f"--input=values={same}/values.npy", "--load", "--requests=1000000000"]
    with pytest.raises(subprocess.TimeoutExpired):
        serve(*load, same / "1", memory=4, timeout=3)


def test_half_the_latencies_are_less_than_twice_their_mean(serve, same):
    """As of any positive numbers; and no request takes less than a microsecond."""
    load = [f"--input=values={same}/values.npy", "--load", "--threads=1", "--requests=20000"]
    seen = figures(serve(*load, same / "1"))
    mean = 1000 * seen["seconds"] / seen["requests"]
    assert 1e-3 <= seen["latency p50"] < 2.1 * mean


def test_threads_that_cannot_be_started_are_an_error(serve, same):
    load = [f"--input=values={same}/values.npy", "--load", "--threads=1024"]
    error = failure(serve(*load, same / "1", memory=4, timeout=60))
    assert re.match(r"serve: of 1024 threads only \d+ can be started: ", error)


def test_requests_that_would_fill_the_memory_are_refused(serve, same, tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((1, 1 << 20), "float32"))
    load = [f"--input=values={tmp_path}/long.npy", "--load", "--max_batch=100"]
    error = failure(serve(*load, same / "1", memory=4, timeout=60))
    assert "--max_batch=100 rows and their responses take more than 1 GiB" in error


def test_each_request_has_as_many_rows_as_is_asked_for(serve, same):
    load = [f"--input=values={same}/values.npy", "--load", "--requests=50", "--threads=1"]
    for rows in (0, 7):
        options = [f"--min_batch={rows}", f"--max_batch={rows}"]
        seen = figures(serve(*load, *options, same / "1"))
        per_request = seen["rows per second"] / seen["requests per second"]
        assert per_request == pytest.approx(rows, rel=0.01)
    error = failure(serve(*load, "--min_batch=8", "--max_batch=7", same / "1"))
    assert error == "serve: --min_batch=8 must be at most --max_batch=7\n"


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
