"""Checks and precision of all picture metrics."""

from __future__ import annotations

from torch import Tensor

from skt_components.ops.checks import check_positive, check_same_shape, check_tensor


def check_pair(prediction: Tensor, target: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """Return prediction and target ``(B, C, H, W)`` in float64 after checking them and ``peak``."""
    check_tensor("prediction", prediction, ndim=4, layout="(B, C, H, W)")
    check_tensor("target", target, ndim=4, layout="(B, C, H, W)")
    check_same_shape("prediction", prediction, "target", target)
    check_positive("peak", peak)
    return prediction.double(), target.double()
