"""One process of a run; several are tested with the loop itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import nn

import skt_components as skt
from skt_components.training import Engine, TrainConfig, unused_parameters


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make(**options: object) -> Engine:
    return Engine(TrainConfig(device="cpu", trackers=(), **options))  # type: ignore[arg-type]


class Output(NamedTuple):
    total: torch.Tensor


class Partly(nn.Module):
    """Uses one of its layers, frozen another, ignores the third."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.frozen, self.ignored = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.frozen.requires_grad_(False)

    def forward(self, bracket: torch.Tensor, target: torch.Tensor) -> Output:
        return Output((self.norm(self.used(self.frozen(bracket))) - target).square().mean())


def test_one_process_is_the_main_one() -> None:
    engine = make()
    assert (engine.rank, engine.processes, engine.is_main, engine.device.type) == (0, 1, True, "cpu")
    assert engine.maximum(15) == 15
    assert engine.gather({2: "c", 0: "a", 1: "b"}) == ["a", "b", "c"]
    assert engine.mean({"org": torch.tensor(0.5), "color": torch.tensor([2.0])}) == {"org": 0.5, "color": 2.0}
    assert engine.mean({}) == {}
    assert engine.on_main(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(FileExistsError, match="mine"):
        engine.on_main(fail)


def fail() -> None:
    raise FileExistsError("mine")


def test_parameters_without_gradient_are_named_and_nothing_is_left_behind() -> None:
    module = Partly().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = unused_parameters(module, torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))
    assert found == ["ignored.weight", "ignored.bias"]
    assert all(p.grad is None for p in module.parameters())
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_framework_uses_all_it_trains_unless_a_term_is_off() -> None:
    orm = skt.AHDRNet(features=8, num_layers=2, growth=4)
    framework = skt.SemanticKnowledgeTransfer(orm, skt.EmptyBank(), weights=skt.LossWeights(0.1, 0.1, 1.0, 0.0))
    pair = torch.rand(1, 3, 6, 16, 16), torch.rand(1, 3, 16, 16)
    assert unused_parameters(framework, *pair) == []
    framework.weights = skt.LossWeights(0.1, 0.1, 0.0, 0.0)
    assert {name.split(".")[0] for name in unused_parameters(framework, *pair)} == {"skams"}


def test_the_precision_is_that_which_was_asked_for() -> None:
    module = Partly().double()
    engine = make(precision="fp64")
    assert engine.dtype == torch.float64
    sample = skt.HDRSample(torch.rand(1, 3, 4, 4), torch.ones(1, 3), torch.rand(1, 3, 4, 4), "a", "srgb")
    prepared, optimizer = engine.prepare(module, torch.optim.Adam(module.used.parameters()), sample)
    loss = prepared(sample.bracket.double(), sample.target.double()).total
    engine.accelerator.backward(loss)
    optimizer.step()
    assert loss.dtype == torch.float64


def test_bf16_is_autocast_and_losses_are_float32() -> None:
    seen = []

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.layer.register_forward_hook(lambda *a: seen.append(a[2].dtype))

        def forward(self, bracket: torch.Tensor, target: torch.Tensor) -> Output:
            return Output((self.layer(bracket).float() - target).square().mean())

    engine, module = make(precision="bf16"), Half()
    sample = skt.HDRSample(torch.rand(1, 3, 4, 4), torch.ones(1, 3), torch.rand(1, 3, 4, 4), "a", "srgb")
    prepared, _ = engine.prepare(module, torch.optim.Adam(module.parameters()), sample)
    assert prepared(sample.bracket, sample.target).total.dtype == torch.float32
    assert seen == [torch.bfloat16]
    assert next(module.parameters()).dtype == torch.float32


def test_several_processes_and_a_certain_gpu_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for device in ("cuda:0", "cuda:1"):
        with pytest.raises(ValueError, match=f"device={device} must be auto for several processes"):
            Engine(TrainConfig(device=device, trackers=()))


def test_each_process_takes_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from skt_components.training.engine import _choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert _choose_device("auto") == torch.device("cuda:3")
    assert _choose_device("cpu") == torch.device("cpu")


def test_a_missing_accelerate_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[train\]"'):
        make()
