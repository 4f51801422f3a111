"""Diagnosis of training: gradients of the loss terms, and color errors of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.banks.priors import SemanticPriors
from skt_components.ops.checks import check_same_shape, check_tensor


class TermGradient(NamedTuple):
    """Hold norm and direction of the gradient of one weighted term at one place.

    Attributes:
        norm: Euclidean norm of the gradient.
        cosine: cosine of the angle between this gradient and the gradient of L_org; 0 if one of them is 0.
    """

    norm: float
    cosine: float


def compare_gradients(
    terms: Mapping[str, Tensor], places: Mapping[str, Sequence[Tensor]], scale: float = 1.0
) -> dict[str, dict[str, TermGradient]]:
    """Compare each term's gradient at each place with the gradient of the first term.

    It costs one backward pass per term, stores no gradient, and keeps the graph for a later ``backward``.

    Args:
        terms: weighted scalars by name; the others are compared with the first.
        places: tensors in the terms' graph by the name of the place. Places without tensors that require a gradient
            are left out.
        scale: factor of the terms, so that small gradients in half precision do not become 0. The gradients are
            divided by it afterwards.

    Returns:
        place -> term -> gradient.

    Example:
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> terms = {"org": x.square().sum() / 2, "content": -2 * x.sum()}
        >>> compare_gradients(terms, {"x": [x]})["x"]["org"]
        TermGradient(norm=5.0, cosine=1.0)
    """
    used = {place: [t for t in tensors if t.requires_grad] for place, tensors in places.items()}
    used = {place: tensors for place, tensors in used.items() if tensors}
    inputs = [tensor for tensors in used.values() for tensor in tensors]
    found: dict[str, dict[str, TermGradient]] = {place: {} for place in used}
    if not inputs:
        return found
    first: list[Tensor] = []
    for name, term in terms.items():
        if term.requires_grad:
            gradients = [*torch.autograd.grad(scale * term, inputs, retain_graph=True, materialize_grads=True)]
        else:
            gradients = [torch.zeros_like(tensor) for tensor in inputs]
        first, start = first or gradients, 0
        for place, tensors in used.items():
            part = slice(start, start := start + len(tensors))
            found[place][name] = _compare(gradients[part], first[part], scale)
    return found


def _compare(gradients: list[Tensor], others: list[Tensor], scale: float) -> TermGradient:
    pairs = [(a.double(), b.double()) for a, b in zip(gradients, others, strict=True)]
    inner, norm, other = (
        torch.stack([product.sum() for product in products])
        for products in zip(*((a * b, a * a, b * b) for a, b in pairs), strict=True)
    )
    length, together = norm.sum().sqrt(), (norm.sum() * other.sum()).sqrt()
    cosine = float(inner.sum() / together) if together > 0 else 0.0
    return TermGradient(float(length) / scale, cosine)


@torch.no_grad()
def region_distance(
    pictures: Float[Tensor, "b c h w"], targets: Float[Tensor, "b c h w"], priors: SemanticPriors, num_bins: int = 256
) -> Float[Tensor, "b r"]:
    """Return the color error of each region.

    The error is the area between the cumulative histograms of picture and target (the Wasserstein distance of their
    values), averaged over the channels. An error of 0.01 means that the values must move by a hundredth of white on
    average. The positions of the values in the region do not matter.

    Args:
        pictures: tone-mapped pictures, clipped to [0, 1].
        targets: tone-mapped ground truth, same shape.
        priors: priors with the regions. Use the priors of the targets to compare steps and networks.
        num_bins: bins of the histograms, the resolution of the distance.

    Returns:
        One distance for each picture and region; 0 where the region is empty, NaN where it contains NaN.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ.

    Example:
        >>> from skt_components.banks.priors import priors_from_labels
        >>> whole = priors_from_labels([], torch.zeros(1, 8, 8, dtype=torch.long), 1)
        >>> dark, light = torch.full((1, 3, 8, 8), 0.25), torch.full((1, 3, 8, 8), 0.75)
        >>> region_distance(dark, light, whole).round(decimals=2)
        tensor([[0.5000]])
    """
    check_tensor("pictures", pictures, ndim=4, layout="(B, C, H, W)")
    check_same_shape("pictures", pictures, "targets", targets)
    regions = priors.masks.flatten(2).float()  # (B, R, pixels)
    distances = []
    for picture, target, masks in zip(pictures, targets, regions, strict=True):
        counts = [_count(x, masks, num_bins) for x in (picture, target)]
        total = masks.sum(1).clamp_min(1)[:, None, None]
        difference = ((counts[0] - counts[1]) / total).cumsum(-1)
        broken = masks @ (picture.isnan() | target.isnan()).any(0).flatten().float() > 0
        distances.append((difference.abs().mean(1).sum(-1) / num_bins).masked_fill(broken, torch.nan))
    return torch.stack(distances) if distances else regions.new_zeros(regions.shape[:2])


def _count(picture: Tensor, masks: Tensor, num_bins: int) -> Tensor:
    """Count the pixels of one picture ``(C, H, W)`` in every region and bin: ``(R, C, bins)``."""
    bins = (picture.flatten(1).float().nan_to_num().clamp(0, 1) * num_bins).long().clamp_max(num_bins - 1)
    counts = masks.new_zeros(len(masks), len(bins), num_bins)
    return counts.scatter_add_(2, bins.expand(len(masks), -1, -1), masks[:, None].expand(-1, len(bins), -1))
