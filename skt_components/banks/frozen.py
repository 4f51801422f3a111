"""Hold a frozen network outside its parent's parameters and state dict; fingerprints; input normalization."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Frozen(nn.Module):
    """Hold a network that moves with its parent, but is not part of the parent's state.

    The network gets ``requires_grad=False`` and eval mode in place, and stays in eval mode. ``state_dict()``,
    ``parameters()``, ``buffers()``, ``modules()`` and ``apply()`` of a parent do not include it. So checkpoints,
    optimizers and DistributedDataParallel ignore it. ``to()``, ``half()``, ``share_memory()``, memory formats, deepcopy
    and pickle include it. Gradients pass through the network to its input. With FSDP each process has a whole copy.

    Raises:
        TypeError: if ``network`` is not an ``nn.Module``.

    Example:
        >>> parent = nn.Sequential(nn.Conv2d(3, 8, 3), Frozen(nn.BatchNorm2d(8)))
        >>> sorted(parent.state_dict())
        ['0.bias', '0.weight']
        >>> parent.train()[1].network.training
        False
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {type(network).__name__}")
        # In __dict__ and not in _modules, which hides it from a parent's traversals.
        object.__setattr__(self, "_network", network.requires_grad_(False).eval())
        super().train(False)

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self.__dict__["_network"]

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        if recurse:
            self.network._apply(fn)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self.network(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the network and its size, with networks frozen inside it."""
        size = sum(t.numel() for _, t in _named_tensors(self.network) if isinstance(t, nn.Parameter))
        return f"{type(self.network).__name__}, {size / 1e6:.2f} M parameters"


def fingerprint(module: nn.Module, *options: object) -> str:
    """Return the SHA-256 of a module's parameters, buffers and their dtypes, and of the ``repr`` of ``options``.

    Networks inside :class:`Frozen` and buffers outside the state dict are included. A copy in half precision has
    another fingerprint, because it computes other results.

    Example:
        >>> fingerprint(nn.ReLU(), "a") == fingerprint(nn.ReLU(), "a")
        True
        >>> fingerprint(nn.ReLU(), "a") == fingerprint(nn.ReLU(), "b")
        False
    """
    digest = hashlib.sha256(repr(options).encode())
    for name, tensor in _named_tensors(module):
        values = tensor.detach().cpu().contiguous()
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no bfloat16
        digest.update(f"{name} {tuple(values.shape)} {tensor.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _named_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, also of networks inside :class:`Frozen`."""
    for tensors in (module.named_parameters(prefix), module.named_buffers(prefix)):
        yield from tensors
    for name, child in module.named_modules(prefix=prefix):
        if isinstance(child, Frozen):
            yield from _named_tensors(child.network, f"{name}.network" if name else "network")


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel, in the dtype of the module."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return ``(images - mean) / std``."""
        return (images.to(self.mean.dtype) - self.mean) / self.std
