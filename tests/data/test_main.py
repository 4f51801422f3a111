"""skt data: its results, its messages and its exit status."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from skt_components import commands
from skt_components.data import BracketIRE, Kalantari17, write_image


def main(arguments: Sequence[str]) -> int:
    return commands.main(["data", *arguments])


def test_verify_says_what_is_wrong_and_returns_1(fake_kalantari, capsys):
    fake = fake_kalantari()
    (fake.root / "Training/001/262A0898.tif").write_bytes(b"")
    assert main(["verify", "kalantari", str(fake.root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kalantari in ")
    assert "3 train, 2 test scenes, 25 files read" in lines[0]
    assert any(line.endswith("262A0898.tif: the file is empty") for line in lines)


def test_verify_of_a_whole_data_set_returns_0(fake_kalantari, monkeypatch, capsys):
    from skt_components.data.kalantari import KALANTARI

    fake = fake_kalantari()
    monkeypatch.setattr(KALANTARI, "scene_counts", {"train": 3, "test": 2})
    monkeypatch.setattr(KALANTARI, "picture_size", (40, 60))
    assert main(["verify", "kalantari", str(fake.root)]) == 0
    assert capsys.readouterr().out.strip().endswith("no problems")


def test_prepare_and_preview(fake_bracketire, tmp_path, capsys):
    fake = fake_bracketire()
    out, picture = tmp_path / "out", tmp_path / "preview.png"
    assert main(["prepare", "bracketire", str(fake.root), str(out)]) == 0
    assert "GB; give it as root" in capsys.readouterr().out
    assert main(["preview", "bracketire", str(out), str(picture), "--scenes", "2"]) == 0
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    assert drawn.shape[1] > 2 * drawn.shape[0]  # six pictures in each of two rows
    assert drawn.std() > 20
    before = picture.read_bytes()
    assert main(["preview", "bracketire", str(out), str(picture)]) == 1
    assert f"{picture} exists; --overwrite replaces it" in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert main(["preview", "bracketire", str(out), str(picture), "--overwrite", "--crop", "16"]) == 0
    assert picture.read_bytes() != before


def test_simulated_data_sets_are_read_back(tmp_path, capsys):
    small = ["--train", "2", "--test", "1", "--height", "32", "--width", "40"]
    for name in ("kalantari", "bracketire"):
        assert main(["simulate", name, str(tmp_path / name), *small]) == 0
    assert "holds 2 train and 1 test scenes in the layout of bracketire" in capsys.readouterr().out
    raw = tmp_path / "bracketire"
    assert main(["simulate", "bracketire-plus", str(raw), *small]) == 1
    assert "holds simulated scenes in the layout bracketire, not bracketire-plus" in capsys.readouterr().err
    assert main(["simulate", "bracketire", str(raw), *small, "--seed", "9"]) == 1
    assert "holds other Test and Train samples, of another size, seed or source" in capsys.readouterr().err
    assert main(["simulate", "bracketire", str(raw), *small[2:], "--train", "3"]) == 0
    assert "holds 3 train and 1 test scenes" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main(["simulate", "bracketire", str(tmp_path / "mine"), *small]) == 1
    assert "mine exists and is not a simulated data set" in capsys.readouterr().err
    sample = Kalantari17(tmp_path / "kalantari", "test")[0]
    assert (sample.bracket.shape, sample.target.shape) == ((3, 6, 32, 40), (3, 32, 40))
    assert sample.exposure_times.tolist() == [1, 4, 16]
    raw = BracketIRE(tmp_path / "bracketire")
    assert (len(raw), raw[1].bracket.shape, raw[1].target.shape) == (3, (5, 4, 32, 40), (4, 32, 40))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "kalantari", "nowhere"], "skt data verify: root must be the folder of a data set"),
        (["prepare", "tel", "nowhere", "out"], "skt data prepare: root must have a folder Training"),
        (["preview", "bracketire", "nowhere", "a.png"], "skt data preview: root must have a folder Train"),
        (
            ["simulate", "kalantari", "out", "--photos", "nowhere"],
            "skt data simulate: root must be a folder of HDR pictures",
        ),
    ],
)
def test_errors_are_one_line_and_return_1(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_hdr_folders_are_verified(tmp_path, capsys):
    write_image(tmp_path / "a.hdr", torch.rand(3, 20, 30))
    assert main(["verify", "hdr-folder", str(tmp_path), "--crop", "16"]) == 0
    assert "1 all scenes, 1 files read, no problems" in capsys.readouterr().out
    assert main(["verify", "hdr-folder", str(tmp_path), "--crop", "24"]) == 1
    assert "a.hdr: crop must fit the picture of (20, 30)" in capsys.readouterr().out
    assert main(["verify", "kalantari", str(tmp_path), "--crop", "24"]) == 1
    assert "skt data verify: --crop is for hdr-folder" in capsys.readouterr().err
