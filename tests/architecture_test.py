"""The shape of the code: what imports what, how the API looks, what is documented."""

import ast
import doctest
import fnmatch
import inspect
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import QUIET_EXPORT

PACKAGE = pathlib.Path(tfd.__file__).parent
ROOT = PACKAGE.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
OPS = {name: getattr(tfd.ops, name) for name in tfd.ops.__all__}
LAYERS = {name: getattr(tfd.layers, name) for name in tfd.layers.__all__}
ADDONS = {name: getattr(tfd.addons, name) for name in tfd.addons.__all__}
SWITCH = {
    name: getattr(tfd, name)
    for name in ("compiled_status", "set_implementation", "use_implementation")
}
TOOLS = {
    "OffsetMonitor": tfd.callbacks.OffsetMonitor,
    **{name: getattr(tfd.visualization, name) for name in tfd.visualization.__all__},
    **{name: getattr(tfd.boxes, name) for name in tfd.boxes.__all__},
    **{name: getattr(tfd.losses, name) for name in tfd.losses.__all__},
    "accelerate": tfd.accelerate,
    "deformable": tfd.deformable,
    "export_litert": tfd.export_litert,
    "export_onnx": tfd.export_onnx,
    "export_saved_model": tfd.export_saved_model,
    **{
        name: getattr(tfd.convert, name)
        for name in ("load_dcn", "load_mmcv", "load_torchvision", "read")
    },
}
PUBLIC = {**OPS, **LAYERS, **TOOLS, **ADDONS, **SWITCH}

# Imports go down only: a module may import those of the rows above its own. Of the names and
# patterns that fit a module the first counts.
ROWS = """
annotations
startup files onnx_ops checkpoints compiled.switch compiled.location
compiled.gradients compiled.tracing weight_files weight_parts
compiled.loading compiled.proof
compiled.*
compiled
ops.validation ops.symbolic
ops.tables ops.turns
ops.gathering
ops.sampling
ops.bins ops.correlation ops.deformable_conv ops.displacement
ops.regions
ops.*
ops
layers.documentation
layers.base
layers.lora layers.offset_training layers.projections layers.regions
layers.convolution
layers.*
layers addons.arguments boxes drawing foreign losses
acceleration addons.correlation addons.matrices addons.warping convolutions visualization
addons.transforms backbone callbacks convert export litert_quantize onnx_writers
export_check check_cases
checking
addons onnx_export litert_export building
.
__main__
"""
LEVELS = {
    f"tf_deform.{name}".rstrip("."): level
    for level, row in enumerate(ROWS.strip().splitlines())
    for name in row.split()
}

# What stands at the top of the repository; the user fixed most of these names.
TOP_LEVEL = {
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "BUILD", "WORKSPACE"),
    *("pyproject.toml", "constraints.txt", "constraints-lowest.txt"),
    *("tf_deform", "custom_ops", "examples", "tests", "benchmarks", "docs"),
}

LONGEST_FILE = 500
LONGEST_FUNCTION = 50  # without its docstring


def tree_of(module):
    return ast.parse(MODULES[module].read_text())


def imports_of(module):
    """Returns the modules that a module imports."""
    imported = []
    tree = tree_of(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # what is never imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.append(inner if inner in MODULES else node.module)
    return imported


def level_of(module):
    return next(level for name, level in LEVELS.items() if fnmatch.fnmatchcase(module, name))


# Imports


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    for imported in imports_of(module):
        if imported.split(".")[0] == "tf_deform":
            assert level_of(imported) < level_of(module), f"{module} imports {imported}"


def test_what_is_compiled_imports_nothing_else_of_ours():
    inside = [module for module in MODULES if module.startswith("tf_deform.compiled")]
    imported = {each for module in inside for each in imports_of(module)}
    ours = {each for each in imported if each.startswith("tf_deform")}
    assert ours <= {*inside, "tf_deform.annotations"}


def test_only_tensorflow_keras_and_numpy_are_needed():
    ours = {name.split(".")[0] for module in MODULES for name in imports_of(module)}
    assert ours - set(sys.stdlib_module_names) == {"keras", "numpy", "tensorflow", "tf_deform"}


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = node.attr.endswith("__") or node.attr in ("_asdict", "_replace")
            private = node.attr.startswith("_") and not public
            assert not (private and node.value.id not in ("self", "cls")), node.attr


# The rooms of custom_ops

ROOMS = ROOT / "custom_ops"
SOURCES = [
    path
    for room in (".", "cpu", "cuda", "cuda/emulation", "tensorflow")
    for path in sorted((ROOMS / room).glob("*.*"))
    if path.suffix in (".cc", ".cu", ".h")
]
# Which rooms each room may include files of; "." are the headers that all share.
SEES = {
    ".": {"."},
    "cpu": {"cpu", "."},
    "cuda": {"cuda", "."},
    "tensorflow": {"tensorflow", "cpu", "cuda", "."},
}
OF_TENSORFLOW = ("absl/", "tensorflow/", "tsl/", "xla/", "Eigen/", "unsupported/")


def room_of(path):
    """Returns the room of a file, given by its path in custom_ops."""
    return pathlib.PurePath(path).parts[0] if "/" in str(path) else "."


def wrong_includes(path, text):
    """Returns what a file of custom_ops includes and may not."""
    room = room_of(path)
    included = re.findall(r'^ *# *include ["<]([^">]+)[">]', text, re.M)
    ours = [each.removeprefix("custom_ops/") for each in included if "custom_ops/" in each]
    foreign = [each for each in included if each.startswith(OF_TENSORFLOW)]
    wrong = [each for each in ours if room_of(each) not in SEES[room]]
    if path.name == "device.h":  # where nvcc does not compile it, the emulation takes CUDA's place
        return wrong
    may_emulate = path.parent.name == "emulation" or "_test" in path.name
    wrong += [each for each in ours if "emulation/" in each and not may_emulate]
    return wrong + (foreign if room != "tensorflow" else [])


@pytest.mark.parametrize("path", [str(each.relative_to(ROOMS)) for each in SOURCES])
def test_a_room_includes_what_is_below_it_alone(path):
    path = pathlib.PurePath(path)
    text = (ROOMS / path).read_text()
    assert not wrong_includes(path, text)
    opening = text.splitlines()[:2]
    assert all(line.startswith("// ") and line.endswith((".", ";", "]")) for line in opening)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("kernels.h", '#include "custom_ops/cpu/rows.h"'),
        ("cpu/rows.h", '#include "custom_ops/cuda/device.h"'),
        ("cpu/rows.h", '#include "custom_ops/tensorflow/call.h"'),
        ("cpu/rows.h", '#include "tensorflow/core/framework/op_kernel.h"'),
        ("cuda/columns.h", '#include "custom_ops/cpu/rows.h"'),
        ("cuda/sample.cu", "#include <xla/ffi/api/ffi.h>"),
        ("cuda/sample.cu", '#include "custom_ops/cuda/emulation/emulation.h"'),
    ],
)
def test_an_include_in_the_wrong_direction_is_found(path, line):
    assert len(wrong_includes(pathlib.PurePath(path), line)) == 1


# The API: names, order, defaults and what is keyword-only; public_face_test has the types. The
# convolution layers follow Keras's, see deformable_conv_layer_test; addons those of TensorFlow
# Addons, see addons_test.

PROJECTIONS = """kernel_initializer="glorot_uniform", bias_initializer="zeros",
    kernel_regularizer=None, bias_regularizer=None, activity_regularizer=None,
    kernel_constraint=None, bias_constraint=None"""
SIGNATURES = f"""
sample(values, points, *, interpolation="bilinear", padding_mode="zeros")
weighted_sample(values, points, weights=None, image_index=None)
deformable_conv(inputs, kernel, offset, mask=None, *, strides=1, padding="valid", dilation_rate=1)
roi_align(features, boxes, box_indices, output_size, *, spatial_scale=1.0, sampling_ratio=2,
    aligned=True, reduction="mean")
roi_align_rotated(features, boxes, box_indices, output_size, *, spatial_scale=1.0, sampling_ratio=2,
    aligned=True, angle_unit="radians", clockwise=False, reduction="mean")
multi_scale_roi_align(features, boxes, box_indices, output_size, *, scales, sampling_ratio=2,
    aligned=True, canonical_size=224, canonical_level=4, reduction="mean")
ps_roi_align(features, boxes, box_indices, output_size, *, spatial_scale=1.0, sampling_ratio=2)
deformable_roi_pool(features, boxes, box_indices, offset, output_size, *, mask=None,
    spatial_scale=1.0, sampling_ratio=2, gamma=0.1)
deformable_ps_roi_pool(features, boxes, box_indices, offset, output_size, *, output_channels,
    group_size, part_size, sample_per_part=4, trans_std=0.1, spatial_scale=1.0)
multi_scale_deformable_attention(values, locations, weights, *, num_points=None, method="default")
dcnv3(inputs, offset, mask, kernel_size, *, strides=1, padding="valid", dilation_rate=1,
    offset_scale=1.0, remove_center=False)
dcnv4(inputs, offset_mask, kernel_size, *, groups, strides=1, padding="valid", dilation_rate=1,
    offset_scale=1.0, remove_center=False)
affine_grid(theta, output_size, *, align_corners=False)
projective_grid(theta, output_size, *, align_corners=False)
thin_plate_spline_grid(displacements, output_size, *, control_points=(4, 4), align_corners=False)
grid_sample(inputs, grid, *, interpolation="bilinear", padding_mode="zeros", align_corners=False)
correlation(first, second, *, max_displacement, kernel_size=1, stride=1, displacement_stride=1,
    padding=0)
correlation_lookup(first, second, flow, *, radius, num_levels=1)
correlation_pyramid(first, second, *, num_levels=1)
pyramid_lookup(pyramid, flow, *, radius)
warp(inputs, flow, *, interpolation="bilinear", padding_mode="border")
integrate_velocity(velocity, *, steps=7)
compose_flows(first, second)
invert_flow(flow, *, steps=20)
resize_flow(flow, size)
jacobian_determinant(flow)
warp_points(points, flow)

RoIAlign(output_size, *, spatial_scale=1.0, sampling_ratio=2, aligned=True, reduction="mean",
    bounding_box_format="xyxy")
RoIAlignRotated(output_size, *, spatial_scale=1.0, sampling_ratio=2, aligned=True,
    angle_unit="radians", clockwise=False, reduction="mean")
MultiScaleRoIAlign(output_size, *, scales, sampling_ratio=2, aligned=True, canonical_size=224,
    canonical_level=4, reduction="mean", bounding_box_format="xyxy")
PSRoIAlign(output_size, output_channels, *, spatial_scale=1.0, sampling_ratio=2,
    bounding_box_format="xyxy")
DeformableRoIPooling(output_size, *, spatial_scale=1.0, sampling_ratio=2, gamma=0.1,
    modulated=False, offset_units=(1024,), bounding_box_format="xyxy")
DeformablePSRoIPooling(output_size, output_channels, *, group_size, part_size, sample_per_part=4,
    trans_std=0.1, spatial_scale=1.0, bounding_box_format="xyxy")
MultiScaleDeformableAttention(num_heads, key_dim, *, num_points=4, method="default", {PROJECTIONS})
DCNv3(kernel_size=3, *, strides=1, dilation_rate=1, groups=4, offset_scale=1.0,
    depthwise_kernel_size=None, center_feature_scale=False, remove_center=False,
    activation="gelu", {PROJECTIONS})
DCNv4(kernel_size=3, *, strides=1, dilation_rate=1, groups=4, offset_scale=1.0,
    depthwise_kernel_size=None, center_feature_scale=False, remove_center=False, pointwise=True,
    output_bias=True, {PROJECTIONS})
SpatialTransformer(localization=None, transformation="affine", output_size=None, *,
    interpolation="bilinear", padding_mode="zeros", align_corners=False, control_points=(4, 4))
GridSample(*, interpolation="bilinear", padding_mode="zeros", align_corners=False)
DenseImageWarp(*, interpolation="bilinear", padding_mode="border")
VelocityIntegration(steps=7)

accelerate(model, *, undo=False, sample=None)
deformable(model, layers=None, *, train_offsets=True, verbose=True, **options)
export_litert(model, path, *, quantize=None, representative=None, input_signature=None,
    check=True, sample=None)
export_onnx(model, path, *, input_signature=None, check=True, sample=None)
export_saved_model(model, path, *, implementation="portable", input_signature=None, image_size=None,
    image_scale=1.0, warmup=None)
load_torchvision(layer, weights, prefix="", *, offset_prefix=None, mask_prefix=None,
    pooled_size=None)
load_mmcv(layer, weights, prefix="")
load_dcn(layer, weights, prefix="")
read(path)
pad(boxes, size=None)
NormalizedCrossCorrelation(window=9, *, epsilon=1e-5, reduction="sum_over_batch_size",
    name="normalized_cross_correlation", dtype=None)
FlowSmoothness(penalty="l2", *, reduction="sum_over_batch_size", name="flow_smoothness", dtype=None)
OffsetMonitor(inputs, *, log_dir="logs", pictures=0)
plot_taps(image, layer, inputs=None, *, pixel, slice_index=None, ax=None)
plot_bins(image, layer, inputs=None, *, roi=0, class_index=0, colour=None, numbered=True, ax=None)
plot_grid(image, layer, inputs=None, *, align_corners=False, lines=8, ax=None)
plot_attention(image, layer, inputs=None, *, query=0, weights=None, ax=None)
plot_flow(image, flow, *, ax=None)
"""
DOCUMENTED: dict = {}
exec(
    re.sub(r"\)$", "): ...", re.sub(r"^(?=\w)", "def ", SIGNATURES, flags=re.M), flags=re.M),
    DOCUMENTED,
)
del DOCUMENTED["__builtins__"]

# The call of each layer.
CALLS = {
    **dict.fromkeys(
        ("DeformableConv1D", "DeformableConv2D", "DeformableConv3D"),
        "(self, inputs, offset=None, modulation=None, guide=None)",
    ),
    "RoIAlign": "(self, features, boxes)",
    "RoIAlignRotated": "(self, features, boxes)",
    "MultiScaleRoIAlign": "(self, features, boxes)",
    "PSRoIAlign": "(self, features, boxes)",
    "DeformableRoIPooling": "(self, features, boxes, offset=None)",
    "DeformablePSRoIPooling": "(self, features, boxes, offset=None)",
    "MultiScaleDeformableAttention": (
        "(self, query, reference_points, values, padding_masks=None)"
    ),
    "DCNv3": "(self, inputs)",
    "DCNv4": "(self, inputs)",
    "SpatialTransformer": "(self, inputs, parameters=None)",
    "GridSample": "(self, inputs, grid)",
    "DenseImageWarp": "(self, inputs, flow)",
    "VelocityIntegration": "(self, velocity)",
}


# The methods that say where a layer samples, which take what its call takes.
SAMPLING = {
    **dict.fromkeys(
        ("DeformableConv1D", "DeformableConv2D", "DeformableConv3D"), "sampling_positions"
    ),
    **dict.fromkeys((name for name in LAYERS if "RoI" in name), "sampling_boxes"),
    "MultiScaleDeformableAttention": "sampling_locations",
    "SpatialTransformer": "sampling_grid",
}


def bare(function):
    """Returns the parameters of a callable without annotations and **kwargs: name, kind, default.

    Keyword-only ones stand in any order.
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [(e.name, e.default) for e in parameters if e.kind is e.POSITIONAL_OR_KEYWORD]
    options = {e.name: e.default for e in parameters if e.kind is e.KEYWORD_ONLY}
    return positional, options


@pytest.mark.parametrize("name", [*OPS, *TOOLS])
def test_functions_have_the_documented_signature(name):
    assert bare(PUBLIC[name]) == bare(DOCUMENTED[name])


@pytest.mark.parametrize("name", [name for name in LAYERS if "Conv" not in name])
def test_layers_have_the_documented_arguments(name):
    assert bare(LAYERS[name]) == bare(DOCUMENTED[name])


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_called_as_documented(name):
    parameters = inspect.signature(LAYERS[name].call).parameters.values()
    unannotated = [each.replace(annotation=each.empty) for each in parameters]
    assert str(inspect.Signature(unannotated)) == CALLS[name]


@pytest.mark.parametrize("name", SAMPLING)
def test_layers_say_where_they_sample_given_what_the_call_is(name):
    method = getattr(LAYERS[name], SAMPLING[name])
    assert bare(method) == bare(LAYERS[name].call)
    assert inspect.getdoc(method).startswith("Returns ")


def test_the_public_names_are_those_documented():
    expected = {*DOCUMENTED, *CALLS}
    assert {*OPS, *LAYERS, *TOOLS} == expected
    modules = {"addons", "boxes", "callbacks", "convert", "layers", "losses", "ops"}
    tools = {"accelerate", "deformable", "export_litert", "export_onnx", "export_saved_model"}
    assert set(tfd.__all__) == {*modules, "visualization", *tools, *SWITCH}


# Documentation


@pytest.mark.parametrize("name", PUBLIC)
def test_the_first_sentence_says_what_it_is(name):
    first = inspect.getdoc(PUBLIC[name]).splitlines()[0]
    if name in {**OPS, **ADDONS} and not inspect.isclass(PUBLIC[name]):
        assert first.startswith("Returns ")
    assert first[0].isupper()
    assert len(first) > 20


@pytest.mark.parametrize("name", [*OPS, *LAYERS, *ADDONS])
def test_every_operator_and_layer_states_arguments_results_errors_source_and_example(name):
    text = inspect.getdoc(PUBLIC[name])
    assert "Returns" in text
    for section in ("Args:", "Raises:", "Source:", "Example:", "arXiv:"):
        assert section in text or (section == "arXiv:" and "Bookstein" in text), section
    if name in LAYERS:
        assert "Call arguments:" in text


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_states_arguments_errors_and_example(name):
    for section in ("Args:", "Raises:", "Example:"):
        assert section in inspect.getdoc(PUBLIC[name]), section


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_documented(name):
    text = inspect.getdoc(PUBLIC[name])
    functions = [PUBLIC[name], *([LAYERS[name].call] if name in LAYERS else [])]
    for function in functions:
        for argument, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD and argument != "self":
                assert re.search(rf"^    (\w+, )*{argument}(, \w+)*:", text, re.M), argument


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_examples_run_and_print_what_they_say(name, monkeypatch):
    if not QUIET_EXPORT:
        monkeypatch.setattr("keras.src.export.export_lib.io_utils.print_msg", lambda _: None)
    names = {"keras": keras, "np": np, "tf": tf, "tfd": tfd, **PUBLIC}
    tests = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs=names)
    examples = [example for test in tests for example in test.examples]
    assert examples, "no example"
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_class_and_public_function_has_a_docstring(module):
    tree = tree_of(module)
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


# Size


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST_FILE
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, node.name


def test_the_top_level_holds_what_was_agreed():
    ignored = [
        line.rstrip("/")
        for line in (ROOT / ".gitignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    names = {
        path.name
        for path in ROOT.iterdir()
        if not path.name.startswith(".")
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }
    assert names <= TOP_LEVEL
    assert {"README.md", "LICENSE", "Makefile", "BUILD", "pyproject.toml"} <= names
