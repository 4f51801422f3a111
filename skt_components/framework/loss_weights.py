"""Weights of the loss terms of equations 5 and 14."""

from __future__ import annotations

from dataclasses import dataclass, fields

from skt_components.ops.checks import check_non_negative


@dataclass(frozen=True)
class LossWeights:
    """Weights of eqs. 5 and 14: ``L = L_org + content * L_content + color * L_color + alignment * L_feat``.

    A term with weight 0 is not computed.

    Args:
        content_weight: lambda_1 of eq. 14.
        color_weight: lambda_2 of eq. 14, for histograms divided by the pixel count.
        alignment_weight: weight of L_feat, 1 in eq. 14.
        perceptual_weight: lambda of eq. 5, inside L_content.

    Raises:
        ValueError: a weight is negative or not finite.

    Example:
        >>> LossWeights.paper().color_weight
        100.0
    """

    content_weight: float
    color_weight: float
    alignment_weight: float
    perceptual_weight: float

    def __post_init__(self) -> None:
        for field in fields(self):
            check_non_negative(field.name, getattr(self, field.name))

    @classmethod
    def paper(cls) -> LossWeights:
        """Return the paper's weights literally: lambda = 1e-2, lambda_1 = 1e-3, lambda_2 = 100."""
        return cls(content_weight=1e-3, color_weight=100.0, alignment_weight=1.0, perceptual_weight=1e-2)

    @classmethod
    def recommended(cls, joint: bool = True) -> LossWeights:
        """Return the default; the page "Does it boost?" has the evidence.

        Args:
            joint: True if gradients pass between network and teacher. Otherwise the content weight is 0.1: with a
                weight near 1, the network would stop between the ground truth and the teacher.
        """
        return cls(1.0 if joint else 0.1, color_weight=0.01, alignment_weight=1.0, perceptual_weight=0.0)
