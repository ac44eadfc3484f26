"""The kernels for deformable convolution of onnxruntime and OpenVINO, as peers in a benchmark.

Both run their own layout, channels first, in float32 on as many threads as ours. The kernel is a
constant of their models, which they may prepare once; ours is given with each call, of a concrete
function: as their compiled models it is of one shape, and skips what a `tf.function` looks up.
"""

import statistics
from typing import NamedTuple

import machine
import numpy as np
import onnx
import onnxruntime
import openvino
import tensorflow as tf
from openvino import opset8

import tf_deform as tfd
from tf_deform.compiled import loading

CALLS = 5  # in a block
SIZE = 3  # of the kernel
DEVIATION = 2  # of the offsets, in pixels


class Case(NamedTuple):
    """A modulated 3x3 convolution, padded to the same size."""

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    groups: int = 1
    strides: int = 1
    dilation: int = 1

    def __str__(self):
        text = "x".join(map(str, self[:3])) + f" {self.channels}->{self.filters}"
        extra = (("groups", self.groups), ("strides", self.strides), ("dilation", self.dilation))
        return text + "".join(f", {name} {value}" for name, value in extra if value > 1)


CASES = (
    Case(1, 56, 56, 64, 64),
    Case(8, 28, 28, 128, 128),
    Case(1, 50, 84, 256, 256),
    Case(2, 100, 100, 32, 64),
    Case(1, 14, 14, 256, 256),
    Case(32, 28, 28, 64, 64),
    Case(1, 56, 56, 64, 128, strides=2),
    Case(1, 56, 56, 64, 64, dilation=2),
    Case(1, 56, 56, 64, 64, groups=4),
    Case(8, 28, 28, 128, 128, groups=128),
)


def contestants(case, threads):
    """Returns {"ours", "op", "onnxruntime", "OpenVINO"}: calls that return the outputs.

    "op" is our op without a graph around it: what it takes less than "ours" is TensorFlow's.

    Raises RuntimeError if an engine computes something else.
    """
    inputs, kernel, offset, mask = arrays_of(case)
    calls = {"ours": ours(case, inputs, kernel, offset, mask)}
    calls["op"] = op_alone(case, inputs, kernel, offset, mask)
    wanted = calls["ours"]().numpy()
    first = [np.ascontiguousarray(each.transpose(0, 3, 1, 2)) for each in (inputs, offset, mask)]
    weights = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    for name, engine in (("onnxruntime", in_onnxruntime), ("OpenVINO", in_openvino)):
        calls[name] = engine(case, *first, weights, threads)
        found = calls[name]().transpose(0, 2, 3, 1)
        error = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
        if not error < 1e-4:
            raise RuntimeError(f"{name} must return what we do for {case}, is {error:.2g} off")
    return calls


def arrays_of(case):
    rng = np.random.default_rng(0)
    height, width = (-(-size // case.strides) for size in (case.height, case.width))
    places = (case.batch, height, width)
    inputs = rng.normal(size=(case.batch, case.height, case.width, case.channels))
    kernel = rng.normal(size=(SIZE, SIZE, case.channels // case.groups, case.filters))
    offset = rng.normal(scale=DEVIATION, size=(*places, 2 * SIZE**2))
    mask = rng.uniform(size=(*places, SIZE**2))
    return [each.astype("float32") for each in (inputs, kernel, offset, mask)]


def pads_of(case):
    """Returns the pixels before and after along each axis, TensorFlow's padding "same"."""
    before, after = [], []
    for size in (case.height, case.width):
        reach = (-(-size // case.strides) - 1) * case.strides + (SIZE - 1) * case.dilation + 1
        total = max(reach - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before, after


def ours(case, inputs, kernel, offset, mask):
    options = {"strides": case.strides, "dilation_rate": case.dilation, "padding": "same"}

    @tf.function(autograph=False)
    def convolve(inputs, kernel, offset, mask):
        return tfd.ops.deformable_conv(inputs, kernel, offset, mask, **options)

    arguments = [tf.constant(each) for each in (inputs, kernel, offset, mask)]
    compiled = convolve.get_concrete_function(*arguments)
    return lambda: compiled(*arguments)


def op_alone(case, *arrays):
    inputs, kernel, offset, mask = map(tf.constant, arrays)
    before = tf.constant(pads_of(case)[0], tf.int32)
    convolve = loading.load().library.tf_deform_deformable_conv
    options = {"strides": [case.strides] * 2, "dilations": [case.dilation] * 2}
    return lambda: convolve(inputs, kernel, offset, [mask], before, **options)


def in_onnxruntime(case, inputs, offset, mask, weights, threads):
    before, after = pads_of(case)
    node = onnx.helper.make_node(
        "DeformConv",
        ["inputs", "weights", "offset", "", "mask"],
        ["outputs"],
        group=case.groups,
        strides=[case.strides] * 2,
        dilations=[case.dilation] * 2,
        pads=[*before, *after],
        kernel_shape=[SIZE, SIZE],
    )
    feeds = {"inputs": inputs, "offset": offset, "mask": mask}
    graph = onnx.helper.make_graph(
        [node],
        "convolution",
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, each.shape)
            for name, each in feeds.items()
        ],
        [onnx.helper.make_tensor_value_info("outputs", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    opset = onnx.helper.make_opsetid("", 19)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feeds)[0]


def in_openvino(case, inputs, offset, mask, weights, threads):
    before, after = pads_of(case)
    given = [
        opset8.parameter(each.shape, np.float32, name)
        for name, each in (("inputs", inputs), ("offset", offset), ("mask", mask))
    ]
    node = opset8.deformable_convolution(
        given[0],
        given[1],
        opset8.constant(weights),
        [case.strides] * 2,
        before,
        after,
        [case.dilation] * 2,
        mask=given[2],
        group=case.groups,
        bilinear_interpolation_pad=True,
    )
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Model([node], given, "convolution")
    request = openvino.compile_model(model, "CPU", options).create_infer_request()

    def run():
        return request.infer([inputs, offset, mask], share_inputs=True, share_outputs=True)[0]

    return run


def in_blocks(calls, rounds):
    """Returns {name: median seconds of a call}: blocks of calls, one contestant at a time."""
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(machine.timed(call, CALLS))
    return {name: statistics.median(each) for name, each in seconds.items()}


def work_of(case):
    """Returns the FLOP of a case, a product and a sum counting as two, and the bytes it must move.

    A sample is four products and sums of a channel. Inputs, kernel, offset, mask and output are
    read or written once.
    """
    arrays = arrays_of(case)
    points = arrays[3].size // SIZE**2
    outputs = points * case.filters
    products = SIZE**2 * case.channels * (case.filters // case.groups + 4)
    return 2 * points * products, 4 * (sum(each.size for each in arrays) + outputs)
