"""Validation: scores and pictures of the network and the teacher, and the table at the end of a run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from skt_components import evaluation
from skt_components.data.sample import HDRSample
from skt_components.evaluation.baselines import BASELINES, baseline_pictures
from skt_components.files.json_lines import read_json_lines
from skt_components.framework import SemanticKnowledgeTransfer
from skt_components.metrics import psnr_l, psnr_mu, ssim_mu
from skt_components.simulation import HDRFolder
from skt_components.training.batches import move_sample
from skt_components.training.config import TrainConfig
from skt_components.training.engine import Engine

Scores = dict[str, dict[str, Tensor]]
"""Network ("ORM") or teacher ("SPGRM") -> metric -> one value for each validation picture."""
METRICS: dict[str, Callable[..., Tensor]] = {"PSNR-mu": psnr_mu, "PSNR-L": psnr_l, "SSIM-mu": ssim_mu}
_REGIONS = "region distance"
_BATCH = 4  # validation pictures at a time


@torch.no_grad()
def score_pictures(
    batches: Iterable[HDRSample], reconstruct: Callable[[HDRSample], Mapping[str, Tensor]], *, peak: float
) -> Scores:
    """Return the scores of all pictures: title -> metric of :data:`METRICS` -> one value for each picture.

    Args:
        batches: samples with a batch axis.
        reconstruct: from such a batch to linear pictures (B, C, H, W) by title.
        peak: linear value of white.
    """
    found: dict[str, dict[str, list[Tensor]]] = {}
    for sample in batches:
        for title, picture in reconstruct(sample).items():
            for metric, measure in METRICS.items():
                values = measure(picture, sample.target, peak=peak).double().cpu()
                found.setdefault(title, {}).setdefault(metric, []).append(values)
    return {title: {metric: torch.cat(values) for metric, values in row.items()} for title, row in found.items()}


class Validator:
    """Score and draw the validation pictures of a run.

    Args:
        config: the options: ``peak``, ``metadata``.
        engine: the process; every process scores a part of the pictures.
        framework: its bank and domain transfer measure and draw the regions, for the bare network too.
        data: the validation pictures.
    """

    def __init__(
        self, config: TrainConfig, engine: Engine, framework: SemanticKnowledgeTransfer, data: Dataset[HDRSample]
    ) -> None:
        self.config, self.engine, self.framework, self.data = config, engine, framework, data

    @functools.cached_property
    @torch.no_grad()
    def baselines(self) -> Scores:
        """Scores of the reference exposure and the exposure merge, which need no training; every process asks."""
        scale = self.config.scale
        return self._score_all(lambda sample: baseline_pictures(sample.bracket, sample.exposure_times, scale=scale))

    @torch.no_grad()
    def score(self, module: nn.Module, network: nn.Module) -> Scores:
        """Return the scores of all pictures, in every process.

        Args:
            module: the framework or the bare network; it has ``reconstruct``.
            network: what runs in the place of the module's own network, such as its moving average.
        """
        module.eval()
        network.eval()

        def reconstruct(sample: HDRSample) -> dict[str, Tensor]:
            metadata = self.config.rendering_metadata(sample)
            hdr, refined = module.reconstruct(sample.bracket, orm=network, metadata=metadata)  # type: ignore[operator]
            return {"ORM": hdr} | ({} if refined is None else {"SPGRM": refined})

        return self._score_all(reconstruct)

    def _score_all(self, reconstruct: Callable[[HDRSample], Mapping[str, Tensor]]) -> Scores:
        """Score the pictures that a function makes of each batch of samples; return all scores in every process."""
        engine, count = self.engine, len(self.data)  # type: ignore[arg-type]
        mine, rows = range(engine.rank, count, engine.processes), {}
        batches = DataLoader(Subset(self.data, mine), _BATCH)
        for start, sample in zip(itertools.count(0, _BATCH), batches, strict=False):
            sample = move_sample(sample, engine.device, engine.dtype)
            scores = {name: self._score_batch(picture, sample) for name, picture in reconstruct(sample).items()}
            for i, number in enumerate(mine[start : start + _BATCH]):
                rows[number] = {name: {m: values[i] for m, values in row.items()} for name, row in scores.items()}
        every = engine.gather(rows)
        return {
            name: {m: torch.tensor([row[name][m] for row in every], dtype=torch.float64) for m in metrics}
            for name, metrics in every[0].items()
        }

    def draw(self, path: Path, networks: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Draw three scenes: exposures, regions, reference, merge and networks beside the target, and errors.

        Args:
            path: a picture file; its folder is made.
            networks: title -> function from a bracket (B, N, C, H, W) to a linear picture.
        """
        rows, place = [], next(self.framework.parameters())
        path.parent.mkdir(exist_ok=True)
        count = len(self.data)  # type: ignore[arg-type]
        # Odd and even ones: the views of several photographs alternate.
        for index in sorted({0, count // 3 | 1, 2 * count // 3} - {count}):
            sample = self.data[index]
            placed = move_sample(sample, place.device, place.dtype)
            with torch.no_grad():
                results = {title: network(placed.bracket[None]) for title, network in networks.items()}
                first, metadata = next(iter(results.values())), self.config.rendering_metadata(placed)
                labels = self.framework.bank(self.framework.transfer(first, **metadata)).labels
            pictures = {title: hdr[0] for title, hdr in results.items()}
            rows.append(evaluation.SampleRow.from_sample(sample, pictures, None if labels is None else labels[0]))
        evaluation.save_samples(path, rows)

    def _score_batch(self, picture: Tensor, sample: HDRSample) -> dict[str, list[float]]:
        scores = score_pictures([sample], lambda _: {"": picture}, peak=self.config.peak)[""]
        metadata = self.config.rendering_metadata(sample)
        found = {metric: values.tolist() for metric, values in scores.items()}
        return {**found, _REGIONS: self.framework.region_distance(picture, sample.target, metadata).tolist()}


def mean_scores(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the means over the pictures."""
    return {name: {metric: float(values.mean()) for metric, values in row.items()} for name, row in scores.items()}


def results_table(
    config: TrainConfig, folders: Sequence[Path], results: Sequence[Mapping[str, Scores]], data: Dataset[HDRSample]
) -> str:
    """Return the table of a run: means over pictures and seeds, and the paired gain over the bare network.

    The first rows are pictures without training: the reference exposure, and the exposure merge.

    Args:
        config: the options of the run.
        folders: the folder of each seed, with the scores before training in ``metrics.jsonl``.
        results: for each seed the last scores, by "framework" and "bare".
        data: the validation pictures.
    """
    logs = [read_json_lines(folder / "metrics.jsonl") for folder in folders]
    free = [line for log in logs for line in log if "baselines" in line]
    rows = {title: [line["baselines"][title] for line in free] for title in BASELINES} if free else {}
    rows["ORM before"] = [next(line["validation"]["ORM"] for line in log if "validation" in line) for log in logs]
    if not config.bare:
        rows["ORM after"] = [mean_scores(result["framework"])["ORM"] for result in results]
        rows["SPGRM (teacher)"] = [mean_scores(result["framework"])["SPGRM"] for result in results]
    if config.compare or config.bare:
        rows["bare ORM after"] = [mean_scores(result["bare"])["ORM"] for result in results]
    averages = {
        title: {metric: sum(seed[metric] for seed in seeds) / len(seeds) for metric in METRICS}
        for title, seeds in rows.items()
    }
    text = evaluation.format_table(averages)
    if config.compare:
        ours, bare = ([result[name]["ORM"]["PSNR-mu"] for result in results] for name in ("framework", "bare"))
        if (count := len(ours[0])) > 1:
            text += f"\n{evaluation.paired_summary(ours, bare)}"
        else:
            gain = float(torch.stack(ours).sub(torch.stack(bare)).mean())
            text += f"\npaired gain over 1 picture: {gain:+.3f} dB PSNR-mu; an interval needs two pictures"
        if isinstance(data, HDRFolder):  # whose views alternate between the photographs
            files = min(len(data.files), count)
            text += f" ({count} view{'s' * (count > 1)} of {files} photograph{'s' * (files > 1)})"
    return text
