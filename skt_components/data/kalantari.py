"""Kalantari's and Tel's data sets: three sRGB exposures of a moving scene and its radiance."""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from skt_components.data.formats import decode_tif
from skt_components.data.radiance import read_hdr
from skt_components.data.sample import HDRSample
from skt_components.data.scene_dataset import SceneDataset
from skt_components.data.scene_layout import Info, SceneLayout, StoredScene
from skt_components.data.windows import Array
from skt_components.files.names import find_entry, is_clutter
from skt_components.files.numpy_files import open_file
from skt_components.ops.checks import check_choice, warn_caller

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

    def files(self, folder: Path) -> list[Path]:
        """Return the files of a scene: the exposures from short to long, the label, the exposure file."""
        return [*_exposure_files(folder), find_entry(folder, _LABEL), find_entry(folder, _EXPOSURES)]

    def exposure_values(self, info: Info) -> list[float]:
        """Return the exposure values in stops."""
        return list(info["ev"])

    def missing_files(self, folder: Path) -> list[str]:
        """Return one message for each file that a scene's folder lacks, and one for a wrong number of exposures."""
        missing, found = super().missing_files(folder), len(_exposure_files(folder))
        return [*missing, f"{folder}: must have {_FRAMES} .tif exposures, has {found}"] if found != _FRAMES else missing

    def read_file(self, path: Path) -> Any:
        """Read an exposure, the label or the exposure file."""
        if path.name.casefold() == _EXPOSURES:
            return {"ev": read_exposure_values(path)}
        with open_file(path):
            pass
        if path.name.casefold() == _LABEL.casefold():
            return read_hdr(path)
        return decode_tif(path, bits=16)

    def info_faults(self, info: Info) -> Iterator[str]:
        """Yield a message if the exposure values do not rise."""
        if sorted(set(info["ev"])) != info["ev"]:
            yield f"exposure values must rise, got {info['ev']}"


def _exposure_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    label = Path(_LABEL).stem.casefold()
    return sorted(path for path in found if not is_clutter(path.name) and path.stem.casefold() != label)


def read_exposure_values(path: Path) -> list[float]:
    """Read an exposure file: one exposure value in stops per line; ValueError unless three, from -30 to 30.

    Byte order marks, UTF-16, decimal commas and commas or semicolons between the values are understood.
    """
    with open_file(path) as file:
        data = file.read(4096)
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig", "replace").replace("\u2212", "-").replace(";", " ")
    words = [word.strip(",") for word in text.split()]
    if len(words) == 1:
        words = words[0].split(",")
    try:
        values = [float(word.replace(",", ".")) for word in words]
    except ValueError:
        values = []
    if len(values) != _FRAMES or not all(math.isfinite(v) and abs(v) <= 30 for v in values):
        shown = " ".join(text.replace("\x00", "?").split())[:80]
        raise ValueError(f"{path}: must hold {_FRAMES} exposure values in stops, from -30 to 30, got {shown!r}")
    return values


KALANTARI = KalantariLayout("Kalantari17", {"train": 74, "test": 15})
TEL = KalantariLayout("Tel23", {"train": 108, "test": 36})


class Kalantari17(SceneDataset):
    """Kalantari and Ramamoorthi's data set: 74 training and 15 test scenes of 1000×1500 pixels.

    ``{root}/{Training,Test}/{scene}/`` holds three 16-bit ``.tif`` exposures, ``exposure.txt`` (three lines: their
    exposure values in stops) and ``HDRImg.hdr``, the radiance in the reference exposure, the middle one. The
    exposures are sorted by name as text, as in the published code (``10.tif`` comes before ``8.tif``), and the values
    are in this order; a warning says so if the brightness does not rise with them. ``root`` may also be what
    :func:`prepare` made of it: the same samples, faster.

    The default preprocessing is the one of HDR-Transformer and SCTNet: the exposures divided by 65536, linear radiance
    ``ldr ** 2.2 / t`` with ``t = 2 ** EV``, labels as they are, no border left out, no augmentation. Colors are always
    in the order R, G, B; ``from_official`` converts the published weights of these networks, which expect B, G, R.

    Args:
        root: folder of the data set, as published or as prepared.
        split: "train" or "test".
        crop: height and width in pixels; None: whole scenes. In the test split windows spread evenly.
        seed: of the crops.
        samples_per_epoch: length with a crop; None is one sample per scene.
        augment: "none", or "dihedral": the eight symmetries of the square, in training.
        ldr_scale: divisor of the 16-bit numbers: 65536 as in the published code, or 65535.
        exposure_norm: "raw" takes the exposure values as they are, "relative_to_min" makes the shortest 0.

    Raises:
        FileNotFoundError: the folder, a split or a scene's file is missing.
        ValueError: an option is out of range; from ``[]``, if a file, which the message names, is broken.

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
        self._linear = ((np.arange(65536) / ldr_scale) ** _GAMMA).astype(np.float32)
        self._warned = False
        options: Any = {"seed": seed, "samples_per_epoch": samples_per_epoch, "augment": augment}
        super().__init__(self._layout, root, split, crop, **options)

    def _make_sample(self, scene: StoredScene, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        ev = np.array(scene.info["ev"], np.float64)
        times = np.exp2(ev - ev.min() if self.exposure_norm == "relative_to_min" else ev)
        # The same as make_bracket, with a table for the power: it takes a sixth of the time.
        bracket = np.empty((len(times), 6, *frames[0].shape[1:]), np.float32)
        for planes, exposure, time in zip(bracket, frames, times, strict=True):
            numbers = np.ascontiguousarray(exposure)
            np.take(self._linear, numbers.astype(np.intp), out=planes[:3], mode="clip")
            # The published code adds 1e-8, which moves the last bit where times are below 1.
            planes[:3] /= np.float32(time + 1e-8)
            np.divide(numbers, np.float32(self.ldr_scale), out=planes[3:])
        if not self._warned and (peak := label.numpy().max()) > 1:
            self._warned = True
            warn_caller(
                f"{scene.label_file}: the label reaches {peak:g}, above 1, the peak: the exposure values "
                f"{scene.info['ev']} do not start at 0, or the picture is not from this data set"
            )
        return HDRSample(torch.from_numpy(bracket), torch.from_numpy(times).float(), label, name, self.domain)


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
