"""What must hold on a CUDA device; skipped without one."""

from __future__ import annotations

import copy

import pytest
import torch

import skt_components as skt

pytestmark = pytest.mark.gpu


def test_histogram_loss_agrees_with_the_cpu() -> None:
    student, teacher = torch.rand(2, 3, 97, 65), torch.rand(2, 3, 97, 65)
    labels = torch.randint(-1, 5, (2, 97, 65))
    results = []
    for device in ("cpu", "cuda"):
        leaf = student.to(device).detach().requires_grad_()
        loss = skt.semantic_histogram_loss(leaf, teacher.to(device), labels=labels.to(device), num_regions=5)
        loss.backward()
        results.append((loss.cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-9)


def test_histogram_of_labels_does_not_wait_for_the_device() -> None:
    student = torch.rand(2, 3, 64, 64, device="cuda", requires_grad=True)
    teacher, labels = torch.rand_like(student), torch.zeros(2, 64, 64, dtype=torch.long, device="cuda")
    skt.semantic_histogram_loss(student, teacher, labels=labels, num_regions=4).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        skt.semantic_histogram_loss(student, teacher, labels=labels, num_regions=4).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["bilinear", "malvar"])
def test_demosaic_agrees_with_the_cpu(method: str) -> None:
    bayer = torch.rand(1, 1, 34, 50)
    torch.testing.assert_close(skt.demosaic(bayer.cuda(), method=method).cpu(), skt.demosaic(bayer, method=method))


def test_a_training_step_under_autocast() -> None:
    orm = skt.AHDRNet(features=16, num_layers=4, growth=8)
    framework = skt.SemanticKnowledgeTransfer(orm, skt.TimmFeatureExtractor(weights="random")).cuda()
    optimizer = torch.optim.Adam(framework.parameters(), lr=1e-3)
    sample = torch.utils.data.default_collate([skt.SyntheticScenes(2, 64)[i] for i in range(2)])
    bracket, target = sample.bracket.cuda(), sample.target.cuda()
    losses = []
    for _ in range(10):
        with torch.autocast("cuda", torch.bfloat16):
            output = framework(bracket, target)
        assert all(term.dtype == torch.float32 for term in output.terms.values())
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.terms["org"].item())
    assert losses[-1] < losses[0]
    plain = copy.deepcopy(orm).cpu()
    torch.testing.assert_close(orm(bracket).cpu(), plain(sample.bracket), rtol=1e-2, atol=1e-3)
