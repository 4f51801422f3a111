"""Ways to transfer that did not make it into the library, tried on a small network: one run each, a line each.

python benchmarks/boost/levers.py --root PHOTOS --out levers.json   # all, seed 0, three quarters of an hour
python benchmarks/boost/levers.py --root PHOTOS --out levers.json --only "content, relative" --seed 1
All runs of a seed begin with the same weights and see the same samples. The small HDR-Transformer is the default, for
its pairs scatter least: by 0.1 to 0.4 dB. With --orm ahdrnet-small and --steps 500 it is 0.7 dB.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from plan import ROOT, load_loop
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

import skt_components as skt

sys.path.insert(0, str(ROOT / "benchmarks"))
from timing import environment


class Pictures(NamedTuple):
    """Of one step, tone-mapped: what the student made of the bracket, the teacher of that, and the truth."""

    student: Tensor
    teacher: Tensor
    truth: Tensor


Pull = Callable[[Pictures], Tensor]  # the gradient at the student's picture that a lever adds to L_org's


@dataclass(frozen=True)
class Lever:
    """What trains the network beside L_org."""

    what: str
    pull: Pull | None = None
    alignment: float = 0.0
    """Weight of L_feat."""
    share: float = 0.0
    """Norm of L_feat's gradient at every stage and sample, as a share of that of all the rest."""
    color: float = 0.0
    """Norm of a coarse L_color's gradient at every picture, as a share of L_org's."""
    teacher: bool = True


def norms(gradient: Tensor) -> Tensor:
    """Norm of every sample."""
    return torch.linalg.vector_norm(gradient.detach(), dim=tuple(range(1, gradient.ndim)), keepdim=True)


def l1_pull(pictures: Pictures) -> Tensor:
    """L_org's: all values pull alike."""
    return (pictures.student - pictures.truth).sign() / pictures.student.numel()


def as_share(share: float, direction: Tensor, of: Tensor) -> Tensor:
    """``direction``, in every sample as long as a share of ``of``."""
    return share * direction * norms(of) / norms(direction).clamp_min(1e-15)


def follow(share: float, bound: bool = False) -> Pull:
    """Root mean square distance to the teacher; bounded, only towards the truth and never past it."""

    def pull(pictures: Pictures) -> Tensor:
        student, teacher, truth = pictures
        if bound:
            teacher = teacher.clamp(torch.minimum(student, truth), torch.maximum(student, truth))
        return as_share(share, student - teacher, l1_pull(pictures))

    return pull


def follow_l1_to_truth(weight: float) -> Pull:
    """L1 distance to the teacher, only where it is on the truth's side."""

    def pull(pictures: Pictures) -> Tensor:
        way = (pictures.student - pictures.teacher).sign()
        return weight * way * ((pictures.student - pictures.truth).sign() == way) / way.numel()

    return pull


def follow_relatively(weight: float) -> Pull:
    """In proportion to the distance, in units of the student's own error, so that it fades as they meet."""

    def pull(pictures: Pictures) -> Tensor:
        error = norms(pictures.student - pictures.truth) / pictures.student[0].numel() ** 0.5
        return weight * (pictures.student - pictures.teacher) / (error.clamp_min(1e-15) * pictures.student.numel())

    return pull


def to_truth(share: float) -> Pull:
    """No transfer at all: root mean square distance to the truth, beside L_org's L1."""
    return lambda pictures: as_share(share, pictures.student - pictures.truth, l1_pull(pictures))


LEVERS = {
    "bare": Lever("L_org alone", teacher=False),
    "truth, rms": Lever(
        "bare, and the root mean square distance to the truth, half as strong", to_truth(0.5), teacher=False
    ),
    "alignment": Lever("L_feat, weight 1", alignment=1.0),
    "alignment + truth, rms": Lever("both of these", to_truth(0.5), alignment=1.0),
    "alignment, share": Lever("L_feat, 0.3 of the other gradients at each stage", share=0.3),
    "content, rms": Lever("root mean square distance to the teacher, half as strong as L_org", follow(0.5)),
    "content, rms bounded": Lever("the same, only towards the truth", follow(0.5, bound=True)),
    "content, L1 bounded": Lever(
        "L1, weight 1, only where the teacher is on the truth's side", follow_l1_to_truth(1.0)
    ),
    "content, relative": Lever("squares in units of the student's error, weight 1", follow_relatively(1.0)),
    "color, coarse": Lever("histograms of 64 bins, bandwidth 0.05, 0.3 of L_org", color=0.3),
}


@dataclass(frozen=True)
class Options:
    """Try ways to transfer that are not in the library."""

    root: Path
    """Folder of HDR photographs; the last fifth by name validates."""
    out: Path
    """JSON file, must be new."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = field(default_factory=tuple)
    """Some of them by name."""
    orm: str = "hdr-transformer-small"
    """Network, as train_full.py names it."""
    seed: int = 0
    steps: int = 200
    samples: int = 48
    """Validation pictures."""


def add_pulls(lever: Lever, framework: skt.SemanticKnowledgeTransfer, output: skt.StepOutput, truth: Tensor) -> Tensor:
    """The step's loss; what a lever adds is a product whose gradient at the picture is the pull."""
    pictures = Pictures(output.tonemapped.detach(), output.refined.detach(), truth)
    loss = output.total
    if lever.pull is not None:
        loss = loss + (lever.pull(pictures) * output.tonemapped).sum()
    if lever.color:
        student, priors = pictures.student.clone().requires_grad_(), output.priors
        color = skt.SemanticHistogramLoss(num_bins=64, bandwidth=0.05)
        regions = {"labels": priors.labels, "num_regions": priors.valid.shape[1], "valid": priors.valid}
        (way,) = torch.autograd.grad(color(student, pictures.teacher, **regions), student)
        loss = loss + (as_share(lever.color, way, l1_pull(pictures)) * output.tonemapped).sum()
    if lever.share:
        pulls = torch.autograd.grad(output.terms["alignment"], output.stages, retain_graph=True)
        for stage, way in zip(output.stages, pulls, strict=True):
            # The term itself, of next to no weight, trains the SKAMs (Adam does not mind) and hardly the network.
            stage.register_hook(lambda gradient, way=way: gradient + as_share(lever.share, way, gradient))
    return loss


def run(options: Options, lever: Lever) -> dict[str, Any]:
    """Train and validate."""
    loop = load_loop()
    fixed = "--data hdr-folder --trackers --device cpu --channels-last --no-joint --content-weight 0 --color-weight 0"
    given = {
        "root": options.root,
        "orm": options.orm,
        "steps": options.steps,
        "seed": options.seed,
        "val-samples": options.samples,
        "alignment-weight": 1e-6 if lever.share else lever.alignment,
    }
    config = loop.parse([*fixed.split(), *(f"--{name}={value}" for name, value in given.items())])
    engine, (data, framework, bare) = skt.Engine(config), loop.build(config, 1)
    module = framework if lever.teacher else bare
    module.to(memory_format=torch.channels_last)
    optimizer, transfer = loop.build_optimizer(config, module), skt.DomainTransfer()
    begun = time.perf_counter()
    for step in tqdm(range(config.steps), lever.what, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = skt.learning_rate(config, step)
        place = range(step * config.batch_size, (step + 1) * config.batch_size)
        sample = default_collate([data[0][divmod(index, len(data[0]))] for index in place])
        skt.seed_everything(config.seed, step, 0)
        truth = transfer(sample.target)
        if lever.teacher:
            loss = add_pulls(lever, framework, framework(sample.bracket, sample.target), truth)
        else:
            student = transfer(bare.forward_orm(bare.orm, sample.bracket))
            loss = (student - truth).abs().mean()
            if lever.pull is not None:
                loss = loss + (lever.pull(Pictures(student.detach(), student.detach(), truth)) * student).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - begun
    scores = loop.means(
        loop.validate(config, engine, module, module.orm, data[1], loop.make_measures(config, framework))
    )
    return {"what": lever.what, "seconds": round(seconds), **scores}


def main(options: Options) -> None:
    """Try each, and write after each."""
    if options.out.exists():
        raise ValueError(f"--out {options.out} exists: choose another")
    if unknown := set(options.only) - set(LEVERS):
        raise ValueError(f"--only: no {', '.join(sorted(unknown))} among {', '.join(LEVERS)}")
    found: dict[str, Any] = {}
    setting = {"orm": options.orm, "steps": options.steps, "seed": options.seed}
    setting |= {"environment": environment(torch.device("cpu"))}
    for name in options.only or LEVERS:
        found[name] = run(options, LEVERS[name])
        print(f"{name:24} {found[name]['ORM']['PSNR-mu']:.2f} dB  {LEVERS[name].what}", flush=True)
        options.out.write_text(json.dumps({**setting, "levers": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"levers.py: {error}")
