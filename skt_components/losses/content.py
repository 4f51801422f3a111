"""Content loss: pixels and, optionally, perceptual features (eq. 5)."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops.checks import (
    at_least_float32,
    check_non_negative,
    check_not_empty,
    check_same_shape,
    check_tensor,
)


def content_loss(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"],
    *,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    perceptual_weight: float = 1e-2,
) -> Float[Tensor, ""]:
    """Compute ``mean|student - teacher| + perceptual_weight * perceptual(student, teacher)`` (eq. 5, norms as means).

    Args:
        student: tone-mapped picture T(H_in) of the reconstruction network.
        teacher: refined picture of the SPGRM.
        perceptual: the feature term, such as a :class:`PerceptualLoss`; None: no feature term.
        perceptual_weight: lambda of eq. 5, >= 0.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ, or the weight is negative.

    Example:
        >>> import torch
        >>> content_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """
    check_tensor("student", student)
    check_tensor("teacher", teacher)
    check_same_shape("student", student, "teacher", teacher)
    check_not_empty("student", student)
    check_non_negative("perceptual_weight", perceptual_weight)
    pixels = (at_least_float32(student) - at_least_float32(teacher)).abs().mean()
    if perceptual is None or perceptual_weight == 0:
        return pixels
    return pixels + perceptual_weight * perceptual(student, teacher)


class ContentLoss(nn.Module):
    """Compute :func:`content_loss` (eq. 5) with fixed options.

    Example:
        >>> import torch
        >>> ContentLoss()(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """

    def __init__(self, perceptual: nn.Module | None = None, perceptual_weight: float = 1e-2) -> None:
        super().__init__()
        check_non_negative("perceptual_weight", perceptual_weight)
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``student`` against ``teacher``, both ``(B, C, H, W)``."""
        return content_loss(student, teacher, perceptual=self.perceptual, perceptual_weight=self.perceptual_weight)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"perceptual_weight={self.perceptual_weight}"
