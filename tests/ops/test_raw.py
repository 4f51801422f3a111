"""RAW operations against the packages colour-demosaicing and kornia, and their properties."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from colour_demosaicing import demosaicing_CFA_Bayer_bilinear, demosaicing_CFA_Bayer_Malvar2004
from colour_demosaicing.bayer import masks_CFA_Bayer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skt_components.ops.raw import (
    CFA_PATTERNS,
    apply_color_matrix,
    demosaic,
    mosaic,
    pack_raw,
    render_raw,
    unpack_raw,
    white_balance,
)

METHODS = ("bilinear", "malvar")
ORACLES = {"bilinear": demosaicing_CFA_Bayer_bilinear, "malvar": demosaicing_CFA_Bayer_Malvar2004}

every_pattern = pytest.mark.parametrize("pattern", CFA_PATTERNS)
every_method = pytest.mark.parametrize("method", METHODS)


def site_masks(height: int, width: int, pattern: str) -> Tensor:
    """Where red, green and blue samples lie, ``(3, H, W)``, from the oracle package."""
    return torch.stack([torch.from_numpy(mask) for mask in masks_CFA_Bayer((height, width), pattern)])


# matches_reference


@every_pattern
@every_method
@pytest.mark.parametrize("size", [(8, 10), (9, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_demosaic_matches_colour_demosaicing_in_the_interior(pattern, method, size, dtype):
    # The border differs on purpose: the oracle's mirror repeats the edge line, which puts a sample where the
    # array has another color. Two pixels in, no kernel reaches the border any more.
    bayer = torch.rand(2, 1, *size, dtype=dtype) * 16
    rgb = demosaic(bayer, pattern, method)
    assert rgb.dtype == dtype
    for got, picture in zip(rgb, bayer, strict=True):
        wanted = torch.from_numpy(ORACLES[method](picture[0].double().numpy(), pattern)).permute(2, 0, 1)
        difference = (got - wanted)[:, 2:-2, 2:-2].abs().max().item()
        assert difference <= 1e-6 * 16 if dtype == torch.float32 else difference <= 1e-12


@every_pattern
def test_bilinear_demosaic_matches_kornia_in_the_interior(pattern):
    from kornia.color import CFA, raw_to_rgb  # named as OpenCV does, by the second row's second and third colors

    bayer = torch.rand(2, 1, 8, 10)
    cfa = {"RGGB": CFA.BG, "BGGR": CFA.RG, "GRBG": CFA.GB, "GBRG": CFA.GR}[pattern]
    difference = (demosaic(bayer, pattern) - raw_to_rgb(bayer, cfa))[:, :, 2:-2, 2:-2]
    assert difference.abs().max() <= 5e-7


@every_pattern
def test_mosaic_samples_the_oracle_sites(pattern):
    rgb = torch.rand(1, 3, 5, 6)
    assert torch.equal(mosaic(rgb, pattern)[0, 0], (rgb[0] * site_masks(5, 6, pattern)).sum(0))


@every_pattern
def test_pack_raw_orders_planes_r_gr_gb_b(pattern):
    # Every picture names its own site: red 1, blue 4, green 2 on red's row, 3 on blue's.
    red, _, blue = site_masks(4, 6, pattern)
    red_row = red.any(1, keepdim=True)
    names = torch.where(red, 1.0, torch.where(blue, 4.0, torch.where(red_row, 2.0, 3.0)))
    packed = pack_raw(names[None, None], pattern)
    assert packed.shape == (1, 4, 2, 3)
    assert torch.equal(packed, torch.arange(1.0, 5.0).view(1, 4, 1, 1).expand(1, 4, 2, 3))


def test_apply_color_matrix_matches_matrix_product_per_pixel():
    rgb = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    matrices = torch.randn(2, 3, 3, dtype=torch.float64)
    expected = (matrices @ rgb.flatten(2)).view_as(rgb)
    torch.testing.assert_close(apply_color_matrix(rgb, matrices), expected)
    torch.testing.assert_close(apply_color_matrix(rgb, matrices[0])[0], expected[0])


@every_pattern
@every_method
def test_render_raw_matches_the_oracle_step_by_step(pattern, method):
    packed = torch.rand(2, 4, 5, 6, dtype=torch.float64) * 16
    gains = np.array([[2.1, 1.0, 1.6], [1.3, 0.9, 2.4]])
    matrices = np.random.default_rng(0).normal(size=(2, 3, 3))
    rgb = render_raw(
        packed,
        white_balance=torch.tensor(gains),
        color_matrix=torch.tensor(matrices),
        cfa_pattern=pattern,
        method=method,
    )
    assert rgb.shape == (2, 3, 10, 12)
    masks = site_masks(10, 12, pattern).numpy()
    for picture, bayer, gain, matrix in zip(rgb, unpack_raw(packed, pattern).numpy(), gains, matrices, strict=True):
        balanced = bayer[0] * (gain[:, None, None] * masks).sum(0)
        expected = np.einsum("ij,hwj->ihw", matrix, ORACLES[method](balanced, pattern))
        np.testing.assert_allclose(picture.numpy()[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-11)


def test_render_raw_leaves_out_what_it_is_not_given():
    packed, gains, matrix = torch.rand(1, 4, 3, 3), torch.tensor([2.0, 1.0, 1.5]), torch.rand(3, 3)
    plain = demosaic(unpack_raw(packed))
    assert torch.equal(render_raw(packed), plain)
    torch.testing.assert_close(render_raw(packed, white_balance=gains), plain * gains[:, None, None])
    torch.testing.assert_close(render_raw(packed, color_matrix=matrix), apply_color_matrix(plain, matrix))


# gradcheck


@every_pattern
@every_method
def test_demosaic_gradcheck(pattern, method):
    bayer = torch.rand(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: demosaic(x, pattern, method), bayer)
    (gradient,) = torch.autograd.grad(demosaic(bayer, pattern, method).square().sum(), bayer)
    assert gradient.abs().min() > 0


def test_color_operations_gradcheck():
    rgb = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    gains = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(white_balance, (rgb, gains))
    assert torch.autograd.gradcheck(apply_color_matrix, (rgb, matrix))


def test_render_raw_gradcheck():
    packed = torch.rand(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    gains = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)

    def render(*inputs: Tensor) -> Tensor:
        return render_raw(inputs[0], white_balance=inputs[1], color_matrix=inputs[2], method="bilinear")

    assert torch.autograd.gradcheck(render, (packed, gains, matrix))
    for gradient in torch.autograd.grad(render(packed, gains, matrix).square().sum(), (packed, gains, matrix)):
        assert gradient.abs().min() > 0


# invariants


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(CFA_PATTERNS), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_unpack_raw_undoes_pack_raw(half_height, half_width, pattern, seed):
    generator = torch.Generator().manual_seed(seed)
    bayer = torch.rand(2, 1, 2 * half_height, 2 * half_width, generator=generator)
    packed = torch.rand(2, 4, half_height, half_width, generator=generator)
    assert torch.equal(unpack_raw(pack_raw(bayer, pattern), pattern), bayer)
    assert torch.equal(pack_raw(unpack_raw(packed, pattern), pattern), packed)


@given(
    st.integers(3, 9),
    st.integers(3, 9),
    st.sampled_from(CFA_PATTERNS),
    st.sampled_from(METHODS),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_demosaic_returns_known_samples_bit_unchanged(height, width, pattern, method, seed):
    bayer = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(mosaic(demosaic(bayer, pattern, method), pattern), bayer)


@every_pattern
@pytest.mark.parametrize(("method", "size"), [("bilinear", (2, 2)), ("bilinear", (2, 5)), ("malvar", (3, 3))])
def test_demosaic_of_the_smallest_pictures_keeps_flat_colors(pattern, method, size):
    rgb = torch.tensor([0.5, 2.0, 8.0]).view(1, 3, 1, 1).expand(1, 3, *size)
    if method == "malvar":  # the gradient correction mixes colors, so only gray stays flat
        rgb = torch.full((1, 3, *size), 0.5)
    torch.testing.assert_close(demosaic(mosaic(rgb, pattern), pattern, method), rgb)


@every_pattern
@every_method
def test_demosaic_does_not_shift_a_ramp(pattern, method):
    # A gray ramp is reproduced exactly in the interior; half a pixel of shift would show as half a step.
    ramp = (torch.arange(10.0).view(-1, 1) * 3 + torch.arange(12.0)).expand(1, 3, 10, 12)
    rgb = demosaic(mosaic(ramp, pattern), pattern, method)
    torch.testing.assert_close(rgb[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2])


PERIOD = 16


def wave(shift: float, dim: int) -> Tensor:
    """A gray wave of 16 pixels' period along one axis of an 80x80 picture, moved by ``shift`` pixels."""
    x = torch.arange(80.0, dtype=torch.float64) - shift
    line = 0.5 + 0.4 * torch.cos(2 * math.pi * x / PERIOD)
    return (line[:, None] if dim == -2 else line).expand(1, 3, 80, 80)


def measured_shifts(picture: Tensor, dim: int) -> list[float]:
    """Where the wave lies in each channel, in pixels, by its phase in four whole periods away from the border."""
    lines = picture[0, :, 8:72, 8:72].mean(-1 if dim == -2 else -2).double()
    x = torch.arange(8, 72, dtype=torch.float64)
    turned = lines.to(torch.complex128) @ torch.exp(-2j * math.pi * x / PERIOD)
    return [-cmath.phase(value) * PERIOD / (2 * math.pi) for value in turned.tolist()]


@every_pattern
@every_method
@pytest.mark.parametrize("dim", [-1, -2])
def test_demosaic_keeps_a_wave_in_its_place_to_a_hundredth_of_a_pixel(pattern, method, dim):
    assert measured_shifts(wave(0.25, dim), dim) == pytest.approx([0.25] * 3, abs=1e-9)  # the ruler itself
    rgb = render_raw(pack_raw(mosaic(wave(0.0, dim), pattern), pattern), cfa_pattern=pattern, method=method)
    assert measured_shifts(rgb, dim) == pytest.approx([0.0] * 3, abs=0.01)


@every_pattern
@every_method
def test_demosaic_commutes_with_mirroring_border_included(pattern, method):
    # On an odd size a mirrored array is the same array, so the border rule must be mirror symmetric too.
    bayer = torch.rand(1, 1, 7, 9, dtype=torch.float64)
    for dims in ([-1], [-2], [-1, -2]):
        mirrored = demosaic(bayer.flip(dims), pattern, method).flip(dims)
        torch.testing.assert_close(mirrored, demosaic(bayer, pattern, method))


def test_demosaic_takes_non_contiguous_input():
    bayer = torch.rand(2, 1, 12, 16)
    torch.testing.assert_close(
        demosaic(bayer.transpose(2, 3), method="malvar"), demosaic(bayer.mT.contiguous(), method="malvar")
    )


@every_method
def test_demosaic_keeps_float32_under_autocast(method):
    bayer = torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = demosaic(bayer, method=method)
    assert torch.equal(inside, demosaic(bayer, method=method))


@every_pattern
def test_white_balance_of_packed_equals_white_balance_of_rgb(pattern):
    rgb, gains = torch.rand(2, 3, 4, 6), torch.tensor([[2.0, 1.0, 1.5], [1.8, 0.9, 1.2]])
    packed = white_balance(pack_raw(mosaic(rgb, pattern), pattern), gains)
    assert torch.equal(packed, pack_raw(mosaic(white_balance(rgb, gains), pattern), pattern))


def test_one_set_of_gains_and_one_matrix_serve_every_picture():
    rgb = torch.rand(2, 3, 4, 4)
    gains, matrix = torch.tensor([2.0, 1.0, 1.5]), torch.diag(torch.tensor([2.0, 1.0, 1.5]))
    assert torch.equal(white_balance(rgb, gains), white_balance(rgb, (2.0, 1.0, 1.5)))
    assert torch.equal(white_balance(rgb, gains), white_balance(rgb, gains.expand(2, 3)))
    assert torch.equal(white_balance(rgb, gains), apply_color_matrix(rgb, matrix))


# rejects_bad_input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_raw([1.0]), TypeError, "bayer must be a torch.Tensor"),
        (lambda: pack_raw(torch.ones(1, 1, 2, 2, dtype=torch.int32)), TypeError, "floating-point"),
        (lambda: pack_raw(torch.ones(1, 1, 3, 4)), ValueError, "bayer must have even .* got 3x4"),
        (lambda: pack_raw(torch.ones(1, 1, 4, 4), "RGBG"), ValueError, "cfa_pattern must be one of"),
        (lambda: pack_raw(torch.ones(1, 4, 4)), ValueError, "bayer must have 4 axes"),
        (lambda: unpack_raw(torch.ones(1, 3, 4, 4)), ValueError, "packed must have 4 channels"),
        (lambda: unpack_raw(torch.ones(1, 4, 4, 4), "rggb"), ValueError, "cfa_pattern must be one of"),
        (lambda: mosaic(torch.ones(1, 1, 4, 4)), ValueError, "rgb must have 3 channels"),
        (lambda: demosaic(torch.ones(1, 3, 4, 4)), ValueError, "bayer must have 1 channels"),
        (lambda: demosaic(torch.ones(1, 1, 4, 4), "XXXX"), ValueError, "cfa_pattern must be one of"),
        (lambda: demosaic(torch.ones(1, 1, 4, 4), method="ahd"), ValueError, "method must be one of"),
        (lambda: demosaic(torch.ones(1, 1, 1, 4)), ValueError, 'at least 2x2 for method="bilinear", got 1x4'),
        (
            lambda: demosaic(torch.ones(1, 1, 2, 4), method="malvar"),
            ValueError,
            'at least 3x3 for method="malvar", got 2x4',
        ),
        (lambda: white_balance(torch.ones(1, 5, 2, 2), (1.0, 1.0, 1.0)), ValueError, "got 5"),
        (lambda: white_balance(torch.ones(2, 3, 2, 2), torch.ones(1, 3)), ValueError, "gains must have shape"),
        (lambda: white_balance(torch.ones(1, 3, 2, 2), (1.0, 1.0)), ValueError, "gains must have shape"),
        (lambda: apply_color_matrix(torch.ones(1, 3, 2, 2), torch.ones(4, 4)), ValueError, "matrix must"),
        (lambda: apply_color_matrix(torch.ones(1, 4, 2, 2), torch.eye(3)), ValueError, "rgb must have 3"),
        (lambda: render_raw(torch.ones(1, 3, 2, 2)), ValueError, "packed must have 4 channels"),
        (lambda: render_raw(torch.ones(2, 4, 2, 2), white_balance=torch.ones(2)), ValueError, "^white_balance gains"),
        (lambda: render_raw(torch.ones(1, 4, 2, 2), color_matrix=torch.ones(2, 3, 3)), ValueError, "^color_matrix"),
        (lambda: render_raw(torch.ones(1, 4, 2, 2), method="ahd"), ValueError, "method must be one of"),
    ],
)
def test_rejects_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# compiles


@pytest.mark.parametrize(
    ("method", "backend"),
    [("bilinear", "aot_eager"), ("malvar", "aot_eager"), pytest.param("malvar", "inductor", marks=pytest.mark.slow)],
)
def test_demosaic_compiles_to_one_graph(method, backend):
    bayer = torch.rand(1, 1, 8, 10, requires_grad=True)
    compiled = torch.compile(demosaic, fullgraph=True, backend=backend)
    rgb = compiled(bayer, "GRBG", method)
    torch.testing.assert_close(rgb, demosaic(bayer, "GRBG", method))
    upstream = torch.randn_like(rgb)
    (got,) = torch.autograd.grad(rgb, bayer, upstream)
    (wanted,) = torch.autograd.grad(demosaic(bayer, "GRBG", method), bayer, upstream)
    torch.testing.assert_close(got, wanted)


def test_the_other_operations_compile_to_one_graph():
    def pipeline(rgb: Tensor, gains: Tensor, matrix: Tensor) -> Tensor:
        packed = white_balance(pack_raw(mosaic(rgb, "BGGR"), "BGGR"), gains)
        rgb = apply_color_matrix(unpack_raw(packed, "BGGR") * rgb, matrix)
        return rgb + render_raw(packed, white_balance=gains, color_matrix=matrix)

    inputs = torch.rand(2, 3, 6, 4), torch.rand(2, 3), torch.rand(3, 3)
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), pipeline(*inputs))
