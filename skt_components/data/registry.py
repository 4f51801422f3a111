"""Table of the published data sets, for everything that opens one by its name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from skt_components.data.bracketire import BRACKETIRE, BRACKETIRE_PLUS, BracketIRE
from skt_components.data.kalantari import KALANTARI, TEL, Kalantari17, Tel23
from skt_components.data.scene_layout import SceneLayout


@dataclasses.dataclass(frozen=True)
class PublishedDataset:
    """A published data set; call it like its class to open it.

    Attributes:
        layout: names, formats and sizes of its files; ``layout.domain`` is "srgb" or "raw".
        reader: its class, with the options that the name implies.
    """

    layout: SceneLayout
    reader: Callable[..., Kalantari17 | BracketIRE]

    def __call__(self, root: str | os.PathLike[str], *arguments: Any, **options: Any) -> Kalantari17 | BracketIRE:
        """Open the data set in the folder ``root``; see :class:`Kalantari17` and :class:`BracketIRE`."""
        return self.reader(root, *arguments, **options)


PUBLISHED: dict[str, PublishedDataset] = {
    "kalantari": PublishedDataset(KALANTARI, Kalantari17),
    "tel": PublishedDataset(TEL, Tel23),
    "bracketire": PublishedDataset(BRACKETIRE, BracketIRE),
    "bracketire-plus": PublishedDataset(BRACKETIRE_PLUS, partial(BracketIRE, scale=4)),
}
