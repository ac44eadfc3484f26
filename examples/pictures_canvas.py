"""The canvas that all pictures of layers share: one size, panels with dark gaps, no axes."""

import io

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tf_deform import drawing

matplotlib.use("Agg")

WIDTH, HEIGHT = 640, 480
GAP = 10
DENSITY = 200
"""Dots an inch: what is drawn over an image is the larger the higher."""
GROUND = "#20242A"
SHADES = 96


class Canvas:
    """A picture of WIDTH x HEIGHT pixels, on which panels are placed in pixels."""

    def __init__(self):
        size = WIDTH / DENSITY, HEIGHT / DENSITY
        self.figure = Figure(figsize=size, dpi=DENSITY, facecolor=GROUND)

    def panel(self, left, top, width, height):
        """Returns axes without a frame, to draw an image of the same proportions on."""
        place = left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        return axes

    def whole(self):
        """Returns the axes of the whole picture."""
        return self.panel(0, 0, WIDTH, HEIGHT)

    def inset(self, width, height):
        """Returns the axes of a panel in the lower right corner, over what is there."""
        frame = self.panel(
            WIDTH - width - 2 * GAP, HEIGHT - height - 2 * GAP, width + 20, height + 20
        )
        frame.add_patch(matplotlib.patches.Rectangle((0, 0), 1, 1, color=GROUND))
        return self.panel(WIDTH - width - GAP, HEIGHT - height - GAP, width, height)

    def column(self, count):
        """Returns the axes of a large panel on the left, and of `count` squares on the right."""
        side = (HEIGHT - (count + 1) * GAP) // count
        left = WIDTH - GAP - side
        squares = [self.panel(left, GAP + row * (side + GAP), side, side) for row in range(count)]
        return self.panel(GAP, GAP, left - 2 * GAP, HEIGHT - 2 * GAP), squares

    def save(self, path):
        """Writes a PNG file with a palette, which takes a third of the size."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png")
        save_small(file, path)


def save_small(file, path, shades=SHADES):
    """Writes a picture as a PNG file with a palette, which takes a third of the size.

    The palette has the colours of what is drawn over images: by area alone they would be lost.
    """
    with Image.open(file) as picture:
        picture = picture.convert("RGB")
        of_image = picture.quantize(shades, dither=Image.Dither.NONE).getpalette()
        drawn = [to_rgb(each) for each in (*drawing.COLOURS, drawing.RIM, drawing.REST, GROUND)]
        palette = Image.new("P", (1, 1))
        palette.putpalette([*of_image, *(round(255 * each) for rgb in drawn for each in rgb)])
        few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def show(axes, image, *, smooth=True):
    """Draws an image that fills the axes."""
    axes.imshow(
        np.clip(np.squeeze(image), 0, 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="bilinear" if smooth else "nearest",
        aspect="auto",
    )


def fill(axes, image, box=None):
    """Makes the axes show an image, or a box (left, top, right, bottom) of it, to their edges."""
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    axes.set_aspect("auto")


def frame(axes, colour):
    """Draws a frame within the axes, which tells what in another panel they belong to."""
    place = {"transform": axes.transAxes, "fill": False}
    axes.add_patch(matplotlib.patches.Rectangle((0, 0), 1, 1, ec=colour, lw=3, **place))
