"""Figures drawn with matplotlib: sample pictures, training curves, and the priors of knowledge banks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks.priors import SemanticPriors
from skt_components.data.preview import (
    compressed_radiance,
    load_pyplot,
    plain_label,
    save_figure,
    show_exposures,
    show_radiance,
)
from skt_components.data.sample import HDRSample
from skt_components.evaluation.baselines import MERGE, baseline_pictures
from skt_components.evaluation.html_pictures import worst_places
from skt_components.files.json_lines import read_json_lines


def _rgb(picture: Tensor) -> Any:
    """Return ``(3, H, W)`` as matplotlib takes it."""
    return picture.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


# sample pictures


class SampleRow(NamedTuple):
    """One scene of :func:`save_samples`; pictures are ``(3, H, W)`` display values in [0, 1].

    Attributes:
        name: name of the scene.
        ldrs: the exposures.
        results: title -> picture.
        target: the true picture.
        errors: title -> error map (H, W), for the same titles.
        labels: region map, or None.
    """

    name: str
    ldrs: Float[Tensor, "n 3 _h _w"]
    results: Mapping[str, Tensor]
    target: Float[Tensor, "3 h w"]
    errors: Mapping[str, Tensor]
    labels: Int[Tensor, "h w"] | None = None

    @classmethod
    def from_sample(
        cls,
        sample: HDRSample,
        results: Mapping[str, Float[Tensor, "c h w"]],
        labels: Int[Tensor, "_h _w"] | None = None,
    ) -> SampleRow:
        """Convert a sample and results to display values, by :func:`show_exposures` and :func:`show_radiance`.

        The reference exposure and the exposure merge come first among the results. Errors are mean absolute
        differences after the mu-law.

        Args:
            sample: one sample, without a batch axis.
            results: title -> linear picture in the target's shape and scale.
            labels: region map of the tone-mapped picture.

        Example:
            >>> import torch
            >>> from skt_components.simulation import SyntheticScenes
            >>> sample = SyntheticScenes(1, 32)[0]
            >>> list(SampleRow.from_sample(sample, {"ours": sample.target}).results)
            ['reference exposure', 'exposure merge', 'ours']
        """
        scale = sample.target.shape[-1] // sample.bracket.shape[-1]
        free = baseline_pictures(sample.bracket[None], sample.exposure_times, scale=scale)
        linear = {title: picture[0] for title, picture in free.items()} | dict(results)
        wanted = compressed_radiance(sample.target, sample)
        return cls(
            sample.name,
            show_exposures(sample),
            {title: show_radiance(hdr, sample) for title, hdr in linear.items()},
            show_radiance(sample.target, sample),
            {title: (compressed_radiance(hdr, sample) - wanted).abs().mean(0) for title, hdr in linear.items()},
            labels,
        )


_LARGE, _SMALL = 3.2, 1.9  # inches: width of a result, height of a row of exposures or errors
_TALLEST = 2.0  # height of a row by its pictures' width; taller pictures are scaled
_ZOOM = 4  # the zoomed window's side is this part of the picture's


def save_samples(path: str | os.PathLike[str], rows: Sequence[SampleRow]) -> None:
    """Draw each scene: exposures, regions, all results with the target, a zoom, and all error maps.

    The zoom shows the window with the largest error of the exposure merge, which is often a ghost. Without a merge, it
    shows the largest error of the first result.

    Args:
        path: picture to write.
        rows: scenes, all with the same number of exposures and the same results.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``rows`` is empty, or its scenes have different exposures, regions or results.
    """
    if not rows:
        raise ValueError("rows must hold at least one scene")
    for row in rows:
        found, wanted = _contents(row), _contents(rows[0])
        if found != wanted:
            raise ValueError(f"rows must have the same pictures: {row.name!r} has {found}, the first has {wanted}")
    plt = load_pyplot()
    columns = len(rows[0].results) + 1
    tall = [_LARGE * min(row.target.shape[-2] / row.target.shape[-1], _TALLEST) for row in rows]
    heights = [2 * (side + 0.3) + 2 * (_SMALL + 0.3) for side in tall]
    figure = plt.figure(figsize=(_LARGE * columns, sum(heights)), layout="constrained")
    scenes = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for scene, row, side in zip(scenes, rows, tall, strict=True):
        _draw_scene(scene, row, side)
    save_figure(path, figure, dpi=100)


def _contents(row: SampleRow) -> list[str]:
    exposures = [f"exposure {i + 1}" for i in range(len(row.ldrs))]
    return [*exposures, *(["regions"] if row.labels is not None else []), *row.results]


def _draw_scene(figure: Any, row: SampleRow, side: float) -> None:
    """Draw four rows of pictures: exposures, results, their zoom, their errors."""
    figure.suptitle(plain_label(row.name), fontsize=10, fontweight="bold", x=0.01, ha="left")
    exposures, whole, zoomed, errors = figure.subfigures(4, 1, height_ratios=[_SMALL, side, side, _SMALL])
    pictures = {**row.results, "target": row.target}
    top, left, size = _worst_window(row)
    window = (..., slice(top, top + size), slice(left, left + size))
    inputs: dict[str, Any] = {f"exposure {i + 1}": _rgb(ldr) for i, ldr in enumerate(row.ldrs)}
    if row.labels is not None:
        inputs["regions"] = row.labels.cpu().numpy()
    _draw_line(exposures, inputs, cmap="tab20")
    axes = _draw_line(whole, {title: _rgb(picture) for title, picture in pictures.items()})
    for axis in axes:
        corner, frame = (left - 0.5, top - 0.5), {"fill": False, "edgecolor": "red", "linewidth": 1.2}
        axis.add_patch(load_pyplot().Rectangle(corner, size, size, **frame))
    _draw_line(zoomed, {f"{title}, zoom": _rgb(picture[window]) for title, picture in pictures.items()})
    maps = {f"|{title} - target|": error.detach().cpu().numpy() for title, error in row.errors.items()}
    _draw_line(errors, maps, cmap="inferno", vmin=0, vmax=0.1)


def _draw_line(figure: Any, pictures: Mapping[str, Any], **options: Any) -> Any:
    axes = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest", **options)
        axis.set_title(plain_label(title), fontsize=9)
        axis.set(xticks=[], yticks=[])
    return axes


def _worst_window(row: SampleRow) -> tuple[int, int, int]:
    """Return top, left and side of the square with the largest mean error of the exposure merge or the first result."""
    height, width = row.target.shape[-2:]
    side = max(min(height, width) // _ZOOM, min(height, width, 8))
    if not row.errors:
        return (height - side) // 2, (width - side) // 2, side
    error = row.errors.get(MERGE, next(iter(row.errors.values()))).detach().float().cpu().nan_to_num()
    ((top, left),) = worst_places(error, side, 1)
    return top, left, side


# training curves


def save_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw a run's ``metrics.jsonl``: loss terms, shares of the gradient, validation PSNR-mu, learning rate and speed.

    Each term has a color and each run has a line style. A curve that is hidden by another curve is drawn as a wide
    band. The share is the norm of a weighted term's gradient divided by the norm of the gradient of L_org in the same
    step. Below 1, L_org dominates. Black ticks at the bottom are notices.

    Args:
        metrics: file of JSON lines. Each line has a "step" and optionally the name of its "run". The other keys give
            the kind of the line. "terms" and "gradients" (place -> term -> norm and cosine): a training step. If a step
            has "lr" or "samples_per_second", a fourth panel shows them. "validation" (name -> metric -> value): a
            validation. "baselines": scores of pictures without training, drawn as level lines. "notice": an unusual
            event.
        path: picture to write.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError: ``metrics`` does not exist.
    """
    plt = load_pyplot()
    lines = read_json_lines(metrics)
    steps = [line for line in lines if "terms" in line]
    speeds = any("lr" in step or "samples_per_second" in step for step in steps)
    rows, columns, size = (2, 2, (13, 8)) if speeds else (1, 3, (15, 4))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    terms, shares, validation, *others = axes.flat
    _draw_terms(terms, steps, lambda step: step["terms"], "loss terms (unweighted)")
    _draw_terms(shares, steps, _gradient_shares, "gradient of each weighted term, as a share of L_org's")
    _draw_validation(validation, lines)
    for axis in others:
        _draw_speeds(axis, steps)
    notices = [line["step"] for line in lines if "notice" in line]
    for axis in axes.flat:
        if notices:
            axis.vlines(notices, 0, 0.05, "black", transform=axis.get_xaxis_transform(), label="notice")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="lower left" if axis in others else "best")  # where the right axis has no line
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save_figure(path, figure, dpi=100)


_STYLES = ("-", "--", ":", "-.")  # one for each run
_LINE = 0.005  # of the height of a panel: lines that are nearer hide each other
_BAND = 3.0  # points by which a line that is hidden is wider than the one above it


def _gradient_shares(step: Mapping[str, Any]) -> dict[str, float]:
    """Return the norm of each term's gradient divided by L_org's norm; empty if that is 0 or missing."""
    norms = {name: found["norm"] for name, found in step.get("gradients", {}).get("parameters", {}).items()}
    return {name: norm / norms["org"] for name, norm in norms.items()} if norms.get("org") else {}


def _curves(
    lines: list[dict], values: Callable[[dict], Mapping[str, float]]
) -> dict[tuple[Any, str], list[tuple[int, float]]]:
    """Return (run, name) -> (step, value) of all lines."""
    curves: dict[tuple[Any, str], list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in values(line).items():
            curves.setdefault((line.get("run"), name), []).append((line["step"], value))
    return curves


def _draw_terms(axis: Any, steps: list[dict], values: Callable[[dict], Mapping[str, float]], title: str) -> None:
    runs = list(dict.fromkeys(step.get("run") for step in steps))
    names = list(dict.fromkeys(name for step in steps for name in step["terms"]))  # a term has one color in all panels
    curves = _curves(steps, values)
    for (run, name), points in curves.items():
        color = f"C{names.index(name) % 10}" if name in names else "gray"
        label = f"{run} {name}" if len(runs) > 1 else name
        axis.plot(*zip(*points, strict=True), _STYLES[runs.index(run) % 4], color=color, label=label)
    _separate(axis.lines, logarithmic=True)
    found = [value for points in curves.values() for _, value in points if 0 < value < math.inf]
    if found:
        axis.set_yscale("log")
        # A term that starts near zero would compress all others.
        axis.set_ylim(bottom=max(0.7 * min(found), max(found) * 1e-6))
    axis.set(title=title)


def _separate(lines: Sequence[Any], *, logarithmic: bool = False) -> None:
    """Draw lines that hide each other as bands below the last one, the first the widest, so that all are seen."""
    heights = []
    for line in lines:
        steps, values = (np.asarray(data, float) for data in line.get_data())
        with np.errstate(divide="ignore", invalid="ignore"):
            heights.append((steps, np.log(values) if logarithmic else values))
    finite = [values[np.isfinite(values)] for _, values in heights]
    every = np.concatenate(finite) if finite else np.zeros(0)
    near = _LINE * float(np.ptp(every)) if every.size else 0.0
    groups: list[list[int]] = []
    for index, (steps, values) in enumerate(heights):
        for group in groups:
            other_steps, others = heights[group[0]]
            if np.array_equal(steps, other_steps) and np.allclose(values, others, rtol=0, atol=near, equal_nan=True):
                group.append(index)
                break
        else:
            groups.append([index])
    for group in groups:
        for above, index in enumerate(reversed(group)):
            if above:
                lines[index].set(linewidth=lines[index].get_linewidth() + _BAND * above, alpha=0.45)


def _draw_validation(axis: Any, lines: list[dict]) -> None:
    validations = [line for line in lines if "validation" in line]
    curves = _curves(validations, lambda line: {name: row["PSNR-mu"] for name, row in line["validation"].items()})
    for (run, name), points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"{run or ''} {name}".strip())
    free: dict[str, dict[str, float]] = next((line["baselines"] for line in lines if "baselines" in line), {})
    for (name, row), style in zip(free.items(), ("--", ":"), strict=False):
        axis.axhline(row["PSNR-mu"], color="black", linestyle=style, label=name)
    _separate(axis.lines[: len(curves)])
    axis.set(title="validation PSNR-mu [dB]")


def _draw_speeds(axis: Any, steps: list[dict]) -> None:
    """Draw the learning rate on the left axis, samples per second on the right axis."""
    runs = list(dict.fromkeys(step.get("run") for step in steps))
    sides = ((axis, "lr", "learning rate", "C0"), (axis.twinx(), "samples_per_second", "samples per second", "C1"))
    for side, key, title, color in sides:
        for index, run in enumerate(runs):
            points = [(step["step"], step[key]) for step in steps if step.get("run") == run and key in step]
            label, style = f"{run} {title}" if len(runs) > 1 else title, _STYLES[index % 4]
            if points:
                side.plot(*zip(*points, strict=True), style, color=color, label=label)
            if points and side is not axis:
                axis.plot([], [], style, color=color, label=label)  # for the legend, which both axes share
        side.set_ylabel(title, color=color)
        side.set_ylim(bottom=0)
    # The legend lies above the lines of the right axis, which show through a transparent panel.
    axis.set(title="learning rate and speed", zorder=2)
    axis.patch.set_visible(False)


# priors of knowledge banks


class PriorsRow(NamedTuple):
    """One row of :func:`save_priors`: a picture ``(3, H, W)`` in [0, 1] and its priors, with a batch size of 1."""

    name: str
    picture: Float[Tensor, "3 h w"]
    priors: SemanticPriors


def save_priors(path: str | os.PathLike[str], rows: Sequence[PriorsRow]) -> None:
    """Draw one row per bank or picture: the picture, each feature level, the regions on the picture.

    The colors of a level are its first three principal components as red, green and blue. Pixels with similar features
    have similar colors. Colors of different levels are unrelated. Each region has a color on the gray picture. If two
    regions overlap, the smaller is on top.

    Args:
        path: picture to write.
        rows: pictures with their priors.

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
    drawn = [_prior_panels(row) for row in rows]
    width = max(map(len, drawn))
    tall = [2.6 * row.picture.shape[-2] / row.picture.shape[-1] + 0.3 for row in rows]
    options = {"squeeze": False, "layout": "constrained", "height_ratios": tall}
    figure, axes = plt.subplots(len(rows), width, figsize=(2.6 * width, sum(tall)), **options)
    for row, line, panels in zip(rows, axes, drawn, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, (title, picture) in zip(line, panels, strict=False):
            axis.imshow(_rgb(picture), interpolation="nearest")
            axis.set_title(plain_label(title), fontsize=8)
        line[0].set_title(plain_label(row.name), fontsize=8, fontweight="bold", loc="left")
    save_figure(path, figure, dpi=110)


def _prior_panels(row: PriorsRow) -> list[tuple[str, Tensor]]:
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
    """Return the three principal components of a feature map, scaled from the 2nd and 98th percentiles to [0, 1]."""
    points = feature.detach().cpu().double().flatten(1)
    points = points - points.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(points @ points.T)
    components = vectors[:, -3:].flip(1).T
    # An eigenvector's sign is arbitrary: make the largest entry positive, so that pictures are reproducible.
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    shown = (components * largest.sign()) @ points
    low, high = torch.quantile(shown, torch.tensor([0.02, 0.98], dtype=shown.dtype), dim=1, keepdim=True)
    shown = ((shown - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    shown = F.pad(shown, (0, 0, 0, 3 - len(shown)))  # for maps with fewer than three channels
    return shown.view(3, *feature.shape[1:]).float()


def region_colors(picture: Float[Tensor, "3 h w"], masks: Bool[Tensor, "r h w"]) -> Float[Tensor, "3 h w"]:
    """Return the gray picture with a color for each region, the smaller region on top; the rest stays gray."""
    gray = picture.mean(dim=0, keepdim=True)
    drawn = gray.repeat(3, 1, 1)
    for index in masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        hue = index * 0.618034 % 1  # the golden ratio keeps the hues of any number of regions apart
        phase = torch.tensor([0.0, 1 / 3, 2 / 3]) + hue
        color = 0.5 + 0.5 * torch.cos(2 * math.pi * phase)
        drawn[:, masks[index]] = 0.45 * gray[:, masks[index]] + 0.55 * color[:, None]
    return drawn
