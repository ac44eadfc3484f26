"""Models of every layer run where tf_deform is not installed: as SavedModel and as LiteRT."""

import fcntl
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error, run_litert
from tf_deform import export
from tf_deform.compiled import loading

CHANNELS = 6

# Runs each model on two sizes of inputs and writes what comes out.
SERVING = """
import sys
sys.modules["tf_deform"] = None  # importing it raises ImportError
import numpy as np
import tensorflow as tf
for path in sys.argv[2:]:
    model, family = tf.saved_model.load(path), path.rpartition("/")[2]
    for size in ("small", "large"):
        inputs = np.load(f"{sys.argv[1]}/{family}_{size}.npz")
        arrays = [tf.constant(inputs[name]) for name in inputs.files]
        outputs = model.serve(arrays if len(arrays) > 1 else arrays[0])
        if isinstance(outputs, dict):
            (outputs,) = outputs.values()
        np.save(f"{sys.argv[1]}/{family}_{size}_served.npy", outputs)
try:
    import tf_deform
except ImportError:
    print("served without tf_deform")
"""


def convolutions(size):
    """Returns a model of all deformable convolutions, on images of a size that may be free."""
    inputs = keras.Input((*size, CHANNELS))
    offsets = {"offset_kernel_initializer": keras.initializers.RandomNormal(0, 0.3)}
    plane = tfd.layers.DeformableConv2D(4, 3, padding="same", modulated=True, **offsets)(inputs)
    strided = tfd.layers.DeformableConv2D(
        4, (3, 2), strides=2, dilation_rate=2, padding="same", groups=2, max_offset=2.0, **offsets
    )(inputs)
    first = tfd.layers.DeformableConv2D(
        5, 3, padding="same", data_format="channels_first", deformable_groups=2, **offsets
    )(keras.layers.Permute((3, 1, 2))(inputs))
    line = keras.ops.max(inputs, axis=1)
    line = tfd.layers.DeformableConv1D(4, 3, padding="causal", **offsets)(line)
    volume = keras.ops.stack([inputs, -inputs, inputs], axis=1)
    volume = tfd.layers.DeformableConv3D(4, (2, 3, 1), modulated=True, **offsets)(volume)
    return joined(inputs, [plane, strided, first, line, volume])


def roi_pooling(size, sampling_ratio=0):
    inputs = [keras.Input((*size, CHANNELS)), keras.Input((None if None in size else 3, 4))]
    features, boxes = inputs
    adaptive = {"spatial_scale": 0.5, "sampling_ratio": sampling_ratio}
    pooled = [
        tfd.layers.RoIAlign((2, 3), **adaptive)(*inputs),
        tfd.layers.MultiScaleRoIAlign(2, scales=(0.5, 0.25), canonical_size=8, canonical_level=2)(
            [features, keras.layers.AveragePooling2D(2)(features)], boxes
        ),
        tfd.layers.PSRoIAlign((1, 3), 2, spatial_scale=0.5)(*inputs),
        tfd.layers.DeformableRoIPooling(2, spatial_scale=0.5, modulated=True, offset_units=(5,))(
            *inputs
        ),
        tfd.layers.DeformablePSRoIPooling((3, 2), CHANNELS, group_size=1, part_size=2)(*inputs),
    ]
    return joined(inputs, pooled)


def spatial_transformers(size):
    inputs = [keras.Input((*size, CHANNELS)), keras.Input((4, 5, 2))]
    outputs = [tfd.layers.GridSample(interpolation="bicubic", padding_mode="border")(*inputs)]
    for index, transformation in enumerate(("affine", "projective", "thin_plate_spline")):
        layer = tfd.layers.SpatialTransformer(
            keras.layers.GlobalAveragePooling2D(),
            transformation,
            (5, 4) if index else None,
            padding_mode="reflection",
        )
        outputs.append(layer(inputs[0]))
    velocity = keras.layers.Conv2D(2, 3, padding="same")(inputs[0])
    flow = keras.layers.Lambda(tfd.ops.integrate_velocity)(velocity)
    outputs.append(tfd.layers.DenseImageWarp()(inputs[0], flow))
    return joined(inputs, outputs)


def attention(size):
    queries = None if None in size else 5
    inputs = [
        keras.Input((*size, CHANNELS)),
        keras.Input((queries, 4)),
        keras.Input((queries, 2)),
        keras.Input((queries, 3, 4)),
    ]
    features, query, points, boxes = inputs
    maps = [features, keras.layers.AveragePooling2D(2)(features), features]
    masks = [each[..., 0] > -1 for each in maps]
    attend = tfd.layers.MultiScaleDeformableAttention
    outputs = [
        attend(2, 3)(query, points, maps[:2]),
        attend(3, 2, num_points=2)(query, boxes, maps, masks),
    ]
    options = {"strides": (1, 2), "groups": 2, "depthwise_kernel_size": (1, 3)}
    for layer in (tfd.layers.DCNv3, tfd.layers.DCNv4):
        outputs.append(layer((2, 3), center_feature_scale=True, **options)(features))
    return joined(inputs, outputs)


def joined(inputs, outputs):
    """Returns a model with random weights, all outputs in one row."""
    # Keras 3.7's Flatten does not take sizes that are free.
    flat = [keras.layers.Reshape((-1,))(each) for each in outputs]
    model = keras.Model(inputs, keras.layers.Concatenate(name="row")(flat))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return model


FAMILIES = {
    "convolutions": convolutions,
    "roi_pooling": roi_pooling,
    "spatial_transformers": spatial_transformers,
    "attention": attention,
}
SIZES = {"small": (9, 7), "large": (10, 12)}


def arguments_of(family, size, batch=2):
    rng = np.random.default_rng(2)
    second = {
        "convolutions": [],
        "roi_pooling": [rng.uniform([0, 0, 7, 7], [7, 7, 14, 14], (batch, 3, 4))],
        "spatial_transformers": [rng.uniform(-1.1, 1.1, (batch, 4, 5, 2))],
        "attention": [
            rng.normal(size=(batch, 5, 4)),
            *(rng.uniform(0, 1, (batch, *shape)) for shape in ((5, 2), (5, 3, 4))),
        ],
    }[family]
    arguments = [rng.normal(size=(batch, *size, CHANNELS)), *second]
    return [each.astype("float32") for each in arguments]


def call(model, arguments):
    """Returns the outputs: Keras 3.7 exports a list of one input as that input."""
    return model(arguments if len(arguments) > 1 else arguments[0])


def exported(family, tmp_path_factory):
    """Returns a model of free sizes and its folder, exported once for all test processes."""
    keras.utils.set_random_seed(0)
    model = FAMILIES[family]((None, None))
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / f"{family} lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / family).exists():
            tfd.export_saved_model(model, folder / family)
    return model, folder / family


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Returns for each family and size the models' outputs here and in a process without us.

    Keras's own `model.export` writes the convolutions, and `tfd.export_saved_model` the others.
    """
    folder = tmp_path_factory.mktemp("export")
    expected, paths = {}, []
    for family, make in FAMILIES.items():
        if family == "convolutions":
            keras.utils.set_random_seed(0)
            model, path = make((None, None)), folder / family
            model.export(path, verbose=False)
        else:
            model, path = exported(family, tmp_path_factory)
        paths.append(str(path))
        for size in SIZES:
            arguments = arguments_of(family, SIZES[size], batch=len(size) - 3)
            np.savez(folder / f"{family}_{size}.npz", *arguments)
            expected[family, size] = np.array(call(model, arguments))
    result = subprocess.run(
        [sys.executable, "-c", SERVING, str(folder), *paths],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "served without tf_deform\n"
    return {
        key: (np.load(folder / f"{key[0]}_{key[1]}_served.npy"), outputs)
        for key, outputs in expected.items()
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_runs_in_a_process_that_cannot_import_us(family, size, served):
    actual, expected = served[family, size]
    assert relative_error(actual, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_convert_to_litert_with_builtin_operators(family):
    options = {"sampling_ratio": 2} if family == "roi_pooling" else {}
    model = FAMILIES[family]((9, 7), **options)
    arguments = arguments_of(family, (9, 7), batch=1)
    actual = run_litert(lambda *each: call(model, each), *arguments)
    assert relative_error(actual, call(model, arguments)) < TOLERANCE["float32"]


# tfd.export_saved_model


def two_inputs():
    images = keras.Input((None, None, 3), name="images")
    boxes = keras.Input((None, 4))
    return keras.Model([images, boxes], tfd.layers.RoIAlign(2, name="regions")(images, boxes))


SAMPLES = [np.ones((2, 9, 7, 3), "float32"), np.ones((2, 4, 4), "float32")]


def test_inputs_and_outputs_have_names_and_free_sizes(tmp_path):
    model = two_inputs()
    tfd.export_saved_model(model, tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1")
    signature = served.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    shapes = {name: each.shape.as_list() for name, each in specs.items()}
    assert shapes == {"images": [None, None, None, 3], "inputs_1": [None, None, 4]}
    assert signature.structured_outputs["regions"].shape.as_list() == [None, None, 2, 2, 3]
    np.testing.assert_array_equal(served.serve(SAMPLES)["regions"], model(SAMPLES))


def test_subclassed_models_and_dictionaries_keep_their_keys(tmp_path):
    class Model(keras.Model):
        def call(self, inputs):
            return {"sum": inputs["a"] + inputs["b"]}

    model = Model()
    samples = {"a": tf.ones([2, 3]), "b": tf.ones([2, 3])}
    model(samples)
    with pytest.raises(ValueError, match="input_signature"):
        tfd.export_saved_model(model, tmp_path / "1")
    specs = {name: tf.TensorSpec([None, 3], name=name) for name in samples}
    tfd.export_saved_model(model, tmp_path / "1", input_signature=specs)
    signature = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    np.testing.assert_array_equal(signature(**samples)["sum"], np.full((2, 3), 2.0))


def test_warmup_holds_requests_that_the_signatures_answer(tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2

    model = keras.Sequential([keras.Input((8, 6, 3)), keras.layers.Flatten(name="row")])
    samples = np.random.default_rng(0).random((2, 8, 6, 3))
    tfd.export_saved_model(model, tmp_path / "1", image_size=(8, 6), warmup=samples)
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    records = tf.data.TFRecordDataset(
        f"{tmp_path}/1/assets.extra/tf_serving_warmup_requests"
    ).as_numpy_iterator()
    answers = {}
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        name = request.model_spec.signature_name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        answers[name] = signatures[name](**inputs)["row"]
    assert set(answers) == {"serving_default", "serve_image_bytes"}
    np.testing.assert_array_equal(answers["serving_default"], model(samples))
    np.testing.assert_array_equal(answers["serve_image_bytes"], np.zeros((1, 144)))


def test_warmup_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    with pytest.raises(ImportError, match=r"tf_deform\[serving\]"):
        tfd.export_saved_model(two_inputs(), tmp_path / "1", warmup=SAMPLES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "auto"}, "implementation must be 'portable' or 'compiled'"),
        ({"image_size": (8, 6)}, r"image_size needs a model of one floating input"),
        ({"warmup": SAMPLES[:1]}, "warmup must have 2 inputs, received 1"),
        ({"warmup": SAMPLES[::-1]}, "warmup must have 'images' of shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tfd.export_saved_model(two_inputs(), tmp_path / "1", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_written_to(tmp_path):
    (tmp_path / "variables").touch()
    with pytest.raises(FileExistsError, match="not there yet or empty"):
        tfd.export_saved_model(two_inputs(), tmp_path)


def test_the_compiled_implementation_says_why_it_cannot_be_used(tmp_path, monkeypatch):
    model = two_inputs()
    monkeypatch.setattr(loading, "load", lambda: loading.Loaded(reason="no such file"))
    with pytest.raises(RuntimeError, match="cannot be used: no such file"):
        tfd.export_saved_model(model, tmp_path / "1", implementation="compiled")


@pytest.mark.parametrize("trained_with", ["portable", "compiled"])
@pytest.mark.parametrize("wanted", ["portable", "compiled"])
def test_the_export_holds_the_implementation_asked_for(tmp_path, trained_with, wanted):
    with tfd.use_implementation(trained_with):
        model = two_inputs()
        expected = model.predict(SAMPLES, verbose=0)
    tfd.export_saved_model(model, tmp_path / "1", implementation=wanted)
    assert bool(export.custom_ops(tmp_path / "1")) == (wanted == "compiled")
    served = tf.saved_model.load(tmp_path / "1")
    assert relative_error(served.serve(SAMPLES)["regions"], expected) < TOLERANCE["float32"]


def test_a_custom_op_in_a_function_traced_before_is_found_and_nothing_is_left(tmp_path):
    with tfd.use_implementation("compiled"):
        sample = tf.function(lambda images: tfd.ops.sample(images, images[:, :4, 0, :2]))
        traced = sample.get_concrete_function(tf.TensorSpec([None, 9, 7, 3]))
    inputs = keras.Input((9, 7, 3))
    model = keras.Model(inputs, keras.layers.Lambda(traced, output_shape=(4, 3))(inputs))
    with pytest.raises(RuntimeError, match="received TfDeform>WeightedSample: trace"):
        tfd.export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())
