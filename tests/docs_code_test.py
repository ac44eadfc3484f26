"""The code of the pages in docs runs and prints what they say; quoted messages are real.

boxes_test.py runs docs/boxes.md.
"""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import doc_code
import tf_deform as tfd


def names(rng):
    """What pages take for granted: a few images with labels, and the weights of a network."""
    shapes = {
        "stem": [16, 3, 3, 3],
        "offset": [27, 16, 3, 3],
        "conv": [32, 16, 3, 3],
        "head": [10, 32],
    }
    state = {f"norm.{each}": np.ones([16]) for each in ("weight", "bias", "running_mean")}
    state["norm.running_var"] = np.ones([16])
    for name, shape in shapes.items():
        state |= {f"{name}.weight": rng.normal(size=shape), f"{name}.bias": np.ones(shape[:1])}
    images = rng.random([64, 32, 32, 1]).astype("float32")
    return {"state": state, "images": images, "labels": np.arange(64) % 10}


@pytest.mark.parametrize("page", ("coordinates", "migration", "training", "troubleshooting"))
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doc_code.blocks(f"{page}.md")
    assert len(found) >= 2
    given = names(rng)
    for code in found:
        if "MultiOptimizer" not in code or hasattr(keras.optimizers, "MultiOptimizer"):
            doc_code.run(code, given)


def test_what_is_not_printed_is_found():
    doc_code.run("print(1 + 1)  # 2\n", {})
    with pytest.raises(AssertionError):
        doc_code.run("print(1 + 1)  # 3\n", {})


def test_the_blocks_that_need_pytorch_are_two():
    text = (doc_code.DOCS / "migration.md").read_text()
    assert len(re.findall(doc_code.PYTORCH, text)) == 2


# The messages that docs/troubleshooting.md quotes

FEATURES, IMAGE = tf.ones([1, 6, 8, 3]), tf.ones([1, 8, 8, 3])
BOXES = tf.constant([[[40.0, 40.0, 160.0, 120.0]]])
CONVOLUTIONS = {
    "c.weight": np.ones([8, 8, 3, 3]),
    "c.norm.weight": np.ones([8]),
    "c.conv_offset.weight": np.ones([18, 8, 3, 3]),
    "c.conv_offset.bias": np.ones([18]),
}


def model_of(*layers):
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def load(prefix, weights=CONVOLUTIONS, **options):
    layer = tfd.layers.DeformableConv2D(8, 3, use_bias=False, **options)
    layer.build((None, 8, 8, 8))
    tfd.convert.load_mmcv(layer, weights, prefix)


def load_unknown(folder):
    """Loads a model as a process does that has not imported tf_deform."""
    model_of(tfd.layers.DeformableConv2D(2, 3)).save(folder / "model.keras")
    known = keras.saving.get_custom_objects()
    name = "tf_deform>DeformableConv2D"
    kept = known.pop(name)
    try:
        keras.models.load_model(folder / "model.keras")
    finally:
        known[name] = kept


def watch_nan(folder):
    layers = keras.layers.Rescaling(float("nan")), tfd.layers.DeformableConv2D(2, 3, name="conv")
    model = model_of(*layers)
    model.compile("sgd", "mse")
    monitor = tfd.callbacks.OffsetMonitor(IMAGE, log_dir=None)
    monitor.set_model(model)
    monitor.on_train_begin()


def compile_adaptive(folder):
    pooling = tfd.layers.RoIAlign(2, sampling_ratio=0, reduction="max")
    images, boxes = keras.Input((6, 8, 3)), keras.Input((None, 4))
    model = keras.Model([images, boxes], pooling(images, boxes))
    model.compile("sgd", "mse", jit_compile=True)


def train_adaptive(folder):
    pooling = tfd.layers.RoIAlign(2, sampling_ratio=0, reduction="max")

    @tf.function(jit_compile=True)
    def gradient(features, boxes):
        return tf.gradients(pooling(features, boxes), features)

    gradient(FEATURES, BOXES / 40)


def save_what_was_traced(folder):
    sample = tf.function(lambda image: tfd.ops.sample(image, image[:, 0, :, :2]))
    with tfd.use_implementation("compiled"):
        traced = sample.get_concrete_function(tf.TensorSpec([1, 8, 8, 3]))
    images = keras.Input(batch_shape=(1, 8, 8, 3))
    samples = keras.layers.Lambda(traced, output_shape=(8, 3))(images)
    tfd.export_saved_model(keras.Model(images, samples), folder / "saved")


def small_litert(folder):
    model = model_of(keras.layers.Conv2D(2, 3))
    tfd.export_litert(model, folder / "model.tflite", quantize="int8")


PROVOCATIONS = (
    lambda folder: tfd.layers.RoIAlign(2)(FEATURES, BOXES),
    lambda folder: tfd.layers.RoIAlign(2)(FEATURES, tf.RaggedTensor.from_tensor(BOXES)),
    lambda folder: tfd.layers.RoIAlign(2)(FEATURES, {"boxes": BOXES}),
    lambda folder: tfd.layers.RoIAlign(2)(FEATURES, tf.cast(BOXES, "int32")),
    lambda folder: tfd.layers.DeformableConv2D(2, 3)(tf.cast(IMAGE, "uint8")),
    lambda folder: tfd.layers.DeformableConv2D(2, 5)(IMAGE[:, :3, :3]),
    watch_nan,
    load_unknown,
    lambda folder: load("c.", name="conv"),
    lambda folder: load("d.", name="conv"),
    lambda folder: load(
        "c.",
        {name: each for name, each in CONVOLUTIONS.items() if "norm" not in name},
        strides=2,
        padding="same",
        name="same",
    ),
    compile_adaptive,
    train_adaptive,
    lambda folder: tfd.export_onnx(
        keras.Sequential([keras.layers.Conv2D(2, 3)], name="plain"), folder / "model.onnx"
    ),
    save_what_was_traced,
    small_litert,
    lambda folder: tfd.deformable(
        model_of(keras.layers.Conv2D(2, 3), keras.layers.Conv2D(2, 3, name="second")), verbose=False
    ),
)


def message_of(provoke, folder):
    """Returns what a function raises, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            provoke(folder)
            raised = ""
        except Exception as error:
            raised = str(error)
    return "\n".join(
        [re.sub("\x1b\\[[0-9]*m", "", raised), *(str(each.message) for each in caught)]
    )


def test_the_version_that_a_page_shows_is_this_one():
    text = (doc_code.DOCS / "troubleshooting.md").read_text()
    assert re.findall(r"^tf_deform ([\d.]+)$", text, flags=re.M) == [tfd.__version__]


def test_quoted_messages_are_those_that_appear(tmp_path):
    text = (doc_code.DOCS / "troubleshooting.md").read_text()
    quoted = "".join(re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    messages = [message_of(provoke, tmp_path) for provoke in PROVOCATIONS]
    assert len(quoted.splitlines()) == len(PROVOCATIONS)
    for line in quoted.splitlines():
        assert any(line in message for message in messages), line
