"""Objects that move through procedural scenes."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from skt_components.data.seeding import integer, uniform
from skt_components.simulation.backgrounds import FINE, Background
from skt_components.simulation.motion import Motion, sample_linear
from skt_components.simulation.textures import PATTERNS, draw_color, edge, pattern

SHAPES = ("ellipse", "rectangle", "polygon", "figure")


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """A textured solid with a soft outline that moves, rotates and occludes others."""

    shape: str  # one of SHAPES
    center: Tensor  # (2,) pixels from the picture's center, in the reference exposure
    velocity: Tensor  # (2,) pixels per exposure
    angle: float  # radians, in the reference exposure
    spin: float  # radians per exposure
    radius: float  # of its circumscribed circle, in pixels
    aspect: float  # ratio of its two half axes, at most 1
    corners: int  # of a polygon
    pattern: str  # one of PATTERNS
    period: float  # of the pattern, in pixels
    colors: tuple[Tensor, Tensor]  # two (3, 1, 1) albedos
    light: Tensor  # (3, 1, 1) irradiance on it
    sun: Tensor  # (3,) unit direction to the light, x right, y down, z to the camera
    parallax: float  # additional shift with the camera, relative to the background

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the approximate distance in pixels to the outline, positive inside."""
        a, b = self.radius, self.radius * self.aspect
        if self.shape == "ellipse":
            return _ellipse(x, y, a, b)
        if self.shape == "rectangle":
            return _rectangle(x, y, a * 0.8, b * 0.6, 0.15 * b)
        if self.shape == "polygon":
            turns = torch.arange(self.corners) * (2 * math.pi / self.corners)
            sides = [c * x + s * y for c, s in zip(turns.cos().tolist(), turns.sin().tolist(), strict=True)]
            inner = self.radius * math.cos(math.pi / self.corners)
            return inner - torch.stack(sides).amax(0)
        head = _ellipse(x, y + 0.72 * a, 0.22 * a, 0.25 * a)
        body = _rectangle(x, y + 0.1 * a, 0.32 * a, 0.38 * a, 0.15 * a)
        legs = _rectangle(x.abs() - 0.17 * a, y - 0.6 * a, 0.11 * a, 0.36 * a, 0.05 * a)
        return torch.maximum(torch.maximum(head, body), legs)

    def paint(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Return its (3, H, W) radiance at points relative to its center, turned with it."""
        painted = pattern(self.pattern, x, y, self.period, 1 / FINE)
        albedo = torch.lerp(*self.colors, painted) * (1 + 0.15 * noise).clamp(0.3, 1.7)
        nx, ny = (t / (1.1 * self.radius) for t in (x, y))
        nz = (1 - nx**2 - ny**2).clamp(min=0.05).sqrt()
        facing = (self.sun[0] * nx + self.sun[1] * ny + self.sun[2] * nz).clamp(min=0)
        return albedo * self.light * (0.25 + 0.75 * facing)


def _ellipse(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    near = torch.hypot(x / a, y / b)
    slope = torch.hypot(x / a**2, y / b**2).clamp(min=1e-6)
    return near * (1 - near) / slope


def _rectangle(x: Tensor, y: Tensor, a: float, b: float, corner: float) -> Tensor:
    dx, dy = x.abs() - (a - corner), y.abs() - (b - corner)
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return corner - outside - torch.maximum(dx, dy).clamp(max=0)


def draw_objects(
    motion: Motion, height: int, width: int, background: Background, generator: torch.Generator
) -> list[SceneObject]:
    """Draw the moving objects of a picture, from far to near, each in the light of its place."""
    count = integer(generator, *motion.objects)
    parallaxes = sorted(uniform(generator, 0.0, 1.5) for _ in range(count))
    return [_draw_object(motion, height, width, background, generator, parallax) for parallax in parallaxes]


def _draw_object(
    motion: Motion, height: int, width: int, background: Background, generator: torch.Generator, parallax: float
) -> SceneObject:
    center = (torch.rand(2, generator=generator) - 0.5) * torch.tensor([0.9 * width, 0.9 * height])
    place = sample_linear(background.light, (center * FINE).reshape(1, 1, 2))
    radius = max(2.0, uniform(generator, *motion.object_size) * min(height, width))
    shape = SHAPES[integer(generator, 0, len(SHAPES) - 1)]
    upright = shape == "figure"
    direction = uniform(generator, 0.0, 2 * math.pi)
    heading = torch.tensor([math.cos(direction), math.sin(direction) * (0.2 if upright else 1.0)])
    sun = torch.tensor([uniform(generator, -1.0, 1.0), uniform(generator, -1.0, 0.2), uniform(generator, 0.3, 1.0)])
    speed = uniform(generator, *motion.object_speed)
    return SceneObject(
        shape=shape,
        center=center,
        velocity=heading / heading.norm() * speed,
        angle=0.0 if upright else uniform(generator, 0.0, 2 * math.pi),
        spin=0.0 if upright or speed == 0 else uniform(generator, -0.15, 0.15),
        radius=radius,
        aspect=uniform(generator, 0.5, 1.0),
        corners=integer(generator, 3, 7),
        pattern=PATTERNS[integer(generator, 0, len(PATTERNS) - 1)],
        period=max(3.0, radius * uniform(generator, 0.3, 0.9)),
        colors=(draw_color(generator, (0.1, 0.9), (0.3, 0.9)), draw_color(generator, (0.1, 0.9), (0.05, 0.7))),
        light=background.ambient + place * uniform(generator, 0.5, 1.3),
        sun=sun / sun.norm(),
        parallax=parallax,
    )


def add_object(frame: Tensor, thing: SceneObject, points: Tensor, pose: Tensor, noise: Tensor, time: int) -> None:
    """Draw an object over a frame (3, h, w), which is ``FINE`` times finer than the picture, in place.

    ``points`` are (h, w, 2) scene coordinates in pixels, ``pose`` is the camera's homography from picture to scene,
    ``noise`` the (H, W) texture, ``time`` the number of exposures since the reference.
    """
    center = thing.center + thing.velocity * time - thing.parallax * pose[:2, 2]
    seen = torch.linalg.inv(pose.double()) @ torch.cat([center.double(), torch.ones(1).double()])
    reach = 1.2 * thing.radius + 2
    middle = (seen[:2] / seen[2]).tolist()
    rows, columns = (
        slice(max(0, int(FINE * (m - reach) + size / 2)), max(0, int(FINE * (m + reach) + size / 2)))
        for m, size in zip(reversed(middle), frame.shape[1:], strict=True)
    )
    local = points[rows, columns] - center
    if local.numel() == 0:
        return
    turn = thing.angle + thing.spin * time
    c, s = math.cos(turn), math.sin(turn)
    x, y = c * local[..., 0] + s * local[..., 1], c * local[..., 1] - s * local[..., 0]
    texture = sample_linear(noise[None], torch.stack([x, y], dim=-1) * FINE)[0]
    cover = edge(thing.distance(x, y), 1 / FINE)
    frame[:, rows, columns] = torch.lerp(frame[:, rows, columns], thing.paint(x, y, texture), cover)
