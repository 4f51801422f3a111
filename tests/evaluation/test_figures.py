"""Training curves, sample pictures and pictures of priors."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from skt_components.banks import priors_from_labels, priors_from_masks
from skt_components.data import HDRSample
from skt_components.evaluation import PriorsRow, SampleRow, figures, save_curves, save_priors, save_samples
from skt_components.evaluation.figures import principal_colors, region_colors
from skt_components.ops import tone_map


def read_picture(path) -> torch.Tensor:
    import matplotlib.image

    return torch.from_numpy(matplotlib.image.imread(path))[..., :3]


def make_row(name="scene", labels=True, results=("ours", "bare"), exposures=3, size=(20, 24)) -> SampleRow:
    return SampleRow(
        name,
        torch.rand(exposures, 3, *size),
        {result: torch.rand(3, *size, requires_grad=True) for result in results},
        torch.rand(3, *size),
        {result: 0.1 * torch.rand(*size) for result in results},
        torch.randint(-1, 4, size) if labels else None,
    )


def write_lines(path, lines) -> None:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")


def gradients(norms: dict[str, float]) -> dict:
    return {"parameters": {name: {"norm": norm, "cosine": 0.5} for name, norm in norms.items()}}


def training_lines(run="framework", steps=(0, 10, 20)) -> list[dict]:
    lines = []
    for step in steps:
        terms = {"org": 0.5 / (step + 1), "color": 1e-3}
        lines.append({"run": run, "step": step, "terms": terms, "gradients": gradients({"org": 0.1, "color": 0.0})})
        lines.append({"run": run, "step": step, "validation": {"ORM": {"PSNR-mu": 30.0 + step}}})
    return lines


# save_curves


def test_curves_are_drawn(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", training_lines())
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    picture = read_picture(tmp_path / "curves.png")
    assert picture.shape == (400, 1500, 3)
    assert all(part.var() > 1e-3 for part in picture.split(500, dim=1))


def drawn_figure(monkeypatch, tmp_path, lines):
    """The figure of the curves with all that is in it; to render it takes a second."""
    import matplotlib.pyplot as plt

    drawn = []
    write_lines(tmp_path / "metrics.jsonl", lines)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda path, figure, **options: drawn.append(figure))
        save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    (figure,) = drawn
    plt.close(figure)
    return figure


def drawn_lines(monkeypatch, tmp_path, lines) -> list[dict[str, list[list[float]]]]:
    """Per axis: label -> points, as they were drawn."""
    axes = drawn_figure(monkeypatch, tmp_path, lines).axes
    return [{line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in axes]


def test_the_curves_are_the_numbers_of_the_file(monkeypatch, tmp_path):
    terms, norms, validation = drawn_lines(monkeypatch, tmp_path, training_lines())
    assert terms == {"org": [[s, 0.5 / (s + 1)] for s in (0, 10, 20)], "color": [[s, 1e-3] for s in (0, 10, 20)]}
    assert norms == {"org": [[s, 1.0] for s in (0, 10, 20)], "color": [[s, 0.0] for s in (0, 10, 20)]}
    assert validation == {"framework ORM": [[s, 30.0 + s] for s in (0, 10, 20)]}


def test_pictures_without_training_are_level_lines(monkeypatch, tmp_path):
    free = {"run": "baselines", "step": 0, "baselines": {"reference exposure": {"PSNR-mu": 31.0}}}
    _, _, validation = drawn_lines(monkeypatch, tmp_path, [free, *training_lines()])
    assert validation["reference exposure"] == [[0, 31.0], [1, 31.0]]


def test_two_runs_are_two_lines_that_never_run_backwards(monkeypatch, tmp_path):
    lines = training_lines() + training_lines("bare", (0, 5))
    terms, _, validation = drawn_lines(monkeypatch, tmp_path, lines)
    assert set(terms) == {"framework org", "framework color", "bare org", "bare color"}
    assert set(validation) == {"framework ORM", "bare ORM"}
    for points in (*terms.values(), *validation.values()):
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps))


def test_a_gradient_is_drawn_as_its_share_of_that_of_the_reconstruction_loss(monkeypatch, tmp_path):
    norms = [{"org": 0.5, "color": 0.05}, {"org": 0.2, "color": 0.1}, {"org": 0.0, "color": 0.1}, {}]
    lines = [{"step": step, "terms": {"org": 1.0}, "gradients": gradients(found)} for step, found in enumerate(norms)]
    _, shares, _ = drawn_lines(monkeypatch, tmp_path, lines)
    assert shares == {"org": [[0, 1.0], [1, 1.0]], "color": [[0, 0.1], [1, 0.5]]}  # of nothing there is no share


def test_learning_rate_and_speed_have_a_panel_where_they_are_known(monkeypatch, tmp_path):
    lines = [{**line, "lr": 1e-3 / (1 + line["step"])} for line in training_lines()]
    lines += [{**line, "lr": 1e-3, "samples_per_second": 12.5} for line in training_lines("bare", (0, 5))]
    _, _, _, rates, speeds = drawn_lines(monkeypatch, tmp_path, lines)
    assert rates["framework learning rate"] == [[s, 1e-3 / (1 + s)] for s in (0, 10, 20)]
    assert rates["bare learning rate"] == [[0, 1e-3], [5, 1e-3]]
    assert speeds == {"bare samples per second": [[0, 12.5], [5, 12.5]]}
    assert set(speeds) < set(rates)  # empty lines, so that one legend names both sides
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    picture = read_picture(tmp_path / "curves.png")
    assert picture.shape == (800, 1300, 3)
    assert all(part.var() > 1e-3 for half in picture.chunk(2) for part in half.chunk(2, dim=1))


def test_notices_are_ticks_in_every_panel(monkeypatch, tmp_path):
    notices = [{"run": "framework", "step": step, "notice": "a spike"} for step in (3, 11)]
    figure = drawn_figure(monkeypatch, tmp_path, training_lines() + notices)
    for axis in figure.axes:
        (ticks,) = axis.collections
        assert [segment[:, 0].tolist() for segment in ticks.get_segments()] == [[3, 3], [11, 11]]
        assert "notice" in axis.get_legend_handles_labels()[1]


def test_a_term_has_one_color_and_a_run_one_style(monkeypatch, tmp_path):
    figure = drawn_figure(monkeypatch, tmp_path, training_lines() + training_lines("bare"))
    lines = {(axis, line.get_label()): line for axis, panel in enumerate(figure.axes[:2]) for line in panel.lines}
    for term in ("org", "color"):
        assert len({line.get_color() for (_, label), line in lines.items() if label.endswith(term)}) == 1
    for run in ("framework", "bare"):
        assert len({line.get_linestyle() for (_, label), line in lines.items() if label.startswith(run)}) == 1
    assert (
        len({line.get_color() for line in lines.values()})
        == len({line.get_linestyle() for line in lines.values()})
        == 2
    )


def test_curves_that_hide_each_other_are_drawn_apart(monkeypatch, tmp_path):
    scores = [{"ORM": 20.0 + s, "SPGRM": 20.02 + s, "other": 25.0 + 2 * s} for s in range(9)]
    lines = [
        {"run": "a", "step": step, "validation": {name: {"PSNR-mu": value} for name, value in row.items()}}
        for step, row in enumerate(scores)
    ]
    figure = drawn_figure(monkeypatch, tmp_path, lines)
    below, above, alone = figure.axes[2].lines
    assert below.get_linewidth() > above.get_linewidth() == alone.get_linewidth()
    assert (below.get_alpha(), above.get_alpha()) == (0.45, None)


@pytest.mark.parametrize("lines", [[], [{"run": "a", "step": 0, "terms": {"org": 0.0}, "gradients": {}}]])
def test_hardly_any_lines_still_give_a_picture(tmp_path, lines):
    write_lines(tmp_path / "metrics.jsonl", lines)
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert read_picture(tmp_path / "curves.png").var() > 1e-3


def test_missing_metrics_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_curves(tmp_path / "none.jsonl", tmp_path / "curves.png")


# SampleRow.from_sample

TIMES = torch.tensor([1.0, 4.0, 16.0, 64.0, 256.0])
GAINS, MATRIX = torch.tensor([2.0, 1.0, 1.6]), torch.tensor([[1.5, -0.4, -0.1], [-0.2, 1.4, -0.2], [0.0, -0.5, 1.5]])


def raw_sample(gray: float, metadata: bool = True, size: int = 4, scale: int = 1) -> HDRSample:
    """A sample of a flat gray scene, of which the longer exposures clip; ``gray`` is 1 at the peak."""
    sensor = gray / GAINS  # the matrix leaves gray gray
    frames = [(sensor * t).clamp(max=1) / t * 16 for t in TIMES]
    packed = torch.stack(frames)[:, [0, 1, 1, 2], None, None]
    target = (16 * sensor)[[0, 1, 1, 2], None, None].expand(4, size * scale, size * scale)
    shown = {"white_balance": GAINS, "color_matrix": MATRIX} if metadata else {}
    return HDRSample(packed.expand(5, 4, size, size), TIMES, target, "gray", "raw", shown)


def test_raw_exposures_are_shown_as_the_sensor_saw_them_and_clipped_light_is_white():
    row = SampleRow.from_sample(raw_sample(0.02), {})
    assert row.ldrs.shape == (5, 3, 8, 8)
    # sRGB of 0.02, 0.08 and 0.32; the fourth and the fifth exposure are saturated in every color.
    for ldr, linear in zip(row.ldrs[:3], (0.02, 0.08, 0.32), strict=True):
        expected = 1.055 * linear ** (1 / 2.4) - 0.055
        torch.testing.assert_close(ldr, torch.full_like(ldr, expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(row.ldrs[4], torch.ones(3, 8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1, 4])
def test_raw_results_and_target_are_shown_in_the_colors_of_the_metadata(scale):
    sample = raw_sample(0.1, scale=scale)
    row = SampleRow.from_sample(sample, {"double": 2 * sample.target})
    assert list(row.results) == ["reference exposure", "exposure merge", "double"]
    for picture in (row.target, *row.results.values()):
        assert picture.shape == (3, 8 * scale, 8 * scale)
        assert (picture.amax(0) - picture.amin(0)).max() < 1e-3  # gray
    wanted = (math.log(1 + 5000 * 0.2) - math.log(1 + 5000 * 0.1)) / math.log(5001)
    torch.testing.assert_close(row.errors["double"], torch.full((8 * scale,) * 2, wanted), atol=1e-5, rtol=1e-4)
    plain = SampleRow.from_sample(raw_sample(0.1, metadata=False), {}).target.mean((1, 2))
    assert plain[1] > plain[0] + 0.05  # the sensor's green


def test_srgb_samples_show_their_exposures_and_tone_mapped_results():
    ldr, target = torch.rand(3, 3, 4, 4), torch.rand(3, 4, 4)
    sample = HDRSample(torch.cat([ldr**2, ldr], 1), torch.ones(3), target, "scene", "srgb")
    labels = torch.zeros(4, 4, dtype=torch.long)
    row = SampleRow.from_sample(sample, {"ours": (target / 2).requires_grad_()}, labels)
    assert (row.name, row.labels) == ("scene", labels)
    assert torch.equal(row.ldrs, ldr)
    torch.testing.assert_close(row.target, tone_map(target[None])[0])
    torch.testing.assert_close(row.results["ours"], tone_map(target[None] / 2, like=target[None])[0])
    torch.testing.assert_close(row.results["reference exposure"], tone_map(ldr[None, 1] ** 2, like=target[None])[0])
    error = (torch.log1p(5000 * target) - torch.log1p(2500 * target)) / math.log(5001)
    torch.testing.assert_close(row.errors["ours"], error.mean(0))
    assert not row.results["ours"].requires_grad


def test_a_row_of_a_raw_sample_is_drawn(tmp_path):
    sample = raw_sample(0.02, scale=4)  # whose exposures are smaller than the rest
    save_samples(tmp_path / "samples.png", [SampleRow.from_sample(sample, {"ours": sample.target})])
    assert read_picture(tmp_path / "samples.png").shape[1] == pytest.approx(3.2 * 4 * 100, abs=3)


# save_samples


def drawn_pictures(monkeypatch, tmp_path, rows) -> list[dict]:
    """Title -> picture of every line of pictures that is drawn."""
    lines, draw = [], figures._draw_line

    def record(figure, pictures, **options):
        lines.append(dict(pictures))
        return draw(figure, pictures, **options)

    monkeypatch.setattr(figures, "_draw_line", record)
    save_samples(tmp_path / "samples.png", rows)
    return lines


@pytest.mark.parametrize("labels", [True, False])
def test_each_scene_is_drawn_large_with_a_zoom_and_errors(monkeypatch, tmp_path, labels):
    rows = [make_row("one", labels), make_row("two", labels)]
    lines = drawn_pictures(monkeypatch, tmp_path, rows)
    exposures = ["exposure 1", "exposure 2", "exposure 3"] + ["regions"] * labels
    results, zoomed = ["ours", "bare", "target"], ["ours, zoom", "bare, zoom", "target, zoom"]
    errors = ["|ours - target|", "|bare - target|"]
    assert [list(line) for line in lines] == [exposures, results, zoomed, errors] * 2
    picture = read_picture(tmp_path / "samples.png")
    assert picture.var() > 1e-3
    assert picture.shape[1] == pytest.approx(3.2 * 3 * 100, abs=3)


def test_pictures_are_drawn_as_given_and_the_zoom_is_where_the_merge_is_worst(monkeypatch, tmp_path):
    names = ("reference exposure", "exposure merge", "ours")
    pictures = {name: torch.full((3, 32, 40), 0.2 * (number + 1)) for number, name in enumerate(names)}
    pictures["ours"][0] = 7.0  # clamped to 1
    errors = {name: torch.zeros(32, 40) for name in names}
    errors["exposure merge"][20:28, 10:18] = 0.5
    errors["ours"][:8, :8] = 0.5
    target = torch.arange(32.0)[:, None].expand(3, 32, 40) / 32
    lines = drawn_pictures(
        monkeypatch, tmp_path, [SampleRow("scene", torch.rand(3, 3, 32, 40), pictures, target, errors)]
    )
    assert lines[1]["ours"][0, 0].tolist() == pytest.approx([1.0, 0.6, 0.6])
    assert lines[2]["target, zoom"][:, 0, 0].tolist() == pytest.approx([row / 32 for row in range(20, 28)])
    assert lines[3]["|ours - target|"].max() == 0.5


def test_rows_that_do_not_match_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="rows must hold at least one scene"):
        save_samples(tmp_path / "samples.png", [])
    for other in (make_row("two", results=("ours",)), make_row("two", exposures=5), make_row("two", labels=False)):
        with pytest.raises(ValueError, match=r"rows must have the same pictures: 'two' has \["):
            save_samples(tmp_path / "samples.png", [make_row("one"), other])
    assert list(tmp_path.iterdir()) == []


def test_no_figure_stays_open(tmp_path):
    import matplotlib.pyplot as plt

    plt.close("all")
    write_lines(tmp_path / "metrics.jsonl", training_lines())
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    save_samples(tmp_path / "samples.png", [make_row()])
    assert plt.get_fignums() == []


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'matplotlib is needed for pictures: pip install "skt-components\[train\]"'):
        save_samples(tmp_path / "samples.png", [make_row()])


# save_priors


def make_priors_row(name: str = "a", height: int = 32, width: int = 48, overlap: bool = False) -> PriorsRow:
    features = [torch.rand(1, 40, height // s, width // s) for s in (16, 8, 4, 2)]
    labels = (torch.arange(width)[None, None] // 20).expand(1, height, width)
    priors = priors_from_labels(features, labels, 4)
    if overlap:
        masks = priors.masks.clone()
        masks[:, 1] = True
        priors = priors_from_masks(features, masks)
    return PriorsRow(name, torch.rand(3, height, width), priors)


def test_draws_a_row_per_picture(tmp_path) -> None:
    image = pytest.importorskip("matplotlib.image")
    save_priors(tmp_path / "one.png", [make_priors_row()])
    save_priors(
        tmp_path / "three.png", [make_priors_row(), make_priors_row("b", 48, 32), make_priors_row("c", overlap=True)]
    )
    one, three = (image.imread(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > 2.5 * one.shape[0]
    assert one[..., :3].std() > 0.1


def test_a_component_is_a_color_and_repeats() -> None:
    direction = torch.nn.functional.normalize(torch.rand(3, 24), dim=1)
    parts = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 10), indexing="ij"))
    feature = (direction[0][:, None, None] * parts[0] * 9) + (direction[1][:, None, None] * parts[1])
    shown = principal_colors(feature)
    assert shown.shape == (3, 8, 10)
    assert shown.min() >= 0
    assert shown.max() <= 1
    correlation = torch.corrcoef(torch.stack([shown[0].flatten(), parts[0].flatten()]))[0, 1]
    assert correlation.abs() > 0.95  # the strongest direction is red
    assert torch.equal(shown, principal_colors(feature.clone()))
    torch.testing.assert_close(shown[:2], principal_colors(feature * 5 + 3)[:2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_and_constant_maps(channels: int) -> None:
    assert principal_colors(torch.rand(channels, 4, 5)).shape == (3, 4, 5)
    assert torch.isfinite(principal_colors(torch.full((channels, 4, 5), 7.0))).all()


def test_regions_have_colors_and_no_region_stays_gray() -> None:
    picture = torch.full((3, 4, 6), 0.5)
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :, :4], masks[1, 1:3, 1:3] = True, True
    drawn = region_colors(picture, masks)

    def color(y: int, x: int) -> torch.Tensor:
        return drawn[:, y, x]

    assert torch.equal(color(0, 5), torch.full((3,), 0.5))
    assert not torch.allclose(color(0, 0), color(0, 5))
    assert not torch.allclose(color(1, 1), color(0, 0))  # the smaller one lies on top
    assert torch.equal(region_colors(picture, masks[[1, 0]])[:, 3, 0], region_colors(picture, masks[[1, 0]])[:, 0, 0])


def test_rejects_bad_input(tmp_path) -> None:
    with pytest.raises(ValueError, match="rows must hold at least one picture"):
        save_priors(tmp_path / "a.png", [])
    two = make_priors_row()
    priors = priors_from_labels([], torch.zeros(2, 32, 48, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="priors of 'a' must be of one picture, got 2"):
        save_priors(tmp_path / "a.png", [two._replace(priors=priors)])
