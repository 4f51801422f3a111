"""Data set of brackets simulated from a folder of HDR pictures."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from skt_components.data.dataset import SampleDataset, check_size
from skt_components.data.io import SUPPORTED_SUFFIXES, read_image
from skt_components.data.progress import progress_bar
from skt_components.data.sample import HDRSample
from skt_components.data.seeding import integer, log_uniform, make_generator
from skt_components.data.verify import Verification
from skt_components.files.digest import file_checksum
from skt_components.files.names import is_clutter
from skt_components.ops.checks import check_choice, check_count, check_fraction
from skt_components.simulation.bracket import simulate_bracket, simulate_raw_bracket
from skt_components.simulation.camera import Camera, RawCamera, picture_size
from skt_components.simulation.motion import Motion
from skt_components.simulation.views import FlatViews, SphereViews, lit_view

# Smallest share of a crop's pixels that must have light.
# Peaks outside are scaled to 1: sums of pixels would leave float32. The unit of radiance means nothing.
_USUAL = (2.0**-32, 2.0**64)


class HDRFolder(SampleDataset):
    """Simulate brackets from the HDR pictures in a folder and its subfolders, as a map-style data set.

    Pictures are sorted by name. The last ``val_fraction`` of the files are for validation. Panoramas (2:1
    equirectangular) give perspective views, flat pictures give crops. A training sample depends only on (seed, epoch,
    index), not on the number of workers. A validation sample depends only on (seed, file, view number). Validation
    views are spread evenly over the picture. They depend neither on the epoch nor on the length of the data set.
    Decoded pictures are cached in memory, up to ``cache_bytes``.

    Args:
        root: folder, searched recursively, also through links. A file that is linked several times counts once. Hidden
            files, and folders such as ``@eaDir`` that systems add, are ignored.
        crop: height and width of the targets in pixels (packed pixels with a :class:`RawCamera`). None: whole pictures,
            also whole panoramas.
        split: ``"train"`` and ``"val"`` share the files; ``"all"`` trains on every file.
        val_fraction: share of the files for validation, in [0, 1]; at least one file if above 0.
        val_names: the validation files instead, as paths relative to ``root``.
        seed: seed of every random choice.
        camera: camera of the exposures, RAW with a :class:`RawCamera`; None: :class:`Camera` with its defaults.
        motion: motion between the exposures; None: :class:`Motion` with its defaults.
        samples_per_epoch: length; None: one sample per file in training, eight in validation.
        panorama: treat pictures of exactly 2:1 as panoramas.
        fov: smallest and largest horizontal field of view in degrees. None: a pixel covers one to two panorama pixels,
            if the field of view is then between 20° and 90°.
        pitch: largest pitch up or down, in degrees.
        roll: largest roll, in degrees.
        augment: mirror training samples, and rotate samples of flat pictures by multiples of 90°.
        vary_colors: change training samples: permute the channels, scale each by up to a factor of 1.5, and raise the
            radiance to a power from 0.8 to 1.25, which changes the contrast.
        suffixes: suffixes of the files to use. Display-encoded pictures are not radiance, so add ``.tif`` only if the
            files are linear.
        max_attempts: number of random crops to try. If all are black, the crop is centered on the brightest pixel.
        cache_bytes: memory for decoded pictures, in each process.
        nonfinite: "raise": infinities and NaN in a picture are an error. "replace": as in :func:`read_image`.

    Raises:
        FileNotFoundError: the folder or its pictures are missing.
        ValueError: an option is outside its range. From ``[]``: a picture is broken, smaller than the crop or black;
            the message names the file. :meth:`check_pictures` finds such pictures before training.

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
        vary_colors: bool = False,
        suffixes: Sequence[str] = (".hdr", ".exr"),
        max_attempts: int = 8,
        cache_bytes: int = 2**29,
        nonfinite: str = "raise",
    ) -> None:
        check_choice("nonfinite", nonfinite, ("raise", "replace"))
        self._nonfinite = nonfinite
        check_choice("split", split, ("train", "val", "all"))
        self.root = Path(root)
        self.crop = None if crop is None else check_size("crop", crop)
        self.split = split
        self.seed = seed
        self.camera: Camera | RawCamera = camera or Camera()
        self._size = None if self.crop is None else picture_size("crop", self.crop, self.camera)
        self.motion = motion or Motion()
        self._panorama = panorama
        self._sphere_views = SphereViews(fov, pitch, roll)
        self._augment = augment and split != "val"
        self._vary_colors = vary_colors and split != "val"
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
        picture = self._cache.get(path, self.read_picture)
        window, margin = self._window(picture, view, generator)
        if self._vary_colors:
            window = vary_colors(window, generator)
        if isinstance(self.camera, RawCamera):
            return simulate_raw_bracket(window, self.camera, self.motion, generator, margin=margin, name=name)
        return simulate_bracket(window, self.camera, self.motion, generator, margin=margin, name=name)

    def check_pictures(self, *, progress: bool = True) -> None:
        """Read every picture once, to find pictures that cannot be used before the training starts.

        Args:
            progress: show a bar, in a terminal where tqdm is installed.

        Raises:
            ValueError: a picture is broken, smaller than the crop or black; the message names the file.
        """
        for path in progress_bar(self.files, "HDR pictures", "picture", progress):
            self._cache.get(path, self.read_picture)

    def read_picture(self, path: Path) -> Tensor:
        """Return the whole picture that samples are cut from. The ValueError for an unusable file names it."""
        picture = read_image(path, nonfinite=self._nonfinite).clamp_(min=0)
        peak = picture.max()
        if peak == 0:
            raise ValueError(f"{path}: the picture is black")
        if not _USUAL[0] < peak < _USUAL[1]:
            picture = picture / peak
        if self._size is None:
            return picture
        if self._is_panorama(picture):
            factor = self._sphere_views.reduction(picture, self._size[1])
            return F.avg_pool2d(picture[None], factor)[0] if factor > 1 else picture
        if picture.shape[-2] < self._size[0] or picture.shape[-1] < self._size[1]:
            shape = tuple(picture.shape[-2:])
            raw = f" for RAW, {self._size} pixels of the picture" if self._size != self.crop else ""
            raise ValueError(f"{path}: crop must fit the picture of {shape}, got {self.crop}{raw}")
        return picture

    def _is_panorama(self, picture: Tensor) -> bool:
        return self._panorama and self.crop is not None and picture.shape[-1] == 2 * picture.shape[-2]

    def _window(self, picture: Tensor, view: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return a lit piece of the picture, augmented, with its margin for camera motion."""
        size = self._size
        if size is None:  # the whole picture, without rows and columns that fill no pixel of the packed bracket
            block = self.camera.block if isinstance(self.camera, RawCamera) else 1
            size = (picture.shape[-2] // block * block, picture.shape[-1] // block * block)
        turns = 0
        if self._augment and not self._is_panorama(picture):
            turns = integer(generator, 0, 3)
            turned = size[::-1] if turns % 2 else size
            fits = turned[0] <= picture.shape[-2] and turned[1] <= picture.shape[-1]
            size, turns = (turned, turns) if fits else (size, turns - 1)
        margin = self.motion.margin(*size)
        views = self._sphere_views if self._is_panorama(picture) else FlatViews()
        number = view if self.split == "val" else None
        _, window = lit_view(views, picture, size, generator, margin=margin, attempts=self._attempts, number=number)
        window = torch.rot90(window, turns, (1, 2))
        if self._augment and integer(generator, 0, 1):
            window = window.flip(2)
        return window.contiguous(), margin


def vary_colors(radiance: Tensor, generator: torch.Generator) -> Tensor:
    """Return a picture (3, H, W) with other colors and another contrast, but the same largest value."""
    largest = radiance.max().clamp_min(1e-12)
    power = log_uniform(generator, 0.8, 1.25)
    gains = torch.tensor([log_uniform(generator, 1 / 1.5, 1.5) for _ in range(3)])
    order = torch.randperm(3, generator=generator)
    return (radiance[order] / largest) ** power * (gains / gains.max())[:, None, None] * largest


def verify_hdr_folder(
    root: str | os.PathLike[str],
    *,
    crop: int | tuple[int, int] | None = None,
    camera: Camera | RawCamera | None = None,
    suffixes: Sequence[str] = (".hdr", ".exr"),
    progress: bool = True,
) -> Verification:
    """Read every picture that :class:`HDRFolder` would use, and list the pictures that it would reject.

    It finds broken, black and too small pictures, infinities and NaN, files in which several parts could be the
    picture, and equal files, which could be in both splits.

    Args:
        root: the folder.
        crop, camera, suffixes: as for :class:`HDRFolder`.
        progress: show a bar, in a terminal where tqdm is installed.

    Raises:
        FileNotFoundError: the folder or its pictures are missing.
        ValueError: an argument is outside its range.
        ImportError: a package that reads the files is missing.

    Example:
        >>> verify_hdr_folder("photos", crop=256).problems  # doctest: +SKIP
        []
    """
    folder = HDRFolder(root, crop=crop, camera=camera, suffixes=suffixes, split="all", cache_bytes=0)
    problems, equal = list[str](), dict[str, Path]()
    for path in progress_bar(folder.files, "hdr-folder", "picture", progress):
        try:
            with warnings.catch_warnings(record=True) as remarks:
                warnings.simplefilter("always")
                folder.read_picture(path)
            problems += [str(remark.message) for remark in remarks]
            if (first := equal.setdefault(file_checksum(path), path)) != path:
                problems.append(f"{path}: is the same file as {first}, which could be in the other split")
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return Verification("hdr-folder", Path(root), {"all": len(folder.files)}, len(folder.files), problems)


class PictureCache:
    """Decoded pictures, the most recently used ones, within a budget of bytes; it pickles without them."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._pictures: OrderedDict[Path, Tensor] = OrderedDict()
        self.bytes = 0

    def __reduce__(self) -> tuple[type[PictureCache], tuple[int]]:
        return PictureCache, (self._budget,)

    def get(self, path: Path, load: Callable[[Path], Tensor]) -> Tensor:
        """Return the cached picture, or load and keep it; one larger than the whole budget is never kept."""
        if path in self._pictures:
            self._pictures.move_to_end(path)
            return self._pictures[path]
        picture = load(path)
        size = picture.nbytes
        if size <= self._budget:
            while self.bytes + size > self._budget:
                self.bytes -= self._pictures.popitem(last=False)[1].nbytes
            self._pictures[path] = picture
            self.bytes += size
        return picture


def list_pictures(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below ``root`` with one of the suffixes, sorted by their relative names, none of them twice."""
    wanted = {suffix.lower() for suffix in suffixes}
    if not wanted or not wanted <= set(SUPPORTED_SUFFIXES):
        raise ValueError(f"suffixes must be among {', '.join(SUPPORTED_SUFFIXES)}, got {tuple(suffixes)!r}")
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of HDR pictures, there is none at {root}")
    files = [path for path in _walk(root, set()) if path.suffix.lower() in wanted]
    if broken := [path for path in files if not path.exists()]:
        raise FileNotFoundError(f"{broken[0]}: the link leads to no file")
    files = [path for path in files if path.is_file()]
    if not files:
        raise FileNotFoundError(f"root has no pictures with suffix {', '.join(sorted(wanted))}: {root}")
    # A photograph that is linked twice would otherwise be in both splits. Its own path counts, else the first by name.
    base, first = os.path.realpath(root), dict[str, Path]()
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        real = os.path.realpath(path)
        if real not in first or real == os.path.join(base, path.relative_to(root)):
            first[real] = path
    return sorted(first.values(), key=lambda path: path.relative_to(root).as_posix())


def _walk(folder: Path, above: set[str]) -> Iterator[Path]:
    """Yield the files below a folder, through links but not in circles; OSError for a folder without permission."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if is_clutter(path.name):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        else:
            yield path


def split_pictures(
    root: Path, files: list[Path], split: str, val_fraction: float, val_names: Collection[str] | None
) -> list[Path]:
    """Return the files of one split; training and validation share no file."""
    if val_names is not None:
        held_out = {root / name for name in val_names}
        missing = sorted(str(path) for path in held_out - set(files))
        if missing:
            raise ValueError(f"val_names must be pictures below root, there is no {', '.join(missing)}")
    else:
        check_fraction("val_fraction", val_fraction)
        count = max(1, round(val_fraction * len(files))) if val_fraction > 0 else 0
        held_out = set(files[len(files) - count :])
    if split == "all":
        return files
    chosen = [path for path in files if (path in held_out) == (split == "val")]
    if not chosen:
        raise ValueError(
            f'split "{split}" has no picture: {len(held_out)} of {len(files)} files are for validation; '
            "training and validation need at least one photograph each"
        )
    return chosen
