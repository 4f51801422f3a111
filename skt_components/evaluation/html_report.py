"""The report of an evaluation: one HTML file, to be opened anywhere, that needs no network."""

from __future__ import annotations

import functools
import hashlib
import html
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from skt_components.banks.regions import ColorPositionKMeans
from skt_components.evaluation import html_pictures as draw
from skt_components.evaluation.results import EvaluationResults, Summary
from skt_components.files.atomic import atomic_write
from skt_components.ops.checks import check_same_shape, check_tensor
from skt_components.ops.transfer import mu_law

WIDTH = 640  # of the largest pictures
_STRIP = 320  # of the exposures
_CROP, _CROPS = 64, 3
_WHITE_ERROR = 0.1
_LUMINANCE = (0.2126, 0.7152, 0.0722)
_text = functools.partial(html.escape, quote=True)


class ReportScene(NamedTuple):
    """What a report shows of one picture.

    Attributes:
        name: of the picture.
        exposures: title -> ``(3, h, w)`` display values in [0, 1].
        results: one or two models -> ``(3, H, W)`` linear RGB with white at 1.
        target: alike.
        scores: model -> metric -> value.
        visibility: model -> ``(H, W)`` probability that the difference is seen, from HDR-VDP-2.
        warnings: what is odd about the picture.
    """

    name: str
    exposures: Mapping[str, Float[Tensor, "3 _h _w"]]
    results: Mapping[str, Float[Tensor, "3 h w"]]
    target: Float[Tensor, "3 h w"]
    scores: Mapping[str, Mapping[str, float]]
    visibility: Mapping[str, Float[Tensor, "h w"]] = {}
    warnings: Sequence[str] = ()


def render_scene(scene: ReportScene) -> str:
    """Return a picture's section of the report, self-contained: pictures at most 640 pixels wide, crops unscaled.

    Args:
        scene: what to show; tensors on any device.

    Raises:
        TypeError: a picture is no floating-point tensor.
        ValueError: results are not ``(3, H, W)`` or differ in size from the target, or there is none.
        ImportError: Pillow is not installed.

    Example:
        >>> import torch
        >>> picture = torch.rand(3, 16, 16)
        >>> scene = ReportScene("<em>", {}, {"ours": picture}, picture, {"ours": {"PSNR-mu": 41.5}})
        >>> "&lt;em&gt;" in render_scene(scene), "<em>" in render_scene(scene)
        (True, False)
    """
    if not scene.results:
        raise ValueError("scene.results must hold at least one model's picture")
    check_tensor("scene.target", scene.target, ndim=3, layout="(3, H, W)", channels=3)
    for name, picture in scene.results.items():
        check_same_shape(f"scene.results[{name!r}]", picture, "scene.target", scene.target)
    results = {name: _plain(picture) for name, picture in scene.results.items()}
    target = _plain(scene.target)
    shown = {name: mu_law(picture.clamp(min=0)).clamp(max=1) for name, picture in results.items()}
    wanted = mu_law(target.clamp(min=0)).clamp(max=1)
    errors = {name: (picture - wanted).abs().mean(0) for name, picture in shown.items()}
    side = min(_CROP, *target.shape[1:])
    places = draw.worst_places(next(iter(errors.values())), side, _CROPS)
    anchor = scene_anchor(scene.name)
    parts = [
        f'<section class="scene" id="{anchor}"><h2><a href="#{anchor}">{_text(scene.name)}</a></h2>',
        _chips(scene.scores),
        "".join(f'<p class="warning">{_text(warning)}</p>' for warning in scene.warnings),
        _exposures(scene.exposures),
        _views({**results, "target": target}),
        _maps(errors, scene.visibility, places, side),
        _crops({**results, "target": target}, errors, places, side),
        _histograms(shown, wanted, errors),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def scene_anchor(name: str) -> str:
    """Return where in the page a picture's section is, and how a file for it may be called."""
    return "scene-" + hashlib.sha256(name.encode()).hexdigest()[:12]


def save_report(
    path: str | os.PathLike[str],
    results: EvaluationResults,
    scenes: Mapping[str, str],
    *,
    title: str,
    notes: Sequence[str],
) -> None:
    """Write the report: means, a table to sort, and the sections of the pictures.

    Args:
        path: the ``.html`` file; it is replaced if it exists, its folder must exist.
        results: the numbers.
        scenes: name -> what :func:`render_scene` returned, in the order to show them in; pictures without a section
            are in the table only.
        title: of the page.
        notes: how the numbers were made, such as the protocol's description.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    resource = files("skt_components.evaluation")
    style, script = ((resource / f"html_report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    scales = "".join(
        f".scale.{name}{{background:linear-gradient(90deg,{','.join(f'#{color}' for color in colors)})}}"
        for name, colors in {"error": draw.INFERNO, "visibility": draw.VIRIDIS}.items()
    )
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(title)}</title><style>{style}{scales}</style></head><body>",
        f"<header><h1>{_text(title)}</h1>{''.join(f'<p>{_text(note)}</p>' for note in notes)}</header>",
        _controls() if scenes else "",
        f"<main>{_cards(results)}{_troubles(results)}{_table(results, scenes)}",
        *scenes.values(),
        f"</main><footer>{_text(_versions(results))}</footer><script>{script}</script></body></html>",
    ]
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("\n".join(page))


# the head of the page


def _controls() -> str:
    return (
        '<form id="controls" hidden><label>Tone mapping <select name="tone"><option value="mu">μ-law</option>'
        '<option value="srgb">exposure, clipped</option><option value="soft">exposure, soft</option></select></label>'
        '<label class="wide">Exposure <input name="ev" type="range" min="-8" max="8" step="0.25" value="0">'
        '<output name="shown">0 EV</output></label><button type="reset">Reset</button>'
        "<span>Click a picture to zoom; all of its scene follow.</span></form>"
    )


def _cards(results: EvaluationResults) -> str:
    """Return the mean of every metric in large print."""
    cards = []
    for model, row in results.summary().items():
        numbers = "".join(
            f"<div><dt>{_text(metric)}</dt><dd>{_number(value.mean, metric)}"
            f"<small>{_interval(value, metric)}</small></dd></div>"
            for metric, value in row.items()
        )
        cards.append(f'<article class="card"><h2>{_text(model)}</h2><dl>{numbers}</dl></article>')
    remark = f"Means over {len(results.pictures)} pictures; below, the bootstrap interval of 95 %."
    return f'<div class="cards">{"".join(cards)}</div><p class="remark">{remark}</p>' if cards else ""


def _troubles(results: EvaluationResults) -> str:
    """Return what failed and what looks odd."""
    blocks = ""
    if results.errors:
        lines = "".join(f"<li><b>{_text(name)}</b> {_text(why)}</li>" for name, why in results.errors.items())
        blocks += f'<div class="failed"><b>Not evaluated: {len(results.errors)}</b><ul>{lines}</ul></div>'
    if results.warnings:
        lines = "".join(
            f"<li><b>{_text(name)}</b> {_text(line)}</li>" for name, found in results.warnings.items() for line in found
        )
        blocks += f'<div class="warning"><b>Looks odd: {len(results.warnings)}</b><ul>{lines}</ul></div>'
    return blocks


def _table(results: EvaluationResults, scenes: Mapping[str, str]) -> str:
    """Return one line per picture; each cell has a bar from the column's lowest value to its highest."""
    columns, summary = results.columns(), results.summary()
    several = len({model for model, _ in columns}) > 1
    heads = "".join(
        f'<th scope="col"><button>{f"<small>{_text(model)}</small>" if several else ""}{_text(metric)}</button></th>'
        for model, metric in columns
    )
    ranges = {column: _range(results.values(*column)) for column in columns}
    lines = []
    for name, row in results.pictures.items():
        link = f'<a href="#{scene_anchor(name)}">{_text(name)}</a>' if name in scenes else _text(name)
        cells = "".join(
            _cell(row.get(model, {}).get(metric), metric, *ranges[model, metric]) for model, metric in columns
        )
        lines.append(f'<tr><th scope="row" data-v="{_text(name)}">{link}</th>{cells}</tr>')
    means = "".join(f"<td>{_number(summary[model][metric].mean, metric)}</td>" for model, metric in columns)
    return (
        '<div class="scroll"><table><thead><tr><th scope="col"><button>picture</button></th>'
        f'{heads}</tr></thead><tbody>{"".join(lines)}</tbody><tfoot><tr><th scope="row">mean</th>{means}</tr></tfoot>'
        "</table></div>"
    )


def _cell(value: float | None, metric: str, low: float, high: float) -> str:
    if value is None:
        return '<td data-v="-Infinity">–</td>'
    share = min(max((value - low) / (high - low), 0), 1) if math.isfinite(value) and high > low else 1.0
    sortable = str(value) if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    return f'<td data-v="{sortable}" style="--p:{100 * share:.0f}%">{_number(value, metric)}</td>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _number(value: float, metric: str) -> str:
    if math.isfinite(value):
        return f"{value:.{4 if 'SSIM' in metric or metric == 'LPIPS' else 2}f}".replace("-", "−")
    return "∞" if value > 0 else "−∞" if value < 0 else "NaN"


def _interval(value: Summary, metric: str) -> str:
    if math.isnan(value.low):
        return "–"
    return f"{_number(value.low, metric)} to {_number(value.high, metric)}"


def _versions(results: EvaluationResults) -> str:
    runs = (", ".join(f"{package} {version}" for package, version in run.items()) for run in results.versions)
    return "Made with " + "; ".join(runs)


# a scene


def _chips(scores: Mapping[str, Mapping[str, float]]) -> str:
    lines = []
    for number, (model, row) in enumerate(scores.items(), 1):
        cells = "".join(
            f"<span>{_text(metric)} <b>{_number(value, metric)}</b></span>" for metric, value in row.items()
        )
        lines.append(f'<div class="chips"><i class="key model{number}"></i>{_text(model)}{cells}</div>')
    return "".join(lines)


def _exposures(exposures: Mapping[str, Tensor]) -> str:
    figures = (
        _figure(_text(title), f'<img alt="{_text(title)}" src="{draw.jpeg_url(draw.shrink(_plain(p), _STRIP))}">')
        for title, p in exposures.items()
    )
    return f'<div class="strip">{"".join(figures)}</div>' if exposures else ""


def _views(pictures: Mapping[str, Tensor]) -> str:
    figures = (_figure(_text(name), _radiance(draw.shrink(picture, WIDTH), name)) for name, picture in pictures.items())
    return _grid(list(figures), len(pictures))


def _grid(figures: Sequence[str], columns: int) -> str:
    return f'<div class="grid" style="--n:{columns}">{"".join(figures)}</div>'


def _maps(
    errors: Mapping[str, Tensor], visibility: Mapping[str, Tensor], places: Sequence[tuple[int, int]], side: int
) -> str:
    """Return error maps with the worst places marked, and what HDR-VDP-2 says."""
    height, width = next(iter(errors.values())).shape
    boxes = "".join(
        f'<i class="box" style="left:{100 * left / width:.2f}%;top:{100 * top / height:.2f}%;'
        f'width:{100 * side / width:.2f}%;height:{100 * side / height:.2f}%">{number}</i>'
        for number, (top, left) in enumerate(places, 1)
    )
    figures = []
    for name, error in errors.items():
        caption = f'error of {_text(name)} <i class="scale error"></i> 0 to {_WHITE_ERROR:g} after the μ-law'
        figures.append(_figure(caption, _painted(error / _WHITE_ERROR, draw.INFERNO, f"error of {name}") + boxes))
    for name, seen in visibility.items():
        caption = f'HDR-VDP-2, {_text(name)} <i class="scale visibility"></i> 0 to 1, probability of being seen'
        figures.append(_figure(caption, _painted(_plain(seen), draw.VIRIDIS, f"visible errors of {name}")))
    return _grid(figures, max(len(figures), len(errors) + 1))


def _crops(
    pictures: Mapping[str, Tensor], errors: Mapping[str, Tensor], places: Sequence[tuple[int, int]], side: int
) -> str:
    groups = []
    for number, (top, left) in enumerate(places, 1):
        area = (..., slice(top, top + side), slice(left, left + side))
        figures = [_figure(_text(name), _radiance(picture[area], name)) for name, picture in pictures.items()]
        for name, error in errors.items():
            picture = _painted(error[area] / _WHITE_ERROR, draw.INFERNO, f"error of {name}")
            figures.append(_figure("error" if len(errors) == 1 else f"error of {_text(name)}", picture))
        place = f"{side} × {side} pixels at x {left}, y {top}"
        groups.append(f'<div class="place"><h4><b>{number}</b> {place}</h4><div>{"".join(figures)}</div></div>')
    title = "The worst places" if len(errors) == 1 else f"The worst places of {_text(next(iter(errors)))}"
    return f'<h3>{title}</h3><div class="crops">{"".join(groups)}</div>'


def _histograms(shown: Mapping[str, Tensor], wanted: Tensor, errors: Mapping[str, Tensor]) -> str:
    """Return histograms of the tone-mapped brightness, of the whole picture and by regions of colour."""
    small = draw.shrink(wanted, WIDTH)
    labels = ColorPositionKMeans(len(draw.REGIONS))(small[None])[0]
    brightness = {name: _brightness(draw.shrink(picture, WIDTH)) for name, picture in shown.items()}
    target = _brightness(small)
    wrong = {name: draw.shrink(error[None], WIDTH)[0] for name, error in errors.items()}
    areas: list[tuple[str, Callable[[Tensor], Tensor]]] = [("whole picture", lambda values: values.flatten())]
    for number, color in enumerate(draw.REGIONS):
        inside = labels == number
        if inside.any():
            share = f"{100 * inside.double().mean():.0f} % of it"
            title = f'<i class="key" style="background:#{color}"></i> {share}'
            areas.append((title, lambda values, inside=inside: values[inside]))  # type: ignore[misc]
    regions = draw.paint(labels / (len(draw.REGIONS) - 1), draw.REGIONS)
    figures = [
        _figure("regions of like colour", f'<img alt="regions" src="{draw.jpeg_url(draw.shrink(regions, 240))}">')
    ]
    for title, cut in areas:
        svg = draw.histogram_svg(cut(target), {name: cut(values) for name, values in brightness.items()}, "histogram")
        means = ", ".join(f"{cut(error).mean():.4f}" for error in wrong.values())
        figures.append(_figure(f"{title}, error {means}", svg))
    legend = '<i class="key target"></i>target' + "".join(
        f' <i class="key model{number}"></i>{_text(name)}' for number, name in enumerate(shown, 1)
    )
    title = f"Histograms of brightness after the μ-law <small>{legend}; square-root scale</small>"
    return f'<h3>{title}</h3><div class="histograms">{"".join(figures)}</div>'


def _figure(caption: str, content: str) -> str:
    return f'<figure><div class="view">{content}</div><figcaption>{caption}</figcaption></figure>'


def _radiance(picture: Tensor, name: str) -> str:
    """Return a picture that shows the mu-law, and the radiance for the script to show otherwise."""
    fallback = draw.jpeg_url(mu_law(picture.clamp(min=0)))
    return f'<img alt="{_text(name)}" src="{fallback}" data-radiance="{draw.radiance_url(picture)}">'


def _painted(values: Tensor, colors: Sequence[str], name: str) -> str:
    return f'<img alt="{_text(name)}" src="{draw.jpeg_url(draw.paint(draw.shrink(values[None], WIDTH)[0], colors))}">'


def _brightness(picture: Tensor) -> Tensor:
    return sum(weight * plane for weight, plane in zip(_LUMINANCE, picture, strict=True))


def _plain(picture: Tensor) -> Tensor:
    return picture.detach().float().cpu().nan_to_num()
