"""PU21 against the numbers of its authors' code, and against what it means."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from skt_components.metrics.psnr import quantize
from skt_components.metrics.pu21 import display_luminance, psnr_pu21, pu21_decode, pu21_encode, ssim_pu21
from skt_components.ops.transfer import mu_law

VARIANTS = ["banding", "banding_glare", "peaks", "peaks_glare"]
# What the authors' encoder, in the variant banding_glare, makes of luminance in cd/m2.
STORED = {
    0.005: 5.470456654038225e-10,
    0.01: 0.3722322097176101,
    0.1: 5.717073839669447,
    1.0: 36.5439111394192,
    10.0: 123.64748355384738,
    100.0: 256.3838973127039,
    1000.0: 420.0969213492443,
    10000.0: 595.393920020095,
}
FOLDER = os.environ.get("SKT_HDRVDP2_DIR", "")
PAIRS = sorted(Path(FOLDER).glob("d*.json")) if FOLDER else []


def pictures(size: tuple[int, int] = (19, 23)) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute pictures of 0.1 to 1000 cd/m2, the prediction a few per cent off."""
    generator = torch.Generator().manual_seed(0)
    target = 10 ** (4 * torch.rand(2, 3, *size, generator=generator, dtype=torch.float64) - 1)
    return target * (1 + 0.05 * torch.randn(target.shape, generator=generator, dtype=torch.float64)), target


# matches_reference


def test_encode_matches_the_stored_values(agrees_with_original):
    luminance = torch.tensor(list(STORED), dtype=torch.float64)
    for found, expected in zip(pu21_encode(luminance).tolist(), STORED.values(), strict=True):
        agrees_with_original("PU21 encoding", found, expected, abs=1e-11)


@pytest.mark.parametrize("path", PAIRS or [None], ids=lambda path: path.stem if path else "none")
def test_pairs_match_the_authors_numbers(path, agrees_with_original):
    if path is None:
        pytest.skip("SKT_HDRVDP2_DIR is not set")
    record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    pair = [torch.from_numpy(arrays[k].astype(np.float64)).permute(2, 0, 1)[None] for k in ("test", "ref")]
    shown = [quantize(mu_law((x / record["meta"]["srgb_peak"]).clamp(0, 1)), 8, rounded=True) for x in pair]
    shown = [display_luminance(x, peak=55.0, ambient=10.0) for x in shown]
    stored = record["pu21"]
    for found, expected in (
        (psnr_pu21(*pair), stored["PSNR"]),
        (psnr_pu21(*pair, luminance=True), stored["PSNRY"]),
        (psnr_pu21(*shown), stored["sdr_display"]["PSNR"]),
    ):
        if float(expected) == math.inf:
            assert found.item() == math.inf
        else:
            agrees_with_original("PU21-PSNR", found.item(), float(expected), abs=1e-9)
    for found, expected in ((ssim_pu21(*pair), stored["SSIM"]), (ssim_pu21(*shown), stored["sdr_display"]["SSIM"])):
        agrees_with_original("PU21-SSIM", found.item(), expected, abs=1e-10)


def test_psnr_and_ssim_match_numpy_and_scipy():
    prediction, target = pictures()
    values, structure, luma = (
        psnr_pu21(prediction, target),
        ssim_pu21(prediction, target),
        psnr_pu21(prediction, target, luminance=True),
    )
    for i in range(2):
        p, t = (pu21_encode(x[i]).numpy() for x in (prediction, target))
        assert values[i].item() == pytest.approx(10 * math.log10(256**2 / np.mean((p - t) ** 2)), abs=1e-10)
        weights = np.array([0.212656, 0.715158, 0.072186])
        p, t = (
            pu21_encode(torch.from_numpy(np.tensordot(weights, x[i].numpy(), 1))).numpy() for x in (prediction, target)
        )
        assert luma[i].item() == pytest.approx(10 * math.log10(256**2 / np.mean((p - t) ** 2)), abs=1e-10)

        def blur(x: np.ndarray) -> np.ndarray:
            return gaussian_filter(x, 1.5, mode="nearest", radius=5)

        mp, mt = blur(p), blur(t)
        c1, c2 = (0.01 * 256) ** 2, (0.03 * 256) ** 2
        spread = blur(p * p) - mp**2 + blur(t * t) - mt**2
        similarity = (2 * mp * mt + c1) * (2 * (blur(p * t) - mp * mt) + c2) / (mp**2 + mt**2 + c1) / (spread + c2)
        assert structure[i].item() == pytest.approx(similarity.mean(), abs=1e-10)


def test_display_matches_a_worked_example():
    # 55 cd/m2, 1000:1 and 10 lux on a 0.5 % reflective screen: black is 0.055 + 0.05 / pi.
    black = 0.055 + 0.05 / math.pi
    shown = display_luminance(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), peak=55.0, ambient=10.0)
    assert shown.tolist() == pytest.approx([black, (55 - black) * 0.5**2.2 + black, 55.0], abs=1e-12)


# gradcheck


@pytest.mark.parametrize("metric", [psnr_pu21, ssim_pu21])
def test_gradcheck(metric):
    prediction, target = (x[:, :, :4, :5].contiguous() for x in pictures())
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(metric, (prediction, target))
    (gradient,) = torch.autograd.grad(metric(prediction, target).sum(), prediction)
    assert gradient.abs().max() > 0


# invariants


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoding_rises_and_decoding_undoes_it(variant):
    luminance = torch.logspace(math.log10(0.0051), 4, 200, dtype=torch.float64)
    encoded = pu21_encode(luminance, variant=variant)
    assert (encoded.diff() > 0).all()
    assert 230 < pu21_encode(torch.tensor(100.0), variant=variant) < 280  # a usual white is about 8 bits' largest
    torch.testing.assert_close(pu21_decode(encoded, variant=variant), luminance, rtol=1e-9, atol=1e-9)


def test_encoding_is_clamped():
    values = pu21_encode(torch.tensor([-1.0, 0.0, 0.005, 1e4, 1e6], dtype=torch.float64))
    assert values[0] == values[1] == values[2]
    assert values[3] == values[4]


def test_equal_pictures():
    _, target = pictures()
    assert psnr_pu21(target, target).tolist() == [math.inf] * 2
    assert ssim_pu21(target, target).tolist() == pytest.approx([1.0] * 2, abs=1e-12)


def test_luminance_itself_can_be_given():
    prediction, target = (x[:, :1] for x in pictures())
    gray = psnr_pu21(prediction, target)
    torch.testing.assert_close(psnr_pu21(prediction.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1)), gray)
    torch.testing.assert_close(psnr_pu21(prediction, target, luminance=True), gray)


# rejects_bad_input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pu21_encode(torch.ones(2), variant="glare"), ValueError, "variant must be one of .*banding.*'glare'"),
        (lambda: pu21_decode(torch.ones(2).int()), TypeError, "encoded must be a floating"),
        (lambda: display_luminance(torch.ones(2), contrast=0.0), ValueError, "contrast must be a finite number > 0"),
        (lambda: display_luminance(torch.ones(2), ambient=-1.0), ValueError, "ambient must be .* got -1.0"),
        (lambda: ssim_pu21(torch.ones(1, 4, 9, 9), torch.ones(1, 4, 9, 9)), ValueError, "must have 3 channels"),
        (lambda: psnr_pu21(torch.ones(1, 2, 9, 9), torch.ones(1, 2, 9, 9)), ValueError, "must have 3 channels"),
    ],
)
def test_rejects_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# compiles


def test_compiles():
    prediction, target = pictures()
    compiled = torch.compile(ssim_pu21, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(prediction, target), ssim_pu21(prediction, target))


@pytest.mark.parametrize("metric", [psnr_pu21, ssim_pu21])
def test_relative_pictures_and_codes_of_files_warn(metric):
    picture = torch.rand(1, 3, 32, 32)
    for wrong in (picture, (255 * picture).round()):
        with pytest.warns(UserWarning, match="target must be light in cd/m2 .*got values up to"):
            metric(wrong, wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(100 * picture, 100 * picture)
        metric(torch.full_like(picture, 100.0), torch.full_like(picture, 90.0))
