"""The perceptual loss with extractors small enough to compute by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skt_components.losses.perceptual import PerceptualLoss, perceptual_loss

seeds = st.integers(0, 10**6)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.rand(2, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0)
    return student, teacher


def identity(picture: Tensor) -> list[Tensor]:
    return [picture]


def two_scales(picture: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * picture, nn.functional.avg_pool2d(picture, 2)


class Bank(nn.Module):
    """Frozen features behind the protocol of the knowledge banks; calling it is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)

    def forward(self, picture: Tensor) -> str:
        raise AssertionError("the loss must not call a bank, whose forward runs without gradients")

    def extract_features(self, picture: Tensor) -> list[Tensor]:
        return [picture, self.layer(picture)]


# matches_reference: the sum by hand


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("weights", [None, (3.0, 0.5)])
def test_values_and_gradients_match_the_definition(dtype, layout, weights):
    student, teacher = pictures(2, 3, 6, 16, dtype=dtype)
    if layout == "channels_last":
        student, teacher = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    if layout == "strided":
        student, teacher = student[..., ::2], teacher[..., ::2]
    results = []
    first, second = weights or (0.5, 0.5)
    for loss in (
        lambda s, t: perceptual_loss(s, t, two_scales, layer_weights=weights),
        lambda s, t: (
            first * (2 * s - 2 * t).abs().mean()
            + second * (s - t).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).abs().mean()
        ),
    ):
        leaves = [x.detach().requires_grad_() for x in (student, teacher)]
        value = loss(*leaves)
        results.append((value, *torch.autograd.grad(-1.5 * value, leaves)))
    assert results[0][0].dtype == dtype
    assert results[0][0].shape == ()
    torch.testing.assert_close(*results)


def test_by_hand():
    student, teacher = torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5)
    assert perceptual_loss(student, teacher, identity).item() == 0.25
    assert perceptual_loss(student, teacher, two_scales).item() == (0.5 + 0.25) / 2
    assert perceptual_loss(student, teacher, two_scales, layer_weights=[0, 4]).item() == 1.0


# gradcheck


def test_gradcheck():
    bank = Bank().double()
    leaves = [x.requires_grad_() for x in pictures(1, 3, 4, 4)]

    def loss(s, t):
        return perceptual_loss(s, t, bank)

    for gradient in torch.autograd.grad(loss(*leaves), leaves):
        assert gradient.abs().max() > 1e-4
    assert torch.autograd.gradcheck(loss, leaves)


# gradients


def test_gradients_reach_the_pictures_and_not_the_extractor():
    bank = Bank()
    student, teacher = (x.requires_grad_() for x in pictures(1, 3, 6, 6, dtype=torch.float32))
    perceptual_loss(student, teacher, bank).backward()
    assert student.grad.abs().max() > 0
    torch.testing.assert_close(teacher.grad, -student.grad)
    assert bank.layer.weight.grad is None


def test_a_detached_teacher_leaves_the_gradient_of_the_student_alone():
    gradients = []
    for detach in (False, True):
        student, teacher = (x.requires_grad_() for x in pictures(1, 3, 6, 6))
        perceptual_loss(student, teacher.detach() if detach else teacher, two_scales).backward()
        gradients.append(student.grad)
    assert torch.equal(*gradients)


# invariants


@settings(deadline=None)
@given(seeds)
def test_symmetric_positive_and_zero_for_equal_pictures(seed):
    student, teacher = pictures(1, 3, 4, 4, seed=seed)
    assert perceptual_loss(student, teacher, two_scales) == perceptual_loss(teacher, student, two_scales) > 0
    assert perceptual_loss(student, student, two_scales) == 0


@settings(deadline=None)
@given(seeds, st.floats(0, 10), st.floats(0, 10))
def test_linear_in_the_weights(seed, first, second):
    student, teacher = pictures(1, 3, 4, 4, seed=seed)
    parts = [perceptual_loss(student, teacher, two_scales, layer_weights=w) for w in ((1, 0), (0, 1))]
    whole = perceptual_loss(student, teacher, two_scales, layer_weights=(first, second))
    torch.testing.assert_close(whole, first * parts[0] + second * parts[1])


def test_equal_weights_do_not_grow_with_the_number_of_layers():
    student, teacher = pictures(1, 3, 4, 4)
    for count in (1, 2, 7):
        loss = perceptual_loss(student, teacher, lambda picture, n=count: [picture] * n)
        torch.testing.assert_close(loss, (student - teacher).abs().mean())


def test_nothing_but_the_features_counts():
    student, teacher = pictures(1, 3, 4, 4)
    assert perceptual_loss(student, teacher, lambda picture: [picture[:, :0].sum().expand(1)]) == 0


# rejects_bad_input


def test_rejects():
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match="student must be a floating-point tensor"):
        perceptual_loss(x.long(), x, identity)
    with pytest.raises(ValueError, match="student and teacher must have the same shape"):
        perceptual_loss(x, x[..., :2], identity)
    with pytest.raises(ValueError, match=r"teacher must have 4 axes \(B, 3, H, W\)"):
        perceptual_loss(x, x[0], identity)
    for result, name in ((x, "Tensor"), (None, "NoneType"), ({"a": x}, "dict"), ([x, 1.0], "list")):
        with pytest.raises(TypeError, match=f"extractor must return a sequence of tensors, got {name}"):
            perceptual_loss(x, x, lambda picture, r=result: r)
    with pytest.raises(ValueError, match="extractor returned no feature maps"):
        perceptual_loss(x, x, lambda picture: [])
    with pytest.raises(ValueError, match="layer_weights has 3 entries for 2 feature maps"):
        perceptual_loss(x, x, two_scales, layer_weights=(1, 2, 3))
    with pytest.raises(TypeError, match="extractor must be callable, got str"):
        PerceptualLoss("vgg19")


# compiles


def test_compiles():
    compiled = torch.compile(PerceptualLoss(two_scales), fullgraph=True, backend="aot_eager")
    student, teacher = pictures(1, 3, 4, 6)
    torch.testing.assert_close(compiled(student, teacher), perceptual_loss(student, teacher, two_scales))


# module_equals_function


@pytest.mark.parametrize("weights", [None, [2.0, 0.25]])
@pytest.mark.parametrize("extractor", [two_scales, Bank()])
def test_module_equals_function(weights, extractor):
    student, teacher = pictures(1, 3, 6, 6, dtype=torch.float32)
    module = PerceptualLoss(extractor, weights)
    wanted = perceptual_loss(student, teacher, extractor, layer_weights=weights)
    assert torch.equal(module(student, teacher), wanted)
    assert f"layer_weights={None if weights is None else tuple(weights)}" in repr(module)


def test_a_function_adds_nothing_to_the_state():
    module = PerceptualLoss(two_scales)
    assert not module.state_dict()
    assert not list(module.parameters())


def test_an_object_with_only_the_protocol_is_enough():
    class Features:
        def extract_features(self, picture: Tensor) -> list[Tensor]:
            return [picture]

    x = torch.rand(1, 3, 4, 4)
    assert PerceptualLoss(Features())(x, x) == 0
