"""Run the example scripts in this process."""

from __future__ import annotations

import gc
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True, scope="session")
def _packages_are_no_garbage() -> None:
    """Import what the scripts import, and exclude it from the collection of garbage that ends every training."""
    for name in ("accelerate", "timm", "tyro"):
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _call_script(name: str, arguments: Sequence[object]) -> None:
    path = str(EXAMPLES / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            if "accelerate.state" in sys.modules:  # the next run may have another precision
                sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def call_script() -> Callable[[str, Sequence[object]], None]:
    """Run ``examples/NAME`` in this process, as its command does: ``call_script(name, arguments)``.

    It ends with SystemExit if the command does; its message or number is the command's.
    """
    return _call_script


@pytest.fixture(scope="session")
def train() -> Callable[[Sequence[object]], None]:
    """Run ``examples/train_full.py`` in this process: ``train(arguments)``."""
    return partial(_call_script, "train_full.py")
