"""HDR-VDP-2 against its own kept numbers, against what it means, its gradients and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from skt_components.metrics import HDRVDP2Loss, hdr_vdp2, hdr_vdp_pix_per_deg
from skt_components.metrics import _hdrvdp2_numerics as numerics
from skt_components.metrics import _hdrvdp2_optics as optics
from skt_components.ops.transfer import srgb_decode


def waves(channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture pair by formula, in cd/m2: waves of several sizes, and the same with errors that change over it."""
    c, y, x = (torch.arange(n, dtype=torch.float64) for n in (channels, height, width))
    c, y, x = c[:, None, None], y[:, None], x
    reference = torch.exp(
        3 + torch.sin(0.31 * x + 0.17 * y + c) + torch.sin(0.07 * x * y / 5) + 0.5 * torch.cos(2.1 * x)
    )
    error = 0.15 * torch.sin(1.3 * x - 0.9 * y) + 0.1 * torch.cos(0.05 * x * y + c) * (x > width / 2)
    return (reference * (1 + error))[None], reference[None]


# matches_reference: numbers of this implementation, kept when it agreed with the published code


@pytest.mark.parametrize(
    ("size", "encoding", "options", "quality", "contrast"),
    [
        ((40, 53), "luminance", {}, 66.88355776449, 143.217893533),
        ((40, 53), "rgb-bt.709", {}, 66.82214883881, 129.932604932),
        ((75, 41), "rgb-bt.709", {"pixels_per_degree": 60.5}, 58.49653203173, 9.10433350593),
        ((12, 15), "luminance", {}, 88.18293673926, 16.7298497256),
        ((36, 34), "sRGB-display", {"pixels_per_degree": 23.78735754772587}, 67.02189276959, 115.870003276),
        ((20, 31), "luma-display", {}, 72.44739766873, 20.0454239481),
        ((20, 31), "XYZ", {}, 74.18364704545, 60.8470112437),
        ((40, 53), "luminance", {"surround_l": 13}, 67.17361742321, 135.536324446),
        ((40, 53), "rgb-bt.709", {"surround_l": -1}, 66.56080793306, 112.381400937),
        ((40, 53), "rgb-bt.709", {"rgb_display": "led-lcd"}, 66.86087779169, 133.09794022),
        ((40, 53), "rgb-bt.709", {"rgb_display": "crt"}, 66.83457605233, 130.582189529),
        ((40, 53), "luminance", {"do_mtf": False}, 64.87852823725, 899.083661841),
        ((40, 53), "luminance", {"do_masking": False}, 48.29366765404, 2985.76951394),
        ((40, 53), "luminance", {"do_spatial_pooling": False}, 66.88355776449, 6.86559490499),
        ((40, 53), "luminance", {"peak_sensitivity": 2.0}, 68.23699621583, 12.2674032861),
    ],
)
def test_keeps_its_numbers(size, encoding, options, quality, contrast):
    test, reference = waves(optics.CHANNELS[encoding], *size)
    if "display" in encoding:
        test, reference = test / 300, reference / 300
    output = hdr_vdp2(test, reference, color_encoding=encoding, **{"pixels_per_degree": 30, **options})
    assert output.Q.item() == pytest.approx(quality, abs=1e-8)
    assert output.C_max.item() == pytest.approx(contrast, rel=1e-8)


@pytest.mark.parametrize("encoding", ["luminance", "rgb-bt.709", "sRGB-display", "luma-display", "XYZ"])
def test_float32_is_close_to_float64(encoding):
    test, reference = (picture / 30 for picture in waves(optics.CHANNELS[encoding], 40, 53))
    exact, fast = (
        hdr_vdp2(test, reference, color_encoding=encoding, pixels_per_degree=30, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    assert {part.dtype for part in fast} == {torch.float32}
    assert fast.Q.item() == pytest.approx(exact.Q.item(), abs=1e-3)
    assert fast.C_max.item() == pytest.approx(exact.C_max.item(), rel=1e-3)


# encodings and options


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((24, (1920, 1200), 0.5), 33.510213911468036), ((30, (1500, 1000), 0.55), 23.78735754772587)],
)
def test_pixels_per_degree(arguments, expected):
    assert hdr_vdp_pix_per_deg(*arguments) == pytest.approx(expected, rel=1e-14)


def test_sRGB_display_is_its_light_as_rgb():
    test, reference = (picture / 300 for picture in waves(3, 20, 24))
    shown = hdr_vdp2(test, reference, color_encoding="sRGB-display", pixels_per_degree=30)
    light = (99 * srgb_decode(picture) + 1 for picture in (test, reference))
    torch.testing.assert_close(shown.C_map, hdr_vdp2(*light, color_encoding="rgb-bt.709", pixels_per_degree=30).C_map)


def test_luma_display_is_its_light_as_luminance():
    test, reference = (picture / 300 for picture in waves(1, 20, 24))
    shown = hdr_vdp2(test, reference, color_encoding="luma-display", pixels_per_degree=30)
    light = (99 * picture**2.2 + 1 for picture in (test, reference))
    torch.testing.assert_close(shown.C_map, hdr_vdp2(*light, color_encoding="luminance", pixels_per_degree=30).C_map)


def test_XYZ_is_its_light_as_rgb():
    rgb = waves(3, 20, 24)
    to_rgb = torch.tensor(
        [[3.240708, -1.537259, -0.498570], [-0.969257, 1.875995, 0.041555], [0.055636, -0.203996, 1.057069]]
    ).double()
    xyz = [torch.einsum("ij,bjhw->bihw", to_rgb.inverse(), picture) for picture in rgb]
    expected = hdr_vdp2(*rgb, color_encoding="rgb-bt.709", pixels_per_degree=30)
    shown = hdr_vdp2(*xyz, color_encoding="XYZ", pixels_per_degree=30)
    torch.testing.assert_close(shown.C_map, expected.C_map, rtol=1e-6, atol=1e-6)


def test_surround_of_every_channel():
    pair = waves(3, 20, 24)
    options = {"color_encoding": "rgb-bt.709", "pixels_per_degree": 30}
    means = pair[1].log().mean((0, 2, 3)).exp().tolist()
    geometric, listed = (hdr_vdp2(*pair, surround_l=level, **options) for level in (-1, means))
    torch.testing.assert_close(geometric.Q, listed.Q, rtol=1e-12, atol=0)
    same, single = (hdr_vdp2(*pair, surround_l=level, **options) for level in ((13.0, 13.0, 13.0), 13))
    assert torch.equal(same.Q, single.Q)
    assert (same.Q - listed.Q).abs() > 1e-3


def test_NaN_counts_as_near_black():
    test, reference = waves(1, 20, 24)
    black, nan = test.clone(), test.clone()
    black[0, 0, 5:9, 5:9], nan[0, 0, 5:9, 5:9] = 1e-5, math.nan
    expected, output = (
        hdr_vdp2(picture, reference, color_encoding="luminance", pixels_per_degree=30) for picture in (black, nan)
    )
    assert torch.equal(output.Q, expected.Q)


# gradcheck


@pytest.mark.parametrize("encoding", ["luminance", "sRGB-display"])
@pytest.mark.parametrize("options", [{}, {"do_masking": False}, {"surround_l": -1}])
def test_gradcheck(encoding, options):
    test, reference = (picture / 100 for picture in waves(optics.CHANNELS[encoding], 18, 21))
    test.requires_grad_()

    def measures(test: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = hdr_vdp2(test, reference, color_encoding=encoding, pixels_per_degree=30, **options)
        return output.Q, output.P_map, output.C_map.sqrt(), output.P_det

    assert torch.autograd.gradcheck(measures, (test,), fast_mode=True, eps=1e-7, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(measures(test)[0].sum(), test)
    assert gradient.abs().max() > 0


def test_gradient_of_Q_pixel_by_pixel():
    test, reference = waves(1, 17, 19)
    test.requires_grad_()
    loss = HDRVDP2Loss("luminance", 30)
    (gradient,) = torch.autograd.grad(loss(test, reference), test)
    for y, x in [(0, 0), (3, 17), (8, 9), (16, 18)]:
        step = torch.zeros_like(test)
        step[0, 0, y, x] = 1e-5
        with torch.no_grad():
            slope = (loss(test + step, reference) - loss(test - step, reference)) / 2e-5
        assert slope.item() == pytest.approx(gradient[0, 0, y, x].item(), rel=1e-5)


def test_gradient_of_equal_pictures_is_zero():
    _, reference = waves(3, 20, 24)
    test = reference.clone().requires_grad_()
    output = hdr_vdp2(test, reference, color_encoding="rgb-bt.709", pixels_per_degree=30)
    (gradient,) = torch.autograd.grad(output.Q.sum() + output.C_map.sum() + output.P_det.sum(), test)
    assert torch.equal(gradient, torch.zeros_like(test))


def test_gradients_after_inference_mode():
    test, reference = waves(1, 21, 22)
    loss = HDRVDP2Loss("luminance", 29)
    with torch.inference_mode():
        expected = loss(test, reference)
    test.requires_grad_()
    value = loss(test, reference)
    value.backward()
    assert torch.equal(value.detach(), expected.clone())
    assert test.grad is not None
    assert test.grad.isfinite().all()


# invariants


@pytest.mark.parametrize("encoding", ["luminance", "rgb-bt.709", "sRGB-display"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_pictures_have_quality_100_and_no_visible_difference(encoding, dtype):
    _, reference = waves(optics.CHANNELS[encoding], 40, 53)
    quality, *maps = hdr_vdp2(reference, reference.clone(), color_encoding=encoding, pixels_per_degree=30, dtype=dtype)
    assert quality.tolist() == [100.0]
    assert all(torch.equal(part, torch.zeros_like(part)) for part in maps)


def test_quality_falls_and_visibility_grows_with_the_error():
    test, reference = waves(3, 40, 53)
    tests = torch.cat([reference + strength * (test - reference) for strength in (0.1, 0.3, 1.0)])
    output = hdr_vdp2(tests, reference.expand_as(tests), color_encoding="rgb-bt.709", pixels_per_degree=30)
    assert output.Q[0] > output.Q[1] > output.Q[2]
    assert output.C_max[0] < output.C_max[1] < output.C_max[2]
    assert output.P_det[0] < output.P_det[1] <= output.P_det[2] <= 1
    assert output.P_map.shape == output.C_map.shape == (3, 40, 53)
    assert torch.equal(output.P_map.amax((1, 2)), output.P_det)


def test_every_picture_is_independent_of_its_batch_mates():
    pairs = [waves(3, 40, 53), tuple(20 * picture.flip(-1) for picture in waves(3, 40, 53))]
    options = {"color_encoding": "rgb-bt.709", "pixels_per_degree": 30, "surround_l": -1}
    batch = hdr_vdp2(*(torch.cat(pictures) for pictures in zip(*pairs, strict=True)), **options)
    alone = [hdr_vdp2(*pair, **options) for pair in pairs]
    for together, *apart in zip(batch, *alone, strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-9, atol=1e-12)


def test_a_local_error_is_seen_where_it_is():
    _, reference = waves(1, 64, 64)
    test = reference.clone()
    test[..., 10:14, 44:48] *= 1.5
    output = hdr_vdp2(test, reference, color_encoding="luminance", pixels_per_degree=30)
    y, x = divmod(int(output.P_map.argmax()), 64)
    assert 8 <= y <= 15
    assert 42 <= x <= 49
    assert output.C_map[0, 40:, :24].max() < 1e-3 * output.C_max


def test_half_precision_and_non_contiguous_pictures():
    test, reference = waves(3, 24, 24)
    options = {"color_encoding": "rgb-bt.709", "pixels_per_degree": 30}
    half = [picture.half() for picture in (test, reference)]
    assert torch.equal(hdr_vdp2(*half, **options).Q, hdr_vdp2(*(p.double() for p in half), **options).Q)
    turned = [picture.mT for picture in (test, reference)]
    straight = [picture.contiguous() for picture in turned]
    torch.testing.assert_close(hdr_vdp2(*turned, **options).Q, hdr_vdp2(*straight, **options).Q, rtol=1e-13, atol=0)


def test_autocast_changes_nothing():
    pair = [picture.float() for picture in waves(1, 40, 53)]
    options = {"color_encoding": "luminance", "pixels_per_degree": 30, "dtype": torch.float32}
    expected = hdr_vdp2(*pair, **options)
    with torch.autocast("cpu", torch.bfloat16):
        output = hdr_vdp2(*pair, **options)
        loss = HDRVDP2Loss(**options)(*pair)
    assert torch.equal(output.C_map, expected.C_map)
    assert loss == 100 - expected.Q


# the loss


def test_loss_is_100_less_the_mean_quality():
    test, reference = (picture.expand(2, -1, -1, -1) for picture in waves(3, 24, 24))
    options = {"surround_l": 13, "rgb_display": "crt", "peak_sensitivity": 2.0, "do_mtf": False, "do_masking": False}
    output = hdr_vdp2(test, reference, color_encoding="rgb-bt.709", pixels_per_degree=40, **options)
    loss = HDRVDP2Loss("rgb-bt.709", 40, **options)
    torch.testing.assert_close(loss(test, reference), 100 - output.Q.mean(), rtol=1e-14, atol=0)
    assert "color_encoding='rgb-bt.709', pixels_per_degree=40, surround_l=13, rgb_display='crt'" in repr(loss)


def test_the_graph_keeps_few_maps_of_the_size_of_the_picture():
    test, reference = waves(3, 96, 128)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = HDRVDP2Loss("rgb-bt.709", 30.0)(test.requires_grad_(), reference)
    assert loss.requires_grad
    assert sum(kept.values()) < 100 * test[0, 0].nbytes  # 242 if all intermediate results were kept


def test_descending_the_loss_raises_the_quality():
    test, reference = (picture.float() / 300 for picture in waves(3, 32, 32))
    options = {"color_encoding": "sRGB-display", "pixels_per_degree": 30}
    picture = nn.Parameter(test.clone())
    loss = HDRVDP2Loss(**options)
    optimizer = torch.optim.Adam([picture], lr=1e-3)
    before = hdr_vdp2(picture, reference, **options)
    for _ in range(40):
        optimizer.zero_grad()
        loss(picture, reference).backward()
        optimizer.step()
    after = hdr_vdp2(picture, reference, **options)
    assert after.Q > before.Q + 3
    assert after.C_max < before.C_max


# rejects_bad_input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"test": torch.ones(3, 20, 20)}, ValueError, "test must have 4 axes"),
        ({"test": torch.ones(1, 3, 20, 20).int()}, TypeError, "test must be a floating-point tensor"),
        ({"reference": [1.0]}, TypeError, "reference must be a torch.Tensor"),
        ({"reference": torch.ones(1, 3, 20, 21)}, ValueError, "test and reference must have the same shape"),
        ({"color_encoding": "luminance"}, ValueError, "test must have 1 channels"),
        ({"color_encoding": "rgb"}, ValueError, "color_encoding must be one of"),
        ({"pixels_per_degree": 0}, ValueError, "pixels_per_degree must be a finite number > 0, got 0"),
        ({"rgb_display": "oled"}, ValueError, "rgb_display must be one of"),
        ({"surround_l": -2}, ValueError, "surround_l .unless it is -1. must be a finite number > 0, got -2"),
        ({"surround_l": (1, 2)}, ValueError, "surround_l must have one level for each of 3 channels"),
        ({"surround_l": (1, 2, 0)}, ValueError, "every level of surround_l must be a finite number > 0"),
        ({"peak_sensitivity": math.inf}, ValueError, "peak_sensitivity must be a finite number"),
        ({"dtype": torch.float16}, ValueError, "dtype must be one of"),
        (
            {"test": torch.ones(1, 3, 8, 20), "reference": torch.ones(1, 3, 8, 20)},
            ValueError,
            "test and reference must be at least 9x9 pixels, got 8x20",
        ),
    ],
)
def test_rejects_bad_input(change, error, message):
    pictures = {"test": torch.ones(1, 3, 20, 20), "reference": torch.ones(1, 3, 20, 20)}
    with pytest.raises(error, match=message):
        hdr_vdp2(**{**pictures, "color_encoding": "rgb-bt.709", "pixels_per_degree": 30, **change})


def test_loss_rejects_bad_options_when_it_is_made():
    with pytest.raises(ValueError, match="color_encoding must be one of"):
        HDRVDP2Loss("display", 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (1500, 1000), 0.5), "diagonal_inches must be a finite number > 0"),
        ((24, (1500, 1000), -1), "distance_m must be a finite number > 0"),
        ((24, (1500, 0), 0.5), "height of resolution must be a whole number >= 1, got 0"),
        ((24, (1500,), 0.5), r"resolution must be \(width, height\)"),
    ],
)
def test_pixels_per_degree_rejects_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        hdr_vdp_pix_per_deg(*arguments)


# devices and strips


def test_work_in_strips_changes_nothing(monkeypatch):
    test, reference = waves(3, 40, 53)
    whole = hdr_vdp2(test, reference, color_encoding="rgb-bt.709", pixels_per_degree=30)
    monkeypatch.setattr(numerics, "_STRIP", 500)
    strips = hdr_vdp2(test, reference, color_encoding="rgb-bt.709", pixels_per_degree=30)
    for a, b in zip(strips, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cuda_equals_cpu_and_never_waits(dtype):
    options = {"color_encoding": "rgb-bt.709", "pixels_per_degree": 30, "dtype": dtype}
    pair = waves(3, 40, 53)
    expected = hdr_vdp2(*pair, **options)
    on_device = [picture.cuda() for picture in pair]
    hdr_vdp2(*on_device, **options)  # puts the constants there
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = hdr_vdp2(*on_device, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(output.Q.cpu(), expected.Q, rtol=tolerance, atol=0)
    torch.testing.assert_close(output.C_max.cpu(), expected.C_max, rtol=tolerance, atol=0)


def test_values_of_eight_bits_are_noticed():
    picture = torch.rand(1, 3, 32, 32)
    for encoding in ("sRGB-display", "luma-display"):
        shown = picture if encoding.startswith("sRGB") else picture[:, :1]
        with pytest.warns(UserWarning, match=rf"pictures of {encoding} must be in \[0, 1\], got values up to 2"):
            hdr_vdp2(255 * shown, 255 * shown, color_encoding=encoding, pixels_per_degree=30)


def test_relative_pictures_are_noticed():
    picture = torch.rand(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="reference must be light in cd/m2 .*got values up to"):
        hdr_vdp2(picture, picture, color_encoding="rgb-bt.709", pixels_per_degree=30)
