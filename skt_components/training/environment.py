"""Versions, devices, command line and state of the code of a run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from skt_components.files.atomic import atomic_write, write_text
from skt_components.files.packages import package_versions

_PACKAGES = ("skt-components", "torch", "numpy", "numba", "timm", "accelerate", "safetensors")
_MOST_DIFF = 200_000  # bytes


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, command line, date and the state of the code in git, as plain values.

    ``"git"`` describes the repository of the running script, or else of this package: commit, branch, whether tracked
    files differ from the commit, and ``git diff HEAD`` up to 200 kB. It is None without git, without a repository, or
    in a folder that the repository ignores.

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
        "packages": package_versions(_PACKAGES),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processors": f"{os.cpu_count()} x {_processor()}",
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # set by torchrun and accelerate
        "git": _git_state(),
    }


def write_environment(folder: str | os.PathLike[str]) -> None:
    """Append :func:`describe_environment` to the list in ``environment.json`` of a run's folder.

    The first entry describes the first start of the run. Each resume adds an entry. The diff of the first start is
    written to ``git.diff``, and a different diff of a later start to ``git-2.diff`` and so on. The entry has the name
    of the file.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: ``environment.json`` is not a file of this function.
    """
    path = Path(folder) / "environment.json"
    starts = read_environments(path.parent)
    entry = describe_environment()
    git = entry["git"]
    if git is not None and git["diff"]:
        git["diff"] = _write_diff(path.parent, git["diff"])
    write_text(path, json.dumps([*starts, entry], indent=1) + "\n")


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's ``environment.json``; an empty list without the file.

    Raises:
        ValueError: the file is not a file of :func:`write_environment`.
    """
    path = folder / "environment.json"
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the file of a run, move it away: {error}") from error
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{path} is not the file of a run, move it away: expected a list of objects")
    return starts


def _write_diff(folder: Path, diff: str) -> str:
    """Write the diff unless a file has it already, and return the file's name."""
    content, number = diff.encode("utf-8", "surrogateescape"), 1
    path = folder / "git.diff"
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = folder / f"git-{number}.diff"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return path.name


def _processor() -> str:
    found = re.search(r"Model name:\s*(\S.*)", collect_env.get_cpu_info(collect_env.run) or "")
    return found[1].strip() if found else platform.processor() or platform.machine()


def _code_folder() -> Path | None:
    """Return the folder of the script, or else of the package, that a repository contains."""
    script = getattr(sys.modules["__main__"], "__file__", None)  # None in a notebook
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
    # Independent of the user's settings: no colors, no other program, the whole repository.
    diff = _git(folder, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "HEAD") or ""
    if len(content := diff.encode("utf-8", "surrogateescape")) > _MOST_DIFF:
        kept = content[:_MOST_DIFF].decode("utf-8", "surrogateescape")
        diff = f"{kept}\n[cut here: {_MOST_DIFF} of {len(content)} bytes]\n"
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")  # None before the first commit
    branch = _git(folder, "symbolic-ref", "--quiet", "--short", "HEAD")  # None for a detached head
    return {
        "commit": (commit or "").strip() or None,
        "branch": (branch or "").strip() or None,
        "dirty": None if changes is None else bool(changes),
        "diff": diff,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None: a run must not fail because of a note about its code."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # do not touch the repository's index
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
    return done.stdout.decode("utf-8", "surrogateescape")  # keeps files of any encoding byte for byte
