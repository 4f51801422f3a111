"""The picture of a bank as a user makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import skt_components as skt
from skt_components import commands


def show(*arguments: object) -> int:
    return commands.main(["banks", "show", *map(str, arguments)])


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image")
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    image.fromarray(data.coffee()[:200, :300]).save(path)
    return path


def test_draws_display_and_hdr_pictures(photo: Path, tmp_path: Path) -> None:
    skt.write_image(tmp_path / "room.hdr", torch.rand(3, 60, 90) * 40)
    assert show(photo, tmp_path / "room.hdr", "--out", tmp_path / "priors.png", "--longest-side", 96) == 0
    from matplotlib.image import imread

    assert imread(tmp_path / "priors.png").shape[1] > 1000


def test_fastsam(photo: Path, tmp_path: Path, fastsam_like: Path) -> None:
    options = ("--bank", "fastsam", "--weights", fastsam_like, "--layers", "fast", "--longest-side", 96)
    assert show(photo, *options, "--out", tmp_path / "priors.png") == 0
    assert (tmp_path / "priors.png").stat().st_size > 10_000


@pytest.fixture
def fastsam_like(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    path = tmp_path / "FastSAM-s.safetensors"
    save_file(skt.FastSAMFeatureExtractor("random", layers="fast").network.network.state_dict(), path)
    return path


def test_errors_are_one_line(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.png").touch()
    deep = tmp_path / "deep.png"
    image = pytest.importorskip("PIL.Image")
    image.frombytes("I;16", (4, 4), bytes(32)).save(deep)
    for arguments, message in [
        ((photo, "--out", tmp_path / "there.png"), "there.png exists: choose another"),
        ((tmp_path / "absent.png", "--out", tmp_path / "a.png"), "absent.png"),
        ((photo, "--out", tmp_path / "nowhere" / "a.png"), "--out must be a new .png in a folder that exists"),
        ((photo, "--longest-side", 0, "--out", tmp_path / "a.png"), "--longest-side must be >= 16, got 0"),
        ((deep, "--out", tmp_path / "a.png"), "must have 8 bits per channel, got a picture of mode 'I;16'"),
        ((photo, "--bank", "no_such_net", "--out", tmp_path / "a.png"), "name must be a timm model"),
        ((photo, "--bank", "fastsam", "--weights", tmp_path / "no.pt", "--out", tmp_path / "a.png"), "no.pt"),
    ]:
        assert show(*arguments) == 1
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.startswith("skt banks show: ")
        assert shown.count("\n") == 1
    assert (tmp_path / "there.png").stat().st_size == 0
    assert not (tmp_path / "a.png").exists()
