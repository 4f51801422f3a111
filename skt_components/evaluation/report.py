"""What a run shows: a table, training curves, and sample pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from skt_components.data.preview import load_pyplot, show_exposures, show_radiance
from skt_components.data.sample import HDRSample
from skt_components.files.atomic import write_text
from skt_components.files.json_lines import read_json_lines


class SampleRow(NamedTuple):
    """One row of :func:`save_samples`; pictures are ``(3, H, W)``, display-like in [0, 1]."""

    name: str
    ldrs: Float[Tensor, "n 3 _h _w"]
    results: Mapping[str, Tensor]
    target: Float[Tensor, "3 h w"]
    labels: Int[Tensor, "h w"] | None = None

    @classmethod
    def from_sample(
        cls,
        sample: HDRSample,
        results: Mapping[str, Float[Tensor, "c h w"]],
        labels: Int[Tensor, "_h _w"] | None = None,
    ) -> SampleRow:
        """Return a sample and what networks made of it as the eye wants to see them.

        See :func:`show_exposures` and :func:`show_radiance`.

        Args:
            sample: one sample, without a batch axis.
            results: linear pictures in the target's shape and scale by name.
            labels: regions to show, of the tone-mapped picture.

        Example:
            >>> import torch
            >>> from skt_components.data import SyntheticScenes
            >>> sample = SyntheticScenes(1, 32)[0]
            >>> SampleRow.from_sample(sample, {"ours": sample.target}).ldrs.shape
            torch.Size([3, 3, 32, 32])
        """
        pictures = {name: show_radiance(hdr, sample) for name, hdr in results.items()}
        return cls(sample.name, show_exposures(sample), pictures, show_radiance(sample.target, sample), labels)


def format_table(rows: Mapping[str, Mapping[str, float]], digits: int = 3) -> str:
    """Return an aligned text table.

    Args:
        rows: title of each row -> column -> value; a missing value is shown as a dash.
        digits: decimals.

    Example:
        >>> print(format_table({"ORM": {"PSNR-mu": 40.0}, "SPGRM": {}}, digits=1))
               PSNR-mu
        ORM       40.0
        SPGRM        -
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    for title, row in rows.items():
        cells.append([title, *(f"{row[c]:.{digits}f}" if c in row else "-" for c in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = (
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def rewind_metrics(path: str | os.PathLike[str], run: str, step: int) -> None:
    """Drop what ``run`` logged from ``step`` on, for a run that goes on from there; no file, nothing to do.

    A validation at ``step`` itself, which came before the step, stays.
    """
    if not os.path.exists(path):
        return
    kept = [
        line
        for line in read_json_lines(path)
        if line.get("run") != run or line["step"] < step or ("validation" in line and line["step"] == step > 0)
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def save_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw a run's ``metrics.jsonl``: loss terms, shares of the gradient, validation PSNR-mu, and how fast it went.

    A colour is a term, a line style a run. The share is the norm of a weighted term's gradient divided by that of
    L_org in the same step: below 1, L_org leads. Black ticks at the bottom are notices.

    Args:
        metrics: JSON lines, each with its "step"; one with "terms" and "gradients" (place -> term -> norm and
            cosine) is a training step, which may have "lr" and "samples_per_second", for which there is a fourth panel;
            with "validation" (name -> metric -> value) a validation; with "notice" something odd. Lines may name a
            "run" other than the first.
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
    _draw_validation(validation, [line for line in lines if "validation" in line])
    for axis in others:
        _draw_speeds(axis, steps)
    notices = [line["step"] for line in lines if "notice" in line]
    for axis in axes.flat:
        if notices:
            axis.vlines(notices, 0, 0.05, "black", transform=axis.get_xaxis_transform(), label="notice")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="lower left" if axis in others else "best")  # no line of a right side there
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def save_samples(path: str | os.PathLike[str], rows: Sequence[SampleRow]) -> None:
    """Draw one row per scene: the exposures, the regions, each result, the target, and each result's error map.

    Args:
        path: picture to write.
        rows: scenes; all with the same number of exposures and the same results.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``rows`` is empty, or its scenes have different exposures, regions or results.
    """
    if not rows:
        raise ValueError("rows must hold at least one scene")
    drawn = [_panels(row) for row in rows]
    for row, panels in zip(rows, drawn, strict=True):
        found, wanted = [panel[0] for panel in panels], [panel[0] for panel in drawn[0]]
        if found != wanted:
            raise ValueError(f"rows must have the same pictures: {row.name!r} has {found}, the first has {wanted}")
    plt = load_pyplot()
    height, width = len(drawn), len(drawn[0])
    figure, axes = plt.subplots(
        height, width, figsize=(2.2 * width, 2.35 * height), squeeze=False, layout="constrained"
    )
    for row, line, panels in zip(rows, axes, drawn, strict=True):
        for axis, (title, picture, options) in zip(line, panels, strict=True):
            axis.imshow(picture, interpolation="nearest", **options)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(row.name, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(row: SampleRow) -> list[tuple[str, object, dict]]:
    def rgb(picture: Tensor) -> object:
        return picture.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()

    panels: list[tuple[str, object, dict]] = [(f"LDR {i + 1}", rgb(ldr), {}) for i, ldr in enumerate(row.ldrs)]
    if row.labels is not None:
        panels.append(("regions", row.labels.cpu().numpy(), {"cmap": "tab20"}))
    panels += [(name, rgb(picture), {}) for name, picture in row.results.items()]
    panels.append(("target", rgb(row.target), {}))
    for name, picture in row.results.items():
        error = (picture.detach().float() - row.target).abs().mean(0)
        title = f"|{name} - target|, white = 0.1"
        panels.append((title, error.cpu().numpy(), {"cmap": "inferno", "vmin": 0, "vmax": 0.1}))
    return panels


_STYLES = ("-", "--", ":", "-.")  # of the runs


def _gradient_shares(step: Mapping[str, Any]) -> dict[str, float]:
    """Return each term's gradient as a share of L_org's; nothing where there is no gradient to compare with."""
    norms = {name: found["norm"] for name, found in step.get("gradients", {}).get("parameters", {}).items()}
    return {name: norm / norms["org"] for name, norm in norms.items()} if norms.get("org") else {}


def _draw_terms(axis: Any, steps: list[dict], values: Callable[[dict], Mapping[str, float]], title: str) -> None:
    runs = list(dict.fromkeys(step.get("run") for step in steps))
    names = list(dict.fromkeys(name for step in steps for name in step["terms"]))  # of all: one colour in all panels
    curves: dict[tuple[Any, str], list[tuple[int, float]]] = {}
    for step in steps:
        for name, value in values(step).items():
            curves.setdefault((step.get("run"), name), []).append((step["step"], value))
    for (run, name), points in curves.items():
        color = f"C{names.index(name) % 10}" if name in names else "grey"
        label = f"{run} {name}" if len(runs) > 1 else name
        axis.plot(*zip(*points, strict=True), _STYLES[runs.index(run) % 4], color=color, label=label)
    found = [value for points in curves.values() for _, value in points if 0 < value < math.inf]
    if found:
        axis.set_yscale("log")
        # A term that starts at almost nothing would squeeze all others.
        axis.set_ylim(bottom=max(0.7 * min(found), max(found) * 1e-6))
    axis.set(title=title)


def _draw_validation(axis: Any, lines: list[dict]) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, values in line["validation"].items():
            curves.setdefault(f"{line.get('run', '')} {name}".strip(), []).append((line["step"], values["PSNR-mu"]))
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    axis.set(title="validation PSNR-mu [dB]")


def _draw_speeds(axis: Any, steps: list[dict]) -> None:
    """Draw the learning rate at the left, samples per second at the right."""
    runs = list(dict.fromkeys(step.get("run") for step in steps))
    sides = ((axis, "lr", "learning rate", "C0"), (axis.twinx(), "samples_per_second", "samples per second", "C1"))
    for side, key, title, color in sides:
        for index, run in enumerate(runs):
            points = [(step["step"], step[key]) for step in steps if step.get("run") == run and key in step]
            label, style = f"{run} {title}" if len(runs) > 1 else title, _STYLES[index % 4]
            if points:
                side.plot(*zip(*points, strict=True), style, color=color, label=label)
            if points and side is not axis:
                axis.plot([], [], style, color=color, label=label)  # one legend for both sides
        side.set_ylabel(title, color=color)
        side.set_ylim(bottom=0)
    axis.set(title="learning rate and speed", zorder=2)  # the legend over the lines of the right side,
    axis.patch.set_visible(False)  # which are seen through it
