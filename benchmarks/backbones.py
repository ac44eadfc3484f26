"""Makes known backbones deformable and writes into docs/backbones.md what became of them.

    python benchmarks/backbones.py [--only MobileNetV2 ...] [--family KerasHub]

Each model gets random weights, so that no sum is zero and no normalisation is the identity, and is
converted by `tfd.deformable(model)` with nothing chosen. A row holds

- the layers converted, and the parameters of the model before and after;
- the largest difference between the outputs of the model and of the copy, over the largest output,
  and the same once the copy's offsets are drawn between half a pixel and a pixel and a half: the
  first number would mean little if the second were small;
- whether one step of SGD moves every predictor of offsets, and whether, of a model that was frozen
  before, it moves these and nothing else.

KerasHub's rows need `pip install keras-hub`, and stay as they are without it.
"""

import argparse
import math
import os
import re
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tf_deform as tfd

try:
    import keras_hub
except ImportError:
    keras_hub = None

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
IMAGES = (2, 128, 96, 3)
APPLICATIONS = (
    *("ResNet50", "ResNet50V2", "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"),
    *("EfficientNetB0", "EfficientNetV2B0", "Xception", "ConvNeXtTiny", "DenseNet121", "VGG16"),
    *("InceptionV3", "InceptionResNetV2", "NASNetMobile"),
)
COLUMNS = (
    *("model", "layers converted", "parameters", "parameters of the copy", "largest difference"),
    *("difference with offsets drawn", "a step moves the offsets", "frozen: it moves them alone"),
)
# Small ones, after the examples of KerasHub's documentation.
HUB = {
    "ResNet": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64, 64],
        "stackwise_num_blocks": [2, 2, 2],
        "stackwise_num_strides": [1, 2, 2],
        "block_type": "basic_block",
        "use_pre_activation": True,
    },
    "CSPNet": {
        "stem_filters": 32,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 2, 4],
        "stackwise_strides": [1, 2, 2],
        "stackwise_num_filters": [32, 64, 128],
        "block_type": "dark_block",
        "stage_type": "dark",
    },
    "DenseNet": {"stackwise_num_repeats": [6, 12, 24, 16]},
    "EfficientNet": {
        "stackwise_width_coefficients": [1.0] * 6,
        "stackwise_depth_coefficients": [1.0] * 6,
        "stackwise_kernel_sizes": [3] * 6,
        "stackwise_num_repeats": [2, 4, 4, 6, 9, 15],
        "stackwise_input_filters": [24, 24, 48, 64, 128, 160],
        "stackwise_output_filters": [24, 48, 64, 128, 160, 256],
        "stackwise_expansion_ratios": [1, 4, 4, 4, 6, 6],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0, 0.25, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2, 2, 1, 2],
        "stackwise_block_types": ["fused"] * 3 + ["unfused"] * 3,
        "stackwise_force_input_filters": [0] * 6,
        "stackwise_nores_option": [False] * 6,
    },
    "HGNetV2": {
        "depths": [1, 2, 4],
        "embedding_size": 32,
        "hidden_sizes": [64, 128, 256],
        "stem_channels": [3, 16, 32],
        "hidden_act": "relu",
        "use_learnable_affine_block": False,
        "stackwise_stage_filters": [
            (32, 16, 64, 1, 1, 3),
            (64, 32, 128, 2, 1, 3),
            (128, 64, 256, 4, 1, 3),
        ],
        "apply_downsample": [False, True, True],
        "use_lightweight_conv_block": [False, False, False],
    },
    "MobileNet": {
        "stackwise_expansion": [[40, 56], [64, 144, 144], [72, 72], [144, 288, 288]],
        "stackwise_num_blocks": [2, 3, 2, 3],
        "stackwise_num_filters": [[16, 16], [24, 24, 24], [24, 24], [48, 48, 48]],
        "stackwise_kernel_size": [[3, 3], [5, 5, 5], [5, 5], [5, 5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
        "stackwise_se_ratio": [[None] * 2, [0.25] * 3, [0.3] * 2, [0.3, 0.25, 0.25]],
        "stackwise_activation": [["relu"] * 2, *(["hard_swish"] * count for count in (3, 2, 3))],
        "stackwise_padding": [[1, 1], [2, 2, 2], [2, 2], [2, 2, 2]],
        "output_num_filters": 288,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "last_layer_filter": 288,
        "squeeze_and_excite": 0.5,
    },
    "VGG": {
        "stackwise_num_repeats": [2, 2, 3, 3, 3],
        "stackwise_num_filters": [64, 128, 256, 512, 512],
    },
    "Xception": {
        "stackwise_conv_filters": [[32, 64], [64, 128], [256, 256]],
        "stackwise_pooling": [True, True, False],
    },
    "MiT": {
        "layerwise_depths": [2, 2, 2, 2],
        "num_layers": 4,
        "layerwise_num_heads": [1, 2, 5, 8],
        "layerwise_sr_ratios": [8, 4, 2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3, 3, 3],
        "layerwise_strides": [4, 2, 2, 2],
        "hidden_dims": [32, 64, 160, 256],
    },
    "ViT": {
        "patch_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 64,
        "mlp_dim": 128,
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", help="these models, printed and not written")
    parser.add_argument("--family", choices=("keras.applications", "KerasHub"))
    options = parser.parse_args()
    families = {"keras.applications": {name: application(name) for name in APPLICATIONS}}
    if keras_hub:
        families["KerasHub"] = {name: backbone(name) for name in HUB}
    for family, makers in families.items():
        if options.family not in (None, family):
            continue
        lines = []
        for name, make in makers.items():
            if not options.only or name in options.only:
                lines.append(row(name, make))
                print(lines[-1], flush=True)
        if not options.only:
            write(family, lines)


def application(name):
    return lambda: getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=IMAGES[1:]
    )


def backbone(name):
    return lambda: getattr(keras_hub.models, f"{name}Backbone")(
        **{"input_shape" if name == "EfficientNet" else "image_shape": IMAGES[1:]}, **HUB[name]
    )


def row(name, make):
    """Returns a row of the table: what became of the model that `make` returns."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make()
    randomize(model, rng)
    images = tf.constant(rng.uniform(-1, 1, IMAGES), tf.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are fewer than three: the row says so
            copy = tfd.deformable(model, verbose=False)
    except ValueError as error:
        return f"| `{name}` | none: {error} | {model.count_params():,} |{' |' * (len(COLUMNS) - 3)}"
    expected = outputs(model, images)
    equal = difference(outputs(copy, images), expected)
    layers = deformable_layers(copy)
    draw_offsets(layers, rng)
    deformed = difference(outputs(copy, images), expected)
    draw_offsets(layers, None)
    moved = moved_by_a_step(copy, images)
    model.trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = tfd.deformable(model, verbose=False)
    moved_of_frozen = moved_by_a_step(frozen, images)
    before, after = model.count_params(), copy.count_params()
    cells = [
        f"`{name}`",
        ", ".join(f"`{layer.name}` {'×'.join(map(str, layer.kernel_size))}" for layer in layers),
        f"{before:,}",
        f"{after:,} (+{after / before - 1:.1%})",
        f"{equal:.0e}" if equal else "0",
        f"{deformed:.2f}",
        answer(moved >= predictors(layers)),
        answer(moved_of_frozen == predictors(deformable_layers(frozen))),
    ]
    return f"| {' | '.join(cells)} |"


def randomize(model, rng):
    """Draws weights that keep the size of what passes, and no layer's identity."""
    for weight in model.weights:
        shape = tuple(weight.shape)
        if not weight.dtype.startswith("float"):
            continue
        if len(shape) > 1:
            # A depthwise kernel, whose multiplier is 1, is not summed over its channels.
            inputs = math.prod(shape[:-2] if shape[-1] == 1 else shape[:-1])
            weight.assign(rng.normal(0, math.sqrt(2 / inputs), shape))
        elif any(word in weight.name for word in ("variance", "gamma", "scale")):
            weight.assign(rng.uniform(0.5, 1.5, shape))
        else:
            weight.assign(rng.normal(0, 0.2, shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # reads its weights


def deformable_layers(model):
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += deformable_layers(layer)
        elif isinstance(layer, tfd.layers.DeformableConv2D):
            found.append(layer)
    return found


def predictors(layers):
    return {id(weight) for each in layers for weight in (each.offset_kernel, each.offset_bias)}


def draw_offsets(layers, rng):
    """Sets each layer's offsets, the same for all pixels: random ones, or zero without `rng`."""
    for layer in layers:
        shape = layer.offset_bias.shape
        layer.offset_bias.assign(rng.uniform(0.5, 1.5, shape) if rng else np.zeros(shape))


def outputs(model, images):
    return [each.numpy() for each in tf.nest.flatten(model(images))]


def difference(actual, expected):
    """Returns the largest difference over the largest value."""
    largest = max(np.max(np.abs(each)) for each in expected)
    pairs = zip(actual, expected, strict=True)
    error = max(np.max(np.abs(one - other)) for one, other in pairs) / largest
    if not np.isfinite(error):
        raise ValueError(f"outputs must be finite, received a difference of {error}")
    return error


def moved_by_a_step(model, images):
    """Returns the ids of the weights that a step of SGD changes."""
    before = [weight.numpy() for weight in model.weights]
    weights = model.trainable_weights
    with tf.GradientTape() as tape:
        returned = tf.nest.flatten(model(images, training=True))
        loss = tf.add_n([tf.reduce_mean(each**2) for each in returned])
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    pairs = [pair for pair in zip(gradients, weights, strict=True) if pair[0] is not None]
    keras.optimizers.SGD(0.01).apply(*zip(*pairs, strict=True))
    after = [weight.numpy() for weight in model.weights]
    if not all(np.all(np.isfinite(each)) for each in after):
        raise ValueError("weights must be finite after a step, some are not")
    return {
        id(weight)
        for weight, old, new in zip(model.weights, before, after, strict=True)
        if np.any(old != new)
    }


def answer(holds):
    return "yes" if holds else "**no**"


def write(family, lines):
    """Puts the lines between the family's markers in the page."""
    begin, end = f"<!-- {family}: begin -->", f"<!-- {family}: end -->"
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    if family == "KerasHub":
        versions += f", KerasHub {keras_hub.__version__}"
    head = [f"{versions}:", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    table = "\n".join([*head, *lines])
    text = re.sub(
        f"{begin}.*{end}",
        lambda _: f"{begin}\n{table}\n{end}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
