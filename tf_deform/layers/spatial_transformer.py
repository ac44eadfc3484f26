"""Spatial transformer layers."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.layers.base import Layer
from tf_deform.ops import grids, validation
from tf_deform.ops.sampling import INTERPOLATIONS, PADDING_MODES


class _Sampler(Layer):
    """The options of sampling at a grid, which both layers take."""

    def __init__(
        self,
        *,
        interpolation="bilinear",
        padding_mode="zeros",
        align_corners=False,
        **kwargs,
    ):
        # Without autocast grids and parameters stay float32; the inputs are cast in `call`.
        super().__init__(**kwargs)
        validation.choice("interpolation", interpolation, INTERPOLATIONS)
        validation.choice("padding_mode", padding_mode, PADDING_MODES)
        self.interpolation = interpolation
        self.padding_mode = padding_mode
        self.align_corners = validation.boolean("align_corners", align_corners)

    def get_config(self):
        return {
            **super().get_config(),
            "interpolation": self.interpolation,
            "padding_mode": self.padding_mode,
            "align_corners": self.align_corners,
        }


@keras.saving.register_keras_serializable("tf_deform")
class GridSample(_Sampler):
    """Returns `[batch, *output_size, channels]`: the inputs sampled at a normalised grid.

    Args:
        interpolation: "bilinear", "nearest" (no gradient to the grid) or "bicubic".
        padding_mode: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the edge pixels, not their outer edges.

    Call arguments:
        inputs: `[batch, *space, channels]` with 1 to 3 spatial axes.
        grid: `[batch, *output_size, rank]`, normalised, the last axis (x, y[, z]). Float32: half
            precision loses sub-pixels.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

    Source: Jaderberg et al., "Spatial Transformer Networks" (arXiv:1506.02025, section 3.3).

    Example:
        >>> GridSample()(tf.zeros([2, 9, 7, 3]), tf.zeros([2, 4, 5, 2])).shape
        TensorShape([2, 4, 5, 3])
    """

    def call(self, inputs, grid):
        return ops.grid_sample(
            tf.cast(validation.floating("inputs", inputs), self.compute_dtype),
            grid,
            interpolation=self.interpolation,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
        )

    def compute_output_shape(self, inputs_shape, grid_shape):
        batch, *space, _ = inputs_shape
        expected = [batch, *[None] * len(space), len(space)]
        validation.check_shape("grid", grid_shape, expected, "[batch, *output_size, rank]")
        return (*grid_shape[:-1], inputs_shape[-1])


@keras.saving.register_keras_serializable("tf_deform")
class SpatialTransformer(_Sampler):
    """Returns the inputs `[batch, *output_size, channels]` resampled as a localisation net says.

    A localisation network looks at the inputs; a Dense layer of this layer's own, which starts as
    the identity (zero kernel, the identity's parameters as bias) and is float32 or wider, turns
    what it returns into the parameters of a transformation that maps output positions to input
    positions. Both are in normalised coordinates: -1 and 1 are the input's edges.

    Args:
        localization: Keras layer or model from the inputs to features, which are flattened; None:
            the layer takes the parameters given.
        transformation: the kind, with its parameters in order:
            "translation": (x, y), in 3-D (x, y, z);
            "attention": (scale, x, y), in 3-D (scale, x, y, z);
            "similarity": (scale, angle in radians, x, y);
            "affine": 2 x 3 row by row, in 3-D 3 x 4;
            "projective": 3 x 3 row by row, the first 8, the last being 1;
            "thin_plate_spline": a displacement (x, y) for each control point, row by row.
        output_size: (height, width) or (depth, height, width); None: the inputs' own.
        interpolation: "bilinear", "nearest" (does not train the localisation) or "bicubic" (2-D).
        padding_mode: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the edge pixels, not their outer edges.
        control_points: (rows, columns) of the thin plate spline.

    Call arguments:
        inputs: `[batch, height, width, channels]` or `[batch, depth, height, width, channels]`.
        parameters: `[batch, parameters of the transformation]`, used instead of predicted ones.
            Float32: half precision loses sub-pixels.

    Raises:
        ValueError, TypeError: an option, shape or dtype that does not fit.

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
        localization,
        transformation="affine",
        output_size=None,
        *,
        control_points=(4, 4),
        **kwargs,
    ):
        super().__init__(**kwargs)
        validation.choice("transformation", transformation, _TRANSFORMATIONS)
        if localization is not None and not isinstance(localization, keras.layers.Layer):
            raise ValueError(
                "localization must be a Keras layer or model, or None, received "
                f"{localization!r}; keras.layers.Lambda makes a layer of a function"
            )
        self.localization = localization
        self.transformation = transformation
        if output_size is not None:
            validation.output_size(output_size, (2, 3), minimum=1)
            output_size = tuple(output_size)
        self.output_size = output_size
        self.control_points = validation.per_axis("control_points", control_points, 2, minimum=2)

    def build(self, inputs_shape, parameters_shape=None):
        rank = len(inputs_shape) - 2
        if rank not in ((2, 3) if self.transformation in _IN_3D else (2,)):
            ranks = "2-D or 3-D" if self.transformation in _IN_3D else "2-D"
            raise ValueError(
                f"inputs must be {ranks} images with channels for the transformation "
                f"{self.transformation!r}, received {tuple(inputs_shape)}"
            )
        if self.interpolation == "bicubic" and rank == 3:
            raise ValueError("interpolation 'bicubic' needs 2-D inputs, received 3-D ones")
        if self.output_size is not None and len(self.output_size) != rank:
            raise ValueError(
                f"output_size must have {rank} entries for inputs {tuple(inputs_shape)}, received "
                f"{self.output_size}"
            )
        if self.localization is None:
            if parameters_shape is None:
                raise ValueError("parameters must be given, because localization is None")
            return
        identity = self._identity(rank)
        self.predictor = keras.layers.Dense(
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

    def predict_parameters(self, inputs):
        """Returns the parameters `[batch, parameters]` that the localisation net predicts."""
        if self.localization is None:
            raise ValueError("parameters must be given, because localization is None")
        features = self.localization(tf.cast(inputs, self.compute_dtype))
        batch = validation.sizes(features)[0]
        features = tf.reshape(features, [batch, math.prod(features.shape[1:])])
        return self.predictor(features)

    def sampling_grid(self, inputs, parameters=None):
        """Returns where the layer samples: the normalised grid `[batch, *output_size, rank]`.

        The positions are (x, y[, z]), -1 and 1 being the inputs' edges (see `align_corners`), in
        float32 or wider. The arguments are those of the call.
        """
        if parameters is None:
            self._check_built()
        inputs = tf.cast(validation.floating("inputs", inputs), self.compute_dtype)
        return grids.stacked(self._grid_for(inputs, parameters))

    def call(self, inputs, parameters=None):
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
        parameters = validation.shaped(
            "parameters",
            validation.floating("parameters", parameters),
            *self._expected(batch, len(space)),
        )
        if parameters.dtype != tf.float64:
            parameters = tf.cast(parameters, tf.float32)
        size = space if self.output_size is None else self.output_size
        return self._grid(parameters, len(space), size)

    def compute_output_shape(self, inputs_shape, parameters_shape=None):
        if parameters_shape is not None:
            expected, meaning = self._expected(inputs_shape[0], len(inputs_shape) - 2)
            validation.check_shape("parameters", parameters_shape, expected, meaning)
        size = inputs_shape[1:-1] if self.output_size is None else self.output_size
        return (inputs_shape[0], *size, inputs_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "localization": keras.saving.serialize_keras_object(self.localization),
            "transformation": self.transformation,
            "output_size": self.output_size,
            "control_points": self.control_points,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["localization"] = keras.saving.deserialize_keras_object(config["localization"])
        return cls(**config)

    def _expected(self, batch, rank):
        """Returns the parameters' shape, and the shape in words."""
        count = len(self._identity(rank))
        return [batch, count], f"[batch, {count}] for the transformation {self.transformation}"

    def _identity(self, rank):
        """Returns the parameters of the identity, for inputs with `rank` spatial axes."""
        if self.transformation == "thin_plate_spline":
            return [0.0] * (2 * math.prod(self.control_points))
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
            displacements = tf.reshape(parameters, [batch, math.prod(self.control_points), 2])
            return grids.thin_plate_spline(
                displacements, size, self.control_points, self.align_corners
            )
        if self.transformation == "projective":
            theta = tf.concat([parameters, tf.ones_like(parameters[:, :1])], axis=1)
            theta = tf.reshape(theta, [batch, 3, 3])
            return grids.projective(theta, size, self.align_corners)
        theta = _TRANSFORMATIONS[self.transformation](parameters, rank)
        theta = tf.reshape(theta, [batch, rank, rank + 1])
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


# The transformations by name, those that are affine with the function from parameters to theta.
_TRANSFORMATIONS: dict[str, Any] = {
    "translation": _translation,
    "attention": _attention,
    "similarity": _similarity,
    "affine": lambda parameters, rank: parameters,
    "projective": None,
    "thin_plate_spline": None,
}
_IN_3D = ("translation", "attention", "affine")
