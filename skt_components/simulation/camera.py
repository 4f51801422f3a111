"""A bracketing camera: from linear radiance to the noisy, clipped, quantised exposures it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.data.sample import HDRSample, make_bracket
from skt_components.data.seeding import log_uniform
from skt_components.ops.checks import check_positive, check_tensor
from skt_components.simulation.motion import Motion, MovingPicture

# Electrons from which shot noise is drawn from a normal distribution; its skewness there is 1/sqrt(100) = 0.1.
POISSON_LIMIT = 100.0


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera that takes one bracket: sensor, response and the rule that picks the exposure.

    A pixel of target radiance L collects ``L * t * full_well`` electrons in exposure time t: the shortest
    exposure, t = 1, saturates at L = 1. Shot noise and read noise follow, clipping to [0, full_well], the
    sensor's own linear quantisation (``adc_bits``), the response ``x ** (1 / gamma)``, and the picture file's
    quantisation (``bits``).

    The exposure rule (:func:`exposure_scale`) turns a scene of any unit into target radiance. It puts the
    median brightness at a level of the reference exposure drawn from ``mid_level`` (a crop of a larger picture
    may be far brighter or darker than the whole that was metered), but lets no more than
    ``highlight_percent`` of the pixels clip in the shortest exposure, except where the median of the longest
    exposure would then be darker than ``dark_level``.

    Attributes:
        exposure_times: relative to the shortest, which is 1.
        reference: index of the reference exposure; None is the middle one.
        full_well: electrons at which a pixel saturates.
        read_noise: standard deviation in electrons.
        shot_noise: whether photons arrive at random.
        bits: of the LDR pictures, after the response; 8 to 16.
        adc_bits: of the sensor, before the response; None does not quantise there.
        gamma: of the response.
        mid_level: lowest and highest, linear, of the reference exposure's full scale; above 1 most of the
            reference exposure is saturated.
        highlight_percent: per cent of the pixels.
        dark_level: linear, of the longest exposure's full scale.

    Raises:
        ValueError: if a value is outside its range.

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
        if not 0 < self.mid_level[0] <= self.mid_level[1] < math.inf:
            raise ValueError(f"mid_level must be (low, high) with 0 < low <= high, got {self.mid_level!r}")
        if not 0 <= self.read_noise < math.inf:
            raise ValueError(f"read_noise must be a finite number >= 0, got {self.read_noise!r}")
        if not 0 <= self.highlight_percent < 100:
            raise ValueError(f"highlight_percent must be in [0, 100), got {self.highlight_percent!r}")
        for name, bits in (("bits", self.bits), ("adc_bits", self.adc_bits)):
            if (name, bits) != ("adc_bits", None) and bits not in range(8, 17):
                raise ValueError(f"{name} must be a whole number from 8 to 16, got {bits!r}")

    @classmethod
    def from_ev(cls, ev: Sequence[float]) -> Camera:
        """Return a camera with exposure values in stops, such as (-2, 0, 2); all else as by default."""
        return cls(tuple(2.0 ** (value - min(ev)) for value in ev))

    @property
    def reference_index(self) -> int:
        """Index of the reference exposure."""
        return (len(self.exposure_times) - 1) // 2 if self.reference is None else self.reference

    @property
    def times(self) -> Float[Tensor, " n"]:
        """Exposure times as a float32 tensor."""
        return torch.tensor(self.exposure_times)


def exposure_scale(radiance: Float[Tensor, "3 h w"], camera: Camera, generator: torch.Generator) -> float:
    """Return the factor from scene radiance to target radiance by the camera's exposure rule.

    Brightness is the largest of a pixel's channels; pixels of no light at all do not count.

    Args:
        radiance: (3, H, W) linear radiance >= 0 in any unit.
        camera: has the rule, see :class:`Camera`.
        generator: draws the level of the median.

    Returns:
        The factor; 1 for a black scene.
    """
    level = log_uniform(generator, *camera.mid_level)
    brightness = radiance.amax(dim=-3).flatten()
    brightness = brightness[brightness > 0]
    if brightness.numel() == 0:
        return 1.0
    ordered = brightness.sort().values
    last = ordered.numel() - 1
    median = ordered[last // 2].item()
    highlight = ordered[round(last * (1 - camera.highlight_percent / 100))].item()
    scale = min(level / (camera.times[camera.reference_index].item() * median), 1 / highlight)
    return max(scale, camera.dark_level / (max(camera.exposure_times) * median))


def _quantise(x: Tensor, bits: int | None) -> Tensor:
    return x if bits is None else torch.round(x * (2**bits - 1)) / (2**bits - 1)


def _shot_noise(electrons: Tensor, generator: torch.Generator) -> Tensor:
    noisy = electrons + electrons.sqrt() * torch.randn(electrons.shape, generator=generator)
    few = electrons < POISSON_LIMIT
    noisy[few] = torch.poisson(electrons[few], generator=generator)
    return noisy


def capture(radiance: Float[Tensor, "n 3 h w"], camera: Camera, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Take one exposure of each frame: shot noise, read noise, clipping, quantisation and response.

    Args:
        radiance: (N, 3, H, W) target radiance >= 0 as each exposure sees it; 1 saturates at t = 1.
        camera: with N exposure times.
        generator: CPU generator of the noise.

    Returns:
        (N, 3, H, W) LDR pictures in [0, 1], multiples of ``1 / (2 ** bits - 1)``.

    Raises:
        ValueError: if the number of frames is not that of the camera's exposures.

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
        signal = _shot_noise(signal, generator)
    if camera.read_noise > 0:
        signal = signal + camera.read_noise * torch.randn(signal.shape, generator=generator)
    sensor = _quantise((signal / camera.full_well).clamp(0, 1), camera.adc_bits)
    return _quantise(sensor ** (1 / camera.gamma), camera.bits)


def simulate_bracket(
    radiance: Float[Tensor, "3 h w"],
    camera: Camera,
    motion: Motion,
    generator: torch.Generator,
    *,
    margin: int = 0,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph a linear picture as a bracket with camera and foreground motion.

    The reference exposure sees the picture where it is; the others see it through a homography of their own.
    Moving objects are pieces of the picture itself, pasted in front of it in every exposure, so that what they
    hide and uncover is true; ``target`` is exactly what the reference exposure sees. There is no motion blur.

    Args:
        radiance: (3, H + 2 margin, W + 2 margin) linear radiance >= 0 in any unit.
        camera: takes the exposures.
        motion: what moves.
        generator: CPU generator; equal seeds give equal samples.
        margin: pixels on each side that only moved exposures see (``motion.margin(H, W)`` is enough);
            beyond the picture they see it mirrored.
        scale: factor from ``radiance`` to target radiance; None asks :func:`exposure_scale`.
        name: for the sample.

    Returns:
        The sample; its target is ``radiance * scale`` without the margin, clipped at 1, with the moving
        objects of the reference exposure in it.

    Raises:
        TypeError: if ``radiance`` is not a floating-point tensor.
        ValueError: if ``radiance`` is not (3, H, W) or the margin leaves nothing of it.

    Example:
        >>> picture = torch.rand(3, 32, 32)
        >>> sample = simulate_bracket(picture, Camera(), Motion(), torch.Generator().manual_seed(0))
        >>> sample.bracket.shape, sample.target.shape
        (torch.Size([3, 6, 32, 32]), torch.Size([3, 32, 32]))
    """
    radiance, visible = without_margin(radiance, margin)
    if scale is not None:
        check_positive("scale", scale)
    factor = exposure_scale(visible, camera, generator) if scale is None else scale
    scene = (radiance * factor).clamp(0, 1)
    height, width = visible.shape[-2:]
    frames = _take_frames(scene, height, width, camera, motion, generator)
    ldr = capture(frames, camera, generator)
    bracket = make_bracket(ldr, camera.times, camera.gamma)
    return HDRSample(bracket, camera.times, frames[camera.reference_index].clone(), name, "srgb")


def without_margin(radiance: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return a picture to photograph in float32 on the CPU, and the part of it inside the margin.

    Raises:
        TypeError: if ``radiance`` is not a floating-point tensor.
        ValueError: if ``radiance`` is not (3, H, W) or the margin leaves nothing of it.
    """
    check_tensor("radiance", radiance, ndim=3, layout="(3, H, W)", channels=3)
    height, width = (size - 2 * margin for size in radiance.shape[-2:])
    if margin < 0 or min(height, width) < 1:
        raise ValueError(f"margin must be >= 0 and leave pixels of {tuple(radiance.shape)}, got {margin!r}")
    radiance = radiance.to("cpu", torch.float32)
    return radiance, radiance[:, margin : margin + height, margin : margin + width]


def _take_frames(
    scene: Tensor, height: int, width: int, camera: Camera, motion: Motion, generator: torch.Generator
) -> Tensor:
    picture = MovingPicture(scene, height, width, motion, generator)
    times = (float(index - camera.reference_index) for index in range(len(camera.exposure_times)))
    return torch.stack([picture.at(time, picture.draw_pose(generator) if time else None) for time in times])
