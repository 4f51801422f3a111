"""Prepared data sets: the same samples, resumed and atomic; and the check of published and prepared files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.data import BracketIRE, Kalantari17, Tel23, prepare, prepared, verify
from skt_components.data.strips import decode_rgbe, encode_rgbe
from skt_components.simulation import Camera, RawCamera, SyntheticScenes, simulate_dataset, write_kalantari_scene


@pytest.fixture
def fakes(fake_kalantari, fake_bracketire):
    """Return a function name -> (data set, class, options)."""

    def make(name):
        if name in ("kalantari", "tel"):
            return fake_kalantari(tel=name == "tel"), Kalantari17 if name == "kalantari" else Tel23, {}
        scale = 4 if name == "bracketire-plus" else 1
        return fake_bracketire(scale=scale, size=(96, 128) if scale == 4 else (48, 64)), BracketIRE, {"scale": scale}

    return make


def stored_sample(kind, fake, out, number):
    """Sample ``number`` of a prepared set that is not whole yet."""
    scenes = kind(fake.root).scenes
    (out / "prepared.json").write_text(
        json.dumps({"format": 1, "dataset": kind.__name__, "scenes": {"train": [scenes[number]]}})
    )
    return kind(out)[0]


NAMES = ["kalantari", "tel", "bracketire", "bracketire-plus"]


def equal(a, b):
    tensors = [*zip(a[:3], b[:3], strict=True), *((a.metadata[k], b.metadata[k]) for k in a.metadata)]
    return a[3:5] == b[3:5] and a.metadata.keys() == b.metadata.keys() and all(torch.equal(x, y) for x, y in tensors)


# matches_reference


@pytest.mark.parametrize("name", NAMES)
def test_prepared_samples_equal_the_originals_bit_by_bit(fakes, name, tmp_path):
    fake, kind, options = fakes(name)
    out = prepare(name, fake.root, tmp_path / "out", progress=False)
    for split in ("train", "test"):
        for crop in ({}, {"crop": 16, "samples_per_epoch": 12}):
            augment = {"augment": "dihedral"} if crop and split == "train" else {}
            original, stored = (kind(root, split, **crop, **augment, **options) for root in (fake.root, out))
            assert stored.is_prepared
            assert not original.is_prepared
            assert stored.scenes == original.scenes
            assert all(equal(original[i], stored[i]) for i in range(len(original)))


def test_it_is_smaller_than_crops_on_disk(fakes, tmp_path):
    fake, *_ = fakes("kalantari")
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    scene = out / "Training" / "001"
    pixels = 40 * 64  # one strip
    assert (scene / "frames.npy").stat().st_size == 128 + pixels * 3 * 3 * 2
    assert (scene / "label.npy").stat().st_size == 128 + pixels * 4  # RGBE


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_rgbe_is_exact_or_rejected(seed, nudge):
    rng = np.random.default_rng(seed)
    rgbe = rng.integers(0, 256, (4, 5, 6), dtype=np.uint8)
    rgbe[3] = rng.choice([0, *range(10, 256)], (5, 6))  # the smallest have no form in which the largest byte is >= 128
    picture = decode_rgbe(rgbe)
    scale = np.where(rgbe[3] > 0, np.ldexp(1.0, rgbe[3].astype(int) - 136), 0.0)
    np.testing.assert_array_equal(picture, (rgbe[:3] * scale).astype(np.float32))
    picture.reshape(-1)[:nudge] += 1e-3 * (1 + picture.reshape(-1)[:nudge])  # not of the format any more, mostly
    with np.errstate(over="ignore"):
        encoded = encode_rgbe(picture)
    if nudge == 0:
        assert encoded is not None
    if encoded is not None:
        np.testing.assert_array_equal(decode_rgbe(encoded), picture)


def test_rgbe_of_labels_that_opencv_reads(tmp_path):
    picture = np.random.default_rng(0).random((30, 20, 3), np.float32) ** 4 * 8
    cv2.imwrite(str(tmp_path / "a.hdr"), picture)
    read = np.ascontiguousarray(cv2.imread(str(tmp_path / "a.hdr"), cv2.IMREAD_UNCHANGED).transpose(2, 0, 1))
    encoded = encode_rgbe(read)
    assert encoded is not None
    np.testing.assert_array_equal(decode_rgbe(encoded), read)
    assert encode_rgbe(read + np.float32(1e-6)) is None


@pytest.mark.parametrize(("half", "dtype"), [(False, np.float32), (True, np.float16)])
def test_labels_take_the_smallest_exact_form_unless_told_otherwise(fakes, tmp_path, half, dtype):
    fake, kind, _ = fakes("bracketire")
    np.save(fake.root / "Train/carousel_0/0001/raw_gt.npy", np.full((48, 64, 4), 0.25, np.float32))
    out = prepare("bracketire", fake.root, tmp_path / "out", half=half, progress=False)
    assert np.load(out / "Train/carousel_0/0000/label.npy").dtype == dtype
    assert np.load(out / "Train/carousel_0/0001/label.npy").dtype == np.float16  # exact
    error = (kind(out, border=0)[0].target - kind(fake.root, border=0)[0].target).abs().max()
    assert error <= (2**-8 if half else 0)


# stopping, going on


def test_a_stopped_run_goes_on_and_an_unfinished_scene_says_so(fakes, tmp_path, monkeypatch):
    fake, kind, _ = fakes("kalantari")
    out, write, count = tmp_path / "out", prepared.write_scene, []

    def stop_at_third(*args, **kwargs):
        count.append(args[0])
        if len(count) == 3:
            (args[0]).mkdir(parents=True)
            for left in (".partial-0-frames.npy", ".frames.npy.0123.npy"):  # of an earlier version, and of this one
                (args[0] / left).write_bytes(b"half a file")
                os.utime(args[0] / left, (0, 0))
            raise KeyboardInterrupt
        write(*args, **kwargs)

    monkeypatch.setattr(prepared, "write_scene", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare("kalantari", fake.root, out, progress=False)
    with pytest.raises(
        FileNotFoundError, match=r"Training: 1 of 3 scenes are not prepared yet, such as 003: run prepare"
    ):
        kind(out)
    assert equal(kind(fake.root)[1], stored_sample(kind, fake, out, 1))
    monkeypatch.setattr(prepared, "write_scene", lambda *a, **k: (count.append(a[0]), write(*a, **k)))
    prepare("kalantari", fake.root, out, progress=False)
    assert [folder.name for folder in count[3:]] == ["003", "Scene0", "Scene1"]
    assert equal(kind(out)[2], kind(fake.root)[2])
    assert not list(out.rglob(".*"))
    prepare("kalantari", fake.root, out, progress=False)
    assert len(count) == 6  # nothing left to do


def test_runs_at_the_same_time_do_not_break_each_other(fake_bracketire, tmp_path):
    fake, out = fake_bracketire(train=12, size=(24, 24)), tmp_path / "out"
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(prepare, "bracketire", fake.root, out, progress=False) for _ in range(4)]
        assert [run.result() for run in runs] == [out] * 4
    assert all(equal(BracketIRE(out)[i], BracketIRE(fake.root)[i]) for i in range(12))
    assert not list(out.rglob(".*"))


def test_a_scene_whose_files_changed_is_made_anew(fakes, tmp_path):
    fake, kind, _ = fakes("kalantari")
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    path = fake.root / "Training/001/exposure.txt"
    for text, times in (("0\n1\n2\n", [1, 2, 4]), ("0\n1\n3\n", [1, 2, 8])):  # the second of the same length
        path.write_text(text)
        prepare("kalantari", fake.root, out, progress=False)
        assert kind(out)[0].exposure_times.tolist() == times


def test_no_file_is_ever_half_written(fakes, tmp_path, monkeypatch):
    fake, *_ = fakes("kalantari")

    def full_disk(path, array, **options):
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["prepared.json"]


def test_one_broken_scene_does_not_lose_the_others(fakes, tmp_path):
    fake, *_ = fakes("kalantari")
    (fake.root / "Training/001/HDRImg.hdr").write_bytes(b"#?RADIANCE\nbroken")
    with pytest.raises(ValueError, match=r"(?s)1 of 5 scenes are broken, the others are prepared.*001.HDRImg.hdr"):
        prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    assert sorted(p.parent.name for p in (tmp_path / "out").rglob("scene.json")) == ["002", "003", "Scene0", "Scene1"]


def test_a_split_may_come_later(fakes, tmp_path):
    fake, kind, _ = fakes("kalantari")
    (fake.root / "Test").rename(tmp_path / "Test")
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="was prepared without the split 'test'"):
        kind(out, "test")
    (fake.root / "Training").rename(tmp_path / "Training")
    (tmp_path / "Test").rename(fake.root / "Test")
    prepare("kalantari", fake.root, out, progress=False)
    assert (len(kind(out)), len(kind(out, "test"))) == (3, 2)


def test_half_and_exact_labels_are_not_taken_for_each_other(fakes, tmp_path):
    fake, *_ = fakes("bracketire")
    out = tmp_path / "out"
    for half, dtype in ((True, np.float16), (False, np.float32), (True, np.float16)):
        prepare("bracketire", fake.root, out, half=half, progress=False)
        assert np.load(out / "Train/carousel_0/0000/label.npy").dtype == dtype


def test_out_may_not_lie_in_the_data_set(fakes):
    fake, *_ = fakes("bracketire")
    before = sorted(fake.root.rglob("*"))
    with pytest.raises(ValueError, match="out must not lie inside the data set"):
        prepare("bracketire", fake.root, fake.root / "Train" / "prepared", progress=False)
    assert sorted(fake.root.rglob("*")) == before


def test_a_file_that_is_cut_short_while_it_is_mapped_is_named(fakes, tmp_path):
    # Reading such a mapping would end the process with SIGBUS.
    fake, kind, _ = fakes("bracketire")
    out = prepare("bracketire", fake.root, tmp_path / "out", progress=False)
    for root, name in ((fake.root, "raw_16.npy"), (fake.root, "raw_gt.npy"), (out, "frames.npy"), (out, "label.npy")):
        data, path = kind(root), root / "Train/carousel_0/0000" / name
        data[0]
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(500)
        with pytest.raises(ValueError, match=rf"{name}: .*(was cut short|became shorter while in use)"):
            data[0]
        path.write_bytes(content)


def test_open_files_are_bounded(fake_bracketire):
    fake = fake_bracketire(train=20, test=1, size=(24, 24))
    data = BracketIRE(fake.root)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for i in range(20):
        data[i]
    assert len(data._open) == 64 // 6
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert len(pickle.loads(pickle.dumps(data))._open) == 0


def test_nothing_is_written_over(fakes, tmp_path):
    fake, *_ = fakes("kalantari")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine exists and is not a prepared data set"):
        prepare("kalantari", fake.root, tmp_path / "mine", progress=False)
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match="out holds Kalantari17 as prepared, not Tel23"):
        prepare("tel", fake.root, out, progress=False)
    with pytest.raises(ValueError, match="is prepared already"):
        prepare("kalantari", out, tmp_path / "again", progress=False)
    with pytest.raises(ValueError, match="holds Kalantari17 as prepared, not Tel23"):
        Tel23(out)
    with pytest.raises(ValueError, match="dataset must be one of"):
        prepare("imagenet", fake.root, out)
    with pytest.raises(FileNotFoundError, match="root must have a folder Training"):
        prepare("kalantari", tmp_path / "mine", tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small_is_said_before_writing(fakes, tmp_path, monkeypatch):
    fake, *_ = fakes("kalantari")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"001: needs up to .* bytes, 1 are left"):
        prepare("kalantari", fake.root, tmp_path / "out", progress=False)


def test_whoever_watches_a_terminal_sees_a_bar(fakes, tmp_path, monkeypatch, capsys):
    fake, *_ = fakes("kalantari")
    prepare("kalantari", fake.root, tmp_path / "unwatched")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare("kalantari", fake.root, tmp_path / "watched")
    verify("kalantari", fake.root)
    shown = capsys.readouterr().err
    assert "preparing kalantari: 100%" in shown
    assert "5/5" in shown
    assert "kalantari train: 100%" in shown


# broken prepared files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prepared.json", b"{", "prepared.json: broken JSON"),
        ("prepared.json", b"[1]", "prepared.json: must hold a JSON object"),
        ("prepared.json", b'{"format": 99}', "prepared.json: format 99, this version reads 1"),
        ("prepared.json", b'{"format": 1}', "prepared.json: no index of a prepared data set"),
        (
            "prepared.json",
            b'{"format": 1, "dataset": "Kalantari17", "scenes": {"train": ["../../etc"]}}',
            "is no name of a scene",
        ),
        (
            "prepared.json",
            b'{"format": 1, "dataset": "Kalantari17", "scenes": {"test": ["a"]}}',
            "was prepared without the split 'train'",
        ),
        ("Training/001/scene.json", b"", "scene.json: the file is empty"),
        ("Training/001/scene.json", b"{}", "scene.json: no description of a prepared scene"),
        ("Training/001/scene.json", b'{"info": {}}', "scene.json: no description of a prepared scene"),
        ("Training/001/scene.json", b'{"info": {}, "width": 60, "label": "rgbe"}', "001: ev must be finite numbers"),
        ("Training/001/scene.json", b'{"info": {}, "width": 900, "label": "rgbe"}', "frames.npy: must hold strips"),
        ("Training/001/scene.json", b'{"info": {}, "width": 60, "label": "float32"}', "label.npy: must hold floats"),
        ("Training/001/frames.npy", b"", "frames.npy: the file is empty"),
        ("Training/001/label.npy", b"\x93NUMPY", "label.npy: "),
    ],
)
def test_broken_prepared_files_are_named(fakes, tmp_path, name, content, message):
    fake, *_ = fakes("kalantari")
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    (out / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Kalantari17(out)[0]


# verify


@pytest.mark.parametrize("name", NAMES)
def test_verify_finds_only_the_counts_and_sizes_of_a_small_copy(fakes, name, tmp_path):
    fake, *_ = fakes(name)
    found = verify(name, fake.root, progress=False)
    per_scene = 5 if name in ("kalantari", "tel") else 7
    assert found.scenes == {"train": 3, "test": 2}
    assert found.files == 5 * per_scene
    counts = [problem for problem in found.problems if "scenes, published were" in problem]
    sizes = [problem for problem in found.problems if "pixels, has" in problem]
    assert len(counts) == 2
    assert len(sizes) == 5  # of the labels, which the exposures fit
    assert len(found.problems) == len(counts) + len(sizes)
    out = prepare(name, fake.root, tmp_path / "out", progress=False)
    stored = verify(name, out, progress=False)
    assert len(stored.problems) == 2  # the counts
    assert stored.files == 10


def test_verify_lists_every_broken_file_by_its_path(fake_kalantari):
    fake = fake_kalantari(size=(16, 16))
    one, two, three = (fake.root / "Training" / f"00{i}" for i in (1, 2, 3))
    (one / "HDRImg.hdr").write_bytes((one / "HDRImg.hdr").read_bytes()[:-50])
    (one / "262A0898.tif").write_bytes(b"II*\0")
    (two / "exposure.txt").write_text("0 4 2")
    (two / "262A0900.tif").unlink()
    cv2.imwrite(str(three / "262A0899.tif"), np.zeros((16, 16, 3), np.uint8))
    found = [
        p for p in verify("kalantari", fake.root, progress=False).problems if "publ" not in p and "pixels" not in p
    ]
    expected = [
        f"{one / 'HDRImg.hdr'}: ",
        f"{one / '262A0898.tif'}: broken, truncated",
        f"{two}: must have 3 .tif exposures, has 2",
        f"{two / 'exposure.txt'}: exposure values must rise",
        f"{three / '262A0899.tif'}: must be a 16-bit TIFF, got uint8",
    ]
    assert len(found) == len(expected), found
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_verify_checks_raw_values(fake_bracketire):
    fake = fake_bracketire(train=1, test=1)
    folder = fake.root / "Train/carousel_0/0000"
    np.save(folder / "raw_4.npy", np.full((48, 64, 4), 2000, np.uint16))
    np.save(folder / "raw_gt.npy", np.full((48, 64, 4), -1.0))
    np.save(folder / "raw_256.npy", np.zeros((20, 64, 4), np.uint16))
    (folder / "raw_16.npy").unlink()
    text = str(verify("bracketire", fake.root, progress=False))
    assert "raw_256.npy: must have 48x64 pixels, has 20x64" in text
    assert "raw_4.npy: holds values up to 2000, above 1023" in text
    assert "raw_gt.npy: holds negative values, down to -1" in text
    assert "raw_16.npy: no such file" in text
    np.save(folder / "raw_gt.npy", np.full((48, 64, 4), np.inf))
    assert "raw_gt.npy: holds infinite" in str(verify("bracketire", fake.root, progress=False))


@pytest.mark.parametrize("name", ["kalantari", "bracketire", "bracketire-plus"])
def test_verify_finds_nothing_in_what_simulate_wrote(tmp_path, name):
    scale = 4 if name == "bracketire-plus" else 1
    camera = Camera(bits=16) if name == "kalantari" else RawCamera(scale=scale)
    simulate_dataset(name, tmp_path / "set", SyntheticScenes(2, (32, 48), camera=camera), None, progress=False)
    found = verify(name, tmp_path / "set", progress=False)
    assert found.problems == []
    assert found.scenes == {"train": 2, "test": 0}
    for _ in range(2):  # the second time everything is there
        found = verify(name, prepare(name, tmp_path / "set", tmp_path / "copy", progress=False), progress=False)
        assert found.problems == []
        assert found.scenes == {"train": 2, "test": 0}


def test_verify_still_finds_damage_in_simulated_scenes(tmp_path):
    camera, root = Camera(bits=16), tmp_path / "set"
    train, test = (SyntheticScenes(3, (32, 48), split=split, camera=camera) for split in ("train", "val"))
    simulate_dataset("kalantari", root, train, test, progress=False)
    one, two = sorted((root / "Training").iterdir())[:2]
    (one / "HDRImg.hdr").unlink()
    shutil.rmtree(two)
    write_kalantari_scene(two, SyntheticScenes(1, (24, 48), camera=camera)[0])
    (two / "input_1.tif").write_bytes((one / "input_1.tif").read_bytes())
    shutil.rmtree(root / "Test")
    found = verify("kalantari", root, progress=False).problems
    assert found[:2] == [
        f"{one / 'HDRImg.hdr'}: no such file",
        f"{two / 'input_1.tif'}: must have 24x48 pixels, has 32x48",
    ]
    assert "root must have a folder Test" in found[-1]
    assert len(found) == 3  # of the two labels that are left, none is like most

    (one / "HDRImg.hdr").write_bytes((sorted((root / "Training").iterdir())[2] / "HDRImg.hdr").read_bytes())
    found = verify("kalantari", root, progress=False).problems
    assert f"{two / 'HDRImg.hdr'}: must have 32x48 pixels, has 24x48, unlike most labels" in found
    (root / "simulated.json").write_text("{")
    assert f"{root / 'simulated.json'}: broken" in str(verify("kalantari", root, progress=False))


def test_verify_finds_a_flipped_bit_in_a_prepared_file(fakes, tmp_path):
    fake, *_ = fakes("kalantari")
    out = prepare("kalantari", fake.root, tmp_path / "out", progress=False)
    path = out / "Training/002/frames.npy"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    problems = verify("kalantari", out, progress=False).problems
    assert f"{path}: its checksum is not the one it was written with" in problems
    (out / "Training/003/scene.json").unlink()
    scene = out / "Training/001/scene.json"
    scene.write_text(scene.read_text().replace("2.0", "3.0"))
    assert (
        f"{scene}: its checksum is not the one it was written with" in verify("kalantari", out, progress=False).problems
    )
    scene.write_text(scene.read_text().replace('"ev"', '"ew"'))
    assert any("001: ev must be finite numbers" in p for p in verify("kalantari", out, progress=False).problems)
    assert any("003: is not prepared yet" in problem for problem in verify("kalantari", out, progress=False).problems)


def test_verify_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be the folder of a data set"):
        verify("kalantari", tmp_path / "nowhere")
    found = verify("kalantari", tmp_path, progress=False)
    assert len(found.problems) == 2
    assert found.files == 0


def test_the_index_is_readable_text(fakes, tmp_path):
    fake, *_ = fakes("bracketire")
    out = prepare("bracketire", fake.root, tmp_path / "out", progress=False)
    index = json.loads((out / "prepared.json").read_text())
    assert index["scenes"]["train"] == ["carousel_0/0000", "carousel_0/0001", "carousel_1/0000"]
    scene = json.loads((out / "Train/carousel_0/0000/scene.json").read_text())
    assert scene["info"]["white_balance"] == [2.0, 1.0, 1.5]
