"""How a published data set lies in its folders: which files a scene has, and how each is read."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from skt_components.data.stored_scene import Info, Stored

SPLITS = ("train", "test")


class SceneLayout(abc.ABC):
    """Scenes in folders of a split: exposures, a label, and a file that describes them.

    Attributes:
        name: of the data set.
        domain: "srgb" or "raw".
        split_folders: where each split lies below the root.
        scene_counts: how many scenes each published split has.
        picture_size: height and width of the published labels in (packed) pixels.
        scale: how many times as large as the exposures the labels are.
        depth: how many folders deep a scene lies below its split.
        white: largest value of an exposure.
        frames_shape: how many exposures, of how many channels.
        info_shapes: shapes of the numbers that describe a scene.
        mapped: whether reading an exposure or a label only maps it into memory.
    """

    name: str
    domain: str
    split_folders: dict[str, str]
    scene_counts: dict[str, int]
    picture_size: tuple[int, int]
    scale: int = 1
    depth: int = 1
    white: int
    frames_shape: tuple[int, int]
    info_shapes: dict[str, tuple[int, ...]]
    mapped: bool = False

    @abc.abstractmethod
    def files(self, folder: Path) -> list[Path]:
        """Return the files of a scene: the exposures from short to long, the label, what describes them."""

    @abc.abstractmethod
    def read_file(self, path: Path) -> Any:
        """Read or map a file of a scene: a picture (H, W, C) in its own numbers, or a dict of plain numbers.

        Raises:
            ValueError: it is broken or of another kind; the message names it.
        """

    def info_faults(self, info: Info) -> Iterator[str]:
        """Yield what is odd about a scene's description."""
        yield from ()

    def missing_files(self, folder: Path) -> list[str]:
        """Return what a scene's folder lacks, in words that name it."""
        return [f"{path}: no such file" for path in self.files(folder) if not path.is_file()]

    def read_scene(self, folder: Path) -> Stored:
        """Read a whole scene, or map it."""
        missing = self.missing_files(folder)
        if missing:
            raise FileNotFoundError(missing[0])
        paths = self.files(folder)
        *exposures, label, info = (self.read_file(path) for path in paths)
        *frames, target = (np.moveaxis(picture, -1, 0) for picture in (*exposures, label))
        return Stored(folder, frames, target, paths[-2], info)

    def check(self, stored: Stored) -> None:
        """Raise ValueError unless a scene's arrays and numbers fit together."""
        shapes, label = stored.frame_shapes, stored.label
        if (len(shapes), shapes[0][0]) != self.frames_shape:
            raise ValueError(f"{stored.folder}: must have exposures {self.frames_shape}, got {shapes}")
        sizes = {shape[1:] for shape in shapes}
        if len(sizes) != 1:
            found = ", ".join(map(str, sorted(sizes)))
            raise ValueError(f"{stored.folder}: the exposures must have one size, got {found}")
        height, width = (self.scale * side for side in next(iter(sizes)))
        channels = 4 if label.dtype == np.uint8 else self.frames_shape[1]
        if label.shape != (channels, height, width):
            raise ValueError(
                f"{stored.label_file}: must have {height}x{width} pixels of {channels} channels to fit the exposures, "
                f"got {label.shape[1]}x{label.shape[2]} of {label.shape[0]}"
            )
        for key, shape in self.info_shapes.items():
            try:
                numbers = np.array(stored.info.get(key), np.float64)
            except (TypeError, ValueError):
                numbers = np.array(np.nan)
            if numbers.shape != shape or not np.isfinite(numbers).all():
                raise ValueError(f"{stored.folder}: {key} must be finite numbers of shape {shape}")

    def list_scenes(self, root: Path, split: str) -> list[str]:
        """Return the sorted names of a split's scenes: their folders below the split's.

        Raises:
            FileNotFoundError: there is no such folder, or it has no scenes.
        """
        folder = root / self.split_folders[split]
        if not folder.is_dir():
            held = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else ""
            what = f"it holds {held or 'nothing'}" if root.is_dir() else "there is no such folder"
            raise FileNotFoundError(f"root must have a folder {folder.name}, {root} has not: {what}")
        scenes = [folder]
        for _ in range(self.depth):
            scenes = [path for parent in scenes for path in parent.iterdir() if path.is_dir() and path.name[0] != "."]
        if not scenes:
            kind = "/".join(["{scene}", "{frame}"][: self.depth])
            raise FileNotFoundError(f"{folder} has no scenes: they are its folders {kind}")
        return sorted(path.relative_to(folder).as_posix() for path in scenes)

    def check_scenes(self, root: Path, split: str, scenes: list[str]) -> None:
        """Raise FileNotFoundError for the first file that is missing in any scene."""
        folder = root / self.split_folders[split]
        faults = [fault for scene in scenes for fault in self.missing_files(folder / scene)]
        if faults:
            more = f" (and {len(faults) - 1} more: python -m skt_components.data verify)" if len(faults) > 1 else ""
            raise FileNotFoundError(f"{faults[0]}{more}")
