"""Lock a folder for one process; the lock ends with the process, however that ends."""

from __future__ import annotations

import os
import platform
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOCK_FILE = ".lock"
_held: set[int] = set()  # open files of this process


class FolderLock:
    """Hold the lock of a folder, in its file ``.lock``, which names the process, until :meth:`release`.

    The operating system ends the lock of a process that is killed. Forked processes, such as those that load data, do
    not hold the lock. A file system without locks gives none, and no error.

    Args:
        folder: an existing folder.

    Raises:
        BlockingIOError: another process holds the lock, or another object of this process.
        OSError: the folder does not exist (FileNotFoundError) or is not writable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
        ...     try:
        ...         FolderLock(folder)
        ...     except BlockingIOError as error:
        ...         print(f"process {os.getpid()} on" in str(error))
        True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder) / LOCK_FILE
        number = _open_locked(path)
        os.ftruncate(number, 0)
        os.write(number, f"process {os.getpid()} on {platform.node()}".encode())
        _held.add(number)
        self._finalizer = weakref.finalize(self, _release, number, path, os.getpid())

    def release(self) -> None:
        """Release the lock and remove its file; without a call this happens when the process ends."""
        self._finalizer()

    def __enter__(self) -> FolderLock:
        """Return the lock."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.release()


def _open_locked(path: Path) -> int:
    """Open and lock the file."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(number)
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        except FileNotFoundError:
            pass  # it was locked when this process opened it, and then released
        except BlockingIOError:
            holder = os.read(number, 1000).decode("utf-8", "replace") or "another process"
            os.close(number)
            raise BlockingIOError(f"{path.parent} is in use by {holder}: wait until it ends, or end it") from None
        os.close(number)


def _lock(number: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            os.lseek(number, 10_000, os.SEEK_SET)  # others may read what stands before the locked byte
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            raise BlockingIOError(str(error)) from error
        finally:
            os.lseek(number, 0, os.SEEK_SET)
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # no locks on this file system


def _release(number: int, path: Path, owner: int) -> None:
    if os.getpid() != owner:
        return
    _held.discard(number)
    with suppress(OSError):  # the folder is gone, or Windows keeps an open file
        path.unlink()
    os.close(number)


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
