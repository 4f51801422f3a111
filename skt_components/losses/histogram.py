"""Histogram losses: global (eq. 9) and per semantic region (eq. 10, the color loss)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skt_components.histogram.checks import BACKENDS
from skt_components.histogram.regions import check_regions, region_areas
from skt_components.histogram.soft_histogram import histogram_difference
from skt_components.histogram.target import HistogramTarget
from skt_components.ops.checks import (
    check_choice,
    check_count,
    check_positive,
    check_range,
    check_same_shape,
    check_tensor,
    float_dtype,
)

NORMALIZATIONS = ("pixels", "area", "none")
REDUCTIONS = ("mean", "sum", "none")
SOFT_MASKS = (None, "weighted", "literal")
_KERNEL = ("num_bins", "value_range", "bandwidth", "soft_masks")  # equal in a target and its loss


def semantic_histogram_loss(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"] | HistogramTarget,
    masks: Float[Tensor, "b r h w"] | Bool[Tensor, "b r h w"] | Int[Tensor, "b r h w"] | None = None,
    *,
    labels: Int[Tensor, "b h w"] | None = None,
    num_regions: int | None = None,
    valid: Bool[Tensor, "b r"] | None = None,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    normalization: str = "pixels",
    soft_masks: str | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Float[Tensor, ""] | Float[Tensor, "b"]:
    """Compute the squared distance of the soft histograms of two pictures, region by region (eq. 10).

    The loss of a picture is ``1/R sum_r 1/C sum_c sum_i (H^S - H^T)^2``. In eq. 10 the pixels outside a region cancel,
    so they are not computed.

    Args:
        student: picture to train, nominally in ``value_range``.
        teacher: picture to compare with. It also gets a gradient, unless it is detached. Or a target from
            :meth:`SemanticHistogramLoss.precompute`, which contains its regions.
        masks: regions, bool or binary (0 and 1, integers also 0 and 255). Their values are checked once for each
            tensor. Inside ``torch.compile`` and ``torch.vmap`` values cannot be read. There, float masks are weights,
            uint8 masks include the pixels that are not 0, and other integers are rejected (without ``fullgraph=True``
            the loss then runs uncompiled).
        labels: regions as integers in [0, num_regions), instead of masks. Other integers mean "no region".
        num_regions: as in :func:`~skt_components.soft_histogram`.
        valid: regions that count in the average 1/R; all regions when None, including empty ones.
        num_bins, value_range, bandwidth, backend: as in :func:`~skt_components.soft_histogram`.
        normalization: "pixels" divides histograms by the picture's pixel count, "area" by the region's, "none"
            keeps the counts of eq. 8.
        soft_masks: None for binary masks. Soft masks have two different losses: "weighted" counts a pixel in
            proportion to its mask, "literal" multiplies the picture by the mask as eq. 10 does.
        reduction: over the batch: "mean", "sum" or "none".

    Returns:
        The loss, float32 (float64 for float64 pictures); shape ``(B,)`` with ``reduction="none"``. Empty regions
        add zero and stay connected to the graph.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes or regions do not fit, masks are not binary or require a gradient (only
            ``soft_masks="literal"`` computes one), or an option is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.rand(2, 1, 3, 16, 16).unbind(0)
        >>> labels = torch.zeros(1, 16, 16, dtype=torch.long)  # one region
        >>> bool(semantic_histogram_loss(student, teacher, labels=labels) > 0)
        True
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("soft_masks", soft_masks, SOFT_MASKS)
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("student", student, ndim=4, layout="(B, C, H, W)")
    if not student.shape[1]:
        raise ValueError(f"student must have C >= 1 channels (B, C, H, W), got shape {tuple(student.shape)}")
    value_range = check_range("value_range", value_range)
    kernel = {"num_bins": num_bins, "value_range": value_range, "bandwidth": bandwidth, "soft_masks": soft_masks}
    if isinstance(teacher, HistogramTarget):
        if any(x is not None for x in (masks, labels, num_regions)):
            raise ValueError("masks, labels and num_regions must not be given with a target, which has its own")
        masks, labels, regions = teacher.masks, teacher.labels, teacher.counts.shape[1]
    else:
        masks, labels, regions = _check_regions(student, masks, labels, num_regions, soft_masks)
    difference = _subtract(student, teacher, kernel, backend, masks, labels, regions)
    if normalization == "area":
        area = region_areas(masks, labels, regions, difference.dtype)
        difference = difference / torch.where(area > 0, area, 1)[:, :, None, None]
    elif normalization == "pixels":
        difference = difference / max(student.shape[-2] * student.shape[-1], 1)
    count: Tensor | int = max(regions, 1)
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise TypeError(f"valid must be a bool tensor (B, R), got {getattr(valid, 'dtype', type(valid).__name__)}")
        if tuple(valid.shape) != tuple(difference.shape[:2]):
            raise ValueError(f"valid must be (B, R) = {tuple(difference.shape[:2])}, got {tuple(valid.shape)}")
        difference = difference.masked_fill(~valid[:, :, None, None], 0)  # not times 0: a region may be NaN
        count = valid.sum(dim=1).clamp_min(1)
    return _reduce(difference, count, reduction).to(float_dtype(student))


def histogram_loss(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"] | HistogramTarget,
    *,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    normalization: str = "pixels",
    reduction: str = "mean",
    backend: str = "auto",
) -> Float[Tensor, ""] | Float[Tensor, "b"]:
    """Compute the squared distance of the soft histograms of two pictures, ``1/C sum_c sum_i (H^S - H^T)^2`` (eq. 9).

    Arguments, result and errors are as in :func:`semantic_histogram_loss`. The picture is the only region.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 3, 16, 16)
        >>> bool(histogram_loss(x, x.flip(-1)) < 1e-20)  # the same pixels elsewhere
        True
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("student", student, ndim=4, layout="(B, C, H, W)")
    if not student.shape[1]:
        raise ValueError(f"student must have C >= 1 channels (B, C, H, W), got shape {tuple(student.shape)}")
    value_range = check_range("value_range", value_range)
    kernel = {"num_bins": num_bins, "value_range": value_range, "bandwidth": bandwidth}
    difference = _subtract(student, teacher, kernel, backend)
    if normalization != "none":
        difference = difference / max(student.shape[-2] * student.shape[-1], 1)
    return _reduce(difference, 1, reduction).to(float_dtype(student))


def _subtract(
    student: Tensor, teacher: Tensor | HistogramTarget, kernel: dict[str, Any], backend: str, *regions: Any
) -> Tensor:
    """Return the difference of the histograms of ``student`` and ``teacher``, ``(B, R, C, N)``."""
    if isinstance(teacher, HistogramTarget):
        teacher.check(student, kernel)
        return histogram_difference(student, None, *regions, **kernel, backend=backend) - teacher.counts
    check_tensor("teacher", teacher, ndim=4, layout="(B, C, H, W)")
    check_same_shape("student", student, "teacher", teacher)
    return histogram_difference(student, teacher, *regions, **kernel, backend=backend)


def _check_regions(picture: Tensor, masks: Tensor | None, labels: Tensor | None, *options: Any) -> Any:
    if masks is None and labels is None:
        raise ValueError("semantic_histogram_loss needs masks or labels; histogram_loss has no regions")
    return check_regions(picture, masks, labels, *options)


def _reduce(difference: Tensor, num_regions: Tensor | int, reduction: str) -> Tensor:
    """Return ``1/R sum_r 1/C sum_c sum_i difference^2``, reduced over the batch."""
    per_picture = difference.square().sum(dim=-1).mean(dim=-1).sum(dim=1) / num_regions
    if reduction == "mean":
        return per_picture.sum() / max(per_picture.numel(), 1)
    return per_picture.sum() if reduction == "sum" else per_picture


class _HistogramModule(nn.Module):
    """Check, hold and show the options of the two losses."""

    def __init__(
        self,
        num_bins: int = 256,
        value_range: tuple[float, float] = (0.0, 1.0),
        bandwidth: float = 1 / 400,
        normalization: str = "pixels",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("backend", backend, BACKENDS)
        check_positive("bandwidth", bandwidth)
        self.options: dict[str, Any] = {
            "num_bins": check_count("num_bins", num_bins, 1),
            "value_range": check_range("value_range", value_range),
            "bandwidth": bandwidth,
            "normalization": normalization,
            "reduction": reduction,
            "backend": backend,
        }

    def _precompute(
        self, teacher: Tensor, masks: Tensor | None, labels: Tensor | None, regions: int
    ) -> HistogramTarget:
        kernel = {name: self.options[name] for name in _KERNEL if name in self.options}
        backend = self.options["backend"]
        counts = histogram_difference(teacher, None, masks, labels, regions, **kernel, backend=backend)
        masks, labels = (None if x is None else x.clone() for x in (masks, labels))
        return HistogramTarget(counts, tuple(teacher.shape), kernel, masks, labels)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class HistogramLoss(_HistogramModule):
    """Compute :func:`histogram_loss` (eq. 9) with fixed options.

    Example:
        >>> import torch
        >>> loss = HistogramLoss(num_bins=64, bandwidth=1 / 64)
        >>> loss(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)).shape
        torch.Size([])
    """

    def forward(self, student: Tensor, teacher: Tensor | HistogramTarget) -> Tensor:
        """Return the loss of ``student`` against ``teacher``, both ``(B, C, H, W)``."""
        return histogram_loss(student, teacher, **self.options)

    def precompute(self, teacher: Tensor) -> HistogramTarget:
        """Return a target that replaces ``teacher`` in later calls, so that its histogram is computed once."""
        check_tensor("teacher", teacher, ndim=4, layout="(B, C, H, W)")
        with torch.inference_mode(False), torch.no_grad():  # autograd may save the result later
            return self._precompute(teacher, None, None, 1)


class SemanticHistogramLoss(_HistogramModule):
    """Compute :func:`semantic_histogram_loss`, the semantic-guided color loss (eq. 10), with fixed options.

    Example:
        >>> import torch
        >>> loss = SemanticHistogramLoss()
        >>> student, teacher = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
        >>> loss(student, teacher, torch.rand(1, 4, 32, 32) > 0.5).backward()
        >>> bool(student.grad.abs().max() > 0)
        True
    """

    def __init__(
        self,
        num_bins: int = 256,
        value_range: tuple[float, float] = (0.0, 1.0),
        bandwidth: float = 1 / 400,
        normalization: str = "pixels",
        soft_masks: str | None = None,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(num_bins, value_range, bandwidth, normalization, reduction, backend)
        check_choice("soft_masks", soft_masks, SOFT_MASKS)
        self.options["soft_masks"] = soft_masks

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | HistogramTarget,
        masks: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_regions: int | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``student`` against ``teacher`` over the regions ``masks`` or ``labels``."""
        return semantic_histogram_loss(
            student, teacher, masks, labels=labels, num_regions=num_regions, valid=valid, **self.options
        )

    def precompute(
        self,
        teacher: Tensor,
        masks: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_regions: int | None = None,
    ) -> HistogramTarget:
        """Return a target that replaces ``teacher`` and its regions, which are copied, in later calls."""
        check_tensor("teacher", teacher, ndim=4, layout="(B, C, H, W)")
        with torch.inference_mode(False), torch.no_grad():  # autograd may save the result later
            masks, labels, regions = _check_regions(teacher, masks, labels, num_regions, self.options["soft_masks"])
            return self._precompute(teacher, masks, labels, regions)
