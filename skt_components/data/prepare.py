"""Store a data set so that a random crop reads little more than its own bytes and decodes nothing."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from skt_components.data import prepared
from skt_components.data.progress import progress_bar
from skt_components.data.registry import find_dataset
from skt_components.data.scene_layout import StoredScene
from skt_components.data.verify import SIMULATED
from skt_components.ops.checks import warn_caller


def prepare(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    half: bool = False,
    progress: bool = True,
) -> Path:
    """Store a data set uncompressed in vertical strips of 64 pixels, so that random crops are read fast.

    For each scene ``{out}/{split}/{scene}/`` gets ``frames.npy`` (uint16, strips × H × planes × 64), ``label.npy`` and
    ``scene.json`` (checksums, exposure values or colors, source files). Labels are stored in the smallest exact format:
    the RGBE bytes of ``.hdr`` files, float16, or float32. The data set classes read the folder like the original and
    give the same samples bit for bit. An interrupted run continues where it stopped. Scenes whose files changed are
    stored again. Every file is written completely or not at all.

    Args:
        dataset: a name in ``PUBLISHED``, or a TOML file that describes a layout, see :class:`BracketFolder`.
        root: its folder as published; it is only read.
        out: folder to write to, new or of an earlier run.
        half: store labels as float16 even if digits are lost (11 bits remain).
        progress: show a bar, in a terminal where tqdm is installed.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: the data set or one of its files is missing.
        FileExistsError: ``out`` holds something else.
        ValueError: the name is unknown, the description is wrong, ``out`` is inside ``root``, or scenes are broken. All
            other scenes are stored first.
        OSError: ``out`` has too little space.

    Example:
        >>> prepare("kalantari", "sig17", "sig17-prepared")  # doctest: +SKIP
    """
    layout = find_dataset(dataset).layout
    root, out = Path(root), Path(out)
    if prepared.is_prepared(root):
        raise ValueError(f"root must be the data set as published, {root} is prepared already")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"out must not lie inside the data set, got {out} in {root}")
    known = list(layout.split_folders)
    splits = [split for split in known if layout.split_folder(root, split).is_dir()] or known[:1]
    scenes = {split: layout.list_scenes(root, split) for split in splits}
    for split, names in scenes.items():
        layout.check_scenes(root, split, names)
    _start_or_extend(out, prepared.Index(layout.name, scenes, (root / SIMULATED).is_file()))
    jobs = [(split, name) for split, names in scenes.items() for name in names]
    broken = []
    for split, name in progress_bar(jobs, f"preparing {dataset}", "scene", progress):
        source, target = layout.split_folder(root, split) / name, out / layout.split_folders[split] / name
        try:
            paths = layout.files(source).paths
            status = {Path(os.path.relpath(path, source)).as_posix(): path.stat() for path in paths}
            sources = {name: [file.st_size, file.st_mtime_ns] for name, file in status.items()}  # to notice changes
            if prepared.is_finished(layout, target, sources, half=half):
                continue
            scene = layout.read_scene(source)
            layout.check(scene)
            for fault in layout.order_faults(scene):
                warn_caller(fault)
        except (ValueError, OSError) as error:
            broken.append(str(error))
            continue
        _check_space(out, target, scene)
        prepared.write_scene(target, scene, sources, half=half)
    if broken:
        listed = "\n  ".join(broken[:20])
        raise ValueError(f"{len(broken)} of {len(jobs)} scenes are broken, the others are prepared:\n  {listed}")
    return out


def _start_or_extend(out: Path, index: prepared.Index) -> None:
    """Write the index of a new prepared data set, or add its splits to an earlier one of the same data set."""
    if prepared.holds_something_else(out):
        raise FileExistsError(f"out {out} exists and is not a prepared data set: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if prepared.is_prepared(out):
        found, earlier, simulated = prepared.read_index(out)
        if found != index.dataset:
            raise FileExistsError(f"out {out} holds {found} as prepared, not {index.dataset}: choose another folder")
        index = index._replace(scenes={**earlier, **index.scenes}, simulated=simulated or index.simulated)
    prepared.write_index(out, index)


def _check_space(out: Path, target: Path, scene: StoredScene) -> None:
    sizes = [2 * math.prod(shape) for shape in scene.frame_shapes]
    needed = sum(sizes) + 4 * math.prod(scene.label.shape)
    if (free := shutil.disk_usage(out).free) < needed:
        raise OSError(f"{target}: needs up to {needed} bytes, {free} are left; everything before it is stored")
