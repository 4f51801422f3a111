"""The pages of the documentation: their links lead somewhere, and their figures equal the stored measurements."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"


def prose(page: Path) -> str:
    """A page without its code; the lines that include images are kept."""
    lines, in_block = [], False
    for line in page.read_text("utf-8").splitlines():
        in_block ^= line.startswith("```")
        if not in_block or line.startswith("```{image}"):
            lines.append(line)
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#{1,3} (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)|^```\{image\} (\S+)", prose(page), flags=re.MULTILINE)
    broken = []
    for link in (first or second for first, second in links):
        if re.match(r"[a-z]+:", link):  # another site
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# The *title*, once\n[good](#the-title-once) [bad](#title) [gone](gone.md) [far](https://a.b)\n")
    assert broken_links(page) == ["#title", "gone.md"]


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(page: str, header: str, titles: int = 1) -> dict[str, list[str]]:
    """The rows of the table whose header line begins like this: its first cells, the title -> the other cells."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(header))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[", ".join(cells[:titles])] = cells[titles:]
    return rows


def differences(cells: list[str], values: list[float]) -> list[tuple[str, float]]:
    """The cells whose numbers, in order, are not the values rounded to the digits that are shown."""
    numbers = [(cell, number) for cell in cells for number in re.findall(r"-?[\d,]*\d(?:\.\d+)?", cell)]
    assert len(numbers) == len(values), (numbers, values)
    wrong = []
    for (cell, number), value in zip(numbers, values, strict=True):
        digits = len(number.partition(".")[2])
        if abs(float(number.replace(",", "")) - value) > 0.501 * 10**-digits:
            wrong.append((cell, value))
    return wrong


def test_a_figure_that_differs_is_found() -> None:
    assert not differences(["4.4 s, 1.5 GiB", "1,441,283"], [4.4448, 1.497, 1441283])
    assert differences(["4.5 s", "0.142"], [4.4448, 0.1421]) == [("4.5 s", 4.4448)]


def test_scores_of_the_pretrained_networks() -> None:
    rows = table("docs/pretrained.md", "| scenes | network | PSNR-mu |", titles=2)
    stored = result("pretrained--cpu-x86_64")["rows"]
    assert list(rows) == [f"{row['scenes']}, {row['network']}" for row in stored]
    for row in stored:
        means = [row["means"][metric] for metric in ("PSNR-mu", "PSNR-L", "SSIM-mu")]
        assert not differences(rows[f"{row['scenes']}, {row['network']}"], means)


def test_scores_of_the_recipes() -> None:
    rows, stored = table("docs/training.md", "| bare small AHDRNet"), result("recipes-ahdrnet-procedural")
    for name, rate in (("default recipe", "0.004"), ("plain recipe", "0.001")):
        seeds = [runs[0] for key, runs in stored["runs"].items() if key.startswith("2/") and f'"lr": {rate}' in key]
        assert not differences(rows[name], [sum(seeds) / len(seeds), *seeds])
    for name, score in stored["baselines"].items():
        assert not differences(rows[name][:1], [score])


def test_gains_of_a_trained_network() -> None:
    stored = result("boost-ahdrnet-trained")
    lines = (ROOT / "docs/boost.md").read_text("utf-8").partition("## A trained network")[2].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    cells = {row[0].strip(): row[1:] for row in rows[1:]}
    titles = {"in the framework, default options": "recommended", "the same, bank with random weights": "random-bank"}
    assert not differences(cells["bare"][:1], [stored["arms"]["bare"]["means"]["ORM"]["PSNR-mu"]])
    for title, name in titles.items():
        arm = stored["arms"][name]
        values = [arm["means"]["ORM"]["PSNR-mu"], *(arm["gain"]["PSNR-mu"][key] for key in ("gain", "low", "high"))]
        assert not differences(cells[title], values)


def test_scores_of_the_search_for_a_recipe() -> None:
    rows, stored = table("docs/training.md", "| recipe | PSNR-mu after two minutes |"), result("recipes-ahdrnet-search")
    finals = sorted((runs[0] for key, runs in stored["runs"].items() if key.startswith("2/")), reverse=True)
    assert len(rows) == len(finals)
    for cells, score in zip(rows.values(), finals, strict=True):
        assert not differences(cells, [score])


def test_times_of_inference() -> None:
    stored, name, found = result("inference--cpu-x86_64")["networks"], "", {}
    ways = {
        "whole picture, memory pages of 4 KB": "whole picture",
        "tiles, huge pages (`skt reconstruct`)": "tiles, huge pages",
    }
    for title, cells in table("docs/models.md", "| network | how | seconds | times as fast |", titles=2).items():
        network, way = title.split(", ", 1)
        name = network.strip("`") or name
        row = stored[name][ways.get(way, way)]
        found.setdefault(name, set()).add(ways.get(way, way))
        keys = ("seconds", "times_as_fast", "share_of_matrix_speed", "peak_mib_beyond_start")
        assert not differences(cells, [row[key] for key in keys])
    measured = {name: {way for way in rows if way not in ("gmacs", "matrix_gflops")} for name, rows in stored.items()}
    assert found == measured


def test_times_of_the_histogram_loss() -> None:
    stored = result("histogram--cpu-x86_64")["time, retained allocator"]
    names = {
        "dense, compiled": "dense, compiled",
        "dense, exponent clamped": "dense, exponent clamped",
        "dense, as usually written": "dense, as usually written",
        "loop over classes and channels": "class loop",
        "kornia's `image_histogram2d`": "kornia",
        **{name: name for name in ("ours", "ours, teacher cached", "ours, torch only")},
    }
    one, times = stored["1x3x256x256, 1 region"], ("median_ms", "ratio_to_ours")
    for name, cells in table("docs/histogram.md", "| forward + backward, 1 x 3 x 256 x 256, 1 region").items():
        assert not differences(cells, [one[names[name]][time] for time in times])
    for name, (ours, loop, ratio) in table("docs/histogram.md", "| more regions |").items():
        case = stored[f"1x3x256x256, {name.replace(', ', ' regions, ')}"]
        assert not differences([ours], [case["ours"]["median_ms"]])
        assert not differences([loop, ratio], [case["class loop"][time] for time in times])
    rows = table("docs/results.md", "| method | time | ratio |")
    for name, key in (
        ("ours, 1 region", "ours"),
        ("ours without numba, 1 region", "ours, torch only"),
        ("dense autograd, exponent clamped, 1 region", "dense, exponent clamped"),
        ("dense autograd, as usually written, 1 region", "dense, as usually written"),
    ):
        assert not differences(rows[name], [one[key][time] for time in times])
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    for key in ("dense, as usually written", "dense, exponent clamped"):
        assert f"{one[key]['ratio_to_ours'] // 10 * 10:.0f} times as fast" in readme


def test_costs_of_the_networks() -> None:
    stored = result("networks--cpu-x86_64")["networks"]
    for name, cells in table("docs/models.md", "| network | parameters | GMACs").items():
        network = stored[name.strip("`")]
        values = [network["parameters"], network["gmacs_256"]]
        for case in ("training step", "training step, checkpointing", "whole picture"):
            values += [network[case]["seconds"], network[case]["peak_mib_beyond_start"] / 1024]
        assert not differences(cells, values)


def test_costs_of_the_framework() -> None:
    rows, stored = table("docs/results.md", "| ratio to the bare step |"), result("train-step--cpu-x86_64")["networks"]
    networks = [stored[name] for name in ("AHDRNet", "HDRTransformer", "TMRNet")]
    ratio = "ratio_to_bare step"
    assert not differences(rows["step in the framework"], [n["step"]["framework step"][ratio] for n in networks])
    memory = [n["memory in MiB"]["framework step"] / n["memory in MiB"]["bare step"] for n in networks]
    assert not differences(rows["peak memory"], memory)
    for name, part in (
        ("part: SPGRM with its pyramid", "SPGRM, with its pyramid"),
        ("part: SKAMs", "SKAMs"),
        ("part: bank, with regions", "bank, with regions"),
        ("part: color loss", "color loss"),
    ):
        assert not differences(rows[name], [network["parts"][part][ratio] for network in networks])


def test_costs_of_the_banks() -> None:
    stored = result("banks--cpu-x86_64")["knowledge_banks"]
    for name, cells in table("docs/results.md", "| bank, 16 regions |").items():
        network, layers, *masks = name.split(", ")
        if layers == "color regions":
            key = f"{network.lower().replace('hrnet-', 'hrnet_')}, 16 color regions"
        else:  # FastSAM
            key = f"{network} {layers}, 16 {masks[0] if masks else 'masks'}"
        values = []
        for batch in ("batch 1", "batch 4", "batch 16"):
            ratio = next(value for field, value in stored[batch][key].items() if field.startswith("ratio"))
            values += [stored[batch][key]["median_ms"], 100 * ratio if batch == "batch 1" else ratio]
        assert not differences(cells, values)


def test_times_of_hdr_vdp_2() -> None:
    stored = result("hdrvdp2--cpu-x86_64")["cases"]
    for name, cells in table("docs/evaluation.md", "| `python benchmarks/hdrvdp2.py` |").items():
        channels, dtype, *rest = name.split(", ")
        case = stored[f"{'1' if 'one' in channels else '3'} {dtype} {'grad' if rest else 'value'}"]
        fields = ("seconds_median", "cpu_seconds_median", "ratio_to_octave", "peak_mib_above_inputs")
        assert not differences(cells, [case[field] for field in fields])


def test_differences_of_metrics_to_their_originals() -> None:
    stored = result("calibration--cpu-x86_64")["rows"]
    rows = table("docs/calibration.md", "| comparison | original |")
    assert sorted(rows) == sorted(stored)
    for name, (*_, comparisons, largest) in rows.items():
        assert int(comparisons) == stored[name]["comparisons"]
        shown, value = float(largest.split()[0]), stored[name]["largest"]
        digit = 10.0 ** math.floor(math.log10(shown)) if shown else 0.0
        assert shown - digit <= value <= shown, name  # rounded up to one digit


def test_speeds_of_reading_crops() -> None:
    stored = result("data--cpu-x86_64")
    for header, domain in (("| random 256×256 crops", "srgb"), ("| random 128×128 crops", "raw")):
        rows = table("docs/data.md", header)
        for cells, case in zip(rows.values(), stored[domain]["rows"].values(), strict=True):
            fields = ("crops_per_second", "ratio", "megabytes_per_scene")
            assert not differences(cells, [case[field] for field in fields])
