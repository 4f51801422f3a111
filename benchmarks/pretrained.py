"""Score the pretrained networks beside the reference exposure and the exposure merge.

    python benchmarks/pretrained.py --photographs PHOTOS [--others FOLDER] --out pretrained.json

On the photographs that trained none of them (the last two of PHOTOS by name; for sRGB also with exposures one and three
stops apart), on photographs of other folders, and on procedural validation scenes. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skt_components import Camera, HDRFolder, RawCamera, SyntheticScenes, evaluation, load_pretrained
from skt_components.data import HDRSample
from skt_components.files.atomic import write_text
from skt_components.models import pretrained_names
from skt_components.training import mean_scores, score_pictures


def scenes(options: argparse.Namespace, raw: bool) -> Iterator[tuple[str, Any]]:
    """Title and data set of each kind of scene."""
    size, camera = (64, RawCamera()) if raw else (128, Camera())
    if options.photographs is not None:
        held_out = partial(
            HDRFolder, options.photographs, crop=size, split="val", val_fraction=0.2, samples_per_epoch=48
        )
        yield "held-out photographs", held_out(camera=camera)
        if not raw:
            yield "held-out photographs, one stop", held_out(camera=Camera((1.0, 2.0, 4.0)))
            yield "held-out photographs, three stops", held_out(camera=Camera((1.0, 8.0, 64.0)))
    for folder in options.others:
        yield (
            f"photographs of {folder.name}",
            HDRFolder(folder, crop=size, split="val", val_fraction=1.0, camera=camera, samples_per_epoch=72),
        )
    yield "procedural scenes", SyntheticScenes(24, size, split="val", camera=camera)


def draw_pictures(sample: HDRSample, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Pictures without training, and those of the networks."""
    free = evaluation.baseline_pictures(sample.bracket, sample.exposure_times[0])
    return free | {name: network(sample.bracket) for name, network in networks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder whose first photographs trained the networks")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of other photographs")
    parser.add_argument("--networks", nargs="*", default=pretrained_names())
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| scenes | network | PSNR-mu | PSNR-L | SSIM-mu |\n|---|---|---|---|---|")
    networks = {name: load_pretrained(name) for name in options.networks}
    for raw in (False, True):
        mine = {name: network for name, network in networks.items() if (network.in_channels == 4) == raw}
        if not mine:
            continue
        for title, data in scenes(options, raw):
            draw = partial(draw_pictures, networks=mine)
            scores = score_pictures(DataLoader(data, 4), draw, peak=16.0 if raw else 1.0)
            kind = f"{title}, {'RAW' if raw else 'sRGB'}"
            for name, means in mean_scores(scores).items():
                values = scores[name]["PSNR-mu"].tolist()
                rows.append({"scenes": kind, "network": name, "means": means, "PSNR-mu": values})
                shown = " | ".join(f"{value:.{4 if 'SSIM' in metric else 2}f}" for metric, value in means.items())
                print(f"| {kind} | {name} | {shown} |", flush=True)
    write_text(options.out, json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
