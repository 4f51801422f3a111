"""Flow warping and flow-guided deformable alignment, against loops over pixels."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from skt_components.models.alignment import DeformableAlignment, ModulatedDeformConv2d, flow_warp

KEYS = Path(__file__).parent / "keys" / "tmr.tsv"
DOUBLE = torch.float64


def pixel(picture: Tensor, y: Tensor, x: Tensor, border: bool = False) -> Tensor | float:
    """One bilinear sample of a (H, W) picture, corner by corner; outside lies 0 or the nearest pixel."""
    height, width = picture.shape
    if border:
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = math.floor(y.item()), math.floor(x.item())
    total: Tensor | float = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            total = total + picture[row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def literal_warp(x: Tensor, flow: Tensor, border: bool) -> Tensor:
    out = torch.zeros_like(x)
    for b, c, i, j in itertools.product(*map(range, x.shape)):
        out[b, c, i, j] = pixel(x[b, c], i + flow[b, 1, i, j], j + flow[b, 0, i, j], border)
    return out


def literal_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Sum over the nine taps: y + offset[2(9g + k)], x + offset[2(9g + k) + 1], times mask[9g + k]."""
    batch, channels, height, width = x.shape
    offset_groups = mask.shape[1] // 9
    out = torch.zeros(batch, len(weight), height, width, dtype=x.dtype)
    for b, o, i, j in itertools.product(*map(range, out.shape)):
        start = o // (len(weight) // groups) * (channels // groups)
        total = bias[o]
        for c, k in itertools.product(range(channels // groups), range(9)):
            tap = (start + c) // (channels // offset_groups) * 9 + k
            y = i + k // 3 - 1 + offset[b, 2 * tap, i, j]
            z = j + k % 3 - 1 + offset[b, 2 * tap + 1, i, j]
            total = total + weight[o, c, k // 3, k % 3] * mask[b, tap, i, j] * pixel(x[b, start + c], y, z)
        out[b, o, i, j] = total
    return out


def lively(features: int = 4, groups: int = 2) -> DeformableAlignment:
    """An alignment whose offsets and masks are not those of the start."""
    torch.manual_seed(1)
    align = DeformableAlignment(features, groups)
    torch.nn.init.normal_(align.conv_offset[6].weight, std=0.1)
    torch.nn.init.normal_(align.conv_offset[6].bias, std=0.1)
    return align


# flow_warp


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(4, 5), (3, 2)])
def test_the_warp_samples_where_the_flow_points_with_its_gradient(size, padding):
    x = torch.rand(2, 2, *size, dtype=DOUBLE, requires_grad=True)
    flow = (2 * torch.randn(2, 2, *size, dtype=DOUBLE)).requires_grad_()
    out, expected = flow_warp(x, flow, padding), literal_warp(x, flow, padding == "border")
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(y, (x, flow), upstream) for y in (out, expected))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


def test_along_a_side_of_one_pixel_nothing_is_sampled_between():
    x, right = torch.rand(1, 2, 1, 4), torch.tensor([1.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    torch.testing.assert_close(flow_warp(x, right, "border"), x[..., [1, 2, 3, 3]])


def test_a_whole_pixel_flow_shifts():
    x = torch.rand(1, 3, 6, 8)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 8)  # look right by 2 and up by 1
    shifted = flow_warp(x, flow)
    torch.testing.assert_close(shifted[..., 1:, :-2], x[..., :-1, 2:], atol=1e-5, rtol=1e-5)
    assert shifted[..., 0, :].abs().max() < 1e-5
    assert shifted[..., -2:].abs().max() < 1e-5
    torch.testing.assert_close(flow_warp(x, torch.zeros_like(flow)), x, atol=1e-5, rtol=1e-5)


def test_the_warp_keeps_dtype_and_takes_any_memory_layout():
    x, flow = torch.rand(2, 6, 5, 4).permute(0, 3, 1, 2), torch.randn(2, 6, 5, 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(flow_warp(x, flow), flow_warp(x.contiguous(), flow.contiguous()))
    half = flow_warp(x.bfloat16(), flow)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), flow_warp(x, flow), atol=1e-2, rtol=1e-2)


# the deformable convolution matches_reference


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_the_deformable_convolution_is_its_definition_with_its_gradient(groups, offset_groups):
    conv = ModulatedDeformConv2d(2, 2, 3, padding=1, groups=groups).double()
    x = torch.rand(2, 2, 3, 4, dtype=DOUBLE, requires_grad=True)
    offset = (2 * torch.randn(2, 18 * offset_groups, 3, 4, dtype=DOUBLE)).requires_grad_()
    mask = torch.rand(2, 9 * offset_groups, 3, 4, dtype=DOUBLE, requires_grad=True)
    out = conv(x, offset, mask)
    expected = literal_deform_conv(x, offset, mask, conv.weight, conv.bias, groups)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    wrt = (x, offset, mask, conv.weight, conv.bias)
    got, wanted = (torch.autograd.grad(y, wrt, upstream) for y in (out, expected))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


def test_without_offsets_it_is_a_convolution():
    conv = ModulatedDeformConv2d(6, 4, 3, padding=1, groups=2)
    x = torch.rand(2, 6, 7, 5)
    out = conv(x, torch.zeros(2, 36, 7, 5), torch.ones(2, 18, 7, 5))
    plain = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1, groups=2)
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)


# the alignment


def test_names_and_shapes_are_the_authors():
    lines = [line.split("\t") for line in KEYS.read_text().splitlines()]
    wanted = {name.removeprefix("dcn_alignment."): shape for name, shape in lines if name.startswith("dcn_alignment.")}
    assert {name: str(tuple(tensor.shape)) for name, tensor in DeformableAlignment().state_dict().items()} == wanted
    assert sum(p.numel() for p in DeformableAlignment().parameters()) == 278_104


def test_the_alignment_is_that_of_the_description():
    align = lively().double()
    w = align.state_dict()
    moving, reference = torch.rand(2, 1, 4, 4, 5, dtype=DOUBLE).unbind(0)
    flow = torch.randn(1, 2, 4, 5, dtype=DOUBLE)
    x = torch.cat([literal_warp(moving, flow, border=False), reference, flow], 1)
    for i in (0, 2, 4, 6):
        x = torch.conv2d(x, w[f"conv_offset.{i}.weight"], w[f"conv_offset.{i}.bias"], padding=1)
        x = torch.where(x > 0, x, 0.1 * x) if i < 6 else x
    offset = 10 * torch.tanh(x[:, :36])
    offset[:, 0::2] += flow[:, 1:]  # down
    offset[:, 1::2] += flow[:, :1]  # to the right
    mask = 1 / (1 + torch.exp(-x[:, 36:]))
    expected = literal_deform_conv(moving, offset, mask, w["deform_conv.weight"], w["deform_conv.bias"], groups=2)
    torch.testing.assert_close(align(moving, reference, flow), expected)


def test_at_first_the_flow_alone_says_where_to_look():
    align = DeformableAlignment(8, groups=8)
    moving, reference = torch.rand(2, 1, 8, 9, 10).unbind(0)
    flow = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 9, 10)
    conv, bias = align.deform_conv, align.deform_conv.bias.view(1, -1, 1, 1)
    aligned = align(moving, reference, flow) - bias
    plain = torch.conv2d(moving, conv.weight, padding=1, groups=8)  # masks start at one half
    torch.testing.assert_close(aligned[..., :-2, :-3], 0.5 * plain[..., 1:-1, 2:-1], atol=1e-5, rtol=1e-5)


def test_offsets_leave_the_flow_by_the_residue_at_most():
    align = lively(features=2, groups=1)
    with torch.no_grad():
        align.conv_offset[6].bias.fill_(50.0)  # tanh 1: every tap moves by max_residue
    align.max_residue = 3.0
    moving = torch.zeros(1, 2, 12, 12)
    moving[..., 8, 8] = 1.0
    seen = (align(moving, moving, torch.zeros(1, 2, 12, 12)) - align.deform_conv.bias.view(1, 2, 1, 1)).abs().sum(1)[0]
    assert seen.nonzero().min() >= 8 - 3 - 1
    assert seen.nonzero().max() <= 8 - 3 + 1
    assert seen.max() > 0


# gradcheck


def test_gradcheck():
    align = lively(features=2, groups=1).double()
    inputs = [torch.rand(1, c, 3, 2, dtype=DOUBLE, requires_grad=True) for c in (2, 2, 2)]
    assert torch.autograd.gradcheck(align, inputs)
    for gradient in torch.autograd.grad(align(*inputs).sum(), inputs):
        assert gradient.abs().max() > 1e-4


# layouts and precision


def test_channels_last_and_non_contiguous_features():
    align = lively(8, 4)
    moving, reference = torch.rand(2, 1, 6, 7, 8).permute(0, 1, 4, 2, 3).unbind(0)
    flow = torch.randn(1, 6, 7, 2).permute(0, 3, 1, 2)
    expected = align(moving.contiguous(), reference.contiguous(), flow.contiguous())
    torch.testing.assert_close(align(moving, reference, flow), expected, atol=1e-5, rtol=1e-4)
    fast = copy.deepcopy(align).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(moving, reference, flow), expected, atol=1e-5, rtol=1e-4)


def test_bf16_autocast_and_bf16_features():
    align = lively(8, 4)
    moving, reference, flow = torch.rand(1, 8, 12, 12), torch.rand(1, 8, 12, 12), torch.randn(1, 2, 12, 12)
    expected = align(moving, reference, flow)
    with torch.autocast("cpu", torch.bfloat16):
        out = align(moving.bfloat16(), reference.bfloat16(), flow)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in align.parameters())
    # Offsets of up to 10 pixels in 8 bits move the taps by hundredths of a pixel.
    assert (out.float() - expected).abs().mean() < 1e-2 * expected.abs().max()
    whole = copy.deepcopy(align).bfloat16()(moving.bfloat16(), reference.bfloat16(), flow)
    assert (whole.float() - expected).abs().mean() < 1e-2 * expected.abs().max()


# rejects_bad_input


@pytest.mark.parametrize(("features", "groups"), [(12, 8), (4, 0)])
def test_rejects_groups_that_do_not_divide_the_features(features, groups):
    with pytest.raises(ValueError, match=rf"features must be a multiple of groups={groups}, got {features}"):
        DeformableAlignment(features, groups)


def test_rejects_a_bad_residue():
    with pytest.raises(ValueError, match=r"max_residue must be a finite number > 0, got -1"):
        DeformableAlignment(8, max_residue=-1)


def test_without_torchvision_it_can_be_made_and_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    align = DeformableAlignment(8)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[tmrnet\]"'):
        align(torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4), torch.zeros(1, 2, 4, 4))


# compiles


def test_compiles():
    align = lively(8, 4)
    inputs = torch.rand(1, 8, 6, 7), torch.rand(1, 8, 6, 7), torch.randn(1, 2, 6, 7)
    compiled = torch.compile(align, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), align(*inputs), atol=1e-5, rtol=1e-4)
    got, wanted = (torch.autograd.grad(f(*inputs).sum(), [*align.parameters()]) for f in (compiled, align))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
