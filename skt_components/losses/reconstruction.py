"""Reconstruction losses in the mu-law domain."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops.checks import (
    at_least_float32,
    check_non_negative,
    check_not_empty,
    check_positive,
    check_same_shape,
    check_tensor,
)
from skt_components.ops.transfer import mu_law


def mu_l1_loss(
    prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, mu: float = 5000.0, peak: float = 1.0
) -> Float[Tensor, ""]:
    """Compute the mean absolute difference after mu-law, the usual L_org of HDR reconstruction networks.

    Args:
        prediction, target: linear HDR.
        mu: amount of compression.
        peak: the linear value that maps to 1 (1 for sRGB data, 16 for BracketIRE).

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes differ, or ``mu`` or ``peak`` is not above zero.

    Example:
        >>> import torch
        >>> mu_l1_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """
    return _difference(prediction, target, mu, peak).abs().mean()


def mu_rms_loss(
    prediction: Float[Tensor, "b *shape"], target: Float[Tensor, "b *shape"], *, mu: float = 5000.0, peak: float = 1.0
) -> Float[Tensor, ""]:
    """Compute the root mean square difference after mu-law of each picture, averaged over the batch.

    PSNR-mu is ``-20 log10`` of one picture's loss. The gradient is proportional to each error, and 0 if a picture
    equals its target. Arguments and errors are as in :func:`mu_l1_loss`. The first axis is the batch.

    Example:
        >>> import torch
        >>> mu_rms_loss(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4))
        tensor(0.5000)
    """
    difference = _difference(prediction, target, mu, peak)
    if difference.ndim < 2:
        raise ValueError(f"prediction must be (B, ...), a batch of pictures, got shape {tuple(prediction.shape)}")
    difference = difference.flatten(1)
    return torch.linalg.vector_norm(difference, dim=1).mean() / difference.shape[1] ** 0.5


def _difference(prediction: Tensor, target: Tensor, mu: float, peak: float) -> Tensor:
    check_tensor("prediction", prediction)
    check_tensor("target", target)
    check_same_shape("prediction", prediction, "target", target)
    check_not_empty("prediction", prediction)
    check_positive("peak", peak)
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    return mu_law(prediction / peak, mu) - mu_law(target / peak, mu)


class MuL1Loss(nn.Module):
    """Compute :func:`mu_l1_loss` with fixed options, plus ``rms_weight`` times :func:`mu_rms_loss`.

    Example:
        >>> MuL1Loss(peak=16.0)
        MuL1Loss(mu=5000.0, peak=16.0)
    """

    def __init__(self, mu: float = 5000.0, peak: float = 1.0, rms_weight: float = 0.0) -> None:
        super().__init__()
        check_positive("mu", mu)
        check_positive("peak", peak)
        check_non_negative("rms_weight", rms_weight)
        self.mu, self.peak, self.rms_weight = mu, peak, rms_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of linear ``prediction`` against linear ``target``."""
        loss = mu_l1_loss(prediction, target, mu=self.mu, peak=self.peak)
        if self.rms_weight:
            loss = loss + self.rms_weight * mu_rms_loss(prediction, target, mu=self.mu, peak=self.peak)
        return loss

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        rms = f", rms_weight={self.rms_weight}" if self.rms_weight else ""
        return f"mu={self.mu}, peak={self.peak}{rms}"
