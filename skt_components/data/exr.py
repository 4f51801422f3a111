"""OpenEXR files: the part and layer that is the picture, RGB, luminance, or luminance with subsampled colors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skt_components.data.formats import Part, Pixels, to_float
from skt_components.data.windows import Array
from skt_components.files.bounds import MOST_UNPACKED, check_promise
from skt_components.files.packages import import_package
from skt_components.ops.checks import warn_caller

_NEED = ".exr files need the OpenEXR package"
# Channels of a picture, in the order in which they are looked for.
_FORMS = (("R", "G", "B"), ("Y", "RY", "BY"), ("Y",))
_REC709 = (0.2126, 0.7152, 0.0722)  # luminance, in files that do not name their primaries
# Even pixels of a subsampled line are stored; these weights of the 14 nearest ones give an odd one (RgbaInputFile's).
_CHROMA = (0.002128, -0.007540, 0.019597, -0.043159, 0.087929, -0.186077, 0.627123)
_WAVELETS = 50_000  # DWA and JPEG 2000 reach higher ratios where a picture is constant
_MOST_EMPTY = 16  # display window, relative to the data window


class Layer(NamedTuple):
    """Channels of a part that are a picture: ``part`` is its number, ``prefix`` is such as ``"diffuse."`` or empty."""

    part: int
    name: str
    prefix: str
    form: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name by which :func:`read_exr` chooses it: of the part, the layer, or both, else the part's number."""
        return ".".join(filter(None, (self.name, self.prefix.removesuffix(".")))) or str(self.part)


def read_exr(path: Path, part: Part = None) -> Pixels:
    """Read the display window of a picture: RGB, or luminance with or without colors; zero outside the data window.

    Args:
        path: the file.
        part: number or name of a part, name of a layer, or ``"part.layer"``. None: the first part with unnamed channels
            (with a warning if other parts also have them), else the only layer.

    Raises:
        ValueError: the file is broken, has no such picture, or several layers to choose from.
        ImportError: OpenEXR is missing.
    """
    openexr = import_package("OpenEXR", _NEED, "data")
    headers = _read_parts(path, openexr, header_only=True)
    if not headers:
        raise ValueError(f"{path}: broken or truncated OpenEXR file (no part could be read)")
    layer = _choose_layer(path, _layers(headers), headers, part)
    header = headers[layer.part]
    _check_windows(path, header)
    pixels = _read_parts(path, openexr, header_only=False).get(layer.part)
    if pixels is None:
        raise ValueError(f"{path}: part {layer.title} is damaged, OpenEXR cannot read its pixels")
    planes = [_plane(path, pixels, header, layer.prefix + name) for name in layer.form]
    return _display_window(header, to_float(path, _to_rgb(planes, layer.form, header)))


def _read_parts(path: Path, openexr: Any, *, header_only: bool) -> dict[int, dict[str, Any]]:
    """Return the headers of the parts by number, or their channels; OpenEXR leaves out parts that it cannot read."""
    name = os.fsencode(path)
    try:
        text: Any = name.decode()
    except UnicodeDecodeError:
        text = name  # OpenEXR takes bytes too, but not a str that is not UTF-8
    try:
        with openexr.File(text, separate_channels=True, header_only=header_only) as file:
            if header_only:
                return {part.part_index: dict(part.header) for part in file.parts}
            return {part.part_index: dict(part.channels) for part in file.parts}
    except Exception as error:
        raise ValueError(f"{path}: broken, truncated or no OpenEXR file ({error})") from error


def _layers(headers: dict[int, dict[str, Any]]) -> list[Layer]:
    """Return the pictures of a file: for each part the unnamed channels first."""
    found = []
    for number, header in headers.items():
        if "deep" in str(header.get("type", "")):
            continue
        names = {channel.name for channel in header["channels"]}
        prefixes = sorted({name[: name.rfind(".") + 1] for name in names})
        for prefix in prefixes:
            form = next((form for form in _FORMS if all(prefix + name in names for name in form)), None)
            if form is not None:
                found.append(Layer(number, str(header.get("name", "")), prefix, form))
    return found


def _choose_layer(path: Path, layers: list[Layer], headers: dict[int, dict[str, Any]], part: Part) -> Layer:
    titles = ", ".join(layer.title for layer in layers)
    if not layers:
        names = sorted(channel.name for header in headers.values() for channel in header["channels"])
        raise ValueError(f"{path}: no part has channels R, G and B, or Y, only {', '.join(names)[:300] or 'none'}")
    if part is not None:
        names_of = {layer: (layer.part, layer.title, layer.name, layer.prefix.removesuffix(".")) for layer in layers}
        chosen = [layer for layer in layers if part in names_of[layer] and part != ""]
        unnamed = [layer for layer in chosen if not layer.prefix]
        if len(unnamed or chosen) != 1:
            raise ValueError(f"{path}: part must be one of {titles}, got {part!r}")
        return (unnamed or chosen)[0]
    unnamed = [layer for layer in layers if not layer.prefix and layer.form == _FORMS[0]]
    unnamed = unnamed or [layer for layer in layers if not layer.prefix]
    if len(unnamed) > 1:
        warn_caller(
            f"{path}: has {len(unnamed)} parts that could be the picture, {', '.join(x.title for x in unnamed)}; "
            f"{unnamed[0].title} is read. Pass part= to choose another"
        )
    if not unnamed and len(layers) > 1:
        raise ValueError(f"{path}: has several layers that could be the picture: give part, one of {titles}")
    return (unnamed or layers)[0]


def _box(header: dict[str, Any], name: str) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a window."""
    (left, top), (right, bottom) = ([int(x) for x in corner] for corner in header[name])
    return left, top, right - left + 1, bottom - top + 1


def _check_windows(path: Path, header: dict[str, Any]) -> None:
    (left, top, width, height), shown = (_box(header, name) for name in ("dataWindow", "displayWindow"))
    if min(width, height, *shown[2:]) < 1:
        raise ValueError(f"{path}: broken OpenEXR file, data window {width}x{height}, display window {shown[2:]}")
    wavelets = any(name in str(header["compression"]) for name in ("DWA", "J2K"))
    check_promise(path, 4 * len(header["channels"]) * width * height, ratio=_WAVELETS if wavelets else MOST_UNPACKED)
    columns, rows = (
        min(first + size, start + full) - max(first, start)
        for first, size, start, full in ((left, width, shown[0], shown[2]), (top, height, shown[1], shown[3]))
    )
    if min(columns, rows) < 1 or shown[2] * shown[3] > _MOST_EMPTY * columns * rows:
        raise ValueError(
            f"{path}: its data window, {width}x{height} from ({left}, {top}), covers too little of the display window, "
            f"{shown[2]}x{shown[3]} from ({shown[0]}, {shown[1]})"
        )


def _plane(path: Path, channels: dict[str, Any], header: dict[str, Any], name: str) -> Array:
    """Return the pixels of a channel in the data window, of half or float; colors may have half as many."""
    channel = channels.get(name)
    pixels = None if channel is None else channel.pixels
    if channel is None or pixels is None or pixels.ndim != 2:
        raise ValueError(f"{path}: channel {name} is damaged, OpenEXR cannot read its pixels")
    if pixels.dtype.kind != "f":
        raise ValueError(f"{path}: channel {name} must be half or float, got {pixels.dtype}")
    left, top, width, height = _box(header, "dataWindow")
    steps = (channel.ySampling, channel.xSampling)
    chroma = name.rpartition(".")[2] in ("RY", "BY")
    if steps not in (((1, 1), (2, 2)) if chroma else ((1, 1),)):
        raise ValueError(f"{path}: channel {name} must have all pixels, its sampling is {steps[1]}x{steps[0]}")
    if pixels.shape != (-(-height // steps[0]), -(-width // steps[1])) or (steps == (2, 2) and (left % 2 or top % 2)):
        raise ValueError(f"{path}: channel {name} has {pixels.shape} pixels in a data window of {(height, width)}")
    plane = pixels.astype(np.float32) if chroma else pixels
    if steps == (2, 2):
        plane = _upsample(_upsample(plane, height).T, width).T
    return plane


def _upsample(rows: Array, count: int) -> Array:
    """Return ``count`` rows, of which the even ones are stored, by OpenEXR's filter, mirrored at the ends."""
    full = np.empty((count, *rows.shape[1:]), np.float32)
    full[::2] = rows
    taps = len(_CHROMA)
    padded = np.pad(rows, ((taps - 1, taps), (0, 0)), "edge")
    weights = (*_CHROMA, *reversed(_CHROMA))
    full[1::2] = sum(w * padded[i : i + count // 2] for i, w in enumerate(weights))
    return full


def _to_rgb(planes: list[Array], form: tuple[str, ...], header: dict[str, Any]) -> Array:
    """Return H×W×3 of R, G and B; of luminance Y; or of Y with the colors (R - Y) / Y and (B - Y) / Y."""
    if form == ("Y",):
        planes = planes * 3
    elif form != ("R", "G", "B"):
        y, ry, by = planes
        red, blue = (ry + 1) * y, (by + 1) * y
        weights = _luminance_weights(header)
        planes = [red, (y - weights[0] * red - weights[2] * blue) / weights[1], blue]
    return np.stack(planes, axis=-1)


def _luminance_weights(header: dict[str, Any]) -> tuple[float, float, float]:
    """Return the luminance of each primary, by the chromaticities in the header."""
    if (found := header.get("chromaticities")) is None:
        return _REC709
    *primaries, white = np.asarray(found, np.float64).reshape(4, 2)
    columns = [np.array([x, y, 1 - x - y]) / y for x, y in (*primaries, white)]
    red, green, blue = np.linalg.solve(np.stack(columns[:3], axis=1), columns[3]).tolist()
    return red, green, blue


def _display_window(header: dict[str, Any], pixels: Pixels) -> Pixels:
    """Return the pixels of the display window: without what lies outside of it, zero where there is no data."""
    (left, top, width, height), shown = (_box(header, name) for name in ("dataWindow", "displayWindow"))
    if (left, top, width, height) == shown:
        return pixels
    x, y = left - shown[0], top - shown[1]
    window = np.zeros((shown[3], shown[2], 3), np.float32)
    rows, columns = (
        slice(max(at, 0), min(at + size, full)) for at, size, full in ((y, height, shown[3]), (x, width, shown[2]))
    )
    window[rows, columns] = pixels[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    return window


def write_exr(path: Path, pixels: Array) -> None:
    """Write R, G and B, losslessly compressed, in the array's own precision."""
    openexr = import_package("OpenEXR", _NEED, "data")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    channels = {name: np.ascontiguousarray(pixels[..., i]) for i, name in enumerate("RGB")}
    with openexr.File(header, channels) as file:
        file.write(str(path))
