"""What came of a study: a line for each run, the paired gains, the table."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from plan import Study
from units import Unit

import skt_components as skt
from skt_components.evaluation import PairedSummary

_SHOWN = {"ORM": "this arm", "SPGRM": "network"}  # the column of the network's scores
METRICS = {"PSNR-mu": "dB PSNR-mu", "PSNR-L": "dB PSNR-L", "SSIM-mu": "SSIM-mu"}
SAME = 1e-3  # dB, between first validations of the same network: what another order of sums can do
Row = dict[str, Any]


def collect(units: Sequence[Unit], study: Study) -> list[Row]:
    """A row for each finished run, in the units' order."""
    return [describe_unit(unit, study) for unit in units if unit.finished]


def describe_unit(unit: Unit, study: Study) -> Row:
    """What a finished run left in its folder."""
    lines = skt.files.read_json_lines(unit.folder / "metrics.jsonl")
    scores = next(iter(json.loads((unit.folder / "scores.json").read_text(encoding="utf-8")).values()))
    steps = unit.options["steps"]
    samples = unit.options.get("batch_size", 4) * unit.options.get("accumulate", 1)
    first: Row = next((line["validation"]["ORM"] for line in lines if "validation" in line and line["step"] == 0), {})
    return {
        "arm": unit.arm,
        "seed": unit.seed,
        "fold": unit.fold,
        "steps": steps,
        "options": {key: value for key, value in unit.options.items() if study.base.get(key) != value},
        "scores": {name: {m: row[m] for m in METRICS} for name, row in scores.items()},
        "baselines": next((line["baselines"] for line in lines if "baselines" in line), {}),
        "start": {metric: first[metric] for metric in METRICS if metric in first},
        "seconds": training_seconds(lines, samples),
        "gradients": summarise_gradients(lines),
        "lead": teacher_lead(scores),
        "environment": _environment(unit.folder),
    }


def training_seconds(lines: Sequence[Row], samples_per_step: int) -> float:
    """Seconds that a run trained, without its validations, from the speeds it logged."""
    seconds, logged = 0.0, 0
    for line in lines:
        if line.get("samples_per_second"):
            seconds += (line["step"] + 1 - logged) * samples_per_step / line["samples_per_second"]
            logged = line["step"] + 1
    return round(seconds, 1)


def read_gradients(line: Row) -> dict[str, dict[str, dict[str, float]]]:
    """Norm as a share of L_org's, and cosine to it, of a logged step: place -> term -> name -> value."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place, terms in (line.get("gradients") or {}).items():
        unit = (terms.get("org") or {}).get("norm")
        if not unit:
            continue  # nothing to compare with
        for term, values in terms.items():
            if term != "org":
                # What does not pull at all, as alignment on the picture, pulls nowhere.
                row = {"share": values["norm"] / unit, "cosine": values.get("cosine") if values["norm"] else None}
                found.setdefault(place, {})[term] = {k: v for k, v in row.items() if v is not None}
    return found


def summarise_gradients(lines: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the logged steps of what :func:`read_gradients` finds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        for place, terms in read_gradients(line).items():
            for term, row in terms.items():
                for name, value in row.items():
                    values.setdefault((place, term, name), []).append(value)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (place, term, name), of in values.items():
        found.setdefault(place, {}).setdefault(term, {})[name] = round(statistics.median(of), 5)
    return found


def teacher_lead(scores: Row) -> float | None:
    """PSNR-mu of the teacher minus the student's at the end; None where there was no teacher."""
    if "SPGRM" not in scores:
        return None
    teacher, student = (statistics.fmean(scores[name]["PSNR-mu"]) for name in ("SPGRM", "ORM"))
    return round(teacher - student, 4)


def _environment(folder: Path) -> Row:
    file = folder / "environment.json"
    if not file.is_file():
        return {}
    entries = json.loads(file.read_text(encoding="utf-8"))
    last, git = entries[-1], entries[-1].get("git") or {}
    return {
        "device": (last["devices"] or [last["processors"]])[0],
        "threads": last["threads"],
        "torch": last["packages"].get("torch"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "starts": len(entries),
    }


def find_unpaired(rows: Sequence[Row], baseline: str) -> list[str]:
    """What says that runs are no pairs: the first validation, of untrained networks, differs from the baseline's."""
    starts = {(row["seed"], row["fold"]): row["start"] for row in rows if row["arm"] == baseline}
    found = []
    for row in rows:
        wanted = starts.get((row["seed"], row["fold"]))
        if wanted is None or row["arm"] == baseline:
            continue
        fold = f", fold {row['fold']}" if any(other["fold"] for other in rows) else ""
        who = f"{row['arm']}, seed {row['seed']}{fold}, is no pair with {baseline}"
        if not row["start"] or not wanted:
            found.append(f"{who}, as far as is known: a first validation is missing")
        for metric in row["start"].keys() & wanted.keys():
            if not abs(row["start"][metric] - wanted[metric]) <= SAME:
                found.append(f"{who}: before training {metric} is {row['start'][metric]} and {wanted[metric]}")
    return found


def find_mixed(rows: Sequence[Row]) -> list[str]:
    """What the runs were not made with alike."""
    found = []
    if any(row["environment"].get("dirty") for row in rows):
        found.append("some runs were made with code that is not committed")
    for name in ("device", "threads", "torch", "commit"):
        values = dict.fromkeys(str(row["environment"].get(name)) for row in rows)
        if len(values) > 1:
            found.append(f"the runs differ in {name}: {', '.join(values)}")
    return found


def scores_by_run(rows: Sequence[Row], metric: str, scored: str = "ORM") -> dict[tuple[str, int, int], list[float]]:
    """The network's values, one for each picture, by arm, seed and fold."""
    return {(row["arm"], row["seed"], row["fold"]): row["scores"][scored][metric] for row in rows}


def compare(rows: Sequence[Row], study: Study, ours: str, theirs: str, metric: str) -> PairedSummary | None:
    """Paired gain of one arm over another, over the seeds that both have, with all of the study's folds."""
    values = scores_by_run(rows, metric, study.scored)
    seeds, folds = sorted({seed for _, seed, _ in values}), range(study.folds)
    seeds = [s for s in seeds if all((arm, s, fold) in values for arm in (ours, theirs) for fold in folds)]
    if not seeds:
        return None
    of_ours, of_theirs = (
        [torch.tensor([x for fold in folds for x in values[arm, s, fold]], dtype=torch.float64) for s in seeds]
        for arm in (ours, theirs)
    )
    groups = None
    if study.folds > 1:  # so that there are photographs enough to draw from
        groups = [name for fold in folds for name in name_pictures(values[ours, seeds[0], fold], study, fold)]
    return skt.evaluation.paired_summary(of_ours, of_theirs, groups=groups, metric=METRICS[metric])


def name_pictures(scores: Sequence[float], study: Study, fold: int) -> list[str]:
    """The photograph that each validation picture shows: they take turns."""
    names = study.held_out(fold)
    return [names[index % len(names)] for index in range(len(scores))]


def gains_by_photograph(rows: Sequence[Row], study: Study, arm: str) -> dict[str, float]:
    """PSNR-mu gained over the baseline, photograph by photograph; nothing of data without them."""
    if not isinstance(study.data, dict) or "val" not in study.data:
        return {}
    values = scores_by_run(rows, "PSNR-mu", study.scored)
    found: dict[str, list[float]] = {}
    for (of, seed, fold), ours in values.items():
        theirs = values.get((study.baseline, seed, fold))
        if of != arm or theirs is None:
            continue
        for name, a, b in zip(name_pictures(ours, study, fold), ours, theirs, strict=True):
            found.setdefault(name, []).append(a - b)
    return {name: statistics.fmean(gains) for name, gains in sorted(found.items())}


def summarise(rows: Sequence[Row], study: Study, ratios: Mapping[str, float]) -> dict[str, Row]:
    """Everything in the table, arm by arm, as plain values."""
    found: dict[str, Row] = {}
    for arm in study.arms:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        seeds = sorted({row["seed"] for row in mine})
        found[arm] = {"seeds": seeds, "steps": mine[0]["steps"], "options": mine[0]["options"]}
        step = ratios.get(study.baseline if arm == study.equal_name else arm)
        found[arm] |= {} if step is None else {"time per step": step}
        found[arm]["means"] = {name: {m: _mean(mine, name, m) for m in METRICS} for name in mine[0]["scores"]}
        if arm == study.baseline:
            continue
        # The baseline's mean over the runs that this arm has.
        pairs = {(row["seed"], row["fold"]) for row in mine}
        theirs = [row for row in rows if row["arm"] == study.baseline and (row["seed"], row["fold"]) in pairs]
        found[arm]["baseline"] = {m: _mean(theirs, study.scored, m) for m in METRICS} if theirs else {}
        found[arm]["gain"] = _gains(rows, study, arm, study.baseline)
        found[arm]["gain by photograph"] = gains_by_photograph(rows, study, arm)
        if arm == study.equal_compute:  # whose time the longer baseline has
            found[arm]["gain at equal compute"] = _gains(rows, study, arm, study.equal_name)
    return found


def _gains(rows: Sequence[Row], study: Study, ours: str, theirs: str) -> dict[str, Row]:
    found = {metric: compare(rows, study, ours, theirs, metric) for metric in METRICS}
    return {metric: gain._asdict() for metric, gain in found.items() if gain is not None}


def _mean(rows: Sequence[Row], name: str, metric: str) -> float:
    return statistics.fmean(statistics.fmean(row["scores"][name][metric]) for row in rows)


def mean_baselines(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean scores of the pictures without training over all runs: title -> metric -> value."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for title, scores in row.get("baselines", {}).items():
            for metric in METRICS:
                found.setdefault(title, {}).setdefault(metric, []).append(scores[metric])
    return {title: {m: statistics.fmean(of) for m, of in scores.items()} for title, scores in found.items()}


def make_table(summary: Mapping[str, Row], study: Study, baselines: Mapping[str, Row] | None = None) -> str:
    """Markdown: pictures without training, then an arm a line, without columns that are empty for all."""
    lines = [_describe_arm(arm, row, study) for arm, row in summary.items()]
    empty = dict.fromkeys(lines[0] if lines else (), "-")
    free = [
        {**empty, "arm": title, _SHOWN[study.scored]: _shown(scores["PSNR-mu"], ".2f")}
        for title, scores in (baselines or {}).items()
    ]
    lines = free * bool(lines) + lines
    columns = [name for name in (lines[0] if lines else {}) if any(line[name] != "-" for line in lines)]
    cells = [columns, ["---"] * len(columns), *([line[name] for name in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _describe_arm(arm: str, row: Row, study: Study) -> dict[str, str]:
    gain, equal = (row.get(name, {}) for name in ("gain", "gain at equal compute"))
    one = gain.get("PSNR-mu", {})
    return {
        "arm": arm,
        "steps": str(row["steps"]),
        "seeds": str(len(row["seeds"])),
        f"{study.baseline} PSNR-mu": _shown(row.get("baseline", {}).get("PSNR-mu"), ".2f"),
        _SHOWN[study.scored]: _shown(row["means"]["ORM"]["PSNR-mu"], ".2f"),
        "teacher": _shown(row["means"].get("SPGRM", {}).get("PSNR-mu"), ".2f"),
        "gain [dB]": _interval(one, "+.3f"),
        "seeds' gains": " ".join(f"{g:+.2f}" for g in one["seed_gains"]) if one else "-",
        "wins": f"{one['wins']} of {len(one['seed_gains'])}" if one else "-",
        "time per step": _shown(row.get("time per step"), ".2f"),
        "gain at equal compute [dB]": _interval(equal.get("PSNR-mu"), "+.3f"),
        "gain PSNR-L [dB]": _interval(gain.get("PSNR-L"), "+.3f"),
        "gain SSIM-mu": _interval(gain.get("SSIM-mu"), "+.4f"),
    }


def _shown(value: float | None, digits: str) -> str:
    return "-" if value is None else format(value, digits)


def _interval(gain: Row | None, digits: str) -> str:
    return f"{gain['gain']:{digits}} [{gain['low']:{digits}}, {gain['high']:{digits}}]" if gain else "-"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_summary(path: Path, rows: Sequence[Row], **entries: Any) -> None:
    """Everything worth keeping in one small file: the table's values, and PSNR-mu of every picture."""
    runs = [
        {key: row[key] for key in ("arm", "seed", "fold", "steps", "seconds", "gradients", "lead", "environment")}
        | {"PSNR-mu": {name: [round(x, 3) for x in scores["PSNR-mu"]] for name, scores in row["scores"].items()}}
        for row in rows
    ]
    text = json.dumps(_rounded({**entries, "runs": runs}), indent=1)
    # A list of plain values on one line, so that the file stays readable, and a change of it too.
    text = re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value
