"""Standard ONNX operators as calls in a TensorFlow graph, which `export_onnx` makes nodes of.

While a model is traced for an ONNX file, the operators that ONNX has are not written out in
TensorFlow ops but called by name, between the transpositions to channels first that ONNX wants.
TensorFlow cannot run such a call: it is a Python function that nobody registered.
"""

import contextlib
import json
import threading

import tensorflow as tf

CALL = "PyFuncStateless"  # the TensorFlow op of a call
_PREFIX = "onnx:"  # of its token; the rest is JSON
_INTERPOLATIONS = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}
_FARTHEST = 1e6  # normalised; onnxruntime takes positions too large for an integer for -1

_this_thread = threading.local()


@contextlib.contextmanager
def traced():
    """Returns a context manager, entered while a graph is traced, whose operators are calls."""
    _this_thread.graph = tf.compat.v1.get_default_graph()
    try:
        yield
    finally:
        _this_thread.graph = None


def wanted():
    """Returns whether what is traced now is to call ONNX operators.

    Not in a tf.function inside the model: TensorFlow keeps what it traces of that, to run it later.
    """
    graph = getattr(_this_thread, "graph", None)
    return graph is not None and graph is tf.compat.v1.get_default_graph()


def deform_conv(inputs, kernel, offset, mask, geometry, deformable_groups):
    """Returns `ops.deformable_conv` in two dimensions; takes its arguments unchecked."""
    dtype, wide = inputs.dtype, _wide(inputs, offset)
    inputs, kernel, offset = (tf.cast(each, wide) for each in (inputs, kernel, offset))
    pads = [*geometry.before, *geometry.after]
    if any(tf.is_tensor(pad) for pad in pads):  # "same" of a free size; outside is zero anyway
        space = zip(geometry.before, geometry.after, strict=True)
        inputs = tf.pad(inputs, [[0, 0], *space, [0, 0]])
        pads = [0] * len(pads)
    operands = [_first(inputs), tf.transpose(kernel, [3, 2, 0, 1]), _first(offset)]
    if mask is not None:
        operands += [tf.zeros([geometry.filters], wide), _first(tf.cast(mask, wide))]
    out = _call(
        "DeformConv",
        operands,
        [inputs.shape[0], geometry.filters, *offset.shape[1:-1]],
        dilations=geometry.dilation,
        group=geometry.groups,
        kernel_shape=geometry.kernel_size,
        offset_group=deformable_groups,
        pads=pads,
        strides=geometry.strides,
    )
    return tf.cast(_last(out), dtype)


def grid_sample(inputs, grid, interpolation, padding_mode, align_corners):
    """Returns `ops.grid_sample`; takes its arguments unchecked."""
    wide = _wide(inputs, grid)
    finite = tf.reduce_all(tf.math.is_finite(grid), axis=-1, keepdims=True)
    grid = tf.clip_by_value(tf.cast(grid, wide), -_FARTHEST, _FARTHEST)
    out = _call(
        "GridSample",
        [_first(tf.cast(inputs, wide)), tf.where(finite, grid, 0)],
        [inputs.shape[0], inputs.shape[-1], *grid.shape[1:-1]],
        mode=_INTERPOLATIONS[interpolation],
        padding_mode=padding_mode,
        align_corners=int(align_corners),
    )
    return tf.cast(tf.where(finite, _last(out), 0), inputs.dtype)


def roi_align(features, boxes, box_indices, output_size, spatial_scale, sampling_ratio, aligned):
    """Returns `ops.roi_align`; takes its arguments unchecked."""
    wide = _wide(features, boxes)
    sampled = tf.reduce_all(tf.math.is_finite(boxes), axis=-1, keepdims=True)  # [rois, 1]
    if aligned and sampling_ratio == 0:  # as many samples as pixels: none in an inverted box
        sizes = boxes[:, 2:] - boxes[:, :2]
        sampled &= tf.reduce_all(sizes >= 0, axis=-1, keepdims=True)
    boxes = tf.cast(tf.where(sampled, boxes, 0), wide)
    out = _call(
        "RoiAlign",
        [_first(tf.cast(features, wide)), boxes, tf.cast(box_indices, tf.int64)],
        [boxes.shape[0], features.shape[-1], *output_size],
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=output_size[0],
        output_width=output_size[1],
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )
    return tf.cast(tf.where(sampled[:, :, None, None], _last(out), 0), features.dtype)


def operator_of(token):
    """Returns operator, shape of its result and attributes of a call; None for a foreign one."""
    token = token.decode()
    return json.loads(token.removeprefix(_PREFIX)) if token.startswith(_PREFIX) else None


def _call(operator, operands, shape, **attributes):
    token = _PREFIX + json.dumps([operator, list(shape), attributes])
    (out,) = tf.raw_ops.PyFuncStateless(input=operands, token=token, Tout=[operands[0].dtype])
    return tf.ensure_shape(out, shape)


def _wide(*tensors):
    return tf.float64 if tf.float64 in [each.dtype for each in tensors] else tf.float32


def _first(tensor):
    """Returns the tensor channels first."""
    rank = tensor.shape.rank
    return tf.transpose(tensor, [0, rank - 1, *range(1, rank - 1)])


def _last(tensor):
    """Returns the tensor channels last."""
    return tf.transpose(tensor, [0, *range(2, tensor.shape.rank), 1])
