"""Numbers of all public functions: half precision, float64, zero sizes, and the meta device."""

from __future__ import annotations

import inspect
import warnings
from itertools import product

import pytest
import torch
from torch import Tensor

import skt_components as skt
from skt_components import losses, metrics, ops
from skt_components.framework.diagnosis import region_distance

# half precision: the result of the same numbers in float64, rounded


def light(*shape: int) -> Tensor:
    """Linear light up to 20, above what a mu-law in float16 can represent, and exact in it."""
    return (20 * torch.rand(*shape, generator=torch.Generator().manual_seed(0))).half()


PICTURE = light(2, 3, 12, 17)
BRACKET = torch.cat([light(1, 3, 3, 12, 12) / 20, light(1, 3, 3, 12, 12).sqrt() / 5], dim=2)
KEPT = {  # the dtype of the input is kept
    "mu_law": lambda to: ops.mu_law(to(PICTURE)),
    "mu_law_inverse": lambda to: ops.mu_law_inverse(to(PICTURE / 16)),
    "srgb_encode": lambda to: ops.srgb_encode(to(PICTURE)),
    "srgb_decode": lambda to: ops.srgb_decode(to(PICTURE / 4)),
    "linearize_ldr": lambda to: ops.linearize_ldr(to(PICTURE / 20), to(torch.tensor([1.0, 0.25]).half())),
    "tone_map": lambda to: ops.tone_map(to(PICTURE)),
    "merge_exposures": lambda to: ops.merge_exposures(to(BRACKET), torch.tensor([1.0, 4.0, 16.0])),
    "demosaic": lambda to: ops.demosaic(to(PICTURE[:, :1] * 800), method="bilinear"),  # 4 neighbors are above 65504
    "demosaic malvar": lambda to: ops.demosaic(to(PICTURE[:, :1] * 400), method="malvar"),
    "color_matrix": lambda to: ops.apply_color_matrix(to(PICTURE * 1600), to(torch.tensor([[2.0, -1, 0]] * 3).half())),
    "pu21_encode": lambda to: metrics.pu21_encode(to(PICTURE * 400), variant="peaks_glare"),
    "pu21_decode": lambda to: metrics.pu21_decode(to(PICTURE * 20)),
    "display_luminance": lambda to: metrics.display_luminance(to(PICTURE / 20)),
    "attention": lambda to: ops.transposed_attention(*(to(light(1, 4, 64, 64) * k) for k in (900, 901, 1))),
    "attention without norms": lambda to: ops.transposed_attention(
        *(to(light(1, 4, 64, 64) * k - 4) for k in (1.0, 0.5, 1.0)), temperature=1e4, normalize=False
    ),
}
WIDE = {  # losses and T are in float32
    "mu_l1_loss": lambda to: losses.mu_l1_loss(to(PICTURE), to(PICTURE.flip(-1))),
    "mu_rms_loss": lambda to: losses.mu_rms_loss(to(PICTURE), to(PICTURE.flip(-1))),
    "content_loss": lambda to: losses.content_loss(to(PICTURE * 3000), to(-PICTURE * 3000)),
    "perceptual_loss": lambda to: losses.perceptual_loss(to(PICTURE * 3000), to(-PICTURE * 3000), lambda x: [x]),
    "DomainTransfer": lambda to: skt.DomainTransfer()(to(PICTURE)),
    "DomainTransfer raw": lambda to: skt.DomainTransfer("raw")(to(light(1, 4, 8, 8)), white_balance=(2.1, 1.0, 1.6)),
    "inverse": lambda to: skt.DomainTransfer().inverse(to(PICTURE / 16)),
    "SKAM": lambda to: (
        skt.SKAM(3, 3, 4)
        .to(to(PICTURE))
        .requires_grad_(False)(to(PICTURE), to(PICTURE), mask=torch.ones(2, 4, 12, 17))
        .loss
    ),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [*KEPT, *WIDE])
@pytest.mark.filterwarnings("ignore:encoded must be:UserWarning")
def test_half_precision_loses_digits_only(name, autocast):
    function = (KEPT | WIDE)[name]
    torch.manual_seed(0)
    wanted = function(torch.Tensor.double)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = function(lambda x: x.half())
    if not (autocast and name.startswith("attention")):
        assert found.dtype == (torch.float16 if name in KEPT else torch.float32)
    assert wanted.isfinite().all()
    assert wanted.abs().max() > 0
    assert (found.double() - wanted).norm() <= 5e-3 * wanted.norm()


# float64: exact to its own rounding, also with options given as Python numbers


def test_float64_stays_float64():
    raw, gains = torch.rand(1, 4, 4, 4, dtype=torch.float64), (2.1, 1.0, 1.6)
    transfer, matrix = skt.DomainTransfer("raw"), torch.tensor([[1.9, -0.7, -0.2], [-0.2, 1.6, -0.4], [0, -0.5, 1.5]])
    for metadata in ({"white_balance": gains}, {"white_balance": gains, "color_matrix": matrix}):
        back = transfer.inverse(transfer(raw, **metadata), **metadata)
        assert (back - raw).abs().max() < 2e-15
    balanced = ops.white_balance(raw, gains)
    assert torch.equal(balanced[:, 0], raw[:, 0] * 2.1)
    picture = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    assert (ops.mu_law_inverse(ops.mu_law(picture)) - picture).abs().max() < 1e-15
    assert (metrics.pu21_decode(metrics.pu21_encode(100 * picture)) - 100 * picture.clamp_min(5e-5)).abs().max() < 1e-9


# zero sizes and the meta device: a result there, or an error that names the argument


def picture(channels: int, size: tuple[int, int, int], device: str, scale: int = 1) -> Tensor:
    return torch.full((size[0], channels, scale * size[1], scale * size[2]), 2.0, device=device)


def bracket(size: tuple[int, int, int], device: str) -> Tensor:
    return picture(6, size, device)[:, None].expand(-1, 3, -1, -1, -1) / 4


def zeros(size: tuple[int, ...], device: str) -> Tensor:
    return torch.zeros(size, dtype=torch.long, device=device)


def pair(function, **options):
    """A function of two RGB pictures, large enough for windows of 11 pixels."""
    return lambda s, d: function(picture(3, s, d, 2), picture(3, s, d, 2), **options)


TIMES = torch.tensor([1.0, 4.0, 16.0])
FUNCTIONS = {
    "apply_color_matrix": lambda s, d: ops.apply_color_matrix(picture(3, s, d), torch.eye(3, device=d)),
    "complementary_masks": lambda s, d: ops.complementary_masks((s[0], 3, *s[1:]), device=d)[0],
    "content_loss": pair(losses.content_loss),
    "color_video_vdp": None,  # a package that is not installed everywhere
    "demosaic": lambda s, d: ops.demosaic(picture(1, s, d)),
    "display_luminance": lambda s, d: metrics.display_luminance(picture(3, s, d) / 2),
    "hdr_vdp2": pair(lambda *pictures: metrics.hdr_vdp2(*pictures, color_encoding="XYZ", pixels_per_degree=30.0).Q),
    "hdr_vdp_pix_per_deg": None,  # of numbers
    "histogram_loss": pair(losses.histogram_loss, value_range=(0.0, 4.0)),
    "linearize_ldr": lambda s, d: ops.linearize_ldr(bracket(s, d), torch.ones(s[0], 3, device=d)),
    "lpips": None,  # of 32 pixels and more; it would load a network
    "make_bracket": lambda s, d: skt.make_bracket(picture(3, s, d), torch.ones(s[0], device=d)),
    "merge_exposures": lambda s, d: ops.merge_exposures(bracket(s, d), TIMES.to(d)),
    "mix_features": lambda s, d: ops.mix_features(*[picture(3, s, d)] * 3),
    "mosaic": lambda s, d: ops.mosaic(picture(3, s, d)),
    "mu_l1_loss": pair(losses.mu_l1_loss),
    "mu_law": lambda s, d: ops.mu_law(picture(3, s, d)),
    "mu_law_inverse": lambda s, d: ops.mu_law_inverse(picture(3, s, d)),
    "mu_rms_loss": pair(losses.mu_rms_loss),
    "pack_raw": lambda s, d: ops.pack_raw(picture(1, s, d)),
    "perceptual_loss": pair(lambda *pictures: losses.perceptual_loss(*pictures, lambda x: [x])),
    "priors_from_labels": lambda s, d: skt.priors_from_labels([], zeros(s, d), 2).masks,
    "priors_from_masks": lambda s, d: skt.priors_from_masks([], zeros((s[0], 2, *s[1:]), d).bool()).masks,
    "psnr": pair(metrics.psnr, peak=1.0),
    "psnr_l": pair(metrics.psnr_l),
    "psnr_mu": pair(metrics.psnr_mu, bits=8),
    "psnr_pu21": pair(metrics.psnr_pu21),
    "pu21_decode": lambda s, d: metrics.pu21_decode(picture(3, s, d)),
    "pu21_encode": lambda s, d: metrics.pu21_encode(picture(3, s, d)),
    "reference_exposure": lambda s, d: ops.reference_exposure(bracket(s, d), scale=2),
    "render_raw": lambda s, d: ops.render_raw(picture(4, s, d), white_balance=(2.0, 1.0, 1.6)),
    "semantic_histogram_loss": lambda s, d: losses.semantic_histogram_loss(
        *[picture(3, s, d) / 4] * 2, zeros((s[0], 2, *s[1:]), d).bool(), normalization="area"
    ),
    "soft_histogram": lambda s, d: skt.soft_histogram(picture(3, s, d) / 4, labels=zeros(s, d), num_regions=2),
    "srgb_decode": lambda s, d: ops.srgb_decode(picture(3, s, d)),
    "srgb_encode": lambda s, d: ops.srgb_encode(picture(3, s, d)),
    "ssim": pair(metrics.ssim, peak=1.0, border="replicate"),
    "ssim_l": pair(metrics.ssim_l),
    "ssim_mu": pair(metrics.ssim_mu, border="volume"),
    "ssim_pu21": pair(metrics.ssim_pu21),
    "tiled_inference": lambda s, d: skt.tiled_inference(lambda x: x[:, 0, :3], bracket(s, d), tile=8, overlap=2),
    "tone_map": lambda s, d: ops.tone_map(picture(3, s, d)),
    "transposed_attention": lambda s, d: ops.transposed_attention(*[picture(4, s, d)] * 3),
    "unpack_raw": lambda s, d: ops.unpack_raw(picture(4, s, d)),
    "white_balance": lambda s, d: ops.white_balance(picture(3, s, d), (2.0, 1.0, 1.6)),
}
NO_TENSORS = {  # functions of files, networks and scenes
    *("export_onnx", "export_program", "fit_last_layer", "load_model", "load_pretrained", "load_weights"),
    *("read_image", "save_weights", "simulate_bracket", "simulate_raw_bracket", "suggest_taps", "use_huge_pages"),
    "write_image",
}
OBJECTS = {
    "ColorPositionKMeans": lambda s, d: skt.ColorPositionKMeans(2)(picture(3, s, d)),
    "DilatedResidualDenseBlock": lambda s, d: skt.DilatedResidualDenseBlock(4, 1, 4).to(d)(picture(4, s, d)),
    "DomainTransfer": lambda s, d: skt.DomainTransfer()(picture(3, s, d)),
    "DomainTransfer.inverse": lambda s, d: skt.DomainTransfer("raw").inverse(picture(3, s, d), white_balance=(2, 1, 2)),
    "FeaturePyramid": lambda s, d: skt.FeaturePyramid([3], 4).to(d)([picture(3, s, d)])[0],
    "PriorFusionBlock": lambda s, d: skt.PriorFusionBlock(4, 3).to(d)(picture(4, s, d), picture(3, s, d)),
    "SKAM": lambda s, d: skt.SKAM(3, 3, 4).to(d)(picture(3, s, d), picture(3, s, d)).loss,
    "SPGRM": lambda s, d: skt.SPGRM(prior_channels=(), features=8).to(d)(picture(3, s, d), []),
    "AHDRNet": lambda s, d: skt.AHDRNet(features=8, num_layers=1, growth=4).to(d)(bracket(s, d)),
    "region_distance": lambda s, d: region_distance(
        *[picture(3, s, d)] * 2, skt.priors_from_labels([], zeros(s, d), 2)
    ),
}
CASES = {name: case for name, case in FUNCTIONS.items() if case is not None} | OBJECTS


def test_every_public_function_of_tensors_is_tried():
    public = {
        name
        for module in (skt, ops, losses, metrics)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert public - NO_TENSORS == set(FUNCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_zero_sizes_and_meta_tensors_give_a_result_or_a_clear_error(name):
    for device, size in product(("cpu", "meta"), ((0, 8, 8), (1, 0, 8), (1, 8, 0), (0, 0, 0), (1, 8, 8))):
        refused = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = CASES[name](size, device)
            except ValueError as error:
                refused = str(error)
        if refused is None:
            assert found.device.type == device
            assert device == "meta" or not found.isnan().any()
        else:
            assert 0 in size, refused
            assert " must " in refused


def test_a_scalar_and_a_vector_of_nothing_are_inputs_too():
    for curve in (ops.mu_law, ops.mu_law_inverse, ops.srgb_encode, ops.srgb_decode, metrics.pu21_encode):
        assert curve(torch.zeros(0)).shape == (0,)
        assert curve(torch.tensor(0.5)).shape == ()
    assert ops.complementary_masks((0, 3), generator=[])[0].shape == (0, 3)
    assert ops.linearize_ldr(torch.zeros(0, 3, 4, 4), torch.zeros(0)).shape == (0, 3, 4, 4)
    for problem, call in {
        "bracket must hold at least one exposure": lambda: ops.reference_exposure(torch.zeros(1, 0, 6, 8, 8)),
        "generator must have one for each of 0": lambda: ops.complementary_masks((), generator=[torch.Generator()]),
        "prediction must not be empty": lambda: losses.mu_l1_loss(torch.zeros(0), torch.zeros(0)),
        "student must have C >= 1": lambda: losses.histogram_loss(*[torch.zeros(1, 0, 8, 8)] * 2),
        "num_regions is required with labels on the meta": lambda: skt.soft_histogram(
            torch.zeros(1, 3, 8, 8, device="meta"), labels=zeros((1, 8, 8), "meta")
        ),
        "values of psnr must be numbers": lambda: metrics.MeanMetric("psnr").update(torch.zeros(2, device="meta")),
    }.items():
        with pytest.raises(ValueError, match=problem):
            call()
