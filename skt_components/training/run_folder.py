"""The folder of a run: made once, never written over, and readable without this library."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skt_components.files.atomic import write_text
from skt_components.training.config import TrainConfig, read_toml

# What makes a run the run that it is; the rest may change when it goes on.
_FIXED = (
    *("data", "camera", "metadata", "orm", "taps", "knowledge_bank", "bank_taps", "region_source", "regions"),
    *(
        "perceptual",
        "joint",
        "detach_features",
        "org_rms_weight",
        "org_perceptual_weight",
        "teacher_stride",
        "teacher_domain",
    ),
    *("optimizer", "crop", "val_crop", "seed", "seeds", "bare", "val_samples", "val_names"),
)


def make_run_folder(config: TrainConfig) -> Path:
    """Create the run's folder with the options in its ``config.toml``, or return the one to resume as it is.

    Raises:
        FileExistsError: ``config.out`` exists and is not empty.
        FileNotFoundError: ``config.resume`` does not exist.
        ValueError: the run to resume was another: other data, networks or seeds.
    """
    if config.resume is not None:
        if not config.resume.is_dir():
            raise FileNotFoundError(f"--resume: no run folder at {config.resume}")
        _check_same_run(config, config.resume / "config.toml")
        return config.resume
    name = f"{config.data}-{config.orm.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = config.out if config.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        way_out = f", or --resume {run}" if (run / "config.toml").is_file() else ""
        raise FileExistsError(f"--out {run} exists and is not empty: choose another{way_out}")
    run.mkdir(parents=True, exist_ok=True)
    write_options(run, config)
    return run


def write_options(folder: str | os.PathLike[str], config: TrainConfig) -> None:
    """Write the options into ``config.toml``, whole or not at all; call it when a resumed run has found its state."""
    lines = [f"{key} = {value}" for key, value in _options(config).items()]
    write_text(Path(folder) / "config.toml", "\n".join(lines) + "\n")


def _options(config: TrainConfig) -> dict[str, str]:
    """Options as TOML has them, without where the run came from, which is not what it is."""
    options = {key: value for key, value in asdict(config).items() if value is not None}
    for key in ("weights", "perceptual"):
        if key in options and Path(options[key]).is_file():
            options[key] = Path(options[key])
    skipped = ("config", "resume", "out", "dry_run")
    return {key: to_toml(value) for key, value in options.items() if key not in skipped}


def _check_same_run(config: TrainConfig, path: Path) -> None:
    before, now = read_toml(path), _options(config)
    if not before:
        raise ValueError(f"--resume: {path} has no options, it is not the file of a run")
    for key in _FIXED:
        was = to_toml(before[key]) if key in before else None
        if was is not None and was != now.get(key):
            raise ValueError(
                f"--resume: {key} was {was} and is {now.get(key)} now, which is another run: start one with "
                f"--config {path} and the options that shall differ"
            )


def to_toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    # TOML's strings are JSON's, but for surrogate pairs, which must be characters, and DEL, which must not.
    value = value.resolve() if isinstance(value, Path) else value  # a run may be resumed from elsewhere
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
