"""Tests that need a CUDA device; skipped without one."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import skt_components as skt
from skt_components.histogram.kernels import Bins

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


def kernels():
    pytest.importorskip("triton")
    from skt_components.histogram import triton_engine

    return triton_engine


BINS = Bins(256, 0.0, 1.0, 1 / 400)


def natural(*shape: int) -> torch.Tensor:
    """Smooth areas and noise."""
    coarse = torch.rand(*shape[:2], 5, 5, device="cuda")
    smooth = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=True)
    return smooth + 0.02 * torch.randn(shape, device="cuda")


def region_map(batch: int, height: int, width: int, side: int = 8) -> torch.Tensor:
    """``side`` x ``side`` regions with ragged borders."""
    y = torch.arange(height, device="cuda")[:, None] + torch.randint(-3, 4, (batch, height, width), device="cuda")
    x = torch.arange(width, device="cuda") + torch.randint(-3, 4, (batch, height, width), device="cuda")
    return (y * side // height).clamp(0, side - 1) * side + (x * side // width).clamp(0, side - 1)


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("noise", [None, 1e-4])
@pytest.mark.parametrize("bandwidth", [1 / 400, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("regions", [1, 64, 1500])
def test_histogram_kernels_agree_with_float64(bandwidth: float, noise: float | None, regions: int) -> None:
    student = natural(2, 3, 97, 130)
    teacher = student.clamp_min(0) ** 0.9 if noise is None else student + noise * torch.randn_like(student)
    labels = torch.randint(-1, regions + 1, (2, 97, 130), device="cuda")
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        leaf = student.to(dtype).requires_grad_()
        loss = skt.semantic_histogram_loss(
            leaf, teacher.to(dtype), labels=labels, num_regions=regions, bandwidth=bandwidth, backend=backend
        )
        results.append((loss.detach().double(), *torch.autograd.grad(loss, leaf)))
    tolerance = 1e-6 if noise is None else 5e-6
    assert distance(results[0][0], results[1][0]) <= tolerance
    assert distance(results[0][1], results[1][1]) <= tolerance


def test_histogram_kernels_take_any_strides_and_dtype() -> None:
    student, teacher = natural(2, 3, 97, 130), natural(2, 3, 97, 130)
    labels = region_map(2, 97, 130)
    plain = kernels().histogram_difference(student, teacher, labels, 64, BINS)
    gradient = kernels().histogram_gradient(plain, student, labels, BINS)
    strange = student.to(memory_format=torch.channels_last), teacher.mT.contiguous().mT
    for dtype in (torch.uint8, torch.int16, torch.int64):
        table = kernels().histogram_difference(*strange, labels.to(dtype), 64, BINS)
        assert torch.equal(table, plain)
        assert torch.equal(kernels().histogram_gradient(table, strange[0], labels.to(dtype), BINS), gradient)
    half = student.half()
    table = kernels().histogram_difference(half, None, labels, 64, BINS)
    assert torch.equal(table, kernels().histogram_difference(half.float(), None, labels, 64, BINS))


def test_histogram_kernels_mark_nan_and_ignore_infinity() -> None:
    student, teacher = natural(1, 2, 40, 50), natural(1, 2, 40, 50)
    student[0, 0, 3, 4], student[0, 1, 3, 4], teacher[0, 1, 5, 6] = math.nan, math.inf, -math.inf
    table = kernels().histogram_difference(student, teacher, None, 1, BINS)
    assert table[0, 0, 0].isnan().all()
    assert table[0, 0, 1].isfinite().all()
    gradient = kernels().histogram_gradient(torch.ones_like(table), student, None, BINS)
    assert gradient[0, 0, 3, 4].isnan()
    assert gradient[0, 1, 3, 4] == 0
    assert gradient.isnan().sum() == 1


def test_equal_pictures_cancel_exactly_in_the_histogram_kernels() -> None:
    student = natural(1, 3, 256, 256).clamp(0.2, 0.6)
    table = kernels().histogram_difference(student, student.clone(), None, 1, BINS)
    assert table.eq(0).all()


def test_histogram_kernels_give_the_same_bits_ten_times() -> None:
    student, teacher, labels = natural(4, 3, 256, 256), natural(4, 3, 256, 256), region_map(4, 256, 256)
    results = []
    for _ in range(10):
        table = kernels().histogram_difference(student, teacher, labels, 64, BINS)
        results.append((table, kernels().histogram_gradient(table, student, labels, BINS)))
    for table, gradient in results[1:]:
        assert torch.equal(table, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("with_labels", [True, False])
def test_histogram_kernels_need_four_launches(with_labels: bool) -> None:
    student, teacher = natural(2, 3, 64, 64), natural(2, 3, 64, 64)
    labels, regions = (region_map(2, 64, 64), 64) if with_labels else (None, 1)

    def both() -> None:
        table = kernels().histogram_difference(student, teacher, labels, regions, BINS)
        kernels().histogram_gradient(table, student, labels, BINS)

    both()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        both()
        torch.cuda.synchronize()
    launches = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(launches) <= 4, launches


@pytest.mark.parametrize("bandwidth", [1 / 400, 0.05])
def test_histogram_loss_can_be_captured_in_a_cuda_graph(bandwidth: float) -> None:
    kernels()
    student, teacher, labels = natural(2, 3, 64, 64).requires_grad_(), natural(2, 3, 64, 64), region_map(2, 64, 64)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = skt.semantic_histogram_loss(student, teacher, labels=labels, num_regions=64, bandwidth=bandwidth)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        student.copy_(natural(2, 3, 64, 64))
        labels.copy_(labels.flip(-1))
    graph.replay()
    for got, wanted in zip(captured, step(), strict=True):
        assert torch.equal(got, wanted)


def milliseconds(work, rounds: int = 20) -> float:
    """Median time on the device."""
    times = []
    for index in range(rounds + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        if index >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[rounds // 2]


def test_histogram_kernels_cost_the_same_whatever_the_picture() -> None:
    labels, first = region_map(16, 256, 256), natural(16, 3, 256, 256)
    cases = {
        "natural": (first, first + 0.05 * torch.randn_like(first)),
        "saturated": (torch.ones_like(first), torch.ones_like(first)),
        "constant": (torch.full_like(first, 0.3), torch.full_like(first, 0.7)),
        "noise": (torch.rand_like(first), torch.rand_like(first)),
    }

    def cost(student: torch.Tensor, teacher: torch.Tensor) -> float:
        def both() -> None:
            table = kernels().histogram_difference(student, teacher, labels, 64, BINS)
            kernels().histogram_gradient(table, student, labels, BINS)

        both()
        return milliseconds(both)

    times = {name: cost(*pair) for name, pair in cases.items()}
    assert max(times["saturated"], times["constant"]) <= 1.5 * times["natural"], times


def test_histogram_of_24_megapixels() -> None:
    student, teacher, labels = natural(1, 3, 4000, 6000), natural(1, 3, 4000, 6000), region_map(1, 4000, 6000)
    kernels().histogram_difference(student[..., :64], teacher[..., :64], labels[..., :64], 64, BINS)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    table = kernels().histogram_difference(student, teacher, labels, 64, BINS)
    gradient = kernels().histogram_gradient(table, student, labels, BINS)
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 2 * student.numel() * 4
    part = table.new_zeros(table.shape)
    for rows in range(0, 4000, 1000):  # float64 in plain torch, a strip at a time
        strip = [x[..., rows : rows + 1000, :] for x in (student, teacher, labels)]
        for picture, sign in zip(strip[:2], (1, -1), strict=True):
            part += sign * skt.soft_histogram(picture.double(), labels=strip[2], num_regions=64, backend="torch")
    assert distance(table, part) <= 1e-6
    strip = student[..., -40:, :].contiguous(), labels[..., -40:, :].contiguous()
    assert torch.equal(kernels().histogram_gradient(table, *strip, BINS), gradient[..., -40:, :])


def test_histogram_of_more_than_two_billion_values() -> None:
    values = torch.empty(1, 91, 4000, 6000, dtype=torch.float16, device="cuda")  # 4 GiB, all but the last unset
    values[:, -1] = natural(1, 1, 4000, 6000)[:, 0]
    alone = values[:, -1:].contiguous()
    table = kernels().histogram_difference(values, None, None, 1, BINS)
    wanted = kernels().histogram_difference(alone, None, None, 1, BINS)
    assert torch.equal(table[:, :, -1:], wanted)


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
