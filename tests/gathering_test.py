import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import TOLERANCE, check_derivatives, gradients, relative_error
from tf_deform import ops
from tf_deform.ops import gathering

ROWS, N = 5, 7


@pytest.fixture(params=[(1, 3), (2, 16), (9, 14)], ids="{0[0]} terms, {0[1]} channels".format)
def form(request, rng):
    """The table, index, weights and values of the trilinear form."""
    terms, channels = request.param  # of 16 or 14 channels there are sums in lanes; 9 take turns
    return (
        tf.constant(rng.normal(size=[ROWS, channels])),
        tf.constant(rng.integers(0, ROWS, [terms, N])),
        tf.constant(rng.normal(size=[terms, N])),
        tf.constant(rng.normal(size=[N, channels])),
    )


def expected_scatter(index, weights, values):
    table = np.zeros([ROWS, values.shape[1]])
    for j, n in np.ndindex(*index.shape):
        table[index[j, n]] += weights[j, n] * values[n]
    return table


def test_each_function_is_a_partial_derivative_of_the_trilinear_form(form):
    table, index, weights, values = form
    read = table.numpy()[index]  # [terms, n, channels]
    for actual, expected in [
        (
            gathering.gather_sum(table, index, weights, index),
            np.einsum("jn,jnc->nc", weights, read),
        ),
        (gathering.gather_dot(table, index, values), np.einsum("nc,jnc->jn", values, read)),
        (
            gathering.scatter_sum(weights, index, values, ROWS),
            expected_scatter(index, weights, values),
        ),
    ]:
        assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_lengths_unknown_while_tracing_give_the_same_gradients(form):
    table, index, weights, _ = form

    def table_gradients(table, weights, index):
        return gradients(lambda t, w: gathering.gather_sum(t, index, w, index), table, weights)

    traced = tf.function(
        table_gradients,
        input_signature=[
            tf.TensorSpec([None, table.shape[1]], tf.float64),
            tf.TensorSpec([len(index), None], tf.float64),
            tf.TensorSpec([len(index), None], tf.int64),
        ],
    )
    for length in (N, 1, 0):
        arguments = table, weights[:, :length], index[:, :length]
        for actual, expected in zip(traced(*arguments), table_gradients(*arguments), strict=True):
            assert relative_error(actual, expected) < TOLERANCE["float64"]


def test_derivatives_of_gather_sum(form):
    table, index, weights, _ = form
    check_derivatives(lambda t, w: gathering.gather_sum(t, index, w, index), table, weights)


def test_derivatives_of_gather_dot(form):
    table, index, _, values = form
    check_derivatives(lambda t, v: gathering.gather_dot(t, index, v), table, values)


def test_derivatives_of_scatter_sum(form):
    _, index, weights, values = form
    check_derivatives(lambda w, v: gathering.scatter_sum(w, index, v, ROWS), weights, values)


def gather_terms(table, index, weights, gradient_index):
    """Calls the function with lists of terms of two axes."""
    lists = (tf.unstack(each[:, None]) for each in (index, weights, gradient_index))
    return gathering.gather_terms(table, *lists)


def test_terms_in_lists_are_those_of_a_sum(form):
    table, index, weights, _ = form
    elsewhere = (index + 1) % ROWS

    def all_of(function):
        first = gradients(lambda t, w: function(t, index, w, elsewhere), table, weights)
        return [function(table, index, weights, elsewhere), *first]

    found, expected = all_of(gather_terms), all_of(gathering.gather_sum)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE["float64"]


def test_derivatives_of_terms_in_lists(form):
    table, index, weights, _ = form
    check_derivatives(lambda t, w: gather_terms(t, index, w, index), table, weights)


def test_gradients_see_the_rows_of_the_gradient_index(form):
    table, index, weights, _ = form
    elsewhere = (index + 1) % ROWS
    of_table, of_weights = gradients(
        lambda t, w: gathering.gather_sum(t, index, w, elsewhere), table, weights
    )
    scattered = expected_scatter(elsewhere, weights, np.ones([N, table.shape[1]]))
    assert relative_error(of_table, scattered) < TOLERANCE["float64"]
    summed = table.numpy()[elsewhere].sum(axis=-1)
    assert relative_error(of_weights, summed) < TOLERANCE["float64"]


def test_a_half_precision_table_is_summed_in_the_dtype_of_the_weights(form):
    table, index, weights, _ = form
    table, weights = tf.cast(table, tf.float16), tf.cast(weights, tf.float32)

    def summed(table, weights):
        return gathering.gather_sum(table, index, weights, index)

    assert summed(table, weights).dtype == tf.float32
    expected = np.einsum("jn,jnc->nc", weights, table.numpy().astype(np.float64)[index])
    assert relative_error(summed(table, weights), expected) < TOLERANCE["float32"]
    assert [each.dtype for each in gradients(summed, table, weights)] == [tf.float16, tf.float32]


@pytest.mark.parametrize("channels", [0, 2])
def test_many_terms_of_free_sizes_and_nothing(channels, rng):
    terms = 9
    table = tf.constant(rng.normal(size=[ROWS, channels]))
    index = tf.constant(rng.integers(0, ROWS, [terms, N]))
    values = tf.constant(rng.normal(size=[N, channels]))
    free = tf.function(
        gathering.gather_dot,
        input_signature=[
            tf.TensorSpec([None, None], tf.float64),
            tf.TensorSpec([terms, None], tf.int64),
            tf.TensorSpec([None, None], tf.float64),
        ],
    )
    for length in (N, 0):
        given = index[:, :length], values[:length]
        expected = np.einsum("nc,jnc->jn", given[1], table.numpy()[given[0].numpy()])
        for found in (free(table, *given), gathering.gather_dot(table, *given)):
            assert found.shape == expected.shape
            assert np.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize("length", [0, 1, 5, N])
def test_blocks_of_any_length_are_added_onto_what_is_given(length, jit, form, rng, monkeypatch):
    _, index, weights, values = form
    index, weights, values = index[:, :length], weights[:, :length], values[:length]
    onto = tf.constant(rng.normal(size=[ROWS, values.shape[1]]))
    expected = onto + expected_scatter(index, weights, values)
    for block in (1, gathering._BLOCK):  # as many blocks as there are terms, and one
        monkeypatch.setattr(gathering, "_BLOCK", block)
        scatter = tf.function(gathering.scatter_sum, jit_compile=jit, autograph=False)
        found = scatter(weights, index, values, ROWS, onto)
        assert relative_error(found, expected) < TOLERANCE["float64"]


def test_the_gradient_of_a_half_precision_table_is_added_onto_one(form):
    table, index, weights, _ = form
    half, ones = tf.cast(table, tf.float16), tf.ones_like(table, tf.float16)
    single = tf.cast(weights, tf.float32)

    def summed(table):
        return gathering.gather_sum(table, index, single, index, ones)

    (found,) = gradients(summed, half)
    assert found.dtype == tf.float16
    upstream = np.ones([N, table.shape[1]])
    expected = 1 + expected_scatter(index, weights, upstream)
    assert relative_error(found, expected) < TOLERANCE["float16"]


@pytest.mark.parametrize("points", [1, 2])
def test_a_graph_of_no_queries_can_be_optimised(points):
    """Where sizes are known, Grappler may divide by those of an empty product."""

    @tf.function(autograph=False)
    def training(values, points):
        return gradients(ops.weighted_sample, values, points)

    with tfd.use_implementation("portable"):
        found = training(tf.ones([2, 3, 4, 3]), tf.zeros([2, 0, 1, points, 2]))
    assert [each.shape for each in found] == [(2, 3, 4, 3), (2, 0, 1, points, 2)]
    assert not np.any(found[0])
