"""skt banks: its results, its messages and its exit status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skt_components import commands


def main(arguments: Sequence[str]) -> int:
    return commands.main(["banks", *arguments])


def test_convert_says_what_it_wrote(tmp_path: Path, fastsam_s: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "FastSAM-s.safetensors"
    assert main(["convert", str(fastsam_s / "FastSAM-s.pt"), str(target)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"wrote {target} ({target.stat().st_size / 1e6:.2f} MB). ")
    assert "AGPL-3.0" in said.out
    assert "SA-1B" in said.out
    assert said.err == ""
    assert len(load_file(target)) > 400

    assert main(["convert", str(fastsam_s / "FastSAM-s.pt"), str(target)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"skt banks convert: {target} exists; it is replaced only with --overwrite\n"
    target.write_bytes(b"")
    assert main(["convert", "--overwrite", str(fastsam_s / "FastSAM-s.pt"), str(target)]) == 0
    assert len(load_file(target)) > 400


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("absent.pt", "weights file not found"), ("odd.pt", "is not a YOLOv8 segmentation network")],
)
def test_errors_take_one_line(tmp_path: Path, source: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "odd.pt")
    assert main(["convert", str(tmp_path / source), str(tmp_path / "a.safetensors")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("skt banks convert: ")
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("arguments", [["convert"], ["convert", "a"], ["show", "a.png"]])
def test_wrong_usage_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"skt banks {arguments[0]} --help" in capsys.readouterr().err
