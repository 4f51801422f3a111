"""HDR-VDP-2 and its stages against numbers of the published code, and the stages against SciPy and NumPy."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from skt_components.metrics import _hdrvdp2_bands as bands_stage
from skt_components.metrics import _hdrvdp2_filters as filters
from skt_components.metrics import _hdrvdp2_numerics as numerics
from skt_components.metrics import _hdrvdp2_optics as optics
from skt_components.metrics import hdr_vdp2
from skt_components.metrics._hdrvdp2_numerics import resize
from skt_components.metrics._hdrvdp2_pyramid import build_pyramid, pyramid_height, rebuild

PAIRS = (
    *("d01_noise", "d02_blur_dim", "d03_ghost_blend", "d04_clip_odd", "d05_quant_mu8", "d06_colour", "d07_jpeg_mu"),
    *("d08_ghost_replaced", "d09_mild_bright", "d10_scotopic", "d11_gain_odd", "d12_highlight_recon"),
    *("d13_identical", "d14_local_patch", "d15_zeros", "d16_net_like"),
)


def luminance(rgb: torch.Tensor) -> torch.Tensor:
    red, green, blue = rgb.split(1, dim=1)
    return 0.212656 * red + 0.715158 * green + 0.072186 * blue


# matches_reference: numbers of the published code, from the folder SKT_HDRVDP2_DIR


@pytest.fixture(scope="session")
def hdrvdp2_dir() -> Path:
    folder = os.environ.get("SKT_HDRVDP2_DIR")
    if not folder:
        pytest.skip("set SKT_HDRVDP2_DIR to the folder of picture pairs and numbers of the published HDR-VDP-2")
    return Path(folder)


def stored_pair(folder: Path, name: str) -> tuple[dict, torch.Tensor, torch.Tensor]:
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(folder / f"{name}.npz") as arrays:
        test, reference = (
            torch.from_numpy(arrays[k].astype(np.float64)).permute(2, 0, 1)[None] for k in ("test", "ref")
        )
    return record, test, reference


def coded(rgb: torch.Tensor, encoding: str, srgb_peak: float) -> torch.Tensor:
    if encoding == "rgb-bt.709":
        return rgb
    if encoding == "sRGB-display":
        return (rgb / srgb_peak).clamp(0, 1)
    return luminance(rgb) if encoding == "luminance" else (luminance(rgb) / srgb_peak).clamp(0, 1)


def run(record: dict, entry: dict, test: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype = torch.float64):
    encoding, peak = entry["color_encoding"], record["meta"]["srgb_peak"]
    options = {k: v for k, v in entry["options"].items() if k != "disable_lowvals_warning"}
    test, reference = (coded(picture, encoding, peak) for picture in (test, reference))
    ppd = entry["pixels_per_degree"]
    return hdr_vdp2(test, reference, color_encoding=encoding, pixels_per_degree=ppd, dtype=dtype, **options)


@pytest.mark.parametrize("name", PAIRS)
def test_matches_the_published_code(hdrvdp2_dir, name, agrees_with_original):
    record, test, reference = stored_pair(hdrvdp2_dir, name)
    assert len(record["runs"]) >= 4
    for entry in record["runs"]:
        output = run(record, entry, test, reference)
        agrees_with_original("HDR-VDP-2, Q", output.Q.item(), entry["Q"], abs=1e-9)
        agrees_with_original("HDR-VDP-2, largest contrast", output.C_max.item(), entry["C_max"], rel=1e-9)
        assert output.P_det.item() == pytest.approx(entry["P_det"], abs=1e-9)
        assert output.P_map.mean().item() == pytest.approx(entry["P_map_mean"], abs=1e-9)
        rows, columns = (torch.tensor(entry[f"grid_{axis}_1based"]) - 1 for axis in ("rows", "cols"))
        grid = torch.tensor(entry["C_map_grid"], dtype=torch.float64)
        torch.testing.assert_close(output.C_map[0][rows][:, columns], grid, rtol=1e-7, atol=1e-9 * entry["C_max"])


@pytest.mark.parametrize("name", PAIRS)
def test_float32_misses_the_published_code_by_little(hdrvdp2_dir, name, agrees_with_original):
    record, test, reference = stored_pair(hdrvdp2_dir, name)
    for entry in record["runs"]:
        output = run(record, entry, test, reference, torch.float32)
        agrees_with_original("HDR-VDP-2 in float32, Q", output.Q.item(), entry["Q"], abs=2e-3)
        agrees_with_original("HDR-VDP-2 in float32, largest contrast", output.C_max.item(), entry["C_max"], rel=1e-3)


def agrees(tensor: torch.Tensor, record: dict) -> None:
    """Compare the statistics of a map with stored ones."""
    scale = record["rms"] + 1e-300
    assert tensor.mean().item() == pytest.approx(record["mean"], rel=1e-8, abs=1e-10 * scale)
    assert tensor.abs().mean().item() == pytest.approx(record["mean_abs"], rel=1e-8, abs=0)
    assert tensor.square().mean().sqrt().item() == pytest.approx(record["rms"], rel=1e-8, abs=0)
    assert tensor.amin().item() == pytest.approx(record["min"], rel=1e-8, abs=1e-8 * scale)
    assert tensor.amax().item() == pytest.approx(record["max"], rel=1e-8, abs=1e-8 * scale)


@pytest.mark.parametrize("name", ["d01_noise", "d04_clip_odd", "d10_scotopic", "d15_zeros"])
def test_every_stage_matches_the_published_code(hdrvdp2_dir, name):
    record, *pictures = stored_pair(hdrvdp2_dir, name)
    debug = record["runs"][0]["debug"]
    responses, adapted = [], []
    for picture, path in zip(map(luminance, pictures), ("path_test", "path_reference"), strict=True):
        light = optics.scatter(picture[:, 0], 1e-5, 30.0)
        agrees(light, debug[path]["L_O"][0])
        response, level = optics.respond([light], None, 2.4)
        # The mean of the response is 0 up to rounding, so only its size can be compared.
        agrees(response, debug[path]["P"] | {"mean": response.mean().item()})
        corner = torch.tensor(debug[path]["P_corner4x4"], dtype=torch.float64)
        torch.testing.assert_close(response[0, :4, :4], corner, rtol=0, atol=1e-9)
        agrees(level, debug[path]["L_adapt"])
        responses.append(response)
        adapted.append(level)
    log_level = optics.log_luminance((adapted[0] + adapted[1]) / 2)
    agrees(log_level, debug["log_La"])

    reference, difference = build_pyramid(responses[1]), build_pyramid(responses[0] - responses[1])
    agrees(reference[-1], debug["path_reference"]["baseband_before_csf"])
    means = adapted[0].mean((1, 2)), adapted[1].mean((1, 2))
    sampling = 30 / 2 ** len(reference) * 2 * math.sqrt(2)
    reference[-1], difference[-1] = bands_stage.filter_base(reference[-1], difference[-1], means, sampling)
    mutual = bands_stage.mutual_structure(reference, difference)
    visible = bands_stage.visible_differences(difference, mutual, log_level[:, None], 30.0)
    perceived = bands_stage.perceived(visible)
    for stored in debug["bands"]:
        at = stored["band"] - 1, 0, stored["orient"] - 1
        band, orientation = at[0], at[1:]
        agrees(reference[band][orientation], stored["B_ref"])
        agrees((reference[band] + difference[band])[orientation], stored["B_test"])
        assert mutual[band][orientation].mean().item() == pytest.approx(stored["self_mask_mean"], rel=1e-9)
        agrees(visible[band][orientation], stored["D"])
        agrees(perceived[band][orientation], stored["D_out"])
    agrees(rebuild(perceived).abs(), debug["S_map_before_pooling"])


# the stages


@pytest.mark.parametrize("size", [(9, 12), (37, 48), (40, 17)])
def test_pyramid_is_correlation_with_mirrored_borders(size):
    maps = torch.randn(2, *size, dtype=torch.float64)
    high, *levels, base = build_pyramid(maps)
    low = maps[1].numpy()
    np.testing.assert_allclose(high[1, 0], ndimage.correlate(low, filters.HIGHPASS_0, mode="mirror"), atol=1e-12)
    low = ndimage.correlate(low, filters.LOWPASS_0, mode="mirror")
    for level in levels:
        for oriented, kernel in zip(level[1], filters.BANDS, strict=True):
            np.testing.assert_allclose(oriented, ndimage.correlate(low, kernel, mode="mirror"), atol=1e-12)
        low = ndimage.correlate(low, filters.LOWPASS, mode="mirror")[::2, ::2]
    np.testing.assert_allclose(base[1, 0], low, atol=1e-12)


def test_rebuild_is_convolution_with_mirrored_borders():
    bands = [
        torch.randn(1, n, h, w, dtype=torch.float64) for n, h, w in [(1, 37, 48), (4, 37, 48), (4, 19, 24), (1, 10, 12)]
    ]
    high, *levels, low = (band[0].numpy() for band in bands)
    low = low[0]
    for level in reversed(levels):
        spread = np.zeros(level.shape[1:])
        spread[::2, ::2] = low
        parts = zip([*level, spread], [*filters.BANDS, filters.LOWPASS], strict=True)
        low = sum(ndimage.convolve(part, kernel, mode="mirror") for part, kernel in parts)
    expected = ndimage.convolve(low, filters.LOWPASS_0, mode="mirror")
    expected += ndimage.convolve(high[0], filters.HIGHPASS_0, mode="mirror")
    np.testing.assert_allclose(rebuild(bands)[0], expected, atol=1e-12)


@pytest.mark.parametrize(("side", "height"), [(16, 0), (17, 1), (33, 1), (34, 2), (131, 3), (136, 4), (1000, 6)])
def test_height_halves_by_floor(side, height):
    assert pyramid_height(side, side + 5) == pyramid_height(side + 5, side) == height


@pytest.mark.parametrize("size", [(19, 24), (10, 80), (96, 5), (75, 48)])
def test_resize_is_antialiased_bicubic(size):
    maps = torch.randn(2, 3, 38, 48, dtype=torch.float64)
    resized, expected = resize(maps, size), F.interpolate(maps, size, mode="bicubic", antialias=True)
    assert resized.shape == expected.shape
    # Near the border PyTorch leaves out what is outside, where MATLAB mirrors.
    rows, columns = (math.ceil(2 * max(n / 38, 1)) + 1 if n != 5 else 2 for n in size)
    inside = (..., slice(rows, -rows), slice(columns, -columns))
    assert resized[inside].numel() > 0
    torch.testing.assert_close(resized[inside], expected[inside], rtol=0, atol=1e-12)


def test_resize_mirrors_the_border_with_its_edge_sample():
    maps = torch.randn(1, 40, 38, dtype=torch.float64)
    mirrored = torch.from_numpy(np.pad(maps.numpy(), ((0, 0), (40, 40), (38, 38)), mode="symmetric"))
    expected = F.interpolate(mirrored[None], (60, 57), mode="bicubic", antialias=True)[0, :, 20:40, 19:38]
    torch.testing.assert_close(resize(maps, (20, 19)), expected, rtol=0, atol=1e-12)
    assert torch.equal(resize(maps, (40, 38)), maps)


def test_glare_is_the_mtf_on_the_doubled_picture():
    light = torch.rand(2, 11, 14, dtype=torch.float64) * 100
    padded = np.pad(light.numpy(), ((0, 0), (0, 11), (0, 14)), constant_values=7.0)
    frequency = 30 * np.hypot(np.fft.fftfreq(22)[:, None], np.fft.fftfreq(28))
    q, r = 0.99727370023777070, 0.061466549455263
    weights = 0.426 * q, 0.574 * q, (1 - q) * r, (1 - q) * (1 - r)
    mtf = sum(a * np.exp(-b * frequency) for a, b in zip(weights, (0.028, 0.37, 37, 360), strict=True))
    expected = np.fft.ifft2(np.fft.fft2(padded) * mtf).real[:, :11, :14]
    np.testing.assert_allclose(optics.scatter(light, 7.0, 30.0), expected, rtol=1e-12)
    around = torch.full((2, 1, 1), 7.0, dtype=torch.float64)
    np.testing.assert_allclose(optics.scatter(light, around, 30.0), expected, rtol=1e-12)


def test_power():
    x = torch.tensor([0.0, 1e-300, 1e-8, 0.5, 1.0, 1e6], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(numerics.power(x, 3.5), x.detach() ** 3.5, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(numerics.power(x, 3.5).sum(), x)
    torch.testing.assert_close(gradient, 3.5 * x.detach() ** 2.5, rtol=1e-12, atol=0)
