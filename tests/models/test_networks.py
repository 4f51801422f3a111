"""Tests of all networks: they train in the framework, keep their keys, run in any layout, precision and format."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

import skt_components as skt
from skt_components.models import AHDRNet, HDRTransformer, SCTNet, TMRNet, TMRNetPlus, export_onnx, export_program
from skt_components.models import export as export_module
from skt_components.ops import mosaic, pack_raw

WINDOWS = {"features": 12, "depths": (2, 2, 2), "num_heads": (2, 2, 2)}
FOUR = {**WINDOWS, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2), "features": 24}
DENSE = {"features": 8, "num_layers": 2, "growth": 4}
TRUNKS = {"features": 8, "num_blocks": (1, 1, 1, 1)}
RAW = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": 16.0}
SRGB = {"num_frames": 3, "in_channels": 6, "out_channels": 3, "reference": 1}
NETWORKS: dict[str, Callable[[], skt.models.ReconstructionNetwork]] = {
    "AHDRNet": lambda **o: AHDRNet(**DENSE, **o),
    "AHDRNet raw": lambda **o: AHDRNet(**DENSE, **RAW, **o),
    "HDRTransformer": lambda **o: HDRTransformer(**WINDOWS, **o),
    "HDRTransformer raw": lambda **o: HDRTransformer(**WINDOWS, **RAW, **o),
    "SCTNet": lambda **o: SCTNet(**FOUR, **o),
    "SCTNet raw": lambda **o: SCTNet(**{**FOUR, "features": 40}, **RAW, **o),
    "TMRNet srgb": lambda **o: TMRNet(**TRUNKS, **SRGB, **o),
    "TMRNet": lambda **o: TMRNet(**TRUNKS, **o),
    "TMRNetPlus": lambda **o: TMRNetPlus(**TRUNKS, **o),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def scenes(network: skt.models.ReconstructionNetwork, crop: int = 32, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Bracket and target of procedural scenes, as sRGB triples or as packed RAW that saturates frame by frame."""
    data = skt.SyntheticScenes(batch, crop, seed=0)
    sample = default_collate([data[i] for i in range(batch)])
    if network.in_channels == 6:
        return sample.bracket, sample.target
    target = pack_raw(mosaic(sample.target)) * 16
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn((batch, 5, *target.shape[1:]), generator=generator)
    limits = 4.0 ** (2 - torch.arange(5.0)).view(1, 5, 1, 1, 1)
    bracket = (target[:, None] + noise).clamp_min(0).minimum(limits)
    if isinstance(network, TMRNetPlus) or network.config.get("scale") == 4:
        bracket = torch.nn.functional.avg_pool3d(bracket, (1, 4, 4))
    return bracket, target


# in the framework


def make_framework(
    network: skt.models.ReconstructionNetwork, sample: Tensor, bank: torch.nn.Module
) -> skt.SemanticKnowledgeTransfer:
    domain = "raw" if network.in_channels == 4 else "srgb"
    domain = skt.DomainTransfer(domain, peak=16.0 if domain == "raw" else 1.0)
    return skt.SemanticKnowledgeTransfer(network, bank, domain=domain, sample=sample)


@pytest.fixture(scope="module")
def small_bank() -> skt.TimmFeatureExtractor:
    return skt.TimmFeatureExtractor("mobilenetv3_small_050", weights="random")


@every_network
def test_a_step_of_the_framework_reaches_it_and_keeps_its_own_keys(name, small_bank):
    network = NETWORKS[name]()
    bracket, target = scenes(network)
    keys = list(network.state_dict())
    framework = make_framework(network, bracket, small_bank)
    output = framework(bracket, target)
    assert {"org", "content", "color", "alignment", "spgrm"} == output.terms.keys()
    assert all(term.isfinite() for term in output.terms.values())
    parameters = list(network.parameters())
    aligned = torch.autograd.grad(output.terms["alignment"], parameters, retain_graph=True, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in aligned)
    output.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    assert all(p.grad.any() for p in network.get_submodule(network.last_layer).parameters())
    assert list(network.state_dict()) == keys


@pytest.mark.slow
@every_network
def test_it_trains_in_the_framework(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    bracket, target = scenes(network, crop=48)
    framework = make_framework(network, bracket, skt.TimmFeatureExtractor())
    optimizer = torch.optim.Adam(framework.parameters(), lr=2e-3)
    losses = []
    for _ in range(16):
        output = framework(bracket, target)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.terms["org"].item())
    assert losses[-1] < 0.9 * losses[0], losses


@every_network
def test_the_fusion_module_has_the_networks_width_and_takes_any_size(name):
    network = NETWORKS[name]()
    fusion = network.make_fusion_module()
    assert fusion(torch.rand(2, network.features, 11, 19)).shape == (2, network.features, 11, 19)
    assert len(network.fusion_taps) == 3


# layouts, precision


@every_network
def test_channels_last_and_strided_brackets_give_the_same(name):
    network = NETWORKS[name]().eval()
    bracket, _ = scenes(network)
    with torch.no_grad():
        wanted = network(bracket)
        fast = copy.deepcopy(network).to(memory_format=torch.channels_last)
        strided = bracket.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        for found in (fast(bracket), network(strided)):
            torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", ["AHDRNet", "AHDRNet raw", "HDRTransformer", "SCTNet raw", "TMRNet", "TMRNetPlus"])
def test_half_precision_stays_within_one_hundredth_and_bfloat16_trains(name):
    torch.manual_seed(0)
    two = {"num_frames": 2} if name.startswith("TMRNet") else {}  # a CPU computes half precision slowly
    network = NETWORKS[name](**two).eval()
    bracket = scenes(network, crop=16)[0][:, : network.num_frames]
    wanted = network(bracket)
    assert network.half_precision[0] == "bfloat16"
    for kind in reversed(network.half_precision):
        with torch.autocast("cpu", getattr(torch, kind)), torch.set_grad_enabled(kind == "bfloat16"):
            found = network(bracket)
        assert (found.float() - wanted).norm() <= 1e-2 * wanted.norm(), kind
    found.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# what takes part


@pytest.mark.parametrize("kind", [AHDRNet, HDRTransformer, SCTNet, TMRNet, TMRNetPlus])
def test_tiles_are_exact_where_the_network_says_so(small, kind):
    network = small(kind).eval()
    bracket = torch.rand(1, network.num_frames, network.in_channels, 64, 128) * network.peak
    bracket[..., :64] *= 0.1  # tiles have other means than the whole picture
    for name, parameter in network.named_parameters():
        if ".fc." in name:  # of the means of the picture, which random weights hardly use
            parameter.data *= 30
    with torch.no_grad():
        whole = network(bracket)
    multiple = network.size_multiple
    tiled = skt.tiled_inference(network, bracket, tile=96, overlap=64, size_multiple=multiple, progress=False)
    difference = (tiled - whole).abs().max() / whole.abs().max()
    assert (difference < 1e-5) == network.exact_tiles, difference


@pytest.mark.parametrize("kind", [AHDRNet, HDRTransformer, SCTNet, TMRNet])
def test_batch_mates_do_not_see_each_other(small, kind):
    model = small(kind)
    bracket = torch.rand(3, model.num_frames, model.in_channels, 11, 9)
    together = model(bracket)
    torch.testing.assert_close(together, torch.cat([model(one[None]) for one in bracket]), atol=1e-5, rtol=1e-4)
    bracket[1] = float("nan")
    broken = model(bracket)
    assert broken[1].isnan().all()
    torch.testing.assert_close(broken[[0, 2]], together[[0, 2]], atol=1e-5, rtol=1e-4)


BRACKETS = [
    *((AHDRNet, frames, reference) for frames, reference in [(3, None), (5, 0), (5, 4), (4, 1)]),
    *((HDRTransformer, frames, reference) for frames, reference in [(3, None), (3, 0), (5, 0), (4, 1), (1, 0)]),
    *((SCTNet, frames, reference) for frames, reference in [(3, None), (3, 0), (4, 1), (2, 0)]),
    *((TMRNet, frames, 0) for frames in [1, 3, 5]),
]


@pytest.mark.parametrize(("kind", "frames", "reference"), BRACKETS)
def test_every_parameter_and_every_frame_takes_part(small, kind, frames, reference):
    model = small(kind, num_frames=frames, reference=reference, **({"channel_heads": 1} if kind is SCTNet else {}))
    bracket = torch.rand(2, frames, model.in_channels, 9, 8, requires_grad=True)
    model(bracket).square().sum().backward()
    idle = ("spynet", "dcn_alignment") if kind is TMRNet and frames == 1 else ()
    for name, parameter in model.named_parameters():
        assert name.startswith(idle) or parameter.grad.abs().max() > 0, name
    assert (bracket.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


# compiles


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AHDRNet, {}),
        *(
            pytest.param(kind, options, marks=pytest.mark.slow)  # their parts compile in the tests of the parts
            for kind, options in (
                (HDRTransformer, {"depths": (2,), "num_heads": (2,)}),
                (SCTNet, {"depths": (2,), "num_heads": (2,)}),
                (TMRNet, {"num_frames": 2, "num_blocks": (1, 1, 1, 1)}),
                (TMRNet, {"num_frames": 2, "num_blocks": (1, 1, 1, 1), "in_channels": 6, "out_channels": 3}),
            )
        ),
    ],
)
def test_compiles(small, kind, options):
    model = small(kind, **options)
    bracket = torch.rand(1, model.num_frames, model.in_channels, 9, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(bracket), model(bracket), atol=1e-5, rtol=1e-4)
    got, wanted = (torch.autograd.grad(f(bracket).sum(), [*model.parameters()]) for f in (compiled, model))
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max().clamp_min(1.0)


# tiles


@pytest.mark.parametrize(
    ("name", "overlap", "tolerance"),
    [("AHDRNet", 24, 1e-5), ("HDRTransformer", 40, 1e-3), ("SCTNet", 40, 5e-2), ("TMRNet srgb", 40, 5e-2)],
)
def test_a_tile_with_overlap_equals_the_whole_picture_inside(name, overlap, tolerance):
    # HDRTransformer's channel attention averages over the whole picture, SCTNet's attends over it, and the flow of
    # TMRNet is found on all of it: a tile is close, not equal.
    network = NETWORKS[name]().eval()
    bracket, _ = scenes(network, crop=128)
    inside = slice(overlap, -overlap)
    with torch.no_grad():
        whole = network(bracket)[..., 8:120, 16:128]
        tile = network(bracket[..., 8:120, 16:128])
    a, b = tile[..., inside, inside], whole[..., inside, inside]
    assert (a - b).abs().max() <= tolerance * whole.abs().max()


# export


@pytest.mark.slow  # AHDRNet's export is in test_export.py; TMRNetPlus has every layer of TMRNet
@pytest.mark.parametrize(
    ("kind", "options", "multiple", "sizes"),
    [
        (HDRTransformer, {"depths": (2,), "num_heads": (2,)}, 8, ((1, 16, 40), (3, 24, 16))),
        (SCTNet, {"depths": (2,), "num_heads": (2,)}, 8, ((1, 16, 40), (3, 24, 16))),
        (TMRNetPlus, {"num_frames": 2, "num_blocks": (1, 1, 1, 1)}, 32, ((1, 64, 64), (2, 96, 160))),
    ],
)
def test_it_exports_for_any_size_and_to_onnx(small, kind, options, multiple, sizes, tmp_path, monkeypatch):
    network = small(kind, **options).eval()
    assert network.size_multiple == multiple
    program = export_program(network)
    for batch, height, width in sizes:
        bracket = torch.rand(batch, network.num_frames, network.in_channels, height, width)
        torch.testing.assert_close(program.module()(bracket), network(bracket), atol=1e-5, rtol=1e-4)
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export_module, "_trace", lambda *_: (program, multiple))  # not traced a second time
    assert export_onnx(network, tmp_path / "net.onnx") <= 1e-4


# files


@every_network
def test_files_give_it_back(name, tmp_path):
    network = NETWORKS[name]()
    skt.save_weights(tmp_path / "net.safetensors", network)
    twin = skt.load_model(tmp_path / "net.safetensors")
    bracket, _ = scenes(network)
    with torch.no_grad():
        assert torch.equal(twin(bracket), network.eval()(bracket))
    again = type(network).from_official(network.to_official(), **network.config)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    )


# rejects_bad_input


@pytest.mark.parametrize("name", ["AHDRNet", "HDRTransformer", "SCTNet", "TMRNet srgb", "TMRNet"])
@pytest.mark.parametrize("shape", [(1, 2, 6, 8, 8), (1, 3, 4, 8, 8), (3, 6, 8, 8), (1, 18, 8, 8), (1, 5, 6, 8, 8)])
def test_rejects_other_brackets_than_announced(name, shape):
    network = NETWORKS[name]()
    wanted = f"(B, {network.num_frames}, {network.in_channels}, H, W)"
    with pytest.raises(ValueError, match=re.escape(f"bracket must be {wanted}, got {shape}")):
        network(torch.rand(shape))


@pytest.mark.parametrize("name", ["AHDRNet", "HDRTransformer", "SCTNet", "TMRNet srgb"])
@pytest.mark.parametrize(
    ("bracket", "found"),
    [
        (torch.zeros(1, 3, 6, 8, 8, dtype=torch.uint8), r"a floating-point tensor, got torch\.uint8"),
        (torch.zeros(1, 3, 6, 8, 8).numpy(), r"a torch\.Tensor \(B, N, C, H, W\), got ndarray"),
    ],
)
def test_rejects_brackets_that_are_no_floating_tensors(name, bracket, found):
    with pytest.raises(TypeError, match=f"^bracket must be {found}"):
        NETWORKS[name]()(bracket)
