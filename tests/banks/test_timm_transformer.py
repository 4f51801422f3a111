"""Vision transformers of timm as banks: maps of one stride as four levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from skt_components import SemanticKnowledgeTransfer, TimmFeatureExtractor
from skt_components.models import AHDRNet

NAMES = ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "samvit_base_patch16"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the transformers small: the names, layers and options are timm's."""
    make = timm.create_model
    small = {"embed_dim": 24, "depth": 8, "num_heads": 2}

    def create(name: str, **options):
        more = {"img_size": 64, "global_attn_indexes": (3, 7)} if name.startswith("samvit") else {}
        return make(name, **options, **small, **more) if "vit" in name else make(name, **options)

    monkeypatch.setattr(timm, "create_model", create)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (37, 50)])
def test_a_transformer_gives_four_levels_of_pictures_of_any_size(name, size):
    bank = TimmFeatureExtractor(name, weights="random")
    assert (bank.channels, bank.reduction) == ((24,) * 4, (16, 8, 4, 2))
    priors = bank(torch.rand(2, 3, *size))
    assert [tuple(f.shape[1:]) for f in priors.features] == [
        (24, -(-size[0] // s), -(-size[1] // s)) for s in bank.reduction
    ]
    assert all(f.isfinite().all() for f in priors.features)
    assert priors.masks.shape == (2, 8, *size)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_the_blocks_of_the_whole_network_enlarged_from_deep_to_shallow(name, tmp_path):
    options = {} if name.startswith("samvit") else {"dynamic_img_size": True}
    full = timm.create_model(name, **options).eval()
    torch.save(full.state_dict(), tmp_path / "weights.pth")  # with its classifier
    bank = TimmFeatureExtractor(name, weights=tmp_path / "weights.pth")
    pictures = torch.rand(1, 3, 64, 96)
    mean, std = (torch.tensor(full.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    patch = full.patch_embed.patch_size[0]
    resized = F.interpolate((pictures - mean) / std, (4 * patch, 6 * patch), mode="bilinear", antialias=True)
    with torch.no_grad():
        last = full.forward_features(resized)
        maps = full.forward_intermediates(resized, indices=[1, 3, 5, 7], norm=True, intermediates_only=True)
    features = bank(pictures).features
    for feature, wanted, stride in zip(features, reversed(maps), (16, 8, 4, 2), strict=True):
        if not name.startswith("samvit"):  # whose neck stands for a norm in timm, and is trained for the last block
            enlarged = F.interpolate(wanted, scale_factor=16 // stride, mode="bilinear")
            torch.testing.assert_close(feature, enlarged, rtol=1e-4, atol=1e-4)
    if name.startswith("samvit"):
        with torch.no_grad():
            torch.testing.assert_close(full.neck(features[0]), last, rtol=1e-4, atol=1e-4)


def test_files_without_a_head_load_and_other_files_are_rejected(tmp_path: Path):
    state = timm.create_model(NAMES[0]).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "no_head.pth")
    TimmFeatureExtractor(NAMES[0], weights=tmp_path / "no_head.pth")
    torch.save({k: v for k, v in state.items() if "blocks.3" not in k}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"12 missing: blocks\.3"):
        TimmFeatureExtractor(NAMES[0], weights=tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"reduction must be divisors of the coarsest stride"):
        TimmFeatureExtractor(NAMES[0], weights="random", reduction=(16, 12, 4, 2))


def test_the_framework_trains_with_it_and_gradients_reach_pictures_on_request():
    bank = TimmFeatureExtractor(NAMES[0], weights="random", grad_to_input=True)
    pictures = torch.rand(1, 3, 32, 32, requires_grad=True)
    bank.extract_features(pictures)[3].sum().backward()
    assert pictures.grad.abs().max() > 0
    framework = SemanticKnowledgeTransfer(AHDRNet(features=8, num_layers=1, growth=4), bank)
    framework(torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32)).total.backward()
    assert framework.orm.conv1.weight.grad.abs().max() > 0
