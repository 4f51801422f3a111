"""What is timed: a training step against the bare network's, and the methods of ``histograms.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import skt_components as skt


def step_methods(device: torch.device, full_size: bool, batch: int, crop: int) -> dict[str, Callable[[], object]]:
    """One training step: the bare network, the framework, and the framework's parts alone (forward only)."""
    torch.manual_seed(0)
    size = {} if full_size else {"features": 16, "num_layers": 4, "growth": 8}
    bare, orm = skt.AHDRNet(**size).to(device), skt.AHDRNet(**size)
    framework = skt.SemanticKnowledgeTransfer(orm, skt.TimmFeatureExtractor()).to(device)
    data = skt.SyntheticScenes(batch, crop)
    sample = torch.utils.data.default_collate([data[i] for i in range(batch)])
    bracket, target = sample.bracket.to(device), sample.target.to(device)
    loss = skt.MuL1Loss()
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-5) for module in (bare, framework)]

    def step(optimizer: torch.optim.Optimizer, compute: Callable[[], Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = compute()
        value.backward()
        optimizer.step()

    output = framework(bracket, target)
    stages = [torch.rand_like(bracket[:, 0, :1]).repeat(1, orm.features, 1, 1) for _ in framework.skams]
    color, priors = skt.SemanticHistogramLoss(), output.priors

    def parts(name: str) -> Callable[[], object]:
        tonemapped, refined = output.tonemapped.detach(), output.refined.detach()
        with_grad: dict[str, Callable[[], object]] = {
            "part: bank": lambda: framework.bank(tonemapped),
            "part: SPGRM": lambda: framework.spgrm(tonemapped, priors.features),
            "part: SKAM": lambda: [skam(s, s) for skam, s in zip(framework.skams, stages, strict=True)],
            "part: color loss": lambda: color(tonemapped, refined, labels=priors.labels, num_regions=8),
        }
        return torch.no_grad()(with_grad[name])

    return {
        "bare step": lambda: step(optimizers[0], lambda: loss(bare(bracket).float(), target)),
        "framework step": lambda: step(optimizers[1], lambda: framework(bracket, target).total),
        **{name: parts(name) for name in ("part: bank", "part: SPGRM", "part: SKAM", "part: color loss")},
    }
