"""The compiled library under XLA: what is compiled holds its ops, and answers as without XLA."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.kernels import get_all_registered_kernels

import tf_deform as tfd
from conftest import TOLERANCE, XLA_KERNELS, fractional, gradients, relative_error
from tf_deform import compiled, ops
from tf_deform.compiled import choice, loading

TARGET = 'custom_call_target="tf_deform"'


@pytest.fixture(autouse=True)
def _compiled():
    with tfd.use_implementation("compiled"):
        yield


def convolution(rng, dtype):
    """Returns a strided, grouped, modulated convolution and its arguments."""
    shapes = (2, 7, 6, 4), (3, 2, 2, 6)
    arguments = [rng.normal(size=shape) for shape in shapes]
    arguments.append(fractional(rng, (2, 4, 6, 2 * 6 * 2), -2, 3))
    arguments.append(rng.uniform(size=(2, 4, 6, 2 * 6)))
    call = lambda *each: ops.deformable_conv(*each, strides=(2, 1), padding="same")  # noqa: E731
    return call, [tf.constant(each, dtype) for each in arguments]


def attention(rng, dtype):
    """Returns a weighted sample of several points, images and groups, and its arguments."""
    index = tf.constant([1, 0, 1])
    values, weights = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(3, 7, 2, 5))
    points = fractional(rng, (3, 7, 2, 5, 2), -2, 7)
    call = lambda *each: ops.weighted_sample(*each, image_index=index)  # noqa: E731
    return call, [tf.constant(each, dtype) for each in (values, points, weights)]


def with_gradients(call):
    """Returns a function of the result and of the gradients of the sum of its squares."""
    return lambda *each: (call(*each), *gradients(lambda *each: call(*each) ** 2, *each))


@pytest.mark.xla_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [convolution, attention])
def test_xla_runs_the_compiled_ops_and_gives_the_same_bits(rng, make, dtype):
    call, arguments = make(rng, dtype)
    derive = with_gradients(call)
    jitted = tf.function(derive, jit_compile=True)
    program = jitted.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert program.count(TARGET) >= 2  # forward and backward
    for actual, expected in zip(jitted(*arguments), derive(*arguments), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.xla_kernels
@pytest.mark.parametrize("make", [convolution, attention])
def test_second_derivatives_go_through_the_portable_form(rng, make):
    call, arguments = make(rng, "float64")

    def slope(*each):
        found = gradients(lambda *each: call(*each) ** 2, *each)
        return tf.add_n([tf.reduce_sum(gradient**2) for gradient in found])

    jitted = tf.function(lambda *each: gradients(slope, *each), jit_compile=True)
    with tfd.use_implementation("portable"):
        expected = gradients(slope, *arguments)
    for actual, wanted in zip(jitted(*arguments), expected, strict=True):
        assert relative_error(actual, wanted) < TOLERANCE["float64"]


@pytest.mark.xla_kernels
def test_xla_has_kernels_of_every_op_for_cpus_and_gpus():
    found = [each for each in get_all_registered_kernels().kernel if "TfDeform>" in each.op]
    for device in ("XLA_CPU_JIT", "XLA_GPU_JIT"):
        assert sum(each.device_type == device for each in found) == len({each.op for each in found})
    assert len({each.op for each in found}) == 5


@pytest.mark.xla_kernels
def test_a_gpu_is_given_the_padding_with_the_program_and_a_cpu_with_the_arguments(rng):
    call, arguments = convolution(rng, "float32")
    jitted = tf.function(call, jit_compile=True)
    for platform, padding in (("GPU", ": 1, 0>"), ("CPU", ">")):
        program = jitted.experimental_get_compiler_ir(*arguments)("hlo", platform_name=platform)
        assert f"before = array<i64{padding}" in program
        assert ("s32[2]" in program) == (platform == "CPU")


@pytest.mark.xla_kernels
def test_a_padding_that_data_decide_is_refused_for_a_gpu_alone():
    image, kernel, offset = tf.ones([1, 5, 1]), tf.ones([3, 1, 1]), tf.zeros([1, 5, 3])
    library = loading.load().library

    @functools.partial(tf.function, jit_compile=True)
    def call(before):
        return library.tf_deform_deformable_conv(
            image, kernel, offset, [], before, strides=[1], dilations=[1]
        )

    padding = tf.constant([1])
    np.testing.assert_array_equal(np.ravel(call(padding)), [2, 3, 3, 3, 2])
    with pytest.raises(ValueError, match="on a GPU, a convolution's padding must be known"):
        call.experimental_get_compiler_ir(padding)("hlo", platform_name="GPU")


@pytest.mark.xla_kernels
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.95])
def test_as_many_boxes_as_data_decide(rng, threshold):
    features = tf.constant(rng.normal(size=(2, 7, 6, 3)), tf.float32)
    boxes = tf.constant([[0.3, 0.4, 4.0, 5.0], [1.0, 1.0, 3.0, 2.5], [0.0, 2.0, 5.5, 6.0]])
    scores = tf.constant([0.9, 0.2, 0.7])

    def kept(features, boxes, scores):
        kept = tf.boolean_mask(boxes, scores > threshold)
        pooled = ops.roi_align(features, kept, tf.ones([tf.shape(kept)[0]], tf.int32), 2)
        return tf.reduce_sum(pooled, axis=0)

    def derive(features, boxes, scores):
        return with_gradients(lambda features: kept(features, boxes, scores))(features)

    jitted = tf.function(derive, jit_compile=True)(features, boxes, scores)
    for actual, expected in zip(jitted, derive(features, boxes, scores), strict=True):
        assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.xla_kernels
def test_as_many_images_as_data_decide(rng):
    call, (inputs, kernel, offset, mask) = convolution(rng, "float64")

    def kept(keep, inputs, kernel, offset, mask):
        return tf.reduce_sum(
            call(inputs[keep], kernel, offset[keep], mask[keep]) ** 2, axis=[0, 1, 2]
        )

    for keep in ([True, True], [False, True], [False, False]):
        derive = with_gradients(functools.partial(kept, tf.constant(keep)))
        jitted = tf.function(derive, jit_compile=True)(inputs, kernel, offset, mask)
        plain = derive(inputs, kernel, offset, mask)
        for actual, expected in zip(jitted, plain, strict=True):
            assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.xla_kernels
def test_images_of_a_size_that_data_decide_are_refused():
    def cropped(inputs):
        return ops.sample(tf.boolean_mask(inputs, inputs[0, :, 0] > 0, axis=1), [[[0.5]]])

    inputs = tf.constant([[[1.0], [-1.0], [3.0]]])
    assert cropped(inputs) == 2.0
    with pytest.raises(tf.errors.UnimplementedError, match="how many images, rows and queries"):
        tf.function(cropped, jit_compile=True)(inputs)


@pytest.mark.xla_kernels
def test_an_image_that_is_not_there_is_an_error_at_run_time():
    boxes, features = [[0.0, 0.0, 2.0, 2.0]], tf.ones([2, 4, 4, 1])
    jitted = tf.function(lambda index: ops.roi_align(features, boxes, index, 2), jit_compile=True)
    assert np.all(jitted(tf.constant([1])) == 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_index.*received 2"):
        jitted(tf.constant([2]))


@pytest.mark.xla_kernels
def test_a_loop_is_differentiated_under_xla(rng):
    call, arguments = convolution(rng, "float64")

    def repeated(*arguments):
        def step(nth, total):
            return nth + 1, tf.tanh(total) + call(*arguments)

        start = (0, tf.zeros([2, 4, 6, 6], tf.float64))
        return tf.while_loop(lambda nth, _: nth < 3, step, start, maximum_iterations=3)[1]

    def derive(*arguments):
        return gradients(repeated, *arguments)

    function = tf.function(derive, jit_compile=True)
    jitted = function(*arguments)
    program = function.experimental_get_compiler_ir(*arguments)("hlo", platform_name="GPU")
    assert program.count(TARGET) == 2  # the padding is known in the gradient's loop too
    for actual, expected in zip(jitted, derive(*arguments), strict=True):
        assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.xla_kernels
def test_a_saved_function_that_xla_compiles_holds_the_custom_op(tmp_path, rng):
    call, (inputs, *others) = convolution(rng, "float32")
    module = tf.Module()
    module.serve = tf.function(
        lambda inputs: call(inputs, *others),
        jit_compile=True,
        input_signature=[tf.TensorSpec(inputs.shape)],
    )
    with compiled.traced_with("compiled"):
        tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    assert b"TfDeform>DeformableConv" in (tmp_path / "saved_model.pb").read_bytes()
    np.testing.assert_array_equal(loaded.serve(inputs), call(inputs, *others))


CLUSTERED = """
import tensorflow as tf
import tf_deform as tfd
from tensorflow.python.eager import context
tfd.set_implementation("compiled")
call = tf.function(lambda x: tf.nn.relu(tfd.ops.sample(x + 1, [[[0.5], [1.25]]])) * 2)
context.context().enable_run_metadata()
print(call(tf.constant([[[1.0], [3.0], [7.0]]])).numpy().ravel().tolist())
graphs = context.context().export_run_metadata().partition_graphs
inside = [each for graph in graphs for each in graph.node]
print(sorted({node.op for node in inside} & {"_XlaRun", "TfDeform>WeightedSample"}))
"""


@pytest.mark.xla_kernels
def test_automatic_clusters_take_the_compiled_ops_in():
    flags = "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1"
    run = subprocess.run(
        [sys.executable, "-c", CLUSTERED],
        env={**os.environ, "TF_XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    values, types = run.stdout.splitlines()
    assert values == "[6.0, 10.0]"
    assert types == "['_XlaRun']"


def test_layers_support_jit_if_the_library_has_kernels_for_xla():
    assert tfd.layers.GridSample().supports_jit == XLA_KERNELS
    assert ("supports_jit=False" in tfd.compiled_status().reason) != XLA_KERNELS


def test_a_layer_that_xla_cannot_compile_says_so(monkeypatch):
    monkeypatch.setattr(loading, "why_not_xla", lambda: "")
    assert tfd.layers.GridSample().supports_jit
    monkeypatch.setattr(loading, "why_not_xla", lambda: "no kernels for it")
    assert tfd.compiled_status().reason == "no kernels for it"
    layers = [tfd.layers.GridSample(), tfd.layers.DeformableConv2D(2, 3), tfd.layers.RoIAlign(2)]
    assert not any(layer.supports_jit for layer in layers)
    with tfd.use_implementation("portable"):
        assert tfd.layers.GridSample().supports_jit
    model = keras.Sequential([keras.Input((5, 5, 1)), layers[1]])
    with pytest.warns(UserWarning, match="jit"):
        model.compile(jit_compile=True)


@pytest.fixture
def _asked_anew():
    choice.auto_is_compiled.cache_clear()
    yield
    choice.auto_is_compiled.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
def test_auto_moves_no_work_off_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert "GPU" in tfd.compiled_status().reason
    with tfd.use_implementation("auto"):
        assert not compiled.chosen()
    assert compiled.chosen()


@pytest.mark.usefixtures("_asked_anew")
def test_auto_warns_of_a_library_that_does_not_load(monkeypatch):
    broken = loading.Loaded(reason="it does not load", broken=True)
    monkeypatch.setattr(loading, "load", lambda: broken)
    with tfd.use_implementation("auto"), pytest.warns(UserWarning, match="it does not load"):
        assert not compiled.chosen()
