"""The figure of registered brains: slices, where the fixed one's grid lies, what grew."""

import matplotlib
import numpy as np
from brains_data import VOXEL
from matplotlib import pyplot as plt

import tf_deform as tfd

matplotlib.use("Agg")

COLUMNS = (
    "Moving brain",
    "Fixed brain",
    "Moving brain, warped",
    "The fixed one's grid\nwhere it is sampled",
    "Volume that a voxel\nis sampled from",
    "Error of the flow, mm",
)
PLANES = ("Axial", "Coronal", "Sagittal")
OUTLINE = "#F0E442"
GRID = "#56B4E9"
BEYOND = "#606060"
SPACING = 2
"""Voxels between the lines of the grid."""
LARGEST_ERROR = 8
"""Millimetres that the scale of the errors ends at."""


@plt.rc_context({"image.origin": "lower"})
def draw(pair, flow, path):
    """Draws to `path` how well a flow registers a pair, in three planes through the middle.

    Args:
        pair: brains_data.Pair.
        flow: `[1, *size, 3]` in voxels.
        path: of the PNG file.
    """
    moved = tfd.ops.warp(pair.moving, flow)
    white = pair.fixed[0, ..., 2].numpy()
    volume = tfd.ops.jacobian_determinant(flow)[0].numpy()
    error = VOXEL * np.linalg.norm(flow - pair.flow, axis=-1)[0]
    brain = np.sum(pair.fixed[0, ..., 1:], axis=-1) > 0.5
    figure, axes = plt.subplots(3, 6, figsize=(13.2, 7.2), layout="constrained")
    for plane, row in enumerate(axes):
        for axis, scan in zip(row, (pair.moving, pair.fixed, moved, pair.moving), strict=False):
            axis.imshow(_slice(scan[0, ..., 0].numpy(), plane), cmap="gray", vmin=0, vmax=1)
        for axis in row[:3]:
            axis.contour(_slice(white, plane), [0.5], colors=OUTLINE, linewidths=0.8)
        _draw_grid(row[3], flow[0].numpy(), plane)
        logarithm = np.log2(np.maximum(_slice(volume, plane), 1 / 8))
        volumes = row[4].imshow(logarithm, cmap="RdBu_r", vmin=-2, vmax=2)
        inside = np.where(_slice(brain, plane), _slice(error, plane), np.nan)
        errors = row[5].imshow(inside, cmap="viridis", vmin=0, vmax=LARGEST_ERROR)
        row[0].set_ylabel(PLANES[plane], fontsize=12)
    for axis in axes.flat:
        height, width = axis.images[0].get_size()
        axis.set(xticks=[], yticks=[], facecolor=BEYOND)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=11)
    scale = figure.colorbar(volumes, ax=axes[:, 4], location="bottom", shrink=0.9)
    scale.set_ticks(range(-2, 3), labels=["1/4", "1/2", "1", "2", "4"])
    figure.colorbar(errors, ax=axes[:, 5], location="bottom", shrink=0.9)
    figure.suptitle(
        "A pair that was not trained on. Yellow: where the fixed brain's white matter is"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _slice(volume, plane):
    """Returns the middle slice, its second axis first, as `imshow` wants it."""
    axis = 2 - plane
    return np.take(volume, volume.shape[axis] // 2, axis).T


def _draw_grid(axis, flow, plane):
    """Draws where every SPACING-th line of the fixed image's slice goes, seen along that plane."""
    right, up = (each for each in range(3) if each != 2 - plane)
    places = np.stack(np.meshgrid(*map(np.arange, flow.shape[:3]), indexing="ij"), axis=-1) + flow
    x, y = (_slice(places[..., each], plane) for each in (right, up))
    axis.plot(x[:, ::SPACING], y[:, ::SPACING], color=GRID, linewidth=0.5)
    axis.plot(x[::SPACING].T, y[::SPACING].T, color=GRID, linewidth=0.5)
