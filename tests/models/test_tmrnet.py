"""TMRNet and TMRNet+: the authors' layout and arithmetic, our sRGB form, and what the output depends on."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.models.export import export_program
from skt_components.models.tmrnet import ResidualTrunk, TMRNet, TMRNetPlus
from skt_components.modules.taps import FeatureTaps

KEYS = Path(__file__).parent / "keys"
DOUBLE = torch.float64
SMALL = {"features": 8, "num_blocks": (1, 2, 1, 1)}


def bracket_of(net: TMRNet, *size: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some RAW values are above 1, and some below 0 as noise is."""
    bracket = torch.rand(batch, net.num_frames, net.in_channels, *size, dtype=dtype)
    return bracket * 1.5 - 0.1 if net.in_channels == 4 else bracket


def official_keys(file: str) -> dict[str, str]:
    return dict(line.split("\t") for line in (KEYS / file).read_text().splitlines())


def close(ours: Tensor, theirs: Tensor, relative: float) -> None:
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


# the authors' layout


@pytest.mark.parametrize(
    ("kind", "file", "count", "keys"),
    [(TMRNet, "tmr.tsv", 13_285_704, 679), (TMRNetPlus, "tmrp.tsv", 13_581_192, 684)],
)
def test_names_shapes_and_parameters_are_the_authors(kind, file, count, keys):
    with torch.device("meta"):
        net = kind()
    assert {name: str(tuple(tensor.shape)) for name, tensor in net.state_dict().items()} == official_keys(file)
    assert len(net.to_official()) == keys
    assert sum(p.numel() for p in net.parameters()) == count


def test_the_full_size_network_takes_the_authors_state_dict():
    net = TMRNet()
    state = {f"module.{name}": tensor + 1 for name, tensor in net.state_dict().items()}
    loaded = TMRNet.from_official({"state_dict": state})
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[f"module.{name}"])


def test_what_starts_at_zero_and_what_starts_small():
    net = TMRNetPlus(**SMALL)
    for zero in (net.learn_para, net.up_para, net.dcn_alignment.conv_offset[6].weight):
        assert zero.abs().max() == 0
    block = TMRNet(num_blocks=(1, 0, 0, 0)).feat_extract.main[2][0]
    assert block.conv1.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / (64 * 9)), rel=0.02)
    assert block.conv2.bias.abs().max() == 0


# matches_reference


class Literal:
    """TMRNet written out from its description; ``w`` are its weights by name, ``blocks`` as the network has them."""

    def __init__(self, net: TMRNet) -> None:
        self.w = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        self.blocks = SMALL["num_blocks"]
        self.raw, self.plus = net.in_channels == 4, isinstance(net, TMRNetPlus)
        self.squash = net.activation == "sigmoid"

    def conv(self, name: str, x: Tensor, groups: int = 1) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def trunk(self, name: str, x: Tensor, count: int) -> Tensor:
        x = F.leaky_relu(self.conv(f"{name}.main.0", x), 0.1)
        for i in range(count):
            inner = F.relu(self.conv(f"{name}.main.2.{i}.conv1", x))
            x = x + self.conv(f"{name}.main.2.{i}.conv2", inner)
        return x

    def warp(self, x: Tensor, flow: Tensor, padding: str) -> Tensor:
        height, width = x.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        where = torch.stack([columns, rows], dim=2).to(x) + flow.permute(0, 2, 3, 1)
        across = 2.0 * where[..., 0] / max(width - 1, 1) - 1.0
        down = 2.0 * where[..., 1] / max(height - 1, 1) - 1.0
        grid = torch.stack([across, down], dim=3)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=True)

    def flow(self, reference: Tensor, moving: Tensor) -> Tensor:
        height, width = reference.shape[-2:]
        large = (32 * math.ceil(height / 32), 32 * math.ceil(width / 32))
        pyramids = []
        for picture in (reference, moving):
            picture = F.interpolate(picture, size=large, mode="bilinear", align_corners=False)
            levels = [(picture - self.w["spynet.mean"]) / self.w["spynet.std"]]
            for _ in range(5):
                levels.insert(0, F.avg_pool2d(levels[0], 2, 2, count_include_pad=False))
            pyramids.append(levels)
        flow = reference.new_zeros(len(reference), 2, large[0] // 32, large[1] // 32)
        for level, (a, b) in enumerate(zip(*pyramids, strict=True)):
            if level:
                flow = 2.0 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([a, self.warp(b, flow, "border"), flow], 1)
            for layer in (0, 2, 4, 6, 8):
                x = self.conv(f"spynet.basic_module.{level}.basic_module.{layer}", x)
                x = F.relu(x) if layer < 8 else x
            flow = flow + x
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return torch.stack([flow[:, 0] * width / large[1], flow[:, 1] * height / large[0]], 1)

    def deform_conv(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Eight offset groups and eight groups; each tap gathers the four pixels around its place."""
        weight, (batch, channels, height, width) = self.w["dcn_alignment.deform_conv.weight"], x.shape
        size, out = channels // 8, []
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        index = torch.arange(batch)[:, None, None]
        for g in range(8):
            part, total = x[:, g * size : (g + 1) * size], 0.0
            for k in range(9):
                y = rows + k // 3 - 1 + offset[:, 2 * (9 * g + k)]
                z = columns + k % 3 - 1 + offset[:, 2 * (9 * g + k) + 1]
                seen = 0.0
                for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    row, column = y.detach().floor().long() + i, z.detach().floor().long() + j
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    found = part[index, :, row.clamp(0, height - 1), column.clamp(0, width - 1)].permute(0, 3, 1, 2)
                    seen = seen + found * (inside * (1 - (y - row).abs()) * (1 - (z - column).abs()))[:, None]
                kernel = weight[g * size : (g + 1) * size, :, k // 3, k % 3]
                total = total + torch.einsum("oc,bchw->bohw", kernel, seen * mask[:, 9 * g + k, None])
            out.append(total)
        return torch.cat(out, 1) + self.w["dcn_alignment.deform_conv.bias"].view(1, -1, 1, 1)

    def align(self, moving: Tensor, reference: Tensor, flow: Tensor) -> Tensor:
        x = torch.cat([self.warp(moving, flow, "zeros"), reference, flow], 1)
        for layer in (0, 2, 4):
            x = F.leaky_relu(self.conv(f"dcn_alignment.conv_offset.{layer}", x), 0.1)
        first, second, mask = self.conv("dcn_alignment.conv_offset.6", x).split(72, 1)
        offset = 10 * torch.tanh(torch.cat([first, second], 1))
        down_right = torch.stack([flow[:, 1], flow[:, 0]], 1)
        return self.deform_conv(moving, offset + torch.cat([down_right] * 72, 1), torch.sigmoid(mask))

    def encode(self, frame: Tensor) -> Tensor:
        if not self.raw:
            return frame
        channels = []
        for c in range(4):
            channels += [frame[:, c], frame[:, c].clamp(min=0) ** (1 / 2.2)]
        return torch.stack(channels, 1)

    def picture(self, frame: Tensor) -> Tensor:
        rgb = frame[:, :3]
        if self.raw:
            rgb = torch.stack([frame[:, 0], (frame[:, 1] + frame[:, 2]) / 2, frame[:, 3]], 1)
        return rgb.clamp(0, 1) ** (1 / 2.2)

    def __call__(self, frames: list[Tensor]) -> Tensor:
        """The reference comes first in ``frames``."""
        features = [self.trunk("feat_extract", self.encode(frame), self.blocks[0]) for frame in frames]
        base, state = features[0], torch.zeros_like(features[0])
        for t, feature in enumerate(features):
            current = feature
            if t:
                current = self.align(feature, base, self.flow(self.picture(frames[0]), self.picture(frames[t])))
            state = state + self.trunk("backbone.backward", torch.cat([base, current, state], 1), self.blocks[1])
            own = self.trunk(f"backbone.backward_rec_{t + 1}", torch.cat([base, current, state], 1), self.blocks[2])
            state = state + own * self.w["learn_para"][:, t]
        body = self.trunk("reconstruction", torch.cat([base, state], 1), self.blocks[3])
        skip = self.conv("skipup1.upsample_conv", frames[0] if self.raw else frames[0][:, :3])
        body = self.enlarge(body, skip) if self.plus else body + skip
        out = self.conv("conv_last", F.leaky_relu(self.conv("conv_hr", body), 0.1))
        return torch.sigmoid(out) if self.squash else out

    def enlarge(self, body: Tensor, skip: Tensor) -> Tensor:
        size = [4 * side for side in body.shape[-2:]]
        up = [F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in (body, skip)]
        shuffled = body
        for name in ("upsample1", "upsample2"):
            shuffled = F.leaky_relu(F.pixel_shuffle(self.conv(f"{name}.upsample_conv", shuffled), 2), 0.1)
        return up[0] + up[1] + self.w["up_para"] * shuffled


@pytest.mark.parametrize(
    ("kind", "options", "size"),
    [
        (TMRNet, {"num_frames": 3}, (33, 7)),
        (TMRNetPlus, {"num_frames": 2}, (9, 11)),
        (TMRNet, {"num_frames": 3, "in_channels": 6, "out_channels": 3}, (12, 30)),
    ],
)
def test_the_forward_is_that_of_the_description_with_its_gradient(small, kind, options, size):
    net = small(kind, **options).double()
    bracket = bracket_of(net, *size, batch=2, dtype=DOUBLE).requires_grad_()
    frames = list(bracket.unbind(1))
    frames.insert(0, frames.pop(net.reference))
    out, expected = net(bracket), Literal(net)(frames)
    close(out, expected, 1e-9)
    upstream = torch.randn_like(out)
    wrt = [*net.parameters()]
    got, wanted = torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.abs().max() > 0
        close(ours, theirs, 1e-6)


def test_in_float32_too(small):
    net = small(TMRNet)
    bracket = bracket_of(net, 40, 36)
    close(net(bracket), Literal(net)(list(bracket.unbind(1))), 1e-5)


def test_the_flow_matters_in_these_tests(small):
    net = small(TMRNet)
    bracket = bracket_of(net, 24, 20)
    assert net._flows(bracket).abs().max() > 1


# the authors' weights


@pytest.mark.parametrize("kind", [TMRNet, TMRNetPlus])
@pytest.mark.parametrize("form", ["bare", "wrapped", "prefixed", "file"])
def test_official_weights_go_there_and_back(small, kind, form, tmp_path):
    net = small(kind)
    state = net.to_official()
    assert state.keys() == net.state_dict().keys()
    weights: object = state
    if form == "wrapped":
        weights = {"state_dict": state}
    elif form == "prefixed":
        weights = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif form == "file":
        torch.save({"state_dict": state}, tmp_path / "TMRNet_model_400.pth")
        weights = tmp_path / "TMRNet_model_400.pth"
    loaded = kind.from_official(weights, **SMALL)
    for name, tensor in loaded.to_official().items():
        assert torch.equal(tensor, state[name])
    bracket = bracket_of(net, 8, 9)
    assert torch.equal(loaded(bracket), net(bracket))


def test_rejects_other_weights_and_lists_them(small):
    state = small(TMRNet).to_official()
    del state["learn_para"]
    state["up_para"] = torch.zeros(1, 8, 1, 1)
    state["conv_hr.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="does not fit the network") as error:
        TMRNet.from_official(state, **SMALL)
    for part in ("1 missing: learn_para", "1 unexpected: up_para", "conv_hr.bias (7,), wanted (8,)"):
        assert part in str(error.value)


def test_tmrnet_plus_starts_from_a_trained_tmrnet(small):
    net = small(TMRNet, checkpointing=True).eval()
    plus = TMRNetPlus.from_tmrnet(net, checkpointing=False)
    assert not plus.checkpointing
    assert not plus.training
    assert plus.num_frames == net.num_frames
    own = net.state_dict()
    new = {name for name in plus.state_dict() if name not in own}
    assert {name.split(".")[0] for name in new} == {"up_para", "upsample1", "upsample2"}
    for name, tensor in own.items():
        assert torch.equal(plus.state_dict()[name], tensor)
    with torch.no_grad():
        plus.conv_hr.weight.zero_()
    assert net.conv_hr.weight.abs().max() > 0  # copied, not shared
    assert TMRNetPlus.from_tmrnet(small(TMRNet).double()).conv_hr.weight.dtype == DOUBLE
    with pytest.raises(ValueError, match=r"1 of another shape: learn_para \(1, 5, 8, 1, 1\), wanted \(1, 4, 8, 1, 1\)"):
        TMRNetPlus.from_tmrnet(net, num_frames=4)


# gradcheck


def test_gradcheck(small):
    net = small(TMRNet, num_frames=2, num_blocks=(1, 1, 1, 1)).double()
    bracket = (torch.rand(1, 2, 4, 3, 2, dtype=DOUBLE) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(net, (bracket,), fast_mode=True)
    (gradient,) = torch.autograd.grad(net(bracket).sum(), bracket)
    assert gradient.abs().max() > 1e-4


def test_black_and_negative_pixels_have_a_finite_gradient(small):
    net = small(TMRNet)
    bracket = bracket_of(net, 8, 8)
    bracket[..., :4] = 0
    bracket.requires_grad_()
    net(bracket).square().sum().backward()
    assert bracket.grad.isfinite().all()
    assert (bracket.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


# invariants


@pytest.mark.parametrize("size", [(1, 1), (2, 33), (31, 32), (13, 7)])
@pytest.mark.parametrize("kind", [TMRNet, TMRNetPlus])
def test_any_size_works(small, kind, size):
    net = small(kind, num_frames=2)
    hdr = net(bracket_of(net, *size, batch=2))
    scale = 4 if kind is TMRNetPlus else 1
    assert hdr.shape == (2, 4, scale * size[0], scale * size[1])
    assert hdr.isfinite().all()


def test_at_first_the_frames_own_trunks_say_nothing():
    net = TMRNet(**SMALL)
    bracket = bracket_of(net, 8, 8)
    before = net(bracket)
    with torch.no_grad():
        for parameter in net.backbone["backward_rec_2"].parameters():
            parameter.add_(1)
    assert torch.equal(net(bracket), before)
    net(bracket).sum().backward()
    assert net.learn_para.grad.abs().amax(dim=(0, 2, 3, 4)).min() > 0


def test_the_first_network_of_plus_enlarges_bilinearly(small):
    net = small(TMRNetPlus)
    with torch.no_grad():
        net.up_para.zero_()
        for parameter in net.upsample1.parameters():
            parameter.add_(1)
    bracket = bracket_of(net, 6, 7)
    first = net(bracket)
    with torch.no_grad():
        net.upsample2.upsample_conv.bias.add_(1)
    assert torch.equal(net(bracket), first)


def test_the_reference_may_be_any_frame(small):
    net = small(TMRNet, num_frames=4, reference=2)
    first = small(TMRNet, num_frames=4, reference=0)
    bracket = bracket_of(net, 8, 9)
    assert torch.equal(net(bracket), first(bracket[:, [2, 0, 1, 3]]))
    assert not torch.allclose(net(bracket), first(bracket))


@pytest.mark.parametrize(
    ("options", "reference", "activation", "peak"),
    [
        ({}, 0, None, 16.0),
        ({"in_channels": 6}, 2, "sigmoid", 1.0),
        ({"in_channels": 6, "reference": 0, "activation": None, "peak": 3}, 0, None, 3),
        ({"activation": "sigmoid"}, 0, "sigmoid", 16.0),
    ],
)
def test_defaults_follow_the_kind_of_data(options, reference, activation, peak):
    net = TMRNet(**SMALL, **options)
    assert (net.reference, net.activation, net.peak) == (reference, activation, peak)


def test_the_sigmoid_keeps_the_output_within_the_peak(small):
    net = small(TMRNet, activation="sigmoid")
    plain = small(TMRNet, activation=None)
    bracket = 20 * bracket_of(net, 10, 12)
    hdr = net(bracket)
    assert hdr.min() >= 0
    assert hdr.max() <= 16
    torch.testing.assert_close(hdr, 16 * torch.sigmoid(plain(bracket)))


def test_inside_a_crop_the_output_is_that_of_the_whole_picture_where_the_flow_is(small):
    # The flow sees the whole picture: it is held at zero here, and the offsets below a pixel.
    net = small(TMRNet, num_frames=2, num_blocks=(1, 1, 1, 1)).double()
    with torch.no_grad():
        for level in net.spynet.basic_module:
            for parameter in level.basic_module[8].parameters():
                parameter.zero_()
    net.dcn_alignment.max_residue = 0.9
    radius = 3 + 4 + 2 * (3 + 3) + 3 + 2  # features, alignment, two trunks per frame, reconstruction, tail
    bracket = bracket_of(net, 66, 64, dtype=DOUBLE)
    whole, crop = net(bracket), net(bracket[..., 4:60, 3:61])
    inside = crop[..., radius:-radius, radius:-radius]
    assert inside.shape[-2:] == (8, 10)
    torch.testing.assert_close(inside, whole[..., 4 + radius : 60 - radius, 3 + radius : 61 - radius])


# training


def test_checkpointing_gives_the_same_gradient(small):
    net, twin = small(TMRNet, num_frames=3), small(TMRNet, num_frames=3, checkpointing=True)
    bracket = bracket_of(net, 9, 8)
    for model in (net, twin):
        model(bracket).square().mean().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    net = TMRNet(**SMALL, num_frames=3)
    target = torch.rand(2, 1, 4, 16, 16) * 4
    bracket = (target + 0.1 * torch.randn(2, 3, 4, 16, 16)).clamp(-0.1, 16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = (net(bracket) - target[:, 0]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# taps and fusion modules


@pytest.mark.parametrize("checkpointing", [False, True])
def test_taps_read_the_last_three_states_and_lead_into_the_trunk(checkpointing):
    net = TMRNet(**SMALL, num_frames=4, checkpointing=checkpointing)
    assert net.fusion_taps == ("state[-3]", "state[-2]", "state[-1]")
    with FeatureTaps(["state[0]", *net.fusion_taps]).capture(net) as stages:
        net(bracket_of(net, 8, 9))
    assert [tuple(stage.shape) for stage in stages] == [(1, 8, 8, 9)] * 4
    assert not any(torch.equal(a, b) for a, b in pairwise(stages))
    for stage in stages[1:]:
        net.zero_grad()
        stage.square().sum().backward(retain_graph=True)
        for part in (net.backbone["backward"], net.feat_extract, net.dcn_alignment.deform_conv):
            assert all(p.grad.abs().max() > 0 for p in part.parameters())
    assert not any(name.startswith("state") for name in net.state_dict())


def test_fusion_modules_are_of_the_networks_kind():
    net = TMRNet(**SMALL)
    fusion = net.make_fusion_module()
    assert isinstance(fusion, ResidualTrunk)
    assert len(fusion.main[2]) == 1
    assert fusion(torch.rand(1, 8, 5, 7)).shape == (1, 8, 5, 7)
    assert not any(p is q for p in fusion.parameters() for q in net.parameters())


# layouts and precision


def test_a_bf16_network_runs():
    net = TMRNet(**SMALL, num_frames=2)
    bracket = bracket_of(net, 12, 16)
    expected = net(bracket)
    hdr = net.bfloat16()(bracket.bfloat16())
    assert hdr.dtype == torch.bfloat16
    close(hdr.float(), expected, 3e-2)


def test_moving_the_network_moves_every_parameter_and_gradient(small):
    net = small(TMRNet, num_frames=2)
    net(bracket_of(net, 8, 9)).sum().backward()
    state, gradient = copy.deepcopy(net.state_dict()), net.learn_para.grad.clone()
    parameter = net.learn_para
    torch.nn.Sequential(net).to(dtype=DOUBLE, memory_format=torch.channels_last)
    assert net.learn_para is parameter
    assert torch.equal(net.learn_para.grad, gradient.double())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name].double())
    assert net.conv_hr.weight.is_contiguous(memory_format=torch.channels_last)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3}, r"in_channels must be one of \['4', '6'\], got 3"),
        ({"activation": "relu"}, r"activation must be one of \['None', 'auto', 'sigmoid'\], got 'relu'"),
        ({"reference": 5}, r"reference must be in \[0, 5\), got 5"),
        ({"peak": 0}, r"peak must be a finite number > 0, got 0"),
        ({"features": 12}, r"features must be a multiple of groups=8, got 12"),
        ({"num_blocks": (1, 1, 1)}, r"num_blocks must be four numbers, got \(1, 1, 1\)"),
        ({"num_blocks": (1, 1, -1, 1)}, r"num_blocks must be a whole number >= 0, got -1"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TMRNet(**{**SMALL, **options})


def test_the_config_rebuilds_the_network():
    net = TMRNetPlus(**SMALL, num_frames=3, in_channels=6, out_channels=3)
    twin = TMRNetPlus(**net.config)
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())


def test_saved_and_read_again_it_is_the_same_network(small, tmp_path):
    pytest.importorskip("huggingface_hub")
    net = small(TMRNetPlus, num_frames=3).eval()
    net.save_pretrained(tmp_path)
    twin = TMRNetPlus.from_pretrained(tmp_path).eval()
    bracket = bracket_of(net, 8, 9)
    assert torch.equal(twin(bracket), net(bracket))


# compiles, exports


@pytest.mark.slow  # TMRNetPlus's export is in test_networks.py
def test_an_exported_program_takes_other_sizes(small):
    net = small(TMRNet, num_frames=2, num_blocks=(1, 1, 1, 1))
    program = export_program(net).module()
    for size, batch in (((64, 64), 1), ((96, 160), 2)):
        bracket = bracket_of(net, *size, batch=batch)
        close(program(bracket), net(bracket), 1e-5)
