"""Class maps of any semantic-segmentation network as regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.frozen import Frozen, Normalize, fingerprint
from skt_components.banks.resizing import pad_to_multiple
from skt_components.ops.checks import check_count, check_sides, check_tensor

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmenterRegions(nn.Module):
    """Use the class map of a semantic-segmentation network as the regions of a bank: one region per class.

    The network gets normalized pictures (B, 3, H, W) and returns scores (B, K, h, w) of K classes at any resolution: as
    a tensor (segmentation_models_pytorch), as the attribute ``logits`` (Hugging Face ``transformers``), or under the
    key "out" (torchvision). The scores are enlarged bilinearly, and each pixel gets its most probable class. The
    network is frozen in place, stays in eval mode, and is in no state dict.

    Args:
        network: the network.
        num_regions: K, its number of classes.
        mean: mean per channel for the normalization of pictures in [0, 1]; by default ImageNet's.
        std: standard deviation per channel.
        multiple: pictures are padded to multiples of this many pixels.

    Raises:
        TypeError: ``network`` is not an ``nn.Module``.
        ValueError: a number is out of range, or in a call the network returns other scores.

    Example:
        >>> regions = SegmenterRegions(nn.Conv2d(3, 5, 8, stride=8), num_regions=5)
        >>> regions(torch.rand(2, 3, 33, 48)).shape
        torch.Size([2, 33, 48])
    """

    def __init__(
        self,
        network: nn.Module,
        num_regions: int,
        *,
        mean: Sequence[float] = _IMAGENET[0],
        std: Sequence[float] = _IMAGENET[1],
        multiple: int = 32,
    ) -> None:
        super().__init__()
        self.num_regions = check_count("num_regions", num_regions, 1)
        self.multiple = check_count("multiple", multiple, 1)
        self.network = Frozen(network)
        self.normalize = Normalize(mean, std)

    @property
    def fingerprint(self) -> str:
        """Hash of the network's class and weights and of the options."""
        kind = type(self.network.network)
        options = (self.num_regions, self.multiple, self.normalize.mean.tolist(), self.normalize.std.tolist())
        return fingerprint(self, f"{kind.__module__}.{kind.__qualname__}", *options)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 3 h w"], features: Sequence[Tensor] | None = None
    ) -> Int[Tensor, "b h w"]:
        """Return int64 labels in [0, ``num_regions``) of RGB pictures, clamped to [0, 1]; ``features`` are not used."""
        check_tensor("images", images, ndim=4, layout="(B, 3, H, W)", channels=3)
        check_sides("images", images)
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images.float().clamp(0, 1), self.multiple)
        scores = _scores(self.network(self.normalize(padded).to(_dtype_of(self.network.network))))
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != self.num_regions:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"the network must give scores (B, {self.num_regions}, h, w), got {got}")
        scores = F.interpolate(scores.float(), padded.shape[-2:], mode="bilinear", align_corners=False)
        return scores.argmax(dim=1)[:, :height, :width]

    def extra_repr(self) -> str:
        """Show the options."""
        return f"num_regions={self.num_regions}, multiple={self.multiple}"


def _scores(output: Any) -> Any:
    """Return the scores in the output of a network: an attribute ``logits``, a key "out", or the output itself."""
    if hasattr(output, "logits"):
        return output.logits
    return output.get("out") if isinstance(output, Mapping) else output


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
