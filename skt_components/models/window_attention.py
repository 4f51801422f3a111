"""Shifted-window attention on maps ``(B, H, W, C)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from skt_components.ops.checks import check_count, float_dtype

_MASKED = -100.0  # added to the logits of two pixels that only the shift brought into one window
_BLOCK = 16  # windows at a time: their logits, 1.5 MiB with six heads, stay in the cache
Place = tuple[int, slice, slice]


class WindowAttention(nn.Module):
    """Multi-head self-attention within square windows, with a learned bias per head and relative position.

    With a shift, the last windows contain pixels from opposite edges of the map, which must not attend to each other.
    So there are four kinds of windows and masks, for every size of the map.

    On the CPU a few windows are computed at a time, and again in the backward pass. So no tensor holds the attention of
    all windows, but there is no second derivative. On other devices, and when compiled or exported,
    ``scaled_dot_product_attention`` is used.

    Args:
        num_heads: divides ``features``.
        window_size: side of a window in pixels.
        shift: offset of the windows in pixels, down and to the right; less than ``window_size``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> WindowAttention(8, num_heads=2, window_size=4, shift=2)(torch.rand(1, 8, 12, 8)).shape
        torch.Size([1, 8, 12, 8])

    Reference:
        Z. Liu et al., "Swin Transformer", ICCV 2021.
    """

    relative_position_index: Tensor
    masks: Tensor

    def __init__(self, features: int, num_heads: int, window_size: int = 8, shift: int = 0) -> None:
        super().__init__()
        if check_count("num_heads", num_heads, 1) and features % num_heads:
            raise ValueError(f"num_heads must divide features={features}, got {num_heads}")
        check_count("window_size", window_size, 1)
        if not 0 <= shift < window_size:
            raise ValueError(f"shift must be in [0, {window_size}), got {shift}")
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(window_size), persistent=False)
        self.register_buffer("masks", _masks(window_size, shift), persistent=False)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the attended map, same shape; H and W are multiples of the window."""
        side = {"i": self.window_size, "j": self.window_size}
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = rearrange(x, "b (rows i) (columns j) c -> b rows columns (i j) c", **side)
        attended = self.proj(_attend(self.qkv(windows), self._biases(), self.num_heads))
        x = rearrange(attended, "b rows columns (i j) c -> b (rows i) (columns j) c", **side)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def official_buffers(self, side: int) -> dict[str, Tensor]:
        """Return the authors' buffers: relative positions, and the masks of all windows of a square map."""
        buffers = {"attn.relative_position_index": self.relative_position_index.clone()}
        if self.shift:
            count = -(-side // self.window_size)
            edge = torch.arange(count, device=self.masks.device) == count - 1
            kinds = 2 * edge[:, None].long() + edge.long()
            buffers["attn_mask"] = self.masks.float()[kinds.flatten()]
        return buffers

    def _biases(self) -> Tensor:
        """Bias plus mask of each kind of window, (kinds, heads, pixels, pixels)."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table.index_select(0, index.flatten()).unflatten(0, index.shape)
        return bias.permute(2, 0, 1) + self.masks.unsqueeze(1)


def _relative_positions(size: int) -> Tensor:
    """Row of the bias table for each pair of pixels of a window."""
    row, column = torch.arange(size * size) // size, torch.arange(size * size) % size
    down, right = row[:, None] - row, column[:, None] - column
    return (down + size - 1) * (2 * size - 1) + right + size - 1


def _masks(size: int, shift: int) -> Tensor:
    """Masks of the kinds of window: inside, right, bottom, corner; without a shift there is one kind."""
    edge = torch.arange(size * size)
    below, beyond = edge // size >= size - shift, edge % size >= size - shift
    bottom, right = below[:, None] != below, beyond[:, None] != beyond
    apart = torch.stack([torch.zeros_like(bottom), right, bottom, bottom | right])
    return torch.zeros(apart.shape).masked_fill(apart, _MASKED)[: 4 if shift else 1]


def _attend(qkv: Tensor, biases: Tensor, heads: int) -> Tensor:
    """Attention within windows ``(B, rows, columns, pixels, 3 * C)``, to ``(B, rows, columns, pixels, C)``."""
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return _BlockedAttention.apply(qkv, biases, heads)
    multiple = 1 if qkv.device.type == "cpu" else 8  # required by the fused kernels
    attended = window_attention(qkv, biases[0], heads, multiple)
    if len(biases) > 1:
        # The windows at the edges are computed again and replace the first result. Slices that leave them out, or a
        # reshape before the copy, would fix the size of an exported program.
        def edge(windows: Tensor, dim: int, bias: Tensor) -> Tensor:
            last = windows.narrow(dim, windows.shape[dim] - 1, 1).clone(memory_format=torch.contiguous_format)
            return window_attention(last, bias, heads, multiple)

        _, right, bottom, corner = biases
        lowest = qkv.narrow(1, qkv.shape[1] - 1, 1)
        lower = edge(qkv, 1, bottom).slice_scatter(edge(lowest, 2, corner), 2, -1)
        attended = attended.slice_scatter(edge(qkv, 2, right), 2, -1).slice_scatter(lower, 1, -1)
    return attended


def window_attention(qkv: Tensor, bias: Tensor, heads: int, multiple: int = 1) -> Tensor:
    """Attention within windows that share one bias; zeros pad the channels per head to a multiple."""
    rows, columns, width = qkv.shape[1], qkv.shape[2], qkv.shape[-1] // (3 * heads)
    parts = rearrange(qkv, "b rows columns n (part heads c) -> (b rows columns) n part heads c", part=3, heads=heads)
    if width % multiple:
        parts = torch.cat([parts, parts.new_zeros(*parts.shape[:-1], -width % multiple)], dim=-1)
    query, key, value = rearrange(parts, "windows n part heads c -> part windows heads n c")
    mask = bias.to(qkv.dtype).unsqueeze(0)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=width**-0.5)[..., :width]
    return rearrange(attended, "(b rows columns) heads n c -> b rows columns n (heads c)", rows=rows, columns=columns)


class _BlockedAttention(torch.autograd.Function):
    """:func:`_attend` on the CPU, a block of windows at a time."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, biases: Tensor, heads: int) -> Tensor:
        out = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
        with torch.autocast("cpu", enabled=False):
            for place, kind in _blocks(qkv, len(biases)):
                query, key, value = _split(qkv[place], 3, heads)
                weights = _weights(query, key, biases[kind])
                _join(torch.bmm(value, weights.transpose(1, 2)), out[place], 1)
        ctx.save_for_backward(qkv, biases, out)
        ctx.heads = heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        qkv, biases, out = ctx.saved_tensors
        grad_qkv, grad_biases = torch.empty_like(qkv), torch.zeros_like(biases, dtype=float_dtype(biases))
        with torch.autocast("cpu", enabled=False):
            for place, kind in _blocks(qkv, len(biases)):
                query, key, value = _split(qkv[place], 3, ctx.heads)
                upstream, attended = _split(grad[place], 1, ctx.heads)[0], _split(out[place], 1, ctx.heads)[0]
                weights = _weights(query, key, biases[kind])
                mean = (upstream * attended).sum(1).unsqueeze(-1)
                logits = torch.bmm(upstream.transpose(1, 2), value).sub_(mean).mul_(weights)
                grad_biases[kind] += logits.unflatten(0, (-1, ctx.heads)).sum(0)
                scale = query.shape[1] ** -0.5
                parts = [torch.bmm(key, logits.transpose(1, 2)) * scale, torch.bmm(query, logits) * scale]
                _join(torch.stack([*parts, torch.bmm(upstream, weights)]), grad_qkv[place], 3)
        return grad_qkv, grad_biases.to(biases.dtype), None


def _blocks(windows: Tensor, kinds: int) -> Iterator[tuple[Place, int]]:
    """Rectangles of at most ``_BLOCK`` windows of one kind, and their kind."""
    batch, rows, columns = windows.shape[:3]
    down = [(0, rows)] if kinds == 1 else [(0, rows - 1), (rows - 1, rows)]
    right = [(0, columns)] if kinds == 1 else [(0, columns - 1), (columns - 1, columns)]
    for kind, ((top, bottom), (first, last)) in enumerate((vertical, across) for vertical in down for across in right):
        wide = max(1, min(_BLOCK, last - first))
        high = _BLOCK // wide
        for sample in range(batch):
            for row in range(top, bottom, high):
                for column in range(first, last, wide):
                    ends = min(row + high, bottom), min(column + wide, last)
                    yield (sample, slice(row, ends[0]), slice(column, ends[1])), kind


def _split(windows: Tensor, parts: int, heads: int) -> Tensor:
    """Split the channels into parts and heads.

    With the pixels last, the products have many columns and few rows, which takes a third of the time.
    """
    pattern = "rows columns n (part heads c) -> part (rows columns heads) c n"
    return rearrange(windows, pattern, part=parts, heads=heads).to(float_dtype(windows))


def _join(parts: Tensor, windows: Tensor, count: int) -> None:
    """Write parts, as :func:`_split` returns them, into the windows."""
    rows, columns, pixels = windows.shape[:3]
    split = parts.view(count, rows, columns, -1, parts.shape[-2], pixels)
    windows.view(rows, columns, pixels, *split.shape[:1], *split.shape[3:5]).copy_(split.permute(1, 2, 5, 0, 3, 4))


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights (windows * heads, pixels, pixels)."""
    logits = torch.bmm((query * query.shape[1] ** -0.5).transpose(1, 2), key)
    logits.unflatten(0, (-1, len(bias))).add_(bias)
    return torch.softmax(logits, dim=-1)
