"""The mu-law losses against their definitions and what it means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skt_components.losses.reconstruction import MuL1Loss, mu_l1_loss, mu_rms_loss
from skt_components.metrics import psnr_mu

MU = 5000.0
seeds = st.integers(0, 10**6)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Linear HDR, most of it dark, and a prediction that misses it; some of both below zero."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3 - 0.01
    prediction = target + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return prediction.to(dtype), target.to(dtype)


def curve(x: float) -> float:
    """The odd mu-law of one number."""
    return math.copysign(math.log(1 + MU * abs(x)) / math.log(1 + MU), x)


# matches_reference: the definition, number by number


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peak", [1.0, 16.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_values_and_gradients_match_the_definition(dtype, peak, layout):
    prediction, target = (x * peak for x in pictures(2, 3, 5, 14, dtype=dtype))
    if layout == "channels_last":
        prediction, target = (x.to(memory_format=torch.channels_last) for x in (prediction, target))
    if layout == "strided":
        prediction, target = prediction[..., ::2], target[..., ::2]
    leaves = [x.detach().requires_grad_() for x in (prediction, target)]
    loss = mu_l1_loss(*leaves, peak=peak)
    assert loss.dtype == dtype
    assert loss.shape == ()
    pairs = list(zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True))
    wanted = sum(abs(curve(p / peak) - curve(t / peak)) for p, t in pairs) / len(pairs)
    assert loss.item() == pytest.approx(wanted, rel=1e-5 if dtype == torch.float32 else 1e-12)
    for gradient, x, sign in zip(torch.autograd.grad(3.0 * loss, leaves), (prediction, target), (1, -1), strict=True):
        slope = MU / ((1 + MU * x.double().abs() / peak) * math.log(1 + MU) * peak)
        expected = 3.0 * sign * (prediction - target).double().sign() * slope / x.numel()
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=0)


def test_by_hand():
    assert mu_l1_loss(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])).item() == pytest.approx(1.0)
    assert mu_l1_loss(torch.tensor([16.0]), torch.tensor([0.0]), peak=16.0).item() == pytest.approx(1.0)


# gradcheck


def test_gradcheck():
    leaves = [x.requires_grad_() for x in pictures(1, 3, 3, 4)]
    for gradient in torch.autograd.grad(mu_l1_loss(*leaves, mu=50.0), leaves):
        assert gradient.abs().min() > 1e-4
    assert torch.autograd.gradcheck(lambda p, t: mu_l1_loss(p, t, mu=50.0), leaves)


# invariants


@settings(deadline=None)
@given(seeds, st.floats(0.01, 100))
def test_the_unit_of_radiance_does_not_matter(seed, peak):
    prediction, target = pictures(1, 3, 4, 5, seed=seed)
    wanted = mu_l1_loss(prediction, target)
    torch.testing.assert_close(mu_l1_loss(prediction * peak, target * peak, peak=peak), wanted)


@settings(deadline=None)
@given(seeds)
def test_symmetric_positive_and_zero_for_equal_pictures(seed):
    prediction, target = pictures(1, 3, 4, 5, seed=seed)
    assert mu_l1_loss(prediction, target) == mu_l1_loss(target, prediction) > 0
    assert mu_l1_loss(target, target) == 0


def test_the_same_error_counts_more_in_the_dark():
    dark, bright = torch.full((1,), 0.01), torch.full((1,), 0.8)
    assert mu_l1_loss(dark + 0.01, dark) > 20 * mu_l1_loss(bright + 0.01, bright)


@pytest.mark.parametrize("value", [0.0, -0.2])
def test_black_and_negative_predictions_are_pulled_up(value):
    prediction = torch.full((1, 3, 2, 2), value, requires_grad=True)
    mu_l1_loss(prediction, torch.full((1, 3, 2, 2), 0.5)).backward()
    assert (prediction.grad < 0).all()


# rejects_bad_input


def test_rejects():
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match="prediction must be a floating-point tensor"):
        mu_l1_loss(x.long(), x)
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor"):
        mu_l1_loss(x, 0.5)
    with pytest.raises(ValueError, match="prediction and target must have the same shape"):
        mu_l1_loss(x, x[:, :1])
    for name in ("mu", "peak"):
        for value in (0.0, -1.0, float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
                mu_l1_loss(x, x, **{name: value})
            with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
                MuL1Loss(**{name: value})


# compiles


def test_compiles():
    results = []
    for loss in (mu_l1_loss, torch.compile(mu_l1_loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.requires_grad_() for x in pictures(1, 3, 5, 7, dtype=torch.float32)]
        value = loss(*leaves, peak=2.0)
        results.append((value, *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(*results)


# module_equals_function


@pytest.mark.parametrize("options", [{}, {"mu": 100.0, "peak": 16.0}])
def test_module_equals_function(options):
    prediction, target = pictures(1, 3, 5, 7)
    module = MuL1Loss(**options)
    assert torch.equal(module(prediction, target), mu_l1_loss(prediction, target, **options))
    assert all(f"{name}={value}" in repr(module) for name, value in options.items())
    assert not module.state_dict()


# mu_rms_loss


@pytest.mark.parametrize("peak", [1.0, 16.0])
def test_the_logarithm_of_the_root_mean_square_is_psnr(peak):
    prediction, target = (x * peak for x in pictures(3, 3, 8, 8))
    psnr = [-20 * math.log10(mu_rms_loss(p[None], t[None], peak=peak)) for p, t in zip(prediction, target, strict=True)]
    torch.testing.assert_close(torch.tensor(psnr, dtype=torch.float64), psnr_mu(prediction, target, peak=peak))
    together = sum(10 ** (-each / 20) for each in psnr) / 3
    assert mu_rms_loss(prediction, target, peak=peak).item() == pytest.approx(together)


def test_both_losses_pull_at_a_tone_mapped_picture_equally_strongly():
    # Of linear values near 1 / mu the mu-law is steep, of those near 1 flat: equal pulls are those after it.
    prediction, target = pictures(2, 3, 6, 6)
    prediction.requires_grad_()
    slope = MU / ((1 + MU * prediction.detach().abs()) * math.log(1 + MU))
    norms = [
        (torch.autograd.grad(loss(prediction, target), prediction)[0] / slope).flatten(1).norm(dim=1)
        for loss in (mu_l1_loss, mu_rms_loss)
    ]
    torch.testing.assert_close(*norms)


def test_rms_gradcheck():
    leaves = [x.requires_grad_() for x in pictures(2, 3, 3, 4)]
    assert torch.autograd.gradcheck(mu_rms_loss, leaves)


def test_equal_pictures_have_no_rms_gradient():
    prediction = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = mu_rms_loss(prediction, prediction.detach().clone())
    loss.backward()
    assert loss == 0
    assert not prediction.grad.any()


def test_the_module_adds_the_root_mean_square():
    prediction, target = pictures(2, 3, 6, 6)
    wanted = mu_l1_loss(prediction, target, peak=2.0) + 0.5 * mu_rms_loss(prediction, target, peak=2.0)
    loss = MuL1Loss(peak=2.0, rms_weight=0.5)
    torch.testing.assert_close(loss(prediction, target), wanted)
    assert repr(loss) == "MuL1Loss(mu=5000.0, peak=2.0, rms_weight=0.5)"


def test_rms_arguments_are_checked():
    with pytest.raises(ValueError, match="rms_weight must be a finite number >= 0, got -1"):
        MuL1Loss(rms_weight=-1)
    with pytest.raises(ValueError, match=r"prediction must be \(B, ...\)"):
        mu_rms_loss(torch.rand(4), torch.rand(4))
    with pytest.raises(ValueError, match="target"):
        mu_rms_loss(torch.rand(2, 4), torch.rand(2, 5))
