"""Curved text: random words, drawn in fonts that matplotlib ships and bent into arcs.

The fonts are DejaVu, which may be used, copied and changed freely; nothing is downloaded.
"""

from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

import tf_deform as tfd

HEIGHT, WIDTH = 32, 64
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LENGTHS = (4, 5)
FACES = ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Bold", "Serif-Italic", "SansMono")
FONT_SIZE = 12
STRIP = (16, 60)
"""Height and width of the image of a word that is not bent yet."""
LARGEST_BEND = np.radians(150)
"""Between the directions of a word's two ends."""
NOISE = 0.05

PARTS = ("train", "test")


def make_words(part, count):
    """Returns `count` words of "train" or of "test", which have no word in common."""
    random = np.random.default_rng(PARTS.index(part))
    words = []
    while len(words) < count:
        word = "".join(random.choice(list(LETTERS), random.integers(LENGTHS[0], LENGTHS[1] + 1)))
        is_test = sum(map(ord, word)) % 4 == 0
        if is_test == (part == "test"):
            words.append(word)
    return words


def encode(words):
    """Returns codes `[words, 5]`: from 1 on, letter by letter, then zeros."""
    codes = np.zeros([len(words), LENGTHS[1]], int)
    for row, word in zip(codes, words, strict=True):
        row[: len(word)] = [LETTERS.index(letter) + 1 for letter in word]
    return codes


def decode(codes):
    """Returns the words of codes `[words, length]`, in which zeros count for nothing."""
    return ["".join(LETTERS[code - 1] for code in row if code) for row in codes]


def draw_words(words):
    """Returns strips `[words, 16, 60, 1]` from 0 to 1, and the words' widths `[words]` in them."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(str(folder / f"DejaVu{face}.ttf"), FONT_SIZE) for face in FACES]
    random = np.random.default_rng(len(words))
    drawn = [_draw(word, fonts[random.integers(len(fonts))]) for word in words]
    strips, widths = zip(*drawn, strict=True)
    return np.stack(strips)[..., None], np.array(widths, np.float32)


def _draw(word, font):
    """Returns a strip `[16, 60]` with the word in its middle, and the word's width."""
    left, top, right, bottom = font.getbbox(word)
    width = min(right - left, STRIP[1])
    strip = Image.new("L", STRIP[::-1])
    place = ((STRIP[1] - width) // 2 - left, (STRIP[0] - top - bottom) // 2)
    ImageDraw.Draw(strip).text(place, word, fill=255, font=font)
    return np.asarray(strip, dtype=np.float32) / 255, width


def photograph(strips, widths, seed, largest_bend=LARGEST_BEND):
    """Returns images `[words, 32, 64, 1]` of the words, and their bends `[words]` in radians.

    Every word is bent into an arc, turned, scaled and moved at random, and gets a paper, a pen and
    noise of its own. A bend is the angle between the directions of a word's first and last letter,
    above 0 for an arch, and at most `largest_bend`. All of it depends on `seed`, two integers, and
    on the number of words.
    """
    count = len(widths)
    *seeds, light, noise = tf.unstack(tf.random.split(seed, 7))
    bend, turn, scale, x, y = (
        tf.random.stateless_uniform([count, 1, 1], each, -1, 1) for each in seeds
    )
    bend *= largest_bend
    grid = arc_grid(
        widths[:, None, None], bend, turn=0.2 * turn, scale=1 + 0.1 * scale, x=2 * x, y=2 * y
    )
    paper, pen = tf.unstack(tf.random.stateless_uniform([2, count, 1, 1, 1], light, 0, 0.3))
    images = paper + (1 - pen - paper) * tfd.ops.grid_sample(strips, grid)
    images += NOISE * tf.random.stateless_normal(tf.shape(images), noise)
    return images, bend[:, 0, 0]


def arc_grid(width, bend, *, turn, scale, x, y):
    """Returns the grid `[words, 32, 64, 2]` at which to sample strips to see them as arcs.

    An arc's middle lies in the middle of the image, before it is turned, scaled and moved.

    Args:
        width: of the words in pixels, as all of them `[words, 1, 1]`.
        bend: in radians, above 0 for an arch.
        turn: in radians, clockwise.
        scale: how many pixels become of one.
        x: pixels to the right.
        y: pixels down.
    """
    down = np.arange(HEIGHT, dtype=np.float32)[:, None] - (HEIGHT - 1) / 2
    right = np.arange(WIDTH, dtype=np.float32) - (WIDTH - 1) / 2
    right, down = (right - x) / scale, (down - y) / scale
    right, down = (
        right * tf.cos(turn) + down * tf.sin(turn),
        down * tf.cos(turn) - right * tf.sin(turn),
    )
    bend = tf.where(tf.abs(bend) < 1e-2, 1e-2, bend)  # a straight line has no centre
    radius = width / bend
    side = tf.sign(radius)
    below = radius - down - radius * (1 - tf.cos(bend / 2)) / 2  # to the arc's centre
    along = radius * tf.atan2(side * right, side * below)
    across = radius - side * tf.sqrt(right**2 + below**2)
    return tf.stack([2 * along / STRIP[1], 2 * across / STRIP[0]], axis=-1)
