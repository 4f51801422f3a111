"""Checks of the framework's arguments, of the bank's priors and of the network's output."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from skt_components.banks.priors import SemanticPriors
from skt_components.framework.loss_weights import LossWeights
from skt_components.losses.histogram import HistogramLoss
from skt_components.ops.checks import (
    at_least_float32,
    check_count,
    check_picture,
    check_tensor,
    clone_inference_tensor,
    warn_caller,
)

_BANK_LEVELS = 4  # feature maps of a bank
_METADATA = ("white_balance", "color_matrix")


def check_arguments(orm: object, bank: object, weights: object, sample: object, **functions: object) -> None:
    """Raise TypeError or ValueError unless the arguments of the framework's constructor have the right kinds."""
    if not isinstance(orm, nn.Module):
        raise TypeError(f"orm must be an nn.Module, got {type(orm).__name__}")
    if not isinstance(bank, nn.Module) or not (hasattr(bank, "channels") and hasattr(bank, "reduction")):
        raise TypeError(f"knowledge_bank must be an nn.Module with channels and reduction, got {type(bank).__name__}")
    _check_bank_levels(bank.channels, bank.reduction)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")
    if isinstance(functions.get("color_loss"), HistogramLoss):
        raise TypeError("color_loss must take regions, as SemanticHistogramLoss does, got HistogramLoss")
    if weights is not None and not isinstance(weights, LossWeights):
        raise TypeError(f"weights must be LossWeights, got {type(weights).__name__}")
    if sample is not None:
        check_tensor("sample", sample, ndim=5, layout="(B, N, C, H, W)")


def _check_bank_levels(channels: Any, reduction: Any) -> None:
    """Raise unless a bank states four levels, coarse to fine, or none if it has no features."""
    for name, values in (("channels", channels), ("reduction", reduction)):
        if not isinstance(values, Sequence) or len(values) not in (0, _BANK_LEVELS):
            raise ValueError(
                f"knowledge_bank.{name} must have {_BANK_LEVELS} numbers, coarse to fine, or () for none, "
                f"got {values!r}"
            )
        for value in values:
            check_count(f"every number of knowledge_bank.{name}", value, 1)
    if len(channels) != len(reduction):
        raise ValueError(
            f"knowledge_bank.channels and reduction must have the same length, got {channels!r} and {reduction!r}"
        )
    if any(coarse <= fine for coarse, fine in itertools.pairwise(reduction)):
        raise ValueError(
            f"knowledge_bank.reduction must fall from coarse to fine, such as (16, 8, 4, 2), got {reduction!r}"
        )


def check_step(bracket: Tensor, target: Tensor, metadata: Mapping[str, Tensor] | None) -> None:
    """Raise TypeError or ValueError unless the inputs of one training step have the right kinds and axes."""
    check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
    if not bracket.numel():
        raise ValueError(f"bracket must hold at least one sample (B, N, C, H, W), got shape {tuple(bracket.shape)}")
    check_tensor("target", target, ndim=4, layout="(B, C, H, W)")
    if unknown := set(metadata or {}) - set(_METADATA):
        raise ValueError(f"metadata can hold {' and '.join(_METADATA)}, got {', '.join(sorted(map(str, unknown)))}")


def check_priors(priors: object, channels: Sequence[int]) -> SemanticPriors:
    """Return the priors of a bank, usable by autograd, after checking them against the bank's ``channels``."""
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


def check_output(hdr: object) -> Tensor:
    """Return the network's output in at least float32; raise TypeError or ValueError unless it is (B, C, H, W)."""
    check_picture(hdr)
    return at_least_float32(cast(Tensor, hdr))


def warn_without_gradient(layers: Sequence[str], stages: Sequence[Tensor], hdr: Tensor) -> None:
    """Warn about tapped stages that carry no gradient while the network's output does."""
    if not (torch.is_grad_enabled() and hdr.requires_grad):
        return
    for name, stage in zip(layers, stages, strict=True):
        if not stage.requires_grad:
            warn_caller(
                f"tap {name!r} has no gradient, so L_feat cannot train the network there: its layers are frozen, or "
                "it is inside checkpoint(..., use_reentrant=True)"
            )


def cast_for(module: nn.Module, *tensors: Tensor) -> list[Tensor]:
    """Return tensors in the dtype of a module's parameters; unchanged under autocast and if it has none."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    device = tensors[0].device.type
    if parameter is None or (device != "meta" and torch.is_autocast_enabled(device)):
        return list(tensors)
    return [tensor.to(parameter.dtype) for tensor in tensors]
