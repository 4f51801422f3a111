from __future__ import annotations

import dataclasses
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from skt_components.ops.raw import apply_color_matrix, demosaic, unpack_raw, white_balance
from skt_components.simulation import HDRFolder, Motion, SyntheticScenes, bracket, motion
from skt_components.simulation.bracket import (
    simulate_bracket,
    simulate_raw_bracket,
    simulate_raw_bracket_from_frames,
)
from skt_components.simulation.camera import Camera, RawCamera, capture_raw

QUIET = RawCamera(shot_noise=None)
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# What reaches the sensor's planes is the picture itself, to 16 bits.
PLAIN = RawCamera(shot_noise=None, bits=16, rgb2cam=IDENTITY, red_gain=(1.0, 1.0), blue_gain=(1.0, 1.0))
STILL = Motion.still()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scene(height: int = 48, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Return smooth radiance with a dynamic range of some thousands."""
    coarse = torch.randn(1, 3, height // 8, width // 8, generator=_generator(seed)) * 2 - 4
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].exp()


def _on_sensor(linear: np.ndarray, camera: RawCamera, gains: np.ndarray) -> np.ndarray:
    """Return (4, h, w) in float64: linear RGB in [0, 1] through the color filters."""
    red, green, blue = np.einsum("ij,jhw->ihw", np.array(camera.rgb2cam), linear) / gains[:, None, None]
    return np.stack([red[0::2, 0::2], green[0::2, 1::2], green[1::2, 0::2], blue[1::2, 1::2]])


# matches_reference


def test_still_and_noiseless_exposures_are_what_the_definition_says() -> None:
    radiance = torch.rand(3, 20, 28, generator=_generator()) ** 6 * 900
    sample = simulate_raw_bracket(radiance, QUIET, STILL, _generator(1), scale=0.05, name="x")
    gains = sample.metadata["white_balance"].double().numpy()
    linear = radiance.double().numpy() * 0.05
    assert linear.max() > 10
    for n, exposure in enumerate(sample.bracket.double().numpy()):
        exact = _on_sensor((linear * 4.0 ** (n - 2)).clip(0, 1), QUIET, gains) * 1023
        levels = exposure * 4.0 ** (n - 2) * 1023
        clear = np.abs(exact % 1 - 0.5) > 1e-3  # of a tie
        assert clear.mean() > 0.99
        np.testing.assert_allclose(levels[clear], np.rint(exact)[clear], atol=1e-3)
    target = 16 * _on_sensor((linear / 16).clip(0, 1), QUIET, gains)
    np.testing.assert_allclose(sample.target.numpy(), target, rtol=1e-5, atol=1e-6)
    assert sample.exposure_times.tolist() == [1, 4, 16, 64, 256]
    assert (sample.name, sample.domain) == ("x", "raw")
    assert sample.bracket.dtype == sample.target.dtype == torch.float32


@pytest.mark.parametrize("shot", [0.0012, 0.0048])
def test_noise_has_the_variance_of_the_model(shot: float) -> None:
    camera = RawCamera(bits=16, shot_noise=(shot, shot))
    light = torch.tensor([0.0, 0.4, 0.7])[:, None, None, None].expand(3, 4, 50, 50)
    residuals = []
    for seed in range(40):
        dark, *bright = capture_raw(light, camera, _generator(seed)).double()
        read = 2 * dark.square().mean().item()  # half of the values were clipped to 0
        residuals.append(math.log(read) - 1.869 * math.log(shot) - 0.3276)
        for level, noisy in zip((0.4, 0.7), bright, strict=True):
            assert noisy.mean().item() == pytest.approx(level, abs=0.002)
            assert noisy.var().item() == pytest.approx(shot * level + read, rel=0.08)
    assert np.mean(residuals) == pytest.approx(0, abs=3 * 0.3 / 40**0.5)
    assert np.std(residuals) == pytest.approx(0.3, abs=0.11)


def test_shot_noise_varies_log_uniformly_between_brackets() -> None:
    light = torch.full((1, 4, 40, 40), 0.5)
    camera = RawCamera(bits=16)
    shots = [capture_raw(light, camera, _generator(seed)).var().item() / 0.5 for seed in range(100)]
    assert np.median(shots) == pytest.approx((0.0012 * 0.0048) ** 0.5, rel=0.15)
    assert 0.0011 < min(shots) < 0.0014
    assert 0.0042 < max(shots) < 0.0053


def test_exposures_average_the_frames_of_their_time() -> None:
    video = torch.rand(341, 3, 4, 4, generator=_generator())
    camera = dataclasses.replace(PLAIN, subframes=256)
    sample = simulate_raw_bracket_from_frames(video, camera, _generator(), scale=0.5)
    linear, start = video.double().numpy() * 0.5, 0
    for n, exposure in enumerate(sample.bracket.double().numpy()):
        frames = linear[start : start + 4**n]
        mean = (frames * 4.0 ** (n - 2)).clip(0, 1).mean(0)
        expected = _on_sensor(mean, camera, np.ones(3)) * 4.0 ** (2 - n)
        np.testing.assert_allclose(exposure, expected, atol=4.0 ** (2 - n) / 65535)
        start += 4**n
    assert start == 341
    np.testing.assert_allclose(sample.target.numpy(), _on_sensor(linear[0], camera, np.ones(3)), atol=1e-6)


def test_few_subframes_still_are_the_box_blur_of_a_steady_motion() -> None:
    """A sine that moves at a steady speed keeps its frequency; its amplitude falls as the box's transform says."""
    x, frequency, speed = torch.arange(64.0), 2 * math.pi / 32, 0.15
    wave = torch.stack([0.5 + 0.4 * torch.sin(frequency * (x - speed * i)) for i in range(341)])
    video = wave[:, None, None].expand(341, 3, 4, 64)
    sample = simulate_raw_bracket_from_frames(video, PLAIN, _generator(), scale=1 / 16)
    start = 0.0
    for n, exposure in enumerate(sample.bracket.double()):
        turn, time = frequency * speed, 4.0**n
        amplitude = math.sin(turn * time / 2) / (turn * time / 2)
        middle = speed * (start + (time - 1) / 2)
        expected = (0.5 + 0.4 * amplitude * torch.sin(frequency * (x[0::2] - middle))) / 16
        torch.testing.assert_close(exposure[0, 0] * 16, expected.double() * 16, atol=0.012, rtol=0)
        start += time
    assert abs(amplitude) < 0.2  # the longest exposure moves by more than its wavelength


def test_camera_moves_on_straight_lines_between_the_poses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp under translation shows the mean displacement of each exposure."""
    knots = iter([(3.0, -1.0), (4.0, 2.0), (0.0, 0.0), (-2.0, 1.0)])

    def pose(*_: object) -> torch.Tensor:
        (dx, dy), matrix = next(knots), torch.eye(3)
        matrix[0, 2], matrix[1, 2] = dx, dy
        return matrix

    monkeypatch.setattr(motion, "camera_pose", pose)
    column = torch.arange(48.0).expand(48, 48)
    ramp = torch.stack([column, column.T, column]) / 48 / 16
    shifts = dataclasses.replace(STILL, shift=4.0)
    camera = dataclasses.replace(PLAIN, subframes=64)
    sample = simulate_raw_bracket(ramp, camera, shifts, _generator(), margin=8, scale=1.0)
    along_x = (sample.bracket[:, 0] - sample.target[0]).mean((1, 2)) * 48 * 16
    along_y = (sample.bracket[:, 1] - sample.target[1]).mean((1, 2)) * 48 * 16
    path_time = np.linspace(0, 341, 5)
    edges = np.cumsum([0, 1, 4, 16, 64, 256])
    for n in range(5):
        moments = np.linspace(edges[n], edges[n + 1], 2001)[:-1] + 4.0**n / 4000 - 0.5
        for measured, path in ((along_x, [0, 3, 4, 0, -2]), (along_y, [0, -1, 2, 0, 1])):
            expected = np.interp(moments, path_time, path).mean()
            # Torch's bicubic kernel bends a ramp by up to 0.048 between the pixels.
            assert measured[n].item() == pytest.approx(expected, abs=0.06), n


def test_fourfold_brackets_are_bicubic_reductions_of_the_planes() -> None:
    scene = _scene(64, 96)
    full = simulate_raw_bracket(scene, PLAIN, STILL, _generator(), scale=1.0)
    small = simulate_raw_bracket(scene, dataclasses.replace(PLAIN, scale=4), STILL, _generator(), scale=1.0)
    assert (full.bracket.shape, small.bracket.shape) == ((5, 4, 32, 48), (5, 4, 8, 12))
    assert torch.equal(full.target, small.target)
    unit = 16 / full.exposure_times[:, None, None, None]
    options = {"mode": "bicubic", "align_corners": True}
    expected = F.interpolate(full.bracket / unit, size=(8, 12), **options).clamp(0, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(small.bracket / unit, expected, atol=3 / 65535, rtol=0)
    corners = full.bracket[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(small.bracket[..., [0, 0, -1, -1], [0, -1, 0, -1]], corners, atol=2e-3, rtol=1e-3)


# invariants


def test_rendering_the_target_gives_the_scene_back() -> None:
    x, y = torch.arange(24.0).expand(16, 24) / 10, torch.arange(16.0)[:, None].expand(16, 24) / 10
    scene = torch.stack([1 + 2 * x + y, 5 + x - 2 * y, 0.5 + y])  # bilinear demosaicing is exact on planes
    sample = simulate_raw_bracket(scene, QUIET, STILL, _generator(2), scale=1.0)
    balanced = white_balance(sample.target[None], sample.metadata["white_balance"])
    rgb = apply_color_matrix(demosaic(unpack_raw(balanced)), sample.metadata["color_matrix"])[0]
    torch.testing.assert_close(rgb[:, 1:-1, 1:-1], scene[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


def test_metadata_undoes_what_the_camera_did() -> None:
    camera = RawCamera()
    for seed in range(20):
        metadata = simulate_raw_bracket(torch.rand(3, 8, 8), camera, STILL, _generator(seed)).metadata
        red, green, blue = metadata["white_balance"].tolist()
        assert 1 / 0.91 <= red <= 1 / 0.40
        assert 1 / 0.75 <= blue <= 1 / 0.39
        assert green == 1
        product = metadata["color_matrix"] @ torch.tensor(camera.rgb2cam)
        torch.testing.assert_close(product, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(metadata["color_matrix"].sum(1), torch.ones(3))


def test_white_stays_white_where_it_clips() -> None:
    sample = simulate_raw_bracket(torch.full((3, 8, 8), 100.0), QUIET, STILL, _generator(), scale=1.0)
    balanced = white_balance(sample.bracket, sample.metadata["white_balance"])
    expected = (16 / sample.exposure_times)[:, None, None, None].expand_as(balanced)
    torch.testing.assert_close(balanced, expected, rtol=2e-3, atol=0)


def test_longer_exposures_are_blurrier_brighter_and_less_noisy() -> None:
    noise = torch.rand(3, 128, 128, generator=_generator())
    sharp = F.avg_pool2d(noise[None], 3, 1, 1)[0]
    moves = dataclasses.replace(Motion(), shift=10.0, objects=(0, 0))
    sample = simulate_raw_bracket(sharp, dataclasses.replace(QUIET, bits=16), moves, _generator(1), scale=1 / 16)
    detail = (sample.bracket[:, 1, :, 1:] - sample.bracket[:, 1, :, :-1]).std((1, 2))
    assert detail[4].item() < 0.5 * detail[0].item()
    assert detail[2].item() > 0.8 * detail[0].item()
    real = simulate_raw_bracket(_scene(128, 128), RawCamera(), moves, _generator(1))
    full_scale = 16 / real.exposure_times[:, None, None, None]
    saturated = (real.bracket * real.metadata["white_balance"].max() >= full_scale).float().mean((1, 2, 3))
    assert saturated[0].item() < 0.05 < 0.25 < saturated[4].item()
    still = simulate_raw_bracket(_scene(128, 128), RawCamera(), STILL, _generator(1))
    errors = (still.bracket - still.target).abs()[:, :, still.target[0] < 0.02].mean((1, 2))
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_first_exposure_shows_the_target_and_patches_move_on() -> None:
    patches = Motion(0, 0, 0, 0, (1, 1), (0.15, 0.2), (6.0, 6.0))
    scene = 0.02 + 0.04 * torch.rand(3, 96, 96, generator=_generator())
    changed = []
    for seed in range(6):
        sample = simulate_raw_bracket(scene, PLAIN, patches, _generator(seed), scale=1.0)
        torch.testing.assert_close(sample.bracket[0], sample.target, atol=8.1 / 65535, rtol=0)
        unmoved = torch.from_numpy(_on_sensor(scene.double().numpy(), PLAIN, np.ones(3)))
        difference = (sample.bracket - unmoved).abs().amax(1) > 1e-3
        changed.append(difference.float().mean((1, 2)))
    share = torch.stack(changed).mean(0)
    assert 0.01 < share[0].item() < 0.3
    assert share[4].item() > 1.2 * share[0].item()  # a trail
    assert torch.stack(changed).max().item() < 0.6


def test_patches_end_where_they_say() -> None:
    grid = motion.pixel_grid(200, 200)
    reached = []
    for seed in range(40):
        (patch,) = motion.draw_patches(Motion(objects=(1, 1)), 100, 100, _generator(seed))
        distance = grid.abs().amax(-1)[patch.coverage(grid) > 0].max().item()
        assert distance <= patch.reach
        reached.append(distance / patch.reach)
    assert max(reached) > 0.7  # else the bound would be of little use


def test_subframes_lie_in_their_exposure() -> None:
    assert [len(RawCamera().subframe_times(n)) for n in range(5)] == [1, 4, 16, 16, 16]
    every = RawCamera(subframes=256)
    assert [t for n in range(5) for t in every.subframe_times(n)] == list(range(341))
    for ratio in (1.5, 2.0, 3.0):
        camera, start = RawCamera(num_frames=4, ratio=ratio, subframes=5), 0.0
        for n, time in enumerate(camera.exposure_times):
            moments = camera.subframe_times(n)
            assert np.mean(moments) == pytest.approx(start + time / 2 - 0.5)
            assert start <= min(moments) <= max(moments) <= start + time - 1
            start += time


def test_exposure_rule_does_not_depend_on_the_unit() -> None:
    samples = [simulate_raw_bracket(_scene() * unit, QUIET, STILL, _generator(4)) for unit in (1e-4, 1.0, 1e5)]
    for sample in samples[1:]:
        torch.testing.assert_close(sample.target, samples[0].target, rtol=1e-4, atol=1e-6)
    green = [
        simulate_raw_bracket(torch.full((3, 8, 8), 7.0), QUIET, STILL, _generator(i)).target[1].mean().item()
        for i in range(60)
    ]
    assert 16 * 0.002 <= min(green) < 16 * 0.003
    assert 16 * 0.013 < max(green) <= 16 * 0.02 * 1.0001
    assert simulate_raw_bracket(torch.zeros(3, 8, 8), RawCamera(), Motion(), _generator()).target.max().item() == 0


def test_equal_seeds_give_equal_bits_on_any_number_of_threads() -> None:
    scene, threads, state = _scene(64, 64), torch.get_num_threads(), torch.get_rng_state()
    try:
        samples = []
        for count in (1, 3):
            torch.set_num_threads(count)
            samples.append(simulate_raw_bracket(scene, RawCamera(), Motion(), _generator(5), margin=4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(samples[0].bracket, samples[1].bracket)
    assert torch.equal(samples[0].target, samples[1].target)
    other = simulate_raw_bracket(scene, RawCamera(), Motion(), _generator(6), margin=4)
    assert not torch.equal(samples[0].bracket, other.bracket)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_any_number_of_exposures(num_frames: int) -> None:
    camera = RawCamera(num_frames, ratio=2.0)
    sample = simulate_raw_bracket(_scene(16, 24), camera, Motion(), _generator())
    assert sample.bracket.shape == (num_frames, 4, 8, 12)
    assert sample.exposure_times.tolist() == [1.0, 2.0, 4.0][:num_frames]
    video = simulate_raw_bracket_from_frames(_scene(16, 24)[None], camera, _generator())
    assert video.bracket.shape == (num_frames, 4, 8, 12)


def test_files_of_a_video_are_read_once_each_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, read = torch.rand(7, 3, 8, 12, generator=_generator()), []
    files = [tmp_path / f"{i}.npy" for i in range(7)]
    for file, frame in zip(files, video, strict=True):
        np.save(file, frame.permute(1, 2, 0).numpy())
    real, held = bracket.read_image, weakref.WeakSet()

    def read_image(path: Path) -> torch.Tensor:
        assert len(held) <= 2
        read.append(path)
        held.add(frame := real(path))
        return frame

    monkeypatch.setattr(bracket, "read_image", read_image)
    from_files = simulate_raw_bracket_from_frames(files, RawCamera(), _generator(3))
    from_tensor = simulate_raw_bracket_from_frames(video, RawCamera(), _generator(3))
    assert torch.equal(from_files.bracket, from_tensor.bracket)
    assert torch.equal(from_files.target, from_tensor.target)
    assert read == files


# the data sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two flat pictures of odd size and a panorama, whose format needs no other package."""
    root = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(((71, 99), (90, 75), (64, 128))):
        np.save(root / f"{i}.npy", (_scene(96, 128, seed=i)[:, : size[0], : size[1]]).permute(1, 2, 0).numpy())
    return root


@pytest.mark.parametrize("scale", [1, 4])
def test_data_sets_give_raw_samples(folder: Path, scale: int) -> None:
    camera = RawCamera(scale=scale)
    photos = HDRFolder(folder, crop=(16, 24), split="all", camera=camera, suffixes=[".npy"], samples_per_epoch=6)
    scenes = SyntheticScenes(2, (16, 24), camera=camera)
    for data in (photos, scenes):
        samples = [data[i] for i in range(len(data))]
        for sample in samples:
            assert sample.bracket.shape == (5, 4, 16 // scale, 24 // scale)
            assert sample.target.shape == (4, 16, 24)
            assert sample.domain == "raw"
            assert 0 <= sample.target.min().item() < sample.target.max().item() <= 16
            assert bool(sample.bracket.isfinite().all())
        batch = default_collate(samples)
        assert batch.metadata["white_balance"].shape == (len(data), 3)
        assert batch.metadata["color_matrix"].shape == (len(data), 3, 3)
        assert torch.equal(data[1].bracket, samples[1].bracket)
        data.set_epoch(1)
        assert not torch.equal(data[1].bracket, samples[1].bracket)


def test_scenes_are_metered_where_they_are_seen() -> None:
    camera = dataclasses.replace(PLAIN, mid_level=(0.01, 0.01), highlight_percent=50.0, dark_level=1e-6)
    scenes = SyntheticScenes(6, 32, camera=camera, motion=Motion(objects=(0, 0)))
    for i in range(6):
        median = scenes[i].target.amax(0).median().item()  # of 2x2 blocks, not of pixels
        assert 0.8 * 0.16 < median < 1.4 * 0.16


def test_whole_pictures_lose_what_makes_no_whole_pixel(folder: Path) -> None:
    options = {"split": "all", "camera": dataclasses.replace(PLAIN, scale=4), "motion": STILL, "augment": False}
    photos = HDRFolder(folder, suffixes=[".npy"], **options)  # type: ignore[arg-type]
    assert [tuple(photos[i].target.shape) for i in range(3)] == [(4, 32, 48), (4, 44, 36), (4, 32, 64)]
    picture = torch.from_numpy(np.load(folder / "2.npy")).permute(2, 0, 1)
    target, plane = photos[2].target[1], picture[1, 0::2, 1::2]
    unclipped = target < 15.9
    ratio = (target / plane)[unclipped]
    assert ratio.numel() > 1000
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


def test_raw_validation_does_not_move(folder: Path) -> None:
    options = {"camera": RawCamera(), "suffixes": [".npy"], "split": "val"}
    photos = HDRFolder(folder, crop=16, **options)  # type: ignore[arg-type]
    before = photos[2]
    photos.set_epoch(3)
    assert torch.equal(photos[2].bracket, before.bracket)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a whole number >= 1"),
        ({"subframes": 0}, "subframes must be a whole number >= 1"),
        ({"scale": 2}, "scale must be one of"),
        ({"ratio": 1.0}, "ratio must be a finite number > 1"),
        ({"bits": 4}, "bits must be a whole number from 8 to 16"),
        ({"shot_noise": 0.001}, "shot_noise must be a pair"),
        ({"shot_noise": (0.002, 0.001)}, "shot_noise must be .low, high. with 0 < low <= high"),
        ({"red_gain": None}, "red_gain must be a pair"),
        ({"blue_gain": (0.0, 1.0)}, "blue_gain must be"),
        ({"rgb2cam": ((1.0, 0.0, 0.0),) * 2}, "rgb2cam must be a 3x3 matrix whose rows sum to 1"),
        ({"rgb2cam": ((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))}, "rgb2cam must be a 3x3 matrix whose rows"),
        ({"rgb2cam": ((1.0, 0.0, 0.0),) * 3}, "rgb2cam must be invertible"),
        ({"mid_level": (2.0, 1.0)}, "mid_level must be"),
        ({"highlight_percent": 100.0}, "highlight_percent must be"),
    ],
)
def test_camera_rejects(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RawCamera(**options)  # type: ignore[arg-type]


def test_simulation_rejects(tmp_path: Path, folder: Path) -> None:
    generator, plus = _generator(), RawCamera(scale=4)
    with pytest.raises(ValueError, match="radiance must have 3 axes"):
        simulate_raw_bracket(torch.rand(1, 3, 8, 8), QUIET, STILL, generator)
    with pytest.raises(TypeError, match="radiance must be a floating-point"):
        simulate_raw_bracket(torch.ones(3, 8, 8, dtype=torch.int32), QUIET, STILL, generator)
    with pytest.raises(ValueError, match="margin must be >= 0 and leave pixels"):
        simulate_raw_bracket(torch.rand(3, 8, 8), QUIET, STILL, generator, margin=4)
    with pytest.raises(ValueError, match="height and width in multiples of 2, got 8x7"):
        simulate_raw_bracket(torch.rand(3, 8, 7), QUIET, STILL, generator)
    with pytest.raises(ValueError, match="height and width in multiples of 8, got 8x12"):
        simulate_raw_bracket(torch.rand(3, 10, 14), plus, STILL, generator, margin=1)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        simulate_raw_bracket(torch.rand(3, 8, 8), QUIET, STILL, generator, scale=0.0)
    with pytest.raises(ValueError, match="frames must hold a frame"):
        simulate_raw_bracket_from_frames([], QUIET, generator)
    with pytest.raises(ValueError, match=r"frames must have 4 axes"):
        simulate_raw_bracket_from_frames(torch.rand(3, 8, 8), QUIET, generator)
    np.save(tmp_path / "a.npy", np.ones((8, 8, 3)))
    np.save(tmp_path / "b.npy", np.ones((8, 10, 3)))
    with pytest.raises(ValueError, match=r"b.npy: frames must have one size, 8x8, got 8x10"):
        simulate_raw_bracket_from_frames([tmp_path / "a.npy", tmp_path / "b.npy"], QUIET, generator)
    with pytest.raises(ValueError, match=r"planes must have 4 channels"):
        capture_raw(torch.rand(5, 3, 8, 8), QUIET, generator)
    with pytest.raises(ValueError, match="size must be multiples of the camera's scale, 4"):
        SyntheticScenes(1, (16, 18), camera=plus)
    photos = HDRFolder(folder, crop=(16, 40), camera=QUIET, suffixes=[".npy"], split="all", panorama=False)
    with pytest.raises(ValueError, match=r"1.npy: crop must fit .* got \(16, 40\) for RAW, \(32, 80\) pixels"):
        photos[1]


@pytest.mark.parametrize("level", [1e-42, 1e-38, 1e-30, 3e38])
@pytest.mark.parametrize("camera", [Camera(), PLAIN])
def test_radiance_at_the_edges_of_float32_gives_finite_targets(level: float, camera: Camera | RawCamera) -> None:
    picture = torch.full((3, 80, 96), level)
    picture[:, :, :40] = torch.rand(3, 80, 40)
    picture[:, :10, 50:] = 0
    simulate = simulate_bracket if isinstance(camera, Camera) else simulate_raw_bracket
    sample = simulate(picture, camera, Motion(), _generator())
    assert sample.target.isfinite().all()
    assert sample.bracket.isfinite().all()


def test_radiance_that_is_not_finite_is_rejected() -> None:
    picture = torch.rand(3, 16, 16)
    picture[0, 0, :2] = torch.tensor([math.inf, math.nan])
    with pytest.raises(ValueError, match="radiance must be finite, got 2 of 768 values infinite or NaN"):
        simulate_bracket(picture, Camera(), STILL, _generator())
