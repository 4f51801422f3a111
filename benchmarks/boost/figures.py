"""The figures of a study."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plan import Study
from results import Row, read_gradients
from units import Unit

import skt_components as skt
from skt_components.data.preview import load_pyplot

Run = tuple[int, int]  # seed and fold
Curves = dict[Run, dict[int, float]]  # run -> step -> value
PLACES = ("parameters", "picture", "stage 1", "stage 2", "stage 3")
REGIONS = ("knowledge_bank", "weights", "region_source", "regions", "metadata")  # what decides where they lie
TERMS = {"content": "C0", "color": "C1", "alignment": "C2", "spgrm": "C4"}


def draw_gains(path: Path, summary: Mapping[str, Row], study: Study) -> bool:
    """A line for each arm: the seeds' gains as dots, the mean and its interval."""
    arms = {arm: row["gain"]["PSNR-mu"] for arm, row in summary.items() if (row.get("gain") or {}).get("PSNR-mu")}
    if not arms:
        return False
    plt = load_pyplot()
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.45 * len(arms)), layout="constrained")
    for place, (arm, gain) in enumerate(reversed(arms.items())):
        color = "gray" if study.is_bare(arm) else "C0"
        axis.plot([gain["low"], gain["high"]], [place, place], color=color, linewidth=2)
        axis.plot(gain["gain"], place, "D", color=color)
        axis.plot(gain["seed_gains"], [place] * len(gain["seed_gains"]), "o", color="black", markersize=3, alpha=0.5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(arms)), list(reversed(arms)))
    axis.set_ylim(-0.5, len(arms) - 0.5)
    axis.set(xlabel=f"gain over {study.baseline} [dB PSNR-mu]: mean, 95 % interval, seeds", title=study.title)
    axis.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def draw_curves(path: Path, units: Sequence[Unit], study: Study) -> bool:
    """Validation by step: the mean over the seeds, from the smallest to the largest; the teacher dashed."""
    metrics = read_all(units)
    if not metrics:
        return False
    plt = load_pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (arm, runs) in enumerate(metrics.items()):
        for name, style in (("ORM", "-"), ("SPGRM", "--")):
            curves = pick(runs, lambda line, name=name: line.get("validation", {}).get(name, {}).get("PSNR-mu"))
            label = arm if name == "ORM" else None
            draw_band(axis, curves, label=label, color=f"C{number % 10}", linestyle=style, band=name == "ORM")
    lines = [line for runs in metrics.values() for log in runs.values() for line in log if "baselines" in line]
    for title, style in zip(skt.evaluation.BASELINES, ("-.", ":"), strict=True):
        if lines:
            level = statistics.fmean(line["baselines"][title]["PSNR-mu"] for line in lines)
            axis.axhline(level, color="black", linestyle=style, label=title)
    axis.set(xlabel="step", ylabel="validation PSNR-mu [dB]", title=f"{study.title} (dashed: the teacher)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _save(figure, path)


def draw_diagnosis(path: Path, units: Sequence[Unit], study: Study) -> bool:
    """For each arm with the framework: how strongly the terms pull and where to, the lead, the regions' colors."""
    metrics = read_all(units)
    arms = [arm for arm in metrics if not study.is_bare(arm)]
    if not arms:
        return False
    plt = load_pyplot()
    figure, axes = plt.subplots(len(arms), 4, figsize=(18, 3.4 * len(arms)), squeeze=False, layout="constrained")
    for arm, (shares, cosines, lead, regions) in zip(arms, axes, strict=True):
        gradients = [read_gradients(line) for lines in metrics[arm].values() for line in lines]
        draw_places(shares, gradients, "share", f"{arm}: gradient as a share of L_org's")
        shares.set_yscale("log")
        shares.axhline(1, color="black", linewidth=0.8)
        shares.set_ylim(bottom=max(shares.get_ylim()[0], 1e-5))  # the first step has hardly anything to transfer
        draw_places(cosines, gradients, "cosine", "cosine to L_org's gradient")
        cosines.axhline(0, color="black", linewidth=0.8)
        cosines.set_ylim(-1.05, 1.05)
        draw_lead(lead, metrics[arm])
        draw_regions(regions, metrics, study, arm)
        for axis in (lead, regions):
            axis.set_xlabel("step")
        for axis in (shares, cosines, lead, regions):
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7)
    return _save(figure, path)


def draw_places(axis: Any, gradients: Sequence[Any], name: str, title: str) -> None:
    """Median and quartiles over steps and seeds, by place, a color for each term."""
    places = [place for place in PLACES if any(place in found for found in gradients)]
    terms = list(dict.fromkeys(term for found in gradients for of in found.values() for term in of))
    for number, term in enumerate(terms):
        for x, place in enumerate(places):
            of = [found.get(place, {}).get(term, {}).get(name) for found in gradients]
            values = sorted(value for value in of if value is not None and (name != "share" or value > 0))
            if not values:
                continue
            low, middle, high = (values[round(q * (len(values) - 1))] for q in (0.25, 0.5, 0.75))
            color, at = TERMS.get(term, f"C{number + 3}"), x + 0.15 * (number - (len(terms) - 1) / 2)
            label = None if axis.get_legend_handles_labels()[1].count(term) else term
            axis.plot([at, at], [low, high], color=color)
            axis.plot(at, middle, "o", color=color, label=label)
    axis.set_xticks(range(len(places)), places, fontsize=8)
    axis.set_title(title, fontsize=9)


def draw_lead(axis: Any, runs: Mapping[Run, Sequence[Row]]) -> None:
    """The teacher's lead on the validation pictures."""

    def validated(line: Row) -> float | None:
        found = line.get("validation", {})
        return found["SPGRM"]["PSNR-mu"] - found["ORM"]["PSNR-mu"] if "SPGRM" in found else None

    draw_band(axis, pick(runs, validated), label="validation", color="black")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title("teacher's PSNR-mu minus the student's [dB]", fontsize=9)


def draw_regions(axis: Any, metrics: Mapping[str, Any], study: Study, arm: str) -> None:
    """Distance of the regions' histograms: student, teacher, and the baseline's network if its regions are the same."""
    shown = {"student": (arm, "ORM", "C0"), "teacher": (arm, "SPGRM", "C4")}
    if all(study.options(arm).get(name) == study.options(study.baseline).get(name) for name in REGIONS):
        shown[study.baseline] = (study.baseline, "ORM", "gray")
    for label, (of, name, color) in shown.items():
        curves = pick(metrics.get(of, {}), lambda line, n=name: region_distance(line, n))
        draw_band(axis, curves, label=label, color=color)
    axis.set_title("distance of the regions' histograms", fontsize=9)


def region_distance(line: Row, name: str) -> float | None:
    """That of a validation line, where it has one."""
    if name in line.get("region_distance", {}):
        return line["region_distance"][name]
    return line.get("validation", {}).get(name, {}).get("region distance")


def read_all(units: Sequence[Unit]) -> dict[str, dict[Run, list[Row]]]:
    """Metrics of the finished runs: arm -> run -> lines."""
    found: dict[str, dict[Run, list[Row]]] = {}
    for unit in units:
        if unit.finished:
            found.setdefault(unit.arm, {})[unit.seed, unit.fold] = skt.files.read_json_lines(
                unit.folder / "metrics.jsonl"
            )
    return found


def pick(runs: Mapping[Run, Sequence[Row]], value: Callable[..., float | None]) -> Curves:
    """Values by run and step, where a line has one."""
    return {
        run: {line["step"]: found for line in lines if (found := value(line)) is not None}
        for run, lines in runs.items()
    }


def draw_band(axis: Any, curves: Curves, *, band: bool = True, label: str | None, color: str, **options: Any) -> None:
    """Mean over the runs at the steps that all of them have, from the smallest to the largest."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
    if not steps:
        return
    rows = [[curve[step] for curve in curves.values()] for step in steps]
    axis.plot(steps, [statistics.fmean(row) for row in rows], color=color, label=label, **options)
    if band and len(curves) > 1:
        axis.fill_between(steps, [min(row) for row in rows], [max(row) for row in rows], color=color, alpha=0.15)


def _save(figure: Any, path: Path) -> bool:
    figure.savefig(path, dpi=110)
    load_pyplot().close(figure)
    return True
