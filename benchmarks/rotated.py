"""Compares `roi_align_rotated` with OpenVINO's ROIAlignRotated, results and time.

    make engines    (or pip install openvino), then
    python benchmarks/rotated.py

OpenVINO turns in radians and is always aligned. Prints the largest difference over the largest
value for several shapes, and our time over OpenVINO's for a detector's head, both on two threads.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import openvino as ov
import tensorflow as tf
from openvino import opset15

import tf_deform as tfd

CASES = [
    # features, rois, output size, samples, scale, clockwise
    ((2, 9, 7, 3), 5, (3, 2), 2, 1.0, False),
    ((1, 14, 17, 4), 8, (2, 5), 3, 0.5, True),
    ((3, 6, 20, 2), 6, (4, 4), 1, 2.0, False),
    ((1, 8, 8, 5), 4, (1, 1), 0, 0.9, True),
]
HEAD = ((1, 50, 84, 256), 300, (7, 7), 2, 1 / 16, False)
ROUNDS, CALLS = 15, 5
THREADS = 2


def main():
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    for case in CASES:
        ours, theirs = runners(*case)
        expected = theirs()
        error = np.max(np.abs(ours().numpy() - expected)) / np.max(np.abs(expected))
        print(f"{case}: {error:.1e}")
        assert error < 1e-5
    ours, theirs = runners(*HEAD)
    times = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for run, kept in times.items():
            run()
            time.sleep(0.05)  # the other's threads come to rest
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            kept.append(time.perf_counter() - start)
    ratio = statistics.median(times[ours]) / statistics.median(times[theirs])
    print(f"{HEAD}: {ratio:.2g} of OpenVINO's time ({tfd.compiled_status().devices or 'portable'})")


def runners(shape, rois, output_size, samples, scale, clockwise):
    """Returns two functions without arguments, ours and OpenVINO's, of the same random boxes."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape).astype("float32")
    height, width = np.array(shape[1:3]) / scale
    centers = rng.uniform(0, [width, height], [rois, 2])
    sizes = rng.uniform(1, [0.6 * width, 0.6 * height], [rois, 2])
    angles = rng.uniform(-4, 4, [rois, 1])
    boxes = np.concatenate([centers, sizes, angles], axis=1).astype("float32")
    index = rng.integers(0, shape[0], rois).astype("int32")
    options = {"spatial_scale": scale, "sampling_ratio": samples, "clockwise": clockwise}
    tensors = [tf.constant(each) for each in (features, boxes, index)]
    traced = tf.function(
        lambda *each: tfd.ops.roi_align_rotated(*each, output_size, **options), autograph=False
    )
    first = np.ascontiguousarray(np.moveaxis(features, -1, 1))
    given = [opset15.parameter(each.shape, each.dtype) for each in (first, boxes, index)]
    node = opset15.roi_align_rotated(*given, *output_size, samples, scale, clockwise)
    model = ov.Core().compile_model(
        ov.Model([node], given),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS},
    )
    request = model.create_infer_request()

    def theirs():
        (found,) = request.infer([first, boxes, index]).values()
        return np.moveaxis(found, 1, -1)

    return lambda: traced(*tensors), theirs


if __name__ == "__main__":
    main()
