"""Draw the priors of a knowledge bank for your pictures: the four feature levels and the regions.

python examples/show_bank.py photo.png --out priors.png                                  # the default bank
python examples/show_bank.py photo.png --bank fastsam --weights FastSAM-s.pt --out priors.png
python examples/show_bank.py a.png b.png --bank hrnet_w48 --weights hrnet_w48.pth --regions features --out priors.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import skt_components as skt


@dataclass(frozen=True)
class Options:
    """Draw a knowledge bank's priors of pictures."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files: .png, .jpg (display-like), or .hdr, .exr (tone-mapped here by the mu-law, relative to their maximum)."""
    out: Path
    """PNG to write; must be new."""
    bank: str = "tf_efficientnet_lite0"
    """A model of timm by its name, or fastsam (weights under AGPL-3.0)."""
    weights: str | None = None
    """File of the bank's weights; "random" shows a bank without knowledge."""
    layers: Literal["paper", "fast"] = "paper"
    """Layers of fastsam that give the features."""
    regions: Literal["own", "color", "features"] = "own"
    """fastsam's own masks (other banks: color), or k-means on color or on features."""
    num_regions: int = 8
    """Regions per picture."""
    longest_side: int = 512
    """Larger pictures are reduced to this size."""
    download: bool = False
    """Download fastsam's weights (AGPL-3.0) to the cache if they are missing."""


def check(options: Options) -> None:
    """Raise before any work."""
    if not options.pictures:
        raise ValueError("name at least one picture")
    if options.longest_side < 16:
        raise ValueError(f"--longest-side must be >= 16, got {options.longest_side}")
    if options.out.exists():
        raise FileExistsError(f"--out {options.out} exists: choose another")
    if options.out.suffix.lower() != ".png" or not options.out.parent.is_dir():
        raise ValueError(f"--out must be a new .png in a folder that exists, got {options.out}")


def load(path: Path, longest_side: int) -> Tensor:
    """Read a picture as display-like RGB (3, H, W) in [0, 1]."""
    if path.suffix.lower() in {".hdr", ".exr"}:
        picture = skt.read_image(path)
        picture = skt.mu_law((picture / picture.amax().clamp_min(1e-12)).clamp(0, 1))
    else:
        image = Image.open(path)
        if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}:  # others would be clipped
            raise ValueError(f"{path} must have 8 bits per channel, got a picture of mode {image.mode!r}")
        pixels = np.asarray(image.convert("RGB"))
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    share = longest_side / max(picture.shape[-2:])
    if share < 1:
        picture = F.interpolate(picture[None], scale_factor=share, mode="bilinear", antialias=True)[0]
    return picture.clamp(0, 1)


def main(options: Options) -> None:
    """Draw one row per picture."""
    check(options)
    bank = skt.banks.make_knowledge_bank(
        options.bank,
        weights=options.weights,
        regions=options.regions,
        num_regions=options.num_regions,
        layers=options.layers,
        download=options.download,
    )
    rows = []
    for path in options.pictures:
        picture = load(path, options.longest_side)
        rows.append(skt.evaluation.PriorsRow(f"{path.name}, {options.bank}", picture, bank(picture[None])))
    skt.evaluation.save_priors(options.out, rows)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    torch.manual_seed(0)
    try:
        main(tyro.cli(Options))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"show_bank.py: {error}")
