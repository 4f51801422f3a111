"""Procedural HDR scenes: brackets for training and tests without any file."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skt_components.data._dataset import SampleDataset
from skt_components.data._objects import SceneObject, add_object, draw_objects
from skt_components.data._scene import FINE, Background, draw_background
from skt_components.data._seeding import check_size, make_generator
from skt_components.data.camera import Camera, capture, exposure_scale
from skt_components.data.motion import Motion, camera_pose, move_grid, pixel_grid, sample_linear
from skt_components.data.sample import HDRSample, make_bracket
from skt_components.ops._checks import check_choice, check_count


class SyntheticScenes(SampleDataset):
    """Map-style data set of brackets of procedural scenes: sunlit land, rooms with a window, nights.

    Each scene has a textured background, light sources far above saturation with falloff, regions near the
    noise floor, and solid textured objects at several depths that move, turn and hide one another between
    the exposures. Every exposure is rendered by itself at twice the resolution; ``target`` is the render of
    the reference exposure. A training sample depends on (seed, epoch, index) alone, a validation sample on
    (seed, index); the two splits never share a scene's random numbers.

    Args:
        length: samples per epoch.
        size: height and width in pixels.
        seed: of every random choice.
        split: ``"train"`` or ``"val"``.
        camera: takes the exposures; None is :class:`Camera`'s defaults.
        motion: of the camera and the objects; None is :class:`Motion`'s defaults with two to five objects.

    Raises:
        ValueError: if an option is outside its range.

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
        camera: Camera | None = None,
        motion: Motion | None = None,
    ) -> None:
        check_choice("split", split, ("train", "val"))
        super().__init__(check_count("length", length, 1), trains=split == "train")
        self.size = check_size("size", size)
        self.seed = seed
        self.split = split
        self.camera = camera or Camera()
        self.motion = motion or Motion(objects=(2, 5))

    def _draw(self, index: int, epoch: int) -> HDRSample:
        generator = make_generator(self.split, "SyntheticScenes", self.seed, epoch, index)
        height, width = self.size
        background = draw_background(height, width, self.motion.margin(height, width) + 1, generator)
        objects = draw_objects(self.motion, height, width, background, generator)
        frames = self._render(background, objects, generator)
        ldr = capture(frames, self.camera, generator)
        number = f"{epoch}-{index}" if self.split == "train" else f"{index}"
        return HDRSample(
            make_bracket(ldr, self.camera.times, self.camera.gamma),
            self.camera.times,
            frames[self.camera.reference_index].clone(),
            f"synthetic-{self.split}-{number}",
            "srgb",
        )

    def _render(self, background: Background, objects: list[SceneObject], generator: torch.Generator) -> Tensor:
        """Return (N, 3, H, W) target radiance as each exposure sees it."""
        height, width = self.size
        grid = pixel_grid(FINE * height, FINE * width, step=1 / FINE)
        frames = []
        for index in range(len(self.camera.exposure_times)):
            time = index - self.camera.reference_index
            pose, points = torch.eye(3), grid
            if time != 0:
                pose = camera_pose(self.motion, math.hypot(height, width) / 2, generator)
                points = move_grid(grid, pose)
            frame = sample_linear(background.radiance, points * FINE)
            for thing in objects:
                add_object(frame, thing, points, pose, background.noise, time)
            frames.append(frame)
        scale = exposure_scale(_average(frames[self.camera.reference_index]), self.camera, generator)
        # Clipped before averaging: the edges of lights stay smooth.
        return torch.stack([_average(frame.mul_(scale).clamp_(0, 1)) for frame in frames])


def _average(frame: Tensor) -> Tensor:
    """Return the means of blocks of FINE × FINE = 2×2 samples; several times faster than average pooling."""
    rows = frame[:, 0::2] + frame[:, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) * (1 / FINE**2)
