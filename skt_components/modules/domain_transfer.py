"""Domain transfer T (eq. 1): from the network's HDR output to a display-like picture."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops._checks import check_choice, check_positive, check_tensor
from skt_components.ops.raw import demosaic, mosaic, pack_raw, unpack_raw
from skt_components.ops.transfer import mu_law, mu_law_inverse


class DomainTransfer(nn.Module):
    """Tone-map HDR with the mu-law, after demosaicing it if it is RAW (the T of eq. 1).

    ``domain="srgb"``: ``(B, 3, H, W)`` linear RGB -> ``(B, 3, H, W)``.
    ``domain="raw"``: ``(B, 4, h, w)`` packed R, Gr, Gb, B -> ``(B, 3, 2h, 2w)``.

    Args:
        domain: "srgb" or "raw".
        mu: amount of compression.
        peak: linear value that maps to 1; None takes 1 for sRGB and 16 for RAW (BracketIRE's scale).
        cfa_pattern: Bayer pattern of RAW data.
        method: demosaicing method, "bilinear" or "malvar".

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> import torch
        >>> DomainTransfer("raw")(torch.rand(1, 4, 8, 8)).shape
        torch.Size([1, 3, 16, 16])

    Reference:
        Eq. 1 of the paper.
    """

    def __init__(
        self,
        domain: str = "srgb",
        mu: float = 5000.0,
        peak: float | None = None,
        cfa_pattern: str = "RGGB",
        method: str = "bilinear",
    ) -> None:
        super().__init__()
        check_choice("domain", domain, ("srgb", "raw"))
        check_choice("cfa_pattern", cfa_pattern, ("RGGB", "BGGR", "GRBG", "GBRG"))
        check_choice("method", method, ("bilinear", "malvar"))
        peak = peak if peak is not None else (1.0 if domain == "srgb" else 16.0)
        check_positive("mu", mu)
        check_positive("peak", peak)
        self.domain, self.mu, self.peak = domain, mu, peak
        self.cfa_pattern, self.method = cfa_pattern, method

    def forward(self, hdr: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 *hw"]:
        """Return the tone-mapped picture of linear ``hdr``, nominally in [0, 1]."""
        if self.domain == "srgb":
            check_tensor("hdr", hdr, ndim=4, layout="(B, 3, H, W)", channels=3)
            return mu_law(hdr / self.peak, self.mu)
        check_tensor("hdr", hdr, ndim=4, layout="(B, 4, h, w) packed RAW", channels=4)
        bayer = unpack_raw(hdr / self.peak, self.cfa_pattern)
        return mu_law(demosaic(bayer, cfa_pattern=self.cfa_pattern, method=self.method), self.mu)

    def inverse(self, tonemapped: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c *hw"]:
        """Return the linear picture whose transfer is ``tonemapped``.

        Exact for sRGB. For RAW it samples the colour filter array, so that ``inverse(T(raw)) == raw`` up to
        rounding; ``T(inverse(x)) == x`` holds only for pictures that a demosaicing can produce.
        """
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        linear = mu_law_inverse(tonemapped, self.mu) * self.peak
        if self.domain == "srgb":
            return linear
        return pack_raw(mosaic(linear, self.cfa_pattern), self.cfa_pattern)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        text = f"domain={self.domain!r}, mu={self.mu}, peak={self.peak}"
        raw = f", cfa_pattern={self.cfa_pattern!r}, method={self.method!r}"
        return text + (raw if self.domain == "raw" else "")
