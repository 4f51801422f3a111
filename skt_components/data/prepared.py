"""Format of a prepared data set: an index, and for each scene two files of strips and their description."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skt_components.data.scene_layout import Info, SceneLayout, StoredScene
from skt_components.data.strips import encode_rgbe, open_strips, to_strips
from skt_components.data.windows import Array
from skt_components.files import atomic_write, file_checksum, write_text
from skt_components.files.numpy_files import open_file

FORMAT = 1
_INDEX, _FRAMES, _LABEL, _SCENE = "prepared.json", "frames.npy", "label.npy", "scene.json"
_INFO = "info"
# Names of temporary files that a killed run leaves; .partial- is the one of earlier versions.
_LEFTOVERS, _STALE = (".partial-", *(f".{name}." for name in (_INDEX, _FRAMES, _LABEL, _SCENE))), 3600  # seconds
_TEXT_LIMIT = 2**24


class Index(NamedTuple):
    """Content of a prepared data set."""

    dataset: str  # its name
    scenes: dict[str, list[str]]  # names of the scenes it has or will have, by split
    simulated: bool  # True if simulate_dataset wrote the originals: there may be any number of scenes


def is_prepared(root: Path) -> bool:
    """Return True for the root of a prepared data set."""
    return (root / _INDEX).is_file()


def holds_something_else(root: Path) -> bool:
    """Return True if there is anything but a prepared data set, or the beginning of one."""
    if not root.exists():
        return False
    if not root.is_dir():
        return True
    names = {path.name for path in root.iterdir() if not path.name.startswith(_LEFTOVERS)}
    return bool(names) and _INDEX not in names


def write_index(root: Path, index: Index) -> None:
    """Write the index of a prepared data set."""
    write_text(root / _INDEX, json.dumps({"format": FORMAT, **index._asdict()}, indent=1))


def read_index(root: Path) -> Index:
    """Read the index of a prepared data set; ValueError if it is broken or of another format."""
    path = root / _INDEX
    index = _read_json(path)
    try:
        if index["format"] != FORMAT:
            raise ValueError(f"{path}: format {index['format']!r}, this version reads {FORMAT}: prepare it again")
        scenes = {str(split): [str(name) for name in names] for split, names in index["scenes"].items()}
        return Index(str(index["dataset"]), scenes, bool(index.get("simulated", False)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no index of a prepared data set ({type(error).__name__}: {error})") from None


def list_scenes(root: Path, dataset: str, split: str) -> list[str]:
    """Return the names of a split's scenes; ValueError if the folder holds another data set."""
    found, scenes, _ = read_index(root)
    if found != dataset:
        raise ValueError(f"{root}: holds {found} as prepared, not {dataset}")
    if not scenes.get(split):
        raise ValueError(f"{root}: was prepared without the split {split!r}, it has {', '.join(scenes)}")
    unsafe = [name for name in scenes[split] if ".." in Path(name).parts or Path(name).is_absolute()]
    if unsafe:
        raise ValueError(f"{root / _INDEX}: {unsafe[0]!r} is no name of a scene")
    return scenes[split]


def check_scenes(folder: Path, scenes: list[str]) -> None:
    """Raise FileNotFoundError unless all scenes of a split are prepared."""
    missing = [scene for scene in scenes if not (folder / scene / _SCENE).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(scenes)} scenes are not prepared yet, such as {missing[0]}: run prepare "
            "again, it continues where it stopped"
        )


def is_finished(layout: SceneLayout, folder: Path, sources: dict[str, list[int]], *, half: bool) -> bool:
    """Return True if a scene was written whole, from these files, with labels of this kind."""
    try:
        entry = _read_json(folder / _SCENE)
        return (entry.get("sources"), entry.get("half")) == (sources, half) and bool(open_scene(layout, folder))
    except (ValueError, OSError):
        return False


def write_scene(folder: Path, scene: StoredScene, sources: dict[str, list[int]], *, half: bool) -> None:
    """Write a scene; its description is written last and marks it as complete.

    Labels take the smallest form that is exact: RGBE (a byte for each number), float16, float32; with ``half`` they
    take float16 even if digits are lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # a younger one may belong to a concurrent run
            if path.name.startswith(_LEFTOVERS) and time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
    (folder / _SCENE).unlink(missing_ok=True)
    label = _smallest_label(scene, half=half)
    frames = np.stack([np.asarray(frame) for frame in scene.frames])
    arrays = {_FRAMES: to_strips(frames), _LABEL: to_strips(label)}
    for name, array in arrays.items():
        with atomic_write(folder / name) as temporary:
            np.save(temporary, array, allow_pickle=False)
    entry = {
        "info": scene.info,
        "width": frames.shape[-1],
        "label": "rgbe" if label.dtype == np.uint8 else str(label.dtype),
        "checksums": {_INFO: _info_checksum(scene.info), **{name: file_checksum(folder / name) for name in arrays}},
        "half": half,
        "sources": sources,
    }
    write_text(folder / _SCENE, json.dumps(entry, indent=1))


def open_scene(layout: SceneLayout, folder: Path) -> StoredScene:
    """Read the description of a prepared scene; its pictures stay in their files."""
    if not (folder / _SCENE).is_file():
        raise FileNotFoundError(f"{folder}: is not prepared yet: run prepare again, it continues where it stopped")
    entry = _read_json(folder / _SCENE)
    info, width, kind = entry.get("info"), entry.get("width"), entry.get("label")
    if not isinstance(info, dict) or type(width) is not int or not 0 < width < 2**31:
        raise ValueError(f"{folder / _SCENE}: no description of a prepared scene")
    channels = 4 if kind == "rgbe" else layout.frames_shape[1]
    frames = open_strips(folder / _FRAMES, layout.frames_shape, width, "u")
    label = open_strips(folder / _LABEL, (channels,), layout.scale * width, "u" if kind == "rgbe" else "f")
    names = [str(number + 1) for number in range(layout.frames_shape[0])]
    return StoredScene(folder, frames, label, folder / _LABEL, info, names)


def scene_faults(layout: SceneLayout, folder: Path) -> tuple[list[str], int]:
    """Read all of a prepared scene; return one message for each broken file, and the number of files read."""
    try:
        layout.check(scene := open_scene(layout, folder))
    except (OSError, ValueError) as error:
        return [str(error)], 0
    sums = _read_json(folder / _SCENE).get("checksums")
    names = (_FRAMES, _LABEL)
    known = sums if isinstance(sums, dict) else {}
    wrong = [folder / name for name in names if known.get(name) != file_checksum(folder / name)]
    if known.get(_INFO) != _info_checksum(scene.info):
        wrong.append(folder / _SCENE)
    faults = [f"{path}: its checksum is not the one it was written with" for path in wrong]
    return faults or list(layout.order_faults(scene)), len(names)


def _info_checksum(info: Info) -> str:
    text = json.dumps(info, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _smallest_label(scene: StoredScene, *, half: bool) -> Array:
    label = np.asarray(scene.label, np.float32)
    if not np.isfinite(label).all():
        raise ValueError(f"{scene.label_file}: the label holds infinite or NaN values")
    if label.shape[0] == 3 and (rgbe := encode_rgbe(label)) is not None:
        return rgbe
    with np.errstate(over="ignore"):
        small = label.astype(np.float16)
    if half and not np.isfinite(small).all():
        raise ValueError(f"{scene.label_file}: float16 holds values up to 65504, got {label.max():g}")
    return small if half or np.array_equal(small, label) else label


def _read_json(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        data = file.read(_TEXT_LIMIT + 1)
    try:
        content = json.loads(data) if len(data) <= _TEXT_LIMIT else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object of at most {_TEXT_LIMIT} bytes")
    return content
