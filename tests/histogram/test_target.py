"""Targets that are computed once."""

from __future__ import annotations

import pytest
import torch
from histogram_cases import both_engines
from torch import Tensor

from skt_components.histogram import torch_engine
from skt_components.losses.histogram import HistogramLoss, SemanticHistogramLoss, histogram_loss

student, teacher = torch.rand(2, 2, 3, 12, 17, generator=torch.Generator().manual_seed(0)).unbind(0)
labels = torch.randint(-1, 5, (2, 12, 17), generator=torch.Generator().manual_seed(1))
masks = labels[:, None] == torch.arange(4)[:, None, None]
weights = masks * torch.rand(2, 4, 12, 17, generator=torch.Generator().manual_seed(2))

CASES = [
    ({}, {"labels": labels, "num_regions": 4}),
    ({}, {"labels": labels}),
    ({"normalization": "area"}, {"labels": labels.to(torch.int8), "num_regions": 300}),
    ({"bandwidth": 0.1, "num_bins": 32, "reduction": "none"}, {"masks": masks}),
    ({"normalization": "area", "value_range": [-1, 2]}, {"masks": masks.float()}),
    ({"soft_masks": "weighted", "normalization": "none"}, {"masks": weights}),
    ({"soft_masks": "literal"}, {"masks": weights}),
]


def outcome(loss, *arguments, **regions) -> tuple[Tensor, Tensor]:
    value = loss(leaf := student.clone().requires_grad_(), *arguments, **regions)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@both_engines
@pytest.mark.parametrize(("options", "regions"), CASES)
def test_a_target_stands_for_the_teacher_and_its_regions(options, regions):
    loss = SemanticHistogramLoss(**options)
    target = loss.precompute(teacher, **regions)
    wanted = outcome(loss, teacher, **regions)
    assert wanted[1].abs().max() > 0
    torch.testing.assert_close(outcome(loss, target), wanted)
    torch.testing.assert_close(outcome(loss, target.to("cpu")), wanted)


def test_valid_still_chooses_regions():
    loss, valid = SemanticHistogramLoss(), torch.tensor([[True, False, True, False]] * 2)
    wanted = loss(student, teacher, masks, valid=valid)
    torch.testing.assert_close(loss(student, loss.precompute(teacher, masks), valid=valid), wanted)


def test_a_global_target_stands_for_the_teacher():
    for options in ({}, {"bandwidth": 0.2, "num_bins": 16, "reduction": "none", "normalization": "none"}):
        loss = HistogramLoss(**options)
        target = loss.precompute(teacher)
        torch.testing.assert_close(outcome(loss, target), outcome(loss, teacher))
    assert histogram_loss(teacher, HistogramLoss().precompute(teacher)) == 0


@both_engines
def test_targets_keep_the_digits_of_near_equal_pictures():
    close = (student.double() + 1e-4 * torch.randn_like(student)).float()
    loss = SemanticHistogramLoss(normalization="none")
    target = loss.precompute(close, labels=labels, num_regions=4)
    got = outcome(loss, target)
    wanted = outcome(loss, close, labels=labels, num_regions=4)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_the_teacher_is_computed_once_and_without_a_graph(monkeypatch):
    counted: list[int] = []
    engine = torch_engine.histogram_difference

    def counting(a, b, *rest):
        counted.append(1 + (b is not None))
        return engine(a, b, *rest)

    monkeypatch.setattr(torch_engine, "histogram_difference", counting)
    loss, pictures = SemanticHistogramLoss(backend="torch"), teacher.clone().requires_grad_()
    target = loss.precompute(pictures, labels=labels, num_regions=4)
    assert not target.counts.requires_grad
    for _ in range(3):
        loss(student, target)
    assert counted == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_a_target_keeps_its_regions_and_may_be_made_in_inference_mode(kind):
    where = {"labels": {"labels": labels.clone(), "num_regions": 4}, "masks": {"masks": masks.clone()}}[kind]
    loss = SemanticHistogramLoss()
    wanted = outcome(loss, loss.precompute(teacher, **where))
    with torch.inference_mode():
        target = loss.precompute(teacher.clone(), **where)
    where[kind].zero_()
    assert all(torch.equal(a, b) for a, b in zip(outcome(loss, target), wanted, strict=True))


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (SemanticHistogramLoss(bandwidth=0.1), {}, "made with bandwidth=0.0025, the loss has bandwidth=0.1$"),
        (SemanticHistogramLoss(num_bins=64, bandwidth=0.1), {}, "the loss has num_bins=64, bandwidth=0.1$"),
        (SemanticHistogramLoss(soft_masks="weighted"), {}, "with soft_masks=None, the loss has soft_masks='weighted'$"),
        (HistogramLoss(), {}, "made with soft_masks=None, the loss has no soft_masks: HistogramLoss and Semantic"),
        (SemanticHistogramLoss(), {"labels": labels}, "must not be given with a target, which has its own"),
        (SemanticHistogramLoss(), {"masks": masks}, "must not be given with a target"),
        (SemanticHistogramLoss(), {"num_regions": 4}, "must not be given with a target"),
    ],
)
def test_a_target_is_rejected_by_a_loss_that_did_not_make_it(loss, arguments, message):
    target = SemanticHistogramLoss().precompute(teacher, labels=labels, num_regions=4)
    with pytest.raises(ValueError, match=message):
        loss(student, target, **arguments)


def test_a_target_of_the_global_loss_is_rejected_by_the_semantic_one():
    target = HistogramLoss().precompute(teacher)
    with pytest.raises(ValueError, match="made with no soft_masks, the loss has soft_masks=None: HistogramLoss and"):
        SemanticHistogramLoss()(student, target)


def test_a_target_is_rejected_for_other_pictures():
    target = SemanticHistogramLoss().precompute(teacher, labels=labels, num_regions=4)
    with pytest.raises(
        ValueError, match=r"student must have the target's shape \(2, 3, 12, 17\), got \(1, 3, 12, 17\)"
    ):
        SemanticHistogramLoss()(student[:1], target)
    with pytest.raises(ValueError, match="student and target must be on one device, got cpu, meta"):
        SemanticHistogramLoss()(student, target.to("meta"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((teacher,), ValueError, "needs masks or labels"),
        ((teacher[0], masks), ValueError, r"teacher must have 4 axes \(B, C, H, W\)"),
        ((teacher.long(), masks), TypeError, "teacher must be a floating-point tensor"),
        ((teacher, weights), ValueError, "masks must hold 0 and 1, got other values"),
    ],
)
def test_precompute_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        SemanticHistogramLoss().precompute(*arguments)


def test_a_target_compiles():
    loss = SemanticHistogramLoss()
    target = loss.precompute(teacher, labels=labels, num_regions=4)
    compiled = torch.compile(lambda x: loss(x, target), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled), outcome(loss, target))


def test_targets_are_loaded_from_files_that_run_no_code(tmp_path):
    loss = SemanticHistogramLoss()
    target = loss.precompute(teacher, labels=labels, num_regions=4)
    torch.save({"target": target}, tmp_path / "target.pt")
    loaded = torch.load(tmp_path / "target.pt", weights_only=True)["target"]
    assert loss(student, loaded) == loss(student, target)
