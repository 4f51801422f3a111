"""The prepared form of a data set: for each scene two files of strips, and what goes with them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skt_components.data.layout import SceneLayout
from skt_components.data.stored_scene import Array, Info, Stored, encode_rgbe
from skt_components.data.strips import open_strips, to_strips
from skt_components.files.digest import file_checksum
from skt_components.files.numpy_files import open_file

FORMAT = 1
_INDEX, _FRAMES, _LABEL, _SCENE = "prepared.json", "frames.npy", "label.npy", "scene.json"
_INFO = "info"
_TEMPORARY, _STALE = ".partial-", 3600  # seconds
_TEXT_LIMIT = 2**24


class Index(NamedTuple):
    """What a prepared data set is."""

    dataset: str
    """Its name."""
    scenes: dict[str, list[str]]
    """Names of the scenes it has or will have, by split."""
    simulated: bool
    """Whether ``simulate_dataset`` wrote what it was made from: then it may have any number of scenes."""


def is_prepared(root: Path) -> bool:
    """Whether this is the root of a prepared data set."""
    return (root / _INDEX).is_file()


def holds_something_else(root: Path) -> bool:
    """Whether there is anything but a prepared data set, or the beginning of one."""
    if not root.exists():
        return False
    if not root.is_dir():
        return True
    names = {path.name for path in root.iterdir() if not path.name.startswith(_TEMPORARY)}
    return bool(names) and _INDEX not in names


def write_index(root: Path, index: Index) -> None:
    """Write what the prepared data set is."""
    text = json.dumps({"format": FORMAT, **index._asdict()}, indent=1)
    _write_atomically(root / _INDEX, lambda path: path.write_text(text, encoding="utf-8"))


def read_index(root: Path) -> Index:
    """Return what the prepared data set is.

    Raises:
        ValueError: the file is broken or of another format.
    """
    path = root / _INDEX
    index = _read_json(path)
    try:
        if index["format"] != FORMAT:
            raise ValueError(f"{path}: format {index['format']!r}, this version reads {FORMAT}: prepare it anew")
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
    """Raise FileNotFoundError if a split's scenes are not all there."""
    missing = [scene for scene in scenes if not (folder / scene / _SCENE).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(scenes)} scenes are not prepared yet, such as {missing[0]}: run prepare "
            "again, it goes on where it stopped"
        )


def is_finished(layout: SceneLayout, folder: Path, sources: dict[str, list[int]], *, half: bool) -> bool:
    """Whether a scene was written whole, from these files, with labels of this kind."""
    if not (folder / _SCENE).is_file():
        return False
    try:
        entry = _read_json(folder / _SCENE)
        return (entry.get("sources"), entry.get("half")) == (sources, half) and bool(open_scene(layout, folder))
    except (ValueError, OSError):
        return False


def write_scene(folder: Path, stored: Stored, sources: dict[str, list[int]], *, half: bool) -> None:
    """Write a scene; its last file is the one that says that it is whole.

    Labels go in the smallest form that holds them exactly: RGBE (a byte for each number), float16, float32; with
    ``half`` in float16 whatever is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE:  # younger ones may be another run's
                left.unlink()
    (folder / _SCENE).unlink(missing_ok=True)
    label = _smallest(stored, half=half)
    frames = np.stack([np.asarray(frame) for frame in stored.frames])
    arrays = {_FRAMES: to_strips(frames), _LABEL: to_strips(label)}
    for name, array in arrays.items():
        _write_atomically(folder / name, lambda path, array=array: _save(path, array))  # type: ignore[misc]
    entry = {
        "info": stored.info,
        "width": frames.shape[-1],
        "label": "rgbe" if label.dtype == np.uint8 else str(label.dtype),
        "checksums": {_INFO: _info_checksum(stored.info), **{name: file_checksum(folder / name) for name in arrays}},
        "half": half,
        "sources": sources,
    }
    text = json.dumps(entry, indent=1)
    _write_atomically(folder / _SCENE, lambda path: path.write_text(text, encoding="utf-8"))


def open_scene(layout: SceneLayout, folder: Path) -> Stored:
    """Read how a prepared scene is stored; its pictures stay in their files.

    Raises:
        FileNotFoundError: it is missing or was not finished.
        ValueError: one of its files is broken.
    """
    if not (folder / _SCENE).is_file():
        raise FileNotFoundError(f"{folder}: is not prepared yet: run prepare again, it goes on where it stopped")
    entry = _read_json(folder / _SCENE)
    info, width, kind = entry.get("info"), entry.get("width"), entry.get("label")
    if not isinstance(info, dict) or type(width) is not int or not 0 < width < 2**31:
        raise ValueError(f"{folder / _SCENE}: no description of a prepared scene")
    channels = 4 if kind == "rgbe" else layout.frames_shape[1]
    frames = open_strips(folder / _FRAMES, layout.frames_shape, width, "u")
    label = open_strips(folder / _LABEL, (channels,), layout.scale * width, "u" if kind == "rgbe" else "f")
    return Stored(folder, frames, label, folder / _LABEL, info)


def faults(layout: SceneLayout, folder: Path) -> tuple[list[str], int]:
    """Return what is wrong with a prepared scene, by file, and how many files were read; reads all of it."""
    try:
        layout.check(stored := open_scene(layout, folder))
    except (OSError, ValueError) as error:
        return [str(error)], 0
    sums = _read_json(folder / _SCENE).get("checksums")
    names = (_FRAMES, _LABEL)
    known = sums if isinstance(sums, dict) else {}
    wrong = [folder / name for name in names if known.get(name) != file_checksum(folder / name)]
    if known.get(_INFO) != _info_checksum(stored.info):
        wrong.append(folder / _SCENE)
    return [f"{path}: its checksum is not the one it was written with" for path in wrong], len(names)


def _info_checksum(info: Info) -> str:
    text = json.dumps(info, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _smallest(stored: Stored, *, half: bool) -> Array:
    label = np.asarray(stored.label, np.float32)
    if not np.isfinite(label).all():
        raise ValueError(f"{stored.label_file}: the label holds infinite or NaN values")
    if label.shape[0] == 3 and (rgbe := encode_rgbe(label)) is not None:
        return rgbe
    with np.errstate(over="ignore"):
        small = label.astype(np.float16)
    if half and not np.isfinite(small).all():
        raise ValueError(f"{stored.label_file}: float16 holds values up to 65504, got {label.max():g}")
    return small if half or np.array_equal(small, label) else label


def _save(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
