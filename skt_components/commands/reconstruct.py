"""Make an HDR picture from exposures of one scene: ``skt reconstruct``."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from skt_components.data import write_image
from skt_components.data.sample import RAW_PEAK
from skt_components.files.atomic import atomic_write
from skt_components.files.packages import import_package
from skt_components.models.network import RAW_CHANNELS
from skt_components.models.pretrained import pretrained_file, pretrained_names
from skt_components.models.registry import load_model
from skt_components.ops.raw import render_raw, white_balance
from skt_components.ops.tone_mapping import tone_map
from skt_components.ops.transfer import TRANSFERS
from skt_components.reconstruct.exposures import RawExposure, read_exposure, read_raw_exposure
from skt_components.reconstruct.reconstruction import reconstruct_exposures
from skt_components.training.engine import pick_device

_TRAINED_STEPS = (2.0, 4.0, 8.0)  # ratios of consecutive exposures
if TYPE_CHECKING:  # type checkers take no computed choices
    Transfer = str
else:
    Transfer = Literal[TRANSFERS]


def reconstruct(
    pictures: tuple[Path, ...],
    /,
    *,
    out: Path,
    network: str = "ahdrnet-small",
    times: tuple[str, ...] = (),
    align: bool = False,
    transfer: Transfer | None = None,
    tile: int = 768,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Make an HDR picture from exposures of one scene.

    The command writes the HDR picture and a tone-mapped .png. It also writes the reference exposure and the exposure
    merge, which need no network.

    Args:
        pictures: one file for each exposure, in any order.
        out: HDR picture to write, .hdr or .exr.
        network: a pretrained network by its name, or a file of weights from a training run.
        times: exposure time of each picture, such as 1/60; default: from EXIF.
        align: first align the pictures of a hand-held camera.
        transfer: transfer function of the pictures' values; default: srgb.
        tile: side of the tiles of the network.
        device: auto, cpu, cuda, ...
        overwrite: replace files that exist.
    """
    with _called_times():
        written = _outputs(out, overwrite)
        model = _load(network)
        if times and len(times) != len(pictures):
            raise ValueError(f"times must be {len(pictures)}, one for each picture, got {len(times)}")
        light = list(map(_time, times)) if times else [None] * len(pictures)
        pairs = zip(pictures, light, strict=True)
        if model.in_channels == RAW_CHANNELS:
            exposures: list[Any] = [read_raw_exposure(path, light=time) for path, time in pairs]
        else:
            exposures = [read_exposure(path, transfer=transfer, light=time) for path, time in pairs]
        if network in pretrained_names():
            _warn_of_other_steps([exposure.light for exposure in exposures])
        place = pick_device(device)
        results = reconstruct_exposures(model.to(place), exposures, align=align, tile=tile, device=place, merge=True)
        shown = {name: _render(picture, exposures[0]) for name, picture in results.items()}
        write_image(written["hdr"], shown["hdr"], overwrite=overwrite)
        write_image(written["merge"], shown["merge"], overwrite=overwrite)
        for name in ("hdr", "reference", "merge"):
            _write_png(written[f"{name} png"], tone_map(shown[name][None], like=shown["hdr"][None])[0])
        for path in written.values():
            print(path)


@contextmanager
def _called_times() -> Iterator[None]:
    """Name the library's argument ``exposure_times`` in errors as the option of this command."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("exposure_times", "times")) from error


def _outputs(out: Path, overwrite: bool) -> dict[str, Path]:
    """Return the files to write, after checking that they can be."""
    if out.suffix.lower() not in (".hdr", ".exr"):
        raise ValueError(f"out must end with .hdr or .exr, got {out}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {out.parent}")
    files = {
        "hdr": out,
        "hdr png": out.with_name(f"{out.stem}.png"),
        "merge": out.with_name(f"{out.stem}-merge{out.suffix}"),
        "merge png": out.with_name(f"{out.stem}-merge.png"),
        "reference png": out.with_name(f"{out.stem}-reference.png"),
    }
    for path in files.values():
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: choose another name, or replace it with `overwrite`")
    return files


def _warn_of_other_steps(light: Sequence[float | None]) -> None:
    """Print a warning if the exposures are not like those that trained the pretrained networks."""
    known = sorted(value for value in light if value)
    steps = [longer / shorter for shorter, longer in itertools.pairwise(known)]
    if not any(all(trained / 1.25 <= step <= trained * 1.25 for step in steps) for trained in _TRAINED_STEPS):
        apart = ", ".join(f"{math.log2(step):.1f}" for step in steps)
        print(
            f"warning: the exposures are {apart} stops apart; the pretrained networks were trained with equal steps of "
            f"{', '.join(f'{math.log2(step):g}' for step in _TRAINED_STEPS)} stops and may fail at others: "
            "compare with the merge",
            file=sys.stderr,
        )


def _load(network: str) -> Any:
    file = pretrained_file(network)
    if not file.is_file():
        raise FileNotFoundError(f"network must be one of {', '.join(pretrained_names())} or a file, got {network}")
    return load_model(file)


def _time(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"times must be numbers or fractions such as 1/60, got {text}") from None


def _render(picture: Tensor, exposure: Any) -> Tensor:
    """Return linear RGB without negative values; RAW with the white balance and colors of the camera."""
    if not isinstance(exposure, RawExposure):
        return picture.float().clamp_min(0)
    balanced = white_balance(picture[None].float().clamp_min(0) / RAW_PEAK, exposure.white_balance)
    return render_raw(balanced.clamp(0, 1), color_matrix=exposure.color_matrix)[0].clamp_min(0)


def _write_png(path: Path, picture: Tensor) -> None:
    cv2: Any = import_package("cv2", "writing .png needs OpenCV", "data")
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the picture")
    with atomic_write(path, sync=False) as temporary:
        temporary.write_bytes(data.tobytes())
