"""Progress bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_SECONDS = 60  # between lines


def is_terminal() -> bool:
    """Return True if standard error is a terminal, where a progress bar does not fill a log file."""
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(items: Iterable[T], title: str, unit: str, show: bool = True) -> Iterable[T]:
    """Return the items; show a bar with tqdm if standard error is a terminal, else print a line a minute to it."""
    if not show or sys.stderr is None:
        return items
    if not is_terminal():
        return _with_lines(items, title, unit)
    if not importlib.util.find_spec("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, title, unit=unit)


def _with_lines(items: Iterable[T], title: str, unit: str) -> Iterator[T]:
    total = f" of {len(items)}" if isinstance(items, Sized) else ""
    printed = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - printed >= _SECONDS:
            printed = time.monotonic()
            print(f"{title}: {done}{total} ({unit})", file=sys.stderr, flush=True)
        yield item
