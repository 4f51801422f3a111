"""Small networks with every part at work, and the arithmetic of Swin blocks written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skt_components.models import AHDRNet, HDRTransformer, ReconstructionNetwork, SCTNet, TMRNet, TMRNetPlus

SMALL: dict[type[ReconstructionNetwork], dict] = {
    AHDRNet: {"features": 6, "num_layers": 2, "growth": 3},
    HDRTransformer: {"features": 16, "depths": (2, 1), "num_heads": (2, 4), "drop_path": 0.0},
    SCTNet: {"features": 12, "depths": (2, 1), "num_heads": (2, 3), "channel_heads": 2, "drop_path": 0.0},
    TMRNet: {"features": 8, "num_blocks": (1, 2, 1, 1)},
    TMRNetPlus: {"features": 8, "num_blocks": (1, 2, 1, 1)},
}


def make_small(kind: type[ReconstructionNetwork], **options) -> ReconstructionNetwork:
    """Make a network whose weights are such that every part of it shows in the output."""
    if issubclass(kind, TMRNet):
        torch.manual_seed(0)
    net = kind(**{**SMALL[kind], **options})
    swin = kind in (HDRTransformer, SCTNet)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            matrix = name.startswith("layers") if kind is HDRTransformer else "channel" not in name
            if name == "conv3.weight" and kind is AHDRNet:
                parameter.mul_(0.1)  # the sigmoid is not saturated
            elif swin and ("table" in name or (parameter.ndim == 2 and matrix)):
                parameter.mul_(10)
            elif swin and (parameter.ndim == 1 or "temperature" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("learn_para", "up_para") or name.startswith("dcn_alignment.conv_offset.6"):
                parameter.normal_(std=0.2)
            if name.endswith("lce.fc.0.weight"):
                parameter[0] = -parameter[-1]  # one of them passes the ReLU
        for level in net.spynet.basic_module if issubclass(kind, TMRNet) else ():
            level.basic_module[8].weight.mul_(20)  # flows of some pixels
    return net


@pytest.fixture(scope="session")
def small() -> Callable[..., ReconstructionNetwork]:
    """``small(kind, **options)`` makes a small network with every part at work."""
    return make_small


@pytest.fixture(scope="session")
def official_shapes() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Names and shapes of a published state dict."""

    def read(file: str) -> dict[str, tuple[int, ...]]:
        rows = (line.split("\t") for line in (Path(__file__).parent / "keys" / file).read_text().splitlines())
        return {name: tuple(map(int, shape.strip("()").replace(",", " ").split())) for name, shape in rows}

    return read


class LiteralSwin:
    """Convolutions, norms and window attention from a network's parameters, for the padded size of one bracket.

    Windows are made by masking pixels that are not in one of them, out of an attention of all pixels to all.
    """

    def __init__(self, network: ReconstructionNetwork, bracket: Tensor) -> None:
        self.w = dict(network.named_parameters())
        self.padded = mirror_to_windows(bracket)
        height, width = self.padded.shape[-2:]
        self.height, self.width, self.features = height, width, network.features
        self.y, self.x = torch.arange(height * width) // width, torch.arange(height * width) % width

    def conv(self, name: str, planes: Tensor, dilation: int = 1) -> Tensor:
        weight = self.w[f"{name}.weight"]
        reach = dilation * (weight.shape[-1] // 2)
        return F.conv2d(planes, weight, self.w[f"{name}.bias"], padding=reach, dilation=dilation)

    def linear(self, name: str, tokens: Tensor) -> Tensor:
        return tokens @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, tokens: Tensor) -> Tensor:
        centered = tokens - tokens.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, name: str, tokens: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.fc1", tokens)
        return self.linear(f"{name}.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    def to_tokens(self, planes: Tensor) -> Tensor:
        return planes.flatten(2).transpose(1, 2)

    def to_planes(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (self.height, self.width))

    def attention(self, name: str, tokens: Tensor, heads: int, shift: int) -> Tensor:
        y, x = self.y, self.x
        window = (y - shift).div(8, rounding_mode="floor") * 1000 + (x - shift).div(8, rounding_mode="floor")
        apart = window[:, None] != window
        offset = (y[:, None] - y + 7) * 15 + (x[:, None] - x + 7)
        bias = self.w[f"{name}.relative_position_bias_table"][offset.clamp(0, 224)]
        parts = [part.unflatten(2, (heads, -1)) for part in self.linear(f"{name}.qkv", tokens).chunk(3, 2)]
        logits = torch.einsum("bihd,bjhd->bijh", parts[0], parts[1]) * (self.features / heads) ** -0.5 + bias
        weights = logits.masked_fill(apart[..., None], -float("inf")).softmax(2)
        return self.linear(f"{name}.proj", torch.einsum("bijh,bjhd->bihd", weights, parts[2]).flatten(2))

    def block(self, name: str, tokens: Tensor, heads: int, shift: int) -> Tensor:
        tokens = tokens + self.attention(f"{name}.attn", self.norm(f"{name}.norm1", tokens), heads, shift)
        return tokens + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", tokens))


@pytest.fixture
def literal_swin() -> type[LiteralSwin]:
    """Arithmetic of Swin blocks, written out."""
    return LiteralSwin


@pytest.fixture
def equal_with_gradient() -> Callable[[ReconstructionNetwork, Tensor, Tensor], None]:
    """Compare output and gradient of a network with an expression of its parameters and its input."""

    def compare(network: ReconstructionNetwork, bracket: Tensor, expected: Tensor) -> None:
        out = network(bracket)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        upstream, wrt = torch.randn_like(out), [bracket, *network.parameters()]
        got, wanted = torch.autograd.grad(out, wrt, upstream), torch.autograd.grad(expected, wrt, upstream)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4 * max(1.0, theirs.abs().max().item()), rtol=1e-3)
            assert ours.abs().max() > 0

    return compare


def mirror_to_windows(bracket: Tensor) -> Tensor:
    """Mirror a bracket at the bottom and right to multiples of eight."""
    rows, columns = ([min(i, 2 * (n - 1) - i) for i in range(-(-n // 8) * 8)] for n in bracket.shape[-2:])
    return bracket[..., rows, :][..., columns]


@pytest.fixture
def mirrored() -> Callable[[Tensor], Tensor]:
    """Mirror a bracket at the bottom and right to multiples of eight."""
    return mirror_to_windows
