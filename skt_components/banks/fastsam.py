"""The knowledge bank of the paper: FastSAM's features and masks from one batched forward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skt_components.banks.fastsam_architecture import YOLOv8Seg, YOLOv8SegConfig
from skt_components.banks.fastsam_instances import instance_masks, paint_regions, select_instances
from skt_components.banks.fastsam_weights import find_fastsam_weights, live_state, load_fastsam_state, make_network
from skt_components.banks.frozen import Frozen, fingerprint
from skt_components.banks.priors import (
    RegionSource,
    SemanticPriors,
    check_region_source,
    describe_region_source,
    priors_from_labels,
    priors_from_masks,
)
from skt_components.banks.resizing import crop_maps, enlarge, pad_to_multiple
from skt_components.ops.checks import check_choice, check_count, check_fraction, check_tensor, float_dtype

RANDOM_WEIGHTS = {"random": YOLOv8SegConfig(), "random-x": YOLOv8SegConfig.fastsam_x()}
_REDUCTION = (16, 8, 4, 2)


class FastSAMFeatureExtractor(nn.Module):
    """Describe pictures by four feature maps of a frozen FastSAM and by the regions that it finds.

    FastSAM's code and weights are under AGPL-3.0. The weights were trained on SA-1B, whose license allows research.
    This library has its own network, but the license of the weights file applies to a training that uses it. The
    trained reconstruction network contains no weights of FastSAM.

    The network is stored in :class:`Frozen`. The forward pass has no state, so the bank can be copied, compiled, moved
    to bfloat16 and called from several threads. Boxes, scores and masks are always decoded in float32.

    Args:
        weights: one of these. A file: an official ``FastSAM-s.pt`` or ``FastSAM-x.pt``, a checkpoint of any YOLOv8 or
            YOLO11 segmentation network (``yolo11n-seg.pt``), or a file of ``convert_checkpoint``. It is read without
            running code from it. A model object of ultralytics (``FastSAM(...)``, ``YOLO(...)``): its weights are
            copied. ``"FastSAM-s"``, ``"FastSAM-x"`` or None: :func:`find_fastsam_weights` finds the file. ``"random"``
            and ``"random-x"``: random weights for tests; seed them with ``torch.manual_seed``.
        layers: ``"paper"``: the three inputs of the head and the stride-4 stage, of the picture at twice its size. This
            is the closest interpretation of "features before the representation head". ``"fast"``: four backbone stages
            of the picture at its own size, at a quarter of the cost. Or four layer indices, coarse to fine, with
            strides 16, 8, 4, 2 or 32, 16, 8, 4 (then with the picture at twice its size).
        max_regions: K, the best masks kept per picture. There are K + 1 regions: 0 is the background.
        overlap: keep overlapping masks; ``labels`` is then None. By default every pixel belongs to the smallest mask
            that covers it, or to the background.
        conf: smallest confidence of a mask, in [0, 1].
        iou: largest overlap of two boxes that are both kept, in [0, 1]. Above it, only the better box is kept.
        full_resolution: compute the masks per pixel. False: per cell of the prototypes (4 pixels, 2 at twice the size),
            which is faster but makes blocky borders.
        regions: a region source that replaces FastSAM's head. The head then does not run.
        grad_to_input: pass gradients through the features to the pictures.
        download: download missing weights of FastSAM-s or FastSAM-x to the cache.

    Attributes:
        channels: channels of the four maps, coarse to fine; ``reduction`` has their strides, (16, 8, 4, 2).
        num_regions: K + 1, or ``regions.num_regions``.

    Raises:
        FileNotFoundError: there are no weights; the message says where to get them.
        ValueError: the file is rejected or is for another network, or an argument is out of range.

    Example:
        >>> bank = FastSAMFeatureExtractor("random", max_regions=4)
        >>> priors = bank(torch.rand(1, 3, 64, 48))
        >>> [tuple(f.shape[1:]) for f in priors.features]
        [(512, 4, 3), (256, 8, 6), (128, 16, 12), (64, 32, 24)]
        >>> priors.masks.shape
        torch.Size([1, 5, 64, 48])

    Reference:
        X. Zhao et al., "Fast Segment Anything", arXiv:2306.12156, 2023.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | nn.Module | None = None,
        *,
        layers: Literal["paper", "fast"] | Sequence[int] = "paper",
        max_regions: int = 16,
        overlap: bool = False,
        conf: float = 0.4,
        iou: float = 0.9,
        full_resolution: bool = True,
        regions: RegionSource | None = None,
        grad_to_input: bool = False,
        download: bool = False,
    ) -> None:
        super().__init__()
        check_fraction("conf", conf)
        check_fraction("iou", iou)
        self.max_regions = check_count("max_regions", max_regions, 1)
        self.conf, self.iou = float(conf), float(iou)
        self.overlap, self.full_resolution, self.grad_to_input = overlap, full_resolution, grad_to_input
        if regions is not None and overlap:
            raise ValueError("regions must be None with overlap=True: only FastSAM's own masks can overlap")
        self.num_regions = self.max_regions + 1 if regions is None else check_region_source(regions)
        self.regions = Frozen(regions) if isinstance(regions, nn.Module) else regions
        network = _load(weights, download)
        self.layers, self.scale = _check_layers(layers, network)
        self.network = Frozen(network)
        self.channels = tuple(self._yolo.channels(layer) for layer in self.layers)
        self.reduction = _REDUCTION

    @property
    def _yolo(self) -> YOLOv8Seg:
        return cast(YOLOv8Seg, self.network.network)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and options, 64 hexadecimal digits; computed at every read.

        A region source without a fingerprint raises ValueError, see ``describe_region_source``.
        """
        options = (self.layers, self.max_regions, self.overlap, self.conf, self.iou, self.full_resolution)
        return fingerprint(self, type(self).__name__, *options, describe_region_source(self.regions))

    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Describe tone-mapped RGB pictures, clamped to [0, 1]; a picture without masks is all background.

        Under ``torch.autocast`` the network runs in the lower precision, and the maps are returned in float32.
        """
        size = _checked_size("tonemapped", tonemapped)
        head = self._yolo.levels if self.regions is None else ()
        with torch.set_grad_enabled(self.grad_to_input and torch.is_grad_enabled()):
            images = tonemapped.clamp(0, 1)
            outputs = self._yolo.run_layers(self._prepare(images), {*self.layers, *head})
            features = self._crop(outputs, size)
        with torch.no_grad():  # not inference_mode, whose tensors autograd cannot save
            if self.regions is not None:
                labels = self.regions(images.detach(), [f.detach() for f in features])
                return priors_from_labels(features, labels, self.num_regions)
            masks = self._masks(outputs, size)
            if not self.overlap:
                return priors_from_labels(features, paint_regions(masks), self.num_regions)
            return priors_from_masks(features, torch.cat([~masks.any(dim=1, keepdim=True), masks], dim=1))

    def extract_features(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the four maps, differentiable with respect to the pictures, as a perceptual loss needs them.

        The pictures, nominally in [0, 1], are not clamped, which would stop gradients outside. Later layers do not
        run. The maps ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` are float32 (float64 if moved there).
        """
        size = _checked_size("images", images)
        return self._crop(self._yolo.run_layers(self._prepare(images), self.layers), size)

    @torch.no_grad()
    def label_regions(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b h w"]:
        """Return the disjoint map of FastSAM's masks."""
        size = _checked_size("images", images)
        return paint_regions(
            self._masks(self._yolo.run_layers(self._prepare(images.clamp(0, 1)), self._yolo.levels), size)
        )

    def _prepare(self, images: Tensor) -> Tensor:
        """Pad to a multiple of the network's strides, enlarge, and convert to the dtype of the weights."""
        images = images.to(float_dtype(images))  # half precision is too coarse to enlarge pictures in
        images = enlarge(pad_to_multiple(images, 32 // self.scale), self.scale)
        return images.to(next(self._yolo.parameters()).dtype)

    def _crop(self, outputs: dict[int, Tensor], size: tuple[int, int]) -> list[Tensor]:
        return crop_maps((outputs[layer] for layer in self.layers), size, self.reduction)

    def _masks(self, levels: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        found = self._yolo.detect({layer: levels[layer].detach() for layer in self._yolo.levels})
        left, top = found.boxes[..., 0], found.boxes[..., 1]
        outside = (left >= size[1] * self.scale) | (top >= size[0] * self.scale)  # in the padding
        scores = found.scores.masked_fill(outside, -1)
        chosen = select_instances(found.boxes, scores, conf=self.conf, iou=self.iou, count=self.max_regions)
        return instance_masks(found, *chosen, scale=self.scale, size=size, full_resolution=self.full_resolution)

    def extra_repr(self) -> str:
        """Show the layers and the regions."""
        own = f"max_regions={self.max_regions}, overlap={self.overlap}, conf={self.conf}, iou={self.iou}"
        regions = own if self.regions is None else f"regions={self.regions}"
        resolution = f"full_resolution={self.full_resolution}"
        return f"layers={self.layers} at {self.scale}x, channels={self.channels}, {regions}, {resolution}"


class FastSAMRegions(nn.Module):
    """FastSAM's disjoint regions as the region source of another bank, such as HRNet's.

    Args:
        weights: as ``FastSAMFeatureExtractor`` takes them.
        options: its other options except ``overlap`` and ``regions``; ``layers`` decides the input size.

    Attributes:
        num_regions: ``max_regions`` + 1; 0 is the background.

    Example:
        >>> FastSAMRegions("random", layers="fast", max_regions=4)(torch.rand(1, 3, 64, 48)).shape
        torch.Size([1, 64, 48])
    """

    def __init__(self, weights: str | os.PathLike[str] | nn.Module | None = None, **options: object) -> None:
        super().__init__()
        rejected = {"overlap", "regions"} & set(options)
        if rejected:
            raise TypeError(f"FastSAMRegions has no option {min(rejected)}: it gives FastSAM's own disjoint regions")
        self.bank = FastSAMFeatureExtractor(weights, **options)  # type: ignore[arg-type]
        self.num_regions = self.bank.num_regions

    @property
    def fingerprint(self) -> str:
        """Hash of FastSAM's weights and options."""
        return self.bank.fingerprint

    def forward(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Return the labels of pictures in [0, 1]; ``features`` are not used."""
        return self.bank.label_regions(images)


def _check_layers(layers: str | Sequence[int], network: YOLOv8Seg) -> tuple[tuple[int, ...], int]:
    """Return the four layers and the scale of the network's input."""
    if isinstance(layers, str):
        check_choice("layers", layers, ("paper", "fast"))
        return (*network.levels[::-1], 2) if layers == "paper" else (6, 4, 2, 0), 2 if layers == "paper" else 1
    layers = tuple(layers)
    strides = [network.strides.get(layer) for layer in layers if isinstance(layer, int) and not isinstance(layer, bool)]
    for scale in (1, 2):
        if strides == [scale * r for r in _REDUCTION] and len(layers) == 4:
            return layers, scale
    raise ValueError(
        "layers must be 'paper', 'fast' or four layers, coarse to fine, with strides 16, 8, 4, 2 or 32, 16, 8, 4; "
        f"got {layers}, the strides of the layers are {network.strides}"
    )


def _checked_size(name: str, images: Tensor) -> tuple[int, int]:
    check_tensor(name, images, ndim=4, layout="(B, 3, H, W)", channels=3)
    height, width = images.shape[-2:]
    if 0 in (height, width):
        raise ValueError(f"{name} must have pixels, got shape {tuple(images.shape)}")
    return height, width


@torch.inference_mode(False)  # so that gradients can pass through the network
def _load(weights: object, download: bool) -> YOLOv8Seg:
    if isinstance(weights, str) and weights in RANDOM_WEIGHTS:
        return YOLOv8Seg(RANDOM_WEIGHTS[weights])
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        return make_network(live_state(weights), f"the {type(weights).__name__}")
    path = find_fastsam_weights(weights, download=download)
    return make_network(load_fastsam_state(path), str(path))
