"""RAW brackets from one linear picture or a linear video: motion blur, sensor colours, mosaic, noise."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.data.io import read_image
from skt_components.data.sample import RAW_PEAK, HDRSample
from skt_components.data.seeding import log_uniform
from skt_components.ops.checks import check_positive, check_tensor
from skt_components.ops.raw import apply_color_matrix, mosaic, pack_raw, white_balance
from skt_components.simulation.camera import exposure_scale, without_margin
from skt_components.simulation.motion import Motion, MovingPicture
from skt_components.simulation.raw_camera import RawCamera, capture_raw

# Shows a scene at a time after the bracket's start, in units of the shortest exposure.
SubframeAt = Callable[[float], Tensor]


def simulate_raw_bracket(
    radiance: Float[Tensor, "3 h w"],
    camera: RawCamera,
    motion: Motion,
    generator: torch.Generator,
    *,
    margin: int = 0,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph a linear picture as a RAW bracket while the camera and pieces of the picture move.

    The exposures of ``motion`` are evenly spaced over the bracket's time: at each the camera has a pose within the
    limits, at the first none, and in between it moves on a straight line. So the longest exposure holds most of the
    motion, and the shortest, which is the target's, none.

    Args:
        radiance: (3, 2 h + 2 margin, 2 w + 2 margin) linear RGB radiance >= 0 in any unit; h and w multiples of
            ``camera.scale``.
        camera: takes the exposures.
        motion: what moves.
        generator: CPU generator; equal seeds give equal samples.
        margin: pixels on each side that only the moved camera sees (``motion.margin(2 * h, 2 * w)`` is enough);
            beyond the picture it sees it mirrored.
        scale: factor from ``radiance`` to the target's linear scale, whose peak is 16; None asks
            :func:`exposure_scale`.
        name: for the sample.

    Returns:
        The sample: bracket (N, 4, h, w), or (N, 4, h/4, w/4) for ``camera.scale`` 4, on the target's linear scale;
        target (4, h, w), the first sub-frame without noise, in [0, 16] times the inverse white balance.

    Raises:
        TypeError: if ``radiance`` is not a floating-point tensor.
        ValueError: if ``radiance`` has another shape or the margin leaves nothing of it.

    Example:
        >>> picture = torch.rand(3, 64, 64)
        >>> sample = simulate_raw_bracket(picture, RawCamera(), Motion(), torch.Generator().manual_seed(0))
        >>> sample.bracket.shape, sample.target.shape
        (torch.Size([5, 4, 32, 32]), torch.Size([4, 32, 32]))
    """
    radiance, visible = without_margin(radiance, margin)
    height, width = visible.shape[-2:]
    _check_blocks("radiance", (height, width), camera)
    scene = (radiance * _full_scale(visible, camera, generator, scale)).clamp(0, 1)
    picture = MovingPicture(scene, height, width, motion, generator)
    poses = [None, *(picture.draw_pose(generator) for _ in range(camera.num_frames - 1))]
    step = sum(camera.exposure_times) / max(camera.num_frames - 1, 1)

    def subframe_at(time: float) -> Tensor:
        if picture.still or time == 0:
            return picture.at(0.0)
        return picture.at(time / step, _between(poses, time / step))

    return _expose(subframe_at, camera, generator, name)


def simulate_raw_bracket_from_frames(
    frames: Float[Tensor, "t 3 h w"] | Sequence[str | os.PathLike[str]],
    camera: RawCamera,
    generator: torch.Generator,
    *,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph a linear video as a RAW bracket.

    The frames are spread evenly over the bracket's time, and blended linearly in between: give a high frame rate.
    (BracketIRE interpolates its footage along optical flow, 32-fold by RIFE; that is not included.)

    Args:
        frames: (T, 3, 2 h, 2 w) linear RGB radiance >= 0 in any unit, or the picture files of T such frames in
            order, of which no more than two are in memory; h and w multiples of ``camera.scale``.
        camera: takes the exposures.
        generator: CPU generator; equal seeds give equal samples.
        scale: see :func:`simulate_raw_bracket`; None asks :func:`exposure_scale` about the first frame.
        name: for the sample.

    Returns:
        The sample, see :func:`simulate_raw_bracket`.

    Raises:
        TypeError: if the tensor is not floating-point.
        ValueError: if there is no frame, or a frame's size differs or does not suit the camera.

    Example:
        >>> video = torch.rand(9, 3, 32, 32)
        >>> simulate_raw_bracket_from_frames(video, RawCamera(), torch.Generator().manual_seed(0)).bracket.shape
        torch.Size([5, 4, 16, 16])
    """
    if isinstance(frames, Tensor):
        check_tensor("frames", frames, ndim=4, layout="(T, 3, H, W)", channels=3)
    if not len(frames):
        raise ValueError("frames must hold a frame, got none")
    loaded: dict[int, Tensor] = {0: _frame(frames, 0)}
    _check_blocks("frames", loaded[0].shape[-2:], camera)
    factor, shape = _full_scale(loaded[0], camera, generator, scale), loaded[0].shape
    last = sum(camera.exposure_times) - 1

    def frame(index: int) -> Tensor:
        if index not in loaded:
            for old in [key for key in loaded if key < index - 1]:
                del loaded[old]
            loaded[index] = _frame(frames, index)
            if loaded[index].shape != shape:
                name = f"frames[{index}]" if isinstance(frames, Tensor) else frames[index]
                wanted, got = ("x".join(map(str, full[-2:])) for full in (shape, loaded[index].shape))
                raise ValueError(f"{name}: frames must have one size, {wanted}, got {got}")
        return loaded[index]

    def subframe_at(time: float) -> Tensor:
        position = time / last * (len(frames) - 1) if last else 0.0
        before = min(int(position), max(len(frames) - 2, 0))
        after = min(before + 1, len(frames) - 1)
        return (torch.lerp(frame(before), frame(after), position - before) * factor).clamp_(0, 1)

    return _expose(subframe_at, camera, generator, name)


def _expose(subframe_at: SubframeAt, camera: RawCamera, generator: torch.Generator, name: str) -> HDRSample:
    """Return the sample of a scene of which ``subframe_at(time)`` is (3, H, W) in [0, 1] of the shortest exposure."""
    gains = torch.tensor([log_uniform(generator, *camera.red_gain), 1.0, log_uniform(generator, *camera.blue_gain)])
    matrix = torch.tensor(camera.rgb2cam)

    def unprocess(rgb: Tensor) -> Tensor:
        return pack_raw(mosaic(white_balance(apply_color_matrix(rgb, matrix), 1 / gains)))

    target = unprocess(subframe_at(0.0)[None])[0] * RAW_PEAK
    # Clipped before the colours are the sensor's, as BracketIRE's frames are: what is white clips to white.
    frames = [
        _mean(subframe_at, camera.subframe_times(index), time) for index, time in enumerate(camera.exposure_times)
    ]
    sensor = capture_raw(unprocess(torch.stack(frames)), camera, generator)
    bracket = sensor * (RAW_PEAK / camera.times)[:, None, None, None]
    metadata = {"white_balance": gains, "color_matrix": torch.linalg.inv(matrix.double()).float()}
    return HDRSample(bracket, camera.times, target, name, "raw", metadata)


def _mean(subframe_at: SubframeAt, moments: Sequence[float], time: float) -> Tensor:
    """Return (3, H, W) in [0, 1]: an exposure's clipped sub-frames, averaged."""
    return functools.reduce(torch.add, ((subframe_at(moment) * time).clamp_(max=1) for moment in moments)) / len(
        moments
    )


def _between(poses: list[Tensor | None], time: float) -> Tensor | None:
    """Return the camera pose at a time in exposures, on the straight line between two; None is unmoved."""
    index = min(int(time), len(poses) - 2)
    before, after = poses[index], poses[index + 1]
    if after is None:
        return None
    return torch.lerp(torch.eye(3) if before is None else before, after, time - index)


def _full_scale(visible: Tensor, camera: RawCamera, generator: torch.Generator, scale: float | None) -> float:
    """Return the factor from radiance to the shortest exposure's full scale."""
    if scale is None:
        return exposure_scale(visible, camera.metering, generator)
    check_positive("scale", scale)
    return scale / RAW_PEAK


def _check_blocks(name: str, size: Sequence[int], camera: RawCamera) -> None:
    if any(side % camera.block for side in size):
        found = "x".join(map(str, size))
        raise ValueError(f"{name} must have a height and width in multiples of {camera.block}, got {found}")


def _frame(frames: Tensor | Sequence[str | os.PathLike[str]], index: int) -> Tensor:
    if isinstance(frames, Tensor):
        return frames[index].to("cpu", torch.float32)
    return read_image(frames[index]).clamp_(min=0)
