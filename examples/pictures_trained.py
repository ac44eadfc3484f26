"""Pictures of the layers that learn: where they look after a short training."""

import keras
import numpy as np
import pictures_data as data
import pictures_models as models
import tensorflow as tf
from matplotlib.colors import to_rgb
from pictures_canvas import GAP, HEIGHT, WIDTH, Canvas, fill, show

import tf_deform as tfd
from tf_deform import drawing, visualization


def of_reader(model, scenes, boxes):
    """Returns {layer: function that draws its picture} of a reader and what to test it with."""
    inputs = {"images": scenes.shrunk(), "boxes": boxes}
    arguments = {
        layer.name: keras.Model(model.inputs, layer.input)(inputs)
        for layer in model.layers
        if layer.name[0].isupper() or layer.name == "upright"
    }
    drawers = {
        "DeformableConv2D": deformable_conv,
        "SpatialTransformer": spatial_transformer,
        "MultiScaleDeformableAttention": attention,
        "DeformableRoIPooling": deformable_pooling,
        "DeformablePSRoIPooling": deformable_pooling,
        "PSRoIAlign": position_sensitive,
    }
    outputs = model(inputs)

    def drawer(name, draw):
        layer = model.get_layer("upright" if name == "SpatialTransformer" else name)
        return lambda: draw(layer, arguments[layer.name], scenes, outputs)

    return {name: drawer(name, draw) for name, draw in drawers.items()}


def one(arguments, index):
    """Returns the arguments of a call for one scene of the batch."""
    return tf.nest.map_structure(lambda each: each[index : index + 1], arguments)


def deformable_conv(layer, arguments, scenes, outputs):
    """A convolution's nine taps leave their square and spread over a digit."""
    places = scenes.places[:, 0] / models.SMALLER
    expected = models.at_lattice(models.blurred_ink(scenes.shrunk()), places)
    index = chosen(scenes, np.mean((outputs["read"] - expected) ** 2, axis=-1), apart=20)
    canvas = Canvas()
    axes, image = canvas.whole(), scenes.images[index]
    visualization.plot_taps(image, layer, one(arguments, index), pixel=models.UNIT, ax=axes)
    fill(axes, image)
    return canvas


def chosen(scenes, error, apart=0.0):
    """Returns the scene with the least error whose digit is large and some way off the middle."""
    x, y, side, angle = scenes.places[:, 0].T
    away = np.hypot(x - data.WIDTH / 2, y - data.HEIGHT / 2)
    inside = (np.abs(x - data.WIDTH / 2) < 70) & (np.abs(y - data.HEIGHT / 2) < 45)
    fits = inside & (side > 60) & (away > apart) & (np.abs(angle) > 0.2)
    return int(np.argmin(np.where(fits, error, np.inf)))


def spatial_transformer(layer, arguments, scenes, outputs):
    """A spatial transformer finds a digit, and returns it upright and in one size."""
    error = np.mean((outputs["upright"][..., 0] - scenes.digits[:, 0]) ** 2, axis=(1, 2))
    index = chosen(scenes, error, apart=15)
    canvas = Canvas()
    axes, image = canvas.whole(), scenes.images[index]
    ink = one(arguments, index)
    visualization.plot_grid(image, layer, ink, ax=axes)
    fill(axes, image)
    finer = tfd.layers.SpatialTransformer(None, layer.transformation, 180, interpolation="bicubic")
    show(canvas.inset(180, 180), finer(image[None], layer.predict_parameters(ink))[0])
    return canvas


def attention(layer, arguments, scenes, outputs):
    """Four heads look from one query at places in three maps, most of them on the digit."""
    right = outputs["attended"].numpy()[np.arange(len(scenes.labels)), scenes.labels[:, 0]]
    index = chosen(scenes, -right)
    canvas = Canvas()
    axes, image = canvas.whole(), scenes.images[index]
    query, place, *maps = one(arguments, index)
    visualization.plot_attention(image, layer, (query, place, maps), ax=axes)
    fill(axes, image)
    return canvas


def deformable_pooling(layer, arguments, scenes, outputs):
    """The bins of a box around a digit are moved onto its strokes."""
    moved_by_maps = isinstance(layer, tfd.layers.DeformablePSRoIPooling)
    scores = outputs["deformable_position_sensitive" if moved_by_maps else "classes"].numpy()
    right = scores[np.arange(len(scores)), 0, scenes.labels[:, 0]]
    bins = np.reshape(layer.sampling_boxes(*arguments)[:, 0], [len(scores), -1, 4])
    seen = np.all((bins > 0) & (bins < [64, 48, 64, 48]), axis=(1, 2))
    index = chosen(scenes, -right - seen)
    canvas = Canvas()
    axes, image = canvas.whole(), scenes.images[index]
    layer, own = of_image(layer, one(arguments, index))
    visualization.plot_bins(image, layer, own, ax=axes)
    moved = layer.sampling_boxes(*own)[0, 0].numpy().reshape(-1, 4)
    outline = np.concatenate([moved, own[1][0, :1]])
    fill(axes, image, widened((*outline[:, :2].min(0), *outline[:, 2:].max(0)), WIDTH / HEIGHT))
    return canvas


def of_image(layer, arguments):
    """Returns the layer and its arguments with boxes in pixels of what is shown."""
    config = {**layer.get_config(), "spatial_scale": layer.spatial_scale / data.SHRINK}
    same = type(layer).from_config(config)
    features, boxes, *offset = arguments
    arguments = features, boxes * data.SHRINK, *offset
    same(*arguments)
    same.set_weights(layer.get_weights())
    return same, arguments


def position_sensitive(layer, arguments, scenes, outputs):
    """Each bin of a box reads a map of its own, which shines at one part of the digit."""
    labels = scenes.labels[:, 0]
    scores = outputs["position_sensitive"].numpy()[np.arange(len(labels)), 0, labels]
    index = chosen(scenes, -scores)
    layer, (features, boxes) = of_image(layer, one(arguments, index))
    maps = tf.image.resize(features, scenes.images.shape[1:3], "bicubic")
    maps = tf.reshape(maps, [*maps.shape[1:3], models.CLASSES, models.BINS**2])
    light = (maps[:, :, labels[index]] - tf.reduce_mean(maps, axis=2)).numpy()
    bins = layer.sampling_boxes(features, boxes).numpy()
    inside = np.zeros([data.HEIGHT, data.WIDTH, 1], bool)
    left, top = bins[0, 0, 0, 0, :2].astype(int)
    right, bottom = bins[0, 0, -1, -1, 2:].astype(int)
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    light = np.clip(light / np.quantile(light[inside[..., 0]], 0.98), 0, 1) * inside
    light = light[..., None]
    grey = 0.7 * scenes.images[index].mean(axis=-1, keepdims=True) * np.ones(3, np.float32)
    canvas = Canvas()
    wide, high = (WIDTH - 4 * GAP) / 3, (HEIGHT - 4 * GAP) / 3
    around = widened((left, top, right, bottom), wide / high)
    for number in range(models.BINS**2):
        row, column = divmod(number, models.BINS)
        axes = canvas.panel(GAP + column * (wide + GAP), GAP + row * (high + GAP), wide, high)
        image = grey + light[:, :, number] * (np.array(to_rgb(drawing.COLOURS[0])) - grey)
        visualization.plot_bins(image, bins, colour=drawing.REST, ax=axes)
        own = bins[:, :1, row : row + 1, column : column + 1]
        visualization.plot_bins(image, own, colour=drawing.COLOURS[1], ax=axes)
        fill(axes, image, around)
    return canvas


def widened(box, ratio):
    """Returns a box (left, top, right, bottom) with a margin and a ratio of width to height."""
    left, top, right, bottom = box
    high = 1.2 * max(bottom - top, (right - left) / ratio)
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - high * ratio / 2, y - high / 2, x + high * ratio / 2, y + high / 2


def denoising(model, noise):
    """Returns {layer: function that draws its picture} of a denoiser."""
    scenes = data.make_scenes(24, 7, digits_each=1, sides=(90, 120))
    return {
        "DCNv3": lambda: weighted_taps(model, "DCNv3", scenes, 0, noise),
        "DCNv4": lambda: weighted_taps(model, "DCNv4", scenes, 1, noise),
    }


def weighted_taps(model, name, scenes, index, noise):
    """Where a pixel on a stroke looks to lose its noise: larger, the more a tap counts."""
    clean = scenes.shrunk()[index : index + 1]
    noisy = clean + np.random.default_rng(8).normal(0, noise, clean.shape).astype(np.float32)
    layer = model.get_layer(name)
    features = keras.Model(model.inputs, layer.input)([noisy])
    white = clean[0].min(axis=-1)
    rows, columns = np.nonzero(white[4:-4, 4:-4] > 0.97)
    unit = rows[len(rows) // 3] + 4, columns[len(rows) // 3] + 4
    canvas = Canvas()
    axes, image = canvas.whole(), scenes.images[index]
    visualization.plot_taps(image, layer, features, pixel=unit, ax=axes)
    y, x = (data.SHRINK * (place + 0.5) for place in unit)
    fill(axes, image, (x - 48, y - 36, x + 48, y + 36))
    axes.images[0].set_interpolation("bilinear")
    return canvas


def deformable_conv_3d(model, clips, large):
    """The taps of a convolution over three frames follow a digit that moves."""
    layer = model.get_layer("DeformableConv3D")
    arguments = keras.Model(model.inputs, layer.input)([clips])
    index = int(np.argmax(travel(clips)))
    canvas = Canvas()
    high = (HEIGHT - 4 * GAP) / 3
    for frame in range(3):
        axes = canvas.panel(GAP, GAP + frame * (high + GAP), WIDTH - 2 * GAP, high)
        image = 0.15 + 0.85 * large[index, frame]
        options = {"pixel": (0, *models.UNIT), "slice_index": frame}
        visualization.plot_taps(image, layer, one(arguments, index), ax=axes, **options)
        fill(axes, image)
    return canvas


def travel(clips):
    """Returns how far the ink moves from the first to the last frame, in pixels."""
    ink = clips.sum(axis=(2, 4)) / clips.sum(axis=(2, 3, 4))[..., None]
    middles = ink @ np.arange(ink.shape[-1])
    return np.abs(middles[:, 2] - middles[:, 0])


def deformable_conv_1d(model):
    """The taps of a convolution over a signal spread as a nerve cell's beat slows down."""
    layer = model.get_layer("DeformableConv1D")
    canvas = Canvas()
    high = (HEIGHT - 3 * GAP) / 2
    for row, period in enumerate((45, 110)):
        signals, _ = data.make_beats(1, 9, periods=(period, period + 1))
        inputs = keras.Model(model.inputs, layer.input)([signals])
        axes = canvas.panel(GAP, GAP + row * (high + GAP), WIDTH - 2 * GAP, high)
        visualization.plot_taps(signals[0, :, 0], layer, inputs, pixel=1, ax=axes)
        axes.set(xlim=(0, data.STEPS - 1), ylim=(-0.45, 1.15))
    return canvas
