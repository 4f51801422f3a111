"""Bracketing cameras, sRGB and RAW: their options, the exposure rule, and the noise and quantization of the sensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from skt_components.data.seeding import log_uniform
from skt_components.ops.checks import check_choice, check_count, check_non_negative, check_positive, check_tensor

# Electrons from which shot noise is drawn from a normal distribution; its skewness there is 1/sqrt(100) = 0.1.
POISSON_LIMIT = 100.0
# BracketIRE's sensor: the log variance of the read noise is linear in the log variance of the shot noise, +- deviation.
READ_SLOPE, READ_OFFSET, READ_DEVIATION = 1.869, 0.3276, 0.3

# Radiance below it counts as black: float32 has less than its full precision there.
LEAST_LIGHT = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True)
class Camera:
    """Describe a camera that takes a bracket: sensor, response and exposure rule.

    A pixel of target radiance L collects ``L * t * full_well`` electrons in exposure time t. So the shortest exposure,
    t = 1, saturates at L = 1. The next steps are shot noise, read noise, clipping to [0, full_well], linear
    quantization of the sensor (``adc_bits``), the response ``x ** (1 / gamma)``, and quantization of the picture file
    (``bits``).

    The exposure rule (:func:`exposure_scale`) converts a scene of any unit to target radiance:

    1. A level is drawn from ``mid_level``. The scale is chosen so that the median brightness has this level in the
       reference exposure. (The range is wide, because a crop may be far brighter or darker than the whole picture
       that a real camera meters.)
    2. At most ``highlight_percent`` of the pixels may clip in the shortest exposure, otherwise the scale is reduced.
    3. But the median of the longest exposure must not become darker than ``dark_level``.

    Attributes:
        exposure_times: relative to the shortest, which is 1.
        reference: index of the reference exposure; None is the middle one.
        full_well: electrons at which a pixel saturates.
        read_noise: standard deviation in electrons.
        shot_noise: True for photons that arrive at random.
        bits: bit depth of the LDR pictures, after the response; 8 to 16.
        adc_bits: bit depth of the sensor, before the response; None: no quantization there.
        gamma: gamma of the response.
        mid_level: lowest and highest level of the median, linear, relative to the full scale of the reference exposure.
            Above 1 most of the reference exposure is saturated.
        highlight_percent: percentage of the pixels that may clip in the shortest exposure.
        dark_level: lowest level of the median, linear, relative to the full scale of the longest exposure.

    Raises:
        ValueError: a value is outside its range.

    Example:
        >>> Camera.from_ev([-2, 0, 2]).exposure_times
        (1.0, 4.0, 16.0)
    """

    exposure_times: tuple[float, ...] = (1.0, 4.0, 16.0)
    reference: int | None = None
    full_well: float = 20_000.0
    read_noise: float = 4.0
    shot_noise: bool = True
    bits: int = 8
    adc_bits: int | None = 14
    gamma: float = 2.2
    mid_level: tuple[float, float] = (0.15, 2.0)
    highlight_percent: float = 1.0
    dark_level: float = 0.03

    def __post_init__(self) -> None:
        times = tuple(float(t) for t in self.exposure_times)
        object.__setattr__(self, "exposure_times", times)
        if not times or min(times) != 1 or not max(times) < math.inf:
            raise ValueError(f"exposure_times must be relative to the shortest, which is 1, got {times!r}")
        if self.reference is not None and not 0 <= self.reference < len(times):
            raise ValueError(f"reference must be an index below {len(times)}, got {self.reference!r}")
        for name in ("full_well", "gamma", "dark_level"):
            check_positive(name, getattr(self, name))
        check_non_negative("read_noise", self.read_noise)
        _check_interval("mid_level", self.mid_level)
        if not 0 <= self.highlight_percent < 100:
            raise ValueError(f"highlight_percent must be in [0, 100), got {self.highlight_percent!r}")
        _check_bits("bits", self.bits)
        if self.adc_bits is not None:
            _check_bits("adc_bits", self.adc_bits)

    @classmethod
    def from_ev(cls, ev: Sequence[float]) -> Camera:
        """Return a camera with exposure values in stops, such as (-2, 0, 2), and default values otherwise."""
        return cls(tuple(2.0 ** (value - min(ev)) for value in ev))

    @property
    def reference_index(self) -> int:
        """Index of the reference exposure."""
        return (len(self.exposure_times) - 1) // 2 if self.reference is None else self.reference

    @property
    def times(self) -> Float[Tensor, " n"]:
        """Exposure times as a float32 tensor."""
        return torch.tensor(self.exposure_times)


@dataclasses.dataclass(frozen=True)
class RawCamera:
    """Describe a camera that takes RAW brackets, one exposure after another, as in BracketIRE.

    On the linear scale of the target, whose peak is 16, exposure n is ``clamp(linear * t_n / 16, 0, 1)``: with the
    defaults ``linear * 4 ** (n - 2)``. The first and shortest exposure is the reference: sharp, dark and noisy. The
    longest exposure is mostly saturated and blurred by motion, because an exposure is the mean of sub-frames.

    The exposure rule is the one of :class:`Camera`, with the shortest exposure as the reference.

    Attributes:
        num_frames: exposures in a bracket.
        ratio: ratio of one exposure time to the one before; above 1.
        subframes: largest number of sub-frames that are averaged for one exposure, spread evenly over its time.
            BracketIRE averages ``4 ** n``.
        scale: 1, or 4 for brackets a quarter of the target's size in both axes (BracketIRE+).
        bits: bit depth of the sensor, 8 to 16.
        shot_noise: smallest and largest variance of shot noise per unit of signal, on the [0, 1] scale of the sensor.
            It is drawn log-uniformly, once for a bracket. It determines the variance of the read noise. None: no noise.
        red_gain: smallest and largest white-balance gain of red, drawn log-uniform.
        blue_gain: the same for blue; green's is 1.
        rgb2cam: rows of the 3x3 matrix from linear sRGB to the sensor's colors after white balance; each row sums to
            1. The default is a plausible overlap of color filters, not the matrix of a real camera.
        mid_level, highlight_percent, dark_level: see :class:`Camera`. The shortest exposure is the reference.

    Raises:
        ValueError: a value is outside its range.

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
        _check_bits("bits", self.bits)
        if self.shot_noise is not None:
            _check_interval("shot_noise", self.shot_noise)
        _check_interval("red_gain", self.red_gain)
        _check_interval("blue_gain", self.blue_gain)
        if [len(row) for row in self.rgb2cam] != [3, 3, 3] or any(abs(sum(row) - 1) > 1e-4 for row in self.rgb2cam):
            raise ValueError(f"rgb2cam must be a 3x3 matrix whose rows sum to 1, got {self.rgb2cam!r}")
        if not abs(torch.linalg.det(torch.tensor(self.rgb2cam)).item()) > 1e-3:
            raise ValueError(f"rgb2cam must be invertible, got {self.rgb2cam!r}")
        _ = self.metering  # checks the values of the exposure rule

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
        rule = {name: getattr(self, name) for name in ("mid_level", "highlight_percent", "dark_level")}
        return Camera(self.exposure_times, reference=0, **rule)

    @property
    def block(self) -> int:
        """Side of the block of picture pixels that one packed pixel of the bracket covers."""
        return 2 * self.scale

    def subframe_times(self, index: int) -> list[float]:
        """Return the times of an exposure's sub-frames, in units of the shortest exposure from its start."""
        start, time = sum(self.exposure_times[:index]), self.exposure_times[index]
        count = int(min(time, self.subframes))
        # A sub-frame stands for the unit of time that follows it, so that the first exposure is the sub-frame at 0.
        return [start + (i + 0.5) * time / count - 0.5 for i in range(count)]


def _check_bits(name: str, bits: int) -> None:
    if bits not in range(8, 17):
        raise ValueError(f"{name} must be a whole number from 8 to 16, got {bits!r}")


def _check_interval(name: str, pair: tuple[float, float]) -> None:
    try:
        low, high = pair
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {pair!r}") from None
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {pair!r}")


def picture_size(name: str, size: tuple[int, int], camera: Camera | RawCamera) -> tuple[int, int]:
    """Return the height and width of the picture to photograph for a target of a size, which is packed for RAW."""
    if isinstance(camera, Camera):
        return size
    if size[0] % camera.scale or size[1] % camera.scale:
        raise ValueError(f"{name} must be multiples of the camera's scale, {camera.scale}, got {size!r}")
    return 2 * size[0], 2 * size[1]


def exposure_scale(radiance: Float[Tensor, "3 h w"], camera: Camera, generator: torch.Generator) -> float:
    """Return the factor from scene radiance, in any unit, to target radiance by the exposure rule of :class:`Camera`.

    Brightness is the largest of a pixel's channels; black pixels do not count, nor do those below the smallest normal
    float32. A scene without others gives 1.
    """
    level = log_uniform(generator, *camera.mid_level)
    brightness = radiance.amax(dim=-3).flatten()
    brightness = brightness[brightness >= LEAST_LIGHT]
    if brightness.numel() == 0:
        return 1.0
    ordered = brightness.sort().values
    last = ordered.numel() - 1
    median = ordered[last // 2].item()
    highlight = ordered[round(last * (1 - camera.highlight_percent / 100))].item()
    scale = min(level / (camera.times[camera.reference_index].item() * median), 1 / highlight)
    return max(scale, camera.dark_level / (max(camera.exposure_times) * median))


def _quantize(x: Tensor, bits: int) -> Tensor:
    return torch.round(x * (2**bits - 1)) / (2**bits - 1)


def _add_shot_noise(electrons: Tensor, generator: torch.Generator) -> Tensor:
    noisy = electrons + electrons.sqrt() * torch.randn(electrons.shape, generator=generator)
    few = electrons < POISSON_LIMIT
    noisy[few] = torch.poisson(electrons[few], generator=generator)
    return noisy


def capture(radiance: Float[Tensor, "n 3 h w"], camera: Camera, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Take one exposure of each frame: shot noise, read noise, clipping, quantization and response.

    ``radiance`` is the target radiance that each of N exposures sees; 1 saturates at t = 1. The LDR pictures are in
    [0, 1], multiples of ``1 / (2 ** bits - 1)``.

    Example:
        >>> frames = torch.full((3, 3, 2, 2), 0.5)
        >>> capture(frames, Camera(), torch.Generator().manual_seed(0))[1:].unique()
        tensor([1.])
    """
    check_tensor("radiance", radiance, ndim=4, layout="(N, 3, H, W)", channels=3)
    if radiance.shape[0] != len(camera.exposure_times):
        raise ValueError(
            f"radiance must have {len(camera.exposure_times)} frames, one for each exposure time, "
            f"got shape {tuple(radiance.shape)}"
        )
    signal = (radiance.clamp(min=0) * camera.times[:, None, None, None]).clamp(max=8) * camera.full_well
    if camera.shot_noise:
        signal = _add_shot_noise(signal, generator)
    if camera.read_noise > 0:
        signal = signal + camera.read_noise * torch.randn(signal.shape, generator=generator)
    sensor = (signal / camera.full_well).clamp(0, 1)
    sensor = sensor if camera.adc_bits is None else _quantize(sensor, camera.adc_bits)
    return _quantize(sensor ** (1 / camera.gamma), camera.bits)


def capture_raw(
    planes: Float[Tensor, "n 4 h w"], camera: RawCamera, generator: torch.Generator
) -> Float[Tensor, "n 4 small_h small_w"]:
    """Read the sensor out: shrink to the camera's scale, shot noise, read noise, clipping, quantization.

    The variance is ``shot * signal + read``; one pair (shot, read) is drawn for all exposures, as for one ISO number.
    ``planes`` is packed light, of which 1 saturates; the result is a multiple of ``1 / (2 ** bits - 1)``.

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
    return _quantize(signal, camera.bits)
