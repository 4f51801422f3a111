"""Networks under evaluation: loading them, identifying their weights, and running them on a bracket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.evaluation.baselines import BASELINES
from skt_components.evaluation.protocols import Protocol
from skt_components.evaluation.tiling import tiled_inference
from skt_components.files.names import file_name
from skt_components.files.weights import tensor_digest
from skt_components.models import TMRNetPlus
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.pretrained import pretrained_file
from skt_components.models.registry import (
    NETWORKS,
    ForwardORM,
    bracket_options,
    call_network,
    load_model,
    load_network,
    load_official,
    load_weights,
)

_RESERVED = (*BASELINES, "metrics.csv", "metrics.json", "report.html", "sections")


class EvaluatedNetwork(NamedTuple):
    """A network under evaluation.

    Attributes:
        name: title of its results.
        network: the network, in eval mode.
        forward: ``forward(network, bracket) -> hdr``.
        identity: plain values that distinguish it from others, for :class:`EvaluationResults`: class, options and the
            digest of its tensors. Names and formats of files do not matter.
        tile: side of the blended tiles on which it runs; None: it runs as the protocol prescribes.
        device: where it runs.
    """

    name: str
    network: nn.Module
    forward: ForwardORM
    identity: dict[str, Any]
    tile: int | None
    device: torch.device

    def reconstruct(self, bracket: Float[Tensor, "b n c h w"], protocol: Protocol) -> Float[Tensor, "b o _h _w"]:
        """Run the network as the protocol prescribes, or on blended tiles that overlap by a quarter.

        Args:
            bracket: ``(B, N, C, H, W)``, the whole bracket, on any device.
            protocol: how the network runs.

        Raises:
            ValueError: a predicted value is infinite or NaN.
        """

        def run(tiles: Tensor) -> Tensor:
            return self.forward(self.network, tiles.to(self.device)).float()

        infer: Callable[[Tensor], Tensor] = run
        if self.tile is not None:
            multiple, overlap = _size_multiple(self.network), self.tile // 4
            options: dict[str, Any] = {"tile": self.tile, "overlap": overlap, "size_multiple": multiple}
            infer = partial(tiled_inference, run, progress=False, **options)
        prediction = protocol.infer(infer, bracket)
        if count := prediction.numel() - int(prediction.isfinite().sum()):
            raise ValueError(f"{self.name}: {count} of {prediction.numel()} predicted values are infinite or NaN")
        return prediction


def load_networks(
    choices: Sequence[tuple[Path | None, str, bool]],
    *,
    domain: str = "srgb",
    scale: int = 1,
    tile: int | None = None,
    device: torch.device | str = "cpu",
) -> list[EvaluatedNetwork]:
    """Make networks with their weights, from this library, its authors or other code.

    The name of a network is the name of its file, or of its callable if there is no file. Equal names get numbers. A
    name that cannot be the name of a folder gets a digest.

    Args:
        choices: three values for each network. ``checkpoint``: a file of weights, the name of a pretrained network, or
            None for other code that loads its own weights. ``orm``: a name in :data:`NETWORKS`,
            ``package.module:callable``, or "saved" for the network named in a file of :func:`save_weights`.
            ``official``: True for weights of the network's authors.
        domain: domain of the data, "srgb" or "raw".
        scale: how many times as large as their brackets the data's targets are, 1 or 4.
        tile: side of blended tiles; None: run the networks as the protocol prescribes.
        device: where the networks run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``orm`` is unknown, weights are missing or do not fit, a network is made for other brackets, or it
            cannot take such tiles.
    """
    titles = [orm.rpartition(":")[2] if checkpoint is None else checkpoint.stem for checkpoint, orm, _ in choices]
    names = [file_name(title, _RESERVED) for title in titles]  # a folder of results has this name
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, 1)]
    networks, options = [], bracket_options(domain, scale=scale)
    for name, (checkpoint, orm, official) in zip(names, choices, strict=True):
        choice = (None if checkpoint is None else pretrained_file(checkpoint), orm, official)
        network, forward, identity = _load(*choice, dict(options))
        if ":" not in choice[1]:  # other code may call one of our networks in its own way
            _check_brackets(name, network, (options["num_frames"], options["in_channels"], scale))
        multiple = _size_multiple(network)
        least = multiple if multiple < 4 else 2 * multiple  # a quarter overlaps
        if tile is not None and (tile % multiple or tile < least):
            raise ValueError(f"tile must be a multiple of {multiple} >= {least} for {name}, got {tile}")
        network = network.eval().to(device)
        networks.append(EvaluatedNetwork(name, network, forward, identity, tile, torch.device(device)))
    return networks


def _load(
    checkpoint: Path | None, orm: str, official: bool, options: dict[str, Any]
) -> tuple[nn.Module, ForwardORM, dict[str, Any]]:
    """Return the network, the function that calls it, and plain values that identify its weights."""
    if options.get("scale") == 1:
        del options["scale"]  # TMRNet+ rejects 1; _check_brackets explains it better
    if checkpoint is None and (orm in NETWORKS or orm == "saved"):
        raise ValueError(f"checkpoint must be a file of weights for the network {orm!r}, got None")
    forward: ForwardORM = call_network
    network: nn.Module
    if official:
        network = load_official(checkpoint, None if orm == "saved" else orm, **options)  # type: ignore[arg-type]
    elif orm == "saved":
        network = load_model(checkpoint)  # type: ignore[arg-type]
    else:
        network, forward = load_network(orm, **options)
        if checkpoint is not None:
            load_weights(checkpoint, network)
    tensors = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    identity: dict[str, Any] = {"network": type(network).__name__, "sha256": tensor_digest(tensors)}
    if isinstance(network, ReconstructionNetwork):
        options = {name: value for name, value in network.config.items() if name != "checkpointing"}
        identity["config"] = {**options, "reference": network.reference}
    if ":" in orm:  # other code, which has no digest, may call a network in its own way
        identity["orm"] = orm
    return network, forward, identity


def _size_multiple(network: nn.Module) -> int:
    return max(getattr(network, "size_multiple", 1), 1)


def _check_brackets(name: str, network: nn.Module, expected: tuple[int, int, int]) -> None:
    """Raise ValueError if one of our networks is made for other brackets than the data's."""
    if isinstance(network, ReconstructionNetwork):
        output_scale = 4 if isinstance(network, TMRNetPlus) else network.config.get("scale", 1)
        found = (network.num_frames, network.in_channels, output_scale)
        if found != expected:
            made, data = ("{} exposures of {} channels, scale {}".format(*numbers) for numbers in (found, expected))
            raise ValueError(f"the network of {name} is for {made}; the data are {data}")
