"""The networks that a study trained, once more: their scores on other photographs, and their pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plan import Study, root_arguments
from torch import Tensor
from torch.utils.data import DataLoader
from units import Unit

import skt_components as skt
from skt_components import training
from skt_components.framework import BareNetwork


def read_config(unit: Unit, study: Study, root: Path | None) -> training.TrainConfig:
    """The options of a finished run."""
    options = ["--config", str(unit.folder / "config.toml"), *root_arguments(study, root), "--device", study.device]
    return training.parse_options(options)


def build_modules(
    config: training.TrainConfig, data: training.RunData
) -> tuple[skt.SemanticKnowledgeTransfer, BareNetwork]:
    """The framework and the bare network of a run, as they are before its first step."""
    bracket = data.validation[0].bracket[None]
    torch.manual_seed(config.seed)
    (network, forward), bank = training.build_network(config), training.build_bank(config)
    org_loss, perceptual = training.build_losses(config, bank)
    bare = BareNetwork(copy.deepcopy(network), org_loss, forward)
    losses = {"orm_loss": org_loss, "perceptual": perceptual, "forward_orm": forward}
    return skt.SemanticKnowledgeTransfer(
        network, bank, sample=bracket, **losses, **training.framework_options(config)
    ), bare


def load_trained(unit: Unit, config: training.TrainConfig, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """The network of a finished run, from bracket to picture."""
    network, forward = training.build_network(config)
    skt.load_weights(
        unit.folder / f"{training.WEIGHTS_FILES['bare' if config.bare else 'framework']}.safetensors", network
    )
    return partial(forward, network.eval().to(device))


def make_unseen(config: training.TrainConfig, root: Path) -> skt.HDRFolder:
    """Views of all photographs of a folder, taken and chosen as those that validate."""
    camera = skt.RawCamera(scale=config.scale) if config.domain == "raw" else skt.Camera()
    options: dict[str, Any] = {"crop": config.val_crop, "samples_per_epoch": config.val_samples, "camera": camera}
    return skt.HDRFolder(root, split="val", val_fraction=1.0, **options)


@torch.no_grad()
def judge(units: Sequence[Unit], study: Study, root: Path | None, photographs: Path) -> list[dict[str, Any]]:
    """Scores of every finished run's network on brackets of photographs that no run has seen.

    Raises:
        ValueError: the study's data is a published data set, or a photograph is one of the study's.
        FileNotFoundError: there are none.
    """
    from tqdm import tqdm

    simulated = isinstance(study.data, dict) and "layout" in study.data  # of photographs, in a published layout
    if study.base.get("data") not in ("hdr-folder", "synthetic", None) and not simulated:
        raise ValueError(f"--judge takes brackets of photographs; a study of {study.base['data']} has its own")
    check_unseen(study, photographs)
    units, rows, batches = [unit for unit in units if unit.finished], [], None
    baselines: dict[str, dict[str, float]] = {}
    for unit in tqdm(units, f"judged on {photographs.name}", unit="run"):
        config = read_config(unit, study, root)
        device = training.pick_device(config.device)
        if batches is None:  # the same for all
            samples = DataLoader(make_unseen(config, photographs), 4)
            batches = [training.move_sample(sample, device) for sample in samples]
            free = partial(_draw_baselines, scale=config.scale)
            baselines = training.mean_scores(training.score_pictures(batches, free, peak=config.peak))
        draw = partial(_draw, load_trained(unit, config, device))
        scores = training.score_pictures(batches, draw, peak=config.peak)
        steps = unit.options["steps"]
        name = {"arm": unit.arm, "seed": unit.seed, "fold": unit.fold, "steps": steps, "options": {}}
        values = {metric: of.tolist() for metric, of in scores["ORM"].items()}
        rows.append({**name, "scores": {"ORM": values}, "baselines": baselines})
    return rows


def _draw(network: Callable[[Tensor], Tensor], sample: skt.HDRSample) -> dict[str, Tensor]:
    return {"ORM": network(sample.bracket)}


def _draw_baselines(sample: skt.HDRSample, scale: int) -> dict[str, Tensor]:
    return skt.evaluation.baseline_pictures(sample.bracket, sample.exposure_times, scale=scale)


def check_unseen(study: Study, photographs: Path) -> None:
    """Raise ValueError where a photograph of the folder, by name and bytes, trained or validated the study."""
    if not isinstance(study.data, dict) or "val" not in study.data:
        return
    known = {(Path(name).name, size) for part in study.data.values() for name, size in part.items()}
    files = skt.HDRFolder(photographs, split="all").files
    if seen := [path.name for path in files if (path.name, path.stat().st_size) in known]:
        raise ValueError(f"--judge takes photographs that no run has seen; the study has {', '.join(seen)}")


def merge_folds(rows: Sequence[dict[str, Any]], study: Study) -> tuple[list[dict[str, Any]], Study]:
    """Rows and study for other photographs, which are the same for all folds: each fold is a seed more."""
    merged = [{**row, "seed": row["seed"] * study.folds + row["fold"], "fold": 0} for row in rows]
    return merged, replace(study, folds=1, data=None)


def draw_pictures(path: Path, units: Sequence[Unit], study: Study, root: Path | None) -> bool:
    """Draw three validation scenes: the baseline's picture and the shown arm's, beside the target and the errors."""
    units = [unit for unit in units if unit.fold == 0]
    found = {unit.arm: unit for unit in units if unit.finished and unit.seed == _shown_seed(units, study)}
    if study.shown is None or not {study.baseline, study.shown} <= found.keys():
        return False
    config = replace(read_config(found[study.shown], study, root), device="cpu")
    networks = {
        arm: load_trained(found[arm], read_config(found[arm], study, root), "cpu")
        for arm in (study.baseline, study.shown)
    }
    data = training.build_data(config)
    framework, _ = build_modules(config, data)
    training.Validator(config, training.Engine(config), framework.eval(), data.validation).draw(path, networks)
    return True


def _shown_seed(units: Sequence[Unit], study: Study) -> int | None:
    """The first seed whose baseline and shown arm are finished."""
    arms: dict[int, set[str]] = {}
    for unit in units:
        if unit.finished:
            arms.setdefault(unit.seed, set()).add(unit.arm)
    return next((seed for seed, names in arms.items() if {study.baseline, study.shown} <= names), None)
