"""TensorFlow as it is installed, under the labels that its sources have."""

_FIND = "import importlib.util as i; print(i.find_spec('tensorflow').submodule_search_locations[0])"

_PYTHON = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{python}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":runtime",
)

toolchain(
    name = "python",
    toolchain = ":runtimes",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_CORE = """
package(default_visibility = ["//visibility:public"])

# As the wheel was built: another alignment of Eigen's, and memory is freed that was not allocated.
cc_library(
    name = "framework",
    srcs = ["libtensorflow_framework.so.2"],
    hdrs = glob(["include/**"]),
    defines = [
        "EIGEN_MAX_ALIGN_BYTES=64",
        "_GLIBCXX_USE_CXX11_ABI=1",
    ],
    includes = ["include"],
)

# Everything else: XLA, and the kernels of TensorFlow's own ops.
cc_library(
    name = "tensorflow",
    srcs = ["libtensorflow_cc.so.2"],
    includes = [
        "include/external/farmhash_archive/src",
        "include/external/highwayhash",
    ],
    # Sessions and kernels register themselves: nothing names them.
    linkopts = ["-Wl,--no-as-needed"],
    deps = [":framework"],
)
"""

_LOADER = """
cc_library(
    name = "loader",
    visibility = ["//visibility:public"],
    deps = ["//tensorflow/core:tensorflow"],
)
"""

def _tensorflow_wheel(context):
    python = context.os.environ.get("PYTHON_BIN_PATH") or str(context.which("python3"))
    found = context.execute([python, "-c", _FIND])
    if found.return_code != 0:
        fail("PYTHON_BIN_PATH must name a Python that has TensorFlow, received " + python)
    wheel = found.stdout.strip()
    context.file("BUILD", _PYTHON.format(python = python))
    context.file("tensorflow/core/BUILD", _CORE)
    context.file("tensorflow/cc/saved_model/BUILD", _LOADER)
    for name in ("include", "libtensorflow_cc.so.2", "libtensorflow_framework.so.2"):
        context.symlink(wheel + "/" + name, "tensorflow/core/" + name)

tensorflow_wheel = repository_rule(
    implementation = _tensorflow_wheel,
    doc = "Finds the TensorFlow of the Python that PYTHON_BIN_PATH names, else of python3.",
    environ = ["PATH", "PYTHON_BIN_PATH"],
    local = True,
)
