from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from skt_components.banks import Frozen
from skt_components.banks.frozen import Normalize, fingerprint


def make_network() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    network[1].running_mean.uniform_(-1, 1)
    network[1].running_var.uniform_(0.5, 2)
    return network


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Conv2d(3, 3, 3, padding=1)
        self.frozen = Frozen(make_network())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.trained(x))


def test_calls_the_network_in_eval_mode() -> None:
    network = make_network()
    reference = copy.deepcopy(network).eval()
    x = torch.rand(2, 3, 5, 7)
    assert torch.equal(Frozen(network)(x), reference(x))


def test_a_parent_does_not_see_the_network() -> None:
    parent = Parent()
    assert set(parent.state_dict()) == {"trained.weight", "trained.bias"}
    assert len(list(parent.parameters())) == 2
    assert list(parent.buffers()) == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in parent.modules())


def test_a_parents_state_dict_round_trip_is_strict() -> None:
    parent, other = Parent(), Parent()
    kept = other.frozen.network[0].weight.clone()
    result = other.load_state_dict(parent.state_dict(), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(other.frozen.network[0].weight, kept)
    assert torch.equal(other.trained.weight, parent.trained.weight)


def test_training_mode_never_reaches_it_and_statistics_stay() -> None:
    parent = Parent()
    statistics = {k: v.clone() for k, v in parent.frozen.network[1].state_dict().items()}
    parent.train()
    assert parent.training
    assert not parent.frozen.training
    assert not any(m.training for m in parent.frozen.network.modules())
    x = torch.rand(4, 3, 6, 6)
    first = parent(x)
    assert torch.equal(first, parent(x))  # dropout is off
    for key, value in parent.frozen.network[1].state_dict().items():
        assert torch.equal(value, statistics[key]), key
    parent.frozen.train(True)
    assert not parent.frozen.network.training


def test_an_optimizer_step_and_apply_leave_it_alone() -> None:
    parent = Parent().train()
    before = {k: v.clone() for k, v in parent.frozen.network.state_dict().items()}
    optimizer = torch.optim.SGD(parent.parameters(), lr=1.0)
    trained = parent.trained.weight.clone()
    parent(torch.rand(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    parent.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert not torch.equal(parent.trained.weight, trained)
    for key, value in parent.frozen.network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_gradients_pass_through_but_do_not_collect() -> None:
    frozen = Frozen(make_network())
    x = torch.rand(1, 3, 5, 5, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in frozen.network.parameters())


def test_unfreezing_the_parent_does_not_reach_it() -> None:
    parent = Parent().requires_grad_(True)
    assert not any(p.requires_grad for p in parent.frozen.network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_moves_with_the_parent(dtype: torch.dtype) -> None:
    parent = Parent().to(dtype)
    assert parent.frozen.network[0].weight.dtype == dtype
    assert parent.frozen.network[1].running_mean.dtype == dtype
    assert not parent.frozen.network[0].weight.requires_grad


def test_device_and_memory_format_move_with_the_parent() -> None:
    parent = Parent().to(memory_format=torch.channels_last)
    assert parent.frozen.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert Parent().to("meta").frozen.network[0].weight.device.type == "meta"
    assert Parent().share_memory().frozen.network[0].weight.is_shared()


@pytest.mark.gpu
def test_cuda_moves_with_the_parent() -> None:
    parent = Parent().cuda()
    assert all(t.is_cuda for t in parent.frozen.network.state_dict().values())
    assert parent(torch.rand(1, 3, 4, 4, device="cuda")).is_cuda


def test_a_deep_copy_has_its_own_network() -> None:
    parent = Parent()
    x = torch.rand(1, 3, 5, 5)
    other = copy.deepcopy(parent)
    assert torch.equal(parent(x), other(x))
    assert other.frozen.network is not parent.frozen.network
    other.double()
    assert parent.frozen.network[0].weight.dtype == torch.float32
    assert not any(p.requires_grad for p in other.frozen.network.parameters())
    assert not other.train().frozen.network.training


def test_an_exponential_moving_average_follows_the_trained_part_only() -> None:
    parent = Parent()
    average = AveragedModel(parent, avg_fn=lambda a, p, n: 0.5 * a + 0.5 * p)
    average.update_parameters(parent)
    start = parent.trained.weight.detach().clone()
    with torch.no_grad():
        parent.trained.weight.add_(1)
    average.update_parameters(parent)
    torch.testing.assert_close(average.module.trained.weight.detach(), start + 0.5)
    assert not any("frozen" in k for k in average.state_dict())


def test_pickle_keeps_it_frozen() -> None:
    parent = Parent().train()
    other = pickle.loads(pickle.dumps(parent))
    x = torch.rand(1, 3, 5, 5)
    assert torch.equal(parent(x), other(x))
    assert not other.frozen.network.training
    assert set(other.state_dict()) == set(parent.state_dict())


def test_a_spawned_process_can_use_it() -> None:
    frozen = Frozen(make_network())
    x = torch.rand(1, 3, 5, 5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        # The callable sent is the module itself, so the worker needs nothing from this file.
        torch.testing.assert_close(pool.apply(frozen, (x,)), frozen(x))


def test_distributed_data_parallel_trains_around_it(tmp_path: Path) -> None:
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parent = Parent()
        wrapped = nn.parallel.DistributedDataParallel(parent).train()
        wrapped(torch.rand(2, 3, 6, 6)).mean().backward()
        assert parent.trained.weight.grad is not None
        assert not parent.frozen.network.training
        assert set(wrapped.state_dict()) == {"module.trained.weight", "module.trained.bias"}
    finally:
        distributed.destroy_process_group()


def test_compiles_without_graph_breaks() -> None:
    parent = Parent().train()
    x = torch.rand(2, 3, 6, 6)
    compiled = torch.compile(parent, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    compiled_grad, parent.trained.weight.grad = parent.trained.weight.grad, None
    parent(x).square().sum().backward()
    assert parent.trained.weight.grad.abs().max() > 0
    torch.testing.assert_close(compiled_grad, parent.trained.weight.grad)
    torch.testing.assert_close(compiled(x), parent(x))
    with torch.no_grad():  # the compiled graph reads the weights, it has not baked them in
        parent.frozen.network[0].weight.mul_(2)
    torch.testing.assert_close(compiled(x), parent(x))


def test_repr_names_the_network() -> None:
    assert "Sequential, 0.00 M parameters" in repr(Parent())


def test_repr_counts_networks_frozen_inside() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), Frozen(nn.Sequential(nn.Linear(1000, 1000), Frozen(nn.Linear(999, 500))))
    )
    assert "Sequential, 1.50 M parameters" in Frozen(network).extra_repr()
    assert "Frozen, 1.00 M parameters" in Frozen(Frozen(nn.Linear(1000, 1000))).extra_repr()


def test_a_fingerprint_is_of_everything_a_network_computes_with() -> None:
    module = nn.Sequential(make_network(), Frozen(nn.Sequential(Normalize([0.5], [0.5]), Frozen(make_network()))))
    found = fingerprint(module, "options", 8)
    assert len(found) == 64
    assert set(found) <= set("0123456789abcdef")
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).double().float()):
        assert fingerprint(same, "options", 8) == found
    assert fingerprint(copy.deepcopy(module).to(memory_format=torch.channels_last), "options", 8) == found
    moved = [fingerprint(copy.deepcopy(module).to(dtype), "options", 8) for dtype in (torch.half, torch.double)]
    others = [fingerprint(module, "options", 9), fingerprint(module), *moved]
    inner = module[1].network[1].network
    tensors = [module[0][0].weight, module[0][1].running_mean, module[1].network[0].std, inner[0].bias]
    with torch.no_grad():
        for tensor in (*tensors, inner[1].running_var):  # each a change on top of the earlier ones
            tensor.view(-1)[-1] += 1e-3
            others.append(fingerprint(module, "options", 8))
    assert len({found, *others}) == 1 + len(others)


def test_a_fingerprint_tells_places_apart() -> None:
    zero, one = nn.Linear(2, 2), nn.Linear(2, 2)
    assert fingerprint(nn.Sequential(zero, one)) != fingerprint(nn.Sequential(one, zero))
    assert fingerprint(nn.Sequential(zero)) == fingerprint(nn.Sequential(copy.deepcopy(zero)))


def test_rejects_bad_input() -> None:
    with pytest.raises(TypeError, match=r"network must be an nn.Module, got function"):
        Frozen(make_network)  # type: ignore[arg-type]


def test_normalize_inverts_the_statistics_and_has_no_state() -> None:
    normalize = Normalize((0.2, 0.4, 0.6), (0.5, 0.25, 0.125))
    picture = torch.tensor([0.7, 0.65, 0.725]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(normalize(picture), torch.ones(2, 3, 4, 5))
    assert not normalize.state_dict()
    assert normalize.double()(picture).dtype == torch.float64
