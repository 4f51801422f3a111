"""PSNR against scikit-image and against what it means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from skt_components.metrics import MeanMetric, psnr, psnr_l, psnr_mu, ssim
from skt_components.metrics.psnr import quantize
from skt_components.ops.transfer import mu_law


def pictures(seed: int = 0, batch: int = 3, size: tuple[int, int] = (17, 23)) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that miss their targets by a different amount in every picture, some beyond [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(batch, 3, *size, generator=generator)
    noise = torch.randn(target.shape, generator=generator)
    return target + noise * torch.logspace(-3, -1, batch).view(-1, 1, 1, 1), target


# matches_reference


@pytest.mark.parametrize("peak", [1.0, 16.0, 255.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psnr_matches_skimage_per_picture(peak, dtype, agrees_with_original):
    prediction, target = (x.to(dtype) * peak for x in pictures())
    values = psnr(prediction, target, peak=peak)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    for value, p, t in zip(values, prediction.double().numpy(), target.double().numpy(), strict=True):
        agrees_with_original("PSNR", value.item(), peak_signal_noise_ratio(t, p, data_range=peak), abs=1e-9)


@pytest.mark.parametrize("peak", [1.0, 16.0])
def test_psnr_mu_matches_skimage_after_the_mu_law(peak, agrees_with_original):
    prediction, target = (x.double().abs() * peak for x in pictures())
    for value, p, t in zip(psnr_mu(prediction, target, peak=peak), prediction.numpy(), target.numpy(), strict=True):
        mapped = (np.log1p(5000 * x / peak) / np.log(5001) for x in (t, p))
        agrees_with_original("PSNR-mu", value.item(), peak_signal_noise_ratio(*mapped, data_range=1), abs=1e-9)


def test_psnr_mu_is_psnr_of_the_tone_mapped_pictures():
    prediction, target = (x.double() for x in pictures())
    expected = psnr(mu_law(prediction, mu=500.0), mu_law(target, mu=500.0), peak=1.0)
    torch.testing.assert_close(psnr_mu(prediction, target, mu=500.0), expected)


def test_psnr_mu_of_a_worked_example():
    # T(1) - T(0) = 1 in every value: 0 dB. T(1/50) = log(101) / log(5001).
    target = torch.zeros(1, 3, 4, 4)
    assert psnr_mu(target + 1, target).item() == 0.0
    expected = -20 * math.log10(math.log(101) / math.log(5001))
    assert psnr_mu(target + 0.02, target).item() == pytest.approx(expected, abs=1e-6)


def test_bracketire_form_is_skimage_on_truncated_16_bit_pictures_without_their_border(agrees_with_original):
    prediction, target = (16 * x for x in pictures(size=(31, 40)))
    values = psnr_mu(prediction, target, peak=16.0, bits=16, crop=10)
    for value, p, t in zip(values, prediction.numpy(), target.numpy(), strict=True):
        stored = [
            (np.log1p(5000 * np.clip(x.astype(np.float64) / 16, 0, 1)) / np.log(5001) * 65535 + 1e-6).astype(np.uint16)
            for x in (p, t)
        ]
        cropped = [x[:, 10:-10, 10:-10] for x in stored]
        expected = peak_signal_noise_ratio(*cropped, data_range=65535)
        agrees_with_original("PSNR-mu, 16 bits", value.item(), expected, abs=1e-9)


def test_crop_leaves_the_border_out():
    prediction, target = pictures()
    expected = psnr(prediction[..., 3:-3, 3:-3], target[..., 3:-3, 3:-3], peak=1.0)
    prediction[..., :3, :] = 99.0
    prediction[..., -3:] = math.nan
    assert torch.equal(psnr_l(prediction, target, crop=3), expected)


def test_quantize_truncates_or_rounds_and_keeps_whole_numbers():
    numbers = torch.arange(256) / 255
    assert torch.equal(quantize(numbers, 8), numbers)
    assert torch.equal(quantize(mu_law(torch.ones(1)), 16), torch.ones(1))  # white stays white
    between = torch.tensor([-1.0, 0.9 / 255, 1.4 / 255, 254.99 / 255, 7.0], dtype=torch.float64)
    assert (quantize(between, 8) * 255).tolist() == [0, 0, 1, 254, 255]
    assert (quantize(between, 8, rounded=True) * 255).tolist() == [0, 1, 1, 255, 255]
    assert quantize(between, None) is between


# gradcheck


@pytest.mark.parametrize("metric", [psnr_l, psnr_mu])
def test_gradcheck(metric):
    prediction, target = (x.double() for x in pictures(batch=2, size=(3, 4)))
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(metric, (prediction, target))
    (gradient,) = torch.autograd.grad(metric(prediction, target).sum(), prediction)
    assert gradient.abs().min() > 0


def test_equal_pictures_give_inf_and_leave_the_gradients_of_their_batch_mates_finite():
    prediction, target = pictures()
    prediction[1] = target[1]
    prediction.requires_grad_()
    values = psnr(prediction, target, peak=1.0)
    assert values[1] == math.inf
    (gradient,) = torch.autograd.grad(values.sum(), prediction)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0
    assert gradient[0].abs().max() > 0


def test_nan_pictures_give_nan_not_inf():
    prediction, target = pictures()
    prediction[1, 0, 0, 0] = math.nan
    assert psnr(prediction, target, peak=1.0).isnan().tolist() == [False, True, False]


# invariants


@given(st.integers(0, 99), st.sampled_from([1.0, 16.0, 65535.0]))
@settings(deadline=None, max_examples=25)
def test_psnr_is_symmetric_and_blind_to_the_common_scale(seed, scale):
    prediction, target = (x.double() for x in pictures(seed))
    values = psnr(prediction, target, peak=1.0)
    torch.testing.assert_close(psnr(target, prediction, peak=1.0), values)
    torch.testing.assert_close(psnr(prediction * scale, target * scale, peak=scale), values)
    torch.testing.assert_close(psnr_mu(prediction * scale, target * scale, peak=scale), psnr_mu(prediction, target))


@given(st.floats(-6, 0), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_known_error_gives_its_decibels(exponent, seed):
    _, target = pictures(seed)
    signs = torch.randint(0, 2, target.shape).double() * 2 - 1
    error = 10.0**exponent
    values = psnr(target.double() + error * signs, target.double(), peak=1.0)
    torch.testing.assert_close(values, torch.full((3,), -20 * exponent, dtype=torch.float64))


@pytest.mark.parametrize("metric", [psnr_l, psnr_mu])
def test_every_picture_is_independent_of_its_batch_mates(metric):
    prediction, target = pictures()
    alone = torch.cat([metric(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert torch.equal(metric(prediction, target), alone)


def test_mean_over_pictures_differs_from_pooled_error():
    # A data set's PSNR is the mean of decibels. Pooling the error first lets the worst picture decide.
    prediction, target = pictures()
    mean = MeanMetric("psnr")
    mean.update(psnr(prediction, target, peak=1.0))
    by_skimage = [
        peak_signal_noise_ratio(t, p, data_range=1.0)
        for p, t in zip(*map(torch.Tensor.numpy, (prediction, target)), strict=True)
    ]
    assert mean.compute() == pytest.approx(sum(by_skimage) / 3, abs=1e-4)
    pooled = peak_signal_noise_ratio(target.numpy(), prediction.numpy(), data_range=1.0)
    assert mean.compute() - pooled > 10


def test_predictions_are_not_clipped():
    target = torch.ones(1, 3, 4, 4)
    assert psnr(target + 0.1, target, peak=1.0).item() == pytest.approx(20, abs=1e-5)
    assert psnr_mu(-target, target).item() == pytest.approx(-20 * math.log10(2))


# rejects_bad_input


@pytest.mark.parametrize("metric", [psnr, psnr_l, psnr_mu])
@pytest.mark.parametrize(
    ("prediction", "target", "peak", "error", "message"),
    [
        (torch.ones(3, 4, 4), torch.ones(3, 4, 4), 1.0, ValueError, r"prediction must have 4 axes"),
        (torch.ones(1, 3, 4, 4), torch.ones(3, 4, 4), 1.0, ValueError, r"target must have 4 axes"),
        (torch.ones(1, 3, 4, 4), torch.ones(2, 3, 4, 4), 1.0, ValueError, "must have the same shape"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), 0.0, ValueError, "peak must be a finite number > 0"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), -1.0, ValueError, "peak must be a finite number > 0"),
        (torch.ones(1, 3, 4, 4).byte(), torch.ones(1, 3, 4, 4), 1.0, TypeError, "prediction must be a floating"),
        (torch.ones(1, 3, 4, 4), [1.0], 1.0, TypeError, "target must be a torch.Tensor"),
    ],
)
def test_rejects_bad_input(metric, prediction, target, peak, error, message):
    with pytest.raises(error, match=message):
        metric(prediction, target, peak=peak)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 2}, r"crop must leave a pixel of \(4, 4\), got 2"),
        ({"crop": 1.5}, "crop must be a whole number >= 0, got 1.5"),
        ({"bits": 0}, "bits must be a whole number >= 1, got 0"),
        ({"bits": 33}, "bits must be a whole number from 1 to 32, got 33"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        psnr_mu(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), **options)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_peak_has_no_default_and_no_position(metric):
    picture = torch.ones(1, 3, 16, 16)
    with pytest.raises(TypeError, match="peak"):
        metric(picture, picture)
    with pytest.raises(TypeError, match="positional"):
        metric(picture, picture, 1.0)


# compiles


def test_compiles():
    prediction, target = pictures()
    compiled = torch.compile(psnr_mu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(prediction, target), psnr_mu(prediction, target))
