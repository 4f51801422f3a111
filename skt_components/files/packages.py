"""Import optional packages; report the versions of Python and of installed packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def import_package(name: str, reason: str, extra: str) -> Any:
    """Import an optional module; the ImportError says why it is needed and which extra to install.

    Example:
        >>> import_package("no_such_package", "reading .xyz files needs no_such_package", "data")
        Traceback (most recent call last):
        ...
        ImportError: reading .xyz files needs no_such_package: pip install "skt-components[data]"
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{reason}: pip install "skt-components[{extra}]"') from error


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
