"""The folder of a run: made once, never written over, and readable without this library."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skt_components.training.config import TrainConfig


def make_run_folder(config: TrainConfig) -> Path:
    """Create the run's folder, or return the one to resume, and write the options into its ``config.toml``.

    Raises:
        FileExistsError: ``config.out`` exists and is not empty.
        FileNotFoundError: ``config.resume`` does not exist.
    """
    if config.resume is not None:
        if not config.resume.is_dir():
            raise FileNotFoundError(f"--resume: no run folder at {config.resume}")
        _write_options(config.resume / "config.toml", asdict(config))
        return config.resume
    name = f"{config.data}-{config.orm.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = config.out if config.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        way_out = f", or --resume {run}" if (run / "config.toml").is_file() else ""
        raise FileExistsError(f"--out {run} exists and is not empty: choose another{way_out}")
    run.mkdir(parents=True, exist_ok=True)
    _write_options(run / "config.toml", asdict(config))
    return run


def _write_options(path: Path, options: Mapping[str, Any]) -> None:
    skipped = ("config", "resume", "out", "dry_run")  # where a run came from, not what it is
    files = {
        key: Path(value) for key in ("weights", "perceptual") if (value := options.get(key)) and Path(value).is_file()
    }
    kept = {key: value for key, value in {**options, **files}.items() if key not in skipped and value is not None}
    lines = [f"{key} = {to_toml(value)}" for key, value in kept.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
