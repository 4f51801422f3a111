"""Alignment of hand-held exposures: one homography for each, from matched features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skt_components.files.packages import import_package
from skt_components.ops.transfer import DISPLAY_GAMMA
from skt_components.reconstruct.exposures import Exposure

_LARGEST = 1600  # pixels of the longer side in which features are found
_MOST_FEATURES = 4000
_LEAST_MATCHES = 16
_RATIO = 0.75  # of the distances to the best and the second match
_REPROJECTION = 2.0  # pixels


def align_exposures(exposures: Sequence[Exposure], reference: int) -> list[Exposure]:
    """Warp exposures of a hand-held camera onto the reference, with one homography for each exposure.

    Features of both pictures are matched at equal brightness (SIFT, ratio test, RANSAC). Pixels outside a warped
    picture are filled with the reference exposure at its brightness. Objects that move stay where they are: the network
    handles these.

    Args:
        exposures: exposures of equal size, each with its amount of light.
        reference: index of the exposure that stays as it is.

    Returns:
        the exposures, in the same order.

    Raises:
        ValueError: an exposure has too few features in common with the reference, or no light.
        ImportError: OpenCV is not installed.
    """
    cv2: Any = import_package("cv2", "aligning needs OpenCV", "data")
    fixed = exposures[reference]
    aligned = []
    for index, exposure in enumerate(exposures):
        if index == reference:
            aligned.append(exposure)
            continue
        if exposure.light is None or fixed.light is None:
            raise ValueError(f"{exposure.name} and {fixed.name} must have their light to be aligned")
        ratio = exposure.light / fixed.light
        matrix = _homography(cv2, exposure, fixed, ratio)
        height, width = exposure.linear.shape[-2:]
        pixels = exposure.linear.permute(1, 2, 0).numpy()
        options = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
        warped = cv2.warpPerspective(pixels, matrix, (width, height), **options)
        inside = cv2.warpPerspective(np.ones((height, width), np.float32), matrix, (width, height))
        filled = (fixed.linear * ratio).clamp(0, 1)
        moved = torch.from_numpy(warped).permute(2, 0, 1).clamp(0, 1)
        linear = torch.where(torch.from_numpy(inside) > 0.999, moved, filled).contiguous()
        aligned.append(exposure._replace(linear=linear))
    return aligned


def _homography(cv2: Any, moving: Exposure, fixed: Exposure, ratio: float) -> np.ndarray:
    """Return the 3x3 matrix from pixels of the moving exposure to pixels of the fixed one."""
    height, width = fixed.linear.shape[-2:]
    shrink = max(max(height, width) / _LARGEST, 1.0)
    # The darker one as bright as the other; both are clipped alike.
    pictures = [_gray(cv2, moving.linear * max(1 / ratio, 1), shrink), _gray(cv2, fixed.linear * max(ratio, 1), shrink)]
    detector = cv2.SIFT_create(nfeatures=_MOST_FEATURES, contrastThreshold=0.01)
    (points, found), (targets, wanted) = (detector.detectAndCompute(picture, None) for picture in pictures)
    good = []
    if found is not None and wanted is not None and len(found) >= 2 and len(wanted) >= 2:
        pairs = cv2.BFMatcher().knnMatch(found, wanted, k=2)
        good = [best for best, second in pairs if best.distance < _RATIO * second.distance]
    matrix, inliers = None, 0
    if len(good) >= 4:
        source = np.array([points[match.queryIdx].pt for match in good], np.float32)
        target = np.array([targets[match.trainIdx].pt for match in good], np.float32)
        cv2.setRNGSeed(0)
        matrix, mask = cv2.findHomography(source, target, cv2.RANSAC, _REPROJECTION)
        inliers = 0 if mask is None else int(mask.sum())
    if matrix is None or inliers < _LEAST_MATCHES:
        raise ValueError(
            f"{moving.name} cannot be aligned with {fixed.name}: {inliers} common features, at least {_LEAST_MATCHES} "
            "are needed; leave the alignment out if the camera stood still"
        )
    scale = np.diag([shrink, shrink, 1.0])
    return scale @ matrix @ np.linalg.inv(scale)


def _gray(cv2: Any, linear: Tensor, shrink: float) -> np.ndarray:
    """Return (h, w) bytes of display brightness, reduced in size."""
    display = (linear.mean(0).clamp(0, 1) ** (1 / DISPLAY_GAMMA) * 255).round().byte().numpy()
    if shrink == 1:
        return display
    size = (round(display.shape[1] / shrink), round(display.shape[0] / shrink))
    return cv2.resize(display, size, interpolation=cv2.INTER_AREA)
