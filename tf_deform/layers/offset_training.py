"""Training the weights that predict offsets while the rest of a layer is frozen."""

from __future__ import annotations

from typing import Any

import keras

from tf_deform.layers.base import Layer
from tf_deform.ops import validation


class OffsetTraining(Layer):
    """A layer whose offset predictor can be trained alone.

    `trainable` freezes a Keras layer as a whole, so that offsets which start at zero would stay
    there. With `train_offsets_only` the layer is trainable, and only its weights named "offset_..."
    move. Setting `trainable` counts for all weights and ends it. So does setting that of a model
    around the layer, which Keras hands on to its layers if the value is another than before.

    Args:
        train_offsets_only: whether all weights but the offset predictor's are frozen, until
            `trainable` is set. Setting the attribute later makes the layer trainable, and a
            compiled model needs `compile` again, as after setting `trainable`.
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
