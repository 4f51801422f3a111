"""Soft (kernel density) histograms, per region, with an exact gradient and no (pixels x bins) temporary.

This file checks arguments, chooses an engine (plain torch, numba or Triton) and holds the operators and their
derivative; the engines are next to it. Masks become disjoint regions first, unless they are weights.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skt_components.histogram.checks import (
    BACKENDS,
    check_bandwidth,
    check_values,
    choose_backend,
    count_regions,
    full_precision,
)
from skt_components.histogram.kernels import Bins, choose_basis
from skt_components.histogram.mask_atoms import Atoms, find_atoms, remember
from skt_components.histogram.torch_engine import table_dtype, torch_difference, torch_gradient, without_stray_nan
from skt_components.ops.checks import (
    check_choice,
    check_count,
    check_range,
    check_tensor,
    clone_inference_tensor,
    float_dtype,
)

_ATOM_TABLE = 1 << 20  # numbers in the table of the atoms of the pictures that are treated together, at most


def soft_histogram(
    values: Float[Tensor, "b c h w"],
    *,
    masks: Float[Tensor, "b r h w"] | Bool[Tensor, "b r h w"] | None = None,
    labels: Int[Tensor, "b h w"] | None = None,
    num_regions: int | None = None,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    backend: str = "auto",
) -> Float[Tensor, "b r c n"]:
    """Histogram with a Gaussian kernel, ``H_{r,c,i} = sum_j m_{r,j} exp(-((x_{c,j} - c_i) / bandwidth)^2)``.

    Equations 6 to 8, per region. Values outside ``value_range`` contribute only the tail that reaches into it;
    plus and minus infinity contribute nothing and have no gradient; NaN makes its whole histogram NaN. The gradient
    reaches ``values`` only; there is no second one.

    Args:
        values: pictures, any floating dtype; half precision is computed in float32, with a warning.
        masks: regions, bool, or floating weights; they may overlap. Not differentiable. Bool masks are cut into
            disjoint regions once and that is remembered while they live unchanged; both kinds wait for the device,
            labels do not.
        labels: regions as a map of integers in [0, num_regions), -1 where a pixel belongs to none. Cheaper than
            masks: any number of regions costs as much as one.
        num_regions: number of regions in ``labels``. When None it is read off ``labels``, which waits for the
            device and breaks ``torch.compile(fullgraph=True)``.
        num_bins: number of bins N.
        value_range: outer edges of the first and last bin.
        bandwidth: kernel width in the unit of ``values``, sigma of eq. 7; see the conventions page.
        backend: "torch"; "numba", for the CPU; "triton", for float32 and less on CUDA; or "auto", which takes the
            fastest that is installed. Below a quarter of a bin, with weights, and with masks that shatter the picture,
            torch does the work in any case.

    Returns:
        ``(B, R, C, num_bins)`` in float32, or float64 for float64 values; R = 1 without regions.

    Raises:
        TypeError: ``values``, ``masks`` or ``labels`` has the wrong dtype.
        ValueError: shapes do not fit, masks require a gradient, both kinds of region are given, or an option is
            out of range.

    Example:
        >>> import torch
        >>> h = soft_histogram(torch.rand(1, 3, 16, 16), num_bins=64, bandwidth=1 / 64)
        >>> h.shape
        torch.Size([1, 1, 3, 64])

    Reference:
        Eqs. 6-8 of the paper.
    """
    table = histogram_difference(
        values,
        None,
        masks=masks,
        labels=labels,
        num_regions=num_regions,
        num_bins=num_bins,
        value_range=value_range,
        bandwidth=bandwidth,
        backend=backend,
    )
    return table.to(float_dtype(values))


def histogram_difference(
    student: Tensor,
    teacher: Tensor | None,
    *,
    masks: Tensor | None = None,
    labels: Tensor | None = None,
    num_regions: int | None = None,
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    backend: str = "auto",
) -> Tensor:
    """Soft histogram of ``student`` minus that of ``teacher`` in one float64 table ``(B, R, C, num_bins)``.

    Arguments and errors as in :func:`soft_histogram`; ``teacher`` may be None and has the student's shape.
    """
    check_choice("backend", backend, BACKENDS)
    check_tensor("values" if teacher is None else "student", student, ndim=4, layout="(B, C, H, W)")
    num_bins = check_count("num_bins", num_bins, 1)
    low, high = check_range("value_range", value_range)
    check_bandwidth(bandwidth, num_bins, (low, high))
    regions = count_regions(student, masks, labels, num_regions)
    masks, labels = clone_inference_tensor(masks), clone_inference_tensor(labels)
    names = ("values",) if teacher is None else ("student", "teacher")
    for name, picture in zip(names, (student, teacher), strict=False):
        check_values(name, picture, low, high, float(bandwidth))  # type: ignore[arg-type]
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = full_precision(student), None if teacher is None else full_precision(teacher)
        double = any(x is not None and x.dtype == torch.float64 for x in (student, teacher))
        engine = choose_backend(backend, student.device, double)
        keep = not torch.compiler.is_compiling()  # compiled code reuses memory without telling
        options = (regions, num_bins, low, high, float(bandwidth), engine, keep)
        return _Difference.apply(student, teacher, labels, masks, options)


class _Difference(torch.autograd.Function):
    """The operators below with their derivative; torch.func sees through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(student, teacher, labels, masks, options):  # type: ignore[no-untyped-def]
        return torch.ops.skt_components.soft_histogram(student, teacher, labels, masks, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        student, teacher, labels, masks, ctx.options = inputs
        # A teacher without a gradient may change, or be of inference mode, before the backward pass.
        pictures = (x if needed else None for x, needed in zip((student, teacher), ctx.needs_input_grad, strict=False))
        ctx.save_for_backward(*pictures, labels, masks)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        student, teacher, labels, masks = ctx.saved_tensors
        regions = (labels, masks, ctx.options)
        for_student = _Gradient.apply(grad, student, *regions) if ctx.needs_input_grad[0] else None
        for_teacher = _Gradient.apply(-grad, teacher, *regions) if ctx.needs_input_grad[1] else None
        return for_student, for_teacher, None, None, None


class _Gradient(torch.autograd.Function):
    """The first derivative, which has none itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, values, labels, masks, options):  # type: ignore[no-untyped-def]
        return torch.ops.skt_components.soft_histogram_backward(grad, values, labels, masks, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        raise NotImplementedError("the soft histogram has no second derivative; take the first without create_graph")


_OPTIONS = "int num_regions, int num_bins, float low, float high, float bandwidth, str backend, bool keep"


@torch.library.custom_op(
    "skt_components::soft_histogram",
    mutates_args=(),
    schema=f"(Tensor student, Tensor? teacher, Tensor? labels, Tensor? masks, {_OPTIONS}) -> Tensor",
)
def _soft_histogram(student, teacher, labels, masks, num_regions, num_bins, low, high, bandwidth, backend, keep):  # type: ignore[no-untyped-def]
    bins = Bins(num_bins, low, high, bandwidth)
    if masks is None:
        return _by_labels(student, teacher, labels, num_regions, bins, backend)
    atoms = _atoms(masks, student.shape[1] * num_bins, keep)
    if atoms is None:
        flat = None if teacher is None else teacher.flatten(2)
        return torch_difference(student.flatten(2), flat, None, masks.flatten(2), num_regions, bins)
    parts = []
    for pictures in _pictures(atoms, student.shape[1] * num_bins):
        labels, members = atoms.labels[pictures].unflatten(1, student.shape[2:]), atoms.members[pictures]
        other = None if teacher is None else teacher[pictures]
        table = _by_labels(student[pictures], other, labels, members.shape[2], bins, backend)
        parts.append(_sum_rows(members, table))
    return torch.cat(parts)


@_soft_histogram.register_fake
def _(student, teacher, labels, masks, num_regions, num_bins, low, high, bandwidth, backend, keep):  # type: ignore[no-untyped-def]
    shape = (student.shape[0], num_regions, student.shape[1], num_bins)
    return student.new_empty(shape, dtype=table_dtype(student))


@torch.library.custom_op(
    "skt_components::soft_histogram_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor values, Tensor? labels, Tensor? masks, {_OPTIONS}) -> Tensor",
)
def _soft_histogram_backward(grad, values, labels, masks, num_regions, num_bins, low, high, bandwidth, backend, keep):  # type: ignore[no-untyped-def]
    bins = Bins(num_bins, low, high, bandwidth)
    if masks is None:
        return _gradient_by_labels(grad, values, labels, bins, backend)
    atoms = _atoms(masks, values.shape[1] * num_bins, keep)
    if atoms is None:
        flat, shares = values.flatten(2), masks.flatten(2)
        result = torch_gradient(grad, flat, None, shares, bins)
        return without_stray_nan(result, grad, flat, None, shares).view(values.shape)
    parts = []
    for pictures in _pictures(atoms, values.shape[1] * num_bins):
        labels, members = atoms.labels[pictures].unflatten(1, values.shape[2:]), atoms.members[pictures]
        table = _sum_rows(members.transpose(1, 2), grad[pictures])
        parts.append(_gradient_by_labels(table, values[pictures], labels, bins, backend))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@_soft_histogram_backward.register_fake
def _(grad, values, labels, masks, num_regions, num_bins, low, high, bandwidth, backend, keep):  # type: ignore[no-untyped-def]
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _batched(operator):  # type: ignore[no-untyped-def]
    """Rule for torch.vmap: one call, with the mapped axis merged into the batch."""

    def rule(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
        def lead(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            return argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)

        mapped = [lead(argument, dim) for argument, dim in zip(arguments, in_dims, strict=True)]
        result = operator(*(x.flatten(0, 1) if isinstance(x, Tensor) else x for x in mapped))
        return result.view(*mapped[0].shape[:2], *result.shape[1:]), 0

    return rule


_soft_histogram.register_vmap(_batched(torch.ops.skt_components.soft_histogram))
_soft_histogram_backward.register_vmap(_batched(torch.ops.skt_components.soft_histogram_backward))


def _by_labels(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int, bins: Bins, backend: str
) -> Tensor:
    if backend == "triton":
        from skt_components.histogram import triton_engine as _histogram_triton

        options: dict[str, Any] = {"low": bins.low, "high": bins.high, "bandwidth": bins.bandwidth}
        difference = _histogram_triton.histogram_difference
        return difference(student, teacher, labels, regions, num_bins=bins.num, **options)
    teacher = None if teacher is None else teacher.flatten(2)
    labels = None if labels is None else labels.flatten(1)
    basis = choose_basis(bins)
    if backend == "numba" and basis.recurrent and (compiled := _compiled_engine()):
        return compiled.compiled_difference(student.flatten(2), teacher, labels, regions, basis)
    return torch_difference(student.flatten(2), teacher, labels, None, regions, bins)


def _gradient_by_labels(grad: Tensor, values: Tensor, labels: Tensor | None, bins: Bins, backend: str) -> Tensor:
    if backend == "triton":
        from skt_components.histogram import triton_engine as _histogram_triton

        options = {"low": bins.low, "high": bins.high, "bandwidth": bins.bandwidth}
        return _histogram_triton.histogram_gradient(grad, values, labels, grad.shape[1], **options)
    labels = None if labels is None else labels.flatten(1)
    basis = choose_basis(bins)
    flat = values.flatten(2)
    if backend == "numba" and basis.recurrent and (compiled := _compiled_engine()):
        result = compiled.compiled_gradient(grad, flat, labels, basis)
    else:
        result = torch_gradient(grad, flat, labels, None, bins)
    return without_stray_nan(result, grad, flat, labels, None).view(values.shape)


@functools.cache
def _compiled_engine() -> ModuleType | None:
    try:
        from skt_components.histogram import numba_engine as _histogram_numba
    except ImportError as error:  # it refuses a NumPy that is newer than itself
        warnings.warn(f"histograms are computed by torch, several times slower: {error}", UserWarning, stacklevel=2)
        return None
    return _histogram_numba


def _sum_rows(members: Tensor, table: Tensor) -> Tensor:
    """Add up the histograms (B, U, C, N) that each row of ``members`` (B, R, U) names; NaN stays with those."""
    members, broken = members.to(table.dtype), table.isnan().any(-1)  # 0 times NaN would be NaN for all
    total = members @ table.masked_fill(broken[..., None], 0).flatten(2)
    total = total.unflatten(2, table.shape[2:])
    return total.masked_fill((members @ broken.to(table.dtype) > 0)[..., None], float("nan"))


def _atoms(masks: Tensor, row: int, keep: bool) -> Atoms | None:
    """Return the atoms of bool masks, unless there are so many that listing the pixels of the masks is cheaper.

    ``row`` is how many numbers the table needs for one atom.
    """
    if masks.dtype != torch.bool or not masks.numel() or not row:
        return None
    limit = max(masks.shape[1], min(masks.shape[2] * masks.shape[3] // 32, _ATOM_TABLE // row))

    def find() -> Atoms | None:
        return find_atoms(masks.flatten(2), limit)

    return remember(("atoms", limit), masks, find) if keep else find()


def _pictures(atoms: Atoms, row: int) -> list[slice]:
    """Return shares of the batch that need a table of bounded size."""
    batch, _, number = atoms.members.shape
    step = max(1, _ATOM_TABLE // (max(number, 1) * row))
    return [slice(first, first + step) for first in range(0, batch, step)]
