"""Exporting models to servers that need not know of tf_deform."""

from __future__ import annotations

import importlib
from typing import get_args

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_deform.annotations import Path, SavedImplementation, Structure, Tensor
from tf_deform.compiled import traced_with
from tf_deform.files import new_folder

_CUSTOM = "TfDeform>"


def export_saved_model(
    model: keras.Model,
    path: Path,
    *,
    implementation: SavedImplementation = "portable",
    input_signature: Structure[keras.InputSpec | tf.TensorSpec] | None = None,
    image_size: tuple[int, int] | None = None,
    image_scale: float = 1.0,
    warmup: Structure[Tensor] | None = None,
) -> None:
    """Writes the model as a SavedModel with named inputs and outputs.

    The signature `serving_default` (`serve` from Python) computes what the model computes in
    inference. Inputs have the names given to `keras.Input`, otherwise `inputs`, or `inputs_0`,
    `inputs_1`... Outputs have the names of the layers that return them, or the keys if the model
    returns a dictionary. The batch size is free, and so is each size that is None in the model.

    The folder appears under its name when it is complete, so a server that watches the folder above
    never sees half a model. Until then it is beside `path`, as `<path>.partial-` and a random
    number. If several exports write to one path at once, one of them succeeds.

    With `image_size` there is a second signature, `serve_image_bytes`. It takes `image_bytes`,
    strings `[batch]`, each a PNG, JPEG, BMP or GIF file (its first frame), and returns the same
    outputs. It converts the images to the input's channels (BMP files must have them), resizes them
    bilinearly without keeping the aspect ratio, as `keras.utils.image_dataset_from_directory` does,
    and multiplies the values, 0 to 255, by `image_scale`.

    Args:
        model: a built Keras model.
        path: folder to write, which does not exist or is empty. For TensorFlow Serving its name is
            a version number.
        implementation: "portable", with TensorFlow's own ops only, or "compiled", with custom ops.
            For "compiled" the server must link the ops (`//custom_ops:ops`, with Bazel), or load
            the library that `python -m tf_deform info` names, built against the server's minor
            version of TensorFlow, before it loads the model. Otherwise requests fail.
        input_signature: the model's inputs as `keras.InputSpec` or `tf.TensorSpec`, in the
            structure that the model takes. Needed for subclassed models only.
        image_size: (height, width) in pixels to which `serve_image_bytes` resizes. The model must
            have one input, `[batch, height, width, channels]` of floating dtype, 1, 3 or 4
            channels. None: there is no `serve_image_bytes`.
        image_scale: `serve_image_bytes` multiplies the pixels, 0 to 255, by this: 1 / 255 for a
            model that takes images from 0 to 1.
        warmup: example inputs of the model. They are written as requests that TensorFlow Serving
            runs before the model counts as loaded; with `image_size`, a black image too. Needs the
            package tensorflow-serving-api: `pip install "tf_deform[serving]"`. None: no requests.

    Raises:
        ValueError: the implementation is unknown; the model has no known inputs and there is no
            `input_signature`; the model cannot take images of `image_size`; `warmup` does not fit
            the inputs; the path is empty.
        FileExistsError: at `path` there is a file, a link or a folder that is not empty. It does
            not change.
        ImportError: with `warmup`, tensorflow-serving-api is not installed.
        RuntimeError: with "compiled", the compiled library cannot be used; or the portable model
            still holds custom ops.

    Example:
        >>> import os, tempfile
        >>> images = keras.Input((None, None, 3), name="images")
        >>> features = tfd.layers.DeformableConv2D(4, 3, name="features")(images)
        >>> path = os.path.join(tempfile.mkdtemp(), "1")
        >>> tfd.export_saved_model(keras.Model(images, features), path, image_size=(9, 7))
        >>> served = tf.saved_model.load(path)
        >>> served.serve(tf.ones([2, 9, 7, 3]))["features"].shape
        TensorShape([2, 7, 5, 4])
    """
    if implementation not in get_args(SavedImplementation):
        raise ValueError(
            f"implementation must be 'portable' or 'compiled', received {implementation!r}"
        )
    inputs = input_specs(model, input_signature)
    requests = (
        [] if warmup is None else [("serving_default", named_values("warmup", warmup, inputs))]
    )
    with new_folder(path) as partial, traced_with(implementation):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", server_of(model), [inputs])
        if image_size is not None:
            images = _check_images(inputs, image_size)
            server = _image_server(model, images, image_size, image_scale)
            names = [tf.TensorSpec([None], tf.string, "image_bytes")]
            archive.add_endpoint("serve_image_bytes", server, names)
            if requests:
                black = tf.zeros([*image_size, images.shape[-1]], tf.uint8)
                encoded = {"image_bytes": tf.io.encode_png(black)[None]}
                requests.append(("serve_image_bytes", encoded))
        if requests:
            _write_requests(f"{partial}/assets.extra", requests)
        archive.write_out(partial, verbose=False)
        custom = custom_ops(partial)
        if custom and implementation == "portable":
            raise RuntimeError(
                f"The model must hold TensorFlow ops only, received {', '.join(custom)}: trace its "
                'functions anew under tfd.use_implementation("portable").'
            )


def input_specs(model, signature):
    """Returns the model's inputs as named tf.TensorSpecs, in the structure that it takes."""
    if signature is None:
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"model must know its inputs, received {model!r}: give it an input_signature"
            )
        # Sequential models have no structure of inputs, only one input.
        signature = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    specs = tf.nest.flatten(signature)

    def named(index, spec):
        name = getattr(spec, "name", None) or "keras_tensor"
        if name.startswith("keras_tensor"):  # Keras's, numbered by what the process made before
            name = "inputs" if len(specs) == 1 else f"inputs_{index}"
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name)

    named_specs = [named(index, spec) for index, spec in enumerate(specs)]
    return tf.nest.pack_sequence_as(signature, named_specs)


def server_of(model):
    """Returns the function from the model's inputs to a dictionary of its outputs."""

    def serve(inputs):
        outputs = model(inputs, training=False)
        if isinstance(outputs, dict):
            return outputs
        outputs = tf.nest.flatten(outputs)
        names = getattr(model, "output_names", None)
        if isinstance(model, keras.Sequential):
            names = [model.layers[-1].name]
        if not names or len(set(names)) < len(outputs):
            names = [f"output_{index}" for index in range(len(outputs))]
        return dict(zip(names, outputs, strict=True))

    return serve


def _image_server(model, images, size, scale):
    """Returns the function from encoded images to a dictionary of the model's outputs."""
    serve = server_of(model)
    decoded = tf.TensorSpec([*size, images.shape[-1]], tf.float32)

    def decode(encoded):
        image = tf.io.decode_image(encoded, images.shape[-1], expand_animations=False)
        return tf.image.resize(image, size) * scale

    def serve_image_bytes(image_bytes):
        batch = tf.map_fn(decode, image_bytes, fn_output_signature=decoded)
        return serve(tf.cast(batch, images.dtype))

    return serve_image_bytes


def _check_images(inputs, size):
    """Returns the one input of a model that takes images of the size."""
    specs = tf.nest.flatten(inputs)
    spec = specs[0]
    if not (
        len(specs) == 1
        and not tf.nest.is_nested(inputs)
        and spec.dtype.is_floating
        and spec.shape.is_compatible_with([None, *size, None])
        and spec.shape[-1] in (1, 3, 4)
    ):
        received = ", ".join(f"{each.dtype.name} {each.shape}" for each in specs)
        raise ValueError(
            "image_size needs a model of one floating input [batch, height, width, channels] with "
            f"1, 3 or 4 channels that takes images of {tuple(size)}, received one of {received}"
        )
    return spec


def named_values(argument, values, inputs):
    """Returns {name: tensor} of sample inputs, which an argument holds."""
    specs, values = tf.nest.flatten(inputs), tf.nest.flatten(values)
    if len(values) != len(specs):
        raise ValueError(f"{argument} must have {len(specs)} inputs, received {len(values)}")
    tensors = {}
    for spec, value in zip(specs, values, strict=True):
        tensor = tensors[spec.name] = tf.convert_to_tensor(value, spec.dtype)
        if not spec.shape.is_compatible_with(tensor.shape):
            raise ValueError(
                f"{argument} must have {spec.name!r} of shape {spec.shape}, received {tensor.shape}"
            )
    return tensors


def _write_requests(folder, requests):
    """Writes the requests, (signature, {name: tensor}), where TensorFlow Serving looks for them."""
    try:
        logs, predictions = (
            importlib.import_module(f"tensorflow_serving.apis.{name}_pb2")
            for name in ("prediction_log", "predict")
        )
    except ImportError as error:
        raise ImportError(
            "warmup needs the package tensorflow-serving-api: "
            f'pip install "tf_deform[serving]" ({error})'
        ) from error
    tf.io.gfile.makedirs(folder)
    with tf.io.TFRecordWriter(f"{folder}/tf_serving_warmup_requests") as writer:
        for signature, tensors in requests:
            request = predictions.PredictRequest()
            request.model_spec.signature_name = signature
            for name, tensor in tensors.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor))
            log = logs.PredictionLog(predict_log=logs.PredictLog(request=request))
            writer.write(log.SerializeToString())


def custom_ops(path):
    """Returns the names of tf_deform's custom ops in the graph and in the functions it calls."""
    with tf.io.gfile.GFile(f"{path}/saved_model.pb", "rb") as file:
        graphs = [
            graph.graph_def
            for graph in saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
        ]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for each in graph.library.function for node in each.node_def]
    return sorted({node.op for node in nodes if node.op.startswith(_CUSTOM)})
