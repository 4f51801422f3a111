"""Range and domain transfer against the formulas' known values and what the curves mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skt_components.ops.transfer import linearize_ldr, mu_law, mu_law_inverse, srgb_decode, srgb_encode

MU = 5000.0
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
curves = pytest.mark.parametrize("curve", [mu_law, mu_law_inverse, srgb_encode, srgb_decode])
mus = st.floats(1e-3, 1e6)
radiances = st.floats(-20.0, 20.0)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def slope(curve, values: torch.Tensor) -> torch.Tensor:
    values = values.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curve(values).sum(), values)
    return gradient


# matches_reference: the T of eq. 1 by the standard library's logarithm, and printed sRGB tables


@both_dtypes
@pytest.mark.parametrize("mu", [1.0, 255.0, MU])
def test_mu_law_is_the_formula(dtype, mu):
    values = [0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 16.0]
    wanted = [math.log(1 + mu * value) / math.log(1 + mu) for value in values]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert mu_law(torch.tensor(values, dtype=dtype), mu).tolist() == pytest.approx(wanted, rel=tolerance, abs=1e-12)


@both_dtypes
def test_the_slope_of_mu_law_is_the_formula(dtype):
    values = torch.tensor([-1.0, -1e-3, 1e-3, 0.2, 1.0, 16.0], dtype=dtype)
    wanted = [MU / ((1 + MU * abs(value)) * math.log(1 + MU)) for value in values.tolist()]
    assert slope(mu_law, values).tolist() == pytest.approx(wanted, rel=1e-5)


def test_srgb_matches_kornia():
    from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb

    values = torch.linspace(0, 1, 3000, dtype=torch.float64).view(1, 3, 10, 100)
    torch.testing.assert_close(srgb_encode(values), linear_rgb_to_rgb(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(srgb_decode(values), rgb_to_linear_rgb(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("code", "linear"),  # 8-bit sRGB codes and their linear light, as printed in tables of IEC 61966-2-1
    [
        *((0, 0.0), (1, 0.000303527), (10, 0.003035270), (11, 0.003346536), (55, 0.038204372)),
        *((128, 0.215860500), (186, 0.491020850), (188, 0.502886458), (255, 1.0)),
    ],
)
def test_srgb_matches_the_table(code, linear):
    assert srgb_decode(scalar(code / 255)).item() == pytest.approx(linear, abs=5e-9)
    assert srgb_encode(scalar(linear)).item() * 255 == pytest.approx(code, abs=2e-5)


@both_dtypes
def test_linearize_ldr_is_gamma_over_exposure_time(dtype):
    ldr = torch.rand(2, 3, 3, 5, 7, dtype=dtype)
    times = torch.tensor([[1.0, 4.0, 16.0], [0.25, 1.0, 2.0]], dtype=dtype)
    linear = linearize_ldr(ldr, times, gamma=2.2)
    assert linear.dtype == dtype
    for b in range(2):
        for n in range(3):
            torch.testing.assert_close(linear[b, n], ldr[b, n] ** 2.2 / times[b, n].item())


def test_linearize_ldr_of_hand_computed_values():
    ldr = torch.tensor([0.0, 0.5, 1.0, -0.1], dtype=torch.float64).view(1, 1, 1, 4)
    assert linearize_ldr(ldr, torch.tensor([4.0]), gamma=2.0).flatten().tolist() == [0.0, 0.0625, 0.25, 0.0]


@curves
def test_layout_and_strides_do_not_matter(curve):
    x = torch.rand(2, 3, 5, 7) * 2 - 0.5
    for other in (x.to(memory_format=torch.channels_last), x.transpose(1, 3), x[..., ::2], x[:, :, 1:, 1:]):
        torch.testing.assert_close(curve(other), curve(other.contiguous()))
    assert curve(x[:, :, :0]).shape == (2, 3, 0, 7)
    assert curve(torch.tensor(0.5)).shape == ()


# gradcheck


@curves
def test_gradcheck(curve):
    # Away from the joints of sRGB, where its two pieces meet with slightly different slopes.
    x = torch.tensor([-0.9, -0.2, -1e-3, 0.0, 1e-3, 0.02, 0.3, 0.8, 1.7], dtype=torch.float64, requires_grad=True)
    assert slope(curve, x).min() > 0
    assert torch.autograd.gradcheck(curve, (x,), eps=1e-8, rtol=1e-4, atol=1e-4)


def test_gradcheck_of_linearize_ldr():
    ldr = (torch.rand(2, 3, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    times = torch.tensor([0.5, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linearize_ldr, (ldr, times))


# invariants


@both_dtypes
@pytest.mark.parametrize("mu", [1e-3, 1.0, MU, 1e6])
def test_mu_law_keeps_zero_and_one(dtype, mu):
    ends = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    assert mu_law(ends, mu).tolist() == pytest.approx([0.0, 1.0, -1.0], rel=1e-6)
    assert mu_law_inverse(ends, mu).tolist() == pytest.approx([0.0, 1.0, -1.0], rel=1e-5)


@settings(deadline=None)
@given(radiances, mus)
@example(0.0, MU)
def test_mu_law_is_odd(value, mu):
    x = scalar(value)
    assert mu_law(-x, mu) == -mu_law(x, mu)
    assert mu_law_inverse(-x, mu) == -mu_law_inverse(x, mu)


@settings(deadline=None)
@given(radiances, radiances, mus)
def test_mu_law_is_strictly_monotone(a, b, mu):
    low, high = sorted((a, b))
    if high - low > 1e-9:
        assert mu_law(scalar(low), mu) < mu_law(scalar(high), mu)


@both_dtypes
def test_mu_law_is_strictly_monotone_on_a_fine_grid_through_zero(dtype):
    assert (mu_law(torch.linspace(-1, 1, 20001, dtype=dtype)).diff() > 0).all()


@both_dtypes
def test_the_slope_of_mu_law_at_zero_is_the_same_from_both_sides_and_at_zero(dtype):
    wanted = MU / math.log1p(MU)
    at_zero = slope(mu_law, torch.tensor([-1e-9, -0.0, 0.0, 1e-9], dtype=dtype))
    assert at_zero.tolist() == pytest.approx([wanted] * 4, rel=1e-4)
    assert slope(mu_law_inverse, torch.zeros(3, dtype=dtype)).tolist() == pytest.approx([1 / wanted] * 3, rel=1e-6)


def test_black_pixels_of_a_saturated_network_can_be_lifted():
    # A picture that is exactly zero, as after a ReLU, is pulled up by a brighter target.
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (mu_law(x) - 0.5).abs().mean().backward()
    assert (x.grad < -1).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_mu_law_round_trip(dtype, tolerance, sign):
    x = sign * torch.logspace(-6, 0, 601, dtype=dtype)
    torch.testing.assert_close(mu_law_inverse(mu_law(x)), x, rtol=tolerance, atol=0)
    y = sign * torch.linspace(1e-3, 1, 601, dtype=dtype)
    torch.testing.assert_close(mu_law(mu_law_inverse(y)), y, rtol=tolerance, atol=0)


@settings(deadline=None)
@given(radiances, mus)
def test_mu_law_round_trip_at_any_mu(value, mu):
    torch.testing.assert_close(mu_law_inverse(mu_law(scalar(value), mu), mu), scalar(value), rtol=1e-9, atol=1e-12)


@both_dtypes
def test_gradients_are_finite_everywhere(dtype):
    ends = [0.0, -0.0, 1e-30, -1e-30, 0.0031308, 0.04045, 1.0, -1.0, 1e4, -1e4]
    values = torch.cat([torch.tensor(ends, dtype=dtype), torch.linspace(-2, 2, 401, dtype=dtype)])
    for curve in (mu_law, srgb_encode, srgb_decode):
        gradient = slope(curve, values)
        assert gradient.isfinite().all()
        assert (gradient > 0).all()
    assert slope(mu_law_inverse, values.clamp(-4, 4)).isfinite().all()


def test_nan_stays_nan_and_infinity_infinite():
    special = torch.tensor([float("nan"), float("inf"), float("-inf")])
    for curve in (mu_law, mu_law_inverse):
        nan, high, low = curve(special)
        assert nan.isnan()
        assert (high, low) == (float("inf"), float("-inf"))


@settings(deadline=None)
@given(st.floats(-0.5, 4.0))
@example(0.0031308)
@example(0.04045)
def test_srgb_round_trip(value):
    x = scalar(value)
    torch.testing.assert_close(srgb_decode(srgb_encode(x)), x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(srgb_encode(srgb_decode(x)), x, rtol=1e-6, atol=1e-7)


def test_srgb_is_strictly_monotone_across_its_joint():
    assert (srgb_encode(torch.linspace(-0.01, 0.02, 3001, dtype=torch.float64)).diff() > 0).all()
    assert (srgb_decode(torch.linspace(-0.1, 0.2, 3001, dtype=torch.float64)).diff() > 0).all()


@settings(deadline=None)
@given(st.floats(0.01, 100.0), st.floats(0.5, 3.0))
def test_a_static_scene_linearizes_to_the_same_radiance_at_every_exposure(time, gamma):
    radiance = torch.linspace(0.01, 0.9, 12, dtype=torch.float64).view(1, 1, 3, 4) / max(time, 1.0)
    times = torch.tensor([1.0, time], dtype=torch.float64)
    ldr = (radiance * times.view(2, 1, 1, 1)) ** (1 / gamma)
    torch.testing.assert_close(linearize_ldr(ldr, times, gamma), radiance.expand(2, 1, 3, 4))


@curves
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(curve, dtype):
    assert curve(torch.rand(3, 4).to(dtype)).dtype == dtype


# rejects_bad_input


@curves
def test_a_floating_tensor_is_wanted(curve):
    with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch\.uint8"):
        curve(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
        curve(0.5)


@pytest.mark.parametrize("mu", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("curve", [mu_law, mu_law_inverse])
def test_mu_must_be_positive(curve, mu):
    with pytest.raises(ValueError, match="mu must be a finite number > 0"):
        curve(torch.zeros(1), mu)


def test_linearize_ldr_rejects_what_does_not_fit():
    ldr = torch.rand(2, 3, 3, 4, 4)
    with pytest.raises(ValueError, match=r"exposure_times must have the leading axes of ldr .*\(3,\) and \(2, 3, 3"):
        linearize_ldr(ldr, torch.ones(3))
    with pytest.raises(ValueError, match="exposure_times must have the leading axes"):
        linearize_ldr(ldr[0, 0], torch.tensor(1.0))
    with pytest.raises(ValueError, match="gamma must be a finite number > 0"):
        linearize_ldr(ldr, torch.ones(2, 3), gamma=0)
    with pytest.raises(TypeError, match="exposure_times must be a floating-point tensor"):
        linearize_ldr(ldr, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="ldr must be a floating-point tensor"):
        linearize_ldr(ldr.to(torch.uint8), torch.ones(2, 3))


# compiles


@curves
def test_compiles(curve):
    x = torch.linspace(-1, 2, 35).view(5, 7).requires_grad_()
    compiled = torch.compile(curve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), curve(x))
    torch.testing.assert_close(slope(compiled, x), slope(curve, x))


def test_linearize_ldr_compiles():
    ldr, times = torch.rand(2, 3, 4, 5), torch.tensor([1.0, 4.0])
    compiled = torch.compile(linearize_ldr, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ldr, times), linearize_ldr(ldr, times))


@pytest.mark.parametrize("times", [[-2.0, 0.0, 2.0], [0.0, 2.0, 4.0], [1.0, math.nan, 4.0], [1.0, 2.0, math.inf]])
def test_exposure_values_are_no_exposure_times(times):
    with pytest.raises(ValueError, match=r"exposure_times must be finite and above zero, got .* 2 \*\* \(ev - ev.min"):
        linearize_ldr(torch.rand(3, 3, 4, 4), torch.tensor(times))


def test_pictures_of_eight_bits_warn():
    with pytest.warns(UserWarning, match=r"ldr must be display-encoded in \[0, 1\], got values up to 25"):
        linearize_ldr(255 * torch.rand(1, 3, 8, 8), torch.ones(1))
