"""Make the teacher, and run network and teacher once to find the widths and layouts of their stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.banks.priors import KnowledgeBank
from skt_components.framework.checks import cast_for, check_output
from skt_components.models.registry import ForwardORM
from skt_components.models.spgrm import SPGRM
from skt_components.modules.stage_layout import (
    StageLayout,
    agree,
    as_feature_map,
    find_layouts,
    halve_and_double,
    is_certain,
)
from skt_components.modules.taps import FeatureTaps, TapError, choose_taps, eval_mode, unwrap
from skt_components.ops.checks import warn_caller

STAGES = 3


def _check_taps(names: Sequence[str]) -> FeatureTaps:
    """Return the taps of three stages by name."""
    taps = FeatureTaps(names)
    if len(set(taps.layers)) != STAGES:
        raise ValueError(
            f"taps must name {STAGES} different stages, one for each stage of the SPGRM, got {list(names)}"
        )
    return taps


def find_network_taps(
    orm: nn.Module, names: Sequence[str] | str | None, sample: Tensor, forward_orm: ForwardORM
) -> FeatureTaps:
    """Return the taps of the network by name, by its ``fusion_taps`` when None, or chosen and printed.

    They are chosen when ``names`` is "auto", or None and the network has no ``fusion_taps``.
    """
    network = unwrap(orm)
    if names is None:
        names = getattr(network, "fusion_taps", None) or "auto"
    if names != "auto":
        return _check_taps(names)
    chosen = choose_taps(orm, _on_device_of(orm, sample[:1]), STAGES, partial(_run_network, forward_orm=forward_orm))
    stages = ", ".join(f"{name} {shape}" for name, shape in chosen)
    print(f"taps of {type(network).__name__}: {stages}. Pass taps=[{STAGES} layer names] for others")
    return _check_taps([name for name, _ in chosen])


def find_teacher_taps(spgrm: nn.Module) -> FeatureTaps:
    """Return the taps of the teacher by its attribute ``fusion_taps``."""
    names = getattr(unwrap(spgrm), "fusion_taps", None)
    if names is None:
        raise ValueError(
            f"{type(spgrm).__name__} has no attribute fusion_taps: a teacher must have it, with {STAGES} layer names"
        )
    return _check_taps(names)


def fit_inputs(forward_orm: ForwardORM, sample: Tensor, inputs: Mapping[str, Any]) -> ForwardORM:
    """Return ``forward_orm`` with the further inputs of ``sample``, cut to the batch and height of its bracket."""

    def fit(value: Any, bracket: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(bracket.device, bracket.dtype if value.is_floating_point() else None)
        if value.shape[-2:] == sample.shape[-2:]:
            value = value[..., : bracket.shape[-2], :]
        return torch.cat([value[:1]] * len(bracket)) if value.shape[:1] == sample.shape[:1] else value

    return lambda orm, bracket: forward_orm(
        orm, bracket, **{name: fit(value, bracket) for name, value in inputs.items()}
    )


def probe_network(
    orm: nn.Module, forward_orm: ForwardORM, taps: FeatureTaps, sample: Tensor
) -> tuple[Tensor, list[int], list[StageLayout]]:
    """Run the network once, in eval mode and without gradient; once more if shapes leave a doubt about a stage.

    Returns:
        Its output for one bracket, and of each stage the channels and the layout.

    Raises:
        ValueError: the network does not run on the sample, or a stage is neither a map nor tokens.
    """
    sample, frames = _on_device_of(orm, sample[:1]), sample.shape[1]

    def run(bracket: Tensor) -> tuple[object, list[Tensor], list[list[StageLayout]]]:
        with torch.no_grad(), eval_mode(orm), torch.compiler.set_stance("force_eager"), taps.capture(orm) as stages:
            hdr = _run_network(orm, bracket, forward_orm)
        size, batch = (bracket.shape[-2], bracket.shape[-1]), len(bracket)
        return hdr, stages, [find_layouts(stage.shape, size, batch, frames) for stage in stages]

    output, stages, layouts = run(sample)
    hdr = check_output(output)
    if not all(map(is_certain, layouts)):
        noise = torch.rand(sample.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(sample)
        pairs = halve_and_double(noise), torch.cat([noise] * 2)  # some networks take one size alone
        for pair in pairs:
            with suppress(Exception):  # a network may raise anything on input that it was not made for
                _, others, second = run(pair)
                if pair is pairs[0]:
                    rows = zip(layouts, stages, second, others, strict=True)
                    layouts = [agree(of, stage.shape, also, other.shape) for of, stage, also, other in rows]
                layouts = [_order_of_frames(of, other, pair) for of, other in zip(layouts, others, strict=True)]
                break
    for layer, stage, of in zip(taps.layers, stages, layouts, strict=True):
        if not of:
            raise ValueError(
                f"tap {layer!r} gives {tuple(stage.shape)} for a bracket of shape {tuple(sample.shape)}: it must give "
                "a map (B, C, H, W) or (B, H, W, C), or tokens (B, L, C), of the picture or of every exposure. "
                "Choose another layer; suggest_taps lists the possible layers"
            )
        if {"BCHW", "BHWC"} <= {layout.axes for layout in of}:
            warn_caller(
                f"tap {layer!r} gives {tuple(stage.shape)}, which can be (B, C, H, W) or (B, H, W, C): (B, C, H, W) is "
                "used. Pass a sample that is not square"
            )
    chosen = [of[0] for of in layouts]
    return hdr, [layout.count_channels(stage.shape) for layout, stage in zip(chosen, stages, strict=True)], chosen


def _order_of_frames(layouts: list[StageLayout], stage: Tensor, bracket: Tensor) -> list[StageLayout]:
    """Sort layouts so that those come first in which the stages of two equal brackets are most equal."""
    if stage.device.type == "meta" or all(layout.frames == 1 for layout in layouts):
        return layouts
    size = (bracket.shape[-2], bracket.shape[-1])
    maps = [as_feature_map(stage, size, layout) for layout in layouts]
    errors = [float((first - second).abs().max()) for first, second in maps]
    return [layouts[index] for index in sorted(range(len(layouts)), key=errors.__getitem__)]


def _on_device_of(orm: nn.Module, sample: Tensor) -> Tensor:
    """Return the sample on the device and in the dtype of the network."""
    parameter = next(orm.parameters(), torch.empty(0))
    return sample.to(parameter.device, parameter.dtype)


def _run_network(orm: nn.Module, bracket: Tensor, forward_orm: ForwardORM) -> object:
    try:
        return forward_orm(orm, bracket)
    except TapError:
        raise
    except Exception as error:  # a network may raise anything on input that it was not made for
        raise ValueError(
            f"the network did not run on a bracket of shape {tuple(bracket.shape)}: {error}. Pass sample=<a bracket "
            "for this network>. If it has further inputs, pass sample_inputs={...}. If it is not called as "
            "orm(bracket), pass forward_orm=<a function of orm and bracket>"
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
    """Run the teacher once on zeros, in eval mode and without gradient; return its stages' channels."""
    tonemapped = torch.zeros(1, *tonemapped.shape[1:], device=next(spgrm.parameters(), tonemapped).device)
    height, width = tonemapped.shape[-2:]
    features = [
        torch.zeros(1, channels, -(-height // reduction), -(-width // reduction), device=tonemapped.device)
        for channels, reduction in zip(bank.channels, bank.reduction, strict=True)
    ]
    with torch.no_grad(), eval_mode(spgrm), taps.capture(spgrm) as stages:
        tonemapped, *features = cast_for(spgrm, tonemapped, *features)
        spgrm(tonemapped, features)
    return [stage.shape[1] for stage in stages]
