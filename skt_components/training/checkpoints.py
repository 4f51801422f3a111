"""The checkpoints of a run: the newest ones and the best, complete at any moment."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from skt_components.files.atomic import atomic_write
from skt_components.ops.checks import check_count

_DIGITS = 8


class CheckpointFolder:
    """Save and find the states of a run: ``<name>-<step>.ckpt`` and ``<name>-best.ckpt``.

    A process that is killed at any moment leaves complete files only. Older files are removed after a newer one is on
    the disk.

    Args:
        folder: folder of the files, made with the first one; trainings with different names may share it.
        name: name of the training, not ending in a hyphen and digits.
        keep: number of the newest checkpoints to keep.

    Raises:
        ValueError: ``keep`` is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = CheckpointFolder(folder, "run", keep=2)
        ...     for step in (10, 20, 30):
        ...         _ = checkpoints.save(step, {"note": "any state"})
        ...     checkpoints.steps(), checkpoints.load_newest()["step"]
        ([20, 30], 30)
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, keep: int = 2) -> None:
        self.folder, self.name, self.keep = Path(folder), name, check_count("keep", keep, 1)
        self.notices: list[str] = []
        """Damaged checkpoints that :meth:`load_newest` skipped, with the reasons."""

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        pattern = re.compile(rf"{re.escape(self.name)}-(\d{{{_DIGITS},}})\.ckpt")
        found = [pattern.fullmatch(file.name) for file in self.folder.glob(f"{self.name}-*.ckpt")]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the file of a step's checkpoint."""
        return self.folder / f"{self.name}-{step:0{_DIGITS}d}.ckpt"

    @property
    def best(self) -> Path:
        """File of the best checkpoint."""
        return self.folder / f"{self.name}-best.ckpt"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, and remove the oldest beyond ``keep``.

        Args:
            step: stored in the state as "step".
            state: as in :func:`save_checkpoint`.

        Raises:
            OSError: the disk is full, or the folder is not writable; older checkpoints are unchanged, and the message
                names the newest.
        """
        path = self.path(step)
        self._write(path, {**state, "step": step})
        for old in [self.path(step) for step in self.steps() if not self.path(step).is_dir()][: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the best state so far and replace the previous one; the errors are the same as in :meth:`save`."""
        self._write(self.best, {**state, "step": step})
        return self.best

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest state that can be read, or None if there is no checkpoint.

        A checkpoint that is damaged, a folder or a broken link is skipped and renamed to ``*.broken``, with a line in
        ``notices``. The best checkpoint is tried last.

        Raises:
            ValueError: no checkpoint can be read, although there are some.
        """
        steps = self.steps()[::-1]
        skipped: list[Path] = []
        for path in [*map(self.path, steps), self.best]:
            if path == self.best and not os.path.lexists(path):
                continue
            try:
                state = load_checkpoint(path)
                wanted = state.get("step") if path == self.best else steps[len(skipped)]
                if not isinstance(wanted, int) or state.get("step") != wanted:
                    raise ValueError(f"{path} is not of step {wanted}: it holds {state.get('step')!r}")
            except (ValueError, OSError) as error:
                skipped.append(path)
                self.notices.append(f"{' '.join(str(error).split())[:300]}; continued from the one before")
                continue
            for broken in skipped:
                with suppress(FileNotFoundError):  # another process of the run was faster
                    _set_aside(broken)
            if path == self.best and not skipped:
                self.notices.append(
                    f"{self.folder} has no checkpoint but {path.name}; continued from its step {wanted}"
                )
            return state
        if skipped:
            raise ValueError(f"none of the checkpoints in {self.folder} can be read: {'; '.join(self.notices)}")
        return None

    def clear_leftovers(self) -> None:
        """Remove temporary files of killed processes; only one process may write to the folder at a time."""
        for file in self.folder.glob(f".{self.name}-*.ckpt.*"):
            file.unlink(missing_ok=True)

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if path.is_dir():
                _set_aside(path)
            save_checkpoint(path, state)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            steps = self.steps()
            newest = f"the newest is of step {steps[-1]}, {self.path(steps[-1])}" if steps else "there is none yet"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            number = getattr(error, "errno", None) or errno.EIO
            message = f"the checkpoint of step {state['step']} could not be written ({reason}); {newest}"
            raise OSError(number, message) from error


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to ``*.broken``, or ``*.broken-2`` and so on, and return its new path."""
    free, number = path.with_name(f"{path.name}.broken"), 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.broken-{number}")
    return path.rename(free)


def restore_state(
    state: Mapping[str, Any], parts: Mapping[str, Any], *, per_step: int, steps: int
) -> tuple[int, float]:
    """Restore a state from :meth:`CheckpointFolder.load_newest`.

    An optimizer gets its moments back and keeps its own options, such as the weight decay.

    Args:
        state: with "step", "best", "samples_per_step" and the state of every part; "options" are ignored.
        parts: objects with ``load_state_dict``, by name.
        per_step: samples per step of all processes; must be the same as before.
        steps: number of steps of the run.

    Returns:
        The next step, and the best score so far.

    Raises:
        ValueError: the state is from a later step, another number of samples per step, or other options.
    """
    step, before = int(state["step"]), state.get("samples_per_step")
    if step > steps:
        raise ValueError(f"steps={steps}, but the newest checkpoint is already at step {step}")
    if before != per_step:
        raise ValueError(
            f"the checkpoint of step {step} was made with {before} samples per step, now there are {per_step}: "
            "processes times `batch_size` times `accumulate` must stay the same"
        )
    stored = {key for key, value in state.items() if isinstance(value, Mapping)} - {"options"}
    if missing := {*parts} ^ stored:
        raise ValueError(f"the checkpoint of step {step} does not fit, other options: {', '.join(sorted(missing))}")
    try:
        for name, part in parts.items():
            if isinstance(part, torch.optim.Optimizer):
                _restore_moments(part, state[name])
            else:
                part.load_state_dict(state[name])
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint of step {step} does not fit: it was made with other options ({reason})"
        ) from error
    return step, float(state["best"])


def _restore_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer without its options, in the memory format of the parameters."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():  # fused Adam reads all memory in the order of the parameter's
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim:
                moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` with ``torch.save``, whole or not at all; see :func:`atomic_write` for the errors.

    Args:
        path: the file. It is replaced if it exists; its folder must exist.
        state: tensors, numbers, strings, lists and dicts of them, so that it loads with ``weights_only=True``.
    """
    checked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        with atomic_write(path) as temporary:
            torch.save(dict(state), temporary)
    finally:
        torch.serialization.set_crc32_options(checked)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of :func:`save_checkpoint` without running code from it.

    ``torch.load`` does not compare the checksums of the file's parts; this function does.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or holds something other than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise ValueError(f"the checksum of its part {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict, got {type(state).__name__}")
    return state
