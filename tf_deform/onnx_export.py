"""Exporting models to ONNX, with the operators that its standard has for these layers."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading

import keras
import tensorflow as tf

from tf_deform import onnx_ops
from tf_deform.annotations import Path, Structure
from tf_deform.compiled import traced_with
from tf_deform.export import input_specs, server_of
from tf_deform.files import replaced_file
from tf_deform.onnx_writers import HIDDEN, WRITERS

_WRITTEN = 18  # the newest opset that tf2onnx writes
_OPSET, _IR = 20, 9  # DeformConv is there since 19, GridSample in 3-D since 20
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
        ValueError: a model that has no known inputs and no `input_signature`, or that holds ops
            that cannot be written in ONNX; an empty path.
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
        _check(exported, onnx)
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

    function, specs = tf.function(traced, autograph=False), tf.nest.flatten(inputs)
    with _one_at_a_time, traced_with("portable"), _sizes_left_alone():
        exported, _ = tf2onnx.convert.from_function(
            function,
            specs,
            opset=_WRITTEN,
            custom_op_handlers={name: (write, []) for name, write in WRITERS.items()},
        )
        captures = function.get_concrete_function(*specs).graph.captures
    _keep_constants(exported.graph, captures)
    for node in _nodes(exported.graph):
        node.op_type = node.op_type.removeprefix(HIDDEN)
    exported.graph.output.sort(key=lambda output: names.index(output.name))
    _raise_opset(exported)
    return exported


@contextlib.contextmanager
def _sizes_left_alone():
    """Leaves out the optimizer that writes shapes with 0 for a free size, and -1 for another.

    Where there are no images, nothing says what -1 stands for, and the engine refuses them.
    """
    optimizers = importlib.import_module("tf2onnx.optimizer")._get_optimizers()
    kept = optimizers["reshape_optimizer"]
    optimizers["reshape_optimizer"] = optimizers["remove_identity"]  # which runs later anyway
    try:
        yield
    finally:
        optimizers["reshape_optimizer"] = kept


def _keep_constants(graph, captures):
    """Turns the inputs that tf2onnx makes of tensors that the model keeps into constants."""
    _, onnx = _packages()
    kept = {placeholder.name: tensor for tensor, placeholder in captures}
    inputs = {each.name: each for each in graph.input}
    read = {name for node in _nodes(graph) for name in node.input}
    read |= {each.name for each in graph.output}
    for name in kept.keys() & inputs.keys():
        graph.input.remove(inputs[name])
        if name in read:
            graph.initializer.append(onnx.numpy_helper.from_array(kept[name].numpy(), name))


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


def _raise_opset(exported):
    """Declares the newer opset, in which everything that tf2onnx writes means the same."""
    for opset in exported.opset_import:
        if not opset.domain:
            opset.version = _OPSET
    exported.ir_version = _IR


def _check(exported, onnx):
    """Raises ValueError that names what ONNX has no operator for, or what onnx's checker raises."""
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
