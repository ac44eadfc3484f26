"""
Serving and exports
===================

Export one trained model as a SavedModel, as ONNX and as LiteRT. Run each file, and compare it with
the model.
"""

# %%
# You train a model once and run it in many places: in a server, on a phone, or in a program without
# Python. None of them needs `tf_deform`, because an exported model contains ordinary operations
# only.
#
# This guide exports one model in three formats. :doc:`/support` lists what each layer does in each
# engine. :doc:`/serving` is about Docker, REST and versions, and :doc:`/exports` about other
# engines.

import io
import os
import shutil
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# A model
# -------
#
# You can use any model. Ours reads handwritten digits, with a `tfd.layers.SpatialTransformer` and a
# `tfd.layers.DeformableConv2D`. We give names to the input and to the output layer, because the
# exported files use these names.

digits, labels = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8, 1).astype("float32") / 16
train, test = digits[:1200], digits[1200:]

localization = keras.Sequential(
    [keras.layers.Flatten(), keras.layers.Dense(32, activation="relu")], name="localization"
)
images = keras.Input((8, 8, 1), name="images")
features = tfd.layers.SpatialTransformer(localization, "affine")(images)
features = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(features)
features = tfd.layers.DeformableConv2D(
    32, 3, padding="same", modulated=True, max_offset=2.0, activation="relu"
)(features)
features = keras.layers.Flatten()(features)
probabilities = keras.layers.Dense(10, activation="softmax", name="probabilities")(features)
model = keras.Model(images, probabilities, name="digits")

model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(train, labels[:1200], batch_size=32, epochs=1 if QUICK else 15, verbose=0)
expected = model.predict(test, verbose=0)
print(f"The model reads {np.mean(expected.argmax(axis=1) == labels[1200:]):.1%} of the test digits")

shutil.rmtree("outputs/serving", ignore_errors=True)
os.makedirs("outputs/serving")
differences = {}


def compare(name, returned):
    """Prints how far from the model's a result is, and how many digits it reads otherwise."""
    differences[name] = np.abs(returned - expected).max(axis=1)
    changed = np.sum(returned.argmax(axis=1) != expected.argmax(axis=1))
    print(f"{name}: differs by at most {differences[name].max():.1e}, reads {changed} otherwise")


# %%
# SavedModel, for TensorFlow Serving
# ----------------------------------
#
# ``tfd.export_saved_model`` does what ``model.export`` does, and a little more. It can add a
# signature that takes PNG and JPEG files. It raises an error if the model contains an operation of
# tf_deform's own, which a standard server does not know. The last folder is the version.

tfd.export_saved_model(model, "outputs/serving/digits/1", image_size=(8, 8), image_scale=1 / 255)
served = tf.saved_model.load("outputs/serving/digits/1")
for name, signature in sorted(served.signatures.items()):
    taken = signature.structured_input_signature[1]
    print(f"{name}: takes {sorted(taken)}, returns {sorted(signature.structured_outputs)}")

# %%
# A client uses the names of the signature, the inputs and the outputs.

returned = served.signatures["serving_default"](images=tf.constant(test))
compare("SavedModel", returned["probabilities"].numpy())

# %%
# The other signature takes encoded image files, such as a browser uploads.

picture = Image.fromarray(np.uint8(np.round(255 * test[0, ..., 0])))
file = io.BytesIO()
picture.save(file, format="png")
answer = served.signatures["serve_image_bytes"](image_bytes=tf.constant([file.getvalue()]))
print(f"A PNG file is read as a {np.argmax(answer['probabilities'])}, it is a {labels[1200]}")

# %%
# ONNX, for onnxruntime and others
# --------------------------------
#
# In this file the deformable convolution becomes ONNX's own ``DeformConv``, and the transformer
# becomes ``GridSample``. ``tfd.export_onnx`` runs the file and compares it with the model before it
# saves it. The comparison includes an empty batch.

tfd.export_onnx(model, "outputs/serving/digits.onnx")
session = onnxruntime.InferenceSession("outputs/serving/digits.onnx")
(returned,) = session.run(["probabilities"], {"images": test})
compare("ONNX", returned)

# %%
# LiteRT, for phones
# ------------------
#
# LiteRT was formerly called TensorFlow Lite. The file uses only LiteRT's built-in operators. In
# float32 it is as exact as the other files. ``quantize="float16"`` stores the weights in 16 bits,
# ``"dynamic"`` in 8.


def run_litert(path):
    runner = tf.lite.Interpreter(path).get_signature_runner()
    return runner(images=test)["probabilities"]


formats = {"LiteRT": None, "LiteRT, float16": "float16", "LiteRT, dynamic": "dynamic"}
for name, quantize in formats.items():
    path = f"outputs/serving/{name.replace(', ', '_')}.tflite"
    tfd.export_litert(model, path, quantize=quantize)
    compare(name, run_litert(path))
    print(f"    {os.path.getsize(path) / 1000:.0f} kB")

# %%
# How far off?
# ------------
#
# The plot compares every format on every test digit. The float32 files differ from the model by
# rounding only. The files with fewer bits differ more. Look at such a plot before you use a model
# in production.

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
random = np.random.default_rng(0)
for row, difference in enumerate(differences.values()):
    spread = row + random.uniform(-0.25, 0.25, len(difference))
    ax.scatter(np.maximum(difference, 1e-9), spread, s=4, alpha=0.4)
ax.set_xscale("log")
ax.set_xlabel("largest difference from the model's probabilities, a dot for each digit")
ax.set_yticks(range(len(differences)), differences)
ax.invert_yaxis()
for side in ("top", "right", "left"):
    ax.spines[side].set_visible(False)
ax.tick_params(left=False)
ax.grid(axis="x", alpha=0.3)
plt.show()
