"""From exposures to an HDR picture: the function, the alignment, and the command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from camera_files import textured, write_dng, write_jpeg, write_png16
from torch import Tensor, nn

from skt_components import AHDRNet, TMRNet, commands, read_image, save_weights
from skt_components.metrics import psnr_mu
from skt_components.ops import srgb_encode
from skt_components.reconstruct import Exposure, align_exposures, reconstruct

pytest.importorskip("exifread")
TIMES = [1 / 64, 1 / 16, 1 / 4]


class ShortExposure(nn.Module):
    """Returns the linear shortest exposure, which a reader can check."""

    num_frames, in_channels = 3, 6

    def forward(self, bracket: Tensor) -> Tensor:
        return bracket[:, 0, :3]


def pictures(scene: Tensor, encode=srgb_encode) -> list[Tensor]:
    return [encode((scene * t).clamp(0, 1)) for t in (1.0, 4.0, 16.0)]


# the function


def test_the_result_is_linear_with_white_where_the_shortest_exposure_saturates() -> None:
    scene = textured()
    hdr = reconstruct(ShortExposure(), pictures(scene), TIMES, progress=False)
    torch.testing.assert_close(hdr, scene, atol=1e-5, rtol=1e-3)
    mixed = [pictures(scene)[i] for i in (2, 0, 1)]
    again = reconstruct(ShortExposure(), mixed, [TIMES[i] for i in (2, 0, 1)], progress=False)
    assert torch.equal(again, hdr)


@pytest.mark.parametrize("size", [(37, 61), (130, 33), (8, 9)])
def test_tiles_of_any_picture_equal_the_whole_picture(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = AHDRNet(features=8, num_layers=2, growth=4).train()
    scene = textured(height=size[0], width=size[1])
    whole = reconstruct(network, pictures(scene), TIMES, tile=1024, progress=False)
    assert whole.shape == (3, *size)
    assert network.training, "the network's mode must stay as it was"
    tiled = reconstruct(network, pictures(scene), TIMES, tile=96, progress=False)
    assert (tiled - whole).abs().max() < 1e-2


def test_a_pretrained_network_by_name_beats_the_reference_exposure_on_a_moving_scene() -> None:
    from skt_components.simulation import SyntheticScenes

    sample = SyntheticScenes(4, 96, split="val")[1]
    hdr = reconstruct(
        "ahdrnet-small",
        list(sample.bracket[:, 3:]),
        sample.exposure_times.tolist(),
        transfer="gamma2.2",
        progress=False,
    )
    ours, reference = (psnr_mu(x[None], sample.target[None]).item() for x in (hdr, sample.bracket[1, :3]))
    assert ours > reference + 1


def test_a_network_on_raw_takes_packed_sensor_values() -> None:
    torch.manual_seed(0)
    network = TMRNet(features=8, num_blocks=(1, 1, 1, 1), flow_features=4).eval()
    scene = textured(height=16, width=24)[[0, 1, 1, 2]] / 256
    planes = [(scene * 4**i).clamp(0, 1) for i in range(5)]
    hdr = reconstruct(network, planes, [4.0**i for i in range(5)], progress=False)
    assert hdr.shape == (4, 16, 24)
    with pytest.raises(ValueError, match=r"pictures\[0\] must have 4 channels \(C, H, W\)"):
        reconstruct(network, [plane[:3] for plane in planes], [4.0**i for i in range(5)])


def test_what_does_not_fit_is_explained() -> None:
    scene = textured(height=16, width=24)
    with pytest.raises(ValueError, match="exposure_times must be 3, one for each picture, got 2"):
        reconstruct(ShortExposure(), pictures(scene), TIMES[:2])
    with pytest.raises(ValueError, match=r"network takes 3 exposures, got 2"):
        reconstruct(ShortExposure(), pictures(scene)[:2], TIMES[:2])
    five = [*pictures(scene), *pictures(scene)[:2]]
    with pytest.raises(ValueError, match=r"takes 3 exposures, got 5 \(take the darkest, a middle and the brightest"):
        reconstruct(ShortExposure(), five, [1.0, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="name must be one of"):
        reconstruct("no-such-network", pictures(scene), TIMES)
    with pytest.raises(ValueError, match="transfer must be one of"):
        reconstruct(ShortExposure(), pictures(scene), TIMES, transfer="log")
    with pytest.raises(ValueError, match=r"pictures\[1\] has the longer exposure"):
        reconstruct(ShortExposure(), pictures(scene)[::-1], TIMES)


# alignment


def moved(scene: Tensor, shift: tuple[float, float], angle: float) -> Tensor:
    """The scene under a turned and shifted camera, cropped by 16 pixels on each side."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    height, width = scene.shape[-2:]
    matrix = torch.tensor(
        [[c, -s * height / width, 2 * shift[0] / width], [s * width / height, c, 2 * shift[1] / height]]
    )
    grid = nn.functional.affine_grid(matrix[None], [1, 3, height, width], align_corners=False)
    return nn.functional.grid_sample(scene[None], grid, "bicubic", "reflection", align_corners=False)[0]


def hand_held() -> tuple[list[Exposure], Tensor]:
    pytest.importorskip("cv2")
    scene = textured(1, 240, 320)
    views = [moved(scene, (5.3, -3.1), 1.0), scene, moved(scene, (-7.6, 4.4), -1.5)]
    made = [Exposure((v * t).clamp(0, 1), t, f"{t}") for v, t in zip(views, (0.25, 1.0, 4.0), strict=True)]
    return made, scene


def test_hand_held_exposures_are_aligned_to_a_fraction_of_a_pixel() -> None:
    made, scene = hand_held()
    aligned = align_exposures(made, 1)
    inside = (..., slice(24, -24), slice(24, -24))
    for before, after in ((made[0], aligned[0]), (made[2], aligned[2])):
        wanted = (scene * (after.light or 0)).clamp(0, 1)
        error = (after.linear - wanted)[inside].abs().mean()
        assert error < 0.25 * (before.linear - wanted)[inside].abs().mean()
    assert aligned[1] is made[1]


def test_pixels_outside_a_moved_picture_come_from_the_reference() -> None:
    made, _ = hand_held()
    corner = align_exposures(made, 1)[0].linear[:, :2, :2]
    torch.testing.assert_close(corner, (made[1].linear * 0.25)[:, :2, :2])


def test_alignment_is_used_by_reconstruct() -> None:
    made, scene = hand_held()
    flat = [exposure.linear for exposure in made]
    hdr = reconstruct(ShortExposure(), flat, [0.25, 1.0, 4.0], transfer="linear", align=True, progress=False)
    inside = (..., slice(24, -24), slice(24, -24))
    assert (hdr - scene * 0.25)[inside].abs().mean() < 0.25 * (flat[0] - scene * 0.25)[inside].abs().mean()


def test_pictures_without_common_features_are_an_error() -> None:
    pytest.importorskip("cv2")
    flat = [Exposure(torch.full((3, 64, 64), 0.1 * t), t, f"{t}.jpg") for t in (1.0, 2.0)]
    with pytest.raises(ValueError, match=r"1\.0\.jpg cannot be aligned with 2\.0\.jpg: 0 common features"):
        align_exposures(flat, 1)


# the command


def main(arguments: Sequence[str]) -> int:
    return commands.main(["reconstruct", *arguments])


@pytest.fixture
def jpegs(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("dark.jpg", "middle.jpg", "bright.jpg")]
    for path, picture, time in zip(paths, pictures(textured()), (240, 60, 15), strict=True):
        write_jpeg(path, picture, Fraction(1, time), iso=100, f=(8, 1))
    return [str(path) for path in paths]


def test_three_photographs_become_an_hdr_picture_and_pictures_to_look_at(
    jpegs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scene.hdr"
    assert main([*jpegs[::-1], "--out", str(out)]) == 0
    names = ["scene.hdr", "scene.png", "scene-merge.hdr", "scene-merge.png", "scene-reference.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert read_image(out).shape == (3, 96, 128)
    assert main([*jpegs, "--times", "1", "2", "4", "--out", str(tmp_path / "near.hdr")]) == 0
    assert "stops apart" not in capsys.readouterr().err
    assert main([*jpegs, "--times", "1", "2", "8", "--out", str(tmp_path / "uneven.hdr")]) == 0
    assert "the exposures are 1.0, 2.0 stops apart" in capsys.readouterr().err
    scores = {name: psnr_mu(read_image(tmp_path / name)[None], textured()[None]).item() for name in names[::2][:2]}
    assert scores["scene-merge.hdr"] > 35
    import cv2

    shown = cv2.imread(str(tmp_path / "scene.png"))
    assert shown.shape == (96, 128, 3)
    assert shown.std() > 10


def test_files_are_not_replaced_unless_asked(
    jpegs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scene-merge.png").write_bytes(b"mine")
    command = [*jpegs, "--out", str(tmp_path / "scene.exr")]
    assert main(command) == 1
    assert "scene-merge.png exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "scene.exr").exists()
    assert (tmp_path / "scene-merge.png").read_bytes() == b"mine"
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "scene-merge.png").read_bytes() != b"mine"


def test_times_weights_and_transfer_can_be_given(tmp_path: Path) -> None:
    paths = [write_png16(tmp_path / f"{i}.png", picture) for i, picture in enumerate(pictures(textured()))]
    save_weights(tmp_path / "mine.safetensors", AHDRNet(features=8, num_layers=2, growth=4))
    options = ["--network", str(tmp_path / "mine.safetensors"), "--times", "1/64", "1/16", "0.25", "--transfer", "srgb"]
    assert main([*map(str, paths), *options, "--out", str(tmp_path / "scene.exr")]) == 0
    merged = read_image(tmp_path / "scene-merge.exr")
    assert psnr_mu(merged[None], textured()[None]).item() > 40


def test_raw_files_and_a_network_on_raw(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    pytest.importorskip("torchvision")
    save_weights(tmp_path / "raw.safetensors", TMRNet(features=8, num_blocks=(1, 1, 1, 1), flow_features=4))
    scene = textured(height=64, width=80)
    mosaic = torch.zeros(64, 80)
    for plane, (row, column) in zip((0, 1, 1, 2), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        mosaic[row::2, column::2] = scene[plane, row::2, column::2]
    paths = []
    for index in range(5):
        values = (64 + (mosaic * 4**index / 64).clamp(0, 1) * 959).round().numpy()
        paths.append(write_dng(tmp_path / f"{index}.dng", values, time=Fraction(4**index, 1000)))
    options = ["--network", str(tmp_path / "raw.safetensors"), "--out", str(tmp_path / "scene.exr")]
    assert main([*map(str, paths), *options]) == 0
    assert read_image(tmp_path / "scene.exr").shape == (3, 64, 80)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--times", "1", "4"], "--times must be 3, one for each picture, got 2"),
        (["--times", "1", "4", "1/0"], "--times must be numbers or fractions such as 1/60, got 1/0"),
        (["--times", "1", "4", "4"], "both have 4; if the EXIF data are wrong, give --times"),
        (["--times", "3", "2", "1"], "has the longer exposure"),
        (["--network", "missing"], "--network must be one of"),
        (["--out", "scene.png"], "--out must end with .hdr or .exr, got scene.png"),
        (["--out", "no/folder/scene.hdr"], "--out: there is no folder no/folder"),
    ],
)
def test_errors_name_the_options(
    jpegs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*jpegs, "--out", str(tmp_path / "scene.hdr"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("scene*"))
