"""The report: what is in the file, that names stay text, and what a browser makes of it."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import block_reduce

from skt_components.evaluation import html_pictures as draw
from skt_components.evaluation.html_report import (
    ReportScene,
    SceneSections,
    render_scene,
    save_report,
    scene_anchor,
)
from skt_components.evaluation.results import EvaluationResults
from skt_components.ops import mu_law

NASTY = """<script>alert('x')</script> & "001"/é"""
VOID = {"meta", "img", "input", "br"}


def make_scene(name: str = "001", models: tuple[str, ...] = ("ours",), **options) -> ReportScene:
    y, x = torch.meshgrid(torch.linspace(0, 1, 90), torch.linspace(0, 1, 140), indexing="ij")
    target = torch.stack([x, 0.5 * y, 0.2 * x * y])
    results = {model: (target * (0.9 - 0.1 * i)).clone() for i, model in enumerate(models)}
    scores = {model: {"PSNR-mu": 40.0 - i, "SSIM-mu": 0.98765} for i, model in enumerate(models)}
    return ReportScene(name, {"t = 1": target, "t = 4": (4 * target).clamp(max=1)}, results, target, scores, **options)


def make_report(folder: Path, scenes: list[ReportScene], title: str = "Title") -> Path:
    results = EvaluationResults(folder, {"protocol": "none"})
    for scene in scenes:
        results.add(scene.name, scene.scores, scene.warnings)
    sections = {scene.name: render_scene(scene) for scene in scenes}
    save_report(folder / "report.html", results, sections, title=title, notes=["peak 1"])
    return folder / "report.html"


def decode(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def decode_radiance(url: str) -> np.ndarray:
    pixels = decode(url).astype(float)
    mantissas, exponents = np.split(pixels, 2)
    return mantissas / 256 * 2 ** (exponents - 128)


class Page(HTMLParser):
    """Tags with their attributes, and a complaint about each that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str, **wanted) -> list[dict]:
        return [a for name, a in self.tags if name == tag and wanted.items() <= a.items()]


# pictures


def test_radiance_keeps_eight_bits_over_the_whole_range():
    picture = torch.rand(3, 9, 7) * torch.logspace(-6, 4, 9)[None, :, None]
    picture[:, 2, 3] = 0
    found = decode_radiance(draw.radiance_url(picture))
    wanted = picture.permute(1, 2, 0).numpy()
    largest = wanted.max(-1, keepdims=True)
    assert np.all(np.abs(found - wanted) <= largest / 128 / 2 * 1.02 + 1e-30)
    assert np.all(found[2, 3] == 0)


def test_shrinking_averages():
    picture = torch.rand(3, 8, 12, dtype=torch.float64)
    wanted = block_reduce(picture.numpy(), (1, 2, 2), np.mean)
    assert np.allclose(draw.shrink(picture, 6).numpy(), wanted, atol=1e-12)
    assert draw.shrink(picture, 12) is picture


def test_color_scale_reaches_its_anchors():
    painted = draw.paint(torch.tensor([[0.0, 1.0, 2.0, math.nan]]), draw.INFERNO)
    first, last = (list(bytes.fromhex(draw.INFERNO[i])) for i in (0, -1))
    assert (painted * 255).permute(1, 2, 0)[0].round().int().tolist() == [first, last, last, first]
    halfway = draw.paint(torch.tensor([[0.5]]), ["000000", "ff0000"])
    assert halfway.flatten().tolist() == pytest.approx([0.5, 0, 0])


def test_worst_places_are_found_in_order_and_apart():
    error = torch.zeros(100, 160)
    error[8:24, 100:116] = 3.0
    error[60:76, 16:32] = 2.0
    places = draw.worst_places(error, 16, 3)
    assert places[:2] == [(8, 100), (60, 16)]
    assert all(max(abs(a - c), abs(b - d)) >= 16 for i, (a, b) in enumerate(places) for c, d in places[:i])


def test_a_small_picture_has_one_worst_place():
    assert draw.worst_places(torch.rand(20, 20), 20, 3) == [(0, 0)]


def test_histogram_matches_numpy():
    values = torch.rand(5000) ** 2
    pictures = [values, values.clamp(max=0.5)]
    counts = [np.histogram(picture.numpy(), 64, (0, 1))[0] for picture in pictures]
    for count, points in zip(counts, draw.histogram_points(pictures), strict=True):
        places, heights = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
        assert np.allclose(heights, 100 - 97 * np.sqrt(count / max(map(np.max, counts))), atol=0.06)
        assert np.allclose(places, (np.arange(64) + 0.5) * 200 / 64, atol=0.06)


# a scene


def test_a_scene_holds_its_pictures():
    scene = make_scene(models=("ours", "theirs"), visibility={"ours": torch.rand(90, 140)}, warnings=["looks odd"])
    page = Page(render_scene(scene))
    assert page.open == []
    large = [a for a in page.all("img") if "data-radiance" in a]
    views = large[:3]
    assert [a["alt"] for a in views] == ["ours", "theirs", "target"]
    assert np.abs(decode_radiance(views[2]["data-radiance"]) - scene.target.permute(1, 2, 0).numpy()).max() < 1 / 200
    shown = decode(views[0]["src"]) / 255
    assert np.abs(shown - mu_law(scene.results["ours"]).permute(1, 2, 0).numpy()).mean() < 0.02
    assert decode(large[3]["src"]).shape == (64, 64, 3)
    assert len(page.all("img", alt="visible errors of ours")) == 1
    assert {"looks odd", "0.9877", "40.00"} <= {word.strip() for word in page.words}


def test_large_pictures_shrink():
    target = torch.rand(3, 100, 1500)
    page = Page(render_scene(ReportScene("wide", {}, {"ours": target}, target, {})))
    widths = {decode(a["src"]).shape[1] for a in page.all("img")}
    assert max(widths) == 640


def test_very_tall_pictures_shrink_too():
    assert draw.shrink(torch.rand(3, 6000, 60), 640).shape == (3, 960, 10)
    assert draw.shrink(torch.rand(1, 3000, 1000), 640).shape == (1, 960, 320)
    assert draw.shrink(torch.rand(3, 960, 640), 640).shape == (3, 960, 640)


def test_one_picture_is_no_plural_and_results_can_be_wiped(tmp_path):
    text = make_report(tmp_path, [make_scene()]).read_text(encoding="utf-8")
    assert "The scores of 1 picture; an interval needs two." in text
    assert re.search(r'<label class="wipe" hidden>.*<input type="range".*</label>\n<div class="grid views"', text)
    two = make_report(tmp_path, [make_scene("001"), make_scene("002")]).read_text(encoding="utf-8")
    assert "Means over 2 pictures; below, the bootstrap interval" in two


def test_a_broken_prediction_is_shown_all_the_same():
    scene = make_scene()
    scene.results["ours"][:, 10:20] = math.nan
    scene.results["ours"][:, 30:40] = math.inf
    section = render_scene(scene._replace(scores={"ours": {"PSNR-mu": math.nan}}))
    assert Page(section).open == []
    assert "NaN" in section


def test_names_stay_text(tmp_path):
    scene = make_scene(NASTY, (NASTY,), visibility={NASTY: torch.rand(90, 140)}, warnings=[NASTY])
    text = make_report(tmp_path, [scene], title=NASTY).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.all("script")) == 1
    assert "<script>alert" not in text
    assert NASTY in page.words


@pytest.mark.parametrize(
    ("scene", "error", "message"),
    [
        (make_scene()._replace(results={}), ValueError, "results must hold at least one"),
        (make_scene()._replace(target=torch.rand(3, 4, 4)), ValueError, r"scene.results\['ours'\]"),
        (make_scene()._replace(target=torch.rand(1, 90, 140)), ValueError, r"scene.target"),
    ],
)
def test_render_scene_rejects_bad_input(scene, error, message):
    with pytest.raises(error, match=message):
        render_scene(scene)


# the page


def test_the_page_needs_nothing_else(tmp_path):
    page = Page(make_report(tmp_path, [make_scene()]).read_text(encoding="utf-8"))
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "data-radiance") if key in a]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert page.all("link") == []
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]


def test_the_table_links_what_is_shown(tmp_path):
    results = EvaluationResults(tmp_path, {})
    results.add("shown", {"ours": {"PSNR-mu": 40.0}})
    results.add("hidden", {"ours": {"PSNR-mu": math.inf}})
    results.fail("lost", ValueError("cut short"))
    section = render_scene(make_scene("shown"))
    save_report(tmp_path / "r.html", results, {"shown": section}, title="t", notes=[])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [a["href"] for a in page.all("a")] == [f"#{scene_anchor('shown')}"] * 2
    assert [a["data-v"] for a in page.all("td") if "data-v" in a] == ["40.0", "Infinity"]
    assert "cut short" in text
    assert "∞" in page.words


def test_one_picture_has_a_dash_for_its_interval(tmp_path):
    text = make_report(tmp_path, [make_scene()]).read_text(encoding="utf-8")
    assert "40.00<small>–</small>" in text
    assert "NaN" not in Page(text).words


def test_an_evaluation_without_pictures_has_a_report_too(tmp_path):
    results = EvaluationResults(tmp_path, {})
    results.fail("lost", ValueError("cut short"))
    save_report(tmp_path / "r.html", results, {}, title="t", notes=[])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert " ValueError: cut short" in page.words


def test_sections_of_the_worst_pictures_are_kept(tmp_path):
    results, sections = EvaluationResults(tmp_path, {}), SceneSections(tmp_path / "sections", 2)
    for name, psnr in (("a", 30.0), ("b", 40.0), ("c", 20.0)):
        scene = make_scene(name)._replace(scores={"ours": {"PSNR-mu": psnr}})
        sections.write(scene, results)
        results.add(name, scene.scores)
    again = SceneSections(tmp_path / "sections", 2).read(results)
    assert list(again) == ["a", "c"]
    assert again["a"] == render_scene(make_scene("a")._replace(scores={"ours": {"PSNR-mu": 30.0}}))
    assert len(list((tmp_path / "sections").iterdir())) == 2


# in a browser


def browse(page: Path, folder: Path, *options: str, patience: int = 60) -> str:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,3000"]
    command = [chromium, *quiet, f"--virtual-time-budget={1000 * patience}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_script(page: Path, script: str) -> Path:
    """Append what a person would do, and what is seen then as the page's title."""
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    other = page.with_name("acted.html")
    other.write_text(text, encoding="utf-8")
    return other


def test_a_browser_sorts_and_shows_other_exposures(tmp_path):
    scenes = [
        make_scene(name)._replace(scores={"ours": {"PSNR-mu": v}}) for name, v in (("a", 9.5), ("b", 30.0), ("c", 10.0))
    ]
    # The browser's clock runs ahead of a busy machine, so nothing here counts on a time.
    script = """
    const last = () => {
      const canvas = document.querySelectorAll(".grid canvas")[1];
      const pixel = () => canvas.getContext("2d").getImageData(139, 89, 1, 1).data;
      return canvas && [canvas.width, canvas.height, ...pixel()].join(" ");
    };
    const change = async from => {
      while (!last() || last() === from) await new Promise(resolve => setTimeout(resolve, 20));
      return last();
    };
    addEventListener("load", async () => {
      document.querySelectorAll("thead button")[1].click();
      const once = [...document.querySelectorAll("tbody th")].map(x => x.dataset.v).join("");
      document.querySelectorAll("thead button")[1].click();
      const twice = [...document.querySelectorAll("tbody th")].map(x => x.dataset.v).join("");
      const first = await change();
      controls.tone.value = "srgb"; controls.ev.value = -1;
      controls.dispatchEvent(new Event("input"));
      document.title = [once, twice, await change(first)].join(" ");
    });
    """
    dom = browse(with_script(make_report(tmp_path, scenes), script), tmp_path, "--dump-dom", patience=600)
    once, twice, *numbers = re.search(r"<title>(.*?)</title>", dom)[1].split()
    assert (once, twice) == ("bca", "acb")
    width, height, *pixel = map(int, numbers)
    assert (width, height) == (140, 90)
    linear = np.array([1.0, 0.5, 0.2]) / 2  # the target's last pixel, one stop down
    assert np.abs(pixel[:3] - 255 * (1.055 * linear ** (1 / 2.4) - 0.055)).max() <= 1.5


def test_a_browser_draws_the_page(tmp_path):
    file = tmp_path / "shot.png"
    browse(make_report(tmp_path, [make_scene()]), tmp_path, f"--screenshot={file}")
    shot = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert shot.shape == (3000, 1400, 3)
    colorful = (shot.max(-1) - shot.min(-1) > 60).mean()
    assert colorful > 0.05  # pictures, not an empty page
