"""The README's first example runs as it is pasted."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs_as_pasted_and_learns(tmp_path):
    (source,) = re.findall(r"```python\n(import keras\n.*?)```", README.read_text(), re.S)[:1]
    source += "\nprint(keras.models.load_model('digits.keras').evaluate(images, labels)[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.95
    assert (tmp_path / "served" / "1" / "saved_model.pb").exists()
