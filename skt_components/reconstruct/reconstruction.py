"""Run a network on the exposures of one scene."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.evaluation.tiling import tiled_inference
from skt_components.models.network import RAW_CHANNELS
from skt_components.models.pretrained import load_pretrained
from skt_components.ops.checks import check_tensor
from skt_components.ops.merge import merge_exposures
from skt_components.ops.transfer import linearize
from skt_components.reconstruct.alignment import align_exposures
from skt_components.reconstruct.exposures import (
    Exposure,
    RawExposure,
    bracket_from_exposures,
    check_exposures,
    check_order,
)

_MERGE_TILE, _MERGE_OVERLAP = 1024, 32


def reconstruct(
    network: nn.Module | str,
    pictures: Sequence[Float[Tensor, "c h w"]],
    exposure_times: Sequence[float],
    *,
    transfer: str = "srgb",
    align: bool = False,
    tile: int = 768,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Float[Tensor, "o sh sw"]:
    """Make an HDR picture from exposures of one scene.

    Args:
        network: a network in eval mode that maps a bracket ``(B, N, C, H, W)`` to linear HDR, or the name of a
            pretrained network, see :func:`~skt_components.load_pretrained`.
        pictures: one picture for each exposure, of equal size, in any order. RGB: ``(3, H, W)`` in [0, 1]. For a RAW
            network: packed sensor values ``(4, h, w)`` in [0, 1].
        exposure_times: times of the pictures, in seconds or any other unit; all different.
        transfer: transfer function of the values of RGB pictures: "srgb", "gamma2.2" or "linear".
        align: align the pictures of a hand-held camera first (RGB only); see :func:`align_exposures`.
        tile: side of the tiles on which the network runs, in pixels.
        device: where the network runs; None: where its parameters are.
        progress: show a bar on a terminal if tqdm is installed.

    Returns:
        ``(3, H, W)`` linear RGB, 1 where the shortest exposure saturates; ``(4, s h, s w)`` in [0, 16] for RAW.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: the pictures do not fit together or to the network; the message names them.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> sample = SyntheticScenes(1, 32)[0]
        >>> pictures, times = list(sample.bracket[:, 3:]), sample.exposure_times.tolist()
        >>> reconstruct("ahdrnet-small", pictures, times, transfer="gamma2.2").shape
        torch.Size([3, 32, 32])
    """
    if isinstance(network, str):
        network = load_pretrained(network)
    names = [f"pictures[{index}]" for index in range(len(pictures))]
    if len(exposure_times) != len(pictures):
        raise ValueError(f"exposure_times must be {len(pictures)}, one for each picture, got {len(exposure_times)}")
    raw = getattr(network, "in_channels", None) == RAW_CHANNELS
    for name, picture in zip(names, pictures, strict=True):
        check_tensor(name, picture, ndim=3, layout="(C, H, W)", channels=RAW_CHANNELS if raw else 3)
    exposures: list[Any]
    if raw:
        plain = torch.ones(3), torch.eye(3)
        exposures = [RawExposure(p, t, n, *plain) for p, t, n in zip(pictures, exposure_times, names, strict=True)]
    else:
        made = zip(pictures, exposure_times, names, strict=True)
        exposures = [Exposure(linearize(p.clamp(0, 1), transfer), t, n) for p, t, n in made]
    return reconstruct_exposures(network, exposures, align=align, tile=tile, device=device, progress=progress)["hdr"]


def reconstruct_exposures(
    network: nn.Module,
    exposures: Sequence[Exposure] | Sequence[RawExposure],
    *,
    align: bool = False,
    tile: int = 768,
    device: torch.device | str | None = None,
    progress: bool = True,
    merge: bool = False,
) -> dict[str, Tensor]:
    """Make an HDR picture, and with ``merge`` also the pictures to compare it with.

    Args:
        network: see :func:`reconstruct`, also for the other arguments.
        exposures: in any order.
        merge: also return the reference exposure and the exposure merge.

    Returns:
        "hdr", and with ``merge`` "reference" and "merge": linear pictures of one scale.

    Raises:
        ValueError: see :func:`reconstruct`.
    """
    count = getattr(network, "num_frames", None)
    if count is not None and count != len(exposures):
        hint = " (take the darkest, a middle and the brightest one)" if count == 3 and len(exposures) > 3 else ""
        raise ValueError(f"network takes {count} exposures, got {len(exposures)}{hint}")
    raw = bool(exposures) and isinstance(exposures[0], RawExposure)
    if align:
        if raw:
            raise ValueError("align is for RGB pictures: networks on RAW align the exposures themselves")
        names, pictures = [exposure.name for exposure in exposures], [exposure[0] for exposure in exposures]
        light = check_exposures(names, [picture.shape for picture in pictures], [e.light for e in exposures])
        check_order(names, pictures, light)
        ordered = sorted(exposures, key=lambda exposure: exposure.light or 0.0)
        exposures = align_exposures(ordered, len(ordered) // 2)  # type: ignore[arg-type]
    bracket, times = bracket_from_exposures(exposures)
    multiple = max(getattr(network, "size_multiple", 1), 1)
    side = max(tile // multiple, 2) * multiple
    overlap = min(96, side // 4) // multiple * multiple
    options: dict[str, Any] = {"tile": side, "overlap": overlap, "size_multiple": multiple}
    training = network.training
    network.eval()
    try:
        hdr = tiled_inference(network, bracket[None], device=device, progress=progress, **options)[0]
    finally:
        network.train(training)
    results = {"hdr": hdr}
    if merge:
        index = 0 if raw else len(times) // 2
        results["reference"] = bracket[index, : 4 if raw else 3]
        merging = partial(merge_exposures, exposure_times=times)
        tiles: dict[str, Any] = {"tile": _MERGE_TILE, "overlap": _MERGE_OVERLAP, "progress": False}
        results["merge"] = tiled_inference(merging, bracket[None], **tiles)[0]
    return results
