"""Boxes filled up with NaN: shapes, what is pooled of them, and what does not fit."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import doc_code
import tf_deform as tfd

pad = tfd.boxes.pad
COUNTS = (2, 0, 3, 1)
MODES = {"eager": lambda function: function, "graph": tf.function}


def boxes_of(counts, dtype="float32"):
    """Returns for each image fractional boxes `[count, 4]`, some of which reach outside."""
    random = np.random.default_rng(5)
    low = [random.uniform(-2, 6, [count, 2]) for count in counts]
    return [
        np.concatenate([each, each + random.uniform(0.5, 7, each.shape)], axis=1).astype(dtype)
        for each in low
    ]


def ragged(boxes):
    """Returns `[batch, (rois), 4]` of ragged rank 1."""
    return tf.RaggedTensor.from_row_lengths(np.concatenate(boxes), [len(each) for each in boxes])


# The kinds of boxes that are taken.
KINDS = {
    "arrays": list,
    "tensors": lambda boxes: tuple(map(tf.constant, boxes)),
    "lists": lambda boxes: [each.tolist() for each in boxes],
    "ragged": ragged,
    "ragged twice": lambda boxes: tf.RaggedTensor.from_row_lengths(
        tf.RaggedTensor.from_uniform_row_length(np.concatenate(boxes).reshape(-1), 4),
        [len(each) for each in boxes],
    ),
    "ragged constant": lambda boxes: tf.ragged.constant([each.tolist() for each in boxes]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", (None, 3, 5))
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_nan_follow_the_boxes_of_each_image(kind, size, mode):
    boxes = boxes_of(COUNTS)
    padded = MODES[mode](lambda each: pad(each, size))(KINDS[kind](boxes))
    assert padded.dtype == "float32"
    assert padded.shape == (4, size or 3, 4)
    for actual, expected in zip(padded.numpy(), boxes, strict=True):
        np.testing.assert_array_equal(actual[: len(expected)], expected)
        assert np.isnan(actual[len(expected) :]).all()


@pytest.mark.parametrize("size", (None, 4))
@pytest.mark.parametrize("counts", ((), (0,), (0, 0, 0)))
@pytest.mark.parametrize("kind", ("arrays", "lists", "ragged"))
def test_without_any_boxes_there_are_rows_of_nan_alone(kind, counts, size):
    if kind == "ragged":
        given = tf.RaggedTensor.from_row_lengths(tf.zeros([0, 4]), tf.zeros(len(counts), tf.int64))
    else:
        given = KINDS[kind](boxes_of(counts))
    padded = pad(given, size)
    assert padded.shape == (len(counts), size or 0, 4)
    assert padded.dtype == "float32"
    assert np.isnan(padded).all()


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_the_dtype_stays(dtype):
    boxes = [tf.cast(each, dtype) for each in boxes_of(COUNTS)]
    for given in (boxes, [[], *boxes], tf.ragged.stack(boxes), tf.stack([boxes[0], boxes[0]])):
        assert pad(given, 4).dtype == dtype


def test_rows_are_added_to_a_dense_tensor():
    boxes = np.stack(boxes_of((3, 3)))
    np.testing.assert_array_equal(pad(boxes), boxes)
    np.testing.assert_array_equal(pad(boxes, 5)[:, :3], boxes)
    assert np.isnan(pad(boxes, 5)[:, 3:]).all()


@pytest.mark.parametrize("size", (None, 5))
def test_a_graph_that_does_not_know_the_sizes_knows_the_rank(size):
    specs = (
        tf.RaggedTensorSpec([None, None, 4], tf.float32, ragged_rank=1),
        tf.RaggedTensorSpec([None, None, None], tf.float32, ragged_rank=2),
        tf.TensorSpec([None, None, 4]),
    )
    for spec in specs:
        function = tf.function(lambda each: pad(each, size), input_signature=[spec])
        assert function.get_concrete_function().structured_outputs.shape.as_list() == [
            None,
            size,
            4,
        ]


@pytest.mark.parametrize("kind", ("RoIAlign", "DeformableRoIPooling", "DeformablePSRoIPooling"))
def test_padded_boxes_pool_what_each_image_alone_does_and_zeros(kind, rng):
    options = {"spatial_scale": 1 / 2}
    if kind == "DeformablePSRoIPooling":
        layer = tfd.layers.DeformablePSRoIPooling((2, 3), 2, group_size=2, part_size=3, **options)
    else:
        layer = getattr(tfd.layers, kind)((2, 3), **options)
    features = tf.constant(rng.normal(size=(4, 7, 6, 8)), "float32")
    boxes = boxes_of(COUNTS)
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = layer(features, pad(ragged(boxes), 5))
        gradient = tape.gradient(tf.reduce_sum(pooled**2), features)
    with tf.GradientTape() as tape:
        tape.watch(features)
        alone = [layer(features[i : i + 1], each[None])[0] for i, each in enumerate(boxes)]
        expected = tape.gradient(tf.add_n([tf.reduce_sum(each**2) for each in alone]), features)
    for actual, each in zip(pooled, alone, strict=True):
        np.testing.assert_allclose(actual[: len(each)], each, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(actual[len(each) :], np.zeros_like(actual[len(each) :]))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts", ((), (0, 0)))
def test_nothing_but_padding_pools_zeros(counts):
    features = tf.ones([len(counts), 7, 6, 8])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = tfd.layers.RoIAlign(2)(features, pad(boxes_of(counts), 3))
    np.testing.assert_array_equal(pooled, np.zeros([len(counts), 3, 2, 2, 8]))
    np.testing.assert_array_equal(tape.gradient(pooled, features), np.zeros_like(features))


@pytest.mark.parametrize("name", ("xywh", "center_yxhw", "rel_yxyx", "rel_center_xywh"))
def test_padding_pools_zeros_in_every_format_of_boxes(name):
    boxes = pad([[[0.5, 0.5, 0.6, 0.7]], []], 2)
    pooled = tfd.layers.RoIAlign(2, bounding_box_format=name)(tf.ones([2, 7, 6, 3]), boxes).numpy()
    np.testing.assert_allclose(pooled[0, 0], np.ones([2, 2, 3]), atol=1e-6)
    np.testing.assert_array_equal(pooled[0, 1], np.zeros([2, 2, 3]))
    np.testing.assert_array_equal(pooled[1], np.zeros([2, 2, 2, 3]))


def test_datasets_are_padded_as_documented():
    """Runs the code of docs/boxes.md."""
    images, boxes = keras.Input([96, 128, 3], name="images"), keras.Input([None, 4], name="boxes")
    pooled = tfd.layers.RoIAlign(2, spatial_scale=1 / 32)(
        keras.layers.AveragePooling2D(32)(images), boxes
    )
    scores = keras.layers.Dense(3, "softmax")(keras.layers.Reshape([-1, 12])(pooled))
    model = keras.Model({"images": images, "boxes": boxes}, scores)
    model.compile("sgd", "sparse_categorical_crossentropy")
    given = boxes_of([*COUNTS, 5, 0, 0, 7, 2, 1])
    labels = [np.arange(len(each)) % 3 for each in given]
    names = {}
    for code in doc_code.blocks("boxes.md"):
        if "ragged_batch" in code:  # what it takes for granted
            photographs = np.random.default_rng(0).random([10, 96, 128, 3])
            names |= {"model": model, "boxes": given, "labels": labels, "images": photographs}
        doc_code.run(code, names)
        if "ragged_batch" in code:
            seen = list(names["batches"])
    assert [each[0]["boxes"].shape for each in seen] == [(8, 32, 4), (2, 32, 4)]
    assert [tf.reduce_sum(each[2]).numpy() for each in seen] == [18, 3]
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


# What does not fit


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_box_is_dropped(kind, mode):
    given = KINDS[kind](boxes_of(COUNTS))
    message = r"boxes must be at most size=2 an image, received an image with\W+3"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        MODES[mode](lambda each: pad(each, 2))(given)


def z(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


WRONG = {
    r"^boxes must have shape \[batch, \(rois\), 4\], received \[2, 4\]$": z(2, 4),
    r"^boxes must have shape \[batch, \(rois\), 4\] = \[\?, \?, 4\], received \[2, 3, 5\]$": z(
        2, 3, 5
    ),
    r"^boxes must have shape \[batch, \(rois\), 4\], received \[2, \?\]$": tf.ragged.constant(
        [[1.0], []]
    ),
    r"^boxes must have shape \[batch, \(rois\), 4\] = .*, received \[1, \?, 3\]$": ragged(
        [z(2, 3)]
    ),
    r"^boxes must have shape \[batch, \(rois\), 4\], received \[1, \?, \?, \?\]$": (
        tf.ragged.constant([[[[1.0]]]])
    ),
    r"^boxes\[1\] must have shape \[rois, 4\], received \[4\]$": [z(2, 4), z(4)],
    r"^boxes\[1\] must have shape \[rois, 4\] = \[\?, 4\], received \[2, 5\]$": [z(2, 4), z(2, 5)],
    r"^boxes\[0\] must have shape \[rois, 4\], received \[0\]$": [z(0)],
    r"^boxes must be floating-point, received int64; cast it$": z(2, 3, 4, dtype="int64"),
    r"^boxes must be floating-point, received int32; cast it$": tf.ragged.constant(
        [[[1, 2, 3, 4]]]
    ),
    r"^boxes\[0\] must be floating-point, received int32; cast it$": [[[1, 2, 3, 4]]],
    r"^boxes\[1\] must have the dtype of those before, float32, received float64$": [
        z(2, 4),
        z(2, 4, dtype="float64"),
    ],
    r"^boxes must be a floating-point tensor, received None$": None,
    r"^boxes must be .*, received a dict of 'boxes', 'labels'; pass boxes\['boxes'\]$": {
        "boxes": z(2, 3, 4),
        "labels": z(2, 3),
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_boxes_that_do_not_fit_are_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        pad(WRONG[message])


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_no_boxes_are_found_when_run(mode):
    given = tf.ragged.constant([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]]])  # eight numbers
    message = r"boxes must have shape \[batch, \(rois\), 4\], received rows of sizes\W+3 5"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        MODES[mode](pad)(given)


@pytest.mark.parametrize("size", (-1, 2.5, True, "3", [3]))
def test_a_size_that_is_none_is_named(size):
    message = rf"^size must be an int of at least 0, received {re.escape(repr(size))}$"
    with pytest.raises(ValueError, match=message):
        pad(boxes_of(COUNTS), size)


def test_the_module_shows_its_public_names_alone():
    assert dir(tfd.boxes) == tfd.boxes.__all__ == ["pad"]
