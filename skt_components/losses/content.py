"""Content loss: pixels and, optionally, perceptual features (eq. 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops._checks import check_choice, check_same_shape, check_tensor

NORMS = ("l1", "l2")


def content_loss(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"],
    *,
    norm: str = "l1",
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    perceptual_weight: float = 1e-2,
) -> Float[Tensor, ""]:
    """``mean|student - teacher| + perceptual_weight * perceptual(student, teacher)`` (eq. 5, norms as means).

    With ``norm="l2"`` the first term is each picture's root mean square difference, averaged over the batch: pixels
    pull in proportion to how far they are off, all of a picture's together as strongly as with "l1".

    Args:
        student: tone-mapped picture T(H_in) of the reconstruction network.
        teacher: refined picture of the SPGRM, same shape.
        norm: of the pixels' differences, "l1", which is the paper's, or "l2".
        perceptual: the feature term, such as a :class:`PerceptualLoss`; left out when None.
        perceptual_weight: lambda of eq. 5, >= 0.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ, the weight is negative, or the norm is unknown.

    Example:
        >>> import torch
        >>> content_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """
    check_tensor("student", student)
    check_tensor("teacher", teacher)
    check_same_shape("student", student, "teacher", teacher)
    check_choice("norm", norm, NORMS)
    if perceptual_weight < 0:
        raise ValueError(f"perceptual_weight must be >= 0, got {perceptual_weight!r}")
    difference = student - teacher
    if norm == "l1":
        pixels = difference.abs().mean()
    else:  # whose gradient at 0 is 0, not that of a square root
        pixels = torch.linalg.vector_norm(difference.flatten(1), dim=1).mean() / difference[0].numel() ** 0.5
    if perceptual is None or perceptual_weight == 0:
        return pixels
    return pixels + perceptual_weight * perceptual(student, teacher)


class ContentLoss(nn.Module):
    """Pixel and perceptual distance of two tone-mapped pictures (eq. 5); options of :func:`content_loss`.

    Example:
        >>> import torch
        >>> ContentLoss()(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """

    def __init__(self, perceptual: nn.Module | None = None, perceptual_weight: float = 1e-2, norm: str = "l1") -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        if perceptual_weight < 0:
            raise ValueError(f"perceptual_weight must be >= 0, got {perceptual_weight!r}")
        self.perceptual, self.perceptual_weight, self.norm = perceptual, perceptual_weight, norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``student`` against ``teacher``, both ``(B, C, H, W)``."""
        return content_loss(
            student, teacher, norm=self.norm, perceptual=self.perceptual, perceptual_weight=self.perceptual_weight
        )

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"perceptual_weight={self.perceptual_weight}, norm={self.norm!r}"


def bound_teacher(
    teacher: Float[Tensor, "b c h w"], student: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Return the teacher's picture, each value moved to the nearest one between the student's and the ground truth.

    A student that follows it is never led away from the truth, and never past it: where the teacher is wrong about the
    direction there is nothing to follow. So, at any weight, a distance to it cannot pull against a distance to the
    truth.

    Args:
        teacher: refined picture.
        student: picture that learns, same shape; it gets no gradient from here.
        target: ground truth in the same domain, same shape.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ.

    Example:
        >>> student, target = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
        >>> bound_teacher(torch.tensor([[[[-0.5, 0.25, 1.5]]]]), student, target)
        tensor([[[[0.0000, 0.2500, 1.0000]]]])
    """
    for name, picture in (("teacher", teacher), ("student", student), ("target", target)):
        check_tensor(name, picture)
        check_same_shape(name, picture, "teacher", teacher)
    student, target = student.detach(), target.detach()
    return teacher.clamp(torch.minimum(student, target), torch.maximum(student, target))
