"""The feature pyramid: sizes, widths, and that coarse knowledge reaches the finest level."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from skt_components.modules import FeaturePyramid

CHANNELS = (8, 6, 4, 3)


def maps(height: int, width: int, channels=CHANNELS, dtype=torch.float32, batch: int = 2) -> list[torch.Tensor]:
    """Features of a picture at strides 16, 8, 4, 2."""
    strides = [2 ** (len(channels) - i) for i in range(len(channels))]
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), dtype=dtype)
        for c, s in zip(channels, strides, strict=True)
    ]


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(32, 48), (37, 51), (5, 3)])
def test_it_is_lateral_plus_upsampled_then_smoothed(dtype, size):
    pyramid = FeaturePyramid(CHANNELS, 5).to(dtype)
    features = [f.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for f in maps(*size, dtype=dtype)]
    merged, expected = None, []
    for i, feature in enumerate(features):
        lateral = F.conv2d(feature, pyramid.lateral[i].weight, pyramid.lateral[i].bias)
        merged = lateral if merged is None else lateral + F.interpolate(merged, lateral.shape[-2:], mode="nearest")
        smooth = pyramid.smooth[str(i)]
        expected.append(F.conv2d(merged, smooth.weight, smooth.bias, padding=1))
    out = pyramid(features)
    upstream = [torch.randn_like(o) for o in out]
    for ours, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    got = torch.autograd.grad(out, features, upstream)
    wanted = torch.autograd.grad(expected, features, upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


# gradcheck


def test_gradcheck():
    pyramid = FeaturePyramid((2, 3), 2).double()
    features = [torch.randn(1, 2, 2, 1, dtype=torch.float64), torch.randn(1, 3, 3, 2, dtype=torch.float64)]
    features = [f.requires_grad_() for f in features]
    assert torch.autograd.gradcheck(lambda *f: tuple(pyramid(f)), features)


# invariants


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.integers(1, 9))
def test_every_level_keeps_its_size_and_gets_the_width(height, width, count, out_channels):
    features = maps(height, width, CHANNELS[:count])
    out = FeaturePyramid(CHANNELS[:count], out_channels)(features)
    assert [tuple(o.shape) for o in out] == [(2, out_channels, *f.shape[-2:]) for f in features]


@pytest.mark.parametrize("changed", range(4))
def test_knowledge_flows_from_coarse_to_fine_and_not_back(changed):
    pyramid = FeaturePyramid(CHANNELS, 5)
    features = maps(32, 48)
    before = pyramid(features)
    features[changed] = features[changed] + 1
    after = pyramid(features)
    for level in range(4):
        assert torch.equal(before[level], after[level]) == (level < changed)


def test_the_coarsest_map_reaches_the_finest_level_at_its_own_place():
    pyramid = FeaturePyramid(CHANNELS, 5)
    features = maps(64, 64)
    before = pyramid(features)[-1]
    features[0] = features[0].clone()
    features[0][:, :, 3, 0] += 5  # one element of the stride 16 map: rows 24-31, columns 0-7 at stride 2
    change = (pyramid(features)[-1] - before).abs().amax(dim=(0, 1))
    assert change[24:32, 0:8].min() > 0
    change[23:33, 0:9] = 0  # with the border of the 3x3 convolution
    assert change.max() < 1e-5


# levels


def test_chosen_levels_are_those_of_the_whole_pyramid():
    whole = FeaturePyramid(CHANNELS, 5)
    part = FeaturePyramid(CHANNELS, 5, levels=(2, -3))
    assert part.levels == (2, 1)
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    features = maps(32, 48)
    everything, chosen = whole(features), part(features)
    assert len(chosen) == 2
    assert torch.equal(chosen[0], everything[2])
    assert torch.equal(chosen[1], everything[1])


@pytest.mark.parametrize("levels", [None, (-1,), (0,), (1, 2), (3, 0)])
def test_every_parameter_takes_part(levels):
    pyramid = FeaturePyramid(CHANNELS, 5, levels=levels)
    sum(o.square().sum() for o in pyramid(maps(32, 32))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pyramid.parameters())


# rejects_bad_input


@pytest.mark.parametrize(
    ("channels", "out", "error", "message"),
    [
        ((), 4, ValueError, "in_channels must have the width of one level at least"),
        ((0, 4), 4, ValueError, "in_channels must be a whole number >= 1, got 0"),
        ((4, -1), 4, ValueError, "in_channels must be a whole number >= 1, got -1"),
        ((4, "8"), 4, ValueError, "in_channels must be a whole number >= 1, got '8'"),
        ((4, 4), 0, ValueError, "out_channels must be a whole number >= 1, got 0"),
        ((4, 4), 4.0, ValueError, r"out_channels must be a whole number >= 1, got 4\.0"),
        (8, 4, TypeError, "in_channels must be a sequence of widths, coarse to fine, got 8"),
        ("84", 4, TypeError, "in_channels must be a sequence of widths, coarse to fine, got '84'"),
    ],
)
def test_rejects_bad_widths(channels, out, error, message):
    with pytest.raises(error, match=f"^{message}"):
        FeaturePyramid(channels, out)


@pytest.mark.parametrize("levels", [(), (2,), (-3,), (0, 5)])
def test_rejects_levels_that_do_not_exist(levels):
    with pytest.raises(ValueError, match=r"levels must be indices into 2 pyramid levels, got \["):
        FeaturePyramid((4, 4), 4, levels=levels)


def test_rejects_other_features_than_announced():
    pyramid = FeaturePyramid(CHANNELS, 5)
    wanted = r"features must have \(8, 6, 4, 3\) channels, coarse to fine, got "
    with pytest.raises(ValueError, match=wanted + r"\(3, 4, 6, 8\)"):
        pyramid(maps(32, 32)[::-1])
    with pytest.raises(ValueError, match=wanted + r"\(8, 6, 4\)"):
        pyramid(maps(32, 32)[:3])


# compiles


def test_compiles():
    pyramid = FeaturePyramid(CHANNELS, 5)
    features = maps(37, 51)
    compiled = torch.compile(pyramid, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(features), pyramid(features), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_copy_is_independent():
    pyramid = FeaturePyramid(CHANNELS, 5)
    other = copy.deepcopy(pyramid)
    with torch.no_grad():
        other.lateral[0].weight.add_(1)
    assert not torch.equal(pyramid.lateral[0].weight, other.lateral[0].weight)
