"""Search for the recipe with which a bare network gets furthest in a given time.

    python benchmarks/recipes.py --network ahdrnet-small --seconds 120 --out ahdrnet.json
    python benchmarks/recipes.py --network ahdrnet-small --root PHOTOS --seconds 120 --out ahdrnet-photos.json

Successive halving: candidates are trained for a ninth of the time, the better third for a third of it, and the
finalists for all of it with several seeds. A candidate trains with its own whole schedule at each level; its number of
steps follows from its measured step, so that all candidates have the same processor seconds. The plain recipe
and the default of the training loop are always finalists. Training samples are rendered once and shared. The same
command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from skt_components import evaluation, training
from skt_components.data import HDRSample
from skt_components.files.atomic import write_text
from skt_components.framework import BareNetwork

SPACE: dict[str, Sequence[Any]] = {
    "lr": (2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "warmup": (0.0, 0.1),
    "schedule": ("cosine", "cosine", "step"),
    "shape": ((4, 64), (8, 64), (8, 48), (2, 64), (16, 32)),
    "org_rms_weight": (0.0, 0.5, 1.0, 2.0),
    "clip_grad": (None, None, 1.0, 0.1),
    "ema_decay": (0.0, 0.0, 0.98),
    "start": ("fitted", "fitted", "random"),
    "channels_last": (False, True),
}
PLAIN = {"lr": 1e-3, "warmup": 0.0, "org_rms_weight": 0.0, "start": "random"}
SHAPE, LARGEST_CROP = (4, 64), 64


class Candidate(dict):
    """Options of one recipe; ``shape`` is (batch, crop), ``warmup`` a share of the steps."""

    def config(self, base: Mapping[str, Any], steps: int, seed: int) -> training.TrainConfig:
        options = dict(self)
        batch, crop = options.pop("shape", SHAPE)
        warmup = options.pop("warmup", 0.1)
        raw = 2 if base["camera"] == "raw" else 1  # crops are in packed pixels
        return training.TrainConfig(
            **{**base, **options},
            batch_size=batch,
            crop=crop // raw,
            steps=steps,
            warmup_steps=int(steps * warmup),
            seed=seed,
        )

    @property
    def name(self) -> str:
        return json.dumps(self, sort_keys=True)


def draw_candidates(count: int, seed: int, lr: float) -> list[Candidate]:
    """The plain recipe, the default, and random ones."""
    generator = random.Random(seed)
    fixed = [Candidate(PLAIN), Candidate(lr=lr)]
    return fixed + [
        Candidate({key: generator.choice(values) for key, values in SPACE.items()}) for _ in range(count - len(fixed))
    ]


def render(config: training.TrainConfig, count: int) -> tuple[list[HDRSample], list[HDRSample]]:
    """Training samples of the largest crop, and the validation pictures."""
    data = training.build_data(config)
    samples = [data.training[divmod(index, len(data.training))] for index in range(count)]
    return samples, [data.validation[index] for index in range(len(data.validation))]


def train(
    config: training.TrainConfig,
    samples: Sequence[HDRSample],
    validation: Sequence[HDRSample],
    limit: int | None = None,
) -> tuple[float, float]:
    """Return the last validation PSNR-mu, and the seconds of a step, of which ``limit`` are run at most."""
    torch.manual_seed(config.seed)
    network, forward = training.build_network(config)
    training.start_network(config, network, _Fixed(samples))  # type: ignore[arg-type]
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    org_loss, _ = training.build_losses(config, None)  # type: ignore[arg-type]
    module = BareNetwork(network, org_loss, forward)
    optimizer, average = training.build_optimizer(config, module), training.build_average(config, network)
    generator, times = torch.Generator().manual_seed(config.seed), []
    for step in range(config.steps if limit is None else limit):
        chosen = torch.randint(len(samples), (config.batch_size,), generator=generator).tolist()
        batch = [crop(samples[index], config.crop, generator) for index in chosen]
        sample, began = default_collate(batch), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(config, step)
        optimizer.zero_grad()
        module(sample.bracket, sample.target).total.backward()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_grad)
        optimizer.step()
        if average is not None:
            average.update_parameters(network)
        times.append(time.process_time() - began)
    if limit is not None:
        return 0.0, statistics.median(times)
    trained = network if average is None else average.module
    return score(trained.eval(), validation, config), statistics.median(times)


def score(network: torch.nn.Module, validation: Sequence[HDRSample], config: training.TrainConfig) -> float:
    """Mean PSNR-mu."""
    batches = (default_collate([sample]) for sample in validation)
    found = training.score_pictures(batches, lambda sample: {"network": network(sample.bracket)}, peak=config.peak)
    return float(found["network"]["PSNR-mu"].mean())


def score_baselines(validation: Sequence[HDRSample], peak: float) -> dict[str, float]:
    """Mean PSNR-mu of the pictures without training."""

    def free(sample: HDRSample) -> dict[str, torch.Tensor]:
        return evaluation.baseline_pictures(sample.bracket, sample.exposure_times)

    found = training.score_pictures((default_collate([sample]) for sample in validation), free, peak=peak)
    return {title: means["PSNR-mu"] for title, means in training.mean_scores(found).items()}


def crop(sample: HDRSample, side: int, generator: torch.Generator) -> HDRSample:
    """A random window of a rendered sample."""
    room = sample.bracket.shape[-1] - side
    top, left = (int(torch.randint(room + 1, (), generator=generator)) for _ in range(2))
    window = (..., slice(top, top + side), slice(left, left + side))
    return sample._replace(bracket=sample.bracket[window], target=sample.target[window])


class _Fixed:
    """Rendered samples as a data set."""

    def __init__(self, samples: Sequence[HDRSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> HDRSample:
        return self.samples[place[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="ahdrnet-small")
    parser.add_argument("--root", type=Path, help="HDR photographs; procedural scenes without it")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a finalist, of one thread")
    parser.add_argument("--trials", type=int, default=27, help="candidates of the first level")
    parser.add_argument("--seeds", type=int, default=3, help="of each finalist")
    parser.add_argument("--samples", type=int, default=1500, help="training samples, rendered once")
    parser.add_argument("--val-samples", type=int, default=24, help="validation pictures")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; an earlier search continues")
    options = parser.parse_args()
    torch.set_num_threads(1)
    camera = "raw" if options.network.startswith("tmrnet") else "srgb"
    data = {"data": "hdr-folder", "root": options.root} if options.root else {"data": "synthetic"}
    base: dict[str, Any] = {**data, "orm": options.network, "camera": camera, "bare": True, "knowledge_bank": "none"}
    side = LARGEST_CROP // (2 if camera == "raw" else 1)
    rendering = training.TrainConfig(**base, crop=side, val_crop=2 * side, val_samples=options.val_samples)
    samples, validation = render(rendering, options.samples)
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"runs": {}, "steps": {}}
    found |= {"network": options.network, "seconds": options.seconds, "data": data["data"], "torch": torch.__version__}
    free = score_baselines(validation, rendering.peak)
    found["baselines"] = free
    print(free, flush=True)
    candidates = draw_candidates(options.trials, 0, rendering.learning_rate)
    fixed, names = {c.name for c in candidates[:2]}, {c.name: c for c in candidates}
    for level, (share, kept) in enumerate(((9, None), (3, len(candidates) // 3), (1, 2))):
        ranked = sorted(names, key=lambda name: -max(found["runs"].get(f"{level - 1}/0/{name}", [0.0])))
        chosen = ranked if kept is None else list(dict.fromkeys([*ranked[:kept], *(n for n in ranked if n in fixed)]))
        for seed, name in itertools.product(range(options.seeds if share == 1 else 1), chosen):
            key, candidate = f"{level}/{seed}/{name}", names[name]
            if key in found["runs"]:
                continue
            if name not in found["steps"]:
                found["steps"][name] = train(candidate.config(base, 100, 0), samples, validation, limit=8)[1]
            steps = max(int(options.seconds / share / found["steps"][name]), 10)
            value, _ = train(candidate.config(base, steps, seed), samples, validation)
            found["runs"][key] = [value]
            print(f"level {level} seed {seed}: {value:.2f} dB after {steps} steps {name}", flush=True)
            write_text(options.out, json.dumps(found, indent=1) + "\n")
    finals: dict[str, list[float]] = {}
    for key, value in found["runs"].items():
        level, _, name = key.split("/", 2)
        if level == "2":
            finals.setdefault(name, []).append(value[0])
    for name, values in sorted(finals.items(), key=lambda item: -statistics.fmean(item[1])):
        print(f"{statistics.fmean(values):.2f} dB ({', '.join(f'{v:.2f}' for v in values)}) {name}")


if __name__ == "__main__":
    main()
