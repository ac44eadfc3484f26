"""What the tests share: seeds, implementations, tolerances, derivatives, ways to run."""

import functools
import gc
import importlib.util
import os
import re
import signal
import warnings

# Where a processor lacks AVX-512, TensorFlow has neither by default: oneDNN, nor an allocator that
# tells its peaks.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import progress
import tf_deform as tfd

IMPLEMENTATIONS = ["portable", "compiled"]
NOT_COMPILED = re.compile("litert|export", re.IGNORECASE)
UNDER_XLA = re.compile("jit|xla", re.IGNORECASE)

# What the versions installed have, of those that pyproject.toml allows.
TENSORFLOW, KERAS = (tuple(map(int, each.__version__.split(".")[:2])) for each in (tf, keras))
XLA_KERNELS = TENSORFLOW >= (2, 20)  # older wheels lack headers: the library is built without
LITERT_OF_KERAS = TENSORFLOW >= (2, 17)  # 2.16's from_keras_model aborts, for a Dense layer too
QUIET_EXPORT = KERAS >= (3, 8)  # 3.7 prints what it saved in spite of verbose=False
LOG_LEVELS = TENSORFLOW >= (2, 17)  # 2.16 logs a model's unknown ops at every level

# Largest error relative to the array's largest magnitude. Half precision is rounded once, from
# float32; "numeric" is what central differences in float64 leave.
TOLERANCE = {
    "float64": 1e-12,
    "float32": 1e-5,
    "float16": 2**-11 + 1e-5,
    "bfloat16": 2**-8 + 1e-5,
    "numeric": 1e-7,
}
# Of products of samples, which the kernels for AVX512-BF16 round as well.
PRODUCT_TOLERANCE = TOLERANCE | {"bfloat16": 2 * 2**-8 + 1e-5}

# Of convolutions; and channels of a group, to either side of the widths of vectors.
KINDS, CHANNELS = ["dense", "grouped", "depthwise"], [1, 2, 3, 4, 5, 16, 19]

MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "jit": functools.partial(tf.function, jit_compile=True),
}

# Need packages of their own: `make test-accelerate` installs those of the former, and `make test`
# those of the latter from Python 3.11 on, which Sphinx needs.
collect_ignore = [
    name
    for name, package in (("accelerate_packages_test.py", "keras_hub"), ("site_test.py", "sphinx"))
    if not importlib.util.find_spec(package)
]

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request):
    """Runs a module's tests with each implementation."""
    with tfd.use_implementation(request.param):
        probe = tf.function(lambda x: tfd.ops.sample(x, [[[0.5]]]))
        graph = probe.get_concrete_function(tf.ones([1, 2, 1])).graph
        types = {op.type for op in graph.get_operations()}
        assert ("TfDeform>WeightedSample" in types) == (request.param == "compiled")
        yield request.param


def pytest_configure(config):
    # A shell lets what it runs in the background ignore interrupts, which some tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # the workers print nothing
        config.pluginmanager.register(progress.Progress(config), "progress-by-file")
    config.addinivalue_line("markers", "xla_kernels: XLA compiles the library's ops, if it can")
    config.addinivalue_line("markers", "newer_keras: needs, or reads a file of, a newer Keras")


def pytest_collection_finish():
    """Has Python look for garbage less often: of a heap such as TensorFlow's it takes a while."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    """Leaves out what is portable always, and what the versions installed do not have.

    The former is what is exported and converted; the latter are files of a newer Keras, and the
    library's ops under XLA, without whose kernels layers say so: xla_test.py tests that they do.
    """
    kept, left_out = [], []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        compiled = parameters.get("implementation") == "compiled"
        portable_always = compiled and NOT_COMPILED.search(item.name)
        marked = item.get_closest_marker("xla_kernels")
        lacking = not XLA_KERNELS and (marked or (compiled and UNDER_XLA.search(item.name)))
        lacking = lacking or item.get_closest_marker("newer_keras")
        raw_jit = parameters.get("mode") == "jit" and item.path.name == "compiled_test.py"
        lacking = lacking or (raw_jit and not XLA_KERNELS)
        (left_out if portable_always or lacking else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(params=MODES)
def mode(request):
    """A decorator that makes a function of tensors run eagerly, in a graph, or compiled by XLA."""
    return MODES[request.param]


def pairs(first, second, third, turn=0):
    """Returns triples of entries of three lists in which any two entries of two lists meet.

    Where all triples would only repeat what those prove. Another turn gives other triples.
    """
    return [
        (one, other, third[(i + j + turn) % len(third)])
        for i, one in enumerate(first)
        for j, other in enumerate(second)
    ]


def relative_error(actual, expected):
    """Returns the largest error relative to the largest magnitude expected, NaN if any is NaN."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    if not expected.size:
        return 0.0
    return np.max(np.abs(actual - expected)) / (np.max(np.abs(expected)) or 1.0)


def assert_same(actual, expected, tolerance):
    """Asserts that NaNs and infinities are where they are expected, and that the rest is near."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    largest = np.max(np.abs(expected[np.isfinite(expected)]), initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)


def hostile_weights(rng, shape):
    """Returns normal weights, of which a fifth is NaN or infinite."""
    hostile = rng.choice([np.nan, np.inf, -np.inf], shape)
    return np.where(rng.random(shape) < 0.2, hostile, rng.normal(size=shape))


def hostile_points(rng, shape, space):
    """Returns points about the image, many of them at pixels or beyond, some of them nowhere."""
    points = rng.uniform(-1.6, np.array(space) + 0.6, shape)
    points = np.where(rng.random(shape) < 0.3, np.round(points), points)
    points = np.where(rng.random(shape) < 0.1, rng.choice([-1.0, *space], shape), points)
    return np.where(rng.random(shape) < 0.1, rng.choice([np.nan, np.inf, -1e30], shape), points)


def fractional(rng, shape, low, high):
    """Returns coordinates in (low, high), integers, that are no nearer than 0.1 to an integer."""
    return rng.integers(low, high, shape) + rng.uniform(0.1, 0.9, shape)


def gradients(function, *arguments):
    """Returns the gradients of the sum of the function's result, None where there is none."""
    arguments = [tf.convert_to_tensor(each) for each in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        out = function(*arguments)
    return tape.gradient(out, arguments)


def check_derivatives(function, *arguments, orders=2, traced=False):
    """Asserts that the first and second derivatives equal central differences in float64.

    They are checked to every argument, along a random direction; the second derivatives, mixed ones
    among them, are those of the first ones along another. With `traced` they are those of a graph:
    most gradients are the same Python either way, which takes half the time where it isn't traced.
    """
    rng = np.random.default_rng(1)
    arguments = [np.asarray(each, np.float64) for each in arguments]
    upstream = rng.normal(size=function(*map(tf.constant, arguments)).shape)
    seeds, directions = ([rng.normal(size=each.shape) for each in arguments] for _ in range(2))

    def value(*tensors):
        return tf.reduce_sum(function(*tensors) * upstream)

    def slope(*tensors):
        _, found = derive(value, *tensors)
        products = zip(found, seeds, strict=True)
        return tf.add_n([tf.reduce_sum(each * seed) for each, seed in products])

    def derive(scalar, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = scalar(*tensors)
        return result, tape.gradient(result, tensors, unconnected_gradients="zero")

    for order, scalar in enumerate((value, slope)[:orders]):
        if traced:
            scalar = tf.function(scalar, autograph=False)
        _, actual = derive(scalar, *map(tf.constant, arguments))
        for position, gradient in enumerate(actual):

            def along(step, scalar=scalar, position=position):
                moved = list(arguments)
                moved[position] = arguments[position] + step * directions[position]
                return scalar(*map(tf.constant, moved)).numpy()

            terms = gradient * directions[position]
            error = np.abs(np.sum(terms) - oracles.numeric_gradient(along, 0.0))
            assert error <= TOLERANCE["numeric"] * (np.sum(np.abs(terms)) or 1.0), (order, position)


def run_litert(function, *arrays, free_sizes=False):
    """Returns the result of the function converted to LiteRT with built-in operators alone.

    With `free_sizes` the converted function takes any sizes but the last.
    """
    signature = [
        tf.TensorSpec([*[None] * (each.ndim - 1), each.shape[-1]] if free_sizes else each.shape)
        for each in arrays
    ]
    with tfd.use_implementation("portable"):  # a concrete function is converted as it was traced
        concrete = tf.function(function).get_concrete_function(*signature)
    return run_converted(tf.lite.TFLiteConverter.from_concrete_functions([concrete]), *arrays)


def run_converted(converter, *arrays):
    """Returns the first result of what the LiteRT converter makes of built-in operators alone."""
    with warnings.catch_warnings():  # TensorFlow's own interpreter is going to move
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(model_content=converter.convert())
    details = interpreter.get_input_details()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
