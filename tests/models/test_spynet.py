"""SPyNet: the published layout, what a flow means, and the flow of any size."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.models.spynet import SPyNet

KEYS = Path(__file__).parent / "keys" / "tmr.tsv"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lively(dtype: torch.dtype = torch.float32) -> SPyNet:
    """A network whose flows are several pixels, as trained ones are."""
    torch.manual_seed(0)
    net = SPyNet()
    with torch.no_grad():
        for level in net.basic_module:
            level.basic_module[8].weight.mul_(30)
    return net.to(dtype)


def silent() -> SPyNet:
    net = SPyNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return net


def mmediting(net: SPyNet) -> dict[str, Tensor]:
    """The state dict as MMEditing names it."""
    state = {}
    for name, tensor in net.state_dict().items():
        parts = name.split(".")
        if len(parts) > 1:
            parts[3] = f"{int(parts[3]) // 2}.conv"
        state[".".join(parts)] = tensor.clone()
    return state


# the authors' layout


def test_names_and_shapes_are_the_authors():
    lines = [line.split("\t") for line in KEYS.read_text().splitlines()]
    wanted = {name.removeprefix("spynet."): shape for name, shape in lines if name.startswith("spynet.")}
    assert {name: str(tuple(tensor.shape)) for name, tensor in SPyNet().state_dict().items()} == wanted
    assert sum(p.numel() for p in SPyNet().parameters()) == 1_440_300


# matches_reference


def literal_sample(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear, the nearest pixel outside: four corners gathered by hand."""
    height, width = picture.shape[-2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor().long().clamp(max=width - 1), y.floor().long().clamp(max=height - 1)
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    u, v = (x - left)[:, None], (y - top)[:, None]
    batch = torch.arange(len(picture))[:, None, None]

    def at(row: Tensor, column: Tensor) -> Tensor:
        return picture[batch, :, row, column].permute(0, 3, 1, 2)

    upper = at(top, left) * (1 - u) + at(top, right) * u
    return upper * (1 - v) + (at(bottom, left) * (1 - u) + at(bottom, right) * u) * v


def literal_flow(w: dict[str, Tensor], reference: Tensor, moving: Tensor) -> Tensor:
    """SPyNet from its description: six levels, each corrects the doubled flow of the one before."""
    height, width = reference.shape[-2:]
    large = (math.ceil(height / 32) * 32, math.ceil(width / 32) * 32)
    mean, std = (torch.tensor(v, dtype=torch.float32).to(reference.dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    first, second = (
        (F.interpolate(x, size=large, mode="bilinear", align_corners=False) - mean) / std for x in (reference, moving)
    )
    flow = torch.zeros(len(reference), 2, large[0] // 32, large[1] // 32, dtype=reference.dtype)
    for level in range(6):
        shrink = 2 ** (5 - level)
        a, b = (F.avg_pool2d(x, shrink) if shrink > 1 else x for x in (first, second))
        if level:
            flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in a.shape[-2:]), indexing="ij")
        x = torch.cat([a, literal_sample(b, columns + flow[:, 0], rows + flow[:, 1]), flow], 1)
        for i in range(5):
            name = f"basic_module.{level}.basic_module.{2 * i}"
            x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=3)
            x = x.relu() if i < 4 else x
        flow = flow + x
    flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
    return flow * torch.tensor([width / large[1], height / large[0]], dtype=flow.dtype).view(1, 2, 1, 1)


@pytest.mark.parametrize("size", [(32, 64), (33, 20), (7, 50)])
def test_the_flow_is_that_of_the_description_with_its_gradient(size):
    net = lively(torch.float64)
    w = dict(net.named_parameters())
    reference, moving = (torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    flow, expected = net(reference, moving), literal_flow(w, reference, moving)
    assert expected.abs().max() > 1  # whole pixels: the warping matters
    torch.testing.assert_close(flow, expected, atol=1e-9, rtol=1e-9)
    upstream = torch.randn_like(flow)
    wrt = [reference, moving, w["basic_module.0.basic_module.0.weight"], w["basic_module.5.basic_module.8.bias"]]
    got, wanted = torch.autograd.grad(flow, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-7 * theirs.abs().max().item(), rtol=1e-6)


def test_float32_is_close_to_float64():
    net = lively()
    reference, moving = torch.rand(2, 2, 3, 40, 36).unbind(0)
    expected = net.double()(reference.double(), moving.double())
    torch.testing.assert_close(net.float()(reference, moving).double(), expected, atol=1e-3, rtol=1e-3)


# gradcheck


def test_gradcheck():
    net = lively(torch.float64)
    reference, moving = (torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(net, (reference, moving), fast_mode=True)
    (gradient,) = torch.autograd.grad(net(reference, moving).sum(), moving)
    assert gradient.abs().max() > 1e-4


# invariants


@pytest.mark.parametrize("size", [(32, 64), (48, 40), (1, 1), (31, 97)])
def test_a_constant_correction_is_scaled_to_the_picture(size):
    net = silent()
    with torch.no_grad():
        net.basic_module[5].basic_module[8].bias.copy_(torch.tensor([3.0, -2.0]))
    flow = net(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    height, width = size
    x, y = 3 * width / (math.ceil(width / 32) * 32), -2 * height / (math.ceil(height / 32) * 32)
    torch.testing.assert_close(flow, torch.tensor([x, y]).view(1, 2, 1, 1).expand_as(flow))


@pytest.mark.parametrize("level", range(6))
def test_each_level_doubles_the_flow_of_the_one_before(level):
    net = silent()
    with torch.no_grad():
        net.basic_module[level].basic_module[8].bias.copy_(torch.tensor([0.5, 0.25]))
    flow = net(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    wanted = torch.tensor([0.5, 0.25]) * 2 ** (5 - level)
    torch.testing.assert_close(flow, wanted.view(1, 2, 1, 1).expand_as(flow))


def test_batch_mates_do_not_see_each_other():
    net = lively()
    reference, moving = torch.rand(2, 3, 3, 20, 24).unbind(0)
    alone = torch.cat([net(a[None], b[None]) for a, b in zip(reference, moving, strict=True)])
    torch.testing.assert_close(net(reference, moving), alone, atol=1e-4, rtol=1e-4)


# layouts and precision


def test_channels_last_and_non_contiguous_pictures():
    net = lively()
    reference, moving = torch.rand(2, 1, 20, 24, 3).permute(0, 1, 4, 2, 3).unbind(0)
    assert not reference.is_contiguous()
    expected = net(reference.contiguous(), moving.contiguous())
    torch.testing.assert_close(net(reference, moving), expected, atol=1e-4, rtol=1e-4)
    fast = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(reference, moving), expected, atol=1e-4, rtol=1e-4)


def test_the_flow_stays_float32_under_autocast():
    net = lively()
    reference, moving = torch.rand(2, 1, 3, 32, 32).unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        flow = net(reference, moving)
    assert flow.dtype == torch.float32
    expected = net(reference, moving)
    assert (flow - expected).abs().max() < 1e-2 * expected.abs().max()


# the published weights


@pytest.mark.parametrize("without", [(), ("mean", "std")])
def test_loads_what_mmediting_published(tmp_path, without):
    trained, net = lively(), SPyNet()
    state = {name: tensor for name, tensor in mmediting(trained).items() if name not in without}
    assert "basic_module.3.basic_module.4.conv.bias" in state
    torch.save({"state_dict": state}, tmp_path / "spynet.pth")
    net.load_official(tmp_path / "spynet.pth")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)


def test_loads_a_state_dict_of_its_own():
    trained, net = lively(), SPyNet()
    net.load_official({f"module.{name}": tensor for name, tensor in trained.state_dict().items()})
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_rejects_other_weights_and_lists_them():
    state = mmediting(SPyNet())
    del state["basic_module.0.basic_module.0.conv.bias"]
    state["basic_module.6.basic_module.0.conv.bias"] = torch.zeros(32)
    state["basic_module.1.basic_module.0.conv.bias"] = torch.zeros(31)
    net = SPyNet()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="does not fit the network") as error:
        net.load_official(state)
    for part in (
        "1 missing: basic_module.0.basic_module.0.bias",
        "1 unexpected: basic_module.6.basic_module.0.bias",
        "1 of another shape: basic_module.1.basic_module.0.bias (31,), wanted (32,)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        SPyNet().load_official(tmp_path / "none.pth")


# rejects_bad_input


def test_rejects_bad_input():
    picture = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"reference must have 3 channels .* got shape \(1, 4, 8, 8\)"):
        SPyNet()(torch.rand(1, 4, 8, 8), picture)
    with pytest.raises(ValueError, match=r"moving must have 4 axes"):
        SPyNet()(picture, picture[0])
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        SPyNet()(picture, torch.rand(1, 3, 8, 9))
    with pytest.raises(TypeError, match="floating-point"):
        SPyNet()(picture.to(torch.uint8), picture)


# compiles


@pytest.mark.slow
def test_compiles():
    net = lively()
    reference, moving = torch.rand(2, 1, 3, 20, 24).unbind(0)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(reference, moving), net(reference, moving), atol=1e-4, rtol=1e-4)
