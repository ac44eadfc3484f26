"""`python -m tf_deform check`: what it finds, what it prints, and what it survives."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

import tf_deform as tfd
from conftest import PRODUCT_TOLERANCE, TOLERANCE, XLA_KERNELS
from tf_deform import __main__ as command
from tf_deform import check_cases, checking
from tf_deform.check_cases import OPS, Case
from tf_deform.compiled import calls, loading, proof

ROOT = pathlib.Path(tfd.__file__).parents[1]


GOOD = {"errors": {"x": [0.0, 1.0]}, "seconds": None}


def in_this_process(cases):
    for case in cases:
        yield case, GOOD if case.xla else check_cases.outcome_of(case)


@pytest.fixture
def graphs_alone(monkeypatch):
    """Has nothing timed, as nothing is run under XLA: that takes the time."""
    monkeypatch.setattr(check_cases, "seconds", lambda case: [1.0, 2.0])


def faults_of_a_check(capsys):
    """Returns the faults that a check in float32 and float16 finds here."""
    status = checking.check(True, ("float32", "float16"), in_this_process)
    found = json.loads(capsys.readouterr().out)
    assert status == (1 if found["faults"] else 0)
    assert {each["op"] for each in found["results"]} == set(OPS)
    wrong = {each["op"] for each in found["results"] if not each["right"]}
    assert bool(wrong) == bool(found["faults"])
    return found["faults"]


def test_the_command_proves_the_library_that_is_built(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    run = subprocess.run(
        [sys.executable, "-m", "tf_deform", "check", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not run.stderr
    found = json.loads(run.stdout)
    assert found["right"] and not found["faults"]
    checked = {(each["op"], each["dtype"], each["xla"]) for each in found["results"]}
    assert len(checked) == len(OPS) * 4 * (1 + XLA_KERNELS)
    results = {each["result"] for each in found["results"]}
    assert results >= {"values", "points", "weights", "inputs", "kernel", "offset", "mask"}
    for each in found["results"]:
        assert each["implementation"] == "compiled" and each["right"]
        assert 0 <= each["error"] <= each["largest_good_error"]
        timed = not each["xla"] or each["dtype"] == "float32"
        assert (each["seconds"] is not None) == timed


def test_a_kernel_that_is_wrong_is_named_and_the_rest_is_checked(graphs_alone, monkeypatch, capsys):
    right = calls.weighted_sample

    def wrong(values, *rest, **options):
        out = right(values, *rest, **options)
        return out * 1.001 if values.dtype == tf.float16 else out

    monkeypatch.setattr("tf_deform.compiled.weighted_sample", wrong)
    faults = faults_of_a_check(capsys)
    assert len(faults) == 4  # the samples, and the gradients
    assert faults[0].startswith("weighted_sample, float16, CPU:0: the result is off by 0.001")


def test_a_gradient_that_is_wrong_is_named_and_the_rest_is_checked(
    graphs_alone, monkeypatch, capsys
):
    library = loading.load().library
    right = library.tf_deform_deformable_conv_grad

    def wrong(**given):
        to_inputs, to_kernel, to_offset, to_mask = right(**given)
        return to_inputs, to_kernel, tf.where(to_offset > 0, to_offset, 0), to_mask

    monkeypatch.setattr(library, "tf_deform_deformable_conv_grad", wrong)
    faults = faults_of_a_check(capsys)
    assert [each.partition(" is off by ")[0] for each in faults] == [
        f"deformable_conv_grad, {dtype}, CPU:0: the gradient to offset"
        for dtype in ("float32", "float16")
    ]


def test_an_op_that_raises_is_named_and_the_rest_is_checked(graphs_alone, monkeypatch, capsys):
    def broken(*_, **__):
        raise tf.errors.InternalError(None, None, "no kernel image is available")

    monkeypatch.setattr("tf_deform.compiled.deformable_conv", broken)
    faults = faults_of_a_check(capsys)
    assert len(faults) == 4
    assert faults[0].startswith("deformable_conv, float32, CPU:0: InternalError: no kernel image")


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ([1.0, 2.0], 0.0),
        ([1.0, 2.5], 0.25),
        ([1.0, math.nan], math.inf),
        ([math.inf, 2.0], math.inf),
        ([1.0], math.inf),
    ],
)
def test_errors_are_relative_to_the_largest_magnitude(found, error):
    expected = tf.constant([1.0, 2.0], tf.float64).numpy()
    assert check_cases.error_of(tf.constant(found), expected) == error


def test_on_a_gpu_what_ran_on_the_cpu_is_a_fault():
    outcome = check_cases.outcome_of(Case("GPU:0", "compiled", "weighted_sample", "float32", False))
    assert "TensorFlow uses 0 of 0 GPUs listed" in outcome["error"]


def test_the_limits_are_those_of_the_tests_and_on_a_gpu_wider_where_it_rounds():
    def limit(device, checked, result, dtype):
        case = Case(device, "compiled", "deformable_conv_grad", checked, False)
        return check_cases.largest_error(case, result, tf.as_dtype(dtype))

    assert limit("CPU:0", "float64", "inputs", "float64") == TOLERANCE["float64"]
    assert limit("CPU:0", "float16", "offset", "float32") == TOLERANCE["float32"]
    assert limit("CPU:0", "bfloat16", "kernel", "bfloat16") == PRODUCT_TOLERANCE["bfloat16"]
    assert limit("CPU:0", "bfloat16", "inputs", "bfloat16") == TOLERANCE["bfloat16"]
    assert limit("GPU:0", "bfloat16", "kernel", "bfloat16") == 3e-2
    assert limit("GPU:0", "bfloat16", "offset", "float32") == 6e-5
    assert limit("GPU:0", "TF32", "mask", "float32") == 2e-3
    assert limit("GPU:0", "float32", "mask", "float32") == 6e-5


# Without a library


def test_without_a_library_the_portable_form_is_checked(graphs_alone, monkeypatch, capsys):
    nothing = loading.Loaded(reason="no library is built: run python -m tf_deform build")
    monkeypatch.setattr(loading, "load", lambda: nothing)
    assert checking.check(dtypes=("float32",), outcomes_of=in_this_process) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"CPU:0: the portable form; {nothing.reason}"
    assert sum(line.endswith("right") for line in lines) == len(OPS)


def test_a_library_that_is_there_and_cannot_be_used_is_a_fault(monkeypatch, capsys):
    damaged = loading.Loaded(reason="record.json is damaged", broken=True)
    monkeypatch.setattr(loading, "load", lambda: damaged)
    assert checking.check(outcomes_of=lambda cases: [(case, GOOD) for case in cases]) == 1
    assert "  record.json is damaged" in capsys.readouterr().out


def test_beside_a_gpu_without_kernels_for_it_both_forms_are_checked(monkeypatch):
    texts = {"TfDeformCudaError": "there is no driver", "TfDeformXlaError": ""}
    loading.load()
    monkeypatch.setattr(loading, "said_by", texts.get)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(proof, "subject_of", lambda gpu: "a card")
    cpu, gpu = checking.devices_here()
    assert (cpu.name, cpu.implementation, cpu.xla) == ("CPU:0", "compiled", True)
    assert (gpu.name, gpu.implementation, gpu.xla) == ("GPU:0", "portable", True)
    assert gpu.reason == "there is no driver"
    assert {case.dtype for case in checking.cases_of(gpu)} == {*checking.DTYPES, "TF32"}
    assert {case.dtype for case in checking.cases_of(gpu) if case.xla} == {"float32"}


# Processes, stood in for by scripts: cases are numbers here


CHILD = """
import json, os, signal, sys, time
for number, case in enumerate(json.loads(sys.argv[1])):
    outcome = {"errors": {"x": [0.0, 1.0]}, "seconds": None}
    if case[2] == "dies":
        print("half of what it says", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if case[2] == "hangs":
        time.sleep(60)
    if case[2] == "leaves":
        sys.exit(3)
    if case[2] == "fails":
        outcome = {"error": "InternalError: an illegal memory access"}
    print("what a library prints")
    print(json.dumps({"case": case, **outcome}), flush=True)
    if case[2] == "fails":
        break
"""


def in_processes(monkeypatch, *ops):
    monkeypatch.setattr(checking, "COMMAND", [sys.executable, "-c", CHILD])
    cases = [Case("GPU:0", "compiled", op, "float32", False) for op in ops]
    found = list(checking.outcomes_in_processes(cases))
    assert [case for case, _ in found] == cases
    return [outcome.get("error") for _, outcome in found]


def test_a_process_that_dies_is_a_fault_of_its_case_and_another_goes_on(monkeypatch):
    first, second, third, fourth, fifth = in_processes(
        monkeypatch, "good", "dies", "fails", "leaves", "good"
    )
    assert first is None and fifth is None
    assert second == "the process ended (SIGABRT): half of what it says"
    assert third == "InternalError: an illegal memory access"
    assert fourth == "the process ended (exit status 3)"


def test_a_process_that_hangs_is_killed(monkeypatch):
    monkeypatch.setattr(checking, "HANGS", 1)
    assert in_processes(monkeypatch, "hangs", "good") == ["it hangs: no result in 1 s", None]


def test_not_more_processes_are_started_than_make_sense(monkeypatch):
    monkeypatch.setattr(checking, "PROCESSES", 2)
    *ended, last = in_processes(monkeypatch, "fails", "dies", "good")
    assert None not in ended
    assert last == "not run, since 2 processes ended before"


# The commands


def test_building_for_cuda_ends_with_a_check_where_a_gpu_is_listed(monkeypatch):
    started = []

    def run(command):
        started.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(command.building, "build", lambda cuda, force: None)
    monkeypatch.setattr(command.subprocess, "run", run)
    command.main(["build", "--cuda"])  # without a GPU
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    command.main(["build"])
    assert not started
    with pytest.raises(SystemExit) as ended:
        command.main(["build", "--cuda"])
    assert ended.value.code == 1
    assert started == [[sys.executable, "-m", "tf_deform", "check"]]


def test_progress_is_shown_to_a_terminal_alone(monkeypatch, capsys):
    checking._show("1 of 2")
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    checking._show("1 of 2")
    assert capsys.readouterr().err == "\r\033[K1 of 2"
