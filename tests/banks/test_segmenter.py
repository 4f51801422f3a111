"""Class maps of segmentation networks as regions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components import TimmFeatureExtractor
from skt_components.banks import SegmenterRegions
from skt_components.banks.priors import describe_region_source


class Brightness(nn.Module):
    """Tell dark, middle and bright places of normalized pictures apart, at a quarter of the resolution."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form, self.seen = form, []
        self.centers = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> object:
        self.seen.append((images.shape, self.training, torch.is_grad_enabled()))
        scores = -(F.avg_pool2d(images, 4).mean(1, keepdim=True) - self.centers).abs()
        forms = {"tensor": scores, "logits": SimpleNamespace(logits=scores), "dict": {"out": scores, "aux": 0}}
        return forms[self.form]


PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.mark.parametrize("form", ["tensor", "logits", "dict"])
def test_each_pixel_takes_its_likeliest_class_whatever_the_form_of_the_output(form):
    network = Brightness(form)
    regions = SegmenterRegions(network, 3, **PLAIN)
    picture = torch.zeros(1, 3, 40, 72)
    picture[..., 24:48] = 0.45
    picture[..., 48:] = 7  # clamped
    labels = regions.train()(picture)
    assert labels.dtype == torch.int64
    assert labels.shape == (1, 40, 72)
    assert torch.equal(labels[0, 0, [5, 36, 65]], torch.tensor([0, 1, 2]))
    assert (labels == labels[:, :1]).all()
    assert network.seen == [((1, 3, 64, 96), False, False)]


def test_pictures_are_normalized():
    network = Brightness()
    labels = SegmenterRegions(network, 3, mean=(0.5,) * 3, std=(0.25,) * 3)(torch.full((1, 3, 32, 32), 0.75))
    assert labels.unique().tolist() == [2]  # (0.75 - 0.5) / 0.25 = 1


def test_a_bank_has_the_classes_as_regions_and_its_state_none_of_the_network():
    regions = SegmenterRegions(Brightness(), 3, **PLAIN)
    bank = TimmFeatureExtractor(weights="random", regions=regions)
    priors = bank(torch.rand(1, 3, 32, 48))
    assert (bank.num_regions, priors.masks.shape) == (3, (1, 3, 32, 48))
    assert not regions.state_dict()
    other = SegmenterRegions(Brightness(), 3, **PLAIN)
    assert describe_region_source(regions) == describe_region_source(other)
    with torch.no_grad():
        other.network.network.centers[0, 0] = 0.1
    assert describe_region_source(regions) != describe_region_source(other)


def test_other_scores_are_rejected():
    with pytest.raises(ValueError, match=r"must give scores \(B, 4, h, w\), got \(1, 3, 8, 8\)"):
        SegmenterRegions(Brightness(), 4)(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"must give scores \(B, 3, h, w\), got NoneType"):
        SegmenterRegions(_Dict(), 3)(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="num_regions must be"):
        SegmenterRegions(Brightness(), 0)


class _Dict(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scores": images}


def tiny_network(kind: str) -> nn.Module:
    """Return a small random network of transformers with seven classes."""
    import transformers as t

    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "depths": [1] * 4}
    if kind == "segformer":
        options = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
        return t.SegformerForSemanticSegmentation(t.SegformerConfig(depths=[1] * 4, num_labels=7, **options))
    if kind == "upernet":
        backbone = t.ConvNextConfig(hidden_sizes=[8] * 4, **stages)
        options = {"hidden_size": 8, "use_auxiliary_head": False}
        return t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=backbone, num_labels=7, **options))
    if kind == "mobilevit":
        options = {"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2}
        return t.MobileViTForSemanticSegmentation(t.MobileViTConfig(aspp_out_channels=8, num_labels=7, **options))
    if kind == "dpt":
        options = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        options |= {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "backbone_out_indices": [0, 1, 2, 3]}
        return t.DPTForSemanticSegmentation(t.DPTConfig(image_size=64, num_labels=7, **options))
    backbone = t.SwinConfig(embed_dim=8, num_heads=[1, 2, 2, 2], window_size=4, **stages)
    options = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
    options |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2}
    config = t.Mask2FormerConfig(backbone_config=backbone, num_queries=5, num_labels=7, **options)
    return t.Mask2FormerForUniversalSegmentation(config)


def save(kind: str, folder: Path, **preprocessing: object) -> nn.Module:
    """Save a small network as the Hugging Face hub has it; return it."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = tiny_network(kind).eval()
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return network


@pytest.mark.parametrize("kind", ["segformer", "upernet", "mask2former"])
def test_a_network_of_transformers_gives_its_classes_with_its_normalization(kind, tmp_path):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    network = save(kind, tmp_path, do_normalize=True, image_mean=mean, image_std=std)
    regions = SegmenterRegions.from_pretrained(tmp_path)
    assert regions.num_regions == 7
    pictures = torch.rand(2, 3, 64, 96)
    inputs = (pictures - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        output = network(pixel_values=inputs)
    if kind == "mask2former":
        classes = output.class_queries_logits.softmax(-1)[:, :, :7]
        masks = output.masks_queries_logits.sigmoid()
        scores = (classes[..., None, None] * masks[:, :, None]).sum(1)
    else:
        scores = output.logits
    wanted = F.interpolate(scores, (64, 96), mode="bilinear").argmax(1)
    assert (regions(pictures) == wanted).float().mean() > 0.999  # ties of rounded scores
    assert len(wanted.unique()) > 1
    assert regions(torch.rand(1, 3, 50, 37)).shape == (1, 50, 37)


def test_a_network_of_transformers_gets_blue_first_if_its_preprocessing_says_so(tmp_path):
    network = save("mobilevit", tmp_path, do_flip_channel_order=True)  # and does not normalize
    pictures = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        scores = network(pixel_values=pictures.flip(1)).logits
    regions = SegmenterRegions.from_pretrained(tmp_path)
    assert torch.equal(regions(pictures), F.interpolate(scores, (64, 96), mode="bilinear").argmax(1))
    assert describe_region_source(regions) != describe_region_source(SegmenterRegions(network, 7, **PLAIN))


def test_networks_of_transformers_that_give_no_regions_are_rejected(tmp_path):
    save("dpt", tmp_path / "dpt", do_normalize=False)
    with pytest.raises(ValueError, match="dpt cannot give regions: it must take pictures of any size, but 64x96"):
        SegmenterRegions.from_pretrained(tmp_path / "dpt")
    transformers = pytest.importorskip("transformers")
    transformers.ResNetConfig().save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match="classes must segment pictures into classes, got a resnet"):
        SegmenterRegions.from_pretrained(tmp_path / "classes")
    with pytest.raises(FileNotFoundError, match=r"no segmentation network of transformers at .*nowhere"):
        SegmenterRegions.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no segmentation network of transformers at some/name"):
        SegmenterRegions.from_pretrained("some/name")  # not downloaded


def test_a_missing_transformers_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"skt-components\[transformers\]"):
        SegmenterRegions.from_pretrained("folder")
