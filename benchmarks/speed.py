"""Writes the tables of docs/speed.md and README's figures from benchmarks/results.

    python benchmarks/speed.py

The files of results are written by benchmarks/compiled.py and benchmarks/portable.py. What stands
between the marks `<!-- benchmarks/speed.py: name -->` and `<!-- end -->` is replaced; a test
compares the pages with the results.
"""

import ast
import json
import math
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "docs/index.md", "docs/speed.md")
BLOCK = re.compile(r"(<!-- benchmarks/speed.py: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
PASSES = ("forward", "training")
TAPS = 9
PRODUCTS = {"forward": 5, "training": 14}  # of a depthwise convolution, by tap and channel


def main():
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text()))


def render(text):
    """Returns the page with its blocks written anew."""
    compiled, portable, engines = (_load(name) for name in ("compiled", "portable", "engines"))
    blocks = {
        "readme": lambda: _readme(compiled, engines),
        "landing": lambda: _landing(compiled),
        "summary": lambda: _summary(compiled, portable, engines),
        "convolution": lambda: _by_shape(
            compiled,
            {"conv": "`tf.nn.conv2d`", "torchvision": "torchvision's `deform_conv2d`"},
        ),
        "depthwise": lambda: _depthwise(compiled),
        "attention": lambda: _attention(compiled),
        "transformer": lambda: _by_shape(
            compiled,
            {"transformer": "PyTorch's `grid_sample`", "resampler": "Addons' `resampler`"},
        ),
        "regions": lambda: _by_shape(compiled, {"roi_align": "torchvision's `roi_align`"}),
        "portable_convolution": lambda: _portable(portable, "convolution"),
        "portable_transformer": lambda: _portable(portable, "transformer"),
    }
    return BLOCK.sub(lambda block: f"{block[1]}\n{blocks[block[2]]()}\n{block[3]}", text)


def _load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def _mean(ratios):
    return statistics.geometric_mean(ratios)


def _means(results, operator, column):
    """Returns the geometric means over the shapes, forward and training."""
    shapes = results[operator].values()
    return [_mean(shape[name][column] for shape in shapes) for name in PASSES]


def _engines(engines):
    """Returns the geometric means over the shapes of onnxruntime's ratios and OpenVINO's."""
    shapes = engines["ratios"].values()
    return [_mean(shape[name] for shape in shapes) for name in ("onnxruntime", "OpenVINO")]


def _readme(compiled, engines):
    forward, training = _means(compiled, "torchvision", "compiled")
    plain, plain_training = _means(compiled, "conv", "compiled")
    onnxruntime, openvino = _engines(engines)
    return (
        f"- **Fast on CPUs.** With the compiled kernels a deformable convolution takes {plain:.2f} "
        f"times as long as a plain `tf.nn.conv2d` ({plain_training:.2f} times in training). It is "
        f"{1 / forward:.0f} times as fast as torchvision's ({1 / training:.0f} times in training), "
        f"{1 / onnxruntime:.1f} times as fast as onnxruntime's and {1 / openvino:.1f} times as "
        "fast as OpenVINO's. [The speed page](docs/speed.md) has every shape, also those where it "
        "is slower."
    )


def _landing(compiled):
    plain, _ = _means(compiled, "conv", "compiled")
    forward, training = _means(compiled, "torchvision", "compiled")
    return (
        f"On two cores, a deformable convolution takes {plain:.2f} times as long as TensorFlow's "
        f"plain convolution. It is {1 / forward:.0f} times as fast as torchvision's deformable "
        f"one, and {1 / training:.0f} times as fast in training."
    )


def _summary(compiled, portable, engines):
    rows = [
        ("deformable convolution, compiled", "`tf.nn.conv2d`", compiled, "conv", "compiled"),
        ("", "torchvision's", compiled, "torchvision", "compiled"),
        ("depthwise, compiled", "`tf.nn.depthwise_conv2d`", compiled, "depthwise", "compiled"),
        ("RoIAlign, compiled", "torchvision's", compiled, "roi_align", "compiled"),
        ("affine transformer, compiled", "PyTorch's", compiled, "transformer", "compiled"),
        ("resampler, compiled", "TensorFlow Addons'", compiled, "resampler", "compiled"),
        ("convolution, portable", "`tf.nn.conv2d`", portable, "convolution", "portable"),
        ("the same, XLA", "", portable, "convolution", "portable XLA"),
        ("affine transformer, portable", "PyTorch's", portable, "transformer", "portable"),
        ("the same, XLA", "", portable, "transformer", "portable XLA"),
    ]
    lines = [
        [name, peer, *map(_ratio, _means(results, operator, column))]
        for name, peer, results, operator, column in rows
    ]
    onnxruntime, openvino = map(_ratio, _engines(engines))
    lines[2:2] = [["", "onnxruntime's", onnxruntime, ""], ["", "OpenVINO's", openvino, ""]]
    return _table(["operator", "peer", "forward", "training"], lines)


def _by_shape(results, operators):
    """Returns a table of the compiled library's time over that of each peer, by shape."""
    head = [f"over {peer}, {name}" for peer in operators.values() for name in PASSES]
    lines = [
        [
            _shape(shape),
            *(
                _ratio(results[operator][shape][name]["compiled"])
                for operator in operators
                for name in PASSES
            ),
        ]
        for shape in results[next(iter(operators))]
    ]
    runs = dict.fromkeys(_run(results, operator) for operator in operators)
    if len(runs) > 1:
        runs = [f"Over {operators[each]}: {_run(results, each)}" for each in operators]
    return _table(["shape", *head], lines) + "\n\n" + "\n\n".join(runs)


def _depthwise(results):
    """Returns the table by shape, beside what the arithmetic takes at the machine's peak rate."""
    lines = []
    for shape, each in results["depthwise"].items():
        numbers = math.prod(ast.literal_eval(shape)[:4]) * TAPS
        lines.append([_shape(shape, False)])
        for name in PASSES:
            least = 2 * PRODUCTS[name] * numbers / results["peaks"]["GFLOP/s"] / 1e6
            lines[-1] += map(_ratio, (each[name]["compiled"], each[name]["milliseconds"], least))
    head = [
        f"{text}, {name}"
        for name in PASSES
        for text in ("over `tf.nn.depthwise_conv2d`", "ms", "arithmetic alone, ms")
    ]
    return _table(["shape", *head], lines) + "\n\n" + _run(results, "depthwise") + _peaks(results)


def _attention(results):
    """Returns the table of attention beside the bytes that it reads."""
    lines = [
        [
            name.replace("x", "×"),
            _ratio(each["milliseconds"]),
            f"{each['corners'] / 2**20:.0f}",
            f"{each['GB/s']:.0f}",
            f"{each['least'] / 2**20:.1f}",
            _ratio(each["least"] / results["peaks"]["GB/s"] / 1e6),
        ]
        for name, each in results["attention"].items()
    ]
    head = ["maps", "ms", "corners, MiB", "corners, GB/s", "least, MiB", "least, ms"]
    return _table(head, lines) + "\n\n" + _run(results, "attention") + _peaks(results)


def _peaks(results):
    peaks = results["peaks"]
    return f" At most {peaks['GFLOP/s']:.0f} GFLOP/s and {peaks['GB/s']:.0f} GB/s of memory."


def _portable(results, operator):
    columns = [f"{column}, {name}" for column in ("portable", "portable XLA") for name in PASSES]
    lines = [
        [_shape(shape), *(_ratio(ratios[name][column]) for column, name in _pairs())]
        for shape, ratios in results[operator].items()
    ]
    return _table(["shape", *columns], lines) + "\n\n" + _run(results)


def _pairs():
    return [(column, name) for column in ("portable", "portable XLA") for name in PASSES]


def _shape(shape, with_filters=True):
    """Returns "1×56×56, 64 to 64 channels" of "(1, 56, 56, 64, 64)"."""
    batch, height, width, channels, *filters = ast.literal_eval(shape)
    many = f"{channels} to {filters[0]}" if filters and with_filters else f"{channels}"
    return f"{batch}×{height}×{width}, {many} channels"


def _ratio(value):
    return f"{value:.2f}"


def _run(results, part=None):
    hardware = results["hardware"]
    commit = results.get("commits", {}).get(part, results["commit"])
    return (
        f"{hardware['cpu']}, {hardware['threads']} threads, TensorFlow {hardware['tensorflow']}, "
        f"commit {commit[:7]}, medians of {results['rounds']} rounds."
    )


def _table(head, lines):
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


if __name__ == "__main__":
    main()
