"""Procedural textures: fractal noise, antialiased patterns, random colors and materials."""

from __future__ import annotations

import colorsys
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data.seeding import integer, uniform

PATTERNS = ("plain", "stripes", "checker", "dots", "bricks")


def fractal_noise(height: int, width: int, generator: torch.Generator, roughness: float = 0.55) -> Tensor:
    """Return (H, W) noise around 0 with a deviation of about 0.65.

    Each octave has ``roughness`` times the weight of the coarser one: 0.35 gives clouds, 0.7 gives gravel.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) > 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    noise = torch.randn(sizes[-1], generator=generator)
    weight = power = 1.0
    for size in reversed(sizes[:-1]):
        weight *= roughness
        power += weight**2
        noise = F.interpolate(noise[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        noise += weight * torch.randn(size, generator=generator)
    return noise / math.sqrt(power)


def edge(distance: Tensor, softness: float = 1.0) -> Tensor:
    """Turn a signed distance in pixels, positive inside, into coverage with an edge ``softness`` pixels wide."""
    return (distance / softness + 0.5).clamp(0, 1)


def _wave(x: Tensor, period: float) -> Tensor:
    """Return a sine with slope 1 at its zeros, the approximate distance to the edge of a stripe."""
    return torch.sin(x * (2 * math.pi / period)) * (period / (2 * math.pi))


def pattern(name: str, x: Tensor, y: Tensor, period: float, pixel: float) -> Tensor:
    """Return one of ``PATTERNS`` in [0, 1] with edges one pixel wide.

    ``period`` and ``pixel`` are in the units of the coordinates x (to the right) and y (down, broadcast against x).
    """
    if name == "stripes":
        return edge(_wave(x + 0 * y, period), pixel)
    if name == "checker":
        return edge(_wave(x, period) * _wave(y, period) * (2 * math.pi / period), pixel)
    if name == "dots":
        u, v = (torch.remainder(t, period) - period / 2 for t in (x, y))
        return edge(0.3 * period - torch.hypot(u, v), pixel)
    if name == "bricks":
        row = torch.floor(y / (period / 2))
        along = torch.remainder(x + 0.5 * period * torch.remainder(row, 2), period)
        up = torch.remainder(y, period / 2)
        gap = 0.08 * period
        return edge(
            torch.minimum(torch.minimum(along, period - along), torch.minimum(up, period / 2 - up)) - gap, pixel
        )
    return torch.zeros_like(x + y)


def draw_color(generator: torch.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Tensor:
    """Draw a (3, 1, 1) linear color of random hue."""
    hue = uniform(generator, 0.0, 1.0)
    rgb = colorsys.hsv_to_rgb(hue, uniform(generator, *saturation), uniform(generator, *value))
    return torch.tensor(rgb).reshape(3, 1, 1)


def draw_material(x: Tensor, y: Tensor, noise: Tensor, pixel: float, generator: torch.Generator, size: float) -> Tensor:
    """Return the (3, H, W) albedo in [0.01, 0.95] of a random painted and worn surface.

    The coordinates x and y are turned with the surface; ``noise`` is (H, W) from :func:`fractal_noise`; the ``size`` of
    the surface, in the units of the coordinates, sets the period of its pattern.
    """
    first = draw_color(generator, (0.05, 0.6), (0.2, 0.8))
    second = draw_color(generator, (0.05, 0.6), (0.08, 0.9))
    name = PATTERNS[integer(generator, 0, len(PATTERNS) - 1)]
    painted = pattern(name, x, y, size * uniform(generator, 0.15, 0.45), pixel)
    wear = uniform(generator, 0.1, 0.35)
    return (torch.lerp(first, second, painted) * (1 + wear * noise)).clamp(0.01, 0.95)
