"""ColorVideoVDP, the visible difference predictor with color, by its authors' package."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from skt_components.files.packages import import_package
from skt_components.metrics._inputs import PAIR, check_absolute, check_display, check_pair
from skt_components.ops.checks import check_positive


def color_video_vdp(
    prediction: Float[Tensor, "b 3 h w"],
    target: Float[Tensor, "b 3 h w"],
    *,
    display: str = "standard_hdr_linear",
    luminance: float | None = None,
) -> Float64[Tensor, " b"]:
    """Compute ColorVideoVDP of each picture in just-objectionable differences (JOD): 10 for equal ones, less for worse.

    Args:
        prediction: ``(B, 3, H, W)`` RGB, BT.709 primaries. For a display with "linear" in its name, such as
            "standard_hdr_linear" (a 30-inch 4K monitor of 1500 cd/m2): linear light in cd/m2. For other displays, such
            as "standard_4k": values in [0, 1] in the display's own encoding.
        target: same.
        display: one of the package's display models.
        luminance: cd/m2 of the value 1 of linear pictures; None if they are in cd/m2 or encoded.

    Returns:
        ``(B,)`` JODs in float64; not differentiable.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ or are not ``(B, 3, H, W)``, the display is unknown, or ``luminance`` is not > 0.
        ImportError: ``cvvdp`` is not installed.

    Example:
        >>> picture = torch.rand(1, 3, 64, 64)
        >>> color_video_vdp(picture, picture, luminance=100.0).item()  # doctest: +SKIP
        10.0

    Reference:
        Mantiuk, Hanji, Ashraf, Asano, Chapiro. ColorVideoVDP: A visual difference predictor for image, video and
        display distortions. SIGGRAPH 2024.
    """
    prediction, target = check_pair(prediction, target, 1.0)
    if prediction.shape[1] != 3:
        raise ValueError(f"prediction and target must be (B, 3, H, W), got {tuple(prediction.shape)}")
    if luminance is not None:
        check_positive("luminance", luminance)
    factor = 1.0 if luminance is None else luminance
    prediction, target = factor * prediction, factor * target
    check = check_absolute if "linear" in display else check_display
    check(PAIR, prediction, target)
    jods = prediction.new_empty(len(prediction))
    with torch.no_grad(), _lock:
        metric = _metric(display, prediction.device)
        for index, pair in enumerate(zip(prediction, target, strict=True)):
            jods[index] = metric.predict(*(picture.float() for picture in pair), dim_order="CHW")[0]
    return jods


_lock = threading.Lock()  # the package's object keeps the picture that it works on


@functools.lru_cache(maxsize=4)
def _metric(display: str, device: torch.device) -> Any:
    pycvvdp = import_package("pycvvdp", "ColorVideoVDP needs the package cvvdp", "cvvdp")
    try:
        return pycvvdp.cvvdp(display_name=display, quiet=True, device=device)
    except (RuntimeError, KeyError, pycvvdp.vq_exception) as error:
        raise ValueError(f"display must be a display model of the package cvvdp, got {display!r}: {error}") from error
