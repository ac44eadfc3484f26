"""deformable(): a model's convolutions replaced by deformable ones."""

import keras
import numpy as np
import pytest

import tf_deform as tfd
from conftest import TOLERANCE, relative_error

pytestmark = pytest.mark.usefixtures("implementation")


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
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found.update(deformable_layers(layer))
        elif type(layer).__name__.startswith("DeformableConv"):
            found[layer.name] = layer
    return found


CHOICES = {
    "default": (None, {"stem", "shared", "dilated"}),
    "a name": ("stem", {"stem"}),
    "names": (["dilated", "pointwise"], {"dilated", "pointwise"}),
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


def test_the_last_three_convolutions_larger_than_a_pixel_are_the_default():
    convolutions = [
        keras.layers.Conv1D(2, size, name=f"c{index}") for index, size in enumerate((3, 3, 1, 5, 3))
    ]
    model = keras.Sequential([keras.Input((30, 2)), *convolutions])
    assert list(deformable_layers(tfd.deformable(model))) == ["c1", "c3", "c4"]


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
    copy = tfd.deformable(model, layer.name, **own).layers[0]
    assert type(copy).__name__ == f"DeformableConv{rank}D"
    config, expected = copy.get_config(), layer.get_config()
    assert {name: config[name] for name in expected} == expected
    assert {name: config[name] for name in own} == own
    np.testing.assert_array_equal(copy.kernel, layer.kernel)
    np.testing.assert_array_equal(copy.bias, layer.bias)


@pytest.mark.parametrize("make", ("mobilenet", "adapted"))
def test_layers_with_state_keep_it(make, rng):
    if make == "mobilenet":
        model = keras.applications.MobileNet(
            input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=5
        )
        randomize(model)
    else:
        normalization = keras.layers.Normalization()
        normalization.adapt(rng.normal(3, 2, size=(20, 8, 7, 3)))
        model = keras.Sequential(
            [keras.Input((32, 32, 3)), normalization, keras.layers.Conv2D(4, 3, strides=2)]
        )
    inputs = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    copy = tfd.deformable(model)
    assert len(deformable_layers(copy)) == 1
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
    r"layers must name Conv1D, Conv2D .*received 'pool', which is a GlobalAveragePooling2D": (
        residual,
        {"layers": "pool"},
    ),
    r"received 'own', which is a OwnConv2D": (
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
    r"layers must be names, a function or None, received 3": (residual, {"layers": 3}),
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
