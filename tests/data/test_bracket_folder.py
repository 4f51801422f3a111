"""Layouts that a TOML file describes, against an independent decoding of files in these layouts."""

from __future__ import annotations

import shutil
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from camera_files import write_jpeg
from PIL import Image
from torch.utils.data import DataLoader

from skt_components.commands import main
from skt_components.data import PUBLISHED, BracketFolder, Kalantari17, find_dataset, prepare, verify, write_image
from skt_components.data.exif import read_exposure_settings
from skt_components.ops.transfer import srgb_decode

from .conftest import random_rgbe, write_kalantari_scene, write_rgbe

LAB = """
name = "lab"
train = "photos"
frames = "{scene}/shot_*.png"
num_frames = 2
label = "{scene}/merged.exr"
exposures = [0.01, 0.04]
exposure_unit = "times"
transfer = "srgb"
"""
SIZE = (24, 32)


def write_tiffs(folder: Path, names: list[str], rng: np.random.Generator, dtype: type = np.uint16) -> np.ndarray:
    """Write exposures of a scene that becomes brighter; return their numbers (N, H, W, 3)."""
    largest = np.iinfo(dtype).max
    base = rng.random((*SIZE, 3)) / len(names)
    pictures = np.stack([(largest * base * (i + 1)).astype(dtype) for i in range(len(names))])
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, picture, photometric="rgb")
    return pictures


@pytest.fixture
def lab(tmp_path) -> Path:
    """A laboratory's own data set: two PNG exposures and an EXR label for each of two scenes; lab.toml beside it."""
    (tmp_path / "lab.toml").write_text(LAB)
    rng = np.random.default_rng(0)
    for scene in ("a", "b"):
        folder = tmp_path / "root" / "photos" / scene
        folder.mkdir(parents=True)
        dark = rng.integers(0, 128, (*SIZE, 3), dtype=np.uint8)
        for number, picture in enumerate((dark, 2 * dark)):
            assert cv2.imwrite(str(folder / f"shot_{number}.png"), picture[..., ::-1])
        write_image(folder / "merged.exr", torch.from_numpy(dark.transpose(2, 0, 1).astype(np.float32)) / 255)
    return tmp_path / "root"


def describe(tmp_path: Path, **changes: str | None) -> Path:
    """Write the laboratory's description with changed lines; None leaves a line out."""
    lines = {line.split(" =")[0]: line for line in LAB.strip().splitlines()}
    lines |= {key: f"{key} = {value}" for key, value in changes.items() if value is not None}
    path = tmp_path / "changed.toml"
    path.write_text("\n".join(line for key, line in lines.items() if changes.get(key, "") is not None))
    return path


# published layouts


def test_challenge123_has_its_frames_in_three_folders_and_label_and_exposures_in_the_middle_one(tmp_path):
    rng = np.random.default_rng(1)
    for split, scenes in (("Training", ("001", "002")), ("Test", ("007",))):
        for scene in scenes:
            folder = tmp_path / split
            numbers = write_tiffs(folder, [f"{scene}_{i}/ldr_img_{i}.tif" for i in (1, 2, 3)], rng)
            for i in (1, 3):  # the other frames and labels of the published folders, which are not of this bracket
                write_tiffs(folder, [f"{scene}_{i}/ldr_img_2.tif"], rng)
                write_rgbe(folder / f"{scene}_{i}/hdr_img.hdr", random_rgbe(rng, *SIZE))
            label = write_rgbe(folder / f"{scene}_2/hdr_img.hdr", random_rgbe(rng, *SIZE))
            (folder / f"{scene}_2/exposure.txt").write_text("-2\n0\n2\n")
    assert BracketFolder(tmp_path, "challenge123").scenes == ["001", "002"]
    sample = BracketFolder(tmp_path, "challenge123", "test")[0]
    ldr = numbers.transpose(0, 3, 1, 2) / 65536
    expected = np.concatenate([ldr**2.2 / np.array([1, 4, 16]).reshape(3, 1, 1, 1), ldr], axis=1)
    np.testing.assert_allclose(sample.bracket.numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(sample.target.numpy(), label.transpose(2, 0, 1))
    assert (sample.name, sample.exposure_times.tolist()) == ("007", [1, 4, 16])
    found = verify("challenge123", tmp_path)
    assert found.scenes == {"train": 2, "test": 1}
    assert [problem.split(": ")[1] for problem in found.problems] == [
        "has 2 scenes, published were 96",
        "has 1 scenes, published were 27",
    ]


def test_hu_is_kalantaris_layout_with_other_names(tmp_path):
    names = tuple(f"input_{i}_aligned.tif" for i in (1, 2, 3))
    folder = tmp_path / "Training" / "001"
    scene = write_kalantari_scene(folder, np.random.default_rng(2), SIZE, names)
    other = shutil.copytree(tmp_path, tmp_path / "kalantari")
    (folder / "HDRImg.hdr").rename(folder / "ref_hdr_aligned_linear.hdr")
    (folder / "exposure.txt").rename(folder / "input_exp.txt")
    sample, twin = PUBLISHED["hu"](tmp_path)[0], Kalantari17(other, ldr_scale=65535)[0]
    torch.testing.assert_close(sample.bracket, twin.bracket)
    assert torch.equal(sample.target, twin.target)
    np.testing.assert_array_equal(sample.target.numpy(), scene.label.transpose(2, 0, 1))


def test_kalantaris_archive_is_read_as_downloaded(fake_kalantari, tmp_path):
    fake = fake_kalantari(train=1)
    before = Kalantari17(fake.root, "test")[0]
    (fake.root / "Test" / "PAPER").mkdir()
    (fake.root / "Test" / "EXTRA").mkdir()
    (fake.root / "Test" / "Scene0").rename(fake.root / "Test" / "PAPER" / "Scene0")
    (fake.root / "Test" / "Scene1").rename(fake.root / "Test" / "EXTRA" / "Scene1")
    data = Kalantari17(fake.root, "test")
    assert data.scenes == ["EXTRA/Scene1", "PAPER/Scene0"]
    assert data[1].name == "PAPER-Scene0"
    assert torch.equal(data[1].bracket, before.bracket)
    copy = Kalantari17(prepare("kalantari", fake.root, tmp_path / "out", progress=False), "test")
    assert copy.scenes == data.scenes
    assert torch.equal(copy[1].target, before.target)


# a layout of one's own


def test_a_dozen_lines_describe_a_layout_of_ones_own(lab, tmp_path):
    data = BracketFolder(lab, tmp_path / "lab.toml")
    assert data.scenes == ["a", "b"]
    sample = data[1]
    for number, time in enumerate((1, 4)):
        numbers = torch.from_numpy(cv2.imread(str(lab / f"photos/b/shot_{number}.png"))[..., ::-1].copy())
        light = srgb_decode(numbers.movedim(-1, 0).double() / 255)
        expected = torch.cat([light / time, light ** (1 / 2.2)]).float()
        torch.testing.assert_close(sample.bracket[number], expected, rtol=1e-6, atol=1e-8)
    assert sample.exposure_times.tolist() == [1, 4]
    halved = BracketFolder(lab, describe(tmp_path, label_white="0.5"))[1]
    torch.testing.assert_close(halved.target, 2 * sample.target)
    white = BracketFolder(lab, describe(tmp_path, white="64"))[1].bracket
    assert white[1, 3:].max() == 1  # numbers above white are white
    torch.testing.assert_close(white[0, 3:] ** 2.2, white[0, :3])


@pytest.mark.parametrize("transfer", ["gamma2.2", "linear"])
def test_exposures_of_any_transfer_function_become_linear_light_and_gamma_2_2(lab, tmp_path, transfer):
    bracket = BracketFolder(lab, describe(tmp_path, transfer=f'"{transfer}"'))[0].bracket
    numbers = cv2.imread(str(lab / "photos/a/shot_0.png"))[..., ::-1].transpose(2, 0, 1) / 255
    stored, derived = (slice(3, 6), slice(0, 3)) if transfer == "gamma2.2" else (slice(0, 3), slice(3, 6))
    np.testing.assert_allclose(bracket[0, stored].numpy(), numbers, rtol=1e-6)
    power = 2.2 if transfer == "gamma2.2" else 1 / 2.2
    np.testing.assert_allclose(bracket[0, derived].numpy(), numbers**power, rtol=1e-5, atol=1e-8)


def test_prepared_and_original_samples_are_equal_and_commands_take_the_description(lab, tmp_path, capsys):
    description, out = str(tmp_path / "lab.toml"), str(tmp_path / "out")
    assert main(["data", "verify", description, str(lab)]) == 0
    assert "2 train scenes, 8 files read, no problems" in capsys.readouterr().out
    assert main(["data", "prepare", description, str(lab), out]) == 0
    assert main(["data", "verify", description, out]) == 0
    options = {"crop": 16, "augment": "dihedral", "samples_per_epoch": 6}
    original, copy = (find_dataset(description)(root, **options) for root in (lab, out))
    for a, b in zip(DataLoader(original, num_workers=1), DataLoader(copy), strict=True):
        assert torch.equal(a.bracket, b.bracket)
        assert torch.equal(a.target, b.target)
    assert np.load(tmp_path / "out/photos/a/frames.npy").dtype == np.uint8
    assert main(["data", "preview", description, out, str(tmp_path / "sheet.png")]) == 0


def test_missing_and_broken_files_of_every_scene_are_listed(lab, tmp_path):
    (lab / "photos/a/shot_1.png").unlink()
    (lab / "photos/b/merged.exr").write_bytes(b"nothing")
    (lab / "photos/b/shot_1.png").write_bytes(b"nothing")
    problems = verify(str(tmp_path / "lab.toml"), lab, progress=False).problems
    assert len(problems) == 3
    assert "photos/a: must have 2 exposures like {scene}/shot_*.png, has 1" in problems[0]
    assert all(name in "".join(problems[1:]) for name in ("b/merged.exr", "b/shot_1.png"))
    with pytest.raises(FileNotFoundError, match=r"photos/a: must have 2 exposures"):
        BracketFolder(lab, tmp_path / "lab.toml")


def test_swapped_exposures_and_mixed_bit_depths_are_noticed(lab, tmp_path):
    frames = [lab / f"photos/a/shot_{i}.png" for i in (0, 1)]
    assert cv2.imwrite(str(lab / "photos/b/shot_1.png"), np.zeros((*SIZE, 3), np.uint16))
    with pytest.raises(ValueError, match=r"b: the exposures must have one bit depth, got uint16, uint8"):
        _ = BracketFolder(lab, tmp_path / "lab.toml")[1]
    frames[0].rename(lab / "photos/a/shot_2.png")
    with pytest.warns(UserWarning, match=r"shot_2.png is darker .*sorted by name as text"):
        _ = BracketFolder(lab, tmp_path / "lab.toml")[0]


# exposures from EXIF data

AS_SHOT = {"1": Fraction(1, 60), "2": Fraction(1, 250), "3": Fraction(1, 15)}  # a camera begins with the middle one
EXIF = {"frames": '"{scene}/shot_*.jpg"', "num_frames": "3", "exposures": '"exif"', "exposure_unit": None}


@pytest.fixture
def shot(tmp_path) -> Path:
    """Two scenes as a camera brackets them, in JPEG files with EXIF data, one of them with a higher ISO number."""
    pytest.importorskip("exifread")
    light = 0.2 + 0.05 * torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    for scene in ("a", "b"):
        folder = tmp_path / "root" / "photos" / scene
        folder.mkdir(parents=True)
        for name, time in AS_SHOT.items():
            iso = 200 if name == "3" else 100
            write_jpeg(folder / f"shot_{name}.jpg", light * 60 * float(time) * iso / 400, time, iso=iso, f=(56, 10))
        write_image(folder / "merged.exr", light)
    return tmp_path / "root"


def test_exposures_are_sorted_by_their_exif_data(shot, tmp_path):
    data = BracketFolder(shot, describe(tmp_path, **EXIF))
    sample = data[1]
    torch.testing.assert_close(sample.exposure_times, torch.tensor([1.0, 250 / 60, 2 * 250 / 15]))
    listed = '["{scene}/shot_2.jpg", "{scene}/shot_1.jpg", "{scene}/shot_3.jpg"]'
    times = {"frames": listed, "num_frames": None, "exposures": '["1/250", "1/60", "2/15"]'}
    assert torch.equal(sample.bracket, BracketFolder(shot, describe(tmp_path, **times))[1].bracket)


def test_commands_take_exposures_from_exif_data(shot, tmp_path, capsys):
    description, out = str(describe(tmp_path, **EXIF)), str(tmp_path / "out")
    assert main(["data", "verify", description, str(shot)]) == 0
    assert "2 train scenes, 10 files read, no problems" in capsys.readouterr().out
    assert main(["data", "prepare", description, str(shot), out]) == 0
    original, copy = (find_dataset(description)(root)[0] for root in (shot, out))
    assert torch.equal(original.bracket, copy.bracket)
    assert torch.equal(original.exposure_times, copy.exposure_times)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_other_formats_have_exif_data_too(shot, tmp_path, suffix):
    exif = {**EXIF, "frames": f'"{{scene}}/shot_*.{suffix}"'}
    for path in shot.rglob("*.jpg"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(f".{suffix}"), exif=picture.getexif())
    sample = BracketFolder(shot, describe(tmp_path, **exif))[0]
    torch.testing.assert_close(sample.exposure_times, torch.tensor([1.0, 250 / 60, 2 * 250 / 15]))


def test_pictures_without_or_with_equal_exif_exposures_are_named(shot, tmp_path):
    picture = torch.rand(3, *SIZE)
    write_jpeg(shot / "photos/a/shot_2.jpg", picture)
    write_jpeg(shot / "photos/b/shot_2.jpg", picture, Fraction(1, 60), iso=100, f=(56, 10))
    description = describe(tmp_path, **EXIF)
    problems = verify(str(description), shot, progress=False).problems
    assert [problem.partition("photos/")[2] for problem in problems] == [
        "a/shot_2.jpg: has no exposure time in its EXIF data",
        "b/shot_2.jpg: has the same exposure as shot_1.jpg in its EXIF data, 0.000531463",
    ]
    with pytest.raises(ValueError, match=r"a/shot_2\.jpg: has no exposure time"):
        _ = BracketFolder(shot, description)[0]
    whole = write_jpeg(shot / "photos/a/shot_2.jpg", picture, Fraction(1, 250)).read_bytes()
    (shot / "photos/a/shot_2.jpg").write_bytes(whole[:20])
    with pytest.raises(ValueError, match=r"a/shot_2\.jpg: the EXIF data are damaged"):
        read_exposure_settings(shot / "photos/a/shot_2.jpg")
    (shot / "photos/a/shot_2.jpg").unlink()
    (problem, _) = verify(str(description), shot, progress=False).problems
    assert "photos/a: must have 3 exposures like {scene}/shot_*.jpg, has 2" in problem


def test_exif_data_that_do_not_fit_the_pictures_are_noticed(shot, tmp_path):
    picture = torch.full((3, *SIZE), 0.01)
    write_jpeg(shot / "photos/a/shot_3.jpg", picture, Fraction(1, 15), iso=200, f=(56, 10))
    with pytest.warns(UserWarning, match=r"shot_3.jpg is darker than exposure shot_1.jpg.*are the EXIF data"):
        _ = BracketFolder(shot, describe(tmp_path, **EXIF))[0]


def test_a_missing_exifread_names_its_extra(shot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "exifread", None)
    with pytest.raises(ImportError, match=r"skt-components\[photo\]"):
        _ = BracketFolder(shot, describe(tmp_path, **EXIF))[0]


# a description that is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name must be a text, got None"),
        ({"train": None}, "train or test must name the folder of a split"),
        ({"num_frames": None}, "num_frames must be a whole number, got None"),
        ({"num_frames": '"two"'}, "num_frames must be a whole number, got 'two'"),
        ({"exposures": "[1, 4, 16]"}, "exposures must be 2 numbers in times, one for each frame"),
        ({"exposures": "[0, 4]"}, "exposures must be 2 numbers in times"),
        ({"exposures": '"exif"'}, "exposure_unit must not be given with exposures = 'exif'"),
        ({"exposures": '"exposures.txt"'}, r'exposures must be a path .*with {scene} in it, a list or "exif"'),
        ({"exposure_unit": '"seconds"'}, "exposure_unit must be one of"),
        ({"transfer": '"rec709"'}, "transfer must be one of"),
        ({"frames": '"shot_*.png"'}, "must be a path below the folder of a split with {scene} in it, got 'shot_"),
        ({"frames": '"{scene}/../x*.png"'}, "must be a path below the folder of a split"),
        ({"frames": '"{scene}/*.gif"'}, "frames must end with one of .tif, .tiff, .png, .jpg, .jpeg, got .gif"),
        ({"frames": '"{scene}/shot.png"'}, r"frames must be a list, or one pattern with \*"),
        ({"label": '"{scene}/*.exr"'}, r"\* may stand in the file name of one pattern for frames"),
        ({"label": '"{scene}/label.png"'}, "label must end with one of .hdr, .exr"),
        ({"label_white": "0"}, "label_white must be above 0, got 0"),
        ({"gamma": "2.2"}, "gamma is not a key of a description"),
    ],
)
def test_a_wrong_description_is_an_error_that_names_file_and_key(lab, tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"changed.toml: .*{message}"):
        BracketFolder(lab, describe(tmp_path, **changes))


def test_unknown_names_and_missing_folders_are_errors(lab, tmp_path):
    with pytest.raises(ValueError, match=r"dataset must be one of kalantari, .*or a .toml file .*got 'kodak'"):
        find_dataset("kodak")
    with pytest.raises(FileNotFoundError, match=r"no description of a data set at .*nowhere.toml"):
        BracketFolder(lab, tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match=r"split must be .*train.*, got 'test'"):
        BracketFolder(lab, tmp_path / "lab.toml", "test")
    with pytest.raises(FileNotFoundError, match="root must have a folder Training"):
        BracketFolder(lab, "hu")
