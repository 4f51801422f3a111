"""Random masks and mixing against the argument of eq. 11's decoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.ops import reference
from skt_components.ops.masking import complementary_masks, mix_features


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(x: torch.Tensor) -> torch.Tensor:
    return x


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_mixing_matches_eq11_without_coders(dtype, ratio, layout):
    student, teacher, upstream = (torch.randn(2, 4, 5, 14, dtype=dtype) for _ in range(3))
    if layout == "channels_last":
        student, teacher = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    if layout == "strided":
        student, teacher, upstream = (x[..., ::2] for x in (student, teacher, upstream))
    mask, _ = complementary_masks(student.shape, ratio, generator=seeded(), dtype=dtype)
    results = []
    for mix in (mix_features, lambda s, t, m: reference.eq11_enhanced_feature(s, t, m, same, same, same)):
        leaves = [x.detach().requires_grad_() for x in (student, teacher)]
        mixed = mix(*leaves, mask)
        results.append((mixed, *torch.autograd.grad(mixed, leaves, upstream)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


# gradcheck


def test_gradcheck():
    inputs = [torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mask, _ = complementary_masks(inputs[0].shape, generator=seeded(), dtype=torch.float64)
    gradients = torch.autograd.grad(mix_features(*inputs, mask).sum(), inputs)
    assert all(gradient.abs().max() == 1 for gradient in gradients)
    assert torch.autograd.gradcheck(lambda s, t: mix_features(s, t, mask), inputs)


# invariants


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_masks_are_binary_and_exactly_complementary(ratio, seed, dtype):
    mask, complement = complementary_masks((2, 3, 5, 7), ratio, generator=seeded(seed), dtype=dtype)
    assert mask.dtype == complement.dtype == dtype
    assert mask.shape == complement.shape == (2, 3, 5, 7)
    assert ((mask == 0) | (mask == 1)).all()
    assert torch.equal(complement, (mask == 0).to(dtype))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_ratio_is_the_share_of_ones(ratio):
    mask, _ = complementary_masks((4, 16, 64, 64), ratio, generator=seeded())
    spread = (ratio * (1 - ratio) / mask.numel()) ** 0.5  # of the mean of independent draws
    assert abs(mask.double().mean().item() - ratio) <= 5 * spread
    # Every element is drawn alone: no channel, row or picture is all one value.
    if 0 < ratio < 1:
        for axes in ((2, 3), (0, 1), (1, 2, 3)):
            share = mask.double().mean(dim=axes)
            count = mask.numel() / share.numel()
            assert (share - ratio).abs().max() <= 6 * (ratio * (1 - ratio) / count) ** 0.5
            assert share.std() > 0


def test_neighbors_are_independent():
    mask, _ = complementary_masks((1, 8, 128, 128), generator=seeded())
    for axis in (1, 2, 3):
        a, b = mask.narrow(axis, 1, mask.shape[axis] - 1), mask.narrow(axis, 0, mask.shape[axis] - 1)
        assert (a * b).mean().item() == pytest.approx(0.25, abs=0.01)


def test_a_seeded_generator_reproduces_and_another_seed_differs():
    draws = [complementary_masks((3, 8, 8), generator=seeded(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    generator = seeded(1)
    assert torch.equal(complementary_masks((3, 8, 8), generator=generator)[0], draws[0])
    assert not torch.equal(complementary_masks((3, 8, 8), generator=generator)[0], draws[0])


def test_a_generator_leaves_the_global_randomness_alone():
    state = torch.get_rng_state()
    complementary_masks((3, 8, 8), generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_seed_rules():
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(complementary_masks((2, 9))[0])
    assert torch.equal(*draws)


def test_masks_go_to_the_device_asked_for():
    mask, complement = complementary_masks((2, 2), generator=seeded(), device="meta")
    assert mask.device.type == complement.device.type == "meta"


def test_the_mask_of_a_ratio_grows_with_the_ratio():
    low, high = (complementary_masks((64, 64), ratio, generator=seeded())[0] for ratio in (0.3, 0.6))
    assert (high >= low).all()


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_mixing_takes_each_element_from_one_side(seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 1, 2, 3, 4).unbind(0)
    mask, complement = complementary_masks(student.shape, generator=seeded(seed))
    mixed = mix_features(student, teacher, mask)
    assert torch.equal(mixed, torch.where(mask.bool(), teacher, student))
    assert torch.equal(mix_features(teacher, student, complement), mixed)
    assert torch.equal(mix_features(student, student, mask), student)


def test_a_mask_may_broadcast():
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind(0)
    mask, _ = complementary_masks((4, 5), generator=seeded())
    assert torch.equal(mix_features(student, teacher, mask), mix_features(student, teacher, mask.expand(2, 3, 4, 5)))


# rejects_bad_input


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_the_ratio_is_checked(ratio):
    with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\], got "):
        complementary_masks((2, 2), ratio)


def test_mixing_rejects_what_does_not_fit():
    x = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"student and teacher must have the same shape, got \(2, 3, 4, 5\) and \(1"):
        mix_features(x, x[:1], x)
    for shape in ((3, 3, 4, 5), (2, 3, 4, 6), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"mask must broadcast to \(2, 3, 4, 5\), got shape "):
            mix_features(x, x, torch.zeros(shape))
    with pytest.raises(ValueError, match="mask must broadcast"):  # never enlarges the features
        mix_features(x[:1], x[:1], x)
    for arguments, name in (((x.long(), x, x), "student"), ((x, None, x), "teacher"), ((x, x, x > 0), "mask")):
        with pytest.raises(TypeError, match=f"^{name} must be"):
            mix_features(*arguments)


# compiles


def test_compiles():
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind(0)
    mask, _ = complementary_masks(student.shape)
    compiled = torch.compile(mix_features, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(student, teacher, mask), mix_features(student, teacher, mask))


def test_drawing_compiles():
    compiled = torch.compile(lambda: complementary_masks((4, 8, 8), 0.25), fullgraph=True, backend="aot_eager")
    mask, complement = compiled()
    assert torch.equal(mask + complement, torch.ones(4, 8, 8))
    assert 0 < mask.mean() < 0.5
