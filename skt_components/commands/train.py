"""The training loop from a shell: ``skt train``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from skt_components.files.atomic import write_text

_FILE = "train_full.py"


def train(options: Sequence[str]) -> None:
    """Train a network in the framework. --eject FILE writes the loop to a file that you can change.

    Args:
        options: options of the loop, or ``--eject FILE``.

    Raises:
        FileExistsError: the file to write exists.
        SystemExit: the loop ended with an error, or the options are wrong.
    """
    parser = argparse.ArgumentParser("skt train", add_help=False, allow_abbrev=False)
    parser.add_argument("--eject", type=Path)
    own, others = parser.parse_known_args(options)
    if own.eject is None:
        _run(others)
    elif others:
        parser.exit(2, f"skt train: --eject FILE takes no other options, got {' '.join(others)}\n")
    elif own.eject.exists():
        raise FileExistsError(f"{own.eject} exists: choose another name")
    else:
        write_text(own.eject, loop_file().read_text(encoding="utf-8"))
        print(f"wrote {own.eject}: python {own.eject} trains as skt train does")


def loop_file() -> Path:
    """Return the training loop: beside this file in an installed package, among the examples in a checkout."""
    installed = Path(__file__).with_name(_FILE)
    return installed if installed.is_file() else Path(__file__).parents[2] / "examples" / _FILE


def _run(options: Sequence[str]) -> None:
    if any(option in ("-h", "--help") for option in options):
        print("skt train --eject FILE writes the training loop to your own file. Options of the loop:\n")
    path, before = str(loop_file()), sys.argv
    sys.argv = [path, *options]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
