"""Data set of brackets of procedural HDR scenes, for training and tests without any file."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skt_components.data.dataset import SampleDataset, check_size
from skt_components.data.sample import RAW_PEAK, HDRSample
from skt_components.data.seeding import make_generator
from skt_components.ops.checks import check_choice, check_count
from skt_components.simulation.backgrounds import FINE, Background, draw_background
from skt_components.simulation.bracket import expose_frames, simulate_raw_bracket
from skt_components.simulation.camera import Camera, RawCamera, exposure_scale, picture_size
from skt_components.simulation.motion import Motion, camera_pose, move_grid, pixel_grid, sample_linear
from skt_components.simulation.objects import SceneObject, add_object, draw_objects


class SyntheticScenes(SampleDataset):
    """Simulate brackets of procedural scenes, as a map-style data set: sunny landscapes, rooms with a window, nights.

    Each scene has a textured background, light sources far above saturation, regions near the noise floor, and solid
    textured objects at several depths. Between the exposures the objects move, rotate and occlude each other. Every
    exposure is rendered separately at twice the resolution. ``target`` is the render of the reference exposure. A
    training sample depends only on (seed, epoch, index), a validation sample only on (seed, index). The two splits
    never share random numbers.

    With a :class:`RawCamera` the scene is rendered once with its objects. Then this picture moves, with pieces of
    itself in front of it. An exposure is the mean of many sub-frames, see :func:`simulate_raw_bracket`.

    Args:
        length: samples per epoch.
        size: height and width of the target in pixels (packed pixels with a :class:`RawCamera`).
        seed: seed of every random choice.
        split: ``"train"`` or ``"val"``.
        camera: camera of the exposures, RAW with a :class:`RawCamera`; None: :class:`Camera` with its defaults.
        motion: motion of the camera and the objects; None is :class:`Motion`'s defaults with two to five objects.

    Raises:
        ValueError: an option is outside its range.

    Example:
        >>> sample = SyntheticScenes(1, 32, split="val")[0]
        >>> sample.bracket.shape, sample.target.shape, sample.name
        (torch.Size([3, 6, 32, 32]), torch.Size([3, 32, 32]), 'synthetic-val-0')
    """

    def __init__(
        self,
        length: int,
        size: int | tuple[int, int],
        *,
        seed: int = 0,
        split: str = "train",
        camera: Camera | RawCamera | None = None,
        motion: Motion | None = None,
    ) -> None:
        check_choice("split", split, ("train", "val"))
        super().__init__(check_count("length", length, 1), trains=split == "train")
        self.size = check_size("size", size)
        self.seed = seed
        self.split = split
        self.camera: Camera | RawCamera = camera or Camera()
        self._picture_size = picture_size("size", self.size, self.camera)
        self.motion = motion or Motion(objects=(2, 5))

    def _draw(self, index: int, epoch: int) -> HDRSample:
        generator = make_generator(self.split, "SyntheticScenes", self.seed, epoch, index)
        height, width = self._picture_size
        margin = self.motion.margin(height, width)
        background = draw_background(height, width, margin + 1, generator)
        objects = draw_objects(self.motion, height, width, background, generator)
        number = f"{epoch}-{index}" if self.split == "train" else f"{index}"
        name = f"synthetic-{self.split}-{number}"
        if isinstance(self.camera, RawCamera):
            picture = self._render_once(background, objects, self.camera, margin, generator)
            return simulate_raw_bracket(
                picture, self.camera, self.motion, generator, margin=margin, scale=RAW_PEAK, name=name
            )
        frames = self._render(background, objects, self.camera, generator)
        return expose_frames(frames, self.camera, generator, name)

    def _render(
        self, background: Background, objects: list[SceneObject], camera: Camera, generator: torch.Generator
    ) -> Tensor:
        """Return (N, 3, H, W) target radiance as each exposure sees it."""
        height, width = self._picture_size
        grid = pixel_grid(FINE * height, FINE * width, step=1 / FINE)
        frames = []
        for index in range(len(camera.exposure_times)):
            time = index - camera.reference_index
            pose, points = torch.eye(3), grid
            if time != 0:
                pose = camera_pose(self.motion, math.hypot(height, width) / 2, generator)
                points = move_grid(grid, pose)
            frames.append(_draw_scene(background, objects, points, pose, time))
        scale = exposure_scale(_downsample(frames[camera.reference_index]), camera, generator)
        # Clipped before averaging: the edges of lights stay smooth.
        return torch.stack([_downsample(frame.mul_(scale).clamp_(0, 1)) for frame in frames])

    def _render_once(
        self,
        background: Background,
        objects: list[SceneObject],
        camera: RawCamera,
        margin: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Return (3, H + 2 margin, W + 2 margin) radiance in [0, 1] of the shortest exposure."""
        height, width = self._picture_size
        grid = pixel_grid(FINE * (height + 2 * margin), FINE * (width + 2 * margin), step=1 / FINE)
        frame = _draw_scene(background, objects, grid, torch.eye(3), 0)
        visible = _downsample(frame)[:, margin : margin + height, margin : margin + width]
        return _downsample(frame.mul_(exposure_scale(visible, camera.metering, generator)).clamp_(0, 1))


def _draw_scene(background: Background, objects: list[SceneObject], points: Tensor, pose: Tensor, time: int) -> Tensor:
    """Return (3, H, W) scene radiance at (H, W, 2) scene coordinates, for a camera pose and a time in exposures."""
    frame = sample_linear(background.radiance, points * FINE)
    for item in objects:
        add_object(frame, item, points, pose, background.noise, time)
    return frame


def _downsample(frame: Tensor) -> Tensor:
    """Return the means of blocks of FINE × FINE = 2×2 samples; several times faster than average pooling."""
    rows = frame[:, 0::2] + frame[:, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) * (1 / FINE**2)
