"""AHDRNet: the published forward, any bracket, and what its output may and may not depend on."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from skt_components.models import AHDRNet
from skt_components.modules import DilatedResidualDenseBlock

# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(12, 10), (9, 7)])
def test_the_forward_is_that_of_the_paper_with_its_gradient(small, equal_with_gradient, dtype, size):
    # AHDRNet as published for three frames, written out layer by layer from the description.
    model = small(AHDRNet, peak=2.0).to(dtype)
    w = dict(model.named_parameters())
    bracket = torch.rand(2, 3, 6, *size, dtype=dtype, requires_grad=True)

    def conv(name: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        weight, reach = w[f"{name}.weight"], dilation * (w[f"{name}.weight"].shape[-1] // 2)
        return F.conv2d(x, weight, w[f"{name}.bias"], padding=reach, dilation=dilation)

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        dense = x
        for i in range(2):
            dense = torch.cat([dense, conv(f"{name}.dense_layers.{i}.conv", dense, 2).relu()], dim=1)
        return x + conv(f"{name}.conv_1x1", dense)

    f1, f2, f3 = (F.leaky_relu(conv("conv1", bracket[:, i]), 0.01) for i in range(3))
    a1 = conv("att12", F.leaky_relu(conv("att11", torch.cat([f1, f2], 1)), 0.01)).sigmoid()
    a3 = conv("att32", F.leaky_relu(conv("att31", torch.cat([f3, f2], 1)), 0.01)).sigmoid()
    first = block("RDB1", conv("conv2", torch.cat([f1 * a1, f2, f3 * a3], 1)))
    second = block("RDB2", first)
    third = block("RDB3", second)
    fused = conv("GFF_3x3", conv("GFF_1x1", torch.cat([first, second, third], 1))) + f2
    expected = 2.0 * conv("conv3", conv("conv_up", fused)).sigmoid()

    equal_with_gradient(model, bracket, expected)


# gradcheck


def test_gradcheck(small):
    model = small(AHDRNet, features=2, growth=2, num_layers=1, in_channels=2).double()
    bracket = torch.rand(1, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (bracket,))
    (gradient,) = torch.autograd.grad(model(bracket).sum(), bracket)
    assert gradient.abs().max() > 1e-4


# invariants


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_bracket_gives_a_picture_inside_the_range(small, data):
    frames = data.draw(st.integers(1, 11))
    reference = data.draw(st.one_of(st.none(), st.integers(0, frames - 1)))
    channels, out = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    height, width = data.draw(st.integers(1, 21)), data.draw(st.integers(1, 21))
    peak = data.draw(st.sampled_from([1.0, 16.0, 0.5]))
    model = small(AHDRNet, num_frames=frames, in_channels=channels, out_channels=out, reference=reference, peak=peak)
    assert model.reference == (frames // 2 if reference is None else reference)
    hdr = model(torch.rand(2, frames, channels, height, width))
    assert hdr.shape == (2, out, height, width)
    assert hdr.isfinite().all()
    assert hdr.min() >= 0
    assert hdr.max() <= peak


def test_the_output_lies_strictly_between_zero_and_the_peak(small):
    model = small(AHDRNet, peak=16.0)
    hdr = model(torch.rand(2, 3, 6, 24, 24))
    assert hdr.min() > 0
    assert hdr.max() < 16
    torch.testing.assert_close(
        copy_with_peak(model, 1.0)(torch.ones(1, 3, 6, 8, 8)) * 16, model(torch.ones(1, 3, 6, 8, 8))
    )


def copy_with_peak(model: AHDRNet, peak: float) -> AHDRNet:
    twin = copy.deepcopy(model)
    twin.peak = peak
    return twin


def test_moving_frames_are_interchangeable_together_with_their_branches(small):
    model, features = small(AHDRNet, num_frames=5, reference=2).double(), 6
    order = [3, 0, 2, 4, 1]  # the reference stays
    twin = copy.deepcopy(model)
    state = model.state_dict()
    for place, frame in enumerate(order):
        if frame != 2:
            for part in ("1", "2"):
                twin.get_submodule(f"att{place + 1}{part}").load_state_dict(
                    model.get_submodule(f"att{frame + 1}{part}").state_dict()
                )
    columns = state["conv2.weight"].split(features, dim=1)
    with torch.no_grad():
        twin.conv2.weight.copy_(torch.cat([columns[frame] for frame in order], dim=1))
    bracket = torch.rand(1, 5, 6, 10, 8, dtype=torch.float64)
    torch.testing.assert_close(twin(bracket[:, order]), model(bracket))
    assert not torch.allclose(model(bracket[:, order]), model(bracket))


def test_inside_a_crop_the_output_is_that_of_the_whole_picture(small):
    model = small(AHDRNet).double()  # two dilated layers per block
    radius = 1 + 2 + 1 + 3 * 2 * 2 + 1 + 2  # conv1, attention, conv2, the blocks, GFF_3x3, the tail
    bracket = torch.rand(1, 3, 6, 64, 60, dtype=torch.float64, requires_grad=True)
    whole = model(bracket)
    crop = model(bracket[..., 6:58, 4:56])
    inside = slice(radius, 52 - radius)
    torch.testing.assert_close(
        crop[..., inside, inside], whole[..., 6 + radius : 58 - radius, 4 + radius : 56 - radius]
    )
    (gradient,) = torch.autograd.grad(whole[0, :, 32, 30].sum(), bracket)
    rows = gradient.abs().sum(dim=(0, 1, 2, 4)).nonzero().flatten()
    assert (rows.min(), rows.max()) == (32 - radius, 32 + radius)


def test_the_attention_can_silence_a_frame(small):
    model = small(AHDRNet)
    with torch.no_grad():
        model.att12.weight.zero_()
        model.att12.bias.fill_(-1e4)  # sigmoid 0: the first frame is not believed
    bracket = torch.rand(1, 3, 6, 8, 8)
    other = bracket.clone()
    other[:, 0] = torch.rand(6, 8, 8)
    assert torch.equal(model(bracket), model(other))
    other[:, 2] = torch.rand(6, 8, 8)
    assert not torch.equal(model(bracket), model(other))


# fusion modules for the SPGRM


def test_taps_and_fusion_modules_fit_the_network():
    model = AHDRNet(features=12, num_layers=3, growth=5)
    assert model.fusion_taps == ("RDB1", "RDB2", "RDB3")
    fusion = model.make_fusion_module()
    assert isinstance(fusion, DilatedResidualDenseBlock)
    assert {k: v.shape for k, v in fusion.state_dict().items()} == {
        k: v.shape for k, v in model.RDB1.state_dict().items()
    }
    assert not any(p is q for p in fusion.parameters() for q in model.parameters())
    assert fusion(torch.rand(1, 12, 5, 7)).shape == (1, 12, 5, 7)


def test_convolutions_start_kaiming_normal():
    torch.manual_seed(3)
    weight = AHDRNet().RDB1.dense_layers[5].conv.weight
    assert weight.std().item() == pytest.approx((2 / (224 * 9)) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


# rejects_bad_input


@pytest.mark.parametrize(("frames", "reference"), [(3, 3), (3, -1), (1, 1)])
def test_rejects_a_reference_outside_the_bracket(frames, reference):
    with pytest.raises(ValueError, match=rf"reference must be in \[0, {frames}\), got {reference}"):
        AHDRNet(num_frames=frames, reference=reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak": 0}, r"peak must be a finite number > 0, got 0"),
        ({"num_frames": 0}, r"num_frames must be a whole number >= 1, got 0"),
        ({"in_channels": 0}, r"in_channels must be a whole number >= 1, got 0"),
        ({"scale": 2}, r"scale must be one of .*, got 2"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        AHDRNet(**options)


def test_only_convolutions_hold_parameters(small):
    names = {type(m) for m in small(AHDRNet).modules() if next(m.parameters(recurse=False), None) is not None}
    assert names == {nn.Conv2d}
