"""Shared access to files: atomic writes, locks, digests, safe readers, JSON lines; optional packages and versions."""

from skt_components.files.atomic import atomic_write, remove_leftovers, write_text
from skt_components.files.digest import file_checksum, file_digest
from skt_components.files.json_lines import append_json_line, read_json_lines
from skt_components.files.lock import FolderLock
from skt_components.files.packages import import_package, library_versions, package_versions

__all__ = [
    "FolderLock",
    "append_json_line",
    "atomic_write",
    "file_checksum",
    "file_digest",
    "import_package",
    "library_versions",
    "package_versions",
    "read_json_lines",
    "remove_leftovers",
    "write_text",
]
