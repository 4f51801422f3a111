"""BracketIRE and BracketIRE+: five RAW exposures of a moving scene in low light, and its clean RAW radiance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skt_components.data.sample import HDRSample
from skt_components.data.scene_dataset import SceneDataset
from skt_components.data.scene_layout import SPLITS, Info, SceneFiles, SceneLayout, StoredScene
from skt_components.data.windows import Array
from skt_components.files.names import find_entry
from skt_components.files.numpy_files import map_array, read_metadata
from skt_components.ops.checks import check_choice

TIMES = (1, 4, 16, 64, 256)
WHITE = 1023  # 10 bits
# Frame i covers radiance up to 4^(2 - i): one linear scale for all, whose peak is 16.
_SCALES = tuple(4.0 ** (2 - i) for i in range(len(TIMES)))
_LABEL, _METADATA = "raw_gt.npy", "metadata.npy"
_BORDERS = {(1, "train"): 10, (4, "train"): 4, (1, "test"): 5, (4, "test"): 2}


class BracketIRELayout(SceneLayout):
    """Five packed 10-bit exposures, a packed float label and pickled metadata, all ``.npy``."""

    domain = "raw"
    picture_size = (540, 960)
    depth = 2
    white = WHITE
    frames_shape = (len(TIMES), 4)
    order_rule = "the names of the files are their exposure times"
    mapped = True

    def __init__(self, scale: int) -> None:
        self.name, self.scale = ("BracketIRE" if scale == 1 else "BracketIRE+"), scale
        self.split_folders = {"train": "Train", "test": "Test"}
        self.scene_counts = {"train": 1045, "test": 290}
        self.info_shapes = {"white_balance": (3,), "color_matrix": (3, 3)}

    def files(self, folder: Path) -> SceneFiles:
        """Return the files of a frame."""
        inputs = folder if self.scale == 1 else find_entry(folder, "x4")
        exposures = [find_entry(inputs, f"raw_{time}.npy") for time in TIMES]
        return SceneFiles(exposures, find_entry(folder, _LABEL), find_entry(folder, _METADATA))

    def exposure_values(self, info: Info) -> list[float]:
        """Return the exposure times."""
        return list(map(float, TIMES))

    def read_frame(self, path: Path) -> Array:
        """Map an exposure."""
        exposure = map_array(path, channels=4, kinds="u")
        if exposure.dtype.itemsize != 2:
            raise ValueError(f"{path}: must hold uint16, got {exposure.dtype}")
        return exposure

    def read_label(self, path: Path) -> Array:
        """Map the label."""
        return map_array(path, channels=4, kinds="f")

    def read_info(self, files: SceneFiles) -> Info:
        """Read white balance and color matrix."""
        return _read_colors(files.info)


def _read_colors(path: Path) -> dict[str, list[float] | list[list[float]]]:
    """Read white balance and color matrix; ValueError unless ``red_gain``, ``blue_gain`` and ``cam2rgb`` are good."""
    metadata = read_metadata(path)
    for key, size in {"red_gain": 1, "blue_gain": 1, "cam2rgb": 9}.items():
        value = metadata.get(key)
        if value is None or value.size != size or not np.isfinite(value).all():
            got = f"it has {', '.join(sorted(metadata))[:200]}" if value is None else f"got {str(value.tolist())[:80]}"
            raise ValueError(f"{path}: {key} must be {size} finite number{'s' * (size > 1)}, {got}")
    matrix = metadata["cam2rgb"].reshape(3, 3)
    gains = [float(metadata["red_gain"].item()), 1.0, float(metadata["blue_gain"].item())]
    if min(gains) <= 0 or not abs(np.linalg.det(matrix)) > 1e-6:
        raise ValueError(f"{path}: gains must be above 0 and cam2rgb invertible, got {gains} and {matrix.tolist()}")
    return {"white_balance": gains, "color_matrix": matrix.tolist()}


BRACKETIRE, BRACKETIRE_PLUS = BracketIRELayout(1), BracketIRELayout(4)


class BracketIRE(SceneDataset):
    """BracketIRE's synthetic data set: 1045 training and 290 test brackets of five 10-bit RAW exposures.

    ``{root}/{Train,Test}/{scene}/{frame}/`` contains three kinds of files of 540×960 packed pixels:

    - ``raw_{1,4,16,64,256}.npy``: uint16, 0 to 1023, H×W×4: packed R, Gr, Gb, B;
    - ``raw_gt.npy``: floats from 0 to 16;
    - ``metadata.npy``: a pickled dict, which is read without running code from it.

    With ``scale=4`` (BracketIRE+) the exposures come from ``{frame}/x4/`` and are a quarter as large. ``root`` may also
    be a copy that :func:`prepare` wrote.

    Samples are on one linear scale: exposure i is divided by 1023 and multiplied by ``4 ** (2 - i)``, where it
    saturates. The target is unchanged. Use ``peak=16`` in networks and losses. The reference is the first exposure.
    ``metadata`` contains the white balance and the matrix from the camera's RGB to linear sRGB.

    Args:
        root: folder of the data set, as published or as prepared.
        split: "train" or "test".
        crop: height and width of the target in packed pixels (for ``scale=4`` the bracket's are a quarter); None:
            whole frames. In the test split windows spread evenly.
        scale: 1, or 4 for BracketIRE+.
        border: packed pixels of the bracket that are cropped on each side. None is the published protocol: 10 for crops
            in training (4 for BracketIRE+), 0 for whole training frames, 5 in the test split (2 for BracketIRE+). The
            NTIRE 2024 challenge used 0.
        seed: seed of the crops.
        samples_per_epoch: length with a crop; None is one sample per frame.
        augment: augmentation of training crops. "none". "dihedral": the eight symmetries of the mosaic, which keep red
            samples on red positions (with ``scale=4`` only transposition, the only symmetry of the small planes).
            "planes": flips and transposition of the packed planes as in the published code, which shift the colors by
            a pixel.

    Raises:
        FileNotFoundError: the folder, a split or a frame's file is missing.
        ValueError: an option is out of range, or, from ``[]``, a file is broken; the message names it.

    Example:
        >>> data = BracketIRE("bracketire", crop=128, augment="dihedral")  # doctest: +SKIP
        >>> data[0].bracket.shape, data[0].target.shape  # doctest: +SKIP
        (torch.Size([5, 4, 128, 128]), torch.Size([4, 128, 128]))

    Reference:
        Zhang et al. Exposure bracketing is all you need for a high-quality image. ICLR 2025.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        crop: int | tuple[int, int] | None = None,
        *,
        scale: int = 1,
        border: int | None = None,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        augment: str = "none",
    ) -> None:
        check_choice("scale", scale, (1, 4))
        check_choice("split", split, SPLITS)
        if border is None:
            border = 0 if split == "train" and crop is None else _BORDERS[scale, split]
        options: Any = {"seed": seed, "samples_per_epoch": samples_per_epoch, "augment": augment}
        super().__init__(BRACKETIRE if scale == 1 else BRACKETIRE_PLUS, root, split, crop, border=border, **options)

    def _make_sample(self, scene: StoredScene, frames: list[Array], label: Tensor, name: str) -> HDRSample:
        bracket = np.empty((len(TIMES), 4, *frames[0].shape[1:]), np.float32)
        for planes, exposure, time, scale in zip(bracket, frames, TIMES, _SCALES, strict=True):
            numbers = np.ascontiguousarray(exposure)
            if (highest := numbers.max()) > WHITE:
                file = scene.folder / ("frames.npy" if self.is_prepared else f"raw_{time}.npy")
                raise ValueError(f"{file}: exposures must be 10-bit, from 0 to {WHITE}, got {highest}")
            np.divide(numbers, np.float32(WHITE), out=planes)
            planes *= np.float32(scale)
        metadata = {key: torch.tensor(value, dtype=torch.float32) for key, value in scene.info.items()}
        times = torch.tensor(TIMES, dtype=torch.float32)
        return HDRSample(torch.from_numpy(bracket), times, label, name, self.domain, metadata)
