"""The mean of a metric over pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class MeanMetric:
    """Average a metric's values over pictures.

    Each picture counts once, independent of its batch. Errors are not averaged before the logarithm of a PSNR.
    :meth:`update` reads the values, which waits for a CUDA device. Call it in evaluation, not in every training step.

    Args:
        name: the metric's name, used in error messages and ``repr``.

    Example:
        >>> mean = MeanMetric("psnr")
        >>> mean.update(torch.tensor([30.0, 40.0]))
        >>> mean.update(torch.tensor([50.0]))
        >>> mean.compute(), mean.count
        (40.0, 3)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self.count = 0
        self._total = 0.0

    def update(self, values: Float[Tensor, " b"] | Float[Tensor, ""] | float) -> None:
        """Add the values of some pictures.

        Args:
            values: ``(B,)``, one value per picture, or one number for one picture.

        Raises:
            ValueError: a value is NaN, or ``values`` has more than one axis.
        """
        batch = torch.as_tensor(values).detach()
        if batch.device.type == "meta":
            raise ValueError(f"values of {self.name} must be numbers, got a tensor on the meta device")
        batch = batch.to("cpu", torch.float64)
        if batch.ndim > 1:
            raise ValueError(
                f"values of {self.name} must be one per picture, shape (B,), got shape {tuple(batch.shape)}"
            )
        if batch.isnan().any():
            first, last = self.count, self.count + batch.numel() - 1
            raise ValueError(f"values of {self.name} must not be NaN, got NaN in pictures {first} to {last}")
        self._total += batch.sum().item()
        self.count += batch.numel()

    def compute(self) -> float:
        """Return the mean over all pictures so far.

        Raises:
            ValueError: no picture was added.
        """
        if not self.count:
            raise ValueError(f"{self.name} needs at least one picture before its mean, got none")
        return self._total / self.count

    def __repr__(self) -> str:
        return f"MeanMetric({self.name!r}, count={self.count})"
