"""Why cells are not good, in words: columns and messages as patterns, the first that fits."""

_ALL = ""
_KERAS_FILES = "keras_onnx|keras_openvino|keras_litert|converter"
KNOWN: list[tuple[str, str, str]] = [
    (
        "jit",
        "sampling_ratio|NonMax|must be a compile-time constant|dynamic",
        "XLA needs to know how many samples there are: with `sampling_ratio=0` the boxes say so.",
    ),
    (
        "tensorflowjs",
        "Erfc",
        "TensorFlow.js has no `Erfc`, which an exact GELU is made of: take `silu`, or "
        "`keras.activations.gelu(x, approximate=True)`.",
    ),
    (
        "tensorflowjs",
        "vals.subarray is not a function",
        "TensorFlow.js keeps an empty tensor as a plain array, which its own slice refuses.",
    ),
    (
        "keras_onnx",
        "Erfc",
        "tf2onnx writes an exact GELU as `Erfc`, which ONNX does not have: use `tfd.export_onnx`.",
    ),
    (
        "keras_onnx",
        "Reshape",
        "In ONNX a 0 in a shape means to copy a size, unless `allowzero` is set, and tf2onnx does "
        "not set it: use `tfd.export_onnx`.",
    ),
    (
        "openvino",
        "BatchToSpace",
        "OpenVINO's own convolution, dilated, refuses an empty batch.",
    ),
    (
        "openvino",
        "minusOneCount",
        "OpenVINO makes a reshape of a transposition where a map has a single point, and refuses "
        "it for no images and no queries.",
    ),
    (
        "openvino",
        "AvgPool",
        "OpenVINO's own pooling refuses an empty batch.",
    ),
    (
        "openvino_onnx",
        "DeformConv|Conv-20",  # an ordinary one behind it is named first
        "OpenVINO reads no `DeformConv` from ONNX files: give it the SavedModel.",
    ),
    (
        "openvino_onnx",
        "Loop",
        "OpenVINO cannot run the loop that ONNX files hold with `sampling_ratio=0`: give it the "
        "SavedModel.",
    ),
    (
        "float16",
        "other values of 'spatial_transformer'",
        "In float16 the weights of a localisation network move places by parts of a pixel, more in "
        "large images: `tfd.export_litert` says so, and writes the file with `check=False`.",
    ),
    (
        "float16",
        "other values of 'multi_scale_deformable_attention'",
        'With `method="discrete"`, weights in float16 move some places to the next pixel: '
        "`tfd.export_litert` says so, and writes the file with `check=False`.",
    ),
    (
        "dynamic",
        "batch_size != 0",
        "LiteRT's own convolution with weights in 8 bits refuses an empty batch.",
    ),
    (
        _ALL,
        "ended by SIG",
        "The engine ends the process.",
    ),
]
