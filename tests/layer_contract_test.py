"""What every public layer does, whatever it computes. A layer missing from CASES fails."""

import inspect
import json
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

FEATURES = (2, 9, 7, 4)
PYRAMID = [(2, 10, 8, 4), (2, 5, 4, 4)]
BOXES = (2, 3, 4)
TURNED_BOXES = (2, 3, 5)
FLOW = (2, 9, 7, 2)


LAYERS = {
    **{name: getattr(tfd.layers, name) for name in tfd.layers.__all__},
    "CorrelationCost": tfd.addons.CorrelationCost,
}


class Case(NamedTuple):
    """A layer with options that are none of the defaults, and the shapes of what it is called on.

    The layer is its name, or a function that makes it.
    The first entry of the shapes are features; the others are coordinates, or maps that are neither
    rounded nor resized. Either may be a list.
    """

    layer: str | Callable
    options: Callable[[], dict]
    shapes: tuple
    free: tuple  # the shapes with None for every axis that may be free


CONVOLUTION = {
    "filters": 6,
    "strides": 2,
    "groups": 2,
    "activation": "silu",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
    "kernel_constraint": "max_norm",
    "bias_constraint": "unit_norm",
    "deformable_groups": 2,
    "modulated": True,
    "mask_scale": 1.5,
    "max_offset": 3.0,
    "offset_kernel_initializer": "random_normal",
    "offset_lr_multiplier": 0.25,
    "offset_gradient_scale": 0.5,
}


PROJECTIONS = {
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
    "kernel_constraint": "max_norm",
    "bias_constraint": "unit_norm",
}
DCN = {
    **PROJECTIONS,
    "kernel_size": (1, 3),
    "strides": (1, 2),
    "dilation_rate": (1, 2),
    "groups": 2,
    "offset_scale": 0.7,
    "center_feature_scale": True,
    "remove_center": True,
}


def pooling_localization():
    return keras.Sequential(
        [keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(5, activation="tanh")]
    )


CASES = {
    "DeformableConv1D": Case(
        "DeformableConv1D",
        lambda: {**CONVOLUTION, "kernel_size": 3, "padding": "causal"},
        ((2, 9, 4),),
        ((None, None, 4),),
    ),
    "DeformableConv2D": Case(
        "DeformableConv2D",
        lambda: {**CONVOLUTION, "kernel_size": (3, 2), "padding": "same", "use_bias": True},
        (FEATURES,),
        ((None, None, None, 4),),
    ),
    "DeformableConv2D, channels first": Case(
        "DeformableConv2D",
        lambda: {
            **CONVOLUTION,
            "kernel_size": 2,
            "padding": [(0, 1), (2, 1)],
            "strides": (1, 2),
            "dilation_rate": 2,
            "data_format": "channels_first",
        },
        ((2, 4, 9, 7),),
        ((None, 4, None, None),),
    ),
    "DeformableConv2D, offset given": Case(
        "DeformableConv2D",
        lambda: {"filters": 6, "kernel_size": (3, 2), "use_bias": False},
        (FEATURES, (2, 7, 6, 12)),
        ((None, None, None, 4), (None, None, None, 12)),
    ),
    "DeformableConv3D": Case(
        "DeformableConv3D",
        lambda: {**CONVOLUTION, "kernel_size": (2, 1, 3), "dilation_rate": (1, 1, 2)},
        ((2, 5, 6, 7, 4),),
        ((None, None, None, None, 4),),
    ),
    "RoIAlign": Case(
        "RoIAlign",
        lambda: {
            "output_size": (2, 3),
            "spatial_scale": 0.5,
            "sampling_ratio": 3,
            "aligned": False,
            "bounding_box_format": "xywh",
        },
        (FEATURES, BOXES),
        ((None, None, None, 4), (None, None, 4)),
    ),
    "RoIAlign, adaptive": Case(
        "RoIAlign",
        lambda: {"output_size": 2, "sampling_ratio": 0, "bounding_box_format": "yxyx"},
        (FEATURES, BOXES),
        ((None, None, None, 4), (None, None, 4)),
    ),
    "RoIAlign, maximum": Case(
        "RoIAlign",
        lambda: {"output_size": 2, "reduction": "max", "bounding_box_format": "yxyx"},
        (FEATURES, BOXES),
        ((None, None, None, 4), (None, None, 4)),
    ),
    "RoIAlignRotated": Case(
        "RoIAlignRotated",
        lambda: {
            "output_size": (2, 3),
            "spatial_scale": 0.5,
            "sampling_ratio": 3,
            "aligned": False,
            "angle_unit": "degrees",
            "clockwise": True,
            "reduction": "max",
        },
        (FEATURES, TURNED_BOXES),
        ((None, None, None, 4), (None, None, 5)),
    ),
    "MultiScaleRoIAlign": Case(
        "MultiScaleRoIAlign",
        lambda: {
            "output_size": (2, 3),
            "scales": (1.0, 0.5),
            "sampling_ratio": 1,
            "aligned": False,
            "canonical_size": 4,
            "canonical_level": 1,
            "reduction": "max",
            "bounding_box_format": "center_xywh",
        },
        (PYRAMID, BOXES),
        ([(None, None, None, 4)] * 2, (None, None, 4)),
    ),
    "PSRoIAlign": Case(
        "PSRoIAlign",
        lambda: {
            "output_size": (1, 2),
            "output_channels": 2,
            "spatial_scale": 0.5,
            "sampling_ratio": 3,
            "bounding_box_format": "rel_yxyx",
        },
        (FEATURES, BOXES),
        ((None, None, None, 4), (None, None, 4)),
    ),
    "DeformableRoIPooling": Case(
        "DeformableRoIPooling",
        lambda: {
            "output_size": (2, 3),
            "spatial_scale": 0.5,
            "sampling_ratio": 1,
            "gamma": 0.3,
            "modulated": True,
            "offset_units": (6, 5),
            "bounding_box_format": "center_yxhw",
        },
        (FEATURES, BOXES),
        ((None, None, None, 4), (None, None, 4)),
    ),
    "DeformablePSRoIPooling": Case(
        "DeformablePSRoIPooling",
        lambda: {
            "output_size": (3, 2),
            "output_channels": 1,
            "group_size": 2,
            "part_size": 3,
            "sample_per_part": 3,
            "trans_std": 0.3,
            "spatial_scale": 0.5,
            "bounding_box_format": "xywh",
        },
        (FEATURES, BOXES, (2, 3, 3, 3, 2)),
        ((None, None, None, 4), (None, None, 4), (None, None, 3, 3, 2)),
    ),
    "MultiScaleDeformableAttention": Case(
        "MultiScaleDeformableAttention",
        lambda: {**PROJECTIONS, "num_heads": 3, "key_dim": 2, "num_points": 2},
        ((2, 3, 4), (2, 3, 2, 4), [(2, 8, 6, 5), (2, 4, 3, 5)]),
        ((None, None, 4), (None, None, 2, 4), [(None, None, None, 5)] * 2),
    ),
    "DCNv3": Case(
        "DCNv3",
        lambda: {**DCN, "depthwise_kernel_size": (5, 3), "activation": "silu"},
        (FEATURES,),
        ((None, None, None, 4),),
    ),
    "DCNv4": Case(
        "DCNv4",
        lambda: {**DCN, "depthwise_kernel_size": 3, "pointwise": False, "output_bias": False},
        (FEATURES,),
        ((None, None, None, 4),),
    ),
    "DenseImageWarp": Case(
        "DenseImageWarp",
        lambda: {"interpolation": "bicubic", "padding_mode": "reflection"},
        (FEATURES, FLOW),
        ((None, None, None, 4), (None, None, None, 2)),
    ),
    "VelocityIntegration": Case(
        "VelocityIntegration", lambda: {"steps": 3}, (FLOW,), ((None, None, None, 2),)
    ),
    "GridSample": Case(
        "GridSample",
        lambda: {"interpolation": "bicubic", "padding_mode": "reflection", "align_corners": True},
        (FEATURES, (2, 5, 3, 2)),
        ((None, None, None, 4), (None, None, None, 2)),
    ),
    "SpatialTransformer": Case(
        "SpatialTransformer",
        lambda: {
            "localization": pooling_localization(),
            "transformation": "thin_plate_spline",
            "output_size": (5, 3),
            "interpolation": "bicubic",
            "padding_mode": "border",
            "align_corners": True,
            "control_points": (2, 3),
        },
        (FEATURES,),
        ((None, None, None, 4),),
    ),
    "SpatialTransformer, control points given": Case(
        "SpatialTransformer",
        lambda: {
            "localization": pooling_localization(),
            "transformation": "thin_plate_spline",
            "output_size": 4,
            "padding_mode": "border",
            "control_points": [[-0.9, -1.0], [0.1, -0.9], [1.0, -1.0], [-1.0, 1.0], [0.8, 0.9]],
        },
        (FEATURES,),
        ((None, None, None, 4),),
    ),
    "SpatialTransformer, parameters given": Case(
        "SpatialTransformer",
        lambda: {"localization": None, "transformation": "projective"},
        (FEATURES, (2, 8)),
        ((None, None, None, 4), (None, 8)),
    ),
}
# Layers of coordinates, which no policy halves.
WIDE = {"VelocityIntegration"}
CORRELATION = {
    "kernel_size": 3,
    "max_displacement": 2,
    "stride_1": 2,
    "stride_2": 2,
    "pad": 1,
}
CASES["CorrelationCost"] = Case(
    "CorrelationCost",
    lambda: {**CORRELATION, "data_format": "channels_last"},
    ([FEATURES, FEATURES],),
    ([(None, None, None, 4)] * 2,),
)
CASES["CorrelationCost, channels first"] = Case(
    "CorrelationCost",
    lambda: {**CORRELATION, "stride_1": 1, "data_format": "channels_first"},
    ([(2, 4, 9, 7), (2, 4, 9, 7)],),
    ([(None, 4, None, None)] * 2,),
)
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def make(case, **options):
    return LAYERS.get(case.layer, case.layer)(**case.options(), **options)


def is_shape(value):
    return isinstance(value, tuple) and all(isinstance(size, int | None) for size in value)


def map_shapes(function, shapes):
    """Returns a list like the shapes, which may hold lists, of what the function makes of each."""
    return [function(each) if is_shape(each) else map_shapes(function, each) for each in shapes]


def arguments_of(case, dtype="float32", shapes=None, seed=1):
    """Returns features and coordinates; the latter are in float32 or wider."""
    rng = np.random.default_rng(seed)

    def coordinates(shape):
        values = rng.uniform(0.05, 0.45, shape)
        if "bounding_box_format" in case.options() and len(shape) == 3:
            # Boxes are made to lie in the smallest of the features, in any format.
            values[..., 2:] += 0.5
            relative = case.options().get("bounding_box_format", "").startswith("rel_")
            values *= 1 if relative else 6
        if shape == TURNED_BOXES:
            values = 10 * values + [1, 1, 0, 0, 0]
        return values.astype("float64" if dtype == "float64" else "float32")

    first, *others = case.shapes if shapes is None else shapes
    (features,) = map_shapes(lambda shape: rng.normal(size=shape).astype(dtype), [first])
    return [features, *map_shapes(coordinates, others)]


def randomize(layer):
    """Moves all weights away from their initial values, so that no prediction is zero."""
    rng = np.random.default_rng(2)
    for weight in layer.weights:
        weight.assign(weight + rng.normal(0, 0.2, weight.shape))


def built(case):
    """Returns the layer with random weights, built by a call."""
    layer = make(case)
    layer(*arguments_of(case))
    randomize(layer)
    return layer


@pytest.fixture(scope="module")
def whole(implementation):
    """Returns a function that returns the layer of a case as `built`, made once, and its outputs.

    The outputs are those of `arguments_of(case)`.
    """
    made = {}

    def find(case):
        if id(case) not in made:
            layer = built(case)
            made[id(case)] = layer, layer(*arguments_of(case)).numpy()
        return made[id(case)]

    return find


def built_under(policy, case, weights):
    """Returns the layer with the weights given, it and the layers in it under a dtype policy."""
    keras.config.set_dtype_policy(policy)
    try:
        layer = make(case)
    finally:
        keras.config.set_dtype_policy("float32")
    layer(*arguments_of(case))
    layer.set_weights(weights)
    return layer


def model_of(case, layer):
    """Returns a functional model of the layer alone, every axis free that may be."""
    inputs = map_shapes(lambda shape: keras.Input(batch_shape=shape), case.free)
    return keras.Model(tf.nest.flatten(inputs), layer(*inputs))


# The registry


def test_every_public_layer_has_a_case():
    assert {case.layer for case in CASES.values()} == set(LAYERS)


def test_every_public_layer_is_registered_under_the_package():
    registered = {
        name: each
        for name, each in keras.saving.get_custom_objects().items()
        if each.__module__.startswith("tf_deform.") and issubclass(each, keras.layers.Layer)
    }
    assert registered == {f"tf_deform>{name}": layer for name, layer in LAYERS.items()}


# Configuration


@ALL
def test_the_config_holds_every_argument_as_given(case):
    options = case.options()
    config = LAYERS[case.layer](**options).get_config()
    arguments = {
        name
        for layer in LAYERS[case.layer].__mro__
        if layer.__module__.startswith("tf_deform.")
        for name, each in inspect.signature(layer).parameters.items()
        if each.kind is not each.VAR_KEYWORD
    }
    assert options.keys() <= arguments <= config.keys()
    for name, value in options.items():
        if isinstance(config[name], dict):
            continue  # a serialised initialiser or the like, which the round trip compares
        given = (value,) * len(config[name]) if isinstance(config[name], tuple) else value
        assert config[name] in (value, given), name


@ALL
def test_config_round_trip_through_json_gives_the_same_layer(case):
    layer = make(case, name="a_name", trainable=False, dtype="mixed_float16")
    serialized = keras.saving.serialize_keras_object(layer)
    assert serialized["registered_name"] == f"tf_deform>{case.layer}"
    loaded = keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized)))
    assert type(loaded) is type(layer)
    assert json.dumps(loaded.get_config()) == json.dumps(layer.get_config())
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


@ALL
def test_a_model_saved_to_keras_loads_with_the_same_outputs(case, tmp_path):
    model = model_of(case, make(case))
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    arguments = tf.nest.flatten(arguments_of(case))
    np.testing.assert_array_equal(loaded(arguments), model(arguments))


# What Keras checks itself, or serialises.
KERAS = {
    *("name", "activity_regularizer", "activation", "offset_kernel_initializer"),
    *PROJECTIONS,
}


def arguments_with_defaults(case):
    """Returns the layer's own arguments but those that Keras checks, with their defaults."""
    return {
        name: each.default
        for layer in LAYERS[case.layer].__mro__
        if layer.__module__.startswith("tf_deform.")
        for name, each in inspect.signature(layer).parameters.items()
        if each.kind is not each.VAR_KEYWORD and name not in KERAS
    }


@pytest.mark.parametrize("wrong", ["nonsense", "0.1", np.nan, {}, dict, len, True], ids=repr)
@ALL
def test_no_argument_takes_what_it_is_not(case, wrong):
    options = case.options()
    for name, default in arguments_with_defaults(case).items():
        if not isinstance(default, bool) or wrong is not True:
            with pytest.raises(ValueError, match=rf"^{name} must .+, received .+"):
                LAYERS[case.layer](**{**options, name: wrong})


@ALL
def test_scalars_of_numpy_are_taken_as_those_of_python(case):
    options = case.options()
    scalars = {
        name: np.asarray(value)[()]
        for name, value in options.items()
        if isinstance(value, bool | int | float) and name not in KERAS
    }
    layer = LAYERS[case.layer](**{**options, **scalars})
    config = layer.get_config()
    expected = make(case).get_config()
    assert {name: config[name] for name in scalars} == {name: expected[name] for name in scalars}
    serialized = json.dumps(keras.saving.serialize_keras_object(layer))
    loaded = keras.saving.deserialize_keras_object(json.loads(serialized))
    assert json.dumps(keras.saving.serialize_keras_object(loaded)) == serialized


@ALL
def test_a_tensor_of_unknown_rank_is_named(case):
    layer = make(case)
    arguments = arguments_of(case)
    names = list(inspect.signature(layer.call).parameters)
    for position, argument in enumerate(arguments):
        unknown = tf.nest.map_structure(lambda each: tf.TensorSpec(None, each.dtype), argument)
        signature = [*arguments[:position], unknown, *arguments[position + 1 :]]
        traced = tf.function(lambda *each: layer(*each), autograph=False)
        with pytest.raises(ValueError, match=rf"^{names[position]} must .+ of unknown rank"):
            traced.get_concrete_function(*signature)


@ALL
def test_a_symbolic_tensor_of_another_rank_is_named_at_once(case):
    if case.layer == "MultiScaleDeformableAttention":
        return  # its reference points are checked when it is called on tensors
    names = list(inspect.signature(make(case).call).parameters)
    for position, shape in enumerate(case.free):
        short = map_shapes(lambda each: each[1:], [shape])[0]
        changed = [*case.free[:position], short, *case.free[position + 1 :]]
        with pytest.raises(ValueError, match=rf"({'|'.join(names)}).* must .+, received"):
            make(case)(*map_shapes(keras.KerasTensor, changed))


@ALL
def test_integers_are_refused_with_a_remedy(case):
    (features,), coordinates = arguments_of(case)[:1], arguments_of(case)[1:]
    images = tf.nest.map_structure(lambda each: each.astype("uint8"), features)
    with pytest.raises(TypeError, match=r"must be floating-point, .* uint8; cast .*Rescaling"):
        make(case)(images, *coordinates)


# Shapes


@ALL
def test_symbolic_calls_and_compute_output_shape_agree_with_the_real_shape(case):
    layer = make(case)
    arguments = arguments_of(case)
    real = tuple(layer(*arguments).shape)
    shapes = map_shapes(lambda shape: shape, case.shapes)
    assert tuple(layer.compute_output_shape(*shapes)) == real
    for known, expected in ((case.shapes, real), (case.free, None)):
        inputs = map_shapes(lambda shape: keras.KerasTensor(shape), known)
        symbolic = make(case)(*inputs)
        assert symbolic.dtype == "float32"
        assert len(symbolic.shape) == len(real)
        pairs = zip(symbolic.shape, expected or real, strict=True)
        assert all(size == whole or (size is None and expected is None) for size, whole in pairs)
    assert symbolic.shape[0] is None
    channels = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    assert symbolic.shape[channels] == real[channels]


@ALL
def test_one_trace_takes_every_batch_height_and_width(case, whole):
    layer, _ = whole(case)
    model = model_of(case, layer)
    signature = [tf.TensorSpec(each.shape, each.dtype) for each in model.inputs]
    traced = tf.function(lambda *flat: model(list(flat)), input_signature=signature)
    for arguments in (arguments_of(case), arguments_of(case, shapes=larger_shapes(case))):
        flat = tf.nest.flatten(arguments)
        expected = layer(*arguments)
        assert relative_error(traced(*flat), expected) < TOLERANCE["float32"]
        one = traced(*(each[:1] for each in flat))
        assert relative_error(one, expected[:1]) < TOLERANCE["float32"]


def larger_shapes(case):
    """Returns the shapes with larger features, and offsets that are as large as their output."""

    def enlarged(shape, free):
        pairs = zip(shape, free, strict=True)
        return tuple(n + 2 if n > 4 and size is None else n for n, size in pairs)

    first, *others = case.shapes
    first = (
        enlarged(first, case.free[0])
        if is_shape(first)
        else list(map(enlarged, first, case.free[0]))
    )
    larger = {(2, 7, 6, 12): (2, 9, 8, 12), FLOW: (2, 11, 9, 2)}
    return first, *map_shapes(lambda shape: larger.get(shape, shape), others)


# Modes and dtypes


@ALL
def test_xla_agrees_with_eager_execution_unless_maxima_are_adaptive(case, whole):
    layer, expected = whole(case)
    assert layer.supports_jit == (
        case.options().get("sampling_ratio") != 0 or layer.reduction == "mean"
    )
    arguments = arguments_of(case)
    compiled = tf.function(lambda *each: layer(*each), jit_compile=layer.supports_jit)
    assert relative_error(compiled(*arguments), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@ALL
def test_mixed_precision_rounds_features_and_results_but_no_coordinates(case, dtype, whole):
    layer, _ = whole(case)
    mixed = built_under(f"mixed_{dtype}", case, layer.get_weights())
    assert {weight.dtype for weight in mixed.weights} <= {"float32"}
    features, *coordinates = arguments_of(case)
    if case.layer in WIDE:
        symbolic = mixed(*map_shapes(keras.KerasTensor, case.free))
        assert mixed(features).dtype == symbolic.dtype == "float32"
        np.testing.assert_array_equal(mixed(features), layer(features))
        return
    rounded = tf.nest.map_structure(lambda each: tf.cast(tf.cast(each, dtype), "float32"), features)
    actual, expected = mixed(features, *coordinates), layer(rounded, *coordinates)
    assert actual.dtype == dtype
    assert relative_error(tf.cast(actual, "float32"), expected) < 3 * TOLERANCE[dtype]


@ALL
def test_float64_is_kept(case, whole):
    layer, single = whole(case)
    double = built_under("float64", case, layer.get_weights())
    assert {weight.dtype for weight in double.weights} <= {"float64"}
    outputs = double(*arguments_of(case, "float64"))
    assert outputs.dtype == "float64"
    assert np.mean(np.float32(outputs) == outputs) < 0.1  # not computed in float32
    assert relative_error(single, outputs) < 2 * TOLERANCE["float32"]


# Training


@ALL
def test_fit_lowers_the_loss_and_changes_every_weight(case, implementation):
    """Under XLA the first case of each layer, which is what takes the time."""
    layer = make(case)
    inputs = map_shapes(lambda shape: keras.Input(batch_shape=shape), case.shapes)
    # A layer before this one, so that there are weights behind it.
    before = keras.layers.Dense(tf.nest.flatten(inputs)[0].shape[-1], kernel_initializer="identity")
    first = tf.nest.map_structure(before, inputs[0])
    model = keras.Model(tf.nest.flatten(inputs), layer(first, *inputs[1:]))
    start = model.get_weights()
    arguments = tf.nest.flatten(arguments_of(case))
    targets = np.random.default_rng(3).normal(size=model.output_shape)
    first_case = next(each for each in CASES.values() if each.layer == case.layer) is case
    jit_compile = layer.supports_jit and implementation == "portable" and first_case
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=jit_compile)
    # What stands before a prediction that starts at zero moves from the second step on.
    losses = model.fit(arguments, targets, batch_size=2, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(model.trainable_weights, start, strict=True):
        assert np.any(weight != old), weight.path
