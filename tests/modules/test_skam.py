"""The alignment module against the literal eqs. 11 and 12."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from skt_components.modules import SKAM
from skt_components.ops.reference import eq11_enhanced_feature, eq12_alignment_loss

DTYPES = [torch.float32, torch.float64]


def features(size=(7, 5), teacher_size=None, dtype=torch.float32, student=4, teacher=6):
    f_s = torch.randn(2, student, *size, dtype=dtype, requires_grad=True)
    f_t = torch.randn(2, teacher, *(teacher_size or size), dtype=dtype, requires_grad=True)
    return f_s, f_t


def literal(skam: SKAM, f_s: torch.Tensor, f_t: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eqs. 11 and 12 with the module's own encoders and decoder."""
    enhanced = eq11_enhanced_feature(f_s, f_t, mask, skam.student_encoder, skam.teacher_encoder, skam.decoder)
    return eq12_alignment_loss(enhanced, f_t), enhanced


# matches_reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_it_is_eqs_11_and_12_with_every_gradient(dtype, size, contiguous, detach):
    skam = SKAM(4, 6, latent_channels=5).to(dtype)
    f_s, f_t = features(size, dtype=dtype)
    if not contiguous:
        f_s, f_t = (f.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for f in (f_s, f_t))
        assert not f_s.is_contiguous() or min(size) == 1
    mask = (torch.rand(2, 5, *size) < 0.5).to(dtype)
    out = skam(f_s, f_t, mask=mask, detach_teacher=detach)
    loss, enhanced = literal(skam, f_s, f_t.detach() if detach else f_t, mask)
    assert out.loss.dtype == dtype
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.enhanced, enhanced)
    assert torch.equal(out.mask, mask)
    upstream = torch.randn_like(enhanced)  # on the enhanced feature as well as on the loss
    inputs = [f_s, f_t, *skam.parameters()]
    got = torch.autograd.grad(out.loss + (out.enhanced * upstream).sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad(loss + (enhanced * upstream).sum(), inputs, allow_unused=True)
    assert (got[1] is None) == detach
    for ours, theirs in zip(got, wanted, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            assert ours.abs().max() > 0


@pytest.mark.parametrize(("size", "teacher_size"), [((7, 5), (14, 10)), ((8, 6), (5, 9)), ((4, 4), (4, 9))])
def test_the_students_latent_is_resized_to_the_teacher(size, teacher_size):
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features(size, teacher_size)
    mask = (torch.rand(2, 5, *teacher_size) < 0.5).float()

    def encode(student: torch.Tensor) -> torch.Tensor:
        return F.interpolate(skam.student_encoder(student), teacher_size, mode="bilinear")

    enhanced = eq11_enhanced_feature(f_s, f_t, mask, encode, skam.teacher_encoder, skam.decoder)
    out = skam(f_s, f_t, mask=mask)
    assert out.enhanced.shape == f_t.shape
    torch.testing.assert_close(out.enhanced, enhanced)
    torch.testing.assert_close(out.loss, eq12_alignment_loss(enhanced, f_t))
    (gradient,) = torch.autograd.grad(out.loss, f_s)
    assert gradient.abs().max() > 0


def test_it_is_zero_when_the_decoder_already_gives_the_teacher():
    skam = SKAM(4, 6, latent_channels=5)
    with torch.no_grad():
        for parameter in skam.decoder.parameters():
            parameter.zero_()
    f_s, _ = features()
    assert skam(f_s, torch.zeros(2, 6, 7, 5)).loss == 0
    torch.testing.assert_close(skam(f_s, torch.full((2, 6, 7, 5), 3.0)).loss, torch.tensor(9.0))


# gradcheck


@pytest.mark.parametrize("teacher_size", [(3, 4), (5, 3)])
def test_gradcheck(teacher_size):
    skam = SKAM(2, 3, latent_channels=2).double()
    f_s = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    f_t = torch.randn(1, 3, *teacher_size, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(1, 2, *teacher_size) < 0.5).double()

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return skam(s, t, mask=mask, detach_teacher=False).loss

    assert torch.autograd.gradcheck(loss, (f_s, f_t))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss(f_s, f_t), (f_s, f_t)))


# the mask


@pytest.mark.parametrize(("share", "source"), [(1.0, "teacher"), (0.0, "student")])
def test_a_mask_of_one_value_takes_one_side_alone(share, source):
    skam = SKAM(4, 6, latent_channels=5, mask_ratio=share)
    f_s, f_t = features()
    out = skam(f_s, f_t)
    assert (out.mask == share).all()
    encoded, other = skam.student_encoder(f_s), (f_s, f_t * 100)
    if source == "teacher":
        encoded, other = skam.teacher_encoder(f_t), (f_s * 100, f_t)
    torch.testing.assert_close(out.enhanced, skam.decoder(encoded))
    assert torch.equal(skam(*other).enhanced, out.enhanced)
    if source == "teacher":
        assert torch.autograd.grad(out.loss, f_s)[0].abs().max() == 0
        return
    teacher_encoder = torch.autograd.grad(out.loss, [*skam.teacher_encoder.parameters()])
    assert all(gradient.abs().max() == 0 for gradient in teacher_encoder)


def test_only_the_latents_under_the_mask_matter():
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features()
    mask = torch.zeros(2, 5, 7, 5)
    mask[0] = 1  # the first picture is the teacher's, the second the student's
    base = skam(f_s, f_t, mask=mask).enhanced
    other_student = skam(f_s + 1, f_t, mask=mask).enhanced
    assert torch.equal(base[0], other_student[0])
    assert not torch.equal(base[1], other_student[1])


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_the_mask_is_binary_has_the_ratio_and_follows_the_generator(ratio, seed):
    skam = SKAM(2, 3, latent_channels=16, mask_ratio=ratio)
    f_s, f_t = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8, 8)
    a = skam(f_s, f_t, generator=torch.Generator().manual_seed(seed))
    b = skam(f_s, f_t, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.loss, b.loss)
    assert a.mask.shape == (2, 16, 8, 8)
    assert ((a.mask == 0) | (a.mask == 1)).all()
    assert abs(a.mask.mean().item() - ratio) < 5 * (0.25 / a.mask.numel()) ** 0.5


def test_every_call_every_picture_and_every_channel_draws_anew():
    skam, generator = SKAM(4, 6, latent_channels=5), torch.Generator().manual_seed(0)
    f_s, f_t = features()
    first, second = (skam(f_s, f_t, generator=generator).mask for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0, 0], first[0, 1])


# detach_teacher


def test_the_teacher_is_a_constant_unless_it_is_let_through():
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features()
    loss = skam(f_s, f_t).loss
    assert torch.autograd.grad(loss, f_t, allow_unused=True, retain_graph=True) == (None,)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, [f_s, *skam.parameters()]))
    (through,) = torch.autograd.grad(skam(f_s, f_t, detach_teacher=False).loss, f_t)
    assert through.abs().max() > 0


def test_training_it_lowers_the_loss():
    skam = SKAM(4, 6, latent_channels=8)
    f_s, f_t = features()
    optimizer, losses = torch.optim.Adam(skam.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = skam(f_s.detach(), f_t, generator=torch.Generator().manual_seed(1)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_features_give_a_float32_loss():
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features()
    with torch.autocast("cpu", torch.bfloat16):
        out = skam(f_s.bfloat16(), f_t.bfloat16())
    assert out.loss.dtype == torch.float32
    assert skam.bfloat16()(f_s.bfloat16(), f_t.bfloat16()).loss.dtype == torch.float32


# rejects_bad_input


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("width", [0, -3, "8", 8.0, None])
def test_rejects_widths_that_are_no_whole_numbers_above_zero(position, width):
    name = ("student_channels", "teacher_channels", "latent_channels")[position]
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number >= 1, got {width!r}"):
        SKAM(*(width if i == position else 4 for i in range(3)))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), "x", None])
def test_rejects_a_ratio_outside_0_1(ratio):
    with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\], got"):
        SKAM(1, 1, mask_ratio=ratio)


def test_rejects_bad_features():
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features()
    with pytest.raises(ValueError, match=r"one batch size, got \(1, 4, 7, 5\), \(2, 6, 7, 5\)"):
        skam(f_s[:1], f_t)
    with pytest.raises(ValueError, match=r"student must have 4 axes"):
        skam(f_s[0], f_t)
    with pytest.raises(TypeError, match=r"teacher must be a floating-point tensor"):
        skam(f_s, f_t.detach().long())
    with pytest.raises(ValueError, match=r"mask must be \(2, 5, 7, 5\), got \(2, 1, 7, 5\)"):
        skam(f_s, f_t, mask=torch.ones(2, 1, 7, 5))
    with pytest.raises(ValueError, match=r"student must have 4 channels"):
        skam(f_t, f_t)
    with pytest.raises(ValueError, match=r"teacher must have 6 channels"):
        skam(f_s, f_s)


def test_rejects_an_empty_batch():
    f_s, f_t = features()
    with pytest.raises(ValueError, match=r"^batch must not be empty: student .* got shape \(0, 4, 7, 5\)"):
        SKAM(4, 6)(f_s[:0], f_t[:0])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5, 7, 5).numpy(), TypeError, r"must be a bool or floating-point tensor .*, got ndarray"),
        ([[1.0]], TypeError, "must be a bool or floating-point tensor .*, got list"),
        (torch.ones(2, 5, 7, 5, dtype=torch.uint8), TypeError, r"must be a bool or .*, got torch\.uint8"),
        (torch.full((2, 5, 7, 5), 255.0), ValueError, "must hold 0 and 1, got values from 255 to 255"),
        (torch.full((2, 5, 7, 5), 0.5), ValueError, r"must hold 0 and 1, got values from 0\.5 to 0\.5"),
    ],
)
def test_rejects_a_bad_mask(mask, error, message):
    with pytest.raises(error, match=f"^mask {message}"):
        SKAM(4, 6, latent_channels=5)(*features(), mask=mask)


# compiles


@pytest.mark.parametrize("teacher_size", [(7, 5), (14, 10)])
def test_compiles(teacher_size):
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features(teacher_size=teacher_size)
    mask = (torch.rand(2, 5, *teacher_size) < 0.5).float()
    compiled = torch.compile(skam, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(f_s, f_t, mask=mask), skam(f_s, f_t, mask=mask)
    torch.testing.assert_close(got.loss, wanted.loss)
    for a, b in zip(torch.autograd.grad(got.loss, [f_s]), torch.autograd.grad(wanted.loss, [f_s]), strict=True):
        torch.testing.assert_close(a, b)
    assert 0 < compiled(f_s, f_t).mask.mean() < 1


def test_a_copy_is_independent_and_the_ratio_is_shown():
    skam = SKAM(4, 6, latent_channels=5, mask_ratio=0.25)
    twin = copy.deepcopy(skam)
    with torch.no_grad():
        twin.decoder[0].weight.add_(1)
    assert not torch.equal(twin.decoder[0].weight, skam.decoder[0].weight)
    assert "mask_ratio=0.25" in repr(skam)


def test_a_bool_mask_is_a_mask():
    skam = SKAM(4, 6, latent_channels=5)
    f_s, f_t = features()
    mask = torch.rand(2, 5, 7, 5) < 0.5
    assert torch.equal(skam(f_s, f_t, mask=mask).enhanced, skam(f_s, f_t, mask=mask.float()).enhanced)
