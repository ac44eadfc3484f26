"""Whether a function is traced to be taken elsewhere: saved, exported or converted.

TensorFlow says so only while it writes a SavedModel. Keras's exporters of other formats and
TensorFlow's converters are known by the calls under which a function is traced: those of the
exporters, and `get_concrete_function`, by which a function is had for a converter.
"""

import inspect
import types

import tensorflow as tf

__all__ = ["in_save_context", "traced_for_export"]

try:
    from tensorflow.python.saved_model.save_context import in_save_context
except ImportError:  # it is private: without it, models are saved as they were traced

    def in_save_context():
        """Returns False: nobody knows."""
        return False


_EXPORTERS = ("keras.src.export.", "tensorflow.lite.")
_OURS_TO_RUN = ("tensorflow.", "keras.src.", "tf_deform.")  # tf.data, symbolic calls


def traced_for_export():
    """Returns whether a model is saved, an exporter traces, or somebody wants a concrete function.

    Who wants one must be neither TensorFlow nor Keras, which run theirs.
    """
    if in_save_context():
        return True
    if tf.executing_eagerly():
        return False
    frame: types.FrameType | None = inspect.currentframe()
    asks = False
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_EXPORTERS) or (asks and not module.startswith(_OURS_TO_RUN)):
            return True
        name = frame.f_code.co_name
        asks = name == "get_concrete_function" and module.startswith("tensorflow.")
        frame = frame.f_back
    return False
