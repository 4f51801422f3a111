"""Names of files: safe ones for texts, entries whatever their case, what systems leave in folders, text to print."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

_LONGEST = 200  # bytes; file systems take 255, and a suffix follows
_CLUTTER = {
    *("@eadir", "#recycle", "@recycle", "#snapshot", "lost+found"),  # of network drives and file systems
    *("__macosx", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),
}


def is_clutter(name: str) -> bool:
    """Return True for hidden files and folders, and for those that systems and archives add to folders.

    Example:
        >>> [is_clutter(name) for name in ("001", "._001", "@eaDir", "__MACOSX")]
        [False, True, True, True]
    """
    return name.startswith(".") or name.casefold() in _CLUTTER


def find_entry(folder: Path, name: str) -> Path:
    """Return the entry of a folder with a name, else the only one that differs in case, else ``folder / name``.

    Data sets that were copied through other systems have ``HDRImg.HDR`` or ``Exposure.txt``.
    """
    path = folder / name
    if path.exists() or not folder.is_dir():
        return path
    alike = [entry for entry in folder.iterdir() if entry.name.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else path


def file_name(text: str, reserved: Collection[str] = ()) -> str:
    """Return a text as the name of a file or folder without suffix; different texts give different names.

    A text that can be a name stays as it is. In others the characters that cannot be in a name become "-", and a
    digest of the text follows.

    Args:
        text: such as the path of a picture below its folder.
        reserved: names that have another meaning in the folder.

    Example:
        >>> file_name("night.hdr"), file_name("night/1.hdr"), file_name("..")
        ('night.hdr', 'night-1.hdr-be442c09', '--e6fc5bb9')
    """
    plain = re.sub(r"[^\w .,;=+@#$%&()\[\]{}!~'^-]", "-", text)
    taken = {name.casefold() for name in reserved}
    usable = plain == text == text.strip(" .") != "" and len(os.fsencode(text)) <= _LONGEST
    if usable and not is_clutter(text) and text.casefold() not in taken:
        return text
    digest = hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()
    start = os.fsencode(plain)[: _LONGEST - 9].decode("utf-8", "ignore").lstrip(".")
    return f"{start or '-'}-{digest}"


def file_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a name without suffix for each relative path, all in one folder and all different.

    Example:
        >>> file_names(["a/b.hdr", "night/c.hdr", "a-b.hdr"])
        {'a/b.hdr': 'a-b.hdr-37aca68c', 'night/c.hdr': 'night-c.hdr', 'a-b.hdr': 'a-b.hdr'}
    """
    flat = {path: file_name(path.replace("/", "-")) for path in paths}
    uses = Counter(flat.values())
    return {path: name if uses[name] == 1 or name == path else file_name(path) for path, name in flat.items()}


def printable(text: str) -> str:
    r"""Return a text in which bytes of file names that are not UTF-8 are written as escapes.

    Example:
        >>> print(printable("night-\udcff.hdr"))
        night-\udcff.hdr
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
