"""Pictures of the layers that have no weights: what they compute of real photographs."""

import keras
import numpy as np
import pictures_data as data
import tensorflow as tf
from pictures_canvas import GAP, WIDTH, Canvas, fill, frame, show

import tf_deform as tfd
from tf_deform import drawing, visualization

SMALL_TO_LARGE = drawing.COLOURS[:3]


def roi_align():
    """Regions of a photograph of different sizes become grids of one size."""
    canvas = Canvas()
    image = data.part("hopper", (460, 385), (70, 30, 455, 490))
    boxes = np.float32([[[95, 140, 275, 320], [196, 2, 306, 112]]])
    layer = tfd.layers.RoIAlign(12)
    large, squares = canvas.column(2)
    for roi, (square, colour) in enumerate(zip(squares, SMALL_TO_LARGE, strict=False)):
        inputs = image[None], boxes
        options = {"roi": roi, "colour": colour, "numbered": False}
        visualization.plot_bins(data.muted(image), layer, inputs, ax=large, **options)
        show(square, layer(*inputs)[0, roi], smooth=False)
        frame(square, colour)
    fill(large, image)
    return canvas


def roi_align_rotated():
    """A turned row of digits on a photograph is pooled upright."""
    canvas = Canvas()
    inks, labels = data.digits()
    image = data.muted(data.part("flower", (330, 640), (0, 60, 640, 390)))
    angle, side, middle = np.radians(-20), 92, np.array([320, 165])
    along = side * np.array([np.cos(angle), np.sin(angle)])
    number = [inks[labels == digit][index] for digit, index in ((2, 4), (0, 3), (4, 6), (8, 2))]
    places = [(*(middle + (index - 1.5) * along), side, angle) for index in range(4)]
    image = data.pasted(image, number, places).astype(np.float32)
    inputs = image[None], np.float32([[[*middle, 4.3 * side, 1.25 * side, 20]]])
    layer = tfd.layers.RoIAlignRotated((2, 8), angle_unit="degrees")
    above = canvas.panel(0, 0, WIDTH, 330)
    visualization.plot_bins(image, layer, inputs, numbered=False, ax=above)
    fill(above, image)
    finer = tfd.layers.RoIAlignRotated((130, 447), angle_unit="degrees")
    show(canvas.panel((WIDTH - 447) / 2, 330 + GAP, 447, 130), finer(*inputs)[0, 0])
    return canvas


def multi_scale_roi_align():
    """Each box is pooled from the level of the pyramid that fits its size."""
    canvas = Canvas()
    image = data.part("temple", (384, 384), (75, 0, 459, 384))
    boxes = np.float32([[[318, 286, 366, 334], [20, 240, 116, 336], [110, 24, 302, 216]]])
    scales = 1 / 4, 1 / 8, 1 / 16
    maps = [data.shrink(image[None], round(1 / scale)) for scale in scales]
    layer = tfd.layers.MultiScaleRoIAlign(4, scales=scales, canonical_size=96, canonical_level=3)
    large, squares = canvas.column(3)
    for roi, (square, colour) in enumerate(zip(squares, SMALL_TO_LARGE, strict=True)):
        options = {"roi": roi, "colour": colour, "numbered": False}
        level = np.kron(maps[roi][0], np.ones([round(1 / scales[roi])] * 2 + [1]))
        for axes, shown in ((large, data.muted(image)), (square, 0.7 * level)):
            visualization.plot_bins(shown, layer, (maps, boxes), ax=axes, **options)
            fill(axes, image)
    return canvas


def grid_sample():
    """Rings and rays around a flower become rows and columns."""
    canvas = Canvas()
    image = data.part("flower", (427, 640))
    across, down = np.meshgrid(np.linspace(-np.pi, np.pi, 160), np.linspace(0.04, 1, 64))
    x, y, radius = 326, 224, 160  # of the flower
    grid = np.stack([x + radius * down * np.sin(across), y - radius * down * np.cos(across)], -1)
    grid = (2 * grid / [640, 427] - 1).astype(np.float32)[None]
    left = canvas.panel(0, 0, WIDTH, 300)
    visualization.plot_grid(data.muted(image), grid, lines=14, ax=left)
    fill(left, image, (0, 70, 640, 370))
    show(canvas.panel(0, 300 + GAP, WIDTH, 170), tfd.layers.GridSample()(image[None], grid)[0])
    return canvas


def dense_image_warp():
    """A flow straightens a photograph with ripples."""
    canvas = Canvas()
    straight = data.part("temple", (240, 320), (70, 0, 550, 360))
    y, x = np.meshgrid(np.arange(240), np.arange(320), indexing="ij")
    ripples = 9 * np.stack([np.sin(x / 22), np.sin(y / 19)], axis=-1)[None].astype(np.float32)
    warp = tfd.layers.DenseImageWarp(padding_mode="reflection")
    rippled = warp(straight[None], ripples).numpy()
    flow, _ = tfd.ops.invert_flow(ripples)
    axes = canvas.whole()
    visualization.plot_flow(data.muted(rippled[0]), flow, ax=axes)
    fill(axes, straight, (10, 10, 310, 230))
    show(canvas.inset(240, 176), warp(rippled, flow)[0, 10:230, 10:310])
    return canvas


def velocity_integration(quick=False):
    """A smooth flow that never folds takes one handwritten digit to another."""
    canvas = Canvas()
    inks, labels = data.digits()
    moving, fixed = (tf.constant(inks[labels == 2][index][None, ..., None]) for index in (3, 8))
    flow = tfd.ops.resize_flow(registering_flow(moving, fixed, 5 if quick else 150), (224, 224))
    moving, fixed = (tf.image.resize(each, (224, 224), "bicubic") for each in (moving, fixed))
    y, x = np.meshgrid(np.arange(224), np.arange(224), indexing="ij")
    grid = (2 * (flow.numpy()[..., ::-1] + np.stack([x, y], -1)) + 1) / 224 - 1
    large, squares = canvas.column(2)
    visualization.plot_grid(0.8 * moving[0].numpy().clip(0, 1), grid, lines=20, ax=large)
    fill(large, moving[0], (18, 0, 206, 224))
    show(squares[0], tfd.layers.DenseImageWarp()(moving, flow)[0])
    show(squares[1], fixed[0])
    return canvas


def registering_flow(moving, fixed, steps):
    """Returns the flow of a velocity at which the moving image, warped, is the fixed one."""
    velocity = tf.Variable(tf.zeros([1, 7, 7, 2]))
    optimizer = keras.optimizers.Adam(0.1)
    integrate = tfd.layers.VelocityIntegration()

    def flow():
        return integrate(tf.image.resize(velocity, moving.shape[1:3], "bicubic"))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            difference = tfd.ops.warp(moving, flow()) - fixed
            loss = tf.reduce_mean(difference**2) + 1e-3 * tf.reduce_mean(velocity**2)
        optimizer.apply_gradients([(tape.gradient(loss, velocity), velocity)])

    for _ in range(steps):
        step()
    return flow()
