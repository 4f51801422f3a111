"""Knowledge banks by name."""

from __future__ import annotations

import os

from skt_components.banks.fastsam import RANDOM_WEIGHTS, FastSAMFeatureExtractor
from skt_components.banks.fastsam_weights import find_fastsam_weights
from skt_components.banks.priors import EmptyBank
from skt_components.banks.regions import ColorPositionKMeans, FeatureKMeans
from skt_components.banks.timm import TimmFeatureExtractor
from skt_components.ops.checks import check_choice


def check_bank_weights(name: str, weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
    """Raise the error of :func:`make_knowledge_bank` for missing weights, before anything else is built.

    The message of FileNotFoundError says where to get FastSAM's weights. Another spelling of "fastsam" is a ValueError.
    """
    if name != "fastsam" and name.lower().split("-")[0] == "fastsam":
        raise ValueError(f"name must be fastsam, got {name!r}; weights select FastSAM-s or FastSAM-x")
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
        name: "fastsam", a timm model, or "none": no features, the whole picture as one region, no weights.
        weights: as the bank takes them.
        regions: "own" (FastSAM's masks; color regions for other banks), "color" or "features".
        num_regions: regions per picture; FastSAM's own masks have the background in addition.
        layers: "paper" or "fast", for FastSAM.
        download: let FastSAM download missing weights.

    Raises:
        ValueError: there is no such bank, or weights or regions are given for "none".
        FileNotFoundError: there are no weights.

    Example:
        >>> make_knowledge_bank("fastsam", weights="random", layers="fast").channels
        (256, 128, 64, 32)
    """
    check_bank_weights(name, "random")  # the name alone
    check_choice("regions", regions, ("own", "color", "features"))
    if name == "none":
        if weights is not None or regions != "own":
            raise ValueError(f"bank none has neither weights nor regions, got weights={weights}, regions={regions!r}")
        return EmptyBank()
    source = FeatureKMeans(num_regions) if regions == "features" else ColorPositionKMeans(num_regions)
    if name != "fastsam":
        return TimmFeatureExtractor(name, weights=weights, regions=source)
    check_choice("layers", layers, ("paper", "fast"))
    return FastSAMFeatureExtractor(
        weights,
        layers=layers,  # type: ignore[arg-type]
        max_regions=num_regions,
        regions=None if regions == "own" else source,
        download=download,
    )
