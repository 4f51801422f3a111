"""Perspective views out of equirectangular panoramas."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from skt_components.ops.checks import check_tensor
from skt_components.simulation.motion import pixel_grid


def view_ratio(panorama_width: int, width: int, fov: float) -> float:
    """Return how many panorama pixels the central pixel of a view covers along one axis.

    Args:
        panorama_width: of the whole 360°, in pixels.
        width: of the view, in pixels.
        fov: horizontal field of view of the view, in degrees.

    Example:
        >>> round(view_ratio(1024, 128, 90.0), 3)
        2.546
    """
    return 2 * math.tan(math.radians(fov) / 2) / width * panorama_width / (2 * math.pi)


def perspective_view(
    panorama: Float[Tensor, "c h w"],
    size: tuple[int, int],
    *,
    fov: float,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
) -> Float[Tensor, "c vh vw"]:
    """Look into an equirectangular panorama through a pinhole camera (gnomonic projection).

    The panorama's centre column is yaw 0, its top row straight up; seen from inside, columns further right are
    further right. Sampling is bilinear with wrap-around; where a pixel of the view covers several panorama
    pixels, a grid of samples at least as dense as the panorama is averaged, so nothing aliases. Towards the
    poles a panorama repeats the same content over more and more columns, which needs no further care.

    Args:
        panorama: (C, h, w) with w = 2 h, the whole sphere.
        size: height and width of the view in pixels.
        fov: horizontal field of view in degrees, below 180.
        yaw: to the right, in degrees.
        pitch: upwards, in degrees.
        roll: clockwise turn of the camera, in degrees.

    Returns:
        (C, height, width).

    Raises:
        ValueError: if the panorama is not 2:1 or the field of view not inside (0, 180).

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
    view = _sample_sphere(panorama, directions)
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


def _sample_sphere(panorama: Tensor, directions: tuple[Tensor, Tensor]) -> Tensor:
    channels, height, width = panorama.shape
    longitude, latitude = directions
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
