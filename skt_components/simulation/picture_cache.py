"""Decoded pictures, the most recently used ones, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


class PictureCache:
    """Keeps the pictures used last and forgets the oldest beyond the budget; pickles without them."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.clear()

    def clear(self) -> None:
        """Forget every picture."""
        self._pictures: OrderedDict[Path, Tensor] = OrderedDict()
        self.bytes = 0

    def __getstate__(self) -> dict[str, object]:
        return {"_budget": self._budget}

    def __setstate__(self, state: dict[str, int]) -> None:
        self._budget = state["_budget"]
        self.clear()

    def get(self, path: Path, load: Callable[[Path], Tensor]) -> Tensor:
        """Return the kept picture or what ``load`` makes; one larger than the whole budget is never kept."""
        if path in self._pictures:
            self._pictures.move_to_end(path)
            return self._pictures[path]
        picture = load(path)
        size = picture.nbytes
        if size <= self._budget:
            while self.bytes + size > self._budget:
                self.bytes -= self._pictures.popitem(last=False)[1].nbytes
            self._pictures[path] = picture
            self.bytes += size
        return picture
