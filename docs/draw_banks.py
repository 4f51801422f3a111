"""Draw _static/banks.png: python docs/draw_banks.py [--fastsam FILE] [--hrnet FILE]; random weights without files."""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage.data
import torch
from PIL import Image

import skt_components as skt

PICTURE = Path(__file__).parent / "_static" / "banks.png"


def main() -> None:
    """Draw one row per bank and region source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fastsam", default="random", help="file of FastSAM's weights")
    parser.add_argument("--hrnet", default="random", help="file of hrnet_w48's weights")
    files = parser.parse_args()
    photo = torch.from_numpy(skimage.data.coffee().copy()).permute(2, 0, 1)[None].float() / 255
    photo = torch.nn.functional.interpolate(photo, size=(256, 384), mode="bilinear", antialias=True)
    torch.manual_seed(0)
    random = {"random": ",\nRANDOM weights"}
    banks = {
        "EfficientNet-Lite0,\ncolor regions": skt.TimmFeatureExtractor(regions=skt.ColorPositionKMeans(12)),
        "EfficientNet-Lite0,\nfeature regions": skt.TimmFeatureExtractor(regions=skt.FeatureKMeans(12)),
        f"hrnet_w48{random.get(files.hrnet, '')}": skt.TimmFeatureExtractor(
            "hrnet_w48", weights=files.hrnet, regions=skt.FeatureKMeans(12)
        ),
        f"FastSAM fast{random.get(files.fastsam, '')}": skt.FastSAMFeatureExtractor(files.fastsam, layers="fast"),
        f"FastSAM paper{random.get(files.fastsam, '')}": skt.FastSAMFeatureExtractor(files.fastsam),
    }
    skt.evaluation.save_priors(
        PICTURE, [skt.evaluation.PriorsRow(name, photo[0], bank(photo)) for name, bank in banks.items()]
    )
    Image.open(PICTURE).convert("RGB").quantize(256).save(PICTURE, optimize=True)  # a third of the size
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
