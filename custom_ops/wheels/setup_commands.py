"""What setuptools does besides: the C++ and CUDA sources go along, see pyproject.toml.

In a wheel they lie in the package, so that `python -m tf_deform build` works where it is installed.
"""

import pathlib
import shutil

from setuptools.command import build_py, sdist

SOURCES = pathlib.Path(__file__).parents[1]
ROOMS = (".", "cpu", "cuda", "cuda/emulation", "tensorflow")  # that CMakeLists.txt names
SUFFIXES = (".cc", ".cmake", ".cu", ".h", ".map", ".txt")


class BuildPy(build_py.build_py):
    """Copies what makes the library into the package."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for room in ROOMS:
            for source in sorted((SOURCES / room).iterdir()):
                if source.suffix in SUFFIXES:
                    target = pathlib.Path(self.build_lib, "tf_deform", "custom_ops", room)
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, target)


class SDist(sdist.sdist):
    """Copies all of custom_ops."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(
            SOURCES,
            pathlib.Path(base_dir, "custom_ops"),
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
