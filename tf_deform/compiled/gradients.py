"""Gradients of the compiled ops; that of a gradient goes through the portable form."""

import functools

import tensorflow as tf

from tf_deform.compiled import switch

portable_forms: dict = {}  # by op; the modules of their operators provide them


def register(library):
    """Tells TensorFlow of the gradients of the library's ops. It refuses to be told twice."""
    for op, gradient in (
        ("WeightedSample", _sample_gradient),
        ("WeightedSampleGradValues", _sample_values_second),
        ("WeightedSampleGradPoints", _sample_points_second),
        ("DeformableConv", _conv_gradient),
        ("DeformableConvGrad", _conv_second),
    ):
        tf.RegisterGradient(f"TfDeform>{op}")(functools.partial(gradient, library))


def portable(name):
    """Returns a decorator that makes a function the portable form of the op `name`."""

    def register(form):
        portable_forms[name] = form
        return form

    return register


def _sample_arguments(op):
    """Returns (values, points, *weights), image_index or None, what remains, and the units."""
    count = 2 + op.get_attr("weight_count")
    end = count + op.get_attr("index_count")
    inputs = list(op.inputs)
    units = tf.compat.as_str(op.get_attr("units"))
    return inputs[:count], inputs[count] if end > count else None, inputs[end:], units


def _sample_gradient(library, op, upstream):
    (values, points, *weights), index, _, units = _sample_arguments(op)
    given = {
        "values": values,
        "points": points,
        "weights": weights,
        "image_index": [] if index is None else [index],
        "gradient": upstream,
        "units": units,
    }
    needless = getattr(op, "skip_input_indices", None) or ()  # known when run eagerly
    to_values = to_points = None
    to_weights = [None] * len(weights)
    if 0 not in needless:
        to_values = tf.cast(library.tf_deform_weighted_sample_grad_values(**given), values.dtype)
    if 1 not in needless or (weights and 2 not in needless):
        to_points, to_weights = library.tf_deform_weighted_sample_grad_points(**given)
    return [to_values, to_points, *to_weights, *([] if index is None else [None])]


def _sample_values_second(_library, op, upstream):
    return _sample_second(op, [upstream], [0])


def _sample_points_second(_library, op, *upstream):
    return _sample_second(op, upstream, range(1, 1 + len(upstream)))


def _sample_second(op, upstream, targets):
    arguments, index, (given,), units = _sample_arguments(op)

    def form(values, points, weights=None):
        return portable_forms["WeightedSample"](values, points, weights, index, units)

    last, *found = second_gradients(form, arguments, given, upstream, targets)
    return [*found, *([] if index is None else [None]), last]


def _conv_gradient(library, op, upstream):
    inputs, kernel, offset, *mask, before = op.inputs
    found = library.tf_deform_deformable_conv_grad(
        inputs=inputs,
        kernel=kernel,
        offset=offset,
        mask=mask,
        before=before,
        gradient=upstream,
        strides=op.get_attr("strides"),
        dilations=op.get_attr("dilations"),
    )
    arguments = [inputs, kernel, offset, *mask]
    found = [*found[:3], *found[3][: len(mask)]]
    return [*(tf.cast(to, x.dtype) for to, x in zip(found, arguments, strict=True)), None]


def _conv_second(_library, op, *upstream):
    *arguments, before, given = op.inputs
    options = {"strides": op.get_attr("strides"), "dilations": op.get_attr("dilations")}

    def form(inputs, kernel, offset, mask=None):
        return portable_forms["DeformableConv"](
            inputs, kernel, offset, mask, before=before, **options
        )

    last, *found = second_gradients(form, arguments, given, upstream)
    return [*found, None, last]


def second_gradients(form, arguments, given, upstream, targets=None):
    """Returns the gradients, to `given` and arguments, of form's gradient with respect to targets.

    given: what form's own gradient took. upstream: one tensor for each of the targets, which may be
    wider than they are. targets: indices of arguments; None: all.
    """
    # Copies in this graph: in a loop's gradient, tapes do not see tensors of the loop itself.
    sources = [tf.identity(each) for each in (given, *arguments)]
    given, *arguments = sources
    targets = range(len(arguments)) if targets is None else targets
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch(arguments)
            with switch.in_this_thread("portable"):
                out = form(*arguments)
        found = inner.gradient(
            out,
            [arguments[each] for each in targets],
            given,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    upstream = [tf.cast(each, to.dtype) for each, to in zip(upstream, found, strict=True)]
    return outer.gradient(
        found, sources, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
