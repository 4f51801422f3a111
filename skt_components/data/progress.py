"""Progress bar on a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: Iterable[T], title: str, unit: str, show: bool = True) -> Iterable[T]:
    """Return the items, with a bar if standard error is a terminal and tqdm is installed."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if not (show and terminal and importlib.util.find_spec("tqdm")):
        return items
    from tqdm import tqdm

    return tqdm(items, title, unit=unit)
