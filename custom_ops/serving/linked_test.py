"""The program with the ops linked in, which Bazel builds."""

import subprocess

import keras
import numpy as np

import tf_deform as tfd


def test_linked_in_ops_serve_what_the_stock_runtime_does_not(tmp_path):
    """They answer as Keras does; without them the program names what it lacks."""
    images = keras.Input((9, 8, 4), name="images")
    features = tfd.layers.DeformableConv2D(
        6, 3, modulated=True, offset_kernel_initializer="glorot_uniform"
    )(images)
    features = tfd.layers.SpatialTransformer(keras.layers.GlobalAveragePooling2D())(features)
    model = keras.Model(images, keras.layers.Identity(name="features")(features))
    tfd.export_saved_model(model, tmp_path / "1", implementation="compiled")
    inputs = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype("float32")
    np.save(tmp_path / "images.npy", inputs)

    def serve(program):
        command = [f"custom_ops/serving/{program}", f"--input=images={tmp_path}/images.npy"]
        command += [f"--output={tmp_path}", tmp_path / "1"]
        return subprocess.run(command, capture_output=True, text=True)

    stock = serve("serve")
    assert stock.returncode == 1 and "TfDeform>" in stock.stderr
    linked = serve("serve_with_ops")
    assert linked.returncode == 0, linked.stderr
    with tfd.use_implementation("portable"):
        expected = model(inputs)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, 1e-5, 1e-5)
