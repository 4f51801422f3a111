"""Brackets, sRGB and RAW, from one linear picture with simulated motion, or from a linear video."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skt_components.data.io import read_image
from skt_components.data.sample import RAW_PEAK, HDRSample, make_bracket
from skt_components.data.seeding import log_uniform
from skt_components.ops.checks import check_positive, check_tensor
from skt_components.ops.raw import apply_color_matrix, mosaic, pack_raw, white_balance
from skt_components.simulation.camera import Camera, RawCamera, capture, capture_raw, exposure_scale
from skt_components.simulation.motion import Motion, MovingPicture

# Returns the scene at a time after the bracket's start, in units of the shortest exposure.
SubframeAt = Callable[[float], Tensor]


def simulate_bracket(
    radiance: Float[Tensor, "3 h w"],
    camera: Camera,
    motion: Motion,
    generator: torch.Generator,
    *,
    margin: int = 0,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph a linear picture as a bracket with camera and foreground motion.

    The reference exposure is the picture itself. Each other exposure is warped by its own homography. Moving objects
    are pieces of the picture, pasted in front of it in every exposure, so occlusion and disocclusion are correct.
    ``target`` is exactly the scene of the reference exposure. There is no motion blur.

    Args:
        radiance: (3, H + 2 margin, W + 2 margin) linear radiance >= 0 in any unit.
        camera: takes the exposures.
        motion: motion of the camera and the objects.
        generator: CPU generator; equal seeds give equal samples.
        margin: pixels on each side that only moved exposures can contain (``motion.margin(H, W)`` is enough). Beyond
            them the picture is mirrored.
        scale: factor from ``radiance`` to target radiance; None takes :func:`exposure_scale`.
        name: for the sample.

    Returns:
        The sample; its target is ``radiance * scale`` without the margin, clipped at 1, with the moving
        objects of the reference exposure in it.

    Raises:
        TypeError: ``radiance`` is not a floating-point tensor.
        ValueError: ``radiance`` is not (3, H, W) or not finite, or the margin leaves nothing of it.

    Example:
        >>> picture = torch.rand(3, 32, 32)
        >>> sample = simulate_bracket(picture, Camera(), Motion(), torch.Generator().manual_seed(0))
        >>> sample.bracket.shape, sample.target.shape
        (torch.Size([3, 6, 32, 32]), torch.Size([3, 32, 32]))
    """
    radiance, visible = _check_margin(radiance, margin)
    scene = _expose(radiance, _exposure_factor(visible, camera, generator, scale))
    height, width = visible.shape[-2:]
    picture = MovingPicture(scene, height, width, motion, generator)
    times = (float(index - camera.reference_index) for index in range(len(camera.exposure_times)))
    frames = [picture.at(time, picture.draw_pose(generator) if time else None) for time in times]
    return expose_frames(torch.stack(frames), camera, generator, name)


def simulate_bracket_from_frames(
    frames: Float[Tensor, "n 3 h w"],
    camera: Camera,
    generator: torch.Generator,
    *,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph the frames of a linear video as a bracket, one exposure each.

    Args:
        frames: (N, 3, H, W) linear radiance >= 0 in any unit, one frame for each exposure time.
        camera: takes the exposures.
        generator: CPU generator; equal seeds give equal samples.
        scale: factor from ``frames`` to target radiance; None takes :func:`exposure_scale` of the reference frame.
        name: for the sample.

    Returns:
        The sample; its target is the frame of the reference exposure times ``scale``, clipped at 1.

    Raises:
        TypeError: ``frames`` is not a floating-point tensor.
        ValueError: ``frames`` is not (N, 3, H, W) or not finite.

    Example:
        >>> video = torch.rand(3, 3, 32, 32)
        >>> simulate_bracket_from_frames(video, Camera(), torch.Generator().manual_seed(0)).bracket.shape
        torch.Size([3, 6, 32, 32])
    """
    count = len(camera.exposure_times)
    check_tensor("frames", frames, ndim=4, layout=f"({count}, 3, H, W)", channels=3)
    if len(frames) != count:
        raise ValueError(f"frames must be {count}, one for each exposure time, got {len(frames)}")
    frames = _finite("frames", frames)
    factor = _exposure_factor(frames[camera.reference_index], camera, generator, scale)
    return expose_frames(_expose(frames, factor), camera, generator, name)


def expose_frames(frames: Float[Tensor, "n 3 h w"], camera: Camera, generator: torch.Generator, name: str) -> HDRSample:
    """Return the sample of a scene whose target radiance is ``frames[i]`` during exposure i."""
    bracket = make_bracket(capture(frames, camera, generator), camera.times, camera.gamma)
    return HDRSample(bracket, camera.times, frames[camera.reference_index].clone(), name, "srgb")


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

    The poses of ``motion`` are evenly spaced over the time of the bracket. The first pose is the identity and the
    others are random. Between two poses the camera moves on a straight line. So most of the motion is in the longest
    exposure, and none is in the shortest, which is the exposure of the target.

    Args:
        radiance: (3, 2 h + 2 margin, 2 w + 2 margin) linear RGB radiance >= 0 in any unit; h and w multiples of
            ``camera.scale``.
        camera: takes the exposures.
        motion: motion of the camera and the objects.
        generator: CPU generator; equal seeds give equal samples.
        margin: see :func:`simulate_bracket`; ``motion.margin(2 * h, 2 * w)`` is enough.
        scale: factor from ``radiance`` to the target's linear scale, whose peak is 16; None takes
            :func:`exposure_scale`.
        name: for the sample.

    Returns:
        The sample. Its bracket is (N, 4, h, w), or (N, 4, h/4, w/4) for ``camera.scale`` 4, on the linear scale of the
        target. Its target (4, h, w) is the first sub-frame without noise, in [0, 16] times the inverse white balance.

    Raises:
        TypeError, ValueError: see :func:`simulate_bracket`.

    Example:
        >>> picture = torch.rand(3, 64, 64)
        >>> sample = simulate_raw_bracket(picture, RawCamera(), Motion(), torch.Generator().manual_seed(0))
        >>> sample.bracket.shape, sample.target.shape
        (torch.Size([5, 4, 32, 32]), torch.Size([4, 32, 32]))
    """
    radiance, visible = _check_margin(radiance, margin)
    height, width = visible.shape[-2:]
    _check_blocks("radiance", (height, width), camera)
    scene = _expose(radiance, _exposure_factor(visible, camera, generator, scale))
    picture = MovingPicture(scene, height, width, motion, generator)
    poses = [None, *(picture.draw_pose(generator) for _ in range(camera.num_frames - 1))]
    step = sum(camera.exposure_times) / max(camera.num_frames - 1, 1)

    def subframe_at(time: float) -> Tensor:
        if picture.still or time == 0:
            return picture.at(0.0)
        index = min(int(time / step), len(poses) - 2)
        before, after = poses[index], poses[index + 1]
        if after is None:
            return picture.at(time / step)
        before = torch.eye(3) if before is None else before
        return picture.at(time / step, torch.lerp(before, after, time / step - index))

    return _expose_subframes(subframe_at, camera, generator, name)


def simulate_raw_bracket_from_frames(
    frames: Float[Tensor, "t 3 h w"] | Sequence[str | os.PathLike[str]],
    camera: RawCamera,
    generator: torch.Generator,
    *,
    scale: float | None = None,
    name: str = "",
) -> HDRSample:
    """Photograph a linear video as a RAW bracket.

    The frames are spread evenly over the time of the bracket and interpolated linearly, so the frame rate should be
    high. (BracketIRE interpolates its videos 32-fold along optical flow with RIFE. This is not included.)

    Args:
        frames: (T, 3, 2 h, 2 w) linear RGB radiance >= 0 in any unit, or the picture files of T such frames in order.
            At most two files are in memory. h and w are multiples of ``camera.scale``.
        camera: takes the exposures.
        generator: CPU generator; equal seeds give equal samples.
        scale: see :func:`simulate_raw_bracket`; None takes :func:`exposure_scale` of the first frame.
        name: for the sample.

    Returns:
        The sample, see :func:`simulate_raw_bracket`.

    Raises:
        TypeError: the tensor is not floating-point.
        ValueError: there is no frame, or a frame is not finite, or its size differs or does not suit the camera.

    Example:
        >>> video = torch.rand(9, 3, 32, 32)
        >>> simulate_raw_bracket_from_frames(video, RawCamera(), torch.Generator().manual_seed(0)).bracket.shape
        torch.Size([5, 4, 16, 16])
    """
    if isinstance(frames, Tensor):
        check_tensor("frames", frames, ndim=4, layout="(T, 3, H, W)", channels=3)
    if not len(frames):
        raise ValueError("frames must hold a frame, got none")
    loaded: dict[int, Tensor] = {0: _load_frame(frames, 0)}
    _check_blocks("frames", loaded[0].shape[-2:], camera)
    factor, shape = _exposure_factor(loaded[0], camera, generator, scale), loaded[0].shape
    last = sum(camera.exposure_times) - 1

    def frame(index: int) -> Tensor:
        if index not in loaded:
            for old in [key for key in loaded if key < index - 1]:
                del loaded[old]
            loaded[index] = _load_frame(frames, index)
            if loaded[index].shape != shape:
                name = f"frames[{index}]" if isinstance(frames, Tensor) else frames[index]
                wanted, got = ("x".join(map(str, full[-2:])) for full in (shape, loaded[index].shape))
                raise ValueError(f"{name}: frames must have one size, {wanted}, got {got}")
        return loaded[index]

    def subframe_at(time: float) -> Tensor:
        position = time / last * (len(frames) - 1) if last else 0.0
        before = min(int(position), max(len(frames) - 2, 0))
        after = min(before + 1, len(frames) - 1)
        return _expose(torch.lerp(frame(before), frame(after), position - before), factor)

    return _expose_subframes(subframe_at, camera, generator, name)


def _expose_subframes(subframe_at: SubframeAt, camera: RawCamera, generator: torch.Generator, name: str) -> HDRSample:
    """Return the sample of a scene that is ``subframe_at(time)``, (3, H, W) in [0, 1] of the shortest exposure."""
    gains = torch.tensor([log_uniform(generator, *camera.red_gain), 1.0, log_uniform(generator, *camera.blue_gain)])
    matrix = torch.tensor(camera.rgb2cam)

    def to_sensor(rgb: Tensor) -> Tensor:
        return pack_raw(mosaic(white_balance(apply_color_matrix(rgb, matrix), 1 / gains)))

    target = to_sensor(subframe_at(0.0)[None])[0] * RAW_PEAK
    frames = []
    for index, exposure_time in enumerate(camera.exposure_times):
        times = camera.subframe_times(index)
        # Clipped in linear sRGB, before the sensor's colors, as BracketIRE's frames are: white clips to white.
        subframes = ((subframe_at(time) * exposure_time).clamp_(max=1) for time in times)
        frames.append(functools.reduce(torch.add, subframes) / len(times))
    sensor = capture_raw(to_sensor(torch.stack(frames)), camera, generator)
    bracket = sensor * (RAW_PEAK / camera.times)[:, None, None, None]
    metadata = {"white_balance": gains, "color_matrix": torch.linalg.inv(matrix.double()).float()}
    return HDRSample(bracket, camera.times, target, name, "raw", metadata)


def _exposure_factor(
    visible: Tensor, camera: Camera | RawCamera, generator: torch.Generator, scale: float | None
) -> float:
    """Return the factor from radiance to the shortest exposure's full scale."""
    if scale is None:
        return exposure_scale(visible, camera.metering if isinstance(camera, RawCamera) else camera, generator)
    check_positive("scale", scale)
    return scale / RAW_PEAK if isinstance(camera, RawCamera) else scale


def _expose(radiance: Tensor, factor: float) -> Tensor:
    """Return ``radiance * factor`` in [0, 1], in float64 where float32 cannot hold the factor."""
    if not 2.0**-120 < factor < 2.0**120:
        radiance = radiance.double()
    return (radiance * factor).clamp(0, 1).float()


def _check_margin(radiance: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return a picture in float32 on the CPU, and the part of it inside the margin."""
    check_tensor("radiance", radiance, ndim=3, layout="(3, H, W)", channels=3)
    height, width = (size - 2 * margin for size in radiance.shape[-2:])
    if margin < 0 or min(height, width) < 1:
        raise ValueError(f"margin must be >= 0 and leave pixels of {tuple(radiance.shape)}, got {margin!r}")
    radiance = _finite("radiance", radiance)
    return radiance, radiance[:, margin : margin + height, margin : margin + width]


def _finite(name: str, radiance: Tensor) -> Tensor:
    """Return a picture in float32 on the CPU; raise ValueError if it has infinities or NaN."""
    radiance = radiance.detach().to("cpu", torch.float32)
    if bad := radiance.numel() - int(radiance.isfinite().sum()):
        raise ValueError(f"{name} must be finite, got {bad} of {radiance.numel()} values infinite or NaN in float32")
    return radiance


def _check_blocks(name: str, size: Sequence[int], camera: RawCamera) -> None:
    if any(side % camera.block for side in size):
        found = "x".join(map(str, size))
        raise ValueError(f"{name} must have a height and width in multiples of {camera.block}, got {found}")


def _load_frame(frames: Tensor | Sequence[str | os.PathLike[str]], index: int) -> Tensor:
    if isinstance(frames, Tensor):
        return _finite(f"frames[{index}]", frames[index])
    return read_image(frames[index]).clamp_(min=0)
