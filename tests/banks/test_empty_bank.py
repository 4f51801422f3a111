"""No features, and the whole picture as the only region."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skt_components.banks import CachedBank, EmptyBank, KnowledgeBank, make_knowledge_bank
from skt_components.losses import SemanticHistogramLoss, histogram_loss


def test_it_is_a_bank_with_no_features_whose_one_region_has_every_pixel() -> None:
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


def test_its_color_loss_is_that_of_the_whole_picture() -> None:
    student, teacher = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    priors = EmptyBank()(student)
    found = SemanticHistogramLoss()(student, teacher, labels=priors.labels, num_regions=1, valid=priors.valid)
    assert found > 0
    torch.testing.assert_close(found, histogram_loss(student, teacher))


def test_it_has_no_state_and_is_kept_on_disk_like_any_bank(tmp_path: Path) -> None:
    assert list(EmptyBank().state_dict()) == []
    pytest.importorskip("safetensors")
    bank, picture = CachedBank(EmptyBank(), tmp_path), torch.rand(2, 3, 4, 4)
    for _ in range(2):  # made, then read
        priors = bank(picture)
        assert priors.features == []
        assert priors.masks.all()


def test_it_is_made_by_the_name_none() -> None:
    assert isinstance(make_knowledge_bank("none"), EmptyBank)
    with pytest.raises(ValueError, match=r"none has neither weights nor regions, got weights=w\.pt, regions='own'"):
        make_knowledge_bank("none", weights="w.pt")
    with pytest.raises(ValueError, match=r"none has neither weights nor regions, got weights=None, regions='color'"):
        make_knowledge_bank("none", regions="color")


def test_rejects_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match=r"tonemapped must have 3 channels \(B, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        EmptyBank()(torch.rand(1, 4, 8, 8))
