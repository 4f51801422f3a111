"""Folder layout of a published data set, and one scene as its files hold it."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skt_components.data.strips import StripFile, decode_rgbe
from skt_components.data.windows import Array, Window
from skt_components.files.names import find_entry, is_clutter
from skt_components.files.numpy_files import check_mapped

Info = dict[str, Any]

SPLITS = ("train", "test")
_DARKER = 0.9  # a pixel is darker than another below this share of its value
_LEAST_DARKER = 0.01  # of the pixels; noise and motion make some darker
_ROWS = 16  # of an exposure that are compared


class SceneFiles(NamedTuple):
    """The files of a scene."""

    frames: list[Path]  # the exposures from short to long
    label: Path
    info: Path  # describes the scene

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [*self.frames, self.label, self.info]


class StoredScene(NamedTuple):
    """A scene in the numbers of its files."""

    folder: Path  # for messages
    frames: Sequence[Array] | StripFile  # N arrays (C, h, w) of uint8 or uint16, or a file of (N, C, h, w)
    label: Array | StripFile  # (C, H, W) floats, or a file of floats or of (4, H, W) uint8 RGBE
    label_file: Path  # for messages
    info: Info  # plain numbers and lists that describe it
    frame_names: Sequence[str]  # for messages

    @property
    def frame_shapes(self) -> list[tuple[int, ...]]:
        """Shape (C, h, w) of every exposure."""
        if isinstance(self.frames, StripFile):
            return [self.frames.shape[1:]] * self.frames.shape[0]
        return [frame.shape for frame in self.frames]

    def cut_frames(self, window: Window) -> list[Array]:
        """Return a window (C, height, width) of every exposure."""
        if isinstance(self.frames, StripFile):
            return [window.at_origin().cut(frame) for frame in self.frames.cut(window)]
        for frame in self.frames:
            check_mapped(frame)
        return [window.cut(frame) for frame in self.frames]

    def some_rows(self) -> list[Array]:
        """Return evenly spread rows (C, rows, w) of every exposure, in the numbers of the files."""
        _, height, width = self.frame_shapes[0]
        step = max(height // _ROWS, 1)
        if isinstance(self.frames, StripFile):
            rows = [self.frames.cut(Window(row, 0, 1, width)) for row in range(0, height, step)]
            return list(np.concatenate(rows, axis=2))
        for frame in self.frames:
            check_mapped(frame)
        return [frame[:, ::step] for frame in self.frames]

    def cut_label(self, window: Window) -> npt.NDArray[np.float32]:
        """Return a window (C, height, width) of the label; ValueError if it holds infinities or NaN."""
        if isinstance(self.label, StripFile):
            piece = window.at_origin().cut(self.label.cut(window))
        else:
            check_mapped(self.label)
            piece = window.cut(self.label)
        if piece.dtype == np.uint8:
            return decode_rgbe(piece)
        with np.errstate(over="ignore"):
            label = np.array(piece, np.float32, order="C")
        if not np.isfinite(label.sum(dtype=np.float64)):
            raise ValueError(f"{self.label_file}: the label holds infinite or NaN values")
        return label


class SceneLayout(abc.ABC):
    """Scenes in folders of a split: exposures, a label, and a file that describes them."""

    name: str  # of the data set
    domain: str  # "srgb" or "raw"
    split_folders: dict[str, str]  # folder of each split below the root
    scene_counts: dict[str, int]  # number of scenes in each published split
    picture_size: tuple[int, int] | None  # height and width of the published labels in (packed) pixels, if known
    scale: int = 1  # size of the labels relative to the exposures
    depth: int = 1  # number of folder levels between a split and a scene
    white: int | None  # largest value of an exposure; None: of its number type
    frames_shape: tuple[int, int]  # number of exposures, number of channels
    info_shapes: dict[str, tuple[int, ...]]  # shapes of the numbers that describe a scene
    order_rule: str  # how exposures are matched with exposure values, for messages
    mapped: bool = False  # True if reading an exposure or a label only maps it into memory

    @abc.abstractmethod
    def files(self, folder: Path) -> SceneFiles:
        """Return the files of a scene."""

    # A ValueError of these, which names the file, means that it is broken or of another kind.

    @abc.abstractmethod
    def read_frame(self, path: Path) -> Array:
        """Read or map an exposure (H, W, C) in its own numbers."""

    @abc.abstractmethod
    def read_label(self, path: Path) -> Array:
        """Read or map the label (H, W, C) of a scene."""

    @abc.abstractmethod
    def read_info(self, files: SceneFiles) -> Info:
        """Read the plain numbers that describe a scene with these files."""

    def info_faults(self, info: Info) -> Iterator[str]:
        """Yield what is wrong with a scene's description."""
        yield from ()

    @abc.abstractmethod
    def exposure_values(self, info: Info) -> list[float]:
        """Return a number for each exposure that rises with its light."""

    def order_faults(self, scene: StoredScene) -> Iterator[str]:
        """Yield a message for each exposure that is darker than the one with the next smaller exposure value."""
        values, rows = self.exposure_values(scene.info), scene.some_rows()
        names = scene.frame_names
        order = sorted(range(len(values)), key=values.__getitem__)
        for shorter, longer in itertools.pairwise(order):
            darker = float((rows[longer] < _DARKER * rows[shorter]).mean())
            brighter = float((rows[shorter] < _DARKER * rows[longer]).mean())
            if darker > max(_LEAST_DARKER, 1.5 * brighter):
                yield (
                    f"{scene.folder}: exposure {names[longer]} is darker than exposure {names[shorter]}, but its "
                    f"exposure value is larger, {values[longer]:g} against {values[shorter]:g}; {self.order_rule}"
                )

    def split_folder(self, root: Path, split: str) -> Path:
        """Return the folder of a split, whatever the case of its name."""
        return find_entry(root, self.split_folders[split])

    def existing_split_folder(self, root: Path, split: str) -> Path:
        """Return the folder of a split; FileNotFoundError, with what there is instead, if it does not exist."""
        folder = self.split_folder(root, split)
        if not folder.is_dir():
            held = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else ""
            found = f"it holds {held or 'nothing'}" if root.is_dir() else "there is no such folder"
            raise FileNotFoundError(f"root must have a folder {folder.name}, {root} has not: {found}")
        return folder

    def missing_files(self, folder: Path) -> list[str]:
        """Return one message for each file that a scene's folder lacks."""
        return [f"{path}: no such file" for path in self.files(folder).paths if not path.is_file()]

    def read_scene(self, folder: Path) -> StoredScene:
        """Read a whole scene, or map it."""
        if missing := self.missing_files(folder):
            raise FileNotFoundError(missing[0])
        files = self.files(folder)
        pictures = [*map(self.read_frame, files.frames), self.read_label(files.label)]
        *frames, label = (np.moveaxis(picture, -1, 0) for picture in pictures)
        names = [path.name for path in files.frames]
        return StoredScene(folder, frames, label, files.label, self.read_info(files), names)

    def check(self, scene: StoredScene) -> None:
        """Raise ValueError unless a scene's arrays and numbers fit together."""
        shapes, label = scene.frame_shapes, scene.label
        if (len(shapes), shapes[0][0]) != self.frames_shape:
            raise ValueError(f"{scene.folder}: must have exposures {self.frames_shape}, got {shapes}")
        sizes = {shape[1:] for shape in shapes}
        if len(sizes) != 1:
            found = ", ".join(map(str, sorted(sizes)))
            raise ValueError(f"{scene.folder}: the exposures must have one size, got {found}")
        types = set() if isinstance(scene.frames, StripFile) else {str(frame.dtype) for frame in scene.frames}
        if len(types) > 1:
            raise ValueError(f"{scene.folder}: the exposures must have one bit depth, got {', '.join(sorted(types))}")
        height, width = (self.scale * side for side in next(iter(sizes)))
        channels = 4 if label.dtype == np.uint8 else self.frames_shape[1]
        if label.shape != (channels, height, width):
            raise ValueError(
                f"{scene.label_file}: must have {height}x{width} pixels of {channels} channels to fit the exposures, "
                f"got {label.shape[1]}x{label.shape[2]} of {label.shape[0]}"
            )
        for key, shape in self.info_shapes.items():
            try:
                numbers = np.array(scene.info.get(key), np.float64)
            except (TypeError, ValueError):
                numbers = np.array(np.nan)
            if numbers.shape != shape or not np.isfinite(numbers).all():
                raise ValueError(f"{scene.folder}: {key} must be finite numbers of shape {shape}")

    def list_scenes(self, root: Path, split: str) -> list[str]:
        """Return the sorted names of a split's scenes, its folders at ``depth``; FileNotFoundError without any."""
        folder = self.existing_split_folder(root, split)
        scenes = [folder]
        for _ in range(self.depth):
            entries = (path for parent in scenes for path in parent.iterdir())
            scenes = [path for path in entries if path.is_dir() and not is_clutter(path.name)]
        if not scenes:
            kind = "/".join(["{scene}", "{frame}"][: self.depth])
            raise FileNotFoundError(f"{folder} has no scenes: they are its folders {kind}")
        return sorted(path.relative_to(folder).as_posix() for path in scenes)

    def check_scenes(self, root: Path, split: str, scenes: list[str]) -> None:
        """Raise FileNotFoundError for the first file that is missing in any scene."""
        folder = self.split_folder(root, split)
        missing = [message for scene in scenes for message in self.missing_files(folder / scene)]
        if missing:
            more = f" (and {len(missing) - 1} more: skt data verify)" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{missing[0]}{more}")
