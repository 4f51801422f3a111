from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skt_components.banks import (
    CachedBank,
    EmptyBank,
    GridRegions,
    KnowledgeBank,
    RegionSource,
    SemanticPriors,
    make_knowledge_bank,
    priors_from_labels,
)
from skt_components.banks.priors import check_region_source, priors_from_masks
from skt_components.losses import SemanticHistogramLoss, histogram_loss


def test_masks_are_the_one_hot_labels_and_valid_says_which_are_used() -> None:
    labels = torch.tensor([[[0, 0, 2], [2, -1, 0]], [[1, 1, 1], [1, 1, 1]]])
    features = [torch.rand(2, 3, 1, 1)]
    priors = priors_from_labels(features, labels, num_regions=4)
    assert isinstance(priors, SemanticPriors)
    assert priors.features[0] is features[0]
    assert priors.masks.dtype == torch.bool
    assert priors.masks.shape == (2, 4, 2, 3)
    for batch in range(2):
        for region in range(4):
            assert torch.equal(priors.masks[batch, region], labels[batch] == region)
    assert priors.valid.tolist() == [[True, False, True, False], [False, True, False, False]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_masks_partition_every_labelled_pixel(regions: int, b: int, h: int, w: int, seed: int) -> None:
    labels = torch.randint(-1, regions, (b, h, w), generator=torch.Generator().manual_seed(seed))
    priors = priors_from_labels([], labels, regions)
    assert torch.equal(priors.masks.sum(dim=1), (labels >= 0).long())
    assert torch.equal(priors.valid, priors.masks.flatten(2).sum(-1) > 0)
    assert torch.equal(priors.labels, labels)


def test_labels_out_of_range_become_no_region() -> None:
    priors = priors_from_labels([], torch.tensor([[[-7, 5, 1]]]), num_regions=2)
    assert priors.labels.tolist() == [[[-1, -1, 1]]]
    assert priors.valid.tolist() == [[False, True]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_gives_int64_labels(dtype: torch.dtype) -> None:
    priors = priors_from_labels([], torch.zeros(1, 2, 2, dtype=dtype), num_regions=1)
    assert priors.labels.dtype == torch.int64


def test_non_contiguous_labels() -> None:
    labels = torch.randint(-1, 3, (2, 5, 7))
    priors = priors_from_labels([], labels.transpose(1, 2), 3)
    assert torch.equal(priors.masks, priors_from_labels([], labels, 3).masks.transpose(2, 3))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_overlapping_masks_are_kept_and_have_no_labels(regions: int, batch: int, size: int, seed: int) -> None:
    masks = torch.rand(batch, regions, size, size, generator=torch.Generator().manual_seed(seed)) > 0.9
    features = [torch.rand(batch, 3, 1, 1)]
    priors = priors_from_masks(features, masks)
    assert priors.features[0] is features[0]
    assert priors.labels is None
    assert torch.equal(priors.masks, masks)
    assert torch.equal(priors.valid, masks.sum(dim=(2, 3)) > 0)


def test_no_value_is_read_on_the_host() -> None:
    # A tensor on the meta device has no values: any look at them raises.
    assert priors_from_masks([], torch.zeros(1, 3, 4, 4, dtype=torch.bool, device="meta")).valid.shape == (1, 3)
    priors = priors_from_labels([], torch.zeros(1, 4, 4, dtype=torch.long, device="meta"), 3)
    assert priors.masks.shape == (1, 3, 4, 4)
    assert priors.valid.device.type == "meta"


def test_compiles() -> None:
    compiled = torch.compile(priors_from_labels, fullgraph=True, backend="aot_eager")
    labels = torch.randint(-1, 3, (2, 5, 7))
    assert torch.equal(compiled([], labels, 3).masks, priors_from_labels([], labels, 3).masks)


def test_a_module_can_be_a_region_source() -> None:
    class Thirds(nn.Module):
        num_regions = 3

        def forward(self, images: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
            return (images.mean(dim=1) * 3).long().clamp(0, 2)

    assert isinstance(Thirds(), RegionSource)
    assert isinstance(GridRegions(), RegionSource)
    assert not isinstance(len, RegionSource)
    assert check_region_source(Thirds()) == 3
    for bad in (len, 8, nn.ReLU()):
        with pytest.raises(TypeError, match=r"regions must be callable and have an int num_regions, got "):
            check_region_source(bad)


@pytest.mark.parametrize(
    ("labels", "regions", "error", "message"),
    [
        ([[0]], 1, TypeError, r"labels must be a torch.Tensor \(B, H, W\), got list"),
        (torch.zeros(1, 2, 2), 1, TypeError, "labels must be an integer tensor, got torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), 1, TypeError, "labels must be an integer tensor, got torch.bool"),
        (torch.zeros(2, 2, dtype=torch.long), 1, ValueError, r"labels must have 3 axes .* got shape \(2, 2\)"),
        (torch.zeros(1, 2, 2, dtype=torch.long), 0, ValueError, "num_regions must be a whole number >= 1, got 0"),
        (torch.zeros(1, 2, 2, dtype=torch.long), 2.0, ValueError, "num_regions must be a whole number >= 1, got 2.0"),
    ],
)
def test_rejects_bad_input(labels: object, regions: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        priors_from_labels([], labels, regions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([[0]], TypeError, r"masks must be a bool tensor \(B, R, H, W\), got list"),
        (torch.zeros(1, 2, 2, 2), TypeError, r"masks must be a bool tensor \(B, R, H, W\), got torch.float32"),
        (torch.zeros(2, 2, 2).bool(), ValueError, r"masks must be \(B, R, H, W\) with R >= 1, got shape \(2, 2, 2\)"),
        (torch.zeros(1, 0, 2, 2).bool(), ValueError, r"with R >= 1, got shape \(1, 0, 2, 2\)"),
    ],
)
def test_rejects_bad_masks(masks: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        priors_from_masks([], masks)  # type: ignore[arg-type]


def test_the_empty_bank_has_no_features_whose_one_region_has_every_pixel() -> None:
    bank = EmptyBank()
    assert isinstance(bank, KnowledgeBank)
    assert bank.channels == bank.reduction == ()
    priors = bank(torch.rand(2, 3, 5, 7, requires_grad=True))
    assert priors.features == []
    assert priors.labels.dtype == torch.int64
    assert torch.equal(priors.labels, torch.zeros(2, 5, 7, dtype=torch.long))
    assert priors.masks.shape == (2, 1, 5, 7)
    assert priors.masks.all()
    assert priors.valid.tolist() == [[True], [True]]


def test_the_color_loss_of_the_empty_bank_is_that_of_the_whole_picture() -> None:
    student, teacher = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    priors = EmptyBank()(student)
    found = SemanticHistogramLoss()(student, teacher, labels=priors.labels, num_regions=1, valid=priors.valid)
    assert found > 0
    torch.testing.assert_close(found, histogram_loss(student, teacher))


def test_the_empty_bank_has_no_state_and_is_kept_on_disk_like_any_bank(tmp_path: Path) -> None:
    assert list(EmptyBank().state_dict()) == []
    pytest.importorskip("safetensors")
    bank, picture = CachedBank(EmptyBank(), tmp_path), torch.rand(2, 3, 4, 4)
    for _ in range(2):  # made, then read
        priors = bank(picture)
        assert priors.features == []
        assert priors.masks.all()


def test_the_empty_bank_is_made_by_the_name_none() -> None:
    assert isinstance(make_knowledge_bank("none"), EmptyBank)
    with pytest.raises(ValueError, match=r"none has neither weights nor regions, got weights=w\.pt, regions='own'"):
        make_knowledge_bank("none", weights="w.pt")
    with pytest.raises(ValueError, match=r"none has neither weights nor regions, got weights=None, regions='color'"):
        make_knowledge_bank("none", regions="color")


def test_the_empty_bank_rejects_other_tensors_than_pictures() -> None:
    with pytest.raises(ValueError, match=r"tonemapped must have 3 channels \(B, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        EmptyBank()(torch.rand(1, 4, 8, 8))
