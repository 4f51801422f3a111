"""Pictures of what a knowledge bank says about a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks.priors import SemanticPriors
from skt_components.data.preview import load_pyplot


class PriorsRow(NamedTuple):
    """One row of :func:`save_priors`: a picture ``(3, H, W)`` in [0, 1] and the priors of it alone (batch 1)."""

    name: str
    picture: Float[Tensor, "3 h w"]
    priors: SemanticPriors


def save_priors(path: str | os.PathLike[str], rows: Sequence[PriorsRow]) -> None:
    """Draw one row per bank or picture: the picture, each feature level, the regions on the picture.

    A level is shown by its three principal components as red, green and blue: places that look alike to the network
    have one colour, and the colours of different levels mean nothing to each other. Regions have a colour each over
    the picture in grey; the smaller of two that overlap lies on top.

    Args:
        path: picture to write.
        rows: what to draw.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``rows`` is empty, or a row's priors are of more than one picture.
    """
    if not rows:
        raise ValueError("rows must hold at least one picture")
    for row in rows:
        if len(row.priors.valid) != 1:
            raise ValueError(f"priors of {row.name!r} must be of one picture, got {len(row.priors.valid)}")
    plt = load_pyplot()
    drawn = [_panels(row) for row in rows]
    width = max(map(len, drawn))
    tall = [2.6 * row.picture.shape[-2] / row.picture.shape[-1] + 0.3 for row in rows]
    options = {"squeeze": False, "layout": "constrained", "height_ratios": tall}
    figure, axes = plt.subplots(len(rows), width, figsize=(2.6 * width, sum(tall)), **options)
    for row, line, panels in zip(rows, axes, drawn, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, (title, picture) in zip(line, panels, strict=False):
            axis.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_title(title, fontsize=8)
        line[0].set_title(row.name, fontsize=8, fontweight="bold", loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(row: PriorsRow) -> list[tuple[str, Tensor]]:
    picture = row.picture.detach().float().cpu().clamp(0, 1)
    panels = [("", picture)]
    for feature in row.priors.features:
        channels, height, width = feature.shape[1:]
        panels.append((f"{channels} x {height} x {width}", principal_colors(feature[0])))
    found = int(row.priors.valid.sum())
    kind = ("overlapping " if row.priors.labels is None else "") + ("region" if found == 1 else "regions")
    panels.append((f"{found} {kind}", region_colors(picture, row.priors.masks[0].cpu())))
    return panels


def principal_colors(feature: Float[Tensor, "c h w"]) -> Float[Tensor, "3 h w"]:
    """Return the three principal components of a feature map, each from its 2nd to its 98th percentile, in [0, 1]."""
    points = feature.detach().cpu().double().flatten(1)
    points = points - points.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(points @ points.T)
    components = vectors[:, -3:].flip(1).T
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that pictures repeat.
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    shown = (components * largest.sign()) @ points
    low, high = torch.quantile(shown, torch.tensor([0.02, 0.98], dtype=shown.dtype), dim=1, keepdim=True)
    shown = ((shown - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    shown = F.pad(shown, (0, 0, 0, 3 - len(shown)))  # a map of fewer than three channels
    return shown.view(3, *feature.shape[1:]).float()


def region_colors(picture: Float[Tensor, "3 h w"], masks: Bool[Tensor, "r h w"]) -> Float[Tensor, "3 h w"]:
    """Return the picture in grey under a colour per region, the smaller region on top; no region stays grey."""
    grey = picture.mean(dim=0, keepdim=True)
    drawn = grey.repeat(3, 1, 1)
    for index in masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        hue = index * 0.618034 % 1  # the golden ratio keeps the hues of any number of regions apart
        phase = torch.tensor([0.0, 1 / 3, 2 / 3]) + hue
        color = 0.5 + 0.5 * torch.cos(2 * math.pi * phase)
        drawn[:, masks[index]] = 0.45 * grey[:, masks[index]] + 0.55 * color[:, None]
    return drawn
