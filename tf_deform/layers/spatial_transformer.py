"""Spatial transformer layers."""

from __future__ import annotations

import math
import typing
from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import (
    ControlPoints,
    Interpolation,
    PaddingMode,
    PerAxis,
    Shape,
    Tensor,
    Transformation,
)
from tf_deform.layers.base import Dense, Layer
from tf_deform.ops import grids, validation
from tf_deform.ops.sampling import INTERPOLATIONS, PADDING_MODES


class _Sampler(Layer):
    """The options of sampling at a grid, which both layers take.

    Args:
        interpolation: "bilinear", "nearest" (no gradient to the grid) or "bicubic" (2-D).
        padding_mode: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the edge pixels. False: their outer
            edges.
    """

    def __init__(
        self,
        *,
        interpolation: Interpolation = "bilinear",
        padding_mode: PaddingMode = "zeros",
        align_corners: bool = False,
        **kwargs: Any,
    ) -> None:
        # Without autocast grids and parameters stay float32; the inputs are cast in `call`.
        super().__init__(**kwargs)
        validation.choice("interpolation", interpolation, INTERPOLATIONS)
        validation.choice("padding_mode", padding_mode, PADDING_MODES)
        self.interpolation = interpolation
        self.padding_mode = padding_mode
        self.align_corners = validation.boolean("align_corners", align_corners)


@keras.saving.register_keras_serializable("tf_deform")
class GridSample(_Sampler):
    """Returns `[batch, *output_size, channels]`: the inputs sampled at a normalised grid.

    Call arguments:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes.
        grid: `[batch, *output_size, rank]`, normalised, the last axis (x, y[, z]). Use float32:
            half precision loses fractions of a pixel.
            precision loses sub-pixels.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, section 3.3).

    Example:
        >>> GridSample()(tf.zeros([2, 9, 7, 3]), tf.zeros([2, 4, 5, 2])).shape
        TensorShape([2, 4, 5, 3])
    """

    def build(self, inputs_shape: Shape, grid_shape: Shape) -> None:
        pass

    def call(self, inputs: Tensor, grid: Tensor) -> Tensor:
        return ops.grid_sample(
            tf.cast(validation.floating("inputs", inputs), self.compute_dtype),
            grid,
            interpolation=self.interpolation,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
        )

    def compute_output_shape(
        self, inputs_shape: Shape, grid_shape: Shape
    ) -> tuple[int | None, ...]:
        batch, *space, _ = inputs_shape
        expected = [batch, *[None] * len(space), len(space)]
        validation.check_shape("grid", grid_shape, expected, "[batch, *output_size, rank]")
        return (*grid_shape[:-1], inputs_shape[-1])


@keras.saving.register_keras_serializable("tf_deform")
class SpatialTransformer(_Sampler):
    """Returns the inputs `[batch, *output_size, channels]`, transformed as a network predicts.

    A localisation network gets the inputs and returns features. A Dense layer of this layer turns
    the features into the parameters of a transformation, which maps output positions to input
    positions. Positions are normalised: -1 and 1 are the edges of the input. The Dense layer is
    float32 or wider and starts as the identity: its kernel is zero, and its bias holds the
    identity's parameters.

    Args:
        localization: Keras layer or model from the inputs to features, which are flattened. None:
            the call takes the parameters as an input.
        transformation: the kind, with its parameters in order:
            - "translation": (x, y), in 3-D (x, y, z);
            - "attention": (scale, x, y), in 3-D (scale, x, y, z);
            - "similarity": (scale, angle in radians, x, y);
            - "affine": 2 x 3 row by row, in 3-D 3 x 4;
            - "projective": 3 x 3 row by row, without the last entry, which is 1;
            - "thin_plate_spline": a displacement (x, y) for each control point, in their order.
        output_size: int, (height, width) or (depth, height, width). None: the size of the inputs.
        interpolation: "bilinear", "nearest" (no gradient to the localisation network) or "bicubic"
            (2-D only).
        control_points: of the thin plate spline: int or (rows, columns) of a regular grid from -1
            to 1, row by row; or their normalised places (x, y) in the output, `[n, 2]`, for example
            two rows along the upper and the lower edge of a line of text. At least 3 places, not
            all on one line, and no two the same.

    Call arguments:
        inputs: `[batch, height, width, channels]` or `[batch, depth, height, width, channels]`.
        parameters: `[batch, parameters of the transformation]`, used instead of predicted ones. For
            "affine" and "projective" also matrices: `[batch, 2, 3]`, in 3-D `[batch, 3, 4]`, and
            `[batch, 3, 3]`. Use float32: half precision loses fractions of a pixel.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025).

    Example:
        >>> localization = keras.Sequential(
        ...     [keras.layers.Flatten(), keras.layers.Dense(8, activation="relu")]
        ... )
        >>> images = tf.random.uniform([2, 9, 7, 3])
        >>> out = SpatialTransformer(localization)(images)
        >>> bool(tf.reduce_max(tf.abs(out - images)) < 1e-5)  # starts as the identity
        True
    """

    def __init__(
        self,
        localization: keras.layers.Layer | None = None,
        transformation: Transformation = "affine",
        output_size: PerAxis | None = None,
        *,
        interpolation: Interpolation = "bilinear",
        padding_mode: PaddingMode = "zeros",
        align_corners: bool = False,
        control_points: ControlPoints = (4, 4),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            interpolation=interpolation,
            padding_mode=padding_mode,
            align_corners=align_corners,
            **kwargs,
        )
        validation.choice("transformation", transformation, typing.get_args(Transformation))
        if localization is not None and not isinstance(localization, keras.layers.Layer):
            raise ValueError(
                "localization must be a Keras layer or model, or None, received "
                f"{localization!r}; keras.layers.Lambda makes a layer of a function"
            )
        self.localization = localization
        self.transformation = transformation
        size: Any = output_size
        if validation.is_integer(size):
            validation.at_least(1, output_size=size)
            size = int(size)
        elif size is not None:
            validation.output_size(size, (2, 3), minimum=1)
            size = tuple(size)
        self.output_size = size
        self.control_points = grids.checked_control_points(control_points)

    def build(self, inputs_shape: Shape, parameters_shape: Shape | None = None) -> None:
        rank = len(inputs_shape) - 2
        if rank not in ((2, 3) if self.transformation in _IN_3D else (2,)):
            ranks = "2-D or 3-D" if self.transformation in _IN_3D else "2-D"
            raise ValueError(
                f"inputs must be {ranks} images with channels for the transformation "
                f"{self.transformation!r}, received {tuple(inputs_shape)}"
            )
        if self.interpolation == "bicubic" and rank == 3:
            raise ValueError("interpolation 'bicubic' needs 2-D inputs, received 3-D ones")
        if isinstance(self.output_size, tuple) and len(self.output_size) != rank:
            raise ValueError(
                f"output_size must have {rank} entries for inputs {tuple(inputs_shape)}, received "
                f"{self.output_size}"
            )
        if self.localization is None:
            if parameters_shape is None:
                raise ValueError("parameters must be given, because localization is None")
            return
        identity = self._identity(rank)
        self.predictor = Dense(
            len(identity),
            kernel_initializer="zeros",
            bias_initializer=lambda shape, dtype: tf.constant(identity, dtype, shape),
            dtype="float64" if self.compute_dtype == "float64" else "float32",
            name="parameters",
        )
        if not self.localization.built:
            self.localization.build(inputs_shape)
        features_shape = self.localization.compute_output_shape(inputs_shape)
        if not all(size is None or isinstance(size, int) for size in features_shape):
            raise ValueError(
                f"localization must return one tensor, received outputs of {features_shape}"
            )
        if None in features_shape[1:]:
            raise ValueError(
                "localization must return features of known size (pool them globally where the "
                f"inputs' size is free), received {tuple(features_shape)}"
            )
        self.predictor.build((features_shape[0], math.prod(features_shape[1:])))

    def predict_parameters(self, inputs: Tensor) -> Tensor:
        """Returns the parameters `[batch, parameters]` that the localisation network predicts."""
        if self.localization is None:
            raise ValueError("parameters must be given, because localization is None")
        features = self.localization(tf.cast(inputs, self.compute_dtype))
        batch = validation.sizes(features)[0]
        features = tf.reshape(features, [batch, math.prod(features.shape[1:])])
        return self.predictor(features)

    def sampling_grid(self, inputs: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Returns where the layer samples: the normalised grid `[batch, *output_size, rank]`.

        The positions are (x, y[, z]) in float32 or wider. -1 and 1 are the edges of the inputs, see
        `align_corners`. The arguments are those of the call.
        """
        if parameters is None:
            self._check_built()
        inputs = tf.cast(validation.floating("inputs", inputs), self.compute_dtype)
        return grids.stacked(self._grid_for(inputs, parameters))

    def call(self, inputs: Tensor, parameters: Tensor | None = None) -> Tensor:
        inputs = tf.cast(validation.floating("inputs", inputs), self.compute_dtype)
        return grids.sample_at(
            inputs,
            self._grid_for(inputs, parameters),
            self.interpolation,
            self.padding_mode,
            self.align_corners,
        )

    def _grid_for(self, inputs, parameters):
        """Returns the sampling grid, a tensor or the list of its axes; None: predicted ones."""
        if parameters is None:
            parameters = self.predict_parameters(inputs)
        batch, *space, _ = validation.sizes(inputs)
        parameters = validation.floating("parameters", parameters)
        shape = self._expected(batch, len(space), len(parameters.shape))
        parameters = validation.shaped("parameters", parameters, *shape)
        if parameters.dtype != tf.float64:
            parameters = tf.cast(parameters, tf.float32)
        return self._grid(parameters, len(space), self._size(space))

    def compute_output_shape(
        self, inputs_shape: Shape, parameters_shape: Shape | None = None
    ) -> tuple[int | None, ...]:
        batch, *space, channels = inputs_shape
        if parameters_shape is not None:
            shape = self._expected(batch, len(space), len(parameters_shape))
            validation.check_shape("parameters", parameters_shape, *shape)
        return (batch, *self._size(space), channels)

    def _size(self, space):
        """Returns the output's size, given the inputs'."""
        if self.output_size is None:
            return space
        return validation.per_axis("output_size", self.output_size, len(space))

    def get_config(self) -> dict[str, Any]:
        localization = keras.saving.serialize_keras_object(self.localization)
        config = {**super().get_config(), "localization": localization}
        if not validation.is_integers(self.control_points):
            config["control_points"] = [list(each) for each in self.control_points]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpatialTransformer:
        config = dict(config)
        config["localization"] = keras.saving.deserialize_keras_object(config["localization"])
        return cls(**config)

    def _expected(self, batch, rank, axes):
        """Returns the shape of parameters that have so many axes, and the shape in words."""
        kind = f"for the transformation {self.transformation}"
        count = len(self._identity(rank))
        if self.transformation not in ("affine", "projective"):
            return [batch, count], f"[batch, {count}] {kind}"
        matrix = [rank, rank + 1] if self.transformation == "affine" else [3, 3]
        expected = [batch, *matrix] if axes == 3 else [batch, count]
        return expected, f"[batch, {count}] or [batch, {matrix[0]}, {matrix[1]}] {kind}"

    def _identity(self, rank):
        """Returns the parameters of the identity, for inputs with `rank` spatial axes."""
        if self.transformation == "thin_plate_spline":
            return [0.0] * (2 * grids.control_count(self.control_points))
        if self.transformation in ("affine", "projective"):
            columns = rank + 1
            entries = columns * rank + (2 if self.transformation == "projective" else 0)
            return [float(index % (columns + 1) == 0) for index in range(entries)]
        return {
            "translation": [0.0] * rank,
            "attention": [1.0] + [0.0] * rank,
            "similarity": [1.0, 0.0, 0.0, 0.0],
        }[self.transformation]

    def _grid(self, parameters, rank, size):
        """Returns the sampling grid, a tensor or the list of its axes."""
        batch = validation.sizes(parameters)[0]
        if self.transformation == "thin_plate_spline":
            count = grids.control_count(self.control_points)
            displacements = tf.reshape(parameters, [batch, count, 2])
            return grids.thin_plate_spline(
                displacements, size, self.control_points, self.align_corners
            )
        if self.transformation == "projective":
            theta = parameters
            if len(theta.shape) == 2:
                theta = tf.concat([theta, tf.ones_like(theta[:, :1])], axis=1)
                theta = tf.reshape(theta, [batch, 3, 3])
            return grids.projective(theta, size, self.align_corners)
        theta = _AFFINE[self.transformation](parameters, rank)
        return grids.affine(theta, size, self.align_corners)


def _translation(parameters, rank):
    return _diagonal(tf.ones_like(parameters[:, 0]), parameters, rank)


def _attention(parameters, rank):
    return _diagonal(parameters[:, 0], parameters[:, 1:], rank)


def _similarity(parameters, rank):
    scale, angle, x, y = (parameters[:, index] for index in range(4))
    cosine, sine = scale * tf.cos(angle), scale * tf.sin(angle)
    return tf.stack([cosine, -sine, x, sine, cosine, y], axis=1)


def _diagonal(scale, shift, rank):
    """Returns theta, flat, that scales alike along all axes and then shifts."""
    zero = tf.zeros_like(scale)
    rows = [
        [*(scale if column == row else zero for column in range(rank)), shift[:, row]]
        for row in range(rank)
    ]
    return tf.stack([entry for row in rows for entry in row], axis=1)


# The functions from the parameters of transformations that are affine to theta.
_AFFINE = {
    "translation": _translation,
    "attention": _attention,
    "similarity": _similarity,
    "affine": lambda parameters, rank: parameters,
}
_IN_3D = ("translation", "attention", "affine")
