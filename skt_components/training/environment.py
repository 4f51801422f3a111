"""Where and with what a run was made: versions, devices, command line, and the state of the code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from skt_components.files.atomic import atomic_write, write_text

_PACKAGES = ("skt-components", "torch", "numpy", "numba", "timm", "accelerate", "safetensors")
_DIFF_LIMIT = 200_000  # bytes


def describe_environment() -> dict[str, Any]:
    """Return what made a run, as plain values: versions, devices, command line, date, and the code's state in git.

    ``"git"`` is that of the repository that the running script is in, wherever it was started from, or else that of
    this package: commit, branch, whether tracked files differ from the commit, and ``git diff HEAD`` up to 200 kB. It
    is None without git, or where neither is in a repository. What a repository ignores is not in it.

    Example:
        >>> sorted(describe_environment())
        ['arguments', 'cuda', 'cudnn', 'date', 'devices', 'git', 'packages', 'platform', 'processes', 'processors', \
'python', 'threads']
    """
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "arguments": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processors": f"{os.cpu_count()} x {_processor()}",
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # as torchrun and accelerate launch say it
        "git": _git_state(),
    }


def write_environment(folder: str | os.PathLike[str]) -> None:
    """Add :func:`describe_environment` to the list in ``environment.json`` of a run's folder, and write the diff.

    The first entry is the run's beginning, every further one where it went on; none is written over. The diff of
    files that differ from the commit is in ``git.diff``, another one of a later entry in ``git-2.diff`` and so on;
    the entry has the name.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: there is an ``environment.json`` that this function did not write.
    """
    path = Path(folder) / "environment.json"
    runs = read_environments(path.parent)
    entry = describe_environment()
    git = entry["git"]
    if git is not None and git["diff"]:
        git["diff"] = _keep_diff(path.parent, git["diff"])
    write_text(path, json.dumps([*runs, entry], indent=1) + "\n")


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's ``environment.json``; none where there is no such file.

    Raises:
        ValueError: the file is not what :func:`write_environment` writes.
    """
    path = folder / "environment.json"
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not what a run writes; move it away: {error}") from error
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError(f"{path} is not what a run writes; move it away: expected a list of objects")
    return runs


def _keep_diff(folder: Path, diff: str) -> str:
    """Write the diff unless it is there, and return its file's name."""
    content, number = diff.encode("utf-8", "surrogateescape"), 1
    path = folder / "git.diff"
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = folder / f"git-{number}.diff"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return path.name


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the processor's name, which Python knows on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _code_folder() -> Path | None:
    """Return the folder of the script, or else of the package, that a repository holds."""
    script = getattr(sys.modules["__main__"], "__file__", None)  # none in a notebook
    for file in (script, __file__):
        if file is not None and (folder := Path(file).resolve().parent).is_dir():
            inside = _git(folder, "rev-parse", "--is-inside-work-tree") == "true\n"
            if inside and _git(folder, "check-ignore", "--quiet", ".") is None:
                return folder
    return None


def _git_state() -> dict[str, Any] | None:
    folder = _code_folder()
    if folder is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    # Whatever the user's settings say: no colours, no other program, all of the repository.
    diff = _git(folder, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "HEAD") or ""
    if len(content := diff.encode("utf-8", "surrogateescape")) > _DIFF_LIMIT:
        kept = content[:_DIFF_LIMIT].decode("utf-8", "surrogateescape")
        diff = f"{kept}\n[cut here: {_DIFF_LIMIT} of {len(content)} bytes]\n"
    return {
        "commit": (_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip()
        or None,  # none before the first
        "branch": (_git(folder, "symbolic-ref", "--quiet", "--short", "HEAD") or "").strip()
        or None,  # none when detached
        "dirty": None if changes is None else bool(changes),
        "diff": diff,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None: a run must not fail over a note about its code."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # leave the repository's index alone
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=20,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape")  # files of any encoding, byte for byte
