"""The layers and sizes that exported files are tried with, by the tests and by `make support`."""

import keras
import tensorflow as tf

import tf_deform as tfd
from layer_contract_test import CASES, FEATURES, TURNED_BOXES, Case, larger_shapes, map_shapes

IMAGES = ((None, None, None, 4),)
COUNTED = ("RoI", "Attention")  # layers of as many boxes or queries as they are given


def convolution(**options):
    """Returns a case of a DeformableConv2D of a kernel of three and these options."""
    return Case("DeformableConv2D", lambda: {"kernel_size": 3, **options}, (FEATURES,), IMAGES)


def attention(**options):
    """Returns a case of a MultiScaleDeformableAttention of two maps with these options."""
    case = CASES["MultiScaleDeformableAttention"]
    return Case(case.layer, lambda: {**case.options(), **options}, case.shapes, case.free)


@keras.saving.register_keras_serializable("tests")
class Guided(keras.layers.Layer):
    """A DeformableConv2D that is called on features and their guide."""

    def __init__(self, filters, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.filters = filters
        self.convolution = tfd.layers.DeformableConv2D(filters, 3, modulated=True)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}

    def build(self, features_shape, guide_shape):
        self.convolution.build(features_shape, guide_shape=guide_shape)

    def call(self, features, guide):
        return self.convolution(features, guide=guide)

    def compute_output_shape(self, features_shape, guide_shape):
        return self.convolution.compute_output_shape(features_shape, guide_shape=guide_shape)


def separable(**options):
    """Returns what a separable convolution becomes: two layers, the first of them deformable."""
    images = keras.Input((None, None, 4), dtype=keras.config.dtype_policy().variable_dtype)
    outputs = keras.layers.SeparableConv2D(kernel_size=3, name="both", **options)(images)
    return tfd.deformable(keras.Model(images, outputs), "both", verbose=False)


# What engines have stumbled over, beyond the cases of the contract.
VARIANTS = {
    "DeformableConv2D, no mask": convolution(filters=3),
    "DeformableConv2D, strided and dilated": convolution(
        filters=3, strides=2, dilation_rate=2, padding="same"
    ),
    "DeformableConv2D, groups": convolution(filters=6, groups=2, modulated=True),
    "DeformableConv2D, deformable groups": convolution(filters=3, deformable_groups=2),
    "DeformableConv2D, depthwise": convolution(filters=8, groups=4, padding="same"),
    "DeformableConv2D, guide": Case(
        Guided,
        lambda: {"filters": 3},
        (FEATURES, (2, 9, 7, 2)),
        (*IMAGES, (None, None, None, 2)),
    ),
    "DeformableConv2D, separable": Case(separable, lambda: {"filters": 3}, (FEATURES,), IMAGES),
    # LiteRT leaves weights of fewer than 1,024 elements as they are.
    "DeformableConv2D, 32 channels": Case(
        "DeformableConv2D",
        lambda: {"filters": 32, "kernel_size": 3, "modulated": True},
        ((2, 5, 6, 32),),
        ((None, None, None, 32),),
    ),
    "RoIAlignRotated, adaptive maximum": Case(
        "RoIAlignRotated",
        lambda: {"output_size": (2, 3), "sampling_ratio": 0, "reduction": "max"},
        (FEATURES, TURNED_BOXES),
        (*IMAGES, (None, None, 5)),
    ),
    "MultiScaleDeformableAttention, points of each map": attention(num_points=(3, 1)),
    "MultiScaleDeformableAttention, discrete": attention(num_points=2, method="discrete"),
    "DCNv3, exact GELU": Case("DCNv3", lambda: {"kernel_size": 3}, (FEATURES,), IMAGES),
    "SpatialTransformer, splines of a free size": Case(
        "SpatialTransformer",
        lambda: {
            "localization": keras.layers.GlobalAveragePooling2D(),
            "transformation": "thin_plate_spline",
        },
        (FEATURES,),
        IMAGES,
    ),
}
EXPORTED = {**CASES, **VARIANTS}


def with_batch(shapes, batch):
    """Returns the shapes with as many images."""
    return map_shapes(lambda shape: (batch, *shape[1:]), shapes)


def with_count(case, count):
    """Returns the case's shapes with as many boxes or queries."""
    return [
        (shape[0], count, *shape[2:])
        if isinstance(shape, tuple) and free.count(None) == 2
        else shape
        for shape, free in zip(case.shapes, case.free, strict=True)
    ]


def sizes_of(case):
    """Returns lists of shapes of the layer's inputs: the table's, others, and with nothing."""
    sizes = {
        "fixed": [case.shapes],
        "free": [with_batch(case.shapes, 1), with_batch(larger_shapes(case), 3)],
        "empty": [with_batch(case.shapes, 0)],
    }
    if any(each in str(case.layer) for each in COUNTED):
        sizes["free"].append(with_count(case, 1))
        sizes["empty"] += [with_count(case, 0), with_batch(with_count(case, 0), 0)]
    return sizes


def inputs_of(shapes):
    """Returns symbolic inputs of the shapes, in their structure, named by their order."""
    numbers = iter(range(len(tf.nest.flatten(map_shapes(tf.TensorSpec, shapes)))))
    return map_shapes(
        lambda shape: keras.Input(batch_shape=shape, name=f"input_{next(numbers)}"), shapes
    )
