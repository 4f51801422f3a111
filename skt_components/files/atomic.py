"""Write files whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.[^.]*)?")
_LONGEST_NAME = 255  # bytes


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary file to write, and move it to ``path`` if the block ends without an error.

    A reader sees the old file or the new one, never a part of one. After an error the old file is unchanged.

    Args:
        path: the file. It is replaced if it exists; its folder must exist.
        sync: wait until the file is on the disk, so that a power cut leaves the old file or the new one.

    Yields:
        The temporary file, in the same folder and with the same suffix.

    Raises:
        OSError: the folder does not exist (FileNotFoundError), or the disk is full or not writable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} does not exist, {path.name} was not written")
    temporary = path.with_name(_temporary_name(path))
    try:
        temporary.touch()  # gets the rights of a new file; safetensors would set narrower ones
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> str:
    """Return a hidden name with the same suffix; of a long name it has the beginning."""
    ending = f".{uuid.uuid4().hex}{path.suffix}"
    start = os.fsencode(f".{path.name}")[: max(_LONGEST_NAME - len(os.fsencode(ending)), 1)]
    return start.decode("utf-8", "ignore") + ending


def write_text(path: str | os.PathLike[str], text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 text file whole or not at all; see :func:`atomic_write` for the errors.

    ``errors`` says how to encode characters that UTF-8 does not have, as ``str.encode`` takes it.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def is_leftover(path: Path) -> bool:
    """Return True for a temporary file of :func:`atomic_write`, which stays only if a process is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of killed processes in a folder and below it; no process may write there."""
    for path in Path(folder).rglob(".*"):
        if is_leftover(path):
            path.unlink(missing_ok=True)
