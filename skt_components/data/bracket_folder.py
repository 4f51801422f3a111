"""Brackets in any layout of folders, which a TOML file of a dozen lines describes."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skt_components.data.exif import read_exposure_settings
from skt_components.data.formats import decode_png_or_jpeg, decode_tif
from skt_components.data.io import SUPPORTED_SUFFIXES, read_image
from skt_components.data.kalantari import exposure_faults, read_exposure_values, to_stops
from skt_components.data.sample import HDRSample
from skt_components.data.scene_dataset import SceneDataset, stack_exposures
from skt_components.data.scene_layout import SPLITS, Info, SceneFiles, SceneLayout, StoredScene
from skt_components.data.windows import Array
from skt_components.files.names import find_entry, is_clutter
from skt_components.files.numpy_files import open_file
from skt_components.files.toml import read_toml
from skt_components.ops.checks import check_choice
from skt_components.ops.transfer import DISPLAY_GAMMA, TRANSFERS, linearize

_TIFF, _PICTURES = (".tif", ".tiff"), (".png", ".jpg", ".jpeg")
_SCENE, _EXIF = "{scene}", "exif"


class DescribedLayout(SceneLayout):
    """Layout that a TOML file describes; :class:`BracketFolder` documents its keys.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML, or a key, which the message names, is unknown, missing or of another kind.
    """

    domain = "srgb"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._table = read_toml(path, "description of a data set")
        self.name = self._take("name", str)
        self.split_folders = {split: self._take(split, str) for split in SPLITS if split in self._table}
        if not self.split_folders:
            raise ValueError(f"{path}: train or test must name the folder of a split, got neither")
        frames = self._table.get("frames")
        self._wildcard = isinstance(frames, str)
        self._frames = [self._take("frames", str)] if self._wildcard else self._take("frames", list)
        self._label = self._take("label", str)
        exposures = self._table.get("exposures")
        constant, self._from_exif = isinstance(exposures, list), exposures == _EXIF
        if self._from_exif and "exposure_unit" in self._table:
            raise ValueError(f"{path}: exposure_unit must not be given with exposures = {_EXIF!r}")
        given = None if constant else self._take("exposures", str)
        self._exposures = None if self._from_exif else given  # pattern of a file
        count = self._take("num_frames", int) if self._wildcard else len(self._frames)
        self.frames_shape, self.info_shapes = (count, 3), {"ev": (count,)}
        self._unit = self._take("exposure_unit", str, "stops")
        self.transfer = self._take("transfer", str, "gamma2.2")
        self.white = self._take("white", int, None)
        self.label_white = float(self._take("label_white", (int, float), 1.0))
        self.scene_counts = self._take("scenes", dict, {})
        size = self._take("size", list, None)
        self._constants = [str(value) for value in self._take("exposures", list)] if constant else []
        if self._table:
            raise ValueError(f"{path}: {next(iter(self._table))} is not a key of a description of a data set")
        self.picture_size = None if size is None else (int(size[0]), int(size[1]))
        self.order_rule = f"the exposures must go from short to long, as {self.path.name} lists them"
        if self._from_exif:
            self.order_rule = "the exposure values are the EXIF data of the exposures"
        elif self._wildcard:
            self.order_rule = f"the exposures are the files {self._frames[0]} sorted by name as text: 10 comes before 8"
        self._check()

    def _take(self, key: str, kind: Any, *default: Any) -> Any:
        """Remove a key from the table and return its value, or the default without it."""
        if key not in self._table and default:
            return default[0]
        value = self._table.pop(key, None)
        if not isinstance(value, kind) or isinstance(value, bool):
            names = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
            raise ValueError(f"{self.path}: {key} must be {names.get(kind, 'a number')}, got {value!r}")
        return value

    def _check(self) -> None:
        """Raise ValueError unless the values are as documented."""
        try:
            check_choice("exposure_unit", self._unit, ("stops", "times"))
            check_choice("transfer", self.transfer, TRANSFERS)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        fixed = [self._label, *([self._exposures] if self._exposures else [])]
        self._named = fixed if self._wildcard else [*fixed, *self._frames]  # patterns of single files
        for pattern in (*self._frames, *fixed):
            parts = PurePosixPath(pattern).parts if isinstance(pattern, str) else ()
            if not parts or _SCENE not in pattern or pattern.startswith("/") or ".." in parts:
                wanted = f"a path below the folder of a split with {_SCENE} in it"
                if pattern == self._exposures:
                    raise ValueError(f'{self.path}: exposures must be {wanted}, a list or "exif", got {pattern!r}')
                raise ValueError(f"{self.path}: frames and label must be {wanted}, got {pattern!r}")
            if "*" in pattern and (pattern in self._named or "*" in str(PurePosixPath(pattern).parent)):
                raise ValueError(
                    f"{self.path}: * may stand in the file name of one pattern for frames, got {pattern!r}"
                )
        if self._wildcard and "*" not in self._frames[0]:
            raise ValueError(f"{self.path}: frames must be a list, or one pattern with *, got {self._frames[0]!r}")
        suffixes = {PurePosixPath(pattern).suffix.lower() for pattern in self._frames}
        if not suffixes <= {*_TIFF, *_PICTURES}:
            known = ", ".join((*_TIFF, *_PICTURES))
            raise ValueError(f"{self.path}: frames must end with one of {known}, got {', '.join(sorted(suffixes))}")
        if PurePosixPath(self._label).suffix.lower() not in SUPPORTED_SUFFIXES:
            known = ", ".join(SUPPORTED_SUFFIXES)
            raise ValueError(f"{self.path}: label must end with one of {known}, got {self._label!r}")
        numbers = {"num_frames": self.frames_shape[0], "white": self.white, "label_white": self.label_white}
        for key, number in numbers.items():
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{self.path}: {key} must be above 0, got {number}")
        if not set(self.scene_counts) <= set(SPLITS) or not all(isinstance(n, int) for n in self.scene_counts.values()):
            raise ValueError(f"{self.path}: scenes must be like {{ train = 74, test = 15 }}, got {self.scene_counts}")
        self._constant_stops = None if self._exposures or self._from_exif else self._read_constants()

    def _read_constants(self) -> list[float]:
        try:
            stops = [to_stops(value, self._unit) for value in self._constants]
        except (ValueError, ZeroDivisionError):
            stops = []
        if len(stops) != self.frames_shape[0] or not all(abs(value) < math.inf for value in stops):
            wanted = f"{self.frames_shape[0]} numbers in {self._unit}, one for each frame"
            raise ValueError(f"{self.path}: exposures must be {wanted}, got {self._constants}")
        return stops

    def list_scenes(self, root: Path, split: str) -> list[str]:
        """Return the sorted names of the scenes that have at least one file; files that match a ``*`` do not count."""
        folder = self.existing_split_folder(root, split)
        fixed = [
            self._label,
            *([self._exposures] if self._exposures else []),
            *([] if self._wildcard else self._frames),
        ]
        scenes = {scene for pattern in fixed for _, scene in _find(folder, PurePosixPath(pattern).parts)}
        if not scenes:
            raise FileNotFoundError(f"{folder} has no scenes: no file there is like {self._label}")
        return sorted(scenes)

    def files(self, folder: Path) -> SceneFiles:
        """Return the files of a scene; exposure values that the description itself holds are in its file."""
        split, scene = folder.parent, folder.name

        def path(pattern: str) -> Path:
            return functools.reduce(find_entry, PurePosixPath(pattern.replace(_SCENE, scene)).parts, split)

        label = path(self._label)
        if self._wildcard:
            parts = PurePosixPath(self._frames[0]).parts
            frames = sorted(found for found, _ in _find(split, parts, scene) if found != label)
        else:
            frames = [path(pattern) for pattern in self._frames]
        return SceneFiles(frames, label, path(self._exposures) if self._exposures else self.path)

    def missing_files(self, folder: Path) -> list[str]:
        """Return one message for each file that a scene lacks, and one for a wrong number of exposures."""
        missing, found, count = super().missing_files(folder), len(self.files(folder).frames), self.frames_shape[0]
        if found == count:
            return missing
        return [*missing, f"{folder}: must have {count} exposures like {self._frames[0]}, has {found}"]

    def read_frame(self, path: Path) -> Array:
        """Read an exposure of 8 or 16 bits."""
        with open_file(path):
            picture = decode_tif(path) if path.suffix.lower() in _TIFF else decode_png_or_jpeg(path)
        if picture.dtype.kind != "u" or picture.dtype.itemsize > 2:
            raise ValueError(f"{path}: exposures must have 8 or 16 bits, got {picture.dtype}")
        return picture

    def read_label(self, path: Path) -> Array:
        """Read a label as :func:`read_image` does."""
        return read_image(path).permute(1, 2, 0).numpy()

    def read_info(self, files: SceneFiles) -> Info:
        """Return the exposure values in stops."""
        if self._from_exif:
            return {"ev": _read_exif_stops([path for path in files.frames if path.is_file()])}
        stops = self._constant_stops
        return {"ev": read_exposure_values(files.info, self.frames_shape[0], self._unit) if stops is None else stops}

    def read_scene(self, folder: Path) -> StoredScene:
        """Read a whole scene; sort its exposures if their EXIF data have the exposure values."""
        scene = super().read_scene(folder)
        if not self._from_exif:
            return scene
        ev: list[float] = scene.info["ev"]
        frames: list[Any] = list(scene.frames)
        order = sorted(range(len(ev)), key=ev.__getitem__)
        names = [scene.frame_names[i] for i in order]
        return scene._replace(frames=[frames[i] for i in order], frame_names=names, info={"ev": sorted(ev)})

    def info_faults(self, info: Info) -> Iterator[str]:
        """Yield a message if the exposure values do not rise; exposures with EXIF data may be in any order."""
        yield from () if self._from_exif else exposure_faults(info)

    def exposure_values(self, info: Info) -> list[float]:
        """Return the exposure values in stops."""
        return list(info["ev"])


def _read_exif_stops(paths: Sequence[Path]) -> list[float]:
    """Return the exposures of pictures in stops, by their EXIF data."""
    found: dict[float, Path] = {}
    for path in paths:
        light = read_exposure_settings(path).light
        if light is None:
            raise ValueError(f"{path}: has no exposure time in its EXIF data")
        if light in found:
            raise ValueError(f"{path}: has the same exposure as {found[light].name} in its EXIF data, {light:g}")
        found[light] = path
    return [math.log2(light) for light in found]


def _find(folder: Path, parts: Sequence[str], scene: str | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder that match a pattern's parts, with their scene; case does not count."""
    if not parts:
        if folder.is_file():
            yield folder, scene or ""
        return
    if not folder.is_dir():
        return
    name = re.escape(parts[0]).replace(r"\*", ".*")
    first, *others = name.split(re.escape(_SCENE))
    if scene is None and others:
        name = f"{first}(?P<scene>.+)" + "(?P=scene)".join(others)
    else:
        name = re.escape(scene or "").join([first, *others])
    for path in folder.iterdir():
        if not is_clutter(path.name) and (match := re.fullmatch(name, path.name, re.IGNORECASE)):
            yield from _find(path, parts[1:], match.groupdict().get("scene", scene))


BUILT_IN = {name: Path(__file__).with_name(f"{name}.toml") for name in ("challenge123", "hu")}
"""Descriptions of published data sets."""


def read_layout(layout: str | os.PathLike[str] | DescribedLayout) -> DescribedLayout:
    """Return the layout of a name in ``BUILT_IN``, or of a TOML file.

    Raises:
        FileNotFoundError, ValueError: see :class:`DescribedLayout`; there is no built-in layout of this name.
    """
    if isinstance(layout, DescribedLayout):
        return layout
    if str(layout) not in BUILT_IN and Path(layout).suffix.lower() != ".toml":
        raise ValueError(f"layout must be a .toml file or one of {', '.join(BUILT_IN)}, got {os.fspath(layout)!r}")
    return DescribedLayout(BUILT_IN.get(str(layout), layout))


class BracketFolder(SceneDataset):
    """Read brackets of sRGB exposures in any layout of folders. A TOML file describes the layout.

    This example is for folders with three JPEG exposures and a label for each scene:

    .. code-block:: toml

        name = "my-lab"
        train = "training"                # folder of a split below the root; test = "..." too, at least one of both
        frames = "{scene}/shot_*.jpg"     # sorted by name as text, from short to long; or a list of single files
        num_frames = 3                    # needed with *
        label = "{scene}/merged.exr"      # .hdr, .exr, .tif or .npy
        exposures = [0.01, 0.04, 0.16]    # or a text file, "{scene}/exposure.txt", or "exif"
        exposure_unit = "times"           # or "stops", the default
        transfer = "srgb"                 # of the exposures; or "gamma2.2", the default, or "linear"

    Paths are below the folder of the split. ``{scene}`` is the part of a path that differs between scenes. It may be a
    part of the name of a folder or file, such as ``"{scene}_1/ldr.tif"``. Exposures are ``.tif``, ``.png`` or ``.jpg``
    with 8 or 16 bits. A text file of exposures has one number a line. With ``exposures = "exif"`` the exposure is the
    time in the EXIF data times ISO / 100 over the f-number squared. Then the exposures are sorted by it, and
    ``exposure_unit`` must be missing. Optional keys:

    - ``white``: the number of an exposure that means white (by default the largest of its type, 255 or 65535);
    - ``label_white``: the radiance at which the shortest exposure saturates (1 by default). Labels are divided by it;
    - ``scenes = { train = 96, test = 27 }`` and ``size = [1000, 1500]`` (height, width): :func:`verify` compares them.

    Samples have the form of :class:`Kalantari17`: linear radiance relative to the shortest exposure, which has time 1,
    and the exposures as display values of gamma 2.2. This holds for every transfer function of the files.

    Args:
        root: folder of the data set, or what :func:`prepare` made of it.
        layout: the TOML file, or a published data set: "challenge123" (SAFNet's) or "hu" (Hu's synthetic one).
        split: "train" or "test".
        crop: height and width in pixels; None: whole scenes. In the test split windows spread evenly.
        seed: seed of the crops.
        samples_per_epoch: length with a crop; None is one sample per scene.
        augment: "none", or "dihedral": the eight symmetries of the square, in training.

    Raises:
        FileNotFoundError: the folder, a split or a scene's file is missing.
        ValueError: an option or the description is wrong, or, from ``[]``, a file is broken; the message names it.

    Example:
        >>> data = BracketFolder("Challenge123", "challenge123", crop=256)  # doctest: +SKIP
        >>> data[0].bracket.shape  # doctest: +SKIP
        torch.Size([3, 6, 256, 256])
    """

    layout: DescribedLayout

    def __init__(
        self,
        root: str | os.PathLike[str],
        layout: str | os.PathLike[str] | DescribedLayout,
        split: str = "train",
        crop: int | tuple[int, int] | None = None,
        *,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        augment: str = "none",
    ) -> None:
        options: Any = {"seed": seed, "samples_per_epoch": samples_per_epoch, "augment": augment}
        super().__init__(read_layout(layout), root, split, crop, **options)
        self._tables: dict[int, tuple[Array, Array]] = {}

    def _make_sample(self, scene: StoredScene, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        linear, display = self._decoding(int(np.iinfo(frames[0].dtype).max))
        ev = np.array(scene.info["ev"], np.float64)
        times = np.exp2(ev - ev.min())
        bracket = stack_exposures(frames, linear, display, times)
        label = label / self.layout.label_white
        self._warn_above_peak(label, scene, "white of the labels (label_white) is larger")
        return HDRSample(bracket, torch.from_numpy(times).float(), label, name, self.domain)

    def _decoding(self, largest: int) -> tuple[Array, Array]:
        """Return the light and the display value of every number of an exposure."""
        if largest not in self._tables:
            values = (torch.arange(largest + 1, dtype=torch.float64) / (self.layout.white or largest)).clamp(max=1)
            linear = linearize(values, self.layout.transfer)
            display = values if self.layout.transfer == "gamma2.2" else linear ** (1 / DISPLAY_GAMMA)
            self._tables[largest] = linear.float().numpy(), display.float().numpy()
        return self._tables[largest]
