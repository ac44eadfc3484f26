"""Draws the pictures of docs/visualization.md: where trained layers look in real images.

    python examples/pictures.py    # writes docs/images/plot_*.png, in a few minutes

The convolution and the transformer were trained on distorted digits, the pooling on digits in
photographs, as `make demo` and `make detect` do; the flow takes one digit to another. The turned
box lies around a word that is written on a photograph. The attention is untrained, so that its
heads look where they are published to start from, with random weights.
"""

import argparse
import io
import os
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import detect_data
import detect_digits
import detect_models
import digits_data
import digits_models
import distorted_digits
import keras
import matplotlib
import numpy as np
import tensorflow as tf
from detect_figure import largest_digits
from PIL import Image, ImageDraw, ImageFont

import tf_deform as tfd
from tf_deform import visualization

SEED = 0


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "images",
        help="folder of the pictures (default: docs/images)",
    )
    parser.add_argument("--quick", action="store_true", help="trains for a moment only")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for draw in (draw_turned_bins, draw_flow, draw_attention, draw_taps, draw_grid, draw_bins):
        keras.utils.set_random_seed(SEED)
        path = options.output / f"{draw.__name__.replace('draw', 'plot')}.png"
        with Image.open(io.BytesIO(visualization.png_of(draw(options.quick)))) as picture:
            picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
                path, optimize=True
            )  # a third of the size
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def draw_taps(quick):
    model, images = _trained_on_digits("Deformable CNN", quick)
    layer = model.get_layer("deformable_convolution")
    features = keras.Model(model.input, layer.input)(images)
    units = [(3, 3), (4, 5)]
    return lambda ax: visualization.plot_taps(images[0], layer, features, pixel=units, ax=ax)


def draw_grid(quick):
    model, images = _trained_on_digits("ST-CNN", quick)
    layer = model.get_layer("spatial_transformer")
    return lambda ax: visualization.plot_grid(images[0], layer, images, ax=ax)


def _trained_on_digits(name, quick):
    """Returns a model trained on distorted digits, and a batch of one to look at."""
    options = distorted_digits.parse(["--quick"])
    if quick:
        options.epochs, options.draws = 1, 1
    train, test = distorted_digits.datasets(options, "RTS", SEED)
    model = digits_models.build_model(name)
    distorted_digits.fit(model, *train, options.epochs)
    return model, test[0][4:5]


def draw_bins(quick):
    scenes = detect_data.make_scenes("train", 8 if quick else 240, SEED)
    model = detect_models.build_model("DeformableRoIPooling")
    detect_digits.fit(model, scenes, 1 if quick else 8)
    layer = model.get_layer("pooling")
    test = detect_data.make_scenes("test", 16, SEED)
    scene, proposal = largest_digits(test)[0]
    inputs = {"images": test.images, "proposals": test.proposals}
    features, boxes = keras.Model(model.inputs, layer.input)(inputs)
    one, box = slice(scene, scene + 1), test.proposals[scene, proposal]
    (x, y), half = (box[:2] + box[2:]) / 2, 0.7 * np.max(box[2:] - box[:2])

    def draw(ax):
        arguments = (features[one], boxes[one])
        visualization.plot_bins(test.images[scene], layer, arguments, roi=proposal, ax=ax)
        ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))

    return draw


def draw_turned_bins(quick):
    photograph = detect_data.photographs("test")[1][40:200, 60:260].astype("uint8")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", 34)
    left, top, right, bottom = font.getbbox("KERAS")
    word = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(word).text((-left, -top), "KERAS", fill=255, font=font)
    turned = word.rotate(25, Image.Resampling.BICUBIC, expand=True)
    image, corner = Image.fromarray(photograph), (28, 30)
    image.paste((255, 255, 255), corner, turned)
    x, y = (start + size / 2 for start, size in zip(corner, turned.size, strict=True))
    box = tf.constant([[[x, y, word.width + 8, word.height + 8, 25.0]]])
    layer = tfd.layers.RoIAlignRotated((2, 5), angle_unit="degrees")
    features = np.asarray(image)[None] / 255
    return lambda ax: visualization.plot_bins(np.asarray(image), layer, (features, box), ax=ax)


def draw_attention(quick):
    photograph = detect_data.photographs("test")[1][40:360:2, :320:2] / 255
    grey = np.mean(photograph, axis=-1)  # which the heads' colours stand out from
    maps = [tf.image.resize(photograph[None], [size, size]) for size in (40, 20, 10)]
    queries = tf.reshape(maps[2], [1, 100, 3])
    places = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1)
    reference = tf.constant((places.reshape(1, 100, 2) + 0.5) / 10, tf.float32)
    layer = tfd.layers.MultiScaleDeformableAttention(num_heads=8, key_dim=4)
    layer(queries, reference, maps)
    kernel = layer.attention_weights.kernel
    kernel.assign(tf.random.normal(kernel.shape, stddev=1.5, seed=SEED))
    return lambda ax: visualization.plot_attention(
        grey, layer, (queries, reference, maps), query=44, ax=ax
    )


def draw_flow(quick):
    (digits, labels), _ = digits_data.load("digits", SEED)
    fixed, moving = tf.split(digits[labels == 3][1:3].astype("float32"), 2)
    velocity = tf.Variable(tf.zeros([1, 6, 6, 2]))
    optimizer = keras.optimizers.Adam(0.1)

    def flow():
        size = fixed.shape[1:3]
        return tfd.ops.integrate_velocity(tf.image.resize(velocity, size, "bicubic"))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            difference = tfd.ops.warp(moving, flow()) - fixed
            loss = tf.reduce_mean(difference**2) + 1e-3 * tf.reduce_mean(velocity**2)
        optimizer.apply_gradients([(tape.gradient(loss, velocity), velocity)])

    for _ in range(5 if quick else 150):
        step()
    return lambda ax: visualization.plot_flow(moving[0].numpy(), flow(), ax=ax)


if __name__ == "__main__":
    main()
