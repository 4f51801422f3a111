"""Soft (kernel density) histograms, per region, with an exact gradient and no (pixels x bins) temporary.

:func:`soft_histogram` and the losses call :func:`histogram_difference`. It calls an operator with a derivative. The
operator turns bool masks into disjoint regions and calls an engine: plain torch, numba or Triton.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skt_components.histogram import torch_engine
from skt_components.histogram.checks import BACKENDS, check_bandwidth, check_values, choose_backend, full_precision
from skt_components.histogram.engines import run_engine
from skt_components.histogram.kernels import Bins
from skt_components.histogram.mask_atoms import cached_atoms, sum_histograms
from skt_components.histogram.regions import check_regions
from skt_components.ops.checks import (
    check_choice,
    check_count,
    check_range,
    check_tensor,
    clone_inference_tensor,
    float_dtype,
    no_autocast,
)


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
    """Compute histograms with a Gaussian kernel, ``H_{r,c,i} = sum_j m_{r,j} exp(-((x_{c,j} - c_i) / bandwidth)^2)``.

    This is equations 6 to 8. Infinities contribute nothing and have no gradient. A NaN makes its whole histogram NaN.
    Only ``values`` gets a gradient. There is no second derivative.

    Args:
        values: pictures, any floating dtype; half precision is computed in float32, with a warning.
        masks: regions that may overlap, bool or floating weights; both need a device synchronization.
        labels: regions as integers in [0, num_regions). Other integers mean "no region". Any number of regions costs as
            much as one.
        num_regions: regions in ``labels``. None takes it from the largest label, which needs a device
            synchronization and breaks ``torch.compile(fullgraph=True)``.
        num_bins: number of bins N.
        value_range: outer edges of the first and last bin.
        bandwidth: kernel width in the unit of ``values``, sigma of eq. 7; see the conventions page.
        backend: "torch"; "numba" (CPU); "triton" (CUDA, float32 and half precision); or "auto", the fastest installed.
            torch always computes bandwidths below a quarter of a bin, weights, and masks with too many atoms.

    Returns:
        Float32, or float64 for float64 values; R = 1 without regions.

    Raises:
        TypeError: ``values``, ``masks`` or ``labels`` has the wrong dtype.
        ValueError: shapes or regions do not fit, masks require a gradient, or an option is out of range.

    Example:
        >>> import torch
        >>> h = soft_histogram(torch.rand(1, 3, 16, 16), num_bins=64, bandwidth=1 / 64)
        >>> h.shape
        torch.Size([1, 1, 3, 64])
    """
    check_tensor("values", values, ndim=4, layout="(B, C, H, W)")
    if isinstance(masks, Tensor) and not (masks.dtype == torch.bool or masks.is_floating_point()):
        raise TypeError(f"masks must be a bool or floating tensor (B, R, H, W), got {masks.dtype}")
    masks, labels, regions = check_regions(values, masks, labels, num_regions)
    options: dict[str, Any] = {"num_bins": num_bins, "value_range": value_range, "bandwidth": bandwidth}
    table = histogram_difference(values, None, masks, labels, regions, **options, backend=backend)
    return table.to(float_dtype(values))


def histogram_difference(
    student: Tensor,
    teacher: Tensor | None,
    masks: Tensor | None = None,
    labels: Tensor | None = None,
    num_regions: int = 1,
    *,
    soft_masks: str | None = "weighted",
    num_bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    bandwidth: float = 1 / 400,
    backend: str = "auto",
) -> Tensor:
    """Return the soft histogram of ``student`` minus the one of ``teacher``, a float64 table ``(B, R, C, num_bins)``.

    Pictures and regions must be checked already. ``soft_masks="literal"`` multiplies the pictures by the masks.
    """
    literal = masks if soft_masks == "literal" else None
    if literal is not None:
        weights = literal.to(student.dtype)[:, :, None]
        student = (student[:, None] * weights).flatten(0, 1)
        teacher = None if teacher is None else (teacher[:, None] * weights).flatten(0, 1)
        masks, num_regions = None, 1
    check_choice("backend", backend, BACKENDS)
    num_bins = check_count("num_bins", num_bins, 1)
    low, high = check_range("value_range", value_range)
    check_bandwidth(bandwidth, num_bins, (low, high))
    masks, labels = clone_inference_tensor(masks), clone_inference_tensor(labels)
    check_values("values" if teacher is None else "student", student, low, high, float(bandwidth))
    if teacher is not None:
        check_values("teacher", teacher, low, high, float(bandwidth))
    with no_autocast(student):
        student, teacher = full_precision(student), None if teacher is None else full_precision(teacher)
        double = any(x is not None and x.dtype == torch.float64 for x in (student, teacher))
        engine = choose_backend(backend, student.device, double)
        keep = not torch.compiler.is_compiling()  # compiled code reuses memory without a count of changes
        options = (num_regions, num_bins, low, high, float(bandwidth), engine, backend == engine, keep)
        table = _Operator.apply(student, teacher, labels, masks, options, False)
    return table if literal is None else table.reshape(*literal.shape[:2], *table.shape[2:])


class _Operator(torch.autograd.Function):
    """One of the two operators below, for autograd and torch.func: the histogram, or its derivative, which has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(first, second, labels, masks, options, derivative):  # type: ignore[no-untyped-def]
        operators = torch.ops.skt_components
        operator = operators.soft_histogram_backward if derivative else operators.soft_histogram
        return operator(first, second, labels, masks, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        student, teacher, labels, masks, ctx.options, ctx.derivative = inputs
        if not ctx.derivative:
            # A teacher without a gradient may change, or be of inference mode, before the backward pass.
            needed = (x if need else None for x, need in zip((student, teacher), ctx.needs_input_grad, strict=False))
            ctx.save_for_backward(*needed, labels, masks)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if ctx.derivative:
            raise NotImplementedError(
                "the soft histogram has no second derivative; take the first without create_graph"
            )
        student, teacher, *regions = ctx.saved_tensors
        for_student = _Operator.apply(grad, student, *regions, ctx.options, True) if ctx.needs_input_grad[0] else None
        for_teacher = _Operator.apply(-grad, teacher, *regions, ctx.options, True) if ctx.needs_input_grad[1] else None
        return for_student, for_teacher, None, None, None, None


_OPTIONS = "int num_regions, int num_bins, float low, float high, float bandwidth, str engine, bool required, bool keep"
_untraced = functools.cache(torch.compiler.disable)
# Not torch.library.custom_op, whose first call imports torch.compile and takes a second.
_library = torch.library.Library("skt_components", "DEF")


def _operator(schema: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Return a decorator that registers a function as an operator for all devices."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            compiles = "torch._dynamo" in sys.modules  # then it must not trace what runs inside the operator
            return (_untraced(function) if compiles else function)(*arguments)

        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _library.impl(schema.partition("(")[0], run, "CompositeExplicitAutograd")
        return function

    return register


@_operator(f"soft_histogram(Tensor student, Tensor? teacher, Tensor? labels, Tensor? masks, {_OPTIONS}) -> Tensor")
def _soft_histogram(  # type: ignore[no-untyped-def]
    student, teacher, labels, masks, num_regions, num_bins, low, high, bandwidth, engine, required, keep
):
    bins = Bins(num_bins, low, high, bandwidth)
    numbers = student.shape[1] * num_bins

    def difference(student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int) -> Tensor:
        return run_engine("histogram_difference", engine, required, student, teacher, labels, regions, bins)

    if masks is None:
        return difference(student, teacher, labels, num_regions)
    atoms = cached_atoms(masks, numbers, keep)
    if atoms is None:
        return torch_engine.histogram_difference(student, teacher, None, num_regions, bins, masks)
    tables = []
    for pictures, labels, members in atoms.batches(numbers):
        other = None if teacher is None else teacher[pictures]
        table = difference(student[pictures], other, labels, members.shape[2])
        tables.append(sum_histograms(members, table))
    return torch.cat(tables)


@torch.library.register_fake("skt_components::soft_histogram", lib=_library)
def _(student, teacher, labels, masks, num_regions, num_bins, *options):  # type: ignore[no-untyped-def]
    shape = (student.shape[0], num_regions, student.shape[1], num_bins)
    return student.new_empty(shape, dtype=torch_engine.table_dtype(student))


@_operator(f"soft_histogram_backward(Tensor grad, Tensor values, Tensor? labels, Tensor? masks, {_OPTIONS}) -> Tensor")
def _soft_histogram_backward(  # type: ignore[no-untyped-def]
    grad, values, labels, masks, num_regions, num_bins, low, high, bandwidth, engine, required, keep
):
    bins = Bins(num_bins, low, high, bandwidth)
    numbers = values.shape[1] * num_bins

    def gradient(upstream: Tensor, values: Tensor, labels: Tensor | None) -> Tensor:
        result = run_engine("histogram_gradient", engine, required, upstream, values, labels, bins)
        return torch_engine.clear_stray_nan(result, upstream, values, labels)

    if masks is None:
        return gradient(grad, values, labels)
    atoms = cached_atoms(masks, numbers, keep)
    if atoms is None:
        result = torch_engine.histogram_gradient(grad, values, None, bins, masks)
        return torch_engine.clear_stray_nan(result, grad, values, None, masks)
    parts = [
        gradient(sum_histograms(members.transpose(1, 2), grad[pictures]), values[pictures], labels)
        for pictures, labels, members in atoms.batches(numbers)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.library.register_fake("skt_components::soft_histogram_backward", lib=_library)
def _(grad, values, *options):  # type: ignore[no-untyped-def]
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _batched(operator):  # type: ignore[no-untyped-def]
    """Return a rule for torch.vmap: one call, with the mapped axis merged into the batch."""

    def rule(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
        def lead(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            return argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)

        mapped = [lead(argument, dim) for argument, dim in zip(arguments, in_dims, strict=True)]
        result = operator(*(x.flatten(0, 1) if isinstance(x, Tensor) else x for x in mapped))
        return result.view(*mapped[0].shape[:2], *result.shape[1:]), 0

    return rule


for _name in ("soft_histogram", "soft_histogram_backward"):
    _rule = _batched(getattr(torch.ops.skt_components, _name))
    torch.library.register_vmap(f"skt_components::{_name}", _rule, lib=_library)
