"""Bayer RAW: packing, mosaicing, differentiable demosaicing, white balance, color matrix, and rendering with all three.

Every function raises TypeError for a picture or matrix that is not a floating-point tensor, and ValueError for a wrong
shape, an odd or too small size, and an unknown pattern or method. Values may have any scale and are never clipped.
``cfa_pattern`` has the colors of the top left 2x2 block, row by row: RGGB, BGGR, GRBG or GBRG. Packed planes are
R, Gr, Gb, B, where Gr is the green in the rows of red.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skt_components.ops.checks import at_least_float32, check_choice, check_per_picture, check_tensor

CFA_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
_RADIUS = {"bilinear": 1, "malvar": 2}  # reach of each method, the width of the mirrored border


def pack_raw(bayer: Float[Tensor, "b 1 h w"], cfa_pattern: str = "RGGB") -> Float[Tensor, "b 4 h//2 w//2"]:
    """Gather a Bayer picture of even size into four planes of half the size, R, Gr, Gb, B for every pattern.

    Example:
        >>> import torch
        >>> pack_raw(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "GRBG").flatten().tolist()
        [2.0, 1.0, 4.0, 3.0]
    """
    check_tensor("bayer", bayer, ndim=4, layout="(B, 1, H, W)", channels=1)
    height, width = bayer.shape[-2:]
    if height % 2 or width % 2 or not (height and width):
        raise ValueError(f"bayer must have even height and width > 0, got {height}x{width}")
    return torch.cat([bayer[..., p // 2 :: 2, p % 2 :: 2] for p in _plane_positions(cfa_pattern)], dim=1)


def unpack_raw(packed: Float[Tensor, "b 4 h w"], cfa_pattern: str = "RGGB") -> Float[Tensor, "b 1 2*h 2*w"]:
    """Arrange packed planes as a Bayer picture ``(B, 1, H, W)``; the exact inverse of :func:`pack_raw`.

    Example:
        >>> import torch
        >>> unpack_raw(torch.tensor([2.0, 1.0, 4.0, 3.0]).view(1, 4, 1, 1), "GRBG").tolist()
        [[[[1.0, 2.0], [3.0, 4.0]]]]
    """
    check_tensor("packed", packed, ndim=4, layout="(B, 4, H/2, W/2)", channels=4)
    positions = _plane_positions(cfa_pattern)
    planes = torch.cat([packed[:, i : i + 1] for i in map(positions.index, range(4))], dim=1)
    return torch.nn.functional.pixel_shuffle(planes, 2)


def mosaic(rgb: Float[Tensor, "b 3 h w"], cfa_pattern: str = "RGGB") -> Float[Tensor, "b 1 h w"]:
    """Sample an RGB picture through a Bayer color filter array. Return the unchanged samples ``(B, 1, H, W)``.

    Example:
        >>> import torch
        >>> mosaic(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)).tolist()
        [[[[1.0, 2.0], [2.0, 3.0]]]]
    """
    check_tensor("rgb", rgb, ndim=4, layout="(B, 3, H, W)", channels=3)
    red_row, red_column = _red_lines(rgb, cfa_pattern)
    red, green, blue = rgb.split(1, dim=1)
    return torch.where(red_row, torch.where(red_column, red, green), torch.where(red_column, green, blue))


def demosaic(
    bayer: Float[Tensor, "b 1 h w"], cfa_pattern: str = "RGGB", method: str = "bilinear"
) -> Float[Tensor, "b 3 h w"]:
    """Interpolate a Bayer picture to RGB ``(B, 3, H, W)``, differentiably. Known samples keep their exact value.

    The border is mirrored about the outermost row and column. ``malvar`` can overshoot next to edges.

    Args:
        bayer: ``(B, 1, H, W)``, also of odd size; at least 2x2, or 3x3 for ``malvar``.
        method: "bilinear" (mean of the nearest samples of a color) or "malvar" (gradient-corrected, 5x5).

    Example:
        >>> import torch
        >>> demosaic(torch.tensor([[[[1.0, 2.0], [2.0, 3.0]]]]))[0, :, 0, 0].tolist()
        [1.0, 2.0, 3.0]

    Reference:
        Malvar et al., "High-quality linear interpolation for demosaicing of Bayer-patterned color images", 2004.
    """
    check_tensor("bayer", bayer, ndim=4, layout="(B, 1, H, W)", channels=1)
    check_choice("method", method, _RADIUS)
    smallest = _RADIUS[method] + 1
    if min(bayer.shape[-2:]) < smallest:
        size = "x".join(map(str, bayer.shape[-2:]))
        raise ValueError(f'bayer must be at least {smallest}x{smallest} for method="{method}", got {size}')
    red_row, red_column = _red_lines(bayer, cfa_pattern)
    interpolate = _bilinear if method == "bilinear" else _malvar
    dtype, bayer = bayer.dtype, at_least_float32(bayer)  # sums of neighbors overflow in half precision
    cross, along_row, along_column, diagonal = interpolate(bayer)

    # At a green pixel the color of its row is left and right, the other color above and below.
    in_red_row, in_blue_row = torch.where(red_column, bayer, along_row), torch.where(red_column, along_column, diagonal)
    red = torch.where(red_row, in_red_row, in_blue_row)
    in_red_row, in_blue_row = torch.where(red_column, diagonal, along_column), torch.where(red_column, along_row, bayer)
    blue = torch.where(red_row, in_red_row, in_blue_row)
    green = torch.where(red_row == red_column, cross, bayer)
    return torch.cat([red, green, blue], dim=1).to(dtype)


def white_balance(
    picture: Float[Tensor, "b c h w"], gains: Float[Tensor, "3"] | Float[Tensor, "b 3"] | Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """Multiply the colors of an RGB or packed RAW picture by their gains.

    Args:
        picture: ``(B, 3, H, W)`` linear RGB, or ``(B, 4, H, W)`` packed R, Gr, Gb, B.
        gains: factors of R, G and B, for all pictures or one set per picture.

    Example:
        >>> import torch
        >>> white_balance(torch.ones(1, 4, 1, 1), (2.0, 1.0, 1.5)).flatten().tolist()
        [2.0, 1.0, 1.0, 1.5]
    """
    check_tensor("picture", picture, ndim=4, layout="(B, 3 or 4, H, W)")
    batch, channels = picture.shape[:2]
    if channels not in (3, 4):
        raise ValueError(f"picture must have 3 (RGB) or 4 (packed RAW) channels, got {channels}")
    factors = torch.as_tensor(gains, dtype=picture.dtype, device=picture.device)
    check_per_picture("gains", factors, (3,), batch)
    red, green, blue = factors.split(1, dim=-1)
    greens = [green] * (channels - 2)
    return picture * torch.cat([red, *greens, blue], dim=-1)[..., None, None]


def apply_color_matrix(
    rgb: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "3 3"] | Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Transform linear colors by a 3x3 matrix, or one per picture: ``out_i = sum_j matrix[i, j] * rgb_j``.

    Example:
        >>> import torch
        >>> swap = torch.eye(3).flip(0)
        >>> apply_color_matrix(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), swap).flatten().tolist()
        [3.0, 2.0, 1.0]
    """
    check_tensor("rgb", rgb, ndim=4, layout="(B, 3, H, W)", channels=3)
    check_tensor("matrix", matrix)
    check_per_picture("matrix", matrix, (3, 3), rgb.shape[0])
    # Not a matrix product, which loses digits under autocast and TF32.
    wide = at_least_float32(rgb)
    red, green, blue = matrix.to(wide)[..., None, None].unbind(dim=-3)
    return (red * wide[:, 0:1] + green * wide[:, 1:2] + blue * wide[:, 2:3]).to(rgb.dtype)


_balance = white_balance  # render_raw has an argument of that name


def render_raw(
    packed: Float[Tensor, "b 4 h w"],
    *,
    white_balance: Float[Tensor, "3"] | Float[Tensor, "b 3"] | Sequence[float] | None = None,
    color_matrix: Float[Tensor, "3 3"] | Float[Tensor, "b 3 3"] | None = None,
    cfa_pattern: str = "RGGB",
    method: str = "bilinear",
) -> Float[Tensor, "b 3 2*h 2*w"]:
    """Render packed RAW as linear RGB ``(B, 3, 2h, 2w)``: white balance, demosaicing, color matrix; differentiable.

    Bright parts can exceed the sensor's white, and its saturated colors can be negative in the target's gamut.

    Args:
        white_balance: R, G, B factors; None keeps the sensor's balance.
        color_matrix: from the sensor's balanced RGB to the target's RGB; None keeps the sensor's colors.
        method: as in :func:`demosaic`.

    Example:
        >>> import torch
        >>> render_raw(torch.ones(1, 4, 2, 2), white_balance=(2.0, 1.0, 1.5))[0, :, 0, 0].tolist()
        [2.0, 1.0, 1.5]
    """
    check_tensor("packed", packed, ndim=4, layout="(B, 4, h, w)", channels=4)
    if color_matrix is not None:  # checked here so that errors have this function's argument names
        check_tensor("color_matrix", color_matrix)
        check_per_picture("color_matrix", color_matrix, (3, 3), packed.shape[0])
    if white_balance is not None:
        gains = torch.as_tensor(white_balance, dtype=packed.dtype, device=packed.device)
        check_per_picture("white_balance gains", gains, (3,), packed.shape[0])
        packed = _balance(packed, gains)
    rgb = demosaic(unpack_raw(packed, cfa_pattern), cfa_pattern, method)
    return rgb if color_matrix is None else apply_color_matrix(rgb, color_matrix)


def _plane_positions(cfa_pattern: str) -> list[int]:
    """Return the positions of R, Gr, Gb and B in the 2x2 block, counted row by row from 0."""
    check_choice("cfa_pattern", cfa_pattern, CFA_PATTERNS)
    red, blue = cfa_pattern.index("R"), cfa_pattern.index("B")
    return [red, red ^ 1, blue ^ 1, blue]  # flipping the last bit changes the column, not the row


def _red_lines(picture: Tensor, cfa_pattern: str) -> tuple[Bool[Tensor, "h 1"], Bool[Tensor, "1 w"]]:
    """Return which rows and which columns hold red samples."""
    row, column = divmod(_plane_positions(cfa_pattern)[0], 2)
    height, width = picture.shape[-2:]
    rows = torch.arange(height, device=picture.device) % 2 == row
    columns = torch.arange(width, device=picture.device) % 2 == column
    return rows[:, None], columns[None, :]


# The interpolation kernels are sums of shifted pictures, not conv2d: the same arithmetic, but in the input's precision
# under autocast and TF32, and fused by the compiler.


def _bilinear(bayer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means of the 4 neighbors, left and right, above and below, and the diagonals."""
    _, horizontal, vertical, diagonals, _, _ = _neighbor_sums(bayer, radius=1)
    return (horizontal + vertical) / 4, horizontal / 2, vertical / 2, diagonals / 4


def _malvar(bayer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the bilinear estimates corrected by the Laplacian of the color known at each pixel."""
    center, horizontal, vertical, diagonals, far_h, far_v = _neighbor_sums(bayer, radius=2)
    cross = (4 * center + 2 * (horizontal + vertical) - far_h - far_v) / 8
    along_row = (5 * center + 4 * horizontal - diagonals - far_h + far_v / 2) / 8
    along_column = (5 * center + 4 * vertical - diagonals - far_v + far_h / 2) / 8
    diagonal = (6 * center + 2 * diagonals - 1.5 * (far_h + far_v)) / 8
    return cross, along_row, along_column, diagonal


def _neighbor_sums(bayer: Tensor, radius: int) -> tuple[Tensor, ...]:
    """Return the picture and the sums of its neighbors: h, v, diagonal at 1; h, v at ``radius``."""
    height, width = bayer.shape[-2:]
    padded = _mirror(_mirror(bayer, radius, dim=-1), radius, dim=-2)

    def at(dy: int, dx: int) -> Tensor:
        return padded.narrow(-2, radius + dy, height).narrow(-1, radius + dx, width)

    return (
        bayer,
        at(0, -1) + at(0, 1),
        at(-1, 0) + at(1, 0),
        at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1),
        at(0, -radius) + at(0, radius),
        at(-radius, 0) + at(radius, 0),
    )


def _mirror(picture: Tensor, radius: int, dim: int) -> Tensor:
    # Not F.pad(mode="reflect"), whose gradient on CUDA is not deterministic.
    size = picture.shape[dim]
    before = picture.narrow(dim, 1, radius).flip(dim)
    after = picture.narrow(dim, size - 1 - radius, radius).flip(dim)
    return torch.cat([before, picture, after], dim=dim)
