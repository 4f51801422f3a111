"""What moves between the exposures of a bracket: the camera, and things in front of the scene."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data._seeding import integer, uniform


@dataclasses.dataclass(frozen=True)
class Motion:
    """How far the camera and the foreground move; the reference exposure never does.

    Each exposure has its own hand-held camera pose, drawn uniformly within the limits. Foreground objects move
    along straight lines, from exposure to exposure.

    Attributes:
        shift: largest camera shift along each axis, in pixels.
        rotation: largest roll, in degrees.
        zoom: largest relative change of size, such as 0.01.
        perspective: largest relative change of size at the picture's corner by keystoning.
        objects: fewest and most moving foreground objects.
        object_size: smallest and largest radius, relative to the picture's shorter side.
        object_speed: slowest and fastest object, in pixels per exposure.

    Raises:
        ValueError: if a limit is negative or a pair is not ordered.

    Example:
        >>> Motion.still().margin(128, 128)
        0
    """

    shift: float = 4.0
    rotation: float = 0.5
    zoom: float = 0.005
    perspective: float = 0.005
    objects: tuple[int, int] = (1, 3)
    object_size: tuple[float, float] = (0.08, 0.25)
    object_speed: tuple[float, float] = (2.0, 14.0)

    def __post_init__(self) -> None:
        for name, limit in (("shift", None), ("rotation", 45.0), ("zoom", 0.5), ("perspective", 0.5)):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (limit is not None and value > limit):
                raise ValueError(f"{name} must be a number from 0 to {limit or 'any size'}, got {value!r}")
        for name in ("objects", "object_size", "object_speed"):
            try:
                low, high = getattr(self, name)
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be a pair (low, high), got {getattr(self, name)!r}") from None
            if not 0 <= low <= high < math.inf:
                raise ValueError(f"{name} must be ordered and not negative, got {(low, high)!r}")

    @classmethod
    def still(cls) -> Motion:
        """Return a motion in which nothing moves."""
        return cls(0.0, 0.0, 0.0, 0.0, (0, 0), (0.0, 0.0), (0.0, 0.0))

    def margin(self, height: int, width: int) -> int:
        """Return how many pixels around a picture the camera may bring into view."""
        radius = math.hypot(height, width) / 2
        turn = 2 * math.sin(math.radians(self.rotation) / 2)
        stretch = math.exp(self.zoom) / (1 - self.perspective) - 1
        reach = self.shift * (1 + stretch) + radius * (turn * (1 + stretch) + stretch)
        return math.ceil(reach) + 1 if reach > 0 else 0


def pixel_grid(height: int, width: int, step: float = 1.0) -> Tensor:
    """Return (H, W, 2) coordinates (x right, y down) of the pixel centres, the picture's centre being 0."""
    y = (torch.arange(height) - (height - 1) / 2) * step
    x = (torch.arange(width) - (width - 1) / 2) * step
    return torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)


def camera_pose(motion: Motion, radius: float, generator: torch.Generator) -> Tensor:
    """Draw the (3, 3) homography that takes picture coordinates to scene coordinates.

    Args:
        motion: the limits.
        radius: half the picture's diagonal in pixels.
        generator: where the numbers come from.
    """
    angle = math.radians(uniform(generator, -motion.rotation, motion.rotation))
    size = math.exp(uniform(generator, -motion.zoom, motion.zoom))
    dx, dy = (uniform(generator, -motion.shift, motion.shift) for _ in range(2))
    strength = uniform(generator, 0, motion.perspective) / radius
    direction = uniform(generator, 0, 2 * math.pi)
    c, s = size * math.cos(angle), size * math.sin(angle)
    keystone = [strength * math.cos(direction), strength * math.sin(direction), 1.0]
    return torch.tensor([[c, -s, dx], [s, c, dy], keystone])


def move_grid(grid: Tensor, pose: Tensor) -> Tensor:
    """Take an (H, W, 2) grid of picture coordinates to scene coordinates."""
    moved = grid @ pose[:, :2].T + pose[:, 2]
    return moved[..., :2] / moved[..., 2:]


def _to_unit(points: Tensor, height: int, width: int) -> Tensor:
    return points * points.new_tensor([2.0 / width, 2.0 / height])


def sample_linear(image: Tensor, points: Tensor) -> Tensor:
    """Sample (C, h, w) at (H, W, 2) centred pixel coordinates, bilinear, mirrored outside."""
    unit = _to_unit(points, *image.shape[-2:])
    return F.grid_sample(image[None], unit[None], padding_mode="reflection", align_corners=False)[0]


def sample_sharp(image: Tensor, points: Tensor) -> Tensor:
    """Sample as bicubic does, but within the range of the 3×3 pixels around: no halos beside highlights."""
    unit = _to_unit(points, *image.shape[-2:])[None]
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")
    limits = torch.cat([F.max_pool2d(padded, 3, 1), -F.max_pool2d(-padded, 3, 1)], dim=1)
    common = {"padding_mode": "reflection", "align_corners": False}
    high, low = F.grid_sample(limits, unit, mode="nearest", **common).chunk(2, dim=1)  # type: ignore[arg-type]
    value = F.grid_sample(image[None], unit, mode="bicubic", **common)  # type: ignore[arg-type]
    return torch.minimum(torch.maximum(value, low), high)[0]


@dataclasses.dataclass(frozen=True)
class _Patch:
    """A piece of the scene itself, with a blob-shaped soft outline, moving in front of it."""

    centre: Tensor
    velocity: Tensor
    source: Tensor
    radius: float
    stretch: float
    lobes: Tensor
    phases: Tensor
    gain: Tensor

    def coverage(self, points: Tensor) -> Tensor:
        """Return (H, W) coverage in [0, 1] at points relative to the centre; the edge is one pixel wide."""
        x, y = points[..., 0] * self.stretch, points[..., 1] / self.stretch
        angle = torch.atan2(y, x)
        outline = torch.ones_like(x)
        for order, (lobe, phase) in enumerate(zip(self.lobes.tolist(), self.phases.tolist(), strict=True), 2):
            outline += lobe * torch.cos(order * angle + phase)
        return (0.5 + self.radius * outline - torch.hypot(x, y)).clamp(0, 1)


def draw_patches(motion: Motion, height: int, width: int, generator: torch.Generator) -> list[_Patch]:
    """Draw the moving patches of an H×W picture; the source is a shift to another place in the scene."""
    patches = []
    size = torch.tensor([width, height], dtype=torch.float32)
    for _ in range(integer(generator, *motion.objects)):
        direction = uniform(generator, 0, 2 * math.pi)
        speed = uniform(generator, *motion.object_speed)
        away = uniform(generator, 0, 2 * math.pi)
        patches.append(
            _Patch(
                centre=(torch.rand(2, generator=generator) - 0.5) * size,
                velocity=speed * torch.tensor([math.cos(direction), math.sin(direction)]),
                source=uniform(generator, 0.3, 0.6) * size * torch.tensor([math.cos(away), math.sin(away)]),
                radius=uniform(generator, *motion.object_size) * min(height, width),
                stretch=uniform(generator, 0.8, 1.25),
                lobes=(torch.rand(3, generator=generator) - 0.5) * torch.tensor([0.5, 0.3, 0.2]),
                phases=torch.rand(3, generator=generator) * (2 * math.pi),
                gain=torch.exp((torch.rand(3, generator=generator) - 0.5) * 1.2),
            )
        )
    return patches


def render(scene: Tensor, points: Tensor, patches: list[_Patch], time: int) -> Tensor:
    """Return (3, H, W): the scene at these points with the patches in front of it.

    Args:
        scene: (3, h, w) radiance.
        points: (H, W, 2) scene coordinates.
        patches: from far to near.
        time: exposures since the reference; may be negative.
    """
    frame = sample_sharp(scene, points)
    return add_patches(frame, scene, points, patches, time)


def add_patches(frame: Tensor, scene: Tensor, points: Tensor, patches: list[_Patch], time: int) -> Tensor:
    """Put the patches in front of a frame of the scene."""
    for patch in patches:
        local = points - patch.velocity * time
        coverage = patch.coverage(local - patch.centre)
        texture = sample_sharp(scene, local + patch.source) * patch.gain[:, None, None]
        frame = torch.lerp(frame, texture.clamp(max=1), coverage)
    return frame
