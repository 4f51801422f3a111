"""Checks and precision of all picture metrics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from skt_components.ops.checks import check_not_empty, check_positive, check_same_shape, check_scale, check_tensor

PAIR = ("prediction", "target")


def check_pair(prediction: Tensor, target: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """Return prediction and target ``(B, C, H, W)`` in float64 after checking them and ``peak``."""
    check_tensor("prediction", prediction, ndim=4, layout="(B, C, H, W)")
    check_tensor("target", target, ndim=4, layout="(B, C, H, W)")
    check_same_shape("prediction", prediction, "target", target)
    check_positive("peak", peak)
    if prediction.shape[0]:  # no pictures have no values, but a picture has one
        check_not_empty("prediction", prediction)
    return prediction.double(), target.double()


def check_absolute(names: Sequence[str], *pictures: Tensor) -> None:
    """Warn about pictures that are probably relative or codes of a file, not light in cd/m2."""
    expected = "light in cd/m2 (relative radiance times the luminance of its white)"
    for name, picture in zip(names, pictures, strict=True):
        check_scale(name, picture, expected, dim=1.0, codes=True)


def check_display(names: Sequence[str], *pictures: Tensor, white: float = 1.0) -> None:
    """Warn about pictures that are not in [0, ``white``], such as in [-1, 1] or 0 to 255."""
    for name, picture in zip(names, pictures, strict=True):
        check_scale(name, picture, f"in [0, {white:g}]", low=-0.5 * white, high=2 * white, share=0.01)
