"""Motion between the exposures of a bracket: camera poses, and objects in front of the scene."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data.seeding import integer, uniform


@dataclasses.dataclass(frozen=True)
class Motion:
    """Set the limits of the motion of camera and foreground objects, relative to the reference exposure.

    Each exposure has its own camera pose, drawn uniformly within the limits. Foreground objects move on straight lines
    from exposure to exposure.

    Attributes:
        shift: largest camera shift along each axis, in pixels.
        rotation: largest roll, in degrees.
        zoom: largest relative change of size, such as 0.01.
        perspective: largest relative change of size at the picture's corner by keystoning.
        objects: fewest and most moving foreground objects.
        object_size: smallest and largest radius, relative to the picture's shorter side.
        object_speed: slowest and fastest object, in pixels per exposure.

    Raises:
        ValueError: a limit is negative or a pair is not ordered.

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
        """Return a motion without any movement."""
        return cls(0.0, 0.0, 0.0, 0.0, (0, 0), (0.0, 0.0), (0.0, 0.0))

    def margin(self, height: int, width: int) -> int:
        """Return the width in pixels of the frame around a picture that the moved camera may see."""
        radius = math.hypot(height, width) / 2
        turn = 2 * math.sin(math.radians(self.rotation) / 2)
        stretch = math.exp(self.zoom) / (1 - self.perspective) - 1
        reach = self.shift * (1 + stretch) + radius * (turn * (1 + stretch) + stretch)
        return math.ceil(reach) + 1 if reach > 0 else 0


def pixel_grid(height: int, width: int, step: float = 1.0) -> Tensor:
    """Return (H, W, 2) coordinates (x right, y down) of the pixel centers, relative to the picture's center."""
    y = (torch.arange(height) - (height - 1) / 2) * step
    x = (torch.arange(width) - (width - 1) / 2) * step
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def camera_pose(motion: Motion, radius: float, generator: torch.Generator) -> Tensor:
    """Draw the (3, 3) homography from picture to scene coordinates; ``radius`` is half the picture's diagonal."""
    angle = math.radians(uniform(generator, -motion.rotation, motion.rotation))
    size = math.exp(uniform(generator, -motion.zoom, motion.zoom))
    dx, dy = (uniform(generator, -motion.shift, motion.shift) for _ in range(2))
    strength = uniform(generator, 0.0, motion.perspective) / radius
    direction = uniform(generator, 0.0, 2 * math.pi)
    c, s = size * math.cos(angle), size * math.sin(angle)
    keystone = [strength * math.cos(direction), strength * math.sin(direction), 1.0]
    return torch.tensor([[c, -s, dx], [s, c, dy], keystone])


def move_grid(grid: Tensor, pose: Tensor) -> Tensor:
    """Transform an (H, W, 2) grid of picture coordinates to scene coordinates."""
    x, y = grid.unbind(-1)
    (a, b, c), (d, e, f), (g, h, i) = pose.tolist()
    w = (g * x).add_(y, alpha=h).add_(i).reciprocal_()
    u = (a * x).add_(y, alpha=b).add_(c).mul_(w)
    v = (d * x).add_(y, alpha=e).add_(f).mul_(w)
    return torch.stack([u, v], dim=-1)


def sample_linear(image: Tensor, points: Tensor) -> Tensor:
    """Sample (C, h, w) at (H, W, 2) centered pixel coordinates, bilinear, mirrored outside."""
    return _grid_sample(image, points, "bilinear")


def _grid_sample(image: Tensor, points: Tensor, mode: str) -> Tensor:
    height, width = image.shape[-2:]
    unit = points * points.new_tensor([2.0 / width, 2.0 / height])
    return F.grid_sample(image[None], unit[None], mode, padding_mode="reflection", align_corners=False)[0]


class SharpPicture:
    """A picture with bicubic sampling, clamped to the range of the 3×3 pixels around, which prevents halos."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self._limits = torch.cat([_largest_around(image), -_largest_around(-image)])

    def sample(self, points: Tensor) -> Tensor:
        """Sample at (H, W, 2) centered pixel coordinates, mirrored outside."""
        high, low = _grid_sample(self._limits, points, "nearest").chunk(2)
        return torch.minimum(torch.maximum(_grid_sample(self.image, points, "bicubic"), low), high)


def _largest_around(image: Tensor) -> Tensor:
    """Return the maximum over each 3×3 neighborhood of (C, h, w); faster here than max pooling."""
    for axis in (-1, -2):
        size = image.shape[axis]
        wide = torch.cat([image.narrow(axis, 0, 1), image, image.narrow(axis, size - 1, 1)], dim=axis)
        sides = torch.maximum(wide.narrow(axis, 0, size), wide.narrow(axis, 2, size))
        image = torch.maximum(image, sides)
    return image


@dataclasses.dataclass(frozen=True)
class Patch:
    """A piece of the scene itself, with a blob-shaped soft outline, moving in front of it."""

    center: Tensor  # (2,) pixels, in the reference exposure
    velocity: Tensor  # (2,) pixels per exposure
    source: Tensor  # (2,) shift to the place in the scene that it shows
    radius: float
    stretch: float  # of width relative to height
    lobes: Tensor  # amplitudes of the outline's Fourier series, from order 2
    phases: Tensor
    gain: Tensor  # (3, 1, 1) factor, up to twice brighter or darker, with a tint

    @property
    def reach(self) -> float:
        """Largest distance in pixels from the center along an axis."""
        lobes = 1 + self.lobes.abs().sum().item()
        return (self.radius * lobes + 1) * max(self.stretch, 1 / self.stretch)

    def coverage(self, points: Tensor) -> Tensor:
        """Return (H, W) coverage in [0, 1] at points relative to the center, with an edge one pixel wide."""
        x, y = points[..., 0] * self.stretch, points[..., 1] / self.stretch
        angle = torch.atan2(y, x)
        outline = torch.ones_like(x)
        for order, (lobe, phase) in enumerate(zip(self.lobes.tolist(), self.phases.tolist(), strict=True), 2):
            outline += lobe * torch.cos(order * angle + phase)
        return (0.5 + self.radius * outline - torch.hypot(x, y)).clamp(0, 1)


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
                center=(torch.rand(2, generator=generator) - 0.5) * size,
                velocity=speed * torch.tensor([math.cos(direction), math.sin(direction)]),
                source=uniform(generator, 0.3, 0.6) * size * torch.tensor([math.cos(away), math.sin(away)]),
                radius=uniform(generator, *motion.object_size) * min(height, width),
                stretch=uniform(generator, 0.8, 1.25),
                lobes=(torch.rand(3, generator=generator) - 0.5) * torch.tensor([0.5, 0.3, 0.2]),
                phases=torch.rand(3, generator=generator) * (2 * math.pi),
                gain=torch.exp(uniform(generator, -0.7, 0.7) + (torch.rand(3, 1, 1, generator=generator) - 0.5) * 0.5),
            )
        )
    return patches


def add_patches(frame: Tensor, scene: SharpPicture, points: Tensor, patches: list[Patch], time: float) -> Tensor:
    """Return a frame (3, H, W), the scene seen at (H, W, 2) ``points``, with patches of the scene in front of it.

    The patches are drawn from far to near, at a time in exposures since the reference, a whole number or not.
    """
    for patch in patches:
        local = points - patch.velocity * time
        box = _bounding_box((local - patch.center).abs().amax(-1) <= patch.reach)
        if box is None:
            continue
        local, before = local[box], frame[(slice(None), *box)]
        coverage = patch.coverage(local - patch.center)
        texture = scene.sample(local + patch.source) * patch.gain
        frame = frame.clone()
        frame[(slice(None), *box)] = torch.lerp(before, texture.clamp(max=1), coverage)
    return frame


def _bounding_box(inside: Tensor) -> tuple[slice, slice] | None:
    """Return the rows and columns of the True values of (H, W); None if there are none."""
    rows, columns = (inside.any(dim).nonzero() for dim in (1, 0))
    if not rows.numel():
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


class MovingPicture:
    """A picture seen by a camera, with pieces of itself moving in front of it.

    The scene is (3, h, w) radiance in [0, 1], with a margin for moved cameras around the picture, height×width pixels
    in its middle.
    """

    def __init__(self, scene: Tensor, height: int, width: int, motion: Motion, generator: torch.Generator) -> None:
        top, left = ((full - part) // 2 for full, part in zip(scene.shape[-2:], (height, width), strict=True))
        self.unmoved = scene[:, top : top + height, left : left + width]
        self.patches = draw_patches(motion, height, width, generator)
        self._scene, self._grid = SharpPicture(scene), pixel_grid(height, width)
        self._motion, self._radius = motion, math.hypot(height, width) / 2
        self._turns = motion.margin(height, width) > 0

    @property
    def still(self) -> bool:
        """True if nothing moves."""
        return not (self._turns or self.patches)

    def draw_pose(self, generator: torch.Generator) -> Tensor | None:
        """Draw a camera pose, see :func:`camera_pose`; None if the camera does not move."""
        return camera_pose(self._motion, self._radius, generator) if self._turns else None

    def at(self, time: float, pose: Tensor | None = None) -> Tensor:
        """Return (3, H, W), the view from a pose, ``time`` exposures after the reference; None is its pose."""
        points, frame = self._grid, self.unmoved
        if pose is not None:
            points = move_grid(points, pose)
            frame = self._scene.sample(points)
        return add_patches(frame, self._scene, points, self.patches, time)
