"""Brackets from sequences of frames: which frames they see, and how they are split and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from skt_components.commands import main
from skt_components.data import Kalantari17, write_image
from skt_components.simulation import Camera, HDRSequences, RawCamera, simulate_bracket_from_frames

pytest.importorskip("OpenEXR")

CLEAN = Camera(full_well=1e9, read_noise=0.0, shot_noise=False, bits=16, adc_bits=None, mid_level=(0.2, 0.2))


def frame_of(sequence: int, number: int, height: int = 24, width: int = 32) -> torch.Tensor:
    """Return a frame whose colors say where a pixel is, and which frame of which sequence it is."""
    row = torch.arange(height)[:, None].expand(height, width) / height
    column = torch.arange(width)[None].expand(height, width) / width
    return torch.stack([1 + row, 1 + column, torch.full((height, width), 0.1 * (1 + number) + 2 * sequence)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sequences of six frames, one that is too short, and depth beside the first."""
    root = tmp_path_factory.mktemp("sequences")
    for sequence, name in enumerate(("a/image", "b/image", "c/image")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            write_image(root / name / f"{number:04d}.exr", frame_of(sequence, number))
    for name, count in (("short/image", 2), ("a/depth", 6)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            write_image(root / name / f"{number:04d}.exr", torch.ones(3, 24, 32))
    return root


def test_each_exposure_sees_the_next_frame_and_the_target_is_the_reference_frame(root: Path) -> None:
    data = HDRSequences(root, split="all", camera=CLEAN, pattern="*/image/*", augment=False, step=2)
    assert [frames[0].parent.relative_to(root).as_posix() for frames in data.sequences] == [
        "a/image",
        "b/image",
        "c/image",
    ]
    sample = data[1]
    assert (sample.name, sample.domain, sample.exposure_times.tolist()) == ("b/image", "srgb", [1, 4, 16])
    fits = []
    for first in (0, 1):  # six frames hold two brackets of frames first, first + 2 and first + 4
        frames = torch.stack([frame_of(1, first + 2 * i) for i in range(3)])
        factor = sample.target[0, 0, 0] / frames[1, 0, 0, 0]
        expected = (frames * factor * CLEAN.times[:, None, None, None]).clamp(max=1)
        fits.append(torch.allclose(sample.bracket[:, 3:] ** 2.2, expected, atol=1e-4))
        fits[-1] &= torch.allclose(sample.target, frames[1] * factor)
    assert sorted(fits) == [False, True]


def test_the_last_sequences_validate_and_validation_samples_never_change(root: Path) -> None:
    options = {"pattern": "*/image/*", "crop": 16, "camera": CLEAN}
    train = HDRSequences(root, samples_per_epoch=8, **options)
    held_out = HDRSequences(root, split="val", samples_per_epoch=3, **options)
    assert (len(train.sequences), len(held_out.sequences)) == (2, 1)
    assert {train[i].name for i in range(8)} == {"a/image", "b/image"}
    before = [held_out[i] for i in range(3)]
    held_out.set_epoch(5)
    assert all(torch.equal(before[i].bracket, held_out[i].bracket) for i in range(3))
    assert not torch.equal(before[0].target, before[1].target)
    first = train[0]
    train.set_epoch(1)
    assert not torch.equal(first.bracket, train[0].bracket)
    loaded = next(iter(DataLoader(train, batch_size=2, num_workers=1)))
    assert torch.equal(loaded.bracket[0], train[0].bracket)


def test_raw_cameras_photograph_sequences_too(root: Path) -> None:
    sample = HDRSequences(root, split="all", crop=8, camera=RawCamera(), pattern="*/image/*")[0]
    assert (sample.domain, sample.bracket.shape, sample.target.shape) == ("raw", (5, 4, 8, 8), (4, 8, 8))
    whole = HDRSequences(root, split="all", camera=RawCamera(), pattern="*/image/*")[0]
    assert whole.target.shape == (4, 12, 16)


def test_the_command_writes_sequences_as_scenes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train", "2", "--test", "1", "--height", "16", "--width", "24", "--sequences", str(root)]
    assert main(["data", "simulate", "kalantari", str(tmp_path / "out"), *small]) == 0
    assert "2 train and 1 test scenes" in capsys.readouterr().out
    assert Kalantari17(tmp_path / "out")[1].target.shape == (3, 16, 24)
    assert main(["data", "simulate", "kalantari", str(tmp_path / "other"), *small, "--photos", str(root)]) == 1
    assert "exclude each other" in capsys.readouterr().err


def test_what_does_not_fit_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 7 frames like 'a/\*', the longest of 2 .* has 6"):
        HDRSequences(root, step=3, pattern="a/*")
    with pytest.raises(ValueError, match=r"000\d.exr: crop must fit the frame of \(24, 32\), got \(32, 32\)"):
        _ = HDRSequences(root, crop=32, pattern="a/image/*", split="all", augment=False, step=2)[0]
    with pytest.raises(ValueError, match='split "train" has no sequence: 1 of 1 are for validation'):
        HDRSequences(root, pattern="a/image/*")
    for number in range(3):
        write_image(tmp_path / f"{number}.exr", torch.ones(3, 16, 16 + 2 * number))
    with pytest.raises(ValueError, match=r"\d.exr: frames of a sequence must have one size"):
        _ = HDRSequences(tmp_path, split="all")[0]
    with pytest.raises(ValueError, match="frames must be 3, one for each exposure time, got 2"):
        simulate_bracket_from_frames(torch.rand(2, 3, 8, 8), Camera(), torch.Generator())
