"""Table of the data sets that have a layout, for everything that opens one by its name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from skt_components.data.bracket_folder import BUILT_IN, BracketFolder, DescribedLayout
from skt_components.data.bracketire import BRACKETIRE, BRACKETIRE_PLUS, BracketIRE
from skt_components.data.kalantari import KALANTARI, TEL, Kalantari17, Tel23
from skt_components.data.scene_dataset import SceneDataset
from skt_components.data.scene_layout import SceneLayout


@dataclasses.dataclass(frozen=True)
class PublishedDataset:
    """A data set with a layout; call it like its class to open it.

    Attributes:
        layout: names, formats and sizes of its files; ``layout.domain`` is "srgb" or "raw".
        reader: its class, with the options that the name implies.
    """

    layout: SceneLayout
    reader: Callable[..., SceneDataset]

    def __call__(self, root: str | os.PathLike[str], *arguments: Any, **options: Any) -> SceneDataset:
        """Open the data set in the folder ``root``; see the class of its reader."""
        return self.reader(root, *arguments, **options)


def described_dataset(path: str | os.PathLike[str]) -> PublishedDataset:
    """Return the data set that a TOML file describes."""
    layout = DescribedLayout(path)

    def open_folder(root: str | os.PathLike[str], *arguments: Any, **options: Any) -> BracketFolder:
        return BracketFolder(root, layout, *arguments, **options)

    return PublishedDataset(layout, open_folder)


PUBLISHED: dict[str, PublishedDataset] = {
    "kalantari": PublishedDataset(KALANTARI, Kalantari17),
    "tel": PublishedDataset(TEL, Tel23),
    "bracketire": PublishedDataset(BRACKETIRE, BracketIRE),
    "bracketire-plus": PublishedDataset(BRACKETIRE_PLUS, partial(BracketIRE, scale=4)),
    **{name: described_dataset(path) for name, path in BUILT_IN.items()},
}


def find_dataset(name: str | os.PathLike[str]) -> PublishedDataset:
    """Return the data set of a name in ``PUBLISHED``, or of a TOML file that describes it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the file is no description of a data set; see :class:`BracketFolder`.
    """
    if str(name) in PUBLISHED:
        return PUBLISHED[str(name)]
    if Path(name).suffix.lower() != ".toml":
        known = ", ".join(PUBLISHED)
        raise ValueError(f"dataset must be one of {known}, or a .toml file that describes one, got {os.fspath(name)!r}")
    return described_dataset(name)
