"""Pairs of brains in 3-D: the MNI152 template in random poses, bent by random smooth flows.

The template is the average T1 scan of 152 people, the skull removed, and beside it how likely a
voxel is grey or white matter. nilearn ships all three, so that nothing is downloaded. Every pair
is drawn from a seed of its own, and those for training and for testing never meet.

nilearn is under the 3-clause BSD licence. Of the template it says no licence; its authors say:
Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University, and allow to use, copy, modify and distribute it for any purpose and
without fee, if this notice stays with all copies; there is no warranty.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

import tf_deform as tfd

SIZE = (48, 56, 48)
"""Voxels from left to right, from back to front and from below to above."""
VOXEL = 4
"""Millimetres of a voxel's edge."""
MAPS = ("T1", "grey matter", "white matter")
PARTS = ("train", "test")

WAVES = 20
WAVELENGTH = 44
"""Voxels; shorter than this are few of the waves that a flow is made of."""
REACH = 2.0
"""Root of the mean squared displacement, in voxels."""
TURN = 0.07
"""Standard deviation of a pose's angles in radians, and of what it stretches and shears by."""
NOISE = 0.02


class Pair(NamedTuple):
    """Two brains `[1, *size, 3]` with MAPS, and the flow `[1, *size, 3]` by which to warp one."""

    moving: tf.Tensor
    fixed: tf.Tensor
    flow: tf.Tensor  # warp(moving, flow) is fixed


def load_brain():
    """Returns the template `[1, 48, 56, 48, 3]`, MAPS from 0 to 1."""
    from nilearn import datasets  # of all that is here, this alone needs nilearn

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    maps = [load(resolution=1).get_fdata(dtype=np.float32) for load in loaders]
    return reduce(np.stack(maps, axis=-1))[None]


def reduce(maps):
    """Returns `[*SIZE, channels]`: means of cubes of VOXEL pixels, what is not 0 in the middle."""
    places = np.argwhere(maps.any(axis=-1))
    low, high = places.min(axis=0), places.max(axis=0) + 1
    missing = VOXEL * np.array(SIZE) - (high - low)
    margins = [(each - each // 2, each // 2) for each in missing]
    padded = np.pad(maps[tuple(map(slice, low, high))], [*margins, (0, 0)])
    cubes = padded.reshape([each for side in SIZE for each in (side, VOXEL)] + [maps.shape[-1]])
    return cubes.mean(axis=(1, 3, 5))


def make_pair(brain, part, index):
    """Returns Pair number `index` of "train" or of "test", of a brain `[1, *size, 3]`.

    The brain is bent by a flow and put into a pose, which makes the moving one. The fixed one is
    that, bent once more. Each is scanned with a contrast and a noise of its own.
    """
    seeds = tf.random.split([PARTS.index(part), index], 5)
    size = brain.shape[1:-1]
    first = tfd.ops.compose_flows(smooth_flow(size, seeds[0]), pose(size, seeds[1]))
    flow = smooth_flow(size, seeds[2])
    moving = scan(tfd.ops.warp(brain, first), seeds[3])
    fixed = scan(tfd.ops.warp(brain, tfd.ops.compose_flows(first, flow)), seeds[4])
    return Pair(moving, fixed, flow)


def smooth_flow(size, seed):
    """Returns a flow `[1, *size, 3]` that does not fold: waves of all directions, integrated."""
    vectors, heights, phases = tf.unstack(tf.random.split(seed, 3))
    vectors = tf.random.stateless_normal([3, WAVES], vectors) * (2 * np.pi / WAVELENGTH)
    heights = tf.random.stateless_normal([WAVES, 3], heights) * (REACH * (2 / 3 / WAVES) ** 0.5)
    phases = tf.random.stateless_uniform([WAVES], phases, 0, 2 * np.pi)
    velocity = tf.cos(_places(size) @ vectors + phases) @ heights
    return tfd.ops.integrate_velocity(velocity)


def pose(size, seed):
    """Returns the flow `[1, *size, 3]` of turning, stretching, shearing and moving a little."""
    turn, move = tf.unstack(tf.random.split(seed, 2))
    matrix = tf.linalg.expm(TURN * tf.random.stateless_normal([3, 3], turn))
    shift = tf.random.stateless_normal([3], move)
    return _places(size) @ (matrix - tf.eye(3)) + shift


def _places(size):
    """Returns positions `[1, *size, 3]` in voxels, from the middle."""
    axes = [tf.range(side, dtype=tf.float32) - (side - 1) / 2 for side in size]
    return tf.stack(tf.meshgrid(*axes, indexing="ij"), axis=-1)[None]


def scan(maps, seed):
    """Returns the MAPS with another contrast and noise in T1."""
    contrast, noise = tf.unstack(tf.random.split(seed, 2))
    t1 = maps[..., :1] ** tf.random.stateless_uniform([], contrast, 0.7, 1.4)
    t1 += NOISE * tf.random.stateless_normal(t1.shape, noise)
    return tf.concat([t1, maps[..., 1:]], axis=-1)
