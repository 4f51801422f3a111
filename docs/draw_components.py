"""Draw the small pictures of docs/components.md, and the two pictures of the first page's wipe.

    python docs/draw_components.py PHOTOS

PHOTOS: the folder of HDR panoramas whose last two by name trained no pretrained network. A view of one of them is
photographed as a bracket of three 8-bit exposures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import skt_components as skt
from skt_components.data import show_exposures
from skt_components.evaluation.figures import principal_colors
from skt_components.histogram import soft_histogram
from skt_components.ops import complementary_masks, mix_features, mosaic, tone_map

FOLDER = Path(__file__).parent / "_static" / "components"
SIZE, LARGE = (160, 240), (448, 672)
GAP = 4  # white pixels between pictures


def beside(*pictures: Tensor) -> Tensor:
    """Cut pictures (3, H, W) to equal vertical strips of one picture, which shows the same scene in several ways."""
    width = pictures[0].shape[-1] // len(pictures)
    strips = [picture[..., i * width : (i + 1) * width].clone() for i, picture in enumerate(pictures)]
    for strip in strips[1:]:
        strip[..., : GAP // 2] = 1.0
    return torch.cat(strips, dim=-1)


def grid(pictures: Sequence[Tensor]) -> Tensor:
    """Place four pictures (3, H, W) in two rows and two columns."""
    side = (SIZE[0] - GAP) // 2, (SIZE[1] - GAP) // 2
    small = [F.interpolate(picture[None], side, mode="bilinear", antialias=True)[0] for picture in pictures]
    padded = [F.pad(picture, (0, GAP, 0, GAP), value=1.0) for picture in small]
    rows = [torch.cat(padded[start : start + 2], dim=2) for start in (0, 2)]
    return torch.cat(rows, dim=1)[:, : SIZE[0], : SIZE[1]]


def colored(values: Tensor, colors: str = "inferno") -> Tensor:
    """Map (H, W) to RGB by a color map, from the smallest to the largest value."""
    unit = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    return torch.from_numpy(plt.get_cmap(colors)(unit.numpy())[..., :3]).permute(2, 0, 1).float()


def regions_of(labels: Tensor) -> Tensor:
    """Return a color for each region of a label map (H, W)."""
    return colored((labels * 7 % 20).float(), "tab20")


def color_loss(picture: Tensor, labels: Tensor) -> Tensor:
    """A picture with wrong colors, the same with the color matrix that descends the loss, and the teacher."""
    wrong = (picture * torch.tensor([0.7, 0.95, 1.15])[:, None, None] + 0.03).clamp(0, 1)
    matrix = torch.eye(3, 4).requires_grad_()
    pixels = torch.cat([wrong, torch.ones_like(wrong[:1])])
    loss, optimizer = skt.SemanticHistogramLoss(bandwidth=1 / 32), torch.optim.Adam([matrix], lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        student = torch.einsum("oc,chw->ohw", matrix, pixels)[None]
        loss(student, picture[None], labels=labels[None], num_regions=int(labels.max()) + 1).backward()
        optimizer.step()
    return beside(wrong, student[0].detach().clamp(0, 1), picture)


def histogram(picture: Tensor) -> Tensor:
    """Soft histograms of the three channels."""
    figure, axis = plt.subplots(figsize=(2.4, 1.6), dpi=100, layout="constrained")
    for counts, color in zip(soft_histogram(picture[None], num_bins=128, bandwidth=1 / 64)[0, 0], "rgb", strict=True):
        axis.plot(torch.linspace(0, 1, 128), counts, color=color)
    axis.set(xticks=[0, 1], yticks=[], xlabel="value")
    figure.canvas.draw()
    drawn = torch.from_numpy(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    return drawn.permute(2, 0, 1) / 255


@torch.no_grad()
def fusion(features: Tensor) -> Tensor:
    """The matrix between channels that transposed attention multiplies with."""
    q = F.normalize(features.flatten(1), dim=1)
    attention = torch.softmax(q @ q.T / 0.3, dim=-1)
    side = SIZE[0]
    drawn = F.interpolate(colored(attention.sqrt(), "viridis")[None], (side, side))[0]
    canvas = torch.ones(3, *SIZE)
    canvas[..., (SIZE[1] - side) // 2 : (SIZE[1] + side) // 2] = drawn
    return canvas


def alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """A channel of two features, and their mixture by a random mask."""
    mask, _ = complementary_masks((1, 1, 20, 30), 0.5, generator=torch.Generator().manual_seed(0))
    parts = [F.interpolate(part[None, None], (20, 30), mode="area") for part in (student, teacher)]
    mixed = mix_features(parts[0], parts[1], mask)
    drawn = [F.interpolate(colored(part[0, 0], "cividis")[None], SIZE)[0] for part in (*parts, mixed)]
    return beside(drawn[0], drawn[2], drawn[1])


def main(photographs: Path) -> None:
    """Write all pictures."""
    torch.manual_seed(0)
    options = {"split": "val", "val_fraction": 0.2, "samples_per_epoch": 16}
    sample = skt.HDRFolder(photographs, crop=LARGE, **options)[5]
    small = sample._replace(
        bracket=F.interpolate(sample.bracket, SIZE, mode="area"),
        target=F.interpolate(sample.target[None], SIZE, mode="area")[0],
    )
    bracket, target = small.bracket[None], small.target
    like, shown = target[None], show_exposures(small)
    picture = tone_map(like)[0]
    bank = skt.TimmFeatureExtractor(regions=skt.ColorPositionKMeans(12))
    with torch.no_grad():
        priors = bank(picture[None])
        network = skt.load_pretrained("ahdrnet-small")(bracket)[0]
    labels = priors.labels[0]
    filters = mosaic(torch.eye(3)[:, :, None, None].expand(3, 3, *SIZE))[:, 0]  # 1 where the sensor sees this color
    window = (..., slice(60, 100), slice(90, 150))
    bayer = F.interpolate((picture * filters)[window][None], SIZE)[0]
    color = F.interpolate(skt.demosaic(mosaic(picture[None]))[window], SIZE)[0]
    merged = skt.merge_exposures(bracket, small.exposure_times)[0]
    error = (skt.mu_law(network) - skt.mu_law(target)).abs().mean(0)
    drawn = {
        "color-loss": color_loss(picture, labels),
        "histogram": histogram(picture),
        "prior-fusion": fusion(priors.features[-1][0]),
        "skam": alignment(picture.mean(0), target.mean(0)),
        "pyramid": grid([principal_colors(feature[0]) for feature in priors.features]),
        "domain-transfer": beside(target.clamp(0, 1), skt.mu_law(target).clamp(0, 1)),
        "demosaic": beside(bayer, color.clamp(0, 1)),
        "merge": beside(*(tone_map(p[None], like=like)[0] for p in (skt.reference_exposure(bracket)[0], merged))),
        "networks": beside(*(tone_map(p[None], like=like)[0] for p in (skt.reference_exposure(bracket)[0], network))),
        "banks": beside(picture, F.interpolate(principal_colors(priors.features[-1][0])[None], SIZE)[0]),
        "regions": beside(picture, regions_of(labels)),
        "simulation": beside(*shown),
        "metrics": beside(picture, colored(error.clamp_max(0.1))),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, result in drawn.items():
        save(result, FOLDER / f"{name}.png")
    with torch.no_grad():
        network = skt.tiled_inference(skt.load_pretrained("ahdrnet-small"), sample.bracket[None], progress=False)
    like = sample.target[None]
    save(tone_map(skt.reference_exposure(sample.bracket[None]), like=like)[0], FOLDER / "wipe-reference.jpg")
    save(tone_map(network, like=like)[0], FOLDER / "wipe-network.jpg")


def save(picture: Tensor, path: Path) -> None:
    """Write (3, H, W) in [0, 1]."""
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    if path.suffix == ".png":
        image.quantize(128).save(path, optimize=True)
    else:
        image.save(path, quality=85)
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
