"""Brackets simulated from any folder of HDR pictures."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data.dataset import SampleDataset, check_size
from skt_components.data.io import SUPPORTED_SUFFIXES, read_image
from skt_components.data.sample import HDRSample
from skt_components.data.seeding import integer, make_generator
from skt_components.ops.checks import check_choice, check_count
from skt_components.simulation.camera import Camera, simulate_bracket
from skt_components.simulation.motion import Motion
from skt_components.simulation.picture_cache import PictureCache
from skt_components.simulation.raw_bracket import simulate_raw_bracket
from skt_components.simulation.raw_camera import RawCamera, picture_size
from skt_components.simulation.views import FlatView, SphereLimits, SphereView

# A crop must have light in this share of its pixels.
MIN_LIT = 0.05


class HDRFolder(SampleDataset):
    """Map-style data set of brackets simulated from the HDR pictures in a folder and below it.

    Pictures are split by file, sorted by name: the last ``val_fraction`` of them validate. Panoramas (2:1
    equirectangular) are seen through perspective views, flat pictures through crops. A training sample
    depends on (seed, epoch, index) alone, whatever the number of workers; a validation sample on (seed, file,
    view number) alone: view numbers spread evenly over the picture, and neither the epoch nor the length
    of the data set moves them. Nothing grows with the epoch but the cache, up to its budget.

    Args:
        root: folder, searched recursively; hidden files are left out.
        crop: height and width of the targets in pixels, packed ones of a :class:`RawCamera`; None uses pictures
            whole, panoramas too.
        split: ``"train"`` and ``"val"`` share the files out; ``"all"`` trains on every file.
        val_fraction: share of the files for validation, in [0, 1]; at least one file if above 0.
        val_names: the validation files instead, as paths relative to ``root``.
        seed: of every random choice.
        camera: takes the exposures, RAW if it is a :class:`RawCamera`; None is :class:`Camera`'s defaults.
        motion: between the exposures; None is :class:`Motion`'s defaults.
        samples_per_epoch: length; None is one sample per file in training, eight in validation.
        panorama: whether pictures of exactly 2:1 are panoramas.
        fov: smallest and largest horizontal field of view in degrees; None lets a pixel cover one to two
            panorama pixels where that is between 20° and 90°.
        pitch: largest look up or down, in degrees.
        roll: largest roll, in degrees.
        augment: mirror training samples, and turn those of flat pictures by multiples of 90°.
        suffixes: of the files to use. Display-encoded pictures are not radiance: name ``.tif`` only if
            they are linear.
        max_attempts: how many crops without light to try before one is aimed at the brightest pixel.
        cache_bytes: memory for decoded pictures, in each process.

    Raises:
        FileNotFoundError: if the folder or its pictures are missing.
        ValueError: if an option is outside its range; from ``[]``, naming the file, if a picture is broken,
            smaller than the crop or black.

    Example:
        >>> dataset = HDRFolder("photos", crop=128, samples_per_epoch=1000)  # doctest: +SKIP
        >>> dataset[0].bracket.shape  # doctest: +SKIP
        torch.Size([3, 6, 128, 128])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        crop: int | tuple[int, int] | None = None,
        split: str = "train",
        val_fraction: float = 0.1,
        val_names: Collection[str] | None = None,
        seed: int = 0,
        camera: Camera | RawCamera | None = None,
        motion: Motion | None = None,
        samples_per_epoch: int | None = None,
        panorama: bool = True,
        fov: tuple[float, float] | None = None,
        pitch: float = 30.0,
        roll: float = 5.0,
        augment: bool = True,
        suffixes: Sequence[str] = (".hdr", ".exr"),
        max_attempts: int = 8,
        cache_bytes: int = 2**29,
    ) -> None:
        check_choice("split", split, ("train", "val", "all"))
        self.root = Path(root)
        self.crop = None if crop is None else check_size("crop", crop)
        self.split = split
        self.seed = seed
        self.camera: Camera | RawCamera = camera or Camera()
        self._size = None if self.crop is None else picture_size("crop", self.crop, self.camera)
        self.motion = motion or Motion()
        self._panorama = panorama
        self._limits = SphereLimits(fov, pitch, roll)
        self._augment = augment and split != "val"
        self._attempts = check_count("max_attempts", max_attempts, 1)
        self.files = split_pictures(self.root, list_pictures(self.root, suffixes), split, val_fraction, val_names)
        per_file = 8 if split == "val" and self.crop is not None else 1
        length = len(self.files) * per_file if samples_per_epoch is None else samples_per_epoch
        super().__init__(check_count("samples_per_epoch", length, 1), trains=split != "val")
        self._cache = PictureCache(check_count("cache_bytes", cache_bytes, 0))

    def _draw(self, index: int, epoch: int) -> HDRSample:
        view, file = divmod(index + epoch * self._length, len(self.files))
        path = self.files[file]
        name = path.relative_to(self.root).as_posix()
        key = (name, view) if self.split == "val" else (epoch, index)
        generator = make_generator(self.split, "HDRFolder", self.seed, *key)
        picture = self._cache.get(path, self._load)
        window, margin = self._window(picture, view, generator)
        if isinstance(self.camera, RawCamera):
            return simulate_raw_bracket(window, self.camera, self.motion, generator, margin=margin, name=name)
        return simulate_bracket(window, self.camera, self.motion, generator, margin=margin, name=name)

    def _load(self, path: Path) -> Tensor:
        picture = read_image(path).clamp_(min=0)
        if not picture.any():
            raise ValueError(f"{path}: the picture is black")
        if self._size is None:
            return picture
        if self._is_panorama(picture):
            factor = self._limits.reduction(picture, self._size[1])
            return F.avg_pool2d(picture[None], factor)[0] if factor > 1 else picture
        if picture.shape[-2] < self._size[0] or picture.shape[-1] < self._size[1]:
            shape = tuple(picture.shape[-2:])
            raw = f" for RAW, {self._size} pixels of the picture" if self._size != self.crop else ""
            raise ValueError(f"{path}: crop must fit the picture of {shape}, got {self.crop}{raw}")
        return picture

    def _is_panorama(self, picture: Tensor) -> bool:
        return self._panorama and self.crop is not None and picture.shape[-1] == 2 * picture.shape[-2]

    def _whole(self, picture: Tensor) -> tuple[int, int]:
        """Return the size of a whole picture, less the last rows and columns that make no whole pixel of RAW."""
        block = self.camera.block if isinstance(self.camera, RawCamera) else 1
        return picture.shape[-2] // block * block, picture.shape[-1] // block * block

    def _window(self, picture: Tensor, view: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return a lit piece of the picture, augmented, with its margin for camera motion."""
        size = self._size or self._whole(picture)
        turns = 0
        if self._augment and not self._is_panorama(picture):
            turns = integer(generator, 0, 3)
            turned = size[::-1] if turns % 2 else size
            fits = turned[0] <= picture.shape[-2] and turned[1] <= picture.shape[-1]
            size, turns = (turned, turns) if fits else (size, turns - 1)
        margin = self.motion.margin(*size)
        for attempt in range(self._attempts + 1):
            window = self._look(picture, size, view, attempt, generator).window(picture, size, margin)
            inside = window[:, margin : margin + size[0], margin : margin + size[1]]
            if int((inside.amax(0) > 0).sum()) >= MIN_LIT * size[0] * size[1]:
                break
        window = torch.rot90(window, turns, (1, 2))
        if self._augment and integer(generator, 0, 1):
            window = window.flip(2)
        return window.contiguous(), margin

    def _look(
        self, picture: Tensor, size: tuple[int, int], view: int, attempt: int, generator: torch.Generator
    ) -> FlatView | SphereView:
        last, number = attempt == self._attempts, view + 7919 * attempt
        if self._is_panorama(picture):
            if last:
                return SphereView.brightest(picture, size, self._limits)
            if self.split == "val":
                return SphereView.fixed(picture, size, self._limits, number)
            return SphereView.random(picture, size, self._limits, generator)
        if last:
            return FlatView.brightest(picture, size)
        if self.split == "val":
            return FlatView.fixed(picture, size, number)
        return FlatView.random(picture, size, generator)


def list_pictures(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below ``root`` with one of the suffixes, sorted by their relative names."""
    wanted = {suffix.lower() for suffix in suffixes}
    if not wanted or not wanted <= set(SUPPORTED_SUFFIXES):
        raise ValueError(f"suffixes must be among {', '.join(SUPPORTED_SUFFIXES)}, got {tuple(suffixes)!r}")
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of HDR pictures, there is none at {root}")
    # os.walk, because it can be told not to pass over a folder that it may not read.
    found = (Path(folder) / name for folder, _, names in os.walk(root, onerror=_raise) for name in names)
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    files = [path for path in visible if path.suffix.lower() in wanted and path.is_file()]
    if not files:
        raise FileNotFoundError(f"root has no pictures with suffix {', '.join(sorted(wanted))}: {root}")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _raise(error: OSError) -> None:
    raise error


def split_pictures(
    root: Path, files: list[Path], split: str, val_fraction: float, val_names: Collection[str] | None
) -> list[Path]:
    """Return the files of one split; a file is never in both."""
    if val_names is not None:
        held_out = {root / name for name in val_names}
        missing = sorted(str(path) for path in held_out - set(files))
        if missing:
            raise ValueError(f"val_names must be pictures below root, there is no {', '.join(missing)}")
    else:
        if not 0 <= val_fraction <= 1:
            raise ValueError(f"val_fraction must be in [0, 1], got {val_fraction!r}")
        count = max(1, round(val_fraction * len(files))) if val_fraction > 0 else 0
        held_out = set(files[len(files) - count :])
    if split == "all":
        return files
    chosen = [path for path in files if (path in held_out) == (split == "val")]
    if not chosen:
        raise ValueError(
            f'split "{split}" has no picture: {len(held_out)} of {len(files)} files are for validation; '
            "training and validation need a photograph each"
        )
    return chosen
