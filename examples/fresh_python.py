"""Runs an exported model where tf_deform cannot be imported."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RUN = """
import sys
sys.modules["tf_deform"] = None  # makes any import of it fail, wherever it is installed
try:
    import tf_deform
except ImportError:
    print("tf_deform cannot be imported here")
else:
    sys.exit("tf_deform could be imported: this proves nothing")
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
outputs = serve(**{name: tf.constant(value) for name, value in np.load(sys.argv[2]).items()})
np.savez(sys.argv[3], **{name: value.numpy() for name, value in outputs.items()})
"""


def run(path, inputs):
    """Returns what the SavedModel at `path` makes of inputs, both {name: array}."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, **inputs)
        command = [sys.executable, "-I", "-c", RUN, str(path), str(given), str(made)]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            sys.exit(f"Serving failed:\n{child.stdout}{child.stderr}")
        print(f"  A fresh Python says: {child.stdout.strip()}")
        with np.load(made) as outputs:
            return dict(outputs)


def check_equal(served, expected, tolerance):
    """Says by how much two arrays differ, and ends the script if it is too much."""
    difference = np.abs(served - expected).max()
    if not difference <= tolerance:
        sys.exit(f"Serving failed: outputs differ by {difference:.1e}, more than {tolerance:.0e}")
    print(f"  It agrees with this process to {difference:.0e} ({tolerance:.0e} is allowed)")
