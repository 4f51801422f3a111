"""What a study is: its file, read and checked, and what of it may not change while it goes on."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from skt_components.files.lock import LOCK_FILE
from skt_components.files.toml import read_toml
from skt_components.training import TrainConfig, build_data, parse_options, to_arguments

ROOT = Path(__file__).parents[2]
# Data, its order, the number of steps and the network are the same for both of a pair.
PAIRED = (
    *("data", "camera", "orm", "batch_size", "accumulate", "crop", "val_crop", "val_samples", "steps"),
    *("validate_every", "precision", "channels_last", "compile"),
)
GIVEN = {  # by the study itself or its command line
    **{"seed": "seeds of the study", "seeds": "seeds of the study", "root": "--root", "out": "--out"},
    **{"device": "--device", "bare": "an arm", "resume": "the same command again", "config": "[base]"},
    **{"compare": "the arms", "dry_run": "the training script itself", "val_names": "folds"},
}
TOP = ("title", "seeds", "baseline", "processes", "base", "arms", "equal_compute", "picture", "folds", "scored")
Options = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Arms and seeds, with options of ``examples/train_full.py``."""

    title: str
    baseline: str
    seeds: tuple[int, ...]
    base: Options
    arms: dict[str, Options]
    equal_compute: str | None = None
    """The arm whose time per step decides how many steps the baseline's longer run has."""
    picture: str | None = None
    """The arm in pictures.png."""
    processes: int = 1
    folds: int = 1
    """How many groups of photographs validate in turn; each pair of a seed is trained that often."""
    scored: str = "ORM"
    """Whose scores the gains are of: "ORM", the network, or "SPGRM", the teacher."""
    device: str = "cpu"
    data: Any = None
    """Names and sizes of the photographs."""

    def options(self, arm: str) -> Options:
        """All options of an arm, and whether it is bare."""
        return {**self.base, **self.arms[arm]}

    def is_bare(self, arm: str) -> bool:
        """Whether an arm trains the network alone."""
        return bool(self.arms[arm].get("bare"))

    def held_out(self, fold: int) -> list[str]:
        """Photographs that validate: the last ones by name, and before these, fold by fold."""
        names, count = sorted([*self.data["train"], *self.data["val"]]), len(self.data["val"])
        end = len(names) - fold * count
        return names[max(0, end - count) : end]

    @property
    def equal_name(self) -> str:
        """The arm that :meth:`with_equal_compute` adds."""
        return f"{self.baseline}, equal compute"

    @property
    def shown(self) -> str | None:
        """The arm in pictures.png: the one named, or the first with the framework."""
        return self.picture or next((arm for arm in self.arms if not self.is_bare(arm)), None)

    def with_equal_compute(self, ratios: Mapping[str, float]) -> Study:
        """Add the baseline with as many steps more as a step of the named arm takes longer, once that is known."""
        if self.equal_compute is None or not {self.equal_compute, self.baseline} <= ratios.keys():
            return self
        ratio = ratios[self.equal_compute] / ratios[self.baseline]
        steps = max(1, round(self.base["steps"] * ratio))
        return replace(self, arms={**self.arms, self.equal_name: {**self.arms[self.baseline], "steps": steps}})


def read_study(path: Path) -> Study:
    """Read a study's file; what its options mean is checked by :func:`check_options`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something in it is wrong; the message names it.
    """
    table = read_toml(path)
    _check_names(f"{path}:", table, TOP)
    for name, kind, wanted in (
        ("title", str, "a text"),
        ("seeds", list, "a list of whole numbers"),
        ("baseline", str, "the name of an arm"),
        ("base", dict, "a table of options"),
        ("arms", dict, "tables [arms.NAME]"),
    ):
        if not isinstance(table.get(name), kind):
            raise ValueError(f"{path}: {name} must be {wanted}, got {table.get(name)!r}")
    study = Study(**{**table, "seeds": tuple(table["seeds"])})
    _check_study(path, study)
    return study


def _check_study(path: Path, study: Study) -> None:
    check_seeds(f"{path}: seeds", study.seeds)
    if isinstance(study.processes, bool) or not isinstance(study.processes, int) or study.processes < 1:
        raise ValueError(f"{path}: processes must be a whole number >= 1, got {study.processes!r}")
    if isinstance(study.folds, bool) or not isinstance(study.folds, int) or study.folds < 1:
        raise ValueError(f"{path}: folds must be a whole number >= 1, got {study.folds!r}")
    if study.folds > 1 and study.base.get("data") != "hdr-folder":
        raise ValueError(f'{path}: folds are of the photographs of data = "hdr-folder", got folds = {study.folds}')
    for arm, options in study.arms.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", arm):
            raise ValueError(f"{path}: an arm's name must be of small letters, digits and hyphens, got {arm!r}")
        if not isinstance(options, dict):
            raise ValueError(f"{path}: arms.{arm} must be a table of options, got {options!r}")
    for name in ("baseline", "equal_compute", "picture"):
        arm = getattr(study, name)
        if arm is not None and arm not in study.arms:
            raise ValueError(f"{path}: {name} must be one of the arms {', '.join(study.arms)}, got {arm!r}")
    if study.scored not in ("ORM", "SPGRM"):
        raise ValueError(f"{path}: scored must be ORM or SPGRM, got {study.scored!r}")
    if study.scored == "SPGRM" and any(study.is_bare(arm) for arm in study.arms):
        raise ValueError(f"{path}: scored is SPGRM, the teacher, and a bare arm has none")
    if study.equal_compute == study.baseline:
        raise ValueError(f"{path}: equal_compute must be another arm than the baseline {study.baseline!r}")
    if "steps" not in study.base:
        raise ValueError(f"{path}: [base] must say how many steps")


def check_seeds(name: str, seeds: Iterable[Any]) -> None:
    """Raise ValueError unless there are seeds, each once."""
    seeds = list(seeds)
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"{name} must be whole numbers >= 0, one at least, got {seeds}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"{name} must differ, got {seeds}")


def check_options(path: Path, study: Study, root: Path | None) -> None:
    """Raise ValueError unless every arm is a run of the loop, and a pair with the baseline."""
    if root is not None and study.base.get("data", "synthetic") == "synthetic":
        raise ValueError(f"--root {root}: {path} is of procedural scenes, which read no files: leave it away")
    known = [field.name for field in fields(TrainConfig)]
    for where, options in {"base": study.base, **{f"arms.{arm}": o for arm, o in study.arms.items()}}.items():
        _check_names(f"{path}: [{where}]:", options, known, "option")
        for name in options:
            if name in GIVEN and not (name == "bare" and where != "base"):
                raise ValueError(f"{path}: [{where}]: {name} is not an option of a study's file: {GIVEN[name]} says it")
            if name in PAIRED and where != "base":
                raise ValueError(
                    f"{path}: [{where}]: {name} must be the same for all arms, or they are no pairs: set it in [base]; "
                    f"an arm may not have {', '.join(PAIRED)}"
                )
    for arm in study.arms:
        shown = io.StringIO()
        try:
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
                parse_options([*to_arguments(study.options(arm)), *root_arguments(study, root)])
        except SystemExit:
            lines = [line.strip(" \u2500\u2502\u256d\u256e\u2570\u256f-") for line in shown.getvalue().splitlines()]
            text = " ".join(line for line in lines if line and not line.startswith(("For full help", "Value error")))
            raise ValueError(f"{path}: [arms.{arm}], with [base]: {text}") from None


def root_arguments(study: Study, root: Path | None) -> list[str]:
    """The folder of the data, where there is one."""
    return [] if root is None or study.base.get("data", "synthetic") == "synthetic" else ["--root", str(root)]


def _check_names(where: str, found: Iterable[str], known: Iterable[str], kind: str = "key") -> None:
    known = list(known)
    for name in found:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"{where} no {kind} {name!r}{f', is {similar[0]} meant?' if similar else ''}")


def list_data(study: Study, root: Path | None) -> Any:
    """Names and bytes of the photographs that train and validate, by which a study knows its data again.

    Of simulated scenes, what ``simulate`` noted of them; None of other data.
    """
    if root is None:
        return None
    config = parse_options([*to_arguments(study.base), *root_arguments(study, root)])
    alone = replace(config, procedural_share=0.0, pool=0, exposure_ratios=config.exposure_ratios[:1])
    data = build_data(alone)  # the photographs without what is mixed with them
    if study.base.get("data") != "hdr-folder":
        note = root / "simulated.json"
        return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    found = {
        split: {path.relative_to(part.root).as_posix(): path.stat().st_size for path in part.files}
        for split, part in zip(("train", "val"), data, strict=True)
    }
    if (count := sum(map(len, found.values()))) < study.folds * len(found["val"]):
        raise ValueError(f"{study.folds} folds of {len(found['val'])} photographs are more than the {count} of {root}")
    return found


def load_study(out: Path) -> Study | None:
    """The study of a folder, or None where there is none yet."""
    if not (out / "study.json").is_file():
        return None
    stored = json.loads((out / "study.json").read_text(encoding="utf-8"))
    return Study(**{**stored, "seeds": tuple(stored["seeds"])})


def join_studies(out: Path, study: Study) -> Study:
    """The study of the folder with what is new of ``study``: seeds and arms.

    Raises:
        ValueError: the folder holds another study.
    """
    before = load_study(out)
    if before is None:
        if out.exists() and (not out.is_dir() or any(path.name != LOCK_FILE for path in out.iterdir())):
            raise ValueError(f"--out {out} exists, is not empty and holds no study: choose another")
        return study
    shared = [arm for arm in study.arms if arm in before.arms]
    fixed = ["base", "baseline", "folds", "device", "data"]
    fixed += [] if before.equal_compute is None else ["equal_compute"]
    old, new = (
        {**{name: getattr(of, name) for name in fixed}, "arms": {arm: of.arms[arm] for arm in shared}}
        for of in (before, study)
    )
    if differences := list(_differences(old, new)):
        raise ValueError(f"--out {out} holds another study: {'; '.join(differences)}; choose another folder")
    seeds = tuple(dict.fromkeys([*study.seeds, *before.seeds]))
    rest = {arm: options for arm, options in before.arms.items() if arm not in study.arms}
    return replace(study, seeds=seeds, arms={**study.arms, **rest})


def _differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {json.dumps(old)} and is {json.dumps(new)} now"


def write_study(out: Path, study: Study) -> None:
    """Write ``study.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(json.dumps(asdict(study), indent=1) + "\n", encoding="utf-8")
