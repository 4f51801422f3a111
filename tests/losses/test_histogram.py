"""Histogram losses against eqs. 9 and 10 and their properties."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from histogram_cases import BANDWIDTHS, both_engines, both_paths, every_bandwidth, one_hot, region_map, regions, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skt_components.histogram import torch_engine
from skt_components.losses.histogram import (
    HistogramLoss,
    SemanticHistogramLoss,
    histogram_loss,
    semantic_histogram_loss,
)
from skt_components.ops import reference

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_normalization = pytest.mark.parametrize("normalization", ["pixels", "area", "none"])


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Student and teacher: smooth areas, edges and noise, mostly inside [0, 1], and a brighter version of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=True)
    student = smooth + 0.02 * torch.randn(shape, generator=generator)
    teacher = student.clamp_min(0) ** 0.9 + 0.01 * torch.randn(shape, generator=generator)
    return student.to(dtype), teacher.to(dtype)


def results(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> list[Tensor]:
    """The loss of every picture and its gradient for student and teacher, with a weight for every picture."""
    leaves = [x.detach().requires_grad_() for x in (student, teacher)]
    value = loss(*leaves)
    upstream = torch.linspace(-1.5, 2.5, value.numel(), dtype=value.dtype).view_as(value)
    return [value, *torch.autograd.grad(value, leaves, upstream)]


def literal_eq9(student: Tensor, teacher: Tensor, bandwidth: float = 1 / 400, bins: int = 256) -> Tensor:
    losses = [
        reference.eq9_histogram_loss(s, t, bins, (0.0, 1.0), bandwidth)
        for s, t in zip(student.double(), teacher.double(), strict=True)
    ]
    return torch.stack(losses)


def literal_eq10(
    student: Tensor, teacher: Tensor, masks: Tensor, bandwidth: float = 1 / 400, bins: int = 256
) -> Tensor:
    losses = [
        reference.eq10_color_loss(s, t, m.double(), bins, (0.0, 1.0), bandwidth)
        for s, t, m in zip(student.double(), teacher.double(), masks, strict=True)
    ]
    return torch.stack(losses)


def assert_match(got: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    assert wanted[1].norm() > 0
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm()


# matches_reference: eq. 9


@both_engines
@every_bandwidth
@both_dtypes
def test_histogram_loss_matches_eq9(bandwidth, dtype):
    student, teacher = pictures(3, 3, 9, 13, dtype=dtype)

    def loss(s, t):
        return histogram_loss(s, t, bandwidth=bandwidth, normalization="none", reduction="none")

    got = results(loss, student, teacher)
    assert got[0].dtype == got[1].dtype == dtype
    wanted = results(lambda s, t: literal_eq9(s, t, bandwidth), student.double(), teacher.double())
    assert_match(got, wanted, 1e-6)


@both_engines
@pytest.mark.parametrize(
    ("bandwidth", "dtype"), [*((b, torch.float32) for b in BANDWIDTHS), *((b, torch.float64) for b in (1 / 400, 0.5))]
)
@pytest.mark.parametrize("regions_given", [False, True])
def test_the_loss_stays_precise_when_student_and_teacher_nearly_agree(bandwidth, dtype, regions_given):
    # The loss is a small difference of large sums.
    student, _ = pictures(1, 1, 48, 64)
    teacher = student + 1e-4 * torch.randn_like(student)
    labels = region_map(1, 48, 64)

    def loss(s, t):
        options = {"bandwidth": bandwidth, "normalization": "none", "reduction": "none"}
        if not regions_given:
            return histogram_loss(s, t, **options)
        return semantic_histogram_loss(s, t, labels=labels, num_regions=4, **options)

    def wanted(s, t):
        masks = one_hot(labels, 4)
        return literal_eq10(s, t, masks, bandwidth) if regions_given else literal_eq9(s, t, bandwidth)

    exact = results(wanted, student.double(), teacher.double())
    assert_match(results(loss, student.to(dtype), teacher.to(dtype)), exact, 5e-6 if dtype == torch.float32 else 1e-6)


@both_engines
def test_float32_is_precise_to_1e_6_on_a_larger_picture():
    student, teacher = pictures(1, 1, 96, 128)

    def loss(s, t):
        return histogram_loss(s, t, normalization="none", reduction="none")

    assert_match(results(loss, student, teacher), results(literal_eq9, student.double(), teacher.double()), 1e-6)


# matches_reference: eq. 10


def assert_matches_eq10(bandwidth: float, dtype: torch.dtype, kind: str) -> None:
    student, teacher = pictures(3, 3, 9, 13, dtype=dtype)
    masks, labels = regions(3, 9, 13), region_map(3, 9, 13)
    options = {
        "bool": {"masks": masks},
        "float": {"masks": masks.float()},
        "integer": {"masks": masks.int() * 255},
        "labels": {"labels": labels, "num_regions": 4},
        "literal": {"masks": masks, "soft_masks": "literal"},
    }[kind]
    masks = one_hot(labels, 4) if kind == "labels" else masks

    def loss(s, t):
        return semantic_histogram_loss(s, t, bandwidth=bandwidth, normalization="none", reduction="none", **options)

    got = results(loss, student, teacher)
    assert got[0].dtype == got[1].dtype == dtype
    wanted = results(lambda s, t: literal_eq10(s, t, masks, bandwidth), student.double(), teacher.double())
    # The literal form adds every pixel outside to the bins at 0 first, and loses digits when they cancel.
    assert_match(got, wanted, 1e-6 if kind != "literal" or dtype == torch.float64 else 1e-5)


@both_engines
@every_bandwidth
@both_dtypes
@pytest.mark.parametrize("kind", ["bool", "labels"])
def test_semantic_loss_matches_eq10(bandwidth, dtype, kind):
    assert_matches_eq10(bandwidth, dtype, kind)


@both_paths
@both_dtypes
@pytest.mark.parametrize("kind", ["float", "integer", "literal"])
def test_semantic_loss_of_other_kinds_of_masks_matches_eq10(bandwidth, dtype, kind):
    assert_matches_eq10(bandwidth, dtype, kind)


@both_engines
@both_paths
@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_non_contiguous_inputs_match_eq10(bandwidth, layout):
    change = {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "strided": lambda x: x[..., 1:, ::2],
        "transposed": lambda x: x.transpose(-2, -1),
    }[layout]
    student, teacher, masks = (change(x) for x in (*pictures(2, 3, 9, 14), regions(2, 9, 14)))

    assert not any(x.is_contiguous() for x in (student, teacher, masks))

    def loss(s, t):
        assert s.stride() == student.stride()
        return semantic_histogram_loss(s, t, masks, bandwidth=bandwidth, normalization="none", reduction="none")

    wanted = results(lambda s, t: literal_eq10(s, t, masks, bandwidth), student.double(), teacher.double())
    assert_match(results(loss, student, teacher), wanted, 1e-6)


@both_dtypes
def test_soft_masks_are_two_losses_and_each_matches_its_definition(dtype):
    student, teacher = pictures(2, 3, 9, 13, dtype=dtype)
    masks = torch.rand(2, 4, 9, 13) * (torch.rand(2, 4, 9, 13) > 0.3)
    centers = reference.eq6_centers(256, (0.0, 1.0))

    def weighted(s, t):
        kernels = [reference.eq7_kernel(x.double()[..., None], centers, 1 / 400) for x in (s, t)]
        counts = [torch.einsum("brhw,bchwn->brcn", masks.double(), kernel) for kernel in kernels]
        return (counts[0] - counts[1]).square().sum(-1).mean((1, 2))

    wanted = {
        "weighted": results(weighted, student.double(), teacher.double()),
        "literal": results(lambda s, t: literal_eq10(s, t, masks), student.double(), teacher.double()),
    }
    for reading, expected in wanted.items():

        def loss(s, t, reading=reading):
            options = {"soft_masks": reading, "normalization": "none", "reduction": "none"}
            return semantic_histogram_loss(s, t, masks.to(dtype), **options)

        # The literal form rounds the product of picture and mask.
        tolerance = 3e-5 if reading == "literal" and dtype == torch.float32 else 1e-6
        assert_match(results(loss, student, teacher), expected, tolerance)
    for a, b in zip(wanted["weighted"], wanted["literal"], strict=True):
        assert (a - b).norm() > 0.1 * b.norm()


@pytest.mark.parametrize("soft_masks", ["weighted", "literal"])
def test_both_readings_agree_on_binary_masks(soft_masks):
    student, teacher = pictures(2, 3, 9, 13, dtype=torch.float64)
    masks = regions(2, 9, 13).double()
    binary = results(lambda s, t: semantic_histogram_loss(s, t, masks, reduction="none"), student, teacher)
    soft = results(
        lambda s, t: semantic_histogram_loss(s, t, masks, soft_masks=soft_masks, reduction="none"), student, teacher
    )
    assert_match(soft, binary, 1e-6)


def test_literal_soft_masks_receive_the_gradient_of_eq10():
    student, teacher = pictures(1, 3, 5, 7, dtype=torch.float64)
    gradients = []
    for loss in (
        lambda s, t, m: semantic_histogram_loss(s, t, m, soft_masks="literal", normalization="none"),
        lambda s, t, m: literal_eq10(s, t, m).mean(),
    ):
        masks = torch.rand(1, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        gradients.append(torch.autograd.grad(loss(student, teacher, masks), masks)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()


# matches_reference: normalization, reduction, valid


@both_paths
def test_normalizations_divide_the_histograms(bandwidth):
    student, teacher = pictures(2, 3, 9, 13, dtype=torch.float64)
    labels = region_map(2, 9, 13)
    masks = one_hot(labels, 4)
    per_region = torch.stack([literal_eq10(student, teacher, masks[:, r : r + 1], bandwidth) for r in range(4)], dim=1)
    wanted = {
        "none": per_region.mean(1),
        "pixels": per_region.mean(1) / 117**2,
        "area": (per_region / masks.sum((2, 3)) ** 2).mean(1),
    }
    for normalization, expected in wanted.items():
        for options in ({"masks": masks}, {"labels": labels, "num_regions": 4}, {"labels": labels.to(torch.int8)}):
            options = {"bandwidth": bandwidth, "normalization": normalization, "reduction": "none", **options}
            if "num_regions" not in options and "labels" in options:
                options["num_regions"] = 4
            got = semantic_histogram_loss(student, teacher, **options)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    for normalization in ("pixels", "area"):
        got = histogram_loss(student, teacher, bandwidth=bandwidth, normalization=normalization, reduction="none")
        torch.testing.assert_close(got, literal_eq9(student, teacher, bandwidth) / 117**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_area_counts_labels_of_small_types_among_many_regions(dtype):
    student, teacher = pictures(1, 3, 9, 13)
    labels = region_map(1, 9, 13).clamp_min(0)
    options = {"num_regions": 300, "normalization": "area"}
    got = semantic_histogram_loss(student, teacher, labels=labels.to(dtype), **options)
    assert got == semantic_histogram_loss(student, teacher, labels=labels, **options) > 0


def test_weighted_area_is_the_sum_of_the_weights():
    student, teacher = pictures(1, 3, 9, 13)
    masks = regions(1, 9, 13).float()[:, 1:2]
    options = {"soft_masks": "weighted", "normalization": "area"}
    whole = semantic_histogram_loss(student, teacher, masks, **options)
    torch.testing.assert_close(semantic_histogram_loss(student, teacher, masks * 0.25, **options), whole)


@every_normalization
def test_reductions_are_over_the_batch(normalization):
    student, teacher = pictures(3, 3, 9, 13)
    masks = regions(3, 9, 13)
    for loss in (
        lambda **o: histogram_loss(student, teacher, normalization=normalization, **o),
        lambda **o: semantic_histogram_loss(student, teacher, masks, normalization=normalization, **o),
    ):
        each = loss(reduction="none")
        assert each.shape == (3,)
        assert each.unique().numel() == 3
        torch.testing.assert_close(loss(reduction="sum"), each.sum())
        torch.testing.assert_close(loss(), each.mean())


def test_valid_chooses_the_regions_that_are_averaged():
    student, teacher = pictures(3, 3, 9, 13)
    masks = regions(3, 9, 13)
    valid = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    got = semantic_histogram_loss(student, teacher, masks, valid=valid, reduction="none")
    some = semantic_histogram_loss(student[:1], teacher[:1], masks[:1, :2])
    all_four = semantic_histogram_loss(student[1:2], teacher[1:2], masks[1:2])
    torch.testing.assert_close(got, torch.stack([some, all_four, torch.tensor(0.0)]))
    # Without it, empty regions count in the average too.
    nonempty = semantic_histogram_loss(student, teacher, masks, valid=masks.any(-1).any(-1), reduction="none")
    everything = semantic_histogram_loss(student, teacher, masks, reduction="none")
    torch.testing.assert_close(nonempty * torch.tensor([3, 3, 2]), everything * 4)


# empty regions, special values


@pytest.mark.parametrize(
    ("bandwidth", "normalization"), [(1 / 400, "pixels"), (1 / 400, "area"), (1 / 400, "none"), (0.5, "pixels")]
)
@pytest.mark.parametrize(
    "options",
    [
        {"masks": torch.zeros(2, 3, 9, 13, dtype=torch.bool)},
        {"masks": torch.zeros(2, 3, 9, 13), "soft_masks": "weighted"},
        {"masks": torch.zeros(2, 3, 9, 13), "soft_masks": "literal"},
        {"masks": torch.zeros(2, 0, 9, 13, dtype=torch.bool)},
        {"masks": torch.zeros(2, 0, 9, 13), "soft_masks": "literal"},
        {"masks": regions(2, 9, 13), "valid": torch.zeros(2, 4, dtype=torch.bool)},
        {"labels": torch.full((2, 9, 13), -1), "num_regions": 3},
        {"labels": torch.full((2, 9, 13), -1)},
        {"labels": torch.full((2, 9, 13), 7), "num_regions": 3},
    ],
)
def test_nothing_to_compare_is_a_connected_zero(bandwidth, normalization, options):
    student, teacher = (x.requires_grad_() for x in pictures(2, 3, 9, 13))
    loss = semantic_histogram_loss(student, teacher, bandwidth=bandwidth, normalization=normalization, **options)
    loss.backward()
    if options.get("soft_masks") == "literal":  # counts the zeros of two black pictures, which differ by rounding
        assert loss < 1e-25
        assert student.grad.abs().max() < 1e-10 > teacher.grad.abs().max()
    else:
        assert loss == student.grad.abs().max() == teacher.grad.abs().max() == 0


@both_engines
@both_paths
def test_pixels_outside_all_regions_do_not_matter(bandwidth):
    student, teacher = pictures(2, 3, 9, 13)
    labels = region_map(2, 9, 13)
    outside = ((labels < 0) | (labels > 3))[:, None].expand_as(student)
    loss = SemanticHistogramLoss(bandwidth=bandwidth)
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, labels=labels, num_regions=4)
    value.backward()
    assert leaf.grad[outside].abs().max() == 0
    assert leaf.grad[~outside].abs().max() > 0
    changed = torch.where(outside, torch.rand_like(student), student)
    changed[0, 0][outside[0, 0]] = float("nan")
    assert loss(changed, teacher, labels=labels, num_regions=4) == value


@both_engines
@both_paths
def test_infinities_give_a_finite_loss_and_no_gradient_of_their_own(bandwidth):
    student, teacher = pictures(1, 3, 9, 13)
    student[:, :, 2, 3], student[:, :, 2, 4] = float("inf"), float("-inf")
    teacher[:, :, 5, 5] = float("inf")
    loss, student_gradient, teacher_gradient = results(
        lambda s, t: histogram_loss(s, t, bandwidth=bandwidth, reduction="none"), student, teacher
    )
    assert loss.isfinite().all()
    for picture, gradient in ((student, student_gradient), (teacher, teacher_gradient)):
        assert gradient.isfinite().all()
        assert gradient[picture.isinf()].abs().max() == 0
        assert gradient.abs().max() > 0


@both_engines
@both_paths
def test_nan_makes_the_loss_of_its_picture_nan(bandwidth):
    student, teacher = pictures(2, 3, 9, 13)
    student[1, 0, 2, 3] = float("nan")
    loss = histogram_loss(student, teacher, bandwidth=bandwidth, reduction="none")
    assert loss.isnan().tolist() == [False, True]
    loss = semantic_histogram_loss(student, teacher, regions(2, 9, 13)[:, 1:2] | True, bandwidth=bandwidth)
    assert loss.isnan()


# gradcheck


@pytest.mark.parametrize("bandwidth", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["global", "masks", "weighted", "literal", "labels"])
def test_gradcheck(bandwidth, kind):
    student, teacher = (x.requires_grad_() for x in pictures(2, 2, 3, 4, dtype=torch.float64))
    masks = regions(2, 3, 4, 3)
    soft = masks * torch.rand(2, 3, 3, 4, dtype=torch.float64)
    options = {
        "masks": {"masks": masks},
        "weighted": {"masks": soft, "soft_masks": "weighted"},
        "literal": {"masks": soft, "soft_masks": "literal"},
        "labels": {"labels": region_map(2, 3, 4, 3), "num_regions": 3},
    }

    def loss(s, t):
        shared = {"num_bins": 16, "bandwidth": bandwidth, "normalization": "none", "reduction": "none"}
        if kind == "global":
            return histogram_loss(s, t, **shared)
        return semantic_histogram_loss(s, t, **shared, **options[kind])

    for gradient in torch.autograd.grad(loss(student, teacher).sum(), (student, teacher)):
        assert gradient.abs().max() > 1e-3
    assert torch.autograd.gradcheck(loss, (student, teacher))


def test_a_second_derivative_is_rejected():
    student, teacher = pictures(1, 3, 5, 7)
    (gradient,) = torch.autograd.grad(histogram_loss(student.requires_grad_(), teacher), student, create_graph=True)
    with pytest.raises(NotImplementedError, match="the soft histogram has no second derivative"):
        gradient.square().sum().backward()


# gradients of student and teacher


@both_engines
@both_paths
def test_the_teacher_receives_the_exact_negative_side(bandwidth):
    # The loss is symmetric, so swapping the pictures must swap the gradients, bit for bit.
    student, teacher = pictures(2, 3, 9, 13)
    masks = regions(2, 9, 13)

    def loss(s, t):
        return semantic_histogram_loss(s, t, masks, bandwidth=bandwidth, reduction="none")

    value, for_student, for_teacher = results(loss, student, teacher)
    swapped_value, swapped_student, swapped_teacher = results(loss, teacher, student)
    torch.testing.assert_close(swapped_value, value)
    torch.testing.assert_close(swapped_teacher, for_student, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(swapped_student, for_teacher, rtol=1e-5, atol=1e-9)
    # At equal pixel values the two gradients are each other's negative, exactly.
    common = student.clone()
    common[..., :4] = teacher[..., :4]
    _, for_student, for_teacher = results(loss, student, common)
    assert torch.equal(for_student[..., 4:], -for_teacher[..., 4:])
    assert for_student[..., 4:].abs().max() > 0


def test_a_detached_teacher_changes_nothing_for_the_student():
    student, teacher = pictures(1, 3, 9, 13)
    gradients = []
    for other in (teacher, teacher.clone().requires_grad_()):
        leaf = student.clone().requires_grad_()
        histogram_loss(leaf, other).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("size", [(16, 16), (64, 96)])
def test_the_gradient_at_the_default_bandwidth_reaches_nearly_every_pixel(size):
    student, teacher = pictures(1, 3, *size)
    leaf = student.clone().requires_grad_()
    histogram_loss(leaf, teacher).backward()
    inside = (student > 0.01) & (student < 0.99)
    assert (leaf.grad[inside] != 0).float().mean() > 0.99
    # Descending along it lowers the loss.
    step = 1e-4 * leaf.grad / leaf.grad.abs().max()
    assert histogram_loss(student - step, teacher) < histogram_loss(student, teacher)


def test_descending_brings_the_colors_over():
    student = 0.4 + 0.02 * torch.randn(1, 1, 16, 16)
    teacher = 0.45 + 0.02 * torch.randn(1, 1, 16, 16)
    leaf = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=2e-3)
    loss = HistogramLoss(bandwidth=1 / 32)
    for _ in range(60):
        optimizer.zero_grad()
        loss(leaf, teacher).backward()
        optimizer.step()
    assert loss(leaf, teacher) < 0.05 * loss(student, teacher)
    assert abs(leaf.median() - teacher.median()) < 0.01


# invariants


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS), st.sampled_from(["pixels", "area", "none"]))
def test_one_full_mask_is_the_global_loss(seed, bandwidth, normalization):
    student, teacher = pictures(2, 3, 6, 7, seed=seed)
    options = {"bandwidth": bandwidth, "normalization": normalization, "reduction": "none"}
    wanted = results(lambda s, t: histogram_loss(s, t, **options), student, teacher)
    for regions_given in (
        {"masks": torch.ones(2, 1, 6, 7, dtype=torch.bool)},
        {"labels": torch.zeros(2, 6, 7, dtype=torch.int64), "num_regions": 1},
    ):
        got = results(lambda s, t, r=regions_given: semantic_histogram_loss(s, t, **options, **r), student, teacher)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_equal_pictures_give_zero(backend, seed, bandwidth):
    student, _ = pictures(2, 3, 6, 7, seed=seed)
    masks = regions(2, 6, 7, seed=seed)
    options = {"bandwidth": bandwidth, "backend": backend, "reduction": "none"}
    for loss, *gradients in (
        results(lambda s, t: histogram_loss(s, t, **options), student, student),
        results(lambda s, t: semantic_histogram_loss(s, t, masks, **options), student, student),
    ):
        assert loss.max() < 1e-20
        assert all(gradient.abs().max() < 1e-9 for gradient in gradients)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_shuffling_the_pixels_inside_a_region_changes_nothing(seed, bandwidth):
    student, teacher = pictures(1, 3, 6, 7, seed=seed)
    labels = region_map(1, 6, 7, 3, seed=seed) % 3
    generator = torch.Generator().manual_seed(seed)
    shuffled = student.clone()
    for region in range(3):
        inside = (labels[0] == region).flatten().nonzero()[:, 0]
        order = inside[torch.randperm(len(inside), generator=generator)]
        shuffled[0].flatten(1)[:, inside] = student[0].flatten(1)[:, order]
    options = {"labels": labels, "num_regions": 3, "bandwidth": bandwidth}
    torch.testing.assert_close(
        semantic_histogram_loss(shuffled, teacher, **options), semantic_histogram_loss(student, teacher, **options)
    )
    assert semantic_histogram_loss(shuffled, student, **options) < 1e-20


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS), st.permutations(range(4)))
def test_the_order_of_the_regions_does_not_matter(seed, bandwidth, order):
    student, teacher = pictures(2, 3, 6, 7, seed=seed)
    masks = regions(2, 6, 7, seed=seed)
    labels = region_map(2, 6, 7, seed=seed) % 4
    relabelled = torch.tensor(order)[labels]
    torch.testing.assert_close(
        semantic_histogram_loss(student, teacher, masks[:, list(order)], bandwidth=bandwidth),
        semantic_histogram_loss(student, teacher, masks, bandwidth=bandwidth),
    )
    torch.testing.assert_close(
        semantic_histogram_loss(student, teacher, labels=relabelled, num_regions=4, bandwidth=bandwidth),
        semantic_histogram_loss(student, teacher, labels=labels, num_regions=4, bandwidth=bandwidth),
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(BANDWIDTHS))
def test_the_loss_is_symmetric_and_not_negative(seed, bandwidth):
    student, teacher = pictures(2, 3, 6, 7, seed=seed)
    loss = histogram_loss(student, teacher, bandwidth=bandwidth, reduction="none")
    assert (loss > 0).all()
    torch.testing.assert_close(histogram_loss(teacher, student, bandwidth=bandwidth, reduction="none"), loss)


@both_paths
@pytest.mark.parametrize("times", [2, 3])
def test_normalized_losses_do_not_grow_with_the_picture(bandwidth, times):
    # The same pixels n^2 times: counts grow by n^2, their squares by n^4, shares not at all.
    student, teacher = pictures(1, 3, 6, 7)
    masks = regions(1, 6, 7)
    growth = {"pixels": 1.0, "area": 1.0, "none": float(times**4)}
    for normalization, factor in growth.items():
        options = {"bandwidth": bandwidth, "normalization": normalization}
        small = semantic_histogram_loss(student, teacher, masks, **options)
        large = semantic_histogram_loss(*(x.tile(1, 1, times, times) for x in (student, teacher, masks)), **options)
        torch.testing.assert_close(large, small * factor, rtol=1e-5, atol=0)


@both_paths
def test_pictures_of_a_batch_are_independent(bandwidth):
    student, teacher = pictures(3, 3, 9, 13)
    masks = regions(3, 9, 13)

    def loss(s, t, m):
        return semantic_histogram_loss(s, t, m, bandwidth=bandwidth, reduction="sum")

    leaf = student.clone().requires_grad_()
    loss(leaf, teacher, masks).backward()
    for b in range(3):
        alone = student[b : b + 1].clone().requires_grad_()
        loss(alone, teacher[b : b + 1], masks[b : b + 1]).backward()
        torch.testing.assert_close(leaf.grad[b : b + 1], alone.grad)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 16.0)])
def test_the_unit_of_the_pictures_does_not_matter(value_range):
    low, high = value_range
    student, teacher = pictures(2, 3, 9, 13, dtype=torch.float64)
    moved = histogram_loss(
        *(low + (high - low) * x for x in (student, teacher)), value_range=value_range, bandwidth=(high - low) / 400
    )
    torch.testing.assert_close(moved, histogram_loss(student, teacher), rtol=1e-6, atol=0)


@both_engines
@both_paths
def test_chunk_boundaries_change_nothing(monkeypatch, cpu_engine, bandwidth):
    student, teacher = pictures(2, 3, 9, 13)
    labels = region_map(2, 9, 13)

    def loss(s, t):
        return semantic_histogram_loss(s, t, labels=labels, num_regions=4, bandwidth=bandwidth, reduction="none")

    whole = results(loss, student, teacher)
    monkeypatch.setattr(torch_engine, "_CHUNK", 11)
    if cpu_engine == "numba":
        monkeypatch.setattr("skt_components.histogram.numba_engine._CHUNK", 11)
    torch.testing.assert_close(results(loss, student, teacher), whole)


# precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_warns_its_caller_and_gives_float32(dtype):
    student, teacher = (x.to(dtype) for x in pictures(1, 3, 9, 13))
    masks = regions(1, 9, 13)
    student.requires_grad_()
    for loss, wanted in (
        (histogram_loss, histogram_loss(student.float(), teacher.float())),
        (HistogramLoss(), histogram_loss(student.float(), teacher.float())),
        (
            lambda s, t: semantic_histogram_loss(s, t, masks),
            semantic_histogram_loss(student.float(), teacher.float(), masks),
        ),
    ):
        with pytest.warns(UserWarning, match=f"histogram is of {dtype} values") as caught:
            value = loss(student, teacher)
        assert {warning.filename for warning in caught} == {__file__}
        assert value.dtype == torch.float32
        assert value == wanted


def test_autocast_changes_nothing():
    student, teacher = pictures(2, 3, 9, 13)
    masks = torch.rand(2, 4, 9, 13)
    for options in ({"masks": masks > 0.5}, *({"masks": masks, "soft_masks": s} for s in ("weighted", "literal"))):

        def loss(s, t, options=options):
            return semantic_histogram_loss(s, t, reduction="none", **options)

        plain = results(loss, student, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = results(loss, student, teacher)
        assert autocast[0].dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(autocast, plain, strict=True))


# bandwidth traps


@pytest.mark.parametrize(
    ("bandwidth", "message"),
    [(400.0, "flat and its gradient practically zero"), (1e-4, "between bin centers have practically no gradient")],
)
def test_flat_and_narrow_bandwidths_warn_the_caller_of_function_and_module(bandwidth, message):
    student, teacher = pictures(1, 3, 9, 13)
    masks = regions(1, 9, 13)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = HistogramLoss(bandwidth=bandwidth)

        def forward(self, s: Tensor, t: Tensor) -> Tensor:
            return self.loss(s, t)

    for call in (
        lambda: histogram_loss(student, teacher, bandwidth=bandwidth),
        lambda: semantic_histogram_loss(student, teacher, masks, bandwidth=bandwidth),
        lambda: semantic_histogram_loss(student, teacher, masks, bandwidth=bandwidth, soft_masks="literal"),
        lambda: HistogramLoss(bandwidth=bandwidth)(student, teacher),
        lambda: SemanticHistogramLoss(bandwidth=bandwidth)(student, teacher, masks),
        lambda: SemanticHistogramLoss(bandwidth=bandwidth, soft_masks="literal")(student, teacher, masks),
        lambda: nn.Sequential(Wrapped())[0](student, teacher),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_the_papers_literal_bandwidth_has_practically_no_gradient():
    student, teacher = pictures(1, 3, 9, 13)
    largest = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for bandwidth in (400.0, 1 / 400):
            leaf = student.clone().requires_grad_()
            histogram_loss(leaf, teacher, bandwidth=bandwidth).backward()
            largest[bandwidth] = leaf.grad.abs().max()
    assert largest[400.0] < 1e-6 * largest[1 / 400]


# rejects_bad_input

X = torch.rand(2, 3, 4, 5)
M = torch.zeros(2, 4, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "error", "message"),
    [
        (X.long(), X, {}, TypeError, "student must be a floating-point tensor"),
        (X, [1.0], {}, TypeError, r"teacher must be a torch\.Tensor"),
        (X[0], X[0], {}, ValueError, r"student must have 4 axes \(B, C, H, W\)"),
        (X, X[:1], {}, ValueError, "student and teacher must have the same shape"),
        (X, X, {"normalization": "mean"}, ValueError, r"normalization must be one of \['area', 'none', 'pixels'\]"),
        (X, X, {"reduction": "max"}, ValueError, "reduction must be one of"),
        (X, X, {"num_bins": 0}, ValueError, "num_bins must be a whole number >= 1"),
        (X, X, {"bandwidth": -1.0}, ValueError, "bandwidth must be a finite number > 0"),
        (X, X, {"value_range": (1, 1)}, ValueError, "value_range must be finite with low < high"),
        (X, X, {"backend": "numpy"}, ValueError, "backend must be one of"),
    ],
)
def test_both_losses_reject(student, teacher, options, error, message):
    with pytest.raises(error, match=message):
        histogram_loss(student, teacher, **options)
    with pytest.raises(error, match=message):
        semantic_histogram_loss(student, teacher, M, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "semantic_histogram_loss needs masks or labels"),
        ({"masks": M, "labels": M[:, 0].long()}, ValueError, "give masks or labels, not both"),
        (
            {"masks": M.float(), "labels": M[:, 0].long(), "soft_masks": "literal"},
            ValueError,
            "give masks or labels, not both",
        ),
        ({"masks": M, "num_regions": 4}, ValueError, "num_regions goes with labels"),
        ({"masks": M, "soft_masks": "soft"}, ValueError, "soft_masks must be one of"),
        ({"masks": [1]}, TypeError, r"masks must be a torch.Tensor \(B, R, H, W\), got list"),
        ({"masks": X}, ValueError, r"masks must hold 0 and 1, got other values.*weighted.*literal"),
        ({"masks": M.float().requires_grad_()}, ValueError, "masks must not require a gradient"),
        (
            {"masks": X.clone().requires_grad_(), "soft_masks": "weighted"},
            ValueError,
            "masks must not require a gradient",
        ),
        ({"masks": M[:, 0]}, ValueError, r"masks must be \(B, R, H, W\)"),
        ({"masks": M[..., :2]}, ValueError, r"masks must be \(B, R, H, W\)"),
        ({"masks": M[:1].float(), "soft_masks": "literal"}, ValueError, r"masks must be \(B, R, H, W\)"),
        ({"labels": M[:, 0]}, TypeError, "labels must be an integer tensor"),
        ({"labels": M[:1, 0].long()}, ValueError, r"labels must be \(B, H, W\)"),
        ({"masks": M, "valid": [True]}, TypeError, r"valid must be a bool tensor \(B, R\), got list"),
        ({"masks": M, "valid": torch.ones(2, 4)}, TypeError, r"valid must be a bool tensor .* got torch\.float32"),
        ({"masks": M, "valid": torch.ones(2, 3) > 0}, ValueError, r"valid must be \(B, R\) = \(2, 4\), got \(2, 3\)"),
    ],
)
def test_the_semantic_loss_rejects(options, error, message):
    with pytest.raises(error, match=message):
        semantic_histogram_loss(X, X, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be a finite number > 0"),
        ({"value_range": (1, 0)}, "value_range must be finite with low < high"),
        ({"normalization": "l1"}, "normalization must be one of"),
        ({"reduction": "l1"}, "reduction must be one of"),
        ({"backend": "l1"}, "backend must be one of"),
    ],
)
@pytest.mark.parametrize("module", [HistogramLoss, SemanticHistogramLoss])
def test_the_modules_reject_when_they_are_made(module, options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_the_semantic_module_rejects_an_unknown_reading_of_soft_masks():
    with pytest.raises(ValueError, match="soft_masks must be one of"):
        SemanticHistogramLoss(soft_masks="binary")


# compiles


def test_compiles():
    student, teacher = pictures(2, 3, 9, 13)
    masks = regions(2, 9, 13)
    labels = region_map(2, 9, 13)

    def by_mask(s, t):
        return semantic_histogram_loss(s, t, masks, reduction="none")

    def by_label(s, t):
        options = {"labels": labels, "num_regions": 4, "normalization": "area"}
        return semantic_histogram_loss(s, t, reduction="none", **options)

    def by_soft_mask(s, t):
        return semantic_histogram_loss(s, t, masks.float(), soft_masks="literal", reduction="none")

    def everywhere(s, t):
        return histogram_loss(s, t, reduction="none")

    for loss in (by_mask, by_label, by_soft_mask, everywhere):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(results(compiled, student, teacher), results(loss, student, teacher))


def test_a_compiled_module_gives_the_same():
    student, teacher = pictures(2, 3, 9, 13)
    loss = SemanticHistogramLoss(bandwidth=400.0)  # the warning must not break the graph
    masks = regions(2, 9, 13)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(student, teacher, masks)
    with pytest.warns(UserWarning, match="flat"):
        torch.testing.assert_close(compiled, loss(student, teacher, masks))


# module_equals_function

OPTIONS = {
    "num_bins": 32,
    "value_range": (-0.5, 1.5),
    "bandwidth": 0.1,
    "normalization": "none",
    "reduction": "none",
    "backend": "torch",
}


def test_histogram_module_equals_its_function():
    student, teacher = pictures(2, 3, 9, 13)
    for options in ({}, OPTIONS):
        module = HistogramLoss(**options)
        assert torch.equal(module(student, teacher), histogram_loss(student, teacher, **options))
        assert not module.state_dict()
    assert all(f"{name}={value!r}" in repr(module) for name, value in OPTIONS.items())


def test_semantic_module_equals_its_function():
    student, teacher = pictures(2, 3, 9, 13)
    masks, labels = torch.rand(2, 4, 9, 13), region_map(2, 9, 13)
    valid = torch.tensor([[True, False, True, True]] * 2)
    for options in ({}, OPTIONS):
        for soft in (None, "weighted", "literal"):
            module = SemanticHistogramLoss(**options, soft_masks=soft)
            given_masks = masks if soft else masks > 0.5
            assert torch.equal(
                module(student, teacher, given_masks, valid=valid),
                semantic_histogram_loss(student, teacher, given_masks, valid=valid, soft_masks=soft, **options),
            )
            assert f"soft_masks={soft!r}" in repr(module)
        assert torch.equal(
            module(student, teacher, labels=labels, num_regions=4),
            semantic_histogram_loss(student, teacher, labels=labels, num_regions=4, **options),
        )
    assert not module.state_dict()
    assert not list(module.parameters())


# traps


def test_values_outside_the_range_warn_inside_torch_func_grad_too():
    student, teacher = pictures(1, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"many values of student are outside value_range \(0.0, 1.0\)"):
        torch.func.grad(histogram_loss)(student + 5, teacher)


def test_pictures_outside_the_value_range_warn():
    student = torch.rand(1, 3, 16, 16) * 255
    with pytest.warns(UserWarning, match=r"many values of student are outside value_range \(0.0, 1.0\)"):
        histogram_loss(student, student.flip(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram_loss(student, student.flip(-1), value_range=(0.0, 255.0), bandwidth=1.0)
        histogram_loss(student / 255 + 1.001, student / 255, bandwidth=0.5)  # wide kernels see beyond the range
    with pytest.warns(UserWarning, match=r"many values of teacher are outside value_range \(0.0, 1.0\)"):
        histogram_loss(student / 255, student + 3)


def test_the_teacher_may_change_or_be_of_inference_mode_before_the_backward_pass():
    student, teacher = pictures(1, 3, 9, 13)
    labels, wanted = region_map(1, 9, 13), None
    for kind in ("kept", "changed", "inference"):
        with torch.inference_mode(kind == "inference"):
            target = teacher.clone()
        leaf = student.detach().clone().requires_grad_()
        loss = semantic_histogram_loss(leaf, target, labels=labels, num_regions=4)
        if kind == "changed":
            target.zero_()
        loss.backward()
        wanted = leaf.grad if wanted is None else wanted
        assert torch.equal(leaf.grad, wanted)


@pytest.mark.parametrize("masked", [False, True])
def test_regions_may_be_made_in_inference_mode(masked):
    student, teacher = pictures(1, 3, 9, 13)
    labels, gradients, student = region_map(1, 9, 13), [], student.detach().requires_grad_()
    for inference in (False, True):
        with torch.inference_mode(inference):
            regions = {"labels": labels.clone(), "num_regions": 4}
            if masked:
                regions = {"masks": labels[:, None] == torch.arange(4)[:, None, None]}
        gradients += torch.autograd.grad(semantic_histogram_loss(student, teacher, **regions), student)
    assert torch.equal(*gradients)


def test_an_invalid_region_may_be_nan():
    student, teacher = pictures(1, 3, 9, 13)
    labels, valid = region_map(1, 9, 13).clamp(0, 1), torch.tensor([[True, False]])
    broken = torch.where(labels[:, None] == 1, float("nan"), student.detach()).requires_grad_()
    loss = semantic_histogram_loss(broken, teacher, labels=labels, num_regions=2, valid=valid)
    (gradient,) = torch.autograd.grad(loss, broken)
    wanted = semantic_histogram_loss(student, teacher, labels=labels, num_regions=2, valid=valid)
    torch.testing.assert_close(loss, wanted)
    assert gradient[(labels == 0)[:, None].expand_as(gradient)].abs().max() > 0
    assert not gradient[(labels == 0)[:, None].expand_as(gradient)].isnan().any()


@both_engines
@pytest.mark.parametrize("kind", ["label -1", "valid", "masks", "weights"])
def test_a_nan_that_counts_nowhere_has_gradient_0(kind):
    student, teacher = pictures(2, 3, 9, 13)
    labels = region_map(2, 9, 13).clamp(0, 1)
    away = (labels == 1)[:, None].expand_as(student)
    broken = student.masked_fill(away, float("nan")).requires_grad_()
    masks, valid = torch.stack([labels == 0, labels == 1], 1), torch.tensor([[True, False]] * 2)
    regions = {
        "label -1": {"labels": torch.where(labels == 1, -1, labels), "num_regions": 2},
        "valid": {"labels": labels, "num_regions": 2, "valid": valid},
        "masks": {"masks": masks, "valid": valid},
        "weights": {"masks": masks.float(), "valid": valid, "soft_masks": "weighted"},
    }[kind]
    (gradient,) = torch.autograd.grad(semantic_histogram_loss(broken, teacher, **regions), broken)
    assert gradient[away].abs().max() == 0
    assert gradient[~away].isfinite().all()
    assert gradient[~away].abs().max() > 0


@pytest.mark.parametrize("kind", ["bool", "float", "uint8"])
def test_vmap_takes_every_kind_of_mask(kind):
    student, teacher = pictures(3, 3, 9, 13)
    masks = regions(3, 9, 13)
    masks = {"bool": masks, "float": masks.float(), "uint8": masks.to(torch.uint8)}[kind]
    mapped = torch.vmap(lambda s, t, m: semantic_histogram_loss(s[None], t[None], m[None]))(student, teacher, masks)
    wanted = semantic_histogram_loss(student, teacher, masks, reduction="none")
    torch.testing.assert_close(mapped, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_label_map_passed_as_masks_is_rejected(dtype):
    labels = torch.randint(0, 4, (1, 1, 16, 16)).to(dtype)
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"Pass a label map as labels="):
        semantic_histogram_loss(x, x.flip(-1), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("one", [1, 255])
def test_integer_masks_hold_0_and_1_or_0_and_255(dtype, one):
    student, teacher = pictures(2, 3, 9, 13)
    masks = regions(2, 9, 13)
    wanted = semantic_histogram_loss(student, teacher, masks)
    torch.testing.assert_close(semantic_histogram_loss(student, teacher, masks.to(dtype) * one), wanted)


@pytest.mark.parametrize(
    ("dtype", "soft_masks"), [(torch.uint8, None), (torch.int32, "weighted"), (torch.int64, "literal")]
)
@pytest.mark.parametrize("values", [(0, 1, 255), (1, 255), (0, 128, 255), (0, 2)])
def test_a_mixture_in_integer_masks_is_rejected(dtype, soft_masks, values):
    masks = torch.tensor(values, dtype=dtype).repeat(1, 1, 8, 8)
    x = torch.rand(1, 3, 8, 8 * len(values))
    message = rf"masks of {dtype} must hold 0 and 1, or 0 and 255, got \[{', '.join(map(str, values))}\]\. .*"
    with pytest.raises(ValueError, match=message + r"Exclude pixels .* must be floating-point, with soft_masks="):
        semantic_histogram_loss(x, x.flip(-1), masks, soft_masks=soft_masks)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_masks_of_a_label_maps_dtype_are_never_taken_unseen(dtype):
    student, teacher = (x.detach() for x in pictures(2, 3, 9, 13))
    labels, masks = region_map(2, 9, 13).clamp(min=0)[:, None].to(dtype), regions(2, 9, 13).to(dtype)
    mapped = torch.vmap(lambda s, t, m: semantic_histogram_loss(s[None], t[None], m[None]))
    with pytest.raises(ValueError, match=rf"must be bool, floating-point or uint8, got {dtype}.*label map as labels="):
        mapped(student, teacher, labels)
    whole = torch.compile(semantic_histogram_loss, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"masks inside torch\.compile and torch\.vmap must be"):
        whole(student, teacher, labels)
    parts = torch.compile(semantic_histogram_loss, backend="eager")  # left to the uncompiled loss, which looks
    with pytest.raises(ValueError, match=r"must hold 0 and 1, or 0 and 255.*Pass a label map as labels="):
        parts(student, teacher, labels)
    torch.testing.assert_close(parts(student, teacher, masks), semantic_histogram_loss(student, teacher, masks))


def test_uint8_masks_compile_as_one_graph():
    student, teacher = pictures(2, 3, 9, 13)
    masks = regions(2, 9, 13)
    compiled = torch.compile(semantic_histogram_loss, fullgraph=True, backend="eager")
    got = compiled(student, teacher, masks.to(torch.uint8) * 255)
    torch.testing.assert_close(got, semantic_histogram_loss(student, teacher, masks))


def test_labels_beyond_the_regions_are_ignored():
    x, y = torch.rand(2, 1, 3, 16, 16).unbind(0)
    labels = torch.randint(0, 3, (1, 16, 16))
    ignored = labels.clone()
    ignored[:, :4] = -1
    as_bytes = torch.where(ignored < 0, 255, ignored).to(torch.uint8)
    expected = semantic_histogram_loss(x, y, labels=ignored, num_regions=3)
    assert torch.equal(semantic_histogram_loss(x, y, labels=as_bytes, num_regions=3), expected)
    with pytest.warns(UserWarning, match="label 255 counts as a region, .* If 255 marks pixels to ignore, pass num_"):
        semantic_histogram_loss(x, y, labels=as_bytes)


def test_area_normalization_does_not_depend_on_the_weights_scale():
    x, y = torch.rand(2, 1, 3, 16, 16).unbind(0)
    options = {"soft_masks": "weighted", "normalization": "area"}
    one = semantic_histogram_loss(x, y, torch.ones(1, 1, 16, 16), **options)
    for scale in (1e-1, 1e-4):
        torch.testing.assert_close(semantic_histogram_loss(x, y, torch.full((1, 1, 16, 16), scale), **options), one)


def test_float_masks_compile():
    loss = torch.compile(SemanticHistogramLoss(), fullgraph=True, backend="aot_eager")
    x, y, masks = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), (torch.rand(1, 2, 16, 16) > 0.5).float()
    torch.testing.assert_close(loss(x, y, masks), SemanticHistogramLoss()(x, y, masks))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16])
@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_integers_of_any_type_mark_regions_also_beside_nan(kind, dtype):
    student, teacher = pictures(1, 3, 9, 13)
    student = student.detach().clone()
    student[0, 0, 0, 0] = torch.nan
    marks = region_map(1, 9, 13).clamp_min(0)
    found = []
    for kept in (torch.int64, dtype):
        leaf = student.clone().requires_grad_()
        where = (
            {"labels": marks.to(kept), "num_regions": 4}
            if kind == "labels"
            else {"masks": (marks > 0)[:, None].to(kept)}
        )
        valid = torch.tensor([[False, True, True, True]]) if kind == "labels" else None
        semantic_histogram_loss(leaf, teacher, valid=valid, **where).backward()
        found.append(leaf.grad)
    assert found[0].abs().nan_to_num().max() > 0
    torch.testing.assert_close(found[1], found[0], equal_nan=True)


@pytest.mark.parametrize("ignore", [[65535], [32767], [1000], [999_999, 2**31 - 1], [2**31 - 1]])
def test_labels_far_beyond_all_others_mark_pixels_to_ignore(ignore):
    x, y = torch.rand(2, 1, 3, 16, 16).unbind(0)
    labels = torch.randint(0, 3, (1, 16, 16), dtype=torch.int32)
    marked = labels.clone()
    for row, number in enumerate(ignore):
        labels[:, row], marked[:, row] = -1, number
    expected = semantic_histogram_loss(x, y, labels=labels, num_regions=3)
    with pytest.warns(UserWarning, match=rf"labels of {min(ignore)} and above .* up to 2: .* count in no region"):
        assert torch.equal(semantic_histogram_loss(x, y, labels=marked), expected)
    with pytest.warns(UserWarning, match="count in no region"):  # nothing else in the picture
        assert semantic_histogram_loss(x, y, labels=torch.full_like(labels, ignore[0])) == 0


def test_many_regions_are_no_marks_to_ignore():
    x, y = torch.rand(2, 1, 3, 32, 32).unbind(0)
    labels = torch.arange(1024).view(1, 32, 32)
    assert semantic_histogram_loss(x, y, labels=labels) == semantic_histogram_loss(
        x, y, labels=labels, num_regions=1024
    )


def test_pictures_of_another_scale_warn():
    mostly_black = torch.zeros(1, 3, 64, 64)
    mostly_black[..., 5:7, 5:9] = 200.0
    signed = 2 * torch.rand(1, 3, 64, 64) - 1
    for wrong in (mostly_black, signed, (signed + 0.3).clamp_max(1)):
        with pytest.warns(UserWarning, match=r"many values of student are outside value_range \(0.0, 1.0\)"):
            histogram_loss(wrong, wrong.flip(-1))
    lights = torch.rand(1, 3, 64, 64)
    lights[..., 0, :3] = 1.4  # a network may overshoot a little
    lights[..., 1, :3] = -0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram_loss(lights, lights.flip(-1))
        histogram_loss(torch.where(lights > 1, torch.inf, lights), lights)
