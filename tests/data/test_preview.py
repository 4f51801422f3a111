"""Samples as pictures."""

from __future__ import annotations

import math

import pytest
import torch

from skt_components.data import HDRSample, save_contact_sheet, show_exposures, show_radiance
from skt_components.data.preview import compressed_radiance
from skt_components.ops import mosaic, mu_law, pack_raw, srgb_encode, tone_map
from skt_components.simulation import SyntheticScenes

MATRIX = torch.tensor([[1.5, -0.4, -0.1], [-0.2, 1.4, -0.2], [0.0, -0.6, 1.6]])


def gray_raw(level):
    """A flat gray scene of linear radiance ``level`` of 16, as a camera with white balance and matrix sees it."""
    gains = torch.tensor([2.0, 1.0, 1.5])
    rgb = torch.full((1, 3, 8, 8), float(level))
    planes = pack_raw(mosaic(rgb / gains[:, None, None]))[0]
    limits = 16 / 4.0 ** torch.arange(5.0)
    bracket = planes.expand(5, 4, 4, 4).minimum(
        limits[:, None, None, None] / torch.tensor([2.0, 1, 1, 1.5])[:, None, None]
    )
    metadata = {"white_balance": gains, "color_matrix": MATRIX}
    return HDRSample(bracket, 4.0 ** torch.arange(5.0), planes, "gray", "raw", metadata)


def test_srgb_exposures_are_the_ldr_pictures():
    sample = SyntheticScenes(1, 32)[0]
    assert torch.equal(show_exposures(sample), sample.bracket[:, 3:])
    assert torch.equal(show_radiance(sample.target, sample), tone_map(sample.target[None])[0])
    assert torch.equal(compressed_radiance(sample.target, sample), mu_law(sample.target))


def test_raw_gray_stays_gray_and_saturates_to_white():
    sample = gray_raw(0.5)
    shown = show_exposures(sample)
    assert shown.shape == (5, 3, 8, 8)
    for exposure, level in zip(shown, (0.5 / 16, 0.5 / 4, 0.5, 1.0, 1.0), strict=True):
        assert torch.allclose(exposure, srgb_encode(torch.tensor(level)), atol=1e-6)
    target = compressed_radiance(sample.target, sample)
    assert torch.allclose(target, torch.tensor(math.log1p(5000 * 0.5 / 16) / math.log(5001)), atol=1e-6)


def test_a_sheet_is_never_written_over(tmp_path):
    path = tmp_path / "sheet.png"
    save_contact_sheet(path, [gray_raw(1), gray_raw(4)])
    size = path.stat().st_size
    with pytest.raises(FileExistsError, match=r"sheet.png exists"):
        save_contact_sheet(path, [gray_raw(1)])
    assert path.stat().st_size == size
    save_contact_sheet(path, [gray_raw(1)], overwrite=True)
    assert path.stat().st_size != size


def test_samples_that_do_not_fit_on_one_sheet(tmp_path):
    with pytest.raises(ValueError, match="equally many exposures, got no sample"):
        save_contact_sheet(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match=r"equally many exposures, got \[3, 5\]"):
        save_contact_sheet(tmp_path / "a.png", [SyntheticScenes(1, 16)[0], gray_raw(1)])


def test_the_file_that_is_checked_is_the_one_that_is_written(tmp_path):
    (tmp_path / "s.png").write_text("mine")
    save_contact_sheet(tmp_path / "s", [gray_raw(1)._replace(name="cost: $5 \udcff")])
    assert (tmp_path / "s.png").read_text() == "mine"
    assert (tmp_path / "s").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(FileExistsError, match="s exists"):
        save_contact_sheet(tmp_path / "s", [gray_raw(1)])
    with pytest.raises(ValueError, match=r"a\.hdr: suffix must be one of .*\.png"):
        save_contact_sheet(tmp_path / "a.hdr", [gray_raw(1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.png"]
