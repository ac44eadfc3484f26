"""Whether a function is traced to be taken elsewhere: saved, exported or converted.

TensorFlow says so only while it writes a SavedModel. Other exporters and converters are known by
their modules, from which a function is traced.
"""

import inspect
import types

import tensorflow as tf

from tf_deform.compiled import switch

__all__ = ["in_save_context", "traced_for_export"]

try:
    from tensorflow.python.saved_model.save_context import in_save_context
except ImportError:  # it is private: without it, models are saved as they were traced

    def in_save_context():
        """Returns False: nobody knows."""
        return False


_EXPORTERS = ("keras.src.export.", "tensorflow.lite.", "tf2onnx.", "openvino.", "tensorflowjs.")


def traced_for_export():
    """Returns whether what is traced now will be saved, exported or converted."""
    if in_save_context() or switch.asked_by_this_thread() is not None:  # the latter: by ours
        return True
    if tf.executing_eagerly():
        return False
    frame: types.FrameType | None = inspect.currentframe()
    while frame:
        if frame.f_globals.get("__name__", "").startswith(_EXPORTERS):
            return True
        frame = frame.f_back
    return False
