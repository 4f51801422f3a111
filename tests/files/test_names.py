"""Names of files: short enough, safe and different, whatever the text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skt_components.files import atomic_write, write_text
from skt_components.files.names import file_name, file_names, find_entry, printable

RAW = os.fsdecode(b"\xff")


@pytest.mark.parametrize("name", ["a" * 255, "a" * 251 + ".txt", "ü" * 127, "ü" * 120 + ".safetensors"])
def test_files_with_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "whole")
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.name.endswith(Path(name).suffix)
        temporary.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "new")]


@pytest.mark.parametrize(
    "text",
    ["..", ".", "", "a/b", "../a", "/a", "a\0b", "a\nb", "a ", "@eaDir", ".hidden", "a" * 300, os.fsdecode(b"\xff")],
)
def test_any_text_becomes_a_name_inside_the_folder(tmp_path: Path, text: str) -> None:
    name = file_name(text)
    (tmp_path / f"{name}.safetensors").write_text(text, errors="surrogateescape")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.safetensors"]
    assert name != text
    assert file_name(f"{text}x") != name


def test_usual_names_stay_and_reserved_ones_do_not() -> None:
    for text in ("ours", "scene 1", "Nacht-Ü.hdr", "x=1,y=2", "a.b-c_d"):
        assert file_name(text) == text
    assert file_name("Sections", ["sections"]).startswith("Sections-")


def test_paths_in_one_folder_never_share_a_name() -> None:
    names = file_names(["a/b.hdr", "a-b.hdr", "a/b/c", "a-b/c", "d/e"])
    assert len(set(names.values())) == 5
    assert (names["a-b.hdr"], names["d/e"]) == ("a-b.hdr", "d-e")


def test_entries_are_found_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "HDRImg.HDR").touch()
    assert find_entry(tmp_path, "HDRImg.hdr").name == "HDRImg.HDR"
    (tmp_path / "HDRImg.hdr").touch()
    assert find_entry(tmp_path, "HDRImg.hdr").name == "HDRImg.hdr"
    assert find_entry(tmp_path, "hdrimg.hdr").name == "hdrimg.hdr"  # two differ in case alone: neither
    assert find_entry(tmp_path / "none", "a").name == "a"


def test_text_of_any_name_can_be_printed() -> None:
    assert printable("ü " + os.fsdecode(b"\xff")) == "ü \\udcff"
