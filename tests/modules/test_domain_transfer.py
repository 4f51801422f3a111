"""The domain transfer T: eq. 1 for RGB, demosaicing before it for RAW, and the way back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.modules import DomainTransfer
from skt_components.ops import demosaic, mosaic, mu_law, pack_raw, unpack_raw

PATTERNS = ["RGGB", "BGGR", "GRBG", "GBRG"]
METHODS = ["bilinear", "malvar"]
DTYPES = [torch.float32, torch.float64]


def literal_transfer(hdr: torch.Tensor, mu: float, peak: float) -> torch.Tensor:
    """T(x) = log(1 + mu x / peak) / log(1 + mu), for x >= 0."""
    return torch.log(1 + mu * hdr / peak) / math.log(1 + mu)


# matches_reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mu", "peak"), [(5000.0, 1.0), (500.0, 16.0), (10.0, 3.0)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_srgb_is_eq_1_with_its_gradient(dtype, mu, peak, contiguous):
    hdr = torch.rand(2, 3, 7, 5, dtype=dtype) * peak * 1.2  # values above the peak too
    if not contiguous:
        hdr = hdr.transpose(2, 3)
    ours, theirs = hdr.clone().requires_grad_(), hdr.clone().requires_grad_()
    out, expected = DomainTransfer(mu=mu, peak=peak)(ours), literal_transfer(theirs, mu, peak)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, ours, upstream)
    (wanted,) = torch.autograd.grad(expected, theirs, upstream)
    torch.testing.assert_close(got, wanted)
    assert got.abs().min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_raw_is_eq_1_after_demosaicing(dtype, pattern, method):
    packed = torch.rand(2, 4, 5, 4, dtype=dtype) * 16
    ours, theirs = packed.clone().requires_grad_(), packed.clone().requires_grad_()
    out = DomainTransfer("raw", cfa_pattern=pattern, method=method)(ours)
    assert out.shape == (2, 3, 10, 8)
    rgb = demosaic(unpack_raw(theirs, pattern), cfa_pattern=pattern, method=method)
    expected = mu_law(rgb / 16, 5000.0)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    upstream = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, ours, upstream)
    (wanted,) = torch.autograd.grad(expected, theirs, upstream)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("domain", ["srgb", "raw"])
def test_the_peak_maps_to_one_and_zero_to_zero(domain):
    channels, default_peak = (3, 1.0) if domain == "srgb" else (4, 16.0)
    transfer = DomainTransfer(domain)
    assert transfer.peak == default_peak
    flat = torch.full((1, channels, 4, 4), default_peak)
    torch.testing.assert_close(transfer(flat), torch.ones_like(transfer(flat)))
    torch.testing.assert_close(transfer(0 * flat), torch.zeros_like(transfer(flat)))
    other = DomainTransfer(domain, peak=3.0)
    torch.testing.assert_close(other(0 * flat + 3.0), torch.ones_like(transfer(flat)))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_raw_does_not_move_the_picture_by_half_a_pixel(pattern, method):
    # A linear ramp is reproduced by any interpolation that looks from the right place, and by none that does not.
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    ramp = (0.02 * x + 0.01 * y + 0.1).expand(1, 3, 24, 20)
    packed = pack_raw(mosaic(ramp, pattern), pattern)
    transfer = DomainTransfer("raw", peak=1.0, cfa_pattern=pattern, method=method)
    linear = DomainTransfer("srgb").inverse(transfer(packed))
    torch.testing.assert_close(linear[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_raw_keeps_each_color_in_its_channel(pattern):
    for plane, channel in enumerate([0, 1, 1, 2]):  # R, Gr, Gb, B
        packed = torch.zeros(1, 4, 4, 4)
        packed[:, plane] = 1.0
        energy = DomainTransfer("raw", cfa_pattern=pattern)(packed).sum(dim=(0, 2, 3))
        assert energy.argmax() == channel
        assert energy.count_nonzero() == 1


# metadata of RAW data


def make_metadata(batch: int | None = None, seed: int = 0, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """Plausible gains and a color matrix with rows of sum 1; for each of ``batch`` pictures, or shared."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if batch is None else (batch,)
    gains = 1 + 1.5 * torch.rand(*shape, 3, generator=generator, dtype=dtype)
    matrix = torch.eye(3, dtype=dtype) + 0.15 * torch.randn(*shape, 3, 3, generator=generator, dtype=dtype)
    return {"white_balance": gains, "color_matrix": matrix / matrix.sum(-1, keepdim=True)}


def test_metadata_gives_a_gray_scene_back_its_gray():
    metadata = make_metadata(seed=1)
    gray = torch.full((1, 3, 8, 8), 0.2, dtype=torch.float64)
    sensor = torch.linalg.solve(metadata["color_matrix"], gray[0, :, 0, 0]) / metadata["white_balance"]
    packed = pack_raw(mosaic(sensor.view(1, 3, 1, 1).expand(1, 3, 8, 8))) * 16
    transfer = DomainTransfer("raw")
    torch.testing.assert_close(transfer(packed, **metadata), literal_transfer(gray, 5000.0, 1.0))
    plain = transfer(packed)[0, :, 0, 0]
    assert plain.max() - plain.min() > 0.01  # without it, the sensor's colors


def test_metadata_of_each_picture_is_its_own():
    packed, metadata = torch.rand(3, 4, 4, 5, dtype=torch.float64) * 16, make_metadata(3)
    transfer = DomainTransfer("raw", cfa_pattern="GBRG", method="malvar")
    together = transfer(packed, **metadata)
    for i in range(3):
        alone = transfer(packed[i : i + 1], **{key: value[i] for key, value in metadata.items()})
        torch.testing.assert_close(together[i : i + 1], alone)
    assert not torch.allclose(together[0], transfer(packed, **make_metadata(3, seed=9))[0])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(METHODS),
    st.sampled_from(["white_balance", "color_matrix", "both"]),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
def test_the_inverse_undoes_the_transfer_with_metadata(pattern, method, given_key, shared, seed):
    metadata = make_metadata(None if shared else 2, seed)
    metadata = metadata if given_key == "both" else {given_key: metadata[given_key]}
    transfer = DomainTransfer("raw", cfa_pattern=pattern, method=method)
    packed = (torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 0.5) * 16
    torch.testing.assert_close(transfer.inverse(transfer(packed, **metadata), **metadata), packed, atol=1e-9, rtol=1e-9)


def test_the_inverse_with_metadata_is_good_to_float32_rounding():
    packed, metadata = torch.rand(2, 4, 8, 8) * 16, make_metadata(2)  # whose float64 changes nothing
    transfer = DomainTransfer("raw")
    tonemapped = transfer(packed, **metadata)
    assert tonemapped.dtype == torch.float32
    torch.testing.assert_close(transfer.inverse(tonemapped, **metadata), packed, atol=2e-5, rtol=2e-5)


def test_gains_can_be_plain_numbers():
    packed, gains = torch.rand(2, 4, 4, 4), (2.0, 1.0, 1.5)
    transfer = DomainTransfer("raw")
    tonemapped = transfer(packed, white_balance=gains)
    assert torch.equal(tonemapped, transfer(packed, white_balance=torch.tensor(gains)))
    torch.testing.assert_close(transfer.inverse(tonemapped, white_balance=gains), packed, atol=1e-5, rtol=1e-5)


def test_gradcheck_with_metadata_both_ways():
    transfer = DomainTransfer("raw", mu=50.0, peak=1.0)
    gains, matrix = (value.requires_grad_() for value in make_metadata(2).values())
    packed = (torch.rand(2, 4, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    tonemapped = (torch.rand(2, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    for call, picture in ((transfer.forward, packed), (transfer.inverse, tonemapped)):

        def run(picture, gains, matrix, call=call):
            return call(picture, white_balance=gains, color_matrix=matrix)

        inputs = (picture, gains, matrix)
        assert torch.autograd.gradcheck(run, inputs)
        gradients = torch.autograd.grad(run(*inputs).square().sum(), inputs)
        assert all(gradient.abs().min() > 0 for gradient in gradients)


@pytest.mark.parametrize("key", ["white_balance", "color_matrix"])
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_srgb_has_no_metadata(key, method):
    with pytest.raises(ValueError, match=rf'{key} is metadata of RAW data: it must be None for domain="srgb"'):
        getattr(DomainTransfer(), method)(torch.rand(1, 3, 4, 4), **{key: make_metadata()[key]})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"color_matrix": torch.ones(3, 3)}, "color_matrix must be invertible"),
        ({"color_matrix": torch.arange(1.0, 10).view(3, 3) / 10}, "color_matrix must be invertible"),
        ({"color_matrix": torch.stack([torch.eye(3), torch.zeros(3, 3)])}, "color_matrix must be invertible"),
        ({"color_matrix": torch.eye(4)}, r"color_matrix must have shape .*got \(4, 4\)"),
        (
            {"color_matrix": torch.eye(3).expand(3, 3, 3)},
            r"^color_matrix must have shape .*\(2, 3, 3\), got \(3, 3, 3\)",
        ),
        ({"white_balance": (2.0, 0.0, 1.0)}, r"white_balance must not be 0 to be undone, got \[2.0, 0.0, 1.0\]"),
        ({"white_balance": torch.ones(2)}, r"^white_balance gains must have shape \(3,\) or \(2, 3\), got \(2,\)"),
    ],
)
def test_the_inverse_rejects_metadata_that_can_not_be_undone(metadata, message):
    with pytest.raises(ValueError, match=message):
        DomainTransfer("raw").inverse(torch.rand(2, 3, 4, 4), **metadata)


@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"color_matrix": torch.eye(3).tolist()}, TypeError, r"^color_matrix must be a torch\.Tensor, got list"),
        ({"color_matrix": torch.eye(2)}, ValueError, r"^color_matrix must have shape \(3, 3\) or \(1, 3, 3\)"),
        ({"white_balance": [1, 1]}, ValueError, r"^white_balance gains must have shape \(3,\) or \(1, 3\), got \(2,\)"),
    ],
)
def test_bad_metadata_is_named_as_the_caller_knows_it(method, metadata, error, message):
    picture = torch.rand(1, 4 if method == "forward" else 3, 4, 4)
    with pytest.raises(error, match=message):
        getattr(DomainTransfer("raw"), method)(picture, **metadata)


def test_a_small_matrix_is_no_singular_one():
    matrix = make_metadata()["color_matrix"].float() * 1e-4
    packed, transfer = torch.rand(1, 4, 4, 4), DomainTransfer("raw", peak=1.0)
    back = transfer.inverse(transfer(packed, color_matrix=matrix), color_matrix=matrix)
    torch.testing.assert_close(back, packed, atol=1e-4, rtol=1e-4)


# gradcheck


@pytest.mark.parametrize(("domain", "channels"), [("srgb", 3), ("raw", 4)])
def test_gradcheck(domain, channels):
    transfer = DomainTransfer(domain, mu=50.0)
    hdr = (torch.rand(1, channels, 3, 2, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(transfer, (hdr,))
    (gradient,) = torch.autograd.grad(transfer(hdr).sum(), hdr)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize(("domain", "channels"), [("srgb", 3), ("raw", 4)])
@pytest.mark.parametrize("value", [0.0, -1e-4, -0.5, -100.0])
def test_the_gradient_is_finite_and_positive_at_zero_and_below(domain, channels, value):
    hdr = torch.full((1, channels, 4, 4), value, requires_grad=True)
    out = DomainTransfer(domain)(hdr)
    (gradient,) = torch.autograd.grad(out.sum(), hdr)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.min() > 0  # a negative output is pulled back up, not left alone


# invariants


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["srgb", "raw"]),
    st.sampled_from(PATTERNS),
    st.sampled_from(METHODS),
    st.floats(1.0, 1e5),
    st.floats(0.1, 100.0),
    st.integers(2, 6),
    st.integers(2, 6),
    st.integers(0, 2**31 - 1),
)
def test_the_inverse_undoes_the_transfer(domain, pattern, method, mu, peak, height, width, seed):
    transfer = DomainTransfer(domain, mu=mu, peak=peak, cfa_pattern=pattern, method=method)
    generator = torch.Generator().manual_seed(seed)
    channels = 3 if domain == "srgb" else 4
    hdr = torch.rand(1, channels, height, width, generator=generator, dtype=torch.float64) * 2 - 0.5
    hdr = hdr * peak
    back = transfer.inverse(transfer(hdr))
    assert back.shape == hdr.shape
    torch.testing.assert_close(back, hdr, atol=1e-9 * peak, rtol=1e-9)


def test_the_inverse_is_good_to_float32_rounding():
    hdr = torch.rand(1, 3, 16, 16)
    transfer = DomainTransfer()
    torch.testing.assert_close(transfer.inverse(transfer(hdr)), hdr, atol=1e-7, rtol=1e-5)
    packed = torch.rand(1, 4, 8, 8) * 16
    raw = DomainTransfer("raw")
    torch.testing.assert_close(raw.inverse(raw(packed)), packed, atol=1e-6, rtol=1e-5)


def test_brighter_stays_brighter():
    ramp = torch.linspace(-2, 2, 400).view(1, 1, 20, 20).expand(1, 3, 20, 20)
    assert (DomainTransfer()(ramp)[0, 0].flatten().diff() > 0).all()


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "yuv"}, r"domain must be one of .*raw.*srgb.*, got 'yuv'"),
        ({"cfa_pattern": "RGBG"}, r"cfa_pattern must be one of .*got 'RGBG'"),
        ({"method": "nearest"}, r"method must be one of .*got 'nearest'"),
        ({"mu": 0.0}, r"mu must be a finite number > 0, got 0.0"),
        ({"mu": math.inf}, r"mu must be a finite number > 0"),
        ({"peak": -1.0}, r"peak must be a finite number > 0, got -1.0"),
        ({"peak": 0.0}, r"peak must be a finite number > 0, got 0.0"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DomainTransfer(**options)


def test_rejects_bad_pictures():
    with pytest.raises(ValueError, match=r"hdr must have 3 channels \(B, 3, H, W\), got shape \(1, 4, 4, 4\)"):
        DomainTransfer()(torch.rand(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"hdr must have 4 channels .*packed RAW, got shape \(1, 3, 4, 4\)"):
        DomainTransfer("raw")(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"hdr must have 4 axes"):
        DomainTransfer()(torch.rand(3, 4, 4))
    with pytest.raises(TypeError, match=r"hdr must be a floating-point tensor, got torch.int64"):
        DomainTransfer()(torch.ones(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"hdr must be a torch.Tensor .*got list"):
        DomainTransfer()([1.0])
    with pytest.raises(ValueError, match=r"tonemapped must have 3 channels"):
        DomainTransfer("raw").inverse(torch.rand(1, 4, 4, 4))


# compiles


@pytest.mark.parametrize(("domain", "channels"), [("srgb", 3), ("raw", 4)])
def test_compiles(domain, channels):
    transfer = DomainTransfer(domain)
    compiled = torch.compile(transfer, fullgraph=True, backend="aot_eager")
    hdr = torch.rand(1, channels, 6, 4, requires_grad=True)
    torch.testing.assert_close(compiled(hdr), transfer(hdr))
    (got,) = torch.autograd.grad(compiled(hdr).square().sum(), hdr)
    (wanted,) = torch.autograd.grad(transfer(hdr).square().sum(), hdr)
    torch.testing.assert_close(got, wanted)


def test_compiles_with_metadata_both_ways():
    transfer, metadata = DomainTransfer("raw"), make_metadata(1, dtype=torch.float32)

    def there_and_back(packed, metadata):
        return transfer.inverse(transfer(packed, **metadata) * 0.9, **metadata)

    packed = torch.rand(1, 4, 6, 4)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed, metadata), there_and_back(packed, metadata))


# module_equals_function


def test_srgb_module_equals_mu_law_and_holds_no_state():
    transfer = DomainTransfer(mu=100.0)
    hdr = torch.rand(2, 3, 5, 7)
    assert torch.equal(transfer(hdr), mu_law(hdr, 100.0))
    assert not transfer.state_dict()
    assert not list(transfer.parameters())


def test_repr_shows_the_options():
    assert repr(DomainTransfer(mu=10.0)) == "DomainTransfer(domain='srgb', mu=10.0, peak=1.0)"
    assert "peak=16.0, cfa_pattern='GRBG', method='malvar'" in repr(
        DomainTransfer("raw", 5000.0, None, "GRBG", "malvar")
    )
