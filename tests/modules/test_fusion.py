"""The fusion modules: eq. 4 literally, the dilated residual dense block, and both in one stage."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from skt_components.modules import DilatedResidualDenseBlock, PriorFusionBlock, SemanticGuidedFusion
from skt_components.ops.reference import eq4_prior_fusion

DTYPES = [torch.float32, torch.float64]


def inputs(size=(6, 5), prior_size=None, dtype=torch.float32, channels=8, prior_channels=4):
    features = torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
    prior = torch.randn(2, prior_channels, *(prior_size or size), dtype=dtype, requires_grad=True)
    return features, prior


def make_block(dtype=torch.float32, **options) -> PriorFusionBlock:
    """A block whose temperatures and norms are not at their initial values."""
    block = PriorFusionBlock(8, 4, **options).to(dtype)
    with torch.no_grad():
        block.temperature.copy_(torch.linspace(0.5, 1.5, block.num_heads).view(-1, 1, 1))
        for norm in (block.norm, block.prior_norm):
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def literal(block: PriorFusionBlock, features: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Eq. 4 with the block's own projections W and its gamma."""
    f, p = features, prior
    if block.normalize:
        norm, prior_norm = block.norm, block.prior_norm
        f = F.layer_norm(f.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias).permute(0, 3, 1, 2)
        p = F.layer_norm(p.permute(0, 2, 3, 1), (4,), prior_norm.weight, prior_norm.bias).permute(0, 3, 1, 2)
    if p.shape[-2:] != f.shape[-2:]:
        p = F.interpolate(p, f.shape[-2:], mode="bilinear", align_corners=False)
    point_q, depth_q = block.to_query
    point_kv, depth_kv = block.to_key_value
    query = F.conv2d(F.conv2d(p, point_q.weight, point_q.bias), depth_q.weight, depth_q.bias, padding=1, groups=8)
    both = F.conv2d(F.conv2d(f, point_kv.weight, point_kv.bias), depth_kv.weight, depth_kv.bias, padding=1, groups=16)
    key, value = both[:, :8], both[:, 8:]
    attended = eq4_prior_fusion(query, key, value, block.temperature, block.num_heads, block.normalize)
    return F.conv2d(attended, block.project_out.weight, block.project_out.bias) + features


# matches_reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize(("size", "prior_size"), [((6, 5), None), ((7, 9), (4, 5)), ((5, 4), (10, 8))])
def test_it_is_eq_4_with_every_gradient(dtype, normalize, num_heads, size, prior_size):
    block = make_block(dtype, normalize=normalize, num_heads=num_heads, bias=num_heads == 2)
    features, prior = inputs(size, prior_size, dtype)
    out, expected = block(features, prior), literal(block, features, prior)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    upstream = torch.randn_like(out)
    wrt = [features, prior, *block.parameters()]
    got, wanted = torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance * max(1.0, theirs.abs().max().item()), rtol=tolerance)
        assert ours.abs().max() > 0


def test_non_contiguous_inputs():
    block = make_block(torch.float64)
    features, prior = (x.detach().transpose(2, 3) for x in inputs((5, 6), (3, 2), torch.float64))
    assert not features.is_contiguous()
    torch.testing.assert_close(block(features, prior), literal(block, features, prior))
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(last, prior), block(features, prior))


def test_queries_come_from_the_prior_and_keys_and_values_from_the_features():
    block = make_block()
    assert [conv.groups for conv in block.to_query] == [1, 8]
    assert [conv.kernel_size for conv in block.to_query] == [(1, 1), (3, 3)]
    assert block.to_query[0].in_channels == 4
    assert block.to_key_value[0].in_channels == 8
    assert [conv.groups for conv in block.to_key_value] == [1, 16]


# temperature


@pytest.mark.parametrize("normalize", [True, False])
def test_the_temperature_is_trained_one_per_head(normalize):
    block = make_block(num_heads=4, normalize=normalize)
    features, prior = inputs()
    (gradient,) = torch.autograd.grad(block(features, prior).square().sum(), block.temperature)
    assert gradient.shape == (4, 1, 1)
    assert gradient.abs().min() > 0
    assert torch.equal(PriorFusionBlock(8, 4, num_heads=2).temperature, torch.ones(2, 1, 1))


def test_gamma_divides_a_hot_block_averages_the_channels():
    block = make_block()
    features, prior = inputs()
    with torch.no_grad():
        block.temperature.fill_(1e6)
    _, value = block.to_key_value(block.norm(features)).chunk(2, dim=1)
    mean = value.mean(dim=1, keepdim=True).expand_as(value)
    torch.testing.assert_close(block(features, prior), features + block.project_out(mean), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("low", [0.0, -3.0, 1e-4])
def test_the_temperature_is_kept_away_from_zero(low):
    block = make_block()
    features, prior = inputs()
    with torch.no_grad():
        block.temperature.fill_(low)
    out = block(features, prior)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.square().sum(), block.temperature)
    assert gradient.abs().max() > 0  # it can come back
    with torch.no_grad():
        block.temperature.fill_(1e-2)
    torch.testing.assert_close(out, block(features, prior))


# gradcheck


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    block = make_block(torch.float64, normalize=normalize, num_heads=2)
    features = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    prior = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (features, prior))
    gradients = torch.autograd.grad(block(features, prior).square().sum(), (features, prior))
    assert all(g.abs().max() > 1e-6 for g in gradients)


def test_a_flat_picture_and_an_empty_prior_have_finite_gradients():
    block = make_block()
    features = torch.zeros(1, 8, 4, 4, requires_grad=True)
    prior = torch.zeros(1, 4, 4, 4, requires_grad=True)
    out = block(features, prior)
    gradients = torch.autograd.grad(out.sum(), [features, prior, *block.parameters()])
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


# invariants


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4, 8]))
def test_any_sizes_go_in_and_the_features_size_comes_out(height, width, prior_height, prior_width, num_heads):
    features, prior = inputs((height, width), (prior_height, prior_width))
    out = make_block(num_heads=num_heads)(features, prior)
    assert out.shape == features.shape
    assert out.isfinite().all()


def test_heads_do_not_see_each_other():
    block = make_block(num_heads=2, normalize=False)
    with torch.no_grad():
        block.project_out.weight.copy_(torch.eye(8)[:, :, None, None])
        block.to_key_value[0].weight.copy_(torch.eye(8).repeat(2, 1)[:, :, None, None])
    features, prior = inputs()
    features = features.detach()
    base = block(features, prior) - features
    changed = features.clone()
    changed[:, :4] += 1  # the first head's channels
    after = block(changed, prior) - changed
    assert not torch.allclose(after[:, :4], base[:, :4])
    torch.testing.assert_close(after[:, 4:], base[:, 4:])


def test_pictures_of_a_batch_do_not_see_each_other():
    block = make_block()
    features, prior = inputs()
    torch.testing.assert_close(block(features, prior)[1:], block(features[1:], prior[1:]))


def test_with_normalisation_the_strength_of_the_prior_does_not_matter():
    block = PriorFusionBlock(8, 4)
    features, prior = inputs()
    torch.testing.assert_close(block(features, prior * 7), block(features, prior), atol=1e-4, rtol=1e-4)


# DilatedResidualDenseBlock


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dense_block_is_dense_dilated_and_residual(dtype):
    block = DilatedResidualDenseBlock(6, num_layers=3, growth=4, dilation=2).to(dtype)
    x = torch.randn(2, 6, 9, 7, dtype=dtype)
    dense = x
    for layer in block.dense_layers:
        grown = F.conv2d(dense, layer.conv.weight, layer.conv.bias, padding=2, dilation=2)
        dense = torch.cat([dense, grown.clamp(min=0)], dim=1)
    expected = x + F.conv2d(dense, block.conv_1x1.weight, block.conv_1x1.bias)
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():  # another implementation
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("num_layers", [0, 2])
def test_the_dense_block_without_gradient_is_the_same_layer_by_layer(num_layers):
    block = DilatedResidualDenseBlock(4, num_layers=num_layers, growth=3)
    x = torch.randn(2, 4, 8, 6)
    before, seen = x.clone(), []
    for layer in (block.dense_layers, *block.dense_layers):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        expected, layers = block(x), seen.copy()
        seen.clear()
        with torch.no_grad():
            found = block(x)
    assert (found.dtype, len(seen)) == (expected.dtype, num_layers + 1)
    for one, other in zip([found, *seen], [expected, *layers], strict=True):
        torch.testing.assert_close(one, other.detach())
    assert torch.equal(x, before)


def test_the_dense_block_sees_as_far_as_its_dilated_layers():
    block = DilatedResidualDenseBlock(4, num_layers=3, growth=4).double()
    x = torch.randn(1, 4, 25, 25, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 12, 12].sum(), x)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert (rows.min(), rows.max()) == (12 - 6, 12 + 6)


# SemanticGuidedFusion


def test_a_stage_is_the_fusion_module_and_then_the_prior_fusion_block():
    fusion = nn.Conv2d(8, 8, 3, padding=1)
    stage = SemanticGuidedFusion(8, 4, fusion=fusion, num_heads=2)
    features, prior = inputs(prior_size=(3, 2))
    assert stage.fusion is fusion
    assert stage.prior_fusion.num_heads == 2
    assert torch.equal(stage(features, prior), stage.prior_fusion(fusion(features), prior))
    assert isinstance(SemanticGuidedFusion(8, 4).fusion, DilatedResidualDenseBlock)


def test_every_parameter_of_a_stage_takes_part():
    stage = SemanticGuidedFusion(8, 4)
    stage(*inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in stage.parameters())


def test_bf16_autocast_runs_and_stays_near_float32():
    stage = SemanticGuidedFusion(8, 4, num_heads=2)
    features, prior = inputs(prior_size=(3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        out = stage(features, prior)
    assert (out.float() - stage(features, prior)).abs().max() < 0.1


# rejects_bad_input


@pytest.mark.parametrize("num_heads", [3, 16])
def test_rejects_heads_that_do_not_divide(num_heads):
    with pytest.raises(ValueError, match=rf"num_heads must divide channels=8, got {num_heads}"):
        PriorFusionBlock(8, 4, num_heads=num_heads)


@pytest.mark.parametrize("value", [0, -1, 4.0, "8", True])
@pytest.mark.parametrize("option", ["channels", "prior_channels", "num_heads"])
def test_rejects_numbers_that_are_no_counts(option, value):
    with pytest.raises(ValueError, match=f"{option} must be a whole number >= 1, got {value!r}"):
        PriorFusionBlock(**{"channels": 8, "prior_channels": 4, option: value})


def test_rejects_bad_inputs():
    block = PriorFusionBlock(8, 4)
    features, prior = inputs()
    with pytest.raises(ValueError, match=r"features must have 4 axes \(B, C, H, W\)"):
        block(features[0], prior)
    with pytest.raises(ValueError, match=r"prior must have 4 axes"):
        block(features, prior[0])
    with pytest.raises(TypeError, match=r"prior must be a floating-point tensor"):
        block(features, prior.detach().long())
    with pytest.raises(
        ValueError, match=r"features and prior must have one batch size, got \(2, 8, 6, 5\) and \(1, 4, 6, 5\)"
    ):
        block(features, prior[:1])


@pytest.mark.parametrize("make", [lambda: PriorFusionBlock(8, 4), lambda: SemanticGuidedFusion(8, 4)])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f, p: (f[0], p), ValueError, r"features must have 4 axes \(B, C, H, W\)"),
        (lambda f, p: (f.int(), p), TypeError, r"features must be a floating-point tensor, got torch\.int32"),
        (lambda f, p: (f.numpy(), p), TypeError, r"features must be a torch\.Tensor .*, got ndarray"),
        (lambda f, p: (f[:, :6], p), ValueError, "features must have 8 channels"),
        (lambda f, p: (f, p[:, :3]), ValueError, "prior must have 4 channels"),
        (
            lambda f, p: (f.double(), p),
            TypeError,
            r"features and the module's parameters must have one dtype, got .*64",
        ),
        (lambda f, p: (f, p.double()), TypeError, r"prior and the module's parameters must have one dtype, got .*64"),
    ],
)
def test_rejects_what_the_inner_module_would_stumble_over(make, change, error, message):
    features, prior = (x.detach() for x in inputs())
    with pytest.raises(error, match=f"^{message}"):
        make()(*change(features, prior))


@pytest.mark.parametrize(
    ("fusion", "shape"),
    [(nn.Conv2d(8, 8, 3, padding=1, stride=2), r"\(2, 8, 3, 3\)"), (nn.Conv2d(8, 6, 1), r"\(2, 6, 6, 5\)")],
)
def test_rejects_an_inner_module_that_changes_the_shape(fusion, shape):
    message = rf"^features and the output of fusion must have the same shape, got \(2, 8, 6, 5\) and {shape}"
    with pytest.raises(ValueError, match=message):
        SemanticGuidedFusion(8, 4, fusion=fusion)(*inputs())


@pytest.mark.parametrize(
    ("option", "value"), [("channels", 0), ("num_layers", -1), ("growth", -3), ("growth", 2.0), ("dilation", 0)]
)
def test_the_dense_block_rejects_numbers_out_of_range(option, value):
    least = 0 if option == "num_layers" else 1
    with pytest.raises(ValueError, match=rf"^{option} must be a whole number >= {least}, got {value}"):
        DilatedResidualDenseBlock(**{"channels": 4, option: value})


def test_the_dense_block_rejects_bad_inputs():
    block = DilatedResidualDenseBlock(4, num_layers=2, growth=3)
    with pytest.raises(ValueError, match=r"^x must have 4 axes \(B, C, H, W\), got shape \(4, 6, 5\)"):
        block(torch.rand(4, 6, 5))
    with pytest.raises(ValueError, match=r"^x must have 4 channels"):
        block(torch.rand(1, 3, 6, 5))
    with pytest.raises(TypeError, match=r"^x must be a floating-point tensor, got torch\.uint8"):
        block(torch.zeros(1, 4, 6, 5, dtype=torch.uint8))


# compiles


@pytest.mark.parametrize("prior_size", [None, (3, 2)])
def test_compiles(prior_size):
    block = make_block(num_heads=2)
    features, prior = inputs(prior_size=prior_size)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(features, prior), block(features, prior))
    got = torch.autograd.grad(compiled(features, prior).square().sum(), [features, prior, block.temperature])
    wanted = torch.autograd.grad(block(features, prior).square().sum(), [features, prior, block.temperature])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
