"""Transposed (channel-wise) attention."""

from __future__ import annotations

import math
import numbers

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from skt_components.ops.checks import (
    at_least_float32,
    can_read_values,
    check_broadcast,
    check_count,
    check_same_dtype,
    check_same_shape,
    check_tensor,
    float_dtype,
    no_autocast,
)


def transposed_attention(
    query: Float[Tensor, "b c h w"],
    key: Float[Tensor, "b c h w"],
    value: Float[Tensor, "b c h w"],
    *,
    temperature: Float[Tensor, "..."] | float = 1.0,
    num_heads: int = 1,
    normalize: bool = True,
) -> Float[Tensor, "b c h w"]:
    """Compute attention over channels, ``V . Softmax(K . Q / temperature)`` of eq. 4.

    The attention matrix has (C/heads)^2 numbers for every picture size, so the cost is linear in the pixels.

    Args:
        query: from the semantic prior.
        key: from the image features.
        value: from the image features.
        temperature: divisor of the logits (gamma of eq. 4), neither 0 nor NaN: a number, or a floating-point tensor
            that broadcasts to ``(num_heads, 1, 1)``.
        num_heads: groups of channels that attend to each other; divides C.
        normalize: first L2-normalize each query and key channel over the pixels, as Restormer does. False is eq. 4.

    Raises:
        TypeError: an argument has the wrong type or dtype, or query and key have two dtypes without autocast.
        ValueError: shapes differ, ``num_heads`` does not divide C, or ``temperature`` has another shape, or is 0 or NaN
            (tensors are checked only on the CPU, outside compiled graphs).

    Example:
        >>> import torch
        >>> x = torch.randn(1, 4, 8, 8)
        >>> transposed_attention(x, x, x, num_heads=2).shape
        torch.Size([1, 4, 8, 8])

    Reference:
        Eq. 4 of the paper; S. W. Zamir et al., "Restormer", CVPR 2022 (multi-Dconv head transposed attention).
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor, ndim=4, layout="(B, C, H, W)")
    check_same_shape("query", query, "key", key)
    check_same_shape("key", key, "value", value)
    check_same_dtype("query", query, "key", key)
    batch, channels, height, width = value.shape
    num_heads = check_count("num_heads", num_heads, 1)
    if channels % num_heads:
        raise ValueError(f"num_heads must divide the {channels} channels, got {num_heads}")
    _check_temperature(temperature, num_heads)
    heads = (batch, num_heads, channels // num_heads, height * width)
    q, k, v = query.reshape(heads), key.reshape(heads), value.reshape(heads)
    device = value.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    if not normalize:
        with no_autocast(q):
            logits = at_least_float32(q) @ at_least_float32(k).transpose(-2, -1)  # a sum over all pixels
    elif value.dtype.itemsize < 4 or autocast:
        # Only the norms are sums that overflow: normalized first, the product is safe in half precision.
        q, k = ((x / _norm(x).clamp_min(1e-12)).to(x.dtype) for x in (q, k))
        logits = q @ k.transpose(-2, -1)
    else:
        # Dividing the small (C/heads)^2 matrix by the norms avoids two normalized copies of the feature maps.
        norms = _norm(q) * _norm(k).transpose(-2, -1)
        logits = q @ k.transpose(-2, -1) / norms.clamp_min(1e-12)
    # At least float32: half-precision logits would round the weights.
    weights = torch.softmax(at_least_float32(logits) / temperature, dim=-1)
    return (weights.to(v.dtype) @ v).reshape(batch, channels, height, width)


def _norm(x: Tensor) -> Tensor:
    """Return the norm over the pixels (B, heads, C/heads, 1), summed in float32 at least."""
    return vector_norm(x, dim=-1, keepdim=True, dtype=float_dtype(x))


def _check_temperature(temperature: Tensor | float, num_heads: int) -> None:
    if isinstance(temperature, Tensor):
        check_tensor("temperature", temperature)
        check_broadcast("temperature", temperature, (num_heads, 1, 1), "(num_heads, 1, 1) = ")
        bad = can_read_values(temperature) and bool(((temperature == 0) | temperature.isnan()).any())
    elif isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        raise TypeError(f"temperature must be a number or a floating-point tensor, got {type(temperature).__name__}")
    else:
        bad = temperature == 0 or math.isnan(temperature)
    if bad:
        raise ValueError(f"temperature must be neither 0 nor NaN, got {temperature!r}")
