"""The compiled library: which ops run, what it refuses, what is saved, and its repeatability."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import (
    CHANNELS,
    KERAS,
    KINDS,
    LITERT_OF_KERAS,
    MODES,
    PRODUCT_TOLERANCE,
    TOLERANCE,
    assert_same,
    fractional,
    gradients,
    hostile_points,
    hostile_weights,
    pairs,
    relative_error,
    run_converted,
)
from tf_deform import ops
from tf_deform.compiled import loading, location
from tf_deform.ops import sampling, tables

DTYPES = ("float32", "float64")

CONVOLUTION = {  # kernel, deformable groups, output, options; 7 x 6 images of 12 channels
    "dense": ((3, 2, 12, 8), 1, (7, 6), {"padding": "same"}),
    "grouped": ((3, 2, 4, 9), 2, (4, 4), {"padding": 1, "strides": 2}),
    "depthwise": ((3, 3, 1, 12), 3, (3, 2), {"dilation_rate": 2}),
}


@pytest.fixture(autouse=True)
def _compiled():
    with tfd.use_implementation("compiled"):
        yield


def op_types(function, *arguments):
    """Returns the types of the ops of a function, traced now, and of the functions it calls."""
    graph = tf.function(lambda *each: function(*each)).get_concrete_function(*arguments).graph
    library = graph.as_graph_def().library.function
    nodes = [*graph.as_graph_def().node, *(node for each in library for node in each.node_def)]
    return {node.op for node in nodes}


def saved_op_types(path):
    """Returns the types of all ops that a SavedModel holds."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return {node.op for node in nodes}


def has_ours(types):
    return any(each.startswith("TfDeform>") for each in types)


def convolution(rng, name, dtype="float64"):
    kernel_size, moved, output, options = CONVOLUTION[name]
    taps = moved * kernel_size[0] * kernel_size[1]
    inputs = rng.normal(size=(2, 7, 6, 12))
    kernel = rng.normal(size=kernel_size)
    offset = fractional(rng, (2, *output, taps * 2), -2, 3)
    mask = rng.uniform(size=(2, *output, taps))
    arguments = [tf.constant(each, dtype) for each in (inputs, kernel, offset, mask)]
    return arguments, options


CALLS = {
    "deformable_conv": lambda x: ops.deformable_conv(
        x, tf.ones([3, 3, 4, 5]), tf.fill([2, 6, 5, 18], 0.3), padding="same"
    ),
    "sample": lambda x: ops.sample(x, tf.fill([2, 3, 2], 1.4), padding_mode="border"),
    "grid_sample": lambda x: ops.grid_sample(x, tf.fill([2, 3, 4, 2], 0.3)),
    "roi_align": lambda x: ops.roi_align(x, [[0.0, 0.4, 3.0, 4.0]], [1], 2),
    "weighted_sample": lambda x: ops.weighted_sample(x, tf.fill([2, 3, 2, 4, 2], 0.7)),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_implementation_holds_its_own_ops(name):
    x = tf.ones([2, 6, 5, 4])
    assert has_ours(op_types(CALLS[name], x))
    assert has_ours(op_types(lambda x: gradients(CALLS[name], x), x))
    for other in ("portable", "auto"):
        with tfd.use_implementation(other):
            assert has_ours(op_types(CALLS[name], x)) == (other == "auto")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVOLUTION)
def test_convolution_and_its_gradients_equal_the_portable_ones(rng, name, dtype):
    arguments, options = convolution(rng, name, dtype)

    def derived(*each):
        def convolved(*each):
            return ops.deformable_conv(*each, **options)

        return convolved(*each), *gradients(lambda *each: convolved(*each) ** 2, *each)

    found = derived(*arguments)
    with tfd.use_implementation("portable"):
        expected = derived(*arguments)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < TOLERANCE[dtype]


# Weights that are no numbers: what the portable form makes of them, in its gradients too


def assert_as_portable(mode, function, arguments, upstream):
    """Asserts that both implementations give the same results and gradients, NaN and all.

    The portable form is run eagerly in any mode: its own modes are compared with the oracles.
    """

    def derived(*each):
        def weighted(*each):
            return function(*each) * tf.cast(upstream, each[0].dtype)

        return function(*each), *gradients(weighted, *each)

    found = mode(derived)(*arguments)
    with tfd.use_implementation("portable"):
        expected = derived(*arguments)
    assert not np.all(np.isfinite(tf.cast(expected[0], tf.float32)))
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == wanted.dtype
        tolerance = 4 * TOLERANCE[wanted.dtype.name]
        assert_same(tf.cast(actual, tf.float64), tf.cast(wanted, tf.float64), tolerance)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16, 19])
@pytest.mark.parametrize("space", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_weights_that_are_no_numbers_as_portable(rng, space, channels, count):
    values = rng.normal(size=[2, *space, 2 * channels])
    points = hostile_points(rng, [2, 30, 2, count, len(space)], space)
    weights = hostile_weights(rng, points.shape[:-1])
    upstream = rng.normal(size=[2, 30, 2 * channels])
    for dtype in DTYPES:
        arguments = [tf.cast(each, dtype) for each in (values, points, weights)]
        assert_as_portable(MODES["eager"], ops.weighted_sample, arguments, upstream)


@pytest.mark.parametrize(("rank", "channels", "kind"), pairs([1, 2, 3], CHANNELS, KINDS, turn=1))
def test_masks_that_are_no_numbers_as_portable(rng, rank, channels, kind):
    space, kernel_size = (5, 3, 4)[:rank], (3, 2, 1)[:rank]
    groups = {"dense": 1, "grouped": 2, "depthwise": 2 * channels}[kind]
    taps = 2 * np.prod(kernel_size)
    moves = hostile_points(rng, [2, *space, taps * rank], (1,))
    mask = np.where(rng.random([2, *space, 1]) < 0.3, hostile_weights(rng, [2, *space, taps]), 0.7)
    arguments = [
        rng.normal(size=[2, *space, 2 * channels]),
        rng.normal(size=[*kernel_size, 2 * channels // groups, 2 * channels]),
        moves,
        mask,
    ]
    upstream = rng.normal(size=[2, *space, 2 * channels])

    def convolved(*each):
        return ops.deformable_conv(*each, padding=1 if rank == 1 else "same")

    for dtype in DTYPES:
        given = [tf.cast(each, dtype) for each in arguments]
        assert_as_portable(MODES["eager"], convolved, given, upstream)
    for dtype in ("float16", "bfloat16"):
        given = [tf.cast(each, dtype) for each in arguments[:2]]
        given += [tf.cast(each, tf.float32) for each in arguments[2:]]
        assert_as_portable(MODES["eager"], convolved, given, upstream)


def _attention(x, points, weights):
    shape = [2, 5, 1, 2, 3]
    values = [x, x[:, 1:, :2]]
    return ops.multi_scale_deformable_attention(
        values, tf.reshape(points, [*shape, 2]) / 4, tf.reshape(weights, shape)
    )


def _levels(x, points, weights):
    table = tables.Table.of_levels([x, x[:, 1:, :2]], tf.constant([1, 0]))
    points, weights = tf.reshape(points, [2, 10, 1, 3, 2]), tf.reshape(weights, [2, 10, 1, 3])
    return sampling.sample_table(table, points, weights, tf.constant([0, 1]), rule="roi")


def _dcnv3(x, points, weights):
    offset, mask = tf.reshape(points, [2, 1, 5, 12]), tf.reshape(weights, [2, 1, 5, 6])
    pads = [(0, 0), (1, 1)]
    return ops.dcnv3(x[:, :1, :3], offset[:, :, :3], mask[:, :, :3], (1, 3), padding=pads)


def _dcnv4(x, points, weights):
    both = tf.concat(
        [tf.reshape(points, [2, 1, 5, 12]), tf.reshape(weights, [2, 1, 5, 6])], axis=-1
    )
    both = tf.pad(both, [[0, 0], [0, 0], [0, 0], [0, 6]])
    return ops.dcnv4(x[:, :1, :3], both[:, :, :3], (1, 3), groups=2, padding=[(0, 0), (1, 1)])


def _roi_pool(x, points, weights):
    boxes = tf.constant([[0, 0, 2.5, 3], [1, 1, 2, 2], [-9, -9, -8, -8]], x.dtype)
    offset = tf.reshape(points, [-1])[:24] * 0.1
    return ops.deformable_roi_pool(
        x,
        boxes,
        [0, 1, 1],
        tf.reshape(offset, [3, 2, 2, 2]),
        2,
        mask=tf.reshape(tf.reshape(weights, [-1])[:12], [3, 2, 2]),
    )


@pytest.mark.parametrize("function", [_attention, _levels, _dcnv3, _dcnv4, _roi_pool])
def test_weights_that_are_no_numbers_in_operators_as_portable(rng, function, mode):
    x = tf.constant(rng.normal(size=[2, 4, 3, 4]))
    points = tf.constant(hostile_points(rng, [2, 30, 2], (4, 3)))
    weights = tf.constant(hostile_weights(rng, [2, 30]))
    assert_as_portable(mode, function, [x, points, weights], 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_float32(rng, dtype):
    (inputs, kernel, offset, mask), options = convolution(rng, "dense", "float32")
    inputs, kernel = tf.cast(inputs, dtype), tf.cast(kernel, dtype)
    actual = ops.deformable_conv(inputs, kernel, offset, mask, **options)
    assert actual.dtype == dtype
    wide = [tf.cast(each, tf.float64) for each in (inputs, kernel, offset, mask)]
    assert (
        relative_error(tf.cast(actual, tf.float64), ops.deformable_conv(*wide, **options))
        < (PRODUCT_TOLERANCE[dtype])
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("channels", "groups"), [(130, 1), (96, 3)])
def test_half_precision_of_many_channels_is_rounded_twice_at_most(rng, channels, groups, dtype):
    features = [
        tf.constant(rng.normal(size=[2, 7, 11, channels]), dtype),
        tf.constant(rng.normal(size=[3, 3, channels // groups, 36]), dtype),
    ]
    places = [
        tf.constant(fractional(rng, (2, 7, 11, 18), -2, 3), tf.float32),
        tf.constant(rng.uniform(size=(2, 7, 11, 9)), tf.float32),
    ]
    upstream = tf.constant(rng.normal(size=[2, 7, 11, 36]), dtype)

    def derived(*each):
        def convolved(*each):
            return ops.deformable_conv(*each, padding="same")

        def weighted(*each):  # products in float64: the gradient given is exact
            return tf.cast(convolved(*each), tf.float64) * tf.cast(upstream, tf.float64)

        return convolved(*each), *gradients(weighted, *each)

    found = derived(*features, *places)
    exact = derived(*(tf.cast(each, tf.float64) for each in (*features, *places)))
    tolerances = PRODUCT_TOLERANCE, TOLERANCE, PRODUCT_TOLERANCE, TOLERANCE, TOLERANCE
    for actual, expected, tolerance in zip(found, exact, tolerances, strict=True):
        error = relative_error(tf.cast(actual, tf.float64), expected)
        assert error < tolerance[actual.dtype.name]


@pytest.mark.xla_kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is_with_the_same_bits_under_xla(rng, dtype):
    (inputs, kernel, offset, mask), options = convolution(rng, "dense", "float32")
    arguments = [tf.cast(inputs, dtype), tf.cast(kernel, dtype), offset, mask]

    def derived(*each):
        def convolved(*each):
            return ops.deformable_conv(*each, **options)

        return convolved(*each), *gradients(convolved, *each)

    graph = tf.function(derived).get_concrete_function(*arguments).graph
    types = {op.get_attr("T") for op in graph.get_operations() if op.type.startswith("TfDeform>")}
    assert types == {tf.as_dtype(dtype)}
    found = derived(*arguments)
    assert [each.dtype for each in found[1:]] == [each.dtype for each in arguments]
    under_xla = tf.function(derived, jit_compile=True)(*arguments)
    for actual, expected in zip(under_xla, found, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_grid_goes_to_the_op_as_it_is():
    function = tf.function(lambda *each: ops.grid_sample(*each, align_corners=True))
    graph = function.get_concrete_function(tf.ones([2, 6, 5, 3]), tf.ones([2, 4, 3, 2])).graph
    (op,) = [op for op in graph.get_operations() if op.type.startswith("TfDeform>")]
    assert op.get_attr("units") == b"centers"
    assert {op.type for op in graph.get_operations()} <= {
        *("TfDeform>WeightedSample", "Placeholder", "Reshape", "Const", "Identity")
    }


def test_a_saved_grid_is_no_matrix_product_which_a_gpu_would_round(tmp_path):
    transform = tfd.layers.SpatialTransformer(None)
    inputs = keras.Input([6, 5, 3]), keras.Input([6])
    model = keras.Model(inputs, transform(*inputs))
    product = "BatchMatMulV2"
    assert product in op_types(transform, tf.ones([2, 6, 5, 3]), tf.ones([2, 6]))
    tfd.export_saved_model(model, tmp_path / "1", implementation="compiled")
    types = saved_op_types(tmp_path / "1")
    assert has_ours(types) and product not in types


# Malformed calls, as a SavedModel edited by hand could make them


def raw_sample(**changed):
    library = loading.load().library
    given = {
        "values": tf.ones([2, 4, 3, 6]),
        "points": tf.ones([3, 2, 2, 1, 2]),
        "weights": [tf.ones([3, 2, 2, 1])],
        "image_index": [tf.constant([0, 1, 1], tf.int64)],
    }
    return library.tf_deform_weighted_sample(**{**given, **changed})


def raw_convolution(**changed):
    library = loading.load().library
    given = {
        "inputs": tf.ones([2, 5, 4, 6]),
        "kernel": tf.ones([3, 3, 3, 4]),
        "offset": tf.ones([2, 3, 2, 36]),
        "mask": [tf.ones([2, 3, 2, 18])],
        "before": tf.constant([1, 1]),
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    return library.tf_deform_deformable_conv(**{**given, **changed})


MALFORMED = [
    (raw_sample, {"values": tf.ones([2, 4, 6])}),
    (raw_sample, {"values": tf.ones([2, 4, 3, 5])}),
    (raw_sample, {"points": tf.ones([3, 2, 2, 1, 4])}),
    (raw_sample, {"points": tf.ones([3, 2, 0, 1, 2]), "weights": []}),
    (raw_sample, {"points": tf.ones([3, 2, 2, 2])}),
    (raw_sample, {"weights": [tf.ones([3, 2, 2, 2])]}),
    (raw_sample, {"weights": [tf.ones([3, 2, 2, 1])] * 2}),
    (raw_sample, {"image_index": []}),
    (raw_sample, {"image_index": [tf.constant([0, 1], tf.int64)]}),
    (raw_sample, {"image_index": [tf.constant([0, -1, 1], tf.int64)]}),
    (raw_sample, {"image_index": [tf.constant([0, 2, 1], tf.int64)]}),
    (raw_convolution, {"inputs": tf.ones([2, 5, 6])}),
    (raw_convolution, {"inputs": tf.ones([1, 5, 4, 6])}),
    (raw_convolution, {"inputs": tf.ones([2, 5, 4, 0])}),
    (raw_convolution, {"kernel": tf.ones([3, 3, 4, 4])}),
    (raw_convolution, {"kernel": tf.ones([3, 3, 3, 5])}),
    (raw_convolution, {"kernel": tf.ones([3, 3, 0, 4])}),
    (raw_convolution, {"kernel": tf.ones([0, 3, 3, 4])}),
    (raw_convolution, {"offset": tf.ones([2, 3, 2, 35])}),
    (raw_convolution, {"offset": tf.ones([2, 3, 2, 0])}),
    (raw_convolution, {"offset": tf.ones([2, 3, 2, 18 * 4])}),
    (raw_convolution, {"mask": [tf.ones([2, 3, 2, 9])]}),
    (raw_convolution, {"mask": [tf.ones([2, 3, 3, 18])]}),
    (raw_convolution, {"before": tf.constant([1])}),
    (raw_convolution, {"before": tf.constant([[1, 1]])}),
    (raw_convolution, {"strides": [0, 1]}),
    (raw_convolution, {"strides": [1, 1, 1]}),
    (raw_convolution, {"dilations": [1]}),
    (raw_convolution, {"dilations": [1, -1]}),
]


@pytest.mark.parametrize("index", range(len(MALFORMED)))
def test_malformed_calls_are_invalid_arguments(index):
    call, changed = MALFORMED[index]
    assert np.all(np.isfinite(call()))
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(**changed)

    def unknown_shapes():  # past the checks of shapes while tracing
        hidden = tf.nest.map_structure(
            lambda each: (
                tf.raw_ops.PlaceholderWithDefault(input=each, shape=None)
                if tf.is_tensor(each)
                else each
            ),
            changed,
        )
        return call(**hidden)

    if any(map(tf.is_tensor, tf.nest.flatten(changed))):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):  # when run, when traced
            tf.function(unknown_shapes)()


def test_types_that_do_not_go_together_are_refused(mode):
    wide = tf.ones([3, 2, 2, 1, 2], tf.float64)
    offset = tf.ones([2, 3, 2, 36], tf.float64)
    for call in (
        lambda: raw_sample(points=wide, weights=[]),
        lambda: raw_convolution(offset=offset, mask=[]),
    ):
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.NotFoundError)):
            mode(call)()


# Sizes and memory


def raw_gradient_of_convolution(offset, kernel=(3, 3, 1, 1), inputs=(0, 5, 5, 1)):
    library = loading.load().library
    return library.tf_deform_deformable_conv_grad(
        inputs=tf.zeros(inputs),
        kernel=tf.ones(kernel),
        offset=tf.zeros(offset),
        mask=[],
        before=[0] * (len(inputs) - 2),
        gradient=tf.zeros([*offset[:-1], kernel[-1]]),
        strides=[1] * (len(inputs) - 2),
        dilations=[1] * (len(inputs) - 2),
    )


HUGE = 2**31 - 1


def test_where_there_is_nothing_to_do_nothing_is_done(mode):
    to_inputs, to_kernel, to_offset, _ = mode(
        lambda: raw_gradient_of_convolution((0, HUGE, 2**20, 18))
    )()
    assert to_inputs.shape == (0, 5, 5, 1)
    assert to_offset.shape == (0, HUGE, 2**20, 18)
    np.testing.assert_array_equal(to_kernel, np.zeros([3, 3, 1, 1]))

    def sampled(values, points):
        return ops.weighted_sample(values, points, image_index=tf.zeros([0], tf.int64))

    values, points = tf.zeros([2**40, 0, 1, 4]), tf.zeros([0, 1, 1, 1, 2])
    to_values, to_points = mode(lambda *each: gradients(sampled, *each))(values, points)
    assert to_values.shape == values.shape
    assert to_points.shape == points.shape


def raw_empty_sample(values, points):
    library = loading.load().library
    return library.tf_deform_weighted_sample(
        values=tf.zeros(values), points=tf.zeros(points), weights=[], image_index=[]
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: raw_gradient_of_convolution((0, HUGE, HUGE, 18)), "offset"),
        (
            lambda: raw_gradient_of_convolution((0, HUGE, HUGE, 2), (1, 1, 1, 4)),
            "offset times the filters of kernel",
        ),
        (lambda: raw_gradient_of_convolution((0, 2, 2, 18), inputs=(0, HUGE, HUGE, 3)), "inputs"),
        (lambda: raw_empty_sample([0, HUGE, HUGE, 3], [0, 1, 1, 1, 2]), "values"),
        (lambda: raw_empty_sample([0, 2, 2, 3], [0, HUGE, 1, 2**32, 2]), "points"),
        (
            lambda: raw_empty_sample([0, 2, 2**40], [0, 2**40, 1, 1, 1]),
            "points times the channels of values",
        ),
    ],
)
def test_sizes_whose_product_overflows_are_refused_by_name(call, name):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} must have sizes whose"):
        call()


SHORT_OF_MEMORY = """
import resource
import numpy as np
import tensorflow as tf
import tf_deform as tfd
from tf_deform.compiled import loading
tfd.set_implementation("compiled")
inputs = tf.ones([1, 3, 3, 2048], tf.float16)
kernel = tf.ones([3, 3, 2048, 2048], tf.float16) / 2**14
offset = tf.zeros([1, 1, 1, 18])

def convolved(inputs):
    return tfd.ops.deformable_conv(inputs, kernel, offset)

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

room = 64 * 2**20  # the packed kernel takes 144 MiB
jit = [] if loading.why_not_xla() else [tf.function(convolved, jit_compile=True)]
for call in (convolved, tf.function(convolved), *jit):
    expected = call(inputs).numpy()
    resource.setrlimit(resource.RLIMIT_AS, (used() + room, resource.RLIM_INFINITY))
    try:
        call(inputs)
    except tf.errors.ResourceExhaustedError as error:
        assert "not enough memory for what a TfDeform op works with" in str(error), error
    else:
        raise AssertionError("there was memory enough")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    np.testing.assert_array_equal(call(inputs), expected)
print("right")
"""


def test_without_memory_an_op_fails_and_the_process_goes_on():
    run = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=500
    )
    assert run.stdout.endswith("right\n"), run.stdout + run.stderr


# Saving


def model_of_layers():
    inputs = keras.Input((9, 8, 4))
    x = tfd.layers.DeformableConv2D(
        6, 3, modulated=True, offset_kernel_initializer=keras.initializers.RandomNormal(0, 0.3)
    )(inputs)
    x = tfd.layers.SpatialTransformer(keras.layers.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def trained():
    """Returns a model trained with the compiled library, inputs, and the model's outputs."""
    inputs = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype("float32")
    with tfd.use_implementation("compiled"):
        model = model_of_layers()
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(inputs, np.ones([2, 7, 6, 6]), verbose=0)
        return model, inputs, model.predict(inputs, verbose=0)


SPECS = [tf.TensorSpec([None, 9, 8, 4], name="inputs")]


def saved_by_export(model, path):
    model.export(path, verbose=False)


def saved_by_an_endpoint(model, path):
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, SPECS)
    archive.write_out(path, verbose=False)


def saved_by_track_and_add_endpoint(model, path):
    archive = keras.export.ExportArchive()
    archive.track_and_add_endpoint("serve", model, SPECS)
    archive.write_out(path, verbose=False)


def saved_as_a_module(model, path):
    module = tf.Module()
    module.model = model
    module.serve = tf.function(model.call, input_signature=SPECS)
    assert has_ours(op_types(module.serve, tf.ones([1, 9, 8, 4])))
    tf.saved_model.save(module, path)


def saved_with_a_signature(model, path):
    module = tf.Module()
    module.model = model
    module.serve = tf.function(model.call, input_signature=SPECS)
    module.serve.get_concrete_function()
    tf.saved_model.save(module, path, signatures=module.serve)


SAVES = [
    saved_by_export,
    saved_by_an_endpoint,
    saved_by_track_and_add_endpoint,
    saved_as_a_module,
    saved_with_a_signature,
]
if KERAS < (3, 8):  # it has no such method
    SAVES.remove(saved_by_track_and_add_endpoint)


@pytest.mark.parametrize("save", SAVES)
def test_what_is_saved_is_portable_and_answers_the_same(tmp_path, trained, save):
    model, inputs, expected = trained
    save(model, tmp_path)
    assert not has_ours(saved_op_types(tmp_path))
    loaded = tf.saved_model.load(tmp_path)
    actual = loaded.serve(tf.constant(inputs))
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def saved_with_a_concrete_signature(model, path):
    module = tf.Module()
    module.model = model
    concrete = tf.function(model.call).get_concrete_function(*SPECS)
    tf.saved_model.save(module, path, signatures={"serving_default": concrete})


def saved_by_a_traced_endpoint(model, path):
    archive = keras.export.ExportArchive()
    archive.track(model)
    function = tf.function(model.call, input_signature=SPECS)
    function.get_concrete_function()
    archive.add_endpoint("serving_default", function)
    archive.write_out(path, verbose=False)


@pytest.mark.parametrize("save", [saved_with_a_concrete_signature, saved_by_a_traced_endpoint])
def test_what_tensorflow_does_not_trace_anew_is_portable_if_it_was_traced_so(
    tmp_path, trained, save
):
    model, inputs, expected = trained
    save(model, tmp_path / "compiled")
    assert has_ours(saved_op_types(tmp_path / "compiled"))
    with tfd.use_implementation("portable"):
        save(model, tmp_path / "portable")
    assert not has_ours(saved_op_types(tmp_path / "portable"))
    loaded = tf.saved_model.load(tmp_path / "portable")
    (actual,) = loaded.signatures["serving_default"](tf.constant(inputs)).values()
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_litert_converts_a_keras_model_portably(trained, tmp_path):
    model, inputs, expected = trained
    if LITERT_OF_KERAS:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
    else:
        model.export(tmp_path)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    assert relative_error(run_converted(converter, inputs), expected) < TOLERANCE["float32"]


def test_litert_takes_a_concrete_function_as_it_was_traced(trained, capfd):
    model, inputs, expected = trained

    def converter():
        concrete = tf.function(model.call).get_concrete_function(tf.TensorSpec(inputs.shape))
        return tf.lite.TFLiteConverter.from_concrete_functions([concrete])

    with pytest.raises(Exception, match="TfDeform>"):
        converter().convert()
    capfd.readouterr()  # the converter prints the graph
    with tfd.use_implementation("portable"):
        actual = run_converted(converter(), inputs)
    assert relative_error(actual, expected) < TOLERANCE["float32"]


def test_a_keras_file_runs_with_either_implementation(tmp_path, rng):
    model = model_of_layers()
    inputs = rng.normal(size=(2, 9, 8, 4)).astype("float32")
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(inputs, np.ones([2, 7, 6, 6]), verbose=0)
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    for name in ("compiled", "portable"):
        with tfd.use_implementation(name):
            loaded = keras.models.load_model(tmp_path / "model.keras")
            assert relative_error(loaded.predict(inputs, verbose=0), expected) < 1e-5


# The same bits on every run and for any number of threads

REPEAT = """
import hashlib, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import tf_deform as tfd
tfd.set_implementation("compiled")
rng = np.random.default_rng(0)
inputs, kernel, offset, mask = [
    tf.constant(rng.normal(size=size), tf.float32)
    for size in ((3, 20, 21, 40), (3, 3, 40, 24), (3, 20, 21, 18), (3, 20, 21, 9))
]
for _ in range(2):
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel, offset, mask])
        out = tfd.ops.deformable_conv(inputs, kernel, offset, mask, padding="same")
        sampled = tfd.ops.grid_sample(inputs, tf.tanh(offset[..., :2]))
    digest = hashlib.sha256()
    for each in (out, sampled, *tape.gradient([out, sampled], [inputs, kernel, offset, mask])):
        digest.update(each.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_results_are_the_same_bits_for_any_number_of_threads():
    runs = [
        subprocess.run(
            [sys.executable, "-c", REPEAT, threads], capture_output=True, text=True, check=True
        ).stdout.split()
        for threads in ("1", "2")
    ]
    digests = [digest for run in runs for digest in run]
    assert len(digests) == 4
    assert len(set(digests)) == 1


def test_the_library_in_the_cache_is_named_after_tensorflow_and_the_sources(monkeypatch, tmp_path):
    before = location.cached_path().parent
    assert tf.__version__ in before.name
    monkeypatch.setattr(location, "SOURCES", tmp_path)
    assert location.cached_path().parent != before
