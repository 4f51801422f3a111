"""Tone mapping for display."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.ops import srgb_encode, tone_map


def room_with_window(ratio: float = 1000.0) -> torch.Tensor:
    """A textured dark half and a textured bright half."""
    texture = 1 + 0.3 * torch.sin(torch.arange(64.0)[:, None] + torch.arange(64.0))
    light = torch.where(torch.arange(64) < 32, 1.0, ratio)
    return (texture * light)[None, None].repeat(1, 3, 1, 1)


def contrast(picture: torch.Tensor) -> torch.Tensor:
    return picture.amax((1, 2, 3)) - picture.amin((1, 2, 3))


def test_the_texture_of_the_room_and_of_the_window_are_both_seen() -> None:
    scene = room_with_window()
    shown = tone_map(scene)
    room, window = shown[..., 4:28], shown[..., 36:60]
    clipped = srgb_encode((scene / scene[..., :32].max()).clamp(0, 1))
    assert contrast(room) > 0.04
    assert contrast(window) > 0.04
    assert contrast(clipped[..., 36:60]) == 0
    assert window.mean() > room.mean() + 0.1


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 10))
def test_the_unit_of_the_radiance_does_not_matter(unit: float, seed: int) -> None:
    scene = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(seed)) ** 4
    torch.testing.assert_close(tone_map(scene * unit), tone_map(scene), rtol=1e-3, atol=1e-3)


def test_results_are_in_range_black_is_black_and_negative_values_count_as_black() -> None:
    scene = room_with_window()
    scene[..., :8, :8] = 0
    scene[..., 8:16, :8] = -1
    shown = tone_map(scene)
    assert shown.min() == 0
    assert shown.max() <= 1
    assert not shown[..., :16, :8].any()
    assert not tone_map(torch.zeros(1, 3, 8, 8)).any()


def test_a_picture_is_shown_like_another() -> None:
    scene = room_with_window()
    half = tone_map(scene / 2, like=scene)
    assert half.mean() < tone_map(scene).mean() - 0.02
    torch.testing.assert_close(tone_map(scene, like=scene), tone_map(scene))


def test_gray_stays_gray_and_pictures_of_a_batch_do_not_influence_each_other() -> None:
    scene = room_with_window()
    shown = tone_map(scene)
    torch.testing.assert_close(shown[:, 0], shown[:, 1])
    both = tone_map(torch.cat([scene, room_with_window(10.0)]))
    torch.testing.assert_close(both[:1], shown)


@pytest.mark.parametrize(
    ("linear", "options", "error", "message"),
    [
        (torch.rand(3, 4, 4), {}, ValueError, r"linear must have 4 axes \(B, 3, H, W\)"),
        (torch.rand(1, 3, 4, 4), {"like": torch.rand(1, 3, 4, 5)}, ValueError, "like"),
        (torch.rand(1, 3, 4, 4), {"stops": 0.0}, ValueError, "stops must be"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), {}, TypeError, "linear"),
    ],
)
def test_rejects_bad_input(linear: torch.Tensor, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tone_map(linear, **options)
