"""Kalantari17 and Tel23 against an independent decoding of files in their layout."""

from __future__ import annotations

import math
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from skt_components.data import Kalantari17, Tel23, prepare, verify
from skt_components.data.kalantari import KALANTARI, read_exposure_values
from skt_components.data.windows import spread


def official(scene, ldr_scale=65536, ev=(0.0, 2.0, 4.0)):
    """Bracket and target of a scene, computed in float64 from the file's numbers."""
    ldr = scene.exposures.transpose(0, 3, 1, 2).astype(np.float64) / ldr_scale
    times = 2.0 ** np.array(ev).reshape(3, 1, 1, 1)
    return np.concatenate([ldr**2.2 / (times + 1e-8), ldr], axis=1), scene.label.transpose(2, 0, 1)


# matches_reference


@pytest.mark.parametrize("tel", [False, True])
def test_whole_scenes_hold_the_files_values(fake_kalantari, tel):
    fake = fake_kalantari(tel=tel)
    for split, scenes in (("train", fake.train), ("test", fake.test)):
        data = (Tel23 if tel else Kalantari17)(fake.root, split)
        assert len(data) == len(scenes)
        for sample, scene in zip((data[i] for i in range(len(data))), scenes, strict=True):
            bracket, target = official(scene)
            assert sample.name == scene.name
            assert sample.domain == "srgb"
            assert sample.metadata == {}
            assert sample.exposure_times.tolist() == [1, 4, 16]
            np.testing.assert_allclose(sample.bracket.numpy(), bracket, rtol=1e-6, atol=1e-9)
            np.testing.assert_array_equal(sample.bracket[:, 3:].numpy(), bracket[:, 3:].astype(np.float32))
            np.testing.assert_array_equal(sample.target.numpy(), target)
            assert sample.target.max() > 0.5


def test_named_options_change_what_their_names_say(fake_kalantari):
    fake = fake_kalantari(train=1)
    (fake.root / "Training" / "001" / "exposure.txt").write_text("-2.0\r\n0.000000\r\n2\r\n")
    raw = Kalantari17(fake.root)[0]
    assert raw.exposure_times.tolist() == [0.25, 1, 4]
    np.testing.assert_allclose(raw.bracket.numpy(), official(fake.train[0], ev=(-2, 0, 2))[0], rtol=1e-6, atol=1e-9)
    relative = Kalantari17(fake.root, exposure_norm="relative_to_min")[0]
    assert relative.exposure_times.tolist() == [1, 4, 16]
    np.testing.assert_allclose(relative.bracket.numpy(), official(fake.train[0])[0], rtol=1e-6, atol=1e-9)
    full = Kalantari17(fake.root, ldr_scale=65535)[0].bracket[:, 3:]
    np.testing.assert_allclose(full.numpy(), official(fake.train[0], 65535)[0][:, 3:], rtol=1e-7)


def test_compressed_tiffs_read_the_same(fake_kalantari):
    fake = fake_kalantari(train=1)
    before = Kalantari17(fake.root)[0]
    for path, exposure in zip(sorted((fake.root / "Training/001").glob("*.tif")), fake.train[0].exposures, strict=True):
        tifffile.imwrite(path, exposure, photometric="rgb", compression="zlib", rowsperstrip=7)
    assert torch.equal(Kalantari17(fake.root)[0].bracket, before.bracket)


def test_exposures_are_sorted_by_name_and_other_files_ignored(fake_kalantari):
    fake = fake_kalantari(train=1)
    folder = fake.root / "Training" / "001"
    (folder / "262A0898.tif").rename(folder / "A.TIF")  # sorts behind the digits
    (folder / ".262A0001.tif").write_bytes(b"hidden")
    (folder / "HDRImg.tif").write_bytes(b"another form of the label")
    sample = Kalantari17(fake.root)[0]
    order = official(fake.train[0])[0][[1, 2, 0], 3:]
    np.testing.assert_array_equal(sample.bracket[:, 3:].numpy(), order.astype(np.float32))


# crops


def place_of(sample, scene):
    """Where a crop of the label comes from, by its corner's value; the fake labels hardly repeat."""
    corner = sample.target[:, 0, 0].numpy()
    rows, columns = np.nonzero((scene.label == corner).all(-1))
    size = sample.target.shape[1:]
    label = scene.label.transpose(2, 0, 1)
    for row, column in zip(rows, columns, strict=True):
        piece = label[:, row : row + size[0], column : column + size[1]]
        if piece.shape == sample.target.shape and np.array_equal(piece, sample.target.numpy()):
            return int(row), int(column)
    raise AssertionError("the crop is not in the scene")


def test_crops_are_pieces_of_their_scene_and_exposures_and_target_agree(fake_kalantari):
    fake = fake_kalantari()
    data = Kalantari17(fake.root, crop=(16, 24), samples_per_epoch=30)
    by_name = {scene.name: scene for scene in fake.train}
    for i in range(30):
        sample = data[i]
        row, column = place_of(sample, by_name[sample.name])
        bracket, _ = official(by_name[sample.name])
        piece = bracket[:, 3:, row : row + 16, column : column + 24].astype(np.float32)
        np.testing.assert_array_equal(sample.bracket[:, 3:].numpy(), piece)


def test_scenes_come_up_equally_often_and_positions_are_uniform(fake_kalantari):
    fake = fake_kalantari(train=3, size=(19, 60))
    data = Kalantari17(fake.root, crop=(16, 56), samples_per_epoch=600)
    counts, places = {}, np.zeros((4, 5))
    by_name = {scene.name: scene for scene in fake.train}
    for i in range(600):
        sample = data[i]
        counts[sample.name] = counts.get(sample.name, 0) + 1
        places[place_of(sample, by_name[sample.name])] += 1
    assert set(counts.values()) == {200}
    chi_square = ((places - 30) ** 2 / 30).sum()
    assert chi_square < 43.8, places  # 19 degrees of freedom, p = 0.001


def test_dihedral_augmentation_gives_all_eight_symmetries_of_the_same_pixels(fake_kalantari):
    fake = fake_kalantari(train=1, size=(16, 16))
    data = Kalantari17(fake.root, crop=16, augment="dihedral", samples_per_epoch=64)
    label = fake.train[0].label.transpose(2, 0, 1)
    eight = [np.rot90(base, k, (1, 2)) for base in (label, label[:, :, ::-1]) for k in range(4)]
    seen = set()
    bracket, _ = official(fake.train[0])
    exposures = bracket[:, 3:].astype(np.float32)
    nine = [np.rot90(base, k, (2, 3)) for base in (exposures, exposures[..., ::-1]) for k in range(4)]
    for i in range(64):
        sample = data[i]
        (which,) = [k for k, picture in enumerate(eight) if np.array_equal(picture, sample.target.numpy())]
        np.testing.assert_array_equal(sample.bracket[:, 3:].numpy(), nine[which])
        seen.add(which)
    assert seen == set(range(8))


def test_test_crops_are_fixed_and_spread(fake_kalantari):
    fake = fake_kalantari()
    data = Kalantari17(fake.root, "test", crop=16, samples_per_epoch=8)
    first = [data[i] for i in range(8)]
    data.set_epoch(5)
    assert all(torch.equal(a.bracket, data[i].bracket) for i, a in enumerate(first))
    by_name = {scene.name: scene for scene in fake.test}
    places = {place_of(sample, by_name[sample.name]) for sample in first}
    assert len(places) >= 4
    assert spread(0) == (0.5, 0.5), "the first one is in the middle"
    assert [sample.name for sample in first] == ["Scene0", "Scene1"] * 4


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_samples_depend_on_seed_epoch_and_index_alone(fake_kalantari, workers):
    fake = fake_kalantari()
    data = Kalantari17(fake.root, crop=16, augment="dihedral", samples_per_epoch=12, seed=3)
    data.set_epoch(2)
    expected = [data[i].bracket for i in range(12)]
    other = Kalantari17(fake.root, crop=16, augment="dihedral", samples_per_epoch=12, seed=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    other.set_epoch(2)
    # From the fifth sample on, as a run that was resumed reads them.
    loader = DataLoader(Subset(other, order[4:]), batch_size=2, num_workers=workers)
    got = torch.cat([batch.bracket for batch in loader])
    assert torch.equal(got, torch.stack([expected[i] for i in order[4:]]))
    assert not torch.equal(Kalantari17(fake.root, crop=16, samples_per_epoch=12, seed=4)[0].bracket, expected[0])
    other.set_epoch(3)
    assert not torch.equal(other[0].bracket, expected[0])


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split must be one of"),
        ({"crop": 4}, "crop must be whole numbers of at least 8"),
        ({"crop": 16, "augment": "planes"}, "augment must be one of"),
        ({"augment": "dihedral"}, "samples_per_epoch and augment need a crop"),
        ({"ldr_scale": 255}, "ldr_scale must be one of"),
        ({"exposure_norm": "none"}, "exposure_norm must be one of"),
        ({"crop": 16, "samples_per_epoch": 0}, "samples_per_epoch must be a whole number >= 1"),
    ],
)
def test_options_out_of_range(fake_kalantari, options, message):
    with pytest.raises(ValueError, match=message):
        Kalantari17(fake_kalantari().root, **options)


def test_a_crop_larger_than_the_scene_names_both(fake_kalantari):
    data = Kalantari17(fake_kalantari().root, crop=48)
    with pytest.raises(ValueError, match=r"001: crop=\(48, 48\) .* does not fit into a bracket of \(40, 60\)"):
        data[0]


def test_folders_and_files_that_are_missing(fake_kalantari, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root must have a folder Training, .* there is no such folder"):
        Kalantari17(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has not: it holds nothing"):
        Kalantari17(tmp_path)
    fake = fake_kalantari()
    (fake.root / "Training/002/HDRImg.hdr").unlink()
    (fake.root / "Training/003/262A0899.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"002.HDRImg.hdr: no such file \(and 1 more"):
        Kalantari17(fake.root)
    (fake.root / "Test" / "Scene0").rename(fake.root / "elsewhere")
    (fake.root / "Test" / "Scene1").rename(fake.root / "elsewhere2")
    with pytest.raises(FileNotFoundError, match="Test has no scenes"):
        Kalantari17(fake.root, "test")


def test_a_label_above_the_peak_warns_once(fake_kalantari):
    fake = fake_kalantari(train=1)
    label = np.full((40, 60, 3), 2.5, np.float32)
    assert cv2.imwrite(str(fake.root / "Training/001/HDRImg.hdr"), label)
    data = Kalantari17(fake.root)
    with pytest.warns(UserWarning, match=r"HDRImg.hdr: the label must not exceed the peak, 1, got 2.5"):
        assert data[0].target.max() == 2.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("262A0899.tif", b"", "262A0899.tif: the file is empty"),
        ("262A0899.tif", b"II*\0garbage", "262A0899.tif: broken, truncated or unsupported TIFF"),
        ("HDRImg.hdr", b"P6 1 1 255", "HDRImg.hdr: not a Radiance file"),
        ("HDRImg.hdr", b"#?RADIANCE\n\n-Y 40 +X 60\n123", "HDRImg.hdr: .*(broken|pixels than)"),
        ("exposure.txt", b"0 1", "exposure.txt: must hold 3 exposure values in stops"),
        ("exposure.txt", b"0 1 nan", "exposure.txt: must hold 3 exposure values"),
    ],
)
def test_a_broken_file_is_named(fake_kalantari, name, content, message):
    fake = fake_kalantari(train=1)
    (fake.root / "Training/001" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Kalantari17(fake.root, crop=16)[0]


def test_a_worker_that_meets_a_broken_file_names_it(fake_kalantari):
    fake = fake_kalantari(train=1)
    (fake.root / "Training/001/262A0899.tif").write_bytes(b"II*\0garbage")
    with pytest.raises(ValueError, match=r"262A0899\.tif: broken, truncated or unsupported TIFF"):
        next(iter(DataLoader(Kalantari17(fake.root, crop=16), num_workers=1)))


@pytest.mark.parametrize(
    ("exposure", "message"),
    [
        (np.zeros((40, 60, 3), np.uint8), "must be a 16-bit TIFF, got uint8"),
        (np.zeros((39, 60, 3), np.uint16), r"exposures must have one size, got \(39, 60\), \(40, 60\)"),
    ],
)
def test_exposures_of_another_kind(fake_kalantari, exposure, message):
    fake = fake_kalantari(train=1)
    tifffile.imwrite(fake.root / "Training/001/262A0899.tif", exposure, photometric="rgb")
    with pytest.raises(ValueError, match=message):
        Kalantari17(fake.root)[0]


def test_a_label_of_another_size(fake_kalantari):
    fake = fake_kalantari(train=1)
    assert cv2.imwrite(str(fake.root / "Training/001/HDRImg.hdr"), np.ones((20, 30, 3), np.float32))
    with pytest.raises(ValueError, match=r"HDRImg.hdr: must have 40x60 pixels of 3 channels .* got 20x30"):
        Kalantari17(fake.root)[0]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(" -+.0123456789eE\n\r\t", max_size=40).map(str.encode))
def test_exposure_files_are_three_numbers_or_a_named_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("ev") / "exposure.txt"
    path.write_bytes(content)
    try:
        values = read_exposure_values(path)
    except ValueError as error:
        assert "exposure.txt" in str(error)  # noqa: PT017
    else:
        assert len(values) == 3
        assert all(math.isfinite(value) for value in values)


def make_files(folder):
    """A small picture in each kind of file: TIFF raw and packed, RGBE flat and in runs."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 65536, (12, 16, 3), dtype=np.uint16)
    tifffile.imwrite(folder / "raw.tif", numbers, photometric="rgb")
    tifffile.imwrite(folder / "packed.tif", numbers, photometric="rgb", compression="zlib", rowsperstrip=4)
    cv2.imwrite(str(folder / "lzw.tif"), numbers)
    cv2.imwrite(str(folder / "HDRImg.hdr"), rng.random((12, 16, 3), np.float32))
    return sorted(folder.iterdir())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_pictures_are_pictures_or_a_named_error_in_bounded_memory(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    path = data.draw(st.sampled_from(make_files(folder)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        # Half of the changes go where the headers are.
        last = data.draw(st.sampled_from([min(len(content), 300), len(content)])) - 1
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))])
    tracemalloc.start()
    try:
        picture = KALANTARI.read_label(path) if path.suffix == ".hdr" else KALANTARI.read_frame(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert picture.shape[2] == 3
        assert np.isfinite(picture).all()
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("HDRImg.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(100)),
        ("a.tif", None),
    ],
)
def test_headers_that_promise_gigabytes_are_rejected_before_room_is_made(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint16), photometric="rgb")
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                field = file.pages[0].tags[tag]
                content[field.valueoffset : field.valueoffset + 4] = (60_000).to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}: .*promises"):
        KALANTARI.read_label(path) if path.suffix == ".hdr" else KALANTARI.read_frame(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# folders as people have them


def bright(root, values=(0, 1, 2)):
    """Write exposures of every scene that become brighter by 2^value, and their exposure file."""
    for label in root.glob("*/*/HDRImg.*"):
        rng = np.random.default_rng(0)
        light = rng.random((40, 60, 3)) * 10_000
        for path, value in zip(sorted(label.parent.glob("*.tif")), values, strict=True):
            tifffile.imwrite(path, (light * 2.0**value).astype(np.uint16), photometric="rgb")


def test_other_cases_and_what_systems_add_do_not_stop_it(fake_kalantari, tmp_path):
    fake = fake_kalantari()
    expected = [scene.target for scene in map(Kalantari17(fake.root).__getitem__, range(3))]
    scene = fake.root / "Training" / "001"
    (scene / "HDRImg.hdr").rename(scene / "HDRImg.HDR")
    (scene / "exposure.txt").rename(scene / "Exposure.txt")
    (scene / "._262A0898.tif").write_bytes(b"resource fork")
    for name in ("@eaDir", "__MACOSX", "._002", ".DS_Store", "$RECYCLE.BIN"):
        (fake.root / "Training" / name).mkdir()
    (fake.root / "Training" / "003").rename(tmp_path / "elsewhere")
    (fake.root / "Training" / "003").symlink_to(tmp_path / "elsewhere")
    (fake.root / "Training").rename(fake.root / "training")
    data = Kalantari17(fake.root)
    assert data.scenes == ["001", "002", "003"]
    assert all(torch.equal(data[i].target, target) for i, target in enumerate(expected))
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    assert all(torch.equal(Kalantari17(out)[i].target, target) for i, target in enumerate(expected))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf-2\r\n0\r\n1.5\r\n",
        "-2,0\n0,0\n1,5".encode("utf-16"),
        b"-2, 0, 1.5",
        b"-2;0;1,5\n",
        "\u22122 0 1.5".encode(),
        b"-2,0,1.5",
    ],
)
def test_exposure_files_of_other_programs(tmp_path, content):
    (tmp_path / "exposure.txt").write_bytes(content)
    assert read_exposure_values(tmp_path / "exposure.txt") == [-2, 0, 1.5]


@pytest.mark.parametrize("content", [b"1,5,2,5,3,5", b"1 2", b"1 2 3 4", b"a b c", b"1 2 inf", b"1.5,0 2 3"])
def test_ambiguous_exposure_files_are_errors(tmp_path, content):
    (tmp_path / "exposure.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"exposure\.txt: must hold 3 exposure values"):
        read_exposure_values(tmp_path / "exposure.txt")


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])
def test_exposures_that_do_not_become_brighter_are_noticed(fake_kalantari, tmp_path, order):
    fake = fake_kalantari(train=1, test=1)
    bright(fake.root, order)  # as 10.tif, 8.tif and 9.tif are sorted as text
    message = r"001: exposure 262A\d+\.tif is darker than exposure .* sorted by name as text"
    with pytest.warns(UserWarning, match=message):
        Kalantari17(fake.root)[0]
    found = [problem for problem in verify("kalantari", fake.root, progress=False).problems if "darker" in problem]
    assert len(found) == 2
    with pytest.warns(UserWarning, match="is darker than exposure"):
        out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    with pytest.warns(UserWarning, match="is darker than exposure"):
        Kalantari17(out, crop=16)[0]
    assert sum("darker" in problem for problem in verify("kalantari", out, progress=False).problems) == 2


@pytest.mark.filterwarnings("error")
def test_brighter_exposures_pass(fake_kalantari):
    fake = fake_kalantari(train=1, test=1)
    bright(fake.root)
    Kalantari17(fake.root)[0]
    assert not any("darker" in problem for problem in verify("kalantari", fake.root, progress=False).problems)
