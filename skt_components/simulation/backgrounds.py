"""Backgrounds of procedural HDR scenes: a landscape in the sun, a room with a window, a street at night."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from skt_components.data.seeding import integer, log_uniform, uniform
from skt_components.simulation.motion import pixel_grid
from skt_components.simulation.textures import draw_color, draw_material, edge, fractal_noise

FINE = 2  # samples per pixel along each axis


@dataclasses.dataclass(frozen=True)
class Background:
    """The static part of a scene, ``FINE`` times finer than the picture and with a margin."""

    radiance: Tensor  # (3, h, w) in scene units
    light: Tensor  # (3, h, w) irradiance, for the objects in front
    noise: Tensor  # (h, w) texture that objects reuse
    ambient: Tensor  # (3, 1, 1) the least irradiance


class _Painter:
    """Coordinates in pixels, noise, and the elements that the three kinds of scene share."""

    def __init__(self, height: int, width: int, margin: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.height, self.width = height, width
        shape = (FINE * (height + 2 * margin), FINE * (width + 2 * margin))
        grid = pixel_grid(*shape, step=1 / FINE)
        self.x, self.y = grid[..., 0], grid[..., 1]
        self.rough = fractal_noise(*shape, generator, 0.7)
        self.smooth = fractal_noise(*shape, generator, 0.45)
        self.scale = min(height, width)

    def uniform(self, low: float, high: float) -> float:
        return uniform(self.generator, low, high)

    def material(self, size: float, turn: float = 0.0) -> Tensor:
        c, s = math.cos(turn), math.sin(turn)
        x, y = c * self.x + s * self.y, c * self.y - s * self.x
        return draw_material(x, y, self.rough, 1 / FINE, self.generator, size * self.scale)

    def box(self, left: float, top: float, right: float, bottom: float, softness: float = 1 / FINE) -> Tensor:
        """Return the coverage of a box given in pixels."""
        inside = [torch.minimum(self.x - left, right - self.x), torch.minimum(self.y - top, bottom - self.y)]
        return edge(torch.minimum(*inside), softness)

    def lamp(self, x: float, y: float, radius: float) -> tuple[Tensor, Tensor]:
        """Return the disc of a light source and the falloff of its light with distance, both (h, w)."""
        distance = torch.hypot(self.x - x, self.y - y)
        reach = 0.12 * self.scale
        return edge(radius - distance, 1 / FINE), 1 / (1 + (distance / reach) ** 2)

    def sky(self, horizon: float, level: float) -> Tensor:
        """Return a (3, h, w) sky with clouds that is brightest at the horizon."""
        zenith = torch.tensor([0.25, 0.45, 0.9]).reshape(3, 1, 1)
        warm = torch.tensor([1.0, self.uniform(0.6, 0.95), self.uniform(0.4, 0.95)]).reshape(3, 1, 1)
        up = ((horizon - self.y) / self.height).clamp(0, 1) ** 0.6
        clouds = (self.smooth - self.uniform(-0.3, 0.8)).clamp(0, 1)
        return level * torch.lerp(torch.lerp(warm, zenith * 0.6, up), warm * 1.3, clouds)


def draw_background(height: int, width: int, margin: int, generator: torch.Generator) -> Background:
    """Draw the background of a picture of H×W pixels with ``margin`` pixels around it."""
    painter = _Painter(height, width, margin, generator)
    paint = (_landscape, _room, _night)[integer(generator, 0, 2)]
    return paint(painter)


def _landscape(p: _Painter) -> Background:
    horizon = p.uniform(-0.3, 0.2) * p.height
    ground = edge(p.y - horizon - 0.02 * p.height * p.smooth, 1 / FINE)
    albedo = p.material(0.9, p.uniform(-0.5, 0.5))
    for _ in range(integer(p.generator, 1, 3)):
        left = p.uniform(-0.6, 0.4) * p.width
        box = (left, horizon - p.uniform(0.1, 0.45) * p.height, left + p.uniform(0.12, 0.4) * p.width)
        house = p.box(*box, horizon + p.uniform(0.02, 0.12) * p.height)
        albedo, ground = torch.lerp(albedo, p.material(0.4), house), torch.maximum(ground, house)
    sun = torch.tensor([1.0, 0.9, p.uniform(0.6, 0.85)]).reshape(3, 1, 1)
    shade_line = p.uniform(-0.4, 0.4) * p.width + p.uniform(-0.8, 0.8) * p.y + 0.1 * p.width * p.smooth
    lit = edge((p.x - shade_line) * (1 if p.uniform(0.0, 1.0) < 0.5 else -1), 0.02 * p.scale)
    ambient = torch.tensor([0.6, 0.8, 1.0]).reshape(3, 1, 1) * log_uniform(p.generator, 0.01, 0.06)
    light = ambient + sun * lit
    disc, glow = p.lamp(p.uniform(-0.5, 0.5) * p.width, horizon - p.uniform(0.1, 0.45) * p.height, 0.05 * p.scale)
    sky = p.sky(horizon, log_uniform(p.generator, 1.0, 6.0)) + sun * (60 * disc + 4 * glow**2)
    return Background(torch.lerp(sky, albedo * light, ground), light, p.rough, ambient)


def _room(p: _Painter) -> Background:
    floor_line = p.uniform(0.15, 0.4) * p.height
    floor = edge(p.y - floor_line - p.uniform(-0.15, 0.15) * p.x, 1 / FINE)
    albedo = torch.lerp(p.material(0.7), p.material(0.8, p.uniform(-0.6, 0.6)), floor)
    width, height = p.uniform(0.2, 0.45) * p.width, p.uniform(0.3, 0.5) * p.height
    x, y = p.uniform(-0.35, 0.35) * p.width, -p.uniform(0.05, 0.25) * p.height
    sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    glass = p.box(*sides)
    bar = 0.015 * p.scale
    for cross in (p.box(x - bar, sides[1], x + bar, sides[3]), p.box(sides[0], y - bar, sides[2], y + bar)):
        glass = glass * (1 - cross)
    outside = torch.lerp(
        p.sky(sides[3], 1.0), p.material(0.2) * 0.5, edge(p.y - y - 0.2 * height * (1 + p.smooth), 1 / FINE)
    )
    daylight = draw_color(p.generator, (0.0, 0.25), (1.0, 1.0))
    _, falloff = p.lamp(x, y, 1.0)
    ambient = daylight * log_uniform(p.generator, 0.002, 0.02)
    slant = p.x + p.uniform(-0.8, 0.8) * p.y
    beam = edge(0.4 * width - (slant - x - p.uniform(-0.2, 0.2) * p.width).abs(), 0.01 * p.scale)
    light = ambient + daylight * (0.15 * falloff + p.uniform(0.0, 1.0) * beam * floor)
    radiance = torch.lerp(albedo * light, outside * log_uniform(p.generator, 1.0, 8.0), glass)
    return Background(radiance, light, p.rough, ambient)


def _night(p: _Painter) -> Background:
    street = p.uniform(0.1, 0.4) * p.height
    ground = edge(p.y - street - p.uniform(-0.1, 0.1) * p.x, 1 / FINE)
    albedo = torch.lerp(p.material(0.6), p.material(0.9, p.uniform(-0.5, 0.5)), ground)
    ambient = draw_color(p.generator, (0.2, 0.6), (1.0, 1.0)) * log_uniform(p.generator, 0.001, 0.006)
    light = ambient.expand(3, *p.x.shape)
    glare, emission = torch.zeros_like(light), torch.zeros_like(light)
    for _ in range(integer(p.generator, 2, 4)):
        color = draw_color(p.generator, (0.0, 0.7), (1.0, 1.0)) * log_uniform(p.generator, 0.3, 1.5)
        x, y = p.uniform(-0.5, 0.5) * p.width, street - p.uniform(0.05, 0.6) * p.height
        disc, falloff = p.lamp(x, y, p.uniform(0.015, 0.05) * p.scale)
        light = light + color * falloff * 0.4
        emission = torch.lerp(emission, color * 20, disc)
        glare = glare + 0.02 * color * falloff**2
    left, top = p.uniform(-0.45, 0.2) * p.width, street - p.uniform(0.3, 0.5) * p.height
    sign = p.box(left, top, left + p.uniform(0.15, 0.35) * p.width, top + p.uniform(0.08, 0.2) * p.height)
    shop = p.material(0.15) * log_uniform(p.generator, 0.5, 3.0)
    radiance = torch.lerp(albedo * light, shop, sign)
    lamps = (emission.amax(0) > 0).to(radiance.dtype)
    return Background(torch.lerp(radiance, emission, lamps) + glare, light + glare, p.rough, ambient)
