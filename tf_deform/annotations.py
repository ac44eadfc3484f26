"""The types in the signatures of public names, where editors and type checkers read them."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

_Leaf = TypeVar("_Leaf")

# Whatever keras.ops takes: tensors of TensorFlow, Keras's variables and KerasTensors, NumPy arrays.
# Neither TensorFlow nor Keras has types that a checker could read.
Tensor: TypeAlias = Any

# One, or several in a list, tuple or dict, as a model takes its inputs.
Structure: TypeAlias = _Leaf | Sequence[_Leaf] | Mapping[str, _Leaf]

# Of a file or folder.
Path: TypeAlias = str | os.PathLike[str]

# Of a tensor, None being a size that is not known.
Shape: TypeAlias = Sequence[int | None]

# One number for all spatial axes, or one an axis.
PerAxis: TypeAlias = int | Sequence[int]

# Of a thin plate spline: (rows, columns) of a regular grid, or places (x, y).
ControlPoints: TypeAlias = PerAxis | Sequence[Sequence[float]] | np.ndarray

# The names that keras.layers takes, an int, or one (before, after) pair an axis.
Padding: TypeAlias = Literal["valid", "same", "causal"] | int | Sequence[tuple[int, int]]
DataFormat: TypeAlias = Literal["channels_last", "channels_first"]

Interpolation: TypeAlias = Literal["bilinear", "nearest", "bicubic"]
PaddingMode: TypeAlias = Literal["zeros", "border", "reflection"]
Transformation: TypeAlias = Literal[
    "translation", "attention", "similarity", "affine", "projective", "thin_plate_spline"
]
AngleUnit: TypeAlias = Literal["radians", "degrees"]
AttentionMethod: TypeAlias = Literal["default", "discrete"]
PoolReduction: TypeAlias = Literal["mean", "max"]
Penalty: TypeAlias = Literal["l1", "l2"]
# Of a keras.losses.Loss.
Reduction: TypeAlias = (
    Literal["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"] | None
)
BoundingBoxFormat: TypeAlias = Literal[
    "xyxy",
    "yxyx",
    "xywh",
    "center_xywh",
    "center_yxhw",
    "rel_xyxy",
    "rel_yxyx",
    "rel_xywh",
    "rel_center_xywh",
]
# Of tfd.addons, whose options have the names that TensorFlow Addons gave them.
FillMode: TypeAlias = Literal["constant", "nearest", "reflect", "wrap"]
Indexing: TypeAlias = Literal["ij", "xy"]
PixelInterpolation: TypeAlias = Literal["nearest", "bilinear"]

# What a model is saved with, and what a process may be asked for.
LiteRTQuantization: TypeAlias = Literal["float16", "dynamic", "int8"]
SavedImplementation: TypeAlias = Literal["portable", "compiled"]
Implementation: TypeAlias = Literal["auto", SavedImplementation]

# What the `get` of keras.activations, initializers, regularizers and constraints takes.
Activation: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Any]
Regularizer: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Constraint: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None

# Names to arrays or to tensors of PyTorch, or a file of them.
Weights: TypeAlias = Mapping[str, Any] | Path
