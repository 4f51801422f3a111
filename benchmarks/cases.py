"""What is timed: the histogram loss against the dense forms, and a training step against the bare network's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import skt_components as skt
from skt_components.ops import reference


def dense_loss(student: Tensor, teacher: Tensor, labels: Tensor, regions: int, clamp: bool) -> Tensor:
    """Eq. 10 as usually written in PyTorch: a (pixels x bins) temporary per region, left to autograd.

    ``clamp`` keeps the exponent above -80: exp is many times slower on a CPU where its result underflows, so the
    clamped form is the honest baseline.
    """
    centers = reference.eq6_centers(256, (0.0, 1.0), student.dtype).to(student.device)
    pixels = student.shape[-1] * student.shape[-2]
    total = student.new_zeros(())
    for region in range(regions):
        mask = (labels == region).flatten(1)[:, None, :, None]
        histograms = []
        for picture in (student, teacher):
            exponent = -(((picture.flatten(2)[..., None] - centers) * 400) ** 2)
            exponent = exponent.clamp(min=-80) if clamp else exponent
            histograms.append((torch.exp(exponent) * mask).sum(dim=2) / pixels)
        total = total + (histograms[0] - histograms[1]).square().sum(-1).mean(-1).mean()
    return total / regions


def histogram_methods(
    shape: tuple[int, ...], regions: int, device: torch.device
) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Forward and backward of each method; each call returns the loss and the gradient."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(*shape[:2], 8, 8, generator=generator), shape[2:], mode="bicubic"
    )
    student = (smooth + 0.02 * torch.randn(shape, generator=generator)).clamp(0, 1).to(device)
    teacher = (student**0.9 + 0.01 * torch.randn(shape, generator=generator).to(device)).clamp(0, 1)
    labels = torch.randint(0, regions, (shape[0], *shape[2:]), generator=generator).to(device)

    def run(loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = student.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        return value.detach(), leaf.grad  # type: ignore[return-value]

    ours = skt.SemanticHistogramLoss()
    return {
        "ours": lambda: run(lambda x: ours(x, teacher, labels=labels, num_regions=regions)),
        "dense, exponent clamped": lambda: run(lambda x: dense_loss(x, teacher, labels, regions, True)),
        "dense, as usually written": lambda: run(lambda x: dense_loss(x, teacher, labels, regions, False)),
    }


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
