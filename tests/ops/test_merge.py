"""The reference exposure and the exposure merge."""

from __future__ import annotations

import pytest
import torch

from skt_components.data import make_bracket
from skt_components.metrics import psnr_mu
from skt_components.ops import merge_exposures, reference_exposure
from skt_components.simulation import Camera, Motion, RawCamera, SyntheticScenes

TIMES = torch.tensor([1.0, 4.0, 16.0])


def still_bracket(radiance: torch.Tensor, times: torch.Tensor = TIMES) -> torch.Tensor:
    """Noise-free exposures of a scene that stands still."""
    ldr = (radiance * times[:, None, None, None]).clamp(0, 1) ** (1 / 2.2)
    return make_bracket(ldr, times)


def scene(seed: int = 0, low: float = 1e-3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator) ** 3
    return torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear")[0].clamp(low, 1)


def test_the_reference_exposure_is_the_linear_picture_of_the_middle_frame_or_of_the_first_raw_frame() -> None:
    bracket, raw = torch.rand(2, 3, 6, 5, 7), torch.rand(2, 5, 4, 5, 7)
    assert torch.equal(reference_exposure(bracket), bracket[:, 1, :3])
    assert torch.equal(reference_exposure(bracket, reference=2), bracket[:, 2, :3])
    assert torch.equal(reference_exposure(raw), raw[:, 0])
    assert reference_exposure(raw, scale=4).shape == (2, 4, 20, 28)


def test_a_still_scene_is_merged_to_its_radiance_also_where_the_reference_is_saturated() -> None:
    radiance = scene()
    assert (radiance > 0.25).any(), "the reference exposure must be saturated somewhere"
    bracket = still_bracket(radiance)[None]
    merged = merge_exposures(bracket, TIMES)[0]
    torch.testing.assert_close(merged, radiance, rtol=1e-3, atol=1e-4)
    assert (reference_exposure(bracket)[0] - radiance).abs().max() > 0.5


def test_exposures_that_disagree_with_the_reference_leave_no_ghost() -> None:
    radiance = scene() * 0.2  # the reference exposure is nowhere saturated
    moved = radiance.clone()
    moved[:, 10:20, 10:20] = 0.002
    bracket = still_bracket(radiance)
    bracket[0], bracket[2] = still_bracket(moved)[0], still_bracket(moved)[2]
    merged = merge_exposures(bracket[None], TIMES)[0]
    naive = bracket[:, :3].mean(0)
    assert (merged - radiance).abs().max() < 0.01
    assert (naive - radiance).abs().max() > 0.05


def test_the_longer_exposure_takes_the_noise_out_of_the_dark() -> None:
    camera, generator = Camera(bits=16), torch.Generator().manual_seed(0)
    from skt_components.simulation.bracket import expose_frames

    dark = torch.full((3, 3, 32, 32), 2e-3)
    sample = expose_frames(dark, camera, generator, "dark")
    merged, reference = merge_exposures(sample.bracket[None], TIMES)[0], sample.bracket[1, :3]
    assert (merged - 2e-3).std() < 0.6 * (reference - 2e-3).std()


def test_order_unit_and_batches_of_exposure_times_do_not_matter() -> None:
    bracket = still_bracket(scene())[None]
    wanted = merge_exposures(bracket, TIMES)
    backward = merge_exposures(bracket.flip(1), TIMES.flip(0))
    torch.testing.assert_close(backward, wanted)
    torch.testing.assert_close(merge_exposures(bracket, TIMES / 60), wanted)
    torch.testing.assert_close(merge_exposures(bracket, TIMES[None] / 60), wanted)
    both = merge_exposures(bracket.repeat(2, 1, 1, 1, 1), torch.stack([TIMES, TIMES / 30]))
    torch.testing.assert_close(both, wanted.repeat(2, 1, 1, 1))


def test_light_that_saturates_every_exposure_is_white() -> None:
    bracket = still_bracket(torch.full((3, 8, 8), 5.0))[None]
    torch.testing.assert_close(merge_exposures(bracket, TIMES), torch.ones(1, 3, 8, 8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("camera", [Camera(), RawCamera()], ids=["srgb", "raw"])
def test_the_merge_beats_the_reference_exposure_on_moving_scenes(camera: Camera | RawCamera) -> None:
    sample = SyntheticScenes(1, 64, split="val", camera=camera, motion=Motion())[0]
    peak = 16.0 if isinstance(camera, RawCamera) else 1.0
    pictures = (merge_exposures(sample.bracket[None], sample.exposure_times), reference_exposure(sample.bracket[None]))
    merged, reference = (psnr_mu(picture, sample.target[None], peak=peak).item() for picture in pictures)
    assert merged > reference + 1


@pytest.mark.parametrize(
    ("bracket", "times", "options", "message"),
    [
        (torch.rand(3, 6, 4, 4), TIMES, {}, r"bracket must have 5 axes \(B, N, C, H, W\)"),
        (torch.rand(1, 3, 5, 4, 4), TIMES, {}, "channels of bracket"),
        (torch.rand(1, 3, 6, 4, 4), TIMES[:2], {}, r"exposure_times must be \(3,\) or \(B, 3\).* got \(2,\)"),
        (torch.rand(1, 3, 6, 4, 4), TIMES, {"reference": 3}, r"reference must be in \[0, 3\), got 3"),
        (torch.rand(1, 3, 6, 4, 4), TIMES, {"tolerance": 0.0}, "tolerance must be"),
        (torch.rand(1, 3, 6, 4, 4), TIMES, {"scale": 0}, "scale must be"),
    ],
)
def test_rejects_bad_input(bracket: torch.Tensor, times: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_exposures(bracket, times, **options)


def test_rejects_whole_numbers() -> None:
    with pytest.raises(TypeError, match="bracket"):
        reference_exposure(torch.zeros(1, 3, 6, 4, 4, dtype=torch.uint8))
