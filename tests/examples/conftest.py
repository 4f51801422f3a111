"""Run the example scripts, as commands and in this process."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run_script(
    name: str, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``examples/NAME`` in a process of its own: ``run_script(name, *arguments, cwd=, env=, timeout=)``."""
    return _run_script


@pytest.fixture
def call_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Sequence[object]], None]:
    """Run ``examples/NAME`` in this process, as its command does: ``call_script(name, arguments)``.

    It ends with SystemExit if the command does; its message or number is the command's.
    """

    def call(name: str, arguments: Sequence[object]) -> None:
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return call


@pytest.fixture
def train(call_script: Callable[[str, Sequence[object]], None]) -> Callable[[Sequence[object]], None]:
    """Run ``examples/train_full.py`` in this process: ``train(arguments)``."""
    return lambda arguments: call_script("train_full.py", arguments)
