"""The framework: which loss trains what, eqs. 13 and 14, and any stranger's network."""

from __future__ import annotations

import copy
import gc
import io
import math
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skt_components.banks import EmptyBank, GridRegions, TimmFeatureExtractor, priors_from_labels
from skt_components.banks.priors import priors_from_masks
from skt_components.framework import LossWeights, SemanticKnowledgeTransfer
from skt_components.losses import HistogramLoss, PerceptualLoss, mu_l1_loss, semantic_histogram_loss
from skt_components.models import SPGRM, AHDRNet
from skt_components.modules import DomainTransfer, FeatureTaps
from skt_components.ops import mosaic
from skt_components.ops.reference import eq10_color_loss, eq11_enhanced_feature, eq12_alignment_loss

ALL = LossWeights(content_weight=0.5, color_weight=0.25, alignment_weight=2.0, perceptual_weight=0.0)
NONE = LossWeights(0.0, 0.0, 0.0, 0.0)


class TinyBank(nn.Module):
    """A plain module, not frozen by itself, with a batch norm; three levels of brightness and two empty regions."""

    channels = (7, 6, 5, 4)
    reduction = (16, 8, 4, 2)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 3, padding=1) for c in self.channels)
        self.seen: list[tuple[bool, bool, bool]] = []

    def extract_features(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.norm(images)
        pooled = [F.avg_pool2d(x, stride, ceil_mode=True) for stride in self.reduction]
        return [conv(level).relu() for conv, level in zip(self.convs, pooled, strict=True)]

    def forward(self, tonemapped: torch.Tensor):
        self.seen.append((torch.is_grad_enabled(), tonemapped.requires_grad, self.training))
        labels = (tonemapped.mean(dim=1) * 3).floor().clamp(0, 2).long()
        return priors_from_labels(self.extract_features(tonemapped), labels, 5)


def make_orm(**options) -> AHDRNet:
    return AHDRNet(**{"features": 8, "num_layers": 2, "growth": 4, **options})


def make(orm: nn.Module | None = None, awake: bool = True, **options) -> SemanticKnowledgeTransfer:
    """A small framework; ``awake`` gives the teacher's last convolution, which starts at zero, weights."""
    options = {"weights": ALL, "knowledge_bank": TinyBank(), "joint": False, "detach_teacher": True, **options}
    framework = SemanticKnowledgeTransfer(orm if orm is not None else make_orm(), **options)
    if awake and isinstance(framework.spgrm, SPGRM):
        nn.init.normal_(framework.spgrm.tail.weight, std=0.05)
    return framework


def make_data(batch=2, size=(32, 24), dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Three exposures of one random smooth scene, and the scene."""
    scene = F.interpolate(torch.rand(batch, 3, 5, 4, dtype=dtype), size, mode="bicubic").clamp(0.01, 1)
    exposures = [(scene * gain).clamp(0, 1) for gain in (0.5, 1.0, 4.0)]
    bracket = torch.stack(
        [torch.cat([e / g, e ** (1 / 2.2)], 1) for e, g in zip(exposures, (0.5, 1, 4), strict=True)], 1
    )
    return bracket, scene


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(framework: SemanticKnowledgeTransfer) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters of each part by name; together they are all that the framework holds, and the bank's."""
    spgrm = dict(framework.spgrm.named_parameters())
    return {
        "orm": dict(framework.orm.named_parameters()),
        "spgrm": {n: p for n, p in spgrm.items() if not n.startswith("pyramid.")},
        "pyramid": {n: p for n, p in spgrm.items() if n.startswith("pyramid.")},
        "skam": dict(framework.skams.named_parameters()),
        "bank": dict(framework.bank.network.named_parameters()),
    }


def reached(framework: SemanticKnowledgeTransfer, loss: torch.Tensor) -> dict[str, set[str]]:
    """Per part, the parameters that the loss gives a gradient other than zero."""
    found = {}
    for part, parameters in parts(framework).items():
        parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        if not parameters:
            found[part] = set()
            continue
        gradients = torch.autograd.grad(loss, [*parameters.values()], retain_graph=True, allow_unused=True)
        found[part] = {
            name for name, g in zip(parameters, gradients, strict=True) if g is not None and g.abs().max() > 0
        }
    return found


# gradient routing: one test per loss and switch

DETACHED, JOINT = {"joint": False, "detach_teacher": True}, {"joint": True, "detach_teacher": True}
OPEN, BOTH = {"joint": False, "detach_teacher": False}, {"joint": True, "detach_teacher": False}
OPEN_TO_ALL, ALL_OF_BOTH = ({**switches, "detach_features": False} for switches in (OPEN, BOTH))
ROUTING = [
    ("org", DETACHED, {"orm"}),
    ("spgrm", DETACHED, {"spgrm", "pyramid"}),
    ("content", DETACHED, {"orm"}),
    ("color", DETACHED, {"orm"}),
    ("alignment", DETACHED, {"orm", "skam"}),
    ("org", JOINT, {"orm"}),
    ("spgrm", JOINT, {"orm", "spgrm", "pyramid"}),
    ("content", JOINT, {"orm"}),
    ("color", JOINT, {"orm"}),
    ("alignment", JOINT, {"orm", "skam"}),
    ("org", OPEN, {"orm"}),
    ("spgrm", OPEN, {"spgrm", "pyramid"}),
    ("content", OPEN, {"orm", "spgrm", "pyramid"}),
    ("color", OPEN, {"orm", "spgrm", "pyramid"}),
    ("alignment", OPEN, {"orm", "skam"}),
    ("alignment", OPEN_TO_ALL, {"orm", "skam", "spgrm", "pyramid"}),
    ("alignment", {**DETACHED, "detach_features": False}, {"orm", "skam"}),
    ("org", BOTH, {"orm"}),
    ("spgrm", BOTH, {"orm", "spgrm", "pyramid"}),
    ("content", BOTH, {"orm", "spgrm", "pyramid"}),
    ("color", BOTH, {"orm", "spgrm", "pyramid"}),
    ("alignment", BOTH, {"orm", "skam"}),
    ("alignment", ALL_OF_BOTH, {"orm", "skam", "spgrm", "pyramid"}),
]


@pytest.mark.parametrize(("term", "switches", "trained"), ROUTING)
def test_each_loss_trains_its_parts_and_no_other(term, switches, trained):
    framework = make(**switches)
    framework.bank.network.requires_grad_(True)  # so that no_grad alone keeps the bank out
    output = framework(*make_data(), generator=generator())
    wanted = {part: set(names) if part in trained else set() for part, names in parts(framework).items()}
    if term == "alignment":  # nothing after the last tap is reached, unless through the teacher
        after = () if switches == ALL_OF_BOTH else ("GFF_1x1", "GFF_3x3", "conv_up", "conv3")
        wanted["orm"] = {n for n in wanted["orm"] if n.split(".")[0] not in after}
        wanted["spgrm"] = {n for n in wanted["spgrm"] if not n.startswith("tail.")}
    assert reached(framework, output.terms[term]) == wanted


def test_the_perceptual_term_trains_the_network_alone():
    bank = TinyBank()
    weights = LossWeights(1.0, 0.0, 0.0, 0.5)
    framework = make(knowledge_bank=bank, weights=weights, perceptual=PerceptualLoss(bank))
    bank.requires_grad_(True)
    output = framework(*make_data())
    pixels = (output.tonemapped - output.refined.detach()).abs().mean()
    found = reached(framework, output.terms["content"] - pixels)  # what is left is the feature term
    assert found["orm"] == set(parts(framework)["orm"])
    assert found["spgrm"] == found["pyramid"] == found["skam"] == set()


@pytest.mark.parametrize("loss", ["orm_loss", "spgrm_loss", "total"])
def test_backward_of_each_sum_fills_the_right_grads(loss):
    framework = make()
    getattr(framework(*make_data()), loss).backward()
    filled = {part for part, ps in parts(framework).items() if any(p.grad is not None for p in ps.values())}
    expected = {"orm_loss": {"orm", "skam"}, "spgrm_loss": {"spgrm", "pyramid"}}
    assert filled == expected.get(loss, {"orm", "skam", "spgrm", "pyramid"})


def test_one_backward_of_the_total_equals_two_separate_ones():
    framework = make()
    data = make_data()
    framework(*data, generator=generator()).total.backward()
    together = {n: p.grad.clone() for n, p in framework.named_parameters()}
    framework.zero_grad()
    output = framework(*data, generator=generator())
    output.orm_loss.backward(retain_graph=True)
    output.spgrm_loss.backward()
    for name, parameter in framework.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name])


# regions: the bank's, overlapping ones, the user's


class OverlappingBank(TinyBank):
    """Bright and not dark pixels; and a mask that is empty."""

    def forward(self, tonemapped: torch.Tensor):
        level = tonemapped.mean(dim=1)
        return priors_from_masks(
            self.extract_features(tonemapped), torch.stack([level > 0.6, level > 0.3, level > 2], 1)
        )


def test_overlapping_regions_count_as_masks():
    framework = make(knowledge_bank=OverlappingBank())
    output = framework(*make_data())
    assert output.priors.labels is None
    assert output.priors.valid[:, 2].any().item() is False
    masks = output.priors.masks
    assert (masks[:, 0] & masks[:, 1]).any()
    wanted = semantic_histogram_loss(output.tonemapped, output.refined.detach(), masks[:, :2])
    torch.testing.assert_close(output.terms["color"], wanted)
    assert reached(framework, output.terms["color"])["orm"] == set(parts(framework)["orm"])


@pytest.mark.parametrize(("bank", "given"), [(TinyBank, {"labels", "num_regions"}), (OverlappingBank, {"masks"})])
def test_the_color_loss_gets_the_cheap_label_map_where_there_is_one(bank, given):
    asked = []

    def color_loss(student, teacher, **regions):
        asked.append({name for name, value in regions.items() if value is not None})
        return semantic_histogram_loss(student, teacher, **regions)

    make(knowledge_bank=bank(), color_loss=color_loss)(*make_data())
    assert asked == [given | {"valid"}]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("bank", [TinyBank, OverlappingBank])
def test_regions_of_the_users_own_replace_the_banks(bank, dtype):
    framework, data = make(knowledge_bank=bank()), make_data()
    labels = torch.randint(0, 4, (2, 32, 24))
    labels[0, :9] = 200  # no region
    output = framework(*data, labels=labels.to(dtype), num_regions=6)
    known = torch.where(labels < 6, labels, -1)
    assert torch.equal(output.priors.labels, known)
    assert output.priors.valid.tolist() == [[True] * 4 + [False] * 2] * 2
    assert torch.equal(output.priors.masks[:, 3], labels == 3)
    literal = semantic_histogram_loss(
        output.tonemapped, output.refined.detach(), torch.stack([known == r for r in range(4)], dim=1)
    )
    torch.testing.assert_close(output.terms["color"], literal)
    own = framework(*data)
    assert not torch.isclose(own.terms["color"], output.terms["color"])
    assert torch.equal(own.refined, output.refined)  # features are the bank's all the same


def test_regions_of_the_users_own_have_the_tone_mapped_pictures_size():
    orm = make_orm(num_frames=5, in_channels=4, out_channels=4, peak=16.0, reference=0)
    framework, target = make(orm, domain="raw"), torch.rand(1, 4, 12, 10)
    data = (target[:, None].expand(1, 5, 4, 12, 10), target)
    labels = torch.zeros(1, 24, 20, dtype=torch.int64)
    assert framework(*data, labels=labels, num_regions=1).priors.valid.tolist() == [[True]]
    with pytest.raises(
        ValueError, match=r"labels must be \(B, H, W\) = \(1, 24, 20\) on cpu, .* got \(1, 12, 10\) on cpu"
    ):
        framework(*data, labels=labels[:, :12, :10], num_regions=1)


def test_rejects_bad_regions():
    framework, data = make(), make_data()
    labels = torch.zeros(2, 32, 24, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"num_regions is required with labels"):
        framework(*data, labels=labels)
    with pytest.raises(ValueError, match=r"labels is required with num_regions"):
        framework(*data, num_regions=3)
    with pytest.raises(TypeError, match=r"labels must be an integer tensor, got torch.float32"):
        framework(*data, labels=labels.float(), num_regions=3)
    with pytest.raises(ValueError, match=r"num_regions must be a whole number >= 1, got 0"):
        framework(*data, labels=labels, num_regions=0)
    for bad in (labels[:1], labels[:, :-1], labels.transpose(1, 2)):
        with pytest.raises(ValueError, match=r"labels must be \(B, H, W\) = \(2, 32, 24\) on cpu, as the tone-mapped"):
            framework(*data, labels=bad, num_regions=3)
    with pytest.raises(ValueError, match=r"on cpu, as the tone-mapped picture, got .* on meta"):
        framework(*data, labels=labels.to("meta"), num_regions=3)


def test_the_bank_can_describe_the_target():
    bank, data = TinyBank(), make_data()
    framework, plain = make(knowledge_bank=bank, priors_of="target"), make()
    plain.load_state_dict(framework.state_dict())
    plain.bank.network.load_state_dict(bank.state_dict())
    shown, features = [], []
    bank.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    framework.spgrm.register_forward_pre_hook(lambda _, args: features.append(args))
    output = framework(*data)
    truth = DomainTransfer()(data[1])
    assert len(shown) == 1
    assert torch.equal(shown[0], truth)
    assert not shown[0].requires_grad
    assert torch.equal(output.priors.labels, bank(truth).labels)
    picture, given = features[0]
    assert torch.equal(picture, output.tonemapped)  # the teacher still refines the student's picture
    assert all(a is b for a, b in zip(given, output.priors.features, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given, bank.extract_features(truth), strict=True))
    literal = semantic_histogram_loss(
        output.tonemapped, output.refined.detach(), labels=bank(truth).labels, num_regions=5, valid=output.priors.valid
    )
    torch.testing.assert_close(output.terms["color"], literal)
    other = plain(*data)
    assert plain.priors_of == "tonemapped"
    assert torch.equal(other.hdr, output.hdr)
    assert torch.equal(other.priors.labels, bank(other.tonemapped).labels)
    assert not torch.equal(other.priors.labels, output.priors.labels)
    # labels of the user's own go with either
    labels = torch.zeros(2, 32, 24, dtype=torch.int64)
    assert torch.equal(framework(*data, labels=labels, num_regions=1).priors.labels, labels)


# eqs. 13 and 14


@pytest.mark.parametrize("size", [(32, 24), (21, 19)])
def test_the_losses_are_eqs_13_and_14_composed_literally(size):
    bank = TinyBank()
    framework = make(
        knowledge_bank=bank,
        weights=LossWeights.paper(),
        perceptual=PerceptualLoss(bank),
        mask_ratio=0.3,
        teacher_stride=1,
    ).double()
    bracket, target = make_data(size=size, dtype=torch.float64)
    output = framework(bracket, target, generator=generator(7))

    def transfer(hdr: torch.Tensor) -> torch.Tensor:
        return torch.log(1 + 5000 * hdr) / math.log(5001)

    students, teachers = [], []
    hooks = [
        getattr(framework.orm, n).register_forward_hook(lambda *a: students.append(a[2]))
        for n in ("RDB1", "RDB2", "RDB3")
    ]
    hooks += [s.register_forward_hook(lambda *a: teachers.append(a[2].detach())) for s in framework.spgrm.stages]
    hdr = framework.orm(bracket)  # eq. 1
    h_s, t_gt = transfer(hdr), transfer(target)
    with torch.no_grad():
        priors = bank(h_s.detach())  # eq. 2
    refined = framework.spgrm(h_s.detach(), priors.features)  # eq. 3
    for hook in hooks:
        hook.remove()
    l_spg = (refined - t_gt).abs().mean()  # eq. 13
    constant = refined.detach()
    phi_s, phi_t = bank.extract_features(h_s), bank.extract_features(constant)
    perceptual = sum((s - t).abs().mean() for s, t in zip(phi_s, phi_t, strict=True)) / 4
    l_content = (h_s - constant).abs().mean() + 1e-2 * perceptual  # eq. 5
    pixels = size[0] * size[1]  # histograms are divided by the pixel count
    l_color = sum(
        eq10_color_loss(s, t, m[v], 256, (0.0, 1.0), 1 / 400) / pixels**2
        for s, t, m, v in zip(h_s, constant, priors.masks, priors.valid, strict=True)
    ) / len(h_s)
    masks, l_feat = generator(7), 0.0
    for skam, student, teacher in zip(framework.skams, students, teachers, strict=True):
        mask = (torch.rand(2, 8, *size, generator=masks) < 0.3).double()
        enhanced = eq11_enhanced_feature(
            student, teacher, mask, skam.student_encoder, skam.teacher_encoder, skam.decoder
        )
        l_feat = l_feat + eq12_alignment_loss(enhanced, teacher) / 3  # the mean over the three stages
    l_org = (h_s - t_gt).abs().mean()
    loss = l_org + 1e-3 * l_content + 100 * l_color + l_feat  # eq. 14

    terms = {"org": l_org, "content": l_content, "color": l_color, "alignment": l_feat, "spgrm": l_spg}
    assert list(output.terms) == list(terms)
    for name, term in terms.items():
        torch.testing.assert_close(output.terms[name], term, rtol=1e-7, atol=1e-12)
        assert term > 0
    torch.testing.assert_close(output.orm_loss, loss)
    torch.testing.assert_close(output.spgrm_loss, l_spg)
    torch.testing.assert_close(output.total, loss + l_spg)
    parameters = [*framework.parameters()]
    got = torch.autograd.grad(output.total, parameters)
    wanted = torch.autograd.grad(loss + l_spg, parameters)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_the_pictures_of_a_step_are_the_parts_outputs():
    framework = make()
    bracket, target = make_data()
    output = framework(bracket, target)
    assert torch.equal(output.hdr, framework.orm(bracket))
    assert torch.equal(output.tonemapped, DomainTransfer()(output.hdr))
    assert torch.equal(output.priors.labels, framework.bank(output.tonemapped).labels)
    assert torch.equal(output.refined, framework.spgrm(output.tonemapped, output.priors.features))


def test_gradients_reach_the_bracket_for_what_stands_before_the_network():
    bracket, target = make_data()
    bracket.requires_grad_()
    output = make()(bracket, target)
    for name in ("org", "content", "color", "alignment"):
        (gradient,) = torch.autograd.grad(output.terms[name], bracket, retain_graph=True)
        assert (gradient.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("name", ["content", "color", "alignment"])
def test_a_term_of_weight_zero_is_not_computed(name):
    class Forbidden(nn.Module):
        def forward(self, *args, **kwargs):
            raise AssertionError("computed")

    weights = {"content_weight": 1.0, "color_weight": 1.0, "alignment_weight": 1.0, "perceptual_weight": 1.0}
    weights[f"{name}_weight"] = 0.0
    perceptual = Forbidden() if name == "content" else lambda a, b: (a - b).abs().mean()
    color = Forbidden() if name == "color" else None
    framework = make(weights=LossWeights(**weights), perceptual=perceptual, color_loss=color)
    if name == "alignment":
        framework.skams = nn.ModuleList(Forbidden() for _ in range(3))
    output = framework(*make_data())
    assert set(output.terms) == {"org", "content", "color", "alignment", "spgrm"} - {name}
    framework.weights = LossWeights(1.0, 1.0, 1.0, 1.0)
    with pytest.raises(AssertionError, match="computed"):  # the trap works
        framework(*make_data())


def test_without_transfer_terms_the_network_trains_as_if_alone():
    framework = make(weights=NONE)
    bracket, target = make_data()
    output = framework(bracket, target)
    assert output.orm_loss is output.terms["org"]
    alone = (DomainTransfer()(framework.orm(bracket)) - DomainTransfer()(target)).abs().mean()
    got = torch.autograd.grad(output.total, [*framework.orm.parameters()])
    wanted = torch.autograd.grad(alone, [*framework.orm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_no_perceptual_network_is_needed_when_its_term_is_off():
    assert make(weights=LossWeights(0.0, 1.0, 1.0, 1e-2)).perceptual is None
    assert make(weights=LossWeights(1.0, 1.0, 1.0, 0.0)).perceptual is None


def test_weights_may_change_between_steps():
    framework, data = make(), make_data()
    first = framework(*data, generator=generator())
    framework.weights = LossWeights(0.5, 0.25, 4.0, 0.0)
    second = framework(*data, generator=generator())
    torch.testing.assert_close(second.orm_loss - first.orm_loss, 2 * first.terms["alignment"])
    framework.weights = LossWeights.paper()
    with pytest.raises(ValueError, match=r"perceptual_weight is 0\.01 but perceptual is None"):
        framework(*data)


def test_the_users_own_losses_are_used():
    framework = make(orm_loss=lambda a, b: (a - b).square().sum(), weights=NONE)
    output = framework(*(data := make_data()))
    torch.testing.assert_close(output.terms["org"], (output.hdr - data[1]).square().sum())


# any stranger's network


class ThreeInputs(nn.Module):
    """A small U-Net that takes its exposures one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(18, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.decoder = nn.ConvTranspose2d(20, 12, 2, stride=2)
        self.out = nn.Conv2d(24, 3, 1)

    def forward(self, short: torch.Tensor, middle: torch.Tensor, long: torch.Tensor) -> torch.Tensor:
        x = self.encoder(torch.cat([short, middle, long], dim=1)).relu()
        return self.out(torch.cat([self.decoder(self.middle(x).relu()), x], dim=1)).sigmoid()


class Tokens(nn.Module):
    """A transformer whose stages give (B, L, C) at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(18, 16, 4, stride=4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True) for _ in range(3))
        self.out = nn.ConvTranspose2d(16, 3, 4, stride=4)

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        x = self.embed(bracket.flatten(1, 2))
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.out(tokens.transpose(1, 2).reshape(x.shape)).sigmoid()


class Normed(nn.Module):
    """A network with batch norms, one of which its owner has put into eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Conv2d(c, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True)] for c in (18, 10, 10)]
        self.body = nn.Sequential(*(nn.Sequential(*block) for block in layers))
        self.out = nn.Conv2d(10, 3, 1)
        self.body[1][1].eval()

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(bracket.flatten(1, 2))).sigmoid()


def one_inputs(orm: nn.Module, bracket: torch.Tensor) -> torch.Tensor:
    return orm(*bracket.unbind(1))


STRANGERS = {
    "three inputs": (ThreeInputs, {"taps": ["encoder", "middle", "decoder"], "forward_orm": one_inputs}),
    "tokens": (Tokens, {"taps": ["layers.0", "layers.1", "layers.2"]}),
    "batch norm": (Normed, {"taps": ["body.0", "body.1", "body.2"]}),
    "called thrice": (make_orm, {"taps": ["conv1[0]", "conv1[1]", "conv1[2]"]}),
    "compiled": (lambda: torch.compile(make_orm(), backend="eager"), {}),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_any_network_trains_and_is_left_as_it_was(name):
    build, options = STRANGERS[name]
    orm = build()
    keys, bracket, target = list(orm.state_dict()), *make_data()

    framework = SemanticKnowledgeTransfer(orm, TinyBank(), weights=ALL, **options)
    optimizer = torch.optim.Adam(framework.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        framework(bracket, target).total.backward()
        optimizer.step()

    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in orm.parameters())
    assert list(orm.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in orm.modules())
    framework.eval()
    with torch.no_grad():
        alone = options.get("forward_orm", lambda net, x: net(x))(orm, bracket)
        assert torch.equal(framework(bracket, target).hdr, alone)
    fresh = build()
    fresh.load_state_dict(orm.state_dict())  # its own checkpoint format, as before


def test_each_stage_reaches_its_own_layer():
    framework = make(ThreeInputs(), taps=["encoder", "middle", "decoder"], forward_orm=one_inputs)
    assert [skam.student_encoder[0].in_channels for skam in framework.skams] == [12, 20, 12]
    found = reached(framework, framework(*make_data()).terms["alignment"])["orm"]
    assert found == {f"{n}.{k}" for n in ("encoder", "middle", "decoder") for k in ("weight", "bias")}


def test_probing_moves_no_statistics_no_modes_and_no_gradients():
    orm, calls = Normed(), []
    orm.register_forward_hook(lambda module, *_: calls.append((module.training, torch.is_grad_enabled())))
    before, modes = copy.deepcopy(orm.state_dict()), [m.training for m in orm.modules()]
    make(orm, taps=["body.0", "body.1", "body.2"])
    assert calls == [(False, False)]
    assert [m.training for m in orm.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in orm.state_dict().items())
    assert all(p.grad is None for p in orm.parameters())


def test_a_step_runs_the_network_and_moves_its_statistics_once():
    framework = make(Normed(), taps=["body.0", "body.1", "body.2"])
    framework(*make_data()).total.backward()
    assert framework.orm.body[0][1].num_batches_tracked == 1


class Teacher(nn.Module):
    """A teacher of the user's own, with a batch norm."""

    fusion_taps = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, tonemapped: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        return tonemapped + self.c(self.b(self.a(tonemapped)))


def test_a_teacher_of_the_users_own_and_its_statistics():
    teacher = Teacher()
    framework = make(spgrm=teacher)
    assert teacher.b.num_batches_tracked == 0
    assert teacher.training
    assert [skam.teacher_encoder[0].in_channels for skam in framework.skams] == [9, 9, 3]
    framework(*make_data()).total.backward()
    assert teacher.b.num_batches_tracked == 1


def test_the_teacher_is_built_of_the_networks_own_fusion_modules():
    framework = make(make_orm())
    assert framework.spgrm.features == 8
    assert [len(stage.fusion.dense_layers) for stage in framework.spgrm.stages] == [2, 2, 2]
    stranger = SemanticKnowledgeTransfer(Tokens(), TinyBank(), taps=["layers.0", "layers.1", "layers.2"], weights=ALL)
    assert stranger.spgrm.features == 64


@pytest.mark.parametrize(("latent", "widths"), [(None, [12, 20, 12]), (5, [5, 5, 5])])
def test_the_latent_width_is_the_stages_or_the_users(latent, widths):
    options = {"taps": ["encoder", "middle", "decoder"], "forward_orm": one_inputs, "latent_channels": latent}
    framework = make(ThreeInputs(), **options)
    assert [skam.decoder[0].in_channels for skam in framework.skams] == widths


# the bank


def test_the_bank_is_frozen_stays_in_eval_and_is_in_no_state_dict():
    bank = TinyBank().train()
    before = copy.deepcopy(bank.state_dict())
    framework = make(knowledge_bank=bank)
    optimizer = torch.optim.SGD(framework.parameters(), lr=0.1)
    for _ in range(2):
        framework.train()
        assert not any(module.training for module in bank.modules())
        framework(*make_data()).total.backward()
        optimizer.step()
    assert not any(p.requires_grad for p in bank.parameters())
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())
    held = {id(p) for p in framework.parameters()} | {id(b) for b in framework.buffers()}
    assert held.isdisjoint(id(t) for t in (*bank.parameters(), *bank.buffers()))
    assert {name.split(".")[0] for name in framework.state_dict()} == {"orm", "spgrm", "skams"}


def test_the_bank_sees_a_detached_picture_under_no_grad():
    bank = TinyBank()
    output = make(knowledge_bank=bank)(*make_data())
    assert bank.seen == [(False, False, False)]
    assert not any(f.requires_grad for f in output.priors.features)
    assert not any(f.is_inference() for f in output.priors.features)  # which could not enter the teacher's graph


@pytest.mark.parametrize("shared", [True, False])
def test_a_perceptual_network_is_frozen_too(shared):
    bank = TinyBank()
    extractor = bank if shared else TinyBank()
    weights = LossWeights(1.0, 0.0, 0.0, 1.0)
    framework = make(knowledge_bank=bank, weights=weights, perceptual=PerceptualLoss(extractor)).train()
    before = copy.deepcopy(extractor.state_dict())
    framework(*make_data()).total.backward()
    assert not extractor.norm.training
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in extractor.parameters())
    assert {name.split(".")[0] for name in framework.state_dict()} == {"orm", "spgrm", "skams"}


def test_the_bank_moves_with_the_framework():
    framework = make().double()
    assert framework.bank.network.convs[0].weight.dtype == torch.float64


def test_a_timm_bank_as_knowledge_and_as_perceptual_features():
    bank = TimmFeatureExtractor(weights="random", regions=GridRegions(2, 2))
    framework = make(knowledge_bank=bank, weights=LossWeights.paper(), perceptual=PerceptualLoss(bank))
    output = framework(*make_data())
    output.total.backward()
    assert all(term.isfinite() for term in output.terms.values())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in framework.parameters())
    assert {name.split(".")[0] for name in framework.state_dict()} == {"orm", "spgrm", "skams"}


# randomness, copies, files


def test_a_seeded_generator_makes_a_step_reproducible_and_spares_the_global_one():
    framework, data = make(), make_data()
    state = torch.get_rng_state()
    a, b, c = (framework(*data, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.terms[name], b.terms[name]) for name in a.terms)
    assert {name for name in a.terms if not torch.equal(a.terms[name], c.terms[name])} == {"alignment"}


def test_a_state_dict_resumes_a_framework_exactly():
    data, runs = make_data(), []
    first, second = make(), make()
    second.load_state_dict(first.state_dict())
    second.bank.network.load_state_dict(first.bank.network.state_dict())
    for framework in (first, second):
        output = framework(*data, generator=generator())
        runs.append([*output.terms.values(), *torch.autograd.grad(output.total, [*framework.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_state_of_other_taps_warns():
    buffer, other = io.BytesIO(), make(taps=["RDB1", "RDB2", "conv2"])
    torch.save(make().state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().load_state_dict(state)
        other.load_state_dict(dict(state))  # without metadata
    with pytest.warns(UserWarning, match=r"trained with taps=\['RDB1', .*\], the framework has taps=.*conv2"):
        other.load_state_dict(state)


@pytest.mark.parametrize("domain", ["srgb", "raw"])
def test_a_framework_can_be_made_on_the_meta_device(domain):
    options = {} if domain == "srgb" else {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0}
    with torch.device("meta"):
        framework = make(make_orm(**options), knowledge_bank=EmptyBank(), domain=domain)
    assert {p.device.type for p in framework.parameters()} == {"meta"}
    orm = make_orm(**options).to("meta")
    assert {p.device.type for p in make(orm, knowledge_bank=EmptyBank(), domain=domain).skams.parameters()} == {"cpu"}


def test_a_deepcopy_trains_on_its_own():
    framework, data = make(), make_data()
    twin = copy.deepcopy(framework)
    before = copy.deepcopy(framework.state_dict())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    framework_out, twin_out = (f(*data, generator=generator()) for f in (framework, twin))
    assert torch.equal(framework_out.total, twin_out.total)
    twin_out.total.backward()
    optimizer.step()
    assert all(p.grad is None for p in framework.parameters())
    assert all(torch.equal(value, before[name]) for name, value in framework.state_dict().items())
    assert twin.bank.network is not framework.bank.network
    assert not any(torch.equal(p, q) for p, q in zip(twin.orm.parameters(), framework.orm.parameters(), strict=True))
    assert twin(*data, generator=generator()).total != framework_out.total
    assert framework(*data, generator=generator()).total == framework_out.total


def test_a_framework_pickles():
    framework, data = make(), make_data()
    buffer = io.BytesIO()
    torch.save(framework, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(*data, generator=generator()).total, framework(*data, generator=generator()).total)


def test_nothing_of_a_step_outlives_it():
    framework, data = make(), make_data()
    gc.collect()
    gc.disable()  # reference counts alone must free it
    try:
        for _ in range(2):
            output = framework(*data)
            dead = [weakref.ref(t) for t in (output.hdr, output.refined, output.total, *output.terms.values())]
            output.total.backward()
            framework.zero_grad()
            del output
            assert [ref() for ref in dead] == [None] * len(dead)
    finally:
        gc.enable()


def test_distributed_data_parallel_on_one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        framework, data = make(), make_data()
        plain = copy.deepcopy(framework)
        wrapped = nn.parallel.DistributedDataParallel(framework)
        optimizers = [torch.optim.SGD(f.parameters(), lr=0.01) for f in (framework, plain)]
        for step in range(3):  # the second would fail if a parameter had no gradient in the first
            for module, optimizer in zip((wrapped, plain), optimizers, strict=True):
                optimizer.zero_grad()
                module(*data, generator=generator(step)).total.backward()
                optimizer.step()
        for ours, theirs in zip(framework.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert not any("bank" in name for name in wrapped.state_dict())
    finally:
        torch.distributed.destroy_process_group()


_TWO_PROCESSES = """
import datetime, sys, torch
from torch import nn
from skt_components import AHDRNet, LossWeights, SemanticKnowledgeTransfer, TimmFeatureExtractor

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
torch.manual_seed(0)  # the same random bank in both
framework = SemanticKnowledgeTransfer(
    AHDRNet(features=8, num_layers=2, growth=4),
    TimmFeatureExtractor("mobilenetv3_small_050", weights="random"),
    weights=LossWeights(0.5, 0.25, 2.0, 0.0),
)
wrapped = nn.parallel.DistributedDataParallel(framework)
optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
torch.manual_seed(1 + rank)  # different pictures
for _ in range(3):  # the second would fail if a parameter had no gradient in the first
    optimizer.zero_grad()
    wrapped(torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32)).total.backward()
    optimizer.step()
gathered = [None, None]
torch.distributed.all_gather_object(gathered, {n: p.detach() for n, p in framework.named_parameters()})
assert all(torch.equal(gathered[0][n], gathered[1][n]) for n in gathered[0])
assert not any("bank" in name for name in wrapped.state_dict())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel_on_two_processes_with_a_timm_bank(tmp_path):
    pytest.importorskip("timm")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_PROCESSES, str(rank), str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


def test_a_network_that_is_wrapped_itself(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        orm = nn.parallel.DistributedDataParallel(make_orm())
        framework = make(orm, taps=AHDRNet.fusion_taps)
        framework(*make_data()).total.backward()
        assert all(p.grad is not None for p in orm.parameters())
    finally:
        torch.distributed.destroy_process_group()


# precision


def test_bf16_autocast_trains_with_float32_losses():
    framework = make()
    data = make_data()
    exact = framework(*data, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        output = framework(*data, generator=generator())
    assert {t.dtype for t in (output.total, output.orm_loss, output.spgrm_loss, *output.terms.values())} == {
        torch.float32
    }
    assert {t.dtype for t in (output.hdr, output.tonemapped, output.refined)} == {torch.float32}
    output.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in framework.parameters())
    for name in ("org", "spgrm"):
        torch.testing.assert_close(output.terms[name], exact.terms[name], rtol=0.05, atol=0.01)


def test_float64_stays_float64():
    output = make().double()(*make_data(dtype=torch.float64))
    assert {t.dtype for t in (output.total, *output.terms.values())} == {torch.float64}


# compare_gradients


def test_gradients_are_those_of_the_weighted_terms():
    framework = make()
    output = framework(*make_data())
    found = framework.compare_gradients(output)
    assert list(found) == ["parameters", "picture", "stage 1", "stage 2", "stage 3"]
    assert all(list(terms) == ["org", "content", "color", "alignment"] for terms in found.values())
    weights = {"org": 1.0, "content": 0.5, "color": 0.25, "alignment": 2.0}
    gradients = {}
    for name, weight in weights.items():
        framework.zero_grad()
        output.terms[name].backward(retain_graph=True)
        gradients[name] = weight * torch.cat(
            [p.grad.flatten() for p in framework.orm.parameters() if p.grad is not None]
        )
        assert found["parameters"][name].norm == pytest.approx(gradients[name].norm().item(), rel=1e-5)
        assert found["parameters"][name].norm > 0
    org, content = (gradients[name].double() for name in ("org", "content"))
    cosine = (org @ content / (org.norm() * content.norm())).item()
    assert found["parameters"]["content"].cosine == pytest.approx(cosine, abs=1e-6)
    assert found["picture"]["alignment"].norm == 0  # it comes in below the picture
    assert found["stage 1"]["alignment"].norm > 0


def test_the_share_of_a_term_follows_the_ramp_and_not_the_scale():
    framework = make()
    output = framework(*make_data())
    whole, less = framework.compare_gradients(output), framework.compare_gradients(output, ramp=0.5, scale=1024.0)
    for place, terms in whole.items():
        for name, gradient in terms.items():
            factor = 1.0 if name == "org" else 0.5
            assert less[place][name].norm == pytest.approx(factor * gradient.norm, rel=1e-5)
            assert less[place][name].cosine == pytest.approx(gradient.cosine, abs=1e-6)
    assert framework.compare_gradients(output, ramp=0.0)["picture"]["content"] == (0, 0)


def test_by_default_nothing_but_the_features_stops_a_gradient():
    framework = SemanticKnowledgeTransfer(make_orm(), TinyBank())
    assert framework.joint
    assert not framework.detach_teacher
    assert framework.detach_features


def test_a_teacher_that_l_feat_trains_makes_its_features_small():
    """Why they are detached: the loss falls, but not because the student comes closer."""
    size = {}
    for detached in (True, False):
        weights = LossWeights(0.0, 0.0, 1.0, 0.0)
        framework = make(awake=False, joint=True, detach_teacher=False, detach_features=detached, weights=weights)
        data, optimizer = make_data(), torch.optim.Adam(framework.parameters(), lr=3e-3)
        for step in range(30):
            with FeatureTaps(framework.teacher_taps.layers).capture(framework.spgrm) as stages:
                output = framework(*data, generator=generator(step))
            optimizer.zero_grad()
            output.total.backward()
            optimizer.step()
        size[detached] = sum(float(stage.detach().var((0, 2, 3)).mean()) for stage in stages)
    assert size[False] < 0.7 * size[True]


def test_the_ramp_scales_all_that_a_joint_teacher_does_to_the_network():
    framework, data = make(joint=True, detach_teacher=False), make_data()
    parameters = list(framework.orm.parameters())

    def pull(ramp: float, *names: str) -> torch.Tensor:
        terms = framework(*data, generator=generator(), ramp=ramp).terms
        gradients = torch.autograd.grad(sum(terms[name] for name in names), parameters, allow_unused=True)
        return (
            torch.cat([g.flatten() for g in gradients if g is not None])
            if any(g is not None for g in gradients)
            else torch.zeros(1)
        )

    whole = pull(1.0, "spgrm")
    assert whole.any()
    torch.testing.assert_close(pull(0.25, "spgrm"), 0.25 * whole)
    assert not pull(0.0, "spgrm").any()
    pictures = [framework(*data, generator=generator(), ramp=ramp).refined for ramp in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(pictures[0], pictures[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(pictures[1], pictures[2], rtol=0, atol=1e-6)
    # With ramp 0 the network trains as if alone.
    output = framework(*data, generator=generator(), ramp=0.0)
    got = torch.autograd.grad(output.total, parameters, retain_graph=True)
    wanted = torch.autograd.grad(output.terms["org"], parameters)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_what_a_joint_teacher_does_to_the_network_is_compared_too():
    framework = make(joint=True, detach_teacher=False, detach_features=False)
    found = framework.compare_gradients(framework(*make_data()))
    assert list(found["picture"]) == ["org", "content", "color", "alignment", "spgrm"]
    assert found["picture"]["spgrm"].norm > 0
    assert found["picture"]["alignment"].norm > 0  # through the teacher's features
    detached = make(joint=True, detach_teacher=False)
    assert detached.compare_gradients(detached(*make_data()))["picture"]["alignment"].norm == 0


def test_comparing_gradients_leaves_none_and_backward_still_works():
    framework = make(weights=LossWeights(0.0, 1.0, 0.0, 0.0))
    output = framework(*make_data())
    assert set(framework.compare_gradients(output)["parameters"]) == {"org", "color"}
    assert all(p.grad is None for p in framework.parameters())
    output.total.backward()
    assert all(p.grad is not None for p in framework.orm.parameters())


# training


def test_thirty_steps_overfit_one_batch():
    framework = make(awake=False, weights=LossWeights.recommended())
    data, losses = make_data(), []
    optimizer = torch.optim.Adam(framework.parameters(), lr=3e-3)
    for step in range(30):
        optimizer.zero_grad()
        output = framework(*data, generator=generator(step))
        output.total.backward()
        optimizer.step()
        losses.append({name: term.item() for name, term in output.terms.items()})
    assert losses[-1]["org"] < 0.6 * losses[0]["org"]
    assert losses[-1]["spgrm"] < 0.6 * losses[0]["spgrm"]
    assert losses[-1]["alignment"] < losses[0]["alignment"]


def test_raw_brackets_of_five_frames_train_end_to_end():
    orm = make_orm(num_frames=5, in_channels=4, out_channels=4, peak=16.0, reference=0)
    framework = make(orm, domain="raw")
    assert framework.transfer.peak == framework.orm_loss.peak == 16.0
    target = torch.rand(2, 4, 12, 10) * 16
    bracket = torch.stack([(target * 4.0**-i).clamp(max=1) for i in range(5)], dim=1)
    optimizer, losses = torch.optim.Adam(framework.parameters(), lr=3e-3), []
    for step in range(12):
        optimizer.zero_grad()
        output = framework(bracket, target, generator=generator(step))
        output.total.backward()
        optimizer.step()
        losses.append(output.terms["org"].item())
    assert output.hdr.shape == (2, 4, 12, 10)
    assert output.tonemapped.shape == output.refined.shape == (2, 3, 24, 20)
    assert set(output.terms) == {"org", "content", "color", "alignment", "spgrm"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in framework.parameters())
    assert losses[-1] < losses[0]
    literal = (torch.log1p(5000 * output.hdr / 16) - torch.log1p(5000 * target / 16)).abs().mean() / math.log(5001)
    torch.testing.assert_close(output.terms["org"], literal)
    at_sites = mosaic((output.refined - DomainTransfer("raw")(target)), "RGGB")  # mu-law and mosaic commute
    torch.testing.assert_close(output.terms["spgrm"], at_sites.abs().mean())


def make_raw(**options) -> tuple[SemanticKnowledgeTransfer, torch.Tensor, torch.Tensor]:
    orm = make_orm(num_frames=5, in_channels=4, out_channels=4, peak=16.0, reference=0)
    target = torch.rand(2, 4, 12, 10) * 16
    return (
        make(orm, domain="raw", **options),
        torch.stack([target.clamp(max=16 / 4**i) for i in range(5)], dim=1),
        target,
    )


METADATA = {
    "white_balance": torch.tensor([[2.0, 1.0, 1.5], [1.2, 1.0, 2.4]]),
    "color_matrix": torch.tensor([[1.5, -0.4, -0.1], [-0.2, 1.4, -0.2], [0.0, -0.5, 1.5]]).expand(2, 3, 3),
}


@pytest.mark.parametrize("keys", [("white_balance", "color_matrix"), ("white_balance",), ("color_matrix",)])
def test_raw_is_rendered_with_its_metadata_everywhere_but_in_the_networks_own_loss(keys):
    framework, bracket, target = make_raw()
    metadata = {key: METADATA[key] for key in keys}
    output = framework(bracket, target, metadata=metadata, generator=generator())
    plain = framework(bracket, target, generator=generator())
    torch.testing.assert_close(output.tonemapped, DomainTransfer("raw")(output.hdr, **metadata))
    refined = DomainTransfer("raw").inverse(output.refined, **metadata)
    torch.testing.assert_close(output.terms["spgrm"], mu_l1_loss(refined, target, peak=16.0))
    assert output.terms["org"] == plain.terms["org"]
    for name in ("spgrm", "content", "color", "alignment"):
        assert output.terms[name] != plain.terms[name], name
    described = framework.bank(output.tonemapped.detach())
    assert all(torch.equal(a, b) for a, b in zip(output.priors.features, described.features, strict=True))
    output.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in framework.parameters())


@pytest.mark.parametrize("metadata", [None, METADATA])
def test_the_teacher_of_raw_can_be_judged_after_demosaicing_as_in_eq_13(metadata):
    framework, bracket, target = make_raw(teacher_domain="rgb")
    output = framework(bracket, target, metadata=metadata)
    truth = DomainTransfer("raw")(target, **(metadata or {}))
    torch.testing.assert_close(output.terms["spgrm"], (output.refined - truth).abs().mean())


@pytest.mark.parametrize("metadata", [None, METADATA])
def test_nobody_learns_from_what_lies_between_the_color_filters(metadata):
    """L_spg sees a third of the teacher's values; the others, untrained, must not be in the picture it shows."""
    framework, bracket, target = make_raw()
    output = framework(bracket, target, metadata=metadata)
    transfer, known = DomainTransfer("raw"), metadata or {}
    again = transfer(transfer.inverse(output.refined, **known), **known)
    torch.testing.assert_close(again, output.refined, atol=2e-3, rtol=1e-2)  # mu-law is steep at 0
    free, bracket, target = make_raw(teacher_domain="rgb")
    shown = free(bracket, target, metadata=metadata).refined
    assert (transfer(transfer.inverse(shown, **known), **known) - shown).abs().max() > 0.01


def test_l_spg_and_l_org_of_a_teacher_that_changes_nothing_are_one():
    framework, bracket, target = make_raw(awake=False, joint=True, detach_teacher=False)
    output = framework(bracket, target)
    torch.testing.assert_close(output.terms["spgrm"], output.terms["org"])
    pulls = [torch.autograd.grad(output.terms[name], output.hdr, retain_graph=True)[0] for name in ("spgrm", "org")]
    torch.testing.assert_close(*pulls)


def test_rejects_an_unknown_domain_of_the_teacher():
    with pytest.raises(ValueError, match=r"teacher_domain must be one of .*, got 'packed'"):
        make(teacher_domain="packed")


def test_empty_metadata_is_none():
    framework, bracket, target = make_raw()
    totals = [framework(bracket, target, metadata=m, generator=generator()).total for m in (None, {})]
    assert torch.equal(*totals)


def test_the_bank_can_describe_the_target_rendered_with_its_metadata():
    framework, bracket, target = make_raw()
    framework.priors_of = "target"
    output = framework(bracket, target, metadata=METADATA)
    described = framework.bank(DomainTransfer("raw")(target, **METADATA))
    torch.testing.assert_close(output.priors.features[0], described.features[0])


def test_rejects_metadata_that_does_not_fit():
    framework, bracket, target = make_raw()
    with pytest.raises(ValueError, match=r"metadata can hold white_balance and color_matrix, got iso, rgb2cam"):
        framework(bracket, target, metadata={"rgb2cam": torch.eye(3), "iso": torch.ones(1), **METADATA})
    with pytest.raises(ValueError, match=r"gains must have shape \(3,\) or \(2, 3\), got \(4, 3\)"):
        framework(bracket, target, metadata={"white_balance": torch.ones(4, 3)})
    with pytest.raises(ValueError, match=r'white_balance is metadata of RAW data: it must be None for domain="srgb"'):
        make()(*make_data(), metadata=METADATA)


def test_a_transfer_of_the_users_own_sets_the_scale_of_the_default_loss():
    framework = make(domain=DomainTransfer("srgb", mu=100.0, peak=4.0), weights=NONE)
    assert (framework.orm_loss.mu, framework.orm_loss.peak) == (100.0, 4.0)


def test_it_validates_without_gradient():
    framework = make().eval()
    with torch.no_grad():
        output = framework(*make_data(batch=1, size=(17, 13)))
    assert not output.total.requires_grad
    assert output.refined.shape == (1, 3, 17, 13)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"taps": ["RDB1", "RDB2"]},
            r"taps must name 3 different stages, one for each stage of the SPGRM, got \['RDB1', 'RDB2'\]",
        ),
        ({"taps": []}, r"layers must be a sequence of layer names, got \[\]"),
        ({"taps": ["RDB1", "RDB2", "RDB9"]}, r"^AHDRNet has no layer 'RDB9'; it has "),
        ({"weights": LossWeights.paper()}, r"weights.perceptual_weight is 0.01 but perceptual is None: pass"),
        ({"domain": "yuv"}, r"domain must be one of"),
        ({"priors_of": "hdr"}, r"priors_of must be one of \['target', 'tonemapped'\], got 'hdr'"),
        *(
            ({"teacher_stride": stride}, rf"teacher_stride must be a whole number >= 1, got {stride}")
            for stride in (0, -1, 2.5)
        ),
        ({"mask_ratio": 2.0}, r"mask_ratio must be in \[0, 1\], got 2.0"),
        ({"latent_channels": 0}, r"latent.channels must be .*>= 1, got"),
        ({"spgrm": nn.Conv2d(3, 3, 1)}, r"Conv2d has no attribute fusion_taps"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_rejects_a_bank_that_is_no_module():
    with pytest.raises(
        TypeError, match=r"knowledge_bank must be an nn.Module with channels and reduction, got function"
    ):
        make(knowledge_bank=lambda x: x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (8, 8, 8)}, r"knowledge_bank\.channels must have 4 numbers, coarse to fine, .*got \(8, 8, 8\)"),
        ({"reduction": 16}, r"knowledge_bank\.reduction must have 4 numbers, coarse to fine, .*got 16"),
        ({"channels": (8, 0, 8, 8)}, r"every number of knowledge_bank\.channels must be a whole number >= 1, got 0"),
        ({"reduction": (16, 8, 4, 0.5)}, r"every number of knowledge_bank\.reduction must be .* >= 1, got 0\.5"),
        ({"reduction": ()}, r"knowledge_bank\.channels and reduction must have the same length, got .* and \(\)"),
        ({"reduction": (2, 4, 8, 16)}, r"knowledge_bank\.reduction must fall .*, got \(2, 4, 8, 16\)"),
        ({"reduction": (16, 8, 8, 2)}, r"knowledge_bank\.reduction must fall .*, got \(16, 8, 8, 2\)"),
    ],
)
def test_rejects_a_bank_whose_maps_are_not_four_from_coarse_to_fine(change, message):
    bank = TinyBank()
    for name, value in change.items():
        setattr(bank, name, value)
    with pytest.raises(ValueError, match=message):
        make(knowledge_bank=bank)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda said: said.masks, TypeError, r"knowledge_bank must return SemanticPriors, .*got Tensor"),
        (lambda said: tuple(said), TypeError, r"knowledge_bank must return SemanticPriors, .*got tuple"),
        (
            lambda said: said._replace(features=said.features[:3]),
            ValueError,
            r"must return features .* channels \(7, 6, 5, 4\), got \[\(2, 7, 2, 2\), .*, \(2, 5, 8, 6\)\]",
        ),
        (
            lambda said: said._replace(features=said.features[::-1]),
            ValueError,
            r"its channels .*got \[\(2, 4, 16, 12\)",
        ),
        (lambda said: said._replace(features=[None] * 4), ValueError, r"its channels .*got \[\(\), \(\), \(\), \(\)\]"),
    ],
)
def test_rejects_what_a_bank_did_not_promise(answer, error, message):
    class Wrong(TinyBank):
        def forward(self, tonemapped: torch.Tensor):
            return answer(super().forward(tonemapped))

    framework, (bracket, target) = make(knowledge_bank=Wrong()), make_data()
    calls = (
        framework,
        lambda bracket, target: framework.reconstruct(bracket),
        lambda _, t: framework.region_distance(t, t),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call(bracket, target)


@pytest.mark.parametrize("name", ["orm_loss", "perceptual", "color_loss", "forward_orm"])
def test_rejects_what_cannot_be_called(name):
    with pytest.raises(TypeError, match=rf"{name} must be callable, got 'l1'"):
        make(**{name: "l1"})


def test_a_color_loss_without_regions_is_rejected():
    with pytest.raises(
        TypeError, match=r"color_loss must take regions, as SemanticHistogramLoss does, got HistogramLoss"
    ):
        make(color_loss=HistogramLoss())


@pytest.mark.parametrize("stride", [None, 1])
def test_an_empty_batch_is_rejected(stride):
    framework = make(teacher_stride=stride)
    with pytest.raises(ValueError, match=r"bracket must hold at least one sample .*, got shape \(0, 3, 6, 32, 24\)"):
        framework(torch.rand(0, 3, 6, 32, 24), torch.rand(0, 3, 32, 24))


@pytest.mark.parametrize("ramp", [-0.1, 1.5, math.nan])
def test_a_ramp_outside_its_range_is_rejected(ramp):
    framework, data = make(), make_data()
    with pytest.raises(ValueError, match=rf"ramp must be in \[0, 1\], got {ramp}"):
        framework(*data, ramp=ramp)
    with pytest.raises(ValueError, match=rf"ramp must be in \[0, 1\], got {ramp}"):
        framework.compare_gradients(framework(*data), ramp)


def test_a_layer_that_does_not_run_is_an_error():
    orm = make_orm()
    orm.idle = nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError, match="layer 'idle' ran 0 times"):
        make(orm, taps=["RDB1", "RDB2", "idle"])
    assert not any(m._forward_hooks for m in orm.modules())


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, AttributeError, KeyError])
def test_a_network_that_does_not_take_the_sample_says_what_to_pass(error):
    class Picky(AHDRNet):
        def forward(self, bracket):
            raise error("no such size")

    wanted = r"the network did not run on a bracket of shape \(1, 3, 6, 64, 64\): .*no such size.* Pass sample="
    with pytest.raises(ValueError, match=wanted) as caught:
        make(Picky(features=8))
    assert isinstance(caught.value.__cause__, error)
    with pytest.raises(ValueError, match=r"bracket of shape \(1, 5, 4, 64, 64\): bracket must be \(B, 3, 6, H, W\)"):
        make(domain="raw")


def test_the_sample_is_used_when_it_is_given():
    orm = make_orm(num_frames=2, in_channels=5)
    assert (
        make(orm, sample=torch.rand(4, 2, 5, 16, 16))(torch.rand(2, 2, 5, 9, 7), torch.rand(2, 3, 9, 7)).hdr.shape[0]
        == 2
    )


def test_a_network_that_returns_no_picture_is_an_error():
    class Pair(AHDRNet):
        def forward(self, bracket):
            return super().forward(bracket), None

    with pytest.raises(TypeError, match=r"the network must return a tensor \(B, C, H, W\), got tuple: .* forward_orm="):
        make(Pair(features=8))
    framework = make(Pair(features=8), forward_orm=lambda orm, bracket: orm(bracket)[0])
    assert framework(*make_data()).hdr.shape == (2, 3, 32, 24)


def test_rejects_bad_brackets_and_targets():
    framework = make()
    bracket, target = make_data()
    with pytest.raises(ValueError, match=r"bracket must have 5 axes \(B, N, C, H, W\), got shape \(2, 18, 32, 24\)"):
        framework(bracket.flatten(1, 2), target)
    with pytest.raises(ValueError, match=r"bracket must be \(B, 3, 6, H, W\), got \(2, 2, 6, 32, 24\)"):
        framework(bracket[:, :2], target)
    with pytest.raises(TypeError, match=r"bracket must be a floating-point tensor, got torch.uint8"):
        framework(bracket.byte(), target)
    with pytest.raises(ValueError, match=r"target must have 4 axes"):
        framework(bracket, target[0])
    with pytest.raises(TypeError, match=r"target must be a floating-point tensor"):
        framework(bracket, target.long())
    wanted = r"the network's output and target must have the same shape, got \(2, 3, 32, 24\) and "
    for bad in (target[:1], target[..., :-1], target[:, :1]):
        with pytest.raises(ValueError, match=wanted):
            framework(bracket, bad)
    assert not any(m._forward_hooks for m in framework.modules())


# from a stranger's hands


class ChannelsLast(nn.Module):
    """Stages as (B, H, W, C), as window transformers have them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(18, 12, 4, stride=4)
        self.stages = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, bracket):
        x = self.embed(bracket.flatten(1, 2)).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        full = self.head(x.permute(0, 3, 1, 2))
        return torch.sigmoid(nn.functional.interpolate(full, size=bracket.shape[-2:]))


def test_channels_last_stages_are_aligned_by_their_channels():
    taps = ["stages.0", "stages.1", "stages.2"]
    framework = make(ChannelsLast(), taps=taps, sample=torch.rand(1, 3, 6, 64, 64))
    assert [skam.student_encoder[0].in_channels for skam in framework.skams] == [12, 12, 12]
    output = framework(torch.rand(1, 3, 6, 32, 48), torch.rand(1, 3, 32, 48))
    output.terms["alignment"].backward()
    assert framework.orm.embed.weight.grad.abs().max() > 0


class SquareStages(nn.Module):
    """Stages as large as they have channels: a square picture does not tell their layout."""

    def __init__(self, channels_last, fixed=None):
        super().__init__()
        self.channels_last, self.fixed = channels_last, fixed
        self.embed = nn.Conv2d(18, 16, 4, stride=4)
        self.stages = nn.ModuleList(nn.Identity() for _ in range(3))
        self.mix = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, bracket):
        if self.fixed is not None and bracket.shape[-2] != self.fixed:
            raise ValueError("another size")
        x = self.embed(bracket.flatten(1, 2))
        for stage, mix in zip(self.stages, self.mix, strict=True):
            x = mix(x)
            x = stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.channels_last else stage(x)
        return torch.sigmoid(nn.functional.interpolate(self.head(x), size=bracket.shape[-2:]))


def test_the_layout_of_a_stage_is_known_where_its_shape_does_not_tell():
    taps, gradients = ["stages.0", "stages.1", "stages.2"], []
    bracket, target = torch.rand(2, 3, 6, 64, 64, generator=generator()), torch.rand(2, 3, 64, 64)
    for last in (False, True):
        torch.manual_seed(0)
        framework = make(SquareStages(last), taps=taps)
        assert [layout.axes for layout in framework.layouts] == ["BHWC" if last else "BCHW"] * 3
        terms = framework(bracket, target, generator=generator(1)).terms
        gradients.append(torch.autograd.grad(terms["alignment"], framework.orm.embed.weight)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)
    with pytest.warns(UserWarning, match=r"tap 'stages.0' gives \(1, 16, 16, 16\), .* a sample that is not square"):
        framework = make(SquareStages(True, fixed=64), taps=taps)
    assert [layout.axes for layout in framework.layouts] == ["BCHW"] * 3
    sample = torch.rand(1, 3, 6, 64, 96)
    framework = make(SquareStages(True, fixed=64), taps=taps, sample=sample)
    assert [layout.axes for layout in framework.layouts] == ["BHWC"] * 3


def test_a_bank_may_work_in_inference_mode():
    class Inferring(TinyBank):
        @torch.inference_mode()
        def forward(self, images):
            return super().forward(images)

    gradients = []
    for kind in (TinyBank, Inferring):
        torch.manual_seed(0)
        framework = make(knowledge_bank=kind(), joint=True, detach_teacher=False)
        framework(*make_data(), generator=generator()).total.backward()
        gradients.append([p.grad for p in framework.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    torch.testing.assert_close(*gradients)


def test_a_tap_that_gives_no_tensor_is_named():
    class Words(AHDRNet):
        def __init__(self):
            super().__init__(features=8)
            self.words = nn.Module()
            self.words.forward = lambda: {"a": 1}

        def forward(self, bracket):
            self.words()
            return super().forward(bracket)

    with pytest.raises(RuntimeError, match=r"^layer 'words' returns dict, not a tensor: choose another$"):
        make(Words(), taps=["words", "RDB1", "RDB2"])


def test_a_stage_without_gradient_warns():
    framework = make(make_orm())
    framework.orm.requires_grad_(False)
    framework.orm.conv3.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"tap 'RDB1' has no gradient"):
        framework(torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32))


def test_a_loss_with_weights_is_neither_trained_nor_saved():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)

        def forward(self, hdr, target):
            return (self.features(hdr) - self.features(target)).abs().mean()

    loss = Weighted()
    framework = make(make_orm(), orm_loss=loss)
    framework(torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32)).total.backward()
    assert not any("orm_loss" in key for key in framework.state_dict())
    assert loss.features.weight.grad is None
    assert framework.orm.conv1.weight.grad.abs().max() > 0


def test_a_frozen_network_has_no_gradients_to_compare():
    framework = make(make_orm().requires_grad_(False))
    output = framework(torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32))
    assert framework.compare_gradients(output) == {}


def test_a_wrapped_network_gets_its_own_kind_of_teacher():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, bracket):
            return self.module(bracket)

    orm = make_orm()
    framework = make(Wrapper(orm))
    assert framework.spgrm.features == orm.features


@pytest.mark.parametrize("domain", ["srgb", "raw"])
def test_it_trains_without_any_knowledge(domain):
    options = {} if domain == "srgb" else {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0}
    framework = make(make_orm(**options), knowledge_bank=EmptyBank(), domain=domain)
    bracket, target = make_data()
    if domain == "raw":
        bracket, target = torch.rand(2, 5, 4, 16, 16), torch.rand(2, 4, 16, 16)
    output = framework(bracket, target, generator=generator())
    assert set(output.terms) == {"org", "content", "color", "alignment", "spgrm"}
    assert all(term.isfinite() and term > 0 for term in output.terms.values())
    assert output.priors.features == []
    assert output.priors.masks.shape == (2, 1, *output.tonemapped.shape[-2:])
    output.total.backward()
    assert [name for name, p in framework.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert not any("pyramid" in name or "prior_fusion" in name for name in framework.state_dict())


def test_the_teachers_stages_are_half_as_large_as_the_bracket():
    assert make().spgrm.stride == 2
    raw = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": 16.0}
    for scale in (1, 4):
        orm = AHDRNet(features=8, num_layers=2, growth=4, scale=scale, **raw)
        assert make(orm, domain="raw").spgrm.stride == 4 * scale
    assert make(teacher_stride=1).spgrm.stride == 1


# other networks' stages, scales, precisions and inputs


class Plain(nn.Module):
    """Three convolutions and a head; ``scale`` multiplies the stages, ``width`` is theirs."""

    def __init__(self, width=12, frames=3, scale=1.0):
        super().__init__()
        self.a, self.b = nn.Conv2d(6 * frames, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.c, self.out, self.scale = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, 3, 1), scale
        if scale != 1:
            for layer in (self.a, self.b, self.c):
                layer.register_forward_hook(lambda _layer, _args, x: scale * x)

    def forward(self, bracket):
        x = self.a(bracket.flatten(1, 2)) / self.scale
        x = self.b(x) / self.scale
        return self.out(self.c(x) / self.scale).sigmoid()


class PrefixTokens(nn.Module):
    """Tokens of patches after class and register tokens."""

    def __init__(self, prefix=5):
        super().__init__()
        self.embed, self.prefix = nn.Conv2d(18, 16, 8, 8), nn.Parameter(torch.rand(1, prefix, 16))
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.ConvTranspose2d(16, 3, 8, 8)

    def forward(self, bracket):
        maps = self.embed(bracket.flatten(1, 2))
        tokens = torch.cat([self.prefix.expand(len(maps), -1, -1), maps.flatten(2).mT], 1)
        tokens = self.c(self.b(self.a(tokens)))
        return self.out(tokens[:, self.prefix.shape[1] :].mT.reshape(maps.shape))


class Siamese(Plain):
    """Frames in the batch, the frame or the sample first."""

    def __init__(self, frames_first):
        super().__init__(frames=1)
        self.out, self.frames_first = nn.Conv2d(36, 3, 1), frames_first

    def forward(self, bracket):
        bracket = bracket.transpose(0, 1) if self.frames_first else bracket
        maps = self.c(self.b(self.a(bracket.flatten(0, 1)))).unflatten(0, bracket.shape[:2])
        return self.out((maps.transpose(0, 1) if self.frames_first else maps).flatten(1, 2))


class Volumes(nn.Module):
    """3-D convolutions over (C, N, H, W)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv3d(i, 8, 3, 1, 1) for i in (6, 8, 8))
        self.out = nn.Conv2d(24, 3, 1)

    def forward(self, bracket):
        return self.out(self.c(self.b(self.a(bracket.transpose(1, 2)))).flatten(1, 2))


class Padded(nn.Module):
    """Tokens of a picture that is padded inside."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Conv2d(18, 16, 1), nn.Conv2d(16, 3, 1)
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, bracket):
        height, width = bracket.shape[-2:]
        maps = self.embed(F.pad(bracket.flatten(1, 2), (0, -width % 8, 0, -height % 8)))
        tokens = self.c(self.b(self.a(maps.flatten(2).mT)))
        return self.out(tokens.mT.reshape(maps.shape))[..., :height, :width]


@pytest.mark.parametrize(
    ("network", "channels", "size"),
    [
        (PrefixTokens(1), 16, (32, 48)),
        (PrefixTokens(5), 16, (32, 48)),
        (Siamese(False), 36, (32, 24)),
        (Siamese(True), 36, (32, 24)),
        (Volumes(), 24, (32, 24)),
        (Padded(), 16, (30, 44)),
    ],
)
def test_unusual_stages_are_aligned(network, channels, size):
    framework = make(network, taps=["a", "b", "c"], spgrm=Teacher())
    assert [skam.student_channels for skam in framework.skams] == [channels] * 3
    framework(*make_data(size=size)).terms["alignment"].backward()
    assert framework.orm.a.weight.grad.abs().max() > 0


def test_the_order_of_folded_frames_is_known():
    for first in (False, True):
        framework = make(Siamese(first), taps=["a", "b", "c"], spgrm=Teacher())
        assert [layout.frames_first for layout in framework.layouts] == [first] * 3


class Windows(Plain):
    """Windows of 8 x 8 in the batch."""

    def forward(self, bracket):
        windows = bracket.flatten(1, 2).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        x = self.out(self.c(self.b(self.a(windows.flatten(0, 2)))))
        return x.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)


class Queries(PrefixTokens):
    """Learned queries instead of the picture's tokens."""

    def forward(self, bracket):
        self.c(self.b(self.a(self.prefix.expand(len(bracket), -1, -1))))
        return super().forward(bracket)

    def __init__(self):
        super().__init__(37)


@pytest.mark.parametrize(("network", "taps"), [(Windows(), ["b", "a", "c"]), (Queries(), ["b[0]", "a", "c"])])
def test_a_stage_that_is_neither_a_map_nor_tokens_is_rejected_by_its_name(network, taps):
    with pytest.raises(ValueError, match=rf"^tap '{taps[0][0]}.*' gives \(.*\) for a bracket .* Choose another"):
        make(network, taps=taps, spgrm=Teacher())


@pytest.mark.parametrize("taps", [None, "auto"])
def test_a_network_without_fusion_taps_gets_three_that_are_printed(capsys, taps):
    framework = make(ThreeInputs(), taps=taps, forward_orm=one_inputs, spgrm=Teacher())
    assert framework.taps.layers == ("encoder", "middle", "decoder")
    assert capsys.readouterr().out == (
        "taps of ThreeInputs: encoder (1, 12, 64, 64), middle (1, 20, 32, 32), decoder (1, 12, 64, 64). "
        "Pass taps=[3 layer names] for others\n"
    )
    make()
    assert capsys.readouterr().out == ""


def test_stages_that_fold_the_frames_are_chosen_if_there_are_no_others():
    assert make(Siamese(True), spgrm=Teacher()).taps.layers == ("a", "b", "c")


def test_the_first_field_of_the_output_is_the_loss_of_everything():
    output = make()(*make_data())
    assert output[0] is output.total


def test_wide_stages_get_a_latent_of_64_and_published_networks_their_own_width():
    wide = make(Plain(96), taps=["a", "b", "c"], spgrm=Teacher())
    assert [skam.decoder[0].in_channels for skam in wide.skams] == [64] * 3
    assert [skam.decoder[0].in_channels for skam in make(make_orm(features=60)).skams] == [60] * 3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_the_alignment_never_outgrows_the_loss_of_the_network(scale):
    framework = make(Plain(scale=scale), taps=["a", "b", "c"], weights=LossWeights(0.0, 0.0, 1.0, 0.0))
    output = framework(*make_data(), generator=generator())
    assert 0 < output.terms["alignment"] <= output.terms["org"] * (1 + 1e-6)
    norms = framework.compare_gradients(output)["parameters"]
    assert norms["alignment"].norm < 10 * norms["org"].norm
    framework.limit_alignment = False
    free = framework(*make_data(), generator=generator()).terms["alignment"]
    assert (free > 100 * output.terms["org"]) == (scale > 1)


def test_the_alignment_of_published_networks_is_eq_12_as_it_stands():
    assert not make().limit_alignment
    assert make(limit_alignment=True).limit_alignment
    assert make(taps=["RDB1", "RDB2", "conv2"]).limit_alignment


@pytest.mark.parametrize("bank", [EmptyBank, TinyBank])
def test_weights_of_bfloat16_train_with_float32_losses(bank):
    bracket, target = (part.bfloat16() for part in make_data())
    whole = make(knowledge_bank=bank()).bfloat16()
    for framework in (whole, make(make_orm().bfloat16(), knowledge_bank=bank())):
        for given in ((bracket, target), (bracket.float(), target.float())):
            output = framework(*given)
            assert {term.dtype for term in (output.total, *output.terms.values())} == {torch.float32}
            output.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in framework.parameters())
        assert all(picture.dtype == torch.float32 for picture in framework.reconstruct(bracket))


class Timed(Plain):
    """A network that needs exposure times (B, N) and a map of noise (B, 1, H, W)."""

    def forward(self, bracket, times, noise):
        return super().forward(bracket * times[:, :, None, None, None] + noise[:, None])


@pytest.mark.parametrize("forward_orm", [None, lambda orm, bracket, times, noise: orm(bracket, times, noise)])
def test_further_inputs_of_the_network_are_passed_on(forward_orm):
    bracket, target = make_data()
    inputs = {"times": torch.rand(2, 3), "noise": torch.rand(2, 1, 32, 24)}
    options = {"taps": ["a", "b", "c"], "forward_orm": forward_orm, "spgrm": Teacher()}
    with pytest.raises(ValueError, match=r"the network did not run .* Pass sample=.* sample_inputs="):
        make(Timed(), **options)
    framework = make(Timed(), sample=bracket, sample_inputs=inputs, **options)
    output = framework(bracket, target, **inputs)
    assert torch.equal(output.hdr, framework.orm(bracket, **inputs))
    assert torch.equal(framework.reconstruct(bracket, **inputs)[0], output.hdr)


@pytest.mark.slow
def test_network_and_teacher_compiled_by_inductor_are_diagnosed_and_train():
    framework = make(Plain(8), taps=["a", "b", "c"], knowledge_bank=EmptyBank(), spgrm=SPGRM((), features=8))
    plain = copy.deepcopy(framework)
    framework.orm.compile(dynamic=False)  # inductor of torch 2.14 fails on any convolution of dynamic size
    framework.spgrm.compile(dynamic=False)
    for size in ((32, 24), (21, 19)):
        data, results = make_data(size=size), []
        for module in (framework, plain):
            output = module(*data, generator=generator())
            norms = module.compare_gradients(output)["parameters"]
            output.total.backward()
            results.append([output.total, torch.tensor([norm for norm, _ in norms.values()])])
            results[-1] += [p.grad for p in module.parameters()]
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)
