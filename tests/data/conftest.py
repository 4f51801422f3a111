"""Small data sets in the official layouts, written without the readers' help."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

EV = (0.0, 2.0, 4.0)


class Scene(NamedTuple):
    """What a scene's files hold: (N, H, W, C) exposures, (H, W, C) label."""

    name: str
    exposures: np.ndarray
    label: np.ndarray


class Fake(NamedTuple):
    root: Path
    train: list[Scene]
    test: list[Scene]


def write_rgbe(path: Path, rgbe: np.ndarray) -> np.ndarray:
    """Write (H, W, 4) RGBE bytes as an uncompressed Radiance file; return the float32 RGB that they mean."""
    height, width = rgbe.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    path.write_bytes(header + rgbe.tobytes())
    scale = np.where(rgbe[..., 3:] > 0, np.ldexp(1.0, rgbe[..., 3:].astype(int) - 136), 0.0)
    return (rgbe[..., :3] * scale).astype(np.float32)


def random_rgbe(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the bytes of radiances from 0 to 1, the largest mantissa of each pixel being at least 128."""
    rgbe = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgbe[..., 0] |= 128
    rgbe[..., 3] = rng.integers(120, 129, (height, width))
    rgbe[0, 0] = 0
    return rgbe


def write_kalantari_scene(
    folder: Path, rng: np.random.Generator, size: tuple[int, int], names: tuple[str, ...]
) -> Scene:
    folder.mkdir(parents=True)
    exposures = rng.integers(0, 65536, (3, *size, 3), dtype=np.uint16)
    for name, exposure in zip(names, exposures, strict=True):
        tifffile.imwrite(folder / name, exposure, photometric="rgb")
    (folder / "exposure.txt").write_text("".join(f"{ev:f}\n" for ev in EV))
    return Scene(folder.name, exposures, write_rgbe(folder / "HDRImg.hdr", random_rgbe(rng, *size)))


@pytest.fixture
def fake_kalantari(tmp_path) -> Callable[..., Fake]:
    """Return a function that writes a data set in Kalantari's layout."""

    def write(train: int = 3, test: int = 2, size: tuple[int, int] = (40, 60), tel: bool = False) -> Fake:
        rng = np.random.default_rng(0)
        names = tuple(f"input_{i}.tif" for i in (1, 2, 3)) if tel else ("262A0898.tif", "262A0899.tif", "262A0900.tif")
        root = tmp_path / "kalantari"
        trained = [write_kalantari_scene(root / "Training" / f"{i + 1:03d}", rng, size, names) for i in range(train)]
        tested = [write_kalantari_scene(root / "Test" / f"Scene{i}", rng, size, names) for i in range(test)]
        return Fake(root, trained, tested)

    return write


def write_metadata(path: Path, content: dict) -> None:
    """Write what ``np.save(path, content)`` writes: a pickled array of one object."""
    array = np.empty((), object)
    array[()] = content
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps(array, protocol=4))


CAM2RGB = np.array([[1.5, -0.4, -0.1], [-0.2, 1.4, -0.2], [0.0, -0.6, 1.6]], np.float32)


def write_bracketire_frame(folder: Path, rng: np.random.Generator, size: tuple[int, int], scale: int) -> Scene:
    inputs = folder if scale == 1 else folder / "x4"
    inputs.mkdir(parents=True)
    height, width = size
    exposures = rng.integers(0, 1024, (5, height // scale, width // scale, 4), dtype=np.uint16)
    for time, exposure in zip((1, 4, 16, 64, 256), exposures, strict=True):
        np.save(inputs / f"raw_{time}.npy", exposure)
    label = (16 * rng.random((height, width, 4))).astype(np.float32)
    np.save(folder / "raw_gt.npy", label)
    write_metadata(
        folder / "metadata.npy",
        {
            "rgb2cam": np.linalg.inv(CAM2RGB),
            "cam2rgb": CAM2RGB,
            "rgb_gain": 1.25,
            "red_gain": np.float64(2.0),
            "blue_gain": np.array([1.5], np.float32),
        },
    )
    return Scene(f"{folder.parent.name}-{folder.name}", exposures, label)


@pytest.fixture
def fake_bracketire(tmp_path) -> Callable[..., Fake]:
    """Return a function that writes a data set in BracketIRE's layout, or in BracketIRE+'s."""

    def write(train: int = 3, test: int = 2, size: tuple[int, int] = (48, 64), scale: int = 1) -> Fake:
        rng = np.random.default_rng(1)
        root = tmp_path / f"bracketire-x{scale}"
        frames = [
            write_bracketire_frame(root / split / f"carousel_{i // 2}" / f"{i % 2:04d}", rng, size, scale)
            for split, count in (("Train", train), ("Test", test))
            for i in range(count)
        ]
        return Fake(root, frames[:train], frames[train:])

    return write
