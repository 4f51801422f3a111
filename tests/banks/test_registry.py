from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skt_components.banks import (
    ColorPositionKMeans,
    FeatureKMeans,
    KnowledgeBank,
    check_bank_weights,
    make_knowledge_bank,
)


def test_fastsam_has_its_own_masks_and_can_have_others() -> None:
    bank = make_knowledge_bank("fastsam", weights="random", num_regions=5, layers="fast")
    assert isinstance(bank, KnowledgeBank)
    assert (bank.regions, bank.max_regions, bank.num_regions, bank.scale) == (None, 5, 6, 1)
    color = make_knowledge_bank("fastsam", weights="random", regions="color", num_regions=5)
    assert (color.regions, color.num_regions, color.scale) == (ColorPositionKMeans(5), 5, 2)


def test_timm_takes_color_regions_unless_told() -> None:
    pytest.importorskip("timm")
    assert make_knowledge_bank("resnet18", weights="random", num_regions=5).regions == ColorPositionKMeans(5)
    bank = make_knowledge_bank("resnet18", weights="random", regions="features", num_regions=5)
    assert bank.regions == FeatureKMeans(5)
    assert bank(torch.rand(1, 3, 32, 32)).masks.shape == (1, 5, 32, 32)


def test_rejects_bad_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regions must be one of"):
        make_knowledge_bank("fastsam", weights="random", regions="masks")
    with pytest.raises(ValueError, match="layers must be one of"):
        make_knowledge_bank("fastsam", weights="random", layers="slow")
    with pytest.raises(ValueError, match=r"name must be a timm model such as .*got 'fast_sam'"):
        make_knowledge_bank("fast_sam")
    with pytest.raises(ValueError, match=r"name must be fastsam, got 'FastSAM-x'"):
        make_knowledge_bank("FastSAM-x")
    check_bank_weights("fastsam", "random")
    check_bank_weights("tf_efficientnet_lite0")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        check_bank_weights("fastsam", tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        make_knowledge_bank("fastsam", weights=tmp_path / "absent.pt")
