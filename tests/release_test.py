"""Models that earlier releases saved and exported load and return what they returned then."""

import json
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import KERAS, TOLERANCE, relative_error

FOLDER = pathlib.Path(__file__).parent / "goldens" / "releases"
SAVED = sorted(path.with_suffix("") for path in FOLDER.glob("*/*.npz"))


def keras_file(path):
    """Returns the case of a file, which Keras need not load if it is older than what saved it."""
    with zipfile.ZipFile(f"{path}.keras") as file:
        version = json.loads(file.read("metadata.json"))["keras_version"]
    newer = tuple(map(int, version.split(".")[:2])) > KERAS
    name = "/".join(path.parts[-2:])
    return pytest.param(path, id=name, marks=[pytest.mark.newer_keras] if newer else [])


def arrays_of(path):
    arrays = dict(np.load(f"{path}.npz"))
    outputs = arrays.pop("outputs")
    inputs = list(arrays.values())
    return inputs if len(inputs) > 1 else inputs[0], outputs


def test_every_released_version_has_goldens():
    assert tfd.__version__ in {path.parent.name for path in SAVED}


@pytest.mark.parametrize("path", map(keras_file, SAVED))
def test_keras_files_load_and_reproduce(path):
    inputs, expected = arrays_of(path)
    model = keras.saving.load_model(f"{path}.keras")
    assert relative_error(model(inputs), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: "/".join(path.parts[-2:]))
def test_saved_models_load_and_reproduce(path, tmp_path):
    inputs, expected = arrays_of(path)
    shutil.unpack_archive(f"{path}.zip", tmp_path)
    served = tf.saved_model.load(tmp_path)
    (actual,) = served.serve(inputs).values()
    assert relative_error(actual, expected) < TOLERANCE["float32"]
