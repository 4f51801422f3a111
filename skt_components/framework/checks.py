"""What the framework is put together from: stages, the teacher, frozen losses, and the checks on them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank, SemanticPriors
from skt_components.framework.loss_weights import LossWeights
from skt_components.losses.histogram import HistogramLoss
from skt_components.losses.reconstruction import mu_l1_loss
from skt_components.models.spgrm import SPGRM
from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.modules.taps import FeatureTaps, TapError, eval_mode, is_channels_last, unwrap
from skt_components.ops.checks import check_count, check_tensor, clone_inference_tensor, float_dtype

Run = Callable[[Tensor], tuple[object, list[Tensor]]]  # from a bracket to a network's output and its tapped stages
STAGES = 3
_MAPS = 4  # that a bank gives


def find_taps(model: nn.Module, names: Sequence[str] | None) -> FeatureTaps:
    """Return the taps by name, or those that the model names in ``fusion_taps``."""
    if names is None:
        names = getattr(unwrap(model), "fusion_taps", None)
    if names is None:
        raise ValueError(
            f"{type(model).__name__} does not say its stages in fusion_taps: pass taps=[three layer names], or to "
            "train_full.py --taps; suggest_taps(model, bracket) lists candidates. (A teacher of your own must have the "
            "attribute.)"
        )
    taps = FeatureTaps(names)
    if len(set(taps.layers)) != STAGES:
        raise ValueError(
            f"taps must name {STAGES} different stages, one for each stage of the SPGRM, got {list(names)}"
        )
    return taps


def try_network(forward: Callable[[nn.Module, Tensor], object], orm: nn.Module, sample: Tensor) -> object:
    """Run a network, or say what can be done if it does not run."""
    try:
        return forward(orm, sample)
    except TapError:
        raise
    except Exception as error:  # whatever a network may raise on input that it was not made for
        raise ValueError(
            f"the network did not run on a bracket of shape {tuple(sample.shape)}: {error}. Pass "
            "sample=<a bracket it takes>, or forward_orm=lambda orm, bracket: ... if it is called differently"
        ) from error


def find_channels_last(run: Run, sample: Tensor, stages: Sequence[Tensor], layers: Sequence[str]) -> list[bool]:
    """Which stages are maps (B, H, W, C); where their shapes leave it open, a sample of half the height tells."""
    size = (sample.shape[-2], sample.shape[-1])
    found = [is_channels_last(stage, size) for stage in stages]
    if None in found:
        lower = (size[0] // 2, size[1])
        with suppress(Exception):  # whatever a network may raise on input that it was not made for
            told = [is_channels_last(stage, lower) for stage in run(sample[..., : lower[0], :])[1]]
            found = [there if last is None else last for last, there in zip(found, told, strict=True)]
    for layer, stage, last in zip(layers, stages, found, strict=True):
        if last is None:
            warnings.warn(
                f"tap {layer!r} gives {tuple(stage.shape)}, which can be (B, C, H, W) or (B, H, W, C): it is taken as "
                "the first. Pass a sample that is not square",
                stacklevel=5,
            )
    return [bool(last) for last in found]


def make_spgrm(orm: nn.Module, bank: KnowledgeBank, stride: int) -> SPGRM:
    """Return a teacher built of the network's own kind of fusion module."""
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


def try_teacher(spgrm: nn.Module, taps: FeatureTaps, tonemapped: Tensor, bank: KnowledgeBank) -> list[int]:
    """Run the teacher once on empty features, in eval mode and without gradient: its stages' widths."""
    tonemapped = tonemapped.float().to(next(spgrm.parameters(), tonemapped).device)
    height, width = tonemapped.shape[-2:]
    features = [
        torch.zeros(1, c, -(-height // r), -(-width // r), device=tonemapped.device)
        for c, r in zip(bank.channels, bank.reduction, strict=True)
    ]
    with torch.no_grad(), eval_mode(spgrm), taps.capture(spgrm) as teacher:
        spgrm(tonemapped[:1], features)
    return [stage.shape[1] for stage in teacher]


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


def check_arguments(
    orm: object, bank: object, weights: object, sample: object, functions: Mapping[str, object]
) -> None:
    """Raise TypeError or ValueError for arguments of another kind."""
    if not isinstance(orm, nn.Module):
        raise TypeError(f"orm must be an nn.Module, got {type(orm).__name__}")
    if not isinstance(bank, nn.Module) or not (hasattr(bank, "channels") and hasattr(bank, "reduction")):
        raise TypeError(f"knowledge_bank must be an nn.Module with channels and reduction, got {type(bank).__name__}")
    _check_maps(bank.channels, bank.reduction)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")
    if isinstance(functions.get("color_loss"), HistogramLoss):
        raise TypeError("color_loss must take regions, as SemanticHistogramLoss does, got HistogramLoss")
    if weights is not None and not isinstance(weights, LossWeights):
        raise TypeError(f"weights must be LossWeights, got {type(weights).__name__}")
    if sample is not None:
        check_tensor("sample", sample, ndim=5, layout="(B, N, C, H, W)")


def _check_maps(channels: Any, reduction: Any) -> None:
    """Raise unless they are four maps, coarse to fine, or none, as of a bank without features."""
    for name, values in (("channels", channels), ("reduction", reduction)):
        if not isinstance(values, Sequence) or len(values) not in (0, _MAPS):
            raise ValueError(
                f"knowledge_bank.{name} must have {_MAPS} numbers, coarse to fine, or () for none, got {values!r}"
            )
        for value in values:
            check_count(f"every number of knowledge_bank.{name}", value, 1)
    if len(channels) != len(reduction):
        raise ValueError(
            f"knowledge_bank.channels and reduction must be of the same maps, got {channels!r} and {reduction!r}"
        )
    if any(coarse <= fine for coarse, fine in itertools.pairwise(reduction)):
        raise ValueError(
            f"knowledge_bank.reduction must fall from coarse to fine, such as (16, 8, 4, 2), got {reduction!r}"
        )


def check_priors(priors: object, channels: Sequence[int]) -> SemanticPriors:
    """Return what a bank says if it is what it promised."""
    if not isinstance(priors, SemanticPriors):
        raise TypeError(
            f"knowledge_bank must return SemanticPriors, such as priors_from_labels makes, got {type(priors).__name__}"
        )
    shapes = [tuple(getattr(feature, "shape", ())) for feature in priors.features]
    if [shape[1] if len(shape) == 4 else None for shape in shapes] != list(channels):
        raise ValueError(
            f"knowledge_bank must return features (B, C, H, W) with its channels {tuple(channels)}, got {shapes}"
        )
    features = [clone_inference_tensor(feature) for feature in priors.features]
    masks, valid = clone_inference_tensor(priors.masks), clone_inference_tensor(priors.valid)
    return SemanticPriors(features, masks, clone_inference_tensor(priors.labels), valid)


def check_ramp(ramp: float) -> None:
    """Raise ValueError for a ramp outside [0, 1]."""
    if not 0 <= ramp <= 1:
        raise ValueError(f"ramp must be in [0, 1], got {ramp!r}")


def check_output(hdr: object) -> Tensor:
    """Return the network's output in at least float32."""
    if not isinstance(hdr, Tensor):
        raise TypeError(
            f"the network returned {type(hdr).__name__}, not a tensor (B, C, H, W): choose the picture with "
            "forward_orm=lambda orm, bracket: orm(bracket)[...], on the command line with an --orm that returns "
            "(network, forward_orm)"
        )
    check_tensor("the network's output", hdr, ndim=4, layout="(B, C, H, W)")
    return full(hdr)


def warn_without_gradient(layers: Sequence[str], stages: list[Tensor], hdr: Tensor) -> None:
    """Warn of tapped stages that carry no gradient."""
    if not (torch.is_grad_enabled() and hdr.requires_grad):
        return
    for name, stage in zip(layers, stages, strict=True):
        if not stage.requires_grad:
            warnings.warn(
                f"tap {name!r} carries no gradient, so L_feat can not train the network there: its layers are "
                "frozen, or it is inside checkpoint(..., use_reentrant=True)",
                stacklevel=4,
            )


def full(x: Tensor) -> Tensor:
    """Return a tensor in at least float32."""
    return x.to(float_dtype(x))
