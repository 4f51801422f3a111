"""Where to look in a picture: at random in training, evenly spread and fixed in validation."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from skt_components.data.seeding import integer, uniform
from skt_components.data.windows import spread
from skt_components.simulation.panorama import perspective_view, view_ratio


@dataclasses.dataclass(frozen=True)
class SphereLimits:
    """How far views into a panorama turn and how wide they are, in degrees; ``fov`` None suits the pixels."""

    fov: tuple[float, float] | None = None
    pitch: float = 30.0
    roll: float = 5.0

    def __post_init__(self) -> None:
        if self.fov is not None and not (len(self.fov) == 2 and 0 < self.fov[0] <= self.fov[1] <= 150):
            raise ValueError(f"fov must be (low, high) with 0 < low <= high <= 150 degrees, got {self.fov!r}")
        for name, value in (("pitch", self.pitch), ("roll", self.roll)):
            if not 0 <= value <= 90:
                raise ValueError(f"{name} must be from 0 to 90 degrees, got {value!r}")

    def fov_range(self, panorama_width: int, width: int) -> tuple[float, float]:
        """Return the smallest and largest field of view of views ``width`` pixels wide."""
        if self.fov is not None:
            return self.fov
        half = math.pi * width / panorama_width
        fine, coarse = (math.degrees(2 * math.atan(pixels * half)) for pixels in (1, 2))
        return min(max(fine, 20.0), 75.0), min(max(coarse, 45.0), 90.0)

    def reduction(self, panorama: Tensor, width: int) -> int:
        """Return by what whole factor a panorama may shrink and still have twice any view's resolution."""
        height, panorama_width = panorama.shape[-2:]
        finest = view_ratio(panorama_width, width, self.fov_range(panorama_width, width)[0])
        return next((f for f in range(int(finest / 2), 1, -1) if height % f == 0), 1)


@dataclasses.dataclass(frozen=True)
class SphereView:
    """A direction and field of view in a panorama, in degrees."""

    yaw: float
    pitch: float
    roll: float
    fov: float

    @classmethod
    def random(
        cls, panorama: Tensor, size: tuple[int, int], limits: SphereLimits, generator: torch.Generator
    ) -> SphereView:
        """Draw a view."""
        fov = uniform(generator, *limits.fov_range(panorama.shape[-1], size[1]))
        yaw = uniform(generator, -180.0, 180.0)
        pitch = uniform(generator, -limits.pitch, limits.pitch)
        return cls(yaw, pitch, uniform(generator, -limits.roll, limits.roll), fov)

    @classmethod
    def fixed(cls, panorama: Tensor, size: tuple[int, int], limits: SphereLimits, number: int) -> SphereView:
        """Return view ``number``, level and of middle width."""
        u, v = spread(number)
        fov = sum(limits.fov_range(panorama.shape[-1], size[1])) / 2
        return cls(360 * u - 180, limits.pitch * (2 * v - 1), 0.0, fov)

    @classmethod
    def brightest(cls, panorama: Tensor, size: tuple[int, int], limits: SphereLimits) -> SphereView:
        """Return the view at the brightest pixel."""
        height, width = panorama.shape[-2:]
        row, column = divmod(int(panorama.amax(0).argmax()), width)
        fov = limits.fov_range(width, size[1])[0]
        return cls((column + 0.5) / width * 360 - 180, 90 - (row + 0.5) / height * 180, 0.0, fov)

    def window(self, panorama: Tensor, size: tuple[int, int], margin: int) -> Tensor:
        """Return (3, H + 2 margin, W + 2 margin) whose inside spans the field of view."""
        height, width = size[0] + 2 * margin, size[1] + 2 * margin
        slope = math.tan(math.radians(self.fov) / 2) * width / size[1]
        fov = math.degrees(2 * math.atan(slope))
        turn = {"yaw": self.yaw, "pitch": self.pitch, "roll": self.roll}
        return perspective_view(panorama, (height, width), fov=fov, **turn)


@dataclasses.dataclass(frozen=True)
class FlatView:
    """The upper left corner of a crop."""

    top: int
    left: int

    @classmethod
    def random(cls, picture: Tensor, size: tuple[int, int], generator: torch.Generator) -> FlatView:
        """Draw a crop."""
        rows, columns = picture.shape[-2] - size[0], picture.shape[-1] - size[1]
        return cls(integer(generator, 0, rows), integer(generator, 0, columns))

    @classmethod
    def fixed(cls, picture: Tensor, size: tuple[int, int], number: int) -> FlatView:
        """Return crop ``number``."""
        u, v = spread(number)
        return cls(round(u * (picture.shape[-2] - size[0])), round(v * (picture.shape[-1] - size[1])))

    @classmethod
    def brightest(cls, picture: Tensor, size: tuple[int, int]) -> FlatView:
        """Return the crop around the brightest pixel."""
        height, width = picture.shape[-2:]
        row, column = divmod(int(picture.amax(0).argmax()), width)
        top = min(max(row - size[0] // 2, 0), height - size[0])
        return cls(top, min(max(column - size[1] // 2, 0), width - size[1]))

    def window(self, picture: Tensor, size: tuple[int, int], margin: int) -> Tensor:
        """Return (3, H + 2 margin, W + 2 margin), mirrored where it leaves the picture."""
        rows = _mirrored(self.top - margin, size[0] + 2 * margin, picture.shape[-2])
        columns = _mirrored(self.left - margin, size[1] + 2 * margin, picture.shape[-1])
        return picture.index_select(1, rows).index_select(2, columns)


def _mirrored(start: int, count: int, length: int) -> Tensor:
    """Return ``count`` indices from ``start`` on, reflected at the ends of [0, length)."""
    index = torch.arange(start, start + count) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)
