"""SCTNet: the authors' layout, any bracket, and what its output may and may not depend on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from skt_components.models.export import export_program
from skt_components.models.sctnet import SCTNet
from skt_components.models.swin import SwinStage
from skt_components.modules.taps import FeatureTaps

KEYS = Path(__file__).parent / "keys" / "sct.tsv"
DERIVED = ("attn_mask", "relative_position_index")
BGR = [2, 1, 0, 5, 4, 3]


def official_shapes() -> dict[str, tuple[int, ...]]:
    rows = (line.split("\t") for line in KEYS.read_text().splitlines())
    return {name: tuple(map(int, shape.strip("()").replace(",", " ").split())) for name, shape in rows}


def small(**options) -> SCTNet:
    """A small network with weights large enough that every part of it shows in the output."""
    defaults = {"features": 12, "depths": (2, 1), "num_heads": (2, 3), "channel_heads": 2, "drop_path": 0.0}
    model = SCTNet(**{**defaults, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name or (parameter.ndim == 2 and "channel" not in name):
                parameter.mul_(10)
            elif parameter.ndim == 1 or "temperature" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# the authors' layout


def test_names_and_shapes_are_the_authors():
    wanted = official_shapes()
    assert len(wanted) == 512
    model = SCTNet()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {name: shape for name, shape in wanted.items() if not name.endswith(DERIVED)}
    official = model.to_official()
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == wanted
    assert {t.dtype for n, t in official.items() if n.endswith(DERIVED)} == {torch.float32, torch.int64}


def test_parameter_count_is_the_authors():
    assert sum(p.numel() for p in SCTNet().parameters()) == 994_555


def test_other_numbers_of_frames_have_a_branch_per_moving_frame():
    options = {"features": 20, "depths": [1], "num_heads": [1]}
    five = [name for name, _ in SCTNet(num_frames=5, reference=0, **options).named_children()]
    assert [name for name in five if name.startswith("channel")] == [f"channel_layers_{k}" for k in (2, 3, 4, 5)]
    assert five[:6] == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv_end"]
    options["features"] = 12
    assert SCTNet(reference=0, **options)._branches() == {1: "channel_layers_lm", 2: "channel_layers_rm"}


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 24), (13, 9), (8, 8)])
def test_the_forward_is_that_of_the_paper_with_its_gradient(dtype, size):
    # SCTNet as published for three frames, written out from the description; windows by masking pixels that are not
    # in one of them, out of an attention of all pixels to all.
    model, heads, depths = small(peak=2.0).to(dtype), (2, 3), (2, 1)
    w = dict(model.named_parameters())
    bracket = torch.rand(2, 3, 6, *size, dtype=dtype, requires_grad=True)
    mirrored = [[min(i, 2 * (n - 1) - i) for i in range(-(-n // 8) * 8)] for n in size]
    padded = bracket[..., mirrored[0], :][..., mirrored[1]]
    height, width = padded.shape[-2:]
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width

    def conv(name: str, planes: torch.Tensor) -> torch.Tensor:
        return F.conv2d(planes, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def linear(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, tokens: torch.Tensor) -> torch.Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def mlp(name: str, tokens: torch.Tensor) -> torch.Tensor:
        hidden = linear(f"{name}.fc1", tokens)
        return linear(f"{name}.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    def to_tokens(planes: torch.Tensor) -> torch.Tensor:
        return planes.flatten(2).transpose(1, 2)

    def to_planes(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def attention(name: str, tokens: torch.Tensor, count: int, shift: int) -> torch.Tensor:
        window = (y - shift).div(8, rounding_mode="floor") * 1000 + (x - shift).div(8, rounding_mode="floor")
        apart = window[:, None] != window
        offset = (y[:, None] - y + 7) * 15 + (x[:, None] - x + 7)
        bias = w[f"{name}.relative_position_bias_table"][offset.clamp(0, 224)]
        parts = [part.unflatten(2, (count, -1)) for part in linear(f"{name}.qkv", tokens).chunk(3, 2)]
        logits = torch.einsum("bihd,bjhd->bijh", parts[0], parts[1]) * (12 / count) ** -0.5 + bias
        weights = logits.masked_fill(apart[..., None], -float("inf")).softmax(2)
        return linear(f"{name}.proj", torch.einsum("bijh,bjhd->bihd", weights, parts[2]).flatten(2))

    def block(name: str, tokens: torch.Tensor, count: int, shift: int) -> torch.Tensor:
        tokens = tokens + attention(f"{name}.attn", norm(f"{name}.norm1", tokens), count, shift)
        return tokens + mlp(f"{name}.mlp", norm(f"{name}.norm2", tokens))

    def across(name: str, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        inner = {"q": norm(f"{name}.norm1_x.body", query), "k": norm(f"{name}.norm1_y.body", other)}
        inner["v"] = inner["k"]
        q, k, v = (inner[kind] @ w[f"{name}.attn.{kind}.weight"][:, :, 0, 0].T for kind in "qkv")
        outputs = []
        for head in range(2):
            a, b, c = (part[..., 2 * head : 2 * head + 2].transpose(1, 2) for part in (q, k, v))
            a, b = (part / part.square().sum(-1, keepdim=True).sqrt() for part in (a, b))
            outputs.append((a @ b.transpose(1, 2) * w[f"{name}.attn.temperature"][head]).softmax(-1) @ c)
        attended = torch.cat(outputs, 1).transpose(1, 2) @ w[f"{name}.attn.project_out.weight"][:, :, 0, 0].T
        tokens = query + attended
        return tokens + mlp(f"{name}.ffn", norm(f"{name}.norm2", tokens))

    encoded = [conv(f"conv{i + 1}", padded[:, i]) for i in range(3)]
    tokens = norm("patch_embed.norm", to_tokens(torch.cat(encoded, 1)))
    x1, x2, x3 = tokens.chunk(3, 2)
    tokens = mlp("conv_first", tokens)
    for i, (count, depth) in enumerate(zip(heads, depths, strict=True)):
        inner = tokens
        for j in range(depth):
            inner = block(f"layers.{i}.residual_group.blocks.{j}", inner, count, 4 * (j % 2))
        tokens = tokens + to_tokens(conv(f"layers.{i}.conv", to_planes(inner)))
        x11, x22, x33 = tokens.chunk(3, 2)
        left = across(f"channel_layers_lm.{i}", x2 + x22, x1 + x11)
        right = across(f"channel_layers_rm.{i}", x2 + x22, x3 + x33)
        tokens = mlp(f"mlps.{i}", torch.cat([left, x2 + x22, right], 2))
    body = conv("conv_after_body", to_planes(norm("norm", tokens))) + conv("conv_end", encoded[1])
    expected = 2.0 * conv("upsample.0", body).sigmoid()[..., : size[0], : size[1]]

    out = model(bracket)
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream, wrt = torch.randn_like(out), [bracket, *w.values()]
    got, wanted = torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * max(1.0, theirs.abs().max().item()), rtol=1e-3)
        assert ours.abs().max() > 0


# the authors' weights


def random_official(model: SCTNet) -> dict[str, torch.Tensor]:
    state = model.to_official()
    return {name: t if name.endswith(DERIVED) else 0.2 * torch.randn_like(t) for name, t in state.items()}


OPTIONS = {"features": 12, "depths": (2, 2), "num_heads": (2, 2), "channel_heads": 2}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}], ids=["bare", "wrapped"])
def test_official_weights_there_and_back_are_the_same(prefix, wrap):
    state = random_official(small(**OPTIONS))
    model = SCTNet.from_official(wrap({prefix + name: t for name, t in state.items()}), **OPTIONS)
    back = model.to_official()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


def test_buffers_that_follow_from_the_architecture_may_be_missing_or_of_another_size():
    state = random_official(small(**OPTIONS))
    bare = {name: t for name, t in state.items() if not name.endswith(DERIVED)}
    other = {name: torch.zeros(4, 64, 64) if name.endswith("attn_mask") else t for name, t in state.items()}
    bracket = torch.rand(1, 3, 6, 16, 16)
    expected = SCTNet.from_official(state, **OPTIONS).eval()(bracket)
    for loaded in (bare, other):
        assert torch.equal(SCTNet.from_official(loaded, **OPTIONS).eval()(bracket), expected)


def test_our_rgb_picture_gives_the_authors_bgr_output_flipped():
    official = small(**OPTIONS).eval()  # as theirs: its first layers take BGR, its last gives BGR
    ours = SCTNet.from_official(official.state_dict(), **OPTIONS).eval()
    bracket = torch.rand(1, 3, 6, 16, 16)
    torch.testing.assert_close(ours(bracket), official(bracket[:, :, BGR]).flip(1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours(bracket), official(bracket), atol=1e-3)


def test_refuses_weights_that_do_not_fit_and_says_which():
    state = random_official(small(**OPTIONS))
    del state["conv_end.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(9)
    with pytest.raises(ValueError, match=r"conv_end\.bias") as error:
        SCTNet.from_official(state, **OPTIONS)
    assert "extra.weight" in str(error.value)
    assert "norm.weight (9,), wanted (12,)" in str(error.value)


# gradcheck


def test_gradcheck():
    model = small(features=6, depths=(2,), num_heads=(1,), in_channels=2, window_size=2, out_channels=1).double()
    bracket = torch.rand(1, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (bracket,))
    (gradient,) = torch.autograd.grad(model(bracket).sum(), bracket)
    assert gradient.abs().max() > 1e-4


# invariants


@pytest.mark.parametrize("size", [(1, 1), (2, 17), (7, 8), (11, 5), (16, 9)])
def test_any_size_gives_a_picture_of_that_size_inside_the_range(size):
    hdr = small(peak=16.0)(torch.rand(2, 3, 6, *size))
    assert hdr.shape == (2, 3, *size)
    assert 0 < hdr.min() <= hdr.max() < 16


def test_a_picture_the_windows_do_not_divide_is_that_of_the_mirrored_one():
    model = small()
    bracket = torch.rand(1, 3, 6, 12, 13)
    rows, columns = [*range(12), 10, 9, 8, 7], [*range(13), 11, 10, 9]
    whole = model(bracket[..., rows, :][..., columns])
    torch.testing.assert_close(model(bracket), whole[..., :12, :13], atol=1e-6, rtol=1e-5)


def test_inside_a_crop_the_output_is_that_of_the_whole_picture():
    model = small(depths=(2,), num_heads=(2,)).double()
    for blocks in (model.channel_layers_lm, model.channel_layers_rm):
        blocks[0].attn.project_out.weight.data.zero_()  # the only part that looks at the whole picture
    # first convolution: 1; two blocks of windows: up to 7 and 4 + 7; three more convolutions: 3
    radius = 24
    bracket = torch.rand(1, 3, 6, 96, 88, dtype=torch.float64)
    crop = model(bracket[..., 8:88, 8:80])
    inside = slice(radius, -radius)
    torch.testing.assert_close(crop[..., inside, inside], model(bracket)[..., 8:88, 8:80][..., inside, inside])


@pytest.mark.parametrize(("frames", "reference"), [(3, None), (3, 0), (4, 1), (2, 0)])
def test_every_parameter_and_every_frame_takes_part(frames, reference):
    model = small(num_frames=frames, reference=reference, channel_heads=1)
    bracket = torch.rand(2, frames, 6, 9, 8, requires_grad=True)
    model(bracket).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert (bracket.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_batch_mates_do_not_see_each_other():
    model = small()
    bracket = torch.rand(3, 3, 6, 11, 9)
    together = model(bracket)
    torch.testing.assert_close(together, torch.cat([model(one[None]) for one in bracket]), atol=1e-5, rtol=1e-4)
    bracket[1] = float("nan")
    broken = model(bracket)
    assert broken[1].isnan().all()
    torch.testing.assert_close(broken[[0, 2]], together[[0, 2]], atol=1e-5, rtol=1e-4)


def test_packed_raw_and_an_output_four_times_as_large():
    model = small(
        features=20, num_heads=(2, 2), num_frames=5, in_channels=4, out_channels=4, reference=0, peak=16.0, scale=4
    )
    assert model.conv1.in_channels == 8
    bracket = (16 * torch.rand(1, 5, 4, 9, 11)).requires_grad_()
    hdr = model(bracket)
    assert hdr.shape == (1, 4, 36, 44)
    assert 0 < hdr.min() <= hdr.max() < 16
    hdr.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (bracket.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


# training


def test_checkpointing_gives_the_same_output_and_gradient():
    plain = small(drop_path=0.3)
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    bracket, results = torch.rand(2, 3, 6, 8, 16), []
    for model in (plain, frugal):
        torch.manual_seed(1)
        hdr = model(bracket)
        results.append([hdr, *torch.autograd.grad(hdr.square().sum(), [*model.parameters()])])
    torch.testing.assert_close(results[0], results[1])


def test_a_few_steps_lower_the_loss():
    model = SCTNet(**OPTIONS)
    bracket = torch.rand(1, 3, 6, 16, 16)
    target = bracket[:, 1, :3].flip(1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        loss = F.l1_loss(model(bracket), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_starts_from_the_weights_of_the_authors():
    torch.manual_seed(3)
    model = SCTNet()
    block = model.layers[2].residual_group.blocks[3]
    for weight in (block.attn.qkv.weight, model.mlps[3].fc2.weight, model.channel_layers_rm[1].ffn.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.qkv.bias.abs().max() == 0
    rates = [b.drop_path.rate for layer in model.layers for b in layer.residual_group.blocks]
    assert rates == pytest.approx([0.1 * i / 23 for i in range(24)])


# layouts and precision


def test_channels_last_and_non_contiguous_brackets():
    model = small()
    bracket = torch.rand(2, 3, 10, 8, 6).permute(0, 1, 4, 2, 3)
    assert not bracket.is_contiguous()
    expected = model(bracket.contiguous())
    torch.testing.assert_close(model(bracket), expected, atol=1e-5, rtol=1e-4)
    fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(bracket), expected, atol=1e-5, rtol=1e-4)


def test_bf16_autocast_runs_forward_and_backward():
    model = SCTNet(**OPTIONS, drop_path=0)
    bracket = torch.rand(2, 3, 6, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        hdr = model(bracket)
    hdr.float().sum().backward()
    assert (hdr.float() - model(bracket)).abs().max() < 1e-2
    assert all(p.grad.isfinite().all() for p in model.parameters())


# stages for the framework


def test_taps_and_fusion_modules_fit_the_network():
    model = SCTNet(features=12, depths=(2, 1, 1, 1), num_heads=(3, 2, 2, 2), drop_path=0.3)
    with FeatureTaps(model.fusion_taps).capture(model) as stages:
        model(torch.rand(2, 3, 6, 16, 24))
    assert [tuple(stage.shape) for stage in stages] == [(2, 12, 16, 24)] * 3
    fusion = model.make_fusion_module()
    assert isinstance(fusion, SwinStage)
    shapes = {name: t.shape for name, t in model.layers[0].state_dict().items()}
    assert {name: t.shape for name, t in fusion.state_dict().items()} == shapes
    assert not any(p is q for p in fusion.parameters() for q in model.parameters())
    assert fusion(torch.rand(1, 12, 5, 17)).shape == (1, 12, 5, 17)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 3}, r"reference must be in \[0, 3\), got 3"),
        ({"peak": 0}, r"peak must be a finite number > 0, got 0"),
        ({"scale": 2}, r"scale must be one of \['1', '4'\], got 2"),
        ({"num_heads": (5, 5)}, r"num_heads must divide features=12, got 5"),
        ({"channel_heads": 3}, r"channel_heads must divide the 4 channels of a frame, got 3"),
        ({"num_frames": 5}, r"features must be a multiple of num_frames=5, got 12"),
        ({"num_heads": (2,)}, r"depths and num_heads must be of one length, got \(2, 1\) and \(2,\)"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0"),
        ({"window_size": 0}, r"window_size must be a whole number >= 1, got 0"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


# compiles


def test_compiles():
    model = small(depths=(2,), num_heads=(2,))
    bracket = torch.rand(1, 3, 6, 9, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(bracket), model(bracket), atol=1e-5, rtol=1e-4)
    got = torch.autograd.grad(compiled(bracket).sum(), [*model.parameters()])
    wanted = torch.autograd.grad(model(bracket).sum(), [*model.parameters()])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_exports_for_any_size():
    model = small(depths=(2,), num_heads=(2,)).eval()
    assert model.size_multiple == 8
    program = export_program(model)
    for shape in [(1, 3, 6, 16, 40), (3, 3, 6, 24, 16)]:
        bracket = torch.rand(shape)
        torch.testing.assert_close(program.module()(bracket), model(bracket), atol=1e-5, rtol=1e-4)
