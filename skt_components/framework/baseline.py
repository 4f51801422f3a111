"""Baseline: the network trained with its reconstruction loss alone, through the interface of the framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.framework.checks import cast_for, check_output
from skt_components.losses.reconstruction import MuL1Loss
from skt_components.models.registry import ForwardORM, call_network
from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.ops.checks import at_least_float32, check_non_negative

PairLoss = Callable[[Tensor, Tensor], Tensor]


class ReconstructionLoss(nn.Module):
    """Compare linear HDR after mu-law: L1, and optionally root mean square and features (L_org of eq. 14).

    Args:
        domain: "srgb", "raw", or a :class:`DomainTransfer`: the mu-law and the peak of the pixel terms, and the
            rendering that the feature term compares.
        rms_weight: weight of :func:`mu_rms_loss`, >= 0.
        perceptual: distance of two RGB pictures, such as a :class:`PerceptualLoss`. A module is frozen and stays out
            of every state dict. It is not kept if its weight is 0.
        perceptual_weight: its weight, >= 0.

    Raises:
        ValueError: a weight is negative or not finite, or ``perceptual`` is missing while its weight is not 0.

    Example:
        >>> ReconstructionLoss("raw", rms_weight=0.1).pixels
        MuL1Loss(mu=5000.0, peak=16.0, rms_weight=0.1)
    """

    def __init__(
        self,
        domain: str | DomainTransfer = "srgb",
        *,
        rms_weight: float = 0.0,
        perceptual: PairLoss | None = None,
        perceptual_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_non_negative("perceptual_weight", perceptual_weight)
        if perceptual_weight and perceptual is None:
            raise ValueError(f"perceptual must not be None with perceptual_weight={perceptual_weight:g}")
        self.transfer = domain if isinstance(domain, DomainTransfer) else DomainTransfer(domain)
        self.pixels = MuL1Loss(self.transfer.mu, self.transfer.peak, rms_weight)
        perceptual = perceptual if perceptual_weight else None
        self.perceptual = Frozen(perceptual) if isinstance(perceptual, nn.Module) else perceptual
        self.perceptual_weight = perceptual_weight

    def forward(self, hdr: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Return the loss of linear ``hdr`` against linear ``target``."""
        loss = self.pixels(hdr, target)
        if self.perceptual is not None:
            loss = loss + self.perceptual_weight * self.perceptual(self.transfer(hdr), self.transfer(target))
        return loss

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"perceptual_weight={self.perceptual_weight}"


class BareOutput(NamedTuple):
    """Hold the losses of one step, named as in :class:`StepOutput`."""

    total: Tensor
    """L_org: call ``backward`` on it."""
    terms: dict[str, Tensor]
    """The same loss by name: org."""


class BareNetwork(nn.Module):
    """Train a network with L_org alone, called as :class:`SemanticKnowledgeTransfer` is.

    Args:
        orm: the reconstruction network.
        orm_loss: L_org, called as ``orm_loss(hdr, target)``; L1 after mu-law when None.
        forward_orm: how to call the network, as for :class:`SemanticKnowledgeTransfer`.

    Example:
        >>> bare = BareNetwork(nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(18, 3, 1)))
        >>> list(bare(torch.rand(1, 3, 6, 8, 8), torch.rand(1, 3, 8, 8)).terms)
        ['org']
    """

    def __init__(self, orm: nn.Module, orm_loss: PairLoss | None = None, forward_orm: ForwardORM | None = None) -> None:
        super().__init__()
        self.orm = orm
        self.forward_orm = call_network if forward_orm is None else forward_orm
        self.orm_loss = MuL1Loss() if orm_loss is None else orm_loss

    def forward(
        self,
        bracket: Float[Tensor, "b n c h w"],
        target: Float[Tensor, "b _c _h _w"],
        *,
        labels: object = None,
        num_regions: object = None,
        generator: object = None,
        ramp: object = None,
        metadata: object = None,
        **inputs: Any,
    ) -> BareOutput:
        """Return the loss of one step.

        Args:
            bracket: input exposures.
            target: linear ground truth.
            labels, num_regions, generator, ramp, metadata: of the framework's ``forward``, without effect here.
            **inputs: further inputs of the network, passed to ``forward_orm``.
        """
        hdr = check_output(self.forward_orm(self.orm, *cast_for(self.orm, bracket), **inputs))
        loss = self.orm_loss(hdr, at_least_float32(target))
        return BareOutput(loss, {"org": loss})

    @torch.no_grad()
    def reconstruct(
        self,
        bracket: Float[Tensor, "b n c h w"],
        *,
        orm: nn.Module | None = None,
        metadata: object = None,
        **inputs: Any,
    ) -> tuple[Tensor, None]:
        """Return the network's picture, and None in the place of the teacher's.

        Args:
            bracket: input exposures.
            orm: a network to run instead, such as a moving average of the trained one.
            metadata: metadata of the framework's ``reconstruct``, without effect here.
            **inputs: further inputs of the network, as in ``forward``.
        """
        orm = self.orm if orm is None else orm
        return check_output(self.forward_orm(orm, *cast_for(orm, bracket), **inputs)), None
