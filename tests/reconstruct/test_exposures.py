"""Reading the exposures that cameras write, and making a bracket of them."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from camera_files import textured, write_dng, write_jpeg, write_png16

from skt_components.data import write_image
from skt_components.ops import srgb_encode
from skt_components.reconstruct import (
    Exposure,
    RawExposure,
    bracket_from_exposures,
    read_exposure,
    read_raw_exposure,
)
from skt_components.reconstruct.exposures import read_light

pytest.importorskip("exifread")


# files


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    linear = textured()
    path = tmp_path / f"picture{suffix}"
    if suffix == ".png":
        write_png16(path, srgb_encode(linear))
    else:
        write_image(path, srgb_encode(linear))
    torch.testing.assert_close(read_exposure(path).linear, linear, atol=2e-5, rtol=1e-4)


def test_a_jpeg_is_linearized_and_its_light_is_time_times_iso_over_the_f_number_squared(tmp_path: Path) -> None:
    linear = textured()
    path = write_jpeg(tmp_path / "a.jpg", srgb_encode(linear), Fraction(1, 60), iso=400, f=(28, 10))
    exposure = read_exposure(path)
    assert (exposure.linear - linear).abs().mean() < 0.01
    assert exposure.light == pytest.approx(4 / 60 / 2.8**2)


def test_without_exif_data_the_light_is_unknown(tmp_path: Path) -> None:
    assert read_exposure(write_jpeg(tmp_path / "a.jpg", textured())).light is None
    assert read_exposure(write_png16(tmp_path / "a.png", textured())).light is None


def test_a_portrait_picture_is_turned_upright(tmp_path: Path) -> None:
    upright = textured(height=128, width=96)
    lying = torch.rot90(upright, 1, (1, 2))  # the camera was turned to the right: EXIF orientation 6
    path = write_jpeg(tmp_path / "a.jpg", lying, Fraction(1, 60), orientation=6)
    exposure = read_exposure(path, transfer="linear")
    assert exposure.linear.shape == upright.shape
    assert (exposure.linear - upright).abs().mean() < 0.01


@pytest.mark.parametrize(("transfer", "power"), [("gamma2.2", 2.2), ("linear", 1.0)])
def test_the_transfer_function_can_be_named(tmp_path: Path, transfer: str, power: float) -> None:
    linear = textured()
    path = write_png16(tmp_path / "a.png", linear ** (1 / power))
    torch.testing.assert_close(read_exposure(path, transfer=transfer).linear, linear, atol=5e-5, rtol=1e-3)


def mosaic_of(values: dict[tuple[int, int], int], height: int = 64, width: int = 80) -> np.ndarray:
    mosaic = np.zeros((height, width), np.uint16)
    for (row, column), value in values.items():
        mosaic[row::2, column::2] = 64 + value
    return mosaic


RGGB = {(0, 0): 400, (0, 1): 300, (1, 0): 200, (1, 1): 100}


def test_a_raw_file_gives_packed_sensor_values_white_balance_and_light(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    path = write_dng(tmp_path / "a.dng", mosaic_of(RGGB), time=Fraction(1, 125))
    exposure = read_raw_exposure(path)
    assert exposure.planes.shape == (4, 32, 40)
    torch.testing.assert_close(exposure.planes.mean((1, 2)), torch.tensor([400.0, 300, 200, 100]) / (1023 - 64))
    torch.testing.assert_close(exposure.white_balance, torch.tensor([2.0, 1.0, 1 / 0.6]), rtol=1e-3, atol=0)
    torch.testing.assert_close(exposure.color_matrix, torch.eye(3), atol=1e-3, rtol=0)
    assert exposure.light == pytest.approx(1 / 125)


def test_a_mosaic_of_another_phase_is_packed_from_its_first_red_pixel(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    values = {(0, 0): 100, (0, 1): 200, (1, 0): 300, (1, 1): 400}  # B G / G R
    path = write_dng(tmp_path / "a.dng", mosaic_of(values), pattern=bytes([2, 1, 1, 0]))
    planes = read_raw_exposure(path).planes
    assert planes.shape == (4, 31, 39)
    torch.testing.assert_close(planes.mean((1, 2)), torch.tensor([400.0, 300, 200, 100]) / (1023 - 64))


def test_a_raw_file_is_developed_to_linear_rgb(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    gray = {(0, 0): 200, (0, 1): 400, (1, 0): 400, (1, 1): 240}  # gray under the camera's white balance
    developed = read_exposure(write_dng(tmp_path / "a.dng", mosaic_of(gray))).linear
    middle = developed[:, 8:-8, 8:-8].mean((1, 2))
    torch.testing.assert_close(middle, torch.full((3,), 400 / (1023 - 64)), rtol=0.02, atol=0)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "a.bmp").write_bytes(b"BM")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_exposure(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: the file is not a picture, or it is damaged"):
        read_exposure(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.bmp: suffix must be one of \.jpg"):
        read_exposure(tmp_path / "a.bmp")
    pytest.importorskip("rawpy")
    (tmp_path / "a.dng").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.dng: not a camera RAW file"):
        read_raw_exposure(tmp_path / "a.dng")
    with pytest.raises(ValueError, match="transfer of camera RAW is linear, got 'srgb'"):
        read_exposure(write_dng(tmp_path / "b.dng", mosaic_of(RGGB)), transfer="srgb")


@pytest.mark.parametrize(("package", "suffix"), [("rawpy", ".dng"), ("exifread", ".png")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        write_png16(path, textured())
    else:
        write_dng(path, mosaic_of(RGGB))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"skt-components\[photo\]"):
        read_exposure(path)


def test_light_of_a_file_without_a_usable_time_is_unknown(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg", textured(), Fraction(0, 1))
    assert read_light(path) is None


# brackets


def exposures(*light: float | None, scene: torch.Tensor | None = None) -> list[Exposure]:
    scene = textured() if scene is None else scene
    return [Exposure((scene * (t or 1)).clamp(0, 1), t, f"{i}.jpg") for i, t in enumerate(light)]


def test_a_bracket_goes_from_dark_to_bright_in_any_order_of_the_pictures() -> None:
    bracket, times = bracket_from_exposures(exposures(0.25, 1 / 64, 1 / 16))
    ordered, _ = bracket_from_exposures(exposures(1 / 64, 1 / 16, 0.25))
    assert times.tolist() == [1.0, 4.0, 16.0]
    assert torch.equal(bracket, ordered)
    assert bracket.shape == (3, 6, 96, 128)
    torch.testing.assert_close(bracket[0, :3], textured() / 64, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bracket[:, 3:] ** 2.2, bracket[:, :3] * times[:, None, None, None])


def test_a_raw_bracket_is_on_one_scale_with_its_peak_at_16() -> None:
    planes = textured()[[0, 1, 1, 2]] * 0.25
    raw = [RawExposure(planes * t, t / 100, f"{t}.dng", torch.ones(3), torch.eye(3)) for t in (1.0, 4.0)]
    bracket, _ = bracket_from_exposures(raw)
    torch.testing.assert_close(bracket[0], bracket[1])
    torch.testing.assert_close(bracket[0], planes * 16)


def test_brackets_that_cannot_be_are_explained() -> None:
    with pytest.raises(ValueError, match="at least two exposures, got 1"):
        bracket_from_exposures(exposures(1.0))
    with pytest.raises(ValueError, match=r"1\.jpg has no exposure time in its EXIF data: give `exposure_times`"):
        bracket_from_exposures(exposures(0.01, None))
    with pytest.raises(ValueError, match=r"different exposures: 0\.jpg and 2\.jpg both have 0\.01"):
        bracket_from_exposures(exposures(0.01, 0.04, 0.01))
    with pytest.raises(ValueError, match=r"exposure_times must be finite numbers > 0, got -1"):
        bracket_from_exposures(exposures(0.01, -1.0))
    small = exposures(0.01)[0]
    large = Exposure(textured(height=64), 0.04, "large.jpg")
    with pytest.raises(ValueError, match=r"one size: 0\.jpg is 128x96, large\.jpg is 128x64"):
        bracket_from_exposures([small, large])


def test_a_longer_exposure_that_is_darker_is_an_error() -> None:
    dark, bright = exposures(0.01, 0.04)
    swapped = [dark._replace(light=0.04), bright._replace(light=0.01)]
    with pytest.raises(
        ValueError, match=r"0\.jpg has the longer exposure \(0\.04 against 0\.01\) but is darker than 1"
    ):
        bracket_from_exposures(swapped)
