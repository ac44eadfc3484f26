"""The animation of offsets learning: where a deformable convolution samples, step after step."""

import io

import keras
import numpy as np
from digits_figure import draw_taps, taps
from matplotlib import pyplot as plt
from PIL import Image

DIGITS, FRAMES = 3, 48
MILLISECONDS, LAST = 110, 2500


class Recorder(keras.callbacks.Callback):
    """Keeps the taps of the deformable convolution over some digits, more often at the start.

    Args:
        images: `[batch, size, size, 1]`, of which the first of DIGITS classes are shown.
        labels: `[batch]`.
    """

    def __init__(self, images, labels):
        super().__init__()
        chosen = [np.flatnonzero(labels == label)[0] for label in (3, 4, 7)[:DIGITS]]
        self.images = images[chosen]
        self.frames = []
        self.step = 0

    def on_train_begin(self, logs=None):
        steps = self.params["epochs"] * self.params["steps"]
        self.wanted = set((np.linspace(0, 1, FRAMES) ** 1.7 * steps).round().astype(int))
        self.layer = self.model.get_layer("deformable_convolution")
        self.features = keras.Model(self.model.input, self.layer.input)
        self._keep()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step in self.wanted:
            self._keep(logs["accuracy"])

    def _keep(self, accuracy=None):
        features = self.features(self.images, training=False)
        each = [
            taps(self.layer, features[index : index + 1], image)
            for index, image in enumerate(self.images)
        ]
        self.frames.append((self.step, accuracy, each))

    def save(self, path):
        """Writes the animation, a GIF."""
        frames = [self._drawn(*frame) for frame in self.frames]
        # One palette for all, so that nothing but the taps changes from frame to frame.
        palette = frames[-1].quantize(64, Image.Quantize.MEDIANCUT)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        durations = [MILLISECONDS] * (len(frames) - 1) + [LAST]
        frames[0].save(
            path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
        )

    def _drawn(self, step, accuracy, each):
        figure, axes = plt.subplots(1, DIGITS, figsize=(6, 2.35), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0, hspace=0)
        for axis, image, arrays in zip(axes, self.images, each, strict=True):
            draw_taps(axis, image, *arrays)
            axis.set_axis_off()
        text = f"step {step}" + ("" if accuracy is None else f": {100 * accuracy:.0f} % read")
        figure.suptitle(text, fontsize=13, x=0.02, ha="left")
        stream = io.BytesIO()
        figure.savefig(stream, dpi=120)
        plt.close(figure)
        return Image.open(stream).convert("RGB")
