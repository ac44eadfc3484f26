"""Which implementation of the operators runs: the portable one, or the compiled library.

The portable implementation consists of TensorFlow ops alone. The compiled library holds CPU kernels
of two ops and their gradients, for TensorFlow's executors and, from TensorFlow 2.20 on, for XLA;
`python -m tf_deform build` makes it from a checkout, `build --cuda` with kernels for NVIDIA GPUs.
"auto" uses it wherever it can run, and never takes work off a GPU.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import threading
import warnings
from typing import NamedTuple

import tensorflow as tf

try:
    from tensorflow.python.saved_model.save_context import in_save_context
except ImportError:  # it is private: without it, models are saved as they were traced

    def in_save_context():
        """Returns False: nobody knows."""
        return False


_IMPLEMENTATIONS = ("auto", "portable", "compiled")
_ENVIRONMENT = "TF_DEFORM_IMPLEMENTATION"
SOURCES = pathlib.Path(__file__).parents[1] / "custom_ops"
PACKAGED = pathlib.Path(__file__).parent / "library"  # in a wheel that holds the library


class CompiledStatus(NamedTuple):
    """Whether the compiled library can be used, on which kinds of device, and what to know of it.

    `reason` says why it cannot be used, or what it cannot do, and is "" otherwise.
    """

    available: bool
    devices: tuple[str, ...]
    reason: str


def compiled_status():
    """Returns the state of the compiled library: (available, devices, reason).

    Example:
        >>> compiled_status().devices in ((), ("CPU",), ("CPU", "GPU"))
        True
    """
    library, reason = _load()
    if library is None:
        return CompiledStatus(available=False, devices=(), reason=reason)
    reasons = [why_not_xla(), _gpu_is_idle()]
    devices = ("CPU",) if _text("TfDeformCudaError") else ("CPU", "GPU")
    return CompiledStatus(available=True, devices=devices, reason="; ".join(filter(None, reasons)))


def set_implementation(name):
    """Chooses the implementation for the whole process, for functions traced from then on.

    A `tf.function` or Keras model traced earlier keeps the implementation it was traced with. The
    environment variable TF_DEFORM_IMPLEMENTATION sets it at import.

    Args:
        name: "auto" (compiled wherever it can run, which is where the library is built and either
            TensorFlow lists no GPU or the library has CUDA kernels; otherwise portable), "portable"
            (TensorFlow ops only) or
            "compiled" (the compiled library, or an error). What is saved as a SavedModel is
            portable, unless `export_saved_model` is asked for "compiled".

    The gradients of the CUDA kernels add in no fixed order: they fail where TensorFlow is told to
    be deterministic, by `tf.config.experimental.enable_op_determinism`. The CPU's never do.

    Raises:
        ValueError: the name is none of these.
        RuntimeError: "compiled", and the library cannot be used; the message says why.

    Example:
        >>> set_implementation("portable")
        >>> set_implementation("auto")
    """
    global _implementation
    _check_name(name)
    if name == "compiled":
        _require_library()
    _implementation = name


def _check_name(name):
    if name not in _IMPLEMENTATIONS:
        known = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {known}, received {name!r}")


def _require_library():
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"The compiled implementation cannot be used: {reason}.")


@contextlib.contextmanager
def use_implementation(name):
    """Returns a context manager that does what `set_implementation` does, until it is left.

    It is process-wide like that one, so that threads of tf.distribute see it.

    Args:
        name: as in `set_implementation`.

    Raises:
        ValueError, RuntimeError: as `set_implementation`.

    Example:
        >>> with use_implementation("portable"):
        ...     pooled = tf.zeros([])  # whatever is traced here holds TensorFlow ops only
    """
    global _implementation
    previous = _implementation
    set_implementation(name)
    try:
        yield
    finally:
        _implementation = previous


@contextlib.contextmanager
def saved_with(name):
    """Returns a context manager like `use_implementation`, in which models are saved with it."""
    global _saves_compiled
    previous = _saves_compiled
    with use_implementation(name):
        _saves_compiled = name == "compiled"
        try:
            yield
        finally:
            _saves_compiled = previous


# The library: where it is, and loading it


def library_path():
    """Returns where the library for this TensorFlow and these sources is, or would be built.

    That is in the package if it came with one. What is built is kept in the user's cache: the
    package's folder may be read-only, and environments with different versions of TensorFlow may
    share it through a checkout.
    """
    name = f"tf_deform_ops_{_minor()}.so"
    if (PACKAGED / name).exists():
        return PACKAGED / name
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = f"tensorflow-{tf.__version__}-{_digest_of_sources()}"
    return pathlib.Path(cache) / "tf_deform" / folder / name


def instruction_set():
    """Returns the instruction set of the loaded kernels: "baseline", "avx2" or "avx512"."""
    return _text("TfDeformInstructionSet")


def _text(name):
    """Returns what a function of the library returns, None if the library has no such function."""
    function = getattr(ctypes.CDLL(str(library_path())), name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()


def why_not_xla():
    """Returns why XLA cannot compile the library's ops for all devices listed, "" if it can."""
    error = _text("TfDeformXlaError")
    if error is None:
        return "it has no XLA kernels, which take TensorFlow 2.20, so layers say supports_jit=False"
    if not error and tf.config.list_physical_devices("GPU"):
        if _text("TfDeformCudaError"):
            return "XLA finds none of its kernels for a GPU, so layers say supports_jit=False"
        error = _text("TfDeformXlaGpuError")
    return f"XLA does not take its kernels: {error}" if error else ""


def _gpu_is_idle():
    """Returns why "auto" must not use the library, whose kernels would leave a GPU idle, or ""."""
    error = _text("TfDeformCudaError")
    if error and tf.config.list_physical_devices("GPU"):
        return f'a GPU is listed, for which {error}, so "auto" is portable'
    return ""


def _digest_of_sources():
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*")):
        if path.suffix in (".cc", ".cmake", ".cu", ".h", ".txt"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _minor():
    return ".".join(tf.__version__.split(".")[:2])


@functools.cache
def _load():
    """Returns the module of the library's ops and "", or None and why there is none."""
    path = library_path()
    if not path.exists():
        others = {each.name.split("-")[1] for each in path.parents[1].glob("tensorflow-*")}
        others |= {each.stem.split("_")[-1] for each in PACKAGED.glob("tf_deform_ops_*.so")}
        built = f" (there are some for TensorFlow {', '.join(sorted(others))})" if others else ""
        return None, (
            f"no library for TensorFlow {tf.__version__} and these sources is built{built}: run "
            "python -m tf_deform build"
        )
    try:
        library = tf.load_op_library(str(path))
        if not instruction_set():
            return None, f"{path} finds no kernels for this processor beside it"
    except (tf.errors.OpError, OSError, AttributeError) as error:
        return None, f"{path} does not load: {error}"
    tf.RegisterGradient("TfDeform>WeightedSample")(_sample_gradient)
    tf.RegisterGradient("TfDeform>WeightedSampleGradValues")(_sample_values_second)
    tf.RegisterGradient("TfDeform>WeightedSampleGradPoints")(_sample_points_second)
    tf.RegisterGradient("TfDeform>DeformableConv")(_conv_gradient)
    tf.RegisterGradient("TfDeform>DeformableConvGrad")(_conv_second)
    return library, ""


# The compiled functions


def chosen():
    """Returns whether what is traced now is to call the compiled functions.

    Not while a model is being saved, when TensorFlow traces anew, but in `saved_with`: saved models
    are portable. Nor in a second derivative.

    Raises:
        RuntimeError: the environment asks for "compiled", and the library cannot be used.
    """
    if getattr(_this_thread, "portable", False) or (in_save_context() and not _saves_compiled):
        return False
    return _is_used()


def stays_on_cpu():
    """Returns whether what is traced now is compiled and stays on a CPU: what is saved may not."""
    return chosen() and not in_save_context() and not tf.config.list_physical_devices("GPU")


def supports_jit():
    """Returns whether XLA can compile what `chosen` chooses."""
    return not (_is_used() and why_not_xla())


def _is_used():
    if _implementation == "compiled":
        _require_library()
    return _implementation == "compiled" or (_implementation == "auto" and _auto_is_compiled())


@functools.cache
def _auto_is_compiled():
    library, reason = _load()
    if library is None and library_path().exists():
        warnings.warn(f"tf_deform runs its portable implementation: {reason}.", stacklevel=2)
    return library is not None and not _gpu_is_idle()


def weighted_sample(values, points, weights=None, image_index=None, units="pixels"):
    """Returns the compiled `ops.weighted_sample`; takes its arguments unchecked.

    units: what the points are in: "pixels" in array order, or normalised coordinates (x, y[, z]) of
    which -1 and 1 are the "edges" of the images or the "centers" of their edge pixels.
    """
    library, _ = _load()
    wide = tf.float64 if tf.float64 in (values.dtype, points.dtype) else tf.float32
    out = library.tf_deform_weighted_sample(
        values=tf.cast(values, wide) if wide == tf.float64 else values,
        points=tf.cast(points, wide),
        weights=[] if weights is None else [tf.cast(weights, wide)],
        image_index=[] if image_index is None else [tf.cast(image_index, tf.int64)],
        units=units,
    )
    return tf.cast(out, tf.float64 if values.dtype == tf.float64 else tf.float32)


def deformable_conv(inputs, kernel, offset, mask, *, before, strides, dilations):
    """Returns the compiled `ops.deformable_conv`; takes its arguments unchecked.

    before: the padding before each axis, ints or scalar tensors. strides, dilations: ints an axis.
    """
    library, _ = _load()
    wide = tf.float64 if tf.float64 in (inputs.dtype, offset.dtype) else tf.float32
    stored = inputs.dtype if inputs.dtype == kernel.dtype and wide != tf.float64 else wide
    out = library.tf_deform_deformable_conv(
        inputs=tf.cast(inputs, stored),
        kernel=tf.cast(kernel, stored),
        offset=tf.cast(offset, wide),
        mask=[] if mask is None else [tf.cast(mask, wide)],
        before=tf.convert_to_tensor(before, tf.int32),  # of ints constant, in a loop's gradient too
        strides=strides,
        dilations=dilations,
    )
    return tf.cast(out, inputs.dtype)


# Gradients. That of a compiled gradient goes through the portable form, which its module provides.

_portable: dict = {}
_this_thread = threading.local()


def portable(name):
    """Returns a decorator that makes a function the portable form of the op `name`."""

    def register(form):
        _portable[name] = form
        return form

    return register


def _sample_arguments(op):
    """Returns (values, points, *weights), image_index or None, what remains, and the units."""
    count = 2 + op.get_attr("weight_count")
    end = count + op.get_attr("index_count")
    inputs = list(op.inputs)
    units = tf.compat.as_str(op.get_attr("units"))
    return inputs[:count], inputs[count] if end > count else None, inputs[end:], units


def _sample_gradient(op, upstream):
    library, _ = _load()
    (values, points, *weights), index, _, units = _sample_arguments(op)
    given = {
        "values": values,
        "points": points,
        "weights": weights,
        "image_index": [] if index is None else [index],
        "gradient": upstream,
        "units": units,
    }
    needless = getattr(op, "skip_input_indices", None) or ()  # known when run eagerly
    to_values = to_points = None
    to_weights = [None] * len(weights)
    if 0 not in needless:
        to_values = tf.cast(library.tf_deform_weighted_sample_grad_values(**given), values.dtype)
    if 1 not in needless or (weights and 2 not in needless):
        to_points, to_weights = library.tf_deform_weighted_sample_grad_points(**given)
    return [to_values, to_points, *to_weights, *([] if index is None else [None])]


def _sample_values_second(op, upstream):
    return _sample_second(op, [upstream], [0])


def _sample_points_second(op, *upstream):
    return _sample_second(op, upstream, range(1, 1 + len(upstream)))


def _sample_second(op, upstream, targets):
    arguments, index, (given,), units = _sample_arguments(op)

    def form(values, points, weights=None):
        return _portable["WeightedSample"](values, points, weights, index, units)

    *found, last = _second(form, arguments, given, upstream, targets)
    return [*found, *([] if index is None else [None]), last]


def _conv_gradient(op, upstream):
    library, _ = _load()
    inputs, kernel, offset, *mask, before = op.inputs
    found = library.tf_deform_deformable_conv_grad(
        inputs=inputs,
        kernel=kernel,
        offset=offset,
        mask=mask,
        before=before,
        gradient=upstream,
        strides=op.get_attr("strides"),
        dilations=op.get_attr("dilations"),
    )
    arguments = [inputs, kernel, offset, *mask]
    found = [*found[:3], *found[3][: len(mask)]]
    return [*(tf.cast(to, x.dtype) for to, x in zip(found, arguments, strict=True)), None]


def _conv_second(op, *upstream):
    *arguments, before, given = op.inputs
    options = {"strides": op.get_attr("strides"), "dilations": op.get_attr("dilations")}

    def form(inputs, kernel, offset, mask=None):
        return _portable["DeformableConv"](inputs, kernel, offset, mask, before=before, **options)

    *found, last = _second(form, arguments, given, upstream, range(len(upstream)))
    return [*found, None, last]


def _second(form, arguments, given, upstream, targets):
    """Returns the gradients, to arguments and `given`, of form's gradient with respect to targets.

    given: what form's own gradient took. upstream: one tensor for each of the targets, which may be
    wider than they are.
    """
    sources = [*arguments, given]
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch(arguments)
            _this_thread.portable = True
            try:
                out = form(*arguments)
            finally:
                _this_thread.portable = False
        found = inner.gradient(out, [arguments[each] for each in targets], given)
    upstream = [tf.cast(each, to.dtype) for each, to in zip(upstream, found, strict=True)]
    return outer.gradient(
        found, sources, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


_saves_compiled = False
_implementation = os.environ.get(_ENVIRONMENT, "auto")
try:
    _check_name(_implementation)
except ValueError as error:
    raise ValueError(f"From the environment variable {_ENVIRONMENT}: {error}") from None
