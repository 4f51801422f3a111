"""Versions of Python and of installed packages."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

import numpy as np
import torch


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name.

    Example:
        >>> sorted(package_versions(["torch", "no-such-package"]))
        ['torch']
    """
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on: this library, torch, NumPy and Python.

    Example:
        >>> sorted(library_versions())
        ['numpy', 'python', 'skt_components', 'torch']
    """
    own = package_versions(["skt-components"]).get("skt-components", "not installed")
    torch_version = str(torch.__version__)
    return {"skt_components": own, "torch": torch_version, "numpy": np.__version__, "python": platform.python_version()}
