"""The evaluation as a user runs it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import skt_components as skt
from skt_components import commands
from skt_components.evaluation.protocols import PROTOCOLS, Protocol

SIZE = {"features": 8, "num_layers": 2, "growth": 4}
SMALL = ["--crop", "48", "--limit", "2"]


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a user wrote: the shortest exposure as it is, and with its channels swapped."""
    module = ModuleType("strangers")
    module.calls = []  # type: ignore[attr-defined]

    class Shortest(nn.Module):
        def forward(self, bracket: torch.Tensor) -> torch.Tensor:
            module.calls.append(tuple(bracket.shape))  # type: ignore[attr-defined]
            return bracket[:, 0, :3]

    module.Shortest = Shortest  # type: ignore[attr-defined]

    class Weighted(Shortest):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(module.gain))  # type: ignore[attr-defined]

    class Failing(nn.Module):
        error: BaseException | None = None
        value = 0.0

        def forward(self, bracket: torch.Tensor) -> torch.Tensor:
            if self.error is not None:
                raise self.error
            picture = bracket[:, 0, :3].clone()
            picture[..., 0, 0] = self.value
            return picture

    module.gain = 1.0  # type: ignore[attr-defined]
    module.Weighted = Weighted  # type: ignore[attr-defined]
    module.Failing = Failing  # type: ignore[attr-defined]
    module.swapped = lambda: (Shortest(), lambda network, bracket: network(bracket).flip(1))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strangers", module)
    return module


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    """Two small networks' files."""
    files = [tmp_path / "ours.safetensors", tmp_path / "bare.safetensors"]
    for file in files:
        skt.save_weights(file, skt.AHDRNet(**SIZE))
    return files


@pytest.fixture
def evaluate() -> Callable[[Sequence[object]], int]:
    """Run ``skt evaluate`` in this process and return its exit status."""
    return lambda arguments: commands.main(["evaluate", *map(str, arguments)])


@pytest.fixture
def refused(evaluate: Callable, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[object], str], None]:
    """Check that ``skt evaluate`` fails with one line that matches a pattern."""

    def check(arguments: Sequence[object], message: str) -> None:
        capsys.readouterr()
        assert evaluate(arguments) == 1
        shown = capsys.readouterr().err
        assert re.search(message, shown), shown
        assert shown.count("\n") == 1

    return check


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def expected(network: nn.Module, sample: skt.HDRSample, protocol: Protocol) -> dict[str, float]:
    """The numbers of a sample, without anything of the script."""
    metadata = {key: value[None] for key, value in sample.metadata.items()}
    prediction = protocol.infer(network.eval(), sample.bracket[None])
    return {name: value.item() for name, value in protocol.score(prediction, sample.target[None], metadata).items()}


def kalantari_scenes(root: Path, count: int = 3) -> Path:
    """A data set whose labels stay below the peak."""
    data = skt.SyntheticScenes(count, 40, split="val", camera=skt.Camera(bits=16))
    for index, sample in enumerate(data):
        clean = sample._replace(target=sample.target.clamp(max=1.0))
        skt.simulation.write_kalantari_scene(root / "Test" / f"{index + 1:03d}", clean)
        if index + 1 == count:
            break
    return root


# the main job


def test_leaves_everything_in_its_folder(evaluate, weights, tmp_path, capsys):
    out = tmp_path / "out"
    status = evaluate(["--checkpoint", str(weights[0]), "--against", str(weights[1]), *SMALL, "--out", str(out)])
    assert status == 0
    data = skt.SyntheticScenes(2, 48, split="val")
    pictures = read(out)["pictures"]
    assert list(pictures) == ["synthetic-val-0", "synthetic-val-1"]
    for index, name in enumerate(pictures):
        for file in weights:
            wanted = expected(skt.load_model(file), data[index], PROTOCOLS["simulated"])
            assert pictures[name][file.stem] == pytest.approx(wanted, abs=1e-4)
    shown = capsys.readouterr().out
    means = [sum(p["ours"]["PSNR-mu"] for p in pictures.values()) / 2]
    assert f"{means[0]:.3f}" in shown
    assert "ours - bare" in shown
    assert PROTOCOLS["simulated"].describe() in shown
    rows = [r for r in csv.reader((out / "metrics.csv").open(encoding="utf-8")) if not r[0].startswith("# ")]
    assert len(rows) == 1 + 2 * 4 + 3 * 5  # two networks, reference exposure, exposure merge, and the difference
    for index, name in enumerate(pictures):
        free = skt.evaluation.baseline_predictions(data[index], PROTOCOLS["simulated"])
        assert list(free) == ["reference exposure", "exposure merge"]
        for title, picture in free.items():
            scored = PROTOCOLS["simulated"].score(picture, data[index].target[None])["PSNR-mu"].item()
            assert pictures[name][title]["PSNR-mu"] == pytest.approx(scored, abs=1e-9)
    assert "exposure merge" in shown
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count('class="scene"') == 2
    assert "ours against bare on synthetic" in report


def test_saved_pictures_give_the_same_numbers(evaluate, weights, tmp_path):
    out = tmp_path / "out"
    evaluate(["--checkpoint", str(weights[0]), *SMALL, "--save", "exr", "--out", str(out)])
    for index, (name, row) in enumerate(read(out)["pictures"].items()):
        saved = skt.read_image(out / "ours" / f"{name}.exr")
        target = skt.SyntheticScenes(2, 48, split="val")[index].target
        assert skt.psnr_mu(saved[None], target[None]).item() == pytest.approx(row["ours"]["PSNR-mu"], abs=1e-3)


def test_raw_brackets(evaluate, tmp_path):
    data = skt.SyntheticScenes(1, (24, 32), split="val", camera=skt.RawCamera())
    skt.simulation.simulate_dataset("bracketire", tmp_path / "data", None, data, progress=False)
    network = skt.TMRNet(features=8, num_blocks=(1, 1, 1, 1))
    skt.save_weights(tmp_path / "orm.safetensors", network)
    arguments = ["--checkpoint", str(tmp_path / "orm.safetensors"), "--data", "bracketire"]
    assert evaluate([*arguments, "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    (row,) = read(tmp_path / "out")["pictures"].values()
    sample = skt.BracketIRE(tmp_path / "data", "test", border=0)[0]
    assert row["orm"] == pytest.approx(expected(network, sample, Protocol.bracketire()), abs=1e-4)
    (saved,) = (tmp_path / "out" / "orm").iterdir()
    assert skt.read_image(saved).shape == (3, 2 * 24 - 20, 2 * 32 - 20)


def test_photographs(evaluate, tmp_path):
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    for name in ("b.hdr", "inner/a.exr"):
        skt.write_image(tmp_path / "photos" / name, 0.1 + torch.rand(3, 40, 50))
    out = tmp_path / "out"
    arguments = ["--orm", "strangers:Shortest", "--data", "hdr-folder", "--root", str(tmp_path / "photos")]
    assert evaluate([*arguments, "--out", str(out)]) == 0
    assert list(read(out)["pictures"]) == ["b.hdr", "inner/a.exr"]
    assert sorted(file.name for file in (out / "Shortest").iterdir()) == ["b.hdr.hdr", "inner-a.exr.hdr"]


# models


def test_official_weights_give_what_ours_give(evaluate, tmp_path):
    network = skt.AHDRNet(unused_layers=True)
    torch.save(network.to_official(), tmp_path / "theirs.pth")
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(tmp_path / "theirs.pth"), "--orm", "ahdrnet", "--official", "--crop", "32"]
    evaluate([*arguments, "--limit", "1", "--out", str(out)])
    wanted = expected(network, skt.SyntheticScenes(1, 32, split="val")[0], PROTOCOLS["simulated"])
    assert read(out)["pictures"]["synthetic-val-0"]["theirs"] == pytest.approx(wanted, abs=1e-4)


def test_two_models_of_one_name_get_numbers(evaluate, weights, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    other = again / "ours.safetensors"
    other.write_bytes(weights[1].read_bytes())
    out = tmp_path / "out"
    evaluate(["--checkpoint", str(weights[0]), "--against", str(other), *SMALL, "--out", str(out)])
    free = list(skt.evaluation.BASELINES)
    assert list(read(out)["summary"]) == ["ours-1", "ours-2", *free, "ours-1 - ours-2"]


# options


def test_tiles_give_what_the_whole_picture_gives(evaluate, weights, tmp_path):
    numbers = []
    for name, tile in (("whole", []), ("tiled", ["--tile", "96"])):
        # The small network sees 14 pixels far, a quarter of a tile is 24.
        arguments = ["--checkpoint", str(weights[0]), "--crop", "120", "--limit", "1", *tile]
        evaluate([*arguments, "--save", "none", "--out", str(tmp_path / name)])
        numbers.append(read(tmp_path / name)["pictures"]["synthetic-val-0"]["ours"])
        assert not (tmp_path / name / "ours").exists()
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-3)
    assert "blended tiles of 96" in (tmp_path / "tiled" / "report.html").read_text(encoding="utf-8")


def test_vdp_is_the_protocols_and_has_a_map(evaluate, weights, tmp_path):
    out = tmp_path / "out"
    evaluate(["--checkpoint", str(weights[0]), "--crop", "64", "--limit", "1", "--vdp", "--out", str(out)])
    protocol = dataclasses.replace(PROTOCOLS["simulated"], metrics=("HDR-VDP-2",))
    wanted = expected(skt.load_model(weights[0]), skt.SyntheticScenes(1, 64, split="val")[0], protocol)
    found = read(out)["pictures"]["synthetic-val-0"]["ours"]
    assert found["HDR-VDP-2"] == pytest.approx(wanted["HDR-VDP-2"], abs=1e-4)
    assert 'alt="visible errors of ours"' in (out / "report.html").read_text(encoding="utf-8")


def test_the_report_shows_the_worst_pictures_only(evaluate, tmp_path):
    out = tmp_path / "out"
    evaluate(["--orm", "strangers:Shortest", "--crop", "32", "--limit", "4", "--scenes", "2", "--out", str(out)])
    psnr = {name: row["Shortest"]["PSNR-mu"] for name, row in read(out)["pictures"].items()}
    report = (out / "report.html").read_text(encoding="utf-8")
    shown = [name for name in psnr if f">{name}</a></h2>" in report]
    assert sorted(shown) == sorted(sorted(psnr, key=psnr.__getitem__)[:2])
    assert len(list((out / "sections").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orm", "sctnet"], "checkpoint must be a file of weights for the network 'sctnet', got None"),
        ([], "checkpoint must be a file of weights for the network 'saved', got None"),
        (["--orm", "strangers:Shortest", "--data", "tel"], "--data tel needs --root"),
        (
            ["--orm", "strangers:Shortest", "--protocol", "bracketire"],
            "needs raw pictures, but --data synthetic has srgb",
        ),
        (
            ["--orm", "strangers:Shortest", "--checkpoint", "FILE", "--official"],
            "the network must be one of ahdrnet, .* to have official weights",
        ),
        (["--orm", "strangers:Nothing"], "strangers:Nothing does not give a network"),
        (["--limit", "0"], "limit must be a whole number >= 1, got 0"),
        (["--crop", "0"], "crop must be a whole number >= 1, got 0"),
        (["--tile", "0"], "tile must be a whole number >= 1, got 0"),
        (["--tile", "-5"], "tile must be a whole number >= 1, got -5"),
        (["--scenes", "-1"], "scenes must be a whole number >= 0, got -1"),
        (["--root", "photos"], "--root is not for --data synthetic, which reads no files: choose --data hdr-"),
    ],
)
def test_bad_options_are_named(refused, weights, tmp_path, arguments, message):
    given = [str(weights[0]) if argument == "FILE" else argument for argument in arguments]
    refused([*given, "--out", str(tmp_path / "out")], message)
    assert not (tmp_path / "out").exists()


def test_a_network_for_other_brackets_is_rejected_before_the_first_picture(refused, weights, tmp_path):
    raw = tmp_path / "raw.safetensors"
    skt.save_weights(raw, skt.TMRNet(features=8, num_blocks=(1, 1, 1, 1)))
    message = "raw is for 5 exposures of 4 channels, scale 1; the data are 3 exposures of 6 channels"
    refused(["--checkpoint", str(raw), *SMALL, "--out", str(tmp_path / "out")], message)
    data = skt.SyntheticScenes(1, (24, 32), split="val", camera=skt.RawCamera())
    skt.simulation.simulate_dataset("bracketire", tmp_path / "data", None, data, progress=False)
    arguments = ["--data", "bracketire", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    refused(
        ["--checkpoint", str(weights[0]), *arguments], "ours is for 3 exposures of 6 channels, scale 1; the data are"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tile", ["8", "20"])
def test_tiles_that_the_network_cannot_take_are_rejected_before_the_first_picture(
    evaluate, refused, strangers, tmp_path, tile
):
    strangers.Shortest.size_multiple = 8
    arguments = ["--orm", "strangers:Shortest", "--crop", "32", "--limit", "1", "--out", str(tmp_path / "out")]
    refused([*arguments, "--tile", tile], f"tile must be a multiple of 8 >= 16 for Shortest, got {tile}")
    assert evaluate([*arguments, "--tile", "16"]) == 0


def test_a_smaller_limit_counts_the_first_pictures_alone(evaluate, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--orm", "strangers:Shortest", "--crop", "32", "--out", str(out), "--limit"]
    evaluate([*arguments, "3"])
    psnr = [row["Shortest"]["PSNR-mu"] for row in read(out)["pictures"].values()]
    capsys.readouterr()
    evaluate([*arguments, "1"])
    shown = capsys.readouterr().out
    assert f"{psnr[0]:.3f}" in shown
    assert "\n1 picture -> " in shown
    assert shown.splitlines()[2].split() == ["Shortest,", "95%", "low", "-", "-", "-", "-"]
    assert "synthetic-val-1" not in (out / "metrics.csv").read_text(encoding="utf-8")
    assert (out / "report.html").read_text(encoding="utf-8").count('class="scene"') == 1
    evaluate([*arguments, "3"])
    assert f"{sum(psnr) / 3:.3f}" in capsys.readouterr().out
    assert (out / "report.html").read_text(encoding="utf-8").count('class="scene"') == 3


# failures


@pytest.mark.parametrize("save", ["hdr", "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_a_failure(evaluate, strangers, tmp_path, save, value):
    strangers.Failing.value = value
    out = tmp_path / "out"
    assert evaluate(["--orm", "strangers:Failing", *SMALL, "--save", save, "--out", str(out)]) == 1
    found = read(out)
    assert (found["pictures"], found["warnings"]) == ({}, {})
    wanted = f"ValueError: Failing: 3 of {3 * 48 * 48} predicted values are infinite or NaN"
    assert found["errors"] == dict.fromkeys(["synthetic-val-0", "synthetic-val-1"], wanted)


def test_any_error_of_a_network_is_reported_for_its_picture(evaluate, strangers, tmp_path):
    out = tmp_path / "out"
    arguments = ["--orm", "strangers:Failing", *SMALL, "--out", str(out)]
    strangers.Failing.error = KeyError("flow")
    assert evaluate(arguments) == 1
    assert read(out)["errors"] == dict.fromkeys(["synthetic-val-0", "synthetic-val-1"], "KeyError: 'flow'")
    strangers.Failing.error = KeyboardInterrupt()
    assert evaluate(arguments) == 130


def test_an_unreadable_picture_is_skipped_and_tried_again(evaluate, strangers, tmp_path, capsys):
    root, out = kalantari_scenes(tmp_path / "data"), tmp_path / "out"
    label = root / "Test" / "002" / "HDRImg.hdr"
    whole = label.read_bytes()
    label.write_bytes(whole[:200])
    arguments = ["--orm", "strangers:Shortest", "--data", "kalantari", "--root", str(root), "--out", str(out)]
    assert evaluate(arguments) == 1
    assert list(read(out)["pictures"]) == ["001", "003"]
    assert "HDRImg.hdr" in read(out)["errors"]["002"]
    assert "not evaluated, 002" in capsys.readouterr().err
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Not evaluated: 1" in report
    assert report.count('class="scene"') == 2

    label.write_bytes(whole)
    strangers.calls.clear()
    assert evaluate(arguments) == 0
    assert len(strangers.calls) == 1  # a tile of 256, for the one that was missing
    assert read(out)["errors"] == {}
    assert (out / "report.html").read_text(encoding="utf-8").count('class="scene"') == 3


def test_finished_pictures_are_not_evaluated_again(evaluate, strangers, tmp_path):
    arguments = ["--orm", "strangers:Shortest", *SMALL, "--out", str(tmp_path / "out")]
    evaluate(arguments)
    before = read(tmp_path / "out")
    strangers.calls.clear()
    assert evaluate(arguments) == 0
    assert strangers.calls == []
    assert read(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--checkpoint", "OTHER"], r"models.ours.sha256"),
        (["--protocol", "matlab"], r"protocol.name 'Simulated brackets', 'MATLAB"),
        (["--crop", "40"], r"data.crop 48, 40"),
        (["--tile", "32"], "tile None, 32"),
    ],
)
def test_results_of_another_evaluation_are_rejected(evaluate, refused, weights, tmp_path, change, message):
    out = str(tmp_path / "out")
    evaluate(["--checkpoint", str(weights[0]), *SMALL, "--limit", "1", "--scenes", "0", "--out", out])
    (tmp_path / "new").mkdir()
    other = tmp_path / "new" / "ours.safetensors"
    other.write_bytes(weights[1].read_bytes())
    change = [str(other) if part == "OTHER" else part for part in change]
    refused(["--checkpoint", str(weights[0]), *SMALL, "--limit", "1", "--scenes", "0", *change, "--out", out], message)


def test_weights_identify_a_network_from_other_code(evaluate, refused, strangers, tmp_path):
    arguments = ["--orm", "strangers:Weighted", *SMALL, "--out", str(tmp_path / "out")]
    assert evaluate(arguments) == 0
    assert read(tmp_path / "out")["description"]["models"]["Weighted"]["network"] == "Weighted"
    assert evaluate(arguments) == 0
    strangers.gain = 2.0
    refused(arguments, r"models.Weighted.sha256")


@pytest.mark.parametrize("name", ["a.hdr", "b.hdr"])
@pytest.mark.parametrize("crop", [[], ["--crop", "24"]])
def test_two_folders_of_one_name_are_not_mixed(evaluate, refused, tmp_path, name, crop):
    roots = [tmp_path / parent / "photos" for parent in ("one", "two")]
    for root, picture in zip(roots, ("a.hdr", name), strict=True):
        root.mkdir(parents=True)
        skt.write_image(root / picture, 0.1 + torch.rand(3, 40, 50))
    arguments = ["--orm", "strangers:Shortest", "--data", "hdr-folder", *crop, "--out", str(tmp_path / "out")]
    assert evaluate([*arguments, "--limit", "1", "--root", str(roots[0])]) == 0
    refused([*arguments, "--root", str(roots[1])], r"results of another evaluation.* a.hdr(-0)? \d+ bytes")
    skt.write_image(roots[0] / "c.hdr", 0.1 + torch.rand(3, 40, 50))  # more of the same is none of another
    assert evaluate([*arguments, "--limit", "2", "--root", str(roots[0])]) == 0


@pytest.mark.parametrize("prepared", [False, True])
def test_raw_files_of_one_size_are_distinguished(evaluate, refused, strangers, tmp_path, prepared):
    roots = []
    for seed in (0, 1):
        data = skt.SyntheticScenes(1, (24, 32), seed=seed, split="val", camera=skt.RawCamera())
        root = tmp_path / str(seed) / "data"
        skt.simulation.simulate_dataset("bracketire", root, data, data, progress=False)
        roots.append(
            skt.data.prepare("bracketire", root, tmp_path / f"{seed}-p" / "data", progress=False) if prepared else root
        )
    strangers.Shortest.forward = lambda self, bracket: bracket[:, 0]
    arguments = ["--orm", "strangers:Shortest", "--data", "bracketire", "--out", str(tmp_path / "out"), "--root"]
    assert [evaluate([*arguments, str(roots[0])]) for _ in range(2)] == [0, 0]
    refused([*arguments, str(roots[1])], "results of another evaluation")


def test_swapped_channels_are_reported(evaluate, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate(["--orm", "strangers:swapped", "--crop", "64", "--limit", "4", "--out", str(out)])
    warned = read(out)["warnings"]
    assert any("channels as BGR: a wrong channel order?" in line for lines in warned.values() for line in lines)
    assert "channels as BGR" in capsys.readouterr().err
    assert "channels as BGR" in (out / "report.html").read_text(encoding="utf-8")


def test_the_right_order_is_not_reported(evaluate, tmp_path):
    out = tmp_path / "out"
    evaluate(["--orm", "strangers:Shortest", "--crop", "64", "--limit", "4", "--out", str(out)])
    assert not any("channel order" in line for lines in read(out)["warnings"].values() for line in lines)
