"""Exporting models to ONNX, with the operators that its standard has for these layers."""

from __future__ import annotations

import importlib
import logging
import threading

import keras
import numpy as np
import tensorflow as tf

from tf_deform import onnx_ops
from tf_deform.annotations import Path, Structure
from tf_deform.compiled import traced_with
from tf_deform.export import input_specs, server_of
from tf_deform.files import replaced_file

_WRITTEN = 18  # the newest opset that tf2onnx writes
_OPSET, _IR = 20, 9  # DeformConv is there since 19, GridSample in 3-D since 20
_RESHAPE = "ReshapeAllowingZero"  # hidden from tf2onnx's optimizers, to which 0 is "stays"
_one_at_a_time = threading.Lock()  # tf2onnx keeps what it does in global variables


def export_onnx(
    model: keras.Model,
    path: Path,
    *,
    input_signature: Structure[keras.InputSpec | tf.TensorSpec] | None = None,
) -> None:
    """Writes the model as an ONNX file, checks it, and returns nothing.

    Two-dimensional deformable convolutions become DeformConv, spatial transformers and grid samples
    in two and three dimensions GridSample (bicubic ones in two), and RoIAlign becomes RoiAlign,
    which is what an inference engine has kernels for. All else becomes gathers and arithmetic. The
    file computes what the model computes when it does not train.

    Inputs and outputs have the names that `export_saved_model` gives them, in the model's order,
    and stay channels last. The number of images is free, and so is each size that is None in the
    model. It needs the packages tf2onnx and onnx: `pip install "tf_deform[onnx]"`.

    Args:
        model: Keras model, built.
        path: file to write; one that is there is replaced when the new one is complete.
        input_signature: the model's inputs as `keras.InputSpec` or `tf.TensorSpec`, in the
            structure that the model takes. Needed for subclassed models only.

    Raises:
        ImportError: tf2onnx or onnx is not installed.
        ValueError: a model that has no known inputs and no `input_signature`, that holds ops that
            cannot be written in ONNX, or that keeps constants as tensors; an empty path.
        FileExistsError: there is something else than a file at `path`.
        FileNotFoundError: there is no folder to put the file in.

    After an error nothing is written, and a file that was there is as it was.

    Example:
        >>> import onnx, os, tempfile
        >>> images = keras.Input((None, None, 3), name="images")
        >>> features = tfd.layers.DeformableConv2D(4, 3, name="features")(images)
        >>> path = os.path.join(tempfile.mkdtemp(), "model.onnx")
        >>> tfd.export_onnx(keras.Model(images, features), path)
        >>> "DeformConv" in [node.op_type for node in onnx.load(path).graph.node]
        True
    """
    tf2onnx, onnx = _packages()
    inputs = input_specs(model, input_signature)
    with replaced_file(path) as partial:
        exported = _converted(model, inputs, tf2onnx)
        _check(exported, tf.nest.flatten(inputs), onnx)
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(exported.SerializeToString())


def _converted(model, inputs, tf2onnx):
    """Returns the model in ONNX, its outputs in the model's order."""
    serve = server_of(model)
    names: list[str] = []

    def traced(*tensors):
        with onnx_ops.traced():
            outputs = serve(tf.nest.pack_sequence_as(inputs, tensors))
        names[:] = outputs
        return outputs

    with _one_at_a_time, traced_with("portable"):
        exported, _ = tf2onnx.convert.from_function(
            tf.function(traced, autograph=False),
            tf.nest.flatten(inputs),
            opset=_WRITTEN,
            custom_op_handlers={name: (write, []) for name, write in _WRITERS.items()},
        )
    for node in _nodes(exported.graph):
        if node.op_type == _RESHAPE:
            node.op_type = "Reshape"
    exported.graph.output.sort(key=lambda output: names.index(output.name))
    _raise_opset(exported)
    return exported


def _packages():
    # TensorFlow knows no shape of what it cannot run; the writer sets it.
    logging.getLogger("tf2onnx.shape_inference").addFilter(_tells_of_no_call)
    try:
        return importlib.import_module("tf2onnx"), importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            "export_onnx needs the packages tf2onnx and onnx: "
            f'pip install "tf_deform[onnx]" ({error})'
        ) from error


def _tells_of_no_call(record):
    return onnx_ops.CALL not in record.getMessage()


def _write_operator(graph, node, *_):
    """Replaces a call of an ONNX operator in tf2onnx's graph by the operator."""
    call = onnx_ops.operator_of(node.get_attr_value("token"))
    if call is None:
        return  # the user's own Python function, which stays and is found
    operator, shape, attributes = call
    graph.set_shape(node.output[0], [-1 if size is None else size for size in shape])
    _replace(graph, node, operator, list(node.input), attributes)


# What tf2onnx lacks: Keras's exact GELU, and sizes of regions that are free. And what it writes as
# products with 0 and 1, which would let the NaN of dropped samples through.


def _write_select(graph, node, *_):
    _replace(graph, node, "Where", list(node.input))


def _write_erfc(graph, node, *_):
    _, onnx = _packages()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.input[0]))
    one = graph.make_const(f"{node.name}/one", np.ones([], dtype)).output[0]
    erf = graph.make_node("Erf", list(node.input)).output[0]
    _replace(graph, node, "Sub", [one, erf])


def _write_reshape(graph, node, *_):
    """Writes a shape in which 0 says that there is nothing; to ONNX it says that a size stays."""
    _, onnx = _packages()
    tensor, shape = node.input
    sizes = graph.get_shape(node.output[0])
    if sizes is not None and 0 not in sizes and sizes.count(-1) <= 1:
        shape = graph.make_const(f"{node.name}/sizes", np.int64(sizes)).output[0]
        _replace(graph, node, "Reshape", [tensor, shape])
    else:
        shape = graph.make_node("Cast", [shape], attr={"to": onnx.TensorProto.INT64}).output[0]
        _replace(graph, node, _RESHAPE, [tensor, shape], {"allowzero": 1})


def _write_broadcast_args(graph, node, *_):
    _, onnx = _packages()

    def made(operator, inputs, **attributes):
        return graph.make_node(operator, inputs, attr=attributes).output[0]

    first, second = (made("Cast", [each], to=onnx.TensorProto.INT64) for each in node.input)
    shape = made("Shape", [made("Expand", [made("ConstantOfShape", [first]), second])])
    _replace(graph, node, "Cast", [shape], {"to": graph.get_dtype(node.output[0])})


def _replace(graph, node, operator, inputs, attributes=None):
    """Puts an operator in the place of a node with one output, whose shape and dtype it keeps."""
    output = node.output[0]
    shape, dtype = graph.get_shape(output), graph.get_dtype(output)
    graph.remove_node(node.name)
    graph.make_node(
        operator,
        inputs,
        attr=attributes,
        outputs=[output],
        name=node.name,
        shapes=[shape],
        dtypes=[dtype],
    )


_WRITERS = {
    onnx_ops.CALL: _write_operator,
    "BroadcastArgs": _write_broadcast_args,
    "Erfc": _write_erfc,
    "Reshape": _write_reshape,
    "SelectV2": _write_select,
}


def _raise_opset(exported):
    """Declares the newer opset, in which everything that tf2onnx writes means the same."""
    for opset in exported.opset_import:
        if not opset.domain:
            opset.version = _OPSET
    exported.ir_version = _IR


def _check(exported, inputs, onnx):
    """Raises ValueError that names what ONNX has no operator for, or what onnx's checker raises."""
    if len(exported.graph.input) > len(inputs):  # tf2onnx makes inputs of them
        raise ValueError(
            "The model must keep its constants as weights or NumPy arrays, received some as tensors"
        )
    unknown = sorted(
        {
            node.op_type
            for node in _nodes(exported.graph)
            if not node.domain and not onnx.defs.has(node.op_type)
        }
    )
    if unknown:
        raise ValueError(
            f"The model must hold ops that ONNX can express, received {', '.join(unknown)}"
        )
    onnx.checker.check_model(exported, full_check=True)


def _nodes(graph):
    """Yields the nodes of the graph and of those inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)
