"""The runs of a study: which there are, how each is started or continued, several at a time."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from plan import ROOT, Study, root_arguments

from skt_components.files import FolderLock
from skt_components.training import to_arguments

SCRIPT = ROOT / "examples" / "train_full.py"
TAIL = 15  # lines that are shown of a run that failed


class Unit(NamedTuple):
    """One run: an arm with a seed, and the photographs that validate."""

    arm: str
    seed: int
    folder: Path
    options: dict[str, Any]
    fold: int = 0

    @property
    def log(self) -> Path:
        """Where the run's output goes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "scores.json").is_file()

    @property
    def step(self) -> int:
        """How far it is, as far as its metrics say."""
        with suppress(OSError, ValueError, IndexError, KeyError), open(self.folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            return int(json.loads(file.read().splitlines()[-1])["step"])
        return 0

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}" + (f", fold {self.fold}" if "val_names" in self.options else "")


def list_units(study: Study, out: Path) -> list[Unit]:
    """All arms of the first seed, then those of the next, so that a study that is cut short has whole pairs."""
    units = []
    for seed, fold, arm in itertools.product(study.seeds, range(study.folds), study.arms):
        options, name = study.options(arm), f"seed-{seed}"
        if study.folds > 1:
            options, name = {**options, "val_names": study.held_out(fold)}, f"{name}-fold-{fold}"
        units.append(Unit(arm, seed, out / "runs" / re.sub(r"\W+", "-", arm) / name, options, fold))
    return units


def make_command(unit: Unit, study: Study, root: Path | None) -> list[str]:
    """Start the run, or continue it where its folder is there already."""
    command = [sys.executable, str(SCRIPT)]
    if (unit.folder / "config.toml").is_file():
        command += ["--resume", str(unit.folder)]
    else:
        command += [*to_arguments(unit.options), "--seed", str(unit.seed), "--seeds", "1", "--out", str(unit.folder)]
    return [*command, *root_arguments(study, root), "--device", study.device]


def make_environment(slot: int, processes: int, device: str) -> dict[str, str]:
    """The environment of the runs of a worker: its share of the processors, and its GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ}
    if device == "cuda":
        import torch

        visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        visible = visible or [str(gpu) for gpu in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return environment


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock; no study starts while another one, or a run that one left behind, works in the folder."""
    import psutil

    out.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(out):
            runs = str(out / "runs")
            for process in psutil.process_iter(["cmdline"]):
                if any(runs in argument for argument in process.info["cmdline"] or ()):
                    raise ValueError(f"--out {out}: process {process.pid}, a run that a study left behind, works there")
            yield
    except BlockingIOError as error:
        raise ValueError(f"--out: another study works there: {error}") from None


def start(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own: what the terminal sends, the study passes on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let runs save their state and end; whoever cannot wait interrupts a second time."""
    for attempt in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        for process in running:
            process.send_signal(attempt)  # does nothing to one that has ended
        with suppress(KeyboardInterrupt):
            for process in running:
                process.wait()
            return


def read_tail(log: Path) -> str:
    """The last lines of a run's output, without what a progress bar wrote over."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()  # which ends lines at \r, too
        kept = [line for line in lines if line.strip() and not re.search(r"\d%\|", line)]
        return "\n".join(f"    {line}" for line in kept[-TAIL:])
    return ""


def run_units(
    units: Sequence[Unit], study: Study, root: Path | None, *, processes: int, pause: float = 0.2
) -> list[Unit]:
    """Run what is not finished, and return what failed.

    Raises:
        KeyboardInterrupt: after the runs have saved their state and ended.
    """
    from tqdm import tqdm

    waiting = deque(unit for unit in units if not unit.finished)
    running: dict[int, tuple[Unit, subprocess.Popen[bytes]]] = {}
    failed: list[Unit] = []
    environments = [make_environment(slot, processes, study.device) for slot in range(processes)]
    bar = tqdm(total=len(units), initial=len(units) - len(waiting), desc=study.title, unit="run")
    shown = ""
    try:
        while waiting or running:
            for slot in sorted({*range(processes)} - {*running})[: len(waiting)]:
                unit = waiting.popleft()
                command = make_command(unit, study, root)
                running[slot] = unit, start(command, unit.log, environments[slot])
            time.sleep(pause)
            for slot, (unit, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                bar.update()
                if process.returncode or not unit.finished:
                    failed.append(unit)
                    said = f"{unit} failed with status {process.returncode}; the end of {unit.log}:"
                    bar.write(f"{said}\n{read_tail(unit.log)}", file=sys.stderr)
            at = "; ".join(f"{unit} {unit.step}/{unit.options['steps']}" for unit, _ in running.values())
            if at != shown:
                shown = at
                bar.set_postfix_str(at, refresh=sys.stderr.isatty())  # in a file a line for each run is enough
    except KeyboardInterrupt:
        bar.write("stopping: the runs save their state and end", file=sys.stderr)
        raise
    finally:
        stop([process for _, process in running.values()])
        bar.close()
    return failed
