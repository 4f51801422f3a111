"""Huge memory pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skt_components.ops import use_huge_pages

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT_FAULTS = """
import os, resource, torch
from skt_components.ops import use_huge_pages
for choose in (lambda: None, use_huge_pages):  # each in a fork, because torch reads the choice once
    if os.fork() == 0:
        choose()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(40_000_000)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not SYSTEM.exists() or "[madvise]" not in SYSTEM.read_text(), reason="the system decides")
def test_large_tensors_come_in_few_pages():
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", COUNT_FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    small, huge = map(int, done.stdout.split())
    assert small >= 160_000_000 // 4096
    assert huge < small / 10


def test_the_choice_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
