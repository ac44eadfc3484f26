import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from conftest import (
    MODES,
    TOLERANCE,
    check_derivatives,
    gradients,
    relative_error,
    run_litert,
)
from tf_deform import ops

pytestmark = pytest.mark.usefixtures("implementation")

BATCH, HEIGHT, WIDTH, ROIS = 2, 5, 7, 3
POOLINGS = [
    *("roi_align", "roi_align_rotated", "ps_roi_align"),
    *("deformable_roi_pool", "deformable_ps_roi_pool"),
]
PS_OPTIONS = {"output_channels": 4, "group_size": 2, "part_size": 3}


def build(rng, name, output_size=(3, 2), *, space=(HEIGHT, WIDTH), rois=ROIS, options=None):
    """Returns the features, boxes and box indices, and the other arguments of a pooling.

    Those are (differentiable arguments after the features, a function of all these and the boxes,
    its oracle, which takes the same).
    """
    bins = math.prod(output_size)
    options = dict(options or {})
    channels, extra = 3, []
    if name == "ps_roi_align":
        channels = 2 * bins
    if name == "deformable_roi_pool":
        extra = [rng.normal(size=[rois, *output_size, 2]), rng.uniform(0, 2, [rois, *output_size])]
    if name == "deformable_ps_roi_pool":
        options = {**PS_OPTIONS, **options}
        channels = options["output_channels"] * options["group_size"] ** 2
        extra = [rng.normal(size=[rois, options["part_size"], options["part_size"], 4])]
    features = rng.normal(size=[BATCH, *space, channels])
    indices = rng.integers(0, BATCH, rois)

    def pooling(library, features, boxes, offset=None, mask=None):
        arguments = [features, boxes, indices]
        if name.startswith("deformable"):
            arguments.append(offset)
        masked = {} if mask is None else {"mask": mask}
        return getattr(library, name)(*arguments, output_size, **options, **masked)

    return features, boxes_of(name, draw_boxes(rng, rois, space)), extra, pooling


def draw_boxes(rng, rois, space=(HEIGHT, WIDTH)):
    """Returns boxes no larger than the features; some stick out, some are thin."""
    height, width = space
    start = rng.uniform(-2, [width, height], [rois, 2])
    size = rng.uniform(0.1, [width, height], [rois, 2])
    return np.concatenate([start, start + size], axis=1)


def boxes_of(name, boxes):
    """Returns upright boxes as the pooling takes them: turned, each by another angle."""
    boxes = np.array(boxes, np.float64)
    if name != "roi_align_rotated":
        return boxes
    start, end = boxes[:, :2], boxes[:, 2:]
    angles = 0.7 + 1.9 * np.arange(len(boxes))[:, None]
    return np.concatenate([(start + end) / 2, end - start, angles], axis=1)


@st.composite
def poolings(draw, name):
    options = {"spatial_scale": draw(st.sampled_from([1.0, 0.5, 0.9]))}
    if name == "deformable_ps_roi_pool":
        options["group_size"], options["part_size"] = (
            draw(st.integers(1, 3)),
            draw(st.integers(1, 3)),
        )
        options["sample_per_part"] = draw(st.integers(1, 3))
        options["trans_std"] = draw(st.sampled_from([0.1, 0.35]))
    else:
        options["sampling_ratio"] = draw(st.integers(0, 3))
    if name == "deformable_roi_pool":
        options["gamma"] = draw(st.sampled_from([0.1, 0.35]))
    if name.startswith("roi_align"):
        options["aligned"] = draw(st.booleans())
        options["reduction"] = draw(st.sampled_from(["mean", "max"]))
    if name == "roi_align_rotated":
        options["clockwise"] = draw(st.booleans())
        options["angle_unit"] = draw(st.sampled_from(["radians", "degrees"]))
    output_size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    space = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return build(rng, name, output_size, space=space, rois=draw(st.integers(0, 4)), options=options)


@pytest.mark.parametrize("name", POOLINGS)
@settings(max_examples=12)
@given(data=st.data())
def test_poolings_equal_the_oracle(name, data):
    features, boxes, extra, pooling = data.draw(poolings(name))
    actual, expected = (pooling(each, features, boxes, *extra) for each in (ops, oracles))
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize("name", ["deformable_roi_pool", "deformable_ps_roi_pool"])
def test_without_offsets_the_bins_stay_in_place(rng, name):
    features, boxes, _, pooling = build(rng, name)
    actual, expected = (pooling(each, features, boxes) for each in (ops, oracles))
    assert relative_error(actual, expected) < TOLERANCE["float64"]


# An adaptive ratio cannot be compiled by XLA.
TRACED = [
    *itertools.product(["graph", "jit"], POOLINGS, [{"spatial_scale": 0.5}]),
    *itertools.product(["graph"], POOLINGS[:4], [{"sampling_ratio": 0}]),
    *itertools.product(["graph", "jit"], POOLINGS[:2], [{"reduction": "max"}]),
    *itertools.product(["graph"], POOLINGS[:2], [{"sampling_ratio": 0, "reduction": "max"}]),
]


@pytest.mark.parametrize(("traced", "name", "options"), TRACED, ids=str)
def test_poolings_of_sizes_unknown_while_tracing_equal_the_oracle(rng, traced, name, options):
    def signature(*arrays):
        features, boxes, *extra = (tf.TensorSpec(each.shape, tf.float32) for each in arrays)
        features = tf.TensorSpec([None, None, None, features.shape[-1]], tf.float32)
        return [features, *(tf.TensorSpec([None, *each.shape[1:]]) for each in (boxes, *extra))]

    features, boxes, extra, pooling = build(rng, name, options=options)
    arrays = [each.astype(np.float32) for each in (features, boxes, *extra)]
    dynamic = MODES[traced](
        lambda *each: pooling(ops, *each), input_signature=signature(*arrays), autograph=False
    )
    for cropped in (arrays[0], arrays[0][:, :4, 1:]):
        actual = dynamic(cropped, *arrays[1:])
        expected = pooling(oracles, cropped, *arrays[1:])
        assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", POOLINGS)
def test_half_precision_is_accumulated_in_float32_at_float32_boxes(rng, name, dtype):
    """At 1001.3 neighbouring halves are 0.5 apart."""
    features, boxes, extra, pooling = build(rng, name, space=(2, 1010))
    moved = [1000.3, 0.1, 0, 0, 0] if name == "roi_align_rotated" else [1000.3, 0.1, 1000.3, 0.1]
    boxes = (boxes + [moved] * ROIS).astype(np.float32)
    extra = [each.astype(np.float32) for each in extra]
    features = tf.cast(features, dtype)
    actual = pooling(ops, features, boxes, *extra)
    assert actual.dtype == dtype
    expected = pooling(oracles, tf.cast(features, tf.float64), boxes, *extra)
    assert relative_error(tf.cast(actual, tf.float64), expected) < TOLERANCE[dtype]


def expected_multi_scale(features, boxes, indices, output_size, scales, canonical, **options):
    size, level_of_size = canonical
    finest = -math.log2(scales[0])
    pooled = []
    for box, index in zip(boxes, indices, strict=True):
        area = max((box[2] - box[0]) * (box[3] - box[1]), 0)
        level = level_of_size + math.log2(math.sqrt(area) / size) if area > 0 else -math.inf
        level = int(min(max(level - finest, 0), len(scales) - 1))
        options["spatial_scale"] = scales[level]
        pooled.append(oracles.roi_align(features[level], [box], [index], output_size, **options)[0])
    return np.reshape(pooled, [len(boxes), *output_size, features[0].shape[-1]])


@pytest.mark.parametrize("traced", ["eager", "graph", "jit"])
@pytest.mark.parametrize(
    "options", [{}, {"aligned": False}, {"sampling_ratio": 3, "reduction": "max"}], ids=str
)
def test_multi_scale_roi_align_pools_each_box_from_its_level(rng, options, traced):
    scales, indices = (1 / 4, 1 / 8, 1 / 16), np.array([1, 0, 0, 1, 0, 1, 1])
    features = [rng.normal(size=[2, *size, 3]) for size in ((12, 16), (6, 8), (3, 4))]
    sides = np.array([3.0, 31, 32, 40, 63.9, 64, 300])  # levels 0, 0, 1, 1, 1, 2, 2
    start = rng.uniform(0, 20, [7, 2])
    shape = np.stack([sides * 1.25, sides / 1.25], axis=1)
    boxes = np.concatenate([start, start + shape], axis=1)
    actual = MODES[traced](
        lambda boxes, *features: ops.multi_scale_roi_align(
            list(features),
            boxes,
            indices,
            (2, 3),
            scales=scales,
            canonical_size=32,
            canonical_level=3,
            **options,
        )
    )(boxes, *features)
    expected = expected_multi_scale(features, boxes, indices, (2, 3), scales, (32, 3), **options)
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize(("side", "level"), [(0, 0), (111, 0), (112, 1), (224, 2), (1e6, 3)])
def test_boxes_of_the_canonical_size_are_pooled_from_the_canonical_level(side, level):
    features = [np.full([1, 8 >> k, 8 >> k, 1], float(k)) for k in range(4)]
    scales = [2.0**-k for k in range(2, 6)]
    box = [[16.0 - side / 2, 16.0 - side / 2, 16.0 + side / 2, 16.0 + side / 2]]
    pooled = ops.multi_scale_roi_align(features, box, [0], 1, scales=scales, sampling_ratio=1)
    assert pooled.numpy().item() == level


# Turned boxes


def test_a_turned_box_is_seen_as_if_the_image_were_turned_back(rng):
    """Quarter turns, counter-clockwise as one looks at the image, whose y points down."""
    features = rng.normal(size=[1, 6, 6, 2])
    upright = ops.roi_align(features, [[1.0, 2.0, 5.0, 4.0]], [0], (2, 4))
    for quarters in range(4):
        turned = np.rot90(features, quarters, axes=(1, 2))
        box = np.array([[3.0, 3.0, 4.0, 2.0, 90.0 * quarters]])
        pooled = ops.roi_align_rotated(turned, box, [0], (2, 4), angle_unit="degrees")
        np.testing.assert_allclose(pooled, upright, atol=1e-12)
        box[0, 4] = -np.radians(box[0, 4])
        pooled = ops.roi_align_rotated(turned, box, [0], (2, 4), clockwise=True)
        np.testing.assert_allclose(pooled, upright, atol=1e-12)


PUBLISHED = [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]


@pytest.mark.parametrize(
    ("image", "box", "expected"),
    [
        # mmcv, tests/test_ops/test_roi_align_rotated.py
        ([[1, 2], [3, 4]], [0.5, 0.5, 1, 1, 0], [[1, 1.25], [1.5, 1.75]]),
        ([[1, 2], [3, 4]], [0.5, 0.5, 1, 1, np.pi / 2], [[1.5, 1], [1.75, 1.25]]),
        (PUBLISHED, [1.5, 1.5, 3, 3, 0], [[1.9375, 4.75], [7.5625, 10.375]]),
        (PUBLISHED, [1.5, 1.5, 3, 3, np.pi / 2], [[7.5625, 1.9375], [10.375, 4.75]]),
    ],
)
def test_turned_boxes_give_the_numbers_that_mmcv_publishes(image, box, expected):
    features = np.array(image, np.float64)[None, ..., None]
    pooled = ops.roi_align_rotated(features, np.array([box]), [0], 2)
    np.testing.assert_allclose(pooled[0, ..., 0], expected, atol=1e-12)


@pytest.mark.parametrize("quarters", range(4))
def test_turned_boxes_give_the_numbers_that_detectron2_publishes(quarters):
    """In its tests/layers/test_roi_align_rotated.py, in degrees and with adaptive sampling."""
    features = np.arange(25.0).reshape(1, 5, 5, 1)
    box = np.array([[2.0, 2.0, 2.0, 2.0, 90.0 * quarters]])
    options = {"sampling_ratio": 0, "angle_unit": "degrees"}
    pooled = ops.roi_align_rotated(features, box, [0], 4, **options)
    published = np.arange(4.5, 14, 2.5)[:, None] + np.arange(0, 2, 0.5)
    np.testing.assert_allclose(pooled[0, ..., 0], np.rot90(published, -quarters), atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_the_maximum_is_of_samples_and_not_of_pixels(reduction):
    features = np.array([0.0, 8.0, 4.0, 0.0]).reshape(1, 1, 4, 1)
    boxes = np.array([[0.0, 0.0, 2.4, 1.0]])
    pooled = ops.roi_align(features, boxes, [0], 1, reduction=reduction).numpy().item()
    assert pooled == pytest.approx({"mean": 3.8, "max": 6.8}[reduction])  # at 0.1 and at 1.3


# Border rules


def pool_line(name, start, end, **options):
    """Returns what one bin from `start` to `end` pools from a line of pixels 1, 2, 4, 8."""
    features = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)
    boxes = [[start, 0, end, 0 if name == "deformable_ps_roi_pool" else 1]]
    if name == "roi_align_rotated":
        boxes = [[(start + end) / 2, 0.5, end - start, 1, 0]]
    arguments = [features, np.array(boxes, np.float64), [0]]
    if name == "deformable_ps_roi_pool":
        one = {"output_channels": 1, "group_size": 1, "part_size": 1, "sample_per_part": 1}
        return getattr(ops, name)(*arguments, None, 1, **{**one, **options}).numpy().item()
    if name == "deformable_roi_pool":
        arguments.append(None)
    return getattr(ops, name)(*arguments, 1, **{"sampling_ratio": 1, **options}).numpy().item()


@pytest.mark.parametrize("name", POOLINGS[:4])
@pytest.mark.parametrize(
    ("centre", "value"),
    [(-1.01, 0), (-1, 1), (-0.3, 1), (0.5, 1.5), (3, 8), (3.7, 8), (4, 8), (4.01, 0)],
)
def test_samples_count_up_to_a_pixel_outside_inclusive(name, centre, value):
    assert pool_line(name, centre, centre + 1) == pytest.approx(value, abs=1e-12)


def test_a_sample_further_outside_counts_zero_in_the_mean():
    mean = pool_line("roi_align", -4, 2, sampling_ratio=3)  # at -3.5, -1.5 and 0.5
    assert mean == pytest.approx(1.5 / 3)


@pytest.mark.parametrize(
    ("start", "samples", "value"),
    [
        # Samples from start - 0.5 on; those beyond -0.5 and 3.5 leave the mean.
        (-1, 1, 0),
        (0, 1, 1),
        (1, 1, 1.5),
        (4, 1, 8),
        (5, 1, 0),
        (4, 2, 8),  # 3.5 and 4
        (-1, 2, 0),  # -1.5 and -1
        (-1, 4, 0),  # up to -0.75
        (0, 2, 1),  # -0.5 and 0
        (3, 4, 7.25),  # 2.5, 2.75, 3 and 3.25
    ],
)
def test_position_sensitive_samples_leave_the_mean_beyond_half_a_pixel_outside(
    start, samples, value
):
    assert pool_line("deformable_ps_roi_pool", start, start, sample_per_part=samples) == value


@pytest.mark.parametrize(
    ("start", "whole"), [(0.5, 1), (1.49, 1), (1.5, 2), (2.5, 3), (-0.5, -1), (-0.49, 0)]
)
def test_position_sensitive_boxes_are_rounded_half_away_from_zero(start, whole):
    options = {"sample_per_part": 4}
    rounded = pool_line("deformable_ps_roi_pool", whole, 3, **options)
    assert pool_line("deformable_ps_roi_pool", start, 3, **options) == rounded
    for other in (whole - 1, whole + 1):
        assert pool_line("deformable_ps_roi_pool", other, 3, **options) != rounded


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
@pytest.mark.parametrize("name", POOLINGS)
def test_pixels_outside_the_samples_cannot_leak(rng, name, pixel):
    features, _, _, pooling = build(rng, name)
    boxes = boxes_of(name, [[2.2, 2.1, 3.9, 2.8]] * ROIS)
    spoiled = np.full([BATCH, 2 * HEIGHT, 2 * WIDTH, features.shape[-1]], pixel)
    spoiled[:, 1:HEIGHT, 1:WIDTH] = features[:, 1:, 1:]
    expected = pooling(ops, features, boxes)
    assert np.all(np.isfinite(expected))
    assert np.array_equal(pooling(ops, spoiled, boxes), expected)


# Gradients


MAXIMUM = [(name, {"reduction": "max"}) for name in POOLINGS[:2]]
ADAPTIVE = [(name, {"sampling_ratio": 0}) for name in POOLINGS[:4]]
LARGEST = [(name, {"sampling_ratio": 0, "reduction": "max"}) for name in POOLINGS[:2]]
TWICE = [*((name, {}) for name in POOLINGS), *MAXIMUM, *ADAPTIVE]
ALL = [*TWICE, *LARGEST]


@pytest.mark.parametrize(("name", "options"), TWICE)
def test_derivatives_of_poolings(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, (2, 1), options=options)
    adaptive = "sampling_ratio" in options  # a loop
    check_derivatives(
        lambda f, *each: pooling(ops, f, boxes, *each), features, *extra, traced=adaptive
    )


@pytest.mark.parametrize(("name", "options"), LARGEST)
def test_first_derivatives_of_adaptive_maxima(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, (2, 1), options=options)
    check_derivatives(
        lambda f, *each: pooling(ops, f, boxes, *each), features, *extra, orders=1, traced=True
    )


def test_derivatives_of_multi_scale_roi_align(rng):
    boxes = np.array([[0.3, 0.4, 7.5, 6.2], [1.3, 2.4, 30.5, 36.2]])
    check_derivatives(
        lambda *features: ops.multi_scale_roi_align(
            features, boxes, [0, 0], 2, scales=(1 / 4, 1 / 8), canonical_size=16
        ),
        rng.normal(size=[1, 6, 5, 2]),
        rng.normal(size=[1, 3, 4, 2]),
    )


@pytest.mark.parametrize(("name", "options"), ALL)
def test_boxes_have_no_gradient(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, options=options)
    of_features, of_boxes, *_ = gradients(
        lambda *each: pooling(ops, *each), features, boxes, *extra
    )
    assert of_boxes is None
    assert np.any(of_features)


# NaN, infinite and huge boxes; no boxes, images or pixels

SPECIAL = np.array([np.nan, np.inf, -np.inf])


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_box_that_is_nowhere_gives_zero_and_no_gradient(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, rois=1 + 2 * len(SPECIAL), options=options)
    boxes[1::2, :] = SPECIAL[:, None]
    boxes[2::2, 2] = SPECIAL
    with np.errstate(invalid="ignore"):
        expected = pooling(oracles, features, boxes, *extra)
    assert np.any(expected[0])
    assert not np.any(expected[1::2])
    assert relative_error(pooling(ops, features, boxes, *extra), expected) < TOLERANCE["float64"]
    spoiled = np.full(features.shape, np.nan)
    assert not np.any(pooling(ops, spoiled, boxes, *extra)[1::2])
    found = gradients(lambda f, *each: pooling(ops, f, boxes, *each)[1::2], features, *extra)
    assert not any(map(np.any, found))


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_any_entry_that_is_no_number_puts_a_turned_box_nowhere(
    rng, special, sampling_ratio, reduction
):
    options = {"sampling_ratio": sampling_ratio, "reduction": reduction}
    features, boxes, _, pooling = build(rng, "roi_align_rotated", rois=7, options=options)
    expected = pooling(ops, features, boxes).numpy()
    assert np.all(np.any(expected, axis=(1, 2, 3)))
    boxes[1:6][np.eye(5, dtype=bool)] = special  # in each box another entry
    pooled = pooling(ops, features, boxes).numpy()
    assert not np.any(pooled[1:6])
    np.testing.assert_array_equal(pooled[[0, 6]], expected[[0, 6]])


@pytest.mark.parametrize("name", POOLINGS[:4])
def test_adaptive_sampling_of_a_huge_box_ends(rng, name):
    features, boxes, extra, pooling = build(rng, name, options={"sampling_ratio": 0})
    boxes[1] = boxes[0]
    expected = pooling(oracles, features, boxes, *extra)
    traced = tf.function(lambda *each: pooling(ops, *each))
    for size in (1e4, 1e9, 1e30):
        (boxes[1],) = boxes_of(name, [[-size, -size, size, size]])
        actual = traced(*map(tf.constant, (features, boxes, *extra))).numpy()
        assert relative_error(actual[[0, 2]], expected[[0, 2]]) < TOLERANCE["float64"]
        assert np.all(np.isfinite(actual[1]))
    assert traced.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", POOLINGS[:4])
def test_adaptive_sampling_of_a_box_larger_than_the_features_equals_the_oracle(rng, name):
    features, boxes, extra, pooling = build(rng, name, options={"sampling_ratio": 0})
    boxes[1:] = boxes_of(name, [[-6.3, -8.2, 21.4, 19.3], [-20.3, 1.3, 41.4, 9.3]])
    actual, expected = (pooling(each, features, boxes, *extra) for each in (ops, oracles))
    assert relative_error(actual, expected) < TOLERANCE["float64"]


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        *(("eager", *each) for each in ALL),
        *(("graph", *each) for each in ADAPTIVE),
        *(("jit", name, {}) for name in POOLINGS),
        *(("jit", *each) for each in MAXIMUM),
    ],
)
def test_no_boxes_give_an_empty_result_and_zero_gradients(rng, mode, name, options):
    features, boxes, extra, pooling = build(rng, name, rois=0, options=options)

    def derived(features, *extra):
        def pooled(features, *extra):
            return pooling(ops, features, boxes, *extra)

        return pooled(features, *extra), *gradients(pooled, features, *extra)

    pooled, *found = MODES[mode](derived)(features, *extra)
    channels = {"ps_roi_align": 2, "deformable_ps_roi_pool": 4}.get(name, 3)
    assert pooled.shape == (0, 3, 2, channels)
    assert [each.shape for each in found] == [features.shape, *(each.shape for each in extra)]
    assert not np.any(found[0])


@pytest.mark.parametrize("output_size", [(0, 2), (3, 0)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_no_bins_of_either_reduction_give_an_empty_result(
    rng, output_size, sampling_ratio, reduction
):
    options = {"sampling_ratio": sampling_ratio, "reduction": reduction}
    features, boxes, _, pooling = build(rng, "roi_align_rotated", output_size, options=options)
    assert pooling(ops, features, boxes).shape == (ROIS, *output_size, 3)


@pytest.mark.parametrize("name", ["roi_align", "deformable_roi_pool"])
@pytest.mark.parametrize("output_size", [(0, 2), (3, 0)])
def test_no_bins_give_an_empty_result_and_zero_gradients(rng, name, output_size, mode):
    features, boxes, extra, pooling = build(rng, name, output_size)

    def derived(features):
        def pooled(features):
            return pooling(ops, features, boxes, *extra)

        return pooled(features), *gradients(pooled, features)

    pooled, of_features = mode(derived)(features)
    assert pooled.shape == (ROIS, *output_size, 3)
    assert of_features.shape == features.shape
    assert not np.any(of_features)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("space", [(0, 7), (5, 0), (0, 0)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_features_without_pixels_pool_to_zero(rng, batch, space, sampling_ratio):
    boxes = draw_boxes(rng, ROIS if batch else 0)
    features = np.zeros([batch, *space, 3])
    indices = np.zeros([len(boxes)], np.int32)
    pooled = ops.roi_align(features, boxes, indices, 2, sampling_ratio=sampling_ratio)
    assert relative_error(pooled, np.zeros([len(boxes), 2, 2, 3])) == 0


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in POOLINGS[:4]), *MAXIMUM, *ADAPTIVE]
)
def test_poolings_convert_to_litert_with_builtin_operators(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, options=options)
    arrays = [each.astype(np.float32) for each in (features, boxes, *extra)]
    actual = run_litert(lambda *each: pooling(ops, *each), *arrays)
    assert relative_error(actual, pooling(oracles, *arrays)) < TOLERANCE["float32"]


@pytest.mark.parametrize(("name", "options"), ADAPTIVE)
def test_xla_compiles_the_gradient_of_adaptive_means(rng, name, options):
    features, boxes, extra, pooling = build(rng, name, (2, 1), options=options)
    arguments = [tf.constant(each, tf.float64) for each in (features, *extra)]
    upstream = rng.normal(size=pooling(ops, features, boxes, *extra).shape)

    def gradient(features, *extra):
        with tf.GradientTape() as tape:
            tape.watch([features, *extra])
            value = tf.reduce_sum(pooling(ops, features, boxes, *extra) * upstream)
        return tape.gradient(value, [features, *extra], unconnected_gradients="zero")

    compiled = tf.function(gradient, jit_compile=True, autograph=False)(*arguments)
    for found, expected in zip(compiled, gradient(*arguments), strict=True):
        assert np.any(expected != 0)
        assert relative_error(found, expected) < TOLERANCE["float64"]
