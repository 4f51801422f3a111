"""What a run is built from by name: its device, its network, its knowledge bank."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.banks.fastsam import RANDOM_WEIGHTS, FastSAMFeatureExtractor
from skt_components.banks.fastsam_weights import find_fastsam_weights
from skt_components.banks.feature_regions import FeatureKMeans
from skt_components.banks.no_knowledge import NoKnowledge
from skt_components.banks.priors import RegionSource
from skt_components.banks.regions import ColorPositionKMeans
from skt_components.banks.timm import TimmFeatureExtractor
from skt_components.ops._checks import check_choice

ForwardORM = Callable[[nn.Module, Tensor], Tensor]


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" takes a CUDA device if there is one.

    Raises:
        ValueError: there is no such device on this machine.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} on this machine: {reason}") from error


def load_network(
    name: str, known: Mapping[str, Callable[..., nn.Module]], **options: Any
) -> tuple[nn.Module, ForwardORM]:
    """Make a network by a known name or as ``package.module:callable``, and say how to call it.

    Args:
        name: a key of ``known``, or the import path of a callable without arguments that returns a network, or a
            network and a function ``forward(network, bracket) -> hdr`` for one that is called differently. The
            working directory is searched too.
        known: makers by name.
        **options: for the makers of ``known``; a callable by its import path gets none.

    Raises:
        ValueError: there is no such name, it does not import, it needs arguments, or it gives no network.
    """
    if name in known:
        return known[name](**options), call_network
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"the network must be one of {', '.join(known)} or package.module:callable, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        maker = getattr(importlib.import_module(module), attribute)
        with suppress(ValueError):  # of a callable that does not say its arguments
            inspect.signature(maker).bind()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} does not give a network when called without arguments: {error}") from error
    made = maker()  # what fails in there needs its traceback
    network, forward = made if isinstance(made, tuple) and len(made) == 2 else (made, call_network)
    if not isinstance(network, nn.Module) or not callable(forward):
        raise ValueError(f"{name} must return an nn.Module, or one and a function, got {type(made).__name__}")
    return network, forward


def call_network(network: nn.Module, bracket: Tensor) -> Tensor:
    """Call a network in the plain way."""
    return network(bracket)


def check_bank_weights(name: str, weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
    """Raise what :func:`make_knowledge_bank` would raise for want of weights, before anything else is built.

    Raises:
        FileNotFoundError: FastSAM's weights are missing; the message says where to get them.
        ValueError: the name is FastSAM's in another spelling.
    """
    _check_bank_name(name)
    if name == "fastsam" and weights not in RANDOM_WEIGHTS:
        find_fastsam_weights(weights, download=download)


def make_knowledge_bank(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    regions: str = "own",
    num_regions: int = 8,
    taps: str = "paper",
    download: bool = False,
) -> FastSAMFeatureExtractor | TimmFeatureExtractor | NoKnowledge:
    """Make a knowledge bank by name.

    Args:
        name: "fastsam", a model of timm, or "none": no features, the whole picture as one region, and so neither
            weights nor regions to choose.
        weights: as the bank takes them.
        regions: "own" (FastSAM's masks; colour regions for the others, which have none), "color" or "features".
        num_regions: how many per picture; FastSAM's own masks have the background beside them.
        taps: "paper" or "fast", for FastSAM.
        download: let FastSAM fetch missing weights.

    Raises:
        ValueError: there is no such name, or weights or regions are chosen for "none".
        FileNotFoundError: there are no weights.

    Example:
        >>> make_knowledge_bank("fastsam", weights="random", taps="fast").channels
        (256, 128, 64, 32)
    """
    _check_bank_name(name)
    check_choice("regions", regions, ("own", "color", "features"))
    if name == "none":
        if weights is not None or regions != "own":
            raise ValueError(
                f"the knowledge bank none has neither weights nor regions, got weights={weights}, regions={regions!r}"
            )
        return NoKnowledge()
    own = None if name == "fastsam" else ColorPositionKMeans(num_regions)
    made: dict[str, RegionSource | None] = {
        "own": own,
        "color": ColorPositionKMeans(num_regions),
        "features": FeatureKMeans(num_regions),
    }
    if name == "fastsam":
        check_choice("taps", taps, ("paper", "fast"))
        options = {"taps": taps, "max_regions": num_regions, "regions": made[regions], "download": download}
        return FastSAMFeatureExtractor(weights, **options)  # type: ignore[arg-type]
    return TimmFeatureExtractor(name, weights=weights, regions=made[regions])  # type: ignore[arg-type]


def _check_bank_name(name: str) -> None:
    if name != "fastsam" and name.lower().split("-")[0] == "fastsam":
        raise ValueError(f"the knowledge bank is called fastsam, got {name!r}; which one, its weights tell")
