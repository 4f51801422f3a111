"""Window attention: what each pixel may see, the same on every way of computing it, in little memory."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skt_components.models import window_attention as file
from skt_components.models.window_attention import WindowAttention


def attention(features: int = 6, heads: int = 2, window: int = 4, shift: int = 0) -> WindowAttention:
    """An attention whose biases and weights are large enough to show."""
    module = WindowAttention(features, heads, window, shift)
    nn.init.normal_(module.relative_position_bias_table)
    return module


def dense(module: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Attention of all pixels to all, of which those in other windows are ruled out; no window is cut anywhere."""
    batch, height, width, channels = x.shape
    size, shift, heads = module.window_size, module.shift, module.num_heads
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    window = torch.stack([(row - shift).div(size, rounding_mode="floor"), (column - shift) // size])
    together = (window[:, :, None] == window[:, None]).all(0)
    down, right = ((row[:, None] - row), (column[:, None] - column))
    table = module.relative_position_bias_table.view(2 * size - 1, 2 * size - 1, heads)
    bias = table[(down + size - 1).clamp(0, 2 * size - 2), (right + size - 1).clamp(0, 2 * size - 2)]
    qkv = F.linear(x.reshape(batch, -1, channels), module.qkv.weight, module.qkv.bias)
    outputs = []
    for head, (q, k, v) in enumerate(zip(*(part.chunk(heads, dim=-1) for part in qkv.chunk(3, dim=-1)), strict=True)):
        logits = q @ k.mT / (channels // heads) ** 0.5 + bias[..., head]
        outputs.append(logits.masked_fill(~together, -float("inf")).softmax(-1) @ v)
    return F.linear(torch.cat(outputs, -1), module.proj.weight, module.proj.bias).view(x.shape)


def through_sdpa(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run it as it runs on a GPU, or compiled."""
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        return module(x)


# matches_reference


@pytest.mark.parametrize("run", [lambda module, x: module(x), through_sdpa], ids=["blocks", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [
        (4, 0, (8, 12)),
        (4, 2, (8, 12)),
        (4, 1, (4, 4)),
        (4, 3, (12, 4)),
        (3, 1, (6, 9)),
        (5, 2, (5, 20)),
        (1, 0, (3, 2)),
    ],
)
def test_each_pixel_sees_its_window_and_nothing_across_an_edge(run, dtype, window, shift, size):
    module = attention(window=window, shift=shift).to(dtype)
    x = torch.randn(2, *size, 6, dtype=dtype, requires_grad=True)
    out, expected = run(module, x), dense(module, x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    upstream, wrt = torch.randn_like(out), [x, *module.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "block"), [((72, 8), 16), ((8, 72), 16), ((40, 48), 16), ((24, 24), 1), ((24, 24), 4)]
)
def test_blocks_cover_every_window_once(size, block, monkeypatch):
    monkeypatch.setattr(file, "_BLOCK", block)
    module = attention(window=4, shift=2).double()
    x = torch.randn(3, *size, 6, dtype=torch.float64, requires_grad=True)
    out, expected = module(x), through_sdpa(module, x)
    torch.testing.assert_close(out, expected)
    upstream, wrt = torch.randn_like(out), [x, *module.parameters()]
    torch.testing.assert_close(torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream))


def test_padded_heads_give_the_same():
    # On a GPU the channels per head, three here, are brought to a multiple of eight.
    qkv, bias = torch.randn(2, 3, 2, 16, 18), torch.randn(2, 16, 16)
    expected = file._attend(qkv, bias[None], 2)
    torch.testing.assert_close(file.window_attention(qkv, bias, 2, 8), expected, atol=1e-5, rtol=1e-4)


def test_masks_and_relative_positions_are_the_textbook_ones():
    # Region numbers, nine of them, as the Swin Transformer's authors assign them after the shift.
    size, shift, side = 8, 4, 24
    module = WindowAttention(4, 2, window_size=size, shift=shift)
    edges = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    region = torch.zeros(side, side)
    for number, (rows, columns) in enumerate((a, b) for a in edges for b in edges):
        region[rows, columns] = number
    windows = region.view(3, size, 3, size).transpose(1, 2).reshape(9, size * size)
    mask = torch.where(windows[:, None] == windows[:, :, None], 0.0, -100.0)
    buffers = module.official_buffers(side)
    assert list(buffers) == ["attn.relative_position_index", "attn_mask"]
    assert list(WindowAttention(4, 2).official_buffers(side)) == ["attn.relative_position_index"]
    assert torch.equal(buffers["attn_mask"], mask)
    index = buffers["attn.relative_position_index"]
    assert index.dtype == torch.int64
    for i, j in [(0, 0), (0, 63), (63, 0), (9, 2), (17, 60)]:
        assert index[i, j] == (i // 8 - j // 8 + 7) * 15 + i % 8 - j % 8 + 7


# gradcheck


@pytest.mark.parametrize("shift", [0, 1])
def test_gradcheck(shift):
    module = attention(2, 2, window=2, shift=shift).double()
    x = torch.randn(1, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    wrt = [x, *module.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: module(x), wrt)
    assert all(g.abs().max() > 1e-4 for g in torch.autograd.grad(module(x)[0, 1].sum(), wrt))


# invariants


def test_a_map_moved_by_a_window_gives_the_output_moved():
    module = attention(shift=2).double()
    x = torch.randn(1, 16, 16, 6, dtype=torch.float64)
    moved = torch.roll(x, (4, 4), (1, 2))
    torch.testing.assert_close(module(moved)[:, 6:14, 6:14], module(x)[:, 2:10, 2:10])


def test_a_shift_is_unshifted_attention_of_the_moved_map_inside():
    shifted, plain = attention(shift=2).double(), attention().double()
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 16, 12, 6, dtype=torch.float64)
    torch.testing.assert_close(shifted(x)[:, 2:14, 2:10], plain(x[:, 2:14, 2:10].contiguous()))


def test_batch_mates_do_not_see_each_other():
    module = attention(shift=2)
    x = torch.randn(3, 8, 12, 6)
    torch.testing.assert_close(module(x), torch.cat([module(one[None]) for one in x]), atol=1e-5, rtol=1e-4)


def test_memory_does_not_grow_with_the_attention_of_all_windows():
    # Saved for the backward pass, beside what the linear layers keep: no tensor with pixels times pixels per window.
    module, x = attention(window=8, shift=4), torch.randn(1, 128, 128, 6, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        module(x)
    assert max(saved) <= 4 * x.numel()


# layouts and precision


def test_non_contiguous_maps_and_upstream_gradients():
    module = attention(shift=2)
    x = torch.randn(2, 6, 8, 12).requires_grad_()
    out = module(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(out, module(x.permute(0, 2, 3, 1).contiguous()))
    upstream = torch.randn(2, 12, 8, 6).transpose(1, 2)
    (got,) = torch.autograd.grad(out, x, upstream)
    (wanted,) = torch.autograd.grad(through_sdpa(module, x.permute(0, 2, 3, 1)), x, upstream.contiguous())
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("run", [lambda module, x: module(x), through_sdpa], ids=["blocks", "sdpa"])
def test_bf16(run):
    module = attention(shift=2)
    x = torch.randn(2, 8, 12, 6)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(module, x)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in module.parameters())
    half = copy.deepcopy(module).bfloat16()
    assert (run(half, x.bfloat16()) - expected).abs().max() < 0.03 * expected.abs().max()


def test_no_buffer_is_in_the_state_dict():
    assert set(attention(shift=2).state_dict()) == {
        "relative_position_bias_table",
        *(f"{layer}.{kind}" for layer in ("qkv", "proj") for kind in ("weight", "bias")),
    }


# rejects_bad_input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowAttention(6, 4), r"num_heads must divide features=6, got 4"),
        (lambda: WindowAttention(6, 0), r"num_heads must be a whole number >= 1, got 0"),
        (lambda: WindowAttention(6, 2, 0), r"window_size must be a whole number >= 1, got 0"),
        (lambda: WindowAttention(6, 2, 4, 4), r"shift must be in \[0, 4\), got 4"),
    ],
)
def test_rejects_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
