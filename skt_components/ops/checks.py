"""Checks of arguments that all packages share: shapes, dtypes and options, never values on a device."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

MaybeTensor = TypeVar("MaybeTensor", Tensor, "Tensor | None")


def check_tensor(
    name: str, value: object, *, ndim: int | None = None, layout: str = "", channels: int | None = None
) -> None:
    """Raise TypeError or ValueError unless ``value`` is a floating-point tensor (..., C, H, W) of this layout."""
    if not isinstance(value, Tensor):
        wanted = " ".join(["torch.Tensor", *layout.split()])
        raise TypeError(f"{name} must be a {wanted}, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes {layout}, got shape {tuple(value.shape)}")
    if channels is not None and value.shape[-3] != channels:
        raise ValueError(f"{name} must have {channels} channels {layout}, got shape {tuple(value.shape)}")


def check_output_type(output: object) -> None:
    """Raise TypeError unless the output of a network is a tensor."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network must return a tensor (B, C, H, W), got {type(output).__name__}: choose the picture with "
            "forward_orm=<a function of network and bracket that returns it>"
        )


def check_picture(output: object) -> None:
    """Raise TypeError or ValueError unless the output of a network is a floating-point tensor (B, C, H, W)."""
    check_output_type(output)
    check_tensor("the network's output", output, ndim=4, layout="(B, C, H, W)")


def check_same_shape(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise ValueError unless the two tensors have the same shape and device."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"{name_a} and {name_b} must be on one device, got {a.device} and {b.device}")


def check_broadcast(name: str, value: Tensor, shape: tuple[int, ...], meaning: str = "") -> None:
    """Raise ValueError unless ``value`` broadcasts to ``shape``, which ``meaning`` explains in the message."""
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"{name} must broadcast to {meaning}{tuple(shape)}, got shape {tuple(value.shape)}")


def check_same_dtype(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise TypeError unless the dtypes are equal, or autocast is on, which mixes all but float64."""
    if a.dtype == b.dtype:
        return
    device = b.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and torch.float64 not in (a.dtype, b.dtype):
        return
    raise TypeError(f"{name_a} and {name_b} must have one dtype, got {a.dtype} and {b.dtype}")


def check_batch(name: str, value: Tensor) -> None:
    """Raise ValueError when ``value`` (B, ...) holds no sample."""
    if value.shape[0] == 0:
        raise ValueError(f"batch must not be empty: {name} must have B >= 1, got shape {tuple(value.shape)}")


def check_not_empty(name: str, value: Tensor) -> None:
    """Raise ValueError when ``value`` holds no number."""
    if not value.numel():
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")


def check_sides(name: str, value: Tensor) -> None:
    """Raise ValueError when pictures ``value`` (..., H, W) have no pixel."""
    if 0 in value.shape[-2:]:
        raise ValueError(f"{name} must have H, W >= 1, got shape {tuple(value.shape)}")


def check_per_picture(name: str, value: Tensor, shape: tuple[int, ...], batch: int) -> None:
    """Raise ValueError unless ``value`` has ``shape``, or ``(batch, *shape)`` for one per picture."""
    if tuple(value.shape) not in (shape, (batch, *shape)):
        raise ValueError(f"{name} must have shape {shape} or {(batch, *shape)}, got {tuple(value.shape)}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {sorted(map(str, choices))}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above zero."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_non_negative(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number of at least zero."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_count(name: str, value: int, minimum: int) -> int:
    """Return ``value`` as an int; raise ValueError unless it is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_range(name: str, value: tuple[float, float]) -> tuple[float, float]:
    """Return ``value`` as two floats (low, high); raise ValueError unless low < high, both finite."""
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {value!r}") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name} must be finite with low < high, got {value!r}")
    return low, high


def can_read_values(value: Tensor) -> bool:
    """Return True if values can be read without a device synchronization, outside a compiled graph and vmap."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Fake tensors and tensors inside vmap have no values.
    return type(value) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def check_exposure_times(name: str, times: Tensor) -> None:
    """Raise ValueError unless all times are finite and above zero, where values can be read."""
    if can_read_values(times) and not bool(((times > 0) & times.isfinite()).all()):
        raise ValueError(
            f"{name} must be finite and above zero, got {times.tolist()}: exposure values in stops become times by "
            "2 ** (ev - ev.min())"
        )


def check_scale(
    name: str,
    picture: Tensor,
    expected: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    share: float = 0.0,
    dim: float = -math.inf,
    codes: bool = False,
) -> None:
    """Warn if a picture has probably another scale than ``expected``; only where reading values is free, on the CPU.

    Args:
        name: argument's name.
        picture: any shape.
        expected: end of the sentence "picture must be ...".
        low, high: more than ``share`` of the values beyond these limits warn.
        share: in [0, 1).
        dim: no value above it warns.
        codes: whole numbers up to 65535 warn, as integer pixels of a file are.
    """
    extremes = read_extremes(picture)
    if extremes is None:
        return
    lowest, highest = extremes
    outside = lowest < low or highest > high
    if outside and share:
        outside = ((picture < low) | (picture > high)).double().mean().item() > share
    if outside or highest <= dim or (codes and 1 < highest <= 65535 and _are_codes(picture)):
        found = f"up to {highest:.4g}" if not lowest < low or highest > high else f"down to {lowest:.4g}"
        warn_caller(f"{name} must be {expected}, got values {found}")


def read_extremes(values: Tensor) -> tuple[float, float] | None:
    """Return the least and the largest value; None if there is none, or reading it is not free or not possible."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return None
    try:
        lowest, highest = values.detach().aminmax()
        return lowest.item(), highest.item()
    except (RuntimeError, NotImplementedError):  # inside torch.vmap and in fake tensors there is no value
        return None


def _are_codes(picture: Tensor) -> bool:
    """Return True if a sample of the values holds many different whole numbers and nothing else."""
    values = picture.detach().flatten()
    values = values[:: max(1, len(values) // 4096)]
    return bool((values == values.round()).all()) and len(values.unique()) > 16


def float_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype for computations: float64 for float64 values, float32 for all others."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def no_autocast(value: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of ``value``; the meta device has none."""
    device = value.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def at_least_float32(value: Tensor) -> Tensor:
    """Return float64 tensors unchanged, and all others in float32."""
    return value.to(float_dtype(value))


def clone_inference_tensor(value: MaybeTensor) -> MaybeTensor:
    """Clone a tensor made in inference mode, so that autograd can save it; return all others unchanged."""
    if value is None or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return value
    return value.clone() if value.is_inference() else value


def warn_caller(message: str) -> None:
    """Issue a UserWarning at the first caller outside this package and torch; none while torch.compile traces."""
    if torch.compiler.is_compiling():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in ("skt_components", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
