"""Swin blocks: shifts, stochastic depth, the MLP, padding to windows."""

from __future__ import annotations

import pytest
import torch

from skt_components.models.swin import DropPath, Mlp, SwinBlock, SwinStage, drop_path_rates, pad_to_windows


def test_blocks_take_turns_with_shifted_windows():
    blocks = SwinStage(4, 2, 2.0, 8, [0.0, 0.1, 0.2]).residual_group.blocks
    assert [block.attn.shift for block in blocks] == [0, 4, 0]
    assert [block.drop_path.rate for block in blocks] == [0.0, 0.1, 0.2]
    assert drop_path_rates(0.5, [2, 4]) == [[0.0, 0.1], pytest.approx([0.2, 0.3, 0.4, 0.5])]
    assert drop_path_rates(0.5, [1]) == [[0.0]]


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop(x)
    assert out.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_mlp_is_two_layers_and_an_exact_gelu():
    mlp, x = Mlp(4, 8).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize("size", [(8, 16), (9, 13), (5, 8), (1, 1), (3, 20), (4, 4)])
def test_padding_mirrors_where_it_can(size):
    x = torch.randn(2, 3, *size)
    padded = pad_to_windows(x, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert padded.shape[-2] - size[0] < 8 > padded.shape[-1] - size[1]

    def source(i: int, n: int, total: int) -> int:
        return i if i < n else 2 * (n - 1) - i if total - n < n else n - 1

    rows = [source(i, size[0], padded.shape[-2]) for i in range(padded.shape[-2])]
    columns = [source(i, size[1], padded.shape[-1]) for i in range(padded.shape[-1])]
    assert torch.equal(padded, x[:, :, rows][..., columns])


def test_rejects_a_rate_outside():
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_compiles():
    block = SwinBlock(6, 2, window_size=4, shift=2)
    x = torch.randn(2, 8, 12, 6)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), atol=1e-5, rtol=1e-4)
    got = torch.autograd.grad(compiled(x).square().sum(), [*block.parameters()])
    wanted = torch.autograd.grad(block(x).square().sum(), [*block.parameters()])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
