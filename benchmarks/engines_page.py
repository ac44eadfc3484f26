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
    means = [mean([each[name] for each in ratios.values()]) for name in ENGINES]
    worst = mean([max(each.values()) for each in ratios.values()])
    hardware = ", ".join(f"{name} {value}" for name, value in results["hardware"].items())
    return [
        f"| | over {' | over '.join(ENGINES)} | over the faster | ms | op alone |",
        "|---|---|---|---|---|---|",
        *(
            row(shape, [*(each[name] for name in ENGINES), max(each.values())])
            + row("", milliseconds[shape].values())[4:]
            for shape, each in ratios.items()
        ),
        row("geometric mean", [*means, worst]) + " | |",
        "",
        f"{hardware}; medians of {results['rounds']} rounds.",
    ]


def row(name, numbers):
    return f"| {name} | {' | '.join(f'{each:.2f}' for each in numbers)} |"


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


if __name__ == "__main__":
    main()
