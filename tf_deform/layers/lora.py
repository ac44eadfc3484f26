"""Low-rank adaptation (LoRA) of a layer's kernel, as Keras's own convolutions have it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_deform.annotations import Initializer
from tf_deform.layers.base import Layer
from tf_deform.ops import validation


class LowRankAdapted(Layer):
    """A layer with a kernel and a bias, whose kernel can be frozen and learn a low-rank change.

    Args:
        lora_rank: int, or None for no LoRA. With an int the kernel is frozen, and the layer learns
            a change of it: the product of two matrices of this rank. `enable_lora` does the same
            later.
        lora_alpha: the change is multiplied by `lora_alpha / lora_rank`; None means `lora_rank`.

    Source: Hu et al., "LoRA" (arXiv:2106.09685).
    """

    _kernel: keras.Variable
    lora_rank: Any
    lora_alpha: Any
    kernel_regularizer: Any
    kernel_constraint: Any

    def __init__(
        self, *, lora_rank: int | None = None, lora_alpha: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if lora_rank is not None:
            validation.at_least(1, lora_rank=lora_rank)
        self.lora_rank = lora_rank
        alpha = validation.number("lora_alpha", lora_alpha, above=0, optional=True)
        self.lora_alpha = lora_rank if alpha is None else alpha
        self.lora_enabled = False

    @property
    def kernel(self) -> Any:
        """The kernel: a variable; with LoRA a tensor, the kernel with its change."""
        if not self.built:
            raise AttributeError(f"Layer {self.name!r} must be built before it has a kernel")
        if not self.lora_enabled:
            return self._kernel
        scale = self.lora_alpha / self.lora_rank
        change = tf.tensordot(
            tf.convert_to_tensor(self.lora_kernel_a), tf.convert_to_tensor(self.lora_kernel_b), 1
        )
        kernel = tf.convert_to_tensor(self._kernel)
        return kernel + tf.cast(scale * change, kernel.dtype)

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Initializer = "he_uniform",
        b_initializer: Initializer = "zeros",
    ) -> None:
        """Freezes the kernel and adds a trainable change of low rank to it.

        The bias and the weights that predict offsets stay trainable. Saving merges the change into
        the kernel.

        Args:
            rank: int, rank of the change.
            lora_alpha: the change is multiplied by `lora_alpha / rank`; None means `rank`.
            a_initializer: initializer of the matrix `[..., rank]` on the side of the inputs.
            b_initializer: initializer of the matrix `[rank, filters]`.

        Raises:
            ValueError: the layer is not built, has LoRA already, or constrains its kernel.
        """
        validation.at_least(1, rank=rank)
        if self.kernel_constraint:
            raise ValueError(
                f"Layer {self.name!r} must have kernel_constraint=None for LoRA, received "
                f"{self.kernel_constraint!r}"
            )
        if not self.built:
            raise ValueError(f"Layer {self.name!r} must be built before it can enable LoRA")
        if self.lora_enabled:
            raise ValueError(f"Layer {self.name!r} must not have LoRA enabled already")
        *axes, filters = self._kernel.shape
        self._tracker.unlock()
        for name, shape, initializer in (
            ("lora_kernel_a", (*axes, rank), a_initializer),
            ("lora_kernel_b", (rank, filters), b_initializer),
        ):
            weight = self.add_weight(
                name=name,
                shape=shape,
                initializer=keras.initializers.get(initializer),
                regularizer=self.kernel_regularizer,
                dtype="float32",
                autocast=False,
            )
            setattr(self, name, weight)
        self._kernel.trainable = False
        self._tracker.lock()
        self._lora_a_initializer = keras.initializers.get(a_initializer)
        self.lora_enabled = True
        self.lora_rank = rank
        self.lora_alpha = rank if lora_alpha is None else lora_alpha

    def _assign_kernel(self, kernel: Any) -> None:
        """Sets the kernel, which has no change then; the change can still learn."""
        self._kernel.assign(kernel)
        if self.lora_enabled:
            a = self.lora_kernel_a
            a.assign(self._lora_a_initializer(a.shape, dtype=a.dtype))
            self.lora_kernel_b.assign(tf.zeros(self.lora_kernel_b.shape))
