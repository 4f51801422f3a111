"""Networks on pictures of any size: tile by tile, blended, or as the official evaluations cut them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.data.progress import progress_bar
from skt_components.ops.checks import check_choice, check_count, check_tensor

Network = Callable[[Tensor], Tensor] | nn.Module


def tiled_inference(
    network: Network,
    bracket: Float[Tensor, "b n c h w"],
    *,
    tile: int | tuple[int, int] = 512,
    overlap: int = 128,
    blend: str = "linear",
    batch: int = 1,
    size_multiple: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Float[Tensor, "b o sh sw"]:
    """Run a network on overlapping tiles and put their outputs together.

    The result is that of the whole picture, up to rounding, for a network that sees no further than 3/8 of the
    overlap (1/2 with ``blend="none"``), whose layers do not depend on where a tile starts but for
    ``size_multiple``. AHDRNet sees 43 pixels far. Networks with attention over windows or statistics of the whole
    picture give slightly different outputs; blending hides the seams.

    Only tiles are on the network's device; bracket and output stay on the bracket's, so a large picture needs no more
    memory there than itself. Gradients are off; the network's mode (train, eval) stays as it is.

    Args:
        network: bracket ``(b, N, C, h, w)`` in, picture ``(b, O, s h, s w)`` out, s whole (1, or 4 for BracketIRE+).
        bracket: ``(B, N, C, H, W)``, on any device.
        tile: height and width of the tiles, multiples of ``size_multiple``; they shrink to a smaller picture.
        overlap: pixels that neighbours share at least; at most a tile less ``size_multiple``.
        blend: "linear": fade over the middle quarter of the overlap; "none": change at its middle.
        batch: tiles at once.
        size_multiple: what the sides of the network's input have to be multiples of. Tiles then start there too, and
            the picture's last row and column are repeated where one reaches further.
        device: where the network runs; None: where its parameters are, or else the bracket.
        progress: show a bar on a terminal where tqdm is installed.

    Returns:
        ``(B, O, s H, s W)`` on the device of the bracket, in the dtype of the network's output.

    Raises:
        TypeError: ``bracket`` is no floating-point tensor.
        ValueError: ``bracket`` is not ``(B, N, C, H, W)``, an option is out of range, or the network's output is no
            whole multiple of its input.

    Example:
        >>> bracket = torch.rand(1, 3, 6, 40, 50)
        >>> picture = tiled_inference(lambda tiles: tiles[:, 1, :3], bracket, tile=16, overlap=8)
        >>> torch.allclose(picture, bracket[:, 1, :3])
        True
    """
    check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
    check_choice("blend", blend, ("linear", "none"))
    multiple = check_count("size_multiple", size_multiple, 1)
    overlap = check_count("overlap", overlap, 0)
    sides = tuple(tile) if isinstance(tile, Sequence) else (tile, tile)
    if len(sides) != 2 or any(check_count("tile", side, 1) % multiple or side < overlap + multiple for side in sides):
        wanted = f"one or two multiples of size_multiple={multiple}, at least {overlap + multiple} with that overlap"
        raise ValueError(f"tile must be {wanted}, got {tile}")
    fade = overlap / 4 if blend == "linear" else 0.0
    rows, columns = (
        _Axis.overlapping(length, side, overlap, multiple, fade)
        for length, side in zip(bracket.shape[-2:], sides, strict=True)
    )
    return _run(network, bracket, rows, columns, None, batch, device, progress)


def official_tiles(
    network: Network,
    bracket: Float[Tensor, "b n c h w"],
    *,
    tile: int = 256,
    batch: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Float[Tensor, "b o sh sw"]:
    """Run a network on tiles side by side, the last ones filled with ones: how HDR-Transformer and SCTNet evaluate.

    Their pictures have seams, and edges of ones at the right and the bottom, that influence the published numbers.
    They also run tiles of nothing but ones, where a side is a multiple of the tile; nothing of those remains, so they
    are left out here.

    Args:
        network: as in :func:`tiled_inference`.
        bracket: ``(B, N, C, H, W)``, on any device.
        tile: side of the square tiles.
        batch: tiles at once.
        device: where the network runs; None: where its parameters are, or else the bracket.
        progress: show a bar on a terminal where tqdm is installed.

    Returns:
        ``(B, O, s H, s W)`` on the device of the bracket, in the dtype of the network's output.

    Raises:
        TypeError: ``bracket`` is no floating-point tensor.
        ValueError: as :func:`tiled_inference`.

    Example:
        >>> official_tiles(lambda tiles: tiles[:, 0], torch.rand(1, 3, 6, 10, 20), tile=8).shape
        torch.Size([1, 6, 10, 20])
    """
    check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
    side = check_count("tile", tile, 1)
    rows, columns = (_Axis(length, side, range(0, length, side), 0.0) for length in bracket.shape[-2:])
    return _run(network, bracket, rows, columns, 1.0, batch, device, progress)


class _Axis(NamedTuple):
    """Tiles along one side of the picture: its length, theirs, where they start, how far they fade into each other."""

    length: int
    tile: int
    starts: Sequence[int]
    fade: float

    @classmethod
    def overlapping(cls, length: int, tile: int, overlap: int, multiple: int, fade: float) -> _Axis:
        """Cover the length, up to the next multiple, by tiles that start at multiples; the last ends there."""
        padded = -(-length // multiple) * multiple
        tile = min(tile, padded)
        stride = max((tile - overlap) // multiple, 1) * multiple  # 0 only where one tile is enough
        return cls(length, tile, [*range(0, padded - tile, stride), padded - tile], fade)

    def weights(self, index: int, scale: int) -> Tensor:
        """Return a tile's share of each of its output pixels; the shares of all tiles add up to 1 everywhere."""
        places = (torch.arange(scale * self.tile) + 0.5) / scale + self.starts[index]
        return self._passed(index, places) - self._passed(index + 1, places)

    def _passed(self, index: int, places: Tensor) -> Tensor:
        """Return how far the places lie behind the seam before tile ``index``, from 0 to 1."""
        if index in (0, len(self.starts)):
            return torch.full_like(places, float(index == 0))
        seam = (self.starts[index - 1] + self.tile + self.starts[index]) / 2
        return ((places - seam) / self.fade + 0.5).clamp(0, 1) if self.fade else (places > seam).to(places)


def _run(
    network: Network,
    bracket: Tensor,
    rows: _Axis,
    columns: _Axis,
    fill: float | None,
    batch: int,
    device: torch.device | str | None,
    progress: bool,
) -> Tensor:
    """Run the tiles of all pictures, and add each output, times its weights, to the result."""
    batch = check_count("batch", batch, 1)
    if not bracket.numel():
        raise ValueError(f"bracket must hold at least one pixel, got shape {tuple(bracket.shape)}")
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    device = device or (bracket if parameter is None else parameter).device
    places = list(itertools.product(range(len(bracket)), range(len(rows.starts)), range(len(columns.starts))))
    groups = [places[i : i + batch] for i in range(0, len(places), batch)]
    result = torch.empty(0)
    for group in progress_bar(groups, "tiles", "batch", show=progress):
        tiles = [
            _cut(bracket[b], rows.starts[i], columns.starts[j], rows.tile, columns.tile, fill) for b, i, j in group
        ]
        with torch.no_grad():
            outputs = network(torch.stack(tiles).to(device)).to(bracket.device)
        scale = _scale(outputs, rows.tile, columns.tile)
        if not result.numel():
            size = (scale * rows.length, scale * columns.length)
            result = outputs.new_zeros(len(bracket), outputs.shape[1], *size)
        for (b, i, j), output in zip(group, outputs, strict=True):
            weights = rows.weights(i, scale)[:, None] * columns.weights(j, scale)
            top, left = scale * rows.starts[i], scale * columns.starts[j]
            place = result[b, :, top : top + output.shape[-2], left : left + output.shape[-1]]
            height, width = place.shape[-2:]  # less than the tile where it reached beyond the picture
            place += (output * weights.to(output))[:, :height, :width]
    return result


def _cut(picture: Tensor, top: int, left: int, height: int, width: int, fill: float | None) -> Tensor:
    """Return a tile ``(N, C, height, width)``; beyond the picture ``fill``, or its last row and column."""
    piece = picture[..., top : top + height, left : left + width]
    missing = (0, width - piece.shape[-1], 0, height - piece.shape[-2])
    if not any(missing):
        return piece
    return F.pad(piece, missing, mode="replicate") if fill is None else F.pad(piece, missing, value=fill)


def _scale(outputs: Tensor, height: int, width: int) -> int:
    """Return how many times as large as its input the network's output is."""
    scale = outputs.shape[-2] // height if outputs.ndim == 4 else 0
    if scale < 1 or outputs.shape[-2:] != (scale * height, scale * width):
        raise ValueError(
            f"network must turn tiles of {height}x{width} into (B, C, s {height}, s {width}) with a whole s, "
            f"got {tuple(outputs.shape)}"
        )
    return scale
