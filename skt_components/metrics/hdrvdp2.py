"""HDR-VDP-2: the visibility of the difference of two HDR pictures, and the quality Q."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.metrics import _hdrvdp2_optics as optics
from skt_components.metrics._hdrvdp2_bands import filter_base, mutual_structure, perceived, quality, visible_differences
from skt_components.metrics._hdrvdp2_numerics import in_strips
from skt_components.metrics._hdrvdp2_pyramid import MIN_SIDE, build_pyramid, rebuild
from skt_components.metrics._inputs import check_absolute, check_display
from skt_components.ops.checks import (
    check_batch,
    check_choice,
    check_count,
    check_positive,
    check_same_shape,
    check_tensor,
    no_autocast,
)


class HDRVDP2Output(NamedTuple):
    """Quality and maps of a batch of picture pairs."""

    Q: Float[Tensor, " b"]
    """Quality: 100 for equal pictures, lower for worse ones, even below 0; grows less for larger pictures."""
    P_map: Float[Tensor, "b h w"]
    """Probability that the difference is seen, for each pixel."""
    C_map: Float[Tensor, "b h w"]
    """Contrast of the difference in units of the detection threshold."""
    P_det: Float[Tensor, " b"]
    """Probability that any difference is seen, the maximum of P_map."""
    C_max: Float[Tensor, " b"]
    """Maximum of C_map."""


def hdr_vdp2(
    test: Float[Tensor, "b c h w"],
    reference: Float[Tensor, "b c h w"],
    *,
    color_encoding: str,
    pixels_per_degree: float,
    surround_l: float | Sequence[float] = 1e-5,
    rgb_display: str = "ccfl-lcd",
    peak_sensitivity: float = 2.4,
    do_mtf: bool = True,
    do_masking: bool = True,
    do_spatial_pooling: bool = True,
    dtype: torch.dtype = torch.float64,
) -> HDRVDP2Output:
    """Compute HDR-VDP-2 (version 2.21): how visible the difference of each picture pair is, and the quality Q.

    The result is differentiable in ``test``. In 86 runs on sixteen pairs, Q agreed with the published code to 1e-11,
    and C_max to a relative 1e-11. ``dtype=torch.float32`` halves the memory. Then both agreed to 1e-3, and the maps are
    less exact where no difference is visible.

    Args:
        test: ``(B, C, H, W)``, the picture to judge, in ``color_encoding``. NaN counts as 1e-5.
        reference: ``(B, C, H, W)``, in the same encoding. Sides of at least 9 pixels.
        color_encoding: ``"luminance"``: one channel, cd/m2. ``"rgb-bt.709"``: three linear channels, whose
            luminance is in cd/m2. ``"XYZ"``: three, cd/m2. ``"luma-display"``, ``"sRGB-display"``: one or three
            channels nominally [0, 1], shown by a display of 1 to 100 cd/m2 with a gamma of 2.2 or the sRGB curve.
        pixels_per_degree: sampling as the eye sees it, see :func:`hdr_vdp_pix_per_deg`.
        surround_l: light around the picture in cd/m2, one number or one for each channel; -1 for the geometric
            mean of each channel of the reference.
        rgb_display: the display that emits three channels: ``"ccfl-lcd"``, ``"led-lcd"`` or ``"crt"``.
        peak_sensitivity: decimal logarithm of the highest sensitivity to contrast.
        do_mtf: model glare in the eye.
        do_masking: model visual masking: structure of the picture hides differences.
        do_spatial_pooling: raise the maps by the amount of difference in the whole picture.
        dtype: precision of the computation, float64 or float32.

    Returns:
        :class:`HDRVDP2Output` in ``dtype``; Q is 100 and the rest is 0 for equal pictures. Q depends on the size
        of the picture: compare it only between pictures of one size.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ, do not fit the encoding or are below 9x9; an option is out of its range.

    Example:
        >>> reference = torch.linspace(1, 1000, 32 * 32).view(1, 1, 32, 32)
        >>> output = hdr_vdp2(reference, reference, color_encoding="luminance", pixels_per_degree=30.0)
        >>> output.Q, output.P_map.shape
        (tensor([100.], dtype=torch.float64), torch.Size([1, 32, 32]))

    Reference:
        Mantiuk, Kim, Rempel, Heidrich. HDR-VDP-2: a calibrated visual metric for visibility and quality
        predictions in all luminance conditions. SIGGRAPH 2011.
    """
    viewing = _Viewing(
        color_encoding, pixels_per_degree, surround_l, rgb_display, peak_sensitivity, do_mtf, do_masking, dtype
    )
    _check_pictures(test, reference, viewing)
    with no_autocast(test):
        visible, changed = _compare(test, reference, viewing)
        contrast = rebuild(perceived(visible)).abs()
        if do_spatial_pooling:
            highest = contrast.amax((-2, -1), keepdim=True)
            contrast = contrast * (contrast.sum((-2, -1), keepdim=True) / (highest + 1e-12))
        probability = 1 - torch.exp2(-contrast)
        return HDRVDP2Output(
            Q=quality(visible, changed, pixels_per_degree),
            P_map=probability,
            C_map=contrast,
            P_det=probability.amax((-2, -1)),
            C_max=contrast.amax((-2, -1)),
        )


class HDRVDP2Loss(nn.Module):
    """Compute ``100 - Q`` of HDR-VDP-2, the mean over the batch: 0 for equal pictures. Options of :func:`hdr_vdp2`.

    Q depends on the logarithm of the error of every band, so the gradient grows when the error falls. Add it with a
    small weight to a loss that compares pixels. The backward pass computes most intermediate results again. A pair of
    1000 x 1500 pixels then needs 1.2 GiB in float32, and 2.7 GiB in float64.

    Example:
        >>> loss = HDRVDP2Loss("luminance", pixels_per_degree=30.0)
        >>> picture = torch.rand(1, 1, 32, 32)
        >>> loss(picture, picture)
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self,
        color_encoding: str,
        pixels_per_degree: float,
        *,
        surround_l: float | Sequence[float] = 1e-5,
        rgb_display: str = "ccfl-lcd",
        peak_sensitivity: float = 2.4,
        do_mtf: bool = True,
        do_masking: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self._viewing = _Viewing(
            color_encoding, pixels_per_degree, surround_l, rgb_display, peak_sensitivity, do_mtf, do_masking, dtype
        )

    def forward(self, test: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Return the loss of ``test`` against ``reference``; the gradient is with respect to ``test``."""
        _check_pictures(test, reference, self._viewing)
        with no_autocast(test):
            visible, changed = _compare(test, reference, self._viewing)
            return (100 - quality(visible, changed, self._viewing.pixels_per_degree)).mean()

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self._viewing).items())


def hdr_vdp_pix_per_deg(diagonal_inches: float, resolution: tuple[int, int], distance_m: float) -> float:
    """Compute how many pixels of a display fill one degree of the view.

    Args:
        diagonal_inches: diagonal of the display.
        resolution: its width and height in pixels, in this order.
        distance_m: distance from the eye in meters.

    Raises:
        ValueError: an argument is not above zero, or ``resolution`` is not a pair.

    Example:
        >>> round(hdr_vdp_pix_per_deg(24, (1920, 1200), 0.5), 6)
        33.510214
    """
    check_positive("diagonal_inches", diagonal_inches)
    check_positive("distance_m", distance_m)
    if len(resolution) != 2:
        raise ValueError(f"resolution must be (width, height), got {resolution!r}")
    width, height = resolution
    check_count("width of resolution", width, 1)
    check_count("height of resolution", height, 1)
    height_m = 0.0254 * diagonal_inches / math.hypot(1, width / height)
    return height / math.degrees(2 * math.atan(0.5 * height_m / distance_m))


@dataclass(frozen=True)
class _Viewing:
    """The checked options of :func:`hdr_vdp2`, except ``do_spatial_pooling``."""

    color_encoding: str
    pixels_per_degree: float
    surround_l: float | Sequence[float]
    rgb_display: str
    peak_sensitivity: float
    do_mtf: bool
    do_masking: bool
    dtype: torch.dtype

    def __post_init__(self) -> None:
        check_choice("color_encoding", self.color_encoding, optics.CHANNELS)
        check_positive("pixels_per_degree", self.pixels_per_degree)
        check_choice("rgb_display", self.rgb_display, optics.DISPLAYS)
        check_choice("dtype", self.dtype, (torch.float32, torch.float64))
        if not math.isfinite(self.peak_sensitivity):
            raise ValueError(f"peak_sensitivity must be a finite number, got {self.peak_sensitivity!r}")
        if not isinstance(self.surround_l, Sequence):
            if self.surround_l != -1:
                check_positive("surround_l (unless it is -1)", self.surround_l)
            return
        if len(self.surround_l) != self.channels:
            raise ValueError(
                f"surround_l must have one level for each of {self.channels} channels, got {self.surround_l}"
            )
        for level in self.surround_l:
            check_positive("every level of surround_l", level)

    @property
    def channels(self) -> int:
        return optics.CHANNELS[self.color_encoding]

    @property
    def display(self) -> str | None:
        """The display that emits the channels; None for the daylight of one channel."""
        return self.rgb_display if self.channels == 3 else None


def _check_pictures(test: Tensor, reference: Tensor, viewing: _Viewing) -> None:
    """Raise TypeError or ValueError unless the pictures fit the options, and warn about another scale."""
    layout = f"(B, {viewing.channels}, H, W)"
    for name, picture in (("test", test), ("reference", reference)):
        check_tensor(name, picture, ndim=4, layout=layout, channels=viewing.channels)
    check_same_shape("test", test, "reference", reference)
    check_batch("test", test)
    height, width = test.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"test and reference must be at least {MIN_SIDE}x{MIN_SIDE} pixels, got {height}x{width}")
    if viewing.color_encoding.endswith("-display"):
        check_display((f"pictures of {viewing.color_encoding}",) * 2, test, reference)
    else:
        check_absolute(("test", "reference"), test, reference)


def _compare(test: Tensor, reference: Tensor, viewing: _Viewing) -> tuple[list[Tensor], Tensor]:
    """Return the visible difference band by band, and 1 where the pictures differ, else 0, ``(B, 1, H, W)``."""
    test, reference = (
        optics.absolute_light(picture.to(viewing.dtype), viewing.color_encoding) for picture in (test, reference)
    )
    changed = in_strips(_changed, test, reference)
    around = optics.surround(reference, viewing.surround_l)
    response_test, luminance_test = _receptor_response(test, around, viewing)
    response, luminance = _receptor_response(reference, around, viewing)

    bands, difference = build_pyramid(response), build_pyramid(response_test - response)
    means = luminance_test.mean((-2, -1)), luminance.mean((-2, -1))
    base_sampling = viewing.pixels_per_degree * math.sqrt(8) / 2 ** len(bands)
    bands[-1], difference[-1] = filter_base(bands[-1], difference[-1], means, base_sampling)

    mutual = mutual_structure(bands, difference) if viewing.do_masking else None
    del bands, response, response_test, test, reference  # a quarter of the peak memory
    adapted = optics.log_luminance((luminance_test + luminance) / 2)[:, None]
    return visible_differences(difference, mutual, adapted, viewing.pixels_per_degree), changed


def _changed(test: Tensor, reference: Tensor) -> Tensor:
    """Return 1 where any channel differs by more than a thousandth, else 0; 0 by 0 is no difference."""
    return ((test - reference).abs() / reference > 0.001).any(1, keepdim=True).to(test.dtype)


def _receptor_response(light: Tensor, around: Sequence[Tensor | float], viewing: _Viewing) -> tuple[Tensor, Tensor]:
    """Return the response of the receptors and the luminance they are adapted to, ``(B, H, W)`` each."""
    channels: Sequence[Tensor] = light.unbind(1)
    if viewing.do_mtf:
        pairs = zip(channels, around, strict=True)
        channels = [optics.scatter(channel, level, viewing.pixels_per_degree) for channel, level in pairs]
    return optics.respond(channels, viewing.display, viewing.peak_sensitivity)
