"""docs/support.md is what was measured, of every layer; a cell that was good may not be lost."""

import os
import pathlib
import sys

import pytest

from export_cases import EXPORTED
from layer_contract_test import LAYERS

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks" / "support"))

import page
import run
from columns import COLUMNS

ROOT = pathlib.Path(__file__).parents[1]

# Ends without a word at the file called "fatal", as an engine may; refuses "wrong".
ENGINE = """
import json, os, pathlib, sys
for job in json.loads(pathlib.Path(sys.argv[2]).read_text()):
    if job["file"] == "fatal":
        os.abort()
    if job["file"] == "wrong":
        pathlib.Path(job["outputs"]).with_suffix(".txt").write_text("ValueError: wrong")
    else:
        pathlib.Path(job["outputs"]).write_text("")
"""


def test_the_page_is_what_the_data_renders_to():
    assert page.PAGE.read_text() == page.render(page.load())
    assert page.DATA.read_text() == page.dump(page.load())


def test_every_public_layer_and_every_case_has_its_row():
    rows = page.load()["rows"]
    assert list(rows) == list(EXPORTED)
    assert {name.split(",")[0] for name in rows} == set(LAYERS)


def test_what_was_measured_are_cells_of_the_columns_there_are():
    data = page.load()
    assert data["columns"].keys() <= COLUMNS.keys()
    for name, row in data["rows"].items():
        assert row.keys() <= data["columns"].keys(), name
        assert all(list(cell) == list(page.SIZES) for cell in row.values()), name


def test_an_engine_that_ends_its_process_is_started_again_for_the_rest(tmp_path, monkeypatch):
    (tmp_path / "engines.py").write_text(ENGINE)
    monkeypatch.setattr(run, "HERE", tmp_path)
    files = ("good", "fatal", "wrong", "fatal", "good")
    jobs = [run.Job("a row", "fixed", file, "", None) for file in files]
    failures = [failure for _, failure in run.run_engine("any", jobs, str(tmp_path), "any")]
    fatal = "the process was ended by SIGABRT"
    assert failures == [None, fatal, "ValueError: wrong", fatal, None]


@pytest.mark.parametrize("outcome", [1.0, "ValueError: refused"])
def test_a_cell_that_was_good_stays_and_is_named(outcome):
    old = {"fixed": 0.0, "free": None, "empty": "refused"}
    data = {"columns": {}, "rows": {"RoIAlign": {"onnx": old}}}
    lost = {"onnx": {**old, "fixed": outcome}, "jit": dict.fromkeys(page.SIZES, 1.0)}
    cells = {"RoIAlign": lost}
    assert run.take_out_regressions(data, cells) == [f"RoIAlign, ONNX, fixed: {outcome}"]
    assert list(cells["RoIAlign"]) == ["jit"]
    assert run.take_out_regressions(data, {"RoIAlign": {"onnx": old}}) == []


def test_what_was_raised_is_kept_without_paths_of_this_machine():
    text = f"ValueError: {sys.prefix}/lib/a.py at {ROOT}/tests, {os.path.expanduser('~/x/y')} 0x7f"
    assert run.shortened(text, "/nowhere") == "ValueError: … at /tests, … …"


def test_signs_of_a_cell_are_joined_where_they_are_alike_and_lead_to_their_causes():
    notes = {}
    column = {"tolerance": 1e-4}
    sizes = dict.fromkeys(page.SIZES, 0.0)
    assert page.cell_text("onnx", sizes, column, notes) == "✓"
    several = {"fixed": 1e-5, "free": 1e-3, "empty": "RuntimeError: no"}
    assert page.cell_text("onnx", several, column, notes) == "✓≠✗ [1](#causes) [2](#causes)"
    assert page.cell_text("onnx", None, column, notes) == "·"
    assert list(notes) == ["other values", "`RuntimeError: no`"]


def test_the_summary_counts_the_outcomes_of_all_rows_of_a_layer_and_every_column():
    good, bad = (dict.fromkeys(page.SIZES, outcome) for outcome in (0.0, "raised"))
    titles = {"eager": "eager", "jit": "jit", "ai": "ai-edge-litert int8", "onnx": "Keras onnx"}
    columns = {key: {"title": title, "tolerance": 0.1} for key, title in titles.items()}
    rows = {
        "RoIAlign": {"eager": good, "jit": bad, "onnx": {**good, "empty": 0.2}},
        "RoIAlign, adaptive": {"eager": good, "jit": good},
        "GridSample": {"ai": good},
    }
    lines = page.summary(columns, rows).splitlines()
    assert lines[2] == "| `RoIAlign` | 9 of 12 | · | · | · | · | · | 2 of 3 |"
    assert lines[3] == "| `GridSample` | · | · | ✓ | · | · | · | · |"
    for column in page.load()["columns"].values():
        assert [column["title"].startswith(each) for each in page.FAMILIES.values()].count(
            True
        ) == 1
