"""Pictures of samples for display: exposures and target side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from skt_components.data.sample import RAW_PEAK, HDRSample
from skt_components.files.atomic import atomic_write
from skt_components.files.names import printable
from skt_components.ops.raw import render_raw, white_balance
from skt_components.ops.tone_mapping import tone_map
from skt_components.ops.transfer import mu_law, srgb_encode


def show_exposures(sample: HDRSample) -> Float[Tensor, "n 3 _h _w"]:
    """Return a sample's exposures in display values [0, 1].

    For an sRGB bracket these are its LDR pictures. For RAW they are the sensor values of each exposure, rendered with
    the metadata of the sample and sRGB-encoded, with twice as many pixels in both axes.

    Args:
        sample: one sample, without a batch axis.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> show_exposures(SyntheticScenes(1, 32)[0]).shape
        torch.Size([3, 3, 32, 32])
    """
    if sample.domain == "srgb":
        return sample.bracket[:, 3:]
    # From the scale of the shortest exposure to the scale of each exposure's sensor: times the exposure time.
    sensor = sample.bracket * (sample.exposure_times / sample.exposure_times.min())[:, None, None, None] / RAW_PEAK
    return srgb_encode(_render(sensor, sample.metadata))


def show_radiance(hdr: Float[Tensor, "c h w"], sample: HDRSample) -> Float[Tensor, "3 _h _w"]:
    """Tone-map linear radiance to display values, in the same way as the target of the sample.

    RAW is rendered with the sample's metadata first.

    Args:
        hdr: the sample's target, or something in its shape and scale, on any device.
        sample: gives the domain, the metadata, and the target.

    Example:
        >>> from skt_components.simulation import SyntheticScenes
        >>> sample = SyntheticScenes(1, 32)[0]
        >>> show_radiance(sample.target, sample).shape
        torch.Size([3, 32, 32])
    """
    return tone_map(_linear(hdr, sample)[None], like=_linear(sample.target, sample)[None])[0]


def compressed_radiance(hdr: Float[Tensor, "c h w"], sample: HDRSample) -> Float[Tensor, "3 _h _w"]:
    """Return linear radiance after the mu-law, in which errors are measured; RAW is rendered first.

    Args:
        hdr, sample: as in :func:`show_radiance`.
    """
    return mu_law(_linear(hdr, sample))


def _linear(hdr: Tensor, sample: HDRSample) -> Float[Tensor, "3 _h _w"]:
    linear = hdr.detach().float().cpu()
    return linear if sample.domain == "srgb" else _render(linear[None] / RAW_PEAK, sample.metadata)[0]


def _render(packed: Float[Tensor, "b 4 h w"], metadata: Mapping[str, Tensor]) -> Float[Tensor, "b 3 2*h 2*w"]:
    """Render RAW whose white is 1; it is clipped after the white balance too, or clipped light would be magenta."""
    if "white_balance" in metadata:
        packed = white_balance(packed, metadata["white_balance"])
    return render_raw(packed.clamp(0, 1), color_matrix=metadata.get("color_matrix")).clamp(0, 1)


def save_contact_sheet(path: str | os.PathLike[str], samples: Sequence[HDRSample], *, overwrite: bool = False) -> None:
    """Draw one row per sample: its exposures with their times, and its tone-mapped target.

    Args:
        path: picture to write, ``.png`` or with the suffix of another format of matplotlib's; PNG without a suffix.
        samples: with equally many exposures.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.
        ImportError: matplotlib is missing.
        ValueError: there is no sample, the numbers of exposures differ, or matplotlib does not write such files.

    Example:
        >>> save_contact_sheet("preview.png", [BracketIRE("bracketire")[0]])  # doctest: +SKIP
    """
    counts = sorted({len(sample.bracket) for sample in samples})
    if len(counts) != 1:
        raise ValueError(f"samples must have equally many exposures, got {counts or 'no sample'}")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{os.fspath(path)} exists; pass overwrite=True to replace it")
    plt = load_pyplot()
    height, width = samples[0].target.shape[-2:]
    size = (2.6 * (counts[0] + 1), (2.6 * height / width + 0.35) * len(samples))
    figure, axes = plt.subplots(len(samples), counts[0] + 1, figsize=size, squeeze=False, layout="constrained")
    for row, sample in zip(axes, samples, strict=True):
        titles = [f"t = {time:g}" for time in sample.exposure_times.tolist()]
        titles.append(f"target, up to {sample.target.max():.3g}")
        pictures = [*show_exposures(sample), show_radiance(sample.target, sample)]
        for axis, title, picture in zip(row, titles, pictures, strict=True):
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_title(f"{title}, {picture.shape[-1]}×{picture.shape[-2]}", fontsize=7)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(plain_label(sample.name), fontsize=7)
    save_figure(path, figure, dpi=150)


def save_figure(path: str | os.PathLike[str], figure: Any, *, dpi: int) -> None:
    """Write a figure of matplotlib to exactly this file, whole or not at all, and close it; PNG without a suffix.

    Raises:
        ValueError: matplotlib does not write files with this suffix.
    """
    path, kinds = Path(path), figure.canvas.get_supported_filetypes()
    try:
        if (kind := path.suffix[1:].lower() or "png") not in kinds:
            raise ValueError(f"{path}: suffix must be one of {', '.join(f'.{k}' for k in sorted(kinds))}")
        with atomic_write(path, sync=False) as temporary:
            figure.savefig(temporary, dpi=dpi, format=kind)
    finally:
        load_pyplot().close(figure)


def plain_label(text: str) -> str:
    """Return a text that matplotlib draws as it is: not as a formula, and without bytes that are not UTF-8."""
    return printable(text).replace("$", r"\$")


def load_pyplot():  # type: ignore[no-untyped-def]
    """Return matplotlib's pyplot, drawing to files only; ImportError names the extra."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('matplotlib is needed for pictures: pip install "skt-components[train]"') from error
    plt.switch_backend("agg")
    return plt
