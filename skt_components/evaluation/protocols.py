"""Protocols of published tables: everything between a network and its scores, for each data set."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.evaluation.tiling import Network, official_tiles, tiled_inference
from skt_components.metrics.hdrvdp2 import HDRVDP2Output, hdr_vdp2, hdr_vdp_pix_per_deg
from skt_components.metrics.lpips import lpips
from skt_components.metrics.psnr import crop_sides, psnr, quantize
from skt_components.metrics.pu21 import display_luminance, psnr_pu21, ssim_pu21
from skt_components.metrics.ssim import ssim
from skt_components.ops.checks import check_choice, check_positive, check_same_shape, check_tensor
from skt_components.ops.raw import apply_color_matrix, demosaic, unpack_raw, white_balance
from skt_components.ops.transfer import mu_law

Metadata = Mapping[str, Tensor]
_CHOICES = {
    "domain": ("srgb", "raw"),
    "rounding": ("none", "rgbe", "uint16"),
    "channel_order": ("rgb", "bgr"),
    "ssim_border": ("valid", "replicate", "volume"),
    "demosaicing": ("bilinear", "malvar"),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Fix all settings between a network and the scores in a table, so that two tables can be compared.

    Start from a named protocol and change it with :func:`dataclasses.replace`: ``replace(Protocol.tel(), tile=None)``
    is Tel's protocol with whole pictures.

    Attributes:
        name: title of the protocol.
        domain: "srgb": pictures are linear RGB; "raw": packed RAW R, Gr, Gb, B, rendered to RGB first.
        metrics: names of the metrics: "PSNR-mu", "PSNR-L", "SSIM-mu", "SSIM-L", "LPIPS" (of tone-mapped pictures),
            "PU21-PSNR", "PU21-SSIM", "HDR-VDP-2" (of linear pictures).
        peak: linear value of white.
        mu: compression of the mu-law.
        channel_order: order of the channels when they are scored, "rgb" or "bgr".
        rounding: precision of the evaluated files: "none"; "rgbe": the 8 bits of a Radiance file, truncated; "uint16":
            the 16 bits of a PNG of the tone-mapped picture, truncated.
        ssim_clip: clip to [0, 1] for SSIM.
        ssim_sample_covariance: see :func:`~skt_components.metrics.ssim`.
        ssim_border: see :func:`~skt_components.metrics.ssim`.
        border: pixels (packed pixels for RAW) that are cropped from each side of the bracket before the network.
        crop: RGB pixels on each side that are not compared.
        tile: side of the tiles, padded with ones, on which the network runs; None: the whole picture.
        demosaicing: method for RAW, "bilinear" or "malvar".
        vdp_pixels_per_degree: for HDR-VDP-2; 23.787 is a 30-inch display of 1500x1000 pixels at 0.55 m. None: it
            follows from ``vdp_diagonal`` and the size of the picture.
        vdp_diagonal: for HDR-VDP-2 without ``vdp_pixels_per_degree``: diagonal in inches of a display at 0.55 m that
            the picture fills.
        vdp_encoding: for HDR-VDP-2. "sRGB-display" is physically wrong for linear values, but the published tables
            use it.
        vdp_source: the script with these settings of HDR-VDP-2, and how it differs, for readers of a table.
        pu21_display: peak luminance (cd/m2), contrast and ambient light (lux) of the display that shows the
            tone-mapped picture, rounded to 8 bits, for PU21.
        remark: a note for readers of a table.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> import torch
        >>> target = torch.rand(1, 3, 16, 16)
        >>> {name: values.item() for name, values in Protocol.kalantari().score(target, target).items()}
        {'PSNR-mu': inf, 'PSNR-L': inf, 'SSIM-mu': 1.0, 'SSIM-L': 1.0}
    """

    name: str
    domain: str = "srgb"
    metrics: tuple[str, ...] = ("PSNR-mu", "PSNR-L", "SSIM-mu", "SSIM-L")
    peak: float = 1.0
    mu: float = 5000.0
    channel_order: str = "rgb"
    rounding: str = "none"
    ssim_clip: bool = False
    ssim_sample_covariance: bool = False
    ssim_border: str = "valid"
    border: int = 0
    crop: int = 0
    tile: int | None = None
    demosaicing: str = "malvar"
    vdp_pixels_per_degree: float | None = 23.78735754772587
    vdp_diagonal: float | None = None
    vdp_encoding: str = "sRGB-display"
    vdp_source: str = ""
    pu21_display: tuple[float, float, float] = (55.0, 1000.0, 10.0)
    remark: str = ""

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            check_choice(field, getattr(self, field), choices)
        for metric in self.metrics:
            check_choice("metrics", metric, METRICS)
        check_positive("peak", self.peak)
        check_positive("mu", self.mu)
        if (self.vdp_pixels_per_degree is None) == (self.vdp_diagonal is None):
            geometry = f"{self.vdp_pixels_per_degree} and {self.vdp_diagonal}"
            raise ValueError(f"give either vdp_pixels_per_degree or vdp_diagonal, the other None, got {geometry}")
        for name in ("vdp_pixels_per_degree", "vdp_diagonal"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value)

    @classmethod
    def kalantari(cls) -> Protocol:
        """Return HDR-Transformer's and SCTNet's protocol on Kalantari17: float pictures, SSIM clipped, tiles of 256."""
        source = f"{_SCTNET_VDP}, as HDR-Transformer published no settings"
        return cls("Kalantari17 (HDR-Transformer, SCTNet)", ssim_clip=True, tile=256, vdp_source=source)

    @classmethod
    def tel(cls) -> Protocol:
        """Return the protocol of SCTNet on Tel23, which is the one on Kalantari17."""
        return cls("Tel23 (SCTNet)", ssim_clip=True, tile=256, vdp_source=_SCTNET_VDP)

    @classmethod
    def matlab(cls) -> Protocol:
        """Return the protocol of SAFNet's MATLAB scripts: Radiance files, SSIM of RGB as a volume, whole pictures.

        HDR-VDP-2 has the geometry of ``eval_siggraph17.m``: every picture fills a display of 28 inches at 0.55 m, so
        that its pixels per degree depend on its size.
        """
        return cls(
            "MATLAB (SAFNet)",
            rounding="rgbe",
            ssim_border="volume",
            vdp_pixels_per_degree=None,
            vdp_diagonal=28.0,
            vdp_source="SAFNet's eval_siggraph17.m, which runs version 2.2.2 of HDR-VDP-2",
            remark="SSIM after MATLAB's documentation, never compared with MATLAB",
        )

    @classmethod
    def bracketire(cls) -> Protocol:
        """Return the protocol of BracketIRE's scripts, except for their learned demosaicing; see ``remark``."""
        return cls("BracketIRE", border=5, crop=10, **_BRACKETIRE)

    @classmethod
    def bracketire_plus(cls) -> Protocol:
        """Return the protocol of BracketIRE for BracketIRE+, whose targets are four times as large as the brackets."""
        return cls("BracketIRE+", border=2, crop=16, **_BRACKETIRE)

    @classmethod
    def ntire2024(cls) -> Protocol:
        """Return the protocol of the NTIRE 2024 challenge on BracketIRE and BracketIRE+: PSNR only, nothing cropped."""
        return cls("NTIRE 2024 bracketing", **{**_BRACKETIRE, "metrics": ("PSNR-mu",)})

    def describe(self) -> str:
        """Return all settings in one line, for the note below a table."""
        form = ["sample covariance" if self.ssim_sample_covariance else "population covariance"]
        form += [f"border {self.ssim_border}"] + ["clipped"] * self.ssim_clip
        kept = {"none": "not rounded", "rgbe": "RGBE, truncated", "uint16": "16 bits, truncated"}[self.rounding]
        parts = [", ".join(self.metrics), f"peak {self.peak:g}, mu {self.mu:g}, {self.channel_order.upper()}, {kept}"]
        parts += [f"SSIM: Gaussian 11x11, {', '.join(form)}"] * any("SSIM-" in name for name in self.metrics)
        parts += [f"network without {self.border} pixels of border"] * (self.border > 0)
        parts += [f"{self.crop} pixels cropped" if self.crop else "not cropped"]
        parts += [f"tiles of {self.tile} padded with ones" if self.tile else "whole pictures"]
        parts += [f"demosaicing {self.demosaicing}"] * (self.domain == "raw")
        parts += ["LPIPS 0.1, AlexNet"] * ("LPIPS" in self.metrics)
        if "HDR-VDP-2" in self.metrics:
            parts += [f"HDR-VDP-2 (version 2.21): {self.vdp_encoding}, {self._vdp_geometry()}"]
            parts[-1] += f", settings of {self.vdp_source}" if self.vdp_source else ""
        if any(name.startswith("PU21") for name in self.metrics):
            parts += ["PU21: 8 bits, display of {:g} cd/m2, contrast {:g}, {:g} lux".format(*self.pu21_display)]
        return f"{self.name}: {'; '.join(parts + [self.remark] * bool(self.remark))}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a JSON file."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    def infer(self, network: Network, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o _h _w"]:
        """Run the network as the protocol prescribes: without the bracket's border, on tiles or the whole picture.

        Args:
            network: maps a bracket to linear HDR; on any device.
            bracket: ``(B, N, C, H, W)``, with its border.

        Raises:
            TypeError: ``bracket`` is not a floating-point tensor.
            ValueError: ``bracket`` is not ``(B, N, C, H, W)`` or has no pixels inside its border.
        """
        check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
        seen = crop_sides(bracket.flatten(0, 1), self.border).unflatten(0, bracket.shape[:2])
        if self.tile is not None:
            return official_tiles(network, seen, tile=self.tile)
        height, width = seen.shape[-2:]
        return tiled_inference(network, seen, tile=(height, width), overlap=0)

    def score(
        self,
        prediction: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c _h _w"],
        metadata: Metadata | None = None,
        *,
        cropped: bool = False,
        lpips_weights: str | os.PathLike[str] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the protocol's metrics, ``(B,)`` float64 each, on the device of the pictures.

        Args:
            prediction: ``(B, 3, H, W)`` linear RGB or ``(B, 4, h, w)`` packed RAW, on the scale of ``peak``.
            target: same size, or larger by the protocol's crop: the prediction of a network that ran without the
                border is compared with the middle of the whole target.
            metadata: ``white_balance`` and ``color_matrix`` of RAW data, as in the samples of
                :class:`~skt_components.data.BracketIRE`.
            cropped: both pictures lack the border already, as the test samples of BracketIRE do by default.
            lpips_weights: for "LPIPS", see :func:`~skt_components.metrics.lpips`.

        Raises:
            TypeError: a picture is not a floating-point tensor.
            ValueError: the shapes do not fit together, or the domain has no such metadata.
            ImportError: "LPIPS" is among the metrics and its package is not installed.
        """
        pair = _Pair(self, *self.compared(prediction, target, metadata, cropped=cropped), lpips_weights)
        return {name: METRICS[name](pair) for name in self.metrics}

    def compared(
        self,
        prediction: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c _h _w"],
        metadata: Metadata | None = None,
        *,
        cropped: bool = False,
    ) -> tuple[Float[Tensor, "b 3 _i _j"], Float[Tensor, "b 3 _i _j"]]:
        """Return prediction and target as :meth:`score` compares them: rendered and cropped."""
        shown, whole = (self.render(picture, metadata) for picture in (prediction, target))
        interior = crop_sides(whole, self.crop)
        if not cropped and shown.shape != interior.shape:
            check_same_shape("rendered prediction", shown, "rendered target", whole)
            shown = crop_sides(shown, self.crop)
        return shown, whole if cropped else interior

    def render(self, picture: Float[Tensor, "b c h w"], metadata: Metadata | None = None) -> Float[Tensor, "b 3 _h _w"]:
        """Return a picture as linear RGB with white at 1, in float64, before cropping; see :meth:`score`."""
        check_tensor("picture", picture, ndim=4, layout="(B, C, H, W)", channels=4 if self.domain == "raw" else 3)
        metadata = metadata or {}
        known = {"white_balance", "color_matrix"} if self.domain == "raw" else set()
        if unknown := sorted(metadata.keys() - known):
            raise ValueError(f"metadata of {self.domain} pictures must be {sorted(known) or 'empty'}, got {unknown}")
        if self.domain == "raw":
            return self._render_raw(picture.double() / self.peak, metadata)
        linear = (round_rgbe(picture) if self.rounding == "rgbe" else picture).double() / self.peak
        return linear.flip(1) if self.channel_order == "bgr" else linear

    def tonemap(self, linear: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return a rendered picture after the mu-law, with the precision of the protocol's files."""
        return quantize(mu_law(linear, mu=self.mu), 16 if self.rounding == "uint16" else None)

    def hdr_vdp2(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> HDRVDP2Output:
        """Compute HDR-VDP-2, with its visibility maps, of the two pictures from :meth:`compared`."""
        height, width = target.shape[-2:]
        degree = self._pixels_per_degree(width, height)
        return hdr_vdp2(prediction, target, color_encoding=self.vdp_encoding, pixels_per_degree=degree)

    def _pixels_per_degree(self, width: int, height: int) -> float:
        if self.vdp_diagonal is not None:
            return hdr_vdp_pix_per_deg(self.vdp_diagonal, (width, height), _VDP_DISTANCE)
        assert self.vdp_pixels_per_degree is not None
        return self.vdp_pixels_per_degree

    def _vdp_geometry(self) -> str:
        degree = f"{self._pixels_per_degree(1500, 1000):.3f} pixels per degree"
        if self.vdp_diagonal is None:
            return degree
        display = f"a display of {self.vdp_diagonal:g} inches at {_VDP_DISTANCE} m that the picture fills"
        return f"{display} ({degree} at 1500x1000)"

    def _render_raw(self, packed: Tensor, metadata: Metadata) -> Float[Tensor, "b 3 _h _w"]:
        """Render RAW as BracketIRE's scripts do: clipped at every step, demosaiced after a gamma curve."""
        packed = packed.clamp(min=0)
        if (gains := metadata.get("white_balance")) is not None:
            packed = white_balance(packed, gains)
        display = unpack_raw(packed.clamp(max=1)) ** (1 / 2.2)
        rgb = demosaic(display, method=self.demosaicing).clamp(0, 1) ** 2.2
        if (matrix := metadata.get("color_matrix")) is not None:
            rgb = apply_color_matrix(rgb, matrix.double())
        rgb = rgb.clamp(0, 1)
        return rgb.flip(1) if self.channel_order == "bgr" else rgb


_VDP_DISTANCE = 0.55  # meters
_SCTNET_VDP = "SCTNet's utils/hdrvdp2_pu21/run/test.m"
_BRACKETIRE: dict[str, Any] = {
    "domain": "raw",
    "metrics": ("PSNR-mu", "SSIM-mu"),
    "peak": 16.0,
    "rounding": "uint16",
    "ssim_sample_covariance": True,
    "vdp_source": f"{_SCTNET_VDP}, as BracketIRE's scripts have no HDR-VDP-2",
    "remark": "not the learned demosaicing of the published tables, whose numbers these do not repeat",
}


class _Pair:
    """Prediction and target as a protocol compares them, tone-mapped once for all metrics."""

    def __init__(self, protocol: Protocol, prediction: Tensor, target: Tensor, lpips_weights: Any) -> None:
        self.protocol, self.lpips_weights = protocol, lpips_weights
        self.linear = (prediction, target)
        self.mapped = (protocol.tonemap(prediction), protocol.tonemap(target))

    def ssim(self, pictures: tuple[Tensor, Tensor]) -> Tensor:
        protocol = self.protocol
        options = {"sample_covariance": protocol.ssim_sample_covariance, "border": protocol.ssim_border}
        return ssim(*pictures, peak=1.0, clip=protocol.ssim_clip, **options)  # type: ignore[arg-type]

    def lpips(self) -> Tensor:
        return lpips(*self.mapped, weights=self.lpips_weights)

    def displayed(self) -> list[Tensor]:
        peak, contrast, ambient = self.protocol.pu21_display
        rounded = [quantize(picture, 8, rounded=True) for picture in self.mapped]
        return [display_luminance(x, peak=peak, contrast=contrast, ambient=ambient) for x in rounded]


METRICS: dict[str, Callable[[_Pair], Tensor]] = {
    "PSNR-mu": lambda pair: psnr(*pair.mapped, peak=1.0),
    "PSNR-L": lambda pair: psnr(*pair.linear, peak=1.0),
    "SSIM-mu": lambda pair: pair.ssim(pair.mapped),
    "SSIM-L": lambda pair: pair.ssim(pair.linear),
    "LPIPS": _Pair.lpips,
    "PU21-PSNR": lambda pair: psnr_pu21(*pair.displayed()),
    "PU21-SSIM": lambda pair: ssim_pu21(*pair.displayed()),
    "HDR-VDP-2": lambda pair: pair.protocol.hdr_vdp2(*pair.linear).Q,
}

PROTOCOLS: dict[str, Protocol] = {
    "kalantari": Protocol.kalantari(),
    "tel": Protocol.tel(),
    "matlab": Protocol.matlab(),
    "bracketire": Protocol.bracketire(),
    "bracketire-plus": Protocol.bracketire_plus(),
    "ntire2024": Protocol.ntire2024(),
    "simulated": Protocol("Simulated brackets", ssim_clip=True, vdp_source=_SCTNET_VDP),
}
"""Protocols by name; a published data set has its name, "simulated" is for simulated brackets."""


def round_rgbe(picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Truncate a picture to the precision of a Radiance file: 8 bits below the exponent of a pixel's largest channel.

    Args:
        picture: ``(B, 3, H, W)`` linear RGB; negative values, which the format cannot hold, become 0.

    Example:
        >>> import torch
        >>> round_rgbe(torch.tensor([1.0, 0.5001, 0.001]).view(1, 3, 1, 1)).flatten()
        tensor([1.0000, 0.5000, 0.0000])
    """
    check_tensor("picture", picture, ndim=4, layout="(B, 3, H, W)", channels=3)
    picture = picture.clamp(min=0)
    largest = picture.amax(1, keepdim=True)
    step = largest / torch.frexp(largest)[0] / 256  # the power of two above the largest channel, over 2^8
    return ((picture / step).floor() * step).masked_fill(largest < 1e-32, 0.0)
