"""Views of large pictures: perspective views of panoramas, crops of flat pictures; random, evenly spread or fixed."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from skt_components.data.seeding import integer, uniform
from skt_components.data.windows import spread
from skt_components.ops.checks import check_tensor
from skt_components.simulation.camera import LEAST_LIGHT
from skt_components.simulation.motion import pixel_grid

Size = tuple[int, int]

MIN_LIT = 0.05  # share of a view that must have light


def view_ratio(panorama_width: int, width: int, fov: float) -> float:
    """Return how many panorama pixels the central pixel of a view of ``fov`` degrees covers along one axis."""
    return 2 * math.tan(math.radians(fov) / 2) / width * panorama_width / (2 * math.pi)


def perspective_view(
    panorama: Float[Tensor, "c h w"],
    size: Size,
    *,
    fov: float,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
) -> Float[Tensor, "c vh vw"]:
    """Project an equirectangular panorama into a pinhole camera (gnomonic projection).

    The panorama's center column is yaw 0, its top row straight up; seen from inside, columns further right are
    further right. Sampling is bilinear with wrap-around. If a pixel of the view covers several panorama pixels, a grid
    of samples at least as dense as the panorama is averaged, which prevents aliasing. Towards the poles a panorama
    repeats the same content over more and more columns, which needs no further care.

    Args:
        panorama: (C, h, w) with w = 2 h, the whole sphere.
        size: height and width of the view in pixels.
        fov: horizontal field of view in degrees, below 180.
        yaw: to the right, in degrees.
        pitch: upwards, in degrees.
        roll: clockwise turn of the camera, in degrees.

    Example:
        >>> perspective_view(torch.rand(3, 64, 128), (16, 24), fov=60.0).shape
        torch.Size([3, 16, 24])
    """
    check_tensor("panorama", panorama, ndim=3, layout="(C, h, 2 h)")
    if panorama.shape[-1] != 2 * panorama.shape[-2]:
        raise ValueError(f"panorama must be twice as wide as high, got shape {tuple(panorama.shape)}")
    if not 0 < fov < 180:
        raise ValueError(f"fov must be in (0, 180) degrees, got {fov!r}")
    height, width = size
    fine = max(1, math.ceil(view_ratio(panorama.shape[-1], width, fov)))
    focal = width * fine / 2 / math.tan(math.radians(fov) / 2)
    points = pixel_grid(height * fine, width * fine) / focal
    directions = _directions(points, math.radians(yaw), math.radians(pitch), math.radians(roll))
    view = _sample_sphere(panorama, *directions)
    return F.avg_pool2d(view[None], fine)[0] if fine > 1 else view


def _directions(points: Tensor, yaw: float, pitch: float, roll: float) -> tuple[Tensor, Tensor]:
    """Return longitude (to the right) and latitude (upwards) in radians of points on the image plane."""
    cr, sr = math.cos(roll), math.sin(roll)
    right = cr * points[..., 0] - sr * points[..., 1]
    down = sr * points[..., 0] + cr * points[..., 1]
    cp, sp = math.cos(pitch), math.sin(pitch)
    ahead = cp + sp * down
    up = sp - cp * down
    longitude = torch.atan2(right, ahead) + yaw
    return longitude, torch.atan2(up, torch.hypot(right, ahead))


def _sample_sphere(panorama: Tensor, longitude: Tensor, latitude: Tensor) -> Tensor:
    channels, height, width = panorama.shape
    x = (longitude / (2 * math.pi) + 0.5) * width - 0.5
    y = ((0.5 - latitude / math.pi) * height - 0.5).clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    fx, fy = (x - left).to(panorama.dtype), (y - top).to(panorama.dtype)
    left = left.long() % width
    top = top.long()
    right, bottom = (left + 1) % width, (top + 1).clamp(max=height - 1)
    flat = panorama.reshape(channels, -1)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, (row * width + column).flatten()).view(channels, *row.shape)

    upper = torch.lerp(pixels(top, left), pixels(top, right), fx)
    lower = torch.lerp(pixels(bottom, left), pixels(bottom, right), fx)
    return torch.lerp(upper, lower, fy)


class SphereView(NamedTuple):
    """A direction and field of view in a panorama, in degrees."""

    yaw: float
    pitch: float
    roll: float
    fov: float

    def window(self, panorama: Tensor, size: Size, margin: int) -> Tensor:
        """Return (3, H + 2 margin, W + 2 margin) whose inside spans the field of view."""
        height, width = size[0] + 2 * margin, size[1] + 2 * margin
        slope = math.tan(math.radians(self.fov) / 2) * width / size[1]
        return perspective_view(
            panorama, (height, width), **{**self._asdict(), "fov": math.degrees(2 * math.atan(slope))}
        )


@dataclasses.dataclass(frozen=True)
class SphereViews:
    """Views of panoramas within limits in degrees; with ``fov`` None the field of view suits the pixels."""

    fov: tuple[float, float] | None = None
    pitch: float = 30.0
    roll: float = 5.0

    def __post_init__(self) -> None:
        if self.fov is not None and not (len(self.fov) == 2 and 0 < self.fov[0] <= self.fov[1] <= 150):
            raise ValueError(f"fov must be (low, high) with 0 < low <= high <= 150 degrees, got {self.fov!r}")
        for name, value in (("pitch", self.pitch), ("roll", self.roll)):
            if not 0 <= value <= 90:
                raise ValueError(f"{name} must be from 0 to 90 degrees, got {value!r}")

    def fov_range(self, panorama_width: int, width: int) -> tuple[float, float]:
        """Return the smallest and largest field of view of views ``width`` pixels wide."""
        if self.fov is not None:
            return self.fov
        half = math.pi * width / panorama_width
        fine, coarse = (math.degrees(2 * math.atan(pixels * half)) for pixels in (1, 2))
        return min(max(fine, 20.0), 75.0), min(max(coarse, 45.0), 90.0)

    def reduction(self, panorama: Tensor, width: int) -> int:
        """Return the largest whole factor by which a panorama can shrink and keep twice any view's resolution."""
        height, panorama_width = panorama.shape[-2:]
        finest = view_ratio(panorama_width, width, self.fov_range(panorama_width, width)[0])
        return next((f for f in range(int(finest / 2), 1, -1) if height % f == 0), 1)

    def random(self, panorama: Tensor, size: Size, generator: torch.Generator) -> SphereView:
        """Draw a view."""
        fov = uniform(generator, *self.fov_range(panorama.shape[-1], size[1]))
        yaw = uniform(generator, -180.0, 180.0)
        pitch = uniform(generator, -self.pitch, self.pitch)
        return SphereView(yaw, pitch, uniform(generator, -self.roll, self.roll), fov)

    def fixed(self, panorama: Tensor, size: Size, number: int) -> SphereView:
        """Return view ``number`` of an evenly spread sequence, level and of middle width."""
        u, v = spread(number)
        fov = sum(self.fov_range(panorama.shape[-1], size[1])) / 2
        return SphereView(360 * u - 180, self.pitch * (2 * v - 1), 0.0, fov)

    def brightest(self, panorama: Tensor, size: Size) -> SphereView:
        """Return the view at the brightest pixel."""
        height, width = panorama.shape[-2:]
        row, column = divmod(int(panorama.amax(0).argmax()), width)
        fov = self.fov_range(width, size[1])[0]
        return SphereView((column + 0.5) / width * 360 - 180, 90 - (row + 0.5) / height * 180, 0.0, fov)


class FlatView(NamedTuple):
    """The upper left corner of a crop."""

    top: int
    left: int

    def window(self, picture: Tensor, size: Size, margin: int) -> Tensor:
        """Return (3, H + 2 margin, W + 2 margin), mirrored where it leaves the picture."""
        rows = _mirrored(self.top - margin, size[0] + 2 * margin, picture.shape[-2])
        columns = _mirrored(self.left - margin, size[1] + 2 * margin, picture.shape[-1])
        return picture.index_select(1, rows).index_select(2, columns)


def _mirrored(start: int, count: int, length: int) -> Tensor:
    """Return ``count`` indices from ``start`` on, reflected at the ends of [0, length)."""
    index = torch.arange(start, start + count) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


class FlatViews:
    """Crops of flat pictures, with the methods of :class:`SphereViews`."""

    def random(self, picture: Tensor, size: Size, generator: torch.Generator) -> FlatView:
        """Draw a crop."""
        rows, columns = picture.shape[-2] - size[0], picture.shape[-1] - size[1]
        return FlatView(integer(generator, 0, rows), integer(generator, 0, columns))

    def fixed(self, picture: Tensor, size: Size, number: int) -> FlatView:
        """Return crop ``number`` of an evenly spread sequence."""
        u, v = spread(number)
        return FlatView(round(u * (picture.shape[-2] - size[0])), round(v * (picture.shape[-1] - size[1])))

    def brightest(self, picture: Tensor, size: Size) -> FlatView:
        """Return the crop around the brightest pixel."""
        height, width = picture.shape[-2:]
        row, column = divmod(int(picture.amax(0).argmax()), width)
        top = min(max(row - size[0] // 2, 0), height - size[0])
        return FlatView(top, min(max(column - size[1] // 2, 0), width - size[1]))


def lit_view(
    views: SphereViews | FlatViews,
    picture: Tensor,
    size: Size,
    generator: torch.Generator,
    *,
    margin: int,
    attempts: int,
    number: int | None,
) -> tuple[SphereView | FlatView, Tensor]:
    """Choose a view of which at least a twentieth has light, or after ``attempts`` the one around the brightest pixel.

    Args:
        views: how the picture is seen.
        picture: radiance (3, H, W).
        size: size of the view, without margin.
        generator: generator of random views.
        margin: pixels around the view.
        attempts: views to try.
        number: number of a fixed view; None draws random ones.

    Returns:
        The place, and its window (3, height + 2 margin, width + 2 margin).
    """
    for attempt in range(attempts):
        place: SphereView | FlatView
        if number is None:
            place = views.random(picture, size, generator)
        else:
            place = views.fixed(picture, size, number + 7919 * attempt)
        window = place.window(picture, size, margin)
        inside = window[:, margin : margin + size[0], margin : margin + size[1]]
        if int((inside.amax(0) >= LEAST_LIGHT).sum()) >= MIN_LIT * size[0] * size[1]:
            return place, window
    place = views.brightest(picture, size)
    return place, place.window(picture, size, margin)
