from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.simulation import Camera, Motion, simulate_bracket
from skt_components.simulation.camera import POISSON_LIMIT, capture, exposure_scale

CLEAN = Camera(read_noise=0.0, shot_noise=False, adc_bits=None)
METERED = Camera(mid_level=(0.18, 0.18))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scene(height: int = 48, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Return smooth radiance with a dynamic range of some thousands."""
    coarse = torch.randn(1, 3, height // 8, width // 8, generator=_generator(seed)) * 2 - 4
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].exp()


# matches_reference: the statistics of the noise


@pytest.mark.parametrize(("level", "time"), [(0.0002, 1.0), (0.003, 1.0), (0.003, 16.0), (0.2, 1.0), (0.05, 4.0)])
def test_noise_variance_is_shot_plus_read(level: float, time: float) -> None:
    camera = Camera((1.0, time), full_well=20_000, read_noise=4, bits=16, adc_bits=None)
    ldr = capture(torch.full((2, 3, 200, 200), level), camera, _generator())
    electrons = (ldr[1].double() ** camera.gamma) * camera.full_well
    mean = level * time * camera.full_well
    if mean > 30:  # else the clip at zero bends both moments
        assert electrons.mean().item() == pytest.approx(mean, rel=0.01)
        assert electrons.var().item() == pytest.approx(mean + 4**2, rel=0.03)
    else:
        assert 0 < electrons.mean().item() < 2 * mean


@pytest.mark.parametrize("mean", [2.0, 20.0, POISSON_LIMIT - 1, POISSON_LIMIT + 1, 5000.0])
def test_shot_noise_is_poisson(mean: float) -> None:
    camera = Camera((1.0,), full_well=10_000, read_noise=0, bits=16, adc_bits=None)
    ldr = capture(torch.full((1, 3, 250, 250), mean / 10_000), camera, _generator())
    electrons = ldr.double() ** camera.gamma * camera.full_well
    assert electrons.mean().item() == pytest.approx(mean, rel=0.01)
    assert electrons.var().item() == pytest.approx(mean, rel=0.03)
    if mean < POISSON_LIMIT:
        nearest = electrons.round()
        assert (electrons - nearest).abs().max().item() < 0.05
        expected = math.exp(-mean + mean * math.log(mean) - math.lgamma(mean + 1))
        assert (nearest == round(mean)).double().mean().item() == pytest.approx(expected, rel=0.05)


def test_read_noise_alone() -> None:
    camera = Camera((1.0,), full_well=10_000, read_noise=12, shot_noise=False, bits=16, adc_bits=None)
    ldr = capture(torch.full((1, 3, 200, 200), 0.3), camera, _generator())
    assert (ldr.double() ** camera.gamma * 10_000).std().item() == pytest.approx(12, rel=0.02)


def test_noise_is_independent_between_pixels_channels_and_exposures() -> None:
    ldr = capture(torch.full((3, 3, 64, 64), 0.02), Camera(bits=16), _generator()).flatten(2)
    ldr = (ldr - ldr.mean(2, keepdim=True)).flatten(0, 1)
    correlation = torch.corrcoef(ldr).fill_diagonal_(0)
    assert correlation.abs().max().item() < 0.08
    shifted = (ldr[:, 1:] * ldr[:, :-1]).mean(1) / ldr.var(1)
    assert shifted.abs().max().item() < 0.08


def test_saturated_fraction() -> None:
    ramp = torch.linspace(0, 1, 1001).expand(3, 3, 4, 1001)
    ldr = capture(ramp, CLEAN, _generator())
    for exposure, time in zip(ldr, CLEAN.exposure_times, strict=True):
        assert (exposure == 1).double().mean().item() == pytest.approx(1 - 1 / time, abs=0.005)
    assert bool((capture(torch.full((3, 3, 8, 8), 50.0), Camera(), _generator()) == 1).all())
    assert bool((capture(torch.full((3, 3, 8, 8), -1.0), CLEAN, _generator()) == 0).all())


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_quantisation_levels(bits: int) -> None:
    ramp = torch.linspace(0, 1, 300_000).expand(1, 3, 1, 300_000)
    camera = dataclasses.replace(CLEAN, exposure_times=(1.0,), bits=bits, gamma=1.0)
    ldr = capture(ramp, camera, _generator())
    codes = ldr.double() * (2**bits - 1)
    assert (codes - codes.round()).abs().max().item() < 2**bits * 1e-7
    if bits <= 12:
        assert codes.round().unique().numel() == 2**bits


def test_sensor_quantises_linearly() -> None:
    ramp = torch.linspace(0, 1, 100_000).expand(1, 3, 1, 100_000)
    camera = dataclasses.replace(CLEAN, exposure_times=(1.0,), bits=16, adc_bits=8)
    assert capture(ramp, camera, _generator()).unique().numel() == 256


# invariants


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), bits=st.sampled_from([8, 10, 12, 16]), gamma=st.sampled_from([1.0, 1.8, 2.2]))
def test_clean_static_pixels_linearise_to_the_target(seed: int, bits: int, gamma: float) -> None:
    camera = dataclasses.replace(CLEAN, bits=bits, gamma=gamma)
    sample = simulate_bracket(_scene(seed=seed), camera, Motion.still(), _generator())
    half = 0.5 / (2**bits - 1) + 1e-6
    for exposure, time in zip(sample.bracket, camera.exposure_times, strict=True):
        linear, ldr = exposure[:3].double(), exposure[3:].double()
        low, high = (ldr - half).clamp(min=0) ** gamma / time, (ldr + half) ** gamma / time
        unsaturated = ldr < 1
        assert bool((linear <= high).all())
        inside = (sample.target >= low) & (sample.target <= high)
        assert bool(inside[unsaturated].all())
        assert bool((sample.target[~unsaturated] >= low[~unsaturated]).all())


def test_target_is_the_scaled_picture_exactly() -> None:
    scene = _scene()
    motion = dataclasses.replace(Motion(), objects=(0, 0))
    sample = simulate_bracket(scene, METERED, motion, _generator(), margin=8)
    visible = scene[:, 8:-8, 8:-8]
    scale = exposure_scale(visible, METERED, _generator())
    assert torch.equal(sample.target, (visible * scale).clamp(0, 1))
    fixed = simulate_bracket(scene, Camera(), motion, _generator(), scale=0.25)
    assert torch.equal(fixed.target, (scene * 0.25).clamp(0, 1))


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_reference_sees_the_target_and_others_move(reference: int) -> None:
    camera = dataclasses.replace(CLEAN, reference=reference, bits=16, exposure_times=(1.0, 1.0, 1.0))
    sample = simulate_bracket(_scene(), camera, Motion(), _generator(2), margin=0)
    differences = (sample.bracket[:, :3] - sample.target).abs().amax((1, 2, 3))
    assert differences[reference].item() < 1e-4
    for index in {0, 1, 2} - {reference}:
        assert differences[index].item() > 0.02


def test_camera_shift_moves_the_picture_as_a_whole() -> None:
    row = torch.arange(64.0).expand(64, 64)
    ramp = torch.stack([row, row.T, row]) / 100
    motion = Motion(5.0, 0.0, 0.0, 0.0, (0, 0))
    camera = dataclasses.replace(CLEAN, exposure_times=(1.0, 1.0, 1.0), bits=16, gamma=1.0)
    sample = simulate_bracket(ramp, camera, motion, _generator(1), margin=7, scale=1.0)
    for index in (0, 2):
        moved = (sample.bracket[index, :2] - sample.target[:2])[:, 2:-2, 2:-2] * 100
        dx, dy = moved[0].mean().item(), moved[1].mean().item()
        assert moved[0].sub(dx).abs().max().item() < 0.02
        assert moved[1].sub(dy).abs().max().item() < 0.02
        assert 0 < max(abs(dx), abs(dy)) <= 5


def test_rotation_and_zoom_leave_the_center_in_place() -> None:
    row = torch.arange(65.0).expand(65, 65)
    ramp = torch.stack([row, row.T, row]) / 100
    motion = Motion(0.0, 8.0, 0.05, 0.0, (0, 0))
    camera = dataclasses.replace(CLEAN, exposure_times=(1.0, 1.0, 1.0), bits=16, gamma=1.0)
    sample = simulate_bracket(ramp, camera, motion, _generator(1), margin=12, scale=1.0)
    moved = (sample.bracket[0, :2] - sample.target[:2]) * 100
    assert moved[:, 20, 20].abs().max().item() < 0.02
    corner = moved[:, 2, 2].abs().max().item()
    assert corner > 0.2


def test_objects_move_and_the_rest_stays() -> None:
    motion = Motion(0.0, 0.0, 0.0, 0.0, (1, 1), (0.15, 0.2), (6.0, 6.0))
    camera = dataclasses.replace(METERED, exposure_times=(1.0, 1.0, 1.0), bits=16, read_noise=0.0, shot_noise=False)
    for seed in range(5):
        scene = _scene(96, 96, seed)
        sample = simulate_bracket(scene, camera, motion, _generator(seed))
        unmoved = (scene * exposure_scale(scene, camera, _generator())).clamp(0, 1)
        changed = (sample.bracket[:, :3] - unmoved).abs().amax(1) > 1e-3
        area = changed.float().mean((1, 2))
        assert bool((area < 0.35).all())
        if bool((area < 0.01).any()):
            continue  # it has left the picture
        y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
        centers = [torch.stack([x[c].mean(), y[c].mean()]) for c in changed]
        if all(not c[:, [0, -1]].any() and not c[[0, -1]].any() for c in changed):
            assert (centers[1] - centers[0]).norm().item() == pytest.approx(6, abs=1.5)
            assert (centers[2] - centers[1]).norm().item() == pytest.approx(6, abs=1.5)
        assert not torch.equal(changed[0], changed[1])


def test_moved_exposures_have_no_holes_and_no_halos() -> None:
    scene = torch.full((3, 64, 64), 0.01)
    scene[:, 20:30, 20:30] = 1.0
    motion = dataclasses.replace(Motion(), objects=(0, 0))
    camera = dataclasses.replace(CLEAN, exposure_times=(1.0, 1.0, 1.0), bits=16)
    for seed in range(10):
        sample = simulate_bracket(scene, camera, motion, _generator(seed), margin=2, scale=1.0)
        assert sample.bracket[:, :3].min().item() > 0.0098
        assert sample.bracket[:, :3].max().item() <= 1.0


def test_equal_seeds_give_equal_bits_on_any_number_of_threads() -> None:
    scene, threads = _scene(96, 128), torch.get_num_threads()
    try:
        samples = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            samples.append(simulate_bracket(scene, Camera(), Motion(), _generator(5)))
    finally:
        torch.set_num_threads(threads)
    for other in samples[1:]:
        assert torch.equal(samples[0].bracket, other.bracket)
        assert torch.equal(samples[0].target, other.target)
    assert not torch.equal(samples[0].bracket, simulate_bracket(scene, Camera(), Motion(), _generator(6)).bracket)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    simulate_bracket(_scene(), Camera(), Motion(), _generator())
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), unit=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
def test_exposure_rule_does_not_depend_on_the_unit(seed: int, unit: float) -> None:
    scene, camera = _scene(seed=seed), Camera()
    scaled = exposure_scale(scene * unit, camera, _generator(seed))
    assert scaled * unit == pytest.approx(exposure_scale(scene, camera, _generator(seed)), rel=1e-4)


def test_exposure_rule_meets_its_promises() -> None:
    def scale(radiance: torch.Tensor) -> float:
        return exposure_scale(radiance, METERED, _generator())

    assert scale(torch.full((3, 20, 20), 7.0)) * 7 * 4 == pytest.approx(0.18)
    contrast = torch.logspace(0, 4, 1000).expand(3, 1, 1000)
    clipped = (contrast * scale(contrast) > 1).double().mean().item()
    assert clipped == pytest.approx(METERED.highlight_percent / 100, abs=0.002)
    sun = torch.full((3, 40, 40), 1.0)
    sun[:, :10] = 1e6
    assert scale(sun) * 16 == pytest.approx(METERED.dark_level)
    assert scale(torch.zeros(3, 4, 4)) == 1.0


def test_exposures_vary_within_the_limits() -> None:
    generator, flat = _generator(), torch.ones(3, 4, 4)
    levels = [exposure_scale(flat, Camera(), generator) * 4 for _ in range(200)]
    low, high = Camera().mid_level
    assert low <= min(levels) < 1.2 * low
    assert high / 1.2 < max(levels) <= high


def test_margin_covers_every_pose() -> None:
    from skt_components.simulation.motion import camera_pose, move_grid, pixel_grid

    motion = Motion(6.0, 4.0, 0.05, 0.04)
    for height, width in ((40, 100), (128, 128), (33, 9)):
        margin = motion.margin(height, width)
        grid, generator = pixel_grid(height, width), _generator()
        for _ in range(200):
            points = move_grid(grid, camera_pose(motion, math.hypot(height, width) / 2, generator))
            assert points[..., 0].abs().max().item() <= width / 2 + margin
            assert points[..., 1].abs().max().item() <= height / 2 + margin
    assert Motion.still().margin(100, 100) == 0


def test_black_scene_gives_a_finite_sample() -> None:
    sample = simulate_bracket(torch.zeros(3, 16, 16), Camera(), Motion(), _generator())
    assert bool(sample.bracket.isfinite().all())
    assert sample.target.max().item() == 0


@pytest.mark.parametrize("times", [(1.0,), (1.0, 4.0), (1.0, 4.0, 16.0, 64.0, 256.0)])
def test_any_number_of_exposures(times: tuple[float, ...]) -> None:
    sample = simulate_bracket(_scene(32, 40), Camera(times), Motion(), _generator(), name="x")
    assert sample.bracket.shape == (len(times), 6, 32, 40)
    assert sample.exposure_times.tolist() == list(times)
    assert (sample.name, sample.domain) == ("x", "srgb")
    assert sample.bracket.dtype == sample.target.dtype == torch.float32
    assert sample.bracket[:, 3:].min().item() >= 0
    assert sample.bracket[:, 3:].max().item() <= 1


def test_from_ev() -> None:
    assert Camera.from_ev((-3, 0, 3)).exposure_times == (1.0, 8.0, 64.0)
    assert Camera((1.0, 4.0, 16.0, 64.0)).reference_index == 1
    assert Camera(reference=0).reference_index == 0


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure_times": ()}, "exposure_times must be relative to the shortest"),
        ({"exposure_times": (0.25, 1.0)}, "exposure_times must be relative to the shortest"),
        ({"exposure_times": (1.0, math.inf)}, "exposure_times must be relative to the shortest"),
        ({"reference": 3}, "reference must be an index below 3"),
        ({"reference": -1}, "reference must be an index below 3"),
        ({"full_well": 0.0}, "full_well must be"),
        ({"read_noise": -1.0}, "read_noise must be"),
        ({"bits": 4}, "bits must be a whole number from 8 to 16"),
        ({"bits": None}, "bits must be a whole number from 8 to 16"),
        ({"adc_bits": 20}, "adc_bits must be a whole number from 8 to 16"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"highlight_percent": 100.0}, "highlight_percent must be"),
        ({"mid_level": (0.0, 1.0)}, "mid_level must be"),
        ({"mid_level": (2.0, 1.0)}, "mid_level must be"),
        ({"dark_level": -1.0}, "dark_level must be"),
    ],
)
def test_camera_rejects(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1.0}, "shift must be"),
        ({"rotation": 90.0}, "rotation must be a number from 0 to 45"),
        ({"zoom": math.nan}, "zoom must be"),
        ({"objects": 3}, "objects must be a pair"),
        ({"objects": (3, 1)}, "objects must be ordered"),
        ({"objects": (0.5, 1.5)}, "objects must be whole numbers"),
        ({"object_size": (-0.1, 0.1)}, "object_size must be ordered and not negative"),
    ],
)
def test_motion_rejects(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Motion(**options)  # type: ignore[arg-type]


def test_simulation_rejects() -> None:
    with pytest.raises(ValueError, match="radiance must have 3 axes"):
        simulate_bracket(torch.rand(1, 3, 8, 8), Camera(), Motion(), _generator())
    with pytest.raises(TypeError, match="radiance must be a floating-point"):
        simulate_bracket(torch.ones(3, 8, 8, dtype=torch.int32), Camera(), Motion(), _generator())
    with pytest.raises(ValueError, match="margin must be >= 0 and leave pixels"):
        simulate_bracket(torch.rand(3, 8, 8), Camera(), Motion(), _generator(), margin=4)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        simulate_bracket(torch.rand(3, 8, 8), Camera(), Motion(), _generator(), scale=0.0)
    with pytest.raises(ValueError, match="radiance must have 3 frames"):
        capture(torch.rand(2, 3, 8, 8), Camera(), _generator())
