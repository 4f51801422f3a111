"""Show a knowledge bank's priors, and convert its weights: ``skt banks``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks import convert_checkpoint, make_knowledge_bank
from skt_components.banks.fastsam_weights import LICENSE_NOTE
from skt_components.data import read_image
from skt_components.evaluation import PriorsRow, save_priors
from skt_components.files.packages import import_package
from skt_components.ops.transfer import mu_law


def convert(source: Path, target: Path, /, *, overwrite: bool = False) -> None:
    """Convert a FastSAM or YOLO segmentation checkpoint to safetensors, without running code in it.

    Args:
        source: pickled checkpoint.
        target: the .safetensors file to write.
        overwrite: replace the file if it exists.
    """
    written = convert_checkpoint(source, target, overwrite=overwrite)
    print(f"wrote {written} ({written.stat().st_size / 1e6:.2f} MB). {LICENSE_NOTE}")


def show(
    pictures: tuple[Path, ...],
    /,
    *,
    out: Path,
    bank: str = "tf_efficientnet_lite0",
    weights: str | None = None,
    layers: Literal["paper", "fast"] = "paper",
    regions: Literal["own", "color", "features"] = "own",
    num_regions: int = 8,
    longest_side: int = 512,
    download: bool = False,
) -> None:
    """Draw a bank's priors for your pictures: the four feature levels and the regions.

    Args:
        pictures: .png or .jpg with display values, or .hdr or .exr, which are tone-mapped with the mu-law relative to
            their maximum.
        out: PNG to write; must be new.
        bank: name of a timm model, or fastsam (weights under AGPL-3.0).
        weights: file with the bank's weights; "random": random weights.
        layers: layers of fastsam that give the features.
        regions: fastsam's own masks (other banks: color), or k-means on color or on features.
        num_regions: regions per picture.
        longest_side: larger pictures are reduced to this size.
        download: download fastsam's weights (AGPL-3.0) to the cache if they are missing.
    """
    if not pictures:
        raise ValueError("name at least one picture")
    if longest_side < 16:
        raise ValueError(f"longest_side must be >= 16, got {longest_side}")
    if out.exists():
        raise FileExistsError(f"--out {out} exists: choose another")
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise ValueError(f"out must be a new .png in a folder that exists, got {out}")
    torch.manual_seed(0)
    made = make_knowledge_bank(
        bank, weights=weights, regions=regions, num_regions=num_regions, layers=layers, download=download
    )
    rows = []
    for path in pictures:
        picture = _read_picture(path, longest_side)
        rows.append(PriorsRow(f"{path.name}, {bank}", picture, made(picture[None])))
    save_priors(out, rows)
    print(f"wrote {out}")


def _read_picture(path: Path, longest_side: int) -> Tensor:
    """Read a picture as display-like RGB (3, H, W) in [0, 1]."""
    if path.suffix.lower() in {".hdr", ".exr"}:
        picture = read_image(path)
        picture = mu_law((picture / picture.amax().clamp_min(1e-12)).clamp(0, 1))
    else:
        image = import_package("PIL.Image", "reading pictures needs Pillow", "data").open(path)
        if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}:  # others would be clipped
            raise ValueError(f"{path} must have 8 bits per channel, got a picture of mode {image.mode!r}")
        pixels = np.asarray(image.convert("RGB"))
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    share = longest_side / max(picture.shape[-2:])
    if share < 1:
        picture = F.interpolate(picture[None], scale_factor=share, mode="bilinear", antialias=True)[0]
    return picture.clamp(0, 1)
