"""Write simulated brackets in the layouts of the published data sets."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from skt_components.data.bracketire import TIMES, WHITE
from skt_components.data.dataset import SampleDataset
from skt_components.data.formats import write_tif
from skt_components.data.io import write_image
from skt_components.data.progress import progress_bar
from skt_components.data.registry import PUBLISHED
from skt_components.data.sample import RAW_PEAK, HDRSample
from skt_components.data.verify import SIMULATED
from skt_components.files import write_text
from skt_components.ops.checks import check_choice

_STALE = 3600  # seconds
_SCENE_NAMES = {"kalantari": "{:04d}", "tel": "scene_{:04d}"}  # the others have frames in folders of scenes


def write_kalantari_scene(folder: str | os.PathLike[str], sample: HDRSample) -> None:
    """Write a sample as a scene in the layout of Kalantari's and Tel's data sets: completely, or not at all.

    ``input_{1,2,3}.tif``: 16-bit RGB, the LDR exposures times 65536, at most 65535. ``exposure.txt``: their exposure
    values in stops, one a line. ``HDRImg.hdr``: the target, RGBE.

    Args:
        folder: the scene's, which must not exist.
        sample: three exposures, sRGB; with a :class:`Camera` of ``bits=16`` only the last level is lost.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the sample is not sRGB, or does not have three exposures from the shortest to the longest.
        ImportError: tifffile or OpenCV is missing.

    Example:
        >>> write_kalantari_scene("sig17/Training/001", SyntheticScenes(1, 64)[0])  # doctest: +SKIP
    """
    times = sample.exposure_times.tolist()
    if sample.domain != "srgb" or sample.bracket.shape[:2] != (3, 6) or times != sorted(times):
        raise ValueError(
            f"sample must be an sRGB bracket (3, 6, H, W), the shortest exposure first, got "
            f"{tuple(sample.bracket.shape)}, {sample.domain}, exposure times {times}"
        )
    with _new_folder(folder) as part:
        for number, ldr in enumerate(_channels_last(sample.bracket[:, 3:]), 1):
            levels = np.rint(ldr.astype(np.float64) * 65536).clip(0, 65535).astype(np.uint16)
            write_tif(part / f"input_{number}.tif", levels)
        ev = "".join(f"{math.log2(time):.6g}\n" for time in times)
        (part / "exposure.txt").write_text(ev, encoding="ascii")
        write_image(part / "HDRImg.hdr", sample.target)


def write_bracketire_frame(folder: str | os.PathLike[str], sample: HDRSample) -> None:
    """Write a sample as a frame in the layout of BracketIRE's data set: completely, or not at all.

    ``raw_{1,4,16,64,256}.npy``: uint16 from 0 to 1023, h×w×4, in ``x4/`` if the target is four times as large
    (BracketIRE+). ``raw_gt.npy``: the target, float32, H×W×4. ``metadata.npy``: a pickled dict of the matrices
    ``rgb2cam`` and ``cam2rgb`` and the numbers ``rgb_gain`` (1), ``red_gain`` and ``blue_gain``.

    Args:
        folder: the frame's, which must not exist.
        sample: from a :class:`RawCamera` with default exposures and bits.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the sample is not RAW, has other exposures than 1, 4, 16, 64 and 256, or is not 10-bit.

    Example:
        >>> scenes = SyntheticScenes(1, 64, camera=RawCamera())  # doctest: +SKIP
        >>> write_bracketire_frame("bracketire/Train/0000/0000", scenes[0])  # doctest: +SKIP
    """
    levels = _raw_levels(sample)
    matrix = sample.metadata["color_matrix"].double().numpy()
    red, _, blue = sample.metadata["white_balance"].tolist()
    gains = {"rgb_gain": 1.0, "red_gain": red, "blue_gain": blue}
    with _new_folder(folder) as part:
        inputs = part if sample.target.shape[1:] == sample.bracket.shape[2:] else part / "x4"
        inputs.mkdir(exist_ok=True)
        for time, exposure in zip(TIMES, levels, strict=True):
            np.save(inputs / f"raw_{time}.npy", exposure)
        np.save(part / "raw_gt.npy", _channels_last(sample.target))
        metadata = {"rgb2cam": np.linalg.inv(matrix), "cam2rgb": matrix, **gains}
        np.save(part / "metadata.npy", np.array(metadata, dtype=object), allow_pickle=True)


LAYOUTS = ("kalantari", "tel", "bracketire", "bracketire-plus")
"""Data sets in whose layout :func:`simulate_dataset` writes."""


def simulate_dataset(
    layout: str,
    out: str | os.PathLike[str],
    train: SampleDataset | None,
    test: SampleDataset | None,
    *,
    progress: bool = True,
) -> None:
    """Write each sample of two data sets as a scene in the layout of a published data set.

    Existing scenes are kept. So an interrupted run continues where it stopped, and a longer data set extends a shorter
    one. ``{out}/simulated.json`` identifies the samples, so that different samples are not mixed.

    Args:
        layout: "kalantari", "tel", "bracketire" or "bracketire-plus".
        out: folder of the data set; made if it does not exist.
        train: the training scenes, such as :class:`HDRFolder` or :class:`SyntheticScenes` with a :class:`Camera` of 16
            bits, or a :class:`RawCamera` (of scale 4 for "bracketire-plus"); None writes none.
        test: the test scenes.
        progress: show a bar, in a terminal where tqdm is installed.

    Raises:
        FileExistsError: ``out`` holds something else, or other samples.
        ValueError: the layout is unknown, there is nothing to write, or the samples do not suit the layout.

    Example:
        >>> options = {"camera": RawCamera(), "size": (270, 480)}  # doctest: +SKIP
        >>> train, test = SyntheticScenes(100, **options), SyntheticScenes(20, split="val", **options)  # doctest: +SKIP
        >>> simulate_dataset("bracketire", "simulated", train, test)  # doctest: +SKIP
        >>> BracketIRE("simulated")[0].bracket.shape  # doctest: +SKIP
        torch.Size([5, 4, 270, 480])
    """
    check_choice("layout", layout, LAYOUTS)
    files = PUBLISHED[layout].layout
    datasets = {"train": train, "test": test}
    splits = {files.split_folders[name]: dataset for name, dataset in datasets.items() if dataset is not None}
    if not splits:
        raise ValueError("train or test must have a sample, got neither")
    first = {folder: dataset[0] for folder, dataset in splits.items()}
    for sample in first.values():
        if sample.target.shape[-1] != files.scale * sample.bracket.shape[-1]:
            sizes = " and ".join("x".join(map(str, t.shape[-2:])) for t in (sample.bracket, sample.target))
            raise ValueError(f"{layout} must have targets {files.scale} times the bracket's size, got {sizes}")
    _write_note(Path(out), layout, {folder: _fingerprint(sample) for folder, sample in first.items()})
    scenes = [(split, index) for split, dataset in splits.items() for index in range(len(dataset))]
    write = write_bracketire_frame if files.domain == "raw" else write_kalantari_scene
    for split, index in progress_bar(scenes, layout, "scene", progress):
        folder = Path(out) / split / _SCENE_NAMES.get(layout, "{:04d}/0000").format(index)
        if folder.exists():
            continue
        sample = splits[split][index] if index else first[split]
        try:
            write(folder, sample)
        except OSError:
            if not folder.exists():  # else a concurrent run was faster
                raise


def _write_note(out: Path, layout: str, first: dict[str, str]) -> None:
    """Note in the folder what it holds; raise FileExistsError if it holds something else."""
    note, samples = out / SIMULATED, dict[str, str]()
    if note.is_file():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            held, samples = found["layout"], dict(found["first_samples"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{note}: broken ({error})") from None
        if held != layout:
            raise FileExistsError(f"out {out} holds simulated scenes in the layout {held}, not {layout}")
        if other := [split for split in first.keys() & samples.keys() if first[split] != samples[split]]:
            raise FileExistsError(
                f"out {out} holds other {' and '.join(sorted(other))} samples, of another size, seed or source: choose "
                "another folder"
            )
    elif out.exists() and (not out.is_dir() or any(not path.match(f".{SIMULATED}.*") for path in out.iterdir())):
        raise FileExistsError(f"out {out} exists and is not a simulated data set: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps({"layout": layout, "first_samples": {**samples, **first}}))


def _fingerprint(sample: HDRSample) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (sample.bracket, sample.target):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def _raw_levels(sample: HDRSample) -> np.ndarray:
    """Return (5, h, w, 4) uint16, the output of the sensor's converter."""
    times = sample.exposure_times.tolist()
    if sample.domain != "raw" or times != list(TIMES):
        raise ValueError(f"sample must be RAW with exposure times {TIMES}, got {sample.domain}, {times}")
    missing = {"white_balance", "color_matrix"} - sample.metadata.keys()
    if missing:
        raise ValueError(f"sample must have {' and '.join(sorted(missing))} in its metadata")
    height, width = sample.bracket.shape[-2:]
    if sample.target.shape not in ((4, height, width), (4, 4 * height, 4 * width)):
        raise ValueError(
            f"sample must have a target as large as its bracket of {height}x{width}, or four times, "
            f"got {tuple(sample.target.shape)}"
        )
    exact = _channels_last(sample.bracket * sample.exposure_times[:, None, None, None] / RAW_PEAK) * float(WHITE)
    levels = np.rint(exact)
    if not (np.abs(exact - levels).max() < 0.01 and levels.min() >= 0 and levels.max() <= WHITE):
        raise ValueError(f"sample must be 10-bit: exposure i a multiple of 4 ** (2 - i) / {WHITE}")
    return levels.astype(np.uint16)


def _channels_last(picture: Tensor) -> np.ndarray:
    return np.ascontiguousarray(picture.float().movedim(-3, -1).numpy())


@contextmanager
def _new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to ``folder`` at the end, or remove it after an error."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    for left in folder.parent.glob(f".{folder.name}.*part"):
        if time.time() - left.stat().st_mtime > _STALE:  # younger ones may belong to a concurrent run
            shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
