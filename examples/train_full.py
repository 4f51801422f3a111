"""Train an HDR network with semantic knowledge transfer: the whole loop, readable from top to bottom.

python examples/train_full.py                                          # procedural scenes, a few minutes on a CPU
python examples/train_full.py --data hdr-folder --root PHOTOS          # a folder of .hdr / .exr photographs
python examples/train_full.py --config examples/configs/ahdrnet-tel.toml --root TEL --dry-run  # the paper's, planned
torchrun --nproc-per-node 4 examples/train_full.py --config ...        # four GPUs, or processes of a CPU
python examples/train_full.py --camera raw                             # five noisy, blurred RAW exposures
python examples/train_full.py --compare --seeds 3                      # also the bare network, and the paired gain
python examples/train_full.py --orm my_package.nets:MyNet --taps enc body dec
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

import skt_components as skt
from skt_components.banks import Frozen, check_bank_weights, make_knowledge_bank
from skt_components.evaluation import SampleRow, format_table, paired_summary, rewind_metrics, save_curves, save_samples
from skt_components.files.json_lines import read_json_lines
from skt_components.framework import TermGradient
from skt_components.models import load_network
from skt_components.training import (
    CheckpointFolder,
    Engine,
    NonFiniteError,
    SamplePositions,
    StepWatch,
    TrainConfig,
    deferred_interrupt,
    describe_plan,
    learning_rate,
    make_run_folder,
    place_sample,
    read_options,
    restore_state,
    sample_generators,
    seed_everything,
    training_batches,
    transfer_ramp,
    write_environment,
    write_options,
    write_run_summary,
)


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
Measures = Mapping[str, Callable[[Tensor, skt.HDRSample], Tensor]]
FILES = {"framework": "orm", "bare": "bare"}  # names of the weights' files
BROKEN = 1000  # above all signals
METRICS = {"PSNR-mu": skt.psnr_mu, "PSNR-L": skt.psnr_l, "SSIM-mu": skt.ssim_mu}


# --- what is trained


class OrgLoss(nn.Module):
    """L_org: L1 after mu-law, and for those who want it the root mean square, or a distance of features."""

    def __init__(self, config: TrainConfig, extractor: nn.Module | None) -> None:
        super().__init__()
        self.pixels = skt.MuL1Loss(peak=config.peak, rms_weight=config.org_rms_weight)
        self.transfer = skt.DomainTransfer(config.domain)
        self.weight = config.org_perceptual_weight
        self.features = Frozen(skt.PerceptualLoss(extractor)) if self.weight and extractor is not None else None

    def forward(self, hdr: Tensor, target: Tensor) -> Tensor:
        """Return the loss of linear pictures."""
        loss = self.pixels(hdr, target)
        if self.features is not None:
            loss = loss + self.weight * self.features(self.transfer(hdr), self.transfer(target))
        return loss


class BareOutput(NamedTuple):
    """What a step of the bare network gives, as far as the loop asks."""

    total: Tensor
    terms: dict[str, Tensor]


class Bare(nn.Module):
    """The network with L_org alone, called as the framework is."""

    def __init__(self, orm: nn.Module, forward_orm: Forward, orm_loss: OrgLoss) -> None:
        super().__init__()
        self.orm, self.forward_orm, self.orm_loss = orm, forward_orm, orm_loss

    def forward(self, bracket: Tensor, target: Tensor, **_: object) -> BareOutput:
        """Return the loss of one step."""
        loss = self.orm_loss(self.forward_orm(self.orm, bracket).float(), target)
        return BareOutput(loss, {"org": loss})

    def reconstruct(self, bracket: Tensor, *, orm: nn.Module | None = None, **_: object) -> tuple[Tensor, None]:
        """Return the network's picture, and none of a teacher."""
        return self.forward_orm(self.orm if orm is None else orm, bracket), None


def parse(arguments: list[str]) -> TrainConfig:
    """Command line over the files named by --resume and --config over the defaults."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--resume", type=lambda run: Path(run) / "config.toml")
    files.add_argument("--config", type=Path)
    found = [file for file in vars(files.parse_known_args(arguments)[0]).values() if file is not None]
    return tyro.cli(TrainConfig, args=[*itertools.chain(*map(read_options, found)), *arguments])


def build_data(config: TrainConfig, processes: int = 1) -> tuple[Data, Data]:
    """Training crops and the fixed validation pictures."""
    per_epoch = 100 * config.batch_size * config.accumulate * processes
    camera = skt.RawCamera(scale=config.scale) if config.domain == "raw" else skt.Camera()
    if config.root is None:
        scenes = partial(skt.SyntheticScenes, camera=camera)
        crops = scenes(per_epoch, config.crop, seed=config.seed)
        return crops, scenes(config.val_samples, config.val_crop, split="val")
    train: dict[str, Any] = {"crop": config.crop, "seed": config.seed, "samples_per_epoch": per_epoch}
    validation: dict[str, Any] = {"crop": config.val_crop, "samples_per_epoch": config.val_samples}
    if config.data == "hdr-folder":
        named = config.val_names or None  # split by photograph
        photos = partial(skt.HDRFolder, config.root, camera=camera, val_fraction=0.2, val_names=named)
        return photos(**train), photos(split="val", **validation)
    published: Callable[..., Data] = skt.Tel23 if config.data == "tel" else skt.Kalantari17
    if config.data.startswith("bracketire"):
        published = partial(skt.BracketIRE, scale=config.scale)
    else:
        validation["samples_per_epoch"] = None  # one window of every test scene
    training = published(config.root, split="train", augment="dihedral", **train)
    return training, published(config.root, split="test", **validation)


def bracket_options(config: TrainConfig) -> dict[str, Any]:
    """What a network must know of the brackets it gets and of the pictures it returns."""
    if config.domain == "srgb":
        options: dict[str, Any] = {"num_frames": 3, "in_channels": 6, "out_channels": 3}
    else:
        options = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": config.peak}
        options["scale"] = config.scale
    return options | ({"checkpointing": True} if config.checkpointing else {})


def rendering(config: TrainConfig, sample: skt.HDRSample) -> dict[str, Tensor]:
    """What the domain transfer is told of RAW data: nothing, as in the paper, without --metadata."""
    return sample.metadata if config.metadata else {}


def build_modules(config: TrainConfig, sample: Tensor) -> tuple[Framework, Bare]:
    """Put one network into the framework, and a copy of it beside."""
    torch.manual_seed(config.seed)
    orm, forward = load_network(config.orm, ORMS, **bracket_options(config))
    bank = make_knowledge_bank(
        config.knowledge_bank,
        weights=config.weights,
        regions=config.region_source,
        num_regions=config.regions,
        layers=config.bank_taps,
        download=config.download,
    )
    extractor: Any = None
    if config.perceptual is not None:
        extractor = bank if config.perceptual == "bank" else skt.VGG19Features(weights=config.perceptual)
    org_loss = OrgLoss(config, extractor)
    bare = Bare(copy.deepcopy(orm), forward, org_loss)
    framework = Framework(
        orm,
        bank,
        taps=config.taps or None,
        orm_loss=org_loss,
        domain=config.domain,
        weights=None if config.bare and extractor is None else config.term_weights,
        forward_orm=forward,
        perceptual=None if extractor is None else skt.PerceptualLoss(extractor),
        joint=config.joint,
        detach_teacher=not config.joint,
        detach_features=config.detach_features,
        teacher_domain=config.teacher_domain,
        teacher_stride=config.teacher_stride,
        sample=sample,
    )
    return framework, bare


class Parts(NamedTuple):
    """What one run needs."""

    data: tuple[Data, Data]
    framework: Framework
    bare: Bare


def build(config: TrainConfig, processes: int) -> Parts:
    """Make data and networks of one seed."""
    data = build_data(config, processes)
    return Parts(data, *build_modules(config, data[1][0].bracket[None]))


def build_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW, all parameters in one kernel."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in module.parameters() if p.requires_grad]
    return kind(parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)


# --- what is looked at


def make_measures(config: TrainConfig, framework: Framework) -> Measures:
    """What is measured of linear pictures and their samples, a number for each; all but the last are in the table."""

    def metric(measure: Callable[..., Tensor], picture: Tensor, sample: skt.HDRSample) -> Tensor:
        return measure(picture, sample.target, peak=config.peak)

    def regions(picture: Tensor, sample: skt.HDRSample) -> Tensor:
        return framework.region_distance(picture, sample.target, rendering(config, sample))

    return {**{name: partial(metric, measure) for name, measure in METRICS.items()}, "region distance": regions}


@torch.no_grad()
def validate(
    config: TrainConfig,
    engine: Engine,
    module: Framework | Bare,
    orm: nn.Module,
    data: Data,
    measures: Measures,
) -> Scores:
    """Metrics of every picture, by the name of what made it; each picture is scored by one process."""
    mine, rows, size = range(engine.rank, len(data), engine.processes), {}, 4
    module.eval()
    orm.eval()
    for start, sample in zip(itertools.count(0, size), DataLoader(Subset(data, mine), size), strict=False):
        sample = place_sample(sample, engine.device, engine.dtype)
        hdr, refined = module.reconstruct(sample.bracket, orm=orm, metadata=rendering(config, sample))
        pictures = {"ORM": hdr} | ({} if refined is None else {"SPGRM": refined})
        scores = {
            name: {m: f(picture, sample).tolist() for m, f in measures.items()} for name, picture in pictures.items()
        }
        for i, number in enumerate(mine[start : start + size]):
            rows[number] = {name: {m: values[i] for m, values in row.items()} for name, row in scores.items()}
    every = engine.gather(rows)
    return {
        name: {m: torch.tensor([row[name][m] for row in every], dtype=torch.float64) for m in measures}
        for name in every[0]
    }


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Average over pictures."""
    return {name: {metric: float(values.mean()) for metric, values in row.items()} for name, row in scores.items()}


def draw_samples(
    path: Path, config: TrainConfig, networks: Mapping[str, Network], framework: Framework, data: Data
) -> None:
    """Draw three validation scenes: exposures, regions, results, target and errors."""
    rows, where = [], next(framework.parameters())
    path.parent.mkdir(exist_ok=True)
    count = len(data)
    for index in sorted({0, count // 3 | 1, 2 * count // 3} - {count}):  # odd ones too: photographs take turns
        sample = data[index]
        placed = place_sample(sample, where.device, where.dtype)
        with torch.no_grad():
            results = {name: network(placed.bracket[None]) for name, network in networks.items()}
            first = next(iter(results.values()))
            labels = framework.bank(framework.transfer(first, **rendering(config, placed))).labels
        pictures = {name: hdr[0] for name, hdr in results.items()}
        rows.append(SampleRow.from_sample(sample, pictures, None if labels is None else labels[0]))
    save_samples(path, rows)


class RunLog:
    """Lines of metrics.jsonl, trackers and the progress bar, from the main process alone."""

    def __init__(self, engine: Engine, run: Path, name: str) -> None:
        self.engine, self.file, self.name = engine, run / "metrics.jsonl", name
        self.title = f"{run.name}/{name}" if run.name.startswith("seed-") else name

    def write(self, step: int, **entry: Any) -> None:
        """Write one line, and its numbers to the trackers."""
        if not self.engine.is_main:
            return
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": self.name, "step": step, **entry}) + "\n")
        self.engine.accelerator.log(dict(flatten(self.title, entry)), step=step)

    def notice(self, step: int, text: str) -> None:
        """Write a line that people should read."""
        self.engine.accelerator.print(f"{self.name}, step {step}: {text}", file=sys.stderr)
        self.write(step, notice=text)


def mean_gradients(engine: Engine, found: Mapping[str, Mapping[str, TermGradient]]) -> dict[str, Any]:
    """Average norms and cosines over the processes: place -> term -> name -> value."""
    names = [(place, term) for place, terms in found.items() for term in terms]
    values = engine.mean(
        {f"{i}{j}": x for i, (p, t) in enumerate(names) for j, x in zip("nc", found[p][t], strict=True)}
    )
    rows: dict[str, Any] = {place: {} for place in found}
    for i, (place, term) in enumerate(names):
        rows[place][term] = {"norm": values[f"{i}n"], "cosine": values[f"{i}c"]}
    return rows


def flatten(title: str, entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Nested names as paths."""
    rows: list[tuple[str, Any]] = []
    for key, value in entry.items():
        rows += flatten(f"{title}/{key}", value) if isinstance(value, Mapping) else [(f"{title}/{key}", value)]
    return rows


class Stopped(KeyboardInterrupt):
    """A signal ended the run after a whole step; ``number`` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


# --- the loop


def train(
    config: TrainConfig,
    engine: Engine,
    run: Path,
    name: str,
    module: Framework | Bare,
    data: tuple[Data, Data],
    measures: Measures,
    draw: Callable[[Path, nn.Module], None],
    restored: Callable[[], None],
) -> tuple[Scores, nn.Module]:
    """Train the network, in the framework or bare; return its last scores, and the network to keep.

    ``measures`` are taken of every validation picture; ``draw`` draws what a network makes of three of them;
    ``restored`` is called when a run that is resumed has its state back.
    """
    accelerator, device = engine.accelerator, engine.device
    checkpoints = CheckpointFolder(run / "checkpoints", name, config.keep)
    process = f"-process{engine.rank}" if engine.processes > 1 else ""
    watch = StepWatch(run / "inspect", name + process, config.spike_factor)
    log, label = RunLog(engine, run, name), FILES[name]
    per_step = config.batch_size * config.accumulate * engine.processes  # samples
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    module.to(dtype=engine.dtype)
    example = place_sample(default_collate([data[0][0]]), "cpu", engine.dtype)
    model, optimizer = engine.prepare(module, build_optimizer(config, module), example)
    if config.compile:
        for part in (module.orm, *([module.spgrm] if isinstance(module, Framework) else [])):
            part.compile()
    ema = None
    if config.ema_decay:  # of parameters: the buffers, some of which are indices, are copied
        ema = AveragedModel(module.orm, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    kept = module.orm if ema is None else ema.module  # what is validated and saved
    stateful = {"module": module, "optimizer": optimizer, "ema": ema, "scaler": accelerator.scaler}
    stateful = {key: value for key, value in stateful.items() if value is not None}

    start, best, checked, scores = 0, -math.inf, 0, {}
    state = checkpoints.load_newest() if config.resume is not None and engine.is_main else None
    accelerator.wait_for_everyone()  # a damaged checkpoint has been put aside
    if config.resume is not None and not engine.is_main:
        state = checkpoints.load_newest()
    if state is not None:
        start, best = restore_state(state, stateful, per_step=per_step, steps=config.steps)
        checked = state["checked"]
        del state
    if engine.is_main:
        restored()
        checkpoints.clear_leftovers()
        rewind_metrics(run / "metrics.jsonl", name, start)
    for text in checkpoints.notices:
        log.notice(start, text)

    def scale() -> float:
        return 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()

    def state_now() -> dict[str, Any]:
        parts = {key: value.state_dict() for key, value in stateful.items()}
        return {**parts, "best": best, "checked": checked, "samples_per_step": per_step}

    def check(step: int) -> Scores:
        """Validate, and keep what is the best so far."""
        nonlocal best, checked
        found = validate(config, engine, module, kept, data[1], measures)
        log.write(step, validation=means(found))
        score, checked = float(found["ORM"]["PSNR-mu"].mean()), step
        if unusable := int(found["ORM"]["PSNR-mu"].isnan().sum()):
            log.notice(step, f"NaN in the network's output of {unusable} of {len(data[1])} validation pictures")
        improved = score > best
        best = score if improved else best
        if engine.is_main and step < config.steps:  # the last ones are drawn beside those of the bare network
            draw(run / "samples" / f"{label}-{step:08d}.png", kept)
        if engine.is_main and improved:
            checkpoints.save_best(step, state_now())
            skt.save_weights(run / f"{label}-best.safetensors", kept)
        module.train()
        return found

    if start == 0:
        log.write(0, validation=means(validate(config, engine, module, kept, data[1], measures)))
    elif start % config.validate_every == 0 and checked < start:  # a signal came before it
        scores = check(start)
    positions = SamplePositions(
        len(data[0]),
        config.batch_size,
        seed=config.seed,
        start=start * config.accumulate,
        rank=engine.rank,
        world=engine.processes,
    )
    stream = training_batches(data[0], positions, workers=config.workers, device=device, dtype=engine.dtype)
    steps = range(start, config.steps)
    bar = tqdm(steps, log.title, config.steps, initial=start, disable=not engine.is_main)
    clock, logged = time.perf_counter(), start
    module.train()
    with closing(stream), deferred_interrupt() as interrupted:  # closed, the loaders end too
        for step in bar:
            last = step + 1 == config.steps
            look = last or step % config.log_every == 0
            lr, ramp, pulls = learning_rate(config, step), transfer_ramp(config, step), {}
            for group in optimizer.param_groups:
                group["lr"] = lr
            samples, passes = [], []
            for batch in range(step * config.accumulate, (step + 1) * config.accumulate):
                sample = next(stream)
                seed_everything(config.seed, batch, engine.rank)  # so that a resumed run draws what this one draws
                masks = sample_generators(config.seed, positions.first(batch), config.batch_size, device)
                with accelerator.accumulate(model):
                    output = model(
                        sample.bracket,
                        sample.target,
                        ramp=ramp,
                        generator=masks,
                        metadata=rendering(config, sample),
                    )
                    if look and isinstance(module, Framework) and (batch + 1) % config.accumulate == 0:
                        pulls = module.compare_gradients(output, ramp, scale())
                    accelerator.backward(output.total)
                samples.append({"the bracket": sample.bracket, "the target": sample.target})
                passes.append(
                    {term: value.detach() for term, value in [*output.terms.items(), ("total", output.total)]}
                )
                del output  # its pictures and features make room for the next pass
            numbers = {term: torch.stack([each[term] for each in passes]).mean() for term in passes[0]}
            norm = accelerator.clip_grad_norm_(module.parameters(), config.clip_grad or math.inf)
            if accelerator.scaler is None:  # which expects an infinity now and then, and steps over it
                numbers["the gradient"] = norm
            broken = None
            try:
                watch.look(step, numbers, samples)
            except NonFiniteError as error:
                broken = error
            stop = engine.largest(BROKEN if broken else interrupted())  # all processes end at the same step
            if stop == BROKEN:
                raise broken or NonFiniteError(f"another process met NaN or infinity at step {step}")
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update_parameters(module.orm)

            if look:
                watch.flush()
                numbers.pop("the gradient", None)
                terms, pulls = engine.mean(numbers), mean_gradients(engine, pulls)
                if accelerator.scaler is not None and scale() < 1:
                    raise NonFiniteError(f"gradients of fp16 are infinite at any scale at step {step}: take bf16")
                now = time.perf_counter()
                speed = (step + 1 - logged) * per_step / (now - clock)
                terms.pop("total")
                log.write(step, lr=lr, terms=terms, gradients=pulls, samples_per_second=round(speed, 2))
                shown = {term: f"{value:.4f}" for term, value in terms.items()}
                bar.set_postfix({"samples/s": f"{speed:.1f}", **shown}, refresh=False)
                for notice in itertools.chain(*engine.gather({engine.rank: watch.notices})):
                    log.notice(*notice)
                watch.notices.clear()
                clock, logged = now, step + 1
            paused = time.perf_counter()
            if last or (not stop and (step + 1) % config.validate_every == 0):
                watch.flush()  # a state that is broken is not kept
                try:
                    scores = check(step + 1)
                except Exception:
                    if engine.is_main:  # what was trained is not lost with it
                        checkpoints.save(step + 1, state_now())
                    raise
            if last or stop or (step + 1) % config.checkpoint_every == 0:
                watch.flush()
                if engine.is_main:
                    checkpoints.save(step + 1, state_now())
            clock += time.perf_counter() - paused  # what is reported is the speed of training
            if stop:
                raise Stopped(stop, f"stopped after {step + 1} steps; continue with --resume {run}")
    scores = scores or validate(config, engine, module, kept, data[1], measures)
    if engine.is_main:
        skt.save_weights(run / f"{label}.safetensors", kept)
    accelerator.free_memory()
    return scores, kept.eval()


# --- runs and what they leave


def run_seed(
    config: TrainConfig, engine: Engine, run: Path, parts: Parts, restored: Callable[[], None]
) -> dict[str, Scores]:
    """Train with one seed, in the framework or bare, or with --compare both; leave pictures and scores."""
    data, framework, bare = parts
    run.mkdir(exist_ok=True)
    framework.to(engine.device, engine.dtype)  # its bank measures regions of the bare network too
    measures = make_measures(config, framework)

    def draw(path: Path, network: nn.Module) -> None:
        draw_samples(path, config, {"output": partial(bare.forward_orm, network)}, framework, data[1])

    found, networks = {}, {}
    modules: dict[str, Framework | Bare] = {} if config.bare else {"framework": framework}
    for name, module in (modules | ({"bare": bare} if config.compare or config.bare else {})).items():
        found[name], networks[name] = train(config, engine, run, name, module, data, measures, draw, restored)
    if engine.is_main:
        shown = {"ours": "framework", "bare": "bare"}
        drawn = {title: partial(bare.forward_orm, networks[name]) for title, name in shown.items() if name in networks}
        framework.eval()
        draw_samples(run / "samples.png", config, drawn, framework, data[1])
        save_curves(run / "metrics.jsonl", run / "curves.png")
        listed = {k: {n: {m: v.tolist() for m, v in row.items()} for n, row in s.items()} for k, s in found.items()}
        (run / ".scores.json").write_text(json.dumps(listed) + "\n", encoding="utf-8")
        (run / ".scores.json").replace(run / "scores.json")  # whole or not at all: it says that the run is finished
        if config.seeds > 1:  # that of the whole run comes with its table
            write_run_summary(run)
    engine.accelerator.wait_for_everyone()
    return found


def make_table(config: TrainConfig, folders: list[Path], results: list[dict[str, Scores]], validation: Data) -> str:
    """Means over pictures and seeds before and after, and what is gained over the bare network."""
    lines = [read_json_lines(folder / "metrics.jsonl") for folder in folders]
    before = [next(line["validation"]["ORM"] for line in of if "validation" in line) for of in lines]
    rows = {"ORM before": before}
    if not config.bare:
        rows["ORM after"] = [means(r["framework"])["ORM"] for r in results]
        rows["SPGRM (teacher)"] = [means(r["framework"])["SPGRM"] for r in results]
    if config.compare or config.bare:
        rows["bare ORM after"] = [means(r["bare"])["ORM"] for r in results]
    averages = {
        title: {metric: sum(seed[metric] for seed in seeds) / len(seeds) for metric in METRICS}
        for title, seeds in rows.items()
    }
    text = format_table(averages)
    if config.compare:
        ours, theirs = ([r[name]["ORM"]["PSNR-mu"] for r in results] for name in ("framework", "bare"))
        if (count := len(ours[0])) > 1:
            text += f"\n{paired_summary(ours, theirs)}"
        else:
            gain = float(torch.stack(ours).sub(torch.stack(theirs)).mean())
            text += f"\npaired gain over 1 picture: {gain:+.3f} dB PSNR-mu; an interval needs two pictures"
        if isinstance(validation, skt.HDRFolder):  # whose photographs take turns
            files = min(len(validation.files), count)
            text += f" ({count} view{'s' * (count > 1)} of {files} photograph{'s' * (files > 1)})"
    return text


def warn_of_idle(config: TrainConfig, engine: Engine) -> None:
    """Say which options these steps are too few for; no error, for a trial of a long run is short."""
    idle = {"warmup_steps": "the learning rate does not reach --lr"}
    if not config.bare:
        idle["transfer_start"] = "the framework does not train the network"
    for name, what in idle.items():
        if (value := getattr(config, name)) >= config.steps:
            option = name.replace("_", "-")
            engine.accelerator.print(f"--{option} {value} of --steps {config.steps}: {what}", file=sys.stderr)


def describe(error: BaseException) -> str:
    """What went wrong; of an error in a process that loads data without that process's traceback."""
    text = str(error)
    return text.rstrip().splitlines()[-1] if text.startswith("Caught ") else text


def leave_word(run: Path, folder: Path, error: BaseException) -> None:
    """Let the folder of a run that did not come to its end say so, as far as that can be done."""
    lines = folder / "metrics.jsonl"
    with suppress(OSError, ValueError):
        if not isinstance(error, KeyboardInterrupt):  # which is no news once the run goes on
            step = getattr(error, "step", None)
            if step is None:
                step = max((line["step"] for line in read_json_lines(lines)), default=0) if lines.is_file() else 0
            with open(lines, "a", encoding="utf-8") as file:
                file.write(json.dumps({"run": "end", "step": step, "notice": describe(error)}) + "\n")
    with suppress(OSError, ValueError):
        save_curves(lines, folder / "curves.png")
    with suppress(OSError, ValueError):
        write_run_summary(run)


def main(arguments: list[str]) -> None:
    """Build, train, report."""
    config = parse(arguments)
    check_bank_weights(config.knowledge_bank, config.weights, download=config.download)  # before any other work
    engine = Engine(config)
    warn_of_idle(config, engine)
    downloads = config.download or "pretrained" in (config.weights, config.perceptual)
    with engine.accelerator.local_main_process_first() if downloads else nullcontext():
        parts = build(config, engine.processes)  # before the folder is made: a mistake leaves nothing behind
    if config.dry_run:
        if engine.is_main:
            print(describe_plan(config, parts.framework, parts.data[0][0], processes=engine.processes))
        return
    run = engine.on_main(make_run_folder, config)
    engine.start_trackers(run, asdict(config))
    if engine.is_main:
        where = f"{engine.processes} x {engine.device.type}" if engine.processes > 1 else engine.device
        print(f"{config.orm} with {config.knowledge_bank} on {config.data}, {where}, {config.steps} steps -> {run}")
    results, folders = [], []

    @cache  # once, and by a --resume only when its state was found: one that is refused leaves the run as it is
    def restored() -> None:
        write_environment(run)
        write_options(run, config)

    try:
        for seed in range(config.seed, config.seed + config.seeds):
            seeded = replace(config, seed=seed)
            parts = parts if seed == config.seed else build(seeded, engine.processes)
            folders.append(run / f"seed-{seed}" if config.seeds > 1 else run)
            results.append(run_seed(seeded, engine, folders[-1], parts, restored))
    except (Exception, KeyboardInterrupt) as error:
        if engine.is_main and (config.resume is None or restored.cache_info().currsize):
            leave_word(run, folders[-1], error)
        raise
    if engine.is_main:
        table = make_table(config, folders, results, parts.data[1])
        (run / "table.txt").write_text(table + "\n", encoding="utf-8")
        write_run_summary(run)
        print(table)
    engine.accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (NonFiniteError, OSError, ValueError, ImportError) as error:
        sys.exit(f"train_full.py: {describe(error)}")
    except KeyboardInterrupt as stop:
        print(f"train_full.py: {stop}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", 2))
