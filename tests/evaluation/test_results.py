"""Numbers per picture: the bootstrap, the files, going on after a stop, and what looks odd."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from skt_components.evaluation.results import EvaluationResults, bootstrap_mean, find_suspicious
from skt_components.files.digest import file_digest
from skt_components.files.versions import library_versions

DESCRIPTION = {"models": {"ours": {"sha256": "00"}}, "protocol": {"peak": 1.0, "metrics": ["PSNR-mu"]}}


def scores(*psnr: float) -> dict[str, dict[str, float]]:
    return {name: {"PSNR-mu": value} for name, value in zip(("ours", "theirs"), psnr, strict=False)}


def natural_picture() -> torch.Tensor:
    """A warm picture with structure of its own in each channel."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    return torch.stack([0.6 * x + 0.3, 0.4 * y + 0.1, 0.1 * (x - y).abs()])


# the bootstrap


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_interval_is_that_of_all_resamples_widened_for_few(confidence):
    values = [30.0, 35.5, 41.0, 38.2, 33.3]
    off = np.array(list(itertools.product(values, repeat=5))).mean(1) - np.mean(values)  # all 3125, equally likely
    found = bootstrap_mean(values, resamples=20_000, confidence=confidence)
    upper = (1 + confidence) / 2
    wider = math.sqrt(5 / 4) * scipy.stats.t.ppf(upper, 4) / scipy.stats.norm.ppf(upper)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.low - found.mean == pytest.approx(wider * np.quantile(off, 1 - upper), abs=0.2)
    assert found.high - found.mean == pytest.approx(wider * np.quantile(off, upper), abs=0.2)


def test_hardly_anything_is_widened_for_many():
    values = np.random.default_rng(0).normal(40, 2, 400)
    half = 1.96 * values.std() / 20
    found = bootstrap_mean(values, resamples=20_000)
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05 * half)


def test_one_picture_has_no_interval():
    found = bootstrap_mean([40.0])
    assert found.mean == 40.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(1).normal(40, 2, 15)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_an_infinite_value_has_no_interval():
    found = bootstrap_mean([40.0, math.inf, 42.0])
    assert found.mean == math.inf
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values must hold at least one"),
        ([1.0], {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
        ([1.0], {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_rejects_bad_input(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **options)


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
def test_results_of_another_evaluation_are_refused(tmp_path, other, message):
    EvaluationResults(tmp_path, DESCRIPTION).add("001", scores(40.0))
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        EvaluationResults(tmp_path, other)
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(("source", "there"), [({"001": "5 bytes"}.get, "5 bytes"), ({}.get, "no such picture")])
def test_results_of_other_files_are_refused(tmp_path, source, there):
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
    with pytest.raises(ValueError, match=r"metrics.json is not what an evaluation writes"):
        EvaluationResults(tmp_path, DESCRIPTION)


def test_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (2**20 + 5))
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"x" * (2**20 + 5)).hexdigest()


# what looks odd


def test_nothing_is_odd_about_a_noisy_prediction():
    target = natural_picture()
    assert find_suspicious((target + 0.02 * torch.randn_like(target)).clamp(min=0), target) == []


@pytest.mark.parametrize("order", ["BGR", "GRB", "RBG"])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_swapped_channels_are_named(order, gain):
    # Undone by itself: these three orders are swaps.
    target = natural_picture()
    swapped = gain * target[["RGB".index(channel) for channel in order]]
    (found,) = find_suspicious(swapped, target)
    assert f"with its channels as {order}" in found


def test_the_order_that_is_named_mends_a_rotation():
    target = natural_picture()
    rotated = target[[1, 2, 0]]
    (found,) = find_suspicious(rotated, target)
    name = found.split("channels as ")[1][:3]
    assert torch.equal(rotated[["RGB".index(channel) for channel in name]], target)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_not_compared(value):
    prediction = natural_picture()
    prediction[0, 3, 4] = value
    assert find_suspicious(prediction, natural_picture()) == ["the prediction holds infinite or NaN values"]


def test_a_grey_picture_has_no_order():
    grey = natural_picture().mean(0).expand(3, -1, -1)
    assert find_suspicious(0.8 * grey, grey) == []


@pytest.mark.parametrize(
    ("scale", "peak", "message"),
    [
        (16.0, 1.0, "reaches 14.4, above the peak of 1"),
        (1 / 255, 1.0, "reaches only"),
        (1.0, 255.0, "the peak is 255"),
    ],
)
def test_wrong_peaks_of_the_target_are_named(scale, peak, message):
    picture = scale * natural_picture()
    (found,) = find_suspicious(picture, picture, peak=peak)
    assert message in found


@pytest.mark.parametrize("factor", [16.0, 1 / 16])
def test_a_prediction_of_another_brightness_is_named(factor):
    (found,) = find_suspicious(factor * natural_picture(), natural_picture())
    assert f"{factor:.3g} times as bright" in found


def test_lights_above_the_peak_are_odd_in_bounded_data_only():
    target = natural_picture()
    target[:, 3:5, 3:5] = 40.0
    assert len(find_suspicious(target, target)) == 1
    assert find_suspicious(target, target, bounded=False) == []


def test_a_dark_target_is_odd_unless_in_low_light():
    target = 0.01 * natural_picture()
    (found,) = find_suspicious(target, target)
    assert "reaches only" in found
    assert find_suspicious(target, target, low_light=True) == []


def test_a_network_whose_colours_are_bad_in_every_order_is_not_accused_of_a_wrong_one():
    target = natural_picture()
    strange = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    strange = torch.nn.functional.interpolate(strange[None], size=target.shape[-2:], mode="bilinear")[0]
    assert not any("channel order" in line for line in find_suspicious(strange, target))


@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        (torch.rand(3, 4, 4), torch.rand(3, 4, 5), ValueError, "target"),
        (torch.rand(1, 4, 4), torch.rand(1, 4, 4), ValueError, "prediction"),
        (torch.ones(3, 4, 4, dtype=torch.uint8), torch.rand(3, 4, 4), TypeError, "prediction"),
    ],
)
def test_find_suspicious_rejects_bad_input(prediction, target, error, message):
    with pytest.raises(error, match=message):
        find_suspicious(prediction, target)
