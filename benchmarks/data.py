"""How fast crops are read: from the published files, from crops cut beforehand, from prepared arrays.

python benchmarks/data.py                  # writes benchmarks/results/data--<device>.json, prints a table
The scenes are procedural, in the official layouts and sizes (1000 x 1500 sRGB, 540 x 960 packed RAW), and lie in the
file cache of the operating system when they are read. One thread; the methods take turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch
import tyro
from timing import environment, write_result
from torch.utils.data import DataLoader

import skt_components as skt

ROOT = Path(__file__).parents[1]
EV = (0, 2, 4)


@dataclass(frozen=True)
class Options:
    """Measure this machine."""

    scenes: int = 6
    """How many scenes each data set has."""
    crop: int = 256
    """Side of the crops from sRGB scenes; those from RAW frames have half of it."""
    rounds: int = 7
    """Rounds, in which the methods take turns."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""


def write_kalantari(root: Path, count: int) -> None:
    """Write procedural scenes in Kalantari's layout and size."""
    scenes = skt.SyntheticScenes(count, (1000, 1500), camera=skt.Camera(bits=16))
    for i in range(count):
        sample, folder = scenes[i], root / "Training" / f"{i + 1:03d}"
        folder.mkdir(parents=True)
        for j, ldr in enumerate(sample.bracket[:, 3:]):
            numbers = (ldr.permute(1, 2, 0) * 65536).clamp(0, 65535).numpy().astype(np.uint16)
            tifffile.imwrite(folder / f"input_{j + 1}.tif", numbers, photometric="rgb")
        cv2.imwrite(str(folder / "HDRImg.hdr"), sample.target.permute(1, 2, 0).numpy()[..., ::-1])
        (folder / "exposure.txt").write_text("".join(f"{ev}\n" for ev in EV))


def write_bracketire(root: Path, count: int) -> None:
    """Write noise in BracketIRE's layout and size: what is in them does not matter to arrays."""
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = root / "Train" / "scene" / f"{i:04d}"
        folder.mkdir(parents=True)
        for exposure in (1, 4, 16, 64, 256):
            np.save(folder / f"raw_{exposure}.npy", rng.integers(0, 1024, (540, 960, 4), dtype=np.uint16))
        np.save(folder / "raw_gt.npy", 16 * rng.random((540, 960, 4), np.float32))
        colors = {"red_gain": 2.0, "blue_gain": 1.5, "cam2rgb": np.eye(3), "rgb2cam": np.eye(3), "rgb_gain": 1.0}
        np.save(folder / "metadata.npy", colors, allow_pickle=True)


def cut_beforehand(source: Path, out: Path, crop: int) -> None:
    """Write the crops that the published recipe trains on: a grid with half a crop's stride, a folder for each."""
    number = 0
    for scene in sorted((source / "Training").iterdir()):
        pictures = {f"{i}.tif": cv2.imread(str(p), -1) for i, p in enumerate(sorted(scene.glob("*.tif")))}
        pictures["label.hdr"] = cv2.imread(str(scene / "HDRImg.hdr"), -1)
        height, width = pictures["label.hdr"].shape[:2]
        for top in range(0, height - crop + 1, crop // 2):
            for left in range(0, width - crop + 1, crop // 2):
                folder = out / f"{number:06d}"
                folder.mkdir(parents=True)
                for name, picture in pictures.items():
                    piece = picture[top : top + crop, left : left + crop]
                    if name == "label.hdr":
                        cv2.imwrite(str(folder / name), piece)
                    else:  # without compression, which OpenCV would add and which would make reading slower
                        tifffile.imwrite(folder / name, piece[..., ::-1], photometric="rgb")
                (folder / "exposure.txt").write_text((scene / "exposure.txt").read_text())
                number += 1


def read_cut(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one crop as the published recipe does: decode, scale, linearize, stack."""
    times = 2 ** np.loadtxt(folder / "exposure.txt")
    ldrs = [cv2.imread(str(folder / f"{i}.tif"), -1)[..., ::-1].astype(np.float32) / 65536 for i in range(3)]
    frames = [np.concatenate([ldr**2.2 / (t + 1e-8), ldr], -1) for ldr, t in zip(ldrs, times, strict=True)]
    bracket = np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray(bracket), cv2.imread(str(folder / "label.hdr"), -1)[..., ::-1].transpose(2, 0, 1).copy()


def read_whole_frame(folder: Path, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Read a RAW frame whole, as the published code does, then crop."""
    raws = [np.load(folder / f"raw_{t}.npy") for t in (1, 4, 16, 64, 256)]
    top, left = (int(rng.integers(10, side - crop - 9)) for side in raws[0].shape[:2])
    window = (slice(top, top + crop), slice(left, left + crop))
    bracket = np.stack([raw[window].astype(np.float32) / 1023 * 4.0 ** (2 - i) for i, raw in enumerate(raws)])
    return bracket.transpose(0, 3, 1, 2).copy(), np.load(folder / "raw_gt.npy")[window].transpose(2, 0, 1).copy()


def forever(dataset: skt.Kalantari17 | skt.BracketIRE) -> Iterator[skt.HDRSample]:
    while True:
        yield from (dataset[i] for i in range(len(dataset)))


def rates(methods: dict[str, Callable[[], object]], rounds: int, seconds: float = 0.5) -> dict[str, list[float]]:
    """Crops per second of every method in every round."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(rounds + 1):
        for name, method in methods.items():
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                method()
                count += 1
            if index:
                found[name].append(count / (time.perf_counter() - start))
    return found


def size_of(folder: Path, count: int) -> float:
    """Megabytes per scene."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6 / count


def report(title: str, found: dict[str, list[float]], sizes: dict[str, float]) -> dict[str, dict[str, float]]:
    """Print and return crops per second, the ratio to the first method, megabytes per scene."""
    first = next(iter(found.values()))
    rows = {
        name: {
            "crops_per_second": round(statistics.median(values), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(values, first, strict=True)), 2),
            "megabytes_per_scene": round(sizes[name], 1),
        }
        for name, values in found.items()
    }
    print(title, skt.evaluation.format_table(rows, 2), sep="\n")
    return rows


def measure_srgb(folder: Path, options: Options) -> dict[str, object]:
    originals, crops, out = folder / "sig17", folder / "crops", folder / "sig17-prepared"
    write_kalantari(originals, options.scenes)
    cut_beforehand(originals, crops, options.crop)
    skt.data.prepare("kalantari", originals, out, progress=False)
    data = {root: skt.Kalantari17(root, crop=options.crop, samples_per_epoch=10_000) for root in (originals, out)}
    cut = sorted(crops.iterdir())
    order = np.random.default_rng(0)
    streams = {root: forever(dataset) for root, dataset in data.items()}
    methods = {
        "published files": lambda: next(streams[originals]),
        "crops cut beforehand": lambda: read_cut(cut[order.integers(len(cut))]),
        "prepared": lambda: next(streams[out]),
    }
    expected, got = data[originals][3], data[out][3]
    if not all(torch.equal(a, b) for a, b in zip(expected[:3], got[:3], strict=True)):
        raise AssertionError("prepared samples differ from the originals")
    found = rates(methods, options.rounds)
    sizes = {name: size_of(path, options.scenes) for name, path in zip(methods, (originals, crops, out), strict=True)}
    rows = report(f"sRGB, {options.crop} x {options.crop} of 1000 x 1500", found, sizes)
    return {"rows": rows, "loader_2_workers_128": loader_rate(skt.Kalantari17(out, crop=128, samples_per_epoch=6400))}


def measure_raw(folder: Path, options: Options) -> dict[str, object]:
    originals, out, crop = folder / "bracketire", folder / "bracketire-prepared", options.crop // 2
    write_bracketire(originals, options.scenes)
    skt.data.prepare("bracketire", originals, out, progress=False)
    data = {root: forever(skt.BracketIRE(root, crop=crop, samples_per_epoch=10_000)) for root in (originals, out)}
    frames, rng = sorted((originals / "Train" / "scene").iterdir()), np.random.default_rng(0)
    methods = {
        "published files, read whole": lambda: read_whole_frame(frames[rng.integers(len(frames))], crop, rng),
        "published files, mapped": lambda: next(data[originals]),
        "prepared": lambda: next(data[out]),
    }
    sizes = {name: size_of(p, options.scenes) for name, p in zip(methods, (originals, originals, out), strict=True)}
    rows = report(f"RAW, {crop} x {crop} of 540 x 960 packed", rates(methods, options.rounds), sizes)
    return {"rows": rows, "loader_2_workers_128": loader_rate(skt.BracketIRE(out, crop=128, samples_per_epoch=6400))}


def loader_rate(dataset: skt.Kalantari17 | skt.BracketIRE) -> dict[str, float]:
    """Crops per second of a shuffling loader with two workers, once it runs: median and slowest of ten stretches."""
    loader = DataLoader(dataset, 16, shuffle=True, num_workers=2, drop_last=True)
    stretches, start, count = [], time.perf_counter(), 0
    for step, batch in enumerate(loader):
        count += len(batch.name)
        if step % 40 == 39:
            stretches.append(count / (time.perf_counter() - start))
            start, count = time.perf_counter(), 0
    stretches = stretches[1:]  # without the start of the workers
    rate = {"median": round(statistics.median(stretches), 1), "slowest": round(min(stretches), 1)}
    print(f"loader with 2 workers, 128 x 128: {rate['median']} crops/s, slowest stretch {rate['slowest']}")
    return rate


def main(options: Options) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {"srgb": measure_srgb(Path(folder), options), "raw": measure_raw(Path(folder), options)}
    device = torch.device("cpu")
    write_result(options.out, "data", {**environment(device), "cores": os.cpu_count(), **result})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
