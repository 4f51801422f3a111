"""The samples of a run are one sequence, however it is cut."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import skt_components as skt
from skt_components.training import SamplePositions, sample_generators, seed_everything, training_batches


def take(positions: SamplePositions, count: int) -> list[tuple[int, int]]:
    return [place for batch in itertools.islice(positions, count) for place in batch]


def test_every_epoch_is_another_permutation_of_all_samples() -> None:
    found = take(SamplePositions(10, 2, seed=0), 15)
    epochs = [[index for epoch, index in found if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert take(SamplePositions(10, 2, seed=1), 5) != found[:10]


@pytest.mark.parametrize(("batch", "world"), [(1, 1), (3, 1), (2, 2), (1, 4), (5, 3)])
def test_processes_share_the_sequence(batch: int, world: int) -> None:
    whole = take(SamplePositions(7, 1, seed=3), 4 * batch * world)  # batches cross the epochs' borders
    parts = [iter(SamplePositions(7, batch, seed=3, rank=rank, world=world)) for rank in range(world)]
    assert [place for _ in range(4) for part in parts for place in next(part)] == whole


@pytest.mark.parametrize("start", [1, 2, 3, 7, 40])
def test_a_later_start_skips_nothing(start: int) -> None:
    whole = [next(it) for it in [iter(SamplePositions(9, 2, seed=5))] for _ in range(45)]
    resumed = iter(SamplePositions(9, 2, seed=5, start=start))
    assert [next(resumed) for _ in range(5)] == whole[start : start + 5]


def test_first_is_the_place_in_the_sequence() -> None:
    positions = SamplePositions(100, 4, seed=0, rank=1, world=2)
    assert [positions.first(batch) for batch in (0, 1, 2)] == [4, 12, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length"),
        ({"batch_size": 0}, "batch_size"),
        ({"start": -1}, "start"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"world": 0}, "world"),
    ],
)
def test_rejects_bad_input(options: dict, message: str) -> None:
    arguments = {"length": 4, "batch_size": 2, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        SamplePositions(arguments.pop("length"), arguments.pop("batch_size"), **arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_where_a_run_starts_or_who_loads(workers: int) -> None:
    data = skt.SyntheticScenes(6, 16)
    stream = training_batches(data, SamplePositions(6, 2, seed=0), workers=0)
    straight = [next(stream).bracket for _ in range(8)]
    for start in (0, 1, 4, 7):
        resumed = training_batches(data, SamplePositions(6, 2, seed=0, start=start), workers=workers)
        assert torch.equal(next(resumed).bracket, straight[start])
    assert not torch.equal(straight[0], straight[3])  # the next epoch


SCRIPT = """
import os, signal, sys, time
import skt_components as skt
from skt_components.training import SamplePositions, training_batches
stream = training_batches(skt.SyntheticScenes(8, 16), SamplePositions(8, 2, seed=0), workers=2)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
next(stream)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):  # more than the loaders have ready
    next(stream)
print("went on", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX's")
def test_signals_to_the_whole_group_leave_the_loaders_alone_and_an_open_stream_ends_with_its_process() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(process.pid, number)
            time.sleep(0.2)
        output, errors = process.communicate("\n", timeout=60)
    assert (output, process.returncode) == ("went on\n", 0), errors


def test_a_data_set_draws_from_the_epoch_that_is_asked_for() -> None:
    data = skt.SyntheticScenes(4, 16)
    data.set_epoch(2)
    by_epoch = data[1]
    data.set_epoch(0)
    assert torch.equal(data[2, 1].bracket, by_epoch.bracket)
    assert not torch.equal(data[1].bracket, by_epoch.bracket)
    fixed = skt.SyntheticScenes(4, 16, split="val")
    assert torch.equal(fixed[5, 1].bracket, fixed[1].bracket)


def test_a_seed_covers_python_numpy_and_torch() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    seed_everything(0, 7, 1)
    first = draw()
    assert draw() != first
    seed_everything(0, 7, 1)
    assert draw() == first
    seed_everything(0, 7, 2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_samples_mask_is_its_own() -> None:
    skam = skt.SKAM(4, 4, 8)
    student, teacher = torch.rand(4, 4, 6, 6), torch.rand(4, 4, 6, 6)
    whole = skam(student, teacher, generator=sample_generators(0, 8, 4))
    halves = [skam(student[i : i + 2], teacher[i : i + 2], generator=sample_generators(0, 8 + i, 2)) for i in (0, 2)]
    assert torch.equal(whole.mask, torch.cat([half.mask for half in halves]))
    torch.testing.assert_close(whole.loss, (halves[0].loss + halves[1].loss) / 2)
    assert not torch.equal(whole.mask[0], whole.mask[1])
    with pytest.raises(ValueError, match="generator must have one for each of 4 samples, got 3"):
        skam(student, teacher, generator=sample_generators(0, 0, 3))
