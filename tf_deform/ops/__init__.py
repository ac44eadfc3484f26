"""The operators as functions of tensors, all channels-last.

Like the functions of `keras.ops`, they also take KerasTensors. They are then nodes of a Functional
model, and are saved with it. Two things differ from the layers. A variable that is given to a
function is saved as a constant and not trained. And Keras asks only layers whether XLA can compile
them. XLA cannot compile the gradient of `sampling_ratio=0` with `reduction="max"`: use the layer,
or `compile(jit_compile=False)`.
"""

from tf_deform.ops.correlation import correlation
from tf_deform.ops.dcn import dcnv3, dcnv4
from tf_deform.ops.deformable_attention import multi_scale_deformable_attention
from tf_deform.ops.deformable_conv import deformable_conv
from tf_deform.ops.displacement import integrate_velocity, warp
from tf_deform.ops.flows import (
    compose_flows,
    invert_flow,
    jacobian_determinant,
    resize_flow,
    warp_points,
)
from tf_deform.ops.grids import (
    affine_grid,
    grid_sample,
    projective_grid,
    thin_plate_spline_grid,
)
from tf_deform.ops.lookup import correlation_lookup, correlation_pyramid, pyramid_lookup
from tf_deform.ops.roi_align import multi_scale_roi_align, roi_align, roi_align_rotated
from tf_deform.ops.roi_pooling import deformable_ps_roi_pool, deformable_roi_pool, ps_roi_align
from tf_deform.ops.sampling import sample, weighted_sample

__all__ = [
    "affine_grid",
    "compose_flows",
    "correlation",
    "correlation_lookup",
    "correlation_pyramid",
    "dcnv3",
    "dcnv4",
    "deformable_conv",
    "deformable_ps_roi_pool",
    "deformable_roi_pool",
    "grid_sample",
    "integrate_velocity",
    "invert_flow",
    "jacobian_determinant",
    "multi_scale_deformable_attention",
    "multi_scale_roi_align",
    "projective_grid",
    "ps_roi_align",
    "pyramid_lookup",
    "resize_flow",
    "roi_align",
    "roi_align_rotated",
    "sample",
    "thin_plate_spline_grid",
    "warp",
    "warp_points",
    "weighted_sample",
]


def __dir__() -> list[str]:
    return __all__
