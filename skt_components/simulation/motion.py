"""What moves between the exposures of a bracket: the camera, and things in front of the scene."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data.seeding import integer, uniform


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
        if not all(isinstance(count, int) for count in self.objects):
            raise ValueError(f"objects must be whole numbers, got {self.objects!r}")

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
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


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
    strength = uniform(generator, 0.0, motion.perspective) / radius
    direction = uniform(generator, 0.0, 2 * math.pi)
    c, s = size * math.cos(angle), size * math.sin(angle)
    keystone = [strength * math.cos(direction), strength * math.sin(direction), 1.0]
    return torch.tensor([[c, -s, dx], [s, c, dy], keystone])


def move_grid(grid: Tensor, pose: Tensor) -> Tensor:
    """Take an (H, W, 2) grid of picture coordinates to scene coordinates."""
    x, y = grid.unbind(-1)
    (a, b, c), (d, e, f), (g, h, i) = pose.tolist()
    w = (g * x).add_(y, alpha=h).add_(i).reciprocal_()
    u = (a * x).add_(y, alpha=b).add_(c).mul_(w)
    v = (d * x).add_(y, alpha=e).add_(f).mul_(w)
    return torch.stack([u, v], dim=-1)


def _to_unit(points: Tensor, height: int, width: int) -> Tensor:
    return points * points.new_tensor([2.0 / width, 2.0 / height])


def sample_linear(image: Tensor, points: Tensor) -> Tensor:
    """Sample (C, h, w) at (H, W, 2) centred pixel coordinates, bilinear, mirrored outside."""
    unit = _to_unit(points, *image.shape[-2:])
    return F.grid_sample(image[None], unit[None], padding_mode="reflection", align_corners=False)[0]


class Scene:
    """A picture to sample sharply: bicubic, within the range of the 3×3 pixels around, so without halos."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self._limits = torch.cat([_largest_around(image), -_largest_around(-image)])

    def sample(self, points: Tensor) -> Tensor:
        """Sample at (H, W, 2) centred pixel coordinates, mirrored outside."""
        unit = _to_unit(points, *self.image.shape[-2:])[None]

        def at(image: Tensor, mode: str) -> Tensor:
            return F.grid_sample(image[None], unit, mode, padding_mode="reflection", align_corners=False)[0]

        high, low = at(self._limits, "nearest").chunk(2)
        return torch.minimum(torch.maximum(at(self.image, "bicubic"), low), high)


def _largest_around(image: Tensor) -> Tensor:
    """Return the maximum over each 3×3 neighbourhood of (C, h, w); faster here than max pooling."""
    for axis in (-1, -2):
        size = image.shape[axis]
        wide = torch.cat([image.narrow(axis, 0, 1), image, image.narrow(axis, size - 1, 1)], dim=axis)
        sides = torch.maximum(wide.narrow(axis, 0, size), wide.narrow(axis, 2, size))
        image = torch.maximum(image, sides)
    return image


@dataclasses.dataclass(frozen=True)
class Patch:
    """A piece of the scene itself, with a blob-shaped soft outline, moving in front of it."""

    centre: Tensor
    velocity: Tensor
    source: Tensor
    radius: float
    stretch: float
    lobes: Tensor
    phases: Tensor
    gain: Tensor

    @property
    def reach(self) -> float:
        """Pixels from the centre along an axis beyond which there is nothing of it."""
        lobes = 1 + self.lobes.abs().sum().item()
        return (self.radius * lobes + 1) * max(self.stretch, 1 / self.stretch)

    def coverage(self, points: Tensor) -> Tensor:
        """Return (H, W) coverage in [0, 1] at points relative to the centre; the edge is one pixel wide."""
        x, y = points[..., 0] * self.stretch, points[..., 1] / self.stretch
        angle = torch.atan2(y, x)
        outline = torch.ones_like(x)
        for order, (lobe, phase) in enumerate(zip(self.lobes.tolist(), self.phases.tolist(), strict=True), 2):
            outline += lobe * torch.cos(order * angle + phase)
        return (0.5 + self.radius * outline - torch.hypot(x, y)).clamp(0, 1)


def _draw_gain(generator: torch.Generator) -> Tensor:
    """Draw (3, 1, 1): up to twice brighter or darker, with a tint."""
    brightness = uniform(generator, -0.7, 0.7)
    tint = (torch.rand(3, 1, 1, generator=generator) - 0.5) * 0.5
    return torch.exp(brightness + tint)


def draw_patches(motion: Motion, height: int, width: int, generator: torch.Generator) -> list[Patch]:
    """Draw the moving patches of an H×W picture; the source is a shift to another place in the scene."""
    patches = []
    size = torch.tensor([width, height], dtype=torch.float32)
    for _ in range(integer(generator, *motion.objects)):
        direction = uniform(generator, 0.0, 2 * math.pi)
        speed = uniform(generator, *motion.object_speed)
        away = uniform(generator, 0.0, 2 * math.pi)
        patches.append(
            Patch(
                centre=(torch.rand(2, generator=generator) - 0.5) * size,
                velocity=speed * torch.tensor([math.cos(direction), math.sin(direction)]),
                source=uniform(generator, 0.3, 0.6) * size * torch.tensor([math.cos(away), math.sin(away)]),
                radius=uniform(generator, *motion.object_size) * min(height, width),
                stretch=uniform(generator, 0.8, 1.25),
                lobes=(torch.rand(3, generator=generator) - 0.5) * torch.tensor([0.5, 0.3, 0.2]),
                phases=torch.rand(3, generator=generator) * (2 * math.pi),
                gain=_draw_gain(generator),
            )
        )
    return patches


def add_patches(frame: Tensor, scene: Scene, points: Tensor, patches: list[Patch], time: float) -> Tensor:
    """Return (3, H, W): a frame with the patches in front of it.

    Args:
        frame: (3, H, W) the scene seen at ``points``.
        scene: where the patches' texture comes from.
        points: (H, W, 2) scene coordinates.
        patches: from far to near.
        time: exposures since the reference; may be negative or between two.
    """
    for patch in patches:
        local = points - patch.velocity * time
        box = _box((local - patch.centre).abs().amax(-1) <= patch.reach)
        if box is None:
            continue
        local, before = local[box], frame[(slice(None), *box)]
        coverage = patch.coverage(local - patch.centre)
        texture = scene.sample(local + patch.source) * patch.gain
        frame = frame.clone()
        frame[(slice(None), *box)] = torch.lerp(before, texture.clamp(max=1), coverage)
    return frame


def _box(inside: Tensor) -> tuple[slice, slice] | None:
    """Return the rows and columns around what is True of (H, W); None if nothing is."""
    rows, columns = (inside.any(dim).nonzero() for dim in (1, 0))
    if not rows.numel():
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


class MovingPicture:
    """A picture seen by a camera, with pieces of itself moving in front of it.

    Args:
        scene: (3, h, w) radiance in [0, 1], with what only moved cameras see around the H×W in its middle.
        height: H in pixels.
        width: W in pixels.
        motion: what moves.
        generator: draws the patches.
    """

    def __init__(self, scene: Tensor, height: int, width: int, motion: Motion, generator: torch.Generator) -> None:
        top, left = ((full - part) // 2 for full, part in zip(scene.shape[-2:], (height, width), strict=True))
        self.unmoved = scene[:, top : top + height, left : left + width]
        self.patches = draw_patches(motion, height, width, generator)
        self._scene, self._grid = Scene(scene), pixel_grid(height, width)
        self._motion, self._radius = motion, math.hypot(height, width) / 2
        self._turns = motion.margin(height, width) > 0

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return not (self._turns or self.patches)

    def draw_pose(self, generator: torch.Generator) -> Tensor | None:
        """Draw a camera pose, see :func:`camera_pose`; None if the camera does not move."""
        return camera_pose(self._motion, self._radius, generator) if self._turns else None

    def at(self, time: float, pose: Tensor | None = None) -> Tensor:
        """Return (3, H, W) as seen ``time`` exposures after the reference from a pose, None for the reference's."""
        points, frame = self._grid, self.unmoved
        if pose is not None:
            points = move_grid(points, pose)
            frame = self._scene.sample(points)
        return add_patches(frame, self._scene, points, self.patches, time)
