"""Draw docs/_static/reconstruct.png, and print the table of docs/reconstruct.md: network, merge and reference.

    python docs/draw_reconstruct.py PHOTOS

PHOTOS: the folder of HDR panoramas whose last two by name trained no pretrained network. Their views are photographed
as brackets of 8-bit pictures: from a tripod, from a hand, with moving objects, and with other exposure steps.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from skt_components import Camera, HDRFolder, HDRSample, evaluation, load_pretrained, psnr_mu
from skt_components.models import pretrained_names
from skt_components.ops import merge_exposures, reference_exposure
from skt_components.reconstruct import reconstruct
from skt_components.simulation import Motion

SIZE, VIEWS = (192, 288), 8
STILL, HAND = Motion.still(), Motion(objects=(0, 0))
OBJECTS = Motion(shift=0.0, rotation=0.0, zoom=0.0, perspective=0.0, objects=(2, 3))
CASES = {
    "tripod, nothing moves": (STILL, 4.0),
    "camera moves a little, not aligned": (HAND, 4.0),
    "objects move": (OBJECTS, 4.0),
    "both": (Motion(), 4.0),
    "both, one stop apart": (Motion(), 2.0),
    "both, three stops apart": (Motion(), 8.0),
}


def main(photographs: Path) -> None:
    loaded = {name: load_pretrained(name) for name in pretrained_names()}
    networks = {name: network for name, network in loaded.items() if network.in_channels == 6}
    names = list(networks)
    print("| scene | reference exposure | exposure merge | " + " | ".join(names) + " |\n|" + "---|" * (3 + len(names)))
    for title, (motion, ratio) in CASES.items():
        camera = Camera((1.0, ratio, ratio**2))
        data = HDRFolder(
            photographs, crop=SIZE, split="val", val_fraction=0.2, camera=camera, motion=motion, samples_per_epoch=VIEWS
        )
        scores: dict[str, list[float]] = {}
        rows = []
        for index in range(VIEWS):
            sample: HDRSample = data[index]
            pictures = {
                name: reconstruct(
                    network,
                    list(sample.bracket[:, 3:]),
                    sample.exposure_times.tolist(),
                    transfer="gamma2.2",
                    progress=False,
                )
                for name, network in networks.items()
            }
            bracket = sample.bracket[None]
            free = {"reference": reference_exposure(bracket), "merge": merge_exposures(bracket, sample.exposure_times)}
            for name, picture in (free | {name: picture[None] for name, picture in pictures.items()}).items():
                scores.setdefault(name, []).append(psnr_mu(picture, sample.target[None]).item())
            first = names[0]
            rows.append(evaluation.SampleRow.from_sample(sample, {first: pictures[first]}))
        print(f"| {title} | " + " | ".join(f"{statistics.fmean(values):.1f}" for values in scores.values()) + " |")
        if title == "both":
            evaluation.save_samples(Path(__file__).parent / "_static" / "reconstruct.png", [rows[0], rows[3]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
