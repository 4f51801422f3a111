"""Knowledge banks by name."""

from __future__ import annotations

import os

from skt_components.banks.empty_bank import EmptyBank
from skt_components.banks.fastsam import RANDOM_WEIGHTS, FastSAMFeatureExtractor
from skt_components.banks.fastsam_weights import find_fastsam_weights
from skt_components.banks.feature_regions import FeatureKMeans
from skt_components.banks.priors import RegionSource
from skt_components.banks.regions import ColorPositionKMeans
from skt_components.banks.timm import TimmFeatureExtractor
from skt_components.ops.checks import check_choice


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
    layers: str = "paper",
    download: bool = False,
) -> FastSAMFeatureExtractor | TimmFeatureExtractor | EmptyBank:
    """Make a knowledge bank by name.

    Args:
        name: "fastsam", a model of timm, or "none": no features, the whole picture as one region, and so neither
            weights nor regions to choose.
        weights: as the bank takes them.
        regions: "own" (FastSAM's masks; colour regions for the others, which have none), "color" or "features".
        num_regions: how many per picture; FastSAM's own masks have the background beside them.
        layers: "paper" or "fast", for FastSAM.
        download: let FastSAM fetch missing weights.

    Raises:
        ValueError: there is no such name, or weights or regions are chosen for "none".
        FileNotFoundError: there are no weights.

    Example:
        >>> make_knowledge_bank("fastsam", weights="random", layers="fast").channels
        (256, 128, 64, 32)
    """
    _check_bank_name(name)
    check_choice("regions", regions, ("own", "color", "features"))
    if name == "none":
        if weights is not None or regions != "own":
            raise ValueError(
                f"the knowledge bank none has neither weights nor regions, got weights={weights}, regions={regions!r}"
            )
        return EmptyBank()
    own = None if name == "fastsam" else ColorPositionKMeans(num_regions)
    made: dict[str, RegionSource | None] = {
        "own": own,
        "color": ColorPositionKMeans(num_regions),
        "features": FeatureKMeans(num_regions),
    }
    if name == "fastsam":
        check_choice("layers", layers, ("paper", "fast"))
        options = {"layers": layers, "max_regions": num_regions, "regions": made[regions], "download": download}
        return FastSAMFeatureExtractor(weights, **options)  # type: ignore[arg-type]
    return TimmFeatureExtractor(name, weights=weights, regions=made[regions])  # type: ignore[arg-type]


def _check_bank_name(name: str) -> None:
    if name != "fastsam" and name.lower().split("-")[0] == "fastsam":
        raise ValueError(f"the knowledge bank is called fastsam, got {name!r}; which one, its weights tell")
