"""The numbers of an evaluation: per picture, kept in a folder as they come, summed up with their uncertainty."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from skt_components.evaluation.statistics import _interval
from skt_components.files.atomic import atomic_write
from skt_components.files.versions import library_versions
from skt_components.ops.checks import check_count, check_positive, check_same_shape, check_tensor
from skt_components.ops.transfer import mu_law

Scores = Mapping[str, Mapping[str, float]]
"""Model -> metric -> value."""


class Summary(NamedTuple):
    """A mean over pictures and the interval that holds it with 95 % confidence; nan where there is no interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Return a mean and its percentile bootstrap interval: pictures drawn with replacement, over and over.

    It says how much another choice of such pictures would move the mean, not how precise a number is. For few pictures
    it is widened as in :func:`paired_summary`; one picture says nothing about others.

    Args:
        values: one per picture; infinite ones make the mean infinite or nan.
        confidence: share of the resampled means inside, in (0, 1).
        resamples: how many.
        seed: of the draws; the same values give the same interval.

    Returns:
        Mean and interval; its ends are nan for one picture, and where a value is infinite or nan.

    Raises:
        ValueError: there are no values, or an option is out of range.

    Example:
        >>> bootstrap_mean([30.0, 30.0, 30.0])
        Summary(mean=30.0, low=30.0, high=30.0)
    """
    if not len(values):
        raise ValueError("values must hold at least one picture's")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    count = check_count("resamples", resamples, 1)
    array, low, high = np.asarray(values, np.float64), math.nan, math.nan
    if len(array) > 1:
        low, high = _interval(array[None], confidence, count, np.random.default_rng(seed))  # as of one seed
    return Summary(float(array.mean()), low, high)


class EvaluationResults:
    """Numbers per picture, in ``metrics.json`` of a folder after every picture, so that an evaluation can go on.

    Finished pictures of an earlier run are there again. A folder of other models, data or another protocol is refused.

    Args:
        folder: made where it is missing.
        description: what has to be the same for the numbers to belong together (models, data, protocol), as plain
            values with names.
        source: returns what tells the files of the picture of a name from others, None where there is no such picture;
            it has to be the same for every finished picture. None: not compared.
        names: the pictures that count. Others that are finished stay in ``metrics.json``, under "others", for a run in
            which they count. None: all.

    Raises:
        ValueError: the folder holds results with another description or of other files, or its ``metrics.json`` is
            broken.

    Attributes:
        pictures: name -> model -> metric -> value.
        warnings: name -> what is odd about the picture.
        errors: name -> why there is nothing of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     EvaluationResults(folder, {"peak": 1.0}).add("001", {"ours": {"PSNR-mu": 41.5}})
        ...     EvaluationResults(folder, {"peak": 1.0}).pictures
        {'001': {'ours': {'PSNR-mu': 41.5}}}
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        description: Mapping[str, Any],
        *,
        source: Callable[[str], str | None] | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.description = json.loads(json.dumps(description))  # as it will be read back
        self.pictures: dict[str, dict[str, dict[str, float]]] = {}
        self.warnings: dict[str, list[str]] = {}
        self.errors: dict[str, str] = {}
        self._source, self._names = source, names
        self._sources: dict[str, str | None] = {}  # of all finished pictures
        self._others: dict[str, dict[str, Any]] = {}
        self.versions = [library_versions()]
        """Of this run and of the earlier ones that were different."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.json_file.exists():
            self._read()

    @property
    def json_file(self) -> Path:
        """Where the numbers are."""
        return self.folder / "metrics.json"

    def add(self, name: str, scores: Scores, warnings: Sequence[str] = ()) -> None:
        """Keep a picture's numbers, and write them down.

        Args:
            name: of the picture.
            scores: model -> metric -> value.
            warnings: what is odd about it.
        """
        self.errors.pop(name, None)
        self.pictures[name] = {model: dict(row) for model, row in scores.items()}
        if self._source is not None:
            self._sources[name] = self._source(name)
        self.warnings.pop(name, None)
        if warnings:
            self.warnings[name] = list(warnings)
        self.save()

    def fail(self, name: str, error: Exception) -> None:
        """Keep that a picture could not be evaluated, and why; the next run tries it again."""
        self.errors[name] = " ".join(f"{type(error).__name__}: {error}".split())
        self.save()

    def columns(self) -> list[tuple[str, str]]:
        """Return each (model, metric) that there is, in order."""
        pairs = ((model, metric) for row in self.pictures.values() for model in row for metric in row[model])
        return list(dict.fromkeys(pairs))

    def values(self, model: str, metric: str) -> list[float]:
        """Return one metric of one model, picture by picture."""
        rows = (row.get(model, {}) for row in self.pictures.values())
        return [row[metric] for row in rows if metric in row]

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Return model -> metric -> mean and interval of :func:`bootstrap_mean`.

        Of two models the row "A - B" is the mean difference on the same pictures: an interval without 0 says more
        than two intervals that overlap.
        """
        found: dict[str, dict[str, Summary]] = {}
        for model, metric in self.columns():
            found.setdefault(model, {})[metric] = bootstrap_mean(self.values(model, metric))
        if len(found) == 2:
            ours, theirs = found
            gains = {}
            for metric in found[ours]:
                pairs = zip(self.values(ours, metric), self.values(theirs, metric), strict=True)
                gains[metric] = bootstrap_mean([a - b if a != b else 0.0 for a, b in pairs])
            found[f"{ours} - {theirs}"] = gains
        return found

    def save(self) -> None:
        """Write ``metrics.json``; a reader sees the old file or the new one."""
        content = {
            "description": self.description,
            "versions": self.versions,
            "summary": {m: {k: v._asdict() for k, v in row.items()} for m, row in self.summary().items()},
            "pictures": self.pictures,
            "warnings": self.warnings,
            "errors": self.errors,
            "sources": self._sources,
            "others": self._others,
        }
        with atomic_write(self.json_file) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(_plain(content), file, indent=1, ensure_ascii=False)

    def save_csv(self) -> None:
        """Write ``metrics.csv``: one line per picture and model, then means and intervals; "# " starts a remark."""
        metrics = list(dict.fromkeys(metric for _, metric in self.columns()))
        described = {**self.description, "versions": self.versions}
        with (
            atomic_write(self.folder / "metrics.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as f,
        ):
            f.writelines(f"# {key}: {json.dumps(_plain(v), ensure_ascii=False)}\n" for key, v in described.items())
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(["picture", "model", *metrics])
            for name, row in self.pictures.items():
                writer.writerows([name, model, *(line.get(m, "") for m in metrics)] for model, line in row.items())
            for model, line in self.summary().items():
                for kind, title in zip(Summary._fields, ("mean", "mean, 95% low", "mean, 95% high"), strict=True):
                    cells = [getattr(line[m], kind) if m in line else "" for m in metrics]
                    cells = ["-" if kind != "mean" and cell != cell else cell for cell in cells]  # nan: no interval
                    writer.writerow([title, model, *cells])

    def _read(self) -> None:
        try:
            content = json.loads(self.json_file.read_text(encoding="utf-8"))
            others = content.get("others", {})
            kinds = {kind: content[kind] | others.get(kind, {}) for kind in ("pictures", "warnings", "errors")}
            kinds["pictures"] = {
                name: {model: {metric: float(v) for metric, v in line.items()} for model, line in row.items()}
                for name, row in kinds["pictures"].items()
            }
            described, versions, sources = content["description"], content["versions"], dict(content.get("sources", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.json_file} is not what an evaluation writes; move it away: {error!r}") from error
        differences = _differences(described, self.description)
        if self._source is not None:
            found = ((name, sources.get(name), self._source(name)) for name in kinds["pictures"])
            differences += [
                f"{name} {old or 'unknown'}, {new or 'no such picture'}" for name, old, new in found if old != new
            ]
        if differences:
            raise ValueError(
                f"{self.folder} holds results of another evaluation; choose another folder. There and here: "
                + "; ".join(differences[:4])
            )
        for kind, held in kinds.items():
            counts = {name: value for name, value in held.items() if self._names is None or name in self._names}
            setattr(self, kind, counts)
            if rest := {name: value for name, value in held.items() if name not in counts}:
                self._others[kind] = rest
        self._sources = sources
        self.versions = [v for v in versions if v != self.versions[0]] + self.versions


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return where two descriptions differ, by the names that lead there."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        inner = (_differences(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in keys)
        return list(itertools.chain(*inner))
    return [] if old == new else [f"{path} {old!r}, {new!r}"]


def _plain(value: Any) -> Any:
    """Return the value without the numbers that JSON does not have, which become text that ``float`` takes."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def find_suspicious(
    prediction: Float[Tensor, "3 h w"],
    target: Float[Tensor, "3 h w"],
    *,
    peak: float = 1.0,
    bounded: bool = True,
    low_light: bool = False,
) -> list[str]:
    """Return, in words, what looks like a wrong channel order or a wrong peak; nothing for what looks right.

    A prediction that is not finite is said to be so, and not compared.

    Args:
        prediction: ``(3, H, W)`` linear RGB on the scale of ``peak``.
        target: alike.
        peak: linear value of white.
        bounded: no target exceeds the peak. Simulated scenes, whose lights do, are not: there only a twentieth of all
            values above it is suspicious.
        low_light: targets far below the peak are normal, as in BracketIRE.

    Raises:
        TypeError: a picture is no floating-point tensor.
        ValueError: shapes differ or are not ``(3, H, W)``, or ``peak`` is not above 0.

    Example:
        >>> target = torch.linspace(0, 1, 3 * 16 * 16).view(3, 16, 16)
        >>> find_suspicious(target, target)
        []
        >>> find_suspicious(target.flip(0), target)[0]
        'the prediction fits far better with its channels as BGR: a wrong channel order?'
    """
    check_tensor("prediction", prediction, ndim=3, layout="(3, H, W)", channels=3)
    check_same_shape("prediction", prediction, "target", target)
    check_positive("peak", peak)
    prediction, target = (picture.detach().double() / peak for picture in (prediction, target))
    finite = bool(prediction.isfinite().all())
    found = _suspicious_order(prediction, target) if finite else ["the prediction holds infinite or NaN values"]
    highest, above = float(target.max()), float((target > 1).double().mean())
    if above > 0.05 or (bounded and highest > 1.001):
        found.append(f"the target reaches {highest * peak:.4g}, above the peak of {peak:g}: a wrong peak?")
    elif highest < 1 / 64 and not low_light:
        found.append(f"the target reaches only {highest * peak:.3g}, the peak is {peak:g}: a wrong peak?")
    ratio = float(prediction.mean() / target.mean()) if target.mean() > 0 else 1.0
    if finite and not 1 / 6 < ratio < 6:
        found.append(f"the prediction is {ratio:.3g} times as bright as the target: a wrong peak or exposure?")
    return found


def _suspicious_order(prediction: Tensor, target: Tensor) -> list[str]:
    """Compare the colours of blocks under each order of channels, their brightness left out, which may be far off."""
    coarse = [F.adaptive_avg_pool2d(picture.clamp(min=0), 16) for picture in (prediction, target)]
    gain = coarse[1].mean() / coarse[0].mean().clamp(min=1e-12)
    shown, wanted = (c - c.mean(0) for c in (mu_law(coarse[0] * gain), mu_law(coarse[1])))
    orders = list(itertools.permutations(range(3)))
    errors = [float((shown[list(order)] - wanted).square().mean()) for order in orders]
    best = min(range(len(orders)), key=errors.__getitem__)
    # The other order must be better than grey too: the colours of a poor network fit in none.
    if errors[0] < 1e-4 or errors[best] > min(0.5 * errors[0], float(wanted.square().mean())):
        return []
    name = "".join("RGB"[channel] for channel in orders[best])
    return [f"the prediction fits far better with its channels as {name}: a wrong channel order?"]
