"""Small networks, trained for a few minutes so that the pictures show layers that have learnt.

`train_reader` trains one with six of the layers on photographs with a digit: each layer has a head
of its own, and all share the features. `train_denoiser` trains DCNv3 and DCNv4 to remove noise,
`train_tracker` DeformableConv3D to read a digit that moves, `train_timer` DeformableConv1D to read
a nerve cell's beat at any speed.
"""

import math

import keras
import numpy as np
import pictures_data as data
import tensorflow as tf
from detect_boxes import decode, iou
from scipy.ndimage import gaussian_filter

import tf_deform as tfd

CLASSES = 11  # ten digits and none
BINS = 3
BOXES = 4
LATTICE = 3
"""The taps of the convolutions, along each axis."""
LEVELS = 3
"""Of blur."""
SMALLER = np.array([data.SHRINK, data.SHRINK, data.SHRINK, 1])
UNIT = (1, 1)
"""The output pixel in the middle: strides and dilation are such that the 3 x 3 outputs have one."""

layers = keras.layers


def train_reader(quick):
    """Returns the trained model and test Scenes with their boxes `[scenes, BOXES, 4]`."""
    options = {"digits_each": 1, "sides": (48, 104)}
    scenes = data.make_scenes(32 if quick else 1600, 0, **options)
    boxes = propose(scenes, 0)
    model = reader()
    labels = labels_of(scenes, boxes)
    targets = {
        "classes": labels,
        "position_sensitive": labels,
        "deformable_position_sensitive": labels,
        "attended": scenes.labels,
        "read": at_lattice(blurred_ink(scenes.shrunk()), scenes.places[:, 0] / SMALLER),
        "upright": gaussian_filter(scenes.digits[:, 0], [0, 1.5, 1.5])[..., None],
    }
    crossentropy = "sparse_categorical_crossentropy"
    losses = dict.fromkeys(targets, crossentropy) | {"read": "mse", "upright": "mse"}
    weights = dict.fromkeys(targets, 1.0) | {"read": 20.0, "upright": 10.0}
    inputs = {"images": scenes.shrunk(), "boxes": boxes}
    fit(model, inputs, targets, losses, 1 if quick else 10, weights)
    test = data.make_scenes(24, 1, **options)
    return model, test, propose(test, 1)


def fit(model, inputs, targets, losses, epochs, weights=None):
    steps = epochs * -(-len(next(iter(targets.values()))) // 16)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), losses, loss_weights=weights, jit_compile=False)
    model.fit(inputs, targets, batch_size=16, epochs=epochs, verbose=2)


def propose(scenes, seed):
    """Returns boxes `[scenes, BOXES, 4]` in pixels of the network: half are near the digit."""
    random = np.random.default_rng(seed)
    truth = digit_boxes(scenes)
    near = decode(random.normal(0, 1.0, [len(truth), BOXES // 2, 4]), truth)
    centre = random.uniform(0, [64, 48], [len(truth), BOXES // 2, 2])
    size = random.uniform(14, 36, [len(truth), BOXES // 2, 2])
    anywhere = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)
    return np.concatenate([near, anywhere], axis=1).astype(np.float32)


def digit_boxes(scenes):
    """Returns `[scenes, digits, 4]`: boxes around the digits' ink, in pixels of the network."""
    boxes = np.zeros([*scenes.labels.shape, 4])
    for index in np.ndindex(*scenes.labels.shape):
        ink = data.drawn(scenes.digits[index], scenes.places[index], (data.HEIGHT, data.WIDTH))
        rows, columns = np.nonzero(ink > 0.2)
        boxes[index] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes / data.SHRINK


def labels_of(scenes, boxes):
    """Returns `[scenes, BOXES]`: the digit of each box, 10 where there is none."""
    truth = digit_boxes(scenes)
    overlap = np.stack([iou(*pair)[:, 0] for pair in zip(boxes, truth, strict=True)])
    return np.where(overlap >= 0.5, scenes.labels, CLASSES - 1)


def conv(filters, strides=1):
    return layers.Conv2D(
        filters, 3, strides, padding="same", activation="relu", kernel_initializer="he_normal"
    )


def reader():
    """Returns the untrained model of photographs `[batch, 48, 64, 3]` and boxes."""
    images = keras.Input([data.HEIGHT // data.SHRINK, data.WIDTH // data.SHRINK, 3], name="images")
    boxes = keras.Input([BOXES, 4], name="boxes")
    fine = conv(24)(conv(16, 2)(images))
    middle = conv(32)(conv(32, 2)(fine))
    coarse = conv(48)(conv(48, 2)(middle))
    context = layers.Flatten()(conv(48, 2)(coarse))
    context = layers.Dense(96, activation="relu")(layers.Dense(128, activation="relu")(context))
    ink = layers.Lambda(blurred_ink, name="ink")(images)
    pooled = tfd.layers.DeformableRoIPooling(
        BINS, spatial_scale=1 / 2, offset_units=(64,), name="DeformableRoIPooling"
    )(fine, boxes)
    hidden = layers.Reshape([BOXES, BINS * BINS * fine.shape[-1]])(pooled)
    hidden = layers.Dense(64, activation="relu")(hidden)
    outputs = {
        "classes": layers.Dense(CLASSES, activation="softmax", name="classes")(hidden),
        **voting_heads(middle, boxes),
        "attended": attending_head(context, [fine, middle, coarse], boxes),
        "read": reading_head(context, ink),
        "upright": transforming_head(ink),
    }
    return keras.Model({"images": images, "boxes": boxes}, outputs)


def blurred_ink(images):
    """Returns `[..., height, width, LEVELS]`: what is white, blurred less and more.

    A little blur tells places apart; much of it has gradients that reach far.
    """
    white = tf.nn.relu(2.5 * tf.reduce_min(images, axis=-1, keepdims=True) - 1.5)
    return blurred(white)


def blurred(white):
    shape = tf.shape(white)
    white = tf.reshape(white, tf.concat([[-1], shape[-3:]], axis=0))
    levels = []
    for level in range(LEVELS):
        for _ in range(2):
            white = tf.nn.avg_pool2d(white, 4 * level + 5, 1, "SAME")
        levels.append(2.0**level * white)
    return tf.reshape(tf.concat(levels, axis=-1), tf.concat([shape[:-1], [LEVELS]], axis=0))


def at_lattice(maps, places):
    """Returns `[n, taps * LEVELS]`: what maps `[n, height, width, LEVELS]` hold around places.

    places: `[n, 4]`, centre (x, y), side in pixels of the maps, radians clockwise.
    """
    steps = (np.arange(LATTICE) - (LATTICE - 1) / 2) / LATTICE
    down, right = np.meshgrid(steps, steps, indexing="ij")
    x, y, side, angle = places.T[..., None, None]
    columns = x - 0.5 + side * (right * np.cos(angle) - down * np.sin(angle))
    rows = y - 0.5 + side * (right * np.sin(angle) + down * np.cos(angle))
    points = np.stack([rows, columns], axis=-1).reshape(len(places), -1, 1, 2)
    sampled = tfd.ops.sample(maps, points.astype(np.float32))
    return np.reshape(sampled, [len(places), -1])


def voting_heads(features, boxes):
    """Returns what the bins vote for, each by maps of its own: in place, and moved."""
    maps = layers.Conv2D(CLASSES * BINS * BINS, 1, name="maps")(features)
    pool = tfd.layers.PSRoIAlign(BINS, CLASSES, spatial_scale=1 / 4, name="PSRoIAlign")
    votes = [("position_sensitive", pool(maps, boxes))]
    options = {"group_size": BINS, "part_size": BINS, "spatial_scale": 1 / 4}
    offset_maps = layers.Conv2D(2 * BINS * BINS, 1, kernel_initializer="zeros")(features)
    offset = tfd.layers.DeformablePSRoIPooling(BINS, 2, **options)(offset_maps, boxes)
    pool = tfd.layers.DeformablePSRoIPooling(
        BINS, CLASSES, name="DeformablePSRoIPooling", **options
    )
    votes.append(("deformable_position_sensitive", pool(maps, boxes, offset)))
    return {
        name: layers.Softmax(name=name)(layers.Lambda(mean_of_bins)(vote)) for name, vote in votes
    }


def mean_of_bins(votes):
    return tf.reduce_mean(votes, axis=(2, 3))


def attending_head(context, maps, boxes):
    """Returns the digit, read where a query looks from the middle of the first box."""
    maps = [layers.Conv2D(32, 1)(each) for each in maps]
    query = layers.Reshape([1, 32])(layers.Dense(32)(context))
    place = layers.Lambda(middle_of_first_box)(boxes)
    layer = tfd.layers.MultiScaleDeformableAttention(4, 8, name="MultiScaleDeformableAttention")
    found = layers.Flatten()(layer(query, place, maps))
    return layers.Dense(CLASSES, activation="softmax", name="attended")(found)


def middle_of_first_box(boxes):
    return (boxes[:, :1, :2] + boxes[:, :1, 2:]) / 2 / [64.0, 48.0]


def reading_head(context, ink):
    """Returns what the taps read: places of the digit that are a lattice where it is upright."""
    offset = offsets_from(context, [3, 3, 2 * LATTICE**2])
    layer = tfd.layers.DeformableConv2D(
        LEVELS * LATTICE**2,
        LATTICE,
        strides=(20, 28),
        dilation_rate=4,
        padding="same",
        kernel_initializer=one_filter_a_tap,
        use_bias=False,
        trainable=False,
        name="DeformableConv2D",
    )
    return layers.Lambda(middle_unit, name="read")(layer(ink, offset))


def offsets_from(context, shape):
    """Returns offsets that a network predicts which has seen the whole input, zeros at first."""
    offset = layers.Dense(math.prod(shape), kernel_initializer="zeros")(context)
    return layers.Reshape(shape)(offset)


def one_filter_a_tap(shape, dtype=None):
    """Returns a kernel with which each filter returns what one tap reads in one channel.

    It stays as it is, so that to read well is to look at the right places.
    """
    return tf.reshape(tf.eye(shape[-1], dtype=dtype), shape)


def middle_unit(outputs):
    return outputs[:, UNIT[0], UNIT[1]]


def transforming_head(ink):
    localization = keras.Sequential(
        [conv(16, 2), conv(32, 2), conv(48, 2), layers.Flatten(), layers.Dense(64, "relu")]
    )
    return tfd.layers.SpatialTransformer(localization, "similarity", 28, name="upright")(
        ink[..., :1]
    )


def train_denoiser(quick):
    """Returns the model of noisy photographs with DCNv3 and DCNv4, and the noise's deviation."""
    noise, count = 0.3, 16 if quick else 800
    clean = data.make_scenes(count, 2, digits_each=1, sides=(60, 120)).shrunk()
    noisy = clean + np.random.default_rng(3).normal(0, noise, clean.shape).astype(np.float32)
    inputs = keras.Input([None, None, 3])
    outputs = {}
    for name in ("DCNv3", "DCNv4"):
        features = conv(16)(conv(16)(inputs))
        layer = getattr(tfd.layers, name)(groups=2, offset_scale=4.0, name=name)
        outputs[f"{name}_clean"] = layers.Conv2D(3, 1, name=f"{name}_clean")(layer(features))
    model = keras.Model(inputs, outputs)
    targets = dict.fromkeys(outputs, clean)
    fit(model, noisy, targets, dict.fromkeys(outputs, "mse"), 1 if quick else 6)
    return model, noise


def train_tracker(quick):
    """Returns a model with DeformableConv3D, and clips to test it with, also enlarged."""
    count = 16 if quick else 1600
    clips, places = data.make_clips(count, 4)
    frames = blurred(clips.reshape(-1, 24, 96, 1))
    digits = at_lattice(frames, places.reshape(-1, 4)).reshape(count, -1)
    inputs = keras.Input([3, 24, 96, 1])
    wide = layers.Lambda(blurred, name="ink")(inputs)
    context = layers.Reshape([3, 24, 96])(inputs)
    context = layers.Permute([2, 3, 1])(context)
    context = layers.Flatten()(conv(64, 2)(conv(48, 2)(conv(32, 2)(conv(16, 2)(context)))))
    context = layers.Dense(96, activation="relu")(layers.Dense(128, activation="relu")(context))
    offset = layers.Lambda(within_frames)(offsets_from(context, [27 * 9, 2]))
    layer = tfd.layers.DeformableConv3D(
        27 * LEVELS,
        3,
        strides=(3, 9, 45),
        dilation_rate=(1, 3, 3),
        padding="same",
        kernel_initializer=one_filter_a_tap,
        use_bias=False,
        trainable=False,
        name="DeformableConv3D",
    )
    read = layers.Lambda(middle_of_clip, name="read")(layer(wide, offset))
    model = keras.Model(inputs, {"read": read})
    fit(model, clips, {"read": digits}, {"read": "mse"}, 1 if quick else 12)
    return model, data.make_clips(12, 5)[0], data.make_clips(12, 5, enlarged=6)[0]


def within_frames(offset):
    """Returns offsets `[batch, 1, 3, 3, 81]` of `[batch, 243, 2]`, along all axes but time."""
    return tf.reshape(tf.pad(offset, [[0, 0], [0, 0], [1, 0]]), [-1, 1, 3, 3, 81])


def middle_of_clip(outputs):
    return outputs[:, 0, UNIT[0], UNIT[1]]


def train_timer(quick):
    """Returns a model with DeformableConv1D of a nerve cell's beats, and beats to test it with."""
    signals, beats = data.make_beats(32 if quick else 3000, 6)
    inputs = keras.Input([data.STEPS, 1])
    context = inputs
    for filters in (16, 24, 32, 32):
        context = layers.Conv1D(filters, 5, 2, padding="same", activation="relu")(context)
    context = layers.Dense(64, activation="relu")(layers.Flatten()(context))
    offset = offsets_from(context, [3, data.BEAT_TAPS])
    layer = tfd.layers.DeformableConv1D(
        data.BEAT_TAPS,
        data.BEAT_TAPS,
        strides=64,
        dilation_rate=4,
        padding="same",
        kernel_initializer=one_filter_a_tap,
        use_bias=False,
        trainable=False,
        name="DeformableConv1D",
    )
    read = layers.Lambda(middle_step, name="read")(layer(inputs, offset))
    model = keras.Model(inputs, {"read": read})
    fit(model, signals, {"read": beats}, {"read": "mse"}, 1 if quick else 10)
    return model


def middle_step(outputs):
    return outputs[:, 1]
