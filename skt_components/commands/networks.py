"""The table of networks: ``skt networks``."""

from __future__ import annotations

import torch

from skt_components.models.network import RAW_CHANNELS, ReconstructionNetwork
from skt_components.models.pretrained import pretrained_names
from skt_components.models.registry import NETWORK_CLASSES, NETWORKS

_COLUMNS = ("network", "parameters", "bracket", "output", "half precision", "tiles", "weights")


def networks() -> None:
    """List the networks: size, bracket, half precision, tiles, trained weights."""
    rows = [_COLUMNS, *map(_row, NETWORKS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print(
        "\nbracket: as published; ahdrnet, hdr-transformer and sctnet also take RAW, tmrnet also sRGB\n"
        "half precision: the types of torch.autocast that change the output by at most one hundredth\n"
        "tiles: of tiled inference, the same as the whole picture, or nearly the same\n"
        "weights: included, load_pretrained(NAME); authors, the file of the network's authors, NETWORK.from_official"
    )


def _row(name: str) -> tuple[str, ...]:
    with torch.device("meta"):  # neither memory nor time
        network = NETWORKS[name]()
    assert isinstance(network, ReconstructionNetwork)
    kind = "packed RAW" if network.in_channels == RAW_CHANNELS else "sRGB"
    sides = f", sides multiples of {network.size_multiple}" if network.size_multiple > 1 else ""
    weights = dict.fromkeys(pretrained_names(), "included") | dict.fromkeys(NETWORK_CLASSES, "authors")
    return (
        name,
        f"{sum(parameter.numel() for parameter in network.parameters()):10,}",
        f"{network.num_frames} {kind}",
        f"{network.scale}x",
        ", ".join(network.half_precision),
        ("same" if network.exact_tiles else "nearly") + sides,
        weights.get(name, "-"),
    )
