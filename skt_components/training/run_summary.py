"""The page of a run: what was trained, where, with which result, and how to use it, from the files in its folder."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skt_components.files.atomic import write_text
from skt_components.training.checkpoints import CheckpointFolder
from skt_components.training.config import TrainConfig, read_toml
from skt_components.training.environment import read_environments
from skt_components.training.run_folder import to_toml

_FILES = {  # pattern of what may lie in a run's folder -> what it is
    "config.toml": "the options; `--config config.toml` starts another run with them",
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
_NOTICES = 20  # that the page shows
_SEED = re.compile(r"seed-\d+")


def write_run_summary(folder: str | os.PathLike[str]) -> Path:
    """Write ``README.md`` into a run's folder, from what lies there, and return its path.

    A file that is missing or not readable is left out. Call it again when there is more, as after an evaluation into
    the folder's ``evaluation``: the page is written anew, so notes of your own belong into another file.

    Args:
        folder: of :func:`make_run_folder`, or that of one seed below it.

    Raises:
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "table.txt").write_text("ORM 40.0")
        ...     print(write_run_summary(folder).read_text().splitlines()[2])
        ## Result
    """
    folder = Path(folder)
    config, environments = _read_config(folder), _environments(folder)
    sections = {
        "": _trained(folder, config, environments),
        "Result": _result(folder),
        "Notices": _notices(folder),
        "Pictures": _pictures(folder),
        "Seeds": _seeds(folder),
        "Use the network": _use(folder, config),
        "Continue": _continue(folder, environments),
        "Made with": _made_with(folder, environments),
        "Files": _files(folder),
    }
    lines = [f"# {folder.resolve().name}"]
    for title, body in sections.items():
        if body:
            lines += ["", *([f"## {title}", ""] if title else []), *body]
    write_text(folder / "README.md", "\n".join(lines) + "\n", errors="backslashreplace")
    return folder / "README.md"


def _trained(folder: Path, config: dict[str, Any], environments: list[dict[str, Any]]) -> list[str]:
    if not config:
        return []
    value = {field.name: config.get(field.name, field.default) for field in fields(TrainConfig)}
    bank = value["knowledge_bank"]
    knowledge = "without semantic knowledge" if bank == "none" else f"with the knowledge of `{bank}`"
    knowledge = "without the framework" if value["bare"] else knowledge
    changed = [
        f"`{name} = {to_toml(value[name])}`"
        for name, default in ((field.name, field.default) for field in fields(TrainConfig))
        if name in config and (tuple(value[name]) if isinstance(default, tuple) else value[name]) != default
    ]
    processes = _processes(environments)
    text = (
        f"`{value['orm']}` on `{value['data']}`, {knowledge}: "
        f"{value['steps']} steps, batches of {value['batch_size'] * value['accumulate'] * processes}, "
        f"crops of {value['crop']} pixels."
    )
    others = f"Options that are not the defaults: {', '.join(changed)}." if changed else "All options are the defaults."
    return [text, *_unfinished(folder, value), f"{others} All of them: {_link(folder, folder / 'config.toml')}."]


def _unfinished(folder: Path, value: dict[str, Any]) -> list[str]:
    """Say how far the runs came that did not come to their end, unless there is no trace of any."""
    several = value["seeds"] > 1
    runs = [folder / f"seed-{value['seed'] + i}" for i in range(value["seeds"])] if several else [folder]
    names = ["bare"] if value["bare"] else ["framework", "bare"] if value["compare"] else ["framework"]
    done = {(run, name): _steps_done(run, name) for run in runs for name in names}
    if all(count is None for count in done.values()):  # of a loop with other names
        return []
    short = [
        f"{run.name + ' ' if several else ''}{name} {count or 0}"
        for (run, name), count in done.items()
        if (count or 0) < value["steps"]
    ]
    return [f"**Not finished**: {', '.join(short)} of {value['steps']} steps."] if short else []


def _steps_done(run: Path, name: str) -> int | None:
    logged = (entry for entry in _entries(run) if entry.get("run") == name and "notice" not in entry)
    steps = [int(entry.get("step", 0)) + ("terms" in entry) for entry in logged]  # which are of a step that is done
    return max([*steps, *CheckpointFolder(run / "checkpoints", name).steps()], default=None)


def _entries(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl that are whole."""
    with suppress(OSError), open(run / "metrics.jsonl", encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):  # half a line of a run that was killed
                if isinstance(entry := json.loads(line), dict):
                    yield entry


def _result(folder: Path) -> list[str]:
    lines: list[str] = []
    with suppress(OSError):
        lines += _code("text", (folder / "table.txt").read_text(encoding="utf-8", errors="replace").rstrip())
    for page in _reports(folder):
        lines += ["", f"Evaluation: {_link(folder, page)}."]
    return lines if not lines or lines[0] else lines[1:]


def _notices(folder: Path) -> list[str]:
    found = []
    for run in (folder, *_seed_folders(folder)):
        seed = "" if run == folder else f"{run.name} "
        for entry in _entries(run):
            if "notice" in entry:
                place = f"{seed}{entry.get('run', '')} step {entry.get('step', '?')}"
                found.append(f"{place}: {' '.join(str(entry['notice']).split())}")
    if not found:
        return []
    more = [f"and {len(found) - _NOTICES} more in metrics.jsonl"] if len(found) > _NOTICES else []
    return _code("text", "\n".join(found[:_NOTICES] + more))


def _pictures(folder: Path) -> list[str]:
    titles = {"curves.png": "losses, gradients and validation", "samples.png": "validation scenes"}
    lines = [f"![{title}]({name})" for name, title in titles.items() if (folder / name).is_file()]
    during = [path for path in sorted(_children(folder / "samples"), key=_natural) if path.suffix == ".png"]
    if during:
        lines.append(f"While it trained: {', '.join(_link(folder, path, path.stem) for path in during)}.")
    return [part for line in lines for part in (line, "")][:-1]


def _seeds(folder: Path) -> list[str]:
    lines = []
    for seed in _seed_folders(folder):
        names = ("README.md", "curves.png", "samples.png", "orm.safetensors")
        links = [_link(folder, seed / name, name) for name in names if (seed / name).is_file()]
        lines.append(f"- {_link(folder, seed)}{': ' if links else ''}{', '.join(links)}")
    return lines


def _use(folder: Path, config: dict[str, Any]) -> list[str]:
    file = "bare.safetensors" if config.get("bare") else "orm.safetensors"
    paths = (run / file for run in (folder, *_seed_folders(folder)))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return []
    file = path.relative_to(folder).as_posix()
    raw = str(config.get("data", "")).startswith("bracketire") or config.get("camera", "srgb") != "srgb"
    layout = "(B, N, 4, h, w), packed RAW" if raw else "(B, N, 6, H, W), linearised RGB then LDR RGB"
    if name := _network_of(path):
        load = [f'network = skt.load_model("{file}")  # {name}, on the CPU, in eval mode']
    else:
        orm = str(config.get("orm", ""))
        own = f'network, forward = skt.load_network("{orm}", {{}})' if ":" in orm else "network = ...  # yours"
        load = [own, f'skt.load_weights("{file}", network)', "network.eval()"]
    call = "forward(network, bracket)" if "forward" in load[0] else "network(bracket)"
    run = ["with torch.no_grad():", f"    hdr = {call}  # {layout}"]
    return _code("python", "\n".join(["import torch", "", "import skt_components as skt", "", *load, *run]))


def _continue(folder: Path, environments: list[dict[str, Any]]) -> list[str]:
    runs = (folder, *_seed_folders(folder))
    kept = [path for run in runs for place in (run, run / "checkpoints") for path in place.glob("*.ckpt")]
    if not kept or not (folder / "config.toml").is_file():
        return []
    arguments = (environments[0].get("arguments") if environments else None) or ["examples/train_full.py"]
    count = _processes(environments)
    launch = "python" if count == 1 else f"torchrun --nproc-per-node {count}"
    return _code("sh", f"{launch} {shlex.quote(str(arguments[0]))} --resume {shlex.quote(folder.as_posix())}")


def _processes(environments: list[dict[str, Any]]) -> int:
    """How many processes trained last."""
    return int(environments[-1].get("processes") or 1) if environments else 1


def _made_with(folder: Path, environments: list[dict[str, Any]]) -> list[str]:
    lines = []
    for index, run in enumerate(environments):
        packages = run.get("packages") or {}
        cuda = f", CUDA {run['cuda']}, cuDNN {run.get('cudnn')}" if run.get("cuda") else ""
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        lines += [
            f"- {'Continued' if index else 'Started'} {run.get('date', '?')}: "
            f"`{shlex.join(map(str, run.get('arguments') or []))}`",
            f"  - {_devices(run)}; {run.get('platform', '?')}",
            f"  - Python {run.get('python', '?')}, {versions}{cuda}",
        ]
        if git := run.get("git"):
            diff = folder / str(git.get("diff") or "")
            state = f", with changes: {_link(folder, diff)}" if git.get("diff") and diff.is_file() else ""
            lines.append(f"  - commit `{git.get('commit')}`, branch `{git.get('branch')}`{state}")
    return lines


def _devices(run: dict[str, Any]) -> str:
    names = list(run.get("devices") or [])
    found = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    processes = f", {run['processes']} processes" if run.get("processes", 1) != 1 else ""
    return ", ".join([*found, f"{run.get('processors', '?')}, threads: {run.get('threads', '?')}{processes}"])


def _files(folder: Path) -> list[str]:
    lines = []
    for path in sorted(_children(folder), key=_natural):
        if path.name == "README.md" or path.name.startswith("."):
            continue
        meaning = next((text for pattern, text in _FILES.items() if path.match(pattern)), "")
        count = f" ({len(_children(path))})" if path.is_dir() else ""
        lines.append(f"- {_link(folder, path)}{count}{': ' if meaning else ''}{meaning}")
    return lines


def _reports(folder: Path) -> list[Path]:
    """Return the pages below the folder, but not the sections of which one was made, nor those of the seeds."""
    pages = (path.relative_to(folder) for path in folder.rglob("*.html"))
    kept = (page for page in pages if "sections" not in page.parts and not _SEED.fullmatch(page.parts[0]))
    return [folder / page for page in sorted(kept)]


def _read_config(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_toml(folder / "config.toml")
    return {}


def _environments(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError):
        return read_environments(folder)
    return []


def _network_of(path: Path) -> str | None:
    """Return which network a file of save_weights names in its header, as ``load_model`` needs it."""
    with suppress(OSError, ValueError, AttributeError), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(min(length, 10**8))).get("__metadata__", {}).get("network")
    return None


def _seed_folders(folder: Path) -> list[Path]:
    found = (path for path in _children(folder) if path.is_dir() and _SEED.fullmatch(path.name))
    return sorted(found, key=_natural)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _natural(path: Path) -> list[Any]:
    """Sort by numbers as numbers: step 900 before step 1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


def _link(folder: Path, path: Path, text: str = "") -> str:
    relative = path.relative_to(folder).as_posix()
    return f"[{text or relative}]({quote(relative)}{'/' if path.is_dir() else ''})"


def _code(language: str, text: str) -> list[str]:
    return [f"```{language}", *text.split("\n"), "```"]
