"""How long a training step of each arm takes beside the others', in turns: what equal compute means.

python benchmarks/boost/steptime.py DIR     # of a study, which calls it before a first run; writes DIR/timing.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parents[1]))
from judge import build_modules
from plan import Study, load_study, root_arguments
from timing import environment, interleave, ratios

from skt_components.training import (
    Engine,
    TrainConfig,
    build_data,
    build_optimizer,
    move_sample,
    parse_options,
    sample_generators,
    to_arguments,
)


def make_step(config: TrainConfig, engine: Engine) -> Callable[[], None]:
    """A whole step of the loop on one batch, which lies ready: loading is the same for all."""
    data = build_data(config)
    framework, bare = build_modules(config, data)
    module: Any = bare if config.bare else framework
    batch = default_collate([data.training[index] for index in range(config.batch_size)])
    model, optimizer = engine.prepare(module, build_optimizer(config, module), data.training[0])
    sample = move_sample(batch, engine.device, engine.dtype)
    module.train()

    def step() -> None:
        for _ in range(config.accumulate):
            masks = sample_generators(config.seed, 0, config.batch_size, engine.device)
            metadata = config.rendering_metadata(sample)
            output = model(sample.bracket, sample.target, ramp=1.0, generator=masks, metadata=metadata)
            engine.accelerator.backward(output.total)
        engine.accelerator.clip_grad_norm_(module.parameters(), config.clip_grad or float("inf"))
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_arms(study: Study, root: Path | None, rounds: int, arms: Collection[str]) -> dict[str, Any]:
    """Median milliseconds of the step of arms and baseline, and its ratio to the baseline's."""
    fixed = [*root_arguments(study, root), "--device", study.device, "--seed", str(study.seeds[0])]
    named = dict.fromkeys([study.baseline, *arms])  # each once, always in this order
    configs = {arm: parse_options([*to_arguments(study.options(arm)), *fixed]) for arm in named}
    engine = Engine(configs[study.baseline])
    steps: dict[str, Callable[[], object]] = {arm: make_step(config, engine) for arm, config in configs.items()}
    found = ratios(interleave(steps, engine.device, rounds, warmup=2), study.baseline)
    return {
        "arms": found,
        "ratios": {arm: row[f"ratio_to_{study.baseline}"] for arm, row in found.items()},
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # that of others, and our own
        **environment(engine.device),
    }


def main() -> None:
    """Time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", help="these, beside what the file has; all when not given")
    options = parser.parse_args()
    study = load_study(options.out)
    if study is None:
        sys.exit(f"steptime.py: no study in {options.out}")
    file = options.out / "timing.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    timing = time_arms(study, options.root, options.rounds, options.arms or study.arms)
    for name in ("arms", "ratios"):  # a ratio that a run at equal compute has its steps from stays
        timing[name] = {**timing[name], **before.get(name, {})}
    file.write_text(json.dumps(timing, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
