"""What the portable form of the package says to a case."""

import itertools

import numpy as np
import tensorflow as tf

import tf_deform as tfd
from tf_deform.compiled import gradients

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}
_NO_FACTORS = ("points", "offset", "image_index", "before")


def gaps(case, tensors, outputs):
    """Returns a line for each output that is further from the portable form than it may be."""
    with tfd.use_implementation("portable"):
        expected = _expected(case, tensors)
    # An element may be the difference of terms that are larger than the whole array.
    factors = [x for name, x in zip(_names(case), tensors, strict=True) if name not in _NO_FACTORS]
    terms = np.prod([_largest(x) for x in factors])
    found = []
    for at, (output, right) in enumerate(zip(outputs, expected, strict=True)):
        difference = np.abs(tf.cast(output, right.dtype).numpy() - right.numpy())
        dtype = output.dtype.name
        if case.op == "conv_grad" and at == 1:  # the kernel's, of samples that may be rounded
            dtype = tensors[0].dtype.name
        bound = TOLERANCE[dtype] * (_largest(right) + terms)
        if not np.all(difference <= bound):
            found.append(f"output {at} is {np.max(difference):.3g} off the portable form")
    return found


def _names(case):
    return [name for name, x in case.inputs.items() for _ in (x if isinstance(x, list) else [x])]


def _largest(tensor):
    finite = tf.where(tf.math.is_finite(tensor), tf.abs(tensor), tf.zeros_like(tensor))
    return float(tf.reduce_max(finite)) if 0 not in tensor.shape else 0.0


def _expected(case, tensors):
    """Returns the portable form's outputs in the wide type, so that positions are rounded alike."""
    tensors = iter(tensors)
    given = {
        name: [next(tensors) for _ in each] if isinstance(each, list) else next(tensors)
        for name, each in case.inputs.items()
    }
    if case.op.startswith("conv"):
        names, optional, form = ["inputs", "kernel", "offset"], "mask", "DeformableConv"
        options = {"before": given["before"], **case.attributes}
    else:
        names, optional, form = ["values", "points"], "weights", "WeightedSample"
        index = given["image_index"]
        options = {"image_index": index[0] if index else None, **case.attributes}
    wide = given[names[-1]].dtype
    arguments = [tf.cast(x, wide) for x in (*(given[name] for name in names), *given[optional])]
    values = dict(itertools.zip_longest([*names, optional], arguments))  # the last may be None
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        out = gradients.portable_forms[form](**values, **options)
    if "gradient" not in given:
        return [out]
    found = tape.gradient(
        out,
        arguments,
        tf.cast(given["gradient"], wide),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return {"sample_grad_values": found[:1], "sample_grad_points": found[1:]}.get(case.op, found)
