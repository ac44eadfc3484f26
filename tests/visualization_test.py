"""The pictures: what is drawn lies where the layers sample, on the axes that are given."""

import sys

import keras
import matplotlib.colors
import numpy as np
import pytest
import tensorflow as tf
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import tf_deform as tfd
from tf_deform import drawing

visualization, layers = tfd.visualization, tfd.layers
IMAGE = np.random.default_rng(2).uniform(size=(12, 9, 3)).astype("float32")


@pytest.fixture
def ax():
    return Figure().add_subplot()


def scattered(ax):
    """Returns for each scatter of the axes its points `[n, (x, y)]`."""
    found = [each for each in ax.collections if isinstance(each, PathCollection)]
    return [np.asarray(each.get_offsets()) for each in found]


def sizes(ax):
    return [each.get_sizes() for each in ax.collections if isinstance(each, PathCollection)]


def colours(ax):
    """Returns the colours of the scatters' faces, without opacity."""
    found = [each for each in ax.collections if isinstance(each, PathCollection)]
    return [matplotlib.colors.to_hex(each.get_facecolors()[0]).upper() for each in found]


def arrows(ax):
    """Returns the arrows of the axes from `[n, (x, y)]` to `[n, (x, y)]`."""
    found = [each for each in ax.collections if isinstance(each, Quiver)]
    start = np.concatenate([np.asarray(each.get_offsets()) for each in found])
    along = np.concatenate([np.stack([each.U, each.V], axis=-1) for each in found])
    return start, start + along


def lines(ax):
    return [line.get_xydata() for line in ax.lines]


def convolution(rng, **options):
    layer = layers.DeformableConv2D(4, (3, 2), strides=2, padding="same", **options)
    first = options.get("data_format") == "channels_first"
    layer(np.zeros([1, 3, 12, 9] if first else [1, 12, 9, 3], "float32"))
    for weight in layer.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return layer


@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
def test_taps_lie_where_a_convolution_samples(data_format, rng, ax):
    layer = convolution(rng, modulated=True, data_format=data_format, deformable_groups=3)
    first = data_format == "channels_first"
    inputs = np.moveaxis(IMAGE, -1, 0)[None] if first else IMAGE[None]
    assert tfd.visualization.plot_taps(IMAGE, layer, inputs, pixel=(4, 1), ax=ax) is ax
    offset, modulation = layer.predict_offset(inputs)
    moved = layer.sampling_positions(inputs, offset, modulation).numpy()[0, 4, 1]
    rest = layer.sampling_positions(inputs, np.zeros_like(offset), modulation).numpy()[0, 4, 1]
    assert len(scattered(ax)) == 6  # the taps of three groups, at rest and moved
    for group in range(3):
        np.testing.assert_allclose(scattered(ax)[2 * group], rest[group][:, ::-1], atol=1e-5)
        np.testing.assert_allclose(scattered(ax)[2 * group + 1], moved[group][:, ::-1], atol=1e-5)
    start, end = arrows(ax)
    np.testing.assert_allclose(start, rest.reshape(-1, 2)[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(end, moved.reshape(-1, 2)[:, ::-1], atol=1e-5)
    # At stride 2 the rest of (4, 1) is rows 8 to 10, columns 2 and 3, whatever is padded.
    assert set(map(tuple, rest[0])) == {(y, x) for y in (8.0, 9.0, 10.0) for x in (2.0, 3.0)}
    np.testing.assert_allclose(lines(ax)[-1], [(2.5, 9.0)])
    modulation = np.moveaxis(modulation, 1, -1) if first else modulation.numpy()
    order = np.argsort(modulation[0, 4, 1].reshape(3, 6), axis=1)
    for group in range(3):
        assert np.all(np.diff(sizes(ax)[2 * group + 1][order[group]]) > 0)
    assert colours(ax)[1::2] == list(drawing.COLOURS[:3])


def test_taps_of_features_are_enlarged_to_the_image(rng, ax):
    layer = convolution(rng)
    features = rng.normal(size=(1, 6, 3, 3)).astype("float32")  # a half and a third of the image
    visualization.plot_taps(IMAGE, layer, features, pixel=[(1, 0), (2, 1)], ax=ax)
    moved = layer.sampling_positions(features).numpy()
    for drawn, pixel in zip(scattered(ax)[1::2], ((1, 0), (2, 1)), strict=True):
        expected = (moved[0][pixel][0] + 0.5) * [2, 3] - 0.5
        np.testing.assert_allclose(drawn, expected[:, ::-1], atol=1e-5)
    assert colours(ax)[1] != colours(ax)[3]


def test_taps_of_an_offset_that_is_given(rng, ax):
    layer = convolution(rng)
    offset = rng.normal(size=(1, 6, 5, 12)).astype("float32")
    visualization.plot_taps(IMAGE, layer, (IMAGE[None], offset), pixel=(3, 3), ax=ax)
    start, end = arrows(ax)
    np.testing.assert_allclose((end - start)[:, ::-1], offset[0, 3, 3].reshape(-1, 2), atol=1e-5)


def test_taps_of_a_signal_lie_on_its_curve_and_at_rest_beneath_it(rng, ax):
    signal = rng.normal(size=20).astype("float32")
    layer = layers.DeformableConv1D(2, 3, padding="same")
    layer(signal[None, :, None])
    for weight in layer.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    visualization.plot_taps(signal, layer, pixel=7, ax=ax)
    rest, moved = scattered(ax)
    expected = layer.sampling_positions(signal[None, :, None]).numpy()[0, 7, 0, :, 0]
    on_curve = np.interp(expected, np.arange(20), signal)
    np.testing.assert_allclose(moved, np.stack([expected, on_curve], axis=-1), atol=1e-5)
    np.testing.assert_allclose(rest[:, 0], [6, 7, 8])
    assert np.all(rest[:, 1] < signal.min())
    np.testing.assert_allclose(lines(ax)[0][:, 1], signal)


def test_taps_of_a_volume_are_drawn_in_the_slice_that_they_are_moved_to(rng, ax):
    volume = rng.uniform(size=(1, 4, 8, 9, 1)).astype("float32")
    layer = layers.DeformableConv3D(2, (3, 1, 1), padding="same")
    offset = np.zeros([1, 4, 8, 9, 9], "float32")
    offset[0, 2, 3, 5] = [0.8, -0.6, 0.7, 0.2, 1.5, 2.0, -2.2, 0.4, -0.3]
    layer(volume, offset)
    arguments = {"pixel": (2, 3, 5), "slice_index": 2, "ax": ax}
    visualization.plot_taps(volume[0, 2], layer, (volume, offset), **arguments)
    np.testing.assert_allclose(scattered(ax)[1], [[5.7, 2.4], [7.0, 4.5]], atol=1e-5)
    np.testing.assert_allclose(scattered(ax)[0], [[5, 3], [5, 3]])


def test_bins_and_grids_are_drawn_as_asked(ax):
    boxes = np.ones([1, 1, 2, 2, 4]) * [1.0, 2, 5, 7]
    visualization.plot_bins(IMAGE, boxes, colour="#123456", numbered=False, ax=ax)
    assert {line.get_color() for line in ax.lines} == {"#123456"} and not ax.texts
    few, many = (Figure(figsize=(8, 8)).add_subplot() for _ in range(2))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40)), -1)[None]
    visualization.plot_grid(IMAGE, grid, lines=3, ax=few)
    visualization.plot_grid(IMAGE, grid, lines=12, ax=many)
    assert (len(few.lines), len(many.lines)) == (2 * 2 + 2, 2 * 11 + 2)


@pytest.mark.parametrize("name", ("DCNv3", "DCNv4"))
def test_taps_of_a_depthwise_convolution(name, rng, ax):
    layer = getattr(layers, name)(groups=2)
    features = rng.normal(size=(1, 12, 9, 8)).astype("float32")
    layer(features)
    for weight in layer.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    visualization.plot_taps(IMAGE, layer, features, pixel=(5, 4), ax=ax)
    moved = layer.sampling_positions(features).numpy()[0, 5, 4]
    for group in (0, 1):
        np.testing.assert_allclose(scattered(ax)[2 * group + 1], moved[group][:, ::-1], atol=1e-5)
    mask = np.abs(layer.predict_offset(features)[1].numpy()[0, 5, 4].reshape(2, 9))
    assert np.all(np.diff(sizes(ax)[1][np.argsort(mask[0])]) > 0)


def test_positions_alone_are_drawn_without_what_is_at_rest(rng, ax):
    positions = rng.uniform(0, 9, (1, 4, 4, 1, 9, 2))
    visualization.plot_taps(IMAGE, positions, pixel=(1, 2), ax=ax)
    (drawn,) = scattered(ax)
    np.testing.assert_allclose(drawn, positions[0, 1, 2, 0][:, ::-1])
    assert not lines(ax)


def test_far_points_stay_out_of_sight(ax):
    positions = np.full([1, 1, 1, 1, 2, 2], [[[400.0, -300.0], [5.0, 5.0]]])
    visualization.plot_taps(IMAGE, positions, pixel=(0, 0), ax=ax)
    assert ax.get_xlim() == (-0.5 - 9 / 4, 8.5)
    assert ax.get_ylim() == (11.5 + 12 / 4, -0.5)


BOXES = np.float32([[[1, 2, 7, 10], [0, 3, 4, 11]], [[3, 3, 5, 5], [1, 1, 2, 2]]])


def corners(boxes):
    """Returns for each box its outline `[5, (x, y)]` where pixel centres are integers."""
    x0, y0, x1, y1 = np.moveaxis(np.reshape(boxes, [-1, 4]), -1, 0) - 0.5
    return np.stack([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]).transpose(2, 0, 1)


def test_bins_lie_where_deformable_pooling_samples(rng, ax):
    layer = layers.DeformableRoIPooling((3, 2), spatial_scale=0.5, offset_units=())
    features = rng.normal(size=(2, 6, 5, 4)).astype("float32")
    layer(features, BOXES)
    layer.predictor.bias.assign(rng.normal(0, 1, layer.predictor.bias.shape))
    assert visualization.plot_bins(IMAGE, layer, (features, BOXES), roi=1, ax=ax) is ax
    moved = layer.sampling_boxes(features, BOXES).numpy()[0, 1].reshape(6, 4)
    rest = layers.RoIAlign((3, 2), spatial_scale=0.5).sampling_boxes(features, BOXES)
    rest = rest.numpy()[0, 1].reshape(6, 4)
    np.testing.assert_allclose(lines(ax)[:6], corners(rest), atol=1e-4)
    np.testing.assert_allclose(lines(ax)[6:], corners(moved), atol=1e-4)
    start, end = arrows(ax)
    middles = [(each[:, :2] + each[:, 2:]) / 2 - 0.5 for each in (rest, moved)]
    np.testing.assert_allclose(start, middles[0], atol=1e-4)
    np.testing.assert_allclose(end, middles[1], atol=1e-4)
    assert [each.get_text() for each in ax.texts] == list("012345")
    places = [each.get_position() for each in ax.texts]
    np.testing.assert_allclose(places, middles[1], atol=1e-4)


def test_bins_of_a_class_of_position_sensitive_pooling(rng, ax):
    layer = layers.DeformablePSRoIPooling(2, 2, group_size=1, part_size=2)
    features = rng.normal(size=(2, 12, 9, 2)).astype("float32")
    offset = rng.normal(0, 2, (2, 2, 2, 2, 4)).astype("float32")
    inputs = (features, BOXES, offset)
    visualization.plot_bins(IMAGE, layer, inputs, class_index=1, ax=ax)
    moved = layer.sampling_boxes(*inputs).numpy()[0, 0, :, :, 1]
    rest = layer.sampling_boxes(features, BOXES).numpy()[0, 0]
    np.testing.assert_allclose(lines(ax), corners([rest.reshape(4, 4), moved.reshape(4, 4)]))


def test_bins_alone_and_of_layers_that_move_none(ax):
    layer = layers.RoIAlign(2)
    bins = layer.sampling_boxes(np.zeros([2, 12, 9, 1], "float32"), BOXES)
    visualization.plot_bins(IMAGE, bins, ax=ax)
    np.testing.assert_allclose(lines(ax), corners(bins[0, 0]))
    other = Figure().add_subplot()
    visualization.plot_bins(IMAGE, layer, (np.zeros([2, 12, 9, 1], "float32"), BOXES), ax=other)
    np.testing.assert_allclose(lines(other), lines(ax))


def test_turned_bins_lie_where_the_layer_samples(rng, ax):
    """A bin that samples once does so in its middle, which the oracle knows of."""
    layer = layers.RoIAlignRotated((2, 3), spatial_scale=0.5, sampling_ratio=1, clockwise=True)
    features = np.stack(np.meshgrid(np.arange(7.0), np.arange(6.0)), axis=-1)[None]  # (x, y)
    boxes = np.array([[[7.0, 6.0, 5.0, 4.0, 0.6]]])
    visualization.plot_bins(IMAGE, layer, (features, boxes), ax=ax)
    drawn = np.stack(lines(ax))
    pooled = layer(features, boxes).numpy().reshape(6, 2)
    middles = np.mean(drawn[:, :4], axis=1)
    np.testing.assert_allclose((middles + 0.5) * 0.5 - 0.5, pooled, atol=1e-5)
    sides = np.linalg.norm(np.diff(drawn, axis=1), axis=-1)
    np.testing.assert_allclose(sides, [[5 / 3, 2, 5 / 3, 2]] * 6, rtol=1e-6)
    np.testing.assert_allclose(np.diff(drawn[0, :2], axis=0)[0] * 3 / 5, [np.cos(0.6), np.sin(0.6)])


@pytest.mark.parametrize("align_corners", (False, True))
def test_the_outline_of_a_grid_is_its_border(align_corners, ax):
    layer = layers.SpatialTransformer(None, "affine", (20, 5), align_corners=align_corners)
    theta = np.float32([[0.5, 0.2, 0.1, -0.3, 0.6, 0.2]])
    assert visualization.plot_grid(IMAGE, layer, (IMAGE[None], theta), ax=ax) is ax
    grid = layer.sampling_grid(IMAGE[None], theta).numpy()[0]
    size = np.array([9, 12])
    points = (grid + 1) / 2 * (size - 1) if align_corners else ((grid + 1) * size - 1) / 2
    *inner, outline, upper = lines(ax)
    np.testing.assert_allclose(upper, points[0], atol=1e-5)
    border = {tuple(np.round(each, 3)) for each in points[[0, -1]].reshape(-1, 2)}
    border |= {tuple(np.round(each, 3)) for each in points[:, [0, -1]].reshape(-1, 2)}
    assert {tuple(np.round(each, 3)) for each in outline} == border
    # Of 20 rows seven inside are drawn, and all three inner columns
    assert [len(each) for each in inner] == [5] * 7 + [20] * 3
    np.testing.assert_allclose(inner[-1], points[:, 3], atol=1e-5)
    same = Figure().add_subplot()
    visualization.plot_grid(IMAGE, grid[None], align_corners=align_corners, ax=same)
    np.testing.assert_allclose(lines(same)[-2], outline, atol=1e-5)


def test_attention_is_drawn_where_a_query_looks(rng, ax):
    layer = layers.MultiScaleDeformableAttention(3, 4, num_points=2)
    maps = [rng.normal(size=(1, *size, 5)).astype("float32") for size in ((6, 4), (3, 2))]
    query = rng.normal(size=(1, 2, 6)).astype("float32")
    points = rng.uniform(0.3, 0.7, (1, 2, 2)).astype("float32")
    inputs = (query, points, maps)
    layer(*inputs)
    for weight in layer.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    assert visualization.plot_attention(IMAGE, layer, inputs, query=1, ax=ax) is ax
    locations = layer.sampling_locations(*inputs).numpy()[0, 1].reshape(6, 2, 2)
    np.testing.assert_allclose(scattered(ax), locations * [9, 12] - 0.5, atol=1e-5)
    np.testing.assert_allclose(lines(ax), [points[0, 1:] * [9, 12] - 0.5], atol=1e-5)
    weights = layer.sampling_weights(query).numpy()[0, 1].ravel()
    assert np.all(np.diff(np.ravel(sizes(ax))[np.argsort(weights)]) > 0)
    assert colours(ax) == [each for each in drawing.COLOURS[:3] for _ in range(2)]
    markers = [each.get_paths()[0].vertices.shape for each in ax.collections]
    assert markers[0] == markers[2] and markers[0] != markers[1]


def test_points_of_each_map_are_drawn_with_its_marker(rng, ax):
    layer = tfd.layers.MultiScaleDeformableAttention(2, 2, num_points=[3, 1])
    inputs = (
        rng.normal(size=(1, 3, 4)).astype("float32"),
        np.full((1, 3, 2), 0.5, "float32"),
        [np.zeros((1, 6, 5, 4), "float32"), np.zeros((1, 3, 2, 4), "float32")],
    )
    layer(*inputs)
    visualization.plot_attention(IMAGE, layer, inputs, ax=ax)
    assert [len(each.get_offsets()) for each in ax.collections] == [3, 1, 3, 1]
    locations = layer.sampling_locations(*inputs).numpy()[0, 0]
    found = np.concatenate([each.get_offsets() for each in ax.collections])
    np.testing.assert_allclose(found, locations.reshape(8, 2) * [9, 12] - 0.5, atol=1e-5)


def test_a_flow_leads_from_pixels_to_where_they_sample(rng, ax):
    flow = rng.normal(0, 2, (2, 30, 26, 2))
    image = rng.uniform(size=(30, 26))
    assert visualization.plot_flow(image, flow, ax=ax) is ax
    start, end = arrows(ax)
    y, x = start.astype(int).T[::-1]
    np.testing.assert_allclose(start, np.stack([x, y], axis=-1))
    np.testing.assert_allclose(end - start, flow[0, y, x][:, ::-1])
    assert np.unique(y).tolist() == list(range(1, 30, 3))
    assert np.unique(x).tolist() == list(range(0, 26, 3))


def test_no_arrow_leads_nowhere(ax):
    flow = np.zeros([1, 12, 9, 2])
    flow[0, 0, 0], flow[0, 1, 1] = (1, 2), np.nan
    visualization.plot_flow(IMAGE, flow, ax=ax)
    np.testing.assert_allclose(arrows(ax), [[[0, 0]], [[2, 1]]])


def test_small_axes_have_thinner_and_fewer_lines_smaller_taps_and_no_numbers(ax):
    figure = Figure(figsize=(2, 2))
    small, bins = figure.add_axes((0, 0, 0.8, 0.8)), np.ones([1, 1, 2, 2, 4])  # half the full size
    grid, taps = np.zeros([1, 20, 20, 2]), np.ones([1, 1, 1, 1, 2, 2])
    for axes in (ax, small):
        visualization.plot_bins(IMAGE, bins, ax=axes)
        visualization.plot_taps(IMAGE, taps, pixel=(0, 0), ax=axes)
        visualization.plot_grid(IMAGE, grid, ax=axes)
    assert (len(ax.texts), len(small.texts)) == (4, 0)
    assert (len(ax.lines), len(small.lines)) == (4 + 7 + 7 + 2, 4 + 3 + 3 + 2)
    assert small.lines[0].get_linewidth() == pytest.approx(ax.lines[0].get_linewidth() / 2)
    np.testing.assert_allclose(sizes(small), np.divide(sizes(ax), 4))


# Axes, images, errors

FLOW = np.ones([1, 12, 9, 2])


def test_new_axes_are_made_if_none_are_given_and_else_no_state_is_changed(ax):
    before, settings = pyplot.get_fignums(), dict(pyplot.rcParams)
    visualization.plot_flow(IMAGE, FLOW, ax=ax)
    visualization.png_of(lambda ax: visualization.plot_flow(IMAGE, FLOW, ax=ax))
    assert pyplot.get_fignums() == before
    made = visualization.plot_flow(IMAGE, FLOW)
    assert dict(pyplot.rcParams) == settings
    (number,) = set(pyplot.get_fignums()) - set(before)
    assert made.figure is pyplot.figure(number)
    pyplot.close(number)


@pytest.mark.parametrize(
    ("image", "shown"),
    (
        (IMAGE, IMAGE),
        (IMAGE[..., 0], IMAGE[..., 0]),
        (IMAGE[..., :1], IMAGE[..., 0]),
        ((IMAGE * 255).astype("uint8"), (IMAGE * 255).astype("uint8") / 255),
        (4 * IMAGE[..., 0] - 2, None),
    ),
)
def test_images_of_every_kind_are_shown(image, shown, ax):
    visualization.plot_flow(image, FLOW, ax=ax)
    (picture,) = ax.images
    drawn = np.asarray(picture.get_array())
    if shown is None:  # stretched to 0 and 1
        low, high = image.min(), image.max()
        shown = (image - low) / (high - low)
    np.testing.assert_allclose(drawn, shown, atol=1e-6)
    assert picture.get_clim() == (0, 1)


def test_a_convolution_of_the_image_itself_needs_no_inputs(rng, ax):
    layer = convolution(rng)
    visualization.plot_taps(IMAGE, layer, pixel=(2, 2), ax=ax)
    expected = layer.sampling_positions(IMAGE[None]).numpy()[0, 2, 2, 0]
    np.testing.assert_allclose(scattered(ax)[1], expected[:, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda v: v.plot_flow(IMAGE[..., :2], FLOW), r"image must have shape.*\(12, 9, 2\)"),
        (lambda v: v.plot_flow(IMAGE.astype(int), FLOW), "image must be floating-point or uint8"),
        (lambda v: v.plot_flow(IMAGE, FLOW[0]), r"flow must have 4 axes, the last of 2"),
        (lambda v: v.plot_flow(IMAGE, FLOW[:, 1:]), r"flow must have the image's size \(12, 9\)"),
        (lambda v: v.plot_taps(IMAGE, FLOW, pixel=(0, 0)), r"positions must have 6 axes"),
        (
            lambda v: v.plot_taps(IMAGE, np.zeros([1, 3, 2, 1, 9, 2]), pixel=(1, 2)),
            r"pixel must lie inside \(3, 2\), received \(1, 2\)",
        ),
        (
            lambda v: v.plot_taps(IMAGE, layers.DeformableConv1D(2, 3), FLOW[0], pixel=(1, 2)),
            r"layer must be of images, received inputs of 1 axes",
        ),
        (lambda v: v.plot_bins(IMAGE, np.zeros([1, 2, 3, 4])), r"boxes must have shape"),
        (lambda v: v.plot_bins(IMAGE, layers.RoIAlign(2), IMAGE), r"inputs must be \(features"),
        (
            lambda v: v.plot_bins(IMAGE, np.zeros([1, 2, 3, 4, 4]), roi=2),
            r"roi must lie inside \(2,\), received \(2,\)",
        ),
        (lambda v: v.plot_grid(IMAGE, FLOW[..., :1]), r"grid must have 4 axes"),
        (lambda v: v.plot_attention(IMAGE, FLOW), r"locations must have 6 axes"),
    ),
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(visualization)
    pyplot.close("all")


@pytest.mark.parametrize("name", visualization.__all__)
def test_without_matplotlib_the_error_names_the_extra(name, monkeypatch):
    for module in [each for each in sys.modules if each.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    options = {"pixel": (0, 0)} if name == "plot_taps" else {}
    with pytest.raises(ImportError, match=rf'{name} needs.*pip install "tf_deform\[plot\]"'):
        getattr(visualization, name)(IMAGE, FLOW, **options)


def test_a_png_has_the_size_it_says():
    file = visualization.png_of(lambda ax: visualization.plot_flow(IMAGE, FLOW, ax=ax))
    assert tf.io.decode_png(file).shape[:2] == (visualization.PICTURE_SIZE,) * 2


def test_keras_is_not_asked_to_trace(rng, ax):
    """A layer inside a model is drawn with the features that the model computes for it."""
    inputs = keras.Input((12, 9, 3))
    layer = layers.DeformableConv2D(4, 3, padding="same", name="deformable")
    model = keras.Model(inputs, layer(keras.layers.Conv2D(5, 3, padding="same")(inputs)))
    features = keras.Model(inputs, layer.input)(IMAGE[None])
    visualization.plot_taps(IMAGE, model.get_layer("deformable"), features, pixel=(0, 0), ax=ax)
    expected = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    np.testing.assert_allclose(scattered(ax)[1], expected)
