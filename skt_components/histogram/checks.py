"""What the soft histogram accepts, what it refuses, and when it warns of a flat loss."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from skt_components.ops.checks import check_count, check_positive, float_dtype, warn_caller

_NARROWEST, _WIDEST = 1e-6, 1e6  # bins; beyond them numbers overflow
_MOST_READ_OFF = 1 << 16  # regions that are believed of a label map alone
BACKENDS = ("auto", "torch", "numba", "triton")


def choose_backend(backend: str, device: torch.device, double: bool) -> str:
    """Return "torch", "numba" or "triton"; raise where one is asked for and can not be had.

    ``double`` says whether one of the pictures is in float64.
    """
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
    elif best != "torch" and not _is_installed(best):
        problem = f"needs the package {best}, which is not installed"
        problem += ": pip install 'skt-components[cpu]'" if best == "numba" else ""
    if backend == "auto":
        return "torch" if problem else best
    if problem:
        raise ValueError(f'backend="{backend}" {problem}; use backend="auto" or "torch"')
    return backend


_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("numba", "triton")}


def _is_installed(name: str) -> bool:
    return _INSTALLED[name]


def check_bandwidth(bandwidth: float, num_bins: int, value_range: tuple[float, float]) -> None:
    """Raise unless ``bandwidth`` is a number above zero; warn where the loss would be flat.

    Too wide, every bin counts every pixel alike. Too narrow, a pixel between two bin centres is seen by neither.
    Both leave a gradient of practically zero.
    """
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
            f"is flat and its gradient practically zero. The paper's literal 400 is meant as 1/400 on [0, 1]."
        )
    elif bandwidth * num_bins < 0.25 * width:
        warn_caller(
            f"bandwidth={bandwidth:g} is {bandwidth * num_bins / width:.3g} of a bin ({num_bins} bins on "
            f"{value_range}): values between bin centres have practically no gradient. Use at least half a bin."
        )


def check_values(name: str, values: Tensor, low: float, high: float, bandwidth: float) -> None:
    """Warn when most values can not be seen; on the CPU only, where looking costs no waiting, at some of them."""
    reach = 2 * bandwidth  # 2 % of the kernel are left there
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel():
        some = values.detach()[..., :: max(1, values.shape[-2] // 32), :: max(1, values.shape[-1] // 32)]
        try:
            outside = ((some < low - reach) | (some > high + reach)).float().mean().item()
        except RuntimeError:  # under torch.func.vmap there is no value to look at
            return
        if outside > 0.5:
            warn_caller(
                f"{outside:.0%} of {name} are outside value_range {(low, high)}: they hardly count and have no "
                "gradient. Pass value_range, or pictures in it."
            )


def full_precision(x: Tensor) -> Tensor:
    """Return float64 as it is and everything else as float32, with a warning for half precision."""
    dtype = float_dtype(x)
    if x.dtype != dtype and x.dtype in (torch.float16, torch.bfloat16):
        cost = "7 % (and what is below 6e-8 of it vanishes)" if x.dtype == torch.float16 else "48 %"
        warn_caller(
            f"histogram of {x.dtype} values: rounding them already moves the gradient by about {cost} at the default "
            f"bandwidth. Compute the picture in float32 (outside autocast)."
        )
    return x.to(dtype)


def count_regions(values: Tensor, masks: Tensor | None, labels: Tensor | None, num_regions: int | None) -> int:
    """Return the number of regions R; raise unless the regions fit the pictures ``(B, C, H, W)``."""
    batch, _, height, width = values.shape
    if masks is not None and labels is not None:
        raise ValueError("give masks or labels, not both")
    if num_regions is not None and labels is None:
        raise ValueError(f"num_regions goes with labels, got num_regions={num_regions} without them")
    for name, regions in (("masks", masks), ("labels", labels)):
        if isinstance(regions, Tensor) and regions.device != values.device:
            raise ValueError(f"{name} must be on the pictures' device {values.device}, got {regions.device}")
    if masks is not None:
        if not isinstance(masks, Tensor) or not (masks.dtype == torch.bool or masks.is_floating_point()):
            raise TypeError(f"masks must be a bool or floating tensor (B, R, H, W), got {_kind(masks)}")
        if masks.ndim != 4 or (masks.shape[0], *masks.shape[2:]) != (batch, height, width):
            raise ValueError(
                f"masks must be (B, R, H, W) with B, H, W = {(batch, height, width)}, got {tuple(masks.shape)}"
            )
        if masks.requires_grad:
            raise ValueError("masks must not require a gradient: it is not computed; pass masks.detach()")
        return masks.shape[1]
    if labels is None:
        return 1
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
        raise TypeError(f"labels must be an integer tensor (B, H, W), got {_kind(labels)}")
    if tuple(labels.shape) != (batch, height, width):
        raise ValueError(f"labels must be (B, H, W) = {(batch, height, width)}, got {tuple(labels.shape)}")
    if num_regions is None:
        largest = int(labels.long().max()) if labels.numel() else -1
        if largest >= _MOST_READ_OFF:
            raise ValueError(f"labels go up to {largest}; if there are so many regions, pass num_regions")
        if largest == 255 and not (labels == 254).any():
            warn_caller(
                "labels go from below 254 to 255, which counts as a region: if it marks pixels to be ignored, pass "
                "num_regions; labels of num_regions and more belong to no region"
            )
        return max(largest + 1, 0)
    return check_count("num_regions", num_regions, 0)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
