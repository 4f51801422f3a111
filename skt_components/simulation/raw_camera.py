"""A camera that takes RAW brackets in low light: its options, and its sensor's noise and quantisation."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from skt_components.data.seeding import log_uniform
from skt_components.ops.checks import check_choice, check_count, check_tensor
from skt_components.simulation.camera import Camera

# BracketIRE's sensor: the logarithm of the read noise's variance is a line of that of the shot noise, +- a deviation.
READ_SLOPE, READ_OFFSET, READ_DEVIATION = 1.869, 0.3276, 0.3


@dataclasses.dataclass(frozen=True)
class RawCamera:
    """A camera that takes RAW brackets the way BracketIRE's were synthesised, one exposure after the other.

    On the linear scale of the target, whose peak is 16, exposure n is ``clamp(linear * t_n / 16, 0, 1)``: with the
    defaults ``linear * 4 ** (n - 2)``. The reference is the shortest and first exposure: sharp, dark and noisy. The
    longest is mostly saturated, and blurred by what moves while it lasts: an exposure is the mean of sub-frames.

    The exposure rule is :class:`Camera`'s, with the shortest exposure as the reference.

    Attributes:
        num_frames: exposures in a bracket.
        ratio: of one exposure time to the one before; above 1.
        subframes: most sub-frames averaged for one exposure; BracketIRE averages ``4 ** n``, these are spread
            evenly over the exposure's time.
        scale: 1, or 4 for brackets a quarter of the target's size in both axes (BracketIRE+).
        bits: of the sensor, 8 to 16.
        shot_noise: smallest and largest variance of shot noise per unit of signal on the sensor's [0, 1] scale, drawn
            log-uniform, one for the bracket; the read noise's follows from it. None is a sensor without noise.
        red_gain: smallest and largest white-balance gain of red, drawn log-uniform (as its inverse then is).
        blue_gain: the same for blue; green's is 1.
        rgb2cam: rows of the 3x3 matrix from linear sRGB to the sensor's colours after white balance, each row's sum
            1. The default is a plausible overlap of colour filters and that of no real camera.
        mid_level: see :class:`Camera`; lowest and highest median, linear, of the shortest exposure's full scale.
        highlight_percent: see :class:`Camera`; per cent of the pixels that the shortest exposure may clip.
        dark_level: see :class:`Camera`; linear, of the longest exposure's full scale.

    Raises:
        ValueError: if a value is outside its range.

    Example:
        >>> RawCamera().exposure_times
        (1.0, 4.0, 16.0, 64.0, 256.0)

    Reference:
        Zhang et al. Exposure Bracketing Is All You Need for a High-Quality Image. ICLR 2025.
    """

    num_frames: int = 5
    ratio: float = 4.0
    subframes: int = 16
    scale: int = 1
    bits: int = 10
    shot_noise: tuple[float, float] | None = (0.0012, 0.0048)
    red_gain: tuple[float, float] = (1 / 0.91, 1 / 0.40)
    blue_gain: tuple[float, float] = (1 / 0.75, 1 / 0.39)
    rgb2cam: tuple[tuple[float, float, float], ...] = ((0.70, 0.25, 0.05), (0.15, 0.70, 0.15), (0.03, 0.27, 0.70))
    mid_level: tuple[float, float] = (0.002, 0.02)
    highlight_percent: float = 1.0
    dark_level: float = 0.1

    def __post_init__(self) -> None:
        check_count("num_frames", self.num_frames, 1)
        check_count("subframes", self.subframes, 1)
        check_choice("scale", self.scale, (1, 4))
        if not 1 < self.ratio < math.inf:
            raise ValueError(f"ratio must be a finite number > 1, got {self.ratio!r}")
        if self.bits not in range(8, 17):
            raise ValueError(f"bits must be a whole number from 8 to 16, got {self.bits!r}")
        for name in ("shot_noise", "red_gain", "blue_gain"):
            if (name, getattr(self, name)) != ("shot_noise", None):
                _check_interval(name, getattr(self, name))
        _check_matrix(self.rgb2cam)
        _ = self.metering

    @property
    def exposure_times(self) -> tuple[float, ...]:
        """Relative to the shortest, which is 1."""
        return tuple(float(self.ratio**n) for n in range(self.num_frames))

    @property
    def times(self) -> Float[Tensor, " n"]:
        """Exposure times as a float32 tensor."""
        return torch.tensor(self.exposure_times)

    @property
    def metering(self) -> Camera:
        """The camera whose exposure rule this one follows."""
        return Camera(
            self.exposure_times,
            reference=0,
            mid_level=self.mid_level,
            highlight_percent=self.highlight_percent,
            dark_level=self.dark_level,
        )

    @property
    def block(self) -> int:
        """Pixels of the picture along an axis behind one pixel of the packed bracket."""
        return 2 * self.scale

    def subframe_times(self, index: int) -> list[float]:
        """Return when the sub-frames of an exposure are, in units of the shortest exposure from its start."""
        start, time = sum(self.exposure_times[:index]), self.exposure_times[index]
        count = int(min(time, self.subframes))
        # A sub-frame stands for the unit of time that follows it, so that the first exposure is the sub-frame at 0.
        return [start + (i + 0.5) * time / count - 0.5 for i in range(count)]


def _check_interval(name: str, pair: tuple[float, float]) -> None:
    try:
        low, high = pair
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {pair!r}") from None
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {pair!r}")


def _check_matrix(rgb2cam: tuple[tuple[float, float, float], ...]) -> None:
    if [len(row) for row in rgb2cam] != [3, 3, 3] or any(abs(sum(row) - 1) > 1e-4 for row in rgb2cam):
        raise ValueError(f"rgb2cam must be a 3x3 matrix whose rows sum to 1, got {rgb2cam!r}")
    if not abs(torch.linalg.det(torch.tensor(rgb2cam)).item()) > 1e-3:
        raise ValueError(f"rgb2cam must be invertible, got {rgb2cam!r}")


def picture_size(name: str, size: tuple[int, int], camera: Camera | RawCamera) -> tuple[int, int]:
    """Return the height and width in pixels of the picture behind a target of a size; packed, if it is RAW.

    Raises:
        ValueError: if the camera's brackets cannot have a whole number of pixels; ``name`` is the argument's.
    """
    if isinstance(camera, Camera):
        return size
    if size[0] % camera.scale or size[1] % camera.scale:
        raise ValueError(f"{name} must be multiples of the camera's scale, {camera.scale}, got {size!r}")
    return 2 * size[0], 2 * size[1]


def capture_raw(
    planes: Float[Tensor, "n 4 h w"], camera: RawCamera, generator: torch.Generator
) -> Float[Tensor, "n 4 small_h small_w"]:
    """Read the sensor out: shrink to the camera's scale, shot noise, read noise, clipping, quantisation.

    The variance is ``shot * signal + read``; one pair (shot, read) is drawn for all exposures, as for one ISO number.

    Args:
        planes: (N, 4, h, w) packed light, 1 saturates.
        camera: has the sensor.
        generator: CPU generator of the noise.

    Returns:
        (N, 4, h / scale, w / scale) in [0, 1], multiples of ``1 / (2 ** bits - 1)``.

    Raises:
        ValueError: if ``planes`` has another shape.

    Example:
        >>> capture_raw(torch.ones(1, 4, 2, 2), RawCamera(shot_noise=None), torch.Generator()).unique()
        tensor([1.])
    """
    check_tensor("planes", planes, ndim=4, layout="(N, 4, h, w)", channels=4)
    if camera.scale > 1:
        size = [side // camera.scale for side in planes.shape[-2:]]
        planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    signal = planes.clamp(0, 1)
    if camera.shot_noise is not None:
        shot = log_uniform(generator, *camera.shot_noise)
        deviation = READ_DEVIATION * torch.randn((), generator=generator).item()
        read = math.exp(READ_SLOPE * math.log(shot) + READ_OFFSET + deviation)
        noise = torch.randn(signal.shape, generator=generator)
        signal = (signal + noise * (shot * signal + read).sqrt()).clamp(0, 1)
    levels = 2**camera.bits - 1
    return torch.round(signal * levels) / levels
