"""Reconstruction loss in the mu-law domain."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops._checks import check_positive, check_same_shape, check_tensor
from skt_components.ops.transfer import mu_law


def mu_l1_loss(
    prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, mu: float = 5000.0, peak: float = 1.0
) -> Float[Tensor, ""]:
    """Mean absolute difference after mu-law, the usual L_org of HDR reconstruction networks.

    Args:
        prediction: linear HDR.
        target: linear HDR, same shape.
        mu: amount of compression.
        peak: the linear value that maps to 1 (1 for sRGB data, 16 for BracketIRE).

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes differ, or ``mu`` or ``peak`` is not above zero.

    Example:
        >>> import torch
        >>> mu_l1_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """
    check_tensor("prediction", prediction)
    check_tensor("target", target)
    check_same_shape("prediction", prediction, "target", target)
    check_positive("peak", peak)
    return (mu_law(prediction / peak, mu) - mu_law(target / peak, mu)).abs().mean()


class MuL1Loss(nn.Module):
    """Mean absolute difference after mu-law; options of :func:`mu_l1_loss`.

    Example:
        >>> MuL1Loss(peak=16.0)
        MuL1Loss(mu=5000.0, peak=16.0)
    """

    def __init__(self, mu: float = 5000.0, peak: float = 1.0) -> None:
        super().__init__()
        check_positive("mu", mu)
        check_positive("peak", peak)
        self.mu, self.peak = mu, peak

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of linear ``prediction`` against linear ``target``."""
        return mu_l1_loss(prediction, target, mu=self.mu, peak=self.peak)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"mu={self.mu}, peak={self.peak}"
