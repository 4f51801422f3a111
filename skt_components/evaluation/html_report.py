"""Write the report of an evaluation: one HTML file that works offline. Its templates are beside this file."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.banks.regions import ColorPositionKMeans
from skt_components.evaluation import html_pictures as draw
from skt_components.evaluation.results import EvaluationResults
from skt_components.files.atomic import write_text
from skt_components.ops.checks import check_same_shape, check_tensor
from skt_components.ops.transfer import mu_law

VIEW_WIDTH = 640  # of the largest pictures
EXPOSURE_WIDTH = 320
REGIONS_WIDTH = 240
CROP_SIDE, CROP_COUNT = 64, 3
WHITE_ERROR = 0.1  # the tone-mapped error at the bright end of the color scale
_LUMINANCE = (0.2126, 0.7152, 0.0722)


class ReportScene(NamedTuple):
    """The content of one picture's section in a report.

    Attributes:
        name: name of the picture.
        exposures: title -> ``(3, h, w)`` display values in [0, 1].
        results: models, and the baselines after them -> ``(3, H, W)`` linear RGB with white at 1.
        target: ``(3, H, W)`` linear RGB with white at 1.
        scores: model -> metric -> value.
        visibility: model -> ``(H, W)`` probability in [0, 1] that the difference is visible, from HDR-VDP-2.
        warnings: remarks about suspicious pictures.
    """

    name: str
    exposures: Mapping[str, Float[Tensor, "3 _h _w"]]
    results: Mapping[str, Float[Tensor, "3 h w"]]
    target: Float[Tensor, "3 h w"]
    scores: Mapping[str, Mapping[str, float]]
    visibility: Mapping[str, Float[Tensor, "h w"]] = {}
    warnings: Sequence[str] = ()


def render_scene(scene: ReportScene) -> str:
    """Render a picture's section of the report as HTML that refers to no other file.

    Pictures are at most 640 pixels wide and 960 high; crops are not scaled.

    Args:
        scene: the content; tensors on any device.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: results are not ``(3, H, W)`` or differ in size from the target, or there is no result.
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
    linear = {name: _displayable(picture) for name, picture in {**scene.results, "target": scene.target}.items()}
    mapped = {name: mu_law(picture.clamp(min=0)).clamp(max=1) for name, picture in linear.items()}
    target = mapped.pop("target")
    errors = {name: (picture - target).abs().mean(0) for name, picture in mapped.items()}
    height, width = target.shape[1:]
    side = min(CROP_SIDE, height, width)
    places = draw.worst_places(next(iter(errors.values())), side, CROP_COUNT)
    return _template("html_scene.html.jinja").render(
        scene=scene,
        anchor=scene_anchor(scene.name),
        exposures={title: _exposure(picture) for title, picture in scene.exposures.items()},
        views={name: _radiance(draw.shrink(picture, VIEW_WIDTH)) for name, picture in linear.items()},
        errors={name: _error_map(error) for name, error in errors.items()},
        visibility={name: _color_map(_displayable(seen), draw.VIRIDIS) for name, seen in scene.visibility.items()},
        aspect=width / height,
        boxes=[(100 * x / width, 100 * y / height, 100 * side / width, 100 * side / height) for y, x in places],
        crops=[_crop(linear, errors, top, left, side) for top, left in places],
        white_error=WHITE_ERROR,
        **_histograms(mapped, target, errors),
    )


def scene_anchor(name: str) -> str:
    """Return the HTML id of a picture's section, which is also the name of a file that keeps the section."""
    return "scene-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


class SceneSections:
    """Sections of a report in files, so that an evaluation that continues has the sections of finished pictures.

    Args:
        folder: is created if it does not exist.
        count: number of sections to keep.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        folder.mkdir(exist_ok=True)

    def write(self, scene: ReportScene, results: EvaluationResults) -> None:
        """Store a section, and delete the sections of pictures in ``results`` that are not among the worst."""
        self._delete_all_but_worst(results)
        if self.count > 0:
            self._file(scene.name).write_text(render_scene(scene), "utf-8", "backslashreplace")

    def read(self, results: EvaluationResults) -> dict[str, str]:
        """Return name -> section of the pictures with the lowest first score, in the order of the results."""
        self._delete_all_but_worst(results)
        files = {name: self._file(name) for name in results.pictures}
        return {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}

    def _file(self, name: str) -> Path:
        return self.folder / f"{scene_anchor(name)}.html"

    def _delete_all_but_worst(self, results: EvaluationResults) -> None:
        for name in results.worst()[self.count :]:
            self._file(name).unlink(missing_ok=True)


def save_report(
    path: str | os.PathLike[str],
    results: EvaluationResults,
    scenes: Mapping[str, str],
    *,
    title: str,
    notes: Sequence[str],
) -> None:
    """Write the report: means, a sortable table, and the sections of the pictures.

    Args:
        path: the ``.html`` file; it is replaced if it exists, its folder must exist.
        results: the scores.
        scenes: name -> section from :func:`render_scene`, in the order of the page; pictures without a section are
            in the table only.
        title: title of the page.
        notes: how the scores were computed, such as the protocol's description.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    page = _template("html_report.html.jinja").render(
        results=results,
        scenes=scenes,
        title=title,
        notes=notes,
        style=Path(__file__).with_name("html_report.css").read_text(encoding="utf-8"),
        script=Path(__file__).with_name("html_report.js").read_text(encoding="utf-8"),
        scales={"error": draw.INFERNO, "visibility": draw.VIRIDIS},
        summary=results.summary(),
        columns={column: results.values(*column) for column in results.columns()},
        anchor=scene_anchor,
    )
    write_text(path, page, errors="backslashreplace")


# templates


@functools.cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    templates = Environment(loader=loader, undefined=StrictUndefined, **options)
    templates.filters |= {"number": _number, "sortable": _sortable, "position": _position}
    return templates.get_template(name)


def _number(value: float, metric: str) -> str:
    """Return a score as text, with the decimals of its metric and a typographic minus."""
    if math.isfinite(value):
        return f"{value:.{4 if 'SSIM' in metric or metric == 'LPIPS' else 2}f}".replace("-", "−")
    return "∞" if value > 0 else "−∞" if value < 0 else "NaN"


def _sortable(value: float) -> str:
    """Return a number as JavaScript reads it; NaN is the lowest."""
    return str(value) if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _position(value: float, values: Sequence[float]) -> float:
    """Return where a value lies between the lowest and the highest finite ones, in percent; 100 if undefined."""
    finite = [value for value in values if math.isfinite(value)]
    if not math.isfinite(value) or max(finite) == min(finite):
        return 100.0
    return 100 * (value - min(finite)) / (max(finite) - min(finite))


# pictures


def _displayable(picture: Tensor) -> Tensor:
    return picture.detach().float().cpu().nan_to_num()


def _exposure(picture: Tensor) -> str:
    return draw.jpeg_url(draw.shrink(_displayable(picture), EXPOSURE_WIDTH))


def _radiance(picture: Tensor) -> dict[str, str]:
    """Return the tone-mapped picture, and the radiance that the page's script tone-maps again."""
    return {"shown": draw.jpeg_url(mu_law(picture.clamp(min=0))), "radiance": draw.radiance_url(picture)}


def _color_map(values: Tensor, colors: Sequence[str]) -> str:
    return draw.jpeg_url(draw.paint(draw.shrink(values[None], VIEW_WIDTH)[0], colors))


def _error_map(error: Tensor) -> str:
    return _color_map(error / WHITE_ERROR, draw.INFERNO)


def _crop(linear: Mapping[str, Tensor], errors: Mapping[str, Tensor], top: int, left: int, side: int) -> dict[str, Any]:
    area = (..., slice(top, top + side), slice(left, left + side))
    return {
        "title": f"{side} × {side} pixels at x {left}, y {top}",
        "views": {name: _radiance(picture[area]) for name, picture in linear.items()},
        "errors": {name: _error_map(error[area]) for name, error in errors.items()},
    }


def _histograms(mapped: Mapping[str, Tensor], target: Tensor, errors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a map of color regions, and histograms of tone-mapped brightness in the whole picture and by region."""
    small = draw.shrink(target, VIEW_WIDTH)
    labels = ColorPositionKMeans(len(draw.REGIONS))(small[None])[0]
    brightness = {name: _brightness(draw.shrink(picture, VIEW_WIDTH)) for name, picture in mapped.items()}
    shrunk = {name: draw.shrink(error[None], VIEW_WIDTH)[0] for name, error in errors.items()}
    whole = torch.ones_like(labels, dtype=torch.bool)
    areas = {None: whole} | {color: labels == number for number, color in enumerate(draw.REGIONS)}
    histograms = [
        {
            "color": color,
            "share": float(100 * area.double().mean()),
            "errors": [float(error[area].mean()) for error in shrunk.values()],
            "points": draw.histogram_points([picture[area] for picture in (_brightness(small), *brightness.values())]),
        }
        for color, area in areas.items()
        if area.any()
    ]
    regions = draw.paint(labels / (len(draw.REGIONS) - 1), draw.REGIONS)
    return {"regions": draw.jpeg_url(draw.shrink(regions, REGIONS_WIDTH)), "histograms": histograms}


def _brightness(picture: Tensor) -> Tensor:
    return sum(weight * plane for weight, plane in zip(_LUMINANCE, picture, strict=True))
