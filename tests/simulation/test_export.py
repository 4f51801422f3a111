from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skt_components.data import HDRSample
from skt_components.simulation import Camera, SyntheticScenes, export
from skt_components.simulation.camera import RawCamera
from skt_components.simulation.export import simulate_dataset, write_bracketire_frame, write_kalantari_scene

EXPOSURES = ["raw_1.npy", "raw_16.npy", "raw_256.npy", "raw_4.npy", "raw_64.npy"]


def _srgb(bits: int = 16) -> SyntheticScenes:
    return SyntheticScenes(3, (24, 32), camera=Camera((1.0, 4.0, 32.0), bits=bits))


def _raw(scale: int = 1, **options: object) -> SyntheticScenes:
    return SyntheticScenes(3, (8, 16), camera=RawCamera(scale=scale, subframes=2, **options))  # type: ignore[arg-type]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# matches_reference: what other readers find in the files


@pytest.mark.parametrize("bits", [8, 16])
def test_a_kalantari_scene_holds_the_sample(tmp_path: Path, bits: int) -> None:
    tifffile, cv2 = pytest.importorskip("tifffile"), pytest.importorskip("cv2")
    sample = _srgb(bits)[0]
    write_kalantari_scene(tmp_path / "001", sample)
    assert _files(tmp_path) == [
        f"001/{name}" for name in ("HDRImg.hdr", "exposure.txt", "input_1.tif", "input_2.tif", "input_3.tif")
    ]
    for n in range(3):
        pixels = tifffile.imread(tmp_path / f"001/input_{n + 1}.tif")
        assert (pixels.dtype, pixels.shape) == (np.uint16, (24, 32, 3))
        ldr = sample.bracket[n, 3:].permute(1, 2, 0).double().numpy()
        np.testing.assert_allclose(pixels, (ldr * 65536).clip(0, 65535), atol=0.501, rtol=0)
    assert ldr.max() == 1  # the last exposure is saturated somewhere
    text = (tmp_path / "001/exposure.txt").read_text()
    assert text == "0\n2\n5\n"
    label = cv2.imread(str(tmp_path / "001/HDRImg.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    target = sample.target.permute(1, 2, 0).numpy()
    assert (np.abs(label - target) <= target.max(-1, keepdims=True) / 128).all()
    assert label.max() > 0.1


@pytest.mark.parametrize("scale", [1, 4])
def test_a_bracketire_frame_holds_the_sample(tmp_path: Path, scale: int) -> None:
    sample = _raw(scale)[0]
    write_bracketire_frame(tmp_path / "0001", sample)
    inputs = "" if scale == 1 else "x4/"
    wanted = ["metadata.npy", "raw_gt.npy", *(inputs + name for name in EXPOSURES)]
    assert _files(tmp_path / "0001") == sorted(wanted)
    for n in range(5):
        levels = np.load(tmp_path / "0001" / f"{inputs}raw_{4**n}.npy")
        assert (levels.dtype, levels.shape) == (np.uint16, (8 // scale, 16 // scale, 4))
        assert levels.max() <= 1023
        linear = levels.astype(np.float32) / 1023 * 4.0 ** (2 - n)
        np.testing.assert_allclose(linear, sample.bracket[n].permute(1, 2, 0).numpy(), rtol=1e-6)
    assert levels.std() > 10
    label = np.load(tmp_path / "0001/raw_gt.npy")
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, sample.target.permute(1, 2, 0).numpy())
    metadata = np.load(tmp_path / "0001/metadata.npy", allow_pickle=True).item()
    assert sorted(metadata) == ["blue_gain", "cam2rgb", "red_gain", "rgb2cam", "rgb_gain"]
    gains = [metadata["red_gain"], metadata["rgb_gain"], metadata["blue_gain"]]
    assert all(type(gain) is float for gain in gains)
    np.testing.assert_allclose(gains, sample.metadata["white_balance"].numpy())
    np.testing.assert_allclose(metadata["cam2rgb"], sample.metadata["color_matrix"].numpy())
    np.testing.assert_allclose(metadata["rgb2cam"], RawCamera().rgb2cam, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "data", "scenes", "files"),
    [
        ("kalantari", _srgb, ("Training/0000", "Training/0002", "Test/0000"), 5),
        ("tel", _srgb, ("Training/scene_0000", "Training/scene_0002", "Test/scene_0000"), 5),
        ("bracketire", _raw, ("Train/0000/0000", "Train/0002/0000", "Test/0000/0000"), 7),
        ("bracketire-plus", lambda: _raw(4), ("Train/0000/0000", "Train/0002/0000", "Test/0000/0000"), 7),
    ],
)
def test_data_sets_have_the_published_folders(tmp_path: Path, layout, data, scenes, files) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("tifffile")
    simulate_dataset(layout, tmp_path / "out", data(), data(), progress=False)
    assert len(_files(tmp_path)) == 6 * files + 1
    for scene in scenes:
        assert (tmp_path / "out" / scene).is_dir()
    if layout == "bracketire":
        label = np.load(tmp_path / "out/Test/0002/0000/raw_gt.npy")
        np.testing.assert_array_equal(label, data()[2].target.permute(1, 2, 0).numpy())


# invariants


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    simulate_dataset("bracketire", tmp_path / "whole", _raw(), None)
    drawn: list[int] = []

    class Interrupted(SyntheticScenes):
        def _draw(self, index: int, epoch: int) -> HDRSample:
            drawn.append(index)
            if len(drawn) == 2:
                raise KeyboardInterrupt
            return super()._draw(index, epoch)

    data, out = Interrupted(3, (8, 16), camera=RawCamera(subframes=2)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        simulate_dataset("bracketire", out, data, None)
    assert [path.name for path in (out / "Train").iterdir()] == ["0000"]
    leftover = out / "Train/0001/.0000.part"  # as a killed run leaves it
    leftover.mkdir(parents=True)
    (leftover / "junk.npy").write_bytes(b"junk")
    os.utime(leftover, (0, 0))
    simulate_dataset("bracketire", out, data, None)
    assert drawn == [0, 1, 0, 1, 2]
    assert _files(out) == _files(tmp_path / "whole")
    for name in _files(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tifffile")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "write_image", fail)
    with pytest.raises(OSError, match="disk full"):
        write_kalantari_scene(tmp_path / "001", _srgb()[0])
    assert list(tmp_path.iterdir()) == []


# rejects_bad_input


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_bracketire_frame(tmp_path / "0000", _raw()[0])
    before = (tmp_path / "0000/raw_gt.npy").read_bytes()
    with pytest.raises(FileExistsError, match="0000 exists"):
        write_bracketire_frame(tmp_path / "0000", _raw()[1])
    with pytest.raises(FileExistsError, match="0000 exists"):
        write_kalantari_scene(tmp_path / "0000", _srgb()[1])
    assert (tmp_path / "0000/raw_gt.npy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["0000"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda: _srgb()[0], "sample must be RAW with exposure times"),
        (lambda: _raw(num_frames=4)[0], "sample must be RAW with exposure times"),
        (lambda: _raw(ratio=2.0)[0], "sample must be RAW with exposure times"),
        (lambda: _raw(bits=12)[0], "sample must be 10-bit"),
        (lambda: _raw()[0]._replace(metadata={}), "color_matrix and white_balance in its metadata"),
        (lambda: _raw()[0]._replace(target=torch.ones(4, 16, 32)), "target as large as its bracket of 8x16, or four"),
    ],
)
def test_bracketire_rejects(tmp_path: Path, sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_bracketire_frame(tmp_path / "0000", sample())
    assert list(tmp_path.iterdir()) == []


def test_kalantari_rejects(tmp_path: Path) -> None:
    five = SyntheticScenes(1, 16, camera=Camera((1.0, 2.0, 4.0, 8.0, 16.0)))[0]
    falling = SyntheticScenes(1, 16, camera=Camera((4.0, 2.0, 1.0)))[0]
    for sample in (five, falling, _raw()[0]):
        with pytest.raises(ValueError, match="sample must be an sRGB bracket"):
            write_kalantari_scene(tmp_path / "001", sample)
    assert list(tmp_path.iterdir()) == []


def test_data_sets_reject(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of"):
        simulate_dataset("sig17", tmp_path, _srgb(), None)
    with pytest.raises(ValueError, match="train or test must have a sample"):
        simulate_dataset("tel", tmp_path, None, None)
    with pytest.raises(ValueError, match="bracketire-plus must have targets 4 times the bracket's size, got 8x16 and"):
        simulate_dataset("bracketire-plus", tmp_path, _raw(), None)
    with pytest.raises(ValueError, match="bracketire must have targets 1 times the bracket's size, got 2x4 and 8x16"):
        simulate_dataset("bracketire", tmp_path, None, _raw(4))
    assert list(tmp_path.iterdir()) == []
