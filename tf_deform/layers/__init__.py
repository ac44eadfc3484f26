"""The operators as Keras layers."""

from tf_deform.layers.dcn import DCNv3, DCNv4
from tf_deform.layers.deformable_attention import MultiScaleDeformableAttention
from tf_deform.layers.deformable_conv import (
    DeformableConv1D,
    DeformableConv2D,
    DeformableConv3D,
)
from tf_deform.layers.deformable_roi_pooling import DeformablePSRoIPooling, DeformableRoIPooling
from tf_deform.layers.dense_image_warp import DenseImageWarp
from tf_deform.layers.roi_pooling import (
    MultiScaleRoIAlign,
    PSRoIAlign,
    RoIAlign,
    RoIAlignRotated,
)
from tf_deform.layers.spatial_transformer import GridSample, SpatialTransformer
from tf_deform.layers.velocity_integration import VelocityIntegration

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformableConv1D",
    "DeformableConv2D",
    "DeformableConv3D",
    "DeformablePSRoIPooling",
    "DeformableRoIPooling",
    "DenseImageWarp",
    "GridSample",
    "MultiScaleDeformableAttention",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "RoIAlign",
    "RoIAlignRotated",
    "SpatialTransformer",
    "VelocityIntegration",
]


def __dir__() -> list[str]:
    return __all__
