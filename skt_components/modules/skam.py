"""Semantic knowledge alignment module (eqs. 11 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.ops.checks import (
    can_read_values,
    check_batch,
    check_count,
    check_fraction,
    check_sides,
    check_tensor,
    float_dtype,
)
from skt_components.ops.masking import complementary_masks, mix_features


class SKAMOutput(NamedTuple):
    """Output of :class:`SKAM`."""

    loss: Float[Tensor, ""]
    """Alignment loss of eq. 12."""
    enhanced: Float[Tensor, "b c h w"]
    """Enhanced feature F_E of eq. 11, in the teacher's feature space."""
    mask: Float[Tensor, "b l h w"]
    """The mask I^M: 1 where the latent came from the teacher."""


class SKAM(nn.Module):
    """Mix the features of student and teacher by complementary masks, and decode the mixture.

    ``F_E = Decoder(Enc_S(F_S) * (1 - I) + Enc_T(F_T) * I)`` and ``loss = MSE(F_E, F_T)``. Each call draws a new mask
    with one value for every element of the latent. The teacher's features are a constant, so the loss trains the
    student, both encoders and the decoder. ``detach_teacher=False`` changes this.

    Args:
        student_channels: channels of the student's feature.
        teacher_channels: channels of the teacher's feature.
        latent_channels: channels of the shared latent space.
        mask_ratio: share of the latent taken from the teacher, in [0, 1].

    Raises:
        ValueError: a width is not a whole number >= 1, or ``mask_ratio`` is outside [0, 1].

    Example:
        >>> import torch
        >>> skam = SKAM(student_channels=16, teacher_channels=32)
        >>> out = skam(torch.rand(1, 16, 8, 8), torch.rand(1, 32, 16, 16))
        >>> out.enhanced.shape
        torch.Size([1, 32, 16, 16])

    Reference:
        Eqs. 11-12 of the paper.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, latent_channels: int = 64, mask_ratio: float = 0.5
    ) -> None:
        super().__init__()
        check_count("student_channels", student_channels, 1)
        check_count("teacher_channels", teacher_channels, 1)
        check_count("latent_channels", latent_channels, 1)
        check_fraction("mask_ratio", mask_ratio)
        self.student_channels, self.teacher_channels, self.mask_ratio = student_channels, teacher_channels, mask_ratio
        self.student_encoder = _two_convs(student_channels, latent_channels, latent_channels)
        self.teacher_encoder = _two_convs(teacher_channels, latent_channels, latent_channels)
        self.decoder = _two_convs(latent_channels, latent_channels, teacher_channels)

    def forward(
        self,
        student: Float[Tensor, "b s _h _w"],
        teacher: Float[Tensor, "b t h w"],
        *,
        mask: Shaped[Tensor, "b l h w"] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        detach_teacher: bool = True,
    ) -> SKAMOutput:
        """Return the alignment loss and the enhanced feature.

        Args:
            student: the student's feature. If it is larger than the teacher's, it is averaged to that size. If it is
                smaller, its latent is resized bilinearly.
            teacher: the teacher's feature.
            mask: a mask instead of a random one, in the shape of the latent; bool, or floating-point 0 and 1.
            generator: random generator for the mask, or one generator for each sample of the batch.
            detach_teacher: do not train the teacher.

        Raises:
            TypeError: a feature is not a floating-point tensor, or ``mask`` is neither bool nor floating-point.
            ValueError: the batch is empty, the batch sizes differ, or ``mask`` has another shape than the latent, or
                other values than 0 and 1. The values are checked only on the CPU, outside a compiled graph.
        """
        check_tensor("student", student, ndim=4, layout="(B, C, H, W)", channels=self.student_channels)
        check_tensor("teacher", teacher, ndim=4, layout="(B, C, H, W)", channels=self.teacher_channels)
        if student.shape[0] != teacher.shape[0]:
            raise ValueError(
                f"student and teacher must have one batch size, got {tuple(student.shape)}, {tuple(teacher.shape)}"
            )
        check_batch("student", student)  # the loss of an empty batch would be NaN
        check_sides("student", student)
        check_sides("teacher", teacher)
        teacher = teacher.detach() if detach_teacher else teacher
        size = (teacher.shape[-2], teacher.shape[-1])
        if tuple(student.shape[-2:]) != size and student.shape[-2] >= size[0] and student.shape[-1] >= size[1]:
            student = F.adaptive_avg_pool2d(student, size)  # before the convolutions, which then cost less
        latent_student, latent_teacher = self.student_encoder(student), self.teacher_encoder(teacher)
        if tuple(latent_student.shape[-2:]) != size:
            latent_student = F.interpolate(latent_student, size=size, mode="bilinear", align_corners=False)
        if mask is None:
            mask, _ = complementary_masks(
                latent_teacher.shape,
                self.mask_ratio,
                generator=generator,
                device=latent_teacher.device,
                dtype=latent_teacher.dtype,
            )
        else:
            _check_mask(mask, latent_teacher)
        mask = mask.to(latent_teacher.dtype)
        enhanced = self.decoder(mix_features(latent_student, latent_teacher, mask))
        dtype = float_dtype(teacher)
        return SKAMOutput(F.mse_loss(enhanced.to(dtype), teacher.to(dtype)), enhanced, mask)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"mask_ratio={self.mask_ratio}"


def _check_mask(mask: Tensor, latent: Tensor) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool or floating-point tensor (B, L, H, W), got {kind}")
    if mask.shape != latent.shape:
        raise ValueError(f"mask must be {tuple(latent.shape)}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and can_read_values(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"mask must hold 0 and 1, got values from {mask.min():g} to {mask.max():g}")


def _two_convs(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, out_channels, 3, padding=1),
    )
