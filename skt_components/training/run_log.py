"""The log of a run: ``metrics.jsonl`` and trackers, written by the main process and rewound when a run is resumed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skt_components.files.atomic import atomic_write, write_text
from skt_components.files.json_lines import append_json_line, read_json_lines
from skt_components.training.engine import Engine


class RunLog:
    """Write lines of ``metrics.jsonl`` and the trackers' numbers, from the main process alone.

    Args:
        engine: the process.
        folder: the folder of a seed.
        name: name of the training.
    """

    def __init__(self, engine: Engine, folder: Path, name: str) -> None:
        self.engine, self.file, self.name = engine, folder / "metrics.jsonl", name
        self.title = f"{folder.name}/{name}" if folder.name.startswith("seed-") else name

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of this training."""
        lines = read_json_lines(self.file) if self.file.is_file() else []
        return [line for line in lines if line.get("run") == self.name and isinstance(line.get("step"), int)]

    def write(self, step: int, **entry: Any) -> None:
        """Write one line, and its numbers to the trackers."""
        if self.engine.is_main:
            append_json_line(self.file, {"run": self.name, "step": step, **entry})
            self.engine.accelerator.log(dict(_flatten(self.title, entry)), step=step)

    def write_baselines(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write the scores of pictures without training, once for all trainings of a folder."""
        written = self.file.is_file() and any("baselines" in line for line in read_json_lines(self.file))
        if self.engine.is_main and not written:
            append_json_line(self.file, {"run": "baselines", "step": 0, "baselines": scores})

    def notice(self, step: int, text: str) -> None:
        """Write a line that a person should read, and print it."""
        self.engine.accelerator.print(f"{self.name}, step {step}: {text}", file=sys.stderr)
        self.write(step, notice=text)


def rewind_log(path: str | os.PathLike[str], name: str, step: int) -> None:
    """Remove the lines of a training from ``step`` on, because a resumed run writes them again.

    The validation at ``step`` itself is kept, because it ran before this step. Without a file nothing happens.
    """
    if not os.path.exists(path):
        return
    kept = [
        line
        for line in read_json_lines(path)
        if line.get("run") != name or _is_before(line.get("step", 0), step, validation="validation" in line)
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def rewind_tensorboard(folder: Path, title: str, step: int) -> None:
    """Remove the numbers of a training from ``step`` on from TensorBoard's files, as :func:`rewind_log` does.

    TensorBoard's own ``purge_step`` would hide the numbers of all trainings of a run.

    Args:
        folder: ``logs`` of a run; without files, or without TensorBoard, nothing is done.
        title: title of the training: the first part of its tags.
        step: the next step.
    """
    files = sorted(folder.rglob("events.out.tfevents.*")) if folder.is_dir() else []
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return
    for file in files:
        try:
            records = [(raw, Event.FromString(raw)) for raw in RawEventFileLoader(str(file)).Load()]
        except Exception as error:  # any: the numbers are in metrics.jsonl, and the run goes on
            print(f"{file} is damaged and stays as it is: {error}", file=sys.stderr)
            continue
        kept = [raw for raw, event in records if not _is_repeated(event, title, step)]
        if len(kept) < len(records):
            with atomic_write(file) as temporary, open(temporary, "wb") as opened:
                writer = RecordWriter(opened)
                for raw in kept:
                    writer.write(raw)


def _is_repeated(event: Any, title: str, step: int) -> bool:
    """Return True for an event of a training that it will write again."""
    tags = [value.tag for value in event.summary.value]
    ours = bool(tags) and all(tag.startswith(f"{title}/") for tag in tags)
    return ours and not _is_before(event.step, step, validation=tags[0].startswith(f"{title}/validation/"))


def _is_before(found: int, step: int, *, validation: bool) -> bool:
    """Return True for an entry that was written before a step: a validation has the number of steps done."""
    return found < step or (validation and found == step > 0)


def _flatten(title: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield nested entries by their path."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{title}/{key}", value)
        else:
            yield f"{title}/{key}", value
