from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from skt_components.simulation.views import perspective_view, view_ratio


def _sphere(height: int) -> torch.Tensor:
    """Return a panorama whose colors are the directions of its pixels: right, up, ahead."""
    latitude = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height) * math.pi
    longitude = ((torch.arange(2 * height, dtype=torch.float64) + 0.5) / height - 1) * math.pi
    la, lo = torch.meshgrid(latitude, longitude, indexing="ij")
    return torch.stack([la.cos() * lo.sin(), la.sin(), la.cos() * lo.cos()])


def _rays(size: tuple[int, int], fov: float, yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Return the unit ray (right, up, ahead) of each pixel, by rotation matrices."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    x = (np.arange(width) + 0.5 - width / 2)[None].repeat(height, 0)
    y = (height / 2 - np.arange(height) - 0.5)[:, None].repeat(width, 1)
    rays = np.stack([x, y, np.full_like(x, focal)])
    rays /= np.linalg.norm(rays, axis=0)
    a, b, c = (math.radians(v) for v in (yaw, pitch, roll))
    turn = np.array([[math.cos(c), math.sin(c), 0], [-math.sin(c), math.cos(c), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    pan = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    return np.einsum("ij,jhw->ihw", pan @ tilt @ turn, rays)


# matches_reference


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll", "fov"),
    [(0, 0, 0, 60), (75, 0, 0, 60), (180, 20, 0, 90), (-130, -40, 12, 40), (10, 89, -30, 100), (179.9, -89, 0, 75)],
)
def test_view_shows_what_the_rays_meet(yaw: float, pitch: float, roll: float, fov: float) -> None:
    view = perspective_view(_sphere(256), (24, 36), fov=fov, yaw=yaw, pitch=pitch, roll=roll)
    assert view.dtype == torch.float64
    np.testing.assert_allclose(view.numpy(), _rays((24, 36), fov, yaw, pitch, roll), atol=4e-3)


def test_view_is_neither_mirrored_nor_upside_down() -> None:
    panorama = torch.zeros(3, 90, 180)
    panorama[0, :, 100:] = 1  # to the right of the center column
    panorama[1, :40] = 1  # upwards
    view = perspective_view(panorama, (20, 20), fov=60.0)
    assert view[0, :, 17:].min() == 1
    assert view[0, :, :10].max() == 0
    assert view[1, :4].min() == 1
    assert view[1, 12:].max() == 0


# invariants


def test_yaw_wraps_around_without_a_seam() -> None:
    panorama = torch.rand(3, 64, 128)
    for columns in (1, 37, 64, 127):
        yaw = columns * 360 / 128
        turned = perspective_view(panorama.roll(-columns, -1), (16, 16), fov=50.0, pitch=10.0)
        seen = perspective_view(panorama, (16, 16), fov=50.0, yaw=yaw, pitch=10.0)
        torch.testing.assert_close(seen, turned, atol=2e-4, rtol=0)


def test_a_constant_sphere_is_constant_everywhere() -> None:
    for pitch in (-90.0, 0.0, 90.0):
        view = perspective_view(torch.full((3, 32, 64), 3.25), (12, 12), fov=120.0, yaw=33.0, pitch=pitch)
        assert bool((view == 3.25).all())


def test_coarse_views_average_instead_of_aliasing() -> None:
    rows, columns = torch.arange(512)[:, None], torch.arange(1024)[None]
    checker = ((rows + columns) % 2).float().expand(3, 512, 1024)
    assert view_ratio(1024, 24, 90.0) > 10
    view = perspective_view(checker, (24, 24), fov=90.0, yaw=12.3, pitch=5.0)
    assert (view - 0.5).abs().max().item() < 0.05
    sharp = perspective_view(checker, (24, 24), fov=6.0, yaw=12.3, pitch=5.0)
    assert sharp.std().item() > 0.1


def test_energy_of_a_small_light_is_kept_whatever_the_pixel_size() -> None:
    panorama = torch.zeros(1, 256, 512)
    panorama[0, 120, 250] = 1000.0
    sums = [perspective_view(panorama, (n, n), fov=60.0).double().sum().item() / n**2 for n in (16, 32, 64, 128, 256)]
    assert min(sums) > 0
    assert max(sums) / min(sums) < 1.2


# rejects_bad_input


def test_view_rejects() -> None:
    with pytest.raises(ValueError, match="panorama must be twice as wide as high"):
        perspective_view(torch.rand(3, 10, 30), (4, 4), fov=60.0)
    with pytest.raises(ValueError, match="fov must be in"):
        perspective_view(torch.rand(3, 16, 32), (4, 4), fov=180.0)
