"""Writes the table of docs/engines.md from what compiled.py measured beside other engines.

python benchmarks/engines_page.py
"""

import json
import math
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "engines.json"
PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
BEGIN, END = "<!-- benchmarks/results/engines.json -->", "<!-- end -->"
ENGINES = ("onnxruntime", "OpenVINO")


def main():
    write()
    print(f"written to {PAGE}")


def write():
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    lines = table(json.loads(RESULTS.read_text()))
    PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


def table(results):
    """Returns the lines of the page's table."""
    ratios, milliseconds = results["ratios"], results["milliseconds"]
    peaks = results["peaks"]
    means = [mean([each[name] for each in ratios.values()]) for name in ENGINES]
    worst = mean([max(each.values()) for each in ratios.values()])
    hardware = ", ".join(f"{name} {value}" for name, value in results["hardware"].items())
    heads = (*(f"over {name}" for name in (*ENGINES, "the faster")), "ms", "op alone, ms")
    heads += ("bound, ms", "bound over ours", "over the op's", "over the faster's")
    return [
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
        *(
            row(shape, [*(each[name] for name in ENGINES), max(each.values())], times)
            for shape, each in ratios.items()
            for times in [times_of(milliseconds[shape], bound(results["work"][shape], peaks))]
        ),
        row("geometric mean", [*means, worst], [""] * (len(heads) - 3)),
        "",
        f"{hardware}; medians of {results['rounds']} rounds. The machine does at most "
        f"{peaks['GFLOP/s']:.0f} GFLOP/s and moves {peaks['GB/s']:.0f} GB/s.",
    ]


def bound(work, peaks):
    """Returns the milliseconds in which this machine could do the work, whatever does it."""
    return max(work["FLOP"] / peaks["GFLOP/s"], work["bytes"] / peaks["GB/s"]) / 1e6


def times_of(milliseconds, least):
    faster = min(milliseconds[name] for name in ENGINES)
    ours, op = milliseconds["ours"], milliseconds["op"]
    return [ours, op, least, *(f"{least / each:.0%}" for each in (ours, op, faster))]


def row(name, *numbers):
    cells = [each if isinstance(each, str) else f"{each:.2f}" for part in numbers for each in part]
    return f"| {' | '.join([name, *cells])} |"


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


if __name__ == "__main__":
    main()
