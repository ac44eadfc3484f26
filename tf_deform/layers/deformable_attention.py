"""Layers of deformable attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_deform import ops
from tf_deform.annotations import (
    AttentionMethod,
    Constraint,
    Initializer,
    Regularizer,
    Shape,
    Tensor,
)
from tf_deform.layers.projections import Projected
from tf_deform.ops import validation
from tf_deform.ops.deformable_attention import METHODS


@keras.saving.register_keras_serializable("tf_deform")
class MultiScaleDeformableAttention(Projected):
    """Returns `[batch, queries, channels]`: what each query reads in maps of several scales.

    For each head and each map, a query predicts a few points around its reference point. It also
    predicts a weight for each point: a softmax over the points of all maps together. The layer
    samples the projected maps at the points, sums the weighted samples, and projects the sums to
    the channels of the query. In an untrained layer each head looks in another direction from the
    reference point.

    Args:
        num_heads: int, number of heads.
        key_dim: int, number of channels of each head.
        num_points: int, points for each head in each map; or a list of ints, one for each map.
        method: "default" samples the maps linearly. "discrete" reads a single pixel, the one that
            `ops.multi_scale_deformable_attention` describes; the points then get no gradient.

    Call arguments:
        query: `[batch, queries, channels]`.
        reference_points: in normalised coordinates, 0 and 1 being the edges of the maps. Use
            float32: half precision is too coarse. `[batch, queries, 2]` as (x, y): the predicted
            offsets are in pixels of each map. `[batch, queries, 4]` as (centre x, centre y, width,
            height): an offset of 1 is half the width or height, divided by `num_points`.
            `[batch, queries, maps, 2 or 4]` gives each map its own reference point.
        values: list of feature maps `[batch, height, width, channels]` with equal channels. Every
            call needs as many maps as the first.
        padding_masks: list of `[batch, height, width]`, one for each map, or None. As in Keras,
            True marks a pixel that counts. Where a mask is False, the projected map is 0, whatever
            the map holds.

    Source: Zhu et al., "Deformable DETR" (arXiv:2010.04159, section 4.1 and appendix A.4).
    `value_proj`, `sampling_offsets`, `attention_weights` and `output_proj` have the names and the
    weights of the authors' implementation, transposed. There a mask is True at padding.

    Example:
        >>> layer = MultiScaleDeformableAttention(num_heads=8, key_dim=4)
        >>> maps = [tf.zeros([2, 9, 7, 32]), tf.zeros([2, 5, 4, 32])]
        >>> layer(tf.zeros([2, 6, 32]), 0.5 * tf.ones([2, 6, 2]), maps).shape
        TensorShape([2, 6, 32])
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *,
        num_points: int | Sequence[int] = 4,
        method: AttentionMethod = "default",
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        validation.at_least(1, num_heads=num_heads, key_dim=key_dim)
        if isinstance(num_points, list | tuple):
            num_points = validation.integers("num_points", num_points, minimum=1)
        else:
            validation.at_least(1, num_points=num_points)
        validation.choice("method", method, METHODS)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.num_points = num_points
        self.method = method

    def build(
        self,
        query_shape: Shape,
        reference_points_shape: Shape,
        values_shape: Sequence[Shape],
        padding_masks_shape: Sequence[Shape] | None = None,
    ) -> None:
        if not all(isinstance(shape, list | tuple) for shape in values_shape):
            raise ValueError(
                f"values must be a list of feature maps, received one of shape {values_shape}"
            )
        maps = [tuple(shape) for shape in values_shape]
        channels = {shape[-1] for shape in maps}
        if len(channels) != 1 or None in channels or any(len(shape) != 4 for shape in maps):
            raise ValueError(
                "values must be a list of [batch, height, width, channels] of equal, known "
                f"channels, received shapes {values_shape}"
            )
        if len(query_shape) != 3 or query_shape[-1] is None:
            raise ValueError(
                "query must have shape [batch, queries, channels] with known channels, received "
                f"{query_shape}"
            )
        self.num_levels = len(maps)
        if isinstance(self.num_points, tuple) and len(self.num_points) != len(maps):
            raise ValueError(
                f"values must have a map for each of the {len(self.num_points)} num_points, "
                f"received {len(maps)}"
            )
        width, places = query_shape[-1], self.num_heads * sum(self._points_of_levels)
        dim = self.num_heads * self.key_dim
        self.sampling_offsets = self._predictor(
            places * 2, width, "sampling_offsets", bias_initializer=self._initial_offsets
        )
        self.attention_weights = self._predictor(places, width, "attention_weights")
        self.value_proj = self._projection(dim, maps[0][-1], "value_proj")
        self.output_proj = self._projection(width, dim, "output_proj")

    def call(
        self,
        query: Tensor,
        reference_points: Tensor,
        values: Sequence[Tensor],
        padding_masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        query = self._query(query)
        values, masks = self._maps(values, padding_masks)
        sums = ops.multi_scale_deformable_attention(
            self._projected(values, masks),
            self._locations(query, reference_points, values),
            self._weights(query),
            num_points=self.num_points if isinstance(self.num_points, tuple) else None,
            method=self.method,
        )
        return self.output_proj(sums)

    def sampling_locations(
        self,
        query: Tensor,
        reference_points: Tensor,
        values: Sequence[Tensor],
        padding_masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Returns where the layer samples: `[batch, queries, heads, levels, points, 2]`.

        The locations are normalised (x, y), 0 and 1 being the edges of the maps, in float32 or
        wider. If `num_points` is a list, their shape is `[batch, queries, heads, sum(num_points),
        2]`. The arguments are the same as in a call.
        """
        self._check_built()
        values, _ = self._maps(values, padding_masks)
        return self._locations(self._query(query), reference_points, values)

    def sampling_weights(self, query: Tensor) -> Tensor:
        """Returns the weight of each sample: the shape of the locations without the last axis."""
        self._check_built()
        return self._weights(self._query(query))

    def compute_output_shape(
        self,
        query_shape: Shape,
        reference_points_shape: Shape,
        values_shape: Sequence[Shape],
        padding_masks_shape: Sequence[Shape] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(query_shape)

    @property
    def _points_of_levels(self):
        equal = not isinstance(self.num_points, tuple)
        return (self.num_points,) * self.num_levels if equal else self.num_points

    @property
    def _level_of_points(self):
        return [level for level, n in enumerate(self._points_of_levels) for _ in range(n)]

    @property
    def _points_shape(self):
        """Returns the axes of levels and points: one axis if the levels' points may differ."""
        if isinstance(self.num_points, tuple):
            return [sum(self.num_points)]
        return [self.num_levels, self.num_points]

    def _initial_offsets(self, shape, dtype=None):
        """Returns the flat offsets `[heads, levels, points, (x, y)]` of an untrained layer.

        The heads look in directions all around, whose longer coordinate is 1; the points of a head
        are 1, 2, ... such steps away.
        """
        offsets = []
        for head in range(self.num_heads):
            angle = 2 * math.pi * head / self.num_heads
            x, y = math.cos(angle), math.sin(angle)
            steps = [
                step / max(abs(x), abs(y))
                for points in self._points_of_levels
                for step in range(1, points + 1)
            ]
            offsets.append([(x * step, y * step) for step in steps])
        return tf.reshape(tf.constant(offsets, dtype), shape)

    def _query(self, query):
        query = validation.shaped(
            "query",
            validation.floating("query", query),
            [None, None, self.output_proj.units],
            "[batch, queries, channels]",
        )
        return tf.cast(query, self.compute_dtype)

    def _weights(self, query):
        batch, queries, _ = validation.sizes(query)
        shape = [batch, queries, self.num_heads, sum(self._points_of_levels)]
        weights = tf.nn.softmax(tf.reshape(self.attention_weights(query), shape))
        return tf.reshape(weights, [*shape[:3], *self._points_shape])

    def _maps(self, values, masks):
        """Returns the feature maps, and their masks `[batch, height, width, 1]` or None."""
        values = validation.feature_maps("values", values)
        if len(values) != self.num_levels:
            raise ValueError(
                f"values must have the {self.num_levels} feature maps that layer {self.name!r} was "
                f"built with, received {len(values)}"
            )
        values = [tf.cast(each, self.compute_dtype) for each in values]
        if masks is None:
            return values, None
        if not isinstance(masks, list | tuple) or len(masks) != len(values):
            raise ValueError(
                f"padding_masks must be a list of {len(values)} masks, received "
                + (str(len(masks)) if isinstance(masks, list | tuple) else type(masks).__name__)
            )
        masks = [
            validation.shaped(
                f"padding_masks[{index}]",
                tf.cast(mask, tf.bool),
                validation.sizes(value)[:3],
                f"[batch, height, width] as in values[{index}]",
            )
            for index, (value, mask) in enumerate(zip(values, masks, strict=True))
        ]
        return values, [tf.expand_dims(mask, -1) for mask in masks]

    def _projected(self, values, masks):
        """Returns the projected maps, 0 where their masks are False."""
        if masks is None:
            return [self.value_proj(each) for each in values]
        projected = []
        for value, mask in zip(values, masks, strict=True):
            zero = tf.zeros([], value.dtype)
            # Selected before too: else NaN padding would reach the gradient of the projection.
            value = self.value_proj(tf.where(mask, value, zero))
            projected.append(tf.where(mask, value, zero))
        return projected

    def _locations(self, query, reference_points, values):
        """Returns `[batch, queries, heads, levels, points, 2]`, in float32 or wider."""
        points = validation.floating("reference_points", reference_points)
        batch, queries, _ = validation.sizes(query)
        meaning = "[batch, queries, 2 or 4] or [batch, queries, maps, 2 or 4]"
        coordinates = points.shape[-1] if points.shape.rank in (3, 4) else None
        if coordinates not in (2, 4):
            raise ValueError(f"reference_points must have shape {meaning}, received {points.shape}")
        own = points.shape.rank == 4
        expected = [batch, queries, *([self.num_levels] if own else []), coordinates]
        points = validation.shaped("reference_points", points, expected, meaning)
        wide = tf.float64 if points.dtype == tf.float64 else tf.as_dtype(self._wide)
        # Batch and queries are one axis: LiteRT broadcasts tensors of five axes at most.
        rows, of_level = batch * queries, self._level_of_points
        points = tf.cast(points, wide)
        points = tf.reshape(points, [rows, 1, self.num_levels if own else 1, coordinates])
        if own:
            points = tf.gather(points, of_level, axis=2)
        shape = [rows, self.num_heads, len(of_level), 2]
        offsets = tf.reshape(tf.cast(self.sampling_offsets(query), wide), shape)
        if coordinates == 2:
            sizes = [validation.sizes(each)[2:0:-1] for each in values]  # (width, height)
            unit = tf.gather(1 / tf.reshape(tf.cast(sizes, wide), [self.num_levels, 2]), of_level)
        else:
            counts = [[self._points_of_levels[level]] for level in of_level]
            unit = points[..., 2:] * (0.5 / tf.constant(counts, wide))
        locations = points[..., :2] + offsets * unit
        return tf.reshape(locations, [batch, queries, self.num_heads, *self._points_shape, 2])
