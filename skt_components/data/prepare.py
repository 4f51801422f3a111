"""Data sets made ready for training, so that a random crop reads its own bytes and decodes none; and checked."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skt_components.data import prepared_scene as prepared
from skt_components.data.layout import SPLITS, SceneLayout
from skt_components.data.progress import progress_bar
from skt_components.data.registry import PUBLISHED
from skt_components.data.stored_scene import Array, Stored
from skt_components.ops.checks import check_choice

_SIMULATED = "simulated.json"


class Verification(NamedTuple):
    """What :func:`verify` found."""

    dataset: str
    """Name of the data set."""
    root: Path
    """Its folder."""
    scenes: dict[str, int]
    """How many scenes each split has."""
    files: int
    """How many files were read."""
    problems: list[str]
    """What is missing or broken, each with its path; empty if all is well."""

    def __str__(self) -> str:
        scenes = ", ".join(f"{count} {split}" for split, count in self.scenes.items())
        title = f"{self.dataset} in {self.root}: {scenes} scenes, {self.files} files read, "
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}" if self.problems else "no problems"
        return "\n".join([title + count, *(f"  {problem}" for problem in self.problems)])


def verify(dataset: str, root: str | os.PathLike[str], *, progress: bool = True) -> Verification:
    """Read every file of a data set once and list what is missing or broken.

    Checked are, against what was published: the number of scenes in each split, that each has its files, their
    formats, bit depths and sizes in pixels, that exposures hold values of their range, labels finite values from 0 on,
    and that exposure values rise. Of a prepared data set, all checksums. Where ``simulated.json`` says that
    ``simulate_dataset`` wrote the folder, or what it was prepared from, scenes may be as many as they are, and as large
    as most of their split.

    Args:
        dataset: "kalantari", "tel", "bracketire" or "bracketire-plus".
        root: its folder, as published or as prepared.
        progress: show a bar, in a terminal where tqdm is installed.

    Raises:
        ValueError: there is no such data set.
        FileNotFoundError: there is no such folder.
        ImportError: a package that reads its files is missing.

    Example:
        >>> verify("kalantari", "sig17").problems  # doctest: +SKIP
        []
    """
    check_choice("dataset", dataset, PUBLISHED)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of a data set, there is none at {root}")
    layout, stored = PUBLISHED[dataset].layout, prepared.is_prepared(root)
    counts, files, problems = dict.fromkeys(SPLITS, 0), 0, list[str]()
    simulated = _prepared_folders(layout, root) if stored else _simulated_folders(root, problems)
    for split in SPLITS:
        if simulated is not None and layout.split_folders[split] not in simulated:
            continue  # it was not asked for
        try:
            scenes = prepared.list_scenes(root, layout.name, split) if stored else layout.list_scenes(root, split)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        counts[split] = len(scenes)
        folder = root / layout.split_folders[split]
        if simulated is None and len(scenes) != layout.scene_counts[split]:
            problems.append(f"{folder}: has {len(scenes)} scenes, published were {layout.scene_counts[split]}")
        size, sizes = (layout.picture_size if simulated is None else None), dict[Path, tuple[int, int]]()
        for scene in progress_bar(scenes, f"{dataset} {split}", "scene", progress):
            if stored:
                found, read = prepared.faults(layout, folder / scene)
            else:
                found, read = _scene_faults(layout, folder / scene, size, sizes)
            problems, files = problems + found, files + read
        if simulated is not None:
            problems += _odd_sizes(sizes)
    return Verification(dataset, root, counts, files, problems)


def prepare(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    half: bool = False,
    progress: bool = True,
) -> Path:
    """Store a data set uncompressed in upright strips of 64 pixels: a random crop then reads little but its own bytes.

    For each scene ``{out}/{split}/{scene}/`` gets ``frames.npy`` (uint16, strips × H × planes × 64), ``label.npy`` and
    ``scene.json`` (checksums, exposure values or colours, what it was made from). Labels take the smallest form that
    holds them exactly: the RGBE bytes of ``.hdr`` files, float16, or float32. The data sets read the folder like the
    original and give the same samples, bit by bit. A run that was stopped goes on where it was; scenes whose files
    changed are made anew; every file appears whole or not at all.

    Args:
        dataset: "kalantari", "tel", "bracketire" or "bracketire-plus".
        root: its folder as published; it is only read.
        out: folder to write to, new or of an earlier run.
        half: store labels as float16 even if digits are lost (11 bits remain).
        progress: show a bar, in a terminal where tqdm is installed.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: the data set or a file of it is missing.
        FileExistsError: ``out`` holds something else.
        ValueError: there is no such data set, ``out`` lies inside ``root``, or scenes are broken; all others are stored
            first.
        OSError: ``out`` has too little space.

    Example:
        >>> prepare("kalantari", "sig17", "sig17-prepared")  # doctest: +SKIP
    """
    check_choice("dataset", dataset, PUBLISHED)
    root, out = Path(root), Path(out)
    if prepared.is_prepared(root):
        raise ValueError(f"root must be the data set as published, {root} is prepared already")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"out must not lie inside the data set, got {out} in {root}")
    layout = PUBLISHED[dataset].layout
    splits = [split for split in SPLITS if (root / layout.split_folders[split]).is_dir()] or [SPLITS[0]]
    scenes = {split: layout.list_scenes(root, split) for split in splits}
    for split, names in scenes.items():
        layout.check_scenes(root, split, names)
    _claim(out, prepared.Index(layout.name, scenes, (root / _SIMULATED).is_file()))
    jobs = [Path(layout.split_folders[split]) / name for split, names in scenes.items() for name in names]
    broken = []
    for job in progress_bar(jobs, f"preparing {dataset}", "scene", progress):
        source, target = root / job, out / job
        try:
            sources = {path.relative_to(source).as_posix(): _stamp(path) for path in layout.files(source)}
            if prepared.is_finished(layout, target, sources, half=half):
                continue
            stored = layout.read_scene(source)
            layout.check(stored)
        except (ValueError, OSError) as error:
            broken.append(str(error))
            continue
        _check_space(out, target, stored)
        prepared.write_scene(target, stored, sources, half=half)
    if broken:
        listed = "\n  ".join(broken[:20])
        raise ValueError(f"{len(broken)} of {len(jobs)} scenes are broken, the others are prepared:\n  {listed}")
    return out


def _stamp(path: Path) -> list[int]:
    """Return size and time of change, by which a file that was replaced is known."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _check_space(out: Path, target: Path, stored: Stored) -> None:
    sizes = [2 * math.prod(shape) for shape in stored.frame_shapes]
    needed = sum(sizes) + 4 * math.prod(stored.label.shape)
    if (free := shutil.disk_usage(out).free) < needed:
        raise OSError(f"{target}: needs up to {needed} bytes, {free} are left; everything before it is stored")


def _claim(out: Path, index: prepared.Index) -> None:
    if prepared.holds_something_else(out):
        raise FileExistsError(f"out {out} exists and is not a prepared data set: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if prepared.is_prepared(out):
        found, earlier, simulated = prepared.read_index(out)
        if found != index.dataset:
            raise FileExistsError(f"out {out} holds {found} as prepared, not {index.dataset}: choose another folder")
        # a data set may come in parts
        index = index._replace(scenes={**earlier, **index.scenes}, simulated=simulated or index.simulated)
    prepared.write_index(out, index)


def _prepared_folders(layout: SceneLayout, root: Path) -> list[str] | None:
    """Return which folders of a prepared data set were simulated; None where it is a published one, or not readable."""
    try:
        index = prepared.read_index(root)
    except ValueError:
        return None  # listing its scenes says why
    return [layout.split_folders[split] for split in index.scenes] if index.simulated else None


def _simulated_folders(root: Path, problems: list[str]) -> list[str] | None:
    """Return which folders ``simulate_dataset`` wrote here by what it noted; None where it noted nothing."""
    note = root / _SIMULATED
    if not note.is_file():
        return None
    try:
        return list(json.loads(note.read_text(encoding="utf-8"))["first_samples"])
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"{note}: broken ({error})")
        return None


def _scene_faults(
    layout: SceneLayout, folder: Path, size: tuple[int, int] | None, sizes: dict[Path, tuple[int, int]]
) -> tuple[list[str], int]:
    """Return what is wrong with the files of a scene, and how many were read; ``sizes`` gets that of its label.

    Labels must have ``size``, if there is one.
    """
    *exposures, label, info = layout.files(folder)
    faults, read = layout.missing_files(folder), 0
    for path in (label, *exposures, info):
        if not path.is_file():
            continue
        read += 1
        try:
            content = layout.read_file(path)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if path == info:
            found = layout.info_faults(content)
        elif path == label:
            found = _picture_faults(content, size, None)
            sizes[path] = size = content.shape[:2]  # the exposures must fit it, whatever was published
        else:
            fitting = None if size is None else (size[0] // layout.scale, size[1] // layout.scale)
            found = _picture_faults(content, fitting, layout.white)
        faults += [f"{path}: {fault}" for fault in found]
    return faults, read


def _odd_sizes(sizes: dict[Path, tuple[int, int]]) -> list[str]:
    """Return which labels have another size than more than half of all; nothing where there is no such size."""
    usual, count = Counter(sizes.values()).most_common(1)[0] if sizes else ((0, 0), 0)
    odd = [path for path, size in sizes.items() if size != usual] if 2 * count > len(sizes) else []
    return [f"{path}: {_wrong_size(usual, sizes[path])}, unlike most labels" for path in odd]


def _wrong_size(wanted: tuple[int, int], found: tuple[int, ...]) -> str:
    return f"must have {wanted[0]}x{wanted[1]} pixels, has {found[0]}x{found[1]}"


def _picture_faults(picture: Array, size: tuple[int, int] | None, white: int | None) -> Iterator[str]:
    if size is not None and picture.shape[:2] != size:
        yield _wrong_size(size, picture.shape)
    low, high = picture.min(), picture.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        yield "holds infinite or NaN values"
    elif low < 0:
        yield f"holds negative values, down to {low:g}"
    if white is not None and high > white:
        yield f"holds values up to {high}, above {white}"
