"""Make the teacher, and run network and teacher once to learn the widths and layouts of their stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from skt_components.banks.priors import KnowledgeBank
from skt_components.framework.checks import check_output
from skt_components.models.registry import ForwardORM
from skt_components.models.spgrm import SPGRM
from skt_components.modules.taps import FeatureTaps, TapError, as_feature_map, eval_mode, is_channels_last, unwrap
from skt_components.ops.checks import warn_caller

STAGES = 3


def find_taps(model: nn.Module, names: Sequence[str] | None) -> FeatureTaps:
    """Return the taps of three stages by name, or by the model's attribute ``fusion_taps`` when None."""
    if names is None:
        names = getattr(unwrap(model), "fusion_taps", None)
    if names is None:
        raise ValueError(
            f"{type(model).__name__} has no attribute fusion_taps: pass taps=[three layer names]; "
            "suggest_taps(model, bracket) lists candidates. (A teacher of your own must have the attribute.)"
        )
    taps = FeatureTaps(names)
    if len(set(taps.layers)) != STAGES:
        raise ValueError(
            f"taps must name {STAGES} different stages, one for each stage of the SPGRM, got {list(names)}"
        )
    return taps


def probe_network(
    orm: nn.Module, forward_orm: ForwardORM, taps: FeatureTaps, sample: Tensor
) -> tuple[Tensor, list[int], list[bool]]:
    """Run the network once, in eval mode and without gradient.

    Returns:
        Its output for one bracket, and of each stage the channels, and True for maps ``(B, H, W, C)``.
    """
    parameter = next(orm.parameters(), torch.empty(0))
    sample = sample[:1].to(parameter.device, parameter.dtype)

    def run(bracket: Tensor) -> tuple[object, list[Tensor]]:
        with torch.no_grad(), eval_mode(orm), taps.capture(orm) as stages:
            hdr = _run_network(orm, forward_orm, bracket)
        return hdr, stages

    output, stages = run(sample)
    hdr, (height, width) = check_output(output), sample.shape[-2:]
    layouts = [is_channels_last(stage, (height, width)) for stage in stages]
    if None in layouts:  # undecided by the shape: a picture of half the height may decide it
        with suppress(Exception):  # a network may raise anything on input that it was not made for
            halved = [is_channels_last(stage, (height // 2, width)) for stage in run(sample[..., : height // 2, :])[1]]
            layouts = [second if first is None else first for first, second in zip(layouts, halved, strict=True)]
    for layer, stage, layout in zip(taps.layers, stages, layouts, strict=True):
        if layout is None:
            warn_caller(
                f"tap {layer!r} gives {tuple(stage.shape)}, which can be (B, C, H, W) or (B, H, W, C): it is taken as "
                "the first. Pass a sample that is not square"
            )
    channels_last = [bool(layout) for layout in layouts]
    maps = [as_feature_map(stage, (height, width), last) for stage, last in zip(stages, channels_last, strict=True)]
    return hdr, [stage.shape[1] for stage in maps], channels_last


def _run_network(orm: nn.Module, forward_orm: ForwardORM, bracket: Tensor) -> object:
    try:
        return forward_orm(orm, bracket)
    except TapError:
        raise
    except Exception as error:  # a network may raise anything on input that it was not made for
        raise ValueError(
            f"the network did not run on a bracket of shape {tuple(bracket.shape)}: {error}. Pass "
            "sample=<a bracket it takes>, or forward_orm=lambda orm, bracket: ... if it is called differently"
        ) from error


def make_spgrm(orm: nn.Module, bank: KnowledgeBank, stride: int) -> SPGRM:
    """Return a teacher made of the network's own kind of fusion module."""
    network = unwrap(orm)
    make_fusion = getattr(network, "make_fusion_module", None)
    features = getattr(network, "features", 64) if make_fusion else 64
    return SPGRM(
        bank.channels,
        features=features,
        make_fusion=make_fusion,
        num_heads=math.gcd(4, features),
        stride=stride,
        checkpointing=getattr(network, "checkpointing", False),
    )


def probe_teacher(spgrm: nn.Module, taps: FeatureTaps, tonemapped: Tensor, bank: KnowledgeBank) -> list[int]:
    """Run the teacher once on features of zeros, in eval mode and without gradient; return its stages' channels."""
    tonemapped = tonemapped.float().to(next(spgrm.parameters(), tonemapped).device)
    height, width = tonemapped.shape[-2:]
    features = [
        torch.zeros(1, channels, -(-height // reduction), -(-width // reduction), device=tonemapped.device)
        for channels, reduction in zip(bank.channels, bank.reduction, strict=True)
    ]
    with torch.no_grad(), eval_mode(spgrm), taps.capture(spgrm) as stages:
        spgrm(tonemapped[:1], features)
    return [stage.shape[1] for stage in stages]
