"""HDR-Transformer: the authors' layout, any bracket, and what its output may and may not depend on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from skt_components.models.export import export_program
from skt_components.models.hdr_transformer import ContextAwareTransformer, HDRTransformer
from skt_components.modules.taps import FeatureTaps

KEYS = Path(__file__).parent / "keys" / "hdrt.tsv"
DERIVED = ("attn_mask", "relative_position_index")
BGR = [2, 1, 0, 5, 4, 3]


def official_shapes() -> dict[str, tuple[int, ...]]:
    rows = (line.split("\t") for line in KEYS.read_text().splitlines())
    return {name: tuple(map(int, shape.strip("()").replace(",", " ").split())) for name, shape in rows}


def small(**options) -> HDRTransformer:
    """A small network with weights large enough that every part of it shows in the output."""
    model = HDRTransformer(**{"features": 16, "depths": (2, 1), "num_heads": (2, 4), "drop_path": 0.0, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name or (name.startswith("layers") and parameter.ndim == 2):
                parameter.mul_(10)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("lce.fc.0.weight"):
                parameter[0] = -parameter[-1]  # one of them passes the ReLU
    return model


# the authors' layout


def test_names_and_shapes_are_the_authors():
    wanted = official_shapes()
    assert len(wanted) == 435
    model = HDRTransformer()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {name: shape for name, shape in wanted.items() if not name.endswith(DERIVED)}
    official = model.to_official()
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == wanted
    assert {t.dtype for n, t in official.items() if n.endswith(DERIVED)} == {torch.float32, torch.int64}


def test_parameter_count_is_the_authors():
    assert sum(p.numel() for p in HDRTransformer().parameters()) == 1_222_113


def test_other_numbers_of_frames_have_a_branch_per_moving_frame():
    def branches(**options) -> list[str]:
        return [name for name, _ in HDRTransformer(features=4, depths=[1], num_heads=[1], **options).named_children()]

    five = branches(num_frames=5, reference=0)
    assert [name for name in five if name.startswith("att")] == [f"att_module_{k}" for k in (2, 3, 4, 5)]
    assert [name for name in five if name.startswith("conv_f")][:5] == [f"conv_f{k}" for k in (1, 2, 3, 4, 5)]
    first = HDRTransformer(features=4, depths=[1], num_heads=[1], reference=0)
    assert first._branches() == {1: "att_module_h", 2: "att_module_l"}


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 24), (13, 9), (8, 8)])
def test_the_forward_is_that_of_the_paper_with_its_gradient(dtype, size):
    # HDR-Transformer as published for three frames, written out from the description; windows by masking pixels
    # that are not in one of them, out of an attention of all pixels to all.
    model, heads, depths = small(peak=2.0).to(dtype), (2, 4), (2, 1)
    w = dict(model.named_parameters())
    bracket = torch.rand(2, 3, 6, *size, dtype=dtype, requires_grad=True)
    mirrored = [[min(i, 2 * (n - 1) - i) for i in range(-(-n // 8) * 8)] for n in size]
    padded = bracket[..., mirrored[0], :][..., mirrored[1]]
    height, width = padded.shape[-2:]
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width

    def conv(name: str, planes: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        weight = w[f"{name}.weight"]
        reach = dilation * (weight.shape[-1] // 2)
        return F.conv2d(planes, weight, w[f"{name}.bias"], padding=reach, dilation=dilation)

    def linear(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, tokens: torch.Tensor) -> torch.Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

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
        logits = torch.einsum("bihd,bjhd->bijh", parts[0], parts[1]) * (16 / count) ** -0.5 + bias
        weights = logits.masked_fill(apart[..., None], -float("inf")).softmax(2)
        return linear(f"{name}.proj", torch.einsum("bijh,bjhd->bihd", weights, parts[2]).flatten(2))

    def block(name: str, tokens: torch.Tensor, count: int, shift: int) -> torch.Tensor:
        normed = norm(f"{name}.norm1", tokens)
        tokens = tokens + attention(f"{name}.attn", normed, count, shift)
        hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens))
        tokens = tokens + linear(f"{name}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
        local = conv(f"{name}.lce.conv.1", conv(f"{name}.lce.conv.0", to_planes(normed)))
        local = F.leaky_relu(conv(f"{name}.lce.conv.2", local), 0.2)
        gate = (local.mean((2, 3)) @ w[f"{name}.lce.fc.0.weight"].T).relu() @ w[f"{name}.lce.fc.2.weight"].T
        return tokens + to_tokens(local * gate.sigmoid()[..., None, None])

    def gate(name: str, moving: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(conv(f"{name}.att1", torch.cat([moving, reference], 1)), 0.01)
        return moving * conv(f"{name}.att2", hidden).sigmoid()

    f1, f2, f3 = (conv(f"conv_f{i + 1}", padded[:, i]) for i in range(3))
    first = conv("conv_first", torch.cat([gate("att_module_h", f1, f2), f2, gate("att_module_l", f3, f2)], 1))
    tokens = norm("patch_embed.norm", to_tokens(first))
    for i, (count, depth) in enumerate(zip(heads, depths, strict=True)):
        inner = tokens
        for j in range(depth):
            inner = block(f"layers.{i}.residual_group.blocks.{j}", inner, count, 4 * (j % 2))
        tokens = tokens + to_tokens(conv(f"layers.{i}.dilated_conv", to_planes(inner), 2))
    body = conv("conv_after_body", to_planes(norm("norm", tokens)) + first) + f2
    expected = 2.0 * conv("conv_last", body).sigmoid()[..., : size[0], : size[1]]

    out = model(bracket)
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream, wrt = torch.randn_like(out), [bracket, *w.values()]
    got, wanted = torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * max(1.0, theirs.abs().max().item()), rtol=1e-3)
        assert ours.abs().max() > 0


# the authors' weights


def random_official(model: HDRTransformer) -> dict[str, torch.Tensor]:
    state = model.to_official()
    return {name: t if name.endswith(DERIVED) else 0.2 * torch.randn_like(t) for name, t in state.items()}


OPTIONS = {"features": 16, "depths": (2, 2), "num_heads": (2, 2)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}], ids=["bare", "wrapped"])
def test_official_weights_there_and_back_are_the_same(prefix, wrap):
    state = random_official(small(**OPTIONS))
    model = HDRTransformer.from_official(wrap({prefix + name: t for name, t in state.items()}), **OPTIONS)
    back = model.to_official()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


def test_buffers_that_follow_from_the_architecture_may_be_missing_or_of_another_size():
    state = random_official(small(**OPTIONS))
    bare = {name: t for name, t in state.items() if not name.endswith(DERIVED)}
    other = {name: torch.zeros(4, 64, 64) if name.endswith("attn_mask") else t for name, t in state.items()}
    bracket = torch.rand(1, 3, 6, 16, 16)
    expected = HDRTransformer.from_official(state, **OPTIONS).eval()(bracket)
    for loaded in (bare, other):
        assert torch.equal(HDRTransformer.from_official(loaded, **OPTIONS).eval()(bracket), expected)


def test_our_rgb_picture_gives_the_authors_bgr_output_flipped():
    official = small(**OPTIONS).eval()  # as theirs: its first layers take BGR, its last gives BGR
    ours = HDRTransformer.from_official(official.state_dict(), **OPTIONS).eval()
    bracket = torch.rand(1, 3, 6, 16, 16)
    torch.testing.assert_close(ours(bracket), official(bracket[:, :, BGR]).flip(1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours(bracket), official(bracket), atol=1e-3)


def test_refuses_weights_that_do_not_fit_and_says_which():
    state = random_official(small(**OPTIONS))
    del state["conv_first.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(9)
    with pytest.raises(ValueError, match=r"conv_first\.bias") as error:
        HDRTransformer.from_official(state, **OPTIONS)
    assert "extra.weight" in str(error.value)
    assert "norm.weight (9,), wanted (16,)" in str(error.value)


# gradcheck


def test_gradcheck():
    model = small(features=2, depths=(2,), num_heads=(1,), in_channels=2, window_size=2, out_channels=1).double()
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
    for block in model.layers[0].residual_group.blocks:
        block.lce.fc[2].weight.data.zero_()  # the only part that looks at the whole picture
    # conv, attention, conv_first: 4; two blocks of windows: up to 7 and 4 + 7; dilated and last convolutions: 4
    radius = 32
    bracket = torch.rand(1, 3, 6, 96, 88, dtype=torch.float64)
    crop = model(bracket[..., 8:88, 8:80])
    inside = slice(radius, -radius)
    torch.testing.assert_close(crop[..., inside, inside], model(bracket)[..., 8:88, 8:80][..., inside, inside])


@pytest.mark.parametrize(("frames", "reference"), [(3, None), (3, 0), (5, 0), (4, 1), (1, 0)])
def test_every_parameter_and_every_frame_takes_part(frames, reference):
    model = small(num_frames=frames, reference=reference)
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
    model = small(num_frames=5, in_channels=4, out_channels=4, reference=0, peak=16.0, scale=4)
    assert model.conv_f1.in_channels == 8
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
    model = HDRTransformer(features=8, depths=(2, 2), num_heads=(2, 2))
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
    block = HDRTransformer().layers[2].residual_group.blocks[3]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.lce.fc[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.qkv.bias.abs().max() == 0
    rates = [b.drop_path.rate for layer in HDRTransformer().layers for b in layer.residual_group.blocks]
    assert rates == pytest.approx([0.1 * i / 17 for i in range(18)])


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
    model = HDRTransformer(features=12, depths=(2, 2), num_heads=(2, 2), drop_path=0)
    bracket = torch.rand(2, 3, 6, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        hdr = model(bracket)
    hdr.float().sum().backward()
    assert (hdr.float() - model(bracket)).abs().max() < 1e-2
    assert all(p.grad.isfinite().all() for p in model.parameters())


# stages for the framework


def test_taps_and_fusion_modules_fit_the_network():
    model = HDRTransformer(features=12, depths=(2, 1, 1), num_heads=(3, 2, 2), drop_path=0.3)
    with FeatureTaps(model.fusion_taps).capture(model) as stages:
        model(torch.rand(2, 3, 6, 16, 24))
    assert [tuple(stage.shape) for stage in stages] == [(2, 12, 16, 24)] * 3
    fusion = model.make_fusion_module()
    assert isinstance(fusion, ContextAwareTransformer)
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
        ({"num_heads": (3, 3)}, r"num_heads must divide features=16, got 3"),
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
