"""Complementary random masks and the mixing of two feature maps (eq. 11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.ops.checks import check_broadcast, check_fraction, check_same_shape, check_tensor


def complementary_masks(
    shape: Sequence[int],
    mask_ratio: float = 0.5,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Draw an element-wise random mask and its complement, ``I`` and ``1 - I`` of eq. 11.

    Args:
        shape: shape of the masks, such as ``(B, C, H, W)``.
        mask_ratio: probability of a 1 in the first mask, in [0, 1].
        generator: random generator, which draws on its own device; None: the default generator of ``device``. With a
            sequence of one generator per sample, a mask does not depend on the rest of the batch.
        device: device of the masks; the generator's device when None.
        dtype: floating-point dtype of the masks.

    Raises:
        ValueError: ``mask_ratio`` is outside [0, 1], or the number of generators is not the number of samples.

    Example:
        >>> import torch
        >>> mask, complement = complementary_masks((2, 3), generator=torch.Generator().manual_seed(0))
        >>> bool((mask + complement == 1).all())
        True
    """
    check_fraction("mask_ratio", mask_ratio)
    if isinstance(generator, Sequence):
        samples = shape[0] if len(shape) else 0
        if len(generator) != samples:
            raise ValueError(f"generator must have one for each of {samples} samples, got {len(generator)}")
        if not samples:
            return complementary_masks(shape, mask_ratio, device=device, dtype=dtype)
        drawn = [
            complementary_masks(shape[1:], mask_ratio, generator=one, device=device, dtype=dtype)[0]
            for one in generator
        ]
        mask = torch.stack(drawn)
        return mask, 1 - mask
    source = generator.device if generator is not None else torch.device(device or "cpu")
    target = torch.device(device) if device is not None else source
    # Without a generator argument torch.compile does not trace dynamic shapes.
    if generator is None:
        draw = torch.rand(tuple(shape), device=source)
    else:
        draw = torch.rand(tuple(shape), device=source, generator=generator)
    mask = (draw < mask_ratio).to(target, dtype)
    return mask, 1 - mask


def mix_features(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], mask: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Return ``student * (1 - mask) + teacher * mask``, the argument of eq. 11's decoder.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` does not broadcast to them.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 2, 2)
        >>> mix_features(0 * one, one, one).mean()
        tensor(1.)
    """
    check_tensor("student", student)
    check_tensor("teacher", teacher)
    check_tensor("mask", mask)
    check_same_shape("student", student, "teacher", teacher)
    check_broadcast("mask", mask, student.shape)
    return student * (1 - mask) + teacher * mask
