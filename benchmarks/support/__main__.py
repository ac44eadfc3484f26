"""Measures what every layer does in every engine, and writes docs/support.json and docs/support.md.

    make support     the columns that need nothing more than the tests
    make engines     all the others; installs their engines, of the versions pinned
    make support ARGS="--columns onnx litert --rows RoIAlign"

Cells that are not measured stay as they are. A cell that is no longer good stays too, is named, and
the exit status is 1; to accept it, take it out of docs/support.json before.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# With oneDNN, TensorFlow's own Conv2D returns an empty batch of the wrong shape.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

import run

sys.exit(run.main())
