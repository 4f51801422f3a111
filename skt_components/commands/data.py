"""Check, prepare, preview and simulate data sets: ``skt data``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skt_components.data import prepare as prepare_dataset
from skt_components.data import save_contact_sheet
from skt_components.data import verify as verify_dataset
from skt_components.data.dataset import SampleDataset
from skt_components.data.registry import PUBLISHED, find_dataset
from skt_components.data.scene_layout import SPLITS
from skt_components.files.names import printable
from skt_components.simulation import Camera, HDRFolder, HDRSequences, RawCamera, SyntheticScenes, simulate_dataset
from skt_components.simulation.export import LAYOUTS
from skt_components.simulation.hdr_folder import verify_hdr_folder

_FOLDER = "hdr-folder"
if TYPE_CHECKING:  # type checkers take no computed choices
    Layout = str
else:
    Layout = Literal[LAYOUTS]


def verify(dataset: str, root: Path, /, *, crop: int | None = None) -> int:
    """Read every file once, and list missing and broken files by path.

    Args:
        dataset: kalantari, tel, challenge123, hu, bracketire, bracketire-plus, hdr-folder, or a .toml file that
            describes a layout of folders.
        root: folder of the data set, as published or as prepared.
        crop: side of the training crops; smaller pictures of hdr-folder are a problem.

    Returns:
        1 if there are problems.
    """
    if dataset == _FOLDER:
        found = verify_hdr_folder(root, crop=crop)
    elif crop is not None:
        raise ValueError(f"--crop is for {_FOLDER}, got it with {dataset}")
    else:
        found = verify_dataset(dataset, root)
    print(printable(str(found)))
    return 1 if found.problems else 0


def prepare(dataset: str, root: Path, out: Path, /, *, half: bool = False) -> None:
    """Store a data set uncompressed in strips, from which random crops are fast.

    Args:
        dataset: kalantari, tel, challenge123, hu, bracketire, bracketire-plus, or a .toml file that describes a
            layout of folders.
        root: folder of the data set as published.
        out: folder to write; an earlier run continues.
        half: store labels as float16, even if digits are lost.
    """
    written = prepare_dataset(dataset, root, out, half=half)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    print(printable(f"{written}: {size / 1e9:.2f} GB; give it as root in place of {root}"))


def preview(
    dataset: str,
    root: Path,
    picture: Path,
    /,
    *,
    split: Literal["train", "test"] = "train",
    scenes: int = 4,
    crop: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw exposures and targets of some scenes.

    Args:
        dataset: kalantari, tel, challenge123, hu, bracketire, bracketire-plus, or a .toml file that describes a
            layout of folders.
        root: folder of the data set, as published or as prepared.
        picture: picture to write.
        split: part of the data set.
        scenes: number of scenes, evenly spread over the list.
        crop: side of random crops instead of whole scenes.
        overwrite: replace the picture if it exists.
    """
    if picture.exists() and not overwrite:
        raise FileExistsError(f"{picture} exists; --overwrite replaces it")
    data = find_dataset(dataset)(root, split, crop)
    if scenes < 1:
        raise ValueError(f"scenes must be >= 1, got {scenes}")
    count = min(scenes, len(data))
    samples = [data[i * len(data) // count] for i in range(count)]
    save_contact_sheet(picture, samples, overwrite=True)
    print(printable(f"wrote {picture}: {', '.join(sample.name for sample in samples)}"))


def simulate(
    dataset: Layout,
    out: Path,
    /,
    *,
    photos: Path | None = None,
    sequences: Path | None = None,
    train: int = 16,
    test: int = 4,
    height: int = 256,
    width: int = 384,
    seed: int = 0,
) -> None:
    """Write brackets of your HDR photographs, or of procedural scenes, as a data set.

    Args:
        dataset: layout of the files.
        out: folder to write; an earlier run continues.
        photos: folder of .hdr and .exr pictures; default: procedural scenes.
        sequences: folder with one folder of .exr frames for each sequence, instead of photos.
        train: number of training scenes.
        test: number of test scenes.
        height: height of the targets, packed for RAW.
        width: width of the targets, packed for RAW.
        seed: seed of scenes, motion and noise.
    """
    if sequences is not None and photos is not None:
        raise ValueError("photos and sequences exclude each other")
    scale = 4 if dataset == "bracketire-plus" else 1
    camera = RawCamera(scale=scale) if dataset.startswith("bracketire") else Camera(bits=16)
    size = (height, width)
    shared: dict[str, Any] = {"camera": camera, "seed": seed}
    parts: tuple[SampleDataset, SampleDataset]
    if sequences is not None:
        frames: Any = partial(HDRSequences, sequences, crop=size, val_fraction=0.2, **shared)
        parts = (frames(samples_per_epoch=train), frames(samples_per_epoch=test, split="val"))
    elif photos is None:
        parts = (SyntheticScenes(train, size, **shared), SyntheticScenes(test, size, split="val", **shared))
    else:
        folder: Any = partial(HDRFolder, photos, crop=size, val_fraction=0.2, **shared)  # split by photograph
        parts = (folder(samples_per_epoch=train), folder(samples_per_epoch=test, split="val"))
    simulate_dataset(dataset, out, *parts)
    layout = PUBLISHED[dataset].layout
    held = [f"{len(layout.list_scenes(out, split))} {split}" for split in SPLITS]
    print(printable(f"{out} holds {' and '.join(held)} scenes in the layout of {dataset}"))
