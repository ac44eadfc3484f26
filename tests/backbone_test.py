"""deformable(): a model's convolutions replaced by deformable ones."""

import warnings

import keras
import numpy as np
import pytest

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.filterwarnings("ignore:the model has . convolutions:UserWarning"),
]


def randomize(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 0.6, weight.shape))  # variances stay above 0


def residual():
    """Returns a model with blocks, a shared convolution, a model in it and two outputs."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3), name="images")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3])(inputs)
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    shared = layers.Conv2D(4, 3, padding="same", activation="tanh", name="shared")
    y = shared(shared(x))
    x = layers.Add()([x, layers.Conv2D(4, 1, name="pointwise")(y)])
    block = keras.Sequential(
        [
            keras.Input((None, None, 4)),
            layers.Conv2D(6, (3, 2), dilation_rate=2, groups=2, name="dilated"),
            layers.Dropout(0.5),
        ],
        name="block",
    )
    x = block(x) * 0.5 + 1.0
    pooled = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model({"images": inputs}, {"map": x, "class": layers.Dense(5)(pooled)}, name="r")
    randomize(model)
    return model


def deformable_layers(model):
    """Returns the deformable convolutions of a model and of the models in it, by name."""
    return {
        layer.name: layer
        for layer in leaves(model)
        if type(layer).__name__.startswith("DeformableConv")
    }


def leaves(model):
    """Yields the layers of a model and of the models in it, without those models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def trained(model):
    """Returns the names of the weights that a model trains, with their layers' names."""
    weights = {id(weight) for weight in model.trainable_weights}
    return {
        f"{layer.name}/{weight.name}"
        for layer in leaves(model)
        for weight in layer.weights
        if id(weight) in weights
    }


def predictors(*names):
    """Returns the names of the weights of the layers' offset predictors."""
    return {f"{name}/offset_{role}" for name in names for role in ("kernel", "bias")}


CHOICES = {
    "default": (None, {"shared", "dilated"}),
    "a name": ("stem", {"stem"}),
    "names": (["dilated", "pointwise"], {"dilated", "pointwise"}),
    "a path": ("block/dilated", {"dilated"}),
    "a function": (lambda layer: layer.filters == 4, {"stem", "shared", "pointwise"}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_copy_has_the_same_outputs_and_the_layers_chosen(choice, rng):
    model = residual()
    layers, names = CHOICES[choice]
    copy = tfd.deformable(model, layers, modulated=True)
    assert set(deformable_layers(copy)) == names
    assert all(layer.modulated for layer in deformable_layers(copy).values())
    inputs = {"images": rng.normal(size=(2, 15, 13, 3)).astype("float32")}
    expected, actual = model(inputs), copy(inputs)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert np.std(expected[name]) > 1e-3
        assert relative_error(actual[name], expected[name]) < TOLERANCE["float32"]


def test_the_copy_is_a_model_of_its_own_and_names_stay():
    model = residual()
    before = model.get_weights()
    copy = tfd.deformable(model, "shared")
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert copy.name == "r"
    assert len(copy.weights) == len(model.weights) + 2
    for weight in copy.weights:
        weight.assign(weight + 1)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def small(*sizes):
    """Returns a Sequential model of convolutions of these sizes, c0, c1 and so on."""
    convolutions = [
        keras.layers.Conv1D(2, size, name=f"c{index}") for index, size in enumerate(sizes)
    ]
    return keras.Sequential([keras.Input((30, 2)), *convolutions], name="small")


def test_the_last_three_convolutions_larger_than_a_pixel_are_the_default():
    assert list(deformable_layers(tfd.deformable(small(3, 3, 1, 5, 3)))) == ["c1", "c3", "c4"]


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_every_argument_of_the_convolution_is_kept(rank):
    options = {
        "filters": 6,
        "kernel_size": (3, 2, 1)[:rank],
        "strides": (2, 1, 1)[:rank],
        "padding": "same",
        "data_format": "channels_first" if rank == 2 else "channels_last",
        "groups": 2,
        "activation": "gelu",
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": keras.regularizers.L2(0.3),
        "bias_regularizer": "l1",
        "activity_regularizer": "l2",
        "kernel_constraint": keras.constraints.MaxNorm(3),
        "bias_constraint": "unit_norm",
        "dtype": "mixed_bfloat16",
        "trainable": False,
    }
    layer = getattr(keras.layers, f"Conv{rank}D")(**options)
    shape = (4, 9, 8) if rank == 2 else (*(9, 8, 7)[:rank], 4)
    model = keras.Sequential([keras.Input(shape), layer])
    own = {"deformable_groups": 2, "max_offset": 3.0, "offset_gradient_scale": 0.1}
    copy = tfd.deformable(model, layer.name, train_offsets=False, **own).layers[0]
    assert type(copy).__name__ == f"DeformableConv{rank}D"
    config, expected = copy.get_config(), layer.get_config()
    assert {name: config[name] for name in expected} == expected
    assert {name: config[name] for name in own} == own
    np.testing.assert_array_equal(copy.kernel, layer.kernel)
    np.testing.assert_array_equal(copy.bias, layer.bias)


def test_layers_with_state_keep_it(rng):
    normalization = keras.layers.Normalization()
    normalization.adapt(rng.normal(3, 2, size=(20, 8, 7, 3)))
    model = keras.Sequential(
        [keras.Input((8, 7, 3)), normalization, keras.layers.Conv2D(4, 3, strides=2, name="conv")]
    )
    inputs = rng.normal(size=(2, 8, 7, 3)).astype("float32")
    copy = tfd.deformable(model, "conv")
    assert relative_error(copy(inputs), model(inputs)) < TOLERANCE["float32"]


def test_the_copy_trains_saves_and_is_compiled_like_the_model(rng, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((9, 8, 3)),
            keras.layers.Conv2D(4, 3, name="frozen", trainable=False),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    copy = tfd.deformable(model, "conv")
    assert copy.optimizer.get_config() == model.optimizer.get_config()
    inputs, targets = rng.normal(size=(4, 9, 8, 3)), rng.normal(size=(4, 4))
    start = copy.get_weights()
    copy.fit(inputs, targets, epochs=2, verbose=0)
    moved = [np.any(weight != old) for weight, old in zip(copy.weights, start, strict=True)]
    assert moved == [False, False, True, True, True, True]
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(loaded(inputs), copy(inputs))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


class OwnConv2D(keras.layers.Conv2D):
    pass


BAD = {
    r"model must be a Functional or Sequential .*received <Subclassed": (
        lambda: Subclassed(),
        {},
    ),
    r"model must be built, received 'lazy', which is not": (
        lambda: keras.Sequential([keras.layers.Conv2D(4, 3)], name="lazy"),
        {},
    ),
    r"layers must name layers of the model, received 'conv9', 'x'; its convolutions are 'stem'": (
        residual,
        {"layers": ["stem", "conv9", "x"]},
    ),
    r"must name Conv1D, .* or SeparableConv2D layers, received 'pool', which is a GlobalAverage": (
        residual,
        {"layers": "pool"},
    ),
    r"received 'block', which is a Sequential: name layers in it": (residual, {"layers": "block"}),
    r"received 'shared', which is a DeformableConv2D and deformable already": (
        lambda: tfd.deformable(residual(), "shared"),
        {"layers": "shared"},
    ),
    r"layers must name layers of the model, received <Conv2D.*its convolutions are 'stem'": (
        residual,
        {"layers": keras.layers.Conv2D(4, 3)},
    ),
    r"received 'own', which is a OwnConv2D, a class of its own that may compute something else": (
        lambda: keras.Sequential([keras.Input((9, 8, 3)), OwnConv2D(4, 3, name="own")]),
        {"layers": "own"},
    ),
    r"layers must choose convolutions of the model, received <function.*none of 4": (
        residual,
        {"layers": lambda layer: False},
    ),
    r"layers must choose convolutions of the model, received None, which chooses none of 0": (
        lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
        {},
    ),
    r"received None, which chooses none of 1 .*; name a stem to convert it": (
        lambda: small(3, 1),
        {},
    ),
    r"layers must be names, layers, a function or None, received 3": (residual, {"layers": 3}),
    r"received 'conv', .* the name of several; give the path, one of 'one/conv', 'two/conv'": (
        lambda: branches(),
        {"layers": "conv"},
    ),
    r"train_offsets must be True or False, received 'yes'": (residual, {"train_offsets": "yes"}),
    r"modulated must be True or False, received 'yes'": (residual, {"modulated": "yes"}),
    r"options must be among 'deformable_groups', .*received 'filters'": (
        residual,
        {"filters": 3},
    ),
    r"inputs must have channels divisible by deformable_groups=3": (
        residual,
        {"layers": "shared", "deformable_groups": 3},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    make, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        tfd.deformable(make(), **options)


# Depthwise and separable convolutions


def grouped(rank, separable, data_format):
    """Returns a depthwise or separable convolution with no argument at its default."""
    options = {
        "kernel_size": (3, 2)[:rank],
        "strides": 2,
        "padding": "same",
        "data_format": data_format,
        "depth_multiplier": 2,
        "activation": "tanh",
        "depthwise_initializer": "he_normal",
        "bias_initializer": "ones",
        "depthwise_regularizer": keras.regularizers.L2(0.3),
        "bias_regularizer": "l1",
        "activity_regularizer": "l2",
        "depthwise_constraint": keras.constraints.MaxNorm(3),
        "bias_constraint": "unit_norm",
        "name": "grouped",
    }
    if not separable:
        return getattr(keras.layers, f"DepthwiseConv{rank}D")(**options)
    options["pointwise_initializer"] = "he_uniform"
    options["pointwise_regularizer"] = "l2"
    options["pointwise_constraint"] = "non_neg"
    return getattr(keras.layers, f"SeparableConv{rank}D")(5, **options)


@pytest.mark.parametrize("data_format", ("channels_last", "channels_first"))
@pytest.mark.parametrize("separable", (False, True))
@pytest.mark.parametrize("rank", (1, 2))
def test_depthwise_and_separable_convolutions_are_converted(rank, separable, data_format, rng):
    layer = grouped(rank, separable, data_format)
    shape = (*(9, 7)[:rank], 3) if data_format == "channels_last" else (3, *(9, 7)[:rank])
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(model)
    copy = tfd.deformable(model, "grouped", modulated=True)
    (deformable,) = deformable_layers(copy).values()
    assert (deformable.groups, deformable.filters, deformable.modulated) == (3, 6, True)
    config, expected = deformable.get_config(), layer.get_config()
    for role in ("initializer", "regularizer", "constraint"):
        assert config[f"kernel_{role}"] == expected[f"depthwise_{role}"]
    last = list(leaves(copy))[-1].get_config()
    for name in ("activation", "activity_regularizer", "bias_initializer", "bias_constraint"):
        assert last[name] == expected[name]
    if separable:
        assert [each.name for each in leaves(copy)] == ["grouped_depthwise", "grouped_pointwise"]
        for role in ("initializer", "regularizer", "constraint"):
            assert last[f"kernel_{role}"] == expected[f"pointwise_{role}"]
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    assert relative_error(copy(inputs), model(inputs)) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ("mixed_bfloat16", "float64"))
def test_a_separable_convolution_keeps_its_dtype_and_is_saved(dtype, rng, tmp_path):
    layer = keras.layers.SeparableConv2D(5, 3, name="grouped", dtype=dtype)
    model = keras.Sequential([keras.Input((9, 7, 3), dtype=layer.variable_dtype), layer])
    copy = tfd.deformable(model, "grouped")
    assert {each.dtype_policy.name for each in leaves(copy)} == {dtype}
    inputs = rng.normal(size=(2, 9, 7, 3))
    assert relative_error(copy(inputs), model(inputs)) < 2 * TOLERANCE[layer.compute_dtype]
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(loaded(inputs), copy(inputs))
    assert loaded.get_layer("grouped").layers[0].compute_dtype == layer.compute_dtype


def test_mobilenet_v2_keeps_its_outputs_and_its_stem(rng):
    model = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=5
    )
    for weight in model.weights:
        if len(weight.shape) == 1:  # of batch normalization: variances stay above 0
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    inputs = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    copy = tfd.deformable(model)
    expected = {f"block_{index}_depthwise" for index in (14, 15, 16)}
    assert set(deformable_layers(copy)) == expected
    assert np.std(model(inputs)) > 1e-3
    assert relative_error(copy(inputs), model(inputs)) < TOLERANCE["float32"]


# Which layers


def branches():
    """Returns a model with two inputs, whose stems are in models of their own."""

    def branch(name, *more):
        convolution = keras.layers.Conv2D(4, 3, padding="same", name="conv")
        normalization = keras.layers.BatchNormalization()
        layers = [keras.Input((9, 7, 3)), normalization, convolution, *more]
        return keras.Sequential(layers, name=name)

    left, right = (keras.Input((9, 7, 3), name=side) for side in ("left", "right"))
    branch_left, branch_right = branch("one"), branch("two", keras.layers.ReLU())
    x = keras.layers.Concatenate()([branch_left(left), branch_right(right), right])
    outputs = keras.layers.Conv2D(5, 3, name="merged")(keras.ops.relu(x))
    return keras.Model([left, right], outputs, name="branches")


def test_a_convolution_that_no_kernel_precedes_is_not_chosen_by_itself():
    with pytest.warns(UserWarning, match="has fewer than 3 conv.*: 'merged'") as warned:
        copy = tfd.deformable(branches())
    assert warned[0].filename == __file__
    assert set(deformable_layers(copy)) == {"merged"}
    inputs = keras.Input((9, 7, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    after_dense = keras.layers.Conv2D(4, 3, name="after_dense")(keras.layers.Dense(3)(inputs))
    outputs = [shared(shared(inputs)), after_dense]
    copy = tfd.deformable(keras.Model(inputs, outputs))
    assert set(deformable_layers(copy)) == {"after_dense"}


def test_looking_for_stems_leaves_the_model_as_it_is():
    model = branches()
    calls = [len(layer._inbound_nodes) for layer in leaves(model)]
    tfd.deformable(model)
    assert [len(layer._inbound_nodes) for layer in leaves(model)] == calls


def test_layers_are_given_themselves_by_name_and_by_path():
    model = branches()
    given = [model.get_layer("one").get_layer("conv"), "two/conv", "merged"]
    copy = tfd.deformable(model, given)
    names = [each.name for each in leaves(copy) if type(each).__name__ == "DeformableConv2D"]
    assert sorted(names) == ["conv", "conv", "merged"]
    only = tfd.deformable(model, "two/conv")
    kinds = {each: type(only.get_layer(each).get_layer("conv")).__name__ for each in ("one", "two")}
    assert kinds == {"one": "Conv2D", "two": "DeformableConv2D"}


def test_a_path_of_a_shared_layer_through_each_model_leads_to_it():
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    inputs = keras.Input((9, 7, 3))
    blocks = [
        keras.Sequential([keras.Input((9, 7, 3)), shared], name=name) for name in ("one", "two")
    ]
    model = keras.Model(inputs, blocks[1](blocks[0](inputs)))
    for layers in ("one/shared", "two/shared", "shared"):
        copy = tfd.deformable(model, layers)
        one, two = (copy.get_layer(name).get_layer("shared") for name in ("one", "two"))
        assert one is two
        assert type(one).__name__ == "DeformableConv2D"


def test_converting_twice_converts_nothing_more(capsys):
    once = tfd.deformable(small(3, 3, 3, 3, 3))
    capsys.readouterr()
    message = "nothing is left to convert, .* already: 'c2', 'c3', 'c4'; name others"
    with pytest.warns(UserWarning, match=message):
        twice = tfd.deformable(once)
    assert list(deformable_layers(twice)) == ["c2", "c3", "c4"]
    assert capsys.readouterr().out == "small, 0 layers converted: 133 -> 133 parameters (+0.0%)\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = tfd.deformable(tfd.deformable(small(3, 3, 3, 3, 3), "c3"))
    assert list(deformable_layers(rest)) == ["c2", "c3", "c4"]


def test_what_was_converted_and_what_it_costs_is_printed(capsys):
    model = residual()
    tfd.deformable(model, ["stem", "block/dilated"])
    assert capsys.readouterr().out.splitlines() == [
        "stem (Conv2D): 108 -> 612 parameters",
        "block/dilated (Conv2D): 78 -> 378 parameters",
        "r, 2 layers converted: 405 -> 1,209 parameters (+198.5%)",
    ]
    tfd.deformable(model, "stem", verbose=False)
    assert not capsys.readouterr().out
    tfd.deformable(frozen("alone"), "conv")
    expected = "conv (Conv2D, frozen but for its offsets): 148 -> 814 parameters"
    assert expected in capsys.readouterr().out.splitlines()


# What is trained


def frozen(kind):
    """Returns a model around a frozen base, Functional, Sequential or the base itself."""
    layers = keras.layers
    convolutions = [
        layers.Conv2D(4, 3, padding="same", name="stem"),
        layers.BatchNormalization(name="normalization"),
        layers.Conv2D(4, 3, activation="tanh", name="conv"),
        layers.SeparableConv2D(4, 3, name="separable"),
    ]
    inputs = keras.Input((9, 8, 3))
    base = keras.Sequential([inputs, *convolutions], name="base")
    if kind == "functional":
        base = keras.Model(base.inputs[0], base.outputs[0], name="base")
    randomize(base)
    base.trainable = False
    if kind == "alone":
        return base
    images = keras.Input((9, 8, 3))
    features = layers.GlobalAveragePooling2D(name="pool")(base(images))
    return keras.Model(images, layers.Dense(2, name="head")(features), name="outer")


PREDICTORS = predictors("conv", "separable_depthwise")
HEAD = {"head/kernel", "head/bias"}


@pytest.mark.parametrize("kind", ("functional", "sequential", "alone"))
def test_of_a_frozen_base_the_offsets_alone_are_trained(kind, rng, tmp_path):
    model = frozen(kind)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    copy = tfd.deformable(model)
    expected = PREDICTORS if kind == "alone" else PREDICTORS | HEAD
    assert trained(copy) == expected
    inputs = rng.normal(size=(4, 9, 8, 3)).astype("float32")
    assert relative_error(copy(inputs), model(inputs)) < TOLERANCE["float32"]
    before = {weight.path: weight.numpy() for weight in copy.weights}
    targets = rng.normal(size=copy(inputs).shape)
    copy.fit(inputs, targets, epochs=2, verbose=0)
    moved = [weight for weight in copy.weights if np.any(weight != before[weight.path])]
    assert {id(weight) for weight in moved} == {id(weight) for weight in copy.trainable_weights}
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(loaded(inputs), copy(inputs))
    clone = keras.models.clone_model(copy, clone_function=None, recursive=True)
    again = tfd.deformable(copy, lambda layer: layer.name == "stem", train_offsets=False)
    for each in (loaded, clone, again):
        assert trained(each) == expected


@pytest.mark.parametrize("kind", ("functional", "sequential"))
def test_trainable_of_the_base_counts_for_all_its_weights_afterwards(kind):
    copy = tfd.deformable(frozen(kind))
    base = copy.get_layer("base")
    assert trained(base) == PREDICTORS
    base.trainable = False
    assert trained(copy) == HEAD
    base.trainable = True
    everything = {"stem/kernel", "normalization/gamma", "conv/kernel", "separable_pointwise/kernel"}
    assert everything | PREDICTORS | HEAD < trained(copy)


def test_trainable_of_a_layer_ends_the_training_of_offsets_alone():
    copy = tfd.deformable(frozen("functional"), "conv")
    layer = deformable_layers(copy)["conv"]
    features = {"conv/kernel", "conv/bias"}
    layer.trainable = True
    assert trained(copy) == HEAD | predictors("conv") | features
    layer.train_offsets_only = True
    assert trained(copy) == HEAD | predictors("conv")
    layer.train_offsets_only = False
    assert trained(copy) == HEAD | predictors("conv") | features
    layer.trainable = False
    assert trained(copy) == HEAD
    layer.train_offsets_only = True
    assert trained(copy) == HEAD | predictors("conv")


def test_what_is_frozen_stays_so_without_train_offsets():
    model = frozen("sequential")
    assert trained(tfd.deformable(model, train_offsets=False)) == HEAD
    partly = tfd.deformable(model, "conv")
    assert trained(partly) == HEAD | predictors("conv")


def test_files_of_weights_fit_whatever_is_trained(tmp_path):
    model = tfd.deformable(frozen("functional"))
    model.save_weights(tmp_path / "a.weights.h5")
    other = tfd.deformable(frozen("functional"), train_offsets=False)
    randomize(other)
    other.load_weights(tmp_path / "a.weights.h5")
    for weight, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
