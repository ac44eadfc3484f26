"""Builds the compiled library, checks it, or says what is there.

python -m tf_deform build [--cuda] [--force] | check [--json] | info
"""

import argparse
import signal
import subprocess
import sys

import keras
import tensorflow as tf

import tf_deform
from tf_deform import building, checking
from tf_deform.compiled import loading, location

CHECK = """
Compares each op of the compiled library and its gradients with the portable form in float64, in
each dtype, on the CPU and each GPU, with and without XLA, and times both. The CUDA kernels are used
on a card only once this has passed there. Without a library the portable form is compared with
itself in float64. Exit status: 0 if nothing is wrong, also where there is no library; 1 if
something is, a library that is damaged or does not load among it.
"""


def main(arguments=None):
    """Runs the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m tf_deform",
        description="Builds the compiled library, checks it, or says what is there.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="compile the library for the installed TensorFlow")
    build.add_argument("--cuda", action="store_true", help="add kernels for NVIDIA GPUs")
    build.add_argument("--force", action="store_true", help="build also what is there and whole")
    check = commands.add_parser(
        "check",
        help="prove the operators on this machine, and so let GPUs use them",
        description=CHECK,
    )
    check.add_argument("--json", action="store_true", help="print JSON in the place of a table")
    commands.add_parser("info", help="say which versions and which library are there")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            building.build(options.cuda, options.force)
            if options.cuda and tf.config.list_physical_devices("GPU"):
                anew = [sys.executable, "-m", "tf_deform", "check"]  # which finds what is built now
                sys.exit(subprocess.run(anew).returncode)
        elif options.command == "check":
            sys.exit(checking.check(options.json))
        else:
            info()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"The library was not built: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


def info():
    """Prints the versions, and the state of the compiled library."""
    status = tf_deform.compiled_status()
    print(f"tf_deform {tf_deform.__version__}")
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}")
    there = loading.load().library is not None  # and perhaps not to be used
    print(f"library: {location.library_path() if there else 'none'}")
    if status.available:
        print(f"devices: {', '.join(status.devices)} ({loading.instruction_set()})")
        print(f"XLA: {'no' if loading.why_not_xla() else 'yes'}")
    if status.reason:
        print(f"note: {status.reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))  # cleaning up first
    main()
