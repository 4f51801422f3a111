from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skt_components.data import HDRSample
from skt_components.data.seeding import make_generator
from skt_components.ops.transfer import linearize_ldr
from skt_components.simulation import Camera, Motion, SyntheticScenes
from skt_components.simulation.textures import PATTERNS, fractal_noise, pattern

CLEAN = Camera((1.0, 1.0, 1.0), read_noise=0.0, shot_noise=False, adc_bits=None, bits=16)


def _first(samples: list[HDRSample]) -> HDRSample:
    return samples[0]


def _equal(a: HDRSample, b: HDRSample) -> bool:
    return torch.equal(a.bracket, b.bracket) and torch.equal(a.target, b.target) and a.name == b.name


# matches_reference


@settings(max_examples=15, deadline=None)
@given(
    index=st.integers(0, 999),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    split=st.sampled_from(["train", "val"]),
)
def test_samples_keep_the_conventions(index: int, height: int, width: int, split: str) -> None:
    sample = SyntheticScenes(1000, (height, width), split=split)[index]
    assert sample.bracket.shape == (3, 6, height, width)
    assert sample.target.shape == (3, height, width)
    assert sample.bracket.dtype == sample.target.dtype == torch.float32
    assert bool(sample.bracket.isfinite().all())
    assert 0 <= sample.target.min().item() < sample.target.max().item() <= 1
    ldr = sample.bracket[:, 3:]
    assert torch.equal(ldr * 255, (ldr * 255).round())
    torch.testing.assert_close(sample.bracket[:, :3], linearize_ldr(ldr, sample.exposure_times))


def test_reference_exposure_sees_the_target() -> None:
    dataset = SyntheticScenes(8, 48, camera=CLEAN)
    for i in range(8):
        sample = dataset[i]
        error = (sample.bracket[:, :3] - sample.target).abs().amax((1, 2, 3))
        assert error[1].item() < 1e-4
        assert min(error[0].item(), error[2].item()) > 1e-2


def test_still_scenes_are_three_equal_exposures() -> None:
    motion = Motion(0, 0, 0, 0, (3, 3), (0.1, 0.3), (0.0, 0.0))
    sample = SyntheticScenes(1, 48, camera=CLEAN, motion=motion)[0]
    assert torch.equal(sample.bracket[0], sample.bracket[1])
    assert torch.equal(sample.bracket[0], sample.bracket[2])


def test_objects_hide_and_uncover_the_background() -> None:
    moving = Motion(0, 0, 0, 0, (1, 1), (0.15, 0.2), (8.0, 8.0))
    gone = Motion(0, 0, 0, 0, (0, 0))
    changed, kept = 0, 0
    for i in range(12):
        a = SyntheticScenes(12, 64, camera=CLEAN, motion=moving)[i].target
        b = SyntheticScenes(12, 64, camera=CLEAN, motion=gone)[i].target
        ratio = (a / b.clamp(min=1e-6)).median()  # the exposure rule may scale the two differently
        different = ((a - b * ratio).abs() > 2e-3 + 0.02 * a).any(0)
        changed += int(different.sum())
        kept += int((~different).sum())
    assert 0.01 < changed / (changed + kept) < 0.4


# invariants: what makes them HDR scenes


def test_dynamic_range_saturation_and_darkness() -> None:
    dataset = SyntheticScenes(60, 64, split="val")
    ranges, saturated, dark = [], [], []
    for i in range(60):
        sample = dataset[i]
        brightness = sample.target.amax(0)
        ranges.append((brightness.max() / brightness.min()).item())
        saturated.append((sample.bracket[:, 3:] >= 1).float().mean((1, 2, 3)))
        dark.append((sample.target * dataset.camera.full_well < 20).float().mean())
    assert torch.tensor(ranges).median().item() > 1e3
    mean = torch.stack(saturated).mean(0)
    assert mean[0] < 0.03
    assert mean[0] < mean[1] < mean[2]
    assert (torch.stack(saturated)[:, 2] > 0).double().mean().item() > 0.9
    assert torch.stack(dark).mean().item() > 0.02


def test_scenes_differ_from_each_other() -> None:
    dataset = SyntheticScenes(20, 32)
    targets = torch.stack([dataset[i].target.log1p().flatten() for i in range(20)])
    assert torch.pdist(targets).min().item() > 0.1


def test_no_hard_jaggies() -> None:
    """A slanted edge rendered at twice the resolution has intermediate values along it."""
    x = torch.arange(200.0)[None] / 2
    y = torch.arange(200.0)[:, None] / 2
    stripes = pattern("stripes", x + 0.3 * y, 0 * y, 40.0, 0.5)
    assert 0.01 < ((stripes > 0.05) & (stripes < 0.95)).double().mean().item() < 0.2


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_stay_in_range_and_use_it(name: str) -> None:
    x, y = torch.arange(100.0)[None], torch.arange(100.0)[:, None]
    values = pattern(name, x, y, 20.0, 1.0)
    assert values.shape == (100, 100)
    assert values.min().item() == 0
    assert values.max().item() == (0 if name == "plain" else 1)


def test_noise_has_its_scale_and_many_octaves() -> None:
    noise = torch.stack([fractal_noise(128, 128, make_generator("train", i)) for i in range(20)])
    assert noise.std().item() == pytest.approx(0.65, abs=0.1)
    steps = [(noise[:, s:] - noise[:, :-s]).std().item() for s in (1, 4, 16)]
    assert steps[0] < steps[1] < steps[2]


# invariants: determinism


def test_train_and_val_never_share_random_numbers() -> None:
    seeds = {split: {make_generator(split, i).initial_seed() for i in range(20_000)} for split in ("train", "val")}
    assert not seeds["train"] & seeds["val"]
    train, val = SyntheticScenes(8, 16), SyntheticScenes(8, 16, split="val")
    assert not any(torch.equal(train[i].target, val[i].target) for i in range(8))


def test_epoch_changes_training_and_not_validation() -> None:
    train, val = SyntheticScenes(4, 24), SyntheticScenes(4, 24, split="val")
    before = [[d[i] for i in range(4)] for d in (train, val)]
    train.set_epoch(1)
    val.set_epoch(1)
    assert not any(torch.equal(train[i].target, before[0][i].target) for i in range(4))
    assert all(_equal(val[i], before[1][i]) for i in range(4))
    train.set_epoch(0)
    assert all(_equal(train[i], before[0][i]) for i in range(4))
    assert _equal(train[-1], train[3])
    assert not torch.equal(SyntheticScenes(4, 24, seed=1)[0].target, before[0][0].target)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    alone, shared = SyntheticScenes(6, 32), SyntheticScenes(6, 32)
    loader = DataLoader(shared, num_workers=workers, collate_fn=_first, persistent_workers=True)
    for epoch in (0, 3):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        assert all(_equal(got, alone[i]) for i, got in enumerate(loader))


def test_threads_change_nothing() -> None:
    threads = torch.get_num_threads()
    try:
        samples = []
        for count in (1, 3):
            torch.set_num_threads(count)
            samples.append([SyntheticScenes(4, 128)[i] for i in range(4)])
    finally:
        torch.set_num_threads(threads)
    assert all(_equal(a, b) for a, b in zip(*samples, strict=True))


def test_a_sample_is_made_in_milliseconds() -> None:
    dataset, times = SyntheticScenes(25, 128), []
    for i in range(25):
        start = time.perf_counter()
        dataset[i]
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25  # about 0.02 on an idle core; the bound only catches a blunder


# rejects_bad_input


@pytest.mark.parametrize(
    ("length", "size", "options", "message"),
    [
        (0, 32, {}, "length must be a whole number >= 1"),
        (4, 4, {}, "size must be whole numbers of at least 8"),
        (4, "32", {}, "size must be"),
        (4, 32, {"split": "all"}, "split must be one of"),
    ],
)
def test_options_are_checked(length: int, size: int, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(length, size, **options)  # type: ignore[arg-type]


def test_index_is_checked() -> None:
    with pytest.raises(IndexError, match="index 4 is outside a data set of 4"):
        SyntheticScenes(4, 16)[4]
    with pytest.raises(IndexError, match="index -5"):
        SyntheticScenes(4, 16)[-5]
