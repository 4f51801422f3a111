"""Swin blocks, and what HDRTransformer and SCTNet share: the authors' layout, sizes, stages, training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from skt_components.models import HDRTransformer, SCTNet
from skt_components.models.swin import DropPath, Mlp, SwinBlock, SwinStage, drop_path_rates, pad_to_windows
from skt_components.modules.taps import FeatureTaps

DERIVED = ("attn_mask", "relative_position_index")
BGR = [2, 1, 0, 5, 4, 3]
TWO = {"depths": (2, 2), "num_heads": (2, 2)}
each_network = pytest.mark.parametrize("kind", [HDRTransformer, SCTNet])


# blocks


def test_blocks_take_turns_with_shifted_windows():
    blocks = SwinStage(4, 2, 2.0, 8, [0.0, 0.1, 0.2]).residual_group.blocks
    assert [block.attn.shift for block in blocks] == [0, 4, 0]
    assert [block.drop_path.rate for block in blocks] == [0.0, 0.1, 0.2]
    assert drop_path_rates(0.5, [2, 4]) == [[0.0, 0.1], pytest.approx([0.2, 0.3, 0.4, 0.5])]
    assert drop_path_rates(0.5, [1]) == [[0.0]]


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop(x)
    assert out.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_mlp_is_two_layers_and_an_exact_gelu():
    mlp, x = Mlp(4, 8).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize("size", [(8, 16), (9, 13), (5, 8), (1, 1), (3, 20), (4, 4)])
def test_padding_mirrors_where_it_can(size):
    x = torch.randn(2, 3, *size)
    padded = pad_to_windows(x, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert padded.shape[-2] - size[0] < 8 > padded.shape[-1] - size[1]

    def source(i: int, n: int, total: int) -> int:
        return i if i < n else 2 * (n - 1) - i if total - n < n else n - 1

    rows = [source(i, size[0], padded.shape[-2]) for i in range(padded.shape[-2])]
    columns = [source(i, size[1], padded.shape[-1]) for i in range(padded.shape[-1])]
    assert torch.equal(padded, x[:, :, rows][..., columns])


def test_rejects_a_rate_outside():
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_compiles():
    block = SwinBlock(6, 2, window_size=4, shift=2)
    x = torch.randn(2, 8, 12, 6)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), atol=1e-5, rtol=1e-4)
    got = torch.autograd.grad(compiled(x).square().sum(), [*block.parameters()])
    wanted = torch.autograd.grad(block(x).square().sum(), [*block.parameters()])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


# the authors' layout and weights


def random_official(model: HDRTransformer | SCTNet) -> dict[str, torch.Tensor]:
    state = model.to_official()
    return {name: t if name.endswith(DERIVED) else 0.2 * torch.randn_like(t) for name, t in state.items()}


@pytest.mark.parametrize(
    ("kind", "file", "keys", "parameters"),
    [(HDRTransformer, "hdrt.tsv", 435, 1_222_113), (SCTNet, "sct.tsv", 512, 994_555)],
)
def test_names_shapes_and_parameters_are_the_authors(official_shapes, kind, file, keys, parameters):
    wanted = official_shapes(file)
    assert len(wanted) == keys
    model = kind()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {name: shape for name, shape in wanted.items() if not name.endswith(DERIVED)}
    official = model.to_official()
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == wanted
    assert {t.dtype for n, t in official.items() if n.endswith(DERIVED)} == {torch.float32, torch.int64}
    assert sum(p.numel() for p in model.parameters()) == parameters


@each_network
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}], ids=["bare", "wrapped"])
def test_official_weights_there_and_back_are_the_same(small, kind, prefix, wrap):
    network = small(kind, **TWO)
    state = random_official(network)
    model = kind.from_official(wrap({prefix + name: t for name, t in state.items()}), **network.config)
    back = model.to_official()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


@each_network
def test_buffers_that_follow_from_the_architecture_may_be_missing_or_of_another_size(small, kind):
    network = small(kind, **TWO)
    state = random_official(network)
    bare = {name: t for name, t in state.items() if not name.endswith(DERIVED)}
    other = {name: torch.zeros(4, 64, 64) if name.endswith("attn_mask") else t for name, t in state.items()}
    bracket = torch.rand(1, 3, 6, 16, 16)
    expected = kind.from_official(state, **network.config)(bracket)
    for loaded in (bare, other):
        assert torch.equal(kind.from_official(loaded, **network.config)(bracket), expected)


@each_network
def test_our_rgb_picture_gives_the_authors_bgr_output_flipped(small, kind):
    official = small(kind, **TWO)  # its first layers take BGR, its last gives BGR
    ours = kind.from_official(official.state_dict(), **official.config)
    bracket = torch.rand(1, 3, 6, 16, 16)
    torch.testing.assert_close(ours(bracket), official(bracket[:, :, BGR]).flip(1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours(bracket), official(bracket), atol=1e-3)


@each_network
def test_rejects_weights_that_do_not_fit_and_says_which(small, kind):
    network = small(kind, **TWO)
    state = random_official(network)
    del state["conv_after_body.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(9)
    with pytest.raises(ValueError, match=r"conv_after_body\.bias") as error:
        kind.from_official(state, **network.config)
    assert "extra.weight" in str(error.value)
    assert f"norm.weight (9,), wanted ({network.features},)" in str(error.value)


# gradcheck


@each_network
def test_gradcheck(small, kind):
    options = {"depths": (2,), "num_heads": (1,), "in_channels": 2, "window_size": 2, "out_channels": 1}
    model = small(kind, features=6 if kind is SCTNet else 2, **options).double()
    bracket = torch.rand(1, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (bracket,))
    (gradient,) = torch.autograd.grad(model(bracket).sum(), bracket)
    assert gradient.abs().max() > 1e-4


# sizes


@each_network
@pytest.mark.parametrize("size", [(1, 1), (2, 17), (7, 8), (11, 5), (16, 9)])
def test_any_size_gives_a_picture_of_that_size_inside_the_range(small, kind, size):
    hdr = small(kind, peak=16.0)(torch.rand(2, 3, 6, *size))
    assert hdr.shape == (2, 3, *size)
    assert 0 < hdr.min() <= hdr.max() < 16


@each_network
def test_a_picture_the_windows_do_not_divide_is_that_of_the_mirrored_one(small, mirrored, kind):
    model = small(kind)
    bracket = torch.rand(1, 3, 6, 12, 13)
    whole = model(mirrored(bracket))
    torch.testing.assert_close(model(bracket), whole[..., :12, :13], atol=1e-6, rtol=1e-5)


@each_network
def test_packed_raw_and_an_output_four_times_as_large(small, kind):
    raw = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": 16.0, "scale": 4}
    model = small(kind, **raw, **{"features": 20, "num_heads": (2, 2)})
    assert getattr(model, f"{model.encoder}1").in_channels == 8
    bracket = (16 * torch.rand(1, 5, 4, 9, 11)).requires_grad_()
    hdr = model(bracket)
    assert hdr.shape == (1, 4, 36, 44)
    assert 0 < hdr.min() <= hdr.max() < 16
    hdr.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (bracket.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


# training


@each_network
def test_checkpointing_gives_the_same_output_and_gradient(small, kind):
    plain = small(kind, drop_path=0.3)
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    bracket, results = torch.rand(2, 3, 6, 8, 16), []
    for model in (plain, frugal):
        torch.manual_seed(1)
        hdr = model(bracket)
        results.append([hdr, *torch.autograd.grad(hdr.square().sum(), [*model.parameters()])])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("kind", "features"), [(HDRTransformer, 8), (SCTNet, 12)])
def test_a_few_steps_lower_the_loss(kind, features):
    model = kind(features=features, **TWO)
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


@pytest.mark.parametrize(("kind", "blocks"), [(HDRTransformer, 18), (SCTNet, 24)])
def test_branches_are_dropped_more_often_towards_the_end(kind, blocks):
    rates = [block.drop_path.rate for layer in kind().layers for block in layer.residual_group.blocks]
    assert rates == pytest.approx([0.1 * i / (blocks - 1) for i in range(blocks)])


# stages for the framework


@each_network
def test_taps_and_fusion_modules_fit_the_network(kind):
    stages = 3 if kind is HDRTransformer else 4
    options = {"depths": (2, *[1] * (stages - 1)), "num_heads": (3, *[2] * (stages - 1))}
    model = kind(features=12, drop_path=0.3, **options)
    with FeatureTaps(model.fusion_taps).capture(model) as tapped:
        model(torch.rand(2, 3, 6, 16, 24))
    assert [tuple(stage.shape) for stage in tapped] == [(2, 12, 16, 24)] * 3
    fusion = model.make_fusion_module()
    assert type(fusion) is kind.stage
    shapes = {name: t.shape for name, t in model.layers[0].state_dict().items()}
    assert {name: t.shape for name, t in fusion.state_dict().items()} == shapes
    assert not any(p is q for p in fusion.parameters() for q in model.parameters())
    assert fusion(torch.rand(1, 12, 5, 17)).shape == (1, 12, 5, 17)


# rejects_bad_input


@each_network
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 3}, r"reference must be in \[0, 3\), got 3"),
        ({"peak": 0}, r"peak must be a finite number > 0, got 0"),
        ({"scale": 2}, r"scale must be one of \['1', '4'\], got 2"),
        ({"num_heads": (5, 5)}, r"num_heads must divide features=1[26], got 5"),
        ({"num_heads": (2,)}, r"depths and num_heads must be of one length, got \(2, 1\) and \(2,\)"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0"),
        ({"window_size": 0}, r"window_size must be a whole number >= 1, got 0"),
    ],
)
def test_rejects_bad_options(small, kind, options, message):
    with pytest.raises(ValueError, match=message):
        small(kind, **options)
