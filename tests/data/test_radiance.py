"""Radiance files as programs of all ages write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skt_components.data import read_image

HEADER = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n"
# A picture of 3 rows and 2 columns; red counts the rows from the top, green the columns from the left.
RGBE = np.array([[[128 + row, 140 + column, 200, 128] for column in range(2)] for row in range(3)], np.uint8)
RADIANCE = RGBE[..., :3].astype(np.float32) / 256


def read(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return read_image(path).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        (b"-Y 3 +X 2", RGBE),
        (b"-Y 3 -X 2", RGBE[:, ::-1]),
        (b"+Y 3 +X 2", RGBE[::-1]),
        (b"+Y 3 -X 2", RGBE[::-1, ::-1]),
        (b"+X 2 -Y 3", RGBE.swapaxes(0, 1)),
        (b"-X 2 -Y 3", RGBE[:, ::-1].swapaxes(0, 1)),
        (b"+X 2 +Y 3", RGBE[::-1].swapaxes(0, 1)),
        (b"-X 2 +Y 3", RGBE[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_all_orientations_are_upright(tmp_path: Path, size: bytes, stored: np.ndarray) -> None:
    np.testing.assert_array_equal(read(tmp_path / "a.hdr", HEADER + size + b"\n" + stored.tobytes()), RADIANCE)


@pytest.mark.parametrize(
    "header",
    [
        b"#?RGBE\n# was 32-bit_rle_xyze, EXPOSURE=9\nFORMAT=32-bit_rle_rgbe\n\n",
        b"#?RADIANCE\r\nFORMAT=32-bit_rle_rgbe\r\n\r\n",
        b"#?RADIANCE\n" + b"# " + b"x" * 100_000 + b"\nFORMAT= 32-bit_rle_rgbe \n\n",
        b"#?AUTOPANO\n\n",
        b"#?RADIANCE\nrpict\n\tEXPOSURE=4\nFORMAT=32-bit_rle_rgbe\n\n",  # of a picture that this one was made from
    ],
)
def test_headers_are_parsed_line_by_line(tmp_path: Path, header: bytes) -> None:
    end = b"\r\n" if b"\r" in header else b"\n"
    image = read(tmp_path / "a.hdr", header + b"-Y\t0003   +X 2" + end + RGBE.tobytes())
    np.testing.assert_array_equal(image, RADIANCE)


def test_exposure_and_color_correction_are_divided_out(tmp_path: Path) -> None:
    lines = b"#?RADIANCE\nEXPOSURE=2\nFORMAT=32-bit_rle_rgbe\nEXPOSURE= 2.5\nCOLORCORR= 1 2 0.5\n\n-Y 3 +X 2\n"
    expected = RADIANCE / np.float32(5) / np.array([1, 2, 0.5], np.float32)
    np.testing.assert_allclose(read(tmp_path / "a.hdr", lines + RGBE.tobytes()), expected, rtol=1e-6)


def test_run_lengths_by_channel_take_the_same_header(tmp_path: Path) -> None:
    run = bytes([2, 2, 0, 8]) + b"".join(bytes([128 + 8, value]) for value in (128, 64, 32, 129))
    image = read(tmp_path / "a.hdr", b"#?RADIANCE\nEXPOSURE=2\n\n+Y 2 -X 8\n" + run * 2)
    np.testing.assert_array_equal(image, np.full((2, 8, 3), [0.5, 0.25, 0.125], np.float32))


def test_old_run_lengths_repeat_whole_pixels(tmp_path: Path) -> None:
    first, second = bytes([128, 64, 32, 128]), bytes([200, 1, 1, 128])
    row = first + bytes([1, 1, 1, 4]) + bytes([1, 1, 1, 1]) + second  # 1 + 4 + 256 of the first, one of the second
    image = read(tmp_path / "a.hdr", HEADER + b"-Y 2 +X 262\n" + row * 2)
    np.testing.assert_array_equal(image[:, :261], np.full((2, 261, 3), [0.5, 0.25, 0.125], np.float32))
    np.testing.assert_array_equal(image[:, 261], np.full((2, 3), [200 / 256, 1 / 256, 1 / 256], np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 3 +X 2\n", "FORMAT must be 32-bit_rle_rgbe, got '32-bit_rle_xyze'"),
        (HEADER + b"-Y 3 +Y 2\n", "its size must be like -Y 480"),
        (HEADER + b"-Y 3 +X two\n", "its size must be like -Y 480"),
        (b"#?RADIANCE\nEXPOSURE=0\n\n-Y 3 +X 2\n", "EXPOSURE must be 1 finite number > 0, got '0'"),
        (b"#?RADIANCE\nCOLORCORR=1 2\n\n-Y 3 +X 2\n", "COLORCORR must be 3 finite numbers > 0, got '1 2'"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "its header has no end"),
        (HEADER + b"-Y 0 +X 2\n", "no pixels"),
        (HEADER + b"-Y 4 +X 2\n", "6 of 8 RGBE values"),
        (HEADER + b"-Y 1 +X 5\n" + bytes([1, 1, 1, 4]), "a run of pixels at its start"),
    ],
)
def test_the_true_reason_is_given(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.hdr: .*{message}"):
        read(tmp_path / "a.hdr", content + RGBE.tobytes())


@pytest.mark.parametrize(
    "size", [b"-Y 30000 +X 30000", b"-Y\t30000\t+X\t30000", b"-Y 000030000 +X 000030000\r", b"+X 30000 -Y 30000"]
)
@pytest.mark.parametrize("start", [b"\x80\x40\x20\x80\x01\x01\x01\xff", bytes([2, 2, 30000 >> 8, 30000 & 255])])
def test_small_files_cannot_ask_for_much_memory(tmp_path: Path, size: bytes, start: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.hdr: (its header promises|broken or truncated Radiance file: needs)"):
        read(tmp_path / "a.hdr", HEADER + size + b"\n" + start * 20)
