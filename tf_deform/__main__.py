"""Builds the compiled library, or says what is there.

python -m tf_deform build [--cuda] [--force] | info
"""

import argparse
import signal
import subprocess
import sys

import keras
import tensorflow as tf

import tf_deform
from tf_deform import building
from tf_deform.compiled import loading, location


def main(arguments=None):
    """Runs the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m tf_deform",
        description="Builds the compiled library, or says what is there.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="compile the library for the installed TensorFlow")
    build.add_argument("--cuda", action="store_true", help="add kernels for NVIDIA GPUs")
    build.add_argument("--force", action="store_true", help="build also what is there and whole")
    commands.add_parser("info", help="say which versions and which library are there")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            building.build(options.cuda, options.force)
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
    print(f"library: {location.library_path() if status.available else 'none'}")
    if status.available:
        print(f"devices: {', '.join(status.devices)} ({loading.instruction_set()})")
        print(f"XLA: {'no' if loading.why_not_xla() else 'yes'}")
    if status.reason:
        print(f"note: {status.reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))  # cleaning up first
    main()
