"""Make an HDR picture from exposures of one scene.

Examples:
  python -m skt_components.reconstruct dark.jpg middle.jpg bright.jpg --out scene.hdr
  python -m skt_components.reconstruct a.png b.png c.png --times 1/60 1/15 1/4 --align --out scene.exr
  python -m skt_components.reconstruct 1.dng 2.dng 3.dng 4.dng 5.dng --network raw.safetensors --out scene.exr

Writes the HDR picture, scene.png to look at, and beside them reference exposure and exposure merge, which need no
network: scene-reference.png, scene-merge.png, scene-merge.hdr.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
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

_TRAINED_STEPS = (2.0, 4.0, 8.0)  # ratios of consecutive exposures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 after an error.

    Args:
        arguments: without the program's name; None: the arguments of the process.
    """
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {_name_options(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m skt_components.reconstruct", description=__doc__, formatter_class=form)
    parser.add_argument("pictures", nargs="+", type=Path, help="one file for each exposure, in any order")
    parser.add_argument("--out", type=Path, required=True, help="HDR picture to write, .hdr or .exr")
    parser.add_argument(
        "--network",
        default="ahdrnet-small",
        help=f"{', '.join(pretrained_names())}, or a file of weights from a training run (default ahdrnet-small)",
    )
    parser.add_argument("--times", nargs="+", help="exposure time of each picture, such as 1/60; default: from EXIF")
    parser.add_argument("--align", action="store_true", help="align pictures of a hand-held camera first")
    parser.add_argument("--transfer", choices=TRANSFERS, help="of the pictures' values (default srgb)")
    parser.add_argument("--tile", type=int, default=512, help="side of the tiles of the network (default 512)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


def _run(options: argparse.Namespace) -> None:
    written = _outputs(options.out, options.overwrite)
    network = _load(options.network)
    raw = network.in_channels == RAW_CHANNELS
    if raw:
        exposures: list[Any] = [read_raw_exposure(path) for path in options.pictures]
    else:
        exposures = [read_exposure(path, transfer=options.transfer) for path in options.pictures]
    if options.times is not None:
        times = [_time(text) for text in options.times]
        if len(times) != len(exposures):
            raise ValueError(f"exposure_times must be {len(exposures)}, one for each picture, got {len(times)}")
        exposures = [exposure._replace(light=time) for exposure, time in zip(exposures, times, strict=True)]
    if options.network in pretrained_names():
        _warn_of_other_steps([exposure.light for exposure in exposures])
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = reconstruct_exposures(
        network.to(device), exposures, align=options.align, tile=options.tile, device=device, merge=True
    )
    pictures = {name: _render(picture, exposures[0]) for name, picture in results.items()}
    write_image(written["hdr"], pictures["hdr"], overwrite=options.overwrite)
    write_image(written["merge"], pictures["merge"], overwrite=options.overwrite)
    for name in ("hdr", "reference", "merge"):
        _write_png(written[f"{name} png"], tone_map(pictures[name][None], like=pictures["hdr"][None])[0])
    for path in written.values():
        print(path)


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
            f"warning: the exposures are {apart} stops apart; the pretrained networks know equal steps of "
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
        raise ValueError(f"exposure_times must be numbers or fractions such as 1/60, got {text}") from None


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


def _name_options(message: str) -> str:
    """Return an error message with arguments as options of this command."""
    for name, option in (("exposure_times", "--times"), ("out", "--out"), ("network", "--network")):
        if message.startswith((f"{name} ", f"{name}:")):
            return option + message.removeprefix(name)
        message = message.replace(f"give {name}", f"give {option}")
    return message.replace("`overwrite`", "--overwrite")


if __name__ == "__main__":
    sys.exit(main())
