"""Headers that promise more than their files can hold."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from skt_components.banks.label_maps import read_label_map
from skt_components.data import read_image
from skt_components.files.bounds import check_picture_size
from skt_components.files.weights import read_state_dict
from skt_components.reconstruct.exposures import read_exposure


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_of_honest_headers_pass(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), np.zeros((400, 500, 3), np.uint8))
    check_picture_size(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_small_pictures_cannot_ask_for_much_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), np.zeros((400, 500, 3), np.uint8))
    data, order = path.read_bytes(), "II" if suffix == ".png" else "HH"
    small, large = (
        struct.pack(f">{order}", *(size if suffix == ".jpg" else size[::-1])) for size in ((400, 500), (30000, 30000))
    )
    assert small in data
    path.write_bytes(data.replace(small, large, 1))
    with pytest.raises(ValueError, match=rf"a{suffix}: its header promises \d+ bytes of pixels"):
        read_exposure(path)


@pytest.mark.parametrize("tiled", [False, True])
def test_small_tifs_cannot_ask_for_much_memory(tmp_path: Path, tiled: bool) -> None:
    shape = {322: 2**16, 323: 2**16, 324: 8, 325: 8} if tiled else {273: 8, 278: 2**16, 279: 8}
    tags = {256: 2**16, 257: 2**16, 258: 8, 259: 8, 262: 1, 277: 1, **shape}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    for read in (read_image, read_label_map):
        with pytest.raises(ValueError, match=r"a\.tif.*its header promises 4294967296 bytes of pixels"):
            read(path)


def test_compressed_archives_of_weights_are_rejected(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert list(read_state_dict(tmp_path / "plain.pt")) == ["a"]
    with pytest.raises(ValueError, match=r"packed\.pt .*its parts are compressed or overlap"):
        read_state_dict(tmp_path / "packed.pt")
