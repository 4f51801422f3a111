"""The folder of a run: made once, never written over, and readable without this library."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from skt_components import evaluation
from skt_components.data.sample import HDRSample
from skt_components.files.atomic import is_leftover, remove_leftovers, write_text
from skt_components.files.json_lines import append_json_line, read_json_lines
from skt_components.files.lock import LOCK_FILE, FolderLock
from skt_components.files.toml import read_toml
from skt_components.training.config import TrainConfig, to_toml
from skt_components.training.engine import Engine
from skt_components.training.environment import write_environment
from skt_components.training.guards import ResourceError, advise
from skt_components.training.run_summary import write_run_summary
from skt_components.training.validation import Scores, Validator, results_table

FIXED = (
    *("data", "camera", "metadata", "orm", "taps", "knowledge_bank", "bank_taps", "region_source", "regions"),
    *("perceptual", "joint", "detach_features", "org_rms_weight", "org_perceptual_weight", "teacher_stride"),
    *("teacher_domain", "optimizer", "crop", "val_crop", "seed", "seeds", "bare", "val_samples", "val_names"),
    *("procedural_share", "vary_colors", "exposure_ratios", "pool", "init", "init_official", "start"),
    *("freeze_orm", "detach_teacher", "priors_of"),
)
"""Options that make a run the run that it is: a resumed run must have the same."""
CHANGEABLE = (
    *("root", "weights", "download"),  # files move
    *("loss_weights", "content_weight", "color_weight", "alignment_weight", "perceptual_weight"),
    *("transfer_start", "transfer_ramp", "steps", "lr", "final_lr", "schedule", "warmup_steps", "warmup_lr"),
    *("batch_size", "accumulate"),  # :func:`restore_state` checks the number of samples per step
    *("weight_decay", "clip_grad"),
    "ema_decay",  # which can be neither added nor removed
    *("device", "precision", "channels_last", "compile", "checkpointing", "workers"),
    *("log_every", "validate_every", "checkpoint_every", "keep", "trackers", "spike_factor", "compare"),
)
"""Options that a resumed run may give anew; from then on they apply."""
_NOT_STORED = ("config", "resume", "out", "dry_run")


class RunFolder:
    """Make or resume the folder of a run, lock it, start its trackers and print where it is.

    With several seeds each has a folder below it. The lock ends with :meth:`finish`, with an error in
    :meth:`explain_errors`, or with the process.

    Args:
        config: the options.
        engine: the process; the main one writes.

    Attributes:
        path: the folder.

    Raises:
        BlockingIOError: another process trains in the folder.
        FileExistsError: ``config.out`` exists and is not empty.
        FileNotFoundError: ``config.resume`` does not exist.
        ValueError: the run to resume has other data, networks or seeds.
    """

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self._lock: FolderLock | None = None
        self.path: Path = engine.on_main(self._open)
        self._recorded, self._current = False, self.path
        engine.start_trackers(self.path, asdict(config))
        if engine.is_main:
            several = engine.processes > 1
            device = f"{engine.processes} x {engine.device.type}" if several else str(engine.device)
            start = f"from {config.init}" if config.init else f"from {config.start} weights"
            task = f"{config.orm} {start} with {config.knowledge_bank} on {config.data}"
            print(f"{task}, {device}, {config.steps} steps -> {self.path}")

    def seed_configs(self) -> Iterator[tuple[TrainConfig, Path]]:
        """Yield the options and the folder of every seed."""
        first, count = self.config.seed, self.config.seeds
        for seed in range(first, first + count):
            folder = self.path / f"seed-{seed}" if count > 1 else self.path
            folder.mkdir(exist_ok=True)
            self._current = folder
            yield replace(self.config, seed=seed), folder

    def record_start(self) -> None:
        """Write environment and options in the main process, and remove temporary files of killed processes.

        A resumed run calls this when it has found its state, so that a rejected one does not change the folder.
        """
        if self.engine.is_main and not self._recorded:
            self._recorded = True
            remove_leftovers(self.path)
            write_environment(self.path)
            write_options(self.path, self.config)

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """If the block ends with an error, write it into the log, the curves and the page of the run.

        Raises:
            ResourceError: memory, the disk or another process failed; the message says what to do.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            advice = advise(error)
            told = error if advice is None else ResourceError(f"{advice}; then continue with resume={self.path}")
            if self.engine.is_main and (self.config.resume is None or self._recorded):
                self._write_error(told)
            self._release()
            raise told from (None if told is error else error)

    def finish_seed(
        self,
        folder: Path,
        scores: Mapping[str, Scores],
        networks: Mapping[str, Callable[[Tensor], Tensor]],
        validator: Validator,
    ) -> None:
        """Write the pictures, the curves and the scores of a seed; every process calls it.

        Args:
            folder: the folder of the seed.
            scores: the last scores, by "framework" and "bare".
            networks: title -> function from bracket to linear picture, for ``samples.png``.
            validator: draws the pictures.
        """
        if self.engine.is_main:
            validator.framework.eval()
            validator.draw(folder / "samples.png", networks)
            evaluation.save_curves(folder / "metrics.jsonl", folder / "curves.png")
            listed = {
                name: {of: {metric: values.tolist() for metric, values in row.items()} for of, row in rows.items()}
                for name, rows in scores.items()
            }
            write_text(folder / "scores.json", json.dumps(listed) + "\n")  # this file marks a finished run
            if self.config.seeds > 1:  # the page of the whole run is written with its table
                write_run_summary(folder)
        self.engine.accelerator.wait_for_everyone()

    def finish(self, results: Sequence[Mapping[str, Scores]], data: Dataset[HDRSample]) -> None:
        """Write and print the table of all seeds, and write the page of the run; every process calls it.

        Args:
            results: for each seed the last scores, by "framework" and "bare".
            data: the validation pictures.
        """
        if self.engine.is_main:
            folders = [folder for _, folder in self.seed_configs()]
            table = results_table(self.config, folders, results, data)
            (self.path / "table.txt").write_text(table + "\n", encoding="utf-8")
            write_run_summary(self.path)
            print(table)
        self.engine.accelerator.end_training()
        self._release()

    def _open(self) -> Path:
        path = make_run_folder(self.config)
        self._lock = FolderLock(path)
        return path

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _write_error(self, error: BaseException) -> None:
        folder = self._current
        lines = folder / "metrics.jsonl"
        with suppress(OSError, ValueError):
            if not isinstance(error, KeyboardInterrupt):  # an interrupted run can go on as if nothing had happened
                entries = read_json_lines(lines) if lines.is_file() else []
                last = max((entry["step"] for entry in entries), default=0)
                step = getattr(error, "step", None)
                append_json_line(
                    lines, {"run": "end", "step": last if step is None else step, "notice": explain(error)}
                )
        with suppress(OSError, ValueError):
            evaluation.save_curves(lines, folder / "curves.png")
        with suppress(OSError, ValueError):
            write_run_summary(self.path)


def make_run_folder(config: TrainConfig) -> Path:
    """Create the run's folder with the options in its ``config.toml``, or return the one to resume unchanged.

    A folder in which a run was killed before it wrote its options counts as empty.

    Raises:
        FileExistsError: ``config.out`` exists and is not empty.
        FileNotFoundError: ``config.resume`` does not exist.
        ValueError: the run to resume has other data, networks or seeds.
    """
    if config.resume is not None:
        if not config.resume.is_dir():
            raise FileNotFoundError(f"resume: no run folder at {config.resume}")
        _check_same_run(config, config.resume / "config.toml")
        return config.resume
    name = f"{Path(config.data).stem}-{config.orm.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = config.out if config.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or not all(map(_is_no_content, run.iterdir()))):
        alternative = f", or resume={run}" if (run / "config.toml").is_file() else ""
        raise FileExistsError(f"out={run} exists and is not empty: choose another{alternative}")
    run.mkdir(parents=True, exist_ok=True)
    write_options(run, config)
    return run


def write_options(folder: str | os.PathLike[str], config: TrainConfig) -> None:
    """Write the options into ``config.toml`` of a folder, whole or not at all."""
    lines = [f"{key} = {value}" for key, value in stored_options(config).items()]
    write_text(Path(folder) / "config.toml", "\n".join(lines) + "\n")


def explain(error: BaseException) -> str:
    """Return the message of an error; for an error in a loader process, without the traceback of that process."""
    text = str(error)
    return text.rstrip().splitlines()[-1] if text.startswith("Caught ") else text


def stored_options(config: TrainConfig) -> dict[str, str]:
    """Return the options of ``config.toml`` and of a checkpoint: name -> value in TOML."""
    options: dict[str, Any] = {key: value for key, value in asdict(config).items() if value is not None}
    for key in ("weights", "perceptual", "init"):
        if key in options and Path(options[key]).is_file():
            options[key] = Path(options[key])
    return {key: to_toml(value) for key, value in options.items() if key not in _NOT_STORED}


def changed_options(config: TrainConfig, before: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the old and the new value of each changed option of :data:`FIXED`, by name.

    Args:
        config: the options now.
        before: as :func:`stored_options` returned them; an option that is not there has its default.
    """
    default, now = stored_options(TrainConfig()), stored_options(config)
    pairs = {key: (before.get(key, default.get(key)), now.get(key)) for key in FIXED}
    return {key: (old or "not given", new or "not given") for key, (old, new) in pairs.items() if old != new}


def _check_same_run(config: TrainConfig, path: Path) -> None:
    before = {key.replace("-", "_"): to_toml(value) for key, value in read_toml(path).items()}
    if not before:
        raise ValueError(f"resume: {path} has no options, so it is not the file of a run")
    for key, (old, new) in changed_options(config, before).items():
        raise ValueError(
            f"resume: {key} was {old} and is {new} now, which is another run: start one with "
            f"config={path} and the changed options"
        )


def _is_no_content(path: Path) -> bool:
    return path.name == LOCK_FILE or is_leftover(path)
