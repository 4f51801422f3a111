"""Overlapping masks as disjoint atoms, and their memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skt_components.histogram import mask_atoms, soft_histogram
from skt_components.histogram.mask_atoms import cached_atoms, find_atoms, memoize_by_tensor


@pytest.fixture(autouse=True)
def _forget() -> None:
    mask_atoms._memory.clear()


def stack(batch: int, regions: int, pixels: int, seed: int = 0, cover: float = 0.3) -> Tensor:
    """Masks of runs of pixels, so that atoms are larger than one."""
    coarse = torch.rand(batch, regions, -(-pixels // 9), generator=torch.Generator().manual_seed(seed)) < cover
    return coarse.repeat_interleave(9, dim=2)[..., :pixels]


def outcome(values: Tensor, **options) -> tuple[Tensor, Tensor]:
    counts = soft_histogram(leaf := values.detach().requires_grad_(), **options)
    upstream = torch.randn(counts.shape, generator=torch.Generator().manual_seed(1), dtype=counts.dtype)
    return counts.detach(), torch.autograd.grad(counts, leaf, upstream)[0]


# find_atoms


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.4, 1.0]))
def test_atoms_are_the_classes_of_pixels_with_equal_membership(seed, regions, pixels, cover):
    masks = stack(2, regions, pixels, seed, cover)
    atoms = find_atoms(masks, 100)
    assert atoms.labels.dtype == torch.int16
    for mask, labels, members in zip(masks, *atoms, strict=True):
        inside = labels >= 0
        assert torch.equal(inside, mask.any(0))
        assert torch.equal(members[:, labels[inside].long()], mask[:, inside])
        kinds = {tuple(column.tolist()) for column in mask.T[inside]}
        assert len(labels[inside].unique()) == len(kinds)  # no two atoms alike


@pytest.mark.parametrize("pixels_at_once", [1, 7, 64])
def test_atoms_found_share_by_share_are_the_same(monkeypatch, pixels_at_once):
    masks = stack(2, 40, 200)
    whole = find_atoms(masks, 200)
    monkeypatch.setattr(mask_atoms, "_PIXELS", max(pixels_at_once, 25))
    by_share = find_atoms(masks, 200)
    for b in range(2):
        inside = whole.labels[b] >= 0
        assert torch.equal(inside, by_share.labels[b] >= 0)
        for atoms in (whole, by_share):
            assert torch.equal(atoms.members[b][:, atoms.labels[b, inside].long()], masks[b][:, inside])
        assert by_share.labels[b].unique().numel() == whole.labels[b].unique().numel()


@pytest.mark.parametrize("share", [1 << 16, 32])
def test_too_many_atoms_are_none(monkeypatch, share):
    monkeypatch.setattr(mask_atoms, "_PIXELS", share)
    masks = (torch.arange(64) >> torch.arange(6)[:, None] & 1).bool()[None]  # 63 atoms and one pixel of no mask
    assert find_atoms(masks, 63).members.shape == (1, 6, 63)
    assert find_atoms(masks, 62) is None


# histograms through atoms


@pytest.mark.parametrize("bandwidth", [1 / 400, 1 / 16], ids=["window", "moments"])
@pytest.mark.parametrize("table", [1 << 20, 1 << 12], ids=["together", "picture by picture"])
def test_atoms_and_listed_pixels_give_the_same(monkeypatch, bandwidth, table):
    values = torch.rand(3, 2, 50, 60, dtype=torch.float64)
    masks = stack(3, 12, 3000).view(3, 12, 50, 60)
    monkeypatch.setattr(mask_atoms, "_TABLE", table)
    monkeypatch.setattr(mask_atoms, "find_atoms", lambda masks, limit: find_atoms(masks, 1 << 14))
    by_atoms = outcome(values, masks=masks, bandwidth=bandwidth)
    mask_atoms._memory.clear()
    monkeypatch.setattr(mask_atoms, "find_atoms", lambda masks, limit: None)
    listed = outcome(values, masks=masks, bandwidth=bandwidth)
    torch.testing.assert_close(by_atoms, listed, rtol=1e-10, atol=1e-10)


def test_masks_that_share_every_pixel_differently_fall_back_to_listing():
    values, masks = torch.rand(1, 1, 32, 32, dtype=torch.float64), torch.rand(1, 40, 32, 32) > 0.5
    assert cached_atoms(masks, 256, True) is None
    counts, _ = outcome(values, masks=masks)
    alone = torch.cat([soft_histogram(values, masks=masks[:, r : r + 1]) for r in range(40)], dim=1)
    torch.testing.assert_close(counts, alone, rtol=1e-10, atol=1e-10)


# memoize_by_tensor


def count_searches(monkeypatch) -> list[int]:
    calls: list[int] = []

    def counted(masks: Tensor, limit: int):
        calls.append(1)
        return find_atoms(masks, limit)

    monkeypatch.setattr(mask_atoms, "find_atoms", counted)
    return calls


def test_atoms_are_found_once_for_forward_backward_and_later_calls(monkeypatch):
    calls = count_searches(monkeypatch)
    masks = stack(2, 5, 400).view(2, 5, 20, 20)
    for _ in range(3):
        outcome(torch.rand(2, 3, 20, 20), masks=masks)
    assert len(calls) == 1
    outcome(torch.rand(2, 3, 20, 20), masks=masks.clone())
    assert len(calls) == 2
    outcome(torch.rand(2, 3, 20, 20)[..., 1:], masks=masks[..., 1:])
    assert len(calls) == 3


def test_a_change_in_place_is_noticed():
    values, masks = torch.rand(1, 3, 64, 64), stack(1, 5, 4096).view(1, 5, 64, 64)
    assert cached_atoms(masks, 3 * 256, True) is not None
    before = soft_histogram(values, masks=masks)
    masks[:, 2] ^= True
    after = soft_histogram(values, masks=masks)
    assert torch.equal(after, soft_histogram(values, masks=masks.clone()))
    assert not torch.equal(after, before)


def test_memory_reused_by_other_masks_is_not_mistaken_for_them():
    values = torch.rand(1, 3, 64, 64)
    for seed in range(20):  # freed at the end of each round, and often allocated at the same place again
        masks = stack(1, 5, 4096, seed).view(1, 5, 64, 64)
        found = soft_histogram(values, masks=masks)
        torch.testing.assert_close(found[:, 2], soft_histogram(values, masks=masks[:, 2:3].clone())[:, 0])


def test_a_memoized_result_is_freed_with_its_tensor_and_their_number_is_bounded():
    tensors = [torch.zeros(3) for _ in range(20)]
    for tensor in tensors:
        assert memoize_by_tensor("test", tensor, lambda: 5) == 5
    assert len(mask_atoms._memory) == mask_atoms._KEPT
    assert memoize_by_tensor("test", tensors[-1], lambda: 6) == 5
    assert memoize_by_tensor("other", tensors[-1], lambda: 7) == 7
    assert memoize_by_tensor("test", tensors[0], lambda: 8) == 8  # the oldest were dropped
    del tensors, tensor
    memoize_by_tensor("test", torch.zeros(3), lambda: 9)
    assert len(mask_atoms._memory) == 1


def test_results_for_inference_tensors_are_not_memoized(monkeypatch):
    calls = count_searches(monkeypatch)
    with torch.inference_mode():
        masks = stack(1, 5, 400).view(1, 5, 20, 20).clone()
        for _ in range(2):
            soft_histogram(torch.rand(1, 3, 20, 20), masks=masks)
    assert len(calls) == 2


def test_compiled_code_memoizes_nothing(monkeypatch):
    # It may put other masks into the same memory without counting that as a change.
    calls = count_searches(monkeypatch)
    compiled = torch.compile(soft_histogram, fullgraph=True, backend="aot_eager")
    masks = stack(1, 5, 400).view(1, 5, 20, 20)
    for _ in range(2):
        compiled(torch.rand(1, 3, 20, 20), masks=masks)
    assert len(calls) == 2
    assert not mask_atoms._memory
