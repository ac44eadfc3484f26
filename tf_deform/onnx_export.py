"""Exporting models to ONNX, with the operators that its standard has for these layers."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import warnings

import keras
import tensorflow as tf

from tf_deform import onnx_ops
from tf_deform.annotations import Path, Structure, Tensor
from tf_deform.compiled import traced_with
from tf_deform.export import input_specs, server_of
from tf_deform.export_check import check_export
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
    check: bool = True,
    sample: Structure[Tensor] | None = None,
) -> None:
    """Writes the model as an ONNX file, and compares the file with the model.

    The file uses ONNX's own operators, for which inference engines have kernels. Two-dimensional
    deformable convolutions become DeformConv. Spatial transformers and grid samples in two and
    three dimensions become GridSample (bicubic ones only in two). RoIAlign becomes RoiAlign. All
    else becomes gathers and arithmetic. The file computes what the model computes in inference.

    Inputs and outputs have the names that `export_saved_model` gives them, in the model's order,
    and stay channels last. The batch size is free, and so is each size that is None in the model.
    It needs the packages tf2onnx and onnx: `pip install "tf_deform[onnx]"`.

    Before the file appears under its name, it is run in onnxruntime with 0, 1 and 3 images, and
    with several values of each free size, and compared with the model. Sizes that the model refuses
    are left out, and so are elements that are NaN or infinite. One element in a thousand may
    differ, for example where rounding decides which pixel is the nearest. There is a warning if
    onnxruntime is not installed, lacks an operator, or refuses empty inputs or an image of a few
    pixels.

    Args:
        model: a built Keras model.
        path: file to write. An existing file is replaced when the new one is complete.
        input_signature: the model's inputs as `keras.InputSpec` or `tf.TensorSpec`, in the
            structure that the model takes. Needed for subclassed models only.
        check: whether to run the file in onnxruntime and to compare it with the model.
        sample: example inputs for the comparison, instead of random ones. It uses all of them, the
            first image only, and no images. Pass this if random numbers do not suit the model, or
            if free sizes depend on each other.

    Raises:
        ImportError: tf2onnx or onnx is not installed.
        ValueError: the model has no known inputs and there is no `input_signature`; it holds ops
            that cannot be written in ONNX; the file computes something else than the model, or
            onnxruntime cannot run it; `sample` does not fit the inputs; the path is empty.
        FileExistsError: at `path` there is something that is not a file.
        FileNotFoundError: the folder for the file does not exist.

    After an error nothing is written, and an existing file does not change.

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
        _check_operators(exported, onnx)
        written = exported.SerializeToString()
        run = _runner(written) if check else None
        if run is not None:
            check_export(model, inputs, run, "onnxruntime", sample)
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(written)


def _converted(model, inputs, tf2onnx):
    """Returns the model in ONNX, its outputs in the model's order."""
    serve = server_of(model)
    names: list[str] = []

    def traced(*tensors):
        with onnx_ops.traced():
            outputs = serve(tf.nest.pack_sequence_as(inputs, tensors))
        _let_inline(tf.compat.v1.get_default_graph())
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
    _allow_nothing(exported.graph)
    exported.graph.output.sort(key=lambda output: names.index(output.name))
    _raise_opset(exported)
    return exported


def _let_inline(graph):
    """Lets calls that XLA is to compile be inlined: Keras has such around grouped convolutions."""
    for op in graph.get_operations():
        if op.type.endswith("PartitionedCall") and "_XlaMustCompile" in op.node_def.attr:
            tf.Operation._clear_attr(op, "_XlaMustCompile")  # it has no public name


def _allow_nothing(graph):
    """Lets a 0 mean 0 in shapes computed from sizes: in those of tf2onnx's own transpositions too.

    It writes a transposition that moves no element as a Reshape, to some sizes of a Shape.
    """
    _, onnx = _packages()
    nodes = {name: node for node in _nodes(graph) for name in node.output}
    for node in list(nodes.values()):
        node.op_type = node.op_type.removeprefix(HIDDEN)
        shape = nodes.get(node.input[1]) if node.op_type == "Reshape" else None
        source = nodes.get(shape.input[0]) if shape and shape.op_type == "Gather" else None
        if source and source.op_type == "Shape" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("allowzero", 1))


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


def _check_operators(exported, onnx):
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


def _runner(written):
    """Returns the function from {name: array} to {name: array} that runs the file.

    None, with a warning, if onnxruntime is not there or lacks an operator.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return _not_run("onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised
    try:
        session = runtime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if type(error).__name__ == "NotImplemented":
            return _not_run(f"this onnxruntime lacks an operator ({error})")
        raise ValueError(f"The file must run in onnxruntime, which refuses it: {error}") from error
    inputs, outputs = (
        [each.name for each in each()] for each in (session.get_inputs, session.get_outputs)
    )

    def run(feeds):
        fed = dict(zip(inputs, feeds.values(), strict=True))
        return dict(zip(outputs, session.run(None, fed), strict=True))

    return run


def _not_run(reason):
    warnings.warn(
        f"The ONNX file was written, but not run and compared with the model: {reason}",
        stacklevel=4,
    )


def _nodes(graph):
    """Yields the nodes of the graph and of those inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)
