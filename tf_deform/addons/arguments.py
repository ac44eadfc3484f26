"""What the functions here share: images of rank 2 to 4, and the dtype of positions."""

import tensorflow as tf


def to_rank_4(name, images):
    """Returns images as `[batch, height, width, channels]`, and the rank they had."""
    rank = images.shape.rank
    if rank not in (2, 3, 4):
        raise ValueError(
            f"{name} must have shape [height, width], [height, width, channels] or [batch, height, "
            f"width, channels], received {images.shape}"
        )
    return {2: images[None, :, :, None], 3: images[None], 4: images}[rank], rank


def to_rank(rank, images):
    """Returns images `[batch, height, width, channels]` in the rank that they had."""
    return tf.squeeze(images, {2: [0, 3], 3: [0]}[rank]) if rank < 4 else images


def same_dtype(*tensors):
    """Returns the tensors in float32, or float64 if any of them is, and that dtype."""
    dtype = tf.float64 if tf.float64 in [each.dtype for each in tensors] else tf.float32
    return [tf.cast(each, dtype) for each in tensors], dtype
