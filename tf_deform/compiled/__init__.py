"""Which implementation of the operators runs: the portable one, or the compiled library.

The portable implementation consists of TensorFlow ops alone. The compiled library holds CPU kernels
of two ops and their gradients, for TensorFlow's executors and, from TensorFlow 2.20 on, for XLA;
`python -m tf_deform build` makes it from a checkout, `build --cuda` with kernels for NVIDIA GPUs.
"auto" uses it wherever it can run, and never takes work off a GPU. CUDA kernels are used on a card
only once `python -m tf_deform check` has found them right there.

A module for each question: what is asked for (`switch`), where the library is and whether it is
whole (`location`), what it can do once loaded (`loading`), whether its CUDA kernels were found
right here (`proof`), which implementation that makes (`choice`), whether it is traced to be
exported (`tracing`), how its ops are called (`calls`) and differentiated (`gradients`).
"""

from tf_deform.compiled.calls import deformable_conv, weighted_sample
from tf_deform.compiled.choice import (
    chosen,
    compiled_status,
    set_implementation,
    stays_on_cpu,
    supports_jit,
    traced_with,
    use_implementation,
)
from tf_deform.compiled.gradients import portable, second_gradients
from tf_deform.compiled.proof import on_trial
from tf_deform.compiled.tracing import in_save_context, traced_for_export

__all__ = [
    "chosen",
    "compiled_status",
    "deformable_conv",
    "in_save_context",
    "on_trial",
    "portable",
    "second_gradients",
    "set_implementation",
    "stays_on_cpu",
    "supports_jit",
    "traced_for_export",
    "traced_with",
    "use_implementation",
    "weighted_sample",
]
