"""The content loss against eq. 5, its norms taken as means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skt_components.losses.content import ContentLoss, bound_teacher, content_loss
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
        with pytest.raises(ValueError, match=r"perceptual_weight must be >= 0, got -1\.0"):
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


# norm="l2"


def test_the_l2_norm_is_the_mean_over_pictures_of_the_root_mean_square():
    student, teacher = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    teacher[0, 0, 0, 0] = 1.0  # root mean square 0.5
    teacher[1] = 3.0
    assert content_loss(student, teacher, norm="l2").item() == pytest.approx((0.5 + 3.0) / 2)
    assert ContentLoss(norm="l2")(student, teacher).item() == pytest.approx((0.5 + 3.0) / 2)
    assert "norm='l2'" in repr(ContentLoss(norm="l2"))


def test_both_norms_pull_at_a_picture_equally_strongly():
    student, teacher = (x.requires_grad_() for x in pictures(3, 3, 8, 8))
    pulls = [
        torch.autograd.grad(content_loss(student, teacher, norm=norm), student)[0].flatten(1).norm(dim=1)
        for norm in ("l1", "l2")
    ]
    torch.testing.assert_close(*pulls)


def test_equal_pictures_have_an_l2_loss_and_a_gradient_of_zero():
    student = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = content_loss(student, student.detach().clone(), norm="l2")
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert not gradient.any()


def test_l2_gradcheck():
    leaves = [x.requires_grad_() for x in pictures(2, 3, 3, 4)]
    assert torch.autograd.gradcheck(lambda s, t: content_loss(s, t, norm="l2"), leaves)


def test_an_unknown_norm_is_an_error():
    student, teacher = pictures(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"norm must be one of \['l1', 'l2'\], got 'l3'"):
        content_loss(student, teacher, norm="l3")
    with pytest.raises(ValueError, match="norm must be one of"):
        ContentLoss(norm="L2")


# bound_teacher


@settings(deadline=None, max_examples=50)
@given(seed=seeds, weight=st.floats(0.01, 1000), norm=st.sampled_from(["l1", "l2"]))
def test_following_a_bound_teacher_never_pulls_against_the_truth(seed, weight, norm):
    student, teacher = pictures(2, 3, 6, 7, seed=seed)
    target, _ = pictures(2, 3, 6, 7, seed=seed + 1)
    student.requires_grad_()
    bound = bound_teacher(teacher, student, target)
    assert not bound.requires_grad
    (pull,) = torch.autograd.grad(weight * content_loss(student, bound, norm=norm), student)
    (truth,) = torch.autograd.grad((student - target).abs().mean(), student)
    assert (pull * truth >= 0).all()
    assert pull.any()


def test_a_bound_teacher_by_hand():
    target = torch.tensor([[[[1.0, 1.0, 1.0, 0.0, 0.5]]]])
    student = torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 0.5]]]])
    teacher = torch.tensor([[[[0.25, -1.0, 2.0, 0.75, 0.9]]]])
    assert bound_teacher(teacher, student, target).tolist() == [[[[0.25, 0.0, 1.0, 0.75, 0.5]]]]


def test_a_teacher_that_learns_has_a_gradient_where_it_is_followed():
    student, target = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    teacher = torch.tensor([[[[0.5, -0.5, 1.5]]]], requires_grad=True)
    bound_teacher(teacher, student, target).sum().backward()
    assert teacher.grad.tolist() == [[[[1.0, 0.0, 0.0]]]]


def test_pictures_to_bound_must_fit():
    a, b = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5)
    with pytest.raises(ValueError, match="student"):
        bound_teacher(a, b, a)
    with pytest.raises(ValueError, match="target"):
        bound_teacher(a, a, b)
    with pytest.raises(TypeError, match="teacher"):
        bound_teacher(a.long(), a, a)
