"""Data set of brackets simulated from sequences of linear frames, such as rendered videos."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from skt_components.data.dataset import SampleDataset, check_size
from skt_components.data.io import read_image
from skt_components.data.sample import HDRSample
from skt_components.data.seeding import integer, make_generator
from skt_components.ops.checks import check_choice, check_count, check_fraction
from skt_components.simulation.bracket import simulate_bracket_from_frames, simulate_raw_bracket_from_frames
from skt_components.simulation.camera import Camera, RawCamera, picture_size
from skt_components.simulation.hdr_folder import list_pictures
from skt_components.simulation.views import FlatViews, lit_view


class HDRSequences(SampleDataset):
    """Simulate brackets from sequences of linear HDR frames, such as rendered videos, as a map-style data set.

    An example is S2R-HDR. A sequence is a folder of frames, sorted by name as text. Exposure i of a bracket is frame
    ``first + i * step``, seen through the simulated camera. So the motion is the motion of the video. A
    :class:`RawCamera` spreads the same frames over the time of the bracket. Sequences are sorted by the name of their
    folder. The last ``val_fraction`` of them are for validation. A training sample depends only on (seed, epoch,
    index), a validation sample only on (seed, sequence, number).

    Args:
        root: folder, searched recursively, through links too.
        crop: height and width of the targets in pixels (packed pixels with a :class:`RawCamera`); None: whole frames.
        split: "train" and "val" share the sequences; "all" trains on every sequence.
        val_fraction: share of the sequences for validation, in [0, 1]; at least one sequence if above 0.
        seed: seed of every random choice.
        camera: camera of the exposures, RAW with a :class:`RawCamera`; None: :class:`Camera` with its defaults.
        step: frames from one exposure to the next.
        samples_per_epoch: length; None is one sample per sequence.
        augment: mirror training samples, and reverse their time, at random.
        pattern: pattern of the paths of frames, relative to ``root``. ``"*/image/*"`` excludes depth and optical flow
            in neighboring folders.
        suffixes: suffixes of the files to use.
        nonfinite: "raise": infinities and NaN in a frame are an error. "replace": as in :func:`read_image`.

    Raises:
        FileNotFoundError: the folder or its frames are missing.
        ValueError: an option is outside its range, or no sequence is long enough. From ``[]``: a frame is broken,
            smaller than the crop, or has another size than the first frame of its bracket; the message names the file.

    Example:
        >>> data = HDRSequences("S2R-HDR", crop=256, samples_per_epoch=10_000)  # doctest: +SKIP
        >>> data[0].bracket.shape  # doctest: +SKIP
        torch.Size([3, 6, 256, 256])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        crop: int | tuple[int, int] | None = None,
        split: str = "train",
        val_fraction: float = 0.1,
        seed: int = 0,
        camera: Camera | RawCamera | None = None,
        step: int = 1,
        samples_per_epoch: int | None = None,
        augment: bool = True,
        pattern: str = "*",
        suffixes: Sequence[str] = (".exr",),
        nonfinite: str = "raise",
    ) -> None:
        check_choice("nonfinite", nonfinite, ("raise", "replace"))
        check_choice("split", split, ("train", "val", "all"))
        self.root, self.split, self.seed = Path(root), split, seed
        self.crop = None if crop is None else check_size("crop", crop)
        self.camera: Camera | RawCamera = camera or Camera()
        self._size = None if self.crop is None else picture_size("crop", self.crop, self.camera)
        self._step = check_count("step", step, 1)
        self._span = (len(self.camera.exposure_times) - 1) * step + 1  # frames from the first exposure to the last
        self._augment, self._nonfinite = augment and split != "val", nonfinite
        self.sequences = self._list_sequences(suffixes, pattern, val_fraction)
        length = len(self.sequences) if samples_per_epoch is None else samples_per_epoch
        super().__init__(check_count("samples_per_epoch", length, 1), trains=split != "val")

    def _list_sequences(self, suffixes: Sequence[str], pattern: str, val_fraction: float) -> list[list[Path]]:
        """Return the frames of each sequence of the split."""
        check_fraction("val_fraction", val_fraction)
        files = list_pictures(self.root, suffixes)
        files = [path for path in files if fnmatch.fnmatch(path.relative_to(self.root).as_posix(), pattern)]
        by_folder = sorted(files, key=lambda path: (path.parent, path.name))
        sequences = [list(frames) for _, frames in groupby(by_folder, key=lambda path: path.parent)]
        long = [frames for frames in sequences if len(frames) >= self._span]
        if not long:
            longest = max(map(len, sequences), default=0)
            raise ValueError(
                f"root must have folders of at least {self._span} frames like {pattern!r}, the longest of "
                f"{len(sequences)} in {self.root} has {longest}"
            )
        held_out = max(1, round(val_fraction * len(long))) if val_fraction > 0 else 0
        start = len(long) - held_out
        chosen = {"train": long[:start], "val": long[start:], "all": long}[self.split]
        if not chosen:
            raise ValueError(f'split "{self.split}" has no sequence: {held_out} of {len(long)} are for validation')
        return chosen

    def _draw(self, index: int, epoch: int) -> HDRSample:
        number, which = divmod(index + epoch * len(self), len(self.sequences))
        files = self.sequences[which]
        name = files[0].parent.relative_to(self.root).as_posix()
        key = (name, number) if self.split == "val" else (epoch, index)
        generator = make_generator(self.split, "HDRSequences", self.seed, *key)
        first = integer(generator, 0, len(files) - self._span)
        files = files[first : first + self._span : self._step]
        if self._augment and integer(generator, 0, 1):
            files = files[::-1]
        frames = self._cut([self._read(path) for path in files], files, number, generator)
        if self._augment and integer(generator, 0, 1):
            frames = frames.flip(3)
        if isinstance(self.camera, RawCamera):
            return simulate_raw_bracket_from_frames(frames, self.camera, generator, name=name)
        return simulate_bracket_from_frames(frames, self.camera, generator, name=name)

    def _read(self, path: Path) -> Tensor:
        return read_image(path, nonfinite=self._nonfinite).clamp_(min=0)

    def _cut(self, frames: list[Tensor], files: list[Path], number: int, generator: torch.Generator) -> Tensor:
        """Return the same lit window of all frames, (N, 3, H, W)."""
        for path, frame in zip(files, frames, strict=True):
            if frame.shape != frames[0].shape:
                wanted, found = ("x".join(map(str, full.shape[-2:])) for full in (frames[0], frame))
                raise ValueError(f"{path}: frames of a sequence must have one size, {wanted}, got {found}")
        reference = frames[0 if isinstance(self.camera, RawCamera) else self.camera.reference_index]
        block = self.camera.block if isinstance(self.camera, RawCamera) else 1
        full = (reference.shape[-2] // block * block, reference.shape[-1] // block * block)
        size = full if self._size is None else self._size
        if size[0] > full[0] or size[1] > full[1]:
            raise ValueError(f"{files[0]}: crop must fit the frame of {tuple(reference.shape[-2:])}, got {self.crop}")
        fixed = number if self.split == "val" else None
        place, _ = lit_view(FlatViews(), reference, size, generator, margin=0, attempts=8, number=fixed)
        return torch.stack([place.window(frame, size, 0) for frame in frames])
