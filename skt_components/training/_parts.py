"""What the framework is put together from: stages, the teacher, frozen losses, and the checks on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank
from skt_components.losses.reconstruction import mu_l1_loss
from skt_components.models.spgrm import SPGRM
from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.modules.taps import FeatureTaps, unwrap
from skt_components.ops._checks import check_tensor, float_dtype
from skt_components.training.config import LossWeights

STAGES = 3


def find_taps(model: nn.Module, names: Sequence[str] | None) -> FeatureTaps:
    if names is None:
        names = getattr(unwrap(model), "fusion_taps", None)
    if names is None:
        raise ValueError(
            f"{type(model).__name__} does not say its stages in fusion_taps: pass taps=[three layer names]; "
            "suggest_taps(model, bracket) lists candidates. (A teacher of your own must have the attribute.)"
        )
    taps = FeatureTaps(names)
    if len(set(taps.layers)) != STAGES:
        raise ValueError(
            f"taps must name {STAGES} different stages, one for each stage of the SPGRM, got {list(names)}"
        )
    return taps


def make_spgrm(orm: nn.Module, bank: KnowledgeBank, stride: int) -> SPGRM:
    network = unwrap(orm)
    make_fusion = getattr(network, "make_fusion_module", None)
    features = getattr(network, "features", 64) if make_fusion else 64
    heads = math.gcd(4, features)
    checkpointing = getattr(network, "checkpointing", False)
    return SPGRM(
        bank.channels,
        features=features,
        make_fusion=make_fusion,
        num_heads=heads,
        stride=stride,
        checkpointing=checkpointing,
    )


def frozen(loss: Any) -> Any:
    """A loss with weights of its own (a VGG inside L_org, say) is neither trained nor saved."""
    return Frozen(loss) if isinstance(loss, nn.Module) and loss.state_dict() else loss


def compare_sensed(
    transfer: DomainTransfer, refined: Tensor, target: Tensor, metadata: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the teacher's picture as rendered from what colour filters see of it, and eq. 13 over these values.

    Two thirds of what it puts out lie between the filters: no loss would train them, and nobody shall learn from them.
    """
    with torch.autocast(refined.device.type, enabled=False):
        packed = transfer.inverse(refined, **(metadata or {}))
        loss = mu_l1_loss(packed, full(target), mu=transfer.mu, peak=transfer.peak)
        return transfer(packed, **(metadata or {})), loss


def check_arguments(orm: object, bank: object, weights: object, sample: object) -> None:
    if not isinstance(orm, nn.Module):
        raise TypeError(f"orm must be an nn.Module, got {type(orm).__name__}")
    if not isinstance(bank, nn.Module) or not (hasattr(bank, "channels") and hasattr(bank, "reduction")):
        raise TypeError(f"knowledge_bank must be an nn.Module with channels and reduction, got {type(bank).__name__}")
    if weights is not None and not isinstance(weights, LossWeights):
        raise TypeError(f"weights must be LossWeights, got {type(weights).__name__}")
    if sample is not None:
        check_tensor("sample", sample, ndim=5, layout="(B, N, C, H, W)")


def full(x: Tensor) -> Tensor:
    return x.to(float_dtype(x))
