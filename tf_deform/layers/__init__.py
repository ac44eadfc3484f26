"""The operators as Keras layers."""

from tf_deform.layers.deformable_conv import (
    DeformableConv1D,
    DeformableConv2D,
    DeformableConv3D,
)
from tf_deform.layers.dense_image_warp import DenseImageWarp
from tf_deform.layers.roi_pooling import (
    DeformablePSRoIPooling,
    DeformableRoIPooling,
    MultiScaleRoIAlign,
    PSRoIAlign,
    RoIAlign,
)
from tf_deform.layers.spatial_transformer import GridSample, SpatialTransformer

__all__ = [
    "DeformableConv1D",
    "DeformableConv2D",
    "DeformableConv3D",
    "DeformablePSRoIPooling",
    "DeformableRoIPooling",
    "DenseImageWarp",
    "GridSample",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "RoIAlign",
    "SpatialTransformer",
]
