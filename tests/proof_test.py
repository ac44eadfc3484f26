"""The gate before the CUDA kernels: used on a card only once they were seen to be right there."""

import ctypes
import json
import os
import re

import pytest
import tensorflow as tf

import tf_deform as tfd
from tf_deform import checking, compiled
from tf_deform.compiled import choice, loading, location, proof

H100 = {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}
A10 = {"device_name": "NVIDIA A10", "compute_capability": (8, 6)}


class Machine:
    """What TensorFlow is made to say: the cards listed, by their details, and its version."""

    cards = (H100,)
    driver = "580.65.06, CUDA 13.0"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a machine with a GPU, CUDA kernels, a library's folder of its own and no record."""
    found = Machine()
    loaded = loading.load()
    texts = {"TfDeformCudaError": "", "TfDeformXlaError": "", "TfDeformXlaGpuError": ""}
    library = tmp_path / "library" / location.library_path().name
    library.parent.mkdir()
    library.with_name(location.RECORD).write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "load", lambda: loaded)
    monkeypatch.setattr(loading, "said_by", texts.get)
    monkeypatch.setattr(location, "library_path", lambda: library)
    monkeypatch.setattr(proof, "driver", lambda: found.driver)
    monkeypatch.setattr(proof, "_digest_of_library", proof._digest_of_library.__wrapped__)
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: list(range(len(found.cards)))
    )
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda number: found.cards[number]
    )
    _as_a_new_process()
    yield found
    _as_a_new_process()


def _as_a_new_process():
    proof._proved.clear()
    choice.auto_is_compiled.cache_clear()


def prove(faults=()):
    """Records what a check found of all cards listed, which counts in the next process."""
    paths = [proof.record(subject, list(faults)) for subject in proof.subjects()]
    _as_a_new_process()
    return paths[0]


def assert_gate_is_shut(match):
    _as_a_new_process()
    available, devices, reason = compiled.compiled_status()
    assert (available, devices) == (False, ())
    assert re.search(match, reason)
    assert reason.endswith("run python -m tf_deform check")
    with pytest.raises(RuntimeError, match=r"cannot be used: .*run python -m tf_deform check\.$"):
        tfd.set_implementation("compiled")
    with pytest.warns(UserWarning, match=match) as warned:
        for _ in range(2):
            assert tfd.layers.GridSample().supports_jit
            assert not compiled.chosen()
    (line,) = [str(each.message) for each in warned]
    assert line.startswith("tf_deform runs its portable implementation: ")
    assert line.endswith("run python -m tf_deform check.") and "\n" not in line


def assert_gate_is_open():
    _as_a_new_process()
    assert compiled.compiled_status() == (True, ("CPU", "GPU"), "")
    with tfd.use_implementation("compiled"):
        assert compiled.chosen()
    assert compiled.chosen()  # under "auto"


def test_on_a_card_where_nothing_was_checked_the_portable_form_runs(machine):
    assert_gate_is_shut(r"not yet proved on NVIDIA H100 \(9.0\), driver 580.65.06, CUDA 13.0")


def test_what_passed_is_used_from_then_on(machine, recwarn):
    path = prove()
    assert path.parent == location.library_path().parent
    assert_gate_is_open()
    assert not recwarn


def test_what_failed_says_op_dtype_and_error(machine):
    fault = "deformable_conv, float16, GPU:0: the result is off by 0.3, at most 0.004 is good"
    prove([fault, "another"])
    assert_gate_is_shut(f"wrong on NVIDIA H100 .*: {fault} and 1 more faults")
    prove()
    assert_gate_is_open()


@pytest.mark.parametrize("change", ["driver", "tensorflow", "library", "card", "capability"])
def test_what_passed_elsewhere_does_not_count(machine, monkeypatch, change):
    prove()
    if change == "driver":
        machine.driver = "unknown"
    elif change == "tensorflow":
        monkeypatch.setattr(tf, "__version__", "2.99.0")
    elif change == "library":
        location.library_path().with_name(location.RECORD).write_text('{"x.so": "1 byte"}')
    else:
        changed = {"card": ("device_name", "B200"), "capability": ("compute_capability", (9, 1))}
        machine.cards = ({**H100, **dict([changed[change]])},)
    assert_gate_is_shut("not yet proved")
    prove()
    assert_gate_is_open()


def test_each_of_several_kinds_of_card_must_have_passed(machine):
    prove()
    machine.cards = (H100, A10, H100)
    assert len(proof.subjects()) == 2
    assert_gate_is_shut("not yet proved on NVIDIA A10")
    prove()
    assert_gate_is_open()
    machine.cards = (A10,)
    prove(["a fault"])
    machine.cards = (H100, A10)
    assert_gate_is_shut("wrong on NVIDIA A10")
    machine.cards = (H100,)
    assert_gate_is_open()


def test_a_card_that_says_nothing_and_an_unknown_driver_are_a_key_like_others(machine):
    machine.cards, machine.driver = ({},), "unknown"
    assert_gate_is_shut(r"not yet proved on unknown \(unknown\), driver unknown")
    prove()
    assert_gate_is_open()


DAMAGES = {
    "half": lambda path: path.write_text(path.read_text()[:40]),
    "a list": lambda path: path.write_text("[]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "no faults": lambda path: path.write_text(
        json.dumps({"of": json.loads(path.read_text())["of"]})
    ),
    "null": lambda path: path.write_text(path.read_text().replace("[]", "null")),
    "of another": lambda path: path.write_text(path.read_text().replace("H100", "H200")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_proves_nothing(machine, damage):
    DAMAGES[damage](prove())
    assert_gate_is_shut("damaged|is of another|cannot be read")


def test_beside_a_library_that_is_read_only_the_cache_has_the_record(machine, monkeypatch):
    def read_only(path, text, written=proof._written):
        if path.parent == location.library_path().parent:
            raise PermissionError(path)
        return written(path, text)

    monkeypatch.setattr(proof, "_written", read_only)
    assert prove().parent == location.proofs()
    assert_gate_is_open()
    monkeypatch.setattr(location, "proofs", lambda: (_ for _ in ()).throw(OSError("no home")))
    with pytest.raises(PermissionError):
        prove()


def test_of_two_records_the_newer_one_counts(machine):
    (subject,) = proof.subjects()
    beside = proof.record(subject, [])
    own = location.proofs() / beside.name
    own.parent.mkdir(parents=True)
    own.write_text(beside.read_text().replace("[]", '["a fault"]'))
    os.utime(beside, (1, 1))
    assert_gate_is_shut("a fault")
    os.utime(own, (0, 0))
    assert_gate_is_open()


def test_who_records_leaves_nothing_else_and_replaces_what_was_there(machine):
    prove(["a fault"])
    path = prove()
    assert {each.name for each in path.parent.iterdir()} == {path.name, location.RECORD}


def test_who_is_on_trial_passes_and_nobody_after(machine):
    with proof.on_trial(), tfd.use_implementation("compiled"):
        assert compiled.chosen()
    assert_gate_is_shut("not yet proved")


def test_without_kernels_for_a_gpu_or_without_a_gpu_nothing_need_be_proved(machine, monkeypatch):
    monkeypatch.setattr(loading, "said_by", {"TfDeformCudaError": "no", "TfDeformXlaError": ""}.get)
    available, devices, reason = compiled.compiled_status()
    assert (available, devices) == (True, ("CPU",))
    assert "check" not in reason
    machine.cards = ()
    assert choice.auto_is_compiled()


def test_the_driver_is_known_by_the_kernel_and_by_the_driver_itself(monkeypatch, tmp_path):
    lines = {
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19": "535.104.05",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release": "580.65.06",
    }
    monkeypatch.setattr(proof, "_VERSION", tmp_path / "version")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert proof.driver.__wrapped__() == "unknown"
    for line, version in lines.items():
        (tmp_path / "version").write_text(f"{line}\nGCC version: gcc version 12.2.0\n")
        assert proof.driver.__wrapped__() == version

    class Driver:
        def cuDriverGetVersion(self, pointer):  # noqa: N802
            pointer._obj.value = 12040
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert proof.driver.__wrapped__() == "580.65.06, CUDA 12.4"


# The check, where a GPU is listed


def outcomes(error):
    """Returns what makes outcomes of cases: those of one op in float16 are off by an error."""

    def found(cases):
        for case in cases:
            bad = case.device == "GPU:1" and (case.op, case.dtype) == ("deformable_conv", "float16")
            yield case, {"errors": {case.op: [error if bad else 0.0, 0.1]}, "seconds": [1.0, 2.0]}

    return found


def test_a_check_that_passes_opens_the_gate(machine, capsys):
    machine.cards = (H100, A10)
    assert checking.check(outcomes_of=outcomes(0.0)) == 0
    said = capsys.readouterr().out
    assert '"auto" uses the CUDA kernels on NVIDIA A10 (8.6) and NVIDIA H100 (9.0).' in said
    assert said.count("recorded in ") == 2
    assert_gate_is_open()


def test_a_check_that_fails_on_one_card_shuts_the_gate_there_alone(machine, capsys):
    machine.cards = (H100, A10)
    assert checking.check(outcomes_of=outcomes(0.3)) == 1
    fault = "deformable_conv, float16, GPU:1.*: the result is off by 0.3, at most 0.1 is good"
    assert re.search(fault, capsys.readouterr().out)
    assert_gate_is_shut(f"wrong on NVIDIA A10 .*{fault} and 1 more")
    machine.cards = (H100,)
    assert_gate_is_open()


def test_a_check_of_some_dtypes_proves_nothing(machine):
    assert checking.check(dtypes=("float32",), outcomes_of=outcomes(0.0)) == 0
    assert_gate_is_shut("not yet proved")


def test_a_record_that_cannot_be_kept_is_a_fault(machine, monkeypatch, capsys):
    def full(path, text):
        raise OSError("no space left on device")

    monkeypatch.setattr(proof, "_written", full)
    assert checking.check(outcomes_of=outcomes(0.0)) == 1
    assert "could not be recorded: no space left" in capsys.readouterr().out
