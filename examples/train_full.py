"""Train an HDR network with semantic knowledge transfer: the whole loop, readable from top to bottom.

python examples/train_full.py                                          # procedural scenes, a few minutes on a CPU
python examples/train_full.py --data hdr-folder --root PHOTOS          # a folder of .hdr / .exr photographs
python examples/train_full.py --compare                                # also the bare network, and the paired gain
python examples/train_full.py --orm my_package.nets:MyNet --taps enc body dec
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import skt_components as skt

ORMS: dict[str, Callable[[], nn.Module]] = {
    "ahdrnet": skt.AHDRNet,
    "ahdrnet-small": lambda: skt.AHDRNet(features=16, num_layers=4, growth=8),
}
Framework = skt.SemanticKnowledgeTransfer
Data = skt.SyntheticScenes | skt.HDRFolder


def parse(arguments: list[str]) -> skt.TrainConfig:
    """Command line over the files named by --resume and --config over the defaults."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--resume", type=lambda run: Path(run) / "config.toml")
    files.add_argument("--config", type=Path)
    found = [file for file in vars(files.parse_known_args(arguments)[0]).values() if file is not None]
    return tyro.cli(skt.TrainConfig, args=[*itertools.chain(*map(skt.read_options, found)), *arguments])


def build_data(config: skt.TrainConfig) -> tuple[Data, Data]:
    """Training crops and the fixed validation pictures."""
    per_epoch = 100 * config.batch_size
    if config.root is not None:
        photos = partial(skt.HDRFolder, config.root, val_fraction=0.2)  # split by photograph
        train = photos(crop=config.crop, seed=config.seed, samples_per_epoch=per_epoch)
        return train, photos(crop=128, split="val", samples_per_epoch=16)
    scenes = skt.SyntheticScenes(per_epoch, config.crop, seed=config.seed, split="train")
    return scenes, skt.SyntheticScenes(16, 128, seed=0, split="val")


def build_orm(config: skt.TrainConfig) -> nn.Module:
    """Make the network, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    if config.orm in ORMS:
        return ORMS[config.orm]()
    module, _, name = config.orm.partition(":")
    if not name:
        raise ValueError(f"--orm must be one of {', '.join(ORMS)} or package.module:callable, got {config.orm!r}")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), name)()


def build_framework(config: skt.TrainConfig, orm: nn.Module, sample: Tensor) -> Framework:
    """Put the network into the framework."""
    regions = skt.ColorPositionKMeans(config.regions)
    bank = skt.TimmFeatureExtractor(config.knowledge_bank, weights=config.weights, regions=regions)
    overrides = {f: v for f in asdict(skt.LossWeights.paper()) if (v := getattr(config, f)) is not None}
    extractor = None
    if config.perceptual is not None:
        extractor = bank if config.perceptual == "bank" else skt.VGG19Features(weights=config.perceptual)
    return Framework(
        orm,
        bank,
        taps=config.taps or None,
        weights=replace(getattr(skt.LossWeights, config.loss_weights)(), **overrides),
        perceptual=None if extractor is None else skt.PerceptualLoss(extractor),
        sample=sample,
    )


def batches(dataset: Data, config: skt.TrainConfig, step: int) -> Iterator[skt.HDRSample]:
    """Yield the batches of ``step``, ``step`` + 1, ...: the same ones however the run got there."""
    per_epoch = len(dataset) // config.batch_size
    for epoch in itertools.count(step // per_epoch):
        dataset.set_epoch(epoch)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        done = (step % per_epoch if epoch == step // per_epoch else 0) * config.batch_size
        left = torch.utils.data.Subset(dataset, order[done:])
        pin = torch.cuda.is_available()
        yield from DataLoader(left, config.batch_size, num_workers=config.workers, drop_last=True, pin_memory=pin)


@torch.no_grad()
def validate(orm: nn.Module, data: DataLoader, device: torch.device, framework: Framework | None) -> dict[str, dict]:
    """Per-picture metrics of the network and, inside the framework, of the teacher."""
    scores: dict[str, dict[str, list[Tensor]]] = {}
    module = framework if framework is not None else orm
    module.eval()
    for sample in data:
        bracket, target = sample.bracket.to(device), sample.target.to(device)
        pictures = {"ORM": orm(bracket)}
        if framework is not None:
            output = framework(bracket, target)
            pictures["SPGRM"] = framework.transfer.inverse(output.refined)
        for name, picture in pictures.items():
            row = scores.setdefault(name, {"PSNR-mu": [], "PSNR-L": [], "SSIM-mu": []})
            row["PSNR-mu"].append(skt.psnr_mu(picture, target))
            row["PSNR-L"].append(skt.psnr_l(picture, target))
            row["SSIM-mu"].append(skt.ssim_mu(picture, target))
    module.train()
    return {name: {metric: torch.cat(v).cpu() for metric, v in row.items()} for name, row in scores.items()}


def means(scores: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Average over pictures."""
    return {name: {metric: float(v.mean()) for metric, v in row.items()} for name, row in scores.items()}


def learning_rate(config: skt.TrainConfig, step: int) -> float:
    """Cosine from ``lr`` to a fiftieth of it."""
    return config.lr * (0.02 + 0.49 * (1 + math.cos(math.pi * step / config.steps)))


def train(
    config: skt.TrainConfig,
    run: Path,
    name: str,
    orm: nn.Module,
    framework: Framework | None,
    data: Data,
    validation: DataLoader,
    device: torch.device,
) -> list[dict[str, dict]]:
    """Train the network, in the framework or bare; return its scores at every validation."""
    module: nn.Module = orm if framework is None else framework
    module.to(device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.9, 0.999))
    checkpoint, start, history = run / f"{name}.ckpt", 0, []
    if config.resume is not None and checkpoint.exists():
        state = skt.load_checkpoint(checkpoint)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    org_loss, stream = skt.MuL1Loss(), batches(data, config, start)

    def log(step: int, **entry: object) -> None:
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": name, "step": step, **entry}) + "\n")

    def score(step: int) -> None:
        history.append(validate(orm, validation, device, framework))
        log(step, validation=means(history[-1]))

    if start in (0, config.steps):
        score(start)
    bar = tqdm(range(start, config.steps), name, initial=start, total=config.steps, mininterval=1.0)
    for step in bar:
        sample = next(stream)
        torch.manual_seed((config.seed << 32) + step)  # masks and dropout: the same after a resume
        bracket, target = (x.to(device, non_blocking=True) for x in (sample.bracket, sample.target))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if framework is None:
                loss = org_loss(orm(bracket).float(), target)
                terms = {"org": loss}
            else:
                output = framework(bracket, target)
                loss, terms = output.total, output.terms
        skt.check_finite({"the bracket": bracket, "the target": target, **terms}, step)
        if step % config.log_every == 0 or step == config.steps - 1:
            values = {term: value.item() for term, value in terms.items()}
            norms = {} if framework is None else framework.gradient_norms(output)
            log(step, lr=group["lr"], terms=values, gradient_norms=norms)
            bar.set_postfix({term: f"{value:.4f}" for term, value in values.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), math.inf)
        skt.check_finite({"the gradient": norm}, step)
        optimizer.step()
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state = {"step": step + 1, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
            skt.save_checkpoint(checkpoint, state)
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            score(step + 1)
    return history


def draw_samples(path: Path, results: dict[str, nn.Module], framework: Framework, data: Data) -> None:
    """Draw three validation scenes: exposures, regions, results, target and errors."""
    rows, device = [], next(framework.parameters()).device
    for index in range(0, len(data), max(len(data) // 3, 1)):
        sample = data[index]
        bracket, target = sample.bracket[None].to(device), framework.transfer(sample.target[None].to(device))
        with torch.no_grad():
            pictures = {name: framework.transfer(orm(bracket))[0] for name, orm in results.items()}
            labels = framework.bank(framework.transfer(results["ours"](bracket))).labels[0]
        rows.append(skt.SampleRow(sample.name, sample.bracket[:, 3:], pictures, target[0], labels))
    skt.save_samples(path, rows[:3])


def main(arguments: list[str]) -> None:
    """Build, train, report."""
    config = parse(arguments)
    device = torch.device(config.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
    train_data, validation_data = build_data(config)
    validation = DataLoader(validation_data, 4)
    orm = build_orm(config)
    bare = copy.deepcopy(orm)
    framework = build_framework(config, orm, validation_data[0].bracket[None])
    run = skt.make_run_folder(config)
    print(f"{config.orm} with {config.knowledge_bank} on {config.data}, {device}, {config.steps} steps -> {run}")
    history = train(config, run, "framework", orm, framework, train_data, validation, device)
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    before = next(line["validation"] for line in lines if "validation" in line)
    rows = {"ORM before": before["ORM"], "ORM after": means(history[-1])["ORM"]}
    rows["SPGRM (teacher)"] = means(history[-1])["SPGRM"]
    skt.save_weights(run / "orm.safetensors", orm)
    results = {"ours": orm}
    if config.compare:
        bare_history = train(config, run, "bare", bare, None, train_data, validation, device)
        rows["bare ORM after"] = means(bare_history[-1])["ORM"]
        results["bare"] = bare
    skt.save_curves(run / "metrics.jsonl", run / "curves.png")
    draw_samples(run / "samples.png", results, framework, validation_data)
    table = skt.format_table(rows)
    (run / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(table)
    if config.compare:
        gain, error = skt.paired_gain(history[-1]["ORM"]["PSNR-mu"], bare_history[-1]["ORM"]["PSNR-mu"])
        print(f"paired gain over the bare network: {gain:+.3f} dB PSNR-mu (standard error {error:.3f})")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (skt.NonFiniteError, OSError, ValueError, ImportError) as error:
        sys.exit(f"train_full.py: {error}")
