"""A bank without features, for a teacher without semantic knowledge."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.priors import SemanticPriors, priors_from_labels
from skt_components.ops.checks import check_tensor


class EmptyBank(nn.Module):
    """Return no features and one region per picture: the ablation "without FastSAM".

    A teacher for it (:class:`SPGRM` with ``prior_channels=()``) is a plain second stage, and L_color compares the
    histograms of whole pictures.

    Example:
        >>> priors = EmptyBank()(torch.rand(1, 3, 4, 4))
        >>> len(priors.features), priors.labels.unique().tolist(), priors.valid.tolist()
        (0, [0], [[True]])

    Reference:
        Table 3 of the paper.
    """

    channels: tuple[int, ...] = ()
    reduction: tuple[int, ...] = ()
    fingerprint = "no-knowledge"

    @torch.no_grad()
    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Return no features, and the whole of each picture ``(B, 3, H, W)`` as region 0."""
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        return priors_from_labels([], torch.zeros_like(tonemapped[:, 0], dtype=torch.long), 1)
