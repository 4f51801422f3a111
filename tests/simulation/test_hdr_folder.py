from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from skt_components.data import HDRSample, write_image
from skt_components.ops.transfer import linearize_ldr
from skt_components.simulation import Camera, HDRFolder, Motion
from skt_components.simulation import hdr_folder as module

pytest.importorskip("OpenEXR")
pytest.importorskip("cv2")


def _numbered(height: int, width: int, number: int) -> torch.Tensor:
    """Return a picture whose pixels say where they are: row in red, column in green, number in blue."""
    row = torch.arange(height)[:, None].expand(height, width) / height
    column = torch.arange(width)[None].expand(height, width) / width
    return torch.stack([0.2 + row, 0.2 + column, torch.full((height, width), 0.1 * (1 + number))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four flat pictures and two panoramas in nested folders, with distractions."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for i, name in enumerate(("a.exr", "sub/b.exr", "sub/deep/c.EXR", "d.hdr")):
        write_image(root / name, _numbered(60, 75, i))
    for i, name in enumerate(("p.exr", "sub/q.hdr")):
        write_image(root / name, _numbered(64, 128, 4 + i))
    (root / "notes.txt").write_text("no picture")
    (root / "._a.exr").write_bytes(b"junk")
    (root / ".hidden" / "x.exr").write_bytes(b"junk")
    write_image(root / "ldr.tif", torch.rand(3, 60, 75))
    return root


def _equal(a: HDRSample, b: HDRSample) -> bool:
    return torch.equal(a.bracket, b.bracket) and torch.equal(a.target, b.target) and a.name == b.name


def _first(samples: list[HDRSample]) -> HDRSample:
    return samples[0]


def _epoch(loader: DataLoader[HDRSample]) -> list[HDRSample]:
    return [HDRSample(*(v.clone() if isinstance(v, torch.Tensor) else v for v in s)) for s in loader]


# folders as people have them


def test_links_are_followed_and_nothing_counts_twice(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (root / "z", elsewhere, root / "@eaDir", root / "__MACOSX"):
        folder.mkdir(parents=True)
        write_image(folder / "a.exr", _numbered(20, 24, 0))
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "z")
    (root / "z" / "circle").symlink_to(root)
    (root / "b.exr").symlink_to(elsewhere / "a.exr")
    names = [path.relative_to(root).as_posix() for path in module.list_pictures(root, [".exr"])]
    assert names == ["b.exr", "z/a.exr"]  # b.exr and linked/a.exr are one file, as are again/a.exr and z/a.exr
    (root / "gone.exr").symlink_to(tmp_path / "nowhere.exr")
    with pytest.raises(FileNotFoundError, match=r"gone\.exr: the link leads to no file"):
        module.list_pictures(root, [".exr"])


def test_a_folder_is_verified_before_it_is_used(tmp_path: Path) -> None:
    for number, name in enumerate(("fine.exr", "cut.hdr", "small.exr", "black.exr")):
        write_image(tmp_path / name, _numbered(16 if number == 2 else 40, 48, number) * (number < 3))
    (tmp_path / "cut.hdr").write_bytes((tmp_path / "cut.hdr").read_bytes()[:300])
    (tmp_path / "twin.exr").write_bytes((tmp_path / "fine.exr").read_bytes())
    np.save(tmp_path / "ignored.npy", np.zeros(3))
    found = module.verify_hdr_folder(tmp_path, crop=32, progress=False)
    assert (found.dataset, found.scenes, found.files) == ("hdr-folder", {"all": 5}, 5)
    expected = [
        "black.exr: the picture is black",
        "cut.hdr: ",
        "small.exr: crop must fit",
        "twin.exr: is the same file",
    ]
    assert len(found.problems) == 4
    assert all(text in problem for text, problem in zip(expected, found.problems, strict=True))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 3e37])
@pytest.mark.parametrize("size", [(40, 56), (64, 128)])
def test_the_edges_of_float32_give_usual_samples(tmp_path: Path, scale: float, size: tuple[int, int]) -> None:
    np.save(tmp_path / "a.npy", (_numbered(*size, 0).double() * scale).float().permute(1, 2, 0).numpy())
    data = HDRFolder(tmp_path, crop=16, split="all", suffixes=[".npy"], vary_colors=True, samples_per_epoch=4)
    for index in range(4):
        sample = data[index]
        assert sample.target.isfinite().all()
        assert sample.bracket.isfinite().all()
        assert sample.target.max() > 0.005


# matches_reference


def test_finds_pictures_below_the_folder_sorted_by_name(folder: Path) -> None:
    dataset = HDRFolder(folder, crop=16, split="all")
    names = [path.relative_to(folder).as_posix() for path in dataset.files]
    assert names == ["a.exr", "d.hdr", "p.exr", "sub/b.exr", "sub/deep/c.EXR", "sub/q.hdr"]
    assert len(dataset) == 6
    assert [dataset[i].name for i in range(6)] == names
    assert len(HDRFolder(folder, crop=16, split="all", suffixes=[".tif"])) == 1


def test_flat_target_is_a_crop_of_the_picture(folder: Path) -> None:
    dataset = HDRFolder(
        folder, crop=(16, 24), split="all", augment=False, motion=Motion.still(), panorama=False, samples_per_epoch=60
    )
    corners = set()
    for i in range(0, 60, 6):
        target = dataset[i].target / (dataset[i].target[2, 0, 0] / 0.1)
        assert target.shape == (3, 16, 24)
        row, column = ((target[:2, 0, 0] - 0.2) * torch.tensor([60, 75])).round().long().tolist()
        expected = _numbered(60, 75, 0)[:, row : row + 16, column : column + 24]
        torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)
        corners.add((row, column))
    assert len(corners) > 5


def test_augmentation_is_one_of_the_eight_symmetries(folder: Path) -> None:
    dataset = HDRFolder(
        folder, crop=(16, 24), split="all", motion=Motion.still(), panorama=False, samples_per_epoch=600
    )
    seen = set()
    for i in range(0, 600, 6):
        target = dataset[i].target
        assert target.shape == (3, 16, 24)
        signs = []
        for channel in (0, 1):
            down = (target[channel, 1:] - target[channel, :-1]).mean().item()
            right = (target[channel, :, 1:] - target[channel, :, :-1]).mean().item()
            signs.append((np.sign(round(down, 6)), np.sign(round(right, 6))))
        seen.add(tuple(signs))
    assert len(seen) == 8


def test_margin_shows_the_picture_beyond_the_crop(folder: Path) -> None:
    camera = Camera((1.0, 1.0, 1.0), read_noise=0, shot_noise=False, adc_bits=None, bits=16, mid_level=(0.2, 0.2))
    motion = Motion(6.0, 0.0, 0.0, 0.0, (0, 0))
    names = ["a.exr", "d.hdr", "sub/b.exr", "sub/deep/c.EXR"]
    dataset = HDRFolder(
        folder, crop=24, split="val", val_names=names, camera=camera, motion=motion, samples_per_epoch=4
    )
    for i in range(4):
        sample = dataset[i]
        moved = sample.bracket[0, :3] - sample.target
        for channel in (0, 1):  # a shift adds the same everywhere to a ramp, unless an edge was mirrored
            assert moved[channel].std().item() < 1e-3
        assert moved.abs().max().item() > 1e-3


def test_panoramas_are_seen_through_perspective_views(folder: Path) -> None:
    dataset = HDRFolder(folder, crop=32, split="val", val_names=["p.exr"], motion=Motion.still(), samples_per_epoch=6)
    for i in range(6):
        target = dataset[i].target / (dataset[i].target[2, 0, 0] / 0.5)
        down = target[0, -1] - target[0, 0]
        assert bool((down > 0).all())  # upright
        right = target[1, 10:22, 1:] - target[1, 10:22, :-1]
        assert (right > 0).double().mean().item() > 0.85  # not mirrored; it falls at the seam
    flat = HDRFolder(
        folder, crop=32, split="val", val_names=["p.exr"], motion=Motion.still(), panorama=False, samples_per_epoch=6
    )
    step = flat[0].target[0, 1:] - flat[0].target[0, :-1]
    torch.testing.assert_close(step, step[:1, :1].expand_as(step), rtol=0.02, atol=0)


def test_large_panoramas_are_reduced_once(tmp_path: Path) -> None:
    write_image(tmp_path / "p.exr", torch.rand(3, 512, 1024) + 0.5)
    dataset = HDRFolder(tmp_path, crop=8, split="all", fov=(60.0, 90.0))
    dataset[0]
    (kept,) = dataset._cache._pictures.values()
    assert kept.shape[-1] < 512
    assert kept.shape[-1] == 2 * kept.shape[-2]


# invariants: splits


def test_a_picture_is_never_in_both_splits(folder: Path) -> None:
    for fraction in (0.0, 0.01, 0.34, 0.5, 0.9):
        everything = set(HDRFolder(folder, crop=16, split="all").files)
        train = set(HDRFolder(folder, crop=16, split="train", val_fraction=fraction).files)
        if fraction == 0:
            assert train == everything
            continue
        val = set(HDRFolder(folder, crop=16, split="val", val_fraction=fraction).files)
        assert train | val == everything
        assert not train & val
        assert val
    names = ["sub/b.exr", "a.exr"]
    val_files = HDRFolder(folder, crop=16, split="val", val_names=names).files
    assert [p.name for p in val_files] == ["a.exr", "b.exr"]
    assert not set(val_files) & set(HDRFolder(folder, crop=16, val_names=names).files)


def test_validation_views_are_fixed_and_spread(folder: Path) -> None:
    options = {"crop": 16, "split": "val", "val_names": ["a.exr"], "motion": Motion.still()}
    short, long = HDRFolder(folder, samples_per_epoch=4, **options), HDRFolder(folder, samples_per_epoch=64, **options)
    long.set_epoch(7)
    assert all(_equal(short[i], long[i]) for i in range(4))
    both = HDRFolder(folder, samples_per_epoch=8, **{**options, "val_names": ["a.exr", "d.hdr"]})
    assert all(_equal(short[i], both[2 * i]) for i in range(4))  # another file changes nothing
    cells = set()
    for sample in (long[i] for i in range(64)):
        target = sample.target / (sample.target[2, 0, 0] / 0.1)
        row, column = ((target[:2, 0, 0] - 0.2) * torch.tensor([60, 75])).round().long().tolist()
        cells.add((row * 4 // 45, column * 4 // 60))
    assert len(cells) == 16


# invariants: determinism


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(folder: Path, persistent: bool) -> None:
    def loader(count: int) -> tuple[HDRFolder, DataLoader[HDRSample]]:
        dataset = HDRFolder(folder, crop=24, split="all", samples_per_epoch=10, seed=3)
        return dataset, DataLoader(
            dataset, num_workers=count, collate_fn=_first, persistent_workers=persistent and count > 0
        )

    (alone, one), (shared, many) = loader(0), loader(2)
    previous: list[HDRSample] = []
    for epoch in (0, 1, 5):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        expected, got = _epoch(one), _epoch(many)
        assert len(got) == 10
        assert all(_equal(a, b) for a, b in zip(expected, got, strict=True))
        if previous:
            assert not any(torch.equal(a.target, b.target) for a, b in zip(previous, got, strict=True))
        previous = got


def test_order_of_access_changes_nothing(folder: Path) -> None:
    forwards = HDRFolder(folder, crop=24, split="all", samples_per_epoch=8)
    backwards = HDRFolder(folder, crop=24, split="all", samples_per_epoch=8, cache_bytes=0)
    expected = [forwards[i] for i in range(8)]
    assert all(_equal(expected[i], backwards[i]) for i in reversed(range(8)))
    assert _equal(forwards[-1], expected[7])
    other = HDRFolder(folder, crop=24, split="all", samples_per_epoch=8, seed=1)
    assert not any(torch.equal(expected[i].target, other[i].target) for i in range(8))


def test_every_picture_is_used_when_epochs_are_short(folder: Path) -> None:
    dataset = HDRFolder(folder, crop=24, split="all", samples_per_epoch=4)
    names = set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        names |= {dataset[i].name for i in range(4)}
    assert len(names) == 6


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_work_and_carry_no_pictures(folder: Path, duplicate: object) -> None:
    dataset = HDRFolder(folder, crop=24, split="all", samples_per_epoch=6)
    dataset.set_epoch(2)
    expected = [dataset[i] for i in range(6)]
    twin = duplicate(dataset)  # type: ignore[operator]
    assert twin._cache.bytes == 0
    assert dataset._cache.bytes > 0
    assert all(_equal(twin[i], expected[i]) for i in range(6))
    loader = DataLoader(twin, num_workers=1, collate_fn=_first, persistent_workers=True)
    list(loader)
    twin.set_epoch(3)
    dataset.set_epoch(3)
    assert _equal(next(iter(loader)), dataset[0])


# invariants: memory, values


def test_cache_stays_within_its_budget(folder: Path) -> None:
    picture = 3 * 60 * 75 * 4
    for budget in (0, picture - 1, picture, 3 * picture, 2**29):
        dataset = HDRFolder(folder, crop=24, split="all", samples_per_epoch=24, cache_bytes=budget)
        for i in range(24):
            dataset[i]
            kept = dataset._cache._pictures
            assert dataset._cache.bytes == sum(p.nbytes for p in kept.values()) <= budget
        assert len(kept) == {0: 0, picture - 1: 0, 2**29: 6}.get(budget, len(kept))


def test_cache_saves_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path, **options: calls.append(path) or original(path, **options))
    dataset = HDRFolder(folder, crop=24, split="all", samples_per_epoch=60)
    for i in range(60):
        dataset[i]
    assert len(calls) == 6


def test_nothing_grows_with_the_epochs(folder: Path) -> None:
    dataset = HDRFolder(folder, crop=24, split="all")

    def tensors(epoch: int) -> int:
        dataset.set_epoch(epoch)
        for i in range(len(dataset)):
            dataset[i]
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    first = tensors(0)
    assert max(tensors(epoch) for epoch in range(1, 4)) <= first


def test_samples_keep_the_conventions(folder: Path) -> None:
    camera = Camera((1.0, 8.0))
    dataset = HDRFolder(folder, crop=(24, 40), split="all", camera=camera)
    batch = default_collate([dataset[i] for i in range(6)])
    assert batch.bracket.shape == (6, 2, 6, 24, 40)
    assert batch.bracket.dtype == batch.target.dtype == torch.float32
    assert batch.exposure_times.tolist() == [[1.0, 8.0]] * 6
    assert set(batch.domain) == {"srgb"}
    assert 0 <= batch.target.min() < batch.target.max() <= 1
    ldr = batch.bracket[:, :, 3:]
    torch.testing.assert_close(batch.bracket[:, :, :3], linearize_ldr(ldr, batch.exposure_times))


def test_whole_pictures_without_a_crop(folder: Path) -> None:
    dataset = HDRFolder(folder, split="val", val_names=["a.exr", "p.exr"])
    assert [tuple(dataset[i].target.shape) for i in range(len(dataset))] == [(3, 60, 75), (3, 64, 128)]


def test_dark_crops_are_tried_again_and_then_aimed(tmp_path: Path) -> None:
    flat = torch.zeros(3, 300, 400)
    flat[:, 250:262, 30:42] = 5.0
    flat[1, 255, 35] = 9.0
    sphere = torch.zeros(3, 256, 512)
    sphere[:, 60:70, 100:110] = 5.0
    write_image(tmp_path / "flat.exr", flat)
    write_image(tmp_path / "sphere.exr", sphere)
    for split, fraction in (("all", 0.1), ("val", 1.0)):
        dataset = HDRFolder(
            tmp_path, crop=24, split=split, val_fraction=fraction, samples_per_epoch=20, motion=Motion.still()
        )
        for i in range(20):
            assert dataset[i].target.max().item() > 0.03  # not black


def test_negative_radiance_counts_as_none(tmp_path: Path) -> None:
    picture = _numbered(32, 40, 0)
    picture[:, ::2] = -0.5
    write_image(tmp_path / "a.exr", picture)
    sample = HDRFolder(tmp_path, crop=16, split="all", motion=Motion.still())[0]
    assert sample.target.min().item() == 0
    assert sample.target.max().item() > 0


@pytest.mark.parametrize("crop", [64, 128])
def test_photographs(hdri_dir: Path, crop: int) -> None:
    dataset = HDRFolder(hdri_dir, crop=crop, split="all", samples_per_epoch=18)
    ranges, reference = [], []
    for i in range(18):
        sample = dataset[i]
        assert bool(sample.bracket.isfinite().all())
        saturated = (sample.bracket[:, 3:] >= 1).float().mean((1, 2, 3))
        assert saturated[0].item() < 0.2
        reference.append(saturated[1].item())
        low, high = sample.target.amax(0).flatten().quantile(torch.tensor([0.01, 0.99])).tolist()
        ranges.append(high / max(low, 1e-6))
    assert np.median(ranges) > 10
    assert 0.02 < np.mean(reference) < 0.4


# rejects_bad_input


def test_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root must be a folder of HDR pictures, there is none at .*none"):
        HDRFolder(tmp_path / "none", crop=16)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no pictures with suffix \.exr, \.hdr"):
        HDRFolder(tmp_path, crop=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"crop": 0}, "crop must be whole numbers of at least 8"),
        ({"crop": (16, 16, 3)}, "crop must be a whole number or"),
        ({"crop": 16.5}, "crop must be a whole number or"),
        ({"val_fraction": 1.5}, "val_fraction must be in"),
        ({"val_fraction": 1.0}, 'split "train" has no picture: 6 of 6'),
        ({"val_fraction": 0.0, "split": "val"}, 'split "val" has no picture: 0 of 6'),
        ({"val_names": ["zzz.exr"]}, r"val_names must be pictures below root, there is no .*zzz\.exr"),
        ({"samples_per_epoch": 0}, "samples_per_epoch must be"),
        ({"fov": (90.0, 60.0)}, "fov must be"),
        ({"fov": (60.0, 170.0)}, "fov must be"),
        ({"pitch": -1.0}, "pitch must be"),
        ({"suffixes": [".png"]}, r"suffixes must be among \.hdr"),
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"cache_bytes": -1}, "cache_bytes must be"),
    ],
)
def test_options_are_checked(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HDRFolder(folder, **{"crop": 16, **options})  # type: ignore[arg-type]


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "small.exr", torch.rand(3, 20, 30))
    with pytest.raises(ValueError, match=r"small\.exr: crop must fit the picture of \(20, 30\), got \(24, 24\)"):
        HDRFolder(tmp_path, crop=24, split="all")[0]
    assert HDRFolder(tmp_path, crop=(20, 30), split="all")[0].target.shape == (3, 20, 30)
    write_image(tmp_path / "small.exr", torch.zeros(3, 20, 30), overwrite=True)
    with pytest.raises(ValueError, match=r"small\.exr: the picture is black"):
        HDRFolder(tmp_path, crop=16, split="all")[0]
    (tmp_path / "small.exr").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"small\.exr"):
        HDRFolder(tmp_path, crop=16, split="all")[0]
    with pytest.raises(IndexError, match="index 1 is outside"):
        HDRFolder(tmp_path, crop=16, split="all")[1]


def test_epoch_is_checked(folder: Path) -> None:
    dataset = HDRFolder(folder, crop=16)
    for epoch in (-1, 1.5, True):
        with pytest.raises(ValueError, match="epoch must be a whole number"):
            dataset.set_epoch(epoch)  # type: ignore[arg-type]
