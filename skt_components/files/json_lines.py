"""Files of JSON lines: one object a line, such as the metrics of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, without incomplete lines, as a killed process leaves them."""
    found = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                if isinstance(entry := json.loads(line), dict):
                    found.append(entry)
    return found


def append_json_line(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """Add one object at the end of a file of JSON lines; the file is made if it does not exist."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
