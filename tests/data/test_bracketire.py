"""BracketIRE and BracketIRE+ against an independent decoding of files in their layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from skt_components.data import BracketIRE
from skt_components.ops import unpack_raw

TIMES = (1, 4, 16, 64, 256)


def official(scene):
    """Bracket and target of a frame, computed in float64 from the file's numbers."""
    scales = 4.0 ** (2 - np.arange(5)).reshape(5, 1, 1, 1)
    return scene.exposures.transpose(0, 3, 1, 2) / 1023 * scales, scene.label.transpose(2, 0, 1)


def mosaic(packed):
    """Lay packed planes R, Gr, Gb, B out as a Bayer picture, with NumPy's own means."""
    height, width = packed.shape[-2:]
    bayer = np.empty((*packed.shape[:-3], 2 * height, 2 * width), packed.dtype)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        bayer[..., row::2, column::2] = packed[..., i, :, :]
    return bayer


# matches_reference


@pytest.mark.parametrize("scale", [1, 4])
def test_whole_frames_hold_the_files_values(fake_bracketire, scale):
    fake = fake_bracketire(scale=scale)
    for split, frames in (("train", fake.train), ("test", fake.test)):
        data = BracketIRE(fake.root, split, scale=scale, border=0)
        assert len(data) == len(frames)
        for sample, frame in zip((data[i] for i in range(len(data))), frames, strict=True):
            bracket, target = official(frame)
            assert (sample.name, sample.domain) == (frame.name, "raw")
            assert sample.exposure_times.tolist() == list(TIMES)
            np.testing.assert_allclose(sample.bracket.numpy(), bracket, rtol=2e-7)
            np.testing.assert_array_equal(sample.target.numpy(), target)
            assert sample.metadata["white_balance"].tolist() == [2.0, 1.0, 1.5]
            np.testing.assert_allclose(sample.metadata["color_matrix"][0].numpy(), [1.5, -0.4, -0.1], rtol=1e-6)


def test_samples_collate_with_their_metadata(fake_bracketire):
    data = BracketIRE(fake_bracketire().root, crop=16)
    batch = default_collate([data[0], data[1]])
    assert batch.metadata["white_balance"].shape == (2, 3)
    assert batch.metadata["color_matrix"].shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("scale", "split", "options", "border"),
    [
        (1, "train", {}, 0),
        (1, "test", {}, 5),
        (4, "test", {}, 2),
        (1, "test", {"border": 0}, 0),
        (1, "train", {"border": 3}, 3),
    ],
)
def test_official_borders_of_whole_frames(fake_bracketire, scale, split, options, border):
    fake = fake_bracketire(scale=scale)
    frame = (fake.train if split == "train" else fake.test)[0]
    sample = BracketIRE(fake.root, split, scale=scale, **options)[0]
    bracket, target = official(frame)
    inside, wide = (slice(b, -b or None) for b in (border, border * scale))
    np.testing.assert_allclose(sample.bracket.numpy(), bracket[..., inside, inside], rtol=2e-7)
    np.testing.assert_array_equal(sample.target.numpy(), target[..., wide, wide])


# crops


@pytest.mark.parametrize(("scale", "border"), [(1, 10), (4, 4)])
def test_training_crops_avoid_the_border_and_target_and_bracket_agree(fake_bracketire, scale, border):
    size = (48, 64) if scale == 1 else (96, 128)
    fake = fake_bracketire(scale=scale, size=size)
    data = BracketIRE(fake.root, crop=(16, 24), scale=scale, samples_per_epoch=60)
    by_name = {frame.name: frame for frame in fake.train}
    corners = set()
    for i in range(60):
        sample = data[i]
        bracket, target = official(by_name[sample.name])
        rows, columns = np.nonzero(target[0] == sample.target[0, 0, 0].numpy())
        (row,), (column,) = rows, columns
        np.testing.assert_array_equal(sample.target.numpy(), target[:, row : row + 16, column : column + 24])
        assert row % scale == column % scale == 0
        row, column = row // scale, column // scale
        piece = bracket[..., row : row + 16 // scale, column : column + 24 // scale]
        np.testing.assert_allclose(sample.bracket.numpy(), piece, rtol=2e-7)
        corners.add((row, column))
    rows, columns = zip(*corners, strict=True)
    assert min(rows) >= border
    assert max(rows) <= size[0] // scale - border - 16 // scale
    assert max(columns) <= size[1] // scale - border - 24 // scale
    assert len(corners) > 15


def test_dihedral_augmentation_keeps_red_where_red_is(fake_bracketire):
    fake = fake_bracketire(train=1, size=(14, 14))
    data = BracketIRE(fake.root, crop=12, border=0, augment="dihedral", samples_per_epoch=200)
    bracket, target = official(fake.train[0])
    seen = set()
    for i in range(200):
        sample = data[i]
        packed = sample.target.numpy()
        bayer = mosaic(packed)
        np.testing.assert_array_equal(unpack_raw(sample.target[None])[0, 0].numpy(), bayer)
        # Whatever the symmetry, the crop is a piece of the mosaic that was turned whole...
        found = []
        for k in range(4):
            for mirrored in (False, True):
                whole = mosaic(target)
                whole = np.rot90(whole[:, ::-1] if mirrored else whole, k)
                for row, column in zip(*np.nonzero(whole == bayer[0, 0]), strict=True):
                    piece = whole[row : row + 24, column : column + 24]
                    if piece.shape == bayer.shape and np.array_equal(piece, bayer):
                        found.append((k, mirrored, int(row), int(column)))
        ((k, mirrored, row, column),) = found
        seen.add((k, mirrored))
        # ... the colors of its sites are those of the mosaic's own sites ...
        colors = np.zeros_like(target)
        colors += np.arange(4).reshape(4, 1, 1)  # R, Gr, Gb, B
        turned = mosaic(colors)
        turned = np.rot90(turned[:, ::-1] if mirrored else turned, k)[row : row + 24, column : column + 24]
        assert (turned[0::2, 0::2] == 0).all()
        assert (turned[1::2, 1::2] == 3).all()
        assert np.isin(turned[0::2, 1::2], (1, 2)).all()
        # ... and the exposures are turned with it.
        exposures = mosaic(bracket)
        exposures = np.rot90(exposures[..., ::-1] if mirrored else exposures, k, (1, 2))
        piece = exposures[:, row : row + 24, column : column + 24]
        np.testing.assert_allclose(mosaic(sample.bracket.numpy()), piece, rtol=2e-7)
    assert len(seen) == 8


def test_a_full_size_crop_is_transposed_but_not_flipped(fake_bracketire):
    fake = fake_bracketire(train=1, size=(12, 12))
    data = BracketIRE(fake.root, crop=12, border=0, augment="dihedral", samples_per_epoch=20)
    whole = mosaic(fake.train[0].label.transpose(2, 0, 1))
    seen = {mosaic(data[i].target.numpy()).tobytes() for i in range(20)}
    assert seen == {whole.tobytes(), np.ascontiguousarray(whole.T).tobytes()}


def test_x4_is_transposed_only_and_the_planes_option_flips_the_planes(fake_bracketire):
    fake = fake_bracketire(train=1, size=(32, 32), scale=4)
    options = {"crop": 32, "scale": 4, "border": 0, "samples_per_epoch": 60}
    label, (bracket, _) = fake.train[0].label.transpose(2, 0, 1), official(fake.train[0])
    swap = [0, 2, 1, 3]
    data = BracketIRE(fake.root, augment="dihedral", **options)
    seen = {data[i].target.numpy().tobytes() for i in range(20)}
    assert seen == {label.tobytes(), np.ascontiguousarray(label.swapaxes(1, 2)[swap]).tobytes()}
    data = BracketIRE(fake.root, augment="planes", **options)
    samples = [data[i] for i in range(60)]
    eight = [np.rot90(base, k, (1, 2)) for base in (label, label[:, :, ::-1]) for k in range(4)]
    turned = [np.rot90(base, k, (2, 3)) for base in (bracket, bracket[..., ::-1]) for k in range(4)]
    which = [[np.array_equal(picture, sample.target.numpy()) for picture in eight].index(True) for sample in samples]
    assert set(which) == set(range(8))
    for sample, k in zip(samples, which, strict=True):
        np.testing.assert_allclose(sample.bracket.numpy(), turned[k], rtol=2e-7)


def test_few_test_windows_spread_over_the_frames(fake_bracketire):
    fake = fake_bracketire(test=12)
    data = BracketIRE(fake.root, "test", crop=16, samples_per_epoch=4)
    assert [data[i].name for i in range(4)] == [fake.test[i].name for i in (0, 3, 6, 9)]


# rejects_bad_input


def test_options_out_of_range(fake_bracketire):
    root = fake_bracketire(scale=4, size=(96, 128)).root
    with pytest.raises(ValueError, match="scale must be one of"):
        BracketIRE(root, scale=2)
    with pytest.raises(ValueError, match="crop must be multiples of 4"):
        BracketIRE(root, crop=30, scale=4)
    with pytest.raises(ValueError, match="border must be a whole number >= 0"):
        BracketIRE(root, scale=4, border=-1)
    with pytest.raises(ValueError, match=r"border=40 does not fit into a bracket of \(24, 32\) at scale 4"):
        BracketIRE(root, scale=4, border=40)[0]
    with pytest.raises(FileNotFoundError, match=r"raw_1.npy: no such file \(and 14 more"):
        BracketIRE(root)  # only x4 is there


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("raw_16.npy", np.zeros((48, 64, 3), np.uint16), r"raw_16.npy: must have shape \(any, any, 4\)"),
        ("raw_16.npy", np.zeros((48, 64, 4), np.uint8), "raw_16.npy: must hold uint16, got uint8"),
        ("raw_16.npy", np.zeros((48, 64, 4), np.float32), "raw_16.npy: must hold unsigned integers, got float32"),
        ("raw_16.npy", np.zeros((24, 64, 4), np.uint16), "exposures must have one size"),
        (
            "raw_16.npy",
            np.full((48, 64, 4), 1024, np.uint16),
            "raw_16.npy: exposures must be 10-bit, from 0 to 1023, got 1024",
        ),
        ("raw_gt.npy", np.zeros((48, 64, 4), np.int32), "raw_gt.npy: must hold floats, got int32"),
        ("raw_gt.npy", np.full((48, 64, 4), np.nan, np.float32), "raw_gt.npy: the label holds infinite or NaN"),
        ("raw_gt.npy", np.full((48, 64, 4), 1e300), "raw_gt.npy: the label holds infinite or NaN"),
        ("raw_gt.npy", np.zeros((96, 128, 4)), "raw_gt.npy: must have 48x64 pixels of 4 channels .* got 96x128"),
    ],
)
def test_a_broken_file_is_named(fake_bracketire, name, array, message):
    fake = fake_bracketire(train=1)
    np.save(fake.root / "Train/carousel_0/0000" / name, array)
    with pytest.raises(ValueError, match=message):
        BracketIRE(fake.root, crop=16)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"red_gain": None}, "metadata.npy: red_gain must be 1 finite number, it has blue_gain"),
        ({"cam2rgb": np.eye(2)}, "metadata.npy: cam2rgb must be 9 finite numbers, got"),
        ({"red_gain": 0.0}, "metadata.npy: gains must be above 0 and cam2rgb invertible"),
        ({"cam2rgb": np.ones((3, 3))}, "metadata.npy: gains must be above 0 and cam2rgb invertible"),
        ({"blue_gain": float("inf")}, "metadata.npy: blue_gain must be 1 finite number, got inf"),
    ],
)
def test_metadata_that_lacks_something(fake_bracketire, change, message):
    fake = fake_bracketire(train=1)
    content = {"red_gain": 2.0, "blue_gain": 1.5, "cam2rgb": np.eye(3)} | change
    content = {key: value for key, value in content.items() if value is not None}
    np.save(fake.root / "Train/carousel_0/0000/metadata.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        BracketIRE(fake.root)[0]


def test_half_and_double_labels_become_float32(fake_bracketire):
    fake = fake_bracketire(train=1)
    path = fake.root / "Train/carousel_0/0000/raw_gt.npy"
    for dtype in (np.float16, np.float64):
        np.save(path, fake.train[0].label.astype(dtype))
        target = BracketIRE(fake.root)[0].target
        assert target.dtype == torch.float32
        expected = fake.train[0].label.astype(dtype).astype(np.float32).transpose(2, 0, 1)
        np.testing.assert_array_equal(target.numpy(), expected)
