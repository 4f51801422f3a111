"""Class maps of segmentation networks as regions."""

from __future__ import annotations

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


def test_a_segformer_of_transformers_gives_its_classes():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=7
    )
    network = transformers.SegformerForSemanticSegmentation(config)
    regions = SegmenterRegions(network, network.config.num_labels)
    pictures = torch.rand(1, 3, 64, 96)
    mean, std = (value[:, None, None] for value in (regions.normalize.mean[:, 0, 0], regions.normalize.std[:, 0, 0]))
    with torch.no_grad():
        logits = network(pixel_values=(pictures - mean) / std).logits
    wanted = F.interpolate(logits, (64, 96), mode="bilinear").argmax(1)
    assert torch.equal(regions(pictures), wanted)
    assert len(wanted.unique()) > 1
