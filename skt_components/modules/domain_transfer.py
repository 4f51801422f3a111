"""Domain transfer T (eq. 1): tone mapping of the network's HDR output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops.checks import (
    at_least_float32,
    can_read_values,
    check_choice,
    check_per_picture,
    check_positive,
    check_tensor,
)
from skt_components.ops.raw import apply_color_matrix, mosaic, pack_raw, render_raw
from skt_components.ops.raw import white_balance as balance
from skt_components.ops.transfer import mu_law, mu_law_inverse

Gains = Float[Tensor, "3"] | Float[Tensor, "b 3"] | Sequence[float]
Matrix = Float[Tensor, "3 3"] | Float[Tensor, "b 3 3"]


class DomainTransfer(nn.Module):
    """Tone-map HDR with the mu-law; render packed RAW first (the T of eq. 1).

    ``domain="srgb"``: ``(B, 3, H, W)`` linear RGB -> ``(B, 3, H, W)``.
    ``domain="raw"``: ``(B, 4, h, w)`` packed R, Gr, Gb, B -> ``(B, 3, 2h, 2w)``.

    In the paper T demosaics RAW and applies the mu-law. The result has the greenish colors of the sensor. With the
    metadata ``white_balance`` and ``color_matrix`` (for all pictures or one per picture), T renders normal colors, as
    in the pictures that a knowledge bank was trained on.

    Args:
        domain: "srgb" or "raw".
        mu: amount of compression.
        peak: linear value that maps to 1; None: 1 for sRGB, 16 for RAW (BracketIRE's scale).
        cfa_pattern: Bayer pattern of RAW data.
        method: demosaicing method, "bilinear" or "malvar".

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> import torch
        >>> DomainTransfer("raw")(torch.rand(1, 4, 8, 8), white_balance=(2.0, 1.0, 1.6)).shape
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

    def forward(
        self, hdr: Float[Tensor, "b c h w"], *, white_balance: Gains | None = None, color_matrix: Matrix | None = None
    ) -> Float[Tensor, "b 3 *hw"]:
        """Return the tone-mapped picture of ``hdr``, nominally in [0, 1], in float32 (float64 for float64 input).

        Args:
            hdr: linear picture, relative to ``peak``.
            white_balance: R, G, B factors of RAW data, ``(3,)`` or ``(B, 3)``.
            color_matrix: from the camera's balanced linear RGB to linear sRGB, ``(3, 3)`` or ``(B, 3, 3)``.

        Raises:
            TypeError: ``hdr`` or ``color_matrix`` is not a floating-point tensor.
            ValueError: a shape is wrong, or there is metadata of RAW data with ``domain="srgb"``.
        """
        if self.domain == "srgb":
            check_tensor("hdr", hdr, ndim=4, layout="(B, 3, H, W)", channels=3)
            _reject_metadata(white_balance, color_matrix)
            return mu_law(at_least_float32(hdr) / self.peak, self.mu)
        check_tensor("hdr", hdr, ndim=4, layout="(B, 4, h, w) packed RAW", channels=4)
        linear = render_raw(
            at_least_float32(hdr) / self.peak,
            white_balance=white_balance,
            color_matrix=color_matrix,
            cfa_pattern=self.cfa_pattern,
            method=self.method,
        )
        return mu_law(linear, self.mu)

    def inverse(
        self,
        tonemapped: Float[Tensor, "b 3 h w"],
        *,
        white_balance: Gains | None = None,
        color_matrix: Matrix | None = None,
    ) -> Float[Tensor, "b c *hw"]:
        """Return the linear picture whose transfer, with the same metadata, is ``tonemapped``.

        The inverse is exact for sRGB. For RAW it samples the color filter array, so ``inverse(T(raw)) == raw`` up to
        rounding. ``T(inverse(x)) == x`` holds only for pictures that demosaicing can produce.

        Raises:
            TypeError: ``tonemapped`` or ``color_matrix`` is not a floating-point tensor.
            ValueError: a shape is wrong, there is metadata of RAW data with ``domain="srgb"``, or on the CPU a gain is
                0 or the matrix is singular. On other devices values are not checked, and the picture is not finite.
        """
        check_tensor("tonemapped", tonemapped, ndim=4, layout="(B, 3, H, W)", channels=3)
        linear = mu_law_inverse(at_least_float32(tonemapped), self.mu) * self.peak
        if self.domain == "srgb":
            _reject_metadata(white_balance, color_matrix)
            return linear
        if color_matrix is not None:
            check_tensor("color_matrix", color_matrix)
            check_per_picture("color_matrix", color_matrix, (3, 3), linear.shape[0])
            linear = apply_color_matrix(linear, _invert(color_matrix.to(linear)))
        packed = pack_raw(mosaic(linear, self.cfa_pattern), self.cfa_pattern)
        if white_balance is None:
            return packed
        gains = torch.as_tensor(white_balance, dtype=packed.dtype, device=packed.device)
        check_per_picture("white_balance gains", gains, (3,), packed.shape[0])
        if can_read_values(gains) and not gains.all():
            raise ValueError(f"white_balance must not be 0 to be undone, got {gains.tolist()}")
        return balance(packed, 1 / gains)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        text = f"domain={self.domain!r}, mu={self.mu}, peak={self.peak}"
        raw = f", cfa_pattern={self.cfa_pattern!r}, method={self.method!r}"
        return text + (raw if self.domain == "raw" else "")


def _reject_metadata(white_balance: object, color_matrix: object) -> None:
    for name, value in (("white_balance", white_balance), ("color_matrix", color_matrix)):
        if value is not None:
            raise ValueError(f'{name} is metadata of RAW data: it must be None for domain="srgb"')


def _invert(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Invert by cross products; unlike ``torch.linalg.inv`` without a device synchronization."""
    first, second, third = matrix.unbind(dim=-2)
    columns = [torch.linalg.cross(a, b) for a, b in ((second, third), (third, first), (first, second))]
    determinant = (first * columns[0]).sum(-1)
    if can_read_values(matrix):
        # Relative to the largest determinant of rows of this length, so that the scale does not matter.
        largest = matrix.norm(dim=-1).prod(-1)
        if (determinant.abs() <= 8 * torch.finfo(matrix.dtype).eps * largest).any():
            raise ValueError(f"color_matrix must be invertible, got {matrix.tolist()}")
    return torch.stack(columns, dim=-1) / determinant[..., None, None]
