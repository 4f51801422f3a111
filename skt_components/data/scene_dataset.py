"""Data sets of photographed scenes in folders: what Kalantari's, Tel's and BracketIRE's have in common."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skt_components.data import prepared_scene as prepared
from skt_components.data.dataset import SampleDataset
from skt_components.data.layout import SPLITS, SceneLayout
from skt_components.data.sample import HDRSample
from skt_components.data.seeding import check_size, make_generator
from skt_components.data.stored_scene import Array, Stored
from skt_components.data.windows import AUGMENTATIONS, Window, fixed_window, random_window, whole_window
from skt_components.ops.checks import check_choice, check_count

# Mapped files that stay open; each costs a file descriptor.
_MOST_OPEN = 64


class SceneDataset(SampleDataset):
    """Samples from scenes that lie in folders, as published or as :func:`prepare` stored them.

    Without ``crop`` sample i is scene i, whole. With one, sample i of an epoch is a window into a scene: every scene
    comes up equally often, every position in it is equally likely, and in the test split the windows are the same
    ones always, spread evenly. A sample depends on (seed, epoch, index) alone, whatever the number of workers.

    Args:
        layout: where the files lie and how they are read.
        root: the data set's folder.
        split: "train" or "test".
        crop: height and width of the target in (packed) pixels; None: whole scenes.
        seed: of every random choice.
        samples_per_epoch: length with a crop; None is one sample per scene. Fewer than there are scenes are spread
            evenly over them in the test split.
        augment: see the data set.
        border: (packed) pixels of the bracket that are left out on each side.
    """

    def __init__(
        self,
        layout: SceneLayout,
        root: str | os.PathLike[str],
        split: str,
        crop: int | tuple[int, int] | None,
        *,
        seed: int,
        samples_per_epoch: int | None,
        augment: str,
        border: int = 0,
    ) -> None:
        check_choice("split", split, SPLITS)
        self.domain = layout.domain
        choices = AUGMENTATIONS if self.domain == "raw" else AUGMENTATIONS[:2]
        check_choice("augment", augment, choices)
        if crop is None and (samples_per_epoch is not None or augment != "none"):
            raise ValueError("samples_per_epoch and augment go with a crop; without one a sample is a whole scene")
        self.layout, self.root, self.split, self.seed = layout, Path(root), split, seed
        self.crop = None if crop is None else check_size("crop", crop)
        if self.crop is not None and any(side % layout.scale for side in self.crop):
            raise ValueError(f"crop must be multiples of {layout.scale}, the scale, got {crop!r}")
        self.border = check_count("border", border, 0)
        self.augment = augment if split == "train" else "none"
        self.is_prepared = prepared.is_prepared(self.root)
        """Whether ``root`` is what :func:`prepare` stored."""
        if self.is_prepared:
            self.scenes = prepared.list_scenes(self.root, layout.name, split)
            prepared.check_scenes(self.root / layout.split_folders[split], self.scenes)
        else:
            self.scenes = layout.list_scenes(self.root, split)
            layout.check_scenes(self.root, split, self.scenes)
        self.folders = [self.root / layout.split_folders[split] / name for name in self.scenes]
        length = len(self.scenes) if samples_per_epoch is None else samples_per_epoch
        super().__init__(check_count("samples_per_epoch", length, 1), trains=split == "train" and crop is not None)
        self._open: OrderedDict[int, Stored] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a mapped array would be pickled whole

    def _draw(self, index: int, epoch: int) -> HDRSample:
        count = len(self.folders)
        view, number = divmod(index + epoch * len(self), count)
        if self.split != "train" and len(self) < count:
            number = index * count // len(self)  # neighbours by name are alike
        stored = self._scene(number)
        window = self._window(stored, view, index, epoch)
        label = torch.from_numpy(stored.cut_label(window.times(self.layout.scale)))
        return self._make(stored, stored.cut_frames(window), label, self.scenes[number].replace("/", "-"))

    def _window(self, stored: Stored, view: int, index: int, epoch: int) -> Window:
        _, *sides = stored.frame_shapes[0]
        size = (sides[0], sides[1])
        crop = (1, 1) if self.crop is None else (self.crop[0] // self.layout.scale, self.crop[1] // self.layout.scale)
        if any(part + 2 * self.border > full for part, full in zip(crop, size, strict=True)):
            raise ValueError(
                f"{stored.folder}: crop={self.crop} with border={self.border} does not fit into a bracket of {size}"
                + (f" at scale {self.layout.scale}" if self.layout.scale != 1 else "")
            )
        if self.crop is None:
            return whole_window(size, self.border)
        if self.split != "train":
            return fixed_window(size, crop, self.border, view)
        return random_window(
            size,
            crop,
            self.border,
            make_generator("train", self.layout.name, self.seed, epoch, index),
            augment=self.augment,
            mosaic=self.domain == "raw",
            transpose_only=self.layout.scale != 1 and self.augment == "dihedral",
        )

    def _scene(self, number: int) -> Stored:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        stored = self.open_scene(number)
        if self.is_prepared or self.layout.mapped:  # kept without any picture in memory
            while not self.is_prepared and len(self._open) >= _MOST_OPEN // (len(stored.frame_shapes) + 1):
                self._open.popitem(last=False)
            self._open[number] = stored
        return stored

    def open_scene(self, number: int) -> Stored:
        """Read scene ``number`` as its files hold it, or map it where they allow that.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is broken, or is not what the data set has; the message names it.
        """
        folder = self.folders[number]
        stored = prepared.open_scene(self.layout, folder) if self.is_prepared else self.layout.read_scene(folder)
        self.layout.check(stored)
        return stored

    def _make(self, stored: Stored, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        """Make the sample of a window of a scene: its exposures (C, h, w), in the numbers of the files, and label."""
        raise NotImplementedError
