"""Soft histograms against eqs. 6 to 8 and the properties of a histogram."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from histogram_cases import BANDWIDTHS, both_engines, both_paths, every_bandwidth, one_hot, region_map, regions, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skt_components.histogram import checks, engines, sigmoid_bandwidth, soft_histogram, torch_engine
from skt_components.histogram.kernels import Bins, Moments, Window, choose_basis
from skt_components.histogram.soft_histogram import histogram_difference
from skt_components.ops import reference


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth areas, edges and noise, mostly inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=True)
    return (smooth + 0.02 * torch.randn(shape, generator=generator)).to(dtype)


def literal(values: Tensor, weights: Tensor | None, num_bins: int, value_range: tuple, bandwidth: float) -> Tensor:
    """Eq. 6 and 7 in float64, each pixel's kernel counted by its weight, ``(B, R, C, N)``."""
    centers = reference.eq6_centers(num_bins, value_range)
    kernel = reference.eq7_kernel(values.double()[..., None], centers, bandwidth)
    weights = torch.ones(len(values), 1, *values.shape[2:]) if weights is None else weights
    return torch.einsum("brhw,bchwn->brcn", weights.double(), kernel)


def outcome(count, values: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The histogram and the gradient of a random combination of its bins."""
    counts = count(leaf := values.detach().requires_grad_(), **options)
    upstream = torch.randn(counts.shape, generator=torch.Generator().manual_seed(1))
    return counts.detach(), torch.autograd.grad(counts, leaf, upstream.to(counts.dtype))[0]


def compare(values: Tensor, weights: Tensor | None, tolerance: tuple[float, float], **options) -> None:
    """Value and gradient of soft_histogram, relative L2, against the literal sum over ``weights``."""
    bins = {"num_bins": 256, "value_range": (0.0, 1.0), "bandwidth": 1 / 400}
    bins |= {name: options[name] for name in bins if name in options}
    got = soft_histogram(x := values.detach().requires_grad_(), **options)
    assert x.stride() == values.stride()
    wanted = literal(y := values.detach().double().requires_grad_(), weights, **bins)
    assert got.shape == wanted.shape
    assert got.dtype == (torch.float64 if values.dtype == torch.float64 else torch.float32)
    upstream = torch.randn(got.shape, dtype=torch.float64)
    (got_gradient,) = torch.autograd.grad(got, x, upstream.to(got.dtype))
    (wanted_gradient,) = torch.autograd.grad(wanted, y, upstream)
    assert got_gradient.dtype == values.dtype
    assert wanted_gradient.norm() > 0
    assert (got - wanted).norm() <= tolerance[0] * wanted.norm()
    assert (got_gradient - wanted_gradient).norm() <= tolerance[1] * wanted_gradient.norm()


# float64 is limited by the window (kernel values below 1e-7), float32 by the rounding of the results.
TOLERANCES = {torch.float32: (2e-7, 6e-7), torch.float64: (1e-7, 6e-7)}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)


# matches_reference


def test_the_bandwidths_below_exercise_both_code_paths():
    chosen = [type(choose_basis(Bins(256, 0.0, 1.0, bandwidth))) for bandwidth in BANDWIDTHS]
    assert chosen == [Window, Window, Moments, Moments, Moments]


@both_engines
@every_bandwidth
@both_dtypes
@pytest.mark.parametrize("kind", ["global", "masks", "weights", "labels"])
def test_matches_the_equations(bandwidth, dtype, kind):
    values = picture(2, 3, 9, 13, dtype=dtype)
    masks, labels = regions(2, 9, 13), region_map(2, 9, 13)
    weights = torch.rand(2, 4, 9, 13) * masks
    options, expected = {
        "global": ({}, None),
        "masks": ({"masks": masks}, masks),
        "weights": ({"masks": weights}, weights),
        "labels": ({"labels": labels, "num_regions": 4}, one_hot(labels, 4)),
    }[kind]
    compare(values, expected, TOLERANCES[dtype], bandwidth=bandwidth, **options)


@both_engines
@both_paths
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (31, 1), (5, 7)])
def test_odd_sizes_match(bandwidth, size):
    values = torch.rand(3, 2, *size, dtype=torch.float64)
    masks = torch.rand(3, 2, *size) > 0.3
    compare(values, None, TOLERANCES[torch.float64], bandwidth=bandwidth)
    compare(values, masks, TOLERANCES[torch.float64], bandwidth=bandwidth, masks=masks)


def test_global_histograms_match_eq8_picture_by_picture():
    values = picture(2, 3, 9, 13, dtype=torch.float64)
    got = soft_histogram(values, num_bins=64, bandwidth=0.02)
    wanted = torch.stack([reference.eq8_histogram(x, 64, (0.0, 1.0), 0.02) for x in values])
    torch.testing.assert_close(got[:, 0], wanted, rtol=1e-6, atol=1e-6)


def test_a_region_is_eq8_of_its_pixels():
    values, masks = picture(2, 3, 9, 13, dtype=torch.float64), regions(2, 9, 13)
    got = soft_histogram(values, masks=masks)
    for b in range(2):
        for r in range(4):
            wanted = reference.eq8_histogram(values[b][:, masks[b, r]], 256, (0.0, 1.0), 1 / 400)
            torch.testing.assert_close(got[b, r], wanted, rtol=1e-6, atol=1e-6)


@both_engines
@both_paths
@pytest.mark.parametrize("num_bins", [1, 7, 256])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 3.0), (0.25, 0.5)])
def test_bins_and_ranges_match(bandwidth, num_bins, value_range):
    width = value_range[1] - value_range[0]
    values = value_range[0] + width * picture(2, 3, 9, 13, dtype=torch.float64)
    sigma = max(bandwidth, 0.6 / num_bins) * width
    compare(values, None, TOLERANCES[torch.float64], num_bins=num_bins, value_range=value_range, bandwidth=sigma)


@both_engines
@both_paths
@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed", "offset"])
def test_non_contiguous_inputs_match(bandwidth, layout):
    change = {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
        "strided": lambda x: x[..., ::2],
        "transposed": lambda x: x.transpose(-2, -1),
        "offset": lambda x: x[..., 1:, 3:],
    }[layout]
    values, masks, labels = picture(2, 3, 9, 14), regions(2, 9, 14), region_map(2, 9, 14)
    values, masks, labels = change(values), change(masks), change(labels)
    assert not values.is_contiguous()
    compare(values, masks, TOLERANCES[torch.float32], bandwidth=bandwidth, masks=masks)
    compare(values, one_hot(labels, 4), TOLERANCES[torch.float32], bandwidth=bandwidth, labels=labels, num_regions=4)


@both_engines
def test_expanded_inputs_match():
    values = picture(1, 1, 9, 13).expand(2, 3, 9, 13)
    masks = regions(1, 9, 13).expand(2, 4, 9, 13)
    compare(values, masks, TOLERANCES[torch.float32], masks=masks)


@both_engines
@both_paths
@both_dtypes
def test_values_outside_the_range_add_only_their_tail(bandwidth, dtype):
    values = torch.linspace(-2, 3, 2 * 3 * 5 * 7, dtype=dtype).view(2, 3, 5, 7)
    compare(values, None, TOLERANCES[dtype], bandwidth=bandwidth)


@every_bandwidth
def test_labels_equal_one_hot_masks(bandwidth):
    values, labels = picture(2, 3, 9, 13, dtype=torch.float64), region_map(2, 9, 13)
    by_label = outcome(soft_histogram, values, bandwidth=bandwidth, labels=labels, num_regions=4)
    by_mask = outcome(soft_histogram, values, bandwidth=bandwidth, masks=one_hot(labels, 4))
    torch.testing.assert_close(by_label, by_mask, rtol=1e-11, atol=1e-11)


@both_paths
def test_weights_of_zero_and_one_equal_a_bool_mask(bandwidth):
    values, masks = picture(2, 3, 9, 13), regions(2, 9, 13)
    wanted = soft_histogram(values, masks=masks, bandwidth=bandwidth)
    for dtype in (torch.float16, torch.float32, torch.float64):
        torch.testing.assert_close(soft_histogram(values, masks=masks.to(dtype), bandwidth=bandwidth), wanted)


@both_engines
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("num_regions", [3, 300])
def test_every_integer_type_of_label_works(dtype, num_regions):
    values, labels = picture(1, 3, 9, 13), region_map(1, 9, 13, 2).clamp_min(0)
    got = soft_histogram(values, labels=labels.to(dtype), num_regions=num_regions)
    assert torch.equal(got, soft_histogram(values, labels=labels, num_regions=num_regions))
    assert got.shape[1] == num_regions
    assert got[:, 3:].abs().max() == 0 if num_regions > 3 else got.min() >= 0


def test_the_number_of_regions_is_read_off_the_labels():
    values, labels = picture(2, 3, 9, 13), region_map(2, 9, 13)
    assert torch.equal(soft_histogram(values, labels=labels), soft_histogram(values, labels=labels, num_regions=5))
    assert soft_histogram(values, labels=torch.full_like(labels, -1)).shape == (2, 0, 3, 256)


@both_engines
@pytest.mark.filterwarnings("ignore:bandwidth")
@pytest.mark.parametrize("bandwidth", [1e-5, 1 / 2000, 0.249 / 256, 0.251 / 256, 0.999 / 256, 1.001 / 256, 3.0, 400.0])
@pytest.mark.parametrize("num_bins", [256, 300])
def test_extreme_bandwidths_and_those_where_the_method_changes_match(bandwidth, num_bins):
    values = picture(1, 2, 9, 13, dtype=torch.float64)
    if bandwidth < 1e-4:  # hits some centers, or there would be nothing to see
        values = ((values * num_bins).round() + 0.5) / num_bins + 0.3 * bandwidth * torch.randn_like(values)
    compare(values, None, TOLERANCES[torch.float64], bandwidth=bandwidth, num_bins=num_bins)


@both_engines
@both_paths
@pytest.mark.parametrize("room", [1, 7, 20])
def test_chunk_boundaries_change_nothing(monkeypatch, cpu_engine, bandwidth, room):
    # float64, because in float32 the rounding of exp depends on where a vector register ends.
    values, masks, labels = picture(3, 2, 7, 9).double(), regions(3, 7, 9), region_map(3, 7, 9)
    for options in ({}, {"labels": labels, "num_regions": 4}, {"masks": masks}, {"masks": masks.double() / 2}):
        found = []
        for chunk, table, lanes in ((1 << 20, 1 << 30, 1), (room, 1, 1), (2 * room, 1 << 19, 8)):
            for name, value in (("_CHUNK", chunk), ("_TABLE", table), ("_LANES", lanes)):
                monkeypatch.setattr(torch_engine, name, value)
            if cpu_engine == "numba":
                monkeypatch.setattr("skt_components.histogram.numba_engine._CHUNK", chunk)
            found.append(outcome(soft_histogram, values, bandwidth=bandwidth, **options))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-11)


@both_engines
@both_paths
def test_the_result_is_the_same_bit_for_bit_every_time(bandwidth):
    student, teacher, labels = picture(2, 3, 65, 97), picture(2, 3, 65, 97, seed=1), region_map(2, 65, 97)

    def count(values):
        return histogram_difference(values, teacher, None, labels, 4, bandwidth=bandwidth)

    first = outcome(count, student)
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(outcome(count, student), first, strict=True))


@both_engines
@both_paths
def test_more_than_a_thousand_regions_match(bandwidth):
    values = picture(1, 2, 40, 50, dtype=torch.float64)
    labels = torch.arange(2000).view(1, 40, 50) % 1300
    many = outcome(soft_histogram, values, labels=labels, num_regions=1300, num_bins=32, bandwidth=bandwidth * 8)
    masks = one_hot(labels, 1300)
    by_mask = outcome(soft_histogram, values, masks=masks, num_bins=32, bandwidth=bandwidth * 8)
    torch.testing.assert_close(by_mask, many)
    wanted = literal(values, masks, 32, (0.0, 1.0), bandwidth * 8)
    assert (many[0] - wanted).norm() <= 1e-7 * wanted.norm()


@both_engines
@both_paths
def test_all_equal_pictures_and_regions_of_one_pixel_match(bandwidth):
    compare(torch.full((2, 3, 9, 13), 0.4137), None, TOLERANCES[torch.float32], bandwidth=bandwidth)
    values, labels = picture(1, 3, 9, 13), torch.full((1, 9, 13), -1)
    labels[0, 4, 5], labels[0, 8, 12] = 0, 1
    compare(values, one_hot(labels, 2), TOLERANCES[torch.float32], bandwidth=bandwidth, labels=labels, num_regions=2)


@pytest.mark.parametrize(("slope", "num_bins"), [(400.0, 256), (100.0, 256), (1000.0, 64)])
def test_the_bandwidth_of_sigmoids_has_the_variance_of_their_difference(slope, num_bins):
    distance = torch.linspace(-0.5, 0.5, 200_001, dtype=torch.float64)
    half = 0.5 / num_bins
    sigmoids = torch.sigmoid(slope * (distance + half)) - torch.sigmoid(slope * (distance - half))
    gaussian = torch.exp(-((distance / sigmoid_bandwidth(slope, bin_width=1 / num_bins)) ** 2))
    variances = [(kernel * distance**2).sum() / kernel.sum() for kernel in (sigmoids, gaussian)]
    torch.testing.assert_close(*variances, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="slope must be a finite number > 0, got 0"):
        sigmoid_bandwidth(0)


# empty regions, special values


@both_engines
@both_paths
@pytest.mark.parametrize(
    "options",
    [
        {"masks": torch.zeros(2, 3, 9, 13)},
        {"masks": torch.zeros(2, 3, 9, 13, dtype=torch.bool)},
        {"labels": torch.full((2, 9, 13), -1), "num_regions": 3},
        {"labels": torch.full((2, 9, 13), 3), "num_regions": 3},
    ],
)
def test_empty_regions_are_a_connected_zero(bandwidth, options):
    values = picture(2, 3, 9, 13).requires_grad_()
    counts = soft_histogram(values, bandwidth=bandwidth, **options)
    assert counts.shape == (2, 3, 3, 256)
    assert counts.abs().max() == 0
    (gradient,) = torch.autograd.grad(counts, values, torch.randn_like(counts))
    assert gradient.shape == values.shape
    assert gradient.abs().max() == 0


@both_engines
@both_paths
@pytest.mark.parametrize("options", [{"masks": torch.zeros(2, 0, 9, 13)}, {"labels": torch.full((2, 9, 13), -1)}])
def test_no_regions_are_a_connected_nothing(bandwidth, options):
    values = picture(2, 3, 9, 13).requires_grad_()
    counts = soft_histogram(values, bandwidth=bandwidth, **options)
    assert counts.shape == (2, 0, 3, 256)
    (gradient,) = torch.autograd.grad(counts.sum(), values)
    assert gradient.abs().max() == 0


@both_engines
@both_paths
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_no_pixels_are_a_connected_zero(bandwidth, shape):
    values = torch.zeros(shape, requires_grad=True)
    counts = soft_histogram(values, bandwidth=bandwidth)
    assert counts.shape == (shape[0], 1, shape[1], 256)
    counts.sum().backward()
    assert values.grad.shape == shape


@both_engines
@both_paths
def test_pixels_of_no_region_have_no_gradient(bandwidth):
    values, labels = picture(2, 3, 9, 13).requires_grad_(), region_map(2, 9, 13)
    counts = soft_histogram(values, labels=labels, num_regions=4, bandwidth=bandwidth)
    (gradient,) = torch.autograd.grad(counts, values, torch.randn_like(counts))
    inside = ((labels >= 0) & (labels < 4))[:, None].expand_as(gradient)
    assert gradient[~inside].abs().max() == 0
    assert (gradient[inside] != 0).float().mean() > 0.9


@both_engines
@both_paths
@pytest.mark.parametrize("far", [float("inf"), float("-inf"), 1e30, -1e30])
def test_infinities_count_nothing_and_have_no_gradient(bandwidth, far):
    values = picture(1, 2, 5, 7)
    with_far = values.clone()
    with_far[:, :, 1, 2:5] = far
    keep = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    keep[:, :, 1, 2:5] = False
    leaf = with_far.requires_grad_()
    counts = soft_histogram(leaf, bandwidth=bandwidth)
    torch.testing.assert_close(counts, soft_histogram(values, masks=keep, bandwidth=bandwidth))
    (gradient,) = torch.autograd.grad(counts, leaf, torch.randn_like(counts))
    assert gradient.isfinite().all()
    assert gradient[:, :, 1, 2:5].abs().max() == 0
    assert gradient[:, :, 0].abs().max() > 0


@both_engines
@both_paths
def test_nan_makes_its_own_histogram_nan_and_no_other(bandwidth):
    values, labels = picture(2, 3, 5, 7), region_map(2, 5, 7, 2).clamp(0, 1)
    values[0, 1, 2, 3] = float("nan")
    wanted = torch.zeros(2, 2, 3, dtype=torch.bool)
    wanted[0, labels[0, 2, 3], 1] = True
    pixels = wanted.new_zeros(2, 3, 5, 7)
    pixels[0, 1] = labels[0] == labels[0, 2, 3]
    for where in ({"labels": labels, "num_regions": 2}, {"masks": one_hot(labels, 2)}):
        counts, gradient = outcome(soft_histogram, values, bandwidth=bandwidth, **where)
        assert torch.equal(counts.isnan().all(-1), wanted)
        assert torch.equal(counts.isnan().any(-1), wanted)
        counts = soft_histogram(x := values.clone().requires_grad_(), bandwidth=bandwidth, **where)
        (gradient,) = torch.autograd.grad(counts.square().sum(), x)
        assert torch.equal(gradient.isnan(), pixels)
    labels[0, 2, 3] = -1
    assert not soft_histogram(values, labels=labels, num_regions=2, bandwidth=bandwidth).isnan().any()
    assert not soft_histogram(values, masks=one_hot(labels, 2), bandwidth=bandwidth).isnan().any()


# gradcheck


@pytest.mark.parametrize(("num_bins", "bandwidth"), [(8, 0.2), (8, 0.1), (8, 0.5), (1, 0.5)])
@pytest.mark.parametrize("kind", ["global", "masks", "weights", "labels"])
def test_gradcheck(num_bins, bandwidth, kind):
    values = picture(2, 1, 3, 4, dtype=torch.float64).requires_grad_()
    masks = regions(2, 3, 4, 3)
    options = {
        "global": {},
        "masks": {"masks": masks},
        "weights": {"masks": masks * torch.rand(2, 3, 3, 4)},
        "labels": {"labels": region_map(2, 3, 4, 3), "num_regions": 3},
    }[kind]

    def count(x):
        return soft_histogram(x, num_bins=num_bins, bandwidth=bandwidth, **options)

    (gradient,) = torch.autograd.grad(count(values).square().sum(), values)
    assert gradient.abs().max() > 1e-3
    assert torch.autograd.gradcheck(count, (values,))


# invariants


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_the_histograms_of_a_partition_add_up_to_the_global_one(seed, bandwidth):
    values, labels = picture(2, 3, 6, 7, seed=seed), region_map(2, 6, 7, 3, seed=seed) % 3
    parts = soft_histogram(values, labels=labels, num_regions=3, bandwidth=bandwidth)
    torch.testing.assert_close(parts.sum(1, keepdim=True), soft_histogram(values, bandwidth=bandwidth))


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_shuffling_pixels_changes_nothing(seed, bandwidth):
    values = picture(2, 3, 6, 7, seed=seed)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(seed))
    shuffled = values.flatten(2)[..., order].view_as(values)
    torch.testing.assert_close(
        soft_histogram(shuffled, bandwidth=bandwidth), soft_histogram(values, bandwidth=bandwidth)
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.004, 0.04))
def test_every_pixel_away_from_the_ends_counts_alike(seed, bandwidth):
    # The area under the kernel is sqrt(pi) bandwidth; from 0.9 bins on, sampling at the centers misses < 1 %.
    values = 0.25 + 0.5 * torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mass = soft_histogram(values, bandwidth=bandwidth).sum().item()
    assert mass == pytest.approx(35 * math.sqrt(math.pi) * bandwidth * 256, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS), st.floats(0.1, 50), st.floats(-5, 5))
def test_the_unit_of_the_values_does_not_matter(seed, bandwidth, scale, shift):
    values = picture(1, 3, 6, 7, seed=seed, dtype=torch.float64)
    moved = soft_histogram(values * scale + shift, value_range=(shift, shift + scale), bandwidth=bandwidth * scale)
    torch.testing.assert_close(moved, soft_histogram(values, bandwidth=bandwidth), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_mirrored_values_give_the_mirrored_histogram(seed, bandwidth):
    values = picture(1, 3, 6, 7, seed=seed, dtype=torch.float64)
    mirrored = soft_histogram(1 - values, bandwidth=bandwidth).flip(-1)
    torch.testing.assert_close(mirrored, soft_histogram(values, bandwidth=bandwidth), rtol=1e-6, atol=2e-6)


@both_paths
def test_pictures_channels_and_regions_are_independent(bandwidth):
    values, masks = picture(3, 3, 9, 13), regions(3, 9, 13)
    together = soft_histogram(values, masks=masks, bandwidth=bandwidth)
    for b in range(3):
        for r in range(4):
            for c in range(3):
                alone = soft_histogram(
                    values[b : b + 1, c : c + 1], masks=masks[b : b + 1, r : r + 1], bandwidth=bandwidth
                )
                torch.testing.assert_close(together[b, r, c], alone[0, 0, 0])


@both_paths
def test_histograms_are_linear_in_the_weights(bandwidth):
    values = picture(2, 3, 9, 13, dtype=torch.float64)
    a, b = torch.rand(2, 2, 2, 9, 13, dtype=torch.float64).unbind(0)
    combined, of_a, of_b = (soft_histogram(values, masks=m, bandwidth=bandwidth) for m in (a + 2 * b, a, b))
    torch.testing.assert_close(combined, of_a + 2 * of_b)


# precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_warns_and_is_computed_in_float32(dtype):
    values = picture(1, 3, 9, 13).to(dtype)
    with pytest.warns(UserWarning, match=f"histogram is of {dtype} values: their rounding") as caught:
        counts = soft_histogram(values.requires_grad_())
    assert [warning.filename for warning in caught] == [__file__]
    assert counts.dtype == torch.float32
    assert torch.equal(counts, soft_histogram(values.float()))
    (gradient,) = torch.autograd.grad(counts.square().sum(), values)
    assert gradient.dtype == dtype
    assert gradient.abs().max() > 0


@both_paths
def test_autocast_changes_nothing(bandwidth):
    masks = regions(2, 9, 13)
    results = []
    for enabled in (False, True):
        values = picture(2, 3, 9, 13).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            counts = soft_histogram(values, masks=masks, bandwidth=bandwidth)
            (gradient,) = torch.autograd.grad(counts.square().sum(), values)
        results.append((counts, gradient))
    for plain, autocast in zip(*results, strict=True):
        assert plain.dtype == autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


# bandwidth traps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 400}, r"bandwidth=400 is 400 times the value range .* flat and its gradient practically zero"),
        ({"bandwidth": 13, "value_range": (0, 4)}, "is 3.25 times the value range"),
        ({"bandwidth": 1 / 400, "num_bins": 64}, r"bandwidth=0.0025 is 0.16 of a bin \(64 bins"),
        ({"bandwidth": 1 / 400, "value_range": (0, 16)}, "between bin centers have practically no gradient"),
    ],
)
def test_flat_and_narrow_bandwidths_warn_their_caller(options, message):
    values = torch.full((1, 1, 2, 2), 0.5)
    with pytest.warns(UserWarning, match=message) as caught:
        counts = soft_histogram(values, **options)
    assert [warning.filename for warning in caught] == [__file__]
    assert counts.isfinite().all()


def test_the_warnings_are_true():
    values = picture(1, 3, 9, 13, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slopes = {}
        for bandwidth in (400, 1 / 400, 1e-6):
            leaf = values.clone().requires_grad_()
            counts = soft_histogram(leaf, bandwidth=bandwidth)
            slopes[bandwidth] = torch.autograd.grad(counts, leaf, torch.randn_like(counts))[0].abs().mean()
    assert slopes[400] < 1e-3 * slopes[1 / 400]
    assert slopes[1e-6] < 1e-9 * slopes[1 / 400]


@pytest.mark.parametrize("options", [{}, {"bandwidth": 3.0}, {"bandwidth": 1 / 64, "num_bins": 16}])
def test_sensible_bandwidths_do_not_warn(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soft_histogram(picture(1, 3, 5, 7), **options)


# transforms


def test_a_second_derivative_is_rejected():
    values = picture(1, 2, 5, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_histogram(values).square().sum(), values, create_graph=True)
    with pytest.raises(NotImplementedError, match="the soft histogram has no second derivative"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="the soft histogram has no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(lambda y: soft_histogram(y).square().sum())(x).sum())(values)


def test_forward_mode_differentiation_is_rejected():
    values = picture(1, 2, 5, 7)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(soft_histogram, (values,), (values,))


def by_one(x: Tensor, y: Tensor) -> Tensor:
    return soft_histogram(x[None], labels=y[None], num_regions=4)[0]


def test_vmap_is_one_call_and_right_in_value_and_gradient():
    values, labels = picture(3, 2, 5, 7), region_map(3, 5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it has to loop
        mapped = outcome(lambda x: torch.vmap(by_one)(x, labels), values)
        over_columns = outcome(lambda x: torch.vmap(by_one, (3, 2))(x.movedim(0, 3), labels.movedim(0, 2)), values)
    wanted = outcome(soft_histogram, values, labels=labels, num_regions=4)
    torch.testing.assert_close(mapped, wanted)
    torch.testing.assert_close(over_columns, wanted)
    shared = torch.vmap(by_one, in_dims=(0, None))(values, labels[0])
    torch.testing.assert_close(shared[1], by_one(values[1], labels[0]))


def test_vmap_of_nothing_is_nothing():
    assert torch.vmap(soft_histogram)(torch.rand(0, 1, 3, 4, 4)).shape == (0, 1, 1, 3, 256)


def test_functional_gradients_are_the_usual_ones():
    values, labels = picture(3, 2, 5, 7), region_map(3, 5, 7)

    def energy(x, y):
        return by_one(x, y).square().sum()

    leaf = values.clone().requires_grad_()
    wanted = torch.autograd.grad(soft_histogram(leaf, labels=labels, num_regions=4).square().sum(), leaf)[0]
    for b in range(3):
        torch.testing.assert_close(torch.func.grad(energy)(values[b], labels[b]), wanted[b])
    torch.testing.assert_close(torch.vmap(torch.func.grad(energy))(values, labels), wanted)
    jacobian = torch.func.jacrev(lambda x: by_one(x, labels[0]))(values[0])
    counts = by_one(values[0], labels[0])
    torch.testing.assert_close(torch.einsum("rcn,rcndhw->dhw", 2 * counts, jacobian), wanted[0])


def test_the_operators_keep_torchs_rules():
    student, teacher = picture(2, 3, 5, 7), picture(2, 3, 5, 7, seed=1)
    labels, masks = region_map(2, 5, 7), regions(2, 5, 7)
    fast = checks.choose_backend("auto", student.device, False)
    for *where, count, engine in (
        (None, None, 1, "torch"),
        (labels, None, 4, fast),
        (None, masks, 4, fast),
        (None, masks.float(), 4, fast),
    ):
        options = (count, 16, 0.0, 1.0, 1 / 16, engine, True, True)
        torch.library.opcheck(torch.ops.skt_components.soft_histogram, (student, teacher, *where, *options))
        upstream = torch.rand(2, count, 3, 16, dtype=torch.float64)
        backward = torch.ops.skt_components.soft_histogram_backward
        torch.library.opcheck(backward, (upstream, student, *where, *options))


# backends


def test_auto_is_the_fastest_on_the_cpu_and_triton_is_rejected(cpu_engine):
    values = picture(1, 2, 5, 7)
    assert torch.equal(soft_histogram(values), soft_histogram(values, backend=cpu_engine))
    with pytest.raises(
        ValueError, match=r'backend="triton" needs pictures on a CUDA device, got cpu; use backend="auto"'
    ):
        soft_histogram(values, backend="triton")


@pytest.mark.parametrize(
    ("device", "double", "installed", "best", "refused"),
    [
        ("cuda", False, True, "triton", {"numba": "needs pictures on the CPU, got cuda"}),
        ("cuda:1", False, True, "triton", {"numba": "needs pictures on the CPU, got cuda:1"}),
        ("cuda", True, True, "torch", {"triton": "computes in float32, got float64 pictures"}),
        ("cuda", False, False, "torch", {"triton": "needs the package triton, which is not installed; use"}),
        ("cpu", True, True, "numba", {"triton": "needs pictures on a CUDA device, got cpu"}),
        (
            "cpu",
            False,
            False,
            "torch",
            {"numba": r"which is not installed: pip install 'skt-components\[cpu\]'"},
        ),
        ("mps", False, True, "torch", {"triton": "CUDA device, got mps", "numba": "the CPU, got mps"}),
    ],
)
def test_auto_takes_the_fastest_it_can(monkeypatch, device, double, installed, best, refused):
    for name in ("numba", "triton"):
        monkeypatch.setitem(checks._INSTALLED, name, installed)
    arguments = (torch.device(device), double)
    assert [checks.choose_backend(name, *arguments) for name in ("auto", best)] == [best, best]
    assert checks.choose_backend("torch", *arguments) == "torch"
    for name, problem in refused.items():
        with pytest.raises(ValueError, match=f'backend="{name}" .*{problem}'):
            checks.choose_backend(name, *arguments)


BROKEN = [  # all seen in public reports: another NumPy, a missing library, a damaged cache
    ImportError("Numba needs NumPy 2.1 or less"),
    SystemError("initialization of _internal failed"),
    AttributeError("module 'numpy' has no attribute 'long'"),
    OSError("libllvmlite.so: cannot open shared object file"),
    pickle.UnpicklingError("pickle data was truncated"),
    EOFError("Ran out of input"),
]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["loading", "running"])
def test_a_broken_numba_costs_speed_and_one_warning(monkeypatch, error, where):
    pytest.importorskip("numba")
    wanted = outcome(soft_histogram, picture(1, 2, 5, 7), backend="torch")
    monkeypatch.setitem(checks._INSTALLED, "numba", True)
    monkeypatch.setattr(engines, "_broken", set())

    def fail(*_):
        raise error

    if where == "loading":
        monkeypatch.setattr(engines.importlib, "import_module", fail)
    else:
        monkeypatch.setattr("skt_components.histogram.numba_engine.histogram_difference", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [outcome(soft_histogram, picture(1, 2, 5, 7)) for _ in range(2)]
    (warning,) = caught
    assert warning.filename == __file__
    message = f"histograms are computed by torch, several times slower: numba does not work: {type(error).__name__}: "
    assert str(warning.message).startswith(message + str(error))
    assert ("delete the folder" in str(warning.message)) == (where == "running")
    assert all(torch.equal(a, b) for a, b in zip(found[0] + found[1], wanted * 2, strict=True))
    with pytest.raises(RuntimeError, match=rf'backend="numba": numba does not work: {type(error).__name__}'):
        soft_histogram(picture(1, 2, 5, 7), backend="numba")


def test_running_out_of_memory_is_no_broken_engine(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setitem(checks._INSTALLED, "numba", True)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("skt_components.histogram.numba_engine.histogram_difference", fail)
    with pytest.raises(MemoryError):
        soft_histogram(picture(1, 2, 5, 7))
    assert "numba" not in engines._broken


FIRST_CALL = """
import os
import sys
import warnings
import torch
import skt_components as skt

student, teacher = torch.rand(1, 3, 64, 64).requires_grad_(), torch.rand(1, 3, 64, 64)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    skt.histogram_loss(student, teacher).backward()
    skt.histogram_loss(student, teacher).backward()
assert "torch._dynamo" not in sys.modules  # its import takes a second
assert student.grad.abs().max() > 0
print(*(warning.message for warning in caught), sep="\\n")
"""


def run_first_call(**environment: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    run = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.slow
def test_damaged_caches_and_switched_off_compilers_are_named(tmp_path):
    pytest.importorskip("numba")
    off = run_first_call(NUMBA_DISABLE_JIT="1")
    assert off.count("computed by torch") == 1
    assert "NUMBA_DISABLE_JIT is set" in off
    assert run_first_call(NUMBA_CACHE_DIR=str(tmp_path)) == ""
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = run_first_call(NUMBA_CACHE_DIR=str(tmp_path))
    assert damaged.count("computed by torch") == 1
    assert f"delete the folder {tmp_path}" in damaged


def test_compiled_loops_need_no_folder_for_their_cache(monkeypatch):
    numba = pytest.importorskip("numba")
    from skt_components.histogram import numba_engine

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(**options)

    compile_it = numba.njit
    with monkeypatch.context() as patch:  # numba itself compiles by it later
        patch.setattr(numba, "njit", njit)
        compiled = numba_engine._compile(lambda x: x + 1)
    assert compiled(1) == 2


@both_engines
@both_paths
def test_threads_change_nothing(monkeypatch, cpu_engine, bandwidth):
    if cpu_engine == "numba":
        monkeypatch.setattr("skt_components.histogram.numba_engine._THREAD", 1000)
    values, labels, before = picture(3, 3, 31, 43), region_map(3, 31, 43), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        options = {"labels": labels, "num_regions": 4, "bandwidth": bandwidth}
        found.append(outcome(soft_histogram, values, **options))
        with torch.inference_mode():
            assert torch.equal(soft_histogram(values, **options), found[0][0])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@both_paths
def test_small_pictures_are_counted_together_by_numba_with_the_same_result(monkeypatch, bandwidth):
    pytest.importorskip("numba")
    values, labels = picture(37, 2, 5, 7), region_map(37, 5, 7)
    values[3, 0, 1, 2] = math.nan
    found = []
    for largest in (1 << 16, 5000, 0):  # all, a few, one at a time
        monkeypatch.setattr("skt_components.histogram.numba_engine._TABLE", largest)
        options = {"bandwidth": bandwidth, "backend": "numba"}
        counts = (
            outcome(soft_histogram, values, **options),
            outcome(soft_histogram, values, labels=labels, num_regions=4, **options),
        )
        found.append([*counts[0], *counts[1]])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@both_engines
@pytest.mark.parametrize("inverse", [350, 275.3, 257, 150, 80, 40, 20])
def test_the_documented_bound_of_the_errors_holds_at_awkward_bandwidths(inverse):
    compare(picture(1, 2, 40, 40, dtype=torch.float64), None, (1e-7, 2e-7), bandwidth=1 / inverse)


# memory


PEAK_MEMORY = """
import sys
import torch
from skt_components.losses.histogram import semantic_histogram_loss

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

def measure(height, width, regions, bandwidth, engine):
    student, teacher = (torch.rand(1, 3, height, width) for _ in range(2))
    student.requires_grad_()
    y, x = torch.arange(height)[:, None], torch.arange(width)
    labels = (y * 8 // height * 8 + x * 8 // width)[None] % 64
    diamonds = [(y - k * height // 9).abs() + (x - k * width // 9).abs() < height // 2 for k in range(8)]
    masks = torch.stack(diamonds)[None]
    where = {"labels": {"labels": labels, "num_regions": 64}, "masks": {"masks": masks}}[regions]
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    options = {"normalization": "area", "bandwidth": bandwidth, "backend": engine}  # the areas are counted too
    semantic_histogram_loss(student, teacher, **where, **options).backward()
    return peak() - before - 3 * height * width * 4 / 2**20

engines = sys.argv[1:]
cases = [(720, 1280, "labels", bandwidth, engine) for engine in engines for bandwidth in (1 / 400, 1 / 64, 0.5)]
cases.append((540, 960, "masks", 1 / 400, engines[-1]))  # masks become labels, whatever the engine
for height, width, *case in cases:
    measure(64, 64, *case)
    print(*case, measure(height, width, *case))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from /proc")
def test_memory_beyond_the_gradient_is_bounded_however_large_the_picture():
    # Freed means returned; two threads, which hold a table each.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", PEAK_MEMORY, "torch", *(["numba"] if checks._INSTALLED["numba"] else [])]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in run.stdout.splitlines()}
    assert len(found) == 3 * len(command[3:]) + 1
    assert max(found.values()) <= 8, found  # MiB; a copy of the pictures is 10.5 or 5.9, the dense form 5,000


# rejects_bad_input

X = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        (X.long(), {}, TypeError, "values must be a floating-point tensor"),
        ([0.5], {}, TypeError, "values must be a torch.Tensor"),
        (X[0], {}, ValueError, r"values must have 4 axes \(B, C, H, W\), got shape \(3, 4, 5\)"),
        (X, {"num_bins": 0}, ValueError, "num_bins must be a whole number >= 1, got 0"),
        (X, {"num_bins": 2.5}, ValueError, "num_bins must be a whole number >= 1, got 2.5"),
        (X, {"value_range": (1, 0)}, ValueError, "value_range must be finite with low < high"),
        (X, {"value_range": 1.0}, ValueError, "value_range must be a pair"),
        (X, {"bandwidth": 0.0}, ValueError, "bandwidth must be a finite number > 0"),
        (X, {"bandwidth": float("nan")}, ValueError, "bandwidth must be a finite number > 0"),
        (X, {"bandwidth": 1e-300}, ValueError, r"bandwidth must be 1e-06 to 1e\+06 bins, got 1e-300"),
        (X, {"bandwidth": 1e300}, ValueError, r"bandwidth must be 1e-06 to 1e\+06 bins, got 1e\+300"),
        (X, {"num_regions": 5}, ValueError, "num_regions goes with labels, got num_regions=5"),
        (X, {"labels": (X[:, 0] * 999).long() + 10**6}, ValueError, r"labels go up to 1000\d{3}; if there are so many"),
        (X, {"labels": (X[:, 0] * 999).long() + 2**40}, ValueError, r"labels go up to 1099511628\d{3}; if there are"),
        (X, {"labels": X[:, 0].long().to("meta")}, ValueError, "labels must be on the pictures' device cpu, got meta"),
        (X, {"masks": X.to("meta")}, ValueError, "masks must be on the pictures' device cpu, got meta"),
        (X, {"backend": "cuda"}, ValueError, r"backend must be one of \[.*'torch'.*\], got 'cuda'"),
        (X, {"masks": X[:, :2] > 0, "labels": X[:, 0].long()}, ValueError, "give masks or labels, not both"),
        (X, {"masks": (X > 0).int()}, TypeError, r"masks must be a bool or floating tensor .* got torch.int32"),
        (X, {"masks": [1]}, TypeError, r"masks must be a torch.Tensor \(B, R, H, W\), got list"),
        (X, {"masks": X[:1]}, ValueError, r"masks must be \(B, R, H, W\) with B, H, W = \(2, 4, 5\), got \(1, 3"),
        (X, {"masks": X[:, 0]}, ValueError, r"masks must be \(B, R, H, W\)"),
        (X, {"masks": X.clone().requires_grad_()}, ValueError, r"masks must not require a gradient.*masks.detach\(\)"),
        (X, {"labels": X[:, 0]}, TypeError, r"labels must be an integer tensor \(B, H, W\), got torch.float32"),
        (X, {"labels": X[:, 0] > 0}, TypeError, "labels must be an integer tensor .* got torch.bool"),
        (
            X,
            {"labels": X.long()},
            ValueError,
            r"labels must be \(B, H, W\) with B, H, W = \(2, 4, 5\), got \(2, 3, 4, 5\)",
        ),
        (X, {"labels": X[:, 0].long(), "num_regions": -1}, ValueError, "num_regions must be a whole number >= 0"),
        (X, {"labels": X[:, 0].long(), "num_regions": 1.5}, ValueError, "num_regions must be a whole number >= 0"),
    ],
)
def test_rejects(values, options, error, message):
    with pytest.raises(error, match=message):
        soft_histogram(values, **options)


# compiles


def check_compiled(backend: str) -> None:
    compiled = torch.compile(soft_histogram, fullgraph=True, backend=backend)
    labels, masks = region_map(2, 9, 13), regions(2, 9, 13)
    for options in ({}, {"labels": labels, "num_regions": 4}, {"masks": masks}, {"masks": masks.float()}):
        results = []
        for count in (soft_histogram, compiled):
            values = picture(2, 3, 9, 13).requires_grad_()
            counts = count(values, **options)
            results.append((counts, *torch.autograd.grad(counts.square().sum(), values)))
        torch.testing.assert_close(*results)


def test_compiles():
    check_compiled("aot_eager")


@pytest.mark.slow
def test_compiles_with_inductor():
    check_compiled("inductor")


def test_compiles_in_silence_where_eager_warns():
    compiled = torch.compile(soft_histogram, fullgraph=True, backend="aot_eager")
    values = picture(1, 3, 5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        counts = compiled(values, bandwidth=400)
    with pytest.warns(UserWarning, match="times the value range"):
        torch.testing.assert_close(counts, soft_histogram(values, bandwidth=400))
