import numpy as np
import pytest

import oracles
import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, relative_error

pytestmark = pytest.mark.usefixtures("implementation")

VERSIONS = pytest.mark.parametrize("layer", [tfd.layers.DCNv3, tfd.layers.DCNv4])
BATCH, SPACE, CHANNELS = 2, (6, 7), 6
OPTIONS = [
    {"groups": 3},
    {"groups": 2, "depthwise_kernel_size": (1, 5), "center_feature_scale": True},
    {"groups": 1, "strides": (2, 3), "center_feature_scale": True, "dilation_rate": 2},
    {"kernel_size": (2, 3), "groups": 6, "strides": (1, 2), "offset_scale": 1.5},
    {"groups": 2, "remove_center": True, "offset_scale": 0.5},
]
V4_OPTIONS = [{"groups": 3, "pointwise": False}, {"groups": 2, "output_bias": False}]
CASES = [
    *((tfd.layers.DCNv3, options) for options in OPTIONS),
    *((tfd.layers.DCNv4, options) for options in OPTIONS + V4_OPTIONS),
]


def build(rng, layer, options, dtype="float64"):
    """Returns a layer with random weights, and inputs."""
    layer = layer(**options, dtype=dtype)
    inputs = rng.normal(size=[BATCH, *SPACE, CHANNELS]).astype(dtype)
    layer(inputs)
    for weight in layer.weights:
        weight.assign(weight + rng.normal(0, 0.4, weight.shape))
    return layer, inputs


def project(x, dense):
    return x @ dense.kernel.numpy() + (0 if dense.bias is None else dense.bias.numpy())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def depthwise(x, conv):
    """Returns the depthwise convolution of x, padded with zeros to keep its size."""
    kernel = conv.kernel.numpy()[..., 0]
    (height, width), (rows, columns) = SPACE, kernel.shape[:2]
    top, left = (rows - 1) // 2, (columns - 1) // 2
    padded = np.pad(x, [(0, 0), (top, rows - 1 - top), (left, columns - 1 - left), (0, 0)])
    total = np.zeros(x.shape) + conv.bias.numpy()
    for row, column in np.ndindex(rows, columns):
        total += padded[:, row : row + height, column : column + width] * kernel[row, column]
    return total


def blend(layer, sums, projected, features):
    share = sigmoid(project(features, layer.center_feature_scale_proj))
    share = np.repeat(share, CHANNELS // layer.groups, axis=-1)
    return sums * (1 - share) + projected * share


def geometry(layer):
    reach = (np.array(layer.kernel_size) - 1) * layer.dilation_rate
    names = "kernel_size", "strides", "dilation_rate", "offset_scale", "remove_center"
    padding = [(each // 2, each - each // 2) for each in reach]
    return {**{name: getattr(layer, name) for name in names}, "padding": padding}


def expected_v3(layer, inputs):
    skip = (slice(None), *(slice(None, None, stride) for stride in layer.strides))
    features = depthwise(inputs, layer.dw_conv)
    features -= features.mean(axis=-1, keepdims=True)
    features /= np.sqrt(np.mean(features**2, axis=-1, keepdims=True) + 1e-6)
    features = features * layer.dw_norm.gamma.numpy() + layer.dw_norm.beta.numpy()
    features = layer.activation(features).numpy()[skip]
    logits = np.exp(project(features, layer.mask))
    logits = logits.reshape(*logits.shape[:3], layer.groups, -1)
    mask = (logits / logits.sum(axis=-1, keepdims=True)).reshape(*logits.shape[:3], -1)
    projected = project(inputs, layer.input_proj)
    offset = project(features, layer.offset)
    sums = oracles.dcnv3(projected, offset, mask, **geometry(layer))
    if layer.center_feature_scale:
        sums = blend(layer, sums, projected[skip], features)
    return project(sums, layer.output_proj)


def expected_v4(layer, inputs):
    skip = (slice(None), *(slice(None, None, stride) for stride in layer.strides))
    features = depthwise(inputs, layer.offset_mask_dw) if layer.depthwise_kernel_size else inputs
    offset_mask = project(features[skip], layer.offset_mask)
    projected = project(inputs, layer.value_proj) if layer.pointwise else inputs
    sums = oracles.dcnv4(projected, offset_mask, groups=layer.groups, **geometry(layer))
    if layer.center_feature_scale:
        sums = blend(layer, sums, projected[skip], sums)
    return project(sums, layer.output_proj) if layer.pointwise else sums


@pytest.mark.parametrize(("layer", "options"), CASES, ids=str)
def test_layers_equal_the_oracle(rng, layer, options):
    layer, inputs = build(rng, layer, options)
    expected = expected_v3 if isinstance(layer, tfd.layers.DCNv3) else expected_v4
    actual = layer(inputs)
    assert actual.shape == layer.compute_output_shape(inputs.shape)
    assert relative_error(actual, expected(layer, inputs)) < TOLERANCE["float64"]


def test_an_untrained_v3_averages_over_its_kernel_and_an_untrained_v4_is_its_bias(rng):
    inputs = rng.normal(size=[1, 5, 5, 4]).astype("float32")
    third, fourth = tfd.layers.DCNv3(groups=2), tfd.layers.DCNv4(groups=2, bias_initializer="ones")
    outputs = third(inputs)[0, 2, 2]
    mean = project(inputs, third.input_proj)[0, 1:4, 1:4].mean(axis=(0, 1))
    assert relative_error(outputs, project(mean, third.output_proj)) < TOLERANCE["float32"]
    np.testing.assert_array_equal(fourth(inputs), np.ones([1, 5, 5, 4]))


def shapes_of(layer, channels):
    layer.build((None, None, None, channels))
    return {weight.path.split("/", 1)[1]: tuple(weight.shape) for weight in layer.weights}


def test_weights_have_the_published_shapes_transposed():
    assert shapes_of(tfd.layers.DCNv3(groups=4, center_feature_scale=True), 64) == {
        "dw_conv/kernel": (3, 3, 64, 1),
        "dw_conv/bias": (64,),
        "dw_norm/gamma": (64,),
        "dw_norm/beta": (64,),
        "offset/kernel": (64, 72),
        "offset/bias": (72,),
        "mask/kernel": (64, 36),
        "mask/bias": (36,),
        "input_proj/kernel": (64, 64),
        "input_proj/bias": (64,),
        "output_proj/kernel": (64, 64),
        "output_proj/bias": (64,),
        "center_feature_scale_proj/kernel": (64, 4),
        "center_feature_scale_proj/bias": (4,),
    }
    options = {"output_bias": False, "depthwise_kernel_size": 5, "remove_center": True}
    assert shapes_of(tfd.layers.DCNv4(groups=5, **options), 80) == {
        "offset_mask_dw/kernel": (5, 5, 80, 1),
        "offset_mask_dw/bias": (80,),
        "offset_mask/kernel": (80, 120),
        "offset_mask/bias": (120,),
        "value_proj/kernel": (80, 80),
        "value_proj/bias": (80,),
        "output_proj/kernel": (80, 80),
    }
    assert shapes_of(tfd.layers.DCNv4(groups=4), 64)["offset_mask/kernel"] == (64, 112)


@VERSIONS
def test_derivatives_of_the_layers(rng, layer):
    layer, inputs = build(rng, layer, {**OPTIONS[1], "strides": (1, 2)})
    check_derivatives(layer, inputs)


@VERSIONS
def test_offsets_stay_float32_under_mixed_precision(layer):
    """The tap at 1001.3 reads a ramp; neighbouring halves are 0.5 apart there, 0.25 at 300.3."""
    layer = layer(1, groups=1, dtype="mixed_float16")
    ramp = np.abs(np.arange(1024.0, dtype="float32") - 1001).reshape(1, 1, 1024, 1)
    layer(ramp)
    v3 = isinstance(layer, tfd.layers.DCNv3)
    (layer.input_proj if v3 else layer.value_proj).kernel.assign([[1.0]])
    layer.output_proj.kernel.assign([[1.0]])
    bias = [300.3, 0.0] if v3 else [300.3, 0, 1, 0, 0, 0, 0, 0]
    (layer.offset if v3 else layer.offset_mask).bias.assign(bias)
    out = layer(ramp)
    assert out.dtype == "float16"
    np.testing.assert_allclose(out[0, 0, 699:703, 0], [1.7, 0.7, 0.3, 1.3], atol=2e-3)


@VERSIONS
def test_an_empty_batch_gives_an_empty_result(layer):
    assert layer(groups=2)(np.zeros([0, 5, 7, 4], "float32")).shape == (0, 5, 7, 4)


@VERSIONS
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kernel_size", {"kernel_size": 0}),
        ("kernel_size", {"kernel_size": 2, "remove_center": True}),
        ("strides", {"strides": -1}),
        ("dilation_rate", {"dilation_rate": (1, 0)}),
        ("groups", {"groups": 1.5}),
        ("depthwise_kernel_size", {"depthwise_kernel_size": 0}),
        ("inputs", {"groups": 4}),
    ],
)
def test_a_bad_option_is_named(layer, name, options):
    with pytest.raises(ValueError, match=rf"{name} must .+, received .+"):
        layer(**options)(np.zeros([1, 5, 7, 6], "float32"))
