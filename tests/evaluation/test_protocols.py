"""The protocols' numbers against scikit-image, from tensors and from the files that each protocol evaluates."""

from __future__ import annotations

import dataclasses
import json
import re
import types

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skt_components.data import read_image, write_image
from skt_components.evaluation import protocols
from skt_components.evaluation.protocols import METRICS, Protocol, round_rgbe
from skt_components.metrics.lpips import lpips
from skt_components.ops.raw import apply_color_matrix, demosaic, mosaic, pack_raw

NAMED = {
    "kalantari": Protocol.kalantari(),
    "tel": Protocol.tel(),
    "matlab": Protocol.matlab(),
    "bracketire": Protocol.bracketire(),
    "bracketire_plus": Protocol.bracketire_plus(),
    "ntire2024": Protocol.ntire2024(),
}
METADATA = {
    "white_balance": torch.tensor([[2.0, 1.0, 1.6], [1.4, 1.0, 2.1]]),
    "color_matrix": torch.tensor([[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0.0, -0.5, 1.5]]).expand(2, 3, 3),
}


def rgb_pictures(size: tuple[int, int] = (31, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear RGB; the target up to 1, predictions at different distances, some beyond [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, *size, generator=generator) ** 3
    noise = torch.randn(target.shape, generator=generator)
    return target + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1) * noise, target


def raw_pictures(size: tuple[int, int] = (32, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    prediction, target = rgb_pictures((2 * size[0], 2 * size[1]))
    return 16 * pack_raw(mosaic(prediction)), 16 * pack_raw(mosaic(target))


def mu_law(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(5000 * np.abs(x)) / np.log(5001)


def published_ssim(prediction: np.ndarray, target: np.ndarray, peak: float, sample: bool) -> float:
    options = {"win_size": 11, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": sample}
    return structural_similarity(prediction, target, data_range=peak, channel_axis=0, **options)


# matches_reference


@pytest.mark.parametrize("name", ["kalantari", "tel"])
def test_kalantari_and_tel_match_skimage(name):
    prediction, target = rgb_pictures()
    scores = NAMED[name].score(prediction, target)
    assert list(scores) == ["PSNR-mu", "PSNR-L", "SSIM-mu", "SSIM-L"]
    for i, (p, t) in enumerate(zip(prediction.double().numpy(), target.double().numpy(), strict=True)):
        assert scores["PSNR-L"][i].item() == pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-9)
        pair = [mu_law(x) for x in (t, p)]
        assert scores["PSNR-mu"][i].item() == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1), abs=1e-9)
        for key, (a, b) in {"SSIM-L": (p, t), "SSIM-mu": (mu_law(p), mu_law(t))}.items():
            clipped = [np.clip(255 * x, 0, 255) for x in (a, b)]
            assert scores[key][i].item() == pytest.approx(published_ssim(*clipped, 255, sample=False), abs=1e-9)


def render(packed: torch.Tensor, index: int) -> np.ndarray:
    """BracketIRE's chain for one picture, in NumPy but for demosaicing, as 16-bit numbers (3, H, W)."""
    raw = np.maximum(packed[index].double().numpy(), 0) / 16
    red, _, blue = METADATA["white_balance"][index].tolist()
    raw = np.clip(raw * np.array([red, 1, 1, blue]).reshape(4, 1, 1), 0, 1) ** (1 / 2.2)
    bayer = np.zeros((1, 1, 2 * raw.shape[1], 2 * raw.shape[2]))
    for plane, (y, x) in zip(raw, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        bayer[0, 0, y::2, x::2] = plane
    rgb = np.clip(demosaic(torch.from_numpy(bayer), method="malvar")[0].numpy(), 0, 1) ** 2.2
    rgb = np.clip(np.einsum("ij,jhw->ihw", METADATA["color_matrix"][index].double().numpy(), rgb), 0, 1)
    return np.floor(mu_law(rgb) * 65535 + 1e-6).astype(np.uint16)


@pytest.mark.parametrize("name", ["bracketire", "bracketire_plus", "ntire2024"])
def test_bracketire_from_16_bit_files_and_from_tensors(name, tmp_path):
    protocol = NAMED[name]
    prediction, target = raw_pictures()
    scores = protocol.score(prediction, target, METADATA)
    assert list(scores) == ["PSNR-mu", "SSIM-mu"][: len(scores)]
    for i in range(2):
        for kind, packed in {"prediction": prediction, "target": target}.items():
            ours = protocol.tonemap(protocol.render(packed, METADATA))[i]
            numbers = (ours * 65535).round().numpy().astype(np.uint16)
            assert np.array_equal(numbers, render(packed, i))
            cv2.imwrite(str(tmp_path / f"{kind}.png"), numbers.transpose(1, 2, 0)[..., ::-1])
        p, t = (
            cv2.imread(str(tmp_path / f"{k}.png"), cv2.IMREAD_UNCHANGED).transpose(2, 0, 1)
            for k in ("prediction", "target")
        )
        assert p.dtype == np.uint16
        crop = protocol.crop
        p, t = (x[:, crop : x.shape[1] - crop, crop : x.shape[2] - crop] for x in (p, t))
        assert scores["PSNR-mu"][i].item() == pytest.approx(peak_signal_noise_ratio(t, p, data_range=65535), abs=1e-8)
        if "SSIM-mu" in scores:
            assert scores["SSIM-mu"][i].item() == pytest.approx(published_ssim(p, t, 65535, sample=True), abs=1e-9)


def test_matlab_from_radiance_files_and_from_tensors(tmp_path):
    prediction, target = rgb_pictures()
    scores = Protocol.matlab().score(prediction, target)
    read = []
    for name, picture in {"prediction": prediction.clamp(min=0), "target": target}.items():
        for i, one in enumerate(picture):
            write_image(tmp_path / f"{name}{i}.hdr", one)
        read.append(torch.stack([read_image(tmp_path / f"{name}{i}.hdr") for i in range(2)]))
        assert torch.equal(round_rgbe(picture), read[-1])
    from_files = dataclasses.replace(Protocol.matlab(), rounding="none").score(*read)
    for key, values in scores.items():
        assert torch.equal(values, from_files[key])
    assert (scores["PSNR-L"] - Protocol.kalantari().score(prediction, target)["PSNR-L"]).abs().max() > 1e-4


@pytest.mark.parametrize("suffix", [".exr", ".npy"])
def test_kalantari_from_files_of_floats_and_from_tensors(suffix, tmp_path):
    prediction, target = rgb_pictures()
    for i, one in enumerate(prediction):
        write_image(tmp_path / f"{i}{suffix}", one)
    read = torch.stack([read_image(tmp_path / f"{i}{suffix}") for i in range(2)])
    scores, from_files = (Protocol.kalantari().score(p, target) for p in (prediction, read))
    assert all(torch.equal(scores[key], from_files[key]) for key in scores)


def test_rgbe_keeps_what_opencv_keeps_at_every_exponent():
    values = torch.rand(1, 3, 8, 240) * torch.logspace(-100, 100, 240, base=2.0)
    values[0, :, 0, :5] = 0
    ok, data = cv2.imencode(".hdr", values[0].permute(1, 2, 0).numpy())
    assert ok
    expected = torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)).permute(2, 0, 1)
    assert torch.equal(round_rgbe(values)[0], expected)


# invariants


def test_a_network_that_did_not_see_the_border_is_compared_with_the_middle_of_the_target():
    protocol = NAMED["bracketire"]
    prediction, target = raw_pictures()
    inner, middle = (x[..., 5:-5, 5:-5] for x in (prediction, target))
    scores = {
        "middle": protocol.score(inner, target, METADATA),
        "cropped": protocol.score(inner, middle, METADATA, cropped=True),
    }
    for i in range(2):
        pairs = {"middle": render(target, i)[:, 10:-10, 10:-10], "cropped": render(middle, i)}
        for key, expected in pairs.items():
            psnr = peak_signal_noise_ratio(expected, render(inner, i), data_range=65535)
            assert scores[key]["PSNR-mu"][i].item() == pytest.approx(psnr, abs=1e-8)
    with pytest.raises(ValueError, match="rendered prediction and rendered target must have the same shape"):
        protocol.score(prediction[..., 1:-1, 1:-1], target, METADATA)


def test_bgr_gives_what_rgb_gives(monkeypatch):
    metrics = (*Protocol.kalantari().metrics, "PU21-PSNR", "PU21-SSIM")
    rgb = dataclasses.replace(Protocol.kalantari(), metrics=metrics)
    prediction, target = rgb_pictures()
    expected = rgb.score(prediction, target)
    found = dataclasses.replace(rgb, channel_order="bgr").score(prediction.flip(1), target.flip(1))
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values)
    assert (rgb.score(prediction.flip(1), target.flip(1))["PU21-SSIM"] - expected["PU21-SSIM"]).abs().max() > 1e-6


def test_pictures_are_scored_one_by_one():
    prediction, target = rgb_pictures()
    for name, values in Protocol.kalantari().score(prediction, target).items():
        alone = [Protocol.kalantari().score(prediction[i : i + 1], target[i : i + 1])[name] for i in range(2)]
        torch.testing.assert_close(values, torch.cat(alone))
        assert values.dtype == torch.float64


@pytest.mark.parametrize("peak", [2.0, 16.0])
def test_scores_are_relative_to_the_peak(peak):
    prediction, target = rgb_pictures()
    scaled = dataclasses.replace(Protocol.tel(), peak=peak).score(peak * prediction, peak * target)
    for name, values in Protocol.tel().score(prediction, target).items():
        torch.testing.assert_close(scaled[name], values)


def test_inference_is_the_protocols():
    seen = []

    def network(bracket: torch.Tensor) -> torch.Tensor:
        seen.append(bracket.clone())
        return bracket[:, 0, :4]

    bracket = torch.rand(1, 3, 6, 300, 256)
    assert torch.equal(Protocol.kalantari().infer(network, bracket), bracket[:, 0, :4])
    assert [x.shape[-2:] for x in seen] == [(256, 256)] * 2
    assert torch.equal(seen[1][..., 44:, :], torch.ones(1, 3, 6, 212, 256))
    seen.clear()
    raw = torch.rand(2, 5, 4, 40, 50)
    assert torch.equal(Protocol.bracketire().infer(network, raw), raw[:, 0, :, 5:-5, 5:-5])
    assert [x.shape for x in seen] == [(1, 5, 4, 30, 40)] * 2
    assert torch.equal(Protocol.ntire2024().infer(network, raw), raw[:, 0])


def test_hdr_vdp2_gets_the_published_settings(monkeypatch):
    calls = []

    def hdr_vdp2(test: torch.Tensor, reference: torch.Tensor, **options: object) -> types.SimpleNamespace:
        calls.append((test, reference, options))
        return types.SimpleNamespace(Q=torch.tensor([70.0, 60.0]))

    monkeypatch.setattr(protocols, "hdr_vdp2", hdr_vdp2)
    prediction, target = rgb_pictures()
    protocol = dataclasses.replace(Protocol.tel(), metrics=("HDR-VDP-2",))
    assert protocol.score(prediction, target)["HDR-VDP-2"].tolist() == [70.0, 60.0]
    ((test, reference, options),) = calls
    assert torch.equal(test, prediction.double())
    assert torch.equal(reference, target.double())
    height = 25.4 * 30 / np.hypot(1.5, 1)  # of a 30-inch display of 1500x1000 pixels, seen from 0.55 m
    ppd = 1000 / (2 * np.degrees(np.arctan(height / 2 / 550)))
    assert options == {"color_encoding": "sRGB-display", "pixels_per_degree": pytest.approx(ppd, rel=1e-12)}
    assert not any("HDR-VDP-2" in protocol.metrics for protocol in NAMED.values())


@pytest.mark.parametrize("size", [(31, 40), (40, 31)])
def test_hdr_vdp2_of_safnets_script_depends_on_the_size_of_the_picture(monkeypatch, size):
    found = []
    monkeypatch.setattr(protocols, "hdr_vdp2", lambda *pictures, **options: found.append(options["pixels_per_degree"]))
    height, width = size
    diagonal = 28 * 25.4  # millimeters
    side = diagonal * height / np.hypot(height, width)
    Protocol.matlab().hdr_vdp2(*rgb_pictures(size))
    assert found == [pytest.approx(height / np.degrees(2 * np.arctan(side / 2 / 550)), rel=1e-12)]
    described = dataclasses.replace(Protocol.matlab(), metrics=("HDR-VDP-2",)).describe()
    assert "28 inches at 0.55 m that the picture fills (25.342 pixels per degree at 1500x1000)" in described
    assert "SAFNet's eval_siggraph17.m, which runs version 2.2.2" in described


@pytest.mark.parametrize("name", NAMED)
def test_every_protocol_names_the_script_of_its_hdr_vdp2(name):
    described = dataclasses.replace(NAMED[name], metrics=("HDR-VDP-2",)).describe()
    assert re.search(r"HDR-VDP-2 \(version 2.21\): sRGB-display, .*, settings of \w+'s [\w/]+\.m\b", described)
    assert ("BracketIRE's scripts have no HDR-VDP-2" in described) == (NAMED[name].domain == "raw")


def test_lpips_is_of_the_tone_mapped_pictures():
    pytest.importorskip("lpips")
    prediction, target = rgb_pictures((40, 41))
    protocol = dataclasses.replace(Protocol.tel(), metrics=("LPIPS",))
    mapped = [torch.from_numpy(mu_law(x.double().numpy())) for x in (prediction, target)]
    expected = lpips(*mapped, weights="random")
    found = protocol.score(prediction, target, lpips_weights="random")["LPIPS"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    with pytest.raises(ValueError, match="weights must be given"):
        protocol.score(prediction, target)


# descriptions


@pytest.mark.parametrize("name", NAMED)
def test_descriptions_are_one_line_and_plain(name):
    protocol = NAMED[name]
    line = protocol.describe()
    assert "\n" not in line
    assert line.startswith(protocol.name)
    fields = json.loads(json.dumps(protocol.as_dict()))
    assert fields["mu"] == 5000
    assert fields["metrics"] == list(protocol.metrics)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    assert Protocol(**values) == protocol
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.mu = 1.0


def test_descriptions_say_what_differs():
    assert "tiles of 256 padded with ones" in Protocol.kalantari().describe()
    assert "10 pixels cropped" in Protocol.bracketire().describe()
    assert "not the learned demosaicing" in Protocol.bracketire().describe()
    assert "16 pixels cropped" in Protocol.bracketire_plus().describe()
    assert "not cropped" in Protocol.ntire2024().describe()
    assert "SSIM" not in Protocol.ntire2024().describe()
    assert len({protocol.describe() for protocol in NAMED.values()}) == len(NAMED)
    everything = dataclasses.replace(Protocol.tel(), metrics=tuple(METRICS)).describe()
    assert "23.787 pixels per degree, settings of SCTNet's utils/hdrvdp2_pu21/run/test.m" in everything
    assert "display of 55 cd/m2" in everything


def test_render_of_raw_without_clipping_is_the_plain_chain():
    gray = torch.full((1, 4, 6, 6), 4.0)
    found = Protocol.bracketire().render(gray, {"color_matrix": torch.eye(3) * 2})
    torch.testing.assert_close(found, torch.full((1, 3, 12, 12), 0.5, dtype=torch.float64))
    expected = apply_color_matrix(torch.full((1, 3, 12, 12), 0.25), torch.eye(3) * 2).double()
    torch.testing.assert_close(found, expected)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("PSNR",)}, "metrics must be one of .*PSNR-mu.*'PSNR'"),
        ({"rounding": "uint8"}, "rounding must be one of .*uint16.*'uint8'"),
        ({"domain": "xyz"}, "domain must be one of .*raw.*'xyz'"),
        ({"peak": 0.0}, "peak must be a finite number > 0"),
        ({"vdp_pixels_per_degree": None}, "either vdp_pixels_per_degree or vdp_diagonal, .* got None and None"),
        ({"vdp_diagonal": 28.0}, "either vdp_pixels_per_degree or vdp_diagonal, .* got 23.787.* and 28.0"),
        ({"vdp_pixels_per_degree": 0.0}, "vdp_pixels_per_degree must be a finite number > 0"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol("mine", **options)


def test_rejects_bad_pictures():
    picture = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="picture must have 3 channels"):
        Protocol.tel().score(torch.rand(1, 4, 16, 16), picture)
    with pytest.raises(ValueError, match="picture must have 4 channels"):
        Protocol.bracketire().score(picture, picture)
    with pytest.raises(ValueError, match=r"metadata of srgb pictures must be empty, got \['white_balance'\]"):
        Protocol.tel().score(picture, picture, {"white_balance": torch.ones(3)})
    with pytest.raises(ValueError, match="must have the same shape"):
        Protocol.tel().score(picture, picture[..., :12])
    with pytest.raises(ValueError, match="bracket must have 5 axes"):
        Protocol.tel().infer(lambda x: x, picture)
    with pytest.raises(ValueError, match="crop must leave a pixel"):
        Protocol.bracketire().infer(lambda x: x, torch.rand(1, 5, 4, 10, 10))
