"""Runs a range of cases in one mode, in this process; what it prints is for fuzz.py.

For each case it prints ["begin", seed], so that whoever reads knows which one was fatal, and then
["end", seed, op, why it was refused or "", faults].
"""

import hashlib
import itertools
import json
import pathlib
import resource
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import cases
import reference
from tf_deform.compiled import location

ACCEPTED = (
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnimplementedError,
    tf.errors.NotFoundError,  # no kernel for these dtypes
    ValueError,
    TypeError,
)
NO_ROOM = "no memory"
ROOM = 512  # MiB that may be allocated on top of what TensorFlow has taken
COMPARED = 4  # one in so many tame cases is compared with the portable form, which is slow


class Result(NamedTuple):
    """What a call came to: its outputs and a digest of their bits, or why it was refused."""

    outputs: tuple = ()
    digest: str = ""
    refusal: str = ""


def main(modes, first, end, sanitized):
    """Runs the cases of the seeds from `first` to below `end`, the modes in turns.

    sanitized: the folder of a library with sanitizers, which need more address space than there is
    memory to limit, or "" for the usual library.
    """
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(4)
    path = pathlib.Path(sanitized, location.library_path().name)
    module = tf.load_op_library(str(path if sanitized else location.library_path()))
    modes = modes.split(",")
    for each in modes:  # has TensorFlow start its threads before memory is limited
        tf.function(tf.matmul, jit_compile=each == "jit")(tf.eye(512), tf.eye(512))
    for seed in range(int(first), int(end)):
        _say("begin", seed)
        mode = modes[seed % len(modes)]
        case = cases.make(seed, mode)
        tensors = [tf.reshape(tf.constant(each.flat), each.shape) for each in _flat(case)]
        if not sanitized:
            _limit(ROOM if case.memory is None else case.memory)
        refusal, faults = judge(module, case, tensors, mode, seed)
        _limit(None)
        _say("end", seed, case.op, refusal, faults)


def _say(*what):
    print(json.dumps(what), flush=True)


def _limit(mebibytes):
    """Lets the process map so many MiB more; None: as many as it likes."""
    soft, hard = resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1]
    if mebibytes is not None:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        soft = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def judge(module, case, tensors, mode, seed):
    """Returns why a case is refused in its mode, or "", and a list of what is wrong with it."""
    faults = []
    run = _runner(module, case)
    eager = _attempt(lambda: run(*tensors), faults)
    if mode == "eager":
        again = _attempt(lambda: run(*tensors), faults)
        faults += _differences("once", eager, "again", again)
        if case.tame and not eager.refusal and seed % COMPARED == 0:
            faults += reference.gaps(case, tensors, eager.outputs)
        return eager.refusal, faults
    specs = _specs(tensors, mode, np.random.default_rng([seed, 1]))
    function = tf.function(run, autograph=False, jit_compile=mode == "jit")
    traced = _attempt(lambda: function.get_concrete_function(*specs), faults)
    once = again = traced
    if not traced.refusal:
        (concrete,) = traced.outputs
        once, again = (_attempt(lambda: concrete(*tensors), faults) for _ in range(2))
        faults += _broken_promises(concrete.outputs, once.outputs)
    # XLA makes no call for an empty result, nor of no images for rows that data decide.
    no_images = "keep" in case.inputs and 0 in case.inputs.get("values", tensors[0]).shape[:1]
    if mode != "jit" or not (_empty(once.outputs) or no_images):
        faults += _differences("eagerly", eager, mode, once)
    faults += _differences("once", once, "again", again)
    return once.refusal, faults


def _flat(case):
    return itertools.chain(*(x if isinstance(x, list) else [x] for x in case.inputs.values()))


def _runner(module, case):
    """Returns a function of the case's tensors, in a row, that calls its op."""
    op = getattr(module, f"tf_deform_{cases.OPS[case.op]}")

    def run(*tensors):
        left = iter(tensors)
        arguments = {
            name: [next(left) for _ in given] if isinstance(given, list) else next(left)
            for name, given in case.inputs.items()
        }
        keep = arguments.pop("keep", None)
        for name in case.rows if keep is not None else []:
            arguments[name] = tf.nest.map_structure(
                lambda given: tf.boolean_mask(given, tf.ensure_shape(keep, [None])), arguments[name]
            )
        return tf.nest.flatten(op(**arguments, **case.attributes))

    return run


def _specs(tensors, mode, rng):
    """Returns what is known of the tensors when a function of them is traced."""
    specs = []
    for tensor in tensors:
        shape = tensor.shape
        if mode == "unknown":
            shape = [None if rng.random() < 0.5 else size for size in shape]
            shape = None if rng.random() < 0.3 else shape
        specs.append(tf.TensorSpec(shape, tensor.dtype))
    return specs


def _attempt(function, faults):
    """Returns the Result of a call; adds to the faults what it must not raise."""
    try:
        made = function()
        outputs = tuple(made) if isinstance(made, list) else (made,)
        return Result(outputs, _digest(outputs))
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return Result(refusal=NO_ROOM)
    except Exception as error:
        reason = _reason(str(error))
        refusal = f"{type(error).__name__}: {reason}"
        if not isinstance(error, ACCEPTED) or not reason:
            faults.append(f"raises {refusal}")
        return Result(refusal=refusal)


def _reason(text):
    """Returns the line of an error that says why, which a graph's errors have behind its trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Graph execution error"):
        lines = [line for line in lines if not line.startswith("[[")][::-1]
    return lines[0] if lines else ""


def _digest(outputs):
    """Returns what stands for the bits of the outputs, NaN's included."""
    digest = hashlib.blake2b()
    for output in outputs:
        if tf.is_tensor(output):
            digest.update(f"{output.dtype.name} {output.shape}".encode())
            if not _empty([output]):  # NumPy does not know every empty shape
                digest.update(output.numpy().reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _empty(outputs):
    return bool(outputs) and all(0 in output.shape for output in outputs)


def _differences(name, result, other_name, other):
    """Returns what two runs of a case do not agree on. Memory may be there for one of them only."""
    if NO_ROOM in (result.refusal, other.refusal):
        return []
    if bool(result.refusal) != bool(other.refusal):
        told = [f"{each.refusal or 'succeeds'}" for each in (result, other)]
        return [f"{name}: {told[0]}; {other_name}: {told[1]}"]
    return [f"{name} and {other_name} bits differ"] if result.digest != other.digest else []


def _broken_promises(promised, outputs):
    return [
        f"an output has shape {output.shape}, promised was {promise.shape}"
        for promise, output in zip(promised, outputs, strict=False)
        if not promise.shape.is_compatible_with(output.shape)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
