"""Train an HDR network with semantic knowledge transfer: the whole loop, readable from top to bottom.

python examples/train_full.py                                          # procedural scenes, a few minutes on a CPU
python examples/train_full.py --data hdr-folder --root PHOTOS          # a folder of .hdr / .exr photographs
python examples/train_full.py --data kalantari --root SIG17            # a data set as published
python examples/train_full.py --camera raw                             # five noisy, blurred RAW exposures
python examples/train_full.py --compare                                # also the bare network, and the paired gain
python examples/train_full.py --orm my_package.nets:MyNet --taps enc body dec
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

import skt_components as skt


def tmrnet(*, scale: int = 1, **options: Any) -> skt.TMRNet:
    """TMRNet, which has its scale in its name."""
    return (skt.TMRNetPlus if scale == 4 else skt.TMRNet)(**options)


ORMS: dict[str, Callable[..., nn.Module]] = {
    "ahdrnet": skt.AHDRNet,
    "ahdrnet-small": partial(skt.AHDRNet, features=16, num_layers=4, growth=8),
    "hdr-transformer": skt.HDRTransformer,
    "hdr-transformer-small": partial(skt.HDRTransformer, features=24, depths=(2,) * 3, num_heads=(4,) * 3),
    "sctnet": skt.SCTNet,
    "sctnet-small": partial(skt.SCTNet, features=30, depths=(2,) * 4, num_heads=(2,) * 4, channel_heads=2),
    "tmrnet": tmrnet,
    "tmrnet-small": partial(tmrnet, features=16, num_blocks=(1, 2, 2, 1)),
}
Framework = skt.SemanticKnowledgeTransfer
Data: TypeAlias = "skt.SyntheticScenes | skt.HDRFolder | skt.Kalantari17 | skt.BracketIRE"
Forward = Callable[[nn.Module, Tensor], Tensor]
Network = Callable[[Tensor], Tensor]
Scores = dict[str, dict[str, Tensor]]


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
    camera = skt.RawCamera(scale=config.scale) if config.domain == "raw" else skt.Camera()
    if config.root is None:
        scenes = partial(skt.SyntheticScenes, camera=camera)
        return scenes(per_epoch, config.crop, seed=config.seed), scenes(16, config.val_crop, split="val")
    train: dict[str, Any] = {"crop": config.crop, "seed": config.seed, "samples_per_epoch": per_epoch}
    validation: dict[str, Any] = {"crop": config.val_crop, "samples_per_epoch": 16}
    if config.data == "hdr-folder":
        photos = partial(skt.HDRFolder, config.root, camera=camera, val_fraction=0.2)  # split by photograph
        return photos(**train), photos(split="val", **validation)
    published: Callable[..., Data] = skt.Tel23 if config.data == "tel" else skt.Kalantari17
    if config.data.startswith("bracketire"):
        published = partial(skt.BracketIRE, scale=config.scale)
    else:
        validation["samples_per_epoch"] = None  # one window of every test scene
    training = published(config.root, split="train", augment="dihedral", **train)
    return training, published(config.root, split="test", **validation)


def bracket_options(config: skt.TrainConfig) -> dict[str, Any]:
    """What a network must know of the brackets it gets and of the pictures it returns."""
    if config.domain == "srgb":
        return {"num_frames": 3, "in_channels": 6, "out_channels": 3}
    raw = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": config.peak}
    return raw | {"scale": config.scale}


def rendering(config: skt.TrainConfig, sample: skt.HDRSample, device: torch.device) -> dict[str, Tensor]:
    """What the domain transfer is told of RAW data: nothing, as in the paper, without --metadata."""
    return {key: value.to(device) for key, value in sample.metadata.items()} if config.metadata else {}


def build_framework(config: skt.TrainConfig, orm: nn.Module, forward: Forward, sample: Tensor) -> Framework:
    """Put the network into the framework."""
    bank = skt.make_knowledge_bank(
        config.knowledge_bank,
        weights=config.weights,
        regions=config.region_source,
        num_regions=config.regions,
        taps=config.bank_taps,
        download=config.download,
    )
    overrides = {f: v for f in asdict(skt.LossWeights.paper()) if (v := getattr(config, f)) is not None}
    extractor = None
    if config.perceptual is not None:
        extractor = bank if config.perceptual == "bank" else skt.VGG19Features(weights=config.perceptual)
    return Framework(
        orm,
        bank,
        taps=config.taps or None,
        domain=config.domain,
        weights=replace(getattr(skt.LossWeights, config.loss_weights)(), **overrides),
        forward_orm=forward,
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
        left = Subset(dataset, order[done:])
        yield from DataLoader(left, config.batch_size, num_workers=config.workers, drop_last=True)


@torch.no_grad()
def validate(reconstruct: Callable[[skt.HDRSample], dict[str, Tensor]], data: DataLoader, peak: float) -> Scores:
    """Metrics of every picture, by the name of what made it."""
    scores: dict[str, dict[str, list[Tensor]]] = {}
    for sample in data:
        for name, picture in reconstruct(sample).items():
            row = scores.setdefault(name, {"PSNR-mu": [], "PSNR-L": [], "SSIM-mu": []})
            for metric, function in zip(row, (skt.psnr_mu, skt.psnr_l, skt.ssim_mu), strict=True):
                row[metric].append(function(picture, sample.target.to(picture.device), peak=peak).cpu())
    return {name: {metric: torch.cat(values) for metric, values in row.items()} for name, row in scores.items()}


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Average over pictures."""
    return {name: {metric: float(values.mean()) for metric, values in row.items()} for name, row in scores.items()}


def train(
    config: skt.TrainConfig,
    run: Path,
    name: str,
    orm: nn.Module,
    forward: Forward,
    framework: Framework | None,
    data: tuple[Data, DataLoader],
    device: torch.device,
) -> Scores:
    """Train the network, in the framework or bare; return its last scores."""
    module: nn.Module = orm if framework is None else framework
    module.to(device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.9, 0.999))
    checkpoint, start, scores, org_loss = run / f"{name}.ckpt", 0, {}, skt.MuL1Loss(peak=config.peak)
    if config.resume is not None and checkpoint.exists():
        start = skt.restore_checkpoint(checkpoint, module=module, optimizer=optimizer)
        if start > config.steps:
            raise ValueError(f"--steps {config.steps}, but {checkpoint} is already at step {start}")
    skt.rewind_metrics(run / "metrics.jsonl", name, start)

    def log(step: int, **entry: object) -> None:
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": name, "step": step, **entry}) + "\n")

    def reconstruct(sample: skt.HDRSample) -> dict[str, Tensor]:
        if framework is None:
            return {"ORM": forward(orm, sample.bracket.to(device))}
        metadata = rendering(config, sample, device)
        output = framework(sample.bracket.to(device), sample.target.to(device), metadata=metadata)
        return {"ORM": output.hdr, "SPGRM": framework.transfer.inverse(output.refined, **metadata)}

    def score() -> Scores:
        module.eval()
        found = validate(reconstruct, data[1], config.peak)
        module.train()
        return found

    if start == 0:
        log(0, validation=means(score()))
    stream, bar = batches(data[0], config, start), tqdm(range(start, config.steps), name, config.steps, initial=start)
    with skt.deferred_interrupt() as interrupted:
        for step in bar:
            sample = next(stream)
            torch.manual_seed((config.seed << 32) + step)  # masks and dropout: the same after a resume
            bracket, target = sample.bracket.to(device), sample.target.to(device)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (0.02 + 0.49 * (1 + math.cos(math.pi * step / config.steps)))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                if framework is None:
                    loss = org_loss(forward(orm, bracket).float(), target)
                    terms = {"org": loss}
                else:
                    output = framework(bracket, target, metadata=rendering(config, sample, device))
                    loss, terms = output.total, output.terms
            skt.check_finite({"the bracket": bracket, "the target": target, **terms}, step)
            if step % config.log_every == 0 or step == config.steps - 1:
                values = {term: value.item() for term, value in terms.items()}
                norms = {} if framework is None else framework.gradient_norms(output)
                log(step, lr=group["lr"], terms=values, gradient_norms=norms)
                bar.set_postfix({term: f"{value:.4f}" for term, value in values.items()})
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            skt.check_finite({"the gradient": nn.utils.clip_grad_norm_(module.parameters(), math.inf)}, step)
            optimizer.step()
            last = step + 1 == config.steps
            if last or interrupted() or (step + 1) % config.checkpoint_every == 0:
                state = {"step": step + 1, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
                skt.save_checkpoint(checkpoint, state)
            if interrupted():
                raise KeyboardInterrupt(f"interrupted after step {step}; continue with --resume {run}")
            if last or (step + 1) % config.validate_every == 0:
                scores = score()
                log(step + 1, validation=means(scores))
    return scores or score()


def draw_samples(
    path: Path, config: skt.TrainConfig, networks: Mapping[str, Network], framework: Framework, data: Data
) -> None:
    """Draw three validation scenes: exposures, regions, results, target and errors."""
    rows, device = [], next(framework.parameters()).device
    for index in range(0, len(data), max(len(data) // 3, 1))[:3]:
        sample = data[index]
        with torch.no_grad():
            results = {name: network(sample.bracket[None].to(device)) for name, network in networks.items()}
            labels = framework.bank(framework.transfer(results["ours"], **rendering(config, sample, device))).labels
        pictures = {name: hdr[0] for name, hdr in results.items()}
        rows.append(skt.SampleRow.from_sample(sample, pictures, None if labels is None else labels[0]))
    skt.save_samples(path, rows)


def main(arguments: list[str]) -> None:
    """Build, train, report."""
    config = parse(arguments)
    device = skt.pick_device(config.device)
    skt.check_bank_weights(config.knowledge_bank, config.weights, download=config.download)  # before any other work
    train_data, validation_data = build_data(config)
    torch.manual_seed(config.seed)
    orm, forward = skt.load_network(config.orm, ORMS, **bracket_options(config))
    bare = copy.deepcopy(orm)
    framework = build_framework(config, orm, forward, validation_data[0].bracket[None])
    run, data = skt.make_run_folder(config), (train_data, DataLoader(validation_data, 4))
    print(f"{config.orm} with {config.knowledge_bank} on {config.data}, {device}, {config.steps} steps -> {run}")
    ours = train(config, run, "framework", orm, forward, framework, data, device)
    skt.save_weights(run / "orm.safetensors", orm)
    before = next(line["validation"] for line in skt.read_metrics(run / "metrics.jsonl") if "validation" in line)
    rows = {"ORM before": before["ORM"], "ORM after": means(ours)["ORM"], "SPGRM (teacher)": means(ours)["SPGRM"]}
    networks, gain = {"ours": partial(forward, orm)}, ""
    if config.compare:
        theirs = train(config, run, "bare", bare, forward, None, data, device)
        rows["bare ORM after"], networks["bare"] = means(theirs)["ORM"], partial(forward, bare.eval())
        mean, error = skt.paired_gain(ours["ORM"]["PSNR-mu"], theirs["ORM"]["PSNR-mu"])
        gain = f"\npaired gain over the bare network: {mean:+.3f} dB PSNR-mu (standard error {error:.3f})"
    skt.save_curves(run / "metrics.jsonl", run / "curves.png")
    draw_samples(run / "samples.png", config, networks, framework.eval(), validation_data)
    table = skt.format_table(rows) + gain
    (run / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (skt.NonFiniteError, OSError, ValueError, ImportError) as error:
        sys.exit(f"train_full.py: {error}")
    except KeyboardInterrupt as stop:
        print(f"train_full.py: {stop}", file=sys.stderr)
        sys.exit(130)
