"""Where the layers say that they sample: samples taken there by hand give what they compute."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

layers = tfd.layers
CONVOLUTIONS = {1: layers.DeformableConv1D, 2: layers.DeformableConv2D, 3: layers.DeformableConv3D}


def randomize(layer, scale=0.5):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.normal(0, scale, weight.shape))


def in_graph(function, *arrays):
    """Returns the function's result in a graph that knows ranks and channels alone."""
    specs = [
        tf.TensorSpec([*[None] * (each.ndim - 1), each.shape[-1]], each.dtype) for each in arrays
    ]
    return tf.function(function, input_signature=specs)(*arrays).numpy()


def samples_at(inputs, positions):
    """Returns `[batch, *output, taps, channels]`, the samples at a convolution's positions."""
    *shape, groups, taps, _ = positions.shape
    channels = inputs.shape[-1]
    samples = np.zeros([*shape, taps, channels])
    for where in np.ndindex(*shape):
        for group, tap in np.ndindex(groups, taps):
            sample = oracles.linear_sample(inputs[where[0]], positions[where][group, tap])
            mine = np.arange(channels) // (channels // groups) == group
            samples[where][tap, mine] = sample[mine]
    return samples


def assert_close(actual, expected):
    assert relative_error(actual, expected) <= 3 * TOLERANCE["float32"]


# Convolutions


@pytest.mark.parametrize("given", (False, True))
@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_a_convolution_contracts_the_samples_at_its_positions(rank, data_format, given, rng):
    layer = CONVOLUTIONS[rank](
        6,
        (3, 2, 1)[:rank],
        strides=(2, 1, 1)[:rank],
        padding="same" if rank == 2 else [(2, 0), (0, 1), (1, 1)][:rank],
        data_format=data_format,
        dilation_rate=(1, 2, 1)[:rank] if rank > 1 else 2,
        groups=2,
        deformable_groups=2,
        modulated=True,
    )
    inputs = rng.normal(size=(2, *(7, 5, 3)[:rank], 4)).astype("float32")
    last = data_format == "channels_last"
    to_layer = (lambda each: each) if last else (lambda each: np.moveaxis(each, -1, 1))
    from_layer = (lambda each: each) if last else (lambda each: np.moveaxis(each, 1, -1))
    layer(to_layer(inputs))
    randomize(layer)
    arguments = [to_layer(inputs)]
    offset, modulation = (np.array(each) for each in layer.predict_offset(*arguments))
    if given:
        offset, modulation = rng.normal(0, 1.5, offset.shape), rng.uniform(0, 2, modulation.shape)
        offset, modulation = offset.astype("float32"), modulation.astype("float32")
        arguments += [offset, modulation]
    if last:  # with channels first the sizes cannot be free
        positions = in_graph(layer.sampling_positions, *arguments)
    else:
        positions = layer.sampling_positions(*arguments).numpy()
    modulation = from_layer(modulation)
    output, taps = modulation.shape[:-1], modulation.shape[-1] // 2
    assert positions.shape == (*output, 2, taps, rank) and positions.dtype == np.float32
    weights = np.repeat(modulation.reshape(*output, 2, taps), 2, axis=-2)
    columns = samples_at(inputs, positions) * np.swapaxes(weights, -1, -2)
    kernel = layer.kernel.numpy().reshape(taps, 2, 6)  # [taps, channels of a group, filters]
    outputs = [
        np.tensordot(columns[..., 2 * group : 2 * group + 2], kernel[..., 3 * group :][..., :3], 2)
        for group in (0, 1)
    ]
    expected = np.concatenate(outputs, axis=-1) + layer.bias.numpy()
    assert_close(from_layer(layer(*arguments).numpy()), expected)


@pytest.mark.parametrize("name", ("DCNv3", "DCNv4"))
def test_a_depthwise_convolution_adds_the_samples_at_its_positions(name, rng):
    layer = getattr(layers, name)(
        (3, 5), strides=(2, 1), dilation_rate=(1, 2), groups=2, offset_scale=1.5, remove_center=True
    )
    inputs = rng.normal(size=(2, 6, 5, 8)).astype("float32")
    layer(inputs)
    randomize(layer)
    projected = (layer.input_proj if name == "DCNv3" else layer.value_proj)(inputs).numpy()
    positions = in_graph(layer.sampling_positions, inputs)
    assert positions.shape == (2, 3, 5, 2, 14, 2)
    _, mask = layer.predict_offset(inputs)
    weights = np.repeat(mask.numpy().reshape(2, 3, 5, 2, 14), 4, axis=3)
    sums = np.sum(samples_at(projected, positions) * np.swapaxes(weights, -1, -2), axis=-2)
    assert_close(layer(inputs), layer.output_proj(sums))


@pytest.mark.parametrize("name", ("DCNv3", "DCNv4"))
def test_the_taps_of_a_depthwise_convolution_run_column_by_column(name, rng):
    layer = getattr(layers, name)(3, groups=1, offset_scale=2.0)
    inputs = rng.normal(size=(1, 5, 4, 8)).astype("float32")
    layer(inputs)
    randomize(layer)
    offset, _ = layer.predict_offset(inputs)
    at_rest = layer.sampling_positions(inputs, tf.zeros_like(offset)).numpy()
    expected = [(2 + 2 * y, 1 + 2 * x) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    np.testing.assert_array_equal(at_rest[0, 2, 1, 0], expected)
    moved = layer.sampling_positions(inputs).numpy() - at_rest
    np.testing.assert_allclose(moved[..., ::-1], 2 * offset.numpy().reshape(moved.shape), atol=1e-5)


# Regions

BOXES = np.float32(
    [
        [[1.3, 2.2, 9.7, 11.1], [-3.1, 0.4, 5.2, 4.9], [4.0, 4.0, 4.5, 4.2]],
        [[0.0, 0.0, 14.0, 18.0], [9.3, 12.6, 19.8, 25.1], [6.1, 3.3, 2.2, 9.9]],
    ]
)
FEATURES = (2, 9, 7)  # of images 18 pixels high and 14 wide


def mean_in(image, box, scale, ratio):
    """Returns the mean of the samples in a box of the input image, as the roi rule has it."""
    x0, y0, x1, y1 = np.float64(box) * scale - 0.5
    total = 0
    for row, column in itertools.product(range(ratio), repeat=2):
        y, x = y0 + (row + 0.5) / ratio * (y1 - y0), x0 + (column + 0.5) / ratio * (x1 - x0)
        total += oracles.linear_sample(image, (y, x), "roi")[0]
    return total / ratio**2


def means_in(features, bins, scale, ratio):
    expected = np.zeros([*bins.shape[:-1], features.shape[-1]])
    for where in np.ndindex(*bins.shape[:-1]):
        own = scale[where[:2]] if np.ndim(scale) else scale
        expected[where] = mean_in(features[where[0]], bins[where], own, ratio)
    return expected


@pytest.mark.parametrize("aligned", (True, False))
def test_roi_align_averages_in_its_boxes(aligned, rng):
    layer = layers.RoIAlign((3, 2), spatial_scale=0.5, sampling_ratio=3, aligned=aligned)
    features = rng.normal(size=(*FEATURES, 3)).astype("float32")
    bins = in_graph(layer.sampling_boxes, features, BOXES)
    assert bins.shape == (2, 3, 3, 2, 4)
    assert_close(layer(features, BOXES), means_in(features, bins, 0.5, 3))
    union = np.concatenate([bins[..., 0, 0, :2], bins[..., 2, 1, 2:]], axis=-1)
    if aligned:
        np.testing.assert_allclose(union, BOXES, atol=1e-5)
    else:  # half a pixel of the features beside the box
        np.testing.assert_allclose(union[0, 0], BOXES[0, 0] + 1, atol=1e-5)


@pytest.mark.parametrize("box_format", ("yxyx", "center_xywh", "rel_xyxy"))
def test_the_boxes_are_pixels_whatever_the_format(box_format, rng):
    layer = layers.RoIAlign(2, spatial_scale=0.5, bounding_box_format=box_format)
    features = rng.normal(size=(*FEATURES, 3)).astype("float32")
    x0, y0, x1, y1 = np.moveaxis(BOXES, -1, 0)
    boxes = {
        "yxyx": (y0, x0, y1, x1),
        "center_xywh": ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
        "rel_xyxy": (x0 / 14, y0 / 18, x1 / 14, y1 / 18),
    }[box_format]
    bins = layer.sampling_boxes(features, np.stack(boxes, axis=-1)).numpy()
    expected = layers.RoIAlign(2, spatial_scale=0.5).sampling_boxes(features, BOXES)
    np.testing.assert_allclose(bins, expected, atol=1e-5)


def test_multi_scale_roi_align_averages_on_the_level_of_each_box(rng):
    layer = layers.MultiScaleRoIAlign(
        2, scales=(0.5, 0.25), canonical_size=16, canonical_level=2, sampling_ratio=1
    )
    maps = [rng.normal(size=(2, *size, 3)).astype("float32") for size in ((18, 14), (9, 7))]
    boxes = 2 * BOXES
    bins = layer.sampling_boxes(maps, boxes).numpy()
    coarse = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) >= 16**2
    assert coarse.any() and not coarse.all()
    fine, rough = (
        means_in(values, bins, scale, 1) for values, scale in zip(maps, layer.scales, strict=True)
    )
    expected = np.where(coarse[..., None, None, None], rough, fine)
    assert_close(layer(maps, boxes), expected)


def test_ps_roi_align_averages_in_its_boxes(rng):
    layer = layers.PSRoIAlign((2, 3), 2, spatial_scale=0.5)
    features = rng.normal(size=(*FEATURES, 12)).astype("float32")
    bins = in_graph(layer.sampling_boxes, features, BOXES)
    means = means_in(features, bins, 0.5, 2).reshape(2, 3, 2, 3, 2, 6)
    expected = np.stack(
        [means[:, :, h, w, :, 3 * h + w] for h in (0, 1) for w in (0, 1, 2)], axis=2
    )
    assert_close(layer(features, BOXES), expected.reshape(2, 3, 2, 3, 2))


@pytest.mark.parametrize("given", (False, True))
def test_deformable_roi_pooling_averages_in_its_moved_boxes(given, rng):
    layer = layers.DeformableRoIPooling((3, 2), spatial_scale=0.5, offset_units=(5,))
    features = rng.normal(size=(*FEATURES, 3)).astype("float32")
    offset = [rng.normal(0, 2, (2, 3, 3, 2, 2)).astype("float32")] if given else []
    layer(features, BOXES, *offset)
    randomize(layer)
    bins = in_graph(layer.sampling_boxes, features, BOXES, *offset)
    at_rest = layer.sampling_boxes(features, BOXES, np.zeros([2, 3, 3, 2, 2], "float32"))
    plain = layers.RoIAlign((3, 2), spatial_scale=0.5).sampling_boxes(features, BOXES)
    np.testing.assert_allclose(at_rest, plain, atol=1e-5)
    assert np.min(np.max(np.abs(bins - at_rest), axis=(1, 2, 3, 4))) > 0.1
    assert_close(layer(features, BOXES, *offset), means_in(features, bins, 0.5, 2))


@pytest.mark.parametrize("classes", (None, 2))
def test_deformable_ps_roi_pooling_averages_in_its_moved_boxes(classes, rng):
    layer = layers.DeformablePSRoIPooling(
        (2, 3), 4, group_size=2, part_size=3, sample_per_part=2, spatial_scale=0.5
    )
    features = rng.normal(size=(*FEATURES, 16)).astype("float32")
    offset = [] if classes is None else [rng.normal(0, 2, (2, 3, 3, 3, 4)).astype("float32")]
    bins = in_graph(layer.sampling_boxes, features, BOXES, *offset)
    assert bins.shape == (2, 3, 2, 3, classes or 1, 4)
    expected = np.zeros([2, 3, 2, 3, 4])
    for *where, channel in np.ndindex(*expected.shape):
        image, _, row, column = where
        box = bins[tuple(where)][channel // (4 // (classes or 1))]
        x0, y0, x1, y1 = np.float64(box) * 0.5 - 0.5
        source = (channel * 2 + row * 2 // 2) * 2 + column * 2 // 3
        samples = [
            oracles.linear_sample(
                features[image][..., source : source + 1],
                (y0 + (y1 - y0) * down / 2, x0 + (x1 - x0) * right / 2),
                "psroi",
            )
            for down, right in itertools.product((0, 1), repeat=2)
        ]
        valid = [sample.item() for sample, good in samples if good]
        expected[(*where, channel)] = np.mean(valid) if valid else 0
    assert_close(layer(features, BOXES, *offset), expected)


def test_a_box_that_is_nan_has_nan_bins():
    boxes = np.where(np.arange(3)[:, None] == 1, np.nan, BOXES)
    bins = layers.RoIAlign(2).sampling_boxes(np.zeros([*FEATURES, 1], "float32"), boxes).numpy()
    assert np.isnan(bins[:, 1]).all() and np.isfinite(bins[:, [0, 2]]).all()


# Spatial transformers


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize(
    "transformation", ("translation", "similarity", "affine", "projective", "thin_plate_spline")
)
def test_a_transformer_samples_at_its_grid(transformation, align_corners, rng):
    layer = layers.SpatialTransformer(
        keras.layers.GlobalAveragePooling2D(),
        transformation,
        (4, 7),
        align_corners=align_corners,
        control_points=(2, 3),
    )
    inputs = rng.normal(size=(2, 5, 6, 3)).astype("float32")
    layer(inputs)
    layer.predictor.kernel.assign(rng.normal(0, 0.2, layer.predictor.kernel.shape))
    grid = in_graph(layer.sampling_grid, inputs)
    assert grid.shape == (2, 4, 7, 2)
    expected = oracles.grid_sample(inputs, grid, align_corners=align_corners)
    assert_close(layer(inputs), expected)


def test_a_transformer_of_volumes_samples_at_its_grid_of_given_parameters(rng):
    layer = layers.SpatialTransformer(None, "affine")
    inputs = rng.normal(size=(2, 3, 4, 5, 2)).astype("float32")
    parameters = rng.normal(0, 0.6, (2, 12)).astype("float32")
    grid = in_graph(layer.sampling_grid, inputs, parameters)
    assert grid.shape == (2, 3, 4, 5, 3)
    assert_close(layer(inputs, parameters), oracles.grid_sample(inputs, grid))


# Attention


@pytest.mark.parametrize("coordinates", (2, 4))
def test_attention_adds_what_lies_at_its_locations(coordinates, rng):
    layer = layers.MultiScaleDeformableAttention(2, 3, num_points=2)
    query = rng.normal(size=(2, 4, 5)).astype("float32")
    points = rng.uniform(0.2, 0.8, (2, 4, coordinates)).astype("float32")
    maps = [rng.normal(size=(2, *size, 4)).astype("float32") for size in ((5, 7), (3, 4))]
    masks = [rng.uniform(size=each.shape[:3]) < 0.8 for each in maps]
    layer(query, points, maps, masks)
    randomize(layer)
    locations = in_graph(
        lambda query, points, *maps: layer.sampling_locations(query, points, list(maps), masks),
        *(query, points, *maps),
    )
    assert locations.shape == (2, 4, 2, 2, 2, 2)
    values = [
        layer.value_proj(value).numpy() * mask[..., None]
        for value, mask in zip(maps, masks, strict=True)
    ]
    weights = layer.sampling_weights(query).numpy()
    sums = oracles.multi_scale_deformable_attention(values, locations, weights)
    assert_close(layer(query, points, maps, masks), layer.output_proj(sums.astype("float32")))


# Dtypes and errors


@pytest.mark.parametrize(
    ("policy", "dtype"), (("mixed_float16", "float32"), ("float32", "float32"), ("float64",) * 2)
)
def test_positions_are_never_of_half_precision(policy, dtype, rng):
    inputs, boxes = rng.normal(size=(2, 5, 6, 8)).astype("float32"), BOXES
    convolution = layers.DeformableConv2D(3, 3, dtype=policy)
    dcn = layers.DCNv3(groups=2, dtype=policy)
    pooling = layers.DeformableRoIPooling(2, offset_units=(), dtype=policy)
    attention = layers.MultiScaleDeformableAttention(2, 3, dtype=policy)
    query, points = inputs[:, 0], inputs[:, 0, :, :2]
    for layer, arguments in ((convolution, [inputs]), (dcn, [inputs]), (pooling, [inputs, boxes])):
        layer(*arguments)
    attention(query, points, [inputs])
    assert convolution.sampling_positions(inputs).dtype == dtype
    assert dcn.sampling_positions(inputs).dtype == dtype
    assert pooling.sampling_boxes(inputs, boxes).dtype == dtype
    assert layers.RoIAlign(2, dtype=policy).sampling_boxes(inputs, boxes).dtype == dtype
    assert attention.sampling_locations(query, points, [inputs]).dtype == dtype


def test_a_layer_that_is_not_built_says_so():
    inputs = np.zeros([1, 5, 6, 8], "float32")
    transformer = layers.SpatialTransformer(keras.layers.Flatten())
    for method, *arguments in (
        (layers.DeformableConv2D(3, 3).sampling_positions, inputs),
        (layers.DCNv4(groups=2).sampling_positions, inputs),
        (layers.DeformableRoIPooling(2).sampling_boxes, inputs, BOXES[:1]),
        (transformer.sampling_grid, inputs),
        (layers.MultiScaleDeformableAttention(2, 3).sampling_locations, inputs, inputs, [inputs]),
    ):
        with pytest.raises(ValueError, match=r"must be built before it can say where it samples"):
            method(*arguments)


def test_arguments_that_do_not_fit_are_refused_as_by_the_call():
    inputs = np.zeros([2, 9, 7, 8], "float32")
    convolution, dcn = layers.DeformableConv2D(3, 3), layers.DCNv3(groups=2)
    pooling = layers.DeformableRoIPooling(2, offset_units=())
    convolution(inputs), dcn(inputs), pooling(inputs, BOXES)
    with pytest.raises(ValueError, match=r"offset must have shape \[batch, \*output, 18\]"):
        convolution.sampling_positions(inputs, np.zeros([2, 7, 5, 17], "float32"))
    with pytest.raises(ValueError, match=r"modulation must come with an offset"):
        convolution.sampling_positions(inputs, modulation=np.zeros([2, 7, 5, 9], "float32"))
    with pytest.raises(ValueError, match=r"offset must have shape \[batch, \*output, groups"):
        dcn.sampling_positions(inputs, np.zeros([2, 9, 7, 18], "float32"))
    with pytest.raises(ValueError, match=r"offset must have shape \[batch, rois"):
        pooling.sampling_boxes(inputs, BOXES, np.zeros([2, 3, 2, 2, 3], "float32"))
    with pytest.raises(ValueError, match=r"boxes must have shape"):
        layers.RoIAlign(2).sampling_boxes(inputs, BOXES[0])
