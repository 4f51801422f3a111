"""The teacher of eq. 3: identity at the start, three guided stages, knowledge that arrives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skt_components.models import SPGRM, AHDRNet
from skt_components.modules import DilatedResidualDenseBlock, FeatureTaps

CHANNELS = (7, 6, 5, 4)


def small(awake: bool = True, **options) -> SPGRM:
    """A small teacher; ``awake`` gives its last convolution, which starts at zero, weights."""
    model = SPGRM(**{"prior_channels": CHANNELS, "features": 8, **options})
    if awake:
        nn.init.normal_(model.tail.weight, std=0.1)
        nn.init.normal_(model.tail.bias, std=0.1)
    return model


def inputs(size=(32, 24), batch=2, dtype=torch.float32) -> tuple[torch.Tensor, list[torch.Tensor]]:
    picture = torch.rand(batch, 3, *size, dtype=dtype)
    features = [
        torch.randn(batch, c, -(-size[0] // s), -(-size[1] // s), dtype=dtype)
        for c, s in zip(CHANNELS, (16, 8, 4, 2), strict=True)
    ]
    return picture, features


# identity at the start


@pytest.mark.parametrize("size", [(32, 24), (17, 9), (1, 1)])
def test_an_untrained_teacher_returns_the_picture(size):
    picture, features = inputs(size)
    picture = picture * 3 - 1  # also outside [0, 1]: nothing is clamped
    assert torch.equal(small(awake=False)(picture, features), picture)


def test_after_one_step_the_gradient_reaches_every_parameter():
    model = small(awake=False)
    picture, features = inputs()
    target = torch.rand_like(picture)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        (model(picture, features) - target).abs().mean().backward()
        reached.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimizer.step()
    assert reached[0] == {"tail.weight", "tail.bias"}  # a zero convolution lets nothing through in the first step
    assert reached[1] == {name for name, _ in model.named_parameters()}
    assert any(name.startswith("pyramid.lateral.0") for name in reached[1])  # the coarsest map's too


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [(-1, -1, -1), (0, 1, 3), (3, 3, 2), (-4, -4, -4)])
def test_it_is_head_three_guided_stages_tail_and_residual(dtype, levels):
    model = small(levels=levels).to(dtype)
    picture, features = inputs(dtype=dtype)
    picture.requires_grad_()
    features = [f.requires_grad_() for f in features]
    guides = dict(zip(sorted({level % 4 for level in levels}), model.pyramid(features), strict=True))
    x = model.head(picture)
    for stage, level in zip(model.stages, levels, strict=True):
        x = stage.prior_fusion(stage.fusion(x), guides[level % 4])
    expected = picture + model.tail(x)
    out = model(picture, features)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, [picture, *features], upstream, allow_unused=True)
    wanted = torch.autograd.grad(expected, [picture, *features], upstream, allow_unused=True)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
            assert ours.abs().max() > 0


def test_three_stages_with_four_heads_and_the_paper_fusion_by_default():
    model = SPGRM(CHANNELS)
    assert len(model.stages) == 3
    assert [stage.prior_fusion.num_heads for stage in model.stages] == [4, 4, 4]
    assert model.features == 64
    assert model.pyramid.out_channels == 64
    assert model.fusion_taps == ("stages.0", "stages.1", "stages.2")
    blocks = [id(stage.fusion) for stage in model.stages]
    assert len(set(blocks)) == 3  # not one shared block


# knowledge arrives


@pytest.mark.parametrize("level", range(4))
def test_the_finest_guide_holds_knowledge_of_every_level(level):
    model = small()
    picture, features = inputs()
    before = model(picture, features)
    features[level] = torch.randn_like(features[level])
    assert (model(picture, features) - before).abs().max() > 1e-6


@pytest.mark.parametrize(("levels", "heard"), [((0, 0, 0), {0}), ((1, 1, 1), {0, 1}), ((0, 2, 1), {0, 1, 2})])
def test_a_level_hears_itself_and_coarser_ones_only(levels, heard):
    model = small(levels=levels)
    picture, features = inputs()
    before = model(picture, features)
    for level in range(4):
        changed = list(features)
        changed[level] = torch.randn_like(features[level])
        assert torch.equal(model(picture, changed), before) == (level not in heard)


@pytest.mark.parametrize("levels", [(-1, -1, -1), (0, 0, 0), (0, 1, 2), (3, 1, 0)])
def test_no_parameter_is_left_out_whatever_the_levels(levels):
    model = small(levels=levels)  # an unused parameter would stop DistributedDataParallel
    picture, features = inputs()
    model(picture, features).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_learns_to_refine():
    model = small(awake=False)
    picture, features = inputs((16, 12), batch=1)
    target = picture.roll(1, dims=1)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = (model(picture, features) - target).abs().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# options


def test_the_boosted_networks_own_fusion_module_is_used():
    orm = AHDRNet(features=8, num_layers=2, growth=3)
    model = SPGRM(CHANNELS, features=8, make_fusion=orm.make_fusion_module)
    shapes = {name: p.shape for name, p in orm.RDB1.named_parameters()}
    for stage in model.stages:
        assert {name: p.shape for name, p in stage.fusion.named_parameters()} == shapes


def test_a_strangers_fusion_module_is_called_three_times():
    made = []

    def make() -> nn.Module:
        made.append(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()))
        return made[-1]

    model = small(make_fusion=make)
    assert [stage.fusion for stage in model.stages] == made
    picture, features = inputs()
    assert model(picture, features).shape == picture.shape


def test_its_stages_can_be_tapped():
    model = small()
    picture, features = inputs()
    with FeatureTaps(model.fusion_taps).capture(model) as stages:
        model(picture, features)
    assert [tuple(stage.shape) for stage in stages] == [(2, 8, 32, 24)] * 3


def test_other_channels_than_rgb():
    model = SPGRM(CHANNELS, channels=4, features=8)
    _, features = inputs()
    assert model(torch.rand(2, 4, 32, 24), features).shape == (2, 4, 32, 24)


def test_without_prior_channels_its_stages_are_the_fusion_modules_alone():
    made = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
    model = small(make_fusion=iter(made).__next__, prior_channels=())
    assert list(model.stages) == made
    assert model.pyramid is None
    assert {name.split(".")[0] for name in model.state_dict()} == {"head", "stages", "tail"}
    picture, features = inputs()
    with FeatureTaps(model.fusion_taps).capture(model) as stages:
        out = model(picture, [])
    assert all(torch.equal(ours, fusion(x)) for ours, fusion, x in zip(stages[1:], made[1:], stages, strict=False))
    torch.testing.assert_close(out, picture + model.tail(made[2](made[1](made[0](model.head(picture))))))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert isinstance(SPGRM(()).stages[0], DilatedResidualDenseBlock)
    with pytest.raises(ValueError, match="features must be empty without prior_channels, got 4"):
        model(picture, features)


# gradcheck


def test_gradcheck():
    model = small(features=4, make_fusion=lambda: nn.Conv2d(4, 4, 1)).double()
    picture, features = inputs((4, 3), 1, torch.float64)
    tensors = [t.requires_grad_() for t in (picture, *features)]
    assert torch.autograd.gradcheck(lambda p, *f: model(p, f), tensors)


# invariants


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_any_size_comes_back_at_its_size(height, width, batch):
    picture, features = inputs((height, width), batch)
    out = small()(picture, features)
    assert out.shape == picture.shape
    assert out.isfinite().all()


def test_batch_mates_do_not_see_each_other():
    model = small()
    picture, features = inputs()
    torch.testing.assert_close(model(picture, features)[1:], model(picture[1:], [f[1:] for f in features]))


def test_a_copy_is_independent_and_saves_under_the_same_names():
    model = small()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.add_(1)
    assert not torch.equal(model.head.weight, twin.head.weight)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model.head.weight, twin.head.weight)


def test_bf16_autocast_runs_forward_and_backward():
    model = small()
    picture, features = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(picture, features)
    assert (out.float() - model(picture, features)).abs().max() < 0.1
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# rejects_bad_input


@pytest.mark.parametrize("levels", [(), (0, 1), (0, 1, 2, 3), (0, 0, 4), (-5, 0, 0)])
def test_rejects_levels_that_are_not_three_existing_ones(levels):
    with pytest.raises(ValueError, match=r"levels must be three indices into 4 pyramid levels, got \("):
        SPGRM(CHANNELS, levels=levels)


def test_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"num_heads must divide channels=6, got 4"):
        SPGRM(CHANNELS, features=6)


def test_rejects_bad_inputs():
    model = small()
    picture, features = inputs()
    with pytest.raises(ValueError, match=r"tonemapped must have 3 channels \(B, C, H, W\), got shape \(2, 4, 32, 24\)"):
        model(torch.rand(2, 4, 32, 24), features)
    with pytest.raises(ValueError, match=r"tonemapped must have 4 axes"):
        model(picture[0], features)
    with pytest.raises(TypeError, match=r"tonemapped must be a floating-point tensor, got torch.uint8"):
        model(torch.zeros(2, 3, 32, 24, dtype=torch.uint8), features)
    with pytest.raises(ValueError, match=r"features must have \(7, 6, 5, 4\) channels, coarse to fine, got"):
        model(picture, features[::-1])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("prior_channels", [CHANNELS, ()])
def test_rejects_an_empty_batch(stride, prior_channels):
    picture, features = inputs()
    model = small(prior_channels=prior_channels, stride=stride)
    with pytest.raises(ValueError, match=r"^batch must not be empty: tonemapped .* got shape \(0, 3, 32, 24\)"):
        model(picture[:0], [f[:0] for f in features[: len(prior_channels)]])


# compiles


@pytest.mark.slow  # its fusion and its pyramid compile in their own tests
def test_compiles():
    model = small(num_heads=2, levels=(0, 2, -1))
    picture, features = inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(picture, features), model(picture, features))
    got = torch.autograd.grad(compiled(picture, features).sum(), [*model.parameters()])
    wanted = torch.autograd.grad(model(picture, features).sum(), [*model.parameters()])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
