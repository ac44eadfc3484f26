"""Image warping and the cost volume under the names of TensorFlow Addons 0.23.

Arguments, their order and defaults, and values are those of Addons, and gradients flow to images,
positions and transforms; docs/addons.md says what differs.
"""

from tf_deform.addons.correlation import CorrelationCost
from tf_deform.addons.matrices import (
    angles_to_projective_transforms,
    compose_transforms,
    translations_to_projective_transforms,
)
from tf_deform.addons.transforms import (
    rotate,
    shear_x,
    shear_y,
    transform,
    translate,
    translate_xy,
)
from tf_deform.addons.warping import (
    dense_image_warp,
    interpolate_bilinear,
    interpolate_spline,
    resampler,
    sparse_image_warp,
)

__all__ = [
    "CorrelationCost",
    "angles_to_projective_transforms",
    "compose_transforms",
    "dense_image_warp",
    "interpolate_bilinear",
    "interpolate_spline",
    "resampler",
    "rotate",
    "shear_x",
    "shear_y",
    "sparse_image_warp",
    "transform",
    "translate",
    "translate_xy",
    "translations_to_projective_transforms",
]


def __dir__() -> list[str]:
    return __all__
