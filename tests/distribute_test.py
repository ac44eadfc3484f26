"""Training on several devices and in several processes equals training on one device.

Run as a script, this is what the other processes do.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import relative_error

ROOT = pathlib.Path(tfd.__file__).parents[1]
SETTINGS = {"batch_size": 8, "epochs": 2}
IMAGES, CLASSES, SIZE = 24, 3, (9, 8, 3)


def make_model():
    keras.utils.set_random_seed(1)
    deforming = {
        "modulated": True,
        "offset_kernel_initializer": keras.initializers.RandomNormal(0, 0.2),
    }
    localization = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(6, "tanh")])
    return keras.Sequential(
        [
            keras.Input(SIZE),
            tfd.layers.SpatialTransformer(localization, "affine"),
            tfd.layers.DeformableConv2D(6, 3, strides=2, activation="relu", **deforming),
            tfd.layers.DeformableConv2D(5, 2, deformable_groups=2, max_offset=2.0, **deforming),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


def data():
    rng = np.random.default_rng(0)
    return {
        "images": rng.normal(size=(IMAGES, *SIZE)).astype("float32"),
        "labels": rng.integers(0, CLASSES, IMAGES),
    }


def fit(strategy):
    """Returns the weights after training with `fit`."""
    with strategy.scope():
        model = make_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    model.fit(*data().values(), **SETTINGS, shuffle=False, verbose=0)
    return model.get_weights()


def mirrored():
    """Returns the weights after training on two devices with `fit`."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    return fit(strategy)


def multi_worker():
    """Returns the weights after training with the loop that the documentation shows."""
    text = (ROOT / "docs" / "distribute.md").read_text()
    (loop,) = re.findall(r"```python\n(import keras\n.*?)```", text, re.S)
    names = {"make_model": make_model, **data(), **SETTINGS}
    exec(loop, names)
    assert names["strategy"].num_replicas_in_sync == 2
    return names["model"].get_weights()


def start(function, path, **environment):
    """Starts a process that saves the weights which a function of this file returns."""
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, __file__, function, str(path)],
        env={**os.environ, "PYTHONPATH": folders, "CUDA_VISIBLE_DEVICES": "-1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the weights after training in other processes, all of which run at once."""
    folder = tmp_path_factory.mktemp("distribute")
    workers = {"worker": free_addresses(2)}
    processes = {"mirrored": start("mirrored", folder / "mirrored.npz")}
    for index in range(2):
        config = json.dumps({"cluster": workers, "task": {"type": "worker", "index": index}})
        name = f"worker {index}"
        processes[name] = start("multi_worker", folder / f"{name}.npz", TF_CONFIG=config)
    weights = {}
    try:
        for name, process in processes.items():
            output, _ = process.communicate(timeout=150)
            assert process.returncode == 0, output[-3000:]
            with np.load(folder / f"{name}.npz") as arrays:
                weights[name] = list(arrays.values())
    finally:
        for process in processes.values():
            process.kill()
    return weights


@pytest.fixture(scope="module")
def expected():
    """Returns the weights after training on one device, here."""
    return fit(tf.distribute.get_strategy())


@pytest.mark.parametrize("name", ("mirrored", "worker 0", "worker 1"))
def test_training_equals_that_on_one_device(name, trained, expected):
    if name == "mirrored" and not hasattr(keras.src.losses.loss, "scale_loss_for_distribution"):
        pytest.skip("this Keras does not divide the loss by the number of replicas in fit")
    initial = make_model().get_weights()
    for actual, wanted, old in zip(trained[name], expected, initial, strict=True):
        assert relative_error(wanted, old) > 1e-3
        assert relative_error(actual, wanted) < 1e-4  # sums in another order, over six steps


if __name__ == "__main__":
    np.savez(sys.argv[2], *{"mirrored": mirrored, "multi_worker": multi_worker}[sys.argv[1]]())
