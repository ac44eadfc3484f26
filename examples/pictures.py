"""Draws one picture of each layer, from photographs, digits and a nerve cell's recording.

    python examples/pictures.py    # writes docs/images/layers/*.png, in some ten minutes

The layers with weights were trained, for a few minutes each, to read digits on photographs, to
remove noise, to follow a digit in three frames, to read a beat at any speed. The others show what
they compute. `tfd.visualization` draws where they look.
"""

import argparse
import os
from pathlib import Path

# Hides TensorFlow's messages about the machine; errors still arrive as Python exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import pictures_models as models
import pictures_still as still
import pictures_trained as trained

SEED = 0


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "images" / "layers",
        help="folder of the pictures (default: docs/images/layers)",
    )
    parser.add_argument("--quick", action="store_true", help="trains for a moment only")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for drawn in (of_still, of_timer, of_denoiser, of_tracker, of_reader):
        keras.utils.set_random_seed(SEED)
        for name, draw in drawn(options.quick).items():
            path = options.output / f"{name}.png"
            draw().save(path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def of_still(quick):
    return {
        "RoIAlign": still.roi_align,
        "RoIAlignRotated": still.roi_align_rotated,
        "MultiScaleRoIAlign": still.multi_scale_roi_align,
        "GridSample": still.grid_sample,
        "DenseImageWarp": still.dense_image_warp,
        "VelocityIntegration": lambda: still.velocity_integration(quick),
    }


def of_timer(quick):
    model = models.train_timer(quick)
    return {"DeformableConv1D": lambda: trained.deformable_conv_1d(model)}


def of_denoiser(quick):
    return trained.denoising(*models.train_denoiser(quick))


def of_tracker(quick):
    arguments = models.train_tracker(quick)
    return {"DeformableConv3D": lambda: trained.deformable_conv_3d(*arguments)}


def of_reader(quick):
    return trained.of_reader(*models.train_reader(quick))


if __name__ == "__main__":
    main()
