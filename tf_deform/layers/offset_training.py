"""Training the weights that predict offsets while the rest of a layer is frozen."""

from __future__ import annotations

from typing import Any

import keras

from tf_deform.layers.base import Layer
from tf_deform.ops import validation


class OffsetTraining(Layer):
    """A layer whose offset predictor can be trained alone.

    `trainable = False` freezes a Keras layer as a whole: offsets that start at zero then stay zero.
    With `train_offsets_only` the layer is trainable, but only its weights named "offset_..." learn.
    Setting `trainable` applies to all weights and ends this. Setting `trainable` of a model around
    the layer ends it too, if the value differs from the one before: Keras then passes it on.

    Args:
        train_offsets_only: whether to freeze all weights except those that predict offsets, until
            `trainable` is set. Setting this attribute later makes the layer trainable. After
            that, compile the model again, as after setting `trainable`.
    """

    def __init__(self, *, train_offsets_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._offsets_only = validation.boolean("train_offsets_only", train_offsets_only)

    @property
    def train_offsets_only(self) -> bool:
        """Whether only the offset predictor is trained."""
        return self._offsets_only

    @train_offsets_only.setter
    def train_offsets_only(self, value: bool) -> None:
        value = validation.boolean("train_offsets_only", value)
        self.trainable = True
        self._offsets_only = value
        self._freeze_features()

    def __setattr__(self, name, value):
        if name == "trainable":  # Keras ignores what equals the value that is there
            self._offsets_only = False
            keras.layers.Layer.trainable.fset(self, value)
        else:
            super().__setattr__(name, value)

    def _freeze_features(self):
        """Freezes what does not predict offsets, if that is asked for; called at the end of build.

        The weights stay in the order, and in the place of saved files, that they have when all are
        trained.
        """
        if self._offsets_only:
            for weight in self.trainable_weights:
                weight.trainable = weight.name.startswith("offset_")
