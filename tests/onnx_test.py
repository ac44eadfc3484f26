"""Exported ONNX files compute what the models compute, with the standard's operators."""

import collections
import itertools
import sys

import keras
import numpy as np
import onnx
import onnx.reference
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

CHANNELS = 6
FREE = (None, None)
SIZES = [(9, 7), (10, 12)]
RANDOM = {"offset_kernel_initializer": keras.initializers.RandomNormal(stddev=0.3, seed=1)}

# The newest onnxruntime for Python 3.10 cannot run DeformConv: ONNX's own evaluator stands in. It
# takes no infinities there, computes in float32, and at a border moves a cubic sample as a whole.
RUNTIME = sys.version_info >= (3, 11)
if RUNTIME:
    import onnxruntime

    def evaluator(path):
        return onnxruntime.InferenceSession(path)
else:
    evaluator = onnx.reference.ReferenceEvaluator


def exported(model, folder, **options):
    """Returns the file's path and how often it holds each operator."""
    path = str(folder / "model.onnx")
    tfd.export_onnx(model, path, **options)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert [each.version for each in written.opset_import if not each.domain] == [20]
    assert {node.domain for node in written.graph.node} <= {""}
    return path, collections.Counter(node.op_type for node in written.graph.node)


def assert_equal(path, model, *arrays, run=evaluator, tolerance=TOLERANCE["float32"]):
    """Asserts that the file returns each output of the model, for inputs in the model's order."""
    feeds = dict(zip((each.name for each in onnx.load(path).graph.input), arrays, strict=True))
    actual = run(path).run(None, feeds)
    expected = model(list(arrays) if len(arrays) > 1 else arrays[0])
    for ours, theirs in zip(tf.nest.flatten(expected), actual, strict=True):
        assert relative_error(theirs, ours) < tolerance


def images_of(rng, size, batch=3):
    return rng.normal(size=(batch, *size, CHANNELS)).astype("float32")


# Deformable convolutions


def plane_convolutions(size):
    inputs = keras.Input((*size, CHANNELS))
    conv = tfd.layers.DeformableConv2D
    outputs = [
        conv(4, 3, **RANDOM)(inputs),
        conv(4, (3, 2), 2, "same", groups=2, modulated=True, **RANDOM)(inputs),
        conv(5, 3, 2, ((2, 1), (0, 3)), deformable_groups=3, max_offset=2.0, **RANDOM)(inputs),
        conv(6, (2, 3), (1, 2), 2, dilation_rate=(1, 2), groups=3, **RANDOM)(inputs),
        conv(
            4, 3, 1, "same", "channels_first", modulated=True, mask_scale=1.0, deformable_groups=2
        )(keras.layers.Permute((3, 1, 2))(inputs)),
    ]
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES], ids=["fixed", "free"])
def test_plane_convolutions_become_deform_conv(sizes, tmp_path, rng):
    model = plane_convolutions(FREE if len(sizes) > 1 else sizes[0])
    path, operators = exported(model, tmp_path)
    assert operators["DeformConv"] == len(model.outputs)
    assert not {"Gather", "GatherND"} & set(operators)
    for size in sizes:
        assert_equal(path, model, images_of(rng, size))


def test_deform_conv_is_the_one_that_onnx_defines(tmp_path, rng):
    inputs = keras.Input((4, 3, 4))
    layer = tfd.layers.DeformableConv2D(
        2, (2, 3), (2, 1), "same", groups=2, deformable_groups=2, modulated=True, **RANDOM
    )
    model = keras.Model(inputs, layer(inputs))
    path, _ = exported(model, tmp_path)
    images = rng.normal(size=(2, 4, 3, 4)).astype("float32")
    assert_equal(path, model, images, run=onnx.reference.ReferenceEvaluator)


def test_given_offsets_may_be_anything_and_float64_stays(tmp_path, rng):
    inputs = [keras.Input(shape, dtype="float64") for shape in ((9, 7, 2), (9, 7, 18), (9, 7, 9))]
    layer = tfd.layers.DeformableConv2D(
        3, 3, padding="same", modulated=True, use_bias=False, dtype="float64"
    )
    model = keras.Model(inputs, layer(*inputs))
    path, operators = exported(model, tmp_path)
    assert operators["DeformConv"] == 1
    arrays = [rng.normal(0, 2, (2, *each.shape[1:])) for each in inputs]
    anything = [np.nan, np.inf, -np.inf, 1e9, -1e30] if RUNTIME else [1e9, -1e9]
    arrays[1][..., ::5] = rng.choice(anything, (2, 9, 7, 4))
    tolerance = TOLERANCE["float64" if RUNTIME else "float32"]
    assert_equal(path, model, *arrays, tolerance=tolerance)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks_become_gathers(rank, tmp_path, rng):
    layer = {1: tfd.layers.DeformableConv1D, 3: tfd.layers.DeformableConv3D}[rank]
    inputs = keras.Input((*(5, 4, 6)[:rank], 2))
    model = keras.Model(inputs, layer(3, 2, padding="same", modulated=True, **RANDOM)(inputs))
    path, operators = exported(model, tmp_path)
    assert not operators["DeformConv"]
    assert_equal(path, model, rng.normal(size=(3, *inputs.shape[1:])).astype("float32"))


def test_half_precision_models_convolve_in_float32(tmp_path, rng):
    inputs = keras.Input((9, 7, CHANNELS))
    layer = tfd.layers.DeformableConv2D(4, 3, dtype="mixed_float16", **RANDOM)
    model = keras.Model(inputs, layer(inputs))
    path, _ = exported(model, tmp_path)
    assert_equal(path, model, images_of(rng, (9, 7)), tolerance=2 * TOLERANCE["float16"])


# Grid samples


OPTIONS = list(
    itertools.product(
        ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (False, True)
    )
)


def grid_samples(rank, options):
    inputs = [keras.Input((*(6, 9, 7)[-rank:], 2)), keras.Input((*(2, 5, 4)[-rank:], rank))]
    return keras.Model(
        inputs,
        [
            tfd.layers.GridSample(interpolation=mode, padding_mode=padding, align_corners=align)(
                *inputs
            )
            for mode, padding, align in options
        ],
    )


@pytest.mark.parametrize("rank", [2, 3])
def test_grid_samples_become_grid_sample_in_every_mode(rank, tmp_path, rng):
    options = [each for each in OPTIONS if rank == 2 or each[0] != "bicubic"]
    if not RUNTIME:
        options = [each for each in options if each[:2] != ("bicubic", "border")]
    model = grid_samples(rank, options)
    path, operators = exported(model, tmp_path)
    assert operators["GridSample"] == len(options)
    images, grid = (each.shape[1:] for each in model.inputs)
    grid = rng.uniform(-1.6, 1.6, (3, *grid)).astype("float32")
    grid[0, ..., :3, 0] = np.nan, np.inf, -np.inf
    assert_equal(path, model, rng.normal(size=(3, *images)).astype("float32"), grid)


def test_positions_far_outside_follow_the_border_rule(tmp_path, rng):
    model = grid_samples(2, [each for each in OPTIONS if each[1] != "reflection"])
    path, _ = exported(model, tmp_path)
    images, grid = (each.shape[1:] for each in model.inputs)
    grid = rng.choice(np.float32([0.1, 1e9, -3e9, 1e30, -1e30]), (2, *grid))
    assert_equal(path, model, rng.normal(size=(2, *images)).astype("float32"), grid)


def spatial_transformers(size):
    counts = {
        "translation": 2,
        "attention": 3,
        "similarity": 4,
        "affine": 6,
        "projective": 8,
        "thin_plate_spline": 8,
    }
    images = keras.Input((*size, CHANNELS))
    parameters = [keras.Input((count,)) for count in counts.values()]
    outputs = [
        tfd.layers.SpatialTransformer(None, kind, control_points=(2, 2))(images, each)
        for kind, each in zip(counts, parameters, strict=True)
    ]
    locate = keras.layers.GlobalAveragePooling2D()
    outputs.append(tfd.layers.SpatialTransformer(locate, output_size=(5, 4))(images))
    return keras.Model([images, *parameters], outputs)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES], ids=["fixed", "free"])
def test_spatial_transformers_become_grid_sample(sizes, tmp_path, rng):
    model = spatial_transformers(FREE if len(sizes) > 1 else sizes[0])
    path, operators = exported(model, tmp_path)
    assert operators["GridSample"] == len(model.outputs)
    for size in sizes:
        parameters = [rng.normal(size=(3, each.shape[1])) for each in model.inputs[1:]]
        parameters = [each.astype("float32") for each in parameters]
        assert_equal(path, model, images_of(rng, size), *parameters)


# Regions and attention


def test_roi_align_becomes_roi_align_for_any_number_of_boxes(tmp_path, rng):
    inputs = [keras.Input((*FREE, CHANNELS)), keras.Input((None, 4))]
    outputs = [
        tfd.layers.RoIAlign((2, 3), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)(
            *inputs
        )
        for ratio, aligned in itertools.product((0, 1, 2), (False, True))
    ]
    model = keras.Model(inputs, outputs)
    path, operators = exported(model, tmp_path)
    assert operators["RoiAlign"] == len(outputs)
    for size, rois in zip(SIZES, (4, 5), strict=True):
        boxes = rng.uniform([-2, -2, 8, 8], [8, 8, 22, 22], (3, rois, 4)).astype("float32")
        boxes[0, 0, 2] = np.nan
        assert_equal(path, model, images_of(rng, size), boxes)


@pytest.mark.skipif(not RUNTIME, reason="ONNX's own evaluator knows no boxes of negative size")
def test_inverted_boxes_give_what_they_give_here_with_any_sampling_ratio(tmp_path, rng):
    inputs = [keras.Input((9, 7, CHANNELS)), keras.Input((None, 4))]
    options = itertools.product((0, 2), (False, True))
    outputs = [
        tfd.layers.RoIAlign((2, 3), sampling_ratio=ratio, aligned=aligned)(*inputs)
        for ratio, aligned in options
    ]
    model = keras.Model(inputs, outputs)
    path, _ = exported(model, tmp_path)
    inverted = [[8, 0, 0, 6], [0, 6, 8, 0], [5, 5, 2, 2], [3, 1, 3, 6], [4, 4, 4, 4], [1, 2, 5, 6]]
    assert_equal(path, model, images_of(rng, (9, 7)), np.float32([inverted] * 3))


def pyramid(features):
    return [features, keras.layers.AveragePooling2D(2)(features)]


BOXES = [(None, 4)]
QUERIES = [(5, 4), (5, 2)]
GATHERING = {
    "MultiScaleRoIAlign": (
        BOXES,
        lambda features, boxes: tfd.layers.MultiScaleRoIAlign(
            2, scales=(0.5, 0.25), canonical_size=8, canonical_level=2, sampling_ratio=1
        )(pyramid(features), boxes),
    ),
    "PSRoIAlign": (BOXES, tfd.layers.PSRoIAlign((1, 3), 2, sampling_ratio=1)),
    "DeformableRoIPooling": (BOXES, tfd.layers.DeformableRoIPooling(2, offset_units=(5,))),
    "DeformablePSRoIPooling": (
        BOXES,
        tfd.layers.DeformablePSRoIPooling((3, 2), CHANNELS, group_size=1, part_size=2),
    ),
    "MultiScaleDeformableAttention": (
        QUERIES,
        lambda features, query, points: tfd.layers.MultiScaleDeformableAttention(2, 3)(
            query, points, pyramid(features)
        ),
    ),
    "DCNv3": ([], tfd.layers.DCNv3(2, groups=2)),
    "DCNv4": ([], tfd.layers.DCNv4(2, groups=2, strides=2)),
    "DenseImageWarp": ([(9, 7, 2)], tfd.layers.DenseImageWarp()),
}


@pytest.mark.parametrize("name", GATHERING)
def test_the_other_layers_become_gathers_of_equal_values(name, tmp_path, rng):
    shapes, layer = GATHERING[name]
    inputs = [keras.Input((9, 7, CHANNELS)), *map(keras.Input, shapes)]
    model = keras.Model(inputs, layer(*inputs))
    for weight in model.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    path, _ = exported(model, tmp_path)
    arrays = [rng.normal(size=(3, *[each or 4 for each in shape])) for shape in shapes]
    if shapes == BOXES:
        arrays[0] = rng.uniform([0, 0, 4, 4], [4, 4, 9, 9], (3, 4, 4))
        arrays[0][:, 0] = [-99, -99, 2, 2], [5, 5, 99, 99], [np.nan] * 4
    arrays = [images_of(rng, (9, 7)), *[each.astype("float32") for each in arrays]]
    assert_equal(path, model, *arrays)
    if RUNTIME:
        assert_equal(path, model, *[each[:0] for each in arrays])
        assert_equal(path, model, *[each[:1] for each in arrays])


@pytest.mark.skipif(not RUNTIME, reason="ONNX's own evaluator takes nothing empty")
@pytest.mark.parametrize("size", [(None, 7), (9, None)], ids=["height", "width"])
def test_one_of_height_and_width_may_be_free_and_there_may_be_no_images(size, tmp_path, rng):
    images = keras.Input((*size, CHANNELS))
    model = keras.Model(images, tfd.layers.DCNv3(2, groups=2)(images))
    path, _ = exported(model, tmp_path)
    for height, width in SIZES:
        sizes = size[0] or height, size[1] or width
        for batch in (0, 1, 3):
            assert_equal(path, model, images_of(rng, sizes, batch))


# Around the operators


def small_model(layer):
    images = keras.Input((None, None, 3), name="images")
    boxes = keras.Input((None, 4))
    return keras.Model([images, boxes], {"moved": layer(images), "scaled": 2 * boxes})


def names_and_shapes(values):
    return {
        each.name: [size.dim_value or None for size in each.type.tensor_type.shape.dim]
        for each in values
    }


def test_inputs_and_outputs_have_names_and_free_sizes(tmp_path):
    path, _ = exported(small_model(tfd.layers.DeformableConv2D(4, 3)), tmp_path)
    graph = onnx.load(path).graph
    assert names_and_shapes(graph.input) == {
        "images": [None, None, None, 3],
        "inputs_1": [None, None, 4],
    }
    assert names_and_shapes(graph.output) == {
        "moved": [None, None, None, 4],
        "scaled": [None, None, 4],
    }


class Traced(keras.layers.Layer):
    """A layer with a tf.function of its own."""

    def __init__(self):
        super().__init__()
        self.kernel = np.ones([3, 3, 3, 2], "float32")

    @tf.function
    def call(self, inputs):
        return tfd.ops.deformable_conv(
            inputs, self.kernel, tf.zeros([tf.shape(inputs)[0], 9, 7, 18]), padding="same"
        )

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2)


@pytest.mark.parametrize("called_before", [True, False])
def test_functions_inside_the_model_are_written_as_gathers_and_still_run(
    called_before, tmp_path, rng
):
    layer = Traced()
    inputs = keras.Input((9, 7, 3))
    model = keras.Model(inputs, layer(inputs))
    images = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    if called_before:
        model(images)
    path, operators = exported(model, tmp_path)
    assert not operators["DeformConv"]
    assert_equal(path, model, images)


def test_the_chosen_implementation_stays(tmp_path):
    with tfd.use_implementation("compiled"):
        model = small_model(tfd.layers.DeformableConv2D(4, 3))
        _, operators = exported(model, tmp_path)
        probe = tf.function(lambda x: tfd.ops.sample(x, [[[0.5]]]))
        graph = probe.get_concrete_function(tf.ones([1, 2, 1])).graph
    assert operators["DeformConv"] == 1
    assert "TfDeform>WeightedSample" in {each.type for each in graph.get_operations()}


def test_what_onnx_cannot_express_is_named_and_nothing_is_written(tmp_path):
    def doubled(images):
        double = tf.numpy_function(lambda x: 2 * x, [images], tf.float32, stateful=False)
        return tf.ensure_shape(double, images.shape)

    model = small_model(keras.layers.Lambda(doubled, output_shape=(None, None, 3)))
    with pytest.raises(ValueError, match="received PyFuncStateless"):
        tfd.export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_tensors_that_a_model_keeps_are_constants_of_the_file(tmp_path, rng):
    kept, unread = tf.constant(rng.normal(size=(6, 3)), tf.float32), tf.ones([2])

    def moved(images):
        return images @ kept + tf.reduce_sum(unread[:0])

    inputs = keras.Input((9, 7, CHANNELS), name="images")
    normalization = keras.layers.Normalization(mean=[1.0] * 6, variance=[4.0] * 6)
    layer = keras.layers.Lambda(moved, output_shape=(9, 7, 3))
    model = keras.Model(inputs, layer(normalization(inputs)))
    path, _ = exported(model, tmp_path)
    assert names_and_shapes(onnx.load(path).graph.input) == {"images": [None, 9, 7, CHANNELS]}
    assert_equal(path, model, images_of(rng, (9, 7)))


def test_grouped_convolutions_of_keras_which_xla_compiles_are_written(rng, tmp_path):
    inputs = keras.Input((9, 7, CHANNELS), name="images")
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, groups=2)(inputs))
    path, _ = exported(model, tmp_path)
    assert_equal(path, model, images_of(rng, (9, 7)))


def test_models_without_known_inputs_need_a_signature(tmp_path):
    class Model(keras.Model):
        def call(self, inputs):
            return {"sum": inputs["a"] + inputs["b"]}

    with pytest.raises(ValueError, match="input_signature"):
        tfd.export_onnx(Model(), tmp_path / "model.onnx")
    specs = {name: tf.TensorSpec([None, 3], name=name) for name in ("a", "b")}
    path, _ = exported(Model(), tmp_path, input_signature=specs)
    graph = onnx.load(path).graph
    assert names_and_shapes(graph.output) == {"sum": [None, 3]}


@pytest.mark.parametrize("package", ["tf2onnx", "onnx"])
def test_without_the_packages_the_error_says_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"tf_deform\[onnx\]"):
        tfd.export_onnx(small_model(keras.layers.Dense(2)), tmp_path / "model.onnx")


# From tf2onnx's opset to ours the version is set by hand, which is right if nothing changed that
# tf2onnx writes: neither GridSample nor DFT.


def test_operators_only_grew_between_the_opset_written_and_the_one_declared():
    for schema in onnx.defs.get_all_schemas():
        if schema.domain or not onnx.defs.has(schema.name, 18):
            continue
        before, after = (onnx.defs.get_schema(schema.name, version, "") for version in (18, 20))
        same = len(after.inputs) >= len(before.inputs) and all(
            each.default_value == after.attributes[name].default_value
            for name, each in before.attributes.items()
            if name in after.attributes
        )
        same = same and set(before.attributes) <= set(after.attributes)
        same = same and len(before.outputs) == len(after.outputs)
        assert same == (schema.name not in ("GridSample", "DFT")), schema.name
