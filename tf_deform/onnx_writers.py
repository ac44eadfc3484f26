"""How `export_onnx` writes TensorFlow's ops that tf2onnx does not know, or writes otherwise."""

import importlib

import numpy as np

from tf_deform import onnx_ops

# Before the name of an operator that tf2onnx's optimizers are not to know, until they have run.
HIDDEN = "Hidden"


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
    onnx = importlib.import_module("onnx")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.input[0]))
    one = graph.make_const(f"{node.name}/one", np.ones([], dtype)).output[0]
    erf = graph.make_node("Erf", list(node.input)).output[0]
    _replace(graph, node, "Sub", [one, erf])


def _write_reshape(graph, node, *_):
    """Writes a shape in which 0 says that there is nothing; to ONNX it says that a size stays."""
    onnx = importlib.import_module("onnx")
    tensor, shape = node.input
    sizes = graph.get_shape(node.output[0])
    if sizes is not None and 0 not in sizes and sizes.count(-1) <= 1:
        shape = graph.make_const(f"{node.name}/sizes", np.int64(sizes)).output[0]
        _replace(graph, node, "Reshape", [tensor, shape])
    else:
        shape = graph.make_node("Cast", [shape], attr={"to": onnx.TensorProto.INT64}).output[0]
        _replace(graph, node, f"{HIDDEN}Reshape", [tensor, shape], {"allowzero": 1})


def _write_broadcast_args(graph, node, *_):
    onnx = importlib.import_module("onnx")

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


WRITERS = {
    onnx_ops.CALL: _write_operator,
    "BroadcastArgs": _write_broadcast_args,
    "Erfc": _write_erfc,
    "Reshape": _write_reshape,
    "SelectV2": _write_select,
}
