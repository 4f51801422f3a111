"""Read TOML files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def read_toml(path: str | os.PathLike[str], kind: str = "configuration file") -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.
        kind: kind of file, for the message.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
