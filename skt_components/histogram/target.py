"""Histograms of a fixed teacher, computed once for many losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HistogramTarget:
    """Hold histograms and regions of a fixed teacher. A loss makes it by ``precompute`` and takes it as the teacher.

    Example:
        >>> import torch
        >>> from skt_components import SemanticHistogramLoss
        >>> loss, teacher = SemanticHistogramLoss(), torch.rand(1, 3, 32, 32)
        >>> labels = torch.zeros(1, 32, 32, dtype=torch.long)
        >>> target = loss.precompute(teacher, labels=labels, num_regions=1)
        >>> student = torch.rand(1, 3, 32, 32)
        >>> torch.allclose(loss(student, target), loss(student, teacher, labels=labels, num_regions=1))
        True
    """

    counts: Float[Tensor, "b r c n"]
    shape: tuple[int, ...]
    options: dict[str, Any]
    masks: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> HistogramTarget:
        """Return the target on another device."""
        masks, labels = (None if x is None else x.to(device) for x in (self.masks, self.labels))
        return replace(self, counts=self.counts.to(device), masks=masks, labels=labels)

    def check(self, student: Tensor, options: dict[str, Any]) -> None:
        """Raise ValueError unless the target was made for pictures like ``student`` and with these options."""
        if self.options != options:
            names = [name for name in self.options | options if _shown(name, self.options) != _shown(name, options)]
            made, has = (", ".join(_shown(name, given) for name in names) for given in (self.options, options))
            kinds = "" if self.options.keys() == options.keys() else ": HistogramLoss and SemanticHistogramLoss differ"
            raise ValueError(f"the target was made with {made}, the loss has {has}{kinds}")
        if tuple(student.shape) != self.shape:
            raise ValueError(f"student must have the target's shape {self.shape}, got {tuple(student.shape)}")
        if student.device != self.counts.device:
            raise ValueError(f"student and target must be on one device, got {student.device}, {self.counts.device}")


torch.serialization.add_safe_globals([HistogramTarget])  # a file of plain tensors, numbers and names


def _shown(name: str, options: dict[str, Any]) -> str:
    return f"{name}={options[name]!r}" if name in options else f"no {name}"
