"""The page of a run: task, devices, result and use of the network, read from the files of its folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skt_components.files.atomic import write_text
from skt_components.files.json_lines import read_json_lines
from skt_components.files.toml import read_toml
from skt_components.files.weights import read_safetensors_metadata
from skt_components.training.checkpoints import CheckpointFolder
from skt_components.training.config import TrainConfig, to_arguments, to_toml
from skt_components.training.environment import read_environments

_FILES = {  # pattern of a file in a run's folder -> what it is
    "config.toml": "the options; another run can start from them",
    "environment.json": "versions, devices, command line and commit, of every start",
    "git*.diff": "what the code had beside the commit",
    "metrics.jsonl": "losses, gradients, speed, validations and notices, one JSON object a line",
    "scores.json": "the last validation, picture by picture",
    "curves.png": "the same numbers as pictures",
    "samples.png": "validation scenes at the end",
    "samples": "validation scenes while it trained",
    "table.txt": "the result",
    "orm.safetensors": "the trained network alone",
    "bare.safetensors": "the network trained without the framework",
    "*-best.safetensors": "the network as it was at its best validation",
    "*.ckpt": "a state to continue from",
    "checkpoints": "the states to continue from",
    "logs": "the same numbers for TensorBoard: `tensorboard --logdir logs`",
    "inspect": "batches that the guards found odd",
    "evaluation": "an evaluation of the network",
    "seed-*": "the run of one seed",
}
_MOST_NOTICES = 20
_SEED = re.compile(r"seed-\d+")


def write_run_summary(folder: str | os.PathLike[str]) -> Path:
    """Write ``README.md`` into a run's folder, from the files in it, and return its path.

    Missing and unreadable files are ignored. Call it again when there are more files, such as an evaluation in the
    folder's ``evaluation``. It writes the whole page again, so keep your own notes in another file.

    Args:
        folder: the folder of a run, or of one seed below it.

    Raises:
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "table.txt").write_text("ORM 40.0")
        ...     print(write_run_summary(folder).read_text().splitlines()[2])
        ## Result
    """
    from jinja2 import Environment, PackageLoader

    folder = Path(folder)
    config = _read(partial(read_toml, folder / "config.toml"), {})
    environments = _read(partial(read_environments, folder), [])
    # Markdown: text that could hold markup stands in code blocks, and addresses are quoted.
    templates = Environment(
        loader=PackageLoader("skt_components", "training"),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    templates.filters["url"] = partial(_address, folder)
    page = templates.get_template("run_summary.md.jinja").render(
        folder=folder,
        name=folder.resolve().name,
        trained=_describe_training(folder, config, environments),
        table=_read((folder / "table.txt").read_bytes, b"").decode("utf-8", "replace").rstrip(),
        reports=_reports(folder),
        notices=_notices(folder),
        pictures={
            title: file
            for title, file in {
                "losses, gradients and validation": "curves.png",
                "validation scenes": "samples.png",
            }.items()
            if (folder / file).is_file()
        },
        during=[path for path in _children(folder / "samples") if path.suffix == ".png"],
        seeds={
            seed: _existing(seed, "README.md", "curves.png", "samples.png", "orm.safetensors")
            for seed in _seeds(folder)
        },
        network=_describe_network(folder, config),
        resume=_resume_command(folder, environments),
        starts=[_describe_start(folder, start) for start in environments],
        files=_list_files(folder),
    )
    write_text(folder / "README.md", page.rstrip() + "\n", errors="backslashreplace")
    return folder / "README.md"


def _describe_training(
    folder: Path, config: dict[str, Any], environments: list[dict[str, Any]]
) -> dict[str, Any] | None:
    if not config:
        return None
    value = {field.name: config.get(field.name, field.default) for field in fields(TrainConfig)}
    bank = value["knowledge_bank"]
    knowledge = "without semantic knowledge" if bank == "none" else f"with the knowledge of `{bank}`"
    knowledge = "without the framework" if value["bare"] else knowledge
    batch = value["batch_size"] * value["accumulate"] * _processes(environments)
    task = f"`{value['orm']}` on `{value['data']}`, {knowledge}"
    changed = [
        f"`{name} = {to_toml(value[name])}`"
        for name, default in ((field.name, field.default) for field in fields(TrainConfig))
        if name in config and (tuple(value[name]) if isinstance(default, tuple) else value[name]) != default
    ]
    return {
        "text": f"{task}: {value['steps']} steps, batches of {batch}, crops of {value['crop']} pixels.",
        "changed": changed,
        "steps": value["steps"],
        "unfinished": _unfinished(folder, value),
    }


def _unfinished(folder: Path, value: dict[str, Any]) -> list[str]:
    """Return the steps of trainings that are not finished, if any training of the run has left a trace."""
    several = value["seeds"] > 1
    runs = [folder / f"seed-{value['seed'] + i}" for i in range(value["seeds"])] if several else [folder]
    names = ["bare"] if value["bare"] else ["framework", "bare"] if value["compare"] else ["framework"]
    done = {(run, name): _steps_done(run, name) for run in runs for name in names}
    if all(count is None for count in done.values()):
        return []
    return [
        f"{run.name + ' ' if several else ''}{name} {count or 0}"
        for (run, name), count in done.items()
        if (count or 0) < value["steps"]
    ]


def _steps_done(run: Path, name: str) -> int | None:
    logged = (entry for entry in _log(run) if entry.get("run") == name and "notice" not in entry)
    steps = [int(entry.get("step", 0)) + ("terms" in entry) for entry in logged]  # terms belong to a finished step
    return max([*steps, *CheckpointFolder(run / "checkpoints", name).steps()], default=None)


def _notices(folder: Path) -> list[str]:
    found = []
    for run in (folder, *_seeds(folder)):
        seed = "" if run == folder else f"{run.name} "
        for entry in _log(run):
            if "notice" in entry:
                place = f"{seed}{entry.get('run', '')} step {entry.get('step', '?')}"
                found.append(f"{place}: {' '.join(str(entry['notice']).split())}")
    more = [f"and {len(found) - _MOST_NOTICES} more in metrics.jsonl"] if len(found) > _MOST_NOTICES else []
    return found[:_MOST_NOTICES] + more


def _describe_network(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    file = "bare.safetensors" if config.get("bare") else "orm.safetensors"
    path = next((run / file for run in (folder, *_seeds(folder)) if (run / file).is_file()), None)
    if path is None:
        return None
    raw = str(config.get("data", "")).startswith("bracketire") or config.get("camera", "srgb") != "srgb"
    orm = str(config.get("orm", ""))
    return {
        "file": path.relative_to(folder).as_posix(),
        "ours": _read(partial(read_safetensors_metadata, path), {}).get("network"),
        "maker": orm if ":" in orm else None,
        "layout": "(B, N, 4, h, w), packed RAW" if raw else "(B, N, 6, H, W), linearized RGB then LDR RGB",
    }


def _resume_command(folder: Path, environments: list[dict[str, Any]]) -> str | None:
    places = [place for run in (folder, *_seeds(folder)) for place in (run, run / "checkpoints")]
    if not any(path for place in places for path in place.glob("*.ckpt")) or not (folder / "config.toml").is_file():
        return None
    script = ((environments[0].get("arguments") if environments else None) or ["SCRIPT"])[0]
    count = _processes(environments)
    launch = ["python"] if count == 1 else ["torchrun", "--nproc-per-node", str(count)]
    return shlex.join([*launch, str(script), *to_arguments({"resume": folder.as_posix()})])


def _describe_start(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    names = list(run.get("devices") or [])
    devices = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    processes = f", {run['processes']} processes" if run.get("processes", 1) != 1 else ""
    cuda = [f"CUDA {run['cuda']}, cuDNN {run.get('cudnn')}"] if run.get("cuda") else []
    diff = folder / str((run.get("git") or {}).get("diff") or "")
    return {
        "git": None,
        **run,
        "command": shlex.join(map(str, run.get("arguments") or [])),
        "device_list": ", ".join(
            [*devices, f"{run.get('processors', '?')}, threads: {run.get('threads', '?')}{processes}"]
        ),
        "versions": ", ".join([*(f"{name} {version}" for name, version in (run.get("packages") or {}).items()), *cuda]),
        "diff": diff if diff.is_file() else None,
    }


def _list_files(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "count": len(_children(path)) if path.is_dir() else None,
            "meaning": next((text for pattern, text in _FILES.items() if path.match(pattern)), ""),
        }
        for path in _children(folder)
        if path.name != "README.md" and not path.name.startswith(".")
    ]


def _reports(folder: Path) -> list[Path]:
    """Return the HTML pages below the folder, but neither their sections nor the pages of the seeds."""
    pages = (path.relative_to(folder) for path in folder.rglob("*.html"))
    kept = (page for page in pages if "sections" not in page.parts and not _SEED.fullmatch(page.parts[0]))
    return [folder / page for page in sorted(kept)]


def _read(reader: Callable[[], Any], default: Any) -> Any:
    """Return what a reader returns, or the default if its file is missing or broken."""
    with suppress(OSError, ValueError, AttributeError):
        return reader()
    return default


def _log(run: Path) -> list[dict[str, Any]]:
    return _read(partial(read_json_lines, run / "metrics.jsonl"), [])


def _processes(environments: list[dict[str, Any]]) -> int:
    """Return the number of processes of the last start."""
    return int(environments[-1].get("processes") or 1) if environments else 1


def _existing(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _seeds(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.is_dir() and _SEED.fullmatch(path.name)]


def _children(folder: Path) -> list[Path]:
    """Return the files of a folder, numbers in their names sorted as numbers: step 900 before step 1000."""

    def key(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]

    return sorted(folder.iterdir(), key=key) if folder.is_dir() else []


def _address(folder: Path, path: Path) -> str:
    return quote(path.relative_to(folder).as_posix()) + ("/" if path.is_dir() else "")
