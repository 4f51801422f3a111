"""Run an engine of the histogram, or plain torch in the place of one that does not work."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from skt_components.histogram import torch_engine
from skt_components.histogram.kernels import RECURRENCE, Bins
from skt_components.ops.checks import warn_caller

_broken: set[str] = set()  # engines that failed in this process


def run_engine(function: str, engine: str, required: bool, *arguments: Any) -> Tensor:
    """Return ``function(*arguments)`` of an engine, of which the last argument is :class:`Bins`.

    numba and Triton can fail: with another NumPy, without a compiler, or with a damaged cache. If the engine fails and
    is not ``required``, there is one warning, and plain torch computes all later histograms.

    Raises:
        RuntimeError: the engine is ``required`` and fails.
    """
    bins: Bins = arguments[-1]
    narrow = engine == "numba" and bins.sigma < RECURRENCE
    if engine == "torch" or narrow or (engine in _broken and not required):
        return getattr(torch_engine, function)(*arguments)
    try:
        module = importlib.import_module(f"skt_components.histogram.{engine}_engine")
        return getattr(module, function)(*arguments)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        problem = f"{engine} does not work: {type(error).__name__}: {error}{_cache_hint(engine)}"
        if required:
            raise RuntimeError(f'backend="{engine}": {problem}') from error
    result = getattr(torch_engine, function)(*arguments)
    if engine not in _broken:
        _broken.add(engine)
        warn_caller(f"histograms are computed by torch, several times slower: {problem}")
    return result


def _cache_hint(engine: str) -> str:
    """Return a hint at the folder of compiled code, which may be damaged."""
    if engine == "triton":
        folder = os.environ.get("TRITON_CACHE_DIR") or os.path.expanduser("~/.triton/cache")
    else:
        try:
            folder = importlib.import_module("skt_components.histogram.numba_engine").cache_folder()
        except Exception:  # it did not even load
            return ""
    return f" (if its cache is damaged, delete the folder {folder})"
