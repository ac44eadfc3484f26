"""Measures the cells of the table of support, and puts them into docs/support.json."""

import argparse
import contextlib
import datetime
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
import page
import tensorflow as tf
from columns import COLUMNS, FORMATS, SERVE, missing, needs_engines, python_for, versions_of
from measures import Subject

from export_cases import EXPORTED

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
TOGETHER = 6  # rows whose files are there at a time; an engine starts once for all of them
LONGEST = 240  # characters that are kept of what was raised
SECONDS = 120  # that an engine may take to start, and for ten runs


def main():
    """Measures what the command line asks for; returns the exit status."""
    tf.get_logger().setLevel("ERROR")
    parser = argparse.ArgumentParser(description="Measures what every layer does in every engine.")
    parser.add_argument("--engines", action="store_true", help="the columns of other engines")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, metavar="COLUMN")
    parser.add_argument("--rows", nargs="+", choices=EXPORTED, metavar="ROW")
    options = parser.parse_args()
    keys = options.columns or [
        key for key, each in COLUMNS.items() if needs_engines(each) == options.engines
    ]
    lacking = sorted({text for key in keys for text in missing(COLUMNS[key])})
    if lacking:
        parser.exit(2, f"missing: {'; '.join(lacking)}\n")
    names = options.rows or list(EXPORTED)
    worse: list = []
    for start in range(0, len(names), TOGETHER):
        with tempfile.TemporaryDirectory() as folder:
            cells = measured(names[start : start + TOGETHER], keys, folder)
        data = page.load()
        worse += take_out_regressions(data, cells)
        merge(data, cells, keys)
        page.write(data)
    for line in worse:
        print(f"no longer good: {line}")
    return 1 if worse else 0


def measured(names, keys, folder):
    """Returns {row: {column: {size: outcome}}}."""
    cells: dict = {name: {key: {} for key in keys} for name in names}
    jobs: dict = {key: [] for key in keys}
    for index, name in enumerate(names):
        print(name, flush=True)
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        subject = Subject(name)
        files = Files(subject, f"{folder}/{index}", folder)
        for key in keys:
            column = COLUMNS[key]
            for size, samples in subject.samples.items():
                if not samples:
                    cells[name][key][size] = None
                elif column.measure:
                    cells[name][key][size] = tried(column.measure, folder, subject, size)
                else:
                    path, failure = files.written(column.format, size)
                    cells[name][key][size] = failure or 0.0
                    inputs = [] if failure else files.inputs(size)
                    jobs[key] += [Job(name, size, path, *each) for each in inputs]
    for key in keys:
        if jobs[key]:
            print(f"{key}: {len(jobs[key])} runs", flush=True)
            run_jobs(key, jobs[key], cells, folder)
    return cells


class Job:
    """One run of one file: what is asked for, and what is expected of it."""

    def __init__(self, name, size, path, inputs, expected):
        self.name, self.size, self.path = name, size, path
        self.inputs, self.expected = inputs, expected


class Files:
    """The files of one layer, each written when it is first asked for, and what they are fed."""

    def __init__(self, subject, stem, folder):
        self.subject, self.stem, self.folder = subject, stem, folder
        self.known: dict = {}

    def written(self, kind, size):
        """Returns the path of a file for known or for free sizes, and why there is none."""
        size = "fixed" if size == "fixed" else "free"
        if (kind, size) not in self.known:
            file, write = FORMATS[kind]
            path = pathlib.Path(f"{self.stem}-{kind}-{size}", file)
            path.parent.mkdir()

            def write_it():
                samples = self.subject.representative(size)
                write(self.subject.model(size), str(path), samples)
                if not path.exists():
                    raise FileNotFoundError("there is no file, though nothing was raised")

            outcome = tried(write_it, self.folder)
            self.known[kind, size] = str(path), outcome
        return self.known[kind, size]

    def inputs(self, size):
        """Returns the file of inputs and the result expected, of each sample of the size."""
        found = []
        for index, (_, arguments, result) in enumerate(self.subject.samples[size]):
            path = f"{self.stem}-{size}-{index}.npz"
            flat = tf.nest.flatten(arguments)
            np.savez(path, **{f"input_{number}": each for number, each in enumerate(flat)})
            found.append((path, result))
        return found


def run_jobs(key, jobs, cells, folder):
    """Runs the files of a column, and puts the largest error of each size into its cell."""
    column = COLUMNS[key]
    before = {job.path: None for job in jobs}
    for engine in column.steps:
        once = list({job.path: job for job in jobs}.values())
        ran = run_engine(engine, once, folder, f"{key}-{engine}")
        for job, (_, failure) in zip(once, ran, strict=True):
            before[job.path] = before[job.path] or failure
    ran = run_engine(column.engine, jobs, folder, key)
    for job, (output, failure) in zip(jobs, ran, strict=True):
        cell = cells[job.name][key]
        outcome = before[job.path] or failure or tried(error_of, folder, output, job, column)
        if not isinstance(cell[job.size], str):
            cell[job.size] = outcome if isinstance(outcome, str) else max(cell[job.size], outcome)


def error_of(output, job, column):
    """Returns the error of what a file returned."""
    (actual,) = np.load(output).values()
    if actual.shape != job.expected.shape:
        raise ValueError(f"shape {actual.shape} instead of {job.expected.shape}")
    if not np.all(np.isfinite(actual)):
        raise ValueError("NaN or infinite values")
    return column.error(actual, job.expected)


def run_engine(engine, jobs, folder, stem):
    """Yields the file of outputs of each job and, where there is none, what was raised.

    The engine runs in a process of its own, which is started again if a job has ended it.
    """
    outputs = [pathlib.Path(folder, f"{stem}-{index}.npz") for index in range(len(jobs))]
    failures: dict = {}

    def left():
        return [
            index
            for index, output in enumerate(outputs)
            if index not in failures
            if not (output.exists() or output.with_suffix(".txt").exists())
        ]

    while waiting := left():
        end = ended(engine, [request(jobs[index], outputs[index]) for index in waiting], folder)
        failures.update(dict.fromkeys(left()[:1], end))
    for index, output in enumerate(outputs):
        text = output.with_suffix(".txt")
        failure = failures.get(index) or (text.exists() and shortened(text.read_text(), folder))
        yield output, failure or None


def request(job, output):
    """Returns what an engine's process is told of a job."""
    empty = job.size == "empty"
    return {"file": job.path, "inputs": job.inputs, "outputs": str(output), "empty": empty}


def ended(engine, requests, folder):
    """Runs an engine's process, and returns how it ended, as text."""
    path = pathlib.Path(folder, "jobs.json")
    path.write_text(json.dumps(requests))
    command = [python_for(engine), str(HERE / "engines.py"), engine, str(path)]
    environment = {**os.environ, "SERVE": str(SERVE)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            timeout=SECONDS + SECONDS * len(requests) // 10,
        )
    except subprocess.TimeoutExpired:
        return "the process did not end"
    if done.returncode < 0:
        return f"the process was ended by {signal.Signals(-done.returncode).name}"
    last = done.stderr.strip().splitlines()[-1:]
    return shortened(f"the process ended with status {done.returncode}: {last}", folder)


def tried(function, folder, *arguments):
    """Returns the error that a function returns, rounded, or what it raised."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            error = function(*arguments)
        return error and float(f"{float(error):.0e}")
    except Exception as error:
        return shortened(f"{type(error).__name__}: {error}", folder)


def shortened(text, folder):
    """Returns what was raised in a line, without paths and numbers of this run."""
    text = text.replace(folder, "").replace(str(ROOT), "").replace(sys.prefix, "")
    text = re.sub(r"(/[\w.+-]+){2,}/?", "…", " ".join(text.split()))
    text = re.sub(r"0x[0-9a-f]+", "…", text).replace("`", "'")
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def take_out_regressions(data, cells):
    """Takes out the cells that were good and are not any more, and returns them as text."""
    worse = []
    for name, columns in cells.items():
        for key, cell in list(columns.items()):
            old = data["rows"].get(name, {}).get(key, {})
            tolerance = COLUMNS[key].tolerance
            lost = [
                f"{name}, {COLUMNS[key].title}, {size}: {outcome}"
                for size, outcome in cell.items()
                if size in old and page.is_good(old[size], tolerance)
                if not page.is_good(outcome, tolerance)
            ]
            if lost:
                del columns[key]
            worse += lost
    return worse


def merge(data, cells, keys):
    """Puts what was measured into the data, rows and columns in the order of the code."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    for key in keys:
        column = COLUMNS[key]
        data["columns"][key] = {
            "title": column.title,
            "what": column.what,
            "tolerance": column.tolerance,
            "versions": versions_of(column),
            "date": datetime.date.today().isoformat(),
            "commit": commit,
        }
    data["columns"] = {key: data["columns"][key] for key in COLUMNS if key in data["columns"]}
    rows = {name: {**data["rows"].get(name, {}), **cells.get(name, {})} for name in EXPORTED}
    data["rows"] = {
        name: {key: row[key] for key in COLUMNS if key in row} for name, row in rows.items()
    }
