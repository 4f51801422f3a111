"""Wrong channel orders, peaks and exposures are found, and correct pictures are not reported."""

from __future__ import annotations

import math

import pytest
import torch

from skt_components.evaluation.suspicious import find_suspicious


def natural_picture() -> torch.Tensor:
    """A warm picture with structure of its own in each channel."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    return torch.stack([0.6 * x + 0.3, 0.4 * y + 0.1, 0.1 * (x - y).abs()])


def test_a_noisy_prediction_is_not_suspicious():
    target = natural_picture()
    assert find_suspicious((target + 0.02 * torch.randn_like(target)).clamp(min=0), target) == []


@pytest.mark.parametrize("order", ["BGR", "GRB", "RBG"])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_swapped_channels_are_named(order, gain):
    # Undone by itself: these three orders are swaps.
    target = natural_picture()
    swapped = gain * target[["RGB".index(channel) for channel in order]]
    (found,) = find_suspicious(swapped, target)
    assert f"with its channels as {order}" in found


def test_the_order_that_is_named_mends_a_rotation():
    target = natural_picture()
    rotated = target[[1, 2, 0]]
    (found,) = find_suspicious(rotated, target)
    name = found.split("channels as ")[1][:3]
    assert torch.equal(rotated[["RGB".index(channel) for channel in name]], target)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_not_compared(value):
    prediction = natural_picture()
    prediction[0, 3, 4] = value
    assert find_suspicious(prediction, natural_picture()) == ["the prediction holds infinite or NaN values"]


def test_a_gray_picture_has_no_order():
    gray = natural_picture().mean(0).expand(3, -1, -1)
    assert find_suspicious(0.8 * gray, gray) == []


@pytest.mark.parametrize(
    ("scale", "peak", "message"),
    [
        (16.0, 1.0, "reaches 14.4, above the peak of 1"),
        (1 / 255, 1.0, "reaches only"),
        (1.0, 255.0, "the peak is 255"),
    ],
)
def test_wrong_peaks_of_the_target_are_named(scale, peak, message):
    picture = scale * natural_picture()
    (found,) = find_suspicious(picture, picture, peak=peak)
    assert message in found


@pytest.mark.parametrize("factor", [16.0, 1 / 16])
def test_a_prediction_of_another_brightness_is_named(factor):
    (found,) = find_suspicious(factor * natural_picture(), natural_picture())
    assert f"{factor:.3g} times as bright" in found


def test_lights_above_the_peak_are_suspicious_in_bounded_data_only():
    target = natural_picture()
    target[:, 3:5, 3:5] = 40.0
    assert len(find_suspicious(target, target)) == 1
    assert find_suspicious(target, target, bounded=False) == []


def test_a_dark_target_is_suspicious_unless_in_low_light():
    target = 0.01 * natural_picture()
    (found,) = find_suspicious(target, target)
    assert "reaches only" in found
    assert find_suspicious(target, target, low_light=True) == []


def test_colors_that_are_bad_in_every_order_are_not_reported_as_a_wrong_order():
    target = natural_picture()
    strange = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    strange = torch.nn.functional.interpolate(strange[None], size=target.shape[-2:], mode="bilinear")[0]
    assert not any("channel order" in line for line in find_suspicious(strange, target))


@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        (torch.rand(3, 4, 4), torch.rand(3, 4, 5), ValueError, "target"),
        (torch.rand(1, 4, 4), torch.rand(1, 4, 4), ValueError, "prediction"),
        (torch.ones(3, 4, 4, dtype=torch.uint8), torch.rand(3, 4, 4), TypeError, "prediction"),
    ],
)
def test_find_suspicious_rejects_bad_input(prediction, target, error, message):
    with pytest.raises(error, match=message):
        find_suspicious(prediction, target)
