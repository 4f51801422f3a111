"""The content loss against eq. 5, its norms taken as means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skt_components.losses.content import ContentLoss, content_loss
from skt_components.losses.perceptual import PerceptualLoss, perceptual_loss

seeds = st.integers(0, 10**6)
LAMBDA = 1e-2  # of eq. 5


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.rand(2, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0)
    return student, teacher


def phi(picture: Tensor) -> list[Tensor]:
    """A differentiable, nonlinear feature map."""
    return [(picture[..., 1:] * picture[..., :-1]).tanh()]


def never(student: Tensor, teacher: Tensor) -> Tensor:
    raise AssertionError("a term of weight zero must not be computed")


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_values_and_gradients_match_eq5(dtype, layout):
    student, teacher = pictures(2, 3, 5, 14, dtype=dtype)
    if layout == "channels_last":
        student, teacher = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    if layout == "strided":
        student, teacher = student[..., ::2], teacher[..., ::2]
    results = []
    for loss in (
        lambda s, t: content_loss(s, t, perceptual=PerceptualLoss(phi)),
        lambda s, t: (s - t).abs().sum() / s.numel() + LAMBDA * (phi(s)[0] - phi(t)[0]).abs().mean(),
    ):
        leaves = [x.detach().requires_grad_() for x in (student, teacher)]
        value = loss(*leaves)
        results.append((value, *torch.autograd.grad(2.5 * value, leaves)))
    assert results[0][0].dtype == dtype
    assert results[0][0].shape == ()
    torch.testing.assert_close(*results)


def test_by_hand():
    student, teacher = torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.25)
    assert content_loss(student, teacher).item() == 0.5
    # 0.75^2 - 0.25^2 = 0.5
    squared = PerceptualLoss(lambda picture: [picture**2])
    assert content_loss(student, teacher, perceptual=squared, perceptual_weight=2.0).item() == 0.5 + 2 * 0.5
    assert content_loss(student, teacher, perceptual=squared).item() == pytest.approx(0.5 + 0.01 * 0.5)


# gradcheck


def test_gradcheck():
    leaves = [x.requires_grad_() for x in pictures(1, 3, 3, 4)]

    def loss(s, t):
        return content_loss(s, t, perceptual=PerceptualLoss(phi), perceptual_weight=0.5)

    for gradient in torch.autograd.grad(loss(*leaves), leaves):
        assert gradient.abs().max() > 1e-3
    assert torch.autograd.gradcheck(loss, leaves)


# invariants


@settings(deadline=None)
@given(seeds)
def test_symmetric_positive_and_zero_for_equal_pictures(seed):
    student, teacher = pictures(1, 3, 4, 4, seed=seed)
    for perceptual in (None, PerceptualLoss(phi)):
        forward, backward = (content_loss(*x, perceptual=perceptual) for x in ((student, teacher), (teacher, student)))
        assert forward == backward > 0
        assert content_loss(student, student, perceptual=perceptual) == 0


@settings(deadline=None)
@given(seeds, st.floats(0, 100))
def test_the_weight_is_of_the_perceptual_term_alone(seed, weight):
    student, teacher = pictures(1, 3, 4, 4, seed=seed)
    whole = content_loss(student, teacher, perceptual=PerceptualLoss(phi), perceptual_weight=weight)
    pixels, features = content_loss(student, teacher), perceptual_loss(student, teacher, phi)
    torch.testing.assert_close(whole, pixels + weight * features)


def test_the_size_of_the_picture_does_not_matter():
    student, teacher = pictures(1, 3, 4, 4)
    tiled = content_loss(student.tile(2, 1, 3, 5), teacher.tile(2, 1, 3, 5))
    torch.testing.assert_close(tiled, content_loss(student, teacher))


def test_a_term_of_weight_zero_is_not_computed():
    student, teacher = pictures(1, 3, 4, 4)
    assert content_loss(student, teacher, perceptual=never, perceptual_weight=0) == content_loss(student, teacher)


def test_student_and_teacher_keep_their_order_in_the_perceptual_term():
    student, teacher = pictures(1, 3, 4, 4)
    seen = []
    content_loss(student, teacher, perceptual=lambda s, t: seen.append((s, t)) or s.new_zeros(()))
    assert seen[0][0] is student
    assert seen[0][1] is teacher


def test_both_sides_receive_a_gradient_unless_detached():
    student, teacher = (x.requires_grad_() for x in pictures(1, 3, 4, 4))
    content_loss(student, teacher, perceptual=PerceptualLoss(phi)).backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad.abs().min() > 0
    student.grad = teacher.grad = None
    content_loss(student, teacher.detach()).backward()
    assert teacher.grad is None
    assert torch.equal(student.grad, (student - teacher).detach().sign() / student.numel())


# rejects_bad_input


def test_rejects():
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match="student must be a floating-point tensor"):
        content_loss(x.long(), x)
    with pytest.raises(TypeError, match=r"teacher must be a torch\.Tensor"):
        content_loss(x, None)
    with pytest.raises(ValueError, match="student and teacher must have the same shape"):
        content_loss(x, x[:, :1])
    for loss in (lambda: content_loss(x, x, perceptual_weight=-1.0), lambda: ContentLoss(perceptual_weight=-1.0)):
        with pytest.raises(ValueError, match=r"perceptual_weight must be a finite number >= 0, got -1\.0"):
            loss()


# compiles


def test_compiles():
    student, teacher = pictures(1, 3, 4, 6)
    for loss in (ContentLoss(), ContentLoss(PerceptualLoss(phi))):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(student, teacher), loss(student, teacher))


# module_equals_function


def test_module_equals_function():
    student, teacher = pictures(1, 3, 4, 4)
    assert torch.equal(ContentLoss()(student, teacher), content_loss(student, teacher))
    perceptual = PerceptualLoss(phi)
    module = ContentLoss(perceptual, perceptual_weight=0.3)
    wanted = content_loss(student, teacher, perceptual=perceptual, perceptual_weight=0.3)
    assert torch.equal(module(student, teacher), wanted)
    assert "perceptual_weight=0.3" in repr(module)
    assert not module.state_dict()


def test_the_perceptual_module_is_a_child():
    perceptual = PerceptualLoss(nn.Conv2d(3, 1, 1))
    assert perceptual in list(ContentLoss(perceptual).modules())
