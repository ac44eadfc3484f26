"""Runs test files with pytest, and with the library that Bazel built.

Run by itself, a file of pytest functions would pass without running any.
"""

import os
import pathlib
import sys

import pytest

# Where `python -m tf_deform build` would put the library, in a cache of the test's own.
os.environ["XDG_CACHE_HOME"] = os.environ["TEST_TMPDIR"]
from tf_deform.compiled import location

path = location.library_path()
path.parent.mkdir(parents=True)
path.symlink_to(pathlib.Path("custom_ops/tf_deform_ops.so").resolve())
location.write_record(path.parent)
sys.exit(pytest.main(sys.argv[1:]))
