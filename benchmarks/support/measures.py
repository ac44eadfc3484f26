"""What is measured of a layer in Keras itself: each measure takes a subject and its sizes."""

import functools
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

import oracles
from conftest import relative_error
from export_cases import EXPORTED, inputs_of, sizes_of
from layer_contract_test import arguments_of, built, built_under, map_shapes

REPRESENTATIVE = 32  # draws of inputs of each size, which 8 bits are calibrated with


class Subject:
    """A layer of the table with random weights, its models, and what it returns at every size.

    `samples` has {size: [(shapes, arguments, result)]} of the sizes that the layer takes.
    """

    def __init__(self, name):
        self.name, self.case = name, EXPORTED[name]
        self.layer = built(self.case)
        self.under = functools.cache(
            lambda policy: built_under(policy, self.case, self.layer.get_weights())
        )
        self.kept: dict = {}  # what is used for free and for empty sizes
        self.shapes = {"fixed": self.case.shapes, "free": self.case.free, "empty": self.case.free}
        self.samples = {size: [] for size in self.shapes}
        for size, several in sizes_of(self.case).items():
            for shapes in several:
                arguments = arguments_of(self.case, shapes=shapes)
                try:
                    result = self.layer(*arguments).numpy()
                except tf.errors.InvalidArgumentError:  # Keras's pooling takes some images only
                    continue
                self.samples[size].append((shapes, arguments, result))

    def representative(self, size):
        """Returns inputs such as those of the size, and none of them: a list of lists of arrays."""
        known = [shapes for shapes, *_ in self.samples[size]]
        return [
            tf.nest.flatten(arguments_of(self.case, shapes=shapes, seed=seed))
            for seed in range(2, 2 + REPRESENTATIVE)
            for shapes in known
        ]

    def model(self, size):
        """Returns the functional model, of sizes that are known or free."""
        inputs = inputs_of(self.shapes[size])
        return keras.Model(tf.nest.flatten(inputs), self.layer(*inputs))

    def once(self, make, size):
        """Returns what `make(subject, size)` returns, made once for free and for empty sizes."""
        key = make, size == "fixed"
        if key not in self.kept:
            self.kept[key] = make(self, size)
        return self.kept[key]

    def traced(self, function, size, dtype="float32", **options):
        """Returns a tf.function, of flat arguments of known or free sizes."""
        shapes = map_shapes(lambda shape: shape, self.shapes[size])
        first, *others = map_shapes(lambda shape: tf.TensorSpec(shape, dtype), shapes)
        signature = tf.nest.flatten([first, *others])
        structure = [first, *others]

        @tf.function(autograph=False, input_signature=signature, **options)
        def call(*flat):
            return function(*tf.nest.pack_sequence_as(structure, flat))

        return call


def largest(subject, size, error_at):
    """Returns the largest error over the samples of the size."""
    return max(error_at(*sample) for sample in subject.samples[size])


def in_float64(subject, size):
    double = subject.under("float64")
    return largest(
        subject,
        size,
        lambda shapes, _, result: relative_error(
            result, double(*arguments_of(subject.case, "float64", shapes))
        ),
    )


def compiled(subject, size):
    return subject.traced(subject.layer, size, jit_compile=True)


def under_xla(subject, size):
    call = subject.once(compiled, size)
    return largest(
        subject,
        size,
        lambda _, arguments, result: relative_error(call(*tf.nest.flatten(arguments)), result),
    )


def under_policy(dtype):
    """Returns the measure of a layer under a policy of mixed precision."""

    def measure(subject, size):
        mixed = subject.under(f"mixed_{dtype}")

        def error_at(_, arguments, result):
            features, *others = arguments
            actual = mixed(features, *others)
            if actual.dtype == "float32":  # of coordinates, which no policy halves
                return relative_error(actual, result)
            rounded = tf.nest.map_structure(
                lambda each: tf.cast(tf.cast(each, dtype), "float32"), features
            )
            return relative_error(tf.cast(actual, "float32"), subject.layer(rounded, *others))

        return largest(subject, size, error_at)

    return measure


def slope(subject, size):
    """Returns a function to the sum of the first derivatives' squares, and its derivatives."""

    def of(*arguments):
        flat = tf.nest.flatten(arguments)
        with tf.GradientTape() as outer:
            outer.watch(flat)
            with tf.GradientTape() as inner:
                inner.watch(flat)
                total = tf.reduce_sum(tf.square(subject.under("float64")(*arguments)))
            first = inner.gradient(total, flat, unconnected_gradients="zero")
            squares = tf.add_n([tf.reduce_sum(tf.square(each)) for each in first])
        return squares, outer.gradient(squares, flat, unconnected_gradients="zero")

    return subject.traced(of, size, "float64")


def second_derivative(subject, size):
    rng = np.random.default_rng(4)
    call = subject.once(slope, size)

    def error_at(shapes, *_):
        arguments = arguments_of(subject.case, "float64", shapes)
        flat = tf.nest.flatten(arguments)
        steps = [
            rng.normal(size=each.shape) * moves
            for each, moves in zip(flat, moving(subject.under("float64"), arguments), strict=True)
        ]

        def along(distance):
            moved = [each + distance * step for each, step in zip(flat, steps, strict=True)]
            return call(*moved)[0].numpy()

        terms = [each * step for each, step in zip(call(*flat)[1], steps, strict=True)]
        exact, scale = sum(map(np.sum, terms)), sum(np.sum(np.abs(each)) for each in terms)
        return abs(exact - oracles.numeric_gradient(along, 0.0)) / (scale or 1.0)

    return largest(subject, size, error_at)


def moving(function, arguments):
    """Returns which of the flat arguments the function has derivatives to: boxes get none."""
    with tf.GradientTape() as tape:
        tensors = tf.nest.map_structure(tf.constant, arguments)
        tape.watch(tensors)
        result = function(*tensors)
    return [each is not None for each in tf.nest.flatten(tape.gradient(result, tensors))]


def loaded(subject, size):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        subject.model(size).save(path)
        return keras.models.load_model(path)


def saved_and_loaded(subject, size):
    model = subject.once(loaded, size)

    def error_at(_, arguments, result):
        return relative_error(model(tf.nest.flatten(arguments)), result)

    return largest(subject, size, error_at)
