"""Image warping under the names of TensorFlow Addons 0.23 (`tfa.image`), on today's TensorFlow.

Arguments, their order and defaults, and values are those of Addons, and gradients flow to images,
positions and transforms; docs/addons.md says what differs.
"""

from tf_deform.addons.transforms import transform, translate
from tf_deform.addons.warping import (
    dense_image_warp,
    interpolate_bilinear,
    interpolate_spline,
    resampler,
    sparse_image_warp,
)

__all__ = [
    "dense_image_warp",
    "interpolate_bilinear",
    "interpolate_spline",
    "resampler",
    "sparse_image_warp",
    "transform",
    "translate",
]


def __dir__() -> list[str]:
    return __all__
