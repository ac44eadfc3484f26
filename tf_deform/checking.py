"""`python -m tf_deform check`: whether the operators are right on the machine they run on.

Cases run in a process of their own. One that dies, hangs or has met an error of a GPU, which it
would meet again, is a fault of the case it was at, and another process goes on behind it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_deform.check_cases import OPS, TENSOR_FLOAT, Case, results_of
from tf_deform.compiled import loading, location, proof

COMMAND = [sys.executable, "-m", "tf_deform.check_cases"]
DTYPES = ("float32", "float64", "float16", "bfloat16")
HANGS = 300  # seconds without a result
PROCESSES = 12  # that are started, at most


class Device(NamedTuple):
    """A device that is checked, and with what."""

    name: str  # "GPU:0"
    subject: proof.Subject | None  # what a proof on it is of, None on a CPU
    implementation: str
    reason: str  # why it is portable, or what cannot be checked, or ""
    xla: bool


class Report(NamedTuple):
    """What was checked, and what came of it."""

    devices: list[Device]
    outcomes: dict[Case, dict[str, Any]]  # as from check_cases.outcome_of
    faults: list[str]
    recorded: list[str]


def check(as_json=False, dtypes=DTYPES, outcomes_of=None):
    """Checks each device, records what was found of GPUs, and prints it; returns the exit status.

    That is 1 if anything is wrong, a library that is there and cannot be used among it. Without a
    library the portable form is checked.

    Args:
        as_json: prints JSON instead of a table.
        dtypes: that the ops are checked in.
        outcomes_of: takes cases and yields each with its outcome; None: processes do.
    """
    devices = devices_here()
    cases = [case for device in devices for case in cases_of(device, dtypes)]
    outcomes = {}
    for case, outcome in (outcomes_of or outcomes_in_processes)(cases):
        outcomes[case] = outcome
        _show(f"{len(outcomes)} of {len(cases)} checked, {case}")
    _show("")
    faults = [fault for case in cases for fault in faults_of(case, outcomes[case])]
    recorded = _record(devices, outcomes, faults) if dtypes == DTYPES else []
    broken = loading.load().broken
    faults += [loading.load().reason] if broken else []
    report = Report(devices, outcomes, faults, recorded)
    print(_as_json(report) if as_json else _as_text(report))
    return 1 if faults else 0


def devices_here():
    """Returns the CPU and each GPU that TensorFlow lists, and what runs on them."""
    library, reason, _ = loading.load()
    without_xla = "" if library is None else loading.why_not_xla_on("CPU")
    kind, note = ("portable", reason) if library is None else ("compiled", without_xla)
    devices = [Device("CPU:0", None, kind, note, not without_xla)]
    gpus = tf.config.list_physical_devices("GPU")
    if library is not None and gpus:
        reason = loading.said_by("TfDeformCudaError")
        without_xla = "" if reason else loading.why_not_xla_on("GPU")
    for number, gpu in enumerate(gpus):
        kind, note = ("portable", reason) if reason else ("compiled", without_xla)
        subject = proof.subject_of(gpu) if library is not None else None
        devices.append(
            Device(f"GPU:{number}", subject, kind, note, bool(reason or not without_xla))
        )
    return devices


def cases_of(device, dtypes=DTYPES):
    """Returns the cases of a device."""
    kinds = [*dtypes, TENSOR_FLOAT] if device.name.startswith("GPU") else dtypes
    return [
        Case(device.name, device.implementation, op, dtype, xla)
        for op in OPS
        for dtype in kinds
        for xla in ([False, True] if device.xla else [False])
        if dtype != TENSOR_FLOAT or op.startswith("deformable_conv")
        if not xla or dtype == "float32" or device.implementation == "compiled"
    ]


def faults_of(case, outcome):
    """Returns what is wrong with a case, in a line each."""
    if "error" in outcome:
        return [f"{case}: {outcome['error']}"]
    return [
        f"{case}: {_what(case.op, name)} is off by {error:.2g}, at most {limit:.2g} is good"
        for name, (error, limit) in outcome["errors"].items()
        if not error <= limit
    ]


def _what(op, result):
    return "the result" if result == op else f"the gradient to {result}"


def _record(devices, outcomes, faults):
    """Records what was found of the CUDA kernels on each kind of card; returns where."""
    found: dict[proof.Subject, list[str]] = {}
    for device in devices:
        if device.subject is not None and device.implementation == "compiled":
            own = [case for case in outcomes if case.device == device.name]
            lines = [fault for case in own for fault in faults_of(case, outcomes[case])]
            found.setdefault(device.subject, []).extend(lines)
    recorded = []
    for subject, lines in found.items():
        try:
            recorded.append(str(proof.record(subject, lines)))
        except OSError as error:
            faults.append(f"what was found of {subject} could not be recorded: {error}")
    return recorded


# Processes


def outcomes_in_processes(cases):
    """Yields each case with its outcome, from processes that are started anew when they end."""
    left = list(cases)
    for _ in range(PROCESSES):
        if not left:
            return
        said = yield from _outcomes_of_a_process(left)
        if said:  # it ended within a case
            yield left.pop(0), {"error": said}
    for case in left:
        yield case, {"error": f"not run, since {PROCESSES} processes ended before"}


def _outcomes_of_a_process(left):
    """Yields cases with their outcomes, and takes them off the list.

    Returns how the process ended if that was within a case, else "".
    """
    environment = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        command = [*COMMAND, json.dumps(left)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        hung = threading.Event()
        last: dict[str, Any] = {}
        try:
            assert process.stdout is not None
            while line := _line_of(process, hung):
                if line.startswith('{"case"'):
                    last = json.loads(line)
                    yield Case(*last.pop("case")), last
                    left.pop(0)
        finally:
            process.kill()  # if somebody interrupts
            process.wait()
        if not left or ("error" in last and not process.returncode):
            return ""
        log.seek(0)
        return _ending(process.returncode, hung.is_set(), log.read())


def _line_of(process, hung):
    """Returns what the process prints next, "" if it ends; it is killed if it takes too long."""

    def end():
        hung.set()
        process.kill()

    timer = threading.Timer(HANGS, end)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def _ending(status, hung, log):
    if hung:
        return f"it hangs: no result in {HANGS} s"
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    said = (log.strip().splitlines() or [""])[-1][:200]
    return f"the process ended ({how})" + (f": {said}" if said else "")


# What is printed


def _show(text):
    """Shows how far it is, where somebody is looking."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _as_text(report):
    lines = [f"TensorFlow {tf.__version__}, Keras {keras.__version__}", *_about(report.devices)]
    lines += ["", *_table(report), ""]
    for path in report.recorded:
        lines.append(f"recorded in {path}")
    count = len(report.outcomes)
    lines.append(f"{count} checks, {len(report.faults)} faults{':' if report.faults else ''}")
    lines += [f"  {fault}" for fault in report.faults]
    proved = {
        str(device.subject) for device in report.devices if device.implementation == "compiled"
    }
    cards = sorted(proved - {"None"})
    if cards and not report.faults:
        lines.append(f'"auto" uses the CUDA kernels on {" and ".join(cards)}.')
    elif cards and proof.why_unproven():
        lines.append('"auto" runs the portable form, which needs no library.')
    return "\n".join(lines)


def _about(devices):
    for device in devices:
        name = device.name
        if device.subject is not None:
            name += f" {device.subject}, driver {device.subject.driver}"
        elif device.implementation == "compiled":
            name += f" with {loading.instruction_set()}"
        form = (
            "the compiled library" if device.implementation == "compiled" else "the portable form"
        )
        yield f"{name}: {form}" + (f"; {device.reason}" if device.reason else "")


def _table(report):
    head = ("device", "op", "dtype", "error", "under XLA", "time", "under XLA", "")
    rows = [head]
    for case, outcome in report.outcomes.items():
        if not case.xla:
            under_xla = case._replace(xla=True)
            both = [(case, outcome)]
            if under_xla in report.outcomes:
                both.append((under_xla, report.outcomes[under_xla]))
            errors = [_error(each) for _, each in both] + [""] * (2 - len(both))
            times = [_ratio(each) for _, each in both] + [""] * (2 - len(both))
            good = not any(faults_of(*each) for each in both)
            verdict = "right" if good else "WRONG"
            rows.append((case.device, case.op, case.dtype, *errors, *times, verdict))
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        cells = zip(row, widths, strict=True)
        yield "  ".join(cell.ljust(width) for cell, width in cells).rstrip()
    if any(outcome.get("seconds") for outcome in report.outcomes.values()):
        yield "(time: the compiled library's over the portable form's)"


def _error(outcome):
    """Returns the worst error beside its limit."""
    if "error" in outcome:
        return "failed"
    error, limit = max(outcome["errors"].values(), key=lambda each: each[0] / each[1])
    return f"{error:.0e} of {limit:.0e}"


def _ratio(outcome):
    if not outcome.get("seconds"):
        return ""
    own, portable = outcome["seconds"]
    return f"{own / portable:.2f}"


def _as_json(report):
    library = loading.load().library
    results = []
    for case, outcome in report.outcomes.items():
        compared = outcome.get("errors", dict.fromkeys(results_of(case.op), (math.inf, None)))
        own, portable = outcome.get("seconds") or (None, None)
        for name, (error, limit) in compared.items():
            entry = {
                "result": name,
                "error": error if math.isfinite(error) else None,
                "largest_good_error": limit,
            }
            times = {"seconds": own, "portable_seconds": portable}
            failure = {"failure": outcome.get("error")}
            right = limit is not None and error <= limit
            results.append({**case._asdict(), **entry, **times, **failure, "right": right})
    found = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "library": None if library is None else str(location.library_path()),
        "instruction_set": None if library is None else loading.instruction_set(),
        "devices": [
            {**each._asdict(), "subject": each.subject and each.subject._asdict()}
            for each in report.devices
        ],
        "results": results,
        "faults": report.faults,
        "recorded": report.recorded,
        "right": not report.faults,
    }
    return json.dumps(found, indent=1)
