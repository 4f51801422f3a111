"""Equations 4 and 6 to 12 of the paper, one literal function each: slow, dtype-preserving, the oracle of the tests.

The package does not import this file. Symbols follow the paper; sums are written as sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def eq4_prior_fusion(
    query: Tensor, key: Tensor, value: Tensor, gamma: Tensor | float, num_heads: int, normalize: bool
) -> Tensor:
    """``V . Softmax(K . Q / gamma)``, softmax over the key's channels, without eq. 4's residual and projection."""
    batch, channels, height, width = value.shape
    per_head = channels // num_heads
    gammas = torch.as_tensor(gamma, dtype=value.dtype).reshape(-1).expand(num_heads)
    out = torch.zeros_like(value)
    for b in range(batch):
        for head in range(num_heads):
            part = slice(head * per_head, (head + 1) * per_head)
            q, k, v = (x[b, part].reshape(per_head, -1).T for x in (query, key, value))  # (HW, C/h)
            if normalize:
                q = q / q.square().sum(0).sqrt().clamp_min(1e-12)
                k = k / k.square().sum(0).sqrt().clamp_min(1e-12)
            attention = torch.softmax(k.T @ q / gammas[head], dim=0)  # (key channel, query channel)
            out[b, part] = (v @ attention).T.reshape(per_head, height, width)
    return out


def eq6_centers(num_bins: int, value_range: tuple[float, float], dtype: torch.dtype = torch.float64) -> Tensor:
    """``c_i = min + (max - min)/N * (i + 0.5)``."""
    low, high = value_range
    return low + (high - low) / num_bins * (torch.arange(num_bins, dtype=dtype) + 0.5)


def eq7_kernel(x: Tensor, center: Tensor, sigma: float) -> Tensor:
    """``K(x, c_i) = exp(-(x - c_i)^2 / sigma^2)``."""
    return torch.exp(-((x - center) ** 2) / sigma**2)


def eq8_histogram(x: Tensor, num_bins: int, value_range: tuple[float, float], sigma: float) -> Tensor:
    """``H_{c,i} = sum_j K(x_{c,j}, c_i)`` of one picture ``(C, H, W)``; returns ``(C, num_bins)``."""
    centers = eq6_centers(num_bins, value_range, x.dtype)
    pixels = x.reshape(x.shape[0], -1, 1)
    return eq7_kernel(pixels, centers, sigma).sum(dim=1)


def eq9_histogram_loss(
    student: Tensor, teacher: Tensor, num_bins: int, value_range: tuple[float, float], sigma: float
) -> Tensor:
    """``1/C sum_c sum_i (H^S_{c,i} - H^T_{c,i})^2`` of one picture ``(C, H, W)``."""
    h_s = eq8_histogram(student, num_bins, value_range, sigma)
    h_t = eq8_histogram(teacher, num_bins, value_range, sigma)
    return (h_s - h_t).square().sum() / student.shape[0]


def eq10_color_loss(
    student: Tensor, teacher: Tensor, masks: Tensor, num_bins: int, value_range: tuple[float, float], sigma: float
) -> Tensor:
    """``1/N sum_i Hist(p_m^i (.) T(H_in), p_m^i (.) H_s)`` of one picture; ``masks`` is ``(N, H, W)``."""
    terms = [
        eq9_histogram_loss(mask * student, mask * teacher, num_bins, value_range, sigma)
        for mask in masks.to(student.dtype)
    ]
    return torch.stack(terms).sum() / len(terms)


def eq11_enhanced_feature(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    student_encoder: Callable[[Tensor], Tensor],
    teacher_encoder: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
) -> Tensor:
    """``F_E = Decoder(F_S (.) (1 - I) + F_T (.) I)`` of the encoded features."""
    encoded_student, encoded_teacher = student_encoder(student), teacher_encoder(teacher)
    return decoder(encoded_student * (1 - mask) + encoded_teacher * mask)


def eq12_alignment_loss(enhanced: Tensor, teacher: Tensor) -> Tensor:
    """``MSE(F_E, F_T)``."""
    return (enhanced - teacher).square().sum() / teacher.numel()
