"""Deformable convolution, RoI pooling and spatial transformers as Keras layers on TensorFlow."""

from tf_deform import startup

try:
    with startup.quiet():
        import keras
        import tensorflow  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"tf_deform needs TensorFlow, and Keras 3 on it (KERAS_BACKEND=tensorflow): {error}"
    ) from error

if keras.config.backend() != "tensorflow":
    raise ImportError(
        "tf_deform needs Keras to run on TensorFlow, but its backend is "
        f"{keras.config.backend()!r}: set the environment variable KERAS_BACKEND=tensorflow"
    )

from tf_deform import addons, boxes, callbacks, convert, layers, losses, ops, visualization
from tf_deform.acceleration import accelerate
from tf_deform.backbone import deformable
from tf_deform.compiled import compiled_status, set_implementation, use_implementation
from tf_deform.export import export_saved_model
from tf_deform.litert_export import export_litert
from tf_deform.onnx_export import export_onnx

__version__ = "0.2.1"

__all__ = [
    "accelerate",
    "addons",
    "boxes",
    "callbacks",
    "compiled_status",
    "convert",
    "deformable",
    "export_litert",
    "export_onnx",
    "export_saved_model",
    "layers",
    "losses",
    "ops",
    "set_implementation",
    "use_implementation",
    "visualization",
]


def __dir__() -> list[str]:
    return __all__
