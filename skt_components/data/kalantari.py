"""Kalantari's and Tel's data sets: three sRGB exposures of a moving scene and its radiance."""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from skt_components.data.formats import decode_tif
from skt_components.data.radiance import read_hdr
from skt_components.data.sample import HDRSample
from skt_components.data.scene_dataset import SceneDataset, stack_exposures
from skt_components.data.scene_layout import Info, SceneFiles, SceneLayout, StoredScene
from skt_components.data.windows import Array
from skt_components.files.names import find_entry, is_clutter
from skt_components.files.numpy_files import open_file
from skt_components.ops.checks import check_choice

_EXPOSURES, _LABEL = "exposure.txt", "HDRImg.hdr"
_FRAMES = 3
_GAMMA = 2.2


class KalantariLayout(SceneLayout):
    """Three 16-bit TIFF exposures, a Radiance label and a text file of exposure values."""

    domain = "srgb"
    picture_size = (1000, 1500)
    white = 65535
    frames_shape = (_FRAMES, 3)
    order_rule = (
        f"{_EXPOSURES} has the values of the .tif files sorted by name as text, as published: 10.tif comes before 8.tif"
    )

    def __init__(self, name: str, scene_counts: dict[str, int]) -> None:
        self.name, self.scene_counts = name, scene_counts
        self.info_shapes = {"ev": (_FRAMES,)}
        self.split_folders = {"train": "Training", "test": "Test"}

    def list_scenes(self, root: Path, split: str) -> list[str]:
        """Return the sorted names of a split's scenes, or of the folders of scenes in it: ``EXTRA/BarbequeDay``."""
        folder, scenes = self.split_folder(root, split), list[str]()
        for name in super().list_scenes(root, split):
            entries = [] if _exposure_files(folder / name) else sorted((folder / name).iterdir())
            groups = [f"{name}/{path.name}" for path in entries if path.is_dir() and not is_clutter(path.name)]
            scenes += groups or [name]
        return sorted(scenes)

    def files(self, folder: Path) -> SceneFiles:
        """Return the files of a scene."""
        label, info = find_entry(folder, _LABEL), find_entry(folder, _EXPOSURES)
        return SceneFiles(_exposure_files(folder), label, info)

    def exposure_values(self, info: Info) -> list[float]:
        """Return the exposure values in stops."""
        return list(info["ev"])

    def missing_files(self, folder: Path) -> list[str]:
        """Return one message for each file that a scene's folder lacks, and one for a wrong number of exposures."""
        missing, found = super().missing_files(folder), len(_exposure_files(folder))
        return [*missing, f"{folder}: must have {_FRAMES} .tif exposures, has {found}"] if found != _FRAMES else missing

    def read_frame(self, path: Path) -> Array:
        """Read an exposure."""
        with open_file(path):
            return decode_tif(path, bits=16)

    def read_label(self, path: Path) -> Array:
        """Read the label."""
        with open_file(path):
            return read_hdr(path)

    def read_info(self, files: SceneFiles) -> Info:
        """Read the exposure file."""
        return {"ev": read_exposure_values(files.info)}

    def info_faults(self, info: Info) -> Iterator[str]:
        """Yield a message if the exposure values do not rise."""
        yield from exposure_faults(info)


def exposure_faults(info: Info) -> Iterator[str]:
    """Yield a message if the exposure values ``info["ev"]`` do not rise."""
    if sorted(set(info["ev"])) != info["ev"]:
        yield f"exposure values must rise, got {info['ev']}"


def _exposure_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    label = Path(_LABEL).stem.casefold()
    return sorted(path for path in found if not is_clutter(path.name) and path.stem.casefold() != label)


def read_exposure_values(path: Path, count: int = _FRAMES, unit: str = "stops") -> list[float]:
    """Read the exposures of ``count`` frames from a text file, and return them in stops, from -30 to 30.

    Byte order marks, UTF-16, decimal commas and commas or semicolons between the values are understood, and times as
    fractions, ``1/60``.

    Args:
        path: the file.
        count: number of values that it must hold.
        unit: "stops", or "times" in any unit.

    Raises:
        ValueError: the file, which the message names, holds something else.
    """
    with open_file(path) as file:
        data = file.read(4096)
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig", "replace").replace("\u2212", "-").replace(";", " ")
    words = [word.strip(",") for word in text.split()]
    if len(words) == 1:
        words = words[0].split(",")
    try:
        values = [to_stops(word.replace(",", "."), unit) for word in words]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if len(values) != count or not all(math.isfinite(v) and abs(v) <= 30 for v in values):
        shown = " ".join(text.replace("\x00", "?").split())[:80]
        wanted = "exposure values in stops, from -30 to 30" if unit == "stops" else "exposure times"
        raise ValueError(f"{path}: must hold {count} {wanted}, got {shown!r}")
    return values


def to_stops(word: str, unit: str) -> float:
    """Return an exposure in stops; a time may be a fraction such as ``1/60``."""
    if unit == "stops":
        return float(word)
    numerator, _, denominator = word.partition("/")
    return math.log2(float(numerator) / float(denominator or 1))


KALANTARI = KalantariLayout("Kalantari17", {"train": 74, "test": 15})
TEL = KalantariLayout("Tel23", {"train": 108, "test": 36})


class Kalantari17(SceneDataset):
    """Kalantari and Ramamoorthi's data set: 74 training and 15 test scenes of 1000×1500 pixels.

    ``{root}/{Training,Test}/{scene}/`` holds three 16-bit ``.tif`` exposures, ``exposure.txt`` (three lines: their
    exposure values in stops) and ``HDRImg.hdr``, the radiance in the reference exposure, the middle one. The
    exposures are sorted by name as text, as in the published code (``10.tif`` comes before ``8.tif``). The values are
    in this order. If the brightness does not rise with the values, there is a warning. ``root`` may also be a copy that
    :func:`prepare` wrote: it gives the same samples faster.

    The default preprocessing is the same as in HDR-Transformer and SCTNet. Exposures are divided by 65536. Linear
    radiance is ``ldr ** 2.2 / t`` with ``t = 2 ** EV``. Labels are unchanged. There is no border and no augmentation.
    Colors are always in the order R, G, B. The published weights of these networks expect B, G, R, and
    ``from_official`` converts them. The archive can be used as downloaded: its ``Test/EXTRA`` and ``Test/PAPER`` are
    folders of scenes.

    Args:
        root: folder of the data set, as published or as prepared.
        split: "train" or "test".
        crop: height and width in pixels; None: whole scenes. In the test split windows spread evenly.
        seed: seed of the crops.
        samples_per_epoch: length with a crop; None is one sample per scene.
        augment: "none", or "dihedral": the eight symmetries of the square, in training.
        ldr_scale: divisor of the 16-bit numbers: 65536 as in the published code, or 65535.
        exposure_norm: "raw" uses the exposure values of the file. "relative_to_min" shifts the smallest value to 0.

    Raises:
        FileNotFoundError: the folder, a split or a scene's file is missing.
        ValueError: an option is out of range, or, from ``[]``, a file is broken; the message names it.

    Example:
        >>> data = Kalantari17("sig17", crop=256, augment="dihedral", samples_per_epoch=10_000)  # doctest: +SKIP
        >>> data[0].bracket.shape  # doctest: +SKIP
        torch.Size([3, 6, 256, 256])

    Reference:
        Kalantari, Ramamoorthi. Deep high dynamic range imaging of dynamic scenes. SIGGRAPH 2017.
    """

    _layout: ClassVar[SceneLayout] = KALANTARI

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        crop: int | tuple[int, int] | None = None,
        *,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        augment: str = "none",
        ldr_scale: int = 65536,
        exposure_norm: str = "raw",
    ) -> None:
        check_choice("ldr_scale", ldr_scale, (65535, 65536))
        check_choice("exposure_norm", exposure_norm, ("raw", "relative_to_min"))
        self.ldr_scale, self.exposure_norm = ldr_scale, exposure_norm
        self._display = (np.arange(65536) / np.float32(ldr_scale)).astype(np.float32)
        self._linear = ((np.arange(65536) / ldr_scale) ** _GAMMA).astype(np.float32)
        super().__init__(
            self._layout, root, split, crop, seed=seed, samples_per_epoch=samples_per_epoch, augment=augment
        )

    def _make_sample(self, scene: StoredScene, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        ev = np.array(scene.info["ev"], np.float64)
        times = np.exp2(ev - ev.min() if self.exposure_norm == "relative_to_min" else ev)
        # The published code adds 1e-8, which moves the last bit where times are below 1.
        bracket = stack_exposures(frames, self._linear, self._display, times + 1e-8)
        self._warn_above_peak(label, scene, f"the exposure values {scene.info['ev']} do not start at 0")
        return HDRSample(bracket, torch.from_numpy(times).float(), label, name, self.domain)


class Tel23(Kalantari17):
    """Tel, Heyrman and Ginhac's data set: 108 training and 36 test scenes in the layout of :class:`Kalantari17`.

    ``{root}/{Training,Test}/{scene}/{input_1,input_2,input_3}.tif`` with ``exposure.txt`` and ``HDRImg.hdr``; 1000×1500
    pixels. Arguments, defaults and errors: see :class:`Kalantari17`. The benchmark's inputs were corrected
    after the paper appeared, so old and new numbers differ.

    Example:
        >>> Tel23("sct", split="test")[0].target.shape  # doctest: +SKIP
        torch.Size([3, 1000, 1500])

    Reference:
        Tel, Heyrman, Ginhac. Alignment-free HDR deghosting with semantics consistent transformer. ICCV 2023.
    """

    _layout = TEL
