"""Class maps of any semantic-segmentation network as regions."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.frozen import Frozen, Normalize, fingerprint
from skt_components.banks.resizing import pad_to_multiple
from skt_components.files.packages import import_package
from skt_components.ops.checks import check_choice, check_count, check_sides, check_tensor

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmenterRegions(nn.Module):
    """Use the class map of a semantic-segmentation network as the regions of a bank: one region per class.

    The network gets normalized pictures (B, 3, H, W) and returns scores (B, K, h, w) of K classes at any resolution: as
    a tensor (segmentation_models_pytorch), as the attribute ``logits`` (Hugging Face ``transformers``), or under the
    key "out" (torchvision). Mask2Former and MaskFormer return classes and masks of queries instead; the score of a
    class is the sum over the queries of its probability times the mask. The scores are enlarged bilinearly, and each
    pixel gets its most probable class. The network is frozen in place, stays in eval mode, and is in no state dict.

    Args:
        network: the network.
        num_regions: K, its number of classes.
        mean: mean per channel for the normalization of pictures in [0, 1]; by default ImageNet's.
        std: standard deviation per channel.
        channel_order: order of the colors that the network takes, "rgb" or "bgr".
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
        channel_order: str = "rgb",
        multiple: int = 32,
    ) -> None:
        super().__init__()
        check_choice("channel_order", channel_order, ("rgb", "bgr"))
        self.channel_order = channel_order
        self.num_regions = check_count("num_regions", num_regions, 1)
        self.multiple = check_count("multiple", multiple, 1)
        self.network = Frozen(network)
        self.normalize = Normalize(mean, std)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, download: bool = False, multiple: int = 32
    ) -> SegmenterRegions:
        """Load a semantic-segmentation network of Hugging Face ``transformers``, with its normalization.

        These networks take pictures of any size: SegFormer, UperNet, MobileNetV2, MobileViT, BEiT, Mask2Former and
        MaskFormer. DPT, Data2Vec and EoMT take one size and are rejected. No code of the folder runs.

        Args:
            folder: a folder of ``save_pretrained``, with ``preprocessor_config.json``; or a name on the Hugging Face
                hub, which is searched among earlier downloads.
            download: download the network if it is not there.
            multiple: pictures are padded to multiples of this many pixels.

        Raises:
            FileNotFoundError: there is no such network, and ``download`` is False.
            ValueError: the network does not segment pictures of any size into classes.
            ImportError: transformers is not installed.

        Example:
            >>> SegmenterRegions.from_pretrained("segformer-b0-ade")  # doctest: +SKIP
        """
        transformers = import_package("transformers", "from_pretrained needs the package transformers", "transformers")
        processing = importlib.import_module("transformers.image_processing_utils")
        options: dict[str, Any] = {"local_files_only": not download, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            network = _auto_class(transformers, folder, config).from_pretrained(folder, config=config, **options)
            processor, _ = processing.BaseImageProcessor.get_image_processor_dict(folder, **options)
        except OSError as error:
            raise FileNotFoundError(f"no segmentation network of transformers at {folder}: {error}") from error
        plain = not processor.get("do_normalize", "image_mean" in processor)
        mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (processor["image_mean"], processor["image_std"])
        order = "bgr" if processor.get("do_flip_channel_order") else "rgb"
        regions = cls(network, config.num_labels, mean=mean, std=std, channel_order=order, multiple=multiple)
        try:
            regions(torch.zeros(1, 3, 2 * multiple, 3 * multiple))
        except Exception as error:  # a network can raise anything for such input
            raise ValueError(
                f"the network in {folder} cannot give regions: it must take pictures of any size, but "
                f"{2 * multiple}x{3 * multiple} gives: {error}"
            ) from error
        return regions

    @property
    def fingerprint(self) -> str:
        """Hash of the network's class and weights and of the options."""
        kind = type(self.network.network)
        options: tuple[object, ...] = (
            self.num_regions,
            self.multiple,
            self.normalize.mean.tolist(),
            self.normalize.std.tolist(),
        )
        options += (self.channel_order,) if self.channel_order != "rgb" else ()
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
        inputs = self.normalize(padded if self.channel_order == "rgb" else padded.flip(1))
        scores = _scores(self.network(inputs.to(_dtype_of(self.network.network))))
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != self.num_regions:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"the network must give scores (B, {self.num_regions}, h, w), got {got}")
        scores = F.interpolate(scores.float(), padded.shape[-2:], mode="bilinear", align_corners=False)
        return scores.argmax(dim=1)[:, :height, :width]

    def extra_repr(self) -> str:
        """Show the options."""
        return f"num_regions={self.num_regions}, channel_order={self.channel_order!r}, multiple={self.multiple}"


def _auto_class(transformers: Any, folder: str | os.PathLike[str], config: Any) -> Any:
    """Return the class of transformers that loads the network of this configuration."""
    if type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return transformers.AutoModelForSemanticSegmentation
    if type(config) in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return transformers.AutoModelForUniversalSegmentation
    raise ValueError(f"the network in {folder} must segment pictures into classes, got a {config.model_type}")


def _scores(output: Any) -> Any:
    """Return the scores in the output of a network: see the class."""
    if hasattr(output, "class_queries_logits"):  # the last class is "nothing"
        classes, masks = output.class_queries_logits.softmax(-1)[..., :-1], output.masks_queries_logits.sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks)
    if hasattr(output, "logits"):
        return output.logits
    return output.get("out") if isinstance(output, Mapping) else output


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
