"""Writes what a release saved and returned, for release_test.py: every later version reproduces it.

    python tests/goldens/make_release_goldens.py

It writes tests/goldens/releases/VERSION: of each model NAME.keras, the SavedModel in NAME.zip and
NAME.npz, its inputs and outputs. A folder that is there is a release's and is not written again.
"""

import pathlib
import shutil
import tempfile

import keras
import numpy as np

import tf_deform as tfd

FOLDER = pathlib.Path(__file__).parent / "releases" / tfd.__version__


def convolution():
    inputs = keras.Input((7, 6, 4), name="images")
    options = {"modulated": True, "offset_kernel_initializer": "glorot_uniform"}
    outputs = tfd.layers.DeformableConv2D(3, 3, strides=2, deformable_groups=2, **options)(inputs)
    return keras.Model(inputs, outputs)


def regions():
    inputs = [keras.Input((7, 6, 4), name="images"), keras.Input((2, 4), name="boxes")]
    outputs = tfd.layers.DeformableRoIPooling((2, 3), modulated=True, offset_units=(3,))(*inputs)
    return keras.Model(inputs, outputs)


def transformer():
    inputs = keras.Input((7, 6, 4), name="images")
    localization = keras.Sequential([keras.Input((7, 6, 4)), keras.layers.GlobalAveragePooling2D()])
    outputs = tfd.layers.SpatialTransformer(localization, "thin_plate_spline", (5, 4))(inputs)
    return keras.Model(inputs, outputs)


def attention():
    inputs = [
        keras.Input((7, 6, 4), name="images"),
        keras.Input((5, 4), name="query"),
        keras.Input((5, 2), name="points"),
    ]
    attend = tfd.layers.MultiScaleDeformableAttention(2, 2)
    return keras.Model(inputs, attend(inputs[1], inputs[2], [inputs[0]]))


def main():
    FOLDER.mkdir(parents=True)
    rng = np.random.default_rng(0)
    boxes = np.array([[0.4, 1.3, 4.6, 5.2], [2.1, 0.7, 5.9, 3.3]], "float32")
    values = {
        "images": rng.normal(size=(2, 7, 6, 4)),
        "boxes": np.stack([boxes, boxes[::-1] + 0.3]),
        "query": rng.normal(size=(2, 5, 4)),
        "points": rng.uniform(0, 1, (2, 5, 2)),
    }
    for make in (convolution, regions, transformer, attention):
        keras.utils.set_random_seed(0)
        model, name = make(), make.__name__
        for weight in model.weights:
            weight.assign(weight + rng.normal(0, 0.2, weight.shape))
        inputs = [values[each.name].astype("float32") for each in model.inputs]
        model.save(FOLDER / f"{name}.keras")
        with tempfile.TemporaryDirectory() as folder:
            tfd.export_saved_model(model, folder)
            shutil.make_archive(str(FOLDER / name), "zip", folder)
        outputs = model(inputs if len(inputs) > 1 else inputs[0])
        np.savez_compressed(FOLDER / f"{name}.npz", *inputs, outputs=outputs)


if __name__ == "__main__":
    main()
