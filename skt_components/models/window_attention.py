"""Shifted-window attention and the blocks around it, on maps ``(B, H, W, C)``; shared by HDRTransformer and SCTNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from skt_components.ops.checks import check_count, float_dtype

_APART = -100.0  # added to the logits of pixels that only the shift brought into one window
_BLOCK = 16  # windows at a time: their logits, 1.5 MiB with six heads, stay in the cache
Place = tuple[int, slice, slice]


class WindowAttention(nn.Module):
    """Multi-head self-attention within square windows, with a learnt bias per head and relative position.

    With a shift the windows lie that much further down and right. Those at the bottom and at the right then hold
    pixels from opposite edges of the map, which must not see each other; that makes four kinds of window, whatever
    the map's size, and only these four masks exist. On the CPU a few windows at a time are computed, and again in
    the backward pass, so that no tensor holds the attention of all windows; elsewhere, and when compiled or
    exported, ``scaled_dot_product_attention`` does the work. On the CPU there is no second derivative.

    Args:
        features: channels.
        num_heads: heads; divides ``features``.
        window_size: side of a window in pixels.
        shift: how far the windows are moved; 0 for none.

    Raises:
        ValueError: ``num_heads`` does not divide ``features``, or a number is out of range.

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
        size, shift = self.window_size, self.shift
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        windows = x.unflatten(1, (-1, size)).unflatten(3, (-1, size)).transpose(2, 3).flatten(3, 4)
        attended = self.proj(_attend(self.qkv(windows), self._biases(), self.num_heads))
        x = attended.unflatten(3, (size, size)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return torch.roll(x, (shift, shift), (1, 2)) if shift else x

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
    """Masks of the kinds of window: inside, right, bottom, corner; without a shift all are alike."""
    edge = torch.arange(size * size)
    below, beyond = edge // size >= size - shift, edge % size >= size - shift
    bottom, right = below[:, None] != below, beyond[:, None] != beyond
    apart = torch.stack([torch.zeros_like(bottom), right, bottom, bottom | right])
    return torch.zeros(apart.shape).masked_fill(apart, _APART)[: 4 if shift else 1]


def _attend(qkv: Tensor, biases: Tensor, heads: int) -> Tensor:
    """Attention within windows ``(B, rows, columns, pixels, 3 * C)``, to ``(B, rows, columns, pixels, C)``."""
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return _BlockedAttention.apply(qkv, biases, heads)
    multiple = 1 if qkv.device.type == "cpu" else 8  # as the fused kernels want it; all else is done in full
    attended = _attend_alike(qkv, biases[0], heads, multiple)
    if len(biases) > 1:
        # The edges once more, over the others: slices without them would fix an exported program's size, and so
        # would edges that are reshaped before they are copied.
        def edge(windows: Tensor, dim: int, bias: Tensor) -> Tensor:
            last = windows.narrow(dim, windows.shape[dim] - 1, 1).clone(memory_format=torch.contiguous_format)
            return _attend_alike(last, bias, heads, multiple)

        _, right, bottom, corner = biases
        lowest = qkv.narrow(1, qkv.shape[1] - 1, 1)
        lower = edge(qkv, 1, bottom).slice_scatter(edge(lowest, 2, corner), 2, -1)
        attended = attended.slice_scatter(edge(qkv, 2, right), 2, -1).slice_scatter(lower, 1, -1)
    return attended


def _attend_alike(qkv: Tensor, bias: Tensor, heads: int, multiple: int = 1) -> Tensor:
    """Attention within windows of one kind; zeros bring the channels per head to a multiple."""
    batch, rows, columns, pixels, channels = qkv.shape
    width = channels // (3 * heads)
    parts = qkv.reshape(batch * rows * columns, pixels, 3, heads, width)
    if width % multiple:
        parts = torch.cat([parts, parts.new_zeros(*parts.shape[:-1], -width % multiple)], dim=-1)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    mask = bias.to(qkv.dtype).unsqueeze(0)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=width**-0.5)
    return attended[..., :width].transpose(1, 2).reshape(batch, rows, columns, pixels, channels // 3)


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
    """(rows, columns, pixels, parts * C) to (parts, windows * heads, C / heads, pixels).

    With the pixels last, the products have many columns and few rows, which takes a third of the time.
    """
    split = windows.unflatten(-1, (parts, heads, -1)).permute(3, 0, 1, 4, 5, 2)
    return split.flatten(1, 3).to(float_dtype(windows))


def _join(parts: Tensor, windows: Tensor, count: int) -> None:
    """Write what :func:`_split` gives back into the windows."""
    rows, columns, pixels = windows.shape[:3]
    split = parts.view(count, rows, columns, -1, parts.shape[-2], pixels)
    windows.view(rows, columns, pixels, *split.shape[:1], *split.shape[3:5]).copy_(split.permute(1, 2, 5, 0, 3, 4))


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights (windows * heads, pixels, pixels)."""
    logits = torch.bmm((query * query.shape[1] ** -0.5).transpose(1, 2), key)
    logits.unflatten(0, (-1, len(bias))).add_(bias)
    return torch.softmax(logits, dim=-1)


class DropPath(nn.Module):
    """Leave out a residual branch for some of the samples while training; the others' are scaled up.

    Args:
        rate: probability, in [0, 1).

    Raises:
        ValueError: ``rate`` is outside.

    Example:
        >>> DropPath(0.5).eval()(torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]

    Reference:
        G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the branch, zero for the samples it is left out for."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class Mlp(nn.Module):
    """Two linear layers over the channels with a GELU between them.

    Args:
        features: channels in and out.
        hidden: channels between.

    Example:
        >>> Mlp(8, 16)(torch.rand(1, 4, 4, 8)).shape
        torch.Size([1, 4, 4, 8])
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """Return the channels of each pixel mixed."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a layer norm and beside a residual.

    Args:
        features: channels.
        num_heads: heads of the attention; divides ``features``.
        mlp_ratio: hidden channels of the MLP per channel.
        window_size: side of a window in pixels.
        shift: how far the windows are moved.
        drop_path: probability of leaving out a branch while training.

    Example:
        >>> SwinBlock(8, num_heads=2, window_size=4)(torch.rand(1, 8, 12, 8)).shape
        torch.Size([1, 8, 12, 8])
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        mlp_ratio: float = 2.0,
        window_size: int = 8,
        shift: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attn = WindowAttention(features, num_heads, window_size, shift)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = Mlp(features, int(features * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map, same shape; H and W are multiples of the window."""
        return self._refine(x, self.norm1(x))

    def _refine(self, x: Tensor, normed: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ResidualGroup(nn.Module):
    """Blocks on maps ``(B, H, W, C)``, one after another, of which every other one has its windows shifted.

    Args:
        block: class of the blocks, called like :class:`SwinBlock`.
        features: channels.
        num_heads: heads of the attention.
        mlp_ratio: hidden channels of the MLP per channel.
        window_size: side of a window in pixels.
        drop_path: probability of leaving out a branch, for each of the blocks.

    Example:
        >>> ResidualGroup(SwinBlock, 8, 2, 2.0, 4, [0.0, 0.1])(torch.rand(1, 8, 12, 8)).shape
        torch.Size([1, 8, 12, 8])
    """

    def __init__(
        self,
        block: type[SwinBlock],
        features: int,
        num_heads: int,
        mlp_ratio: float,
        window_size: int,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        shifts = (0, window_size // 2)
        self.blocks = nn.Sequential(
            *(
                block(features, num_heads, mlp_ratio, window_size, shifts[index % 2], rate)
                for index, rate in enumerate(drop_path)
            )
        )

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the refined map, same shape; H and W are multiples of the window."""
        return self.blocks(x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map ``(B, C, H, W)``; the result lies channels-last in memory."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the normalised map."""
        return to_planes(super().forward(to_pixels(x)))


def to_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w c"]:
    """Return a map channels last, contiguous; free where it lies so in memory already."""
    return x.permute(0, 2, 3, 1).contiguous()


def to_planes(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Return a channels-last map as ``(B, C, H, W)``, without a copy."""
    return x.permute(0, 3, 1, 2)


def pad_to_windows(x: Float[Tensor, "b c h w"], window_size: int) -> Float[Tensor, "b c _h _w"]:
    """Grow a map at the bottom and at the right to multiples of the window: mirrored, or repeated where too small."""
    height, width = -x.shape[-2] % window_size, -x.shape[-1] % window_size
    if height:
        x = F.pad(x, (0, 0, 0, height), mode="reflect" if height < x.shape[-2] else "replicate")
    if width:
        x = F.pad(x, (0, width, 0, 0), mode="reflect" if width < x.shape[-1] else "replicate")
    return x


def initialize(network: nn.Module) -> None:
    """Give the linear layers the Swin Transformer's weights to start from; convolutions keep PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow from 0 to ``rate`` over all blocks, group by group."""
    last = max(1, sum(depths) - 1)
    return [[rate * (sum(depths[:group]) + i) / last for i in range(depth)] for group, depth in enumerate(depths)]


def swin_buffers(network: nn.Module, size: int) -> dict[str, Tensor]:
    """Return the buffers that the authors' blocks keep: relative positions, and the masks of a square map.

    Args:
        network: what holds the :class:`SwinBlock`.
        size: side in pixels of the map their masks are for.
    """
    buffers = {}
    for name, block in network.named_modules():
        if isinstance(block, SwinBlock):
            attention, count = block.attn, -(-size // block.attn.window_size)
            buffers[f"{name}.attn.relative_position_index"] = attention.relative_position_index.clone()
            if attention.shift:
                edge = torch.arange(count, device=attention.masks.device) == count - 1
                kinds = 2 * edge[:, None].long() + edge.long()
                buffers[f"{name}.attn_mask"] = attention.masks.float()[kinds.flatten()]
    return buffers
