from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from skt_components.banks.label_maps import read_label_map
from skt_components.banks.priors import priors_from_labels

Image = pytest.importorskip("PIL.Image")


def write_png(path: Path, samples: np.ndarray, depth: int, color: int) -> Path:
    """Encode one sample of ``depth`` bits per pixel, by the PNG specification."""
    rows = []
    for row in samples:
        bits = "".join(format(int(v), f"0{depth}b") for v in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * 2**depth)[::-1])) if color == 3 else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + body)
    return path


@pytest.mark.parametrize(("depth", "color"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3)], ids=str)
def test_png_numbers_are_the_stored_ones(tmp_path: Path, depth: int, color: int) -> None:
    samples = np.arange(77).reshape(7, 11) * (1 if depth < 16 else 700) % 2**depth
    labels = read_label_map(write_png(tmp_path / "map.png", samples, depth, color))
    assert labels.dtype == torch.int64
    assert labels.tolist() == samples.tolist()


def test_a_palette_of_pillows_gives_indices_and_not_colors(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 21, (9, 12), dtype=np.uint8)
    image = Image.fromarray(samples)
    image.putpalette([200, 30, 60] * 256)  # makes it a palette picture; all colors are alike
    assert image.mode == "P"
    image.save(tmp_path / "voc.png")
    assert read_label_map(tmp_path / "voc.png").tolist() == samples.tolist()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int32", ">i4", "int64", "uint64"])
def test_arrays_of_every_integer_type(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    np.save(tmp_path / "map.npy", array)
    labels = read_label_map(str(tmp_path / "map.npy"))
    assert labels.dtype == torch.int64
    assert labels.tolist() == array.astype(int).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_tif(tmp_path: Path, dtype: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = np.arange(12, dtype=dtype).reshape(3, 4) * 9
    tifffile.imwrite(tmp_path / "map.tif", array, compression="zlib")
    assert read_label_map(tmp_path / "map.tif").tolist() == array.tolist()


def test_ignored_and_negative_numbers_are_no_region(tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([[0, 255, -7], [3, -1, 3]]))
    assert read_label_map(tmp_path / "map.npy").tolist() == [[0, 255, -1], [3, -1, 3]]
    assert read_label_map(tmp_path / "map.npy", ignore=255).tolist() == [[0, -1, -1], [3, -1, 3]]
    assert read_label_map(tmp_path / "map.npy", ignore=0).tolist() == [[-1, 255, -1], [3, -1, 3]]


def test_compact_renumbers_in_rising_order(tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([[26001, 255, -7], [7, 2**40, 26001]]))
    labels = read_label_map(tmp_path / "map.npy", ignore=255, compact=True)
    assert labels.tolist() == [[1, -1, -1], [0, 2, 1]]
    assert priors_from_labels([], labels[None], 3).valid.all()
    np.save(tmp_path / "none.npy", np.full((2, 2), 255, np.uint8))
    assert read_label_map(tmp_path / "none.npy", ignore=255, compact=True).tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize(("mode", "named"), [("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "gray with alpha")])
def test_pictures_in_color_are_rejected(tmp_path: Path, mode: str, named: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "colors.png")
    with pytest.raises(ValueError, match=rf"colors\.png: the picture is {named}; a region map has one integer"):
        read_label_map(tmp_path / "colors.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), np.float32), r"map\.npy: numbers must be integers or bool, got float32; a region map"),
        (np.zeros((2, 2, 3), np.uint8), r"map\.npy: must be H×W, got shape \(2, 2, 3\)"),
        (np.zeros((0, 2), np.uint8), r"map\.npy: must be H×W, got shape \(0, 2\)"),
        (np.full((1, 1), 2**63, np.uint64), r"map\.npy: numbers must fit into int64, got 9223372036854775808"),
        (np.array([[{}]], dtype=object), r"map\.npy is not a readable \.npy array: must hold numbers, got object"),
    ],
)
def test_other_arrays_are_rejected(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "map.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_label_map(tmp_path / "map.npy")


def test_other_tifs_are_rejected(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"rgb\.tif: the picture has 3 channels; a region map"):
        read_label_map(tmp_path / "rgb.tif")
    with pytest.raises(ValueError, match=r"float\.tif: numbers must be integers or bool, got float32"):
        read_label_map(tmp_path / "float.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("content", ["empty", "garbage", "cut"])
def test_broken_files_are_named(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"map{suffix}"
    whole = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    if suffix == ".npy":
        np.save(path, whole)
    elif suffix == ".png":
        Image.fromarray(whole).save(path)
    else:
        pytest.importorskip("tifffile").imwrite(path, whole)
    path.write_bytes({"empty": b"", "garbage": b"region map" * 9, "cut": path.read_bytes()[:300]}[content])
    with pytest.raises(ValueError, match=rf"map{suffix} (is not a readable|cannot be read)"):
        read_label_map(path)


def test_rejects_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.png: no such file"):
        read_label_map(tmp_path / "absent.png")
    with pytest.raises(ValueError, match=r"map\.jpg: suffix must be one of \.png, \.tif, \.tiff, \.npy, got '\.jpg'"):
        read_label_map(tmp_path / "map.jpg")
    with pytest.raises(TypeError, match=r"ignore must be a whole number or None, got '255'"):
        read_label_map(tmp_path / "map.png", ignore="255")  # type: ignore[arg-type]


def test_missing_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "map.png", np.zeros((2, 2), int), 8, 0)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'need Pillow: pip install "skt-components\[data\]"'):
        read_label_map(tmp_path / "map.png")
