"""The plan of a run: exact counts, operations as published, and files that must be there."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from skt_components.banks import EmptyBank
from skt_components.data import HDRSample
from skt_components.framework import SemanticKnowledgeTransfer
from skt_components.models import AHDRNet
from skt_components.training import TrainConfig
from skt_components.training.plan import check_files, describe_plan


def make_framework(orm: nn.Module | None = None, **options) -> SemanticKnowledgeTransfer:
    orm = orm or AHDRNet(features=8, num_layers=2, growth=4)
    return SemanticKnowledgeTransfer(orm, options.pop("bank", EmptyBank()), **options)


def make_sample(side: int = 32) -> HDRSample:
    return HDRSample(torch.rand(3, 6, side, side), torch.tensor([1.0, 4, 16]), torch.rand(3, side, side), "x", "srgb")


def plan(framework: SemanticKnowledgeTransfer | None = None, sample: HDRSample | None = None, **options) -> str:
    rest = {key: options.pop(key) for key in ("samples_per_epoch", "processes") if key in options}
    config = TrainConfig(**{"knowledge_bank": "none", "crop": 32, "device": "cpu", **options})
    return describe_plan(config, framework or make_framework(), sample or make_sample(), **rest)


def number(pattern: str, text: str) -> float:
    """The number in front of a pattern, in bytes if it has a unit of memory."""
    found = re.search(rf"([\d.,]+) (KiB |MiB |GiB )?{pattern}", text)
    assert found, f"no {pattern!r} in {text}"
    return float(found[1].replace(",", "")) * {"KiB ": 2**10, "MiB ": 2**20, "GiB ": 2**30}.get(found[2], 1)


# numbers


def test_parameters_are_exact_and_the_bank_is_counted_apart() -> None:
    class Bank(EmptyBank):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

    framework = make_framework(bank=Bank())
    text = plan(framework)
    for part, name in ((framework.orm, "network"), (framework.spgrm, "teacher"), (framework.skams, "SKAMs")):
        assert number(name, text) == sum(p.numel() for p in part.parameters())
    assert number("bank frozen", text) == 20


def test_a_frozen_layer_is_not_counted_as_trained() -> None:
    framework = make_framework()
    framework.orm.conv1.requires_grad_(False)
    assert number("network", plan(framework)) == sum(p.numel() for p in framework.orm.parameters() if p.requires_grad)


def test_multiply_adds_of_ahdrnet_are_those_published() -> None:
    # measured on a piece of the sample, and scaled to the crop
    text = plan(make_framework(AHDRNet()), make_sample(16), crop=256)
    alone, whole = number("GMACs forward per 256 x 256 sample", text), number("GMACs for the whole", text)
    assert alone == pytest.approx(94.8, rel=0.02)
    assert whole > 1.1 * alone


def test_steps_samples_and_epochs_count_every_process_and_pass() -> None:
    text = plan(steps=100, batch_size=4, accumulate=2, processes=3, samples_per_epoch=600)
    assert "100 of 4 samples x 2 passes x 3 processes: 2,400 samples, 4 epochs of 600" in text
    assert "epochs" not in plan(steps=100)
    assert "6 runs of them" in plan(seeds=3, compare=True)


def test_what_is_written_is_counted() -> None:
    framework = make_framework()
    trained = sum(p.numel() for p in framework.parameters())
    text = plan(framework, steps=250, checkpoint_every=100, validate_every=50, keep=1)
    assert number("checkpoints of", text) == 3
    assert number("KiB, of which", text) == pytest.approx(12 * trained / 1024, rel=0.001)
    assert "of which 2 stay" in text
    assert number("validations", text) == 6  # one before the first step
    assert "of which 2 stay" in plan(framework, steps=10)


def test_the_framework_and_the_random_state_stay_as_they_were() -> None:
    framework, sample = make_framework().eval(), make_sample()
    before, random = copy.deepcopy(framework.state_dict()), torch.get_rng_state()
    plan(framework, sample)
    assert all(torch.equal(value, before[name]) for name, value in framework.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not framework.training
    assert all(p.grad is None for p in framework.parameters())


@pytest.mark.parametrize("scale", [1, 4])
def test_raw_brackets_of_another_size_than_their_target(scale: int) -> None:
    orm = AHDRNet(features=8, num_layers=2, growth=4, num_frames=5, in_channels=4, out_channels=4, scale=scale)
    sample = HDRSample(torch.rand(5, 4, 16, 16), torch.ones(5), torch.rand(4, 16 * scale, 16 * scale), "x", "raw")
    framework = make_framework(orm, domain="raw", sample=sample.bracket[None])
    camera = "raw" if scale == 1 else "raw-x4"
    assert number("GMACs forward per 64 x 64", plan(framework, sample, camera=camera, crop=64)) > 0


# files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "kalantari", "root": Path("absent")}, "root=absent is not a folder"),
        ({"resume": Path("absent")}, r"resume=absent is not a run folder: it has no config\.toml"),
        ({"perceptual": "absent.pth"}, r"perceptual=absent\.pth is neither bank, pretrained nor a file"),
        ({"knowledge_bank": "resnet18", "weights": "absent.pth"}, r"weights=absent\.pth is not a file"),
        ({"knowledge_bank": "fastsam", "weights": "absent.pt"}, r"absent\.pt"),
    ],
)
def test_missing_files_are_named(options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(**options)
    with pytest.raises(FileNotFoundError, match=message):
        check_files(config)
    with pytest.raises(FileNotFoundError, match=message):
        describe_plan(config, make_framework(), make_sample())


def test_files_that_are_there_pass(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "w.pth").touch()
    weights = {"weights": str(tmp_path / "w.pth"), "perceptual": str(tmp_path / "w.pth")}
    check_files(TrainConfig(data="tel", root=tmp_path, resume=tmp_path, knowledge_bank="resnet18", **weights))
    check_files(TrainConfig(knowledge_bank="hrnet_w48", weights="pretrained", perceptual="bank"))


def test_rejects_counts_below_one_and_what_is_no_sample() -> None:
    with pytest.raises(TypeError, match="sample must be an HDRSample, got list"):
        plan(sample=[make_sample()])
    with pytest.raises(ValueError, match="processes must be a whole number >= 1, got 0"):
        plan(processes=0)
    with pytest.raises(ValueError, match="samples_per_epoch must be a whole number >= 1, got 0"):
        plan(samples_per_epoch=0)
