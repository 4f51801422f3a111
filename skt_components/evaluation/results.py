"""Scores of an evaluation by picture: stored after every picture, summarized with intervals."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from skt_components.evaluation.baselines import BASELINES
from skt_components.evaluation.statistics import Summary, bootstrap_mean
from skt_components.files.atomic import write_text
from skt_components.files.packages import library_versions

Scores = Mapping[str, Mapping[str, float]]
"""Model -> metric -> value."""


class EvaluationResults:
    """Store scores by picture, in ``metrics.json`` of a folder, after every picture.

    Finished pictures of an earlier run are loaded, so that an evaluation can continue. A folder with results of other
    models, data or protocols is rejected.

    Args:
        folder: is created if it does not exist.
        description: plain values that must be equal for the scores to belong together (models, data, protocol).
        source: function of the name of a picture. It returns a text that identifies the files of the picture, such as
            :func:`picture_source`, or None if there is no such picture. The text must be unchanged for all finished
            pictures. None: do not compare.
        names: the pictures of this run. Other finished pictures stay in ``metrics.json``, under "others". A later run
            can use them. None: all.

    Raises:
        ValueError: the folder holds results with another description or of other files, or its ``metrics.json`` is
            broken.

    Attributes:
        pictures: name -> model -> metric -> value.
        warnings: name -> remarks about a suspicious picture.
        errors: name -> why the picture could not be evaluated.

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
        self.json_file = self.folder / "metrics.json"
        self.description = json.loads(json.dumps(description))  # as read from the file
        self.pictures: dict[str, dict[str, dict[str, float]]] = {}
        self.warnings: dict[str, list[str]] = {}
        self.errors: dict[str, str] = {}
        self._source, self._names = source, names
        self._sources: dict[str, str | None] = {}  # of all finished pictures
        self._others: dict[str, dict[str, Any]] = {}
        self.versions = [library_versions()]
        """Library versions of earlier runs that differ, and of this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.json_file.exists():
            self._read()

    def add(self, name: str, scores: Scores, warnings: Sequence[str] = ()) -> None:
        """Store a picture's scores and the remarks about it in the file."""
        self.errors.pop(name, None)
        self.pictures[name] = {model: dict(row) for model, row in scores.items()}
        if self._source is not None:
            self._sources[name] = self._source(name)
        self.warnings.pop(name, None)
        if warnings:
            self.warnings[name] = list(warnings)
        self.save()

    def fail(self, name: str, error: Exception) -> None:
        """Store why a picture could not be evaluated; the next run tries it again."""
        self.errors[name] = " ".join(f"{type(error).__name__}: {error}".split())
        self.save()

    def columns(self) -> list[tuple[str, str]]:
        """Return all pairs (model, metric), in order."""
        pairs = ((model, metric) for row in self.pictures.values() for model in row for metric in row[model])
        return list(dict.fromkeys(pairs))

    def values(self, model: str, metric: str) -> list[float]:
        """Return one metric of one model for each picture that has it."""
        rows = (row.get(model, {}) for row in self.pictures.values())
        return [row[metric] for row in rows if metric in row]

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Return model -> metric -> mean and interval of :func:`bootstrap_mean`.

        With two models beside the baselines, the row "A - B" holds the mean difference on the same pictures. Its
        interval can exclude 0 where the intervals of the models overlap.
        """
        found: dict[str, dict[str, Summary]] = {}
        for model, metric in self.columns():
            values, bounds = self.values(model, metric), metric_bounds(metric)
            found.setdefault(model, {})[metric] = bootstrap_mean(values, bounds=bounds)
        trained = [model for model in found if model not in BASELINES]
        if len(trained) == 2:
            ours, theirs = trained
            gains = {}
            for metric in found[ours]:
                pairs = zip(self.values(ours, metric), self.values(theirs, metric), strict=True)
                lowest, highest = metric_bounds(metric)
                values = [a - b if a != b else 0.0 for a, b in pairs]
                gains[metric] = bootstrap_mean(values, bounds=(lowest - highest, highest - lowest))
            found[f"{ours} - {theirs}"] = gains
        return found

    def worst(self) -> list[str]:
        """Return the names of the pictures by their first score, the lowest first."""
        first = self.columns()[:1]
        return sorted(self.pictures, key=lambda name: [self.pictures[name][model][metric] for model, metric in first])

    def problems(self) -> list[str]:
        """Return a line for each remark and each picture that could not be evaluated."""
        warnings = [f"warning, {name}: {line}" for name, lines in self.warnings.items() for line in lines]
        return warnings + [f"not evaluated, {name}: {error}" for name, error in self.errors.items()]

    def save(self) -> None:
        """Write ``metrics.json``, whole or not at all."""
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
        content = _strict_json(content)
        # Names that are not UTF-8 become escapes, which JSON reads.
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=False)
        write_text(self.json_file, text, errors="backslashreplace")

    def save_csv(self) -> None:
        """Write ``metrics.csv``: one line per picture and model, then means and intervals; comments start with "# ".

        A name that a spreadsheet would take for a formula gets an apostrophe in front of it.
        """
        metrics = list(dict.fromkeys(metric for _, metric in self.columns()))
        described = {**self.description, "versions": self.versions}
        text = io.StringIO()
        text.writelines(f"# {key}: {json.dumps(_strict_json(v), ensure_ascii=False)}\n" for key, v in described.items())
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["picture", "model", *map(_plain_cell, metrics)])
        for name, row in self.pictures.items():
            for model, line in row.items():
                writer.writerow([_plain_cell(name), _plain_cell(model), *(line.get(m, "") for m in metrics)])
        for model, means in self.summary().items():
            for kind, title in zip(Summary._fields, ("mean", "mean, 95% low", "mean, 95% high"), strict=True):
                cells = [getattr(means[m], kind) if m in means else "" for m in metrics]
                cells = ["-" if kind != "mean" and cell != cell else cell for cell in cells]  # nan: no interval
                writer.writerow([title, _plain_cell(model), *cells])
        write_text(self.folder / "metrics.csv", text.getvalue(), errors="backslashreplace")

    def _read(self) -> None:
        try:
            content = json.loads(self.json_file.read_text(encoding="utf-8"))
            if "sha256" in content and content["sha256"] != _digest(content):  # older files have none
                raise ValueError("its scores were changed after they were written")
            others = content.get("others", {})
            kinds = {kind: content[kind] | others.get(kind, {}) for kind in ("pictures", "warnings", "errors")}
            kinds["pictures"] = {
                name: {model: {metric: float(v) for metric, v in line.items()} for model, line in row.items()}
                for name, row in kinds["pictures"].items()
            }
            described, versions, sources = content["description"], content["versions"], dict(content.get("sources", {}))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            message = f"{self.json_file} must be a file that an evaluation wrote; move it away: {error!r}"
            raise ValueError(message) from error
        differences = _differences(described, self.description)
        if self._source is not None:
            for name in kinds["pictures"]:
                if (old := sources.get(name)) != (new := self._source(name)):
                    differences.append(f"{name} {old or 'unknown'}, {new or 'no such picture'}")
        if differences:
            message = f"{self.folder} holds results of another evaluation; choose another folder. There and here: "
            raise ValueError(message + "; ".join(differences[:4]))
        for kind, held in kinds.items():
            counts = {name: value for name, value in held.items() if self._names is None or name in self._names}
            setattr(self, kind, counts)
            if rest := {name: value for name, value in held.items() if name not in counts}:
                self._others[kind] = rest
        self._sources = sources
        self.versions = [v for v in versions if v != self.versions[0]] + self.versions


def metric_bounds(metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have.

    Example:
        >>> metric_bounds("SSIM-mu"), metric_bounds("PSNR-mu")
        ((-1.0, 1.0), (-inf, inf))
    """
    if "SSIM" in metric:
        return -1.0, 1.0
    return 0.0 if metric == "LPIPS" else -math.inf, 100.0 if metric == "HDR-VDP-2" else math.inf


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the scores of all pictures, and of what identifies their files."""
    scores = {key: content[key] for key in ("pictures", "others", "sources")}
    return hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the paths of keys where two descriptions differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        inner = (_differences(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in keys)
        return list(itertools.chain(*inner))
    return [] if old == new else [f"{path} {old!r}, {new!r}"]


def _plain_cell(text: str) -> str:
    """Return a text that neither begins a formula in a spreadsheet nor a comment, by an apostrophe in front of it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "#", "'")) else text


def _strict_json(value: Any) -> Any:
    """Return the value with infinity and NaN, which JSON does not have, as text that ``float`` reads."""
    if isinstance(value, dict):
        return {key: _strict_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def picture_source(files: Mapping[str, Sequence[Path]], name: str) -> str | None:
    """Return the total size of a picture's files, and a digest of their names, sizes and middles.

    The middles distinguish RAW files, which are all of one size.

    Args:
        files: name -> files of a picture.
        name: a key of ``files``, or ``KEY-NUMBER`` for a view of the picture; None is returned for other names.
    """
    found = files.get(name, files.get(name.rpartition("-")[0]))
    if found is None:
        return None
    total, digest = 0, hashlib.sha256()
    for path in found:
        size = path.stat().st_size if path.is_file() else 0
        digest.update(f"{path.name} {size} ".encode("utf-8", "surrogateescape"))
        total += size
        if size:
            with path.open("rb") as file:
                file.seek(size // 2)
                digest.update(file.read(4096))
    return f"{total} bytes {digest.hexdigest()[:16]}"
