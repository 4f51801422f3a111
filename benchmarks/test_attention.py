"""Our two attentions against their usual implementation: time and memory of forward and backward passes.

OMP_NUM_THREADS=1 python benchmarks/test_attention.py    # a minute; writes results/attention--<device>.json
python -m pytest benchmarks/test_attention.py            # the comparison of the values, and a short timing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, interleave, ratios, write_result

from skt_components.models.window_attention import WindowAttention
from skt_components.ops.attention import transposed_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHANNELS, SIDE, WINDOW, WINDOW_HEADS, CHANNEL_HEADS = 60, 256, 8, 6, 4
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]


def plain_window_attention(module: WindowAttention, x: Tensor, mask: Tensor) -> Tensor:
    """Compute it as usual: all windows at once, and a mask for each of them."""
    batch, height, width, channels = x.shape
    size, shift, heads = module.window_size, module.shift, module.num_heads
    x = torch.roll(x, (-shift, -shift), (1, 2))
    windows = x.view(batch, height // size, size, width // size, size, channels).transpose(2, 3)
    windows = windows.reshape(-1, size**2, channels)
    qkv = module.qkv(windows).reshape(-1, size**2, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    bias = module.relative_position_bias_table[module.relative_position_index.flatten()].view(size**2, size**2, heads)
    logits = (qkv[0] * (channels // heads) ** -0.5) @ qkv[1].transpose(-2, -1) + bias.permute(2, 0, 1).contiguous()
    logits = logits.view(batch, len(mask), heads, size**2, size**2) + mask[None, :, None]
    out = logits.view(-1, heads, size**2, size**2).softmax(-1) @ qkv[2]
    out = module.proj(out.transpose(1, 2).reshape(-1, size**2, channels))
    out = out.view(batch, height // size, width // size, size, size, channels).transpose(2, 3)
    return torch.roll(out.reshape(batch, height, width, channels), (shift, shift), (1, 2))


def plain_channel_attention(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor, heads: int) -> Tensor:
    """Compute it as usual: normalized copies of query and key."""
    q, k, v = (part.unflatten(1, (heads, -1)).flatten(3) for part in (query, key, value))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return ((q @ k.transpose(-2, -1) / temperature).softmax(-1) @ v).view(value.shape)


def window_case(side: int = SIDE) -> Pair:
    module = WindowAttention(CHANNELS, WINDOW_HEADS, WINDOW, WINDOW // 2).to(DEVICE)
    torch.nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(1, side, side, CHANNELS, device=DEVICE, requires_grad=True)
    apart = edge_masks(module, side)
    return lambda: module(x), lambda: plain_window_attention(module, x, apart), [x, *module.parameters()]


def edge_masks(module: WindowAttention, side: int) -> Tensor:
    """Return one mask per window."""
    edge = torch.arange(side // WINDOW, device=DEVICE) == side // WINDOW - 1
    return module.masks[(2 * edge[:, None].long() + edge.long()).flatten()]


def channel_case(side: int = SIDE) -> Pair:
    maps = [torch.randn(1, CHANNELS, side, side, device=DEVICE, requires_grad=True) for _ in range(3)]
    temperature = torch.rand(CHANNEL_HEADS, 1, 1, device=DEVICE).add_(0.01).requires_grad_()

    def ours() -> Tensor:
        return transposed_attention(*maps, temperature=temperature, num_heads=CHANNEL_HEADS)

    return ours, lambda: plain_channel_attention(*maps, temperature, CHANNEL_HEADS), [*maps, temperature]


CASES = {"shifted windows": window_case, "channels": channel_case}


def largest_error(ours: Callable[[], Tensor], plain: Callable[[], Tensor], inputs: list[Tensor]) -> float:
    """Return the largest difference of outputs and gradients, relative to the largest value."""
    out, wanted = ours(), plain()
    upstream = torch.randn_like(wanted)
    got = [out, *torch.autograd.grad(out, inputs, upstream)]
    expected = [wanted, *torch.autograd.grad(wanted, inputs, upstream)]
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(got, expected, strict=True))


def time_case(name: str, rounds: int) -> dict[str, object]:
    """Check that the two agree, then time them interleaved."""
    ours, plain, inputs = CASES[name]()
    error = largest_error(ours, plain, inputs)
    assert error <= 1e-4, (name, error)
    upstream = torch.randn_like(ours())

    def train(method: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(method(), inputs, upstream)

    found: dict[str, object] = {"largest relative error": error}
    for kind, methods in {
        "forward and backward": {"ours": train(ours), "plain": train(plain)},
        "forward": {"ours": torch.no_grad()(ours), "plain": torch.no_grad()(plain)},
    }.items():
        found[kind] = ratios(interleave(methods, DEVICE, rounds), "ours")
    return found


def extra_memory(name: str, method: str) -> float:
    """Return the peak MiB of one forward and backward pass, beyond the memory before; in its own process."""

    def call(side: int) -> Callable[[], object]:
        ours, plain, inputs = CASES[name](side)
        chosen = ours if method == "ours" else plain
        return lambda: torch.autograd.grad(chosen().square().sum(), inputs)

    call(16)()  # loads all code
    timed = call(SIDE)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    timed()
    return (peak() - before) / 1024


def child(name: str, method: str) -> float:
    """Measure the memory in a fresh process whose malloc returns memory at once."""
    command = [sys.executable, __file__, "--memory", name, method]
    extra = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=os.environ | extra, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds of each timing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(round(extra_memory(*options.memory), 1))
        return
    command = " ".join(["python benchmarks/test_attention.py", *sys.argv[1:]])
    result: dict[str, object] = {"command": command, **environment(DEVICE), "shape": [1, CHANNELS, SIDE, SIDE]}
    for name in CASES:
        memory = {method: child(name, method) for method in ("ours", "plain")}
        result[name] = time_case(name, options.rounds) | {"extra memory in MiB": memory}
        print(name, json.dumps(result[name], indent=1), flush=True)
    write_result(options.out, "attention", result)


@pytest.mark.parametrize("name", CASES)
def test_ours_equals_the_usual_implementation(name: str) -> None:
    ours, plain, inputs = CASES[name](48)
    assert largest_error(ours, plain, inputs) <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_attention(benchmark, name: str) -> None:
    rows = benchmark.pedantic(time_case, (name, 3), rounds=1)
    benchmark.extra_info |= {**environment(DEVICE), "methods": rows}
    print(f"{name}: {rows}")


if __name__ == "__main__":
    main()
