"""
Make a backbone deformable
==========================

Take a trained network, make its last convolutions deformable with ``tfd.deformable``, and
fine-tune it: first only the offsets, then everything.
"""

# %%
# A convolution samples a fixed square of pixels. A deformable convolution,
# `tfd.layers.DeformableConv2D`, predicts for each place where to sample. You need not train a
# network from scratch for that. ``tfd.deformable`` copies an existing model with its weights. The
# offsets start at zero, so until you train the copy, it returns what the model returns.
#
# For a Keras backbone this takes one line. This guide does not run the following code, because
# Keras downloads the weights:
#
# .. code-block:: python
#
#     base = keras.applications.ResNet50(include_top=False, input_shape=(224, 224, 3))
#     base.trainable = False
#     base = tfd.deformable(base, modulated=True)
#
# Instead we use a small base, which we train quickly. Then we do the same steps.

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_deform as tfd

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# Two tasks
# ---------
#
# The base learns from tidy digits: upright and in the middle. The new task has untidy digits, which
# are turned, shrunk and bent. We make both with `tfd.layers.SpatialTransformer`. Without a
# localisation network it takes its parameters as an input.

digits, labels = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8, 1).astype("float32") / 16
train_digits, test_digits, train_labels, test_labels = train_test_split(
    digits, labels, test_size=1 / 3, stratify=labels, random_state=0
)
place = tfd.layers.SpatialTransformer(transformation="similarity", output_size=32)
bend = tfd.layers.SpatialTransformer(transformation="thin_plate_spline", control_points=3)
random = np.random.default_rng(0)


def tidy(digits):
    """Returns images `[digits, 32, 32, 1]` with an upright digit in the middle."""
    parameters = np.tile(np.float32([1.4, 0, 0, 0]), [len(digits), 1])
    return np.asarray(place(digits, parameters))


def untidy(digits):
    """Returns the same with the digits turned by up to 45 degrees, of various sizes and bent."""
    scale = random.uniform(1.2, 2.2, [len(digits), 1])
    angle = random.uniform(-np.pi / 4, np.pi / 4, [len(digits), 1])
    shift = random.uniform(-1, 1, [len(digits), 2]) * (scale - 1)
    placed = place(digits, np.concatenate([scale, angle, shift], axis=1).astype("float32"))
    return np.asarray(bend(placed, random.normal(0, 0.08, [len(digits), 18]).astype("float32")))


draws = 1 if QUICK else 3
train = np.concatenate([untidy(train_digits) for _ in range(draws)])
train_targets = np.tile(train_labels, draws)
test = np.concatenate([untidy(test_digits) for _ in range(2)])
test_targets = np.tile(test_labels, 2)

# %%
# A trained base
# --------------
#
# The base has four convolutions. The head is not part of the base.


def build_base():
    base = keras.Sequential([keras.Input((32, 32, 1))], name="base")
    for number, filters in enumerate((16, 32, 48, 48), 1):
        base.add(keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{number}"))
        base.add(keras.layers.BatchNormalization(momentum=0.9))
        base.add(keras.layers.ReLU())
        if number <= 2:
            base.add(keras.layers.MaxPooling2D())
    return base


def with_head(base, name, head=None):
    """Returns a classifier on the base, whose head starts with the weights of another one."""
    images = keras.Input((32, 32, 1))
    dense = keras.layers.Dense(10, name="head")
    model = keras.Model(
        images, dense(keras.layers.GlobalAveragePooling2D()(base(images))), name=name
    )
    if head is not None:
        dense.set_weights(head.get_weights())
    return model


def compile_and_fit(model, images, targets, learning_rate, epochs, callbacks=()):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    epochs = 1 if QUICK else epochs
    model.fit(images, targets, batch_size=64, epochs=epochs, verbose=0, callbacks=list(callbacks))


def report(text, model):
    accuracy = model.evaluate(test, test_targets, batch_size=256, verbose=0)[1]
    print(f"{text:44} {accuracy:.1%}")


original = with_head(build_base(), "original")
compile_and_fit(original, tidy(train_digits), train_labels, 2e-3, 8)
accuracy = original.evaluate(tidy(test_digits), test_labels, verbose=0)[1]
print(f"{'The base reads of tidy digits':44} {accuracy:.1%}")
report("and of untidy ones", original)

# %%
# Make it deformable
# ------------------
#
# We freeze the base *before* we convert it. Then ``tfd.deformable`` trains only the offsets of the
# converted layers, and their kernels stay frozen. By default it converts the last three
# convolutions with a kernel larger than 1, as the paper does.
#
# - ``modulated=True`` also predicts how much each tap counts.
# - ``max_offset`` is the largest offset along each axis, in pixels of the features.

base, head = original.get_layer("base"), original.get_layer("head")
base.trainable = False
deformable_base = tfd.deformable(base, modulated=True, max_offset=4.0)
deformed = with_head(deformable_base, "deformed", head)

difference = np.abs(deformed.predict(test, verbose=0) - original.predict(test, verbose=0)).max()
print(f"The copy's outputs differ by at most {difference:.0e}")

# %%
# First the offsets
# -----------------
#
# Now we train on the untidy digits, with the base still frozen. Only the offsets and the head are
# trained. `tfd.callbacks.OffsetMonitor` watches the offsets: how long they are in pixels, how many
# samples are outside the features, and how many offsets are dead, that is, the same everywhere.

monitor = tfd.callbacks.OffsetMonitor(test[:64], log_dir=None)
compile_and_fit(deformed, train, train_targets, 2e-3, 5, [monitor])
report("Offsets and head trained", deformed)
for name, statistics in monitor.statistics.items():
    print(
        f"  {name}: offsets of {statistics.offset_magnitude:.2f} pixels on average, "
        f"{statistics.out_of_bounds:.1%} of the samples outside, {statistics.dead_offsets:.0%} dead"
    )

# %%
# Then everything
# ---------------
#
# Now we train everything, at a lower learning rate, so that the kernels keep what they have
# learned. Setting ``trainable`` to False and then to True unfreezes all layers. After such a
# change Keras needs a new ``compile``.

deformable_base.trainable = False
deformable_base.trainable = True
compile_and_fit(deformed, train, train_targets, 1e-3, 5)
report("Deformable, everything trained", deformed)

# %%
# Was it the offsets?
# -------------------
#
# A fair comparison gives the plain base the same data and the same two steps.

plain_base = keras.models.clone_model(base)
plain_base.set_weights(base.get_weights())
plain_base.trainable = False
plain = with_head(plain_base, "plain", head)
compile_and_fit(plain, train, train_targets, 2e-3, 5)
report("Plain, head trained", plain)
plain_base.trainable = True
compile_and_fit(plain, train, train_targets, 1e-3, 5)
report("Plain, everything trained", plain)
for model in (plain, deformed):
    print(f"{model.name}: {model.count_params():,} weights")

# %%
# The deformable base has more weights, because it predicts offsets. This is one seed, so small
# differences can be chance. :doc:`/training` explains how to choose the learning rate of the
# offsets, and :doc:`/backbones` lists what can be converted.
#
# Where it looks
# --------------
#
# `tfd.visualization.plot_taps` draws the nine taps of the last convolution for one output pixel. A
# cross marks that pixel. The arrows lead from the taps at rest to the moved taps. Larger dots count
# more.

layer = deformable_base.get_layer("conv4")
features = keras.Model(deformable_base.inputs, layer.input)
fig, axes = plt.subplots(1, 4, figsize=(8, 2.2), layout="constrained")
for ax, digit in zip(axes, (2, 3, 5, 8), strict=True):
    image = test[np.flatnonzero(test_targets == digit)[2]]
    tfd.visualization.plot_taps(
        image, layer, features([image[None]]), pixel=[(2, 4), (5, 3)], ax=ax
    )
    ax.set(xticks=[], yticks=[])
plt.show()
