"""OpenEXR files with several parts, layers, luminance, and windows; written by the format's description."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from skt_components.data import read_image

OpenEXR = pytest.importorskip("OpenEXR")

RED = np.arange(48, dtype=np.float32).reshape(6, 8) / 64
PLANES = {"R": RED, "G": RED + 1, "B": RED + 2}
PICTURE = torch.from_numpy(np.stack([PLANES[name] for name in "RGB"]))


def write_exr(
    path: Path,
    planes: Mapping[str, np.ndarray],
    *,
    corner: tuple[int, int] = (0, 0),
    display: tuple[int, int, int, int] | None = None,
    chromaticities: tuple[float, ...] = (),
) -> None:
    """Write uncompressed scanlines; planes of half the size are subsampled, windows are (left, top, right, bottom)."""
    height, width = max(plane.shape for plane in planes.values())
    window = (*corner, corner[0] + width - 1, corner[1] + height - 1)
    steps = {name: height // plane.shape[0] for name, plane in planes.items()}

    def attribute(name: str, kind: str, value: bytes) -> bytes:
        return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value

    names, kinds = sorted(planes), {"f2": 1, "f4": 2, "u4": 0}
    channels = b"".join(
        name.encode() + b"\0" + struct.pack("<iB3xii", kinds[planes[name].dtype.str[1:]], 0, *[steps[name]] * 2)
        for name in names
    )
    header = struct.pack("<ii", 20000630, 2) + attribute("channels", "chlist", channels + b"\0")
    if chromaticities:
        header += attribute("chromaticities", "chromaticities", struct.pack("<8f", *chromaticities))
    header += attribute("compression", "compression", b"\0")
    header += attribute("dataWindow", "box2i", struct.pack("<4i", *window))
    header += attribute("displayWindow", "box2i", struct.pack("<4i", *(display or window)))
    header += attribute("lineOrder", "lineOrder", b"\0")
    header += attribute("pixelAspectRatio", "float", struct.pack("<f", 1))
    header += attribute("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0))
    header += attribute("screenWindowWidth", "float", struct.pack("<f", 1)) + b"\0"
    lines = []
    for row in range(height):
        data = b"".join(planes[n][row // steps[n]].tobytes() for n in names if (corner[1] + row) % steps[n] == 0)
        lines.append(struct.pack("<ii", corner[1] + row, len(data)) + data)
    starts = np.cumsum([len(header) + 8 * height, *map(len, lines[:-1])])
    path.write_bytes(header + starts.astype("<u8").tobytes() + b"".join(lines))


def write_parts(path: Path, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    options = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
    with OpenEXR.File([OpenEXR.Part(dict(options), dict(planes), name) for name, planes in parts.items()]) as file:
        file.write(str(path))


def test_a_part_that_cannot_be_read_is_never_replaced_by_another(tmp_path: Path) -> None:
    path, noise = tmp_path / "a.exr", np.random.default_rng(0).random((48, 64), np.float32)
    write_parts(path, {"beauty": dict.fromkeys("RGB", noise), "albedo": dict.fromkeys("RGB", noise * 0 + 7)})
    data = bytearray(path.read_bytes())
    start = min(at for at in map(data.find, (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")) if at > 0)
    data[start + 2 : start + 40] = bytes(38)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="2 parts"), pytest.raises(ValueError, match="part beauty is damaged"):
        read_image(path)
    assert read_image(path, part="albedo").unique().tolist() == [7]


def test_a_choice_between_parts_is_reported_and_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    right = {name: plane + 9 for name, plane in PLANES.items()}
    write_parts(path, {"left": PLANES, "right": right, "depth": {"Z": RED}})
    with pytest.warns(UserWarning, match=r"a\.exr: has 2 parts that could be the picture, left, right; left is read"):
        assert torch.equal(read_image(path), PICTURE)
    assert torch.equal(read_image(path, part="right"), PICTURE + 9)
    assert torch.equal(read_image(path, part=1), PICTURE + 9)
    with pytest.raises(ValueError, match="part must be one of left, right, got 'depth'"):
        read_image(path, part="depth")


@pytest.mark.filterwarnings("error")
def test_layers_are_read_by_name(tmp_path: Path) -> None:
    layer = {f"view.combined.{name}": plane for name, plane in PLANES.items()}
    write_exr(tmp_path / "a.exr", {**layer, "view.depth.Z": RED})
    assert torch.equal(read_image(tmp_path / "a.exr"), PICTURE)
    other = {f"diffuse.{name}": plane * 2 for name, plane in PLANES.items()}
    write_exr(tmp_path / "a.exr", {**PLANES, **other})  # unnamed channels are the picture
    assert torch.equal(read_image(tmp_path / "a.exr"), PICTURE)
    assert torch.equal(read_image(tmp_path / "a.exr", part="diffuse"), PICTURE * 2)
    write_exr(tmp_path / "a.exr", {**layer, **other})
    with pytest.raises(ValueError, match=r"several layers .*: give part, one of diffuse, view\.combined"):
        read_image(tmp_path / "a.exr")
    write_exr(tmp_path / "a.exr", {"Z": RED, "left.R": RED})
    with pytest.raises(ValueError, match=r"no part has channels R, G and B, or Y, only Z, left\.R"):
        read_image(tmp_path / "a.exr")


def test_luminance_is_gray(tmp_path: Path) -> None:
    write_exr(tmp_path / "a.exr", {"Y": RED.astype(np.float16)})
    assert torch.equal(read_image(tmp_path / "a.exr"), torch.from_numpy(RED).expand(3, -1, -1))


@pytest.mark.parametrize("primaries", [(), (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)])
def test_subsampled_colors_of_a_constant_hue_are_exact(tmp_path: Path, primaries: tuple[float, ...]) -> None:
    light = np.linspace(0.1, 3, 48, dtype=np.float32).reshape(6, 8)
    color, weights = np.array([0.9, 0.5, 0.2]), np.array([0.2126, 0.7152, 0.0722])
    y = color @ weights
    chroma = {"RY": (color[0] - y) / y, "BY": (color[2] - y) / y}
    small = {name: np.full((3, 4), value, np.float32) for name, value in chroma.items()}
    write_exr(tmp_path / "a.exr", {"Y": light, **small}, chromaticities=primaries)
    expected = torch.from_numpy(light * (color / y)[:, None, None]).float()
    torch.testing.assert_close(read_image(tmp_path / "a.exr"), expected, rtol=2e-4, atol=1e-5)


def test_smooth_subsampled_colors_are_interpolated(tmp_path: Path) -> None:
    hue = 0.2 + 0.1 * np.sin(np.arange(64) / 8, dtype=np.float32)[None].repeat(64, 0)
    write_exr(
        tmp_path / "a.exr", {"Y": np.ones((64, 64), np.float32), "RY": hue[::2, ::2].copy(), "BY": hue[::2, ::2] * 0}
    )
    red = read_image(tmp_path / "a.exr")[0, 14:-14, 14:-14]
    torch.testing.assert_close(red, torch.from_numpy(1 + hue)[14:-14, 14:-14], rtol=0, atol=1e-3)


def test_the_display_window_is_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    write_exr(path, PLANES, corner=(-2, -1), display=(0, 0, 4, 3))  # overscan
    assert torch.equal(read_image(path), PICTURE[:, 1:5, 2:7])
    write_exr(path, PLANES, corner=(12, 21), display=(10, 20, 20, 27))
    image = read_image(path)
    assert image.shape == (3, 8, 11)
    assert torch.equal(image[:, 1:7, 2:10], PICTURE)
    assert image.sum() == pytest.approx(PICTURE.sum().item())
    write_exr(path, PLANES, display=(100, 100, 120, 120))
    with pytest.raises(ValueError, match=r"its data window, 8x6 from \(0, 0\), covers too little"):
        read_image(path)


def test_infinities_and_nan_are_replaced_on_request(tmp_path: Path) -> None:
    plane = RED.astype(np.float16)
    plane[0, :3] = np.inf, -np.inf, np.nan
    write_exr(tmp_path / "a.exr", {**dict.fromkeys("RG", RED.astype(np.float16)), "B": plane})
    with pytest.raises(ValueError, match="3 of 144 values are infinite or NaN"):
        read_image(tmp_path / "a.exr")
    image = read_image(tmp_path / "a.exr", nonfinite="replace")
    assert image[2, 0, :3].tolist() == [RED.max(), 0, 0]
    assert torch.equal(image[:2], torch.from_numpy(RED).expand(2, -1, -1))
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        read_image(tmp_path / "a.exr", nonfinite="ignore")


def test_messages_name_the_channel(tmp_path: Path) -> None:
    write_exr(tmp_path / "a.exr", {**PLANES, "G": np.ones((6, 8), np.uint32)})
    with pytest.raises(ValueError, match=r"a\.exr: channel G must be half or float, got uint32"):
        read_image(tmp_path / "a.exr")
    write_exr(tmp_path / "a.exr", {**PLANES, "B": RED[::2, ::2].copy()})
    with pytest.raises(ValueError, match=r"a\.exr: channel B must have all pixels, its sampling is 2x2"):
        read_image(tmp_path / "a.exr")


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"night-\xff.exr")
    write_exr(path, PLANES)
    assert torch.equal(read_image(path), PICTURE)


def test_a_wide_window_is_rejected_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    write_exr(path, PLANES)
    narrow, wide = struct.pack("<4i", 0, 0, 7, 5), struct.pack("<4i", 0, 0, 99_999_999, 5)
    path.write_bytes(path.read_bytes().replace(narrow, wide))
    with pytest.raises(ValueError, match=r"a\.exr: its header promises"):
        read_image(path)
