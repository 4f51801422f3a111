"""Base class of the published data sets: samples from scenes in folders, whole or as crops."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skt_components.data import prepared
from skt_components.data.dataset import SampleDataset, check_size
from skt_components.data.sample import HDRSample
from skt_components.data.scene_layout import SceneLayout, StoredScene
from skt_components.data.seeding import make_generator
from skt_components.data.windows import AUGMENTATIONS, Array, Window, fixed_window, random_window
from skt_components.ops.checks import check_choice, check_count, warn_caller

_MAX_OPEN = 64  # mapped files; each holds a file descriptor


class SceneDataset(SampleDataset):
    """Read samples from scenes in folders, as published or as :func:`prepare` stored them.

    Without ``crop``, sample i is the whole scene i. With ``crop``, a sample is a window of a scene. In training all
    scenes are drawn equally often, and all positions are equally probable. The windows of the test split are fixed and
    spread evenly; if there are more scenes than samples, they are spread over the scenes too. The derived classes, such
    as :class:`Kalantari17` and :class:`BracketIRE`, describe the options.

    Attributes:
        is_prepared: True if ``root`` holds what :func:`prepare` stored.
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
        check_choice("split", split, tuple(layout.split_folders))
        self.domain = layout.domain
        check_choice("augment", augment, AUGMENTATIONS if self.domain == "raw" else AUGMENTATIONS[:2])
        if crop is None and (samples_per_epoch is not None or augment != "none"):
            raise ValueError("samples_per_epoch and augment need a crop; without one a sample is a whole scene")
        self.layout, self.root, self.split, self.seed = layout, Path(root), split, seed
        self.crop = None if crop is None else check_size("crop", crop)
        if self.crop is not None and any(side % layout.scale for side in self.crop):
            raise ValueError(f"crop must be multiples of {layout.scale}, the scale, got {crop!r}")
        self.border = check_count("border", border, 0)
        self.augment = augment if split == "train" else "none"
        self.is_prepared = prepared.is_prepared(self.root)
        if self.is_prepared:
            self.scenes = prepared.list_scenes(self.root, layout.name, split)
            prepared.check_scenes(self.root / layout.split_folders[split], self.scenes)
        else:
            self.scenes = layout.list_scenes(self.root, split)
            layout.check_scenes(self.root, split, self.scenes)
        self.folders = [layout.split_folder(self.root, split) / name for name in self.scenes]
        length = len(self.scenes) if samples_per_epoch is None else samples_per_epoch
        super().__init__(check_count("samples_per_epoch", length, 1), trains=split == "train" and crop is not None)
        self._open: OrderedDict[int, StoredScene] = OrderedDict()
        self._order_checked, self._order_warned = set[int](), False
        self._peak_warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a mapped array would be pickled whole

    def _draw(self, index: int, epoch: int) -> HDRSample:
        count = len(self.folders)
        view, number = divmod(index + epoch * len(self), count)
        if self.split != "train" and len(self) < count:
            number = index * count // len(self)  # neighbors by name are alike
        scene = self._cached_scene(number)
        window = self._window(scene, view, index, epoch)
        label = torch.from_numpy(scene.cut_label(window.times(self.layout.scale)))
        return self._make_sample(scene, scene.cut_frames(window), label, self.scenes[number].replace("/", "-"))

    def _window(self, scene: StoredScene, view: int, index: int, epoch: int) -> Window:
        _, height, width = scene.frame_shapes[0]
        size, border, scale = (height, width), self.border, self.layout.scale
        crop = (1, 1) if self.crop is None else (self.crop[0] // scale, self.crop[1] // scale)
        if any(part + 2 * border > full for part, full in zip(crop, size, strict=True)):
            raise ValueError(
                f"{scene.folder}: crop={self.crop} with border={border} does not fit into a bracket of {size}"
                + (f" at scale {scale}" if scale != 1 else "")
            )
        if self.crop is None:
            return Window(border, border, height - 2 * border, width - 2 * border)
        if self.split != "train":
            return fixed_window(size, crop, border, view)
        return random_window(
            size,
            crop,
            border,
            make_generator("train", self.layout.name, self.seed, epoch, index),
            augment=self.augment,
            mosaic=self.domain == "raw",
            transpose_only=scale != 1 and self.augment == "dihedral",
        )

    def _cached_scene(self, number: int) -> StoredScene:
        """Return scene ``number``, and keep it open if its pictures are not in memory."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        scene = self.open_scene(number)
        if self.is_prepared or self.layout.mapped:
            while not self.is_prepared and len(self._open) >= _MAX_OPEN // (len(scene.frame_shapes) + 1):
                self._open.popitem(last=False)
            self._open[number] = scene
        return scene

    def open_scene(self, number: int) -> StoredScene:
        """Read scene ``number`` as its files hold it, or map it if the format allows that."""
        folder = self.folders[number]
        scene = prepared.open_scene(self.layout, folder) if self.is_prepared else self.layout.read_scene(folder)
        self.layout.check(scene)
        if number not in self._order_checked and not self._order_warned:
            self._order_checked.add(number)
            for fault in self.layout.order_faults(scene):
                self._order_warned = True
                warn_caller(f"{fault}. skt data verify lists all such scenes")
                break
        return scene

    def _make_sample(self, scene: StoredScene, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        """Make the sample of a window: its exposures (C, h, w), in the numbers of the files, and its label."""
        raise NotImplementedError

    def _warn_above_peak(self, label: Tensor, scene: StoredScene, reason: str) -> None:
        """Warn once if a label is above 1, the peak of sRGB data."""
        if not self._peak_warned and (peak := label.numpy().max()) > 1:
            self._peak_warned = True
            warn_caller(
                f"{scene.label_file}: the label must not exceed the peak, 1, got {peak:g}: {reason}, or the picture is "
                "not from this data set"
            )


def stack_exposures(
    frames: list[Array], linear: npt.NDArray[np.float32], display: npt.NDArray[np.float32], times: npt.NDArray[Any]
) -> Tensor:
    """Return the bracket (N, 6, h, w) of exposures (3, h, w) in the numbers of their files.

    It holds the values of :func:`make_bracket`; looking powers up in a table takes a sixth of the time.

    Args:
        frames: N exposures of whole numbers.
        linear: light of each number, 1 at white.
        display: display value of each number.
        times: (N,) exposure times.
    """
    bracket = np.empty((len(times), 6, *frames[0].shape[1:]), np.float32)
    for planes, exposure, time in zip(bracket, frames, times, strict=True):
        numbers = np.ascontiguousarray(exposure).astype(np.intp)
        np.take(linear, numbers, out=planes[:3], mode="clip")
        planes[:3] /= np.float32(time)
        np.take(display, numbers, out=planes[3:], mode="clip")
    return torch.from_numpy(bracket)
