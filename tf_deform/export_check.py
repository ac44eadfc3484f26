"""Running what an export has written, and comparing it with the model that it was made of."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_deform.export import named_values, server_of

# Images, boxes (or queries, or steps) for each, and (depth, height, width), where they are free.
# Last, whether an engine must run them: some refuse what is empty or, halved often, becomes so.
# The numbers differ, which finds what is mistaken for another. Networks that halve sizes and join
# the halves again take the multiples of 16 and 32 alone.
_SIZES = (
    (3, 5, (16, 96, 128), True),
    (1, 3, (19, 101, 83), True),
    (3, 1, (16, 128, 96), True),
    (0, 3, (16, 96, 128), False),
    (3, 0, (16, 96, 128), False),
    (1, 33, (3, 3, 3), False),
    (1, 3, (1, 1, 1), False),
)
_TOLERANCE = {"float32": 1e-3, "half": 5e-2}  # of the largest magnitude of an output
_STRAY = 1e-3  # share of elements that may differ: of a nearest pixel, rounding decides


def check_export(model, inputs, run, engine, sample=None, *, tolerance=0, survives=True):
    """Returns nothing if an engine computes what the model computes, called eagerly.

    They are compared at several numbers of images and at several free sizes. Left out are sizes
    that the model itself refuses, outputs that it draws anew at each call, and elements that are
    NaN or infinite. An engine may refuse what is empty, and images of a few pixels, of which this
    warns: it does so at every request, and returns nothing wrong.

    Args:
        model: Keras model.
        inputs: its inputs as named tf.TensorSpecs, in the structure that it takes.
        run: function from {name: array} of the inputs to {name: array} of the outputs.
        engine: its name, for messages.
        sample: inputs to compare at, in the structure of the inputs; None: random ones.
        tolerance: how far an output may be off, relative to its largest magnitude; at least
            rounding in the model's dtypes.
        survives: whether the process survives what the engine refuses. Otherwise it gets nothing
            that it may refuse.

    Raises:
        ValueError: the engine refuses what the model takes, or returns something else.
    """
    compared, refused = 0, []
    feeds_of = samples(inputs, sample, smooth=tolerance > 0)
    tolerance = max(tolerance, _tolerance_of(model))
    for feeds, must_run in feeds_of:
        if not (must_run or survives):
            continue
        expected = _outputs(model, inputs, feeds, refusable=sample is None or not must_run)
        if expected is None:
            continue
        sizes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
        try:
            actual = run(feeds)
        except Exception as error:
            if must_run:
                raise ValueError(
                    f"{engine} must run what the model takes, and refuses {sizes}: {error}"
                    f"{_remedy(model)}"
                ) from error
            refused.append(sizes)
            continue
        found = difference(expected, actual, tolerance)
        if found and not difference(expected, _outputs(model, inputs, feeds), tolerance):
            raise ValueError(
                f"{engine} must compute what the model computes, received {found}, for {sizes}"
                f"{_remedy(model)}"
            )
        compared += any(array.size for array in expected.values())
    if refused:
        warnings.warn(
            f"{engine} refuses sizes that the model takes: {'; '.join(refused)}", stacklevel=3
        )
    if not compared:
        warnings.warn(
            "What was exported has not been compared with the model, which takes none of the sizes "
            "tried: give inputs that it takes as sample",
            stacklevel=3,
        )


def samples(inputs, sample=None, smooth=False):
    """Yields {name: array} of inputs, and whether an engine must run them if the model does.

    They are random, or a sample's images, its first alone, and none of them. Floats `[..., 4]` are
    boxes in any format; integers are 0 or 1, and 0 to 255 in images of 8 bits. With `smooth`
    neighbouring pixels are alike, as in photographs: in noise a place that is rounded by a tenth of
    a pixel finds other values.
    """
    if sample is not None:
        given = named_values("sample", sample, inputs)
        rows = min(len(each) for each in given.values())
        for count in dict.fromkeys((rows, min(rows, 1), 0)):
            yield {name: each[:count].numpy() for name, each in given.items()}, count > 0
        return
    specs = tf.nest.flatten(inputs)
    rng = np.random.default_rng(0)
    seen = set()
    for *sizes, must_run in _SIZES:
        shapes = tuple(_shape(spec.shape.as_list(), *sizes) for spec in specs)
        if shapes not in seen:  # nothing is free that would make them differ
            pairs = zip(specs, shapes, strict=True)
            values = {spec.name: _values(spec.dtype, shape, rng, smooth) for spec, shape in pairs}
            yield values, must_run
        seen.add(shapes)


def difference(expected, actual, tolerance):
    """Returns what the first output that differs has and should have; None if they are equal.

    Both are {name: array}. Two of no elements are equal: those of TensorFlow's Conv2D have a wrong
    shape where it uses oneDNN.
    """
    for name, wanted in expected.items():
        found = np.asarray(actual[name])
        if wanted.size == found.size == 0:
            continue
        if wanted.shape != found.shape:
            return f"{name!r} of shape {found.shape} instead of {wanted.shape}"
        if wanted.dtype.kind not in "biuf":
            continue
        wanted, found = (np.asarray(each, np.float64) for each in (wanted, found))
        finite = np.isfinite(wanted)
        errors = np.abs(found - wanted)[finite]
        largest = np.max(np.abs(wanted[finite]), initial=0)
        wrong = ~(errors <= tolerance * (largest + 1e-3))  # NaN is wrong
        if np.sum(wrong) > _STRAY * wrong.size:
            return (
                f"other values of {name!r}: {np.mean(wrong):.0%} of them differ, by up to "
                f"{np.max(errors):.2g} where the largest is {largest:.2g}"
            )
    return None


def _outputs(model, inputs, feeds, refusable=False):
    """Returns {name: array} of the model's outputs, None if it refuses the inputs and may."""
    tensors = tf.nest.pack_sequence_as(inputs, [tf.constant(each) for each in feeds.values()])
    try:
        with warnings.catch_warnings():  # of boxes that lie outside, and the like
            warnings.simplefilter("ignore")
            outputs = server_of(model)(tensors)
        return {name: np.asarray(each) for name, each in outputs.items()}
    except Exception:
        if not refusable:
            raise
        return None


def _shape(shape, images, boxes, space):
    """Returns the shape with sizes for those that are free, which are None."""
    free = [axis for axis, size in enumerate(shape) if size is None and axis]
    sizes = (
        [boxes] if len(free) == 1 else [*[boxes] * (len(free) - len(space)), *space][-len(free) :]
    )
    known = {0: images, **dict(zip(free, sizes, strict=False))}
    return tuple(known.get(axis, size) for axis, size in enumerate(shape))


def _values(dtype, shape, rng, smooth):
    dtype = dtype.as_numpy_dtype
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    if len(shape) < 4 and shape[-1] == 4:
        near = rng.uniform(0, 8, (*shape[:-1], 2))
        boxes = np.concatenate([near, near + rng.uniform(1, 8, near.shape)], axis=-1)
        # Some are relative. None is large: to sample adaptively there takes long eagerly.
        scales = np.resize([1 / 16, 1, 2], (*shape[:-1], 1))
        return (boxes * scales).astype(dtype)
    values = rng.normal(size=shape)
    if smooth and len(shape) > 3 and values.size:
        for axis in range(1, len(shape) - 1):
            values = np.apply_along_axis(_smoothed, axis, values)
    return values.astype(dtype)


def _smoothed(line):
    """Returns a line of noise, of the same length and deviation, smooth over some pixels."""
    window = np.hanning(13)[1:-1]
    window /= np.linalg.norm(window)
    whole = np.convolve(line, window)
    start = (len(whole) - len(line)) // 2
    return whole[start : start + len(line)]


def _tolerance_of(model):
    dtypes = {layer.compute_dtype for layer in _layers_in(model)}
    return _TOLERANCE["half" if dtypes & {"float16", "bfloat16"} else "float32"]


def _remedy(model):
    if any(isinstance(each, keras.layers.TimeDistributed) for each in _layers_in(model)):
        return (
            ". keras.layers.TimeDistributed loops wrongly over steps of a free number, in every "
            "graph: in place of TimeDistributed(Flatten()) use keras.layers.Reshape((-1, n))"
        )
    return ""


def _layers_in(model):
    """Yields the model and the layers in it and in the models in it."""
    yield model
    if isinstance(model, keras.Model):
        for layer in model.layers:
            yield from _layers_in(layer)
