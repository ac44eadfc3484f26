"""Bad input to the operators: errors name the argument, what is expected and what was received."""

import re

import numpy as np
import pytest
import tensorflow as tf

from conftest import MODES
from tf_deform import ops

pytestmark = pytest.mark.usefixtures("implementation")


def z(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def integers(*shape):
    return z(*shape, dtype=np.int32)


def weighted_sample(values=None, points=None, weights=None, image_index=None):
    values = z(2, 5, 7, 3) if values is None else values
    points = z(2, 4, 1, 6, 2) if points is None else points
    return ops.weighted_sample(values, points, weights, image_index)


def sample(values=None, points=None, **options):
    values = z(2, 5, 7, 3) if values is None else values
    return ops.sample(values, z(2, 4, 2) if points is None else points, **options)


def grid_sample(inputs=None, grid=None, **options):
    inputs = z(2, 5, 7, 3) if inputs is None else inputs
    return ops.grid_sample(inputs, z(2, 4, 3, 2) if grid is None else grid, **options)


def deformable_conv(inputs=None, kernel=None, offset=None, mask=None, **options):
    inputs = z(2, 5, 7, 4) if inputs is None else inputs
    kernel = z(3, 2, 4, 6) if kernel is None else kernel
    offset = z(2, 3, 6, 24) if offset is None else offset
    return ops.deformable_conv(inputs, kernel, offset, mask, **options)


def roi_align(features=None, boxes=None, box_indices=(0, 1, 0), output_size=2, **options):
    features = z(2, 5, 7, 3) if features is None else features
    boxes = z(3, 4) if boxes is None else boxes
    return ops.roi_align(features, boxes, box_indices, output_size, **options)


def multi_scale(features=None, scales=(0.5, 0.25)):
    features = [z(2, 8, 9, 3), z(2, 4, 5, 3)] if features is None else features
    return ops.multi_scale_roi_align(features, z(3, 4), [0, 1, 0], 2, scales=scales)


def ps_roi_align(channels=8, output_size=2):
    return ops.ps_roi_align(z(2, 5, 7, channels), z(3, 4), [0, 1, 0], output_size)


def deformable_roi_pool(offset=None, mask=None):
    return ops.deformable_roi_pool(z(2, 5, 7, 4), z(3, 4), [0, 1, 0], offset, (2, 3), mask=mask)


def deformable_ps_roi_pool(offset=None, channels=24, **options):
    options = {"output_channels": 6, "group_size": 2, "part_size": 3, **options}
    features = z(2, 5, 7, channels)
    return ops.deformable_ps_roi_pool(features, z(3, 4), [0, 1, 0], offset, 2, **options)


def attention(values=None, locations=None, weights=None):
    values = [z(2, 5, 7, 6), z(2, 3, 4, 6)] if values is None else values
    locations = z(2, 4, 3, 2, 5, 2) if locations is None else locations
    weights = z(2, 4, 3, 2, 5) if weights is None else weights
    return ops.multi_scale_deformable_attention(values, locations, weights)


def dcnv3(inputs=None, offset=None, mask=None, kernel_size=(3, 1), **options):
    inputs = z(2, 5, 7, 4) if inputs is None else inputs
    offset = z(2, 3, 7, 12) if offset is None else offset
    return ops.dcnv3(
        inputs, offset, z(2, 3, 7, 6) if mask is None else mask, kernel_size, **options
    )


def dcnv4(inputs=None, offset_mask=None, kernel_size=(3, 1), groups=2, **options):
    inputs = z(2, 5, 7, 4) if inputs is None else inputs
    offset_mask = z(2, 3, 7, 24) if offset_mask is None else offset_mask
    return ops.dcnv4(inputs, offset_mask, kernel_size, groups=groups, **options)


# The call, its bad argument, and that argument's name if it is another than its keyword.
WRONG_SHAPES = [
    (weighted_sample, {"values": z(2, 5, 3)}),
    (weighted_sample, {"points": np.float32(0)}),
    (weighted_sample, {"points": z(2, 4, 6, 2)}),
    (weighted_sample, {"points": z(2, 4, 1, 6, 4)}),
    (weighted_sample, {"points": z(3, 4, 1, 6, 2)}),
    (weighted_sample, {"points": z(2, 4, 1, 0, 2)}),
    (weighted_sample, {"points": z(2, 4, 2, 6, 2)}, "values"),  # 3 channels in 2 groups
    (weighted_sample, {"points": z(2, 4, 0, 6, 2)}, "values"),
    (weighted_sample, {"weights": z(2, 4, 1, 5)}),
    (weighted_sample, {"weights": z(2, 4, 6)}),
    (weighted_sample, {"image_index": [0, 1, 0]}),
    (sample, {"values": z(2, 5, 3)}),
    (sample, {"points": z(3, 4, 2)}, "values"),
    (sample, {"points": np.float32(0)}),
    (sample, {"points": z(2)}),
    (sample, {"points": z(2, 4, 4)}),
    (grid_sample, {"inputs": z(3, 5, 7, 3)}),
    (grid_sample, {"inputs": z(2, 5, 3)}),
    (grid_sample, {"grid": z(2, 4, 2)}),
    (grid_sample, {"grid": z(2, 4, 3, 3)}),
    (grid_sample, {"grid": np.float32(0)}),
    (deformable_conv, {"inputs": z(7, 4)}),
    (deformable_conv, {"kernel": z(3, 4, 6)}),
    (deformable_conv, {"kernel": z(3, 2, 3, 6)}),
    (deformable_conv, {"kernel": z(3, 2, 0, 6)}),
    (deformable_conv, {"kernel": z(0, 2, 4, 6)}),
    (deformable_conv, {"kernel": z(3, 2, 2, 5)}),
    (deformable_conv, {"offset": z(2, 3, 6, 23)}),
    (deformable_conv, {"offset": z(2, 3, 6, 0)}),
    (deformable_conv, {"offset": z(2, 3, 6, 36)}),  # 3 deformable groups of 4 channels
    (deformable_conv, {"offset": z(2, 5, 7, 24)}),
    (deformable_conv, {"offset": z(1, 3, 6, 24)}),
    (deformable_conv, {"offset": z(2, 3, 24)}),
    (deformable_conv, {"mask": z(2, 3, 6, 24)}),
    (deformable_conv, {"mask": z(2, 5, 7, 12)}),
    (roi_align, {"features": z(5, 7, 3)}),
    (roi_align, {"boxes": z(3, 5)}),
    (roi_align, {"boxes": z(1, 3, 4)}),
    (roi_align, {"box_indices": [0, 1]}),
    (multi_scale, {"features": [z(2, 8, 9, 3)]}, "scales"),
    (multi_scale, {"features": [], "scales": ()}, "scales"),
    (multi_scale, {"features": [z(2, 8, 9, 3), z(2, 4, 5, 4)]}, r"features\[1\]"),
    (multi_scale, {"features": [z(2, 8, 9, 3), z(1, 4, 5, 3)]}, r"features\[1\]"),
    (multi_scale, {"features": [z(8, 9, 3), z(2, 4, 5, 3)]}, r"features\[0\]"),
    (attention, {"values": []}),
    (attention, {"values": z(2, 5, 7, 6)}),
    (attention, {"values": [z(2, 5, 7), z(2, 3, 4)]}, r"values\[0\]"),
    (attention, {"values": [z(2, 5, 7, 6), z(2, 3, 4, 3)]}, r"values\[1\]"),
    (attention, {"values": [z(2, 5, 7, 6), z(3, 3, 4, 6)]}, r"values\[1\]"),
    (attention, {"values": [z(2, 5, 7, 4), z(2, 3, 4, 4)]}),  # in 3 heads
    (attention, {"values": [z(2, 5, 7, 6)]}, "locations"),
    (attention, {"locations": z(2, 4, 3, 2, 5, 4)}),
    (attention, {"locations": z(1, 4, 3, 2, 5, 2)}),
    (attention, {"locations": z(2, 4, 3, 2, 0, 2)}),
    (attention, {"locations": z(2, 4, 0, 2, 5, 2)}),
    (attention, {"locations": z(2, 4, 3, 5, 2)}),
    (attention, {"weights": z(2, 4, 3, 2, 4)}),
    (attention, {"weights": z(2, 4, 3, 10)}),
    (dcnv3, {"inputs": z(5, 7, 4)}),
    (dcnv3, {"offset": z(2, 3, 7, 6)}),
    (dcnv3, {"offset": z(2, 5, 7, 12)}),
    (dcnv3, {"mask": z(2, 3, 7, 5)}),
    (dcnv3, {"mask": z(2, 3, 7, 0)}),
    (dcnv3, {"mask": z(2, 3, 7, 9)}),  # 3 groups of 4 channels
    (dcnv3, {"mask": z(1, 3, 7, 6)}),
    (dcnv4, {"offset_mask": z(2, 3, 7, 18)}),
    (dcnv4, {"offset_mask": z(2, 5, 7, 24)}),
    (ps_roi_align, {"channels": 7}, "features"),
    (deformable_roi_pool, {"offset": z(3, 2, 3, 3)}),
    (deformable_roi_pool, {"offset": z(3, 3, 2, 2)}),
    (deformable_roi_pool, {"offset": z(3, 12)}),
    (deformable_roi_pool, {"mask": z(3, 3, 2)}),
    (deformable_ps_roi_pool, {"channels": 25}, "features"),
    (deformable_ps_roi_pool, {"offset": z(3, 3, 3, 5)}),
    (deformable_ps_roi_pool, {"offset": z(3, 3, 3, 8)}),  # 4 classes of 6 channels
    (deformable_ps_roi_pool, {"offset": z(3, 2, 2, 4)}),
    (ops.affine_grid, {"theta": z(2, 3, 3), "output_size": (4, 5)}),
    (ops.affine_grid, {"theta": z(2, 6), "output_size": (4, 5)}),
    (ops.affine_grid, {"theta": z(2, 2, 3), "output_size": (4, 5, 6)}),
    (ops.projective_grid, {"theta": z(2, 2, 3), "output_size": (4, 5)}),
    (ops.thin_plate_spline_grid, {"displacements": z(2, 9, 2), "output_size": (4, 5)}),
]
WRONG_VALUES = [
    (sample, {"interpolation": "cubic"}),
    (sample, {"interpolation": None}),
    (sample, {"padding_mode": "wrap"}),
    (grid_sample, {"interpolation": "linear"}),
    (grid_sample, {"padding_mode": "border "}),
    (deformable_conv, {"strides": 0}),
    (deformable_conv, {"strides": (1, 1, 1)}),
    (deformable_conv, {"strides": (1.5, 1)}),
    (deformable_conv, {"strides": "11"}),
    (deformable_conv, {"dilation_rate": (1, -1)}),
    (deformable_conv, {"padding": "causal"}),
    (deformable_conv, {"padding": "full"}),
    (deformable_conv, {"padding": -1}),
    (deformable_conv, {"padding": [(1, 1)]}),
    (deformable_conv, {"padding": (1, 1)}),
    (deformable_conv, {"padding": [(0.5, 0), (0, 0)]}),
    (deformable_conv, {"padding": None}),
    (roi_align, {"output_size": -2}),
    (roi_align, {"output_size": (2, 2, 2)}),
    (roi_align, {"sampling_ratio": -1}),
    (roi_align, {"sampling_ratio": 1.5}),
    (roi_align, {"sampling_ratio": (2,)}),
    (roi_align, {"sampling_ratio": None}),
    (multi_scale, {"scales": (-0.5, 0.25)}),
    (dcnv3, {"kernel_size": 0}),
    (dcnv3, {"kernel_size": (3, 1, 1)}),
    (dcnv3, {"kernel_size": (2, 3), "remove_center": True}),
    (dcnv3, {"kernel_size": 1, "remove_center": True}),
    (dcnv3, {"strides": 0}),
    (dcnv3, {"dilation_rate": 1.5}),
    (dcnv3, {"padding": "causal"}),
    (dcnv4, {"groups": 0}),
    (dcnv4, {"groups": 3}),
    (ps_roi_align, {"output_size": 0}),
    (deformable_ps_roi_pool, {"group_size": 0}),
    (deformable_ps_roi_pool, {"part_size": -1}),
    (deformable_ps_roi_pool, {"sample_per_part": 2.0}),
    (deformable_ps_roi_pool, {"output_channels": None}),
    (ops.affine_grid, {"theta": z(2, 2, 3), "output_size": 4}, "output_size"),
    (ops.affine_grid, {"theta": z(2, 2, 3), "output_size": (4, -5)}, "output_size"),
    (ops.affine_grid, {"theta": z(2, 2, 3), "output_size": (4, 2.5)}, "output_size"),
    (ops.projective_grid, {"theta": z(2, 3, 3), "output_size": (4, 5, 6)}, "output_size"),
    (
        ops.thin_plate_spline_grid,
        {"displacements": z(2, 16, 2), "output_size": (4, 5, 6)},
        "output_size",
    ),
    (
        ops.thin_plate_spline_grid,
        {"displacements": z(2, 4, 2), "output_size": (4, 5), "control_points": (1, 4)},
        "control_points",
    ),
]
WRONG_DTYPES = [
    (weighted_sample, {"values": integers(2, 5, 7, 3)}),
    (weighted_sample, {"points": integers(2, 4, 1, 6, 2)}),
    (weighted_sample, {"weights": integers(2, 4, 1, 6)}),
    (weighted_sample, {"image_index": z(2)}),
    (sample, {"values": z(2, 5, 7, 3, dtype=np.uint8)}),
    (sample, {"values": z(2, 5, 7, 3, dtype=bool)}),
    (sample, {"points": integers(2, 4, 2)}),
    (grid_sample, {"inputs": integers(2, 5, 7, 3)}),
    (grid_sample, {"grid": integers(2, 4, 3, 2)}),
    (deformable_conv, {"inputs": integers(2, 5, 7, 4)}),
    (deformable_conv, {"kernel": integers(3, 2, 4, 6)}),
    (deformable_conv, {"offset": integers(2, 3, 6, 24)}),
    (deformable_conv, {"mask": integers(2, 3, 6, 12)}),
    (roi_align, {"features": integers(2, 5, 7, 3)}),
    (roi_align, {"boxes": integers(3, 4)}),
    (roi_align, {"box_indices": (0.0, 1.0, 0.0)}),
    (multi_scale, {"features": [z(2, 8, 9, 3), integers(2, 4, 5, 3)]}, r"features\[1\]"),
    (multi_scale, {"features": [z(2, 8, 9, 3), z(2, 4, 5, 3, dtype=np.float64)]}, r"features\[1\]"),
    (attention, {"values": [integers(2, 5, 7, 6), z(2, 3, 4, 6)]}, r"values\[0\]"),
    (attention, {"values": [z(2, 5, 7, 6), z(2, 3, 4, 6, dtype=np.float16)]}, r"values\[1\]"),
    (attention, {"locations": integers(2, 4, 3, 2, 5, 2)}),
    (attention, {"weights": integers(2, 4, 3, 2, 5)}),
    (dcnv3, {"inputs": integers(2, 5, 7, 4)}),
    (dcnv3, {"offset": integers(2, 3, 7, 12)}),
    (dcnv3, {"mask": integers(2, 3, 7, 6)}),
    (dcnv4, {"offset_mask": integers(2, 3, 7, 24)}),
    (deformable_roi_pool, {"offset": integers(3, 2, 3, 2)}),
    (deformable_roi_pool, {"mask": integers(3, 2, 3)}),
    (deformable_ps_roi_pool, {"offset": integers(3, 3, 3, 4)}),
    (ops.affine_grid, {"theta": integers(2, 2, 3), "output_size": (4, 5)}),
]


def named(call):
    return call[0].__name__ + "-" + next(iter(call[1]))


def check_message(call, error):
    function, arguments, *name = call
    name = name[0] if name else next(iter(arguments))
    traced = tf.function(lambda: function(**arguments), autograph=False)
    with pytest.raises(error, match=rf"(?s)^{name} must .+, received .+"):
        traced.get_concrete_function()


@pytest.mark.parametrize("call", WRONG_SHAPES + WRONG_VALUES, ids=named)
def test_a_bad_shape_or_value_is_named_with_what_is_expected_and_received(call):
    check_message(call, ValueError)


@pytest.mark.parametrize("call", WRONG_DTYPES, ids=named)
def test_a_bad_dtype_is_named_with_what_is_expected_and_received(call):
    check_message(call, TypeError)


@pytest.mark.parametrize(
    "function",
    [
        weighted_sample,
        sample,
        grid_sample,
        deformable_conv,
        roi_align,
        multi_scale,
        attention,
        dcnv3,
        dcnv4,
        ps_roi_align,
        deformable_roi_pool,
        deformable_ps_roi_pool,
    ],
)
def test_the_other_arguments_of_these_calls_are_good(function):
    function()


def test_an_unknown_string_lists_the_known_ones():
    with pytest.raises(ValueError, match="'bilinear', 'nearest', 'bicubic', received 'cubic'"):
        sample(interpolation="cubic")


# A call of tensors that fit, one that does not in its place, and the argument that is named.
AT_RUN_TIME = [
    (sample, {"values": z(2, 5, 7, 3), "points": z(2, 4, 2)}, {"points": z(3, 4, 2)}, "values"),
    (grid_sample, {"inputs": z(2, 5, 7, 3), "grid": z(2, 4, 3, 2)}, {"inputs": z(1, 5, 7, 3)}),
    (
        weighted_sample,
        {"values": z(2, 5, 7, 3), "points": z(2, 4, 1, 6, 2)},
        {"points": z(3, 4, 1, 6, 2)},
    ),
    (
        weighted_sample,
        {"points": z(2, 4, 1, 6, 2), "weights": z(2, 4, 1, 6)},
        {"weights": z(2, 5, 1, 6)},
    ),
    (
        deformable_conv,
        {"inputs": z(2, 5, 7, 4), "offset": z(2, 3, 6, 24)},
        {"offset": z(2, 5, 7, 24)},
    ),
    (
        deformable_conv,
        {"offset": z(2, 3, 6, 24), "mask": z(2, 3, 6, 12)},
        {"mask": z(2, 3, 5, 12)},
    ),
    (roi_align, {"boxes": z(3, 4), "box_indices": integers(3)}, {"box_indices": integers(2)}),
    (dcnv3, {"offset": z(2, 3, 7, 12), "mask": z(2, 3, 7, 6)}, {"mask": z(2, 5, 7, 6)}),
    (dcnv4, {"offset_mask": z(2, 3, 7, 24)}, {"offset_mask": z(2, 3, 5, 24)}),
    (deformable_roi_pool, {"offset": z(3, 2, 3, 2)}, {"offset": z(2, 2, 3, 2)}),
    (deformable_roi_pool, {"mask": z(3, 2, 3)}, {"mask": z(2, 2, 3)}),
    (deformable_ps_roi_pool, {"offset": z(3, 3, 3, 4)}, {"offset": z(1, 3, 3, 4)}),
]


@pytest.mark.parametrize("call", AT_RUN_TIME, ids=named)
def test_a_size_known_only_at_run_time_is_named_in_the_same_words(call):
    function, good, bad, *name = call
    with pytest.raises(ValueError, match=rf"^{name[0] if name else next(iter(bad))} ") as at_trace:
        function(**{**good, **bad})
    words = re.split(" = |, received", str(at_trace.value))[0]

    def unknown_where_it_may_be(array):
        free = 3 if array.ndim > 3 else 1
        shape = [None] * min(free, array.ndim - 1 or 1) + list(array.shape[free:])
        return tf.TensorSpec(shape, array.dtype)

    names = list(good)
    traced = tf.function(
        lambda *tensors: function(**dict(zip(names, tensors, strict=True))),
        input_signature=[unknown_where_it_may_be(array) for array in good.values()],
    )
    traced(*good.values())
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(words)):
        traced(*{**good, **bad}.values())


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("index", [(0, 2, 1), (-1, 0, 1)])
@pytest.mark.parametrize(
    ("function", "name"), [(roi_align, "box_indices"), (weighted_sample, "image_index")]
)
def test_an_image_outside_the_batch_is_an_error(function, name, index, mode):
    points = {} if function is roi_align else {"points": z(3, 4, 1, 6, 2)}
    call = MODES[mode](lambda index: function(**{name: index}, **points))
    call(tf.constant([1, 0, 1]))
    message = rf"(?s){name} must be at least 0 and below the batch size.*{index[0]}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(tf.constant(index))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (sample, "values"),
        (sample, "points"),
        (weighted_sample, "points"),
        (grid_sample, "inputs"),
        (grid_sample, "grid"),
        (deformable_conv, "inputs"),
        (deformable_conv, "kernel"),
        (deformable_conv, "offset"),
        (deformable_conv, "mask"),
        (roi_align, "features"),
        (roi_align, "boxes"),
        (attention, "locations"),
        (attention, "weights"),
        (dcnv3, "inputs"),
        (dcnv3, "offset"),
        (dcnv3, "mask"),
        (dcnv4, "offset_mask"),
    ],
)
def test_a_tensor_of_unknown_rank_is_named(function, name):
    unknown = tf.function(lambda tensor: function(**{name: tensor}), autograph=False)
    with pytest.raises(ValueError, match=rf"^{name} must "):
        unknown.get_concrete_function(tf.TensorSpec(None, tf.float32))


def test_attention_weights_of_other_queries_are_named_at_run_time():
    signature = [
        tf.TensorSpec([None, None, *shape], tf.float32) for shape in ((3, 2, 5, 2), (3, 2, 5))
    ]
    traced = tf.function(
        lambda locations, weights: attention(None, locations, weights), input_signature=signature
    )
    traced(z(2, 6, 3, 2, 5, 2), z(2, 6, 3, 2, 5))
    words = "weights must have shape [batch, queries, heads, levels, points]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(words)):
        traced(z(2, 6, 3, 2, 5, 2), z(2, 5, 3, 2, 5))


def test_a_number_of_points_unknown_while_tracing_is_named():
    unknown = tf.function(lambda points: weighted_sample(points=points), autograph=False)
    with pytest.raises(ValueError, match=r"^points must "):
        unknown.get_concrete_function(tf.TensorSpec([2, 4, 1, None, 2], tf.float32))
