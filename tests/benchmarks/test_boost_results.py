"""The numbers and figures that a study of the boost draws from its runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import figures
import judge
import numpy as np
import plan
import pytest
import results
import torch
import units
from boost_study import EQUAL, SMALL, read, write

import skt_components as skt
from skt_components.models.registry import NETWORKS


def fabricate(out: Path, study: plan.Study, values: dict[tuple, list[float]], **start: float) -> None:
    """Folders as finished runs leave them."""
    for unit in units.list_units(study, out):
        key = (unit.arm, unit.seed) + ((unit.fold,) if study.folds > 1 else ())
        if key not in values:
            continue
        unit.folder.mkdir(parents=True)
        rows = {"ORM": values[key]}
        if not study.is_bare(unit.arm):
            rows["SPGRM"] = [value + 2 for value in rows["ORM"]]
        scores = {name: dict.fromkeys(results.METRICS, of) for name, of in rows.items()}
        (unit.folder / "scores.json").write_text(json.dumps({"name": scores}))
        first = {"PSNR-mu": start.get(unit.arm, 9.0), "PSNR-L": 8.0, "SSIM-mu": 0.1}
        validation = {name: {**first, "region distance": 0.4} for name in rows}
        terms = {"org": {"norm": 2.0, "cosine": 1.0}, "content": {"norm": 0.5, "cosine": -0.25}}
        lines = [{"step": 0, "validation": validation}]
        for step in (0, 5):
            lines.append({"step": step, "terms": {}, "samples_per_second": 8.0})
            if "SPGRM" in rows:
                lines[-1]["gradients"] = {"parameters": terms, "picture": terms}
        lines.append({"step": 6, "validation": {name: {"PSNR-mu": float(np.mean(of))} for name, of in rows.items()}})
        (unit.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_study_of_teachers_compares_their_pictures(tmp_path: Path) -> None:
    text = SMALL.replace("baseline", 'scored = "SPGRM"\nbaseline', 1).replace("bare = true", "color_weight = 0.0")
    study = read(write(tmp_path / "s.toml", text))
    fabricate(tmp_path, study, {("bare", 3): [20.0, 20.0], ("ours", 3): [21.5, 21.5]})
    rows = results.collect(units.list_units(study, tmp_path), study)
    summary = results.summarise(rows, study, {})
    assert summary["ours"]["gain"]["PSNR-mu"]["gain"] == pytest.approx(1.5)
    assert summary["ours"]["baseline"]["PSNR-mu"] == 22.0, "the teacher's, 2 dB above its network"
    header, _, *lines = results.make_table(summary, study, {"merge": {"PSNR-mu": 30.0}}).splitlines()
    assert "| network | teacher |" in header
    assert "| 21.50 | 23.50 |" in lines[-1]


def test_the_table_has_the_numbers_that_a_hand_computes(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml", EQUAL)).with_equal_compute({"bare": 1.0, "ours": 2.0})
    values = {("bare", 3): [20.0, 30.0], ("bare", 1): [22.0, 32.0], ("bare, equal compute", 3): [21.0, 30.0]}
    values |= {("ours", 3): [21.0, 32.0], ("ours", 1): [21.0, 32.5]}
    fabricate(tmp_path, study, values)
    rows = results.collect(units.list_units(study, tmp_path), study)
    summary = results.summarise(rows, study, {"bare": 1.0, "ours": 2.0})
    gain = summary["ours"]["gain"]["PSNR-mu"]
    assert gain["seed_gains"] == (-0.25, 1.5)  # in the order of the seeds
    assert gain["gain"] == pytest.approx((1 + 2 - 1 + 0.5) / 4)
    assert gain["wins"] == 1
    assert summary["ours"]["seeds"] == [1, 3]
    ours, theirs = ([torch.tensor(values[arm, seed]) for seed in (1, 3)] for arm in ("ours", "bare"))
    wanted = skt.evaluation.paired_summary(ours, theirs)
    assert (gain["low"], gain["high"]) == pytest.approx((wanted.low, wanted.high))
    assert summary["ours"]["gain at equal compute"]["PSNR-mu"]["gain"] == pytest.approx((0 + 2) / 2)  # seed 3 alone
    other = results.summarise(rows, replace(study, equal_compute="another"), {})
    assert "gain at equal compute" not in other["ours"]  # the longer baseline has the time of another arm
    assert summary["ours"]["means"]["SPGRM"]["PSNR-mu"] == pytest.approx((26.5 + 26.75) / 2 + 2)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in results.make_table(summary, study).split("\n")
    ]
    by_arm = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert by_arm["ours"]["bare PSNR-mu"] == "26.00"
    assert by_arm["ours"]["this arm"] == "26.62"
    assert by_arm["ours"]["gain [dB]"].startswith("+0.625 [")
    assert by_arm["ours"]["seeds' gains"] == "-0.25 +1.50"
    assert by_arm["ours"]["gain at equal compute [dB]"].startswith("+1.000 [")
    assert by_arm["ours"]["time per step"] == "2.00"
    assert by_arm["bare, equal compute"]["gain [dB]"].startswith("+0.500 [")
    assert by_arm["bare, equal compute"]["bare PSNR-mu"] == "25.00"  # of the seed that both have
    assert by_arm["bare"]["gain [dB]"] == "-"


def test_folds_of_a_seed_are_one_set_of_pictures_by_photograph(tmp_path: Path) -> None:
    text = SMALL.replace("[base]", 'folds = 2\n[base]\ndata = "hdr-folder"', 1)
    data = {"train": {f"{name}.hdr": 1 for name in "abc"}, "val": {"d.hdr": 1, "e.hdr": 1}}
    study = replace(read(write(tmp_path / "s.toml", text), tmp_path), data=data)
    assert [study.held_out(fold) for fold in (0, 1)] == [["d.hdr", "e.hdr"], ["b.hdr", "c.hdr"]]
    generator = torch.Generator().manual_seed(0)
    values = {(arm, 3, fold): torch.rand(4, generator=generator).tolist() for arm in study.arms for fold in (0, 1)}
    values |= {("bare", 1, 0): [20.0] * 4, ("ours", 1, 0): [25.0] * 4, ("bare", 1, 1): [20.0] * 4}  # not whole
    fabricate(tmp_path, study, values)
    runs = units.list_units(study, tmp_path)
    assert runs[2].folder.name == "seed-3-fold-1"
    assert runs[2].options["val_names"] == ["b.hdr", "c.hdr"]
    assert str(runs[2]) == "bare, seed 3, fold 1"
    rows = results.collect(runs, study)
    assert results.find_unpaired(rows, "bare") == []
    other = [{**row, "start": {}} if (row["arm"], row["fold"]) == ("ours", 1) else row for row in rows]
    (found,) = results.find_unpaired(other, "bare")
    assert found.startswith("ours, seed 3, fold 1, is no pair with bare, as far as")
    summary = results.summarise(rows, study, {})["ours"]
    ours, theirs = (torch.tensor([*values[arm, 3, 0], *values[arm, 3, 1]]).double() for arm in ("ours", "bare"))
    wanted = skt.evaluation.paired_summary([ours], [theirs], groups=["d", "e", "d", "e", "b", "c", "b", "c"])
    assert summary["gain"]["PSNR-mu"] == wanted._asdict()
    gains = (ours - theirs)[4:].tolist()
    assert summary["gain by photograph"]["b.hdr"] == pytest.approx((gains[0] + gains[2]) / 2)
    assert summary["gain by photograph"]["d.hdr"] != pytest.approx(5.0)
    assert figures.draw_curves(tmp_path / "curves.png", runs, study)
    merged, of = judge.merge_folds(rows, study)
    assert sorted({row["seed"] for row in merged}) == [2, 3, 6, 7]
    assert results.summarise(merged, of, {})["ours"]["gain"]["PSNR-mu"]["seed_gains"] == pytest.approx(
        [5.0, float((ours - theirs)[:4].mean()), float((ours - theirs)[4:].mean())]
    )


def test_a_row_says_how_the_run_went(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml"))
    fabricate(tmp_path, study, {("bare", 3): [20.0, 30.0], ("ours", 3): [21.0, 32.0]})
    bare, ours = results.collect(units.list_units(study, tmp_path), study)
    assert ours["seconds"] == 6 * 4 / 8.0
    assert ours["options"] == {"content_weight": 0.5}
    assert ours["gradients"]["picture"] == {"content": {"share": 0.25, "cosine": -0.25}}
    assert ours["lead"] == 2.0
    assert bare["gradients"] == {}
    assert bare["lead"] is None


def test_a_term_that_does_not_pull_has_no_direction() -> None:
    places = {"picture": {"org": {"norm": 2.0, "cosine": 1.0}, "alignment": {"norm": 0.0, "cosine": 0.0}}}
    assert results.read_gradients({"gradients": places}) == {"picture": {"alignment": {"share": 0.0}}}
    assert results.read_gradients({"gradients": {"picture": {"org": {"norm": 0.0}, "color": {"norm": 1.0}}}}) == {}


def test_runs_that_did_not_begin_alike_are_no_pairs(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml"))
    fabricate(tmp_path, study, {(arm, seed): [20.0, 30.0] for arm in study.arms for seed in (1, 3)})
    rows = results.collect(units.list_units(study, tmp_path), study)
    assert results.find_unpaired(rows, "bare") == []
    rows[1]["start"] = {**rows[1]["start"], "PSNR-mu": 9.5}
    (found,) = results.find_unpaired(rows, "bare")
    assert found == "ours, seed 3, is no pair with bare: before training PSNR-mu is 9.5 and 9.0"
    rows[1]["start"] = {**rows[1]["start"], "PSNR-mu": math.nan}
    assert len(results.find_unpaired(rows, "bare")) == 1
    rows[1]["start"] = {}
    assert "a first validation is missing" in results.find_unpaired(rows, "bare")[0]


def test_runs_of_different_machines_or_code_are_named() -> None:
    rows = [{"environment": {"torch": "2.6", "threads": threads}} for threads in (1, 1, 2)]
    assert results.find_mixed(rows) == ["the runs differ in threads: 1, 2"]
    assert results.find_mixed(rows[:2]) == []
    rows[0]["environment"]["dirty"] = True
    assert results.find_mixed(rows[:2]) == ["some runs were made with code that is not committed"]


def test_the_figures_are_drawn_and_the_summary_is_small(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml"))
    fabricate(tmp_path, study, {(arm, seed): [20.0, 30.0 + seed] for arm in study.arms for seed in (1, 3)})
    runs = units.list_units(study, tmp_path)
    rows = results.collect(runs, study)
    summary = results.summarise(rows, study, {})
    drawn = [figures.draw_gains(tmp_path / "gains.png", summary, study)]
    drawn += [figures.draw_curves(tmp_path / "curves.png", runs, study)]
    drawn += [figures.draw_diagnosis(tmp_path / "diagnosis.png", runs, study)]
    assert drawn == [True] * 3
    for name in ("gains", "curves", "diagnosis"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert not figures.draw_curves(tmp_path / "none.png", [], study)
    results.write_summary(tmp_path / "summary.json", rows, arms=summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["runs"][0]["PSNR-mu"] == {"ORM": [20.0, 33.0]}
    assert written["arms"]["ours"]["gain"]["PSNR-mu"]["gain"] == 0.0
    assert (tmp_path / "summary.json").stat().st_size < 10_000


def test_trained_networks_are_judged_on_all_photographs_of_another_folder(tmp_path: Path) -> None:
    text = SMALL.replace("steps = 6", 'steps = 6\nval_crop = 16\nval_samples = 4\norm = "ahdrnet-small"')
    study = read(write(tmp_path / "s.toml", text))
    photographs = tmp_path / "unseen"
    photographs.mkdir()
    for number in range(2):
        picture = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(number)) + 0.1
        skt.write_image(photographs / f"{number}.hdr", picture)
    run = units.list_units(study, tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "scores.json").write_text("{}")
    (run.folder / "config.toml").write_text('val_crop = 16\nval_samples = 4\norm = "ahdrnet-small"\nbare = true\n')
    network = NETWORKS["ahdrnet-small"](num_frames=3, in_channels=6, out_channels=3)
    skt.save_weights(run.folder / "bare.safetensors", network)
    (row,) = judge.judge([run], study, None, photographs)
    data = skt.HDRFolder(photographs, crop=16, split="val", val_fraction=1.0, samples_per_epoch=4)
    assert len({data[index].name for index in range(4)}) == 2
    with torch.no_grad():
        wanted = [
            float(skt.psnr_mu(network.eval()(s.bracket[None]), s.target[None])) for s in map(data.__getitem__, range(4))
        ]
    assert row["scores"]["ORM"]["PSNR-mu"] == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(ValueError, match="has its own"):
        judge.judge([run], replace(study, base={"data": "tel"}), None, photographs)
    simulated = replace(study, base={"data": "tel"}, data={"layout": "tel"})
    assert judge.judge([run], simulated, None, photographs) == [row]
    size = (photographs / "1.hdr").stat().st_size
    seen = replace(study, data={"train": {"below/1.hdr": size}, "val": {"0.hdr": 1}})
    with pytest.raises(ValueError, match=r"no run has seen; the study has 1\.hdr$"):
        judge.judge([run], seen, None, photographs)
