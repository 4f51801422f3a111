"""Check that a data set is complete and intact."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skt_components.data import prepared
from skt_components.data.progress import progress_bar
from skt_components.data.registry import find_dataset
from skt_components.data.scene_layout import SceneLayout, StoredScene
from skt_components.data.windows import Array

SIMULATED = "simulated.json"
"""File that describes a data set of ``simulate_dataset``."""


class Verification(NamedTuple):
    """Result of :func:`verify`; its ``str`` is a report."""

    dataset: str
    """Name of the data set."""
    root: Path
    """Its folder."""
    scenes: dict[str, int]
    """Number of scenes in each split."""
    files: int
    """Number of files that were read."""
    problems: list[str]
    """Messages about missing and broken files, each with its path; empty if there is no problem."""

    def __str__(self) -> str:
        scenes = ", ".join(f"{count} {split}" for split, count in self.scenes.items())
        title = f"{self.dataset} in {self.root}: {scenes} scenes, {self.files} files read, "
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}" if self.problems else "no problems"
        return "\n".join([title + count, *(f"  {problem}" for problem in self.problems)])


def verify(dataset: str, root: str | os.PathLike[str], *, progress: bool = True) -> Verification:
    """Read every file of a data set once and list missing and broken files.

    These are compared with the published data set: the number of scenes in each split, the files of each scene, their
    formats, bit depths and sizes in pixels (if the published size is unknown, the size of most labels). Also checked:
    exposures are within their range, labels are finite and not negative, exposure values increase, and the exposures
    become brighter with them. For a prepared data set all checksums are compared. A folder that
    ``simulate_dataset`` wrote (it has ``simulated.json``), or a prepared copy of it, may have any number of scenes. All
    labels of a split must then have the size of most of them.

    Args:
        dataset: a name in ``PUBLISHED``, or a TOML file that describes a layout, see :class:`BracketFolder`.
        root: its folder, as published or as prepared.
        progress: show a bar, in a terminal where tqdm is installed.

    Raises:
        ValueError: the name is unknown, or the description is wrong.
        FileNotFoundError: the folder does not exist.
        ImportError: a package that reads its files is missing.

    Example:
        >>> verify("kalantari", "sig17").problems  # doctest: +SKIP
        []
    """
    layout = find_dataset(dataset).layout
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of a data set, there is none at {root}")
    is_prepared = prepared.is_prepared(root)
    counts, files, problems = dict.fromkeys(layout.split_folders, 0), 0, list[str]()
    simulated = _simulated_originals(layout, root) if is_prepared else _simulated_folders(root, problems)
    for split in layout.split_folders:
        if simulated is not None and layout.split_folders[split] not in simulated:
            continue  # it was not asked for
        try:
            scenes = prepared.list_scenes(root, layout.name, split) if is_prepared else layout.list_scenes(root, split)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        counts[split] = len(scenes)
        folder = layout.split_folder(root, split)
        count = layout.scene_counts.get(split, len(scenes))
        if simulated is None and len(scenes) != count:
            problems.append(f"{folder}: has {len(scenes)} scenes, published were {count}")
        size, sizes = (layout.picture_size if simulated is None else None), dict[Path, tuple[int, int]]()
        for scene in progress_bar(scenes, f"{dataset} {split}", "scene", progress):
            if is_prepared:
                faults, read = prepared.scene_faults(layout, folder / scene)
            else:
                faults, read = _scene_faults(layout, folder / scene, size, sizes)
            problems, files = problems + faults, files + read
        if simulated is not None or layout.picture_size is None:
            problems += _unusual_sizes(sizes)
    return Verification(dataset, root, counts, files, problems)


def _simulated_originals(layout: SceneLayout, root: Path) -> list[str] | None:
    """Return the split folders of a data set prepared from simulated files; None if from a published one."""
    try:
        index = prepared.read_index(root)
    except ValueError:
        return None  # listing its scenes gives the reason
    return [layout.split_folders[split] for split in index.scenes] if index.simulated else None


def _simulated_folders(root: Path, problems: list[str]) -> list[str] | None:
    """Return the split folders that ``simulate_dataset`` wrote; None if it did not. Add a broken note to problems."""
    note = root / SIMULATED
    if not note.is_file():
        return None
    try:
        return list(json.loads(note.read_text(encoding="utf-8"))["first_samples"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(f"{note}: broken ({error})")
        return None


def _scene_faults(
    layout: SceneLayout, folder: Path, size: tuple[int, int] | None, sizes: dict[Path, tuple[int, int]]
) -> tuple[list[str], int]:
    """Return messages about the files of a scene, whose label must have ``size`` if given, and the number of files.

    The label's size is added to ``sizes``.
    """
    exposures, label, info = files = layout.files(folder)
    faults, read = layout.missing_files(folder), 0
    readers: dict[Path, Callable[[Path], Any]] = {label: layout.read_label}
    readers |= dict.fromkeys(exposures, layout.read_frame) | {info: lambda _: layout.read_info(files)}
    contents: dict[Path, Any] = {}
    for path, reader in readers.items():
        if not path.is_file():
            continue
        read += 1
        try:
            content = contents[path] = reader(path)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if path == info:
            found = layout.info_faults(content)
        elif path == label:
            found = _picture_faults(content, size, None)
            sizes[path] = size = content.shape[:2]  # the exposures must fit the label, even if its size is wrong
        else:
            fitting = None if size is None else (size[0] // layout.scale, size[1] // layout.scale)
            found = _picture_faults(content, fitting, layout.white)
        faults += [f"{path}: {fault}" for fault in found]
    shapes = {contents[path].shape for path in exposures if path in contents}
    complete = len(contents) == layout.frames_shape[0] + 2
    if complete and len(shapes) == 1:
        pictures = [np.moveaxis(contents[path], -1, 0) for path in (*exposures, label)]
        names = [path.name for path in exposures]
        faults += layout.order_faults(StoredScene(folder, pictures[:-1], pictures[-1], label, contents[info], names))
    return faults, read


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


def _unusual_sizes(sizes: dict[Path, tuple[int, int]]) -> list[str]:
    """Return a message for each label that differs in size from more than half of all labels."""
    usual, count = Counter(sizes.values()).most_common(1)[0] if sizes else ((0, 0), 0)
    unusual = [path for path, size in sizes.items() if size != usual] if 2 * count > len(sizes) else []
    return [f"{path}: {_wrong_size(usual, sizes[path])}, unlike most labels" for path in unusual]


def _wrong_size(wanted: tuple[int, int], found: tuple[int, ...]) -> str:
    return f"must have {wanted[0]}x{wanted[1]} pixels, has {found[0]}x{found[1]}"
