"""Checks of the soft histogram's backend, bandwidth, values and precision."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from skt_components.ops.checks import check_positive, float_dtype, read_extremes, warn_caller

BACKENDS = ("auto", "torch", "numba", "triton")
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("numba", "triton")}
_NARROWEST, _WIDEST = 1e-6, 1e6  # bins; numbers overflow outside this range


def choose_backend(backend: str, device: torch.device, double: bool) -> str:
    """Return "torch", "numba" or "triton"; raise ValueError if the requested one cannot run (float64 if ``double``)."""
    if backend == "torch":
        return backend
    best = {"cuda": "triton", "cpu": "numba"}.get(device.type, "torch") if backend == "auto" else backend
    problem = None
    if best == "triton" and device.type != "cuda":
        problem = f"needs pictures on a CUDA device, got {device}"
    elif best == "triton" and double:
        problem = "computes in float32, got float64 pictures"
    elif best == "numba" and device.type != "cpu":
        problem = f"needs pictures on the CPU, got {device}"
    elif best != "torch" and not _INSTALLED[best]:
        problem = f"needs the package {best}, which is not installed"
        problem += ": pip install 'skt-components[cpu]'" if best == "numba" else ""
    if backend == "auto":
        return "torch" if problem else best
    if problem:
        raise ValueError(f'backend="{backend}" {problem}; use backend="auto" or "torch"')
    return backend


def check_bandwidth(bandwidth: float, num_bins: int, value_range: tuple[float, float]) -> None:
    """Raise ValueError unless ``bandwidth`` is a number above zero; warn where the gradient is practically zero."""
    check_positive("bandwidth", bandwidth)
    width = value_range[1] - value_range[0]
    if not _NARROWEST <= bandwidth * num_bins / width <= _WIDEST:
        raise ValueError(
            f"bandwidth must be {_NARROWEST:g} to {_WIDEST:g} bins, got {bandwidth:g} with {num_bins} bins on "
            f"{value_range}"
        )
    if bandwidth > 3 * width:
        warn_caller(
            f"bandwidth={bandwidth:g} is {bandwidth / width:.3g} times the value range {value_range}: the histogram "
            f"is flat and its gradient practically zero. Read the paper's 400 as 1/400 on [0, 1], or as the slope of "
            "sigmoids: skt_components.histogram.sigmoid_bandwidth(400)."
        )
    elif bandwidth * num_bins < 0.25 * width:
        warn_caller(
            f"bandwidth={bandwidth:g} is {bandwidth * num_bins / width:.3g} of a bin ({num_bins} bins on "
            f"{value_range}): values between bin centers have practically no gradient. Use at least half a bin."
        )


def check_values(name: str, values: Tensor, low: float, high: float, bandwidth: float) -> None:
    """Warn if the values have probably another scale than the value range; only where reading values is free.

    A quarter outside is enough, and of values far outside, as in mostly black pictures of 0 to 255, a few.
    """
    extremes, reach = read_extremes(values), 2 * bandwidth  # the kernel is below 2 % there
    if extremes is None or (extremes[0] >= low - reach and extremes[1] <= high + reach):
        return
    values, width = values.detach(), high - low
    some = values[..., :: max(1, values.shape[-2] // 32), :: max(1, values.shape[-1] // 32)]
    outside = ((some < low - reach) | (some > high + reach)).double().mean().item()
    above = (values > high + max(2 * width, reach)) & values.isfinite()
    below = (values < low - max(width / 2, reach)) & values.isfinite()
    if outside > 0.25 or above.double().mean() > 0.001 or below.double().mean() > 0.05:
        warn_caller(  # always the same text, so that Python shows it once and not in every step
            f"many values of {name} are outside value_range {(low, high)}: they hardly count and have no "
            "gradient. Pass another value_range, or pictures inside it."
        )


def full_precision(x: Tensor) -> Tensor:
    """Return float64 unchanged and all other dtypes as float32, with a warning for half precision."""
    dtype = float_dtype(x)
    if x.dtype != dtype and x.dtype in (torch.float16, torch.bfloat16):
        cost = "7 % (and what is below 6e-8 of it vanishes)" if x.dtype == torch.float16 else "48 %"
        warn_caller(
            f"the histogram is of {x.dtype} values: their rounding changes the gradient by about {cost} at the default "
            f"bandwidth. Compute the picture in float32 (outside autocast)."
        )
    return x.to(dtype)
