"""The lock of a folder, and what killed writers leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import skt_components.files.lock as lock_module
from skt_components.files import FolderLock, atomic_write, remove_leftovers

HOLD = """
import os, runpy, sys, time
FolderLock = runpy.run_path(sys.argv[2])["FolderLock"]  # without the rest of the package
lock = FolderLock(sys.argv[1])
child = os.fork() if hasattr(os, "fork") else None  # a loading process does not hold the lock
if child == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_lock_and_a_killed_one_holds_it_no_longer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), lock_module.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(BlockingIOError, match=rf"is in use by process {holder.pid} on .*: wait until it ends"):
                FolderLock(tmp_path)
            holder.kill()
            holder.wait()
            with FolderLock(tmp_path):
                assert str(os.getpid()) in (tmp_path / ".lock").read_text()
        finally:
            os.kill(child, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_of_one_object_and_is_free_again_after_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    lock.release()
    lock.release()  # does nothing
    with FolderLock(tmp_path):
        pass
    forgotten = FolderLock(tmp_path)
    del forgotten
    FolderLock(tmp_path).release()
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        if (child := os.fork()) == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    killed: list[Any] = []
    (tmp_path / "below").mkdir()
    for name in (".gitignore", ".a.txt", ".notes.0123abcd.txt", "plain.txt"):
        (tmp_path / "below" / name).write_text("mine")
    for name in ("metrics.jsonl", "orm.safetensors", "below/state.ckpt", "README", "b.tar.gz"):
        killed.append(atomic_write(tmp_path / name))  # the block does not end
        killed[-1].__enter__().write_text("half")
    assert len(list(tmp_path.rglob(".*"))) == 8
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["below", ".gitignore", ".a.txt", ".notes.0123abcd.txt", "plain.txt"]
    )
