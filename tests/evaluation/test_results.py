"""Scores by picture: the files, continuing after a stop, and the identity of pictures."""

from __future__ import annotations

import csv
import hashlib
import json
import math

import pytest

from skt_components.evaluation.results import EvaluationResults
from skt_components.evaluation.statistics import bootstrap_mean
from skt_components.files.digest import file_digest
from skt_components.files.packages import library_versions

DESCRIPTION = {"models": {"ours": {"sha256": "00"}}, "protocol": {"peak": 1.0, "metrics": ["PSNR-mu"]}}


def scores(*psnr: float) -> dict[str, dict[str, float]]:
    return {name: {"PSNR-mu": value} for name, value in zip(("ours", "theirs"), psnr, strict=False)}


# files


def test_json_holds_everything(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    results.add("001", scores(40.0, 38.0))
    results.add("002", scores(42.0, 41.0), ["looks odd"])
    results.fail("003", ValueError("raw_1.npy:\n is cut short"))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["description"] == DESCRIPTION
    assert content["pictures"]["002"] == {"ours": {"PSNR-mu": 42.0}, "theirs": {"PSNR-mu": 41.0}}
    assert content["summary"]["ours"]["PSNR-mu"]["mean"] == 41.0
    gain = content["summary"]["ours - theirs"]["PSNR-mu"]
    assert gain["mean"] == 1.5
    assert gain == bootstrap_mean([2.0, 1.0])._asdict()
    assert gain["low"] < 0  # two pictures say little
    assert content["warnings"] == {"002": ["looks odd"]}
    assert content["errors"] == {"003": "ValueError: raw_1.npy: is cut short"}
    assert content["versions"] == [library_versions()]


def test_csv_has_pictures_means_and_intervals(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    results.add('a,"b"', scores(40.0))
    results.add("c", scores(44.0))
    results.save_csv()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    remarks = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    assert json.loads(remarks["protocol"]) == DESCRIPTION["protocol"]
    rows = list(csv.reader(line for line in lines if not line.startswith("# ")))
    assert rows[0] == ["picture", "model", "PSNR-mu"]
    assert rows[1:3] == [['a,"b"', "ours", "40.0"], ["c", "ours", "44.0"]]
    assert [row[0] for row in rows[3:]] == ["mean", "mean, 95% low", "mean, 95% high"]
    assert [float(row[2]) for row in rows[3:]] == list(bootstrap_mean([40.0, 44.0]))


def test_csv_has_a_dash_where_there_is_no_interval(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    results.add("001", scores(40.0))
    results.save_csv()
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[-3:]
    assert rows == ["mean,ours,40.0", '"mean, 95% low",ours,-', '"mean, 95% high",ours,-']


def test_infinity_survives_strict_json(tmp_path):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(math.inf))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert EvaluationResults(tmp_path, DESCRIPTION).values("ours", "PSNR-mu") == [math.inf]


def test_equal_infinite_numbers_differ_by_nothing(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    results.add("001", scores(math.inf, math.inf))
    results.add("002", scores(math.inf, math.inf))
    assert results.summary()["ours - theirs"]["PSNR-mu"] == (0.0, 0.0, 0.0)


def test_intervals_do_not_exceed_what_the_metrics_can_be(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    for name, ours, theirs in (("001", 0.9999, -0.99), ("002", 0.2, 0.98)):
        row = {"SSIM-mu": ours, "LPIPS": 0.0001 + 0.6 * (name == "002"), "HDR-VDP-2": 100 * ours, "PSNR-mu": 40 + ours}
        results.add(name, {"ours": row, "theirs": {**row, "SSIM-mu": theirs}})
    found = results.summary()
    assert found["ours"]["SSIM-mu"][1:] == (-1.0, 1.0)
    assert found["ours"]["LPIPS"].low == 0.0
    assert found["ours"]["HDR-VDP-2"].high == 100.0
    assert found["ours"]["PSNR-mu"].high > 41
    assert found["ours - theirs"]["SSIM-mu"][1:] == (-2.0, 2.0)


# going on


def test_finished_pictures_are_there_again(tmp_path):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(40.0), ["looks odd"])
    again = EvaluationResults(tmp_path, DESCRIPTION)
    assert again.pictures == {"001": scores(40.0)}
    assert again.warnings == {"001": ["looks odd"]}
    again.fail("002", OSError("gone"))
    third = EvaluationResults(tmp_path, DESCRIPTION)
    third.add("002", scores(41.0))  # its error is history
    assert third.errors == {}
    assert third.values("ours", "PSNR-mu") == [40.0, 41.0]


def test_versions_of_an_earlier_run_are_kept(tmp_path):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(40.0))
    file = tmp_path / "metrics.json"
    file.write_text(file.read_text().replace(library_versions()["torch"], "1.0"))
    EvaluationResults(tmp_path, DESCRIPTION).add("002", scores(40.0))
    assert [run["torch"] for run in EvaluationResults(tmp_path, DESCRIPTION).versions] == [
        "1.0",
        library_versions()["torch"],
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**DESCRIPTION, "protocol": {"peak": 16.0, "metrics": ["PSNR-mu"]}}, r"protocol.peak 1.0, 16.0"),
        ({**DESCRIPTION, "models": {"ours": {"sha256": "ff"}}}, r"models.ours.sha256 '00', 'ff'"),
        ({**DESCRIPTION, "tile": 512}, "tile None, 512"),
    ],
)
def test_results_of_another_evaluation_are_rejected(tmp_path, other, message):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(40.0))
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        EvaluationResults(tmp_path, other)
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(("source", "there"), [({"001": "5 bytes"}.get, "5 bytes"), ({}.get, "no such picture")])
def test_results_of_other_files_are_rejected(tmp_path, source, there):
    EvaluationResults(tmp_path, DESCRIPTION, source={"001": "4 bytes"}.get).add("001", scores(40.0))
    with pytest.raises(ValueError, match=f"There and here: 001 4 bytes, {there}"):
        EvaluationResults(tmp_path, DESCRIPTION, source=source)
    same = EvaluationResults(tmp_path, DESCRIPTION, source={"001": "4 bytes", "002": "6 bytes"}.get)
    same.add("002", scores(41.0))
    with pytest.raises(ValueError, match="002 6 bytes, no such picture"):
        EvaluationResults(tmp_path, DESCRIPTION, source={"001": "4 bytes"}.get)


def test_pictures_that_are_not_asked_for_are_kept_and_not_counted(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    results.add("001", scores(40.0))
    results.add("002", scores(42.0), ["looks odd"])
    results.fail("003", OSError("gone"))
    part = EvaluationResults(tmp_path, DESCRIPTION, names=["001", "004"])
    assert (list(part.pictures), part.warnings, part.errors) == (["001"], {}, {})
    part.add("004", scores(44.0))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert list(content["pictures"]) == ["001", "004"]
    assert content["summary"]["ours"]["PSNR-mu"]["mean"] == 42.0
    whole = EvaluationResults(tmp_path, DESCRIPTION)
    assert sorted(whole.pictures) == ["001", "002", "004"]
    assert whole.warnings == {"002": ["looks odd"]}
    assert list(whole.errors) == ["003"]


@pytest.mark.parametrize("content", ["", "[]", '{"pictures": {}}', '{"description": {}, "pictures": 3}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics.json must be a file that an evaluation wrote"):
        EvaluationResults(tmp_path, DESCRIPTION)


def test_a_changed_score_is_noticed(tmp_path):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(40.0, math.inf))
    file = tmp_path / "metrics.json"
    text = file.read_text()
    file.write_text(text.replace("40.0", "41.0"))
    with pytest.raises(ValueError, match="its scores were changed after they were written"):
        EvaluationResults(tmp_path, DESCRIPTION)
    content = json.loads(text)
    del content["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(content))
    assert EvaluationResults(tmp_path, DESCRIPTION).values("ours", "PSNR-mu") == [40.0]


def test_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (2**20 + 5))
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"x" * (2**20 + 5)).hexdigest()


def test_names_of_any_bytes_are_stored_and_found_again(tmp_path):
    name = "night-\udcff.hdr"
    EvaluationResults(tmp_path, DESCRIPTION).add(name, scores(40.0), [f"{name} looks odd"])
    again = EvaluationResults(tmp_path, DESCRIPTION)
    assert list(again.pictures) == [name]
    again.save_csv()
    assert "night-\\udcff.hdr,ours,40.0" in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


def test_csv_cells_are_no_formulas_and_no_comments(tmp_path):
    results = EvaluationResults(tmp_path, DESCRIPTION)
    for name in ("=1+1", "@a", "+b", "-c", "# d", "'e", "f=1"):
        results.add(name, {"=HYPERLINK()": {"PSNR-mu": -1.0}})
    results.save_csv()
    rows = list(csv.reader(line for line in (tmp_path / "metrics.csv").open() if not line.startswith("# ")))
    assert [row[0] for row in rows[1:8]] == ["'=1+1", "'@a", "'+b", "'-c", "'# d", "''e", "f=1"]
    assert {row[1] for row in rows[1:]} == {"'=HYPERLINK()"}
    assert {row[2] for row in rows[1:8]} == {"-1.0"}
