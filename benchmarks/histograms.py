"""Histogram losses to compare: data, ours, other implementations, and the exact result."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import skt_components as skt
from skt_components.ops import reference

BINS, BANDWIDTH = 256, 1 / 400
LOSS = skt.SemanticHistogramLoss(num_bins=BINS, bandwidth=BANDWIDTH)
LOSS_IN_TORCH = skt.SemanticHistogramLoss(num_bins=BINS, bandwidth=BANDWIDTH, backend="torch")
Outcome = tuple[Tensor, Tensor]  # the loss and its gradient for the student


class Case(NamedTuple):
    """Two pictures and regions to compare."""

    student: Tensor
    teacher: Tensor
    masks: Tensor  # (B, R, H, W) bool
    labels: Tensor | None  # (B, H, W), where the regions are disjoint


def make_case(
    shape: tuple[int, ...], regions: int, device: torch.device, *, overlapping: bool = False, content: str = "natural"
) -> Case:
    """Make a smooth picture with noise and a brighter one; disjoint patches or overlapping ellipses.

    Args:
        shape: (B, C, H, W).
        regions: number of regions.
        device: device of the tensors.
        overlapping: ellipses that cover a pixel about three times when there are 64 of them.
        content: "natural", "saturated" (all values 1), "close" (teacher is the student with noise of 1e-4).
    """
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(*shape[:2], 8, 8, generator=generator), shape[2:], mode="bicubic"
    )
    student = (smooth + 0.02 * torch.randn(shape, generator=generator)).clamp(0, 1)
    teacher = (student**0.9 + 0.01 * torch.randn(shape, generator=generator)).clamp(0, 1)
    if content == "saturated":
        student, teacher = torch.ones(shape), torch.full(shape, 0.99)
    if content == "close":
        teacher = student + 1e-4 * torch.randn(shape, generator=generator)
    y, x = torch.linspace(0, 1, shape[2])[:, None], torch.linspace(0, 1, shape[3])
    if overlapping:
        cy, cx, a, b = torch.rand(4, shape[0], regions, 1, 1, generator=generator)
        masks = ((y - cy) / (0.03 + 0.24 * a)) ** 2 + ((x - cx) / (0.03 + 0.24 * b)) ** 2 < 1
        labels = None
    else:
        side = int(regions**0.5)
        cell = (y * side).long().clamp_max(side - 1) * side + (x * side).long().clamp_max(side - 1)
        labels = cell.expand(shape[0], -1, -1).contiguous().to(device)
        masks = labels[:, None] == torch.arange(regions, device=device)[:, None, None]
    return Case(student.to(device), teacher.to(device), masks.to(device), labels)


def run(student: Tensor, loss: Callable[[Tensor], Tensor]) -> Outcome:
    leaf = student.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def dense_histogram(x: Tensor, clamp: bool) -> Tensor:
    """Compute eqs. 6 to 8 as usually written in PyTorch: a (pixels x bins) temporary with autograd.

    ``clamp`` keeps the exponent above -80: exp is many times slower on a CPU where its result underflows, so the
    clamped form is the honest baseline.
    """
    centers = reference.eq6_centers(BINS, (0.0, 1.0), x.dtype).to(x.device)
    exponent = -(((x.flatten(2)[..., None] - centers) / BANDWIDTH) ** 2)
    return torch.exp(exponent.clamp(min=-80) if clamp else exponent).sum(dim=2)


def kornia_histogram(x: Tensor) -> Tensor:
    from kornia.enhance import image_histogram2d

    centers = reference.eq6_centers(BINS, (0.0, 1.0), x.dtype).to(x.device)
    gaussian = {"bandwidth": BANDWIDTH / 2**0.5, "centers": centers, "kernel": "gaussian"}
    return image_histogram2d(x, 0.0, 1.0, BINS, **gaussian)[0]


def mask_by_mask(case: Case, histogram: Callable[[Tensor], Tensor]) -> Outcome:
    """Compute eq. 10 literally, one mask after the other; each graph is freed at once, which favors the dense forms."""
    leaf = case.student.clone().requires_grad_()
    pixels, regions = leaf.shape[-1] * leaf.shape[-2], case.masks.shape[1]
    total = leaf.new_zeros(())
    for mask in case.masks.to(leaf.dtype).split(1, dim=1):
        difference = (histogram(leaf * mask) - histogram(case.teacher * mask)) / pixels
        value = difference.square().sum(-1).mean() / regions
        value.backward()
        total += value.detach()
    assert leaf.grad is not None
    return total, leaf.grad


def class_loop(case: Case) -> Outcome:
    """The cost pattern of semantic losses in low-light enhancement: loops over pictures, classes and channels.

    Every histogram is a difference of two sigmoids per pixel and bin. A different loss with the same purpose.
    """
    centers = reference.eq6_centers(BINS, (0.0, 1.0), case.student.dtype).to(case.student.device)
    half = 0.5 / BINS

    def histogram(x: Tensor) -> Tensor:
        distance = x[:, None] - centers
        return (torch.sigmoid((distance + half) / BANDWIDTH) - torch.sigmoid((distance - half) / BANDWIDTH)).sum(0)

    def loss(student: Tensor) -> Tensor:
        total = student.new_zeros(())
        pixels = student.shape[-1] * student.shape[-2]
        for picture, target, masks in zip(student, case.teacher, case.masks, strict=True):
            for mask in masks:
                index = mask.flatten().nonzero()[:, 0]
                for channel, wanted in zip(picture.flatten(1), target.flatten(1), strict=True):
                    total = total + (histogram(channel[index]) - histogram(wanted[index])).abs().mean() / pixels
        return total

    return run(case.student, loss)


def methods(case: Case) -> dict[str, Callable[[], Outcome]]:
    """Return all implementations; all except the class loop give the same loss and gradient."""
    regions = case.masks.shape[1]
    where = {"masks": case.masks} if case.labels is None else {"labels": case.labels, "num_regions": regions}
    target = LOSS.precompute(case.teacher, **where)
    compiled = torch.compile(lambda x: dense_histogram(x, False))
    return {
        "ours": lambda: run(case.student, lambda x: LOSS(x, case.teacher, **where)),
        "ours, teacher cached": lambda: run(case.student, lambda x: LOSS(x, target)),
        "ours, torch only": lambda: run(case.student, lambda x: LOSS_IN_TORCH(x, case.teacher, **where)),
        "dense, exponent clamped": lambda: mask_by_mask(case, lambda x: dense_histogram(x, True)),
        "dense, as usually written": lambda: mask_by_mask(case, lambda x: dense_histogram(x, False)),
        "dense, compiled": lambda: mask_by_mask(case, compiled),
        "class loop": lambda: class_loop(case),
        "kornia": lambda: mask_by_mask(case, kornia_histogram),
    }


def exact(case: Case) -> Outcome:
    """Return loss and gradient in float64, dense, by parts of the picture."""
    student, teacher, masks = (x.flatten(2).double() for x in (case.student, case.teacher, case.masks))
    centers = reference.eq6_centers(BINS, (0.0, 1.0)).to(student.device)
    parts = [slice(first, first + 4096) for first in range(0, student.shape[2], 4096)]

    def kernel(x: Tensor) -> Tensor:
        return reference.eq7_kernel(x[..., None], centers, BANDWIDTH)

    difference = sum(
        torch.einsum("brp,bcpn->brcn", masks[..., p], kernel(student[..., p]) - kernel(teacher[..., p])) for p in parts
    )
    assert isinstance(difference, Tensor)
    share = student.shape[2] ** 2 * student.shape[1] * masks.shape[1] * len(student)
    upstream = 2 * difference / share
    gradient = torch.cat(
        [
            torch.einsum(
                "brp,brcn,bcpn->bcp",
                masks[..., p],
                upstream,
                kernel(student[..., p]) * (centers - student[..., p, None]) * (2 / BANDWIDTH**2),
            )
            for p in parts
        ],
        dim=2,
    )
    return difference.square().sum() / share, gradient.view(case.student.shape)


def errors(got: Outcome, wanted: Outcome) -> dict[str, float]:
    """Return the relative L2 errors of the loss and of the gradient."""
    return {
        name: float(f"{(a.double() - b).norm() / b.norm():.2g}")
        for name, a, b in zip(("loss", "gradient"), got, wanted, strict=True)
    }
