"""Run networks on pictures of any size: on blended overlapping tiles, or on the tiles of the official evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.data.progress import progress_bar
from skt_components.ops.checks import check_choice, check_count, check_output_type, check_tensor

Network = Callable[[Tensor], Tensor] | nn.Module


def tiled_inference(
    network: Network,
    bracket: Float[Tensor, "b n c h w"],
    *,
    tile: int | tuple[int, int] = 768,
    overlap: int = 128,
    blend: str = "linear",
    batch: int = 1,
    size_multiple: int = 1,
    forward_orm: Callable[[Any, Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Float[Tensor, "b o sh sw"]:
    """Run a network on overlapping tiles and blend their outputs.

    The result equals the output for the whole picture up to rounding under two conditions. The receptive field of the
    network reaches at most 3/8 of the overlap (1/2 with ``blend="none"``; AHDRNet's reaches 43 pixels). Its layers
    depend on the position of a tile only through ``size_multiple``. Networks with window attention or statistics of the
    whole picture give slightly different outputs. Blending hides the seams.

    Only the tiles are on the network's device. Bracket and output stay on the bracket's device. Gradients are off. The
    mode of the network (train or eval) is not changed.

    Args:
        network: maps a bracket ``(b, N, C, h, w)`` to a picture ``(b, O, s h, s w)`` with an integer s (1, or 4 for
            BracketIRE+).
        bracket: ``(B, N, C, H, W)``, on any device.
        tile: largest height and width of the tiles, multiples of ``size_multiple``. All tiles have one size, the
            smallest that covers the picture with the same number of tiles.
        overlap: smallest number of pixels that adjacent tiles share; at most the tile size minus ``size_multiple``.
        blend: "linear": fade over the middle quarter of the overlap; "none": switch at its middle.
        batch: number of tiles per forward pass.
        size_multiple: the sides of the network's input must be multiples of this number. Tiles also start at multiples.
            If a tile is larger than the rest of the picture, the last row and column are repeated.
        forward_orm: function that calls the network, ``forward_orm(network, tiles)``. None: ``network(tiles)``.
        device: where the network runs; None: the device of its parameters, or of the bracket if it has none.
        progress: show a bar on a terminal if tqdm is installed.

    Returns:
        ``(B, O, s H, s W)`` on the device of the bracket, in the dtype of the network's output.

    Raises:
        TypeError: ``bracket`` or the network's output is not a floating-point tensor.
        ValueError: ``bracket`` is not ``(B, N, C, H, W)``, an option is out of range, or the size of the network's
            output is not an integer multiple of its input's.

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
    return _run(network, forward_orm, bracket, rows, columns, None, batch, device, progress)


def official_tiles(
    network: Network,
    bracket: Float[Tensor, "b n c h w"],
    *,
    tile: int = 256,
    batch: int = 1,
    forward_orm: Callable[[Any, Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Float[Tensor, "b o sh sw"]:
    """Run a network on adjacent tiles, the last ones padded with ones, as HDR-Transformer and SCTNet are evaluated.

    The outputs have seams, and the padding influences them at the right and the bottom, as in the published scores. If
    a side is a multiple of the tile, the official code also runs tiles of padding alone. They do not change the result
    and are omitted here.

    Args:
        network: see :func:`tiled_inference`, also for ``batch``, ``forward_orm``, ``device``, ``progress``, the result
            and the errors.
        bracket: ``(B, N, C, H, W)``, on any device.
        tile: side of the square tiles.

    Example:
        >>> official_tiles(lambda tiles: tiles[:, 0], torch.rand(1, 3, 6, 10, 20), tile=8).shape
        torch.Size([1, 6, 10, 20])
    """
    check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
    side = check_count("tile", tile, 1)
    rows, columns = (_Axis(length, side, range(0, length, side), 0.0) for length in bracket.shape[-2:])
    return _run(network, forward_orm, bracket, rows, columns, 1.0, batch, device, progress)


class _Axis(NamedTuple):
    """Tiles along one axis of the picture: its length, the tiles' length and starts, and the width of their blend."""

    length: int
    tile: int
    starts: Sequence[int]
    fade: float

    @classmethod
    def overlapping(cls, length: int, tile: int, overlap: int, multiple: int, fade: float) -> _Axis:
        """Cover the length, rounded up to a multiple, with as few tiles as possible, and those as small as possible.

        They start at multiples, and the last one ends at the padded length.
        """
        padded = -(-length // multiple) * multiple
        overlap = -(-overlap // multiple) * multiple
        count = max(-(-(padded - overlap) // (tile - overlap)), 1)
        tile = -(-(padded + (count - 1) * overlap) // (count * multiple)) * multiple
        stride = max(tile - overlap, multiple)  # one tile may be smaller than the overlap
        return cls(length, tile, [*range(0, padded - tile, stride), padded - tile], fade)

    def weights(self, index: int, scale: int) -> Tensor:
        """Return a tile's weight for each of its output pixels; the weights of all tiles add up to 1 everywhere."""
        places = (torch.arange(scale * self.tile) + 0.5) / scale + self.starts[index]
        return self._weight_from(index, places) - self._weight_from(index + 1, places)

    def _weight_from(self, index: int, places: Tensor) -> Tensor:
        """Return the total weight, from 0 to 1, of tile ``index`` and those after it at the places."""
        if index in (0, len(self.starts)):
            return torch.full_like(places, float(index == 0))
        seam = (self.starts[index - 1] + self.tile + self.starts[index]) / 2
        return ((places - seam) / self.fade + 0.5).clamp(0, 1) if self.fade else (places > seam).to(places)


def _run(
    network: Network,
    forward_orm: Callable[[Any, Tensor], Tensor] | None,
    bracket: Tensor,
    rows: _Axis,
    columns: _Axis,
    fill: float | None,
    batch: int,
    device: torch.device | str | None,
    progress: bool,
) -> Tensor:
    """Run the tiles of all pictures, and sum their weighted outputs."""
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
            inputs = torch.stack(tiles).to(device)
            outputs = network(inputs) if forward_orm is None else forward_orm(network, inputs)
        check_output_type(outputs)
        outputs = outputs.to(bracket.device)
        scale = _scale(outputs, rows.tile, columns.tile)
        if not result.numel():
            size = (scale * rows.length, scale * columns.length)
            result = outputs.new_zeros(len(bracket), outputs.shape[1], *size)
        for (b, i, j), output in zip(group, outputs, strict=True):
            weights = rows.weights(i, scale)[:, None] * columns.weights(j, scale)
            top, left = scale * rows.starts[i], scale * columns.starts[j]
            place = result[b, :, top : top + output.shape[-2], left : left + output.shape[-1]]
            height, width = place.shape[-2:]  # smaller than a tile that reaches beyond the picture
            place += (output * weights.to(output))[:, :height, :width]
    return result


def _cut(picture: Tensor, top: int, left: int, height: int, width: int, fill: float | None) -> Tensor:
    """Return a tile ``(N, C, height, width)``, padded with ``fill`` or with the picture's last row and column."""
    piece = picture[..., top : top + height, left : left + width]
    missing = (0, width - piece.shape[-1], 0, height - piece.shape[-2])
    if not any(missing):
        return piece
    return F.pad(piece, missing, mode="replicate") if fill is None else F.pad(piece, missing, value=fill)


def _scale(outputs: Tensor, height: int, width: int) -> int:
    """Return the ratio of the sides of the network's output and its input."""
    scale = outputs.shape[-2] // height if outputs.ndim == 4 else 0
    if scale < 1 or outputs.shape[-2:] != (scale * height, scale * width):
        raise ValueError(
            f"network must map tiles of {height}x{width} to (B, C, s {height}, s {width}) with an integer s, "
            f"got {tuple(outputs.shape)}"
        )
    return scale
