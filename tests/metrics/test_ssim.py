"""SSIM against scikit-image and against what it means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from skt_components.metrics import MeanMetric, ssim, ssim_l, ssim_mu
from skt_components.ops.transfer import mu_law


def pictures(seed: int = 0, size: tuple[int, int] = (19, 27), channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that miss their targets by a different amount in every picture, some beyond [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(3, channels, *size, generator=generator)
    noise = torch.randn(target.shape, generator=generator)
    return target + noise * torch.tensor([0.01, 0.1, 0.5]).view(-1, 1, 1, 1), target


def skimage_ssim(prediction: np.ndarray, target: np.ndarray, peak: float, sample: bool = False) -> float:
    """The oracle for one picture ``(C, H, W)``."""
    return structural_similarity(
        prediction.astype(np.float64),
        target.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=sample,
        data_range=peak,
        channel_axis=0,
    )


# matches_reference


@pytest.mark.parametrize("size", [(11, 11), (19, 27), (12, 40)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("peak", [1.0, 16.0, 255.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_matches_skimage_per_picture(size, channels, peak, dtype, agrees_with_original):
    prediction, target = (x.to(dtype) * peak for x in pictures(size=size, channels=channels))
    values = ssim(prediction, target, peak=peak)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        agrees_with_original("SSIM", value.item(), skimage_ssim(p, t, peak), abs=1e-9)


def test_ssim_matches_kornia_per_picture():
    metrics = pytest.importorskip("kornia.metrics")
    prediction, target = (x.double() for x in pictures())
    oracle = metrics.ssim(prediction, target, window_size=11, max_val=1.0, padding="valid").mean((1, 2, 3))
    torch.testing.assert_close(ssim(prediction, target, peak=1.0), oracle, rtol=0, atol=1e-9)


def test_ssim_of_non_contiguous_pictures():
    prediction, target = (x.transpose(2, 3) for x in pictures())
    assert torch.equal(ssim(prediction, target, peak=1.0), ssim(prediction.contiguous(), target.contiguous(), peak=1.0))


def test_ssim_mu_is_ssim_of_the_tone_mapped_pictures():
    prediction, target = (x.double() for x in pictures())
    expected = ssim(mu_law(prediction, mu=500.0), mu_law(target, mu=500.0), peak=1.0)
    torch.testing.assert_close(ssim_mu(prediction, target, mu=500.0), expected)


def test_clip_is_the_protocol_that_scales_to_255_and_clips(agrees_with_original):
    prediction, target = pictures()
    values = ssim(prediction, target, peak=1.0, clip=True)
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        clipped = [np.clip(x * 255.0, 0, 255) for x in (p, t)]
        agrees_with_original("SSIM, clipped", value.item(), skimage_ssim(*clipped, 255.0), abs=1e-6)
    assert (values - ssim(prediction, target, peak=1.0)).abs().max() > 0.01


@pytest.mark.parametrize("size", [(11, 11), (19, 27)])
def test_sample_covariance_matches_skimage(size, agrees_with_original):
    prediction, target = (x.double() for x in pictures(size=size))
    values = ssim(prediction, target, peak=1.0, sample_covariance=True)
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        agrees_with_original("SSIM, sample covariance", value.item(), skimage_ssim(p, t, 1.0, sample=True), abs=1e-9)
    assert (values - ssim(prediction, target, peak=1.0)).abs().max() > 1e-5


@pytest.mark.parametrize("border", ["replicate", "volume"])
@pytest.mark.parametrize("size", [(5, 8), (19, 27)])
def test_matlab_forms_match_scipy(border, size, agrees_with_original):
    # MATLAB's documentation: Gaussian, sigma 1.5, radius ceil(3 sigma), in as many dimensions as the array has, the
    # border replicated, the population's variances, mean of the whole map.
    prediction, target = (x.double() for x in pictures(size=size))
    axes = (0, 1, 2) if border == "volume" else (1, 2)

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="nearest", radius=5, axes=axes)

    values = ssim(prediction, target, peak=1.0, border=border)
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        mean_p, mean_t = blur(p), blur(t)
        variances = blur(p * p) - mean_p**2 + blur(t * t) - mean_t**2
        covariance = blur(p * t) - mean_p * mean_t
        luminance = (2 * mean_p * mean_t + 1e-4) / (mean_p**2 + mean_t**2 + 1e-4)
        expected = (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()
        agrees_with_original("SSIM, MATLAB's forms", value.item(), expected, abs=1e-9)


def test_bracketire_form_is_skimage_on_truncated_16_bit_pictures_without_their_border(agrees_with_original):
    prediction, target = (16 * x for x in pictures(size=(31, 40)))
    values = ssim_mu(prediction, target, peak=16.0, bits=16, sample_covariance=True, crop=10)
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        stored = [
            (np.log1p(5000 * np.clip(x.astype(np.float64) / 16, 0, 1)) / np.log(5001) * 65535 + 1e-6).astype(np.uint16)
            for x in (p, t)
        ]
        cropped = [x[:, 10:-10, 10:-10] for x in stored]
        agrees_with_original("SSIM-mu, 16 bits", value.item(), skimage_ssim(*cropped, 65535.0, sample=True), abs=1e-9)


def test_options_of_ssim_l_and_ssim_mu_are_those_of_ssim():
    pair = pictures(size=(23, 24))
    options = {"clip": True, "sample_covariance": True, "border": "replicate", "crop": 2}
    expected = ssim(*pair, peak=2.0, **options)
    torch.testing.assert_close(ssim_l(*pair, peak=2.0, **options), expected)
    mapped = [mu_law(x.double() / 2) for x in pair]
    torch.testing.assert_close(ssim_mu(*pair, peak=2.0, **options), ssim(*mapped, peak=1.0, **options))


def test_clip_after_tone_mapping_equals_clip_before():
    prediction, target = (16 * x for x in pictures())
    expected = ssim_mu(prediction.clamp(0, 16), target.clamp(0, 16), peak=16.0)
    torch.testing.assert_close(ssim_mu(prediction, target, peak=16.0, clip=True), expected)


# gradcheck


def volume_ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ssim(prediction, target, peak=1.0, border="volume", sample_covariance=True)


@pytest.mark.parametrize("metric", [ssim_l, ssim_mu, volume_ssim])
def test_gradcheck(metric):
    prediction, target = (x[:2, :1].double() for x in pictures(size=(11, 12)))
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(metric, (prediction, target))
    (gradient,) = torch.autograd.grad(metric(prediction, target).sum(), prediction)
    assert gradient.abs().max() > 0


# invariants


@given(st.integers(0, 99), st.sampled_from([1.0, 16.0, 65535.0]))
@settings(deadline=None, max_examples=20)
def test_ssim_is_symmetric_bounded_and_blind_to_the_common_scale(seed, scale):
    prediction, target = (x.double() for x in pictures(seed))
    values = ssim(prediction, target, peak=1.0)
    assert values.abs().max() < 1
    torch.testing.assert_close(ssim(target, prediction, peak=1.0), values)
    torch.testing.assert_close(ssim(prediction * scale, target * scale, peak=scale), values)
    torch.testing.assert_close(ssim_mu(prediction * scale, target * scale, peak=scale), ssim_mu(prediction, target))


@given(st.integers(0, 99), st.floats(-2, 2))
@settings(deadline=None, max_examples=20)
def test_ssim_of_equal_pictures_is_one(seed, offset):
    _, target = pictures(seed)
    torch.testing.assert_close(ssim(target + offset, target + offset, peak=1.0), torch.ones(3).double())


def test_ssim_falls_as_noise_grows():
    values = ssim(*pictures(), peak=1.0)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("metric", [ssim_l, ssim_mu])
def test_every_picture_is_independent_of_its_batch_mates(metric):
    prediction, target = pictures()
    alone = torch.cat([metric(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(prediction, target), alone, rtol=0, atol=1e-14)


def test_ssim_is_the_mean_over_channels():
    prediction, target = pictures()
    channels = [ssim(prediction[:, c : c + 1], target[:, c : c + 1], peak=1.0) for c in range(3)]
    torch.testing.assert_close(ssim(prediction, target, peak=1.0), torch.stack(channels).mean(0))


def test_mean_over_pictures_is_the_mean_of_skimage():
    prediction, target = pictures()
    mean = MeanMetric("ssim")
    mean.update(ssim(prediction[:2], target[:2], peak=1.0))
    mean.update(ssim(prediction[2:], target[2:], peak=1.0))
    values = [skimage_ssim(p, t, 1.0) for p, t in zip(prediction.numpy(), target.numpy(), strict=True)]
    assert mean.compute() == pytest.approx(sum(values) / 3, abs=1e-9)


# rejects_bad_input


@pytest.mark.parametrize("metric", [ssim, ssim_l, ssim_mu])
@pytest.mark.parametrize(
    ("prediction", "target", "peak", "error", "message"),
    [
        (torch.ones(3, 16, 16), torch.ones(3, 16, 16), 1.0, ValueError, "prediction must have 4 axes"),
        (torch.ones(1, 3, 16, 16), torch.ones(1, 1, 16, 16), 1.0, ValueError, "must have the same shape"),
        (torch.ones(1, 3, 10, 16), torch.ones(1, 3, 10, 16), 1.0, ValueError, "at least 11x11 pixels, got 10x16"),
        (torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16), 0.0, ValueError, "peak must be a finite number > 0"),
        (torch.ones(1, 3, 16, 16).int(), torch.ones(1, 3, 16, 16), 1.0, TypeError, "prediction must be a floating"),
    ],
)
def test_rejects_bad_input(metric, prediction, target, peak, error, message):
    with pytest.raises(error, match=message):
        metric(prediction, target, peak=peak)


@pytest.mark.parametrize("metric", [ssim_l, ssim_mu])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border": "reflect"}, "border must be one of .*replicate.*'reflect'"),
        ({"crop": 3}, "at least 11x11 pixels, got 10x10"),
        ({"crop": 8}, r"crop must leave a pixel of \(16, 16\), got 8"),
        ({"crop": -1}, "crop must be a whole number >= 0, got -1"),
    ],
)
def test_rejects_bad_options(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16), **options)


# compiles


def test_compiles():
    prediction, target = pictures()
    compiled = torch.compile(ssim_mu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(prediction, target), ssim_mu(prediction, target))
