"""Bad input to the operators: errors name the argument, what is expected and what was received."""

import inspect
import math
import re
import warnings

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


def multi_scale(features=None, scales=(0.5, 0.25), boxes=None, **options):
    features = [z(2, 8, 9, 3), z(2, 4, 5, 3)] if features is None else features
    boxes = z(3, 4) if boxes is None else boxes
    return ops.multi_scale_roi_align(features, boxes, [0, 1, 0], 2, scales=scales, **options)


def ps_roi_align(channels=8, output_size=2, boxes=None, **options):
    boxes = z(3, 4) if boxes is None else boxes
    return ops.ps_roi_align(z(2, 5, 7, channels), boxes, [0, 1, 0], output_size, **options)


def deformable_roi_pool(offset=None, mask=None, boxes=None, **options):
    boxes = z(3, 4) if boxes is None else boxes
    options = {"mask": mask, **options}
    return ops.deformable_roi_pool(z(2, 5, 7, 4), boxes, [0, 1, 0], offset, (2, 3), **options)


def deformable_ps_roi_pool(offset=None, channels=24, boxes=None, **options):
    options = {"output_channels": 6, "group_size": 2, "part_size": 3, **options}
    features, boxes = z(2, 5, 7, channels), z(3, 4) if boxes is None else boxes
    return ops.deformable_ps_roi_pool(features, boxes, [0, 1, 0], offset, 2, **options)


def attention(values=None, locations=None, weights=None, **options):
    values = [z(2, 5, 7, 6), z(2, 3, 4, 6)] if values is None else values
    locations = z(2, 4, 3, 2, 5, 2) if locations is None else locations
    weights = z(2, 4, 3, 2, 5) if weights is None else weights
    return ops.multi_scale_deformable_attention(values, locations, weights, **options)


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
    (deformable_conv, {"inputs": z(2, 2, 7, 4), "offset": z(2, 0, 6, 24)}),  # kernel of 3 x 2
    (deformable_conv, {"inputs": z(2, 0, 1, 4), "offset": z(2, 0, 0, 24)}),
    (deformable_conv, {"inputs": z(2, 4, 7, 4), "offset": z(2, 0, 5, 24), "dilation_rate": 2}),
    (deformable_conv, {"inputs": z(2, 1, 1, 4), "padding": [(0, 1), (0, 1)]}),
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
    (attention, {"num_points": 4}),
    (attention, {"num_points": [3, 0]}),
    (attention, {"num_points": [3, 2.0]}),
    (attention, {"num_points": [3, 2, 1]}),
    (attention, {"num_points": [5, 5]}, "locations"),
    (attention, {"num_points": [3, 2], "locations": z(2, 4, 3, 4, 2)}, "locations"),
    (
        attention,
        {"num_points": [3, 2], "locations": z(2, 4, 3, 5, 2), "weights": z(2, 4, 3, 4)},
        "weights",
    ),
    (attention, {"method": "nearest"}),
    (attention, {"method": None}),
    (dcnv3, {"inputs": z(5, 7, 4)}),
    (dcnv3, {"offset": z(2, 3, 7, 6)}),
    (dcnv3, {"offset": z(2, 5, 7, 12)}),
    (dcnv3, {"mask": z(2, 3, 7, 5)}),
    (dcnv3, {"mask": z(2, 3, 7, 0)}),
    (dcnv3, {"mask": z(2, 3, 7, 9)}),  # 3 groups of 4 channels
    (dcnv3, {"mask": z(1, 3, 7, 6)}),
    (dcnv4, {"offset_mask": z(2, 3, 7, 18)}),
    (dcnv4, {"offset_mask": z(2, 5, 7, 24)}),
    (dcnv3, {"inputs": z(2, 2, 7, 4), "offset": z(2, 0, 7, 12), "mask": z(2, 0, 7, 6)}),
    (dcnv4, {"inputs": z(2, 0, 0, 4), "offset_mask": z(2, 0, 0, 24)}),
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
    (ops.affine_grid, {"theta": z(2, 12), "output_size": (4, 5)}),
    (ops.affine_grid, {"theta": z(2, 6), "output_size": (4, 5, 6)}),
    (ops.affine_grid, {"theta": z(6), "output_size": (4, 5)}),
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
    *(
        (multi_scale, {"scales": scales})
        for scales in (
            (-0.5, 0.25),
            (4, 8),
            (1 / 8, 1 / 4),
            (1 / 4, 1 / 4),
            (1 / 3, 1 / 7),
            (math.inf, math.inf),
            ("1/4", "1/8"),
            (True, 0.5),
            0.5,
            None,
            "0.5",
            (1, 0.499),
            (0, 0),
        )
    ),
    (multi_scale, {"features": [z(2, 8, 9, 3)], "scales": (math.nan,)}, "scales"),
    (multi_scale, {"features": z(2, 8, 9, 3)}),
    *(
        (call, {"spatial_scale": scale})
        for call in (roi_align, ps_roi_align, deformable_roi_pool, deformable_ps_roi_pool)
        for scale in (0, 0.0, -0.5, math.inf, math.nan, "0.5", True, None, (0.5, 0.5), np.zeros(4))
    ),
    (multi_scale, {"canonical_size": 0}),
    (multi_scale, {"canonical_level": math.inf}),
    (dcnv3, {"offset_scale": 0}),
    (dcnv3, {"offset_scale": -1.0}),
    (sample, {"interpolation": ["bilinear"]}),
    (sample, {"interpolation": np.array(["bilinear", "nearest"])}),
    (ops.integrate_velocity, {"velocity": z(1, 4, 5, 2), "steps": 1.0}, "steps"),
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
    (roi_align, {"boxes": "boxes"}),
    (roi_align, {"features": {"p2": z(2, 5, 7, 3)}}),
    (deformable_conv, {"kernel": "glorot_uniform"}),
    (dcnv3, {"mask": ["mask"]}),
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


# The calls above, and what each operator is called.
POOLING = {
    roi_align: "roi_align",
    multi_scale: "multi_scale_roi_align",
    ps_roi_align: "ps_roi_align",
    deformable_roi_pool: "deformable_roi_pool",
    deformable_ps_roi_pool: "deformable_ps_roi_pool",
}
CALLS = {
    weighted_sample: "weighted_sample",
    sample: "sample",
    grid_sample: "grid_sample",
    deformable_conv: "deformable_conv",
    attention: "multi_scale_deformable_attention",
    dcnv3: "dcnv3",
    dcnv4: "dcnv4",
    **POOLING,
}


@pytest.mark.parametrize("function", CALLS)
def test_the_other_arguments_of_these_calls_are_good(function):
    function()


def options_of(function):
    """Returns the operator's options, which are keyword-only, with their defaults."""
    parameters = inspect.signature(getattr(ops, CALLS[function])).parameters.values()
    known = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    known.pop("mask", None)
    return known


@pytest.mark.parametrize("wrong", ["nonsense", "0.1", math.nan, None, {}, (), True], ids=repr)
@pytest.mark.parametrize("function", CALLS)
def test_no_option_takes_what_it_is_not(function, wrong):
    for name, default in options_of(function).items():
        if (default is not None or wrong is not None) and (
            not isinstance(default, bool) or wrong is not True
        ):
            check_message((function, {name: wrong}), ValueError)


@pytest.mark.parametrize("function", CALLS)
def test_scalars_of_numpy_are_taken_as_those_of_python(function):
    expected = function()
    for name, default in options_of(function).items():
        if isinstance(default, bool | float):
            for scalar in (np.asarray(default), np.asarray(default)[()], np.float32):
                value = scalar if scalar is not np.float32 else np.float32(default)
                if value is not scalar and isinstance(default, bool):
                    continue
                np.testing.assert_array_equal(function(**{name: value}), expected)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("option", ["spatial_scale", "gamma"])
def test_a_number_may_be_a_tensor_of_a_graph(option, mode, rng):
    features, boxes = rng.normal(size=[2, 5, 7, 4]), np.array([[0.0, 1.0, 5.0, 4.0]] * 3)
    offset = rng.normal(size=[3, 2, 3, 2])

    def pool(number):
        options = {option: number}
        return ops.deformable_roi_pool(features, boxes, [0, 1, 0], offset, (2, 3), **options)

    np.testing.assert_allclose(MODES[mode](pool)(tf.constant(0.5, tf.float64)), pool(0.5))


def test_scales_may_be_off_by_rounding(rng):
    features = [rng.normal(size=[2, size, 5, 3]) for size in (8, 4, 2)]
    expected = multi_scale(features, (1 / 3, 1 / 6, 1 / 12))
    for scales in (np.float32([1 / 3, 1 / 6, 1 / 12]), [1 / 3, 0.16666667, 1 / 12]):
        np.testing.assert_allclose(multi_scale(features, scales), expected, 1e-5)


def test_an_unknown_string_lists_the_known_ones():
    with pytest.raises(ValueError, match="'bilinear', 'nearest', 'bicubic', received 'cubic'"):
        sample(interpolation="cubic")


REMEDIES = {
    r"^features must be floating-point, received uint8; cast it, or put keras\.layers\.Rescaling "
    r"before it$": (roi_align, {"features": z(2, 5, 7, 3, dtype=np.uint8)}),
    r"^boxes must be floating-point, received int32; cast it$": (
        roi_align,
        {"boxes": integers(3, 4)},
    ),
    r"^boxes must be a floating-point tensor, received a dict of 'boxes', 'labels'; pass "
    r"boxes\['boxes'\]$": (roi_align, {"boxes": {"boxes": z(3, 4), "labels": z(3)}}),
    r"^boxes must be a dense tensor, received a RaggedTensor; pad it, boxes by "
    r"tfd\.boxes\.pad\(boxes\)$": (
        roi_align,
        {"boxes": tf.ragged.constant([[1.0, 2.0, 3.0, 4.0], []])},
    ),
    r"^scales must be finite .*above 0, each half of the one before, as in \(1/4, 1/8\), "
    r"received \(4, 8\)$": (multi_scale, {"scales": (4, 8)}),
    r"^inputs must be at least \[3, 2\] pixels, .*, received \[2, 7\]; same padding takes any "
    "size$": (deformable_conv, {"inputs": z(2, 2, 7, 4)}),
}


@pytest.mark.parametrize("message", REMEDIES)
def test_a_message_is_one_line_that_names_a_remedy(message):
    function, arguments = REMEDIES[message]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        function(**arguments)
    assert "\n" not in str(raised.value)


def test_an_empty_batch_of_images_smaller_than_the_kernel_is_allowed():
    assert deformable_conv(z(0, 1, 1, 4), offset=z(0, 0, 0, 24)).shape == (0, 0, 0, 6)
    assert dcnv3(z(0, 1, 1, 4), z(0, 0, 1, 12), z(0, 0, 1, 6)).shape == (0, 0, 1, 4)
    assert dcnv4(z(0, 1, 1, 4), z(0, 0, 1, 24)).shape == (0, 0, 1, 4)


@pytest.mark.parametrize("padding", ["same", 1])
def test_images_smaller_than_the_kernel_are_padded(padding):
    out = deformable_conv(z(2, 1, 1, 4), z(3, 3, 4, 6), z(2, 1, 1, 36), padding=padding)
    assert out.shape == (2, 1, 1, 6)
    out = dcnv3(z(2, 1, 1, 4), z(2, 1, 1, 36), z(2, 1, 1, 18), 3, padding=padding)
    assert out.shape == (2, 1, 1, 4)


# Boxes outside of the features


BOX = np.array([[20.0, 30.0, 60.0, 50.0]] * 3, np.float32)  # the features are at most 8 x 9 pixels
NOWHERE = np.full([3, 4], np.nan, np.float32)
PARTLY = np.where(np.arange(3)[:, None] == 1, np.float32([6, 4, 60, 50]), BOX)


def check_warnings(count, call, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(**arguments)
    found = [each for each in caught if "spatial_scale" in str(each.message)]
    assert len(found) == count
    return found


@pytest.mark.parametrize("function", POOLING)
@pytest.mark.parametrize(
    "boxes",
    [BOX, -BOX[:, [2, 3, 0, 1]], BOX * [0, 1, 0, 1], np.where([[0], [1], [1]], NOWHERE, BOX)],
)
def test_boxes_that_all_lie_outside_are_warned_of_where_the_call_stands(function, boxes):
    (warning,) = check_warnings(1, function, boxes=boxes)
    assert warning.category is UserWarning
    assert warning.filename == __file__
    message = str(warning.message)
    assert re.match(r"boxes all lie outside .*spatial_scale may be missing", message)
    assert "\n" not in message


@pytest.mark.parametrize("function", POOLING)
@pytest.mark.parametrize("boxes", [0 * BOX, PARTLY, NOWHERE, BOX * [0, 0, 1, 1], BOX * np.inf])
def test_boxes_of_which_some_or_none_are_known_to_lie_inside_give_no_warning(function, boxes):
    check_warnings(0, function, boxes=boxes)


def test_no_warning_in_graphs_for_no_boxes_and_with_the_scale_given():
    graph = tf.function(lambda boxes: roi_align(boxes=boxes))
    check_warnings(0, lambda: graph(BOX))
    check_warnings(0, roi_align, boxes=z(0, 4), box_indices=integers(0))
    check_warnings(0, roi_align, boxes=BOX, spatial_scale=0.1)
    check_warnings(0, multi_scale, boxes=BOX, scales=(0.1, 0.05))
    check_warnings(1, roi_align, boxes=BOX / 100, spatial_scale=100)


def words_of(text):
    """Returns the words and numbers of a message: TensorFlow puts its parts into brackets."""
    return re.sub(r"[\[\],;]", " ", text).split()


def message_of(error, mode):
    """Returns the one line that a check's error shows, in graphs what TensorFlow makes of it."""
    if mode == "eager":
        return str(error)
    (line,) = re.findall(r"assertion failed: (\[.*\])$", str(error), flags=re.M)
    return line


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
    (
        deformable_conv,
        {"inputs": z(2, 5, 7, 4), "offset": z(2, 3, 6, 24)},
        {"inputs": z(2, 2, 7, 4), "offset": z(2, 0, 6, 24)},
    ),
    (
        dcnv3,
        {"inputs": z(2, 5, 7, 4), "offset": z(2, 3, 7, 12), "mask": z(2, 3, 7, 6)},
        {"inputs": z(2, 1, 7, 4), "offset": z(2, 0, 7, 12), "mask": z(2, 0, 7, 6)},
    ),
    (
        dcnv4,
        {"inputs": z(2, 5, 7, 4), "offset_mask": z(2, 3, 7, 24)},
        {"inputs": z(2, 1, 7, 4), "offset_mask": z(2, 0, 7, 24)},
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
    with pytest.raises(tf.errors.InvalidArgumentError) as at_run_time:
        traced(*{**good, **bad}.values())
    message = message_of(at_run_time.value, "graph")
    received = str(at_trace.value).split("received ")[1]
    assert message.startswith(f"[{words}, received] [")
    assert words_of(message) == words_of(f"{words}, received {received}")


def test_an_empty_batch_may_be_smaller_than_the_kernel_at_run_time():
    signature = [tf.TensorSpec([None, None, None, size]) for size in (4, 24)]
    traced = tf.function(
        lambda inputs, offset: deformable_conv(inputs, offset=offset), input_signature=signature
    )
    assert traced(z(0, 1, 7, 4), z(0, 0, 6, 24)).shape == (0, 0, 6, 6)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("index", [(0, 2, 1), (-1, 0, 1)])
@pytest.mark.parametrize(
    ("function", "name"), [(roi_align, "box_indices"), (weighted_sample, "image_index")]
)
def test_an_image_outside_the_batch_is_an_error(function, name, index, mode):
    points = {} if function is roi_align else {"points": z(3, 4, 1, 6, 2)}
    call = MODES[mode](lambda index: function(**{name: index}, **points))
    call(tf.constant([1, 0, 1]))
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        call(tf.constant(index))
    text, received = f"{name} must be at least 0 and below the batch size 2, received", list(index)
    message = message_of(raised.value, mode)
    assert message.startswith(text if mode == "eager" else f"[{text}] [")
    assert words_of(message) == words_of(f"{text} {received}")


def test_checks_of_what_is_known_at_run_time_alone_are_dropped_by_xla():
    @tf.function(jit_compile=True)
    def pool(boxes, box_indices):
        keep = tf.where(boxes[:, 0] < 1)[:, 0]  # a shape that only XLA knows
        boxes, box_indices = tf.gather(boxes, keep), tf.gather(box_indices, keep)
        return tf.reduce_sum(roi_align(boxes=boxes, box_indices=box_indices), axis=0)

    assert pool(z(3, 4), tf.constant([0, 1, 0])).shape == (2, 2, 3)


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
