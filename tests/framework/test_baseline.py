"""The network alone with its reconstruction loss."""

import math

import pytest
import torch
from torch import nn

from skt_components.banks import EmptyBank
from skt_components.framework import BareNetwork, LossWeights, ReconstructionLoss, SemanticKnowledgeTransfer
from skt_components.losses import MuL1Loss, PerceptualLoss, mu_l1_loss, mu_rms_loss
from skt_components.models import AHDRNet
from skt_components.modules import DomainTransfer


class Extractor(nn.Module):
    """One feature map, with weights and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, picture: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(self.conv(picture))]


def make_orm() -> AHDRNet:
    return AHDRNet(features=8, num_layers=2, growth=4)


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 6, 16, 12), torch.rand(2, 3, 16, 12)


@pytest.mark.parametrize(("domain", "channels"), [("srgb", 3), ("raw", 4)])
def test_the_loss_is_the_weighted_sum_of_its_terms(domain, channels):
    peak = {"srgb": 1.0, "raw": 16.0}[domain]
    hdr, target = (peak * torch.rand(2, channels, 8, 6) for _ in range(2))
    perceptual, transfer = PerceptualLoss(Extractor()), DomainTransfer(domain)
    pixels = mu_l1_loss(hdr, target, peak=peak)
    assert torch.equal(ReconstructionLoss(domain)(hdr, target), pixels)
    loss = ReconstructionLoss(domain, rms_weight=0.3, perceptual=perceptual, perceptual_weight=0.2)
    features = perceptual(transfer(hdr), transfer(target))
    wanted = pixels + 0.3 * mu_rms_loss(hdr, target, peak=peak) + 0.2 * features
    torch.testing.assert_close(loss(hdr, target), wanted)
    assert "perceptual_weight=0.2" in repr(loss)


def test_the_loss_takes_mu_and_peak_of_the_domain_transfer():
    hdr, target = (4 * torch.rand(1, 3, 8, 6) for _ in range(2))
    loss = ReconstructionLoss(DomainTransfer(mu=100.0, peak=4.0))
    assert torch.equal(loss(hdr, target), mu_l1_loss(hdr, target, mu=100.0, peak=4.0))


def test_a_perceptual_term_of_weight_zero_is_not_computed():
    def forbidden(student, teacher):
        raise AssertionError("computed")

    hdr = torch.rand(1, 3, 8, 8)
    assert ReconstructionLoss(perceptual=forbidden)(hdr, hdr) == 0
    with pytest.raises(AssertionError, match="computed"):
        ReconstructionLoss(perceptual=forbidden, perceptual_weight=1.0)(hdr, hdr)


def test_the_perceptual_network_is_neither_trained_nor_saved():
    extractor = Extractor()
    loss = ReconstructionLoss(perceptual=PerceptualLoss(extractor), perceptual_weight=0.1)
    bare = BareNetwork(make_orm(), loss).train()
    assert {name.split(".")[0] for name in bare.state_dict()} == {"orm"}
    assert {id(p) for p in bare.parameters()} == {id(p) for p in bare.orm.parameters()}
    bare(*make_data()).total.backward()
    assert not extractor.norm.training
    assert all(p.grad is None and not p.requires_grad for p in extractor.parameters())
    assert bare.double()
    assert extractor.conv.weight.dtype == torch.float64


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_rejects_bad_weights(weight):
    with pytest.raises(ValueError, match=r"rms_weight must be a finite number >= 0, got"):
        ReconstructionLoss(rms_weight=weight)
    with pytest.raises(ValueError, match=r"perceptual_weight must be a finite number >= 0, got"):
        ReconstructionLoss(perceptual_weight=weight)


def test_a_weight_without_a_perceptual_loss_is_an_error():
    with pytest.raises(ValueError, match=r"perceptual must not be None with perceptual_weight=0\.5"):
        ReconstructionLoss(perceptual_weight=0.5)


def test_the_baseline_is_called_as_the_framework_is():
    bare, (bracket, target) = BareNetwork(make_orm()), make_data()
    output = bare(bracket, target, ramp=0.5, generator=torch.Generator(), metadata={})
    assert output.terms == {"org": output.total}
    assert torch.equal(output.total, MuL1Loss()(bare.orm(bracket), target))
    other = make_orm()
    for network, options in ((bare.orm, {}), (other, {"orm": other})):
        hdr, refined = bare.reconstruct(bracket, metadata={}, **options)
        assert torch.equal(hdr, network(bracket))
        assert refined is None
        assert not hdr.requires_grad


def test_the_baseline_trains_as_the_framework_without_transfer_terms():
    orm, data = make_orm(), make_data()
    bare = BareNetwork(orm, forward_orm=lambda network, bracket: network(bracket))

    framework = SemanticKnowledgeTransfer(orm, EmptyBank(), weights=LossWeights(0.0, 0.0, 0.0, 0.0), joint=False)
    got, wanted = (torch.autograd.grad(module(*data).total, [*orm.parameters()]) for module in (bare, framework))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_old_checkpoints_of_the_baseline_load():
    assert list(BareNetwork(make_orm()).state_dict()) == [f"orm.{name}" for name in make_orm().state_dict()]
