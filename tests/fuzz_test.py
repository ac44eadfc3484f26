"""The fuzzer: that it sees what it is there to see. `make fuzz` runs it."""

import collections
import itertools
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

FOLDER = pathlib.Path(__file__).parent / "fuzz"
CHILD = """
import os, sys, time
for seed in range(*map(int, sys.argv[2:4])):
    print(f'["begin", {seed}]', flush=True)
    if seed == 3:
        print("runtime error: signed integer overflow", file=sys.stderr, flush=True)
        os.abort()
    if seed == 5:
        time.sleep(60)
    print(f'["end", {seed}, "conv", "{"ValueError: no" if seed == 6 else ""}", []]', flush=True)
"""


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import cases
    import child
    import fuzz

    return types.SimpleNamespace(cases=cases, child=child, fuzz=fuzz)


def test_a_child_that_dies_or_hangs_costs_one_case(modules, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(modules.fuzz, "STARTING", 20)
    options = types.SimpleNamespace(
        cases=8, seed=1, mode="eager", workers=1, timeout=1.0, sanitized=None
    )
    hunt = modules.fuzz.Hunt(options, tmp_path / "child.py")
    hunt.run()
    outcomes = collections.Counter(outcome for _, _, outcome in hunt.counts.elements())
    assert outcomes == {"succeeded": 5, "refused": 1, "fatal": 2}
    died, hung = hunt.faults
    assert "SIGABRT; runtime error: signed integer overflow" in died
    assert '"--mode eager --seed 3 --cases 1"' in died
    assert "hangs" in hung and "--seed 5" in hung


def _internal(**given):
    raise tf.errors.InternalError(None, None, "broken")


def _refuses_the_second(calls, given):
    if next(calls):
        raise tf.errors.InvalidArgumentError(None, None, "not again")
    return given["values"]


@pytest.mark.parametrize(
    ("op", "faults"),
    [
        (lambda calls, given: given["values"] + 1, []),
        (lambda calls, given: given["values"] + next(calls), ["once and again bits differ"]),
        (_refuses_the_second, ["once: succeeds; again: InvalidArgumentError: not again"]),
        (lambda calls, given: _internal(), ["raises InternalError: broken"] * 2),
        (lambda calls, given: given["values"] * np.nan, []),
    ],
)
def test_the_judge_finds_what_is_wrong(modules, op, faults):
    calls = itertools.count()
    module = types.SimpleNamespace(
        tf_deform_weighted_sample=lambda **given: op(calls, given),
    )
    values = modules.cases.Tensor((2,), np.ones(2, np.float32))
    case = modules.cases.Case("sample", {"values": values}, {}, [], memory=None, tame=False)
    _, found = modules.child.judge(module, case, [tf.ones(2)], "eager", seed=0)
    assert found == faults


def test_a_seed_makes_the_same_case_and_many_are_well_formed(modules):
    made = [modules.cases.make(seed, "eager") for seed in range(200)]
    assert list(map(str, made)) == [str(modules.cases.make(seed, "eager")) for seed in range(200)]
    assert 60 < sum(case.tame for case in made) < 140
